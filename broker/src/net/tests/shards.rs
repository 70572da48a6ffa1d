//! Several shards: connections go where they want to be, requests go where their partitions are.

use super::world::{Broker, Client, PATIENCE, batch, config, fetch, frame, hello, produce, tp};
use crate::net::{NetConfig, View};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{ShardId, TopicId, TopicPartition};
use corelog_wire::message::{Acks, Answer, At, ListOffsetsRequest, ListOffsetsRow, Request};
use std::io::Write;
use std::sync::Arc;

fn forwarded(broker: &Broker, shards: usize) -> u64 {
    (0..shards).map(|shard| broker.snapshot(shard).forwarded).sum()
}

#[test]
fn a_connection_is_served_by_the_shard_that_its_hello_names() {
    let broker = Broker::start(2, config());
    for round in 0..20 {
        for shard in [0, 1] {
            let (mut client, answer) = Client::greeted(broker.address, Some(shard));
            assert_eq!((answer.shard, answer.shards), (ShardId::new(shard), 2));
            client.produce(&[(tp(shard.into()), batch(tp(shard.into()), b"no hop"))]);
            assert_eq!(broker.on(shard.into(), move |core| core.shard.batches(tp(shard.into()))), round + 1);
        }
    }
    assert_eq!(forwarded(&broker, 2), 0);
    let handed_over: u64 = (0..2).map(|shard| broker.snapshot(shard).handed_over).sum();
    let accepted: u64 = (0..2).map(|shard| broker.snapshot(shard).accepted).sum();
    assert!(handed_over > 0, "of 40 connections one at least was accepted by the wrong shard");
    assert_eq!(accepted, 40);
    for shard in 0..2 {
        broker.until(shard, |core| core.net.snapshot().connections == 0);
    }
    let (_, answer) = Client::greeted(broker.address, Some(9));
    assert!(answer.shard.get() < 2, "a shard that does not exist is not looked for");
}

#[test]
fn what_a_client_sends_behind_its_hello_goes_with_the_connection() {
    let broker = Broker::start(2, config());
    for shard in [0, 1, 0, 1, 0, 1, 0, 1] {
        let mut client = Client::silent(broker.address);
        let (request, payload) = produce(Acks::All, &[(tp(0), batch(tp(0), &vec![3; 10_000]))]);
        let frames =
            [frame(1, &hello(Some(shard)), &[]), frame(2, &request, &payload), frame(3, &request, &payload)];
        client.socket.write_all(&frames.concat()).unwrap();
        let seen = [(); 3].map(|()| client.receive().prelude.correlation.get());
        assert_eq!(seen, [1, 2, 3]);
    }
}

#[test]
fn requests_for_another_shard_are_forwarded() {
    let broker = Broker::start(2, config());
    let (mut client, _) = Client::greeted(broker.address, Some(0));
    let record = batch(tp(1), &vec![5; 200_000]);
    assert_eq!(client.produce(&[(tp(1), record.clone())])[0].error, ErrorCode::None);
    assert_eq!(broker.on(1, |core| core.shard.batches(tp(1))), 1);
    let (answer, payload) = client.fetch(&fetch(0, 1 << 20, &[(tp(1), 0)]));
    assert_eq!((answer.rows.len(), payload == record), (1, true));
    assert_eq!(broker.snapshot(0).forwarded, 2);
    // A long poll on the other shard.
    client.send(&fetch(30_000, 1 << 20, &[(tp(1), 1)]), &[]);
    broker.until(1, |core| core.shard.parked() == 1);
    let (mut writer, _) = Client::greeted(broker.address, Some(1));
    writer.produce(&[(tp(1), record.clone())]);
    assert!(client.fetched().1 == record);
    // Without acks.
    let (request, payload) = produce(Acks::None, &[(tp(1), record.clone())]);
    client.send(&request, &payload);
    broker.until(1, |core| core.shard.silent.get() == 1);
    // A client that leaves is forgotten on the other shard, too.
    client.send(&fetch(30_000, 1 << 20, &[(tp(1), 9_000)]), &[]);
    let (_, _) = (client.fetched(), client.send(&fetch(30_000, 1 << 20, &[(tp(1), 3)]), &[]));
    broker.until(1, |core| core.shard.parked() == 1);
    client.send(&Request::ListOffsets(ListOffsetsRequest { rows: vec![] }), &[]);
    broker.until(0, |core| core.net.snapshot().latency_us[8].1.len() == 1);
    drop(client);
    broker.until(1, |core| core.shard.parked() == 0 && core.net.snapshot().in_flight == 0);
    broker.until(0, |core| core.net.snapshot().input_bytes.0 == 0);
}

