//! Transcripts of a connection: what goes in, what comes out.

use std::time::Duration;

use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{BrokerId, LeaderEpoch, TopicId};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{
    FetchAnswer, FetchRequest, MetadataAnswer, MetadataPartition, MetadataRequest, MetadataTopic,
};

use super::*;

struct Rig {
    now: Instant,
    connection: Connection<&'static str>,
    transcript: Vec<String>,
}

fn hello() -> Answer {
    Answer::Hello(HelloAnswer {
        version: 1,
        features: 0,
        cluster: "c".into(),
        broker: BrokerId::new(1),
        shard: ShardId::new(0),
        shards: 1,
        header_bytes_max: 1 << 20,
        payload_bytes_max: 1 << 20,
        record_bytes_max: 1 << 20,
        batch_bytes_max: 1 << 20,
    })
}

fn metadata() -> Answer {
    Answer::Metadata(MetadataAnswer { brokers: vec![], topics: vec![], revision: 3 })
}

fn frame(correlation: u64, answer: &Answer, payload: &[u8]) -> Vec<u8> {
    let header = answer.encode();
    let payload_bytes = u32::try_from(payload.len()).unwrap();
    let prelude =
        Prelude::answer(answer.kind().as_u16(), CorrelationId::new(correlation), &header, payload_bytes);
    [&prelude.encode()[..], &header, payload].concat()
}

impl Rig {
    fn new() -> Self {
        let now = Instant::now();
        let connection = Connection::new("test", Some(ShardId::new(3)), now + Duration::from_secs(5));
        Self { now, connection, transcript: Vec::new() }
    }

    /// One that has said Hello.
    fn greeted() -> Self {
        let mut rig = Self::new();
        rig.write_all();
        rig.receive(&frame(0, &hello(), b""), usize::MAX);
        rig.transcript.clear();
        rig
    }

    fn handle(&mut self, input: Input<&'static str>) {
        let mut effects = Vec::new();
        self.connection.handle(self.now, input, &mut effects);
        for effect in effects {
            self.transcript.push(match effect {
                Effect::Greeted(hello) => format!("greeted by {}", hello.broker),
                Effect::Answered { token, answer, payload } => {
                    format!("{token}: {} and {} bytes", answer.kind().name(), payload.len())
                }
                Effect::Sent { token } => format!("{token}: sent"),
                Effect::Failed { token, error } => format!("{token}: {error}"),
                Effect::Close(error) => format!("close: {error}"),
            });
        }
    }

    fn ask(&mut self, token: &'static str, seconds: u64) {
        let request = Request::Metadata(MetadataRequest { topics: None, auto_create: false });
        self.submit(token, request, vec![], seconds, true);
    }

    fn submit(
        &mut self,
        token: &'static str,
        request: Request,
        payload: Vec<Bytes>,
        seconds: u64,
        answered: bool,
    ) {
        let deadline = self.now + Duration::from_secs(seconds);
        self.handle(Input::Submit(Submission { token, request, payload, deadline, answered }));
    }

    fn write_all(&mut self) -> Vec<u8> {
        let mut written = Vec::new();
        while self.connection.has_outgoing() {
            let mut slices = Vec::new();
            self.connection.outgoing(&mut slices);
            let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            written.extend_from_slice(&bytes);
            self.handle(Input::Written(bytes.len()));
        }
        written
    }

    /// Receives bytes, `step` at a time.
    fn receive(&mut self, bytes: &[u8], step: usize) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (buffer, room) = self.connection.receive_room();
            assert!(room > 0);
            let (now, later) = rest.split_at(step.min(room).min(rest.len()));
            buffer.extend_from_slice(now);
            rest = later;
            self.handle(Input::Received);
        }
    }

    fn check(&self, expected: &[&str]) {
        assert_eq!(self.transcript, expected);
    }
}

#[test]
fn hello_goes_first_and_alone() {
    let mut rig = Rig::new();
    rig.ask("a", 9);
    let written = rig.write_all();
    let prelude = Prelude::decode(written.first_chunk().unwrap(), &Caps::BEFORE_HELLO).unwrap();
    assert_eq!(prelude.kind, Kind::Hello.as_u16());
    assert_eq!(written.len(), PRELUDE_BYTES + prelude.header_bytes as usize, "nothing follows");
    let Ok(Request::Hello(hello_request)) = Request::decode(Kind::Hello, &written[PRELUDE_BYTES..]) else {
        panic!("not a Hello")
    };
    assert_eq!(hello_request.shard, Some(ShardId::new(3)));
    rig.receive(&frame(0, &hello(), b""), usize::MAX);
    assert!(!rig.write_all().is_empty());
    rig.receive(&frame(1, &metadata(), b""), usize::MAX);
    rig.check(&["greeted by 1", "a: Metadata and 0 bytes"]);
    assert!(rig.connection.is_idle());
}

