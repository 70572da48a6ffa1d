//! What the network hands of one shard count.
//!
//! Written only by that shard, read through a snapshot that may go anywhere. Invariant: counters only grow.

use corelog_wire::frame::Kind;
use hdrhistogram::Histogram;
use std::cell::{Cell, RefCell};
use std::time::Duration;

/// Latencies are kept in microseconds up to this, with two significant digits.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The client closed it between two frames.
    Client,
    /// The client closed it, or the network broke, in the middle of a frame or of an answer.
    Broken,
    /// What came is not this protocol, or damaged.
    Garbage,
    /// A request that could not be skipped was refused.
    Refused,
    /// No Hello in time.
    HelloDeadline,
    /// A frame was not complete in time.
    FrameDeadline,
    /// The client did not take its answers.
    WriteStall,
    /// Others needed the memory that an unfinished frame or answer held.
    Pressure,
    /// The shard has as many connections as it may.
    TooMany,
    /// The broker stops.
    ShuttingDown,
}

impl Cause {
    /// Every cause, in order.
    pub const ALL: [Self; 10] = [
        Self::Client,
        Self::Broken,
        Self::Garbage,
        Self::Refused,
        Self::HelloDeadline,
        Self::FrameDeadline,
        Self::WriteStall,
        Self::Pressure,
        Self::TooMany,
        Self::ShuttingDown,
    ];

    /// The name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Broken => "broken",
            Self::Garbage => "garbage",
            Self::Refused => "refused",
            Self::HelloDeadline => "hello_deadline",
            Self::FrameDeadline => "frame_deadline",
            Self::WriteStall => "write_stall",
            Self::Pressure => "pressure",
            Self::TooMany => "too_many",
            Self::ShuttingDown => "shutting_down",
        }
    }
}

/// Counters as they are at one moment.
#[derive(Clone, Debug)]
pub struct NetSnapshot {
    /// Connections open now.
    pub connections: u64,
    /// Connections accepted so far, those of other shards that were handed over here not included.
    pub accepted: u64,
    /// Connections handed over to the shard that their Hello named.
    pub handed_over: u64,
    /// Connections ended so far, by cause.
    pub closed: [(Cause, u64); Cause::ALL.len()],
    /// Times the system refused to accept.
    pub accept_faults: u64,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Requests that wait for their answer now.
    pub in_flight: u64,
    /// Requests forwarded to other shards so far.
    pub forwarded: u64,
    /// Requests refused so far with `THROTTLED`.
    pub throttled: u64,
    /// Requests refused so far because nobody answered within their deadline.
    pub expired: u64,
    /// Bytes of requests in memory, and their limit.
    pub input_bytes: (u64, u64),
    /// Bytes of answers not taken yet, and their limit.
    pub output_bytes: (u64, u64),
    /// From the last byte of a request read to the last byte of its answer handed to the kernel, in microseconds, by kind.
    pub latency_us: Vec<(Kind, Histogram<u64>)>,
}

/// The counters of one shard.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) accepted: Counter,
    pub(super) handed_over: Counter,
    pub(super) accept_faults: Counter,
    pub(super) bytes_in: Counter,
    pub(super) bytes_out: Counter,
    pub(super) forwarded: Counter,
    pub(super) throttled: Counter,
    pub(super) expired: Counter,
    closed: [Counter; Cause::ALL.len()],
    latency_us: RefCell<Vec<Histogram<u64>>>,
}

/// A number that grows.
#[derive(Debug, Default)]
pub(super) struct Counter(Cell<u64>);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.set(self.0.get().wrapping_add(more));
    }

    pub(super) fn add_len(&self, more: usize) {
        self.add(more as u64);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.get()
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 2)
                .unwrap_or_else(|_| unreachable!("1 to a minute at two digits is a valid histogram"))
        };
        Self {
            accepted: Counter::default(),
            handed_over: Counter::default(),
            accept_faults: Counter::default(),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            forwarded: Counter::default(),
            throttled: Counter::default(),
            expired: Counter::default(),
            closed: std::array::from_fn(|_| Counter::default()),
            latency_us: RefCell::new(Kind::ALL.iter().map(|_| histogram()).collect()),
        }
    }

    pub(super) fn closed(&self, cause: Cause) {
        self.closed[place(cause)].add(1);
    }

    pub(super) fn closes(&self) -> [(Cause, u64); Cause::ALL.len()] {
        std::array::from_fn(|index| (Cause::ALL[index], self.closed[index].get()))
    }

    pub(super) fn answered(&self, kind: Kind, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let histogram = &mut self.latency_us.borrow_mut()[kind.place()];
        histogram.saturating_record(took.max(1));
    }

    pub(super) fn latencies(&self) -> Vec<(Kind, Histogram<u64>)> {
        Kind::ALL.iter().copied().zip(self.latency_us.borrow().iter().cloned()).collect()
    }
}

fn place(cause: Cause) -> usize {
    Cause::ALL.iter().position(|each| *each == cause).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_causes_have_a_place_each() {
        let metrics = Metrics::new();
        for (index, kind) in Kind::ALL.iter().enumerate() {
            assert_eq!(kind.place(), index);
            metrics.answered(*kind, Duration::from_micros(100 * (index as u64 + 1)));
        }
        for (index, (kind, histogram)) in metrics.latencies().iter().enumerate() {
            assert_eq!((histogram.len(), *kind), (1, Kind::ALL[index]));
            assert!(histogram.max() >= 100 * (index as u64 + 1));
        }
        for cause in Cause::ALL {
            metrics.closed(cause);
        }
        assert_eq!(metrics.closes(), Cause::ALL.map(|cause| (cause, 1)));
    }
}
