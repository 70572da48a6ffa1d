//! Apache Kafka: a request is one batch for one partition, answered when Kafka has it, or has flushed it.
//!
//! Called by `run`. The protocol (`wire`) is spoken here without a client library, so that the generator's cost is the same
//! for every peer: a batch is encoded once, and only its marks and its checksum are written anew. A partition is a partition.
//! Kafka runs in a virtual machine that compiles what it runs often, so it is warmed up before each run.

mod wire;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use self::wire::{Api, CRC_AT, CRC_FROM, Reader, Writer};
use super::turns::{self, Turns};
use super::{Run, free_port};
use crate::check::{Checker, Ledger};
use crate::engine::{Answered, Outgoing, Protocol};
use crate::error::{Doing, Error, Result};
use crate::follow::{self, Tail};
use crate::payload::MARK_BYTES;
use crate::tally::{Outcome, Plan, Window};

/// The broker's own jar, beside everything that it needs; `deploy/tools/kafka.sh` fetches them.
pub(super) const JAR: &str = "kafka_2.13-4.3.1.jar";
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long requests are sent before a run, one after the other.
const WARM_UP: Duration = Duration::from_secs(4);
/// Longest message that is taken.
const MESSAGE_BYTES_MAX: usize = 128 << 20;
/// Bytes of one fetch.
const FETCH_BYTES: i32 = 32 << 20;
/// Formats the node's folder if it is new, then becomes the broker. `$0`: the folder of jars, `$1`: the configuration.
const START: &str = "java -cp \"$0/*\" kafka.tools.StorageTool format -g -t corelogbenchcorelogben -c \"$1\" && \
    exec java -Xms1g -Xmx4g -server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35 \
    -cp \"$0/*\" kafka.Kafka \"$1\"";

/// Makes the command that starts one node on free ports of loopback; where it will listen.
///
/// # Errors
/// [`Error::System`] if there are none, or its configuration cannot be written.
pub(super) fn launch(jar: &Path, folder: &Path, flush: bool) -> Result<(Command, SocketAddr)> {
    let (address, controller) = (free_port()?, free_port()?);
    let config = folder.join("server.properties");
    let mut text = format!(
        "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@{controller}\n\
         listeners=PLAINTEXT://{address},CONTROLLER://{controller}\nadvertised.listeners=PLAINTEXT://{address}\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\nlog.dirs={}\n\
         offsets.topic.replication.factor=1\ntransaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\nauto.create.topics.enable=false\nmessage.max.bytes=16777216\n",
        folder.join("kafka").display()
    );
    if flush {
        text.push_str("log.flush.interval.messages=1\n");
    }
    std::fs::write(&config, text).doing(|| format!("writing {}", config.display()))?;
    let jars = jar.parent().unwrap_or(Path::new("/"));
    let mut command = Command::new("sh");
    command.arg("-c").arg(START).arg(jars).arg(config).env("LOG_DIR", folder);
    Ok((command, address))
}

/// Whether a broker answers here.
#[must_use]
pub fn answers(address: SocketAddr) -> bool {
    let asked = Connection::open(address).and_then(|mut connection| {
        let correlation = connection.correlate();
        connection.ask(Writer::request(Api::Versions, correlation))
    });
    asked.is_ok()
}

/// One run.
#[derive(Debug)]
pub struct Session<'a> {
    run: Run<'a>,
    topic: String,
    /// Batches, and where their marks are: one for each of the workload's requests.
    batches: Vec<(Vec<u8>, Vec<usize>)>,
}

