//! What operators are shown, as plain data: a picture of the broker at one moment.
//!
//! Made by whoever can ask the shards (`gather` turns their reports into this), shown by `metrics` and `http`.
//! Invariant: it holds no handle to anything; taking it costs the shards one message each.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

/// Where the broker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Recovering; takes no requests yet.
    Starting,
    /// Serves.
    Ready,
    /// Finishing what it has accepted.
    Stopping,
}

/// What the administration asks.
#[derive(Debug)]
pub enum Question {
    /// A picture of everything.
    Picture(oneshot::Sender<Snapshot>),
    /// Whether the broker is well: a glance at each shard.
    Health(oneshot::Sender<Health>),
    /// The settings in force of one topic; none if there is no such topic.
    Settings {
        /// The topic's name.
        topic: String,
        /// Takes the answer.
        reply: oneshot::Sender<Option<Vec<SettingInfo>>>,
    },
    /// One consumer group; none if there is no such group.
    Group {
        /// Its name.
        name: String,
        /// Takes the answer.
        reply: oneshot::Sender<Option<GroupInfo>>,
    },
}

/// Where the administration gets what it shows.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Takes questions. Whoever answers leaves out shards that do not answer in time.
    pub questions: mpsc::Sender<Question>,
    /// Where the broker is in its life.
    pub phase: watch::Receiver<Phase>,
}

/// The broker at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// What it is.
    pub broker: BrokerInfo,
    /// Shards that answered.
    pub shards: Vec<ShardNumbers>,
    /// Shards that did not.
    pub silent: Vec<u16>,
    /// Topics, in the order of their names.
    pub topics: Vec<TopicInfo>,
    /// The first of its consumer groups, by name.
    pub groups: Vec<GroupInfo>,
    /// Whether there are more of them.
    pub groups_left_out: bool,
}

/// How the broker is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Shards that answered.
    pub shards: Vec<ShardHealth>,
    /// Shards that did not.
    pub silent: Vec<u16>,
    /// What else is wrong, in sentences.
    pub problems: Vec<String>,
}

/// How one shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardHealth {
    /// Its number.
    pub shard: u16,
    /// A write fault has stopped the log.
    pub poisoned: bool,
    /// The journal was found corrupt; nothing is appended.
    pub read_only: bool,
    /// The disk, or its budget, is full.
    pub disk_full: bool,
}

impl Snapshot {
    /// The same at a glance.
    #[must_use]
    pub fn health(&self) -> Health {
        let shard = |shard: &ShardNumbers| ShardHealth {
            shard: shard.shard,
            poisoned: shard.poisoned,
            read_only: shard.read_only,
            disk_full: shard.disk_full,
        };
        Health {
            shards: self.shards.iter().map(shard).collect(),
            silent: self.silent.clone(),
            problems: self.broker.problems.clone(),
        }
    }
}

/// What the broker is. The JSON of `/v1/broker`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BrokerInfo {
    /// Its number.
    pub id: u32,
    /// Its cluster's name.
    pub cluster: String,
    /// The program's version.
    pub version: String,
    /// Where clients connect.
    pub address: String,
    /// Where its data is.
    pub data_dir: String,
    /// How many shards it has.
    pub shards: u16,
    /// Milliseconds since it was started.
    pub uptime_ms: u64,
    /// Revision of the metadata it knows.
    pub metadata_revision: u64,
    /// What is wrong, in sentences; empty when nothing is.
    pub problems: Vec<String>,
}

/// A topic. The JSON of `/v1/topics/{name}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Replicas of each partition.
    pub replication_factor: u16,
    /// Its settings in force; left empty in a picture, which shows all topics.
    pub config: Vec<SettingInfo>,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionInfo>,
}

/// A setting of a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SettingInfo {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Whether the topic did not choose it.
    pub is_default: bool,
}

/// A partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PartitionInfo {
    /// Its number.
    pub partition: u32,
    /// Who leads it.
    pub leader: Option<u32>,
    /// In which epoch.
    pub leader_epoch: u32,
    /// The shard that has it.
    pub shard: u16,
    /// Who holds it.
    pub replicas: Vec<u32>,
    /// Who holds everything acknowledged.
    pub in_sync_replicas: Vec<u32>,
    /// Offsets, sizes and traffic; none when its shard did not answer.
    #[serde(flatten)]
    pub standing: Option<PartitionStanding>,
}

/// Where a partition stands and what went through it since the broker's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PartitionStanding {
    /// First offset that is there.
    pub log_start: u64,
    /// Offset after the last record a consumer may see.
    pub high_watermark: u64,
    /// Offset after the last record.
    pub log_end: u64,
    /// Bytes of all its batches.
    pub bytes: u64,
    /// Its segments.
    pub segments: u32,
    /// Records appended.
    pub records_in: u64,
    /// Bytes appended.
    pub bytes_in: u64,
    /// Records sent to readers.
    pub records_out: u64,
    /// Bytes sent to readers.
    pub bytes_out: u64,
}

/// A consumer group.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// How many members it has.
    pub members: usize,
    /// Where it is, by topic and partition.
    pub partitions: Vec<GroupPlace>,
}

/// Where a group is in a partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GroupPlace {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The member that holds it.
    pub member: Option<String>,
    /// The next record that the group has to read, if it committed anything.
    pub committed: Option<u64>,
    /// How far it is behind; none if nobody could be asked.
    pub lag: Option<LagNumbers>,
}

