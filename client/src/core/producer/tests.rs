//! Transcripts of a producer: what goes in, what comes out. Time stands still unless a test moves it.

use std::fmt::Write as _;

use corelog_wire::batch::{BatchLimits, CheckedBatch};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Kind;
use corelog_wire::ids::{BrokerId, LeaderEpoch, Sequence, ShardId, TopicId};
use corelog_wire::message::{
    Answer, InitProducerIdAnswer, MetadataAnswer, MetadataBroker, MetadataPartition, MetadataTopic,
    ProduceAnswer, ProducedRow, Refusal, Request,
};

use super::*;
use crate::core::Outgoing;

struct Rig {
    now: Instant,
    started: Instant,
    producer: Producer<std::rc::Rc<std::cell::Cell<u32>>>,
    /// Requests that were not answered yet.
    open: Vec<Outgoing>,
    transcript: Vec<String>,
    next_id: i64,
}

fn config() -> ProducerConfig {
    ProducerConfig { batch_bytes: 1, ..ProducerConfig::new("t") }
}

fn config_of_large_batches() -> ProducerConfig {
    ProducerConfig { batch_bytes: 1_000, ..ProducerConfig::new("t") }
}

impl Rig {
    fn new(config: ProducerConfig) -> Self {
        let now = Instant::now();
        let producer = Producer::new(config, 1).unwrap();
        let mut rig = Self { now, started: now, producer, open: vec![], transcript: vec![], next_id: 1 };
        rig.tick();
        rig
    }

    /// One that knows its topic of `partitions` and its name.
    fn ready(config: ProducerConfig, partitions: u32) -> Self {
        let mut rig = Self::new(config);
        rig.tell_topic(partitions);
        if rig.producer.config.idempotent {
            rig.name();
        }
        rig.transcript.clear();
        rig
    }

    fn handle(&mut self, input: Input) {
        let mut out = Vec::new();
        self.producer.handle(self.now, input, &mut out);
        assert_eq!(self.producer.broken_invariant(), None);
        for effect in out {
            let line = match effect {
                Effect::Send(outgoing) => {
                    let line = describe(&outgoing);
                    self.open.push(outgoing);
                    line
                }
                Effect::Event(ProducerEvent::Delivered { batch, delivered }) => {
                    let at = delivered.base_offset.map_or_else(|| "somewhere".to_owned(), |o| o.to_string());
                    format!("batch {} is at {}/{at}", batch.get(), delivered.partition)
                }
                Effect::Event(ProducerEvent::Undelivered { batch, records, error }) => {
                    format!("batch {} of {records} failed: {error}", batch.get())
                }
                Effect::Event(ProducerEvent::Ready) => "ready".to_owned(),
                Effect::Event(ProducerEvent::Room) => "room".to_owned(),
            };
            self.transcript.push(line);
        }
    }

    fn tick(&mut self) {
        self.handle(Input::Tick);
    }

    /// Moves time to the producer's own deadline.
    fn wait(&mut self) {
        self.now = self.producer.deadline().expect("it waits for something");
        self.tick();
    }

    fn append(&mut self, number: u32) -> Result<u32, AppendRefusal> {
        let text = format!("record {number}");
        let appended = self.producer.append(self.now, 1_000, &RecordRef::new(text.as_bytes()))?;
        appended.batch.set(number);
        Ok(appended.partition)
    }

    fn take(&mut self, kind: Kind) -> Outgoing {
        let place = self.open.iter().position(|outgoing| outgoing.request.kind() == kind);
        self.open.remove(place.unwrap_or_else(|| panic!("no {} is open: {:?}", kind.name(), self.transcript)))
    }

    fn answer(&mut self, id: RequestId, answer: Answer) {
        self.handle(Input::Answered { id, answer, payload: bytes::Bytes::new() });
    }

    fn tell_topic(&mut self, partitions: u32) {
        self.tell_topic_of(partitions, 1);
    }

