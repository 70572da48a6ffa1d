//! Consumers: they follow the load while it runs, for the time from an intended send to the consumer that has the record,
//! or drain what it left, for the throughput of reading.
//!
//! Called by `run`. Invariants: every consumer sees every acknowledged record; each producer's records of a partition come in
//! order and once; what is missing or displaced makes the run invalid. Knows no protocol: see [`Tail`].

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::measure::{Summary, histogram, nanoseconds};
use crate::payload::Mark;
use crate::peer::Session;
use crate::pin::ThreadPlace;

/// How long a consumer may have nothing after the load is over, when it has not everything.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one poll waits for records.
pub const POLL: Duration = Duration::from_millis(100);

/// One consumer's side of a peer's protocol. It begins where the topic does.
pub trait Tail: Send {
    /// Waits for records, [`POLL`] at most, and hands over their values, each partition's in order.
    ///
    /// # Errors
    /// [`Error::System`], [`Error::Peer`].
    fn poll(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<()>;
}

/// What a run's consumers saw.
#[derive(Clone, Debug, Serialize)]
pub struct Followed {
    /// How many they were.
    pub consumers: u32,
    /// Records that they had, together.
    pub records: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Acknowledged records that some consumer never had.
    pub missing: u64,
    /// Records that came twice, out of order, or were of no producer of the run.
    pub displaced: u64,
    /// From the intended time to the consumer, of records that were due within the measured window.
    pub end_to_end: Summary,
    /// The histogram, to be merged.
    #[serde(skip)]
    pub latencies: Histogram<u64>,
}

impl Followed {
    /// Whether every consumer had everything once and in order.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.missing == 0 && self.displaced == 0
    }
}

/// What the load and its consumers share.
#[derive(Debug)]
pub struct Load {
    run: u64,
    /// Intended times that count.
    window: std::ops::Range<u64>,
    started: OnceLock<Instant>,
    /// Records that each consumer is to have, once that is known.
    records: AtomicU64,
}

impl Load {
    /// Of a run that has not begun; intended times within `window` after its start count.
    #[must_use]
    pub fn new(run: u64, window: std::ops::Range<Duration>) -> Self {
        let window = nanoseconds(window.start)..nanoseconds(window.end);
        let records = AtomicU64::new(u64::MAX);
        Self { run, window, started: OnceLock::new(), records }
    }

    /// Intended times count from here.
    pub fn starts(&self, at: Instant) {
        self.started.get_or_init(|| at);
    }

    /// The load is over, and so many records were acknowledged.
    pub fn is_over(&self, acknowledged: u64) {
        self.records.store(acknowledged, Ordering::Release);
    }
}

/// Lets so many consumers read, each on a thread of its own at the same place, until all have what was acknowledged, so many
/// times.
///
/// # Errors
/// The first one's.
pub fn follow(
    session: &dyn Session,
    consumers: u32,
    rounds: u32,
    place: ThreadPlace,
    load: &Load,
) -> Result<Followed> {
    let tails = (0..consumers)
        .map(|_| (0..rounds).map(|_| session.tail()).collect::<Result<Vec<_>>>())
        .collect::<Result<Vec<_>>>()?;
    let each = tails.into_iter().map(|tails| {
        move || {
            place.take()?;
            let mut consumer = Consumer::new(load);
            tails.into_iter().try_for_each(|tail| consumer.read(tail, &|_| false))?;
            Ok(consumer)
        }
    });
    Ok(sum(together(each)?))
}

/// Lets so many consumers read from the begin to the end, again and again, until `enough`, which is told how many bytes of
/// values each poll brought. Each thread calls `begin` first.
///
/// # Errors
/// The first one's.
pub fn circle(
    session: &dyn Session,
    consumers: u32,
    begin: &(dyn Fn() -> Result<()> + Sync),
    load: &Load,
    enough: &(dyn Fn(u64) -> bool + Sync),
) -> Result<Followed> {
    let each = (0..consumers).map(|_| {
        || {
            begin()?;
            let mut consumer = Consumer::new(load);
            while !enough(0) {
                consumer.read(session.tail()?, enough)?;
            }
            Ok(consumer)
        }
    });
    Ok(sum(together(each)?))
}

/// Runs consumers, each on a thread of its own.
fn together<'a>(
    consumers: impl Iterator<Item = impl FnOnce() -> Result<Consumer<'a>> + Send>,
) -> Result<Vec<Consumer<'a>>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = consumers.map(|consumer| scope.spawn(consumer)).collect();
        let ended = || Err(Error::Setup("a consumer's thread ended".to_owned()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| ended())).collect()
    })
}

/// What consumers saw, together.
fn sum(seen: Vec<Consumer<'_>>) -> Followed {
    let consumers = u32::try_from(seen.len()).unwrap_or(u32::MAX);
    let mut latencies = histogram();
    let (mut records, mut bytes, mut missing, mut displaced) = (0, 0, 0, 0);
    for consumer in seen {
        records += consumer.records;
        bytes += consumer.bytes;
        missing += consumer.missing;
        displaced += consumer.displaced;
        // Cannot fail: all have the same bounds.
        _ = latencies.add(&consumer.latencies);
    }
    let end_to_end = Summary::of(&latencies);
    Followed { consumers, records, bytes, missing, displaced, end_to_end, latencies }
}

/// One consumer's accounts.
struct Consumer<'a> {
    load: &'a Load,
    /// The sequence that follows, by producer and partition.
    next: HashMap<(u32, u32), u64>,
    records: u64,
    bytes: u64,
    /// Of passes that ended because nothing came any more.
    missing: u64,
    displaced: u64,
    latencies: Histogram<u64>,
}

