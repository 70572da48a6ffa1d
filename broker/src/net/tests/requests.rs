//! Requests on one shard: what goes in comes out, in order, whatever the frames are cut into.

use super::world::{Broker, Client, batch, config, control_answer, fetch, frame, hello, produce, tp};
use crate::net::NetConfig;
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Kind;
use corelog_wire::ids::{MemberEpoch, MemberId, Offset, ShardId};
use corelog_wire::message::{
    Acks, Answer, At, DeleteRecordsRequest, DeleteRecordsRow, GroupHeartbeatAnswer, GroupHeartbeatRequest,
    InitProducerIdRequest, Leave, ListOffsetsRequest, ListOffsetsRow, MetadataRequest, Request,
};
use std::io::Write;

#[test]
fn what_is_produced_is_fetched_byte_for_byte() {
    let broker = Broker::start(1, config());
    let mut client = broker.client();
    let first = batch(tp(0), b"the first record");
    let second = batch(tp(0), &vec![7; 3_000_001]);
    let rows = client.produce(&[(tp(0), first.clone()), (tp(0), second.clone())]);
    assert_eq!(
        rows.iter().map(|row| (row.error, row.base_offset.get())).collect::<Vec<_>>(),
        [(ErrorCode::None, 0), (ErrorCode::None, 1)]
    );
    let (answer, payload) = client.fetch(&fetch(0, 16 << 20, &[(tp(0), 0)]));
    assert_eq!(answer.rows[0].high_watermark, Offset::new(2));
    // More than a new connection's window holds: the second batch comes with the next fetch.
    assert_eq!(payload, first);
    let (_, payload) = client.fetch(&fetch(0, 16 << 20, &[(tp(0), 1)]));
    assert!(payload == second);
}

#[test]
fn hello_tells_who_answers_and_what_is_taken() {
    let broker = Broker::start(1, config());
    let (mut client, answer) = Client::greeted(broker.address, None);
    assert_eq!((answer.cluster.as_str(), answer.broker.get(), answer.shard), ("test", 7, ShardId::new(0)));
    assert_eq!((answer.payload_bytes_max, answer.header_bytes_max), (16 << 20, 1 << 20));
    client.send(&hello(None), &[]);
    assert_eq!(client.refusal().1.code, ErrorCode::Malformed, "Hello is said once");
    client.produce(&[(tp(0), batch(tp(0), b"goes on"))]);
}

#[test]
fn frames_may_come_in_pieces_of_any_size() {
    let broker = Broker::start(1, config());
    let (request, payload) = produce(Acks::All, &[(tp(0), batch(tp(0), b"one"))]);
    let stream =
        [frame(1, &hello(None), &[]), frame(2, &request, &payload), frame(3, &request, &payload)].concat();
    for piece in (1..40).chain([64, 100, 1_000]) {
        let mut client = Client::silent(broker.address);
        for bytes in stream.chunks(piece) {
            client.socket.write_all(bytes).unwrap();
        }
        let kinds = [(); 3]
            .map(|()| client.receive().prelude)
            .map(|prelude| (prelude.kind, prelude.correlation.get()));
        assert_eq!(kinds, [(1, 1), (7, 2), (7, 3)], "pieces of {piece} bytes");
    }
}

#[test]
fn requests_are_pipelined_up_to_a_limit_and_answers_may_overtake() {
    let broker = Broker::start(1, NetConfig { in_flight_max: 8, ..config() });
    broker.on(0, |core| core.shard.holds.set(true));
    let mut client = broker.client();
    let (request, payload) = produce(Acks::All, &[(tp(0), batch(tp(0), b"one"))]);
    client.send(&request, &payload);
    let list =
        Request::ListOffsets(ListOffsetsRequest { rows: vec![ListOffsetsRow { tp: tp(0), at: At::Latest }] });
    let overtakes = client.send(&list, &[]);
    assert_eq!(client.receive().prelude.correlation.get(), overtakes);
    for _ in 0..20 {
        client.send(&request, &payload);
    }
    broker.until(0, |core| core.shard.held.borrow().len() == 8);
    // What comes after the eighth is not read while the eight wait; a look-up on another connection is answered.
    broker.client().ask(&list);
    assert_eq!(broker.on(0, |core| core.shard.held.borrow().len()), 8);
    broker.on(0, |core| core.shard.release());
    for _ in 0..21 {
        assert_eq!(client.receive().prelude.kind, Kind::Produce.as_u16());
    }
    assert_eq!(broker.on(0, |core| core.shard.batches(tp(0))), 21);
}

#[test]
fn a_fetch_waits_for_the_first_record() {
    let broker = Broker::start(1, config());
    let (mut reader, mut writer) = (broker.client(), broker.client());
    reader.send(&fetch(30_000, 1 << 20, &[(tp(0), 0)]), &[]);
    broker.until(0, |core| core.shard.parked() == 1);
    let record = batch(tp(0), b"at last");
    writer.produce(&[(tp(0), record.clone())]);
    assert_eq!(reader.fetched().1, record);
}

