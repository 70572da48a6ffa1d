//! What the hands count for the metrics of a shard.

use hdrhistogram::Histogram;
use std::cell::{Cell, RefCell};
use std::time::Duration;

/// Longest latency told apart; longer ones count as this.
const LATENCY_MICROS_MAX: u64 = 60_000_000;

/// Counts since the start of the shard.
#[derive(Debug)]
pub(super) struct Meters {
    pub(super) commits: Counter,
    pub(super) commit_bytes: Counter,
    pub(super) extents: Counter,
    pub(super) extent_bytes: Counter,
    pub(super) tail_reads: Counter,
    pub(super) tail_read_bytes: Counter,
    pub(super) cold_reads: Counter,
    pub(super) cold_read_bytes: Counter,
    /// Read from files for cold reads, whatever of it was sent.
    pub(super) cold_file_bytes: Counter,
    pub(super) compaction_read_bytes: Counter,
    pub(super) compaction_written_bytes: Counter,
    pub(super) failures: Counter,
    commit: RefCell<Histogram<u64>>,
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(super) struct Counter(Cell<u64>);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.set(self.0.get() + more);
    }
}

/// The counts at one moment; may leave the shard's thread.
#[derive(Clone, Debug)]
pub struct DiskSnapshot {
    /// Commits written.
    pub commits: u64,
    /// Their bytes.
    pub commit_bytes: u64,
    /// Extents written.
    pub extents: u64,
    /// Their bytes, without padding.
    pub extent_bytes: u64,
    /// Rows of fetches answered from memory.
    pub tail_reads: u64,
    /// Their bytes.
    pub tail_read_bytes: u64,
    /// Rows of fetches answered from segment files.
    pub cold_reads: u64,
    /// Their bytes.
    pub cold_read_bytes: u64,
    /// Bytes read from segment files for them.
    pub cold_file_bytes: u64,
    /// Bytes that compaction read from segment files.
    pub compaction_read_bytes: u64,
    /// Bytes that compaction wrote to files.
    pub compaction_written_bytes: u64,
    /// Operations on files that failed.
    pub failures: u64,
    /// Bytes of commits in memory.
    pub tail_bytes: u64,
    /// Bytes of buffers kept for later.
    pub idle_bytes: u64,
    /// Bytes of cold reads on their way to readers.
    pub cold_bytes_held: u64,
    /// Microseconds from handing a commit to the device to its flush.
    pub commit_micros: Histogram<u64>,
}

impl Meters {
    pub(super) fn new() -> Self {
        Self {
            commits: Counter::default(),
            commit_bytes: Counter::default(),
            extents: Counter::default(),
            extent_bytes: Counter::default(),
            tail_reads: Counter::default(),
            tail_read_bytes: Counter::default(),
            cold_reads: Counter::default(),
            cold_read_bytes: Counter::default(),
            cold_file_bytes: Counter::default(),
            compaction_read_bytes: Counter::default(),
            compaction_written_bytes: Counter::default(),
            failures: Counter::default(),
            commit: RefCell::new(histogram()),
        }
    }

    /// A commit is durable.
    pub(super) fn committed(&self, bytes: u64, took: Duration) {
        self.commits.add(1);
        self.commit_bytes.add(bytes);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.commit.borrow_mut().saturating_record(micros.min(LATENCY_MICROS_MAX));
    }

    /// The counts now; `[tail, idle, cold]` bytes are known to others.
    pub(super) fn snapshot(&self, [tail_bytes, idle_bytes, cold_bytes_held]: [u64; 3]) -> DiskSnapshot {
        DiskSnapshot {
            commits: self.commits.0.get(),
            commit_bytes: self.commit_bytes.0.get(),
            extents: self.extents.0.get(),
            extent_bytes: self.extent_bytes.0.get(),
            tail_reads: self.tail_reads.0.get(),
            tail_read_bytes: self.tail_read_bytes.0.get(),
            cold_reads: self.cold_reads.0.get(),
            cold_read_bytes: self.cold_read_bytes.0.get(),
            cold_file_bytes: self.cold_file_bytes.0.get(),
            compaction_read_bytes: self.compaction_read_bytes.0.get(),
            compaction_written_bytes: self.compaction_written_bytes.0.get(),
            failures: self.failures.0.get(),
            tail_bytes,
            idle_bytes,
            cold_bytes_held,
            commit_micros: self.commit.borrow().clone(),
        }
    }
}

/// Two digits, up to a minute.
fn histogram() -> Histogram<u64> {
    match Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 2) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("fixed bounds: {error}"),
    }
}