#[test]
fn answers_come_in_any_order_and_in_any_pieces() {
    for step in [1, 7, 33, usize::MAX] {
        let mut rig = Rig::greeted();
        rig.ask("a", 9);
        rig.ask("b", 9);
        let filter = TagFilter::ALL;
        let fetch = FetchRequest { max_wait_ms: 0, min_bytes: 0, max_bytes: 0, rows: vec![], filter };
        rig.submit("c", Request::Fetch(fetch), vec![], 9, true);
        let fetched = Answer::Fetch(FetchAnswer { throttle_ms: 0, rows: vec![] });
        let bytes =
            [frame(3, &fetched, &vec![7; 100_000]), frame(2, &metadata(), b""), frame(1, &metadata(), b"")]
                .concat();
        rig.receive(&bytes, step);
        rig.check(&["c: Fetch and 100000 bytes", "b: Metadata and 0 bytes", "a: Metadata and 0 bytes"]);
    }
}

#[test]
fn a_refusal_is_an_answer() {
    let mut rig = Rig::greeted();
    rig.ask("a", 9);
    let refusal = corelog_wire::message::Refusal::new(corelog_wire::error::ErrorCode::ShuttingDown, "bye");
    rig.receive(&frame(1, &Answer::Refused { kind: Kind::Metadata, refusal }, b""), usize::MAX);
    rig.check(&["a: Metadata and 0 bytes"]);
}

