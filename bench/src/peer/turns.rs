//! One connection's way round the partitions, a request each: what its next request's records say, and what it was told.
//!
//! Called by the peers' producers. Invariant: sequences rise by the records of a request, apart for each partition. Knows no
//! protocol.

use std::net::TcpStream;
use std::time::Duration;

use crate::check::Ledger;
use crate::engine::{self, Protocol};
use crate::error::Result;
use crate::measure::nanoseconds;
use crate::payload::Mark;
use crate::tally::{Outcome, Plan, Window};

/// A producer's place among the partitions.
#[derive(Debug)]
pub(super) struct Turns {
    run: u64,
    producer: u32,
    partitions: u32,
    partition_next: u32,
    pub(super) ledger: Ledger,
}

impl Turns {
    /// Begins at a partition of its own, so that producers do not all use the same one.
    pub(super) fn new(run: u64, producer: u32, partitions: u32, records_per_request: u32) -> Self {
        let ledger = Ledger::new(records_per_request);
        Self { run, producer, partitions, partition_next: producer % partitions, ledger }
    }

    /// The mark of the next request's first record, noted as sent.
    pub(super) fn next(&mut self, intended: Duration) -> Mark {
        let partition = self.partition_next;
        self.partition_next = (partition + 1) % self.partitions;
        let sequence = self.ledger.sent(partition);
        let intended_ns = nanoseconds(intended);
        Mark { run: self.run, producer: self.producer, partition, sequence, intended_ns }
    }
}

/// Drives the load over connections that have said all that comes before it; gives what each producer was told.
///
/// # Errors
/// Those of [`engine::drive`].
pub(super) fn drive<P: Protocol>(
    connections: Vec<(TcpStream, P)>,
    plan: &Plan,
    window: &mut dyn Window,
    ledger: impl Fn(P) -> Ledger,
) -> Result<(Outcome, Vec<Ledger>)> {
    let (outcome, producers) = engine::drive(connections, plan, window)?;
    Ok((outcome, producers.into_iter().map(ledger).collect()))
}