#[test]
fn a_request_whose_rows_span_shards_has_one_answer_in_its_order() {
    let broker = Broker::start(3, config());
    let (mut client, _) = Client::greeted(broker.address, Some(0));
    let unknown = TopicPartition::new(TopicId::from_bytes([1; 16]), 5);
    let places = [tp(2), tp(0), unknown, tp(1), tp(5), tp(3), tp(8)];
    let batches = places.map(|tp| (tp, batch(tp, &[u8::try_from(tp.partition).unwrap(); 5_000])));
    let rows = client.produce(&batches);
    let order: Vec<_> = rows.iter().map(|row| (row.tp, row.error)).collect();
    let error = |tp: TopicPartition| match tp {
        tp if tp == unknown => ErrorCode::UnknownTopic,
        tp if tp.partition == 8 => ErrorCode::UnknownPartition,
        _ => ErrorCode::None,
    };
    assert_eq!(order, places.map(|tp| (tp, error(tp))));
    let list = ListOffsetsRequest { rows: places.map(|tp| ListOffsetsRow { tp, at: At::Latest }).to_vec() };
    let Answer::ListOffsets(listed) = client.ask(&Request::ListOffsets(list)) else { panic!("not listed") };
    let order: Vec<_> = listed.rows.iter().map(|row| (row.tp, row.error, row.offset.get())).collect();
    assert_eq!(order, places.map(|tp| (tp, error(tp), u64::from(error(tp) == ErrorCode::None))));
    let known: Vec<_> = batches.iter().filter(|(tp, _)| error(*tp) == ErrorCode::None).collect();
    let rows: Vec<_> = known.iter().map(|(tp, _)| (*tp, 0)).collect();
    let (answer, payload) = client.fetch(&fetch(0, 1 << 20, &rows));
    assert_eq!(
        answer.rows.iter().map(|row| row.tp).collect::<Vec<_>>(),
        rows.iter().map(|row| row.0).collect::<Vec<_>>()
    );
    assert!(payload == known.iter().flat_map(|(_, batch)| batch.iter().copied()).collect::<Vec<u8>>());
    for row in &answer.rows {
        assert_eq!((row.bytes as usize, row.high_watermark.get()), (known[0].1.len(), 1));
    }
}

#[test]
fn a_fetch_across_shards_waits_for_the_first_record_on_any_of_them() {
    let broker = Broker::start(2, config());
    let (mut reader, _) = Client::greeted(broker.address, Some(0));
    let mut ends = [0, 0];
    for shard in [1_u16, 0, 1] {
        let other = 1 - u32::from(shard);
        let rows = [(tp(other), ends[other as usize]), (tp(shard.into()), ends[usize::from(shard)])];
        reader.send(&fetch(30_000, 1 << 20, &rows), &[]);
        ends[usize::from(shard)] += 1;
        for shard in 0..2 {
            broker.until(shard, |core| core.shard.parked() == 1);
        }
        let record = batch(tp(shard.into()), b"wherever it comes");
        let (mut writer, _) = Client::greeted(broker.address, Some(shard));
        writer.produce(&[(tp(shard.into()), record.clone())]);
        let (answer, payload) = reader.fetched();
        assert_eq!((answer.rows.len(), answer.rows[0].bytes, payload), (2, 0, record.to_vec()));
        assert_eq!(answer.rows[1].error, ErrorCode::None);
        // The shard that had nothing is told that nobody waits any more.
        for shard in 0..2 {
            broker.until(shard, |core| core.shard.parked() == 0 && core.net.snapshot().in_flight == 0);
        }
    }
}

#[test]
fn a_busy_shard_does_not_starve_the_others_of_a_fetch() {
    let broker = Broker::start(2, config());
    let (mut reader, _) = Client::greeted(broker.address, Some(0));
    for partition in [0, 1] {
        broker.on(partition as usize, move |core| {
            core.shard.append(tp(partition), batch(tp(partition), b"there"));
        });
    }
    let (answer, _) = reader.fetch(&fetch(1_000, 1 << 20, &[(tp(0), 0), (tp(1), 0)]));
    assert!(answer.rows.iter().all(|row| row.bytes > 0), "{answer:?}");
}