/// How far a group is behind in a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LagNumbers {
    /// Records that it has not read.
    pub records: u64,
    /// Their bytes, batches and all.
    pub bytes: u64,
    /// The age of the first of them, in seconds.
    pub seconds: f64,
    /// Time until retention deletes it, in seconds; none: never, as things are.
    pub overtaken_in_seconds: Option<f64>,
}

/// A budget of memory or disk: what is taken, and what may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetNumbers {
    /// What it is for.
    pub name: &'static str,
    /// What is taken.
    pub bytes: u64,
    /// What may be taken; none where another budget bounds it.
    pub bytes_max: Option<u64>,
}

/// The numbers of one shard. Counters count from the broker's start.
#[derive(Debug, Clone, Default)]
pub struct ShardNumbers {
    /// Its number.
    pub shard: u16,
    /// Time its executor was at work.
    pub busy: Duration,
    /// Partitions it has.
    pub partitions: u64,
    /// Journal bytes ever committed.
    pub journal_committed_bytes: u64,
    /// Journal bytes that a recovery would need.
    pub journal_used_bytes: u64,
    /// Size of the journal's ring.
    pub journal_bytes_max: u64,
    /// Journal bytes that wait for a commit.
    pub journal_pending_bytes: u64,
    /// Commits flushed.
    pub commits: u64,
    /// From handing a commit to the device to its flush.
    pub flush: Distribution,
    /// From a request read to its answer handed to the kernel, by kind.
    pub requests: Vec<(String, Distribution)>,
    /// Requests that wait for their answer.
    pub requests_in_flight: u64,
    /// Requests parked until a flush.
    pub produces_parked: u64,
    /// Requests parked until there are records.
    pub fetches_parked: u64,
    /// Requests forwarded to other shards.
    pub requests_forwarded: u64,
    /// Requests answered with `THROTTLED`.
    pub requests_throttled: u64,
    /// Requests nobody answered in time.
    pub requests_expired: u64,
    /// Fetched rows found in memory.
    pub tail_cache_hits: u64,
    /// Fetched rows read from segment files.
    pub tail_cache_misses: u64,
    /// Bytes sent from memory.
    pub tail_cache_hit_bytes: u64,
    /// Bytes sent from segment files.
    pub tail_cache_miss_bytes: u64,
    /// Bytes that compaction read.
    pub compaction_read_bytes: u64,
    /// Bytes that compaction wrote.
    pub compaction_written_bytes: u64,
    /// Memory by budget.
    pub memory: Vec<BudgetNumbers>,
    /// Connections open.
    pub connections: u64,
    /// Connections accepted.
    pub connections_accepted: u64,
    /// Connections ended, by cause.
    pub connections_closed: Vec<(&'static str, u64)>,
    /// Bytes received.
    pub network_received_bytes: u64,
    /// Bytes sent.
    pub network_sent_bytes: u64,
    /// Bytes of segment files.
    pub disk_bytes: u64,
    /// What they may take.
    pub disk_bytes_max: u64,
    /// Operations on files that failed.
    pub disk_failures: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// A write fault has stopped the log.
    pub poisoned: bool,
    /// The journal was found corrupt; nothing is appended.
    pub read_only: bool,
    /// The disk, or its budget, is full.
    pub disk_full: bool,
}

/// Upper bounds of the buckets of every latency, in seconds. The last bucket has none.
const BOUNDS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];

/// A distribution of durations in the buckets that metrics show.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distribution {
    /// How many there were.
    pub count: u64,
    /// Their sum in seconds.
    pub sum_seconds: f64,
    /// Upper bound in seconds and how many lie in the bucket; the last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
}

impl Distribution {
    /// From a histogram of microseconds.
    #[must_use]
    pub fn of_micros(histogram: &Histogram<u64>) -> Self {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let mut buckets: Vec<(f64, u64)> = bounds.map(|bound| (bound, 0)).collect();
        let mut sum_micros = 0_u128;
        for step in histogram.iter_recorded() {
            let (micros, count) = (step.value_iterated_to(), step.count_since_last_iteration());
            sum_micros += u128::from(micros) * u128::from(count);
            let seconds = Duration::from_micros(micros).as_secs_f64();
            if let Some(bucket) = buckets.iter_mut().find(|(bound, _)| seconds <= *bound) {
                bucket.1 += count;
            }
        }
        let sum = Duration::from_micros(u64::try_from(sum_micros).unwrap_or(u64::MAX));
        Self { count: histogram.len(), sum_seconds: sum.as_secs_f64(), buckets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_buckets() {
        let mut histogram = Histogram::new_with_bounds(1, 60_000_000, 2).unwrap();
        for micros in [1, 40, 900, 900, 2_000_000, 59_000_000] {
            histogram.record(micros).unwrap();
        }
        let distribution = Distribution::of_micros(&histogram);
        let filled: Vec<(f64, u64)> =
            distribution.buckets.iter().copied().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(0.000_05, 2), (0.001, 2), (2.5, 1), (f64::INFINITY, 1)]);
        assert_eq!(distribution.count, 6);
        assert!((60.9..61.7).contains(&distribution.sum_seconds), "{}", distribution.sum_seconds);
        assert_eq!(Distribution::of_micros(&Histogram::new(2).unwrap()).count, 0);
    }
}
