//! How far a consumer is behind in a partition, and how long until retention deletes what it has not read.

use super::Shard;
use super::partition::Partition;
use crate::group::GroupName;
use corelog_wire::ids::{Offset, TopicPartition};
use std::time::Duration;

/// Appending at the rate of this long ago goes on, as far as is reckoned here.
const RATE_WINDOW_MS: i64 = 60_000;
/// See [`risk_within`]: one in so many.
const RISK_SHARE: u64 = 5;
/// See [`risk_within`].
const RISK_MAX: Duration = Duration::from_hours(1);

/// A consumer's place in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    /// Its group.
    pub group: GroupName,
    /// The partition.
    pub tp: TopicPartition,
    /// The next record that it reads; none: it has not come to any.
    pub next: Option<Offset>,
}

/// How far a consumer is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionLag {
    /// First offset that is there.
    pub log_start: Offset,
    /// Offset after the last record a consumer may see.
    pub high_watermark: Offset,
    /// Bytes of the batches that it has not read.
    pub bytes: u64,
    /// The age of the first record that it has not read; zero if it has read all.
    pub behind: Duration,
    /// Time until retention deletes that record, if things go on as they are; none: never.
    pub overtaken_in: Option<Duration>,
    /// Whether that is soon, beside how long records are kept.
    pub is_at_risk: bool,
}

impl Shard {
    /// How far a consumer is behind; one that has come to no record yet goes on at the start of the log. None for a partition
    /// that is not here.
    #[must_use]
    pub fn lag(&self, reader: &Reader, now_ms: i64) -> Option<PartitionLag> {
        let partition = self.partitions.get(&reader.tp)?;
        let (log_start, high_watermark) = (partition.log.log_start(), partition.high_watermark());
        let next = reader.next.map_or(log_start, |next| next.max(log_start));
        let nothing = PartitionLag {
            log_start,
            high_watermark,
            bytes: 0,
            behind: Duration::ZERO,
            overtaken_in: None,
            is_at_risk: false,
        };
        if next >= high_watermark {
            return Some(nothing);
        }
        let unread = partition.log.ages.unread(next, &partition.log.segments);
        let Some(unread) = unread else { return Some(nothing) };
        let is_overtaken = reader.next.is_some_and(|next| next < log_start);
        let left = if is_overtaken {
            Some(Duration::ZERO)
        } else if partition.protects(&reader.group) {
            None
        } else {
            overtaken_in(partition, next, now_ms)
        };
        Some(PartitionLag {
            bytes: unread.bytes,
            behind: millis(now_ms.saturating_sub(unread.since_ms)),
            overtaken_in: left,
            is_at_risk: left.is_some_and(|left| left <= risk_within(partition)),
            ..nothing
        })
    }
}

/// How long until the segment that holds `next` goes, if nobody holds it back.
fn overtaken_in(partition: &Partition, next: Offset, now_ms: i64) -> Option<Duration> {
    let (config, log) = (partition.config.as_ref()?, &partition.log);
    let segment = log.segments.holding(next)?;
    let by_time = config.retention_ms.map(|retention_ms| {
        let retention_ms = i64::try_from(retention_ms).unwrap_or(i64::MAX);
        millis(segment.last_append_ms.saturating_add(retention_ms).saturating_sub(now_ms))
    });
    let by_bytes = config.retention_bytes.and_then(|retention_bytes| {
        let later = log.segments.iter().filter(|later| later.base > segment.base);
        let room = retention_bytes.saturating_sub(later.map(|later| later.bytes).sum());
        let rate = log.ages.bytes_per_second(now_ms, RATE_WINDOW_MS).filter(|rate| *rate > 0)?;
        Some(Duration::from_secs(room / rate))
    });
    [by_time, by_bytes].into_iter().flatten().min()
}

/// From when on a consumer is at risk: a fifth of the time that records are kept, an hour at most.
fn risk_within(partition: &Partition) -> Duration {
    let retention_ms = partition.config.as_ref().and_then(|config| config.retention_ms);
    retention_ms.map_or(RISK_MAX, |kept| Duration::from_millis(kept / RISK_SHARE).min(RISK_MAX))
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
