//! How far a consumer is behind in a partition, and how long until retention deletes what it has not read.

use super::Shard;
use super::partition::Partition;
use corelog_wire::ids::{Offset, TopicPartition};
use std::time::Duration;

/// Appending at the rate of this long ago goes on, as far as is reckoned here.
const RATE_WINDOW_MS: i64 = 60_000;

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
}

impl Shard {
    /// How far a consumer is behind that goes on at `offset`; at the start of the log if it has none. None for a partition
    /// that is not here.
    #[must_use]
    pub fn lag(&self, tp: TopicPartition, offset: Option<Offset>, now_ms: i64) -> Option<PartitionLag> {
        let partition = self.partitions.get(&tp)?;
        let (log_start, high_watermark) = (partition.log.log_start(), partition.high_watermark());
        let next = offset.map_or(log_start, |offset| offset.max(log_start));
        let nothing =
            PartitionLag { log_start, high_watermark, bytes: 0, behind: Duration::ZERO, overtaken_in: None };
        if next >= high_watermark {
            return Some(nothing);
        }
        let Some(unread) = partition.log.ages.unread(next, &partition.log.segments) else {
            return Some(nothing);
        };
        let is_overtaken = offset.is_some_and(|offset| offset < log_start);
        Some(PartitionLag {
            bytes: unread.bytes,
            behind: millis(now_ms.saturating_sub(unread.since_ms)),
            overtaken_in: if is_overtaken {
                Some(Duration::ZERO)
            } else {
                overtaken_in(partition, next, now_ms)
            },
            ..nothing
        })
    }
}

/// How long until the segment that holds `next` goes.
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

fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
