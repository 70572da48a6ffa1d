//! Clients that break the protocol, wilfully or not: each costs itself and gets a typed refusal where one can be sent.

use super::world::{Broker, Client, batch, config, control_answer, fetch, frame, hello, produce, tp};
use crate::net::{Cause, NetConfig};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Prelude;
use corelog_wire::ids::{CorrelationId, TopicId, TopicPartition};
use corelog_wire::message::{
    Acks, HelloRequest, ListOffsetsRequest, ListOffsetsRow, MetadataRequest, Request,
};
use std::io::Write;
use std::time::Duration;

fn prelude(kind: u16, header: &[u8], payload_bytes: u32) -> Prelude {
    let hello =
        Prelude::request(corelog_wire::frame::Kind::Hello, CorrelationId::new(42), header, payload_bytes);
    Prelude { kind, ..hello }
}

fn still_serves(client: &mut Client) {
    assert_eq!(client.produce(&[(tp(0), batch(tp(0), b"still there"))])[0].error, ErrorCode::None);
}

#[test]
fn garbage_closes_without_an_answer() {
    let broker = Broker::start(1, config());
    let mut bystander = broker.client();
    let good = prelude(1, &[], 0).encode();
    let mut damaged = Vec::new();
    for at in 0..32 {
        let mut bytes = good;
        bytes[at] ^= 0x10;
        damaged.push(bytes.to_vec());
    }
    damaged.push(b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n\r\n".to_vec());
    damaged.push(vec![0xff; 100_000]);
    for (index, bytes) in damaged.iter().enumerate() {
        let mut client = Client::silent(broker.address);
        // The broker may have closed before all of it is sent.
        let _sent = client.socket.write_all(bytes);
        client.assert_closed();
        broker.until_closed(0, Cause::Garbage, index as u64 + 1);
    }
    still_serves(&mut bystander);
}

#[test]
fn a_length_beyond_the_cap_is_refused_before_it_costs_anything() {
    let broker = Broker::start(1, config());
    for (header_bytes, payload_bytes) in [(8, 1 << 30), (1 << 30, 0), (u32::MAX - 7, u32::MAX)] {
        let mut client = broker.client();
        let claim = Prelude { header_bytes, payload_bytes, ..prelude(7, &[], 0) };
        client.socket.write_all(&claim.encode()).unwrap();
        let (correlation, refusal) = client.refusal();
        assert_eq!((correlation, refusal.code), (42, ErrorCode::TooLarge));
        assert!(refusal.message.contains("Send less at once"), "{refusal:?}");
        client.assert_closed();
    }
    assert_eq!(broker.snapshot(0).input_bytes.0, 0);
    broker.until_closed(0, Cause::Refused, 3);
}

#[test]
fn little_is_taken_before_hello_and_nothing_else_than_hello() {
    let broker = Broker::start(1, config());
    let mut long = Client::silent(broker.address);
    long.socket.write_all(&Prelude { header_bytes: 4_104, ..prelude(1, &[], 0) }.encode()).unwrap();
    assert_eq!(long.refusal().1.code, ErrorCode::TooLarge);
    long.assert_closed();
    let mut early = Client::silent(broker.address);
    early.send(&fetch(0, 1, &[(tp(0), 0)]), &[]);
    let refusal = early.refusal().1;
    assert_eq!(refusal.code, ErrorCode::Malformed);
    assert!(refusal.message.contains("must be Hello"), "{refusal:?}");
    early.assert_closed();
    let mut unknown = Client::silent(broker.address);
    unknown.socket.write_all(&prelude(99, &[], 0).encode()).unwrap();
    assert_eq!(unknown.refusal().1.code, ErrorCode::UnsupportedKind);
    unknown.assert_closed();
    let mut newer = Client::silent(broker.address);
    let Request::Hello(hello) = hello(None) else { unreachable!() };
    newer.send(&Request::Hello(HelloRequest { version_min: 9, version_max: 9, ..hello }), &[]);
    assert_eq!(newer.refusal().1.code, ErrorCode::UnsupportedVersion);
    newer.assert_closed();
}

#[test]
fn who_says_nothing_or_half_a_frame_is_closed_in_time() {
    let (hello_deadline, frame_deadline) = (Duration::from_secs(1), Duration::from_millis(300));
    let broker = Broker::start(1, NetConfig { hello_deadline, frame_deadline, ..config() });
    let mut greeted = broker.client();
    let mut silent = Client::silent(broker.address);
    let mut half_hello = Client::silent(broker.address);
    half_hello.socket.write_all(&frame(1, &hello(None), &[])[..40]).unwrap();
    half_hello.assert_closed();
    broker.until_closed(0, Cause::FrameDeadline, 1);
    silent.assert_closed();
    broker.until_closed(0, Cause::HelloDeadline, 1);
    let (request, payload) = produce(Acks::All, &[(tp(0), batch(tp(0), &vec![1; 100_000]))]);
    let whole = frame(1, &request, &payload);
    for (times, cut) in [1, 31, 32, 33, whole.len() - 1].into_iter().enumerate() {
        let mut half = broker.client();
        half.socket.write_all(&whole[..cut]).unwrap();
        half.assert_closed();
        broker.until_closed(0, Cause::FrameDeadline, times as u64 + 2);
    }
    // Between frames a client may be silent for as long as it likes.
    still_serves(&mut greeted);
    assert_eq!(broker.snapshot(0).input_bytes.0, 0);
}

#[test]
fn what_can_be_skipped_is_refused_and_the_connection_goes_on() {
    let broker = Broker::start(1, config());
    let mut client = broker.client();
    let list = Request::ListOffsets(ListOffsetsRequest { rows: vec![] });
    // An unknown kind with header and payload.
    let header = [5; 4_800];
    let frame_of = |prelude: Prelude, payload: &[u8]| [&prelude.encode()[..], &header, payload].concat();
    client.socket.write_all(&frame_of(prelude(99, &header, 100_000), &vec![9; 100_000])).unwrap();
    assert_eq!(client.refusal(), (42, client_refusal(ErrorCode::UnsupportedKind, "kind 99 is unknown")));
    client.ask(&list);
    // A header that was damaged on its way.
    let damaged = Prelude { header_crc: 1, ..prelude(7, &header, 16) };
    client.socket.write_all(&frame_of(damaged, &[9; 16])).unwrap();
    assert_eq!(client.refusal().1.code, ErrorCode::Malformed);
    client.ask(&list);
    // A header that is no FlatBuffer, of every kind.
    for kind in 1..=11 {
        let payload: &[u8] = if kind == 7 { &[9; 16] } else { &[] };
        let payload_bytes = u32::try_from(payload.len()).unwrap();
        client.socket.write_all(&frame_of(prelude(kind, &header, payload_bytes), payload)).unwrap();
        let code = client.refusal().1.code;
        let expected = if kind == 1 { ErrorCode::TooLarge } else { ErrorCode::Malformed };
        assert_eq!(code, expected, "kind {kind}");
        client.ask(&list);
    }
    // A payload where none belongs.
    client.send(&list, &[0; 64]);
    assert_eq!(client.refusal().1.code, ErrorCode::TooLarge);
    // Rows that claim bytes beyond the payload.
    let (request, payload) = produce(Acks::All, &[(tp(0), batch(tp(0), b"whole"))]);
    client.send(&request, &payload[..payload.len() - 8]);
    assert_eq!(client.refusal().1.code, ErrorCode::Malformed);
    // More rows than a request may have.
    let rows =
        (0..5_000).map(|_| ListOffsetsRow { tp: tp(0), at: corelog_wire::message::At::Latest }).collect();
    client.send(&Request::ListOffsets(ListOffsetsRequest { rows }), &[]);
    assert_eq!(client.refusal().1.code, ErrorCode::TooLarge);
    still_serves(&mut client);
    assert_eq!(broker.snapshot(0).input_bytes.0, 0);
}

#[test]
fn a_topic_that_is_named_often_is_listed_once() {
    let mut broker = Broker::start(1, config());
    let mut client = broker.client();
    let metadata =
        |names: Vec<String>| Request::Metadata(MetadataRequest { topics: Some(names), auto_create: false });
    let mut names = vec!["often".to_owned(); 4_095];
    names.push("once".to_owned());
    client.send(&metadata(names.clone()), &[]);
    let asked = broker.control.blocking_recv().unwrap();
    let Request::Metadata(MetadataRequest { topics: Some(topics), .. }) = &asked.request else {
        panic!("{:?}", asked.request)
    };
    assert_eq!(*topics, ["often", "once"]);
    assert!(asked.answer_bytes_max <= 16 << 20);
    // Until it is answered there is room for all that it may list.
    let reserved = broker.snapshot(0).output_bytes.0;
    assert_eq!(reserved, super::world::view(1).listing_bytes(Some(2)));
    asked.reply.send(control_answer(&asked.request)).unwrap();
    client.receive();
    broker.until(0, |core| core.net.snapshot().output_bytes.0 == 0);
    names.push("one too many".to_owned());
    client.send(&metadata(names), &[]);
    assert_eq!(client.refusal().1.code, ErrorCode::TooLarge);
    still_serves(&mut client);
}

fn client_refusal(code: ErrorCode, why: &str) -> corelog_wire::message::Refusal {
    corelog_wire::message::Refusal::new(code, format!("{why}. {}", code.help()))
}

#[test]
fn a_bad_batch_is_refused_alone_and_says_what_to_do() {
    let broker = Broker::start(1, config());
    let mut client = broker.client();
    let good = batch(tp(0), b"good");
    let mut damaged = good.to_vec();
    let body = damaged.len() - 10;
    damaged[body] ^= 1;
    let elsewhere = batch(tp(1), b"sealed for another partition");
    let unknown = TopicPartition::new(TopicId::from_bytes([1; 16]), 0);
    let rows = client.produce(&[
        (tp(0), good.clone()),
        (tp(0), damaged.into()),
        (tp(0), elsewhere),
        (unknown, batch(unknown, b"for a topic that is not there")),
        (tp(0), good),
    ]);
    let errors: Vec<_> = rows.iter().map(|row| row.error).collect();
    assert_eq!(
        errors,
        [
            ErrorCode::None,
            ErrorCode::CorruptBatch,
            ErrorCode::CorruptBatch,
            ErrorCode::UnknownTopic,
            ErrorCode::None
        ]
    );
    for row in rows.iter().filter(|row| row.error != ErrorCode::None) {
        assert!(row.message.contains(row.error.help()), "{row:?}");
    }
    assert_eq!(broker.on(0, |core| core.shard.batches(tp(0))), 2);
}

#[test]
fn connections_beyond_the_limit_are_closed_and_counted() {
    let broker = Broker::start(1, NetConfig { connections_max: 3, ..config() });
    let mut clients: Vec<_> = (0..3).map(|_| broker.client()).collect();
    Client::silent(broker.address).assert_closed();
    broker.until_closed(0, Cause::TooMany, 1);
    clients.pop();
    broker.until(0, |core| core.net.snapshot().connections == 2);
    still_serves(&mut broker.client());
}