impl<'a> Session<'a> {
    /// Creates the topic, once Kafka is warm.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    pub fn open(run: Run<'a>) -> Result<Self> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        let batches = run.values.requests().iter().map(|values| wire::batch(values, now_ms)).collect();
        let topic = format!("bench-{:016x}", run.number);
        let this = Self { run, topic, batches };
        this.warm_up()?;
        create(&mut Connection::open(run.address)?, &this.topic, run.workload.topic.partitions)?;
        Ok(this)
    }

    /// Sends requests of the run's kind to a topic of their own.
    fn warm_up(&self) -> Result<()> {
        let topic = format!("{}-warm-up", self.topic);
        let mut connection = Connection::open(self.run.address)?;
        create(&mut connection, &topic, 1)?;
        let mut batch = self.batches.first().map(|(batch, _)| batch.clone()).unwrap_or_default();
        seal(&mut batch);
        let began = Instant::now();
        while began.elapsed() < WARM_UP {
            let correlation = connection.correlate();
            let mut request = produce(correlation, &topic, 0, batch.len()).finish(batch.len());
            request.extend_from_slice(&batch);
            let answer = connection.exchange(&request)?;
            produced(&answer)?.map_err(|code| Error::Peer(format!("error {code} while warming up")))?;
        }
        delete(&mut connection, &topic)
    }
}

/// Creates a topic and waits until each partition is led.
fn create(connection: &mut Connection, topic: &str, partitions: u32) -> Result<()> {
    let mut request = Writer::request(Api::CreateTopics, connection.correlate());
    request.i32(1).string(topic).i32(i32::try_from(partitions).unwrap_or(i32::MAX)).i16(1).i32(0).i32(0);
    request.i32(30_000).i8(0);
    let answer = connection.ask(request)?;
    let mut reader = Reader(&answer);
    reader.take(8)?;
    reader.string()?;
    let error = reader.i16()?;
    if error != 0 {
        return Err(Error::Peer(format!("error {error} when creating {topic}")));
    }
    await_leaders(connection, topic, partitions)
}

