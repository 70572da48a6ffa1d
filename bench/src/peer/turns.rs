//! One connection's way among the partitions, a request each: what its next request's records say, and what it was told.
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
use crate::schedule::Random;
use crate::tally::{Outcome, Plan, Window};
use crate::workload::Topic;

/// A producer's place among the partitions.
#[derive(Debug)]
pub(super) struct Turns {
    run: u64,
    producer: u32,
    way: Way,
    /// How many kinds of requests there are, and which is next.
    kinds: usize,
    kind: usize,
    pub(super) ledger: Ledger,
}

/// Which partition comes next.
#[derive(Debug)]
enum Way {
    Round {
        partitions: u32,
        next: u32,
    },
    /// By chance: up to where each partition reaches of all weights together.
    Skewed {
        reaches: Vec<f64>,
        random: Random,
    },
}

impl Turns {
    /// Begins at a partition of its own, so that producers do not all use the same one.
    pub(super) fn new(
        run: u64,
        producer: u32,
        topic: &Topic,
        records_per_request: u32,
        kinds: usize,
    ) -> Self {
        let ledger = Ledger::new(records_per_request);
        let partitions = topic.partitions;
        let way = if topic.skew == 0.0 {
            Way::Round { partitions, next: producer % partitions }
        } else {
            let weights = (1..=partitions).map(|number| f64::from(number).powf(-topic.skew));
            let reaches = weights.scan(0.0, |sum, weight| {
                *sum += weight;
                Some(*sum)
            });
            Way::Skewed { reaches: reaches.collect(), random: Random::new(run ^ u64::from(producer)) }
        };
        Self { run, producer, way, kinds, kind: producer as usize % kinds, ledger }
    }

    /// The mark of the next request's first record, noted as sent, and which of the workload's requests it is.
    pub(super) fn next(&mut self, intended: Duration) -> (Mark, usize) {
        let partition = self.way.next();
        let sequence = self.ledger.sent(partition);
        let intended_ns = nanoseconds(intended);
        let kind = self.kind;
        self.kind = (kind + 1) % self.kinds;
        (Mark { run: self.run, producer: self.producer, partition, sequence, intended_ns }, kind)
    }
}

impl Way {
    fn next(&mut self) -> u32 {
        match self {
            Self::Round { partitions, next } => {
                let partition = *next;
                *next = (partition + 1) % *partitions;
                partition
            }
            Self::Skewed { reaches, random } => {
                let all = reaches.last().copied().unwrap_or_default();
                let at = random.unit() * all;
                let partition = reaches.partition_point(|reach| *reach <= at).min(reaches.len() - 1);
                u32::try_from(partition).unwrap_or_default()
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(partitions: u32, skew: f64) -> Topic {
        let text = format!("partitions = {partitions}\nskew = {skew:?}");
        toml::from_str(&text).unwrap()
    }

    fn counts(topic: &Topic, requests: u32) -> Vec<u32> {
        let mut turns = Turns::new(9, 1, topic, 1, 1);
        let mut counts = vec![0; topic.partitions as usize];
        for _ in 0..requests {
            counts[turns.next(Duration::ZERO).0.partition as usize] += 1;
        }
        counts
    }

    #[test]
    fn without_a_skew_partitions_take_turns_from_one_of_the_producer_on() {
        assert_eq!(counts(&topic(3, 0.0), 7), [2, 3, 2]);
    }

    #[test]
    fn a_skew_is_that_of_zipf() {
        let counts = counts(&topic(100, 1.0), 100_000);
        // The first hundred terms of the harmonic series are 5.187 together.
        for (number, &count) in (1_u32..).zip(&counts).take(3) {
            let expected = 100_000.0 / 5.187 / f64::from(number);
            assert!((f64::from(count) / expected - 1.0).abs() < 0.05, "{number}: {count} of {expected}");
        }
        assert!(counts[99] > 0, "{counts:?}");
    }
}