    fn tell_topic_of(&mut self, partitions: u32, id: u8) {
        let outgoing = self.take(Kind::Metadata);
        let partition = |partition| MetadataPartition {
            partition,
            leader: Some(BrokerId::new(1)),
            leader_epoch: LeaderEpoch::new(1),
            shard: ShardId::new(0),
            replicas: vec![],
            in_sync_replicas: vec![],
        };
        let topic = MetadataTopic {
            error: ErrorCode::None,
            name: "t".into(),
            id: TopicId::from_bytes([id; 16]),
            partitions: (0..partitions).map(partition).collect(),
        };
        let brokers = vec![MetadataBroker { id: BrokerId::new(1), address: "a:1".into() }];
        self.answer(
            outgoing.id,
            Answer::Metadata(MetadataAnswer { brokers, topics: vec![topic], revision: 1 }),
        );
    }

    fn name(&mut self) {
        let outgoing = self.take(Kind::InitProducerId);
        let answer = InitProducerIdAnswer {
            producer_id: ProducerId::new(self.next_id),
            producer_epoch: ProducerEpoch::new(0),
        };
        self.next_id += 1;
        self.answer(outgoing.id, Answer::InitProducerId(answer));
    }

    /// Answers the oldest Produce: each row with this result, offsets counted from `base`.
    fn produced(&mut self, result: Result<u64, ErrorCode>) {
        let outgoing = self.take(Kind::Produce);
        self.produced_as(&outgoing, result);
    }

    fn produced_as(&mut self, outgoing: &Outgoing, result: Result<u64, ErrorCode>) {
        let Request::Produce(request) = &outgoing.request else { panic!("not a Produce") };
        let row = |row: &corelog_wire::message::ProduceRow| ProducedRow {
            tp: row.tp,
            error: result.err().unwrap_or(ErrorCode::None),
            message: String::new(),
            base_offset: Offset::new(result.unwrap_or(0)),
            append_timestamp_ms: 5,
            log_start: Offset::ZERO,
            replicas_reached: 1,
            durable: true,
        };
        let rows = request.rows.iter().map(row).collect();
        self.answer(outgoing.id, Answer::Produce(ProduceAnswer { throttle_ms: 0, rows }));
    }

    fn lose(&mut self) {
        let outgoing = self.take(Kind::Produce);
        let error = Error::ConnectionLost { reason: "reset".into() };
        self.handle(Input::Failed { id: outgoing.id, error });
    }

    fn said(&mut self) -> Vec<String> {
        std::mem::take(&mut self.transcript)
    }
}

/// A request in words. The batches in it pass a broker's checks.
fn describe(outgoing: &Outgoing) -> String {
    let Request::Produce(request) = &outgoing.request else {
        return format!("ask {}", outgoing.request.kind().name());
    };
    let mut line = "send".to_owned();
    for (row, bytes) in request.rows.iter().zip(&outgoing.payload) {
        let limits = BatchLimits { batch_bytes_max: 8 << 20 };
        let batch = CheckedBatch::check(bytes.clone(), row.tp, &limits).expect("the batch is sound");
        let header = batch.header();
        let (id, sequence) = (header.producer_id, header.base_sequence);
        write!(line, " {}:{}x{id}/{sequence}", row.tp.partition, header.record_count).unwrap();
    }
    line
}

#[test]
fn it_asks_for_its_topic_then_for_a_name_and_takes_records_in_between() {
    let mut rig = Rig::new(config());
    assert!(matches!(rig.append(0), Err(AppendRefusal::NotReady)));
    rig.tell_topic(1);
    rig.append(1).unwrap();
    rig.tick();
    rig.name();
    rig.produced(Ok(7));
    assert_eq!(
        rig.said(),
        ["ask Metadata", "ready", "ask InitProducerId", "send 0:1x1/0", "batch 1 is at 0/7"]
    );
}

