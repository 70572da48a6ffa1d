//! What a seed makes of a run.

use super::broker::RECORDS_MAX;
use crate::rng::Rng;
use corelog_client::CommitMode;
use corelog_wire::message::Assignor;
use std::time::Duration;

/// How long a record takes from its log to the user's end with it, at most on average.
const RECORD_MS: u64 = 12;

/// One run's weather.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed it was drawn from.
    pub seed: u64,
    /// Members at the start.
    pub members: usize,
    /// Members at a time.
    pub members_max: usize,
    /// Partitions of each topic.
    pub topics: Vec<u32>,
    /// When members commit.
    pub commit: CommitMode,
    /// Whether users want to hear of partitions that come and go.
    pub listens: bool,
    /// How partitions are spread.
    pub assignor: Assignor,
    /// Whether members have instance ids, several the same.
    pub statics: bool,
    /// Whether topics get more partitions.
    pub grows: bool,
    /// Session timeout.
    pub session_ms: u64,
    /// How long a user may be away.
    pub processing_ms: u64,
    /// How long the weather is bad.
    pub trouble_ms: u64,
    /// Mean time between two troubles.
    pub trouble_every_ms: u64,
    /// The coordinator dies in one of so many steps in which it wants something.
    pub restart_one_in: u64,
}

impl Plan {
    /// Draws the weather of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x706c_616e);
        let size = rng.below(20);
        let (members_max, partitions) = match size {
            0..14 => (1 + rng.below(6), 1 + rng.below(12)),
            14..19 => (1 + rng.below(10), 1 + rng.below(40)),
            _ => (1 + rng.below(20), 1 + rng.below(200)),
        };
        let topics = (1 + rng.below(3)).min(partitions);
        let mut shares = vec![1; topics as usize];
        for _ in topics..partitions {
            let topic = rng.below(topics) as usize;
            shares[topic] += 1;
        }
        let commit = match rng.below(10) {
            0..7 => CommitMode::After(Duration::from_millis(rng.pick(&[50, 200, 1_000]))),
            7 => CommitMode::Before,
            _ => CommitMode::Manual,
        };
        Self {
            seed,
            members: 1 + rng.below(members_max) as usize,
            members_max: members_max as usize,
            topics: shares,
            commit,
            listens: rng.one_in(3),
            assignor: if rng.one_in(4) { Assignor::Range } else { Assignor::Uniform },
            statics: rng.one_in(4),
            grows: rng.one_in(5),
            session_ms: rng.pick(&[500, 1_000, 2_000]),
            processing_ms: rng.pick(&[800, 2_000, 10_000]),
            trouble_ms: 8_000,
            trouble_every_ms: rng.pick(&[200, 500, 1_500]),
            restart_one_in: rng.pick(&[20, 100, 1_000]),
        }
    }

    /// How long everything may take to get done once the weather is calm.
    #[must_use]
    pub fn calm_ms(&self) -> u64 {
        let partitions: u64 = self.topics.iter().map(|&partitions| u64::from(partitions)).sum();
        3 * self.session_ms + 2 * self.processing_ms + 5_000 + partitions * RECORDS_MAX * RECORD_MS
    }

    /// Whether partitions are to be spread evenly.
    #[must_use]
    pub fn is_uniform(&self) -> bool {
        self.assignor == Assignor::Uniform
    }
}
