//! Compaction of many updates of few keys: what producers and readers of the end notice of it, and whether what is left is right.
//!
//! Called by `main`. A topic of one partition is filled, then single updates go on at an even rate while somebody reads them at
//! the end; phases are measured before compaction is switched on and while it runs. In the end everything that is left is read
//! and held against the newest update of each key, which is known here. Both loads are open loops.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use corelog_wire::batch::{BatchFields, BodyCheck, StoredBatches};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Kind;
use corelog_wire::ids::{Offset, TopicId, TopicPartition};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{
    Acks, AlterTopicAnswer, AlterTopicRequest, DescribeTopicAnswer, DescribeTopicRequest, FetchAnswer,
    FetchRequest, FetchRow, ProduceRequest, ProduceRow, Request,
};
use corelog_wire::records::{Record, Records, RecordsBuilder};
use hdrhistogram::Histogram;

use crate::args::CompactionArguments;
use crate::broker::{Broker, Start};
use crate::error::{Error, Result};
use crate::line::{closed_loop, median, open_loop, percentiles};
use crate::measure::{histogram, nanoseconds};
use crate::peer::Peer;
use crate::peer::corelog::Connection;
use crate::stage;

const TOPIC: &str = "accounts";
const VALUE_BYTES: usize = 1_000;
/// Updates in a request, when the topic is filled.
const FILL_RECORDS: u64 = 128;
const FILL_WINDOW: usize = 64;
const FETCH_BYTES: u32 = 8 << 20;
/// Compaction is over when the topic has shrunk no more for so many phases.
const QUIET_PHASES: u32 = 2;
/// How long it may take.
const PATIENCE: Duration = Duration::from_mins(30);

/// Measures; whether what is left is right.
///
/// # Errors
/// [`Error`].
pub fn run(arguments: &CompactionArguments) -> Result<bool> {
    let folder = stage::folder(&arguments.place)?;
    let (broker_place, generator_place) = stage::thread_places(&arguments.place);
    let program = Peer::Corelog.program(arguments.broker_bin.as_deref())?;
    let start = Start { peer: Peer::Corelog, program, arguments: Vec::new(), folder, place: broker_place };
    let broker = Broker::start(&start)?;
    generator_place.take()?;
    let measured = measure(&broker, arguments);
    broker.stop()?;
    measured
}

fn measure(broker: &Broker, arguments: &CompactionArguments) -> Result<bool> {
    let address = broker.address();
    let (mut connection, _) = Connection::open(address)?;
    let topic = connection.create_topic(TOPIC, 1, Vec::new())?;
    let updates = Updates::new(topic, arguments.keys);
    println!(
        "{} MiB of updates of {} keys, {VALUE_BYTES} bytes each; durability: disk; {}",
        arguments.fill,
        arguments.keys,
        stage::pinning(&arguments.place)
    );
    let began = Instant::now();
    let requests = (arguments.fill << 20) / (FILL_RECORDS * VALUE_BYTES as u64);
    closed_loop(address, requests, FILL_WINDOW, |_| updates.next(FILL_RECORDS))?;
    println!("filled in {:.0} s", began.elapsed().as_secs_f64());

    let tail = Tail::follow(address, updates.tp())?;
    let phase = stage::seconds(arguments.seconds)?;
    let measure = || -> Result<[[f64; 3]; 2]> {
        tail.take();
        let produced = open_loop(address, arguments.produce_rate, phase, |_| updates.next(1))?;
        Ok([percentiles(&produced), percentiles(&tail.take())])
    };
    let before = (0..arguments.repeat).map(|_| measure()).collect::<Result<Vec<_>>>()?;
    let bytes_before = bytes(&mut connection)?;
    switch_on(&mut connection)?;
    let began = Instant::now();
    let (mut during, mut least, mut quiet) = (Vec::new(), bytes_before, 0);
    let mut took = Duration::ZERO;
    while quiet < QUIET_PHASES || during.len() < arguments.repeat as usize {
        let measured = measure()?;
        let now = bytes(&mut connection)?;
        if now < least {
            (least, quiet, took) = (now, 0, began.elapsed());
            during.push(measured);
        } else if least < bytes_before {
            quiet += 1;
        } else {
            during.push(measured);
        }
        if least < bytes_before && quiet >= QUIET_PHASES {
            break;
        }
        if began.elapsed() > PATIENCE {
            return Err(Error::Peer(format!("{least} of {bytes_before} bytes are left after {PATIENCE:?}")));
        }
    }
    tail.stop()?;
    table(&before, &during);
    println!("\n{} MiB became {} MiB in {:.0} s", bytes_before >> 20, least >> 20, took.as_secs_f64());
    let (records, is_right) = updates.check(&mut connection)?;
    let verdict = if is_right { "each key has its newest" } else { "NOT what was produced last" };
    println!("{records} records of {} keys are left: {verdict}", arguments.keys);
    Ok(is_right)
}