impl<'a> Consumer<'a> {
    fn new(load: &'a Load) -> Self {
        let (next, latencies) = (HashMap::new(), histogram());
        Self { load, next, records: 0, bytes: 0, missing: 0, displaced: 0, latencies }
    }

    /// Reads from the begin until it has what was acknowledged, or it is `enough`.
    fn read(&mut self, mut tail: Box<dyn Tail + '_>, enough: &dyn Fn(u64) -> bool) -> Result<()> {
        self.next.clear();
        let before = self.records;
        let mut last = Instant::now();
        loop {
            let expected = self.load.records.load(Ordering::Acquire);
            let is_over = expected < u64::MAX;
            let silent = is_over && last.elapsed() > PATIENCE;
            if silent {
                self.missing += expected.saturating_sub(self.records - before);
            }
            if silent || self.records - before >= expected {
                return Ok(());
            }
            let (records, bytes) = (self.records, self.bytes);
            tail.poll(&mut |value| self.saw(value))?;
            if enough(self.bytes - bytes) {
                return Ok(());
            }
            if self.records > records || !is_over {
                last = Instant::now();
            }
        }
    }

    fn saw(&mut self, value: &[u8]) {
        let Some(mark) = Mark::decode(value).filter(|mark| mark.run == self.load.run) else {
            self.displaced += 1;
            return;
        };
        // A batch that was refused leaves a gap: what is missing is found by counting.
        let next = self.next.entry((mark.producer, mark.partition)).or_default();
        if mark.sequence < *next {
            self.displaced += 1;
            return;
        }
        *next = mark.sequence + 1;
        self.records += 1;
        self.bytes += value.len() as u64;
        if self.load.window.contains(&mark.intended_ns)
            && let Some(started) = self.load.started.get()
        {
            let now = nanoseconds(started.elapsed());
            self.latencies.saturating_record(now.saturating_sub(mark.intended_ns));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(sequence: u64, intended_ns: u64) -> Vec<u8> {
        Mark { run: 7, producer: 0, partition: 0, sequence, intended_ns }.encode().to_vec()
    }

    fn load() -> Load {
        Load::new(7, Duration::from_nanos(100)..Duration::from_hours(1))
    }

    /// Hands over these records, one a poll.
    struct Scripted(Vec<Vec<u8>>);

    impl Tail for Scripted {
        fn poll(&mut self, each: &mut dyn FnMut(&[u8])) -> Result<()> {
            if self.0.is_empty() {
                return Err(Error::Peer("nothing is left".to_owned()));
            }
            each(&self.0.remove(0));
            Ok(())
        }
    }

    #[test]
    fn a_consumer_reads_until_it_has_what_was_acknowledged_and_no_longer() {
        let load = load();
        load.starts(Instant::now());
        load.is_over(3);
        let tail = Scripted((0..5).map(|sequence| value(sequence, 0)).collect());
        let mut consumer = Consumer::new(&load);
        consumer.read(Box::new(tail), &|_| false).unwrap();
        assert_eq!((consumer.records, consumer.displaced), (3, 0));
        // Another time, from the begin.
        let again = Scripted((0..3).map(|sequence| value(sequence, 0)).collect());
        consumer.read(Box::new(again), &|_| false).unwrap();
        assert_eq!((consumer.records, consumer.displaced), (6, 0));
    }

    /// A session whose tails hand over three records each.
    struct Three;

    impl Session for Three {
        fn drive(
            &self,
            _plan: &crate::tally::Plan,
            _window: &mut dyn crate::tally::Window,
        ) -> Result<(crate::tally::Outcome, Vec<crate::check::Ledger>)> {
            unreachable!("nothing is sent")
        }

        fn tail(&self) -> Result<Box<dyn Tail + '_>> {
            Ok(Box::new(Scripted((0..3).map(|sequence| value(sequence, 0)).collect())))
        }

        fn moved(&mut self, _address: std::net::SocketAddr) -> Result<()> {
            Ok(())
        }

        fn read_back(&mut self, _checker: &mut crate::check::Checker<'_>) -> Result<u64> {
            Ok(0)
        }

        fn remove(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn who_goes_in_circles_begins_anew_and_ends_when_it_is_enough() {
        let load = load();
        load.is_over(3);
        let polls = AtomicU64::new(0);
        // Two passes, and one record of a third.
        let enough = |bytes| {
            bytes > 0 && polls.fetch_add(1, Ordering::Relaxed) + 1 >= 7 || polls.load(Ordering::Relaxed) >= 7
        };
        let seen = circle(&Three, 1, &|| Ok(()), &load, &enough).unwrap();
        assert_eq!((seen.records, seen.missing, seen.displaced), (7, 0, 0));
    }

    #[test]
    fn what_comes_twice_late_or_from_elsewhere_is_displaced() {
        let load = load();
        let mut consumer = Consumer::new(&load);
        for sequence in [0, 1, 1, 5, 4] {
            consumer.saw(&value(sequence, 0));
        }
        consumer.saw(b"no mark");
        assert_eq!((consumer.records, consumer.displaced), (3, 3));
    }

    #[test]
    fn only_what_was_due_within_the_window_is_timed() {
        let load = load();
        load.starts(Instant::now());
        let mut consumer = Consumer::new(&load);
        consumer.saw(&value(0, 99));
        consumer.saw(&value(1, 100));
        assert_eq!((consumer.records, consumer.latencies.len()), (2, 1));
    }
}
