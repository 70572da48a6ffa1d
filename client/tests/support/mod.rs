//! A broker of a few hundred lines, in memory, that speaks the real wire bytes and fails when it is told to.
//!
//! For the tests of the client only. It checks what it is sent as a broker does: checksums with the topic's seed,
//! sequences of idempotent producers, caps. It keeps the stamped bytes of every batch, so that what a reader gets is what
//! a producer sent.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use corelog_client::driver::{Driver, Runtime, Tokio, TokioStream};
use corelog_wire::batch::{BatchLimits, CheckedBatch, STAMP_BYTES, Stamp};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::{Caps, PRELUDE_BYTES, Prelude, check_header};
use corelog_wire::ids::{
    BrokerId, CorrelationId, LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, ShardId, TopicId,
    TopicPartition,
};
use corelog_wire::message::*;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;

/// What the broker does with a request, instead of answering it.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Closes the connection without having done anything.
    CloseBefore,
    /// Does what was asked, then closes the connection in the middle of the answer.
    CloseMidAnswer,
    /// Answers twice.
    AnswerTwice,
    /// Answers a request that was never made.
    UnknownCorrelation,
    /// Announces a payload of 1 GiB.
    Oversized,
    /// Says nothing.
    Silence,
    /// Refuses the request.
    Refuse(Refusal),
    /// Refuses every row of a Produce or Fetch.
    RefuseRows(ErrorCode),
    /// Does what was asked but says that it took too long.
    DeadlineAfter,
    /// Flips a bit of the payload.
    Rot,
}

/// Rows in one request, as a broker takes them.
const ROWS_MAX: usize = 4_096;

/// One stored batch.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) base: u64,
    pub(crate) end: u64,
    pub(crate) max_timestamp_ms: i64,
    pub(crate) bytes: Bytes,
}

/// One partition.
#[derive(Clone, Default)]
pub(crate) struct Log {
    pub(crate) batches: Vec<Stored>,
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// By producer id: its next sequence, and the last five batches' base sequence and offset.
    producers: BTreeMap<i64, (Sequence, VecDeque<(Sequence, u64)>)>,
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) topics: BTreeMap<String, (TopicId, Vec<Log>)>,
    pub(crate) auto_create: bool,
    /// What happens to the next requests of a kind's name; none left: they are answered.
    pub(crate) faults: BTreeMap<&'static str, VecDeque<Option<Fault>>>,
    /// Every request, by name.
    pub(crate) seen: Vec<&'static str>,
    /// The shard that each connection asked for.
    pub(crate) hellos: Vec<Option<u16>>,
    pub(crate) connections: usize,
    /// Connections are refused.
    pub(crate) down: bool,
    /// What Metadata says that the broker's address is.
    pub(crate) address: String,
    next_producer: i64,
    next_topic: u8,
}

/// The broker, and the runtime of the clients that connect to it.
#[derive(Clone)]
pub(crate) struct Broker {
    pub(crate) world: Arc<Mutex<World>>,
    appended: watch::Sender<u64>,
}

impl Broker {
    pub(crate) fn new() -> Self {
        let world =
            World { auto_create: true, next_topic: 1, address: "broker:1".into(), ..World::default() };
        Self { world: Arc::new(Mutex::new(world)), appended: watch::Sender::new(0) }
    }

    pub(crate) fn with_topic(self, name: &str, partitions: usize) -> Self {
        self.world.lock().unwrap().create(name, partitions);
        self
    }

    /// The next requests of this kind fail so.
    pub(crate) fn fault(&self, kind: &'static str, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.world.lock().unwrap().faults.entry(kind).or_default().extend(faults);
    }

    pub(crate) async fn client(&self) -> corelog_client::Client {
        let builder = corelog_client::Client::builder().bootstrap("broker:1");
        builder.connect_on(self.clone()).await.expect("the broker in memory accepts connections")
    }

    pub(crate) fn log(&self, topic: &str, partition: usize) -> Log {
        self.world.lock().unwrap().topics[topic].1[partition].clone()
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        self.world.lock().unwrap().seen.iter().filter(|seen| **seen == kind).count()
    }

    pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S) {
        let (mut read, mut write) = tokio::io::split(stream);
        let (answers, mut outgoing) = tokio::sync::mpsc::unbounded_channel::<Option<Vec<u8>>>();
        tokio::spawn(async move {
            while let Some(Some(bytes)) = outgoing.recv().await {
                if write.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            let _ = write.shutdown().await;
        });
        let mut caps = Caps::BEFORE_HELLO;
        loop {
            let mut prelude = [0; PRELUDE_BYTES];
            if read.read_exact(&mut prelude).await.is_err() {
                return;
            }
            let prelude = Prelude::decode(&prelude, &caps).expect("the client's prelude is sound");
            let mut header = vec![0; prelude.header_bytes as usize];
            let mut payload = vec![0; prelude.payload_bytes as usize];
            if read.read_exact(&mut header).await.is_err() || read.read_exact(&mut payload).await.is_err() {
                return;
            }
            check_header(&prelude, &header).expect("the header's checksum holds");
            let kind = prelude.known_kind().expect("the client sends known kinds");
            let request = Request::decode(kind, &header).expect("the client's header is sound");
            caps = Caps { header_bytes_max: 1 << 20, payload_bytes_max: 16 << 20 };
            let broker = self.clone();
            let answers = answers.clone();
            // Appends happen in the order of the requests; only fetches wait.
            if let Request::Fetch(fetch) = request {
                tokio::spawn(async move { broker.fetch(prelude.correlation, fetch, &answers).await });
            } else if !broker.answer(prelude.correlation, request, &payload.into(), &answers) {
                let _ = answers.send(None);
                return;
            }
        }
    }

    fn take_fault(&self, kind: &'static str) -> Option<Fault> {
        let mut world = self.world.lock().unwrap();
        world.seen.push(kind);
        world.faults.get_mut(kind).and_then(VecDeque::pop_front).flatten()
    }

    /// Waits until there is something to read or the time is over, then answers.
    async fn fetch(&self, correlation: CorrelationId, fetch: FetchRequest, answers: &Answers) {
        let fault = self.take_fault("Fetch");
        let deadline = tokio::time::Instant::now() + Duration::from_millis(fetch.max_wait_ms.into());
        let mut appended = self.appended.subscribe();
        let (answer, payload) = loop {
            appended.mark_unchanged();
            let (answer, payload) = self.world.lock().unwrap().fetch(&fetch, fault.as_ref());
            let trouble = answer.rows.iter().any(|row| row.error != ErrorCode::None);
            if !payload.is_empty() || trouble || fault.is_some() {
                break (answer, payload);
            }
            if tokio::time::timeout_at(deadline, appended.changed()).await.is_err() {
                break (answer, payload);
            }
        };
        send(correlation, &Answer::Fetch(answer), &payload, fault.as_ref(), answers);
    }

    /// False: the connection ends.
    fn answer(
        &self,
        correlation: CorrelationId,
        request: Request,
        payload: &Bytes,
        answers: &Answers,
    ) -> bool {
        let fault = self.take_fault(request.kind().name());
        let silent = matches!(&request, Request::Produce(produce) if produce.acks == Acks::None);
        let kind = request.kind();
        if matches!(fault, Some(Fault::CloseBefore)) {
            return false;
        }
        if let Some(Fault::Refuse(refusal)) = fault {
            return send(correlation, &Answer::Refused { kind, refusal }, &[], None, answers);
        }
        let mut answer = self.world.lock().unwrap().answer(request, payload, fault.as_ref());
        self.appended.send_modify(|count| *count += 1);
        if let (Some(Fault::DeadlineAfter), Answer::Produce(produce)) = (&fault, &mut answer) {
            produce.rows.iter_mut().for_each(|row| row.error = ErrorCode::Deadline);
        }
        silent || send(correlation, &answer, &[], fault.as_ref(), answers)
    }
}

type Answers = tokio::sync::mpsc::UnboundedSender<Option<Vec<u8>>>;

