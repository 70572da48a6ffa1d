//! Corelog over its wire protocol, without the client library, so that the library does not limit the figures.
//!
//! Called by `run` through [`Session`]. A [`Connection`] asks and waits, for setup and for reading back; [`Producer`] is
//! the load's side.
//! Invariant: batches are sealed for their partition; an answer without an error notes its offsets in the ledger.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;
use corelog_wire::batch::{BatchFields, BodyCheck, StoredBatches};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::{Caps, Kind, PRELUDE_BYTES, Prelude, check_header};
use corelog_wire::ids::{
    CorrelationId, Offset, ProducerEpoch, ProducerId, Sequence, TopicId, TopicPartition,
};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{
    self, CreateTopicAnswer, CreateTopicRequest, DeleteTopicAnswer, DeleteTopicRequest, FetchAnswer,
    FetchRequest, FetchRow, HelloAnswer, HelloRequest, InitProducerIdAnswer, InitProducerIdRequest,
    MetadataAnswer, MetadataRequest, ProduceAnswer, ProduceRequest, ProduceRow,
};
use corelog_wire::records::Records;

use super::sending::Library;
use super::turns::{self, Turns};
use super::{Run, library};
use crate::args::Driver;
use crate::check::{Checker, Ledger};
use crate::engine::{Answered, Outgoing, Protocol};
use crate::error::{Doing, Error, Result};
use crate::follow::{self, Tail};
use crate::payload::Template;
use crate::tally::{Outcome, Plan, Window};
use crate::workload::{self, Acks, Codec};

/// Largest answer that is taken.
const CAPS: Caps = Caps { header_bytes_max: 4 << 20, payload_bytes_max: 64 << 20 };
/// How long a single answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of one fetch when everything is read back.
const FETCH_BYTES: u32 = 8 << 20;

fn peer(error: impl std::fmt::Display) -> Error {
    Error::Peer(error.to_string())
}

/// A connection that asks one thing at a time.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    correlation: u64,
    /// The memory of the last payload, used again once nobody holds a part of it.
    payload: Bytes,
}