#[test]
fn a_broker_that_is_busy_or_stopping_is_asked_for_the_topic_again() {
    for (code, at_once) in
        [(ErrorCode::Throttled, false), (ErrorCode::ShuttingDown, false), (ErrorCode::UnknownTopic, true)]
    {
        let mut rig = Rig::new(config());
        let id = rig.take(Kind::Metadata).id;
        rig.answer(id, Answer::Refused { kind: Kind::Metadata, refusal: Refusal::new(code, "no") });
        let refused = rig.append(0).unwrap_err();
        assert_eq!(matches!(refused, AppendRefusal::Failed(_)), at_once, "{code}: {refused:?}");
        rig.wait();
        rig.tell_topic(1);
        rig.append(1).unwrap();
    }
}

#[test]
fn five_batches_are_under_way_and_the_sixth_waits() {
    let mut rig = Rig::ready(config(), 1);
    (0..7).for_each(|number| drop(rig.append(number)));
    rig.tick();
    assert_eq!(rig.said(), [0, 1, 2, 3, 4].map(|sequence| format!("send 0:1x1/{sequence}")));
    rig.produced(Ok(0));
    assert_eq!(rig.said(), ["batch 0 is at 0/0", "send 0:1x1/5"]);
}

#[test]
fn the_window_counts_from_the_oldest_even_if_answers_overtake_it() {
    let mut rig = Rig::ready(config(), 1);
    (0..9).for_each(|number| drop(rig.append(number)));
    rig.tick();
    let first = rig.take(Kind::Produce);
    (1..5).for_each(|offset| rig.produced(Ok(offset)));
    // A broker that remembers five batches would have forgotten the first if more were sent now.
    assert!(rig.open.is_empty(), "{:?}", rig.transcript);
    rig.said();
    rig.produced_as(&first, Ok(0));
    assert_eq!(rig.said().len(), 1 + 4);
}

#[test]
fn after_a_lost_connection_the_same_bytes_go_again_in_their_order() {
    let mut rig = Rig::ready(config(), 1);
    (0..3).for_each(|number| drop(rig.append(number)));
    rig.tick();
    let before: Vec<_> = rig.open.iter().map(|outgoing| outgoing.payload.clone()).collect();
    rig.said();
    (0..3).for_each(|_| rig.lose());
    rig.append(3).unwrap();
    rig.tick();
    assert!(rig.said().is_empty(), "not before the wait is over");
    while rig.open.iter().filter(|outgoing| outgoing.request.kind() == Kind::Produce).count() < 4 {
        rig.wait();
    }
    let again: Vec<_> = rig.open.iter().filter(|o| o.request.kind() == Kind::Produce).collect();
    for (before, again) in before.iter().zip(&again) {
        assert_eq!(before, &again.payload);
    }
    let mut said = rig.said();
    said.retain(|line| line.starts_with("send"));
    assert_eq!(said, ["send 0:1x1/0", "send 0:1x1/1", "send 0:1x1/2", "send 0:1x1/3"]);
}

#[test]
fn one_refused_batch_holds_the_others_until_all_have_come_back() {
    let mut rig = Rig::ready(config(), 1);
    (0..4).for_each(|number| drop(rig.append(number)));
    rig.tick();
    rig.produced(Err(ErrorCode::NotLeader));
    rig.now += Duration::from_secs(2);
    rig.tick();
    // The others do not follow the first, which was not appended: that is no reason to give up.
    (0..2).for_each(|_| rig.produced(Err(ErrorCode::OutOfOrderSequence)));
    assert!(!rig.said().iter().skip(4).any(|line| line.starts_with("send")));
    rig.produced(Err(ErrorCode::OutOfOrderSequence));
    let mut said = rig.said();
    said.retain(|line| line.starts_with("send"));
    assert_eq!(said, ["send 0:1x1/0", "send 0:1x1/1", "send 0:1x1/2", "send 0:1x1/3"]);
    (0..4).for_each(|offset| rig.produced(Ok(offset)));
    assert_eq!(rig.producer.oldest_unresolved(), None);
}

