//! Whole runs against a broker in memory that loses, repeats or reorders what it acknowledged: the run must say so.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use corelog_bench::args::Driver;
use corelog_bench::pin::ThreadPlace;
use corelog_bench::run::{Place, RunResult, Subject, once};
use corelog_bench::workload::Workload;
use corelog_wire::batch::{BatchLimits, CheckedBatch, Stamp};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::{Caps, Kind, PRELUDE_BYTES, Prelude};
use corelog_wire::ids::{
    BrokerId, LeaderEpoch, Offset, ProducerEpoch, ProducerId, ShardId, TopicId, TopicPartition,
};
use corelog_wire::message::{
    Answer, CreateTopicAnswer, DeleteTopicAnswer, FetchAnswer, FetchedRow, HelloAnswer, InitProducerIdAnswer,
    MetadataAnswer, MetadataBroker, MetadataPartition, MetadataTopic, ProduceAnswer, ProducedRow, Request,
};

const CAPS: Caps = Caps { header_bytes_max: 1 << 20, payload_bytes_max: 16 << 20 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// The batch is acknowledged, but not kept.
    Lose,
    /// The batch is kept twice.
    Repeat,
    /// The batch changes places with the one before.
    Swap,
    /// The batch is refused, and not kept.
    Refuse,
}

/// How many batches a partition has before the fault.
const FAULT_AT: usize = 5;

#[derive(Default)]
struct Log {
    batches: Vec<CheckedBatch>,
    end: u64,
    faulted: bool,
}

struct World {
    address: SocketAddr,
    fault: Fault,
    topic: String,
    partitions: u32,
    logs: HashMap<u32, Log>,
    producers: i64,
}

impl World {
    fn answer(&mut self, request: Request, payload: &Bytes) -> (Answer, Bytes) {
        let none = Bytes::new();
        match request {
            Request::Hello(_) => {
                let answer = HelloAnswer {
                    version: 1,
                    features: 0,
                    cluster: "test".to_owned(),
                    broker: BrokerId::new(1),
                    shard: ShardId::new(0),
                    shards: 1,
                    header_bytes_max: 1 << 20,
                    payload_bytes_max: 16 << 20,
                    record_bytes_max: 4 << 20,
                    batch_bytes_max: 8 << 20,
                };
                (Answer::Hello(answer), none)
            }
            Request::CreateTopic(topic) => {
                self.partitions = topic.partitions;
                self.topic = topic.name;
                (Answer::CreateTopic(CreateTopicAnswer { id: topic_id() }), none)
            }
            Request::DeleteTopic(_) => (Answer::DeleteTopic(DeleteTopicAnswer {}), none),
            Request::InitProducerId(_) => {
                self.producers += 1;
                let producer_id = ProducerId::new(self.producers);
                let answer = InitProducerIdAnswer { producer_id, producer_epoch: ProducerEpoch::new(0) };
                (Answer::InitProducerId(answer), none)
            }
            Request::Metadata(metadata) => {
                (Answer::Metadata(self.metadata(metadata.topics.as_deref())), none)
            }
            Request::Produce(produce) => {
                let rows = produce.rows.iter().map(|row| {
                    let first = row.first_byte as usize;
                    self.append(row.tp, payload.slice(first..first + row.bytes as usize))
                });
                (Answer::Produce(ProduceAnswer { throttle_ms: 0, rows: rows.collect() }), none)
            }
            Request::Fetch(fetch) => {
                let row = fetch.rows[0];
                let (row, payload) = self.read(row.tp, row.offset.get(), row.max_bytes as usize);
                (Answer::Fetch(FetchAnswer { throttle_ms: 0, rows: vec![row] }), payload)
            }
            other => panic!("the bench asked {other:?}"),
        }
    }