impl Connection {
    /// Connects and says Hello.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    pub fn open(address: SocketAddr) -> Result<(Self, HelloAnswer)> {
        let stream = TcpStream::connect(address).doing(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true).doing(|| "setting TCP_NODELAY".to_owned())?;
        stream.set_read_timeout(Some(PATIENCE)).doing(|| "setting a read timeout".to_owned())?;
        let mut connection = Self { stream, correlation: 0, payload: Bytes::new() };
        let hello = HelloRequest {
            client_name: "corelog-bench".to_owned(),
            client_version: env!("CARGO_PKG_VERSION").to_owned(),
            version_min: 1,
            version_max: 1,
            features: 0,
            shard: None,
        };
        let (header, _) = connection.ask(Kind::Hello, &hello.encode())?;
        let answer = HelloAnswer::decode(&header).map_err(peer)?;
        Ok((connection, answer))
    }

    /// The stream, and the number that the next request may have.
    #[must_use]
    pub fn into_stream(self) -> (TcpStream, u64) {
        (self.stream, self.correlation)
    }

    /// Asks with no payload; gives the answer's header and payload.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    pub fn ask(&mut self, kind: Kind, header: &[u8]) -> Result<(Vec<u8>, Bytes)> {
        self.send(kind, header)?;
        self.answer(kind)
    }

    fn send(&mut self, kind: Kind, header: &[u8]) -> Result<()> {
        let correlation = CorrelationId::new(self.correlation);
        self.correlation += 1;
        let mut frame = Prelude::request(kind, correlation, header, 0).encode().to_vec();
        frame.extend_from_slice(header);
        self.stream.write_all(&frame).doing(|| format!("asking {}", kind.name()))
    }

    /// The answer to what was sent last.
    fn answer(&mut self, kind: Kind) -> Result<(Vec<u8>, Bytes)> {
        let correlation = CorrelationId::new(self.correlation - 1);
        let mut prelude = [0; PRELUDE_BYTES];
        let doing = || format!("waiting for the answer to {}", kind.name());
        self.stream.read_exact(&mut prelude).doing(doing)?;
        let prelude = Prelude::decode(&prelude, &CAPS).map_err(peer)?;
        let mut header = vec![0; prelude.header_bytes as usize];
        self.stream.read_exact(&mut header).doing(doing)?;
        let payload = self.read_payload(prelude.payload_bytes as usize).doing(doing)?;
        check_header(&prelude, &header).map_err(peer)?;
        if !prelude.answer || prelude.kind != kind.as_u16() || prelude.correlation != correlation {
            return Err(Error::Peer(format!("an answer of another request: {prelude:?}")));
        }
        Ok((header, payload))
    }

    fn read_payload(&mut self, bytes: usize) -> std::io::Result<Bytes> {
        let mut memory = std::mem::take(&mut self.payload).try_into_mut().unwrap_or_default();
        if memory.len() < bytes {
            memory.resize(bytes, 0);
        }
        self.stream.read_exact(&mut memory[..bytes])?;
        self.payload = memory.freeze();
        Ok(self.payload.slice(..bytes))
    }

    /// Creates a topic and waits until each partition has a leader.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    pub fn create_topic(
        &mut self,
        name: &str,
        partitions: u32,
        config: Vec<(String, String)>,
    ) -> Result<TopicId> {
        let request = CreateTopicRequest { name: name.to_owned(), partitions, replication_factor: 0, config };
        let (header, _) = self.ask(Kind::CreateTopic, &request.encode())?;
        let id = CreateTopicAnswer::decode(&header).map_err(peer)?.id;
        self.await_leaders(name, partitions)?;
        Ok(id)
    }

    /// Waits until each partition of a topic has a leader.
    fn await_leaders(&mut self, name: &str, partitions: u32) -> Result<()> {
        let request = MetadataRequest { topics: Some(vec![name.to_owned()]), auto_create: false };
        let began = std::time::Instant::now();
        while began.elapsed() < PATIENCE {
            let (header, _) = self.ask(Kind::Metadata, &request.encode())?;
            let answer = MetadataAnswer::decode(&header).map_err(peer)?;
            let led = |topic: &message::MetadataTopic| {
                topic.error == ErrorCode::None
                    && topic.partitions.len() == partitions as usize
                    && topic.partitions.iter().all(|partition| partition.leader.is_some())
            };
            if answer.topics.first().is_some_and(led) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(Error::Peer(format!("topic {name} has no leaders after {PATIENCE:?}")))
    }

    /// Deletes a topic.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    pub fn delete_topic(&mut self, name: &str) -> Result<()> {
        let (header, _) =
            self.ask(Kind::DeleteTopic, &DeleteTopicRequest { name: name.to_owned() }.encode())?;
        DeleteTopicAnswer::decode(&header).map_err(peer).map(drop)
    }

    /// A name for an idempotent producer.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    pub fn init_producer_id(&mut self) -> Result<(ProducerId, ProducerEpoch)> {
        let (header, _) = self.ask(Kind::InitProducerId, &InitProducerIdRequest {}.encode())?;
        let answer = InitProducerIdAnswer::decode(&header).map_err(peer)?;
        Ok((answer.producer_id, answer.producer_epoch))
    }

    /// Reads all records of a partition into the checker. Gives how many bytes of batches they were.
    ///
    /// # Errors
    /// [`Error::System`]; [`Error::Peer`] if what comes is refused or damaged.
    pub fn read_back(&mut self, tp: TopicPartition, checker: &mut Checker<'_>) -> Result<u64> {
        let mut offset = None;
        let mut bytes_read = 0;
        loop {
            let row = FetchRow {
                tp,
                offset: Offset::new(offset.unwrap_or(0)),
                max_bytes: FETCH_BYTES,
                leader_epoch: None,
            };
            let request = FetchRequest {
                max_wait_ms: 0,
                min_bytes: 0,
                max_bytes: FETCH_BYTES,
                rows: vec![row],
                filter: TagFilter::ALL,
            };
            let (header, payload) = self.ask(Kind::Fetch, &request.encode())?;
            let answer = FetchAnswer::decode(&header).map_err(peer)?;
            answer.rows_within(payload.len()).map_err(peer)?;
            let [row] = &answer.rows[..] else {
                return Err(Error::Peer(format!("{} rows where one was asked for", answer.rows.len())));
            };
            if row.error == ErrorCode::OffsetOutOfRange && row.log_start.get() > offset.unwrap_or(0) {
                checker.begin(tp.partition, row.log_start.get());
                offset = Some(row.log_start.get());
                continue;
            }
            if row.error != ErrorCode::None {
                return Err(Error::Peer(format!("fetch of {tp:?}: {}: {}", row.error.name(), row.message)));
            }
            let mut next = offset.unwrap_or_else(|| {
                checker.begin(tp.partition, 0);
                0
            });
            let first_byte = row.first_byte as usize;
            let run = payload.slice(first_byte..first_byte + row.bytes as usize);
            bytes_read += run.len() as u64;
            next = read_run(run, tp, next, &mut |offset, value| checker.record(offset, value))?;
            if next >= row.high_watermark.get() {
                checker.end();
                return Ok(bytes_read);
            }
            if row.bytes == 0 {
                return Err(Error::Peer(format!(
                    "fetch of {tp:?} at {next} is empty below the high watermark {}",
                    row.high_watermark.get()
                )));
            }
            offset = Some(next);
        }
    }
}