fn table(before: &[[[f64; 3]; 2]], during: &[[[f64; 3]; 2]]) {
    println!(
        "\n{:36} {:>10} {:>10} {:>10}",
        format!("median of {} and {} phases", before.len(), during.len()),
        "p50 ms",
        "p99 ms",
        "max ms"
    );
    let of = |rounds: &[[[f64; 3]; 2]], what: usize, place: usize| {
        median(rounds.iter().map(|round| round[what][place]).collect())
    };
    for (what, name) in ["produce", "read at the end"].into_iter().enumerate() {
        for (rounds, when) in [(before, "before"), (during, "while it runs")] {
            let [p50, p99, max] = [0, 1, 2].map(|place| of(rounds, what, place));
            println!("{:36} {p50:>10.2} {p99:>10.2} {max:>10.2}", format!("{name}, {when}"));
        }
        println!("{name} p99, while over before: {:.2}", of(during, what, 1) / of(before, what, 1));
    }
}

/// The updates, and what each key has last.
struct Updates {
    topic: TopicId,
    /// Numbers of the newest updates, the first of all is 1.
    newest: Mutex<Newest>,
}

struct Newest {
    of: Vec<u64>,
    number: u64,
    random: u64,
}

impl Updates {
    fn new(topic: TopicId, keys: u64) -> Self {
        let keys = usize::try_from(keys).unwrap_or(usize::MAX);
        let newest = Newest { of: vec![0; keys], number: 0, random: 0x9E37_79B9_7F4A_7C15 };
        Self { topic, newest: Mutex::new(newest) }
    }

    const fn tp(&self) -> TopicPartition {
        TopicPartition::new(self.topic, 0)
    }

    /// A request with the next updates, of keys at random.
    fn next(&self, records: u64) -> (Request, Vec<u8>) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut builder =
            RecordsBuilder::with_capacity((VALUE_BYTES + 40) * usize::try_from(records).unwrap_or(1));
        let sent = nanoseconds(EPOCH.elapsed());
        let count = u32::try_from(records).unwrap_or(1);
        for delta in 0..count {
            newest.random ^= newest.random << 13;
            newest.random ^= newest.random >> 7;
            newest.random ^= newest.random << 17;
            let key = newest.random % newest.of.len() as u64;
            newest.number += 1;
            let number = newest.number;
            newest.of[usize::try_from(key).unwrap_or(0)] = number;
            let mut value = [7; VALUE_BYTES];
            value[..8].copy_from_slice(&number.to_le_bytes());
            value[8..16].copy_from_slice(&sent.to_le_bytes());
            // A record of this size is legal.
            let _ = builder.push(delta, 0, Some(&key.to_le_bytes()), Some(&value), &[]);
        }
        let tp = self.tp();
        let batch = builder.into_batch(&BatchFields::plain(count, 0), tp).to_vec();
        let bytes = u32::try_from(batch.len()).unwrap_or(0);
        let rows = vec![ProduceRow { tp, first_byte: 0, bytes }];
        (Request::Produce(ProduceRequest { acks: Acks::All, deadline_ms: 30_000, rows }), batch)
    }

    /// Reads what is left; how many records that is, and whether each key ends with its newest update.
    fn check(&self, connection: &mut Connection) -> Result<(u64, bool)> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = vec![0; newest.of.len()];
        let (mut records, mut next) = (0, 0);
        loop {
            let (end, bytes) = fetch(connection, self.tp(), next, 0)?;
            next = each(bytes, self.tp(), next, |record| {
                records += 1;
                let key = record.key.as_deref().and_then(|key| key.first_chunk().copied());
                let key = key
                    .map_or(usize::MAX, |key| usize::try_from(u64::from_le_bytes(key)).unwrap_or(usize::MAX));
                if let Some(found) = found.get_mut(key) {
                    *found = number_at(record, 0);
                }
            })?;
            if next >= end {
                return Ok((records, found == newest.of));
            }
        }
    }
}

/// Times in values count from here.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Somebody who reads the end.
struct Tail {
    latencies: Arc<Mutex<Histogram<u64>>>,
    over: Arc<AtomicBool>,
    reading: thread::JoinHandle<Result<()>>,
}