#[test]
fn what_was_not_asked_for_ends_the_connection_before_a_byte_is_reserved() {
    let oversized = |correlation, kind: Kind, payload_bytes| {
        let header = metadata().encode();
        let prelude = Prelude::answer(kind.as_u16(), CorrelationId::new(correlation), &header, payload_bytes);
        prelude.encode().to_vec()
    };
    // One byte more than is taken; such headers are a multiple of 8 long.
    let long = |correlation, kind: Kind, header_bytes: u32| {
        let header = metadata().encode();
        let prelude = Prelude::answer(kind.as_u16(), CorrelationId::new(correlation), &header, 0);
        Prelude { header_bytes: header_bytes + 8, ..prelude }.encode().to_vec()
    };
    let mut request = frame(1, &metadata(), b"");
    request[5] = 0;
    let crc = crc32fast_of(&request[..28]);
    request[28..32].copy_from_slice(&crc.to_le_bytes());
    for (bytes, words) in [
        (oversized(1, Kind::Metadata, 1), "exceed"),
        (oversized(1, Kind::Metadata, u32::MAX), "exceed"),
        (long(1, Kind::Metadata, 64 << 20), "exceed"),
        (long(2, Kind::Fetch, 4 << 20), "exceed"),
        (oversized(9, Kind::Metadata, 0), "was not asked for"),
        (oversized(0, Kind::Hello, 0), "was not asked for"),
        (oversized(1, Kind::Fetch, 0), "Metadata got an answer of kind 8"),
        (request, "it sent a request"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\nnothing".to_vec(), "magic"),
    ] {
        let mut rig = Rig::greeted();
        rig.ask("a", 9);
        let filter = TagFilter::ALL;
        let fetch = FetchRequest { max_wait_ms: 0, min_bytes: 0, max_bytes: 0, rows: vec![], filter };
        rig.submit("b", Request::Fetch(fetch), vec![], 9, true);
        rig.receive(&bytes, usize::MAX);
        assert_eq!(rig.transcript.len(), 3, "{:?}", rig.transcript);
        assert!(
            rig.transcript[0].starts_with("a: ") && rig.transcript[0].contains(words),
            "{:?}",
            rig.transcript
        );
        assert!(rig.transcript[2].starts_with("close: "));
        assert_eq!(rig.connection.receive_room().0.len(), 0);
    }
}

/// By zlib's polynomial, bit by bit: the wire's own crate is not a dependency here.
fn crc32fast_of(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[test]
fn an_answer_that_comes_twice_ends_the_connection() {
    let mut rig = Rig::greeted();
    rig.ask("a", 9);
    rig.ask("b", 9);
    rig.receive(&[frame(1, &metadata(), b""), frame(1, &metadata(), b"")].concat(), usize::MAX);
    let words = "the broker does not follow the protocol: answer 1 was not asked for, or came twice";
    rig.check(&["a: Metadata and 0 bytes", &format!("b: {words}"), &format!("close: {words}")]);
    rig.ask("c", 9);
    assert_eq!(rig.transcript.last().unwrap(), "c: closed", "nothing is taken any more");
}

#[test]
fn a_damaged_header_ends_the_connection() {
    let mut rig = Rig::greeted();
    rig.ask("a", 9);
    let mut bytes = frame(1, &metadata(), b"");
    bytes[PRELUDE_BYTES + 3] ^= 1;
    rig.receive(&bytes, usize::MAX);
    assert!(rig.transcript[0].contains("checksum"), "{:?}", rig.transcript);
}

#[test]
fn a_broker_that_says_nothing_loses_the_connection_at_the_first_deadline() {
    let mut rig = Rig::greeted();
    rig.ask("a", 9);
    rig.ask("b", 5);
    assert_eq!(rig.connection.deadline(), Some(rig.now + Duration::from_secs(5)));
    rig.now += Duration::from_secs(5);
    rig.handle(Input::Tick);
    rig.check(&[
        "a: Metadata was not done within its deadline",
        "b: Metadata was not done within its deadline",
        "close: Metadata was not done within its deadline",
    ]);
    let mut silent = Rig::new();
    silent.ask("a", 1);
    silent.now += Duration::from_secs(1);
    silent.handle(Input::Tick);
    silent.check(&["a: Metadata was not done within its deadline"]);
    silent.now += Duration::from_secs(4);
    silent.handle(Input::Tick);
    assert_eq!(silent.transcript.last().unwrap(), "close: Hello was not done within its deadline");
}

#[test]
fn a_request_without_an_answer_is_done_when_its_last_byte_is_written() {
    let mut rig = Rig::greeted();
    let produce = corelog_wire::message::ProduceRequest {
        acks: corelog_wire::message::Acks::None,
        deadline_ms: 0,
        rows: vec![],
    };
    let payload = vec![Bytes::from_static(&[1; 8]), Bytes::from_static(&[2; 8])];
    rig.submit("a", Request::Produce(produce), payload, 9, false);
    let mut slices = Vec::new();
    rig.connection.outgoing(&mut slices);
    let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
    assert_eq!(slices.len(), 3, "head and two pieces, none copied");
    drop(slices);
    rig.handle(Input::Written(bytes - 1));
    rig.check(&[]);
    rig.handle(Input::Written(1));
    rig.check(&["a: sent"]);
    assert!(rig.connection.is_idle());
}

#[test]
fn a_broker_that_takes_no_bytes_loses_the_connection_at_the_deadline_of_a_request_without_an_answer() {
    let mut rig = Rig::greeted();
    let produce = corelog_wire::message::ProduceRequest {
        acks: corelog_wire::message::Acks::None,
        deadline_ms: 0,
        rows: vec![],
    };
    rig.submit("a", Request::Produce(produce.clone()), vec![Bytes::from_static(&[1; 8])], 9, false);
    rig.submit("b", Request::Produce(produce), vec![Bytes::from_static(&[2; 8])], 5, false);
    rig.handle(Input::Written(1));
    assert_eq!(rig.connection.deadline(), Some(rig.now + Duration::from_secs(5)));
    rig.now += Duration::from_secs(5);
    rig.handle(Input::Tick);
    rig.check(&[
        "a: Produce was not done within its deadline",
        "b: Produce was not done within its deadline",
        "close: Produce was not done within its deadline",
    ]);
}

#[test]
fn the_topics_of_the_largest_broker_are_taken() {
    let partition = MetadataPartition {
        partition: 0,
        leader: Some(BrokerId::new(1)),
        leader_epoch: LeaderEpoch::new(1),
        shard: ShardId::new(1),
        replicas: vec![BrokerId::new(1)],
        in_sync_replicas: vec![BrokerId::new(1)],
    };
    let topic = |number: u32| MetadataTopic {
        error: ErrorCode::None,
        name: format!("{number:0>249}"),
        id: TopicId::from_bytes([1; 16]),
        partitions: vec![partition.clone()],
    };
    let topics = (0..100_000).map(topic).collect();
    let answer = Answer::Metadata(MetadataAnswer { brokers: vec![], topics, revision: 3 });
    let mut rig = Rig::greeted();
    rig.ask("a", 9);
    rig.receive(&frame(1, &answer, b""), usize::MAX);
    rig.check(&["a: Metadata and 0 bytes"]);
}

#[test]
fn a_request_larger_than_the_broker_takes_is_not_sent() {
    let mut rig = Rig::greeted();
    let produce = corelog_wire::message::ProduceRequest {
        acks: corelog_wire::message::Acks::All,
        deadline_ms: 0,
        rows: vec![],
    };
    rig.submit("a", Request::Produce(produce), vec![vec![0; (1 << 20) + 8].into()], 9, true);
    rig.check(&["a: 1048584 bytes are more than the 1048576 allowed"]);
    assert!(rig.connection.is_idle());
}

#[test]
fn a_lost_socket_fails_everything_once() {
    let mut rig = Rig::greeted();
    rig.ask("a", 9);
    rig.handle(Input::Lost(Error::ConnectionLost { reason: "reset".into() }));
    rig.handle(Input::Lost(Error::ConnectionLost { reason: "again".into() }));
    rig.check(&["a: the connection broke: reset", "close: the connection broke: reset"]);
}