    fn metadata(&self, asked: Option<&[String]>) -> MetadataAnswer {
        let partition = |partition| MetadataPartition {
            partition,
            leader: Some(BrokerId::new(1)),
            leader_epoch: LeaderEpoch::new(1),
            shard: ShardId::new(0),
            replicas: vec![BrokerId::new(1)],
            in_sync_replicas: vec![BrokerId::new(1)],
        };
        MetadataAnswer {
            brokers: vec![MetadataBroker { id: BrokerId::new(1), address: self.address.to_string() }],
            topics: if asked.is_some_and(<[_]>::is_empty) {
                Vec::new()
            } else {
                vec![MetadataTopic {
                    error: ErrorCode::None,
                    name: self.topic.clone(),
                    id: topic_id(),
                    partitions: (0..self.partitions).map(partition).collect(),
                }]
            },
            revision: 1,
        }
    }

    fn append(&mut self, tp: TopicPartition, bytes: Bytes) -> ProducedRow {
        let limits = BatchLimits { batch_bytes_max: 8 << 20 };
        let batch = CheckedBatch::check(bytes, tp, &limits).unwrap();
        let log = self.logs.entry(tp.partition).or_default();
        let base_offset = Offset::new(log.end);
        let due = log.batches.len() == FAULT_AT && !log.faulted;
        let fault = if due { self.fault } else { Fault::None };
        log.faulted |= due;
        let records = u64::from(batch.header().record_count);
        match fault {
            Fault::None => log.batches.push(batch),
            Fault::Lose | Fault::Refuse => {}
            Fault::Repeat => {
                log.batches.push(batch.clone());
                log.batches.push(batch);
                log.end += records;
            }
            Fault::Swap => {
                log.batches.push(batch);
                log.batches.swap(FAULT_AT - 1, FAULT_AT);
            }
        }
        if !matches!(fault, Fault::Lose | Fault::Refuse) {
            log.end += records;
        }
        let error = if fault == Fault::Refuse { ErrorCode::DiskFull } else { ErrorCode::None };
        ProducedRow {
            tp,
            error,
            message: String::new(),
            base_offset,
            append_timestamp_ms: 1,
            log_start: Offset::ZERO,
            replicas_reached: 1,
            durable: true,
        }
    }

    /// Gives out offsets as the batches lie.
    fn read(&self, tp: TopicPartition, from: u64, max: usize) -> (FetchedRow, Bytes) {
        let mut payload = BytesMut::new();
        let mut end = 0;
        for batch in self.logs.get(&tp.partition).iter().flat_map(|log| &log.batches) {
            let base = end;
            end += u64::from(batch.header().record_count);
            if end > from && (payload.is_empty() || payload.len() + batch.bytes().len() <= max) {
                let stamp = Stamp {
                    base_offset: Offset::new(base),
                    append_timestamp_ms: 1,
                    leader_epoch: LeaderEpoch::new(1),
                };
                payload.extend_from_slice(&stamp.encode(batch.header().header_crc));
                payload.extend_from_slice(&batch.after_stamp());
            }
        }
        let row = FetchedRow {
            tp,
            error: ErrorCode::None,
            message: String::new(),
            high_watermark: Offset::new(end),
            log_start: Offset::ZERO,
            log_end: Offset::new(end),
            leader_epoch: LeaderEpoch::new(1),
            first_byte: 0,
            bytes: u32::try_from(payload.len()).unwrap(),
            next_offset: None,
        };
        (row, payload.freeze())
    }
}

fn topic_id() -> TopicId {
    TopicId::from_bytes([9; 16])
}

fn serve(mut stream: TcpStream, world: &Mutex<World>) {
    let mut prelude = [0; PRELUDE_BYTES];
    while stream.read_exact(&mut prelude).is_ok() {
        let prelude = Prelude::decode(&prelude, &CAPS).unwrap();
        let mut header = vec![0; prelude.header_bytes as usize];
        stream.read_exact(&mut header).unwrap();
        let mut payload = vec![0; prelude.payload_bytes as usize];
        stream.read_exact(&mut payload).unwrap();
        let request = Request::decode(Kind::from_u16(prelude.kind).unwrap(), &header).unwrap();
        let (answer, bulk) = world.lock().unwrap().answer(request, &payload.into());
        let header = answer.encode();
        let bytes = u32::try_from(bulk.len()).unwrap();
        let prelude = Prelude::answer(prelude.kind, prelude.correlation, &header, bytes);
        stream.write_all(&[&prelude.encode()[..], &header, &bulk].concat()).unwrap();
    }
}