#[test]
fn a_fetch_across_shards_that_finds_no_room_to_wait_asks_nobody_else() {
    let broker = Broker::start(2, config());
    let (mut reader, _) = Client::greeted(broker.address, Some(1));
    // The other shard stands still until the way to it is full.
    let (go, gone) = std::sync::mpsc::channel::<()>();
    let (stands, standing_now) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let standing = scope.spawn(|| {
            broker.on(0, move |_| {
                stands.send(()).unwrap();
                gone.recv_timeout(PATIENCE).is_err()
            })
        });
        standing_now.recv_timeout(PATIENCE).unwrap();
        reader.send(&fetch(30_000, 1 << 20, &[(tp(0), 0), (tp(1), 0)]), &[]);
        broker.until(1, |core| core.net.inner.forwarded_out.get() == 1);
        broker.on(1, |core| core.net.inner.forwarded_out.set(1_000_000));
        drop(go);
        standing.join().unwrap();
    });
    let (answer, _) = reader.fetched();
    let errors: Vec<_> = answer.rows.iter().map(|row| row.error).collect();
    assert_eq!(errors, [ErrorCode::Throttled, ErrorCode::None]);
    broker.on(1, |core| core.net.inner.forwarded_out.set(0));
    assert_eq!(broker.on(1, |core| (core.shard.parked(), core.net.snapshot().in_flight)), (0, 0));
    // Whoever was asked in spite of that would answer now.
    reader.produce(&[(tp(1), batch(tp(1), b"late"))]);
    assert_eq!(reader.fetch(&fetch(0, 1 << 20, &[(tp(1), 0)])).0.rows.len(), 1);
}

#[test]
fn requests_for_a_shard_that_is_too_busy_are_throttled() {
    let broker = Broker::start(2, NetConfig { forwarded_max: 4, ..config() });
    broker.on(1, |core| core.shard.holds.set(true));
    let (mut client, _) = Client::greeted(broker.address, Some(0));
    let (request, payload) = produce(Acks::All, &[(tp(1), batch(tp(1), b"one"))]);
    for _ in 0..4 {
        client.send(&request, &payload);
    }
    broker.until(1, |core| core.shard.held.borrow().len() == 4);
    let fifth = client.send(&request, &payload);
    let (correlation, refusal) = client.refusal();
    assert_eq!((correlation, refusal.code), (fifth, ErrorCode::Throttled));
    assert!(refusal.throttle_ms > 0);
    // As a part of a request it is refused row by row.
    let rows = client.produce(&[(tp(0), batch(tp(0), b"here")), (tp(1), batch(tp(1), b"there"))]);
    assert_eq!(rows.iter().map(|row| row.error).collect::<Vec<_>>(), [ErrorCode::None, ErrorCode::Throttled]);
    assert_eq!(broker.snapshot(0).throttled, 2);
    broker.on(1, |core| core.shard.release());
    for _ in 0..4 {
        client.receive();
    }
    assert_eq!(client.produce(&[(tp(1), batch(tp(1), b"there"))])[0].error, ErrorCode::None);
}

#[test]
fn a_shard_that_does_not_answer_is_not_waited_for_longer_than_the_deadline() {
    let broker = Broker::start(2, config());
    broker.on(1, |core| core.shard.holds.set(true));
    let (mut client, _) = Client::greeted(broker.address, Some(0));
    let (request, payload) = produce(Acks::All, &[(tp(1), batch(tp(1), b"one"))]);
    let Request::Produce(request) = request else { unreachable!() };
    let request = Request::Produce(corelog_wire::message::ProduceRequest { deadline_ms: 1, ..request });
    client.send(&request, &payload);
    let (_, refusal) = client.refusal();
    assert_eq!(refusal.code, ErrorCode::Deadline);
    // Either shard may have noticed first.
    assert!((0..2).map(|shard| broker.snapshot(shard).expired).sum::<u64>() >= 1);
    // The answer that comes after all is nobody's.
    broker.on(1, |core| core.shard.release());
    assert_eq!(client.produce(&[(tp(1), batch(tp(1), b"two"))])[0].base_offset.get(), 1);
}

#[test]
fn a_new_view_moves_requests() {
    let broker = Broker::start(2, config());
    let (mut client, _) = Client::greeted(broker.address, Some(0));
    let topic = TopicPartition::new(TopicId::from_bytes([3; 16]), 0);
    let record = batch(topic, b"early");
    assert_eq!(client.produce(&[(topic, record.clone())])[0].error, ErrorCode::UnknownTopic);
    let view = View::new([(topic.topic, vec![Some(ShardId::new(1)), None])]);
    broker.views.send(Arc::new(view)).unwrap();
    assert_eq!(client.produce(&[(topic, record)])[0].error, ErrorCode::None);
    assert_eq!(broker.on(1, move |core| core.shard.batches(topic)), 1);
    let elsewhere = TopicPartition::new(topic.topic, 1);
    assert_eq!(client.produce(&[(elsewhere, batch(elsewhere, b"x"))])[0].error, ErrorCode::NotLeader);
}