/// Checks the batches of one answer and hands over their records; gives the offset that follows them.
fn read_run(
    run: Bytes,
    tp: TopicPartition,
    from: u64,
    each: &mut dyn FnMut(u64, Option<&[u8]>),
) -> Result<u64> {
    let mut next = from;
    for batch in StoredBatches::new(run, tp, BodyCheck::Verify) {
        let batch = batch.map_err(|error| Error::Peer(format!("{tp:?} behind {next}: {error}")))?;
        let base = batch.stamp().map_or(0, |stamp| stamp.base_offset.get());
        for record in Records::new(batch.body(), batch.header().record_count) {
            let record = record.map_err(|error| Error::Peer(format!("{tp:?} at {base}: {error}")))?;
            let offset = base + u64::from(record.offset_delta);
            // The first batch may begin before the offset that was asked for.
            if offset >= from {
                each(offset, record.value.as_deref());
            }
        }
        next = base + u64::from(batch.header().last_offset_delta) + 1;
    }
    Ok(next)
}

/// A consumer of all partitions, which asks for more before it looks at what has come, as the client library does.
#[derive(Debug)]
struct Following {
    connection: Connection,
    /// Each partition and the offset that follows what was read, the one that waited longest first.
    rows: VecDeque<FetchRow>,
    /// They were asked for.
    asked: bool,
}

impl Following {
    fn ask(&mut self) -> Result<()> {
        self.asked = true;
        let max_wait_ms = u32::try_from(follow::POLL.as_millis()).unwrap_or(u32::MAX);
        let rows = self.rows.iter().copied().collect();
        let request =
            FetchRequest { max_wait_ms, min_bytes: 1, max_bytes: FETCH_BYTES, rows, filter: TagFilter::ALL };
        self.connection.send(Kind::Fetch, &request.encode())
    }
}

impl Tail for Following {
    fn poll(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        if !self.asked {
            self.ask()?;
        }
        let (header, payload) = self.connection.answer(Kind::Fetch)?;
        let answer = FetchAnswer::decode(&header).map_err(peer)?;
        answer.rows_within(payload.len()).map_err(peer)?;
        let mut runs = Vec::with_capacity(answer.rows.len());
        for (asked, row) in self.rows.iter_mut().zip(&answer.rows) {
            if row.error != ErrorCode::None {
                let (code, message) = (row.error.name(), &row.message);
                return Err(Error::Peer(format!("fetch of {:?}: {code}: {message}", row.tp)));
            }
            let first_byte = row.first_byte as usize;
            let run = payload.slice(first_byte..first_byte + row.bytes as usize);
            runs.push((asked.tp, asked.offset, run.clone()));
            if let Some(last) = StoredBatches::new(run, asked.tp, BodyCheck::Skip).last() {
                let last = last.map_err(peer)?;
                let base = last.stamp().map_or(0, |stamp| stamp.base_offset.get());
                asked.offset = Offset::new(base + u64::from(last.header().last_offset_delta) + 1);
            }
        }
        self.rows.rotate_left(1);
        self.ask()?;
        for (tp, from, run) in runs {
            read_run(run, tp, from.get(), &mut |_, value| each(value.unwrap_or_default()))?;
        }
        Ok(())
    }
}

/// One run.
#[derive(Debug)]
pub struct Session<'a> {
    run: Run<'a>,
    connection: Connection,
    topic: String,
    shape: Shape<'a>,
}

impl<'a> Session<'a> {
    /// Creates the run's topic.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    pub fn open(run: Run<'a>) -> Result<Self> {
        let workload = run.workload;
        let topic = format!("bench-{:016x}", run.number);
        let mut config: Vec<(String, String)> = workload.topic.config.clone().into_iter().collect();
        config.push(("durability".to_owned(), workload.topic.durability.setting().to_owned()));
        let (mut connection, _) = Connection::open(run.address)?;
        let shape = Shape {
            run: run.number,
            topic: connection.create_topic(&topic, workload.topic.partitions, config)?,
            partitions: workload.topic.partitions,
            spread: &workload.topic,
            templates: run.templates,
            acks: workload.load.acks(),
            idempotent: workload.records.idempotent,
            timestamp_ms: now_ms(),
        };
        Ok(Self { run, connection, topic, shape })
    }
}