#[test]
fn a_gap_fails_what_was_sealed_and_nothing_is_sent_again_under_another_name() {
    let mut rig = Rig::ready(config(), 1);
    (0..3).for_each(|number| drop(rig.append(number)));
    rig.tick();
    rig.said();
    rig.produced(Err(ErrorCode::OutOfOrderSequence));
    rig.append(3).unwrap();
    (0..2).for_each(|_| rig.produced(Err(ErrorCode::OutOfOrderSequence)));
    rig.tick();
    rig.name();
    rig.produced(Ok(9));
    let said = rig.said();
    let words = ErrorCode::OutOfOrderSequence.help();
    let failed = |number| format!("batch {number} of 1 failed: OUT_OF_ORDER_SEQUENCE: {words}");
    let expected = [
        failed(0),
        failed(1),
        failed(2),
        "ask InitProducerId".to_owned(),
        "send 0:1x2/0".to_owned(),
        "batch 3 is at 0/9".to_owned(),
    ];
    assert_eq!(said, expected);
}

#[test]
fn an_idle_producer_that_the_broker_has_forgotten_goes_on_under_another_name() {
    let mut rig = Rig::ready(config(), 1);
    rig.append(0).unwrap();
    rig.tick();
    rig.produced(Ok(0));
    (1..4).for_each(|number| drop(rig.append(number)));
    rig.tick();
    rig.said();
    (0..3).for_each(|_| rig.produced(Err(ErrorCode::UnknownProducer)));
    rig.append(4).unwrap();
    while !rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::InitProducerId) {
        rig.wait();
    }
    rig.name();
    let mut expected = vec!["ask InitProducerId".to_owned()];
    expected.extend((0..4).map(|sequence| format!("send 0:1x2/{sequence}")));
    assert_eq!(rig.said(), expected);
    (1..5).for_each(|offset| rig.produced(Ok(offset)));
    assert_eq!(
        rig.said(),
        (1..5).map(|number| format!("batch {number} is at 0/{number}")).collect::<Vec<_>>()
    );
}

#[test]
fn a_topic_that_was_created_again_takes_records_where_nothing_was_under_way() {
    let mut rig = Rig::ready(config(), 1);
    rig.append(0).unwrap();
    rig.tick();
    rig.produced(Ok(0));
    rig.now += rig.producer.config.topic_age_max;
    rig.tick();
    rig.tell_topic_of(1, 2);
    rig.append(1).unwrap();
    rig.tick();
    rig.name();
    rig.said();
    rig.produced(Ok(0));
    assert_eq!(rig.said(), ["batch 1 is at 0/0"]);
}

#[test]
fn a_lone_record_is_sent_after_its_linger_when_others_had_failed_before() {
    let linger = Duration::from_millis(50);
    let mut rig = Rig::ready(ProducerConfig { linger, ..config_of_large_batches() }, 1);
    rig.append(0).unwrap();
    rig.wait();
    rig.produced(Err(ErrorCode::Throttled));
    rig.wait();
    rig.produced(Err(ErrorCode::CorruptBatch));
    rig.append(1).unwrap();
    rig.tick();
    let due = rig.now + linger;
    assert!(rig.producer.deadline().is_some_and(|at| at <= due), "{:?}", rig.producer.deadline());
}

#[test]
fn what_may_be_in_the_log_is_not_sent_again_under_another_name() {
    // The first, or one behind it, was lost on its way: it may have been appended before the broker forgot the producer.
    for lost in 0..2 {
        let mut rig = Rig::ready(config(), 1);
        rig.append(0).unwrap();
        rig.tick();
        rig.produced(Ok(0));
        (1..3).for_each(|number| drop(rig.append(number)));
        rig.tick();
        let mut requests = [rig.take(Kind::Produce), rig.take(Kind::Produce)];
        let error = Error::ConnectionLost { reason: "reset".into() };
        rig.handle(Input::Failed { id: requests[lost].id, error });
        requests.swap(0, lost);
        if lost == 0 {
            rig.produced_as(&requests[1], Err(ErrorCode::UnknownProducer));
            while !rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::Produce) {
                rig.wait();
            }
            rig.said();
            (0..2).for_each(|_| rig.produced(Err(ErrorCode::UnknownProducer)));
        } else {
            rig.said();
            rig.produced_as(&requests[1], Err(ErrorCode::UnknownProducer));
        }
        let said = rig.said();
        let failed = said.iter().filter(|line| line.contains("failed: UNKNOWN_PRODUCER")).count();
        assert_eq!((failed, rig.producer.oldest_unresolved()), (2, None), "{lost}: {said:?}");
        assert!(!said.iter().any(|line| line.starts_with("send")), "{lost}: {said:?}");
    }
}