#[test]
fn fetches_that_wait_do_not_hold_up_their_connection() {
    let broker = Broker::start(1, NetConfig { in_flight_max: 8, parked_max: 100, ..config() });
    let mut client = broker.client();
    // All consumers of a client share its connection.
    for partition in 0..50 {
        client.send(&fetch(30_000, 1 << 20, &[(tp(partition % 4), 0)]), &[]);
    }
    broker.until(0, |core| core.shard.parked() == 50);
    assert_eq!(broker.snapshot(0).output_bytes.0, 0, "what waits reserves nothing");
    let (request, payload) = produce(Acks::All, &[(tp(5), batch(tp(5), b"past them"))]);
    let produced = client.send(&request, &payload);
    assert_eq!(client.receive().prelude.correlation.get(), produced);
    // They are bounded as well.
    for _ in 0..100 {
        client.send(&fetch(30_000, 1 << 20, &[(tp(6), 0)]), &[]);
    }
    broker.until(0, |core| core.shard.parked() == 100);
    broker.client().ask(&Request::ListOffsets(ListOffsetsRequest { rows: vec![] }));
    assert_eq!(broker.on(0, |core| core.shard.parked()), 100);
}

#[test]
fn a_fetch_waits_for_as_many_bytes_as_it_asks_for() {
    let broker = Broker::start(1, config());
    let (mut reader, mut writer) = (broker.client(), broker.client());
    let record = batch(tp(0), &[1; 1_000]);
    writer.produce(&[(tp(0), record.clone())]);
    let Request::Fetch(request) = fetch(30_000, 1 << 20, &[(tp(0), 0)]) else { unreachable!() };
    let min_bytes = u32::try_from(record.len()).unwrap() + 1;
    reader.send(&Request::Fetch(corelog_wire::message::FetchRequest { min_bytes, ..request }), &[]);
    broker.until(0, |core| core.shard.parked() == 1);
    writer.produce(&[(tp(0), record.clone())]);
    assert_eq!(reader.fetched().1.len(), 2 * record.len());
}

#[test]
fn a_client_that_leaves_is_forgotten() {
    let broker = Broker::start(1, config());
    let mut reader = broker.client();
    reader.send(&fetch(30_000, 1 << 20, &[(tp(0), 0)]), &[]);
    broker.until(0, |core| core.shard.parked() == 1);
    // Something unread makes the end a reset, which says that the client does not wait either.
    reader.send(&Request::ListOffsets(ListOffsetsRequest { rows: vec![] }), &[]);
    broker.until(0, |core| core.net.snapshot().latency_us[8].1.len() == 1);
    drop(reader);
    broker.until(0, |core| core.shard.forgotten.get() == 1 && core.shard.parked() == 0);
    broker.until(0, |core| core.net.snapshot().connections == 0 && core.net.snapshot().in_flight == 0);
}

#[test]
fn a_client_that_only_stops_sending_still_gets_its_answers() {
    let broker = Broker::start(1, config());
    let mut reader = broker.client();
    reader.send(&fetch(30_000, 1 << 20, &[(tp(0), 0)]), &[]);
    reader.socket.shutdown(std::net::Shutdown::Write).unwrap();
    broker.until(0, |core| core.shard.parked() == 1);
    let record = batch(tp(0), b"for the patient");
    broker.client().produce(&[(tp(0), record.clone())]);
    assert_eq!(reader.fetched().1, record);
    reader.assert_closed();
}

#[test]
fn acks_none_has_no_answer() {
    let broker = Broker::start(1, config());
    let mut client = broker.client();
    let (request, payload) = produce(Acks::None, &[(tp(0), batch(tp(0), b"gone"))]);
    for _ in 0..1_000 {
        client.send(&request, &payload);
    }
    let rows = client.produce(&[(tp(0), batch(tp(0), b"answered"))]);
    assert_eq!(
        rows[0].base_offset,
        Offset::new(1_000),
        "the first answer is to the request that asked for one"
    );
    assert_eq!(broker.on(0, |core| core.shard.silent.get()), 1_000);
    broker.until(0, |core| core.net.snapshot().input_bytes.0 == 0);
}