/// The bytes of an answer, spoilt as the fault says. False: the connection ends.
fn send(
    correlation: CorrelationId,
    answer: &Answer,
    payload: &[u8],
    fault: Option<&Fault>,
    answers: &Answers,
) -> bool {
    let header = answer.encode();
    let mut payload = payload.to_vec();
    if matches!(fault, Some(Fault::Rot)) && !payload.is_empty() {
        let at = payload.len() - 20;
        payload[at] ^= 4;
    }
    let frame = |correlation, announced: u32| {
        let prelude = Prelude::answer(answer.kind().as_u16(), correlation, &header, announced);
        [&prelude.encode()[..], &header[..], &payload[..]].concat()
    };
    let announced = u32::try_from(payload.len()).unwrap();
    let whole = frame(correlation, announced);
    match fault {
        Some(Fault::CloseMidAnswer) => {
            let _ = answers.send(Some(whole[..whole.len() / 2].to_vec()));
            let _ = answers.send(None);
            return false;
        }
        Some(Fault::AnswerTwice) => {
            let _ = answers.send(Some([&whole[..], &whole[..]].concat()));
        }
        Some(Fault::UnknownCorrelation) => {
            let _ = answers.send(Some(frame(CorrelationId::new(999), announced)));
        }
        Some(Fault::Oversized) => {
            let _ = answers.send(Some(frame(correlation, 1 << 30)));
        }
        Some(Fault::Silence) => {}
        _ => {
            let _ = answers.send(Some(whole));
        }
    }
    true
}

impl World {
    pub(crate) fn create(&mut self, name: &str, partitions: usize) -> TopicId {
        let id = TopicId::from_bytes([self.next_topic; 16]);
        self.next_topic += 1;
        self.topics.insert(name.to_owned(), (id, vec![Log::default(); partitions]));
        id
    }

    fn log(&mut self, tp: TopicPartition) -> Result<&mut Log, ErrorCode> {
        let topic = self.topics.values_mut().find(|(id, _)| *id == tp.topic);
        let (_, logs) = topic.ok_or(ErrorCode::UnknownTopic)?;
        logs.get_mut(tp.partition as usize).ok_or(ErrorCode::UnknownPartition)
    }

    fn answer(&mut self, request: Request, payload: &Bytes, fault: Option<&Fault>) -> Answer {
        let kind = request.kind();
        let refused = |code| Answer::Refused { kind, refusal: Refusal::new(code, "no") };
        match request {
            Request::Hello(hello) => {
                self.hellos.push(hello.shard.map(ShardId::get));
                Answer::Hello(HelloAnswer {
                    version: 1,
                    features: 0,
                    cluster: "test".into(),
                    broker: BrokerId::new(1),
                    shard: hello.shard.unwrap_or(ShardId::new(0)),
                    shards: 2,
                    header_bytes_max: 1 << 20,
                    payload_bytes_max: 16 << 20,
                    record_bytes_max: 4 << 20,
                    batch_bytes_max: 8 << 20,
                })
            }
            Request::Metadata(request) => Answer::Metadata(self.metadata(request)),
            Request::CreateTopic(request) if self.topics.contains_key(&request.name) => {
                let _ = request;
                refused(ErrorCode::Exists)
            }
            Request::CreateTopic(request) => {
                let id = self.create(&request.name, request.partitions.max(1) as usize);
                Answer::CreateTopic(CreateTopicAnswer { id })
            }
            Request::DeleteTopic(request) => match self.topics.remove(&request.name) {
                Some(_) => Answer::DeleteTopic(DeleteTopicAnswer {}),
                None => refused(ErrorCode::UnknownTopic),
            },
            Request::InitProducerId(_) => {
                self.next_producer += 1;
                Answer::InitProducerId(InitProducerIdAnswer {
                    producer_id: ProducerId::new(self.next_producer),
                    producer_epoch: ProducerEpoch::new(0),
                })
            }
            Request::Produce(request) => {
                request.rows_within(payload.len()).expect("the rows are in the payload");
                let rows = request.rows.iter().map(|row| self.produce(row, payload, fault)).collect();
                Answer::Produce(ProduceAnswer { throttle_ms: 0, rows })
            }
            Request::ListOffsets(request) if request.rows.len() > ROWS_MAX => refused(ErrorCode::TooLarge),
            Request::ListOffsets(request) => {
                let rows = request.rows.iter().map(|row| self.list(row)).collect();
                Answer::ListOffsets(ListOffsetsAnswer { rows })
            }
            Request::DeleteRecords(request) => {
                let rows = request.rows.iter().map(|row| {
                    let error = match self.log(row.tp) {
                        Ok(log) if row.before.get() <= log.end => {
                            log.start = log.start.max(row.before.get());
                            log.batches.retain(|batch| batch.end > row.before.get());
                            ErrorCode::None
                        }
                        Ok(_) => ErrorCode::OffsetOutOfRange,
                        Err(code) => code,
                    };
                    DeletedRow { tp: row.tp, error, log_start: row.before }
                });
                Answer::DeleteRecords(DeleteRecordsAnswer { rows: rows.collect() })
            }
            _ => refused(ErrorCode::UnsupportedKind),
        }
    }