impl Tail {
    fn follow(address: SocketAddr, tp: TopicPartition) -> Result<Self> {
        let (mut connection, _) = Connection::open(address)?;
        let (mut next, _) = fetch(&mut connection, tp, u64::MAX, 0)?;
        let (latencies, over) = (Arc::new(Mutex::new(histogram())), Arc::new(AtomicBool::new(false)));
        let (shared, stopped) = (Arc::clone(&latencies), Arc::clone(&over));
        let reading = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let (_, bytes) = fetch(&mut connection, tp, next, 100)?;
                let now = nanoseconds(EPOCH.elapsed());
                let mut latencies = shared.lock().unwrap_or_else(PoisonError::into_inner);
                next = each(bytes, tp, next, |record| {
                    latencies.saturating_record(now.saturating_sub(number_at(record, 8)));
                })?;
            }
            Ok(())
        });
        Ok(Self { latencies, over, reading })
    }

    /// What came since the last time.
    fn take(&self) -> Histogram<u64> {
        std::mem::replace(&mut self.latencies.lock().unwrap_or_else(PoisonError::into_inner), histogram())
    }

    fn stop(self) -> Result<()> {
        self.over.store(true, Ordering::Relaxed);
        self.reading.join().map_err(|_| Error::Peer("the reader at the end ended early".to_owned()))?
    }
}

/// The high watermark, and the batches from an offset on; none from the last there can be.
fn fetch(connection: &mut Connection, tp: TopicPartition, from: u64, wait_ms: u32) -> Result<(u64, Bytes)> {
    let row = FetchRow { tp, offset: Offset::new(from), max_bytes: FETCH_BYTES, leader_epoch: None };
    let (rows, filter) = (vec![row], TagFilter::ALL);
    let request = FetchRequest { max_wait_ms: wait_ms, min_bytes: 1, max_bytes: FETCH_BYTES, rows, filter };
    let (header, payload) = connection.ask(Kind::Fetch, &request.encode())?;
    let answer = FetchAnswer::decode(&header).map_err(|error| Error::Peer(error.to_string()))?;
    let [row] = &answer.rows[..] else {
        return Err(Error::Peer("not the row that was asked for".to_owned()));
    };
    match row.error {
        ErrorCode::None => Ok((row.high_watermark.get(), payload)),
        ErrorCode::OffsetOutOfRange if from == u64::MAX => Ok((row.high_watermark.get(), Bytes::new())),
        error => Err(Error::Peer(format!("a fetch from {from}: {error}"))),
    }
}

/// Every record from an offset on; gives the offset after them. None may be missing between two batches.
fn each(bytes: Bytes, tp: TopicPartition, from: u64, mut take: impl FnMut(&Record)) -> Result<u64> {
    let peer = |what: String| Error::Peer(what);
    let mut next = from;
    for batch in StoredBatches::new(bytes, tp, BodyCheck::Verify) {
        let batch = batch.map_err(|error| peer(error.to_string()))?;
        let base = batch.stamp().map_or(0, |stamp| stamp.base_offset.get());
        if base > next {
            return Err(peer(format!("offset {next} is missing")));
        }
        for record in Records::new(batch.body(), batch.header().record_count) {
            let record = record.map_err(|error| peer(error.to_string()))?;
            if base + u64::from(record.offset_delta) >= from {
                take(&record);
            }
        }
        next = base + u64::from(batch.header().last_offset_delta) + 1;
    }
    Ok(next)
}

fn number_at(record: &Record, at: usize) -> u64 {
    let value = record.value.as_deref().and_then(|value| value.get(at..)?.first_chunk().copied());
    value.map_or(0, u64::from_le_bytes)
}

/// Bytes of the topic.
fn bytes(connection: &mut Connection) -> Result<u64> {
    let request = DescribeTopicRequest { name: TOPIC.to_owned() };
    let (header, _) = connection.ask(Kind::DescribeTopic, &request.encode())?;
    let answer = DescribeTopicAnswer::decode(&header).map_err(|error| Error::Peer(error.to_string()))?;
    Ok(answer.partitions.iter().map(|partition| partition.bytes).sum())
}

fn switch_on(connection: &mut Connection) -> Result<()> {
    let config = vec![("cleanup_policy".to_owned(), Some("compact".to_owned()))];
    let request = AlterTopicRequest { name: TOPIC.to_owned(), config, partitions: None };
    let (header, _) = connection.ask(Kind::AlterTopic, &request.encode())?;
    AlterTopicAnswer::decode(&header).map_err(|error| Error::Peer(error.to_string())).map(drop)
}