fn broker(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let world =
        World { address, fault, topic: String::new(), partitions: 0, logs: HashMap::new(), producers: 0 };
    let world = Arc::new(Mutex::new(world));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let world = Arc::clone(&world);
            std::thread::spawn(move || serve(stream.unwrap(), &world));
        }
    });
    address
}

const WORKLOAD: &str = r#"
    name = "test"
    about = "a small one"
    [topic]
    partitions = 3
    [records]
    bytes = 100
    per_request = 4
    idempotent = true
    [load]
    mode = "closed"
    connections = 2
    in_flight = 3
    [time]
    settle_s = 0.0
    warm_up_s = 0.05
    measured_s = 0.2
    drain_s = 5.0
"#;

fn run(fault: Fault, driver: Driver) -> RunResult {
    let place = Place {
        driver,
        device_stat: None,
        generator: ThreadPlace::default(),
        broker: ThreadPlace::default(),
        cpus: 1,
        kill_at: None,
        fio: false,
        device: None,
        quiet: None,
    };
    let subject = Subject::Running(broker(fault), None);
    once(&Workload::parse(WORKLOAD).unwrap(), 0, &subject, &place).unwrap()
}

#[test]
fn an_honest_broker_has_a_valid_run() {
    let result = run(Fault::None, Driver::Raw);
    assert!(result.is_valid(), "{:?}", result.marks);
    assert_eq!((result.refused, result.unanswered), (0, 0));
    assert_eq!(result.verdict.acknowledged, result.sent * 4);
    assert_eq!(result.verdict.read, result.sent * 4);
    assert!(result.response.samples > 0 && result.mb_per_second > 0.0);
}

#[test]
fn a_loss_invalidates_the_run() {
    let result = run(Fault::Lose, Driver::Raw);
    assert!(!result.is_valid());
    // One batch of four in each of three partitions.
    assert_eq!(result.verdict.lost, 12, "{:?}", result.verdict);
    assert!(result.marks[0].starts_with("INVALID"));
}

#[test]
fn a_duplicate_invalidates_the_run() {
    let result = run(Fault::Repeat, Driver::Raw);
    assert!(!result.is_valid());
    assert_eq!((result.verdict.duplicated, result.verdict.lost), (12, 0), "{:?}", result.verdict);
}

#[test]
fn disorder_invalidates_the_run() {
    let result = run(Fault::Swap, Driver::Raw);
    assert!(!result.is_valid());
    assert!(result.verdict.disordered + result.verdict.misplaced >= 24, "{:?}", result.verdict);
    assert_eq!(result.verdict.lost, 0);
}

#[test]
fn a_refusal_is_no_loss_but_is_said() {
    let result = run(Fault::Refuse, Driver::Raw);
    assert!(result.is_valid(), "{:?}", result.marks);
    assert_eq!(result.refused, 3);
    assert!(result.marks.iter().any(|mark| mark.contains("DISK_FULL")), "{:?}", result.marks);
}

#[test]
fn the_client_library_is_checked_alike() {
    let result = run(Fault::None, Driver::Client);
    assert!(result.is_valid(), "{:?}", result.marks);
    assert!(result.verdict.acknowledged > 100, "{:?}", result.verdict);
    assert_eq!(result.verdict.acknowledged, result.sent * 4);
    let result = run(Fault::Lose, Driver::Client);
    assert!(!result.is_valid());
    assert!(result.verdict.lost > 0, "{:?}", result.verdict);
}