    fn metadata(&mut self, request: MetadataRequest) -> MetadataAnswer {
        let names = request.topics.unwrap_or_else(|| self.topics.keys().cloned().collect());
        let topics = names.into_iter().map(|name| {
            if !self.topics.contains_key(&name) && request.auto_create && self.auto_create {
                self.create(&name, 1);
            }
            let Some((id, logs)) = self.topics.get(&name) else {
                let id = TopicId::from_bytes([0; 16]);
                return MetadataTopic { error: ErrorCode::UnknownTopic, name, id, partitions: vec![] };
            };
            let partitions = (0..u32::try_from(logs.len()).unwrap()).map(|partition| MetadataPartition {
                partition,
                leader: Some(BrokerId::new(1)),
                leader_epoch: LeaderEpoch::new(1),
                shard: ShardId::new(u16::try_from(partition % 2).unwrap()),
                replicas: vec![BrokerId::new(1)],
                in_sync_replicas: vec![BrokerId::new(1)],
            });
            MetadataTopic { error: ErrorCode::None, name, id: *id, partitions: partitions.collect() }
        });
        let topics = topics.collect();
        let brokers = vec![MetadataBroker { id: BrokerId::new(1), address: self.address.clone() }];
        MetadataAnswer { brokers, topics, revision: 1 }
    }

    fn produce(&mut self, row: &ProduceRow, payload: &Bytes, fault: Option<&Fault>) -> ProducedRow {
        let first = row.first_byte as usize;
        let bytes = payload.slice(first..first + row.bytes as usize);
        let result = match fault {
            Some(Fault::RefuseRows(code)) => Err(*code),
            _ => self.append(row.tp, bytes),
        };
        ProducedRow {
            tp: row.tp,
            error: result.err().unwrap_or(ErrorCode::None),
            message: String::new(),
            base_offset: Offset::new(result.unwrap_or(0)),
            append_timestamp_ms: 7,
            log_start: Offset::ZERO,
            replicas_reached: 1,
            durable: true,
        }
    }

    fn append(&mut self, tp: TopicPartition, bytes: Bytes) -> Result<u64, ErrorCode> {
        let limits = BatchLimits { batch_bytes_max: 8 << 20 };
        let log = self.log(tp)?;
        let batch = CheckedBatch::check(bytes, tp, &limits).map_err(corelog_wire::batch::BatchError::code)?;
        let header = *batch.header();
        let base = log.end;
        if header.producer_id != ProducerId::NONE {
            let entry = log.producers.entry(header.producer_id.get());
            let (next, window) = entry.or_insert((Sequence::ZERO, VecDeque::new()));
            if let Some((_, offset)) = window.iter().find(|(sequence, _)| *sequence == header.base_sequence) {
                return Ok(*offset);
            }
            if *next != header.base_sequence {
                return Err(ErrorCode::OutOfOrderSequence);
            }
            *next = header.base_sequence.advance(header.record_count);
            window.push_back((header.base_sequence, base));
            if window.len() > 5 {
                window.pop_front();
            }
        }
        let stamp = Stamp {
            base_offset: Offset::new(base),
            append_timestamp_ms: 7,
            leader_epoch: LeaderEpoch::new(1),
        };
        let mut stamped = BytesMut::from(&stamp.encode(header.header_crc)[..]);
        stamped.extend_from_slice(&batch.bytes()[STAMP_BYTES..]);
        log.end = base + u64::from(header.last_offset_delta) + 1;
        let max_timestamp_ms = header.max_timestamp_ms;
        log.batches.push(Stored { base, end: log.end, max_timestamp_ms, bytes: stamped.freeze() });
        Ok(base)
    }