impl super::Session for Session<'_> {
    fn drive(&self, plan: &Plan, window: &mut dyn Window) -> Result<(Outcome, Vec<Ledger>)> {
        let Run { address, workload, driver, .. } = self.run;
        if driver != Driver::Client && workload.records.codec != Codec::None {
            return Err(Error::Setup(
                "records.codec is the client library's: add --driver client".to_owned(),
            ));
        }
        if driver == Driver::Client {
            return library::drive(Library::Corelog, &self.run, &self.topic, self.shape.run, plan, window);
        }
        let mut connections = Vec::new();
        for number in 0..plan.load.connections() {
            connections.push(Producer::open(address, number, self.shape)?);
        }
        turns::drive(connections, plan, window, |producer| producer.turns.ledger)
    }

    fn tail(&self) -> Result<Box<dyn Tail + '_>> {
        let row = |partition| FetchRow {
            tp: TopicPartition::new(self.shape.topic, partition),
            offset: Offset::ZERO,
            max_bytes: FETCH_BYTES,
            leader_epoch: None,
        };
        let (connection, _) = Connection::open(self.run.address)?;
        let rows = (0..self.shape.partitions).map(row).collect();
        Ok(Box::new(Following { connection, rows, asked: false }))
    }

    fn moved(&mut self, address: SocketAddr) -> Result<()> {
        self.run.address = address;
        (self.connection, _) = Connection::open(address)?;
        self.connection.await_leaders(&self.topic, self.shape.partitions)
    }

    fn read_back(&mut self, checker: &mut Checker<'_>) -> Result<u64> {
        let mut bytes = 0;
        for partition in 0..self.shape.partitions {
            bytes += self.connection.read_back(TopicPartition::new(self.shape.topic, partition), checker)?;
        }
        Ok(bytes)
    }

    fn remove(&mut self) -> Result<()> {
        self.connection.delete_topic(&self.topic)
    }
}

fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}

/// What the producers of a run have in common.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// The run's number, in every mark.
    pub run: u64,
    /// The topic.
    pub topic: TopicId,
    /// How many partitions it has.
    pub partitions: u32,
    /// How requests are spread over them.
    pub spread: &'a workload::Topic,
    /// What requests carry, by turns.
    pub templates: &'a [Template],
    /// What is waited for.
    pub acks: Acks,
    /// Whether producers have ids.
    pub idempotent: bool,
    /// Create time of all records, in milliseconds since 1970.
    pub timestamp_ms: i64,
}

impl Shape<'_> {
    /// What precedes a batch of so many bytes.
    fn header(&self, partition: u32, batch_bytes: usize) -> Vec<u8> {
        let bytes = u32::try_from(batch_bytes).unwrap_or(u32::MAX);
        let row = ProduceRow { tp: TopicPartition::new(self.topic, partition), first_byte: 0, bytes };
        let acks = match self.acks {
            Acks::Leader => message::Acks::Leader,
            Acks::All => message::Acks::All,
        };
        ProduceRequest { acks, deadline_ms: 30_000, rows: vec![row] }.encode()
    }
}

/// The load's side of one connection: a producer that goes round the partitions, a batch each.
#[derive(Debug)]
pub struct Producer<'a> {
    shape: Shape<'a>,
    turns: Turns,
    id: Option<(ProducerId, ProducerEpoch)>,
    /// Correlation of the first request.
    correlation_first: u64,
    correlation_next: u64,
    /// Headers by partition, if all batches have one size.
    headers: Vec<Vec<u8>>,
    /// Partition and sequence of what waits for an answer, from `waiting_first` on.
    waiting: VecDeque<Option<(u32, u64)>>,
    waiting_first: u64,
}