#[test]
fn the_control_thread_answers_or_is_busy() {
    let mut broker = Broker::start(1, config());
    let mut client = broker.client();
    let metadata = Request::Metadata(MetadataRequest { topics: None, auto_create: false });
    client.send(&metadata, &[]);
    client.send(&Request::InitProducerId(InitProducerIdRequest {}), &[]);
    for _ in 0..2 {
        let asked = broker.control.blocking_recv().unwrap();
        asked.reply.send(control_answer(&asked.request)).unwrap();
    }
    let answers = [client.receive().answer, client.receive().answer];
    assert!(answers.iter().any(|answer| matches!(answer, Answer::Metadata(answer) if answer.revision == 4)));
    assert!(answers.iter().any(|answer| matches!(answer, Answer::InitProducerId(_))));
    // The channel of these tests holds four requests.
    for _ in 0..5 {
        client.send(&metadata, &[]);
    }
    let (_, refusal) = client.refusal();
    assert_eq!(refusal.code, ErrorCode::Throttled);
    assert!(refusal.throttle_ms > 0 && refusal.message.contains("Wait"), "{refusal:?}");
    // Given up by the control thread: the client is told so.
    drop(broker.control.blocking_recv().unwrap());
    let (_, refusal) = client.refusal();
    assert!(refusal.code.is_retriable(), "{refusal:?}");
}

#[test]
fn heartbeats_that_are_held_do_not_hold_up_their_connection() {
    let mut broker = Broker::start(1, NetConfig { in_flight_max: 2, ..config() });
    let mut client = broker.client();
    let heartbeat = Request::GroupHeartbeat(GroupHeartbeatRequest {
        group: "billing".to_owned(),
        member: MemberId::new(1),
        member_epoch: MemberEpoch::new(1),
        leave: Leave::No,
        max_wait_ms: 10_000,
        owned: Vec::new(),
        beat: 0,
        wishes: None,
    });
    let held: Vec<_> = [(); 3]
        .map(|()| {
            client.send(&heartbeat, &[]);
            broker.groups.blocking_recv().unwrap()
        })
        .into();
    client.send(&Request::Metadata(MetadataRequest { topics: None, auto_create: false }), &[]);
    let asked = broker.control.blocking_recv().unwrap();
    asked.reply.send(control_answer(&asked.request)).unwrap();
    assert!(matches!(client.receive().answer, Answer::Metadata(_)));
    let granted = GroupHeartbeatAnswer { member_epoch: MemberEpoch::new(2), granted: Vec::new() };
    for asked in held {
        asked.reply.send(Answer::GroupHeartbeat(granted.clone())).unwrap();
        assert_eq!(client.receive().answer, Answer::GroupHeartbeat(granted.clone()));
    }
}

#[test]
fn a_shard_with_too_many_requests_under_way_throttles() {
    let broker = Broker::start(1, NetConfig { requests_max: 2, ..config() });
    broker.on(0, |core| core.shard.holds.set(true));
    let mut client = broker.client();
    let (request, payload) = produce(Acks::All, &[(tp(0), batch(tp(0), b"one"))]);
    let correlations = [(); 3].map(|()| client.send(&request, &payload));
    let (correlation, refusal) = client.refusal();
    assert_eq!((correlation, refusal.code), (correlations[2], ErrorCode::Throttled));
    broker.on(0, |core| core.shard.release());
    let answered = [(); 2].map(|()| client.receive().prelude.correlation.get());
    assert_eq!(answered[..], correlations[..2]);
}

#[test]
fn a_broker_that_stops_answers_what_is_under_way_and_refuses_the_rest() {
    let broker = Broker::start(1, config());
    broker.on(0, |core| core.shard.holds.set(true));
    let (mut client, mut late) = (broker.client(), broker.client());
    let (request, payload) = produce(Acks::All, &[(tp(0), batch(tp(0), b"one"))]);
    let under_way = client.send(&request, &payload);
    broker.until(0, |core| core.shard.held.borrow().len() == 1);
    broker.on(0, |core| {
        let (net, shard) = (core.net.clone(), std::rc::Rc::clone(&core.shard));
        crate::rt::spawn(async move { net.drain(super::world::PATIENCE).await });
        crate::rt::spawn(async move {
            while shard.held.borrow().len() < 2 && shard.holds.get() {
                crate::rt::yield_now().await;
            }
        });
    });
    late.send(&request, &payload);
    assert_eq!(late.refusal().1.code, ErrorCode::ShuttingDown);
    broker.on(0, |core| core.shard.release());
    assert_eq!(client.receive().prelude.correlation.get(), under_way);
    client.assert_closed();
}

#[test]
fn records_are_deleted_and_unknown_partitions_named() {
    let broker = Broker::start(1, config());
    let mut client = broker.client();
    let row = |partition| DeleteRecordsRow { tp: tp(partition), before: Offset::new(3) };
    let answer =
        client.ask(&Request::DeleteRecords(DeleteRecordsRequest { rows: vec![row(0), row(77), row(1)] }));
    let Answer::DeleteRecords(answer) = answer else { panic!("{answer:?}") };
    let rows: Vec<_> =
        answer.rows.iter().map(|row| (row.tp.partition, row.error, row.log_start.get())).collect();
    assert_eq!(
        rows,
        [(0, ErrorCode::None, 3), (77, ErrorCode::UnknownPartition, 0), (1, ErrorCode::None, 3)]
    );
}