    fn list(&mut self, row: &ListOffsetsRow) -> ListedRow {
        let found = self.log(row.tp).map(|log| match row.at {
            At::Earliest => (log.start, -1),
            At::Latest => (log.end, -1),
            At::Timestamp(time) => {
                let batch = log.batches.iter().find(|batch| batch.max_timestamp_ms >= time);
                batch.map_or((log.end, -1), |batch| (batch.base, batch.max_timestamp_ms))
            }
        });
        let (offset, timestamp_ms) = found.unwrap_or((0, -1));
        ListedRow {
            tp: row.tp,
            error: found.err().unwrap_or(ErrorCode::None),
            offset: Offset::new(offset),
            timestamp_ms,
            leader_epoch: LeaderEpoch::new(1),
        }
    }

    fn fetch(&mut self, request: &FetchRequest, fault: Option<&Fault>) -> (FetchAnswer, Bytes) {
        let mut payload = BytesMut::new();
        let rows = request.rows.iter().map(|row| {
            let room = (request.max_bytes as usize).saturating_sub(payload.len());
            let first = payload.len();
            let (mut error, mut start, mut end) = (ErrorCode::None, 0, 0);
            match self.log(row.tp) {
                Ok(log) => {
                    (start, end) = (log.start, log.end);
                    let outside = row.offset.get() < start || row.offset.get() > end;
                    if outside {
                        error = ErrorCode::OffsetOutOfRange;
                    } else {
                        for batch in log.batches.iter().filter(|batch| batch.end > row.offset.get()) {
                            let read = payload.len() - first;
                            let fits = read + batch.bytes.len() <= room.min(row.max_bytes as usize);
                            if !fits && !payload.is_empty() {
                                break;
                            }
                            payload.extend_from_slice(&batch.bytes);
                        }
                    }
                }
                Err(code) => error = code,
            }
            if let Some(Fault::RefuseRows(code)) = fault {
                error = *code;
                payload.truncate(first);
            }
            let bytes = u32::try_from(payload.len() - first).unwrap();
            FetchedRow {
                tp: row.tp,
                error,
                message: String::new(),
                high_watermark: Offset::new(end),
                log_start: Offset::new(start),
                log_end: Offset::new(end),
                leader_epoch: LeaderEpoch::new(1),
                first_byte: if bytes == 0 { 0 } else { u32::try_from(first).unwrap() },
                bytes,
                next_offset: None,
            }
        });
        let rows = rows.collect();
        (FetchAnswer { throttle_ms: 0, rows }, payload.freeze())
    }
}

impl Runtime for Broker {
    type Stream = TokioStream<DuplexStream>;
    type Sleep = <Tokio as Runtime>::Sleep;

    async fn connect(&self, _address: &str) -> io::Result<Self::Stream> {
        let mut world = self.world.lock().unwrap();
        if world.down {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        world.connections += 1;
        let (near, far) = tokio::io::duplex(64 << 10);
        tokio::spawn(self.clone().serve(far));
        Ok(TokioStream(near))
    }

    fn sleep_until(&self, at: Instant) -> Self::Sleep {
        Tokio.sleep_until(at)
    }

    fn now() -> Instant {
        Tokio::now()
    }

    fn spawn(&self, driver: Driver<Self>) {
        tokio::spawn(driver.run());
    }
}