/// Waits until each partition of a topic is led. What the metadata says of a leader comes before the leader knows it.
fn await_leaders(connection: &mut Connection, topic: &str, partitions: u32) -> Result<()> {
    let began = Instant::now();
    for partition in 0..partitions {
        while fetched(&fetch(connection, topic, partition, 0, Duration::ZERO)?).is_err() {
            if began.elapsed() > PATIENCE {
                return Err(Error::Peer(format!("{topic}-{partition} is not led after {PATIENCE:?}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// The answer to a fetch from one partition, which waits so long for records.
fn fetch(
    connection: &mut Connection,
    topic: &str,
    partition: u32,
    offset: u64,
    wait: Duration,
) -> Result<Vec<u8>> {
    let mut request = Writer::request(Api::Fetch, connection.correlate());
    request
        .i32(-1)
        .i32(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
        .i32(1)
        .i32(FETCH_BYTES)
        .i8(0)
        .i32(1)
        .string(topic)
        .i32(1);
    request.i32(partition.cast_signed()).i64(i64::try_from(offset).unwrap_or(i64::MAX)).i32(FETCH_BYTES);
    connection.ask(request)
}

fn delete(connection: &mut Connection, topic: &str) -> Result<()> {
    let mut request = Writer::request(Api::DeleteTopics, connection.correlate());
    request.i32(1).string(topic).i32(30_000);
    connection.ask(request).map(drop)
}

/// The beginning of a request for one partition; its batch, of so many bytes, follows.
fn produce(correlation: i32, topic: &str, partition: u32, batch_bytes: usize) -> Writer {
    let mut request = Writer::request(Api::Produce, correlation);
    request.i16(-1).i16(-1).i32(30_000).i32(1).string(topic).i32(1);
    request.i32(partition.cast_signed()).i32(i32::try_from(batch_bytes).unwrap_or(i32::MAX));
    request
}

/// The base offset that an answer to it tells, or its error.
fn produced(answer: &[u8]) -> Result<std::result::Result<u64, i16>> {
    let mut reader = Reader(answer);
    reader.i32()?;
    reader.string()?;
    reader.take(8)?;
    let (error, base) = (reader.i16()?, reader.i64()?);
    Ok(if error == 0 { Ok(base.cast_unsigned()) } else { Err(error) })
}

/// Makes a batch's checksum right.
fn seal(batch: &mut [u8]) {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, &batch[CRC_FROM..]);
    let crc = u32::try_from(crc).unwrap_or(0);
    batch[CRC_AT..CRC_FROM].copy_from_slice(&crc.to_be_bytes());
}

impl super::Session for Session<'_> {
    fn drive(&self, plan: &Plan, window: &mut dyn Window) -> Result<(Outcome, Vec<Ledger>)> {
        #[cfg(feature = "rdkafka")]
        if self.run.driver == crate::args::Driver::Client {
            let library = super::sending::Library::Rdkafka;
            return super::library::drive(library, &self.run, &self.topic, self.run.number, plan, window);
        }
        let mut connections = Vec::new();
        for number in 0..plan.load.connections() {
            let stream = Connection::open(self.run.address)?.stream;
            stream.set_read_timeout(None).doing(|| "setting a read timeout".to_owned())?;
            connections.push((stream, Producer::new(self, number)));
        }
        turns::drive(connections, plan, window, |producer| producer.turns.ledger)
    }

    fn tail(&self) -> Result<Box<dyn Tail + '_>> {
        let connection = Connection::open(self.run.address)?;
        let partitions = self.run.workload.topic.partitions;
        let next = (0..partitions).map(|partition| (partition, 0)).collect();
        Ok(Box::new(Following { connection, topic: &self.topic, wait: follow::POLL / partitions, next }))
    }

    fn moved(&mut self, address: SocketAddr) -> Result<()> {
        self.run.address = address;
        await_leaders(&mut Connection::open(address)?, &self.topic, self.run.workload.topic.partitions)
    }

    fn read_back(&mut self, checker: &mut Checker<'_>) -> Result<u64> {
        let mut connection = Connection::open(self.run.address)?;
        let mut bytes = 0;
        for partition in 0..self.run.workload.topic.partitions {
            checker.begin(partition, 0);
            let mut next = 0;
            loop {
                let answer = fetch(&mut connection, &self.topic, partition, next, Duration::ZERO)?;
                let (end, records) = fetched(&answer)?;
                let from = next;
                wire::records(records, |offset, value| {
                    // A fetch begins with the batch that holds the first record wanted.
                    if offset >= from {
                        bytes += value.len() as u64;
                        checker.record(offset, Some(value));
                        next = offset + 1;
                    }
                })?;
                if next >= end {
                    break;
                }
                if next == from {
                    return Err(Error::Peer(format!("nothing at offset {next} of {end}")));
                }
            }
            checker.end();
        }
        Ok(bytes)
    }

    fn remove(&mut self) -> Result<()> {
        delete(&mut Connection::open(self.run.address)?, &self.topic)
    }
}

/// A consumer of all partitions, one after the other.
#[derive(Debug)]
struct Following<'a> {
    connection: Connection,
    topic: &'a str,
    /// How long one partition is waited for.
    wait: Duration,
    /// Each partition and the offset that follows what was read.
    next: Vec<(u32, u64)>,
}

impl Tail for Following<'_> {
    fn poll(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<()> {
        for (partition, next) in &mut self.next {
            let answer = fetch(&mut self.connection, self.topic, *partition, *next, self.wait)?;
            let (_, records) = fetched(&answer)?;
            let from = *next;
            wire::records(records, |offset, value| {
                // A fetch begins with the batch that holds the first record wanted.
                if offset >= from {
                    each(value);
                    *next = offset + 1;
                }
            })?;
        }
        Ok(())
    }
}

/// The high watermark and the batches of a fetch of one partition.
fn fetched(answer: &[u8]) -> Result<(u64, &[u8])> {
    let mut reader = Reader(answer);
    reader.take(8)?;
    reader.string()?;
    reader.take(8)?;
    let (error, end) = (reader.i16()?, reader.i64()?);
    if error != 0 {
        return Err(Error::Peer(format!("error {error} when fetching")));
    }
    reader.i64()?;
    let aborted = reader.i32()?;
    reader.take(16 * usize::try_from(aborted).unwrap_or(0))?;
    Ok((end.cast_unsigned(), reader.bytes()?))
}

/// One connection's load, round the partitions, a request each.
#[derive(Debug)]
struct Producer<'a> {
    session: &'a Session<'a>,
    turns: Turns,
    /// Partition and sequence of what waits for an answer, in order.
    waiting: VecDeque<(u32, u64)>,
    /// Number of the first that waits.
    first: u64,
}

impl<'a> Producer<'a> {
    fn new(session: &'a Session<'a>, number: u32) -> Self {
        Self { session, turns: session.run.turns(number), waiting: VecDeque::new(), first: 0 }
    }
}

impl Protocol for Producer<'_> {
    fn request(&mut self, intended: Duration, out: &mut Outgoing) {
        let Session { topic, batches, .. } = self.session;
        let (mut mark, kind) = self.turns.next(intended);
        let (batch, marks) = &batches[kind];
        if batches.len() > 1 {
            out.payload.clear();
        }
        let partition = mark.partition;
        self.waiting.push_back((partition, mark.sequence));
        if out.payload.is_empty() {
            out.payload.extend_from_slice(batch);
        }
        for &at in marks {
            out.payload[at..at + MARK_BYTES].copy_from_slice(&mark.encode());
            mark.sequence += 1;
        }
        seal(&mut out.payload);
        // Kafka answers a connection's requests in their order: the name needs no meaning.
        out.head = produce(0, topic, partition, batch.len()).finish(batch.len());
    }

    fn answers(&mut self, input: &[u8], answered: &mut Vec<Answered>) -> Result<usize> {
        let mut taken = 0;
        while let Some((answer, end)) = message(&input[taken..])? {
            let Some((partition, sequence)) = self.waiting.pop_front() else {
                return Err(Error::Peer("an answer where no request waits".to_owned()));
            };
            let refused = match produced(answer.get(4..).unwrap_or_default())? {
                Ok(base) => {
                    self.turns.ledger.acknowledged(partition, sequence, base);
                    None
                }
                Err(code) => Some(format!("error {code}")),
            };
            answered.push(Answered { request: self.first, refused });
            self.first += 1;
            taken += end;
        }
        Ok(taken)
    }
}

/// The first whole message, without its length, and where the next one begins.
fn message(input: &[u8]) -> Result<Option<(&[u8], usize)>> {
    let mut reader = Reader(input);
    let Ok(length) = reader.i32() else { return Ok(None) };
    let length = bounded(length)?;
    Ok(reader.take(length).ok().map(|message| (message, 4 + length)))
}

fn bounded(length: i32) -> Result<usize> {
    let length = usize::try_from(length).ok().filter(|&length| length <= MESSAGE_BYTES_MAX);
    length.ok_or_else(|| Error::Peer("a message of Kafka's has a length that is none".to_owned()))
}

/// A connection that asks one thing at a time.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    asked: i32,
}

impl Connection {
    fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).doing(|| format!("connecting to {address}"))?;
        stream.set_read_timeout(Some(PATIENCE)).doing(|| "setting a read timeout".to_owned())?;
        stream.set_nodelay(true).doing(|| "setting no delay".to_owned())?;
        Ok(Self { stream, asked: 0 })
    }

    /// A name for the next request.
    const fn correlate(&mut self) -> i32 {
        self.asked += 1;
        self.asked
    }

    /// The answer to a request, without its header.
    fn ask(&mut self, request: Writer) -> Result<Vec<u8>> {
        self.exchange(&request.finish(0))
    }

    fn exchange(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        let doing = || "asking Kafka".to_owned();
        self.stream.write_all(request).doing(doing)?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).doing(doing)?;
        let mut answer = vec![0; bounded(i32::from_be_bytes(length))?];
        self.stream.read_exact(&mut answer).doing(doing)?;
        let mut reader = Reader(&answer);
        if reader.i32()? != self.asked {
            return Err(Error::Peer("an answer to another request".to_owned()));
        }
        Ok(answer.split_off(4))
    }
}