#[test]
fn other_partitions_keep_the_name_that_one_has_spent() {
    let mut rig = Rig::ready(
        ProducerConfig { partitioner: Partitioner::Custom(std::sync::Arc::new(by_digit)), ..config() },
        2,
    );
    (0..2).for_each(|number| drop(rig.append(number)));
    rig.tick();
    assert_eq!(rig.said(), ["send 0:1x1/0 1:1x1/0"], "one request for both");
    let outgoing = rig.take(Kind::Produce);
    let Request::Produce(request) = &outgoing.request else { panic!("not a Produce") };
    let row = |row: &corelog_wire::message::ProduceRow, error| ProducedRow {
        tp: row.tp,
        error,
        message: String::new(),
        base_offset: Offset::ZERO,
        append_timestamp_ms: 5,
        log_start: Offset::ZERO,
        replicas_reached: 1,
        durable: true,
    };
    let rows = vec![row(&request.rows[0], ErrorCode::CorruptBatch), row(&request.rows[1], ErrorCode::None)];
    rig.answer(outgoing.id, Answer::Produce(ProduceAnswer { throttle_ms: 0, rows }));
    rig.said();
    (2..4).for_each(|number| drop(rig.append(number)));
    rig.tick();
    assert_eq!(rig.said(), ["send 1:1x1/1", "ask InitProducerId"]);
    rig.name();
    assert_eq!(rig.said(), ["send 0:1x2/0"]);
}

/// The last digit of the value, modulo the partitions.
fn by_digit(record: &RecordRef<'_>, partitions: u32) -> u32 {
    u32::from(record.value.and_then(<[u8]>::last).copied().unwrap_or(b'0') - b'0') % partitions
}

#[test]
fn records_wait_for_linger_but_not_longer_and_full_batches_do_not_wait() {
    let linger = Duration::from_millis(10);
    let mut rig = Rig::ready(ProducerConfig { batch_bytes: 120, linger, ..config() }, 1);
    rig.append(0).unwrap();
    rig.append(1).unwrap();
    rig.tick();
    assert!(rig.said().is_empty());
    assert_eq!(rig.producer.deadline(), Some(rig.now + linger));
    rig.wait();
    assert_eq!(rig.said(), ["send 0:2x1/0"]);
    (2..12).for_each(|number| drop(rig.append(number)));
    rig.tick();
    let said = rig.said();
    assert!(said.iter().all(|line| line.starts_with("send 0:")) && !said.is_empty(), "{said:?}");
    rig.producer.flush();
    rig.tick();
    assert!(rig.producer.queues[0].open.is_empty());
}

#[test]
fn what_cannot_be_delivered_fails_at_its_deadline() {
    let mut rig = Rig::ready(ProducerConfig { delivery_deadline: Duration::from_secs(5), ..config() }, 1);
    rig.append(0).unwrap();
    rig.tick();
    while rig.producer.oldest_unresolved().is_some() {
        if rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::Produce) {
            rig.produced(Err(ErrorCode::DiskFull));
        } else {
            rig.wait();
        }
    }
    let took = rig.now - rig.started;
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(6), "{took:?}");
    let words = "delivery was not done within its deadline; the last attempt: DISK_FULL";
    assert!(rig.said().last().unwrap().contains(words));
}