impl<'a> Producer<'a> {
    /// Connects, says Hello, and gets an id if the shape asks for one.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    pub fn open(address: SocketAddr, number: u32, shape: Shape<'a>) -> Result<(TcpStream, Self)> {
        let (mut connection, hello) = Connection::open(address)?;
        let bytes = shape.templates.iter().map(Template::batch_bytes).max().unwrap_or_default();
        if bytes > hello.batch_bytes_max as usize || bytes > hello.payload_bytes_max as usize {
            return Err(Error::Setup(format!(
                "a batch of {bytes} bytes is more than the broker takes ({})",
                hello.batch_bytes_max
            )));
        }
        let id = if shape.idempotent { Some(connection.init_producer_id()?) } else { None };
        let records = shape.templates.first().map_or(0, Template::records);
        let headers = (0..shape.partitions).map(|partition| shape.header(partition, bytes)).collect();
        let producer = Self {
            shape,
            turns: Turns::new(shape.run, number, shape.spread, records, shape.templates.len()),
            id,
            correlation_first: connection.correlation,
            correlation_next: connection.correlation,
            headers,
            waiting: VecDeque::new(),
            waiting_first: 0,
        };
        Ok((connection.stream, producer))
    }

    /// Notes an answer to a request; gives why it was refused, if it was.
    fn answer(&mut self, request: u64, header: &[u8]) -> Result<Option<String>> {
        let place = request.checked_sub(self.waiting_first).and_then(|place| usize::try_from(place).ok());
        let waiting = place.and_then(|place| self.waiting.get_mut(place)).and_then(Option::take);
        let Some((partition, sequence)) = waiting else {
            return Err(Error::Peer(format!("an answer to request {request}, which waits for none")));
        };
        while let Some(None) = self.waiting.front() {
            self.waiting.pop_front();
            self.waiting_first += 1;
        }
        let answer = match ProduceAnswer::decode(header) {
            Ok(answer) => answer,
            Err(message::MessageError::Refused(refusal)) => {
                return Ok(Some(format!("{}: {}", refusal.code.name(), refusal.message)));
            }
            Err(error) => return Err(peer(error)),
        };
        let [row] = &answer.rows[..] else {
            return Err(Error::Peer(format!("{} rows where one was produced", answer.rows.len())));
        };
        if row.error != ErrorCode::None {
            return Ok(Some(format!("{}: {}", row.error.name(), row.message)));
        }
        self.turns.ledger.acknowledged(partition, sequence, row.base_offset.get());
        Ok(None)
    }
}

impl Protocol for Producer<'_> {
    fn request(&mut self, intended: Duration, out: &mut Outgoing) {
        let shape = &self.shape;
        let (mark, kind) = self.turns.next(intended);
        let template = &shape.templates[kind];
        let several = shape.templates.len() > 1;
        if several {
            out.payload.clear();
        }
        let (partition, sequence) = (mark.partition, mark.sequence);
        self.waiting.push_back(Some((partition, sequence)));
        let mut fields = BatchFields::plain(template.records(), shape.timestamp_ms);
        if let Some((id, epoch)) = self.id {
            fields.producer_id = id;
            fields.producer_epoch = epoch;
            // Sequences are 31 bits and begin again.
            let base = u32::try_from(sequence % (1 << 31)).unwrap_or_default();
            fields.base_sequence = Sequence::new(base.cast_signed());
        }
        template.fill(&mut out.payload, mark, &fields, TopicPartition::new(shape.topic, partition));
        let made;
        let header = if several {
            made = shape.header(partition, out.payload.len());
            &made
        } else {
            &self.headers[partition as usize]
        };
        let correlation = CorrelationId::new(self.correlation_next);
        self.correlation_next += 1;
        let payload_bytes = u32::try_from(out.payload.len()).unwrap_or(u32::MAX);
        let prelude = Prelude::request(Kind::Produce, correlation, header, payload_bytes);
        out.head.clear();
        out.head.extend_from_slice(&prelude.encode());
        out.head.extend_from_slice(header);
    }

    fn answers(&mut self, input: &[u8], answered: &mut Vec<Answered>) -> Result<usize> {
        let mut taken = 0;
        while let Some(bytes) = input[taken..].first_chunk::<PRELUDE_BYTES>() {
            let prelude = Prelude::decode(bytes, &CAPS).map_err(peer)?;
            let header_end = taken + PRELUDE_BYTES + prelude.header_bytes as usize;
            let end = header_end + prelude.payload_bytes as usize;
            if input.len() < end {
                break;
            }
            let header = &input[taken + PRELUDE_BYTES..header_end];
            check_header(&prelude, header).map_err(peer)?;
            let request = prelude.correlation.get().wrapping_sub(self.correlation_first);
            let refused = self.answer(request, header)?;
            answered.push(Answered { request, refused });
            taken = end;
        }
        Ok(taken)
    }
}