#[test]
fn a_refused_request_is_sent_again_when_the_broker_said() {
    let mut rig = Rig::ready(config(), 1);
    rig.append(0).unwrap();
    rig.tick();
    let outgoing = rig.take(Kind::Produce);
    let refusal = Refusal { throttle_ms: 3_000, ..Refusal::new(ErrorCode::Throttled, "slow") };
    rig.answer(outgoing.id, Answer::Refused { kind: Kind::Produce, refusal });
    rig.said();
    let before = rig.now;
    while rig.said().is_empty() {
        rig.wait();
    }
    assert_eq!(rig.now - before, Duration::from_secs(3));
}

#[test]
fn memory_is_bounded_and_room_is_told() {
    let memory_bytes_max = 10_000;
    let mut rig = Rig::ready(ProducerConfig { memory_bytes_max, ..config() }, 1);
    let taken = (0..1_000).take_while(|&number| rig.append(number).is_ok()).count();
    assert!(taken > 5 && taken < 20, "{taken}");
    assert!(rig.producer.memory_bytes() <= memory_bytes_max);
    rig.tick();
    assert!(matches!(rig.append(0), Err(AppendRefusal::Full)));
    rig.said();
    for offset in 0..5 {
        rig.produced(Ok(offset));
    }
    assert!(rig.said().contains(&"room".to_owned()));
    rig.append(0).unwrap();
}

#[test]
fn a_record_that_is_too_large_is_refused_and_one_larger_than_a_batch_is_not() {
    let mut rig = Rig::ready(ProducerConfig { record_bytes_max: 1_000, batch_bytes: 100, ..config() }, 1);
    let now = rig.now;
    let refused = rig.producer.append(now, 0, &RecordRef::new(&[0; 1_001])).map(|_| ());
    assert!(matches!(
        refused,
        Err(AppendRefusal::Failed(Error::TooLarge { bytes: 1_001, bytes_max: 1_000 }))
    ));
    rig.producer.append(now, 0, &RecordRef::new(&[0; 1_000])).unwrap();
    rig.tick();
    assert_eq!(rig.said(), ["send 0:1x1/0"]);
}

#[test]
fn tags_beyond_eight_begin_another_batch() {
    let mut rig = Rig::ready(ProducerConfig { batch_bytes: 100_000, ..config() }, 1);
    for tag in 0..9_u8 {
        let (value, tag) = ([tag], [tag]);
        let headers: [(&[u8], Option<&[u8]>); 1] = [(b"tag", Some(&tag))];
        let record = RecordRef { headers: &headers, ..RecordRef::new(&value) };
        rig.producer.append(rig.now, 0, &record).unwrap();
    }
    rig.producer.flush();
    rig.tick();
    assert_eq!(rig.said(), ["send 0:8x1/0", "send 0:1x1/8"]);
    let batch = rig.open[1].payload[0].clone();
    let tp = corelog_wire::ids::TopicPartition::new(TopicId::from_bytes([1; 16]), 0);
    let (header, _) = corelog_wire::batch::parse_header(&batch, tp).unwrap();
    assert_eq!(header.tag_bloom, corelog_wire::keys::bloom_of(&[8]));
}

#[test]
fn sequences_wrap() {
    let mut rig = Rig::ready(config(), 1);
    rig.append(0).unwrap();
    rig.tick();
    rig.produced(Ok(0));
    rig.producer.queues[0].next_sequence = Sequence::new(i32::MAX);
    (1..3).for_each(|number| drop(rig.append(number)));
    rig.said();
    rig.tick();
    assert_eq!(rig.said(), [format!("send 0:1x1/{}", i32::MAX), "send 0:1x1/0".to_owned()]);
}

#[test]
fn the_same_seed_and_inputs_give_the_same_effects() {
    let run = || {
        let mut rig = Rig::ready(ProducerConfig { batch_bytes: 40, ..config() }, 8);
        for number in 0..50 {
            let _ = rig.append(number);
            rig.tick();
            if number % 7 == 3 {
                rig.lose();
            } else if rig.open.iter().any(|outgoing| outgoing.request.kind() == Kind::Produce) {
                rig.produced(Ok(number.into()));
            }
            rig.now += Duration::from_millis(3);
        }
        rig.said()
    };
    assert_eq!(run(), run());
}
