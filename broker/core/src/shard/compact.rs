//! Compaction as the shard sees it: whose turn it is, and whether a file that was made takes the place of its segments.
//!
//! One round at a time. Its file counts only when an entry of the journal that says so is durable; until then readers and
//! every crash find the segments it was made of. So a round may end, or be forgotten, anywhere.
//!
//! A file is refused, and with it the rest of its round, when the log's start has moved into its segments meanwhile, or the
//! partition goes: tombstones may go only when what they hide has gone before.
//!
//! Files of compaction have uses from [`COMPACTED_USES`] on. What a crash left of a round has such a use too and is in no
//! log: the hands sweep it away before they begin a round.

use super::{Effects, Note, Shard};
use crate::compact;
use crate::journal::{CompactedEntry, Entry, SegmentUse};
use crate::limits::{COMPACTION_DIRTY_SHARE, COMPACTION_KEYS_MAX, COMPACTION_RETRY};
use crate::log::{Seal, Segment};
use crate::shard::partition::Partition;
use crate::time::Now;
use corelog_wire::ids::{Offset, TopicPartition};

/// Files of compaction have this use or a later one; others never come so far.
pub const COMPACTED_USES: SegmentUse = SegmentUse(1 << 31);

/// The round under way.
#[derive(Debug)]
pub(super) struct Compaction {
    tp: TopicPartition,
    /// Where the log started, or was about to, when it began.
    start: Offset,
    /// One of its files was refused: those to come are as well.
    refused: bool,
    /// Entries on their way to the journal.
    entries: u32,
    /// The hands are done with it; whether they came to its end.
    over: Option<bool>,
    bytes_before: u64,
    bytes_after: u64,
}

impl Shard {
    /// Begins a round where most is new, if none is under way.
    pub(super) fn compact(&mut self, now: Now, out: &mut Effects) {
        self.compaction_rests.retain(|_, until| *until > now.instant);
        if self.compaction.is_some() || self.draining || self.pause.is_some() {
            return;
        }
        let rests = |tp: &TopicPartition| self.compaction_rests.contains_key(tp);
        let due = self.partitions.iter().filter(|(tp, _)| !rests(tp)).filter_map(|(tp, partition)| {
            let (dirty, all) = due_bytes(partition, now.wall_ms)?;
            (dirty > 0 && dirty >= all / COMPACTION_DIRTY_SHARE).then_some((dirty, *tp))
        });
        let Some((_, tp)) = due.max() else { return };
        let Some(plan) =
            self.partitions.get(&tp).and_then(|partition| self.compaction_plan(partition, now.wall_ms))
        else {
            return;
        };
        // The largest file, before those that it takes the place of go.
        if !self.has_disk_room(plan.segment_bytes) {
            return;
        }
        let files = u32::try_from(plan.inputs.len()).unwrap_or(u32::MAX);
        self.compacted_use = SegmentUse(plan.first_use.0.saturating_add(files));
        let bytes_before = plan.inputs.iter().map(|input| input.bytes).sum();
        self.compaction = Some(Compaction {
            tp,
            start: plan.start,
            refused: false,
            entries: 0,
            over: None,
            bytes_before,
            bytes_after: 0,
        });
        out.compactions.push(plan);
    }

    fn compaction_plan(&self, partition: &Partition, now_ms: i64) -> Option<compact::Plan> {
        let config = partition.config.as_ref()?;
        let tp = partition.tp();
        let input = |segment: &Segment| compact::Input {
            segment: segment.id(tp),
            end: segment.end,
            file_end: segment.file_end,
            bytes: segment.bytes,
            last_append_ms: segment.last_append_ms,
        };
        let kept_ms = i64::try_from(config.delete_retention_ms).unwrap_or(i64::MAX);
        Some(compact::Plan {
            tp,
            inputs: eligible(partition, now_ms).map(input).collect(),
            start: partition.start_target,
            clean_end: partition.log.clean_end(),
            tombstones_before_ms: now_ms.saturating_sub(kept_ms),
            unread_from: partition.unread_from(),
            keys_max: COMPACTION_KEYS_MAX,
            segment_bytes: config.segment_bytes,
            first_use: SegmentUse(self.compacted_use.0 + 1),
            epochs: partition.log.epochs.entries().to_vec(),
        })
    }

    /// Whether a round is under way on a partition.
    pub(super) fn is_compacting(&self, tp: TopicPartition) -> bool {
        self.compaction.as_ref().is_some_and(|compaction| compaction.tp == tp)
    }

    /// A file is durable: its entry is queued, or it goes.
    pub(super) fn compacted(&mut self, entry: &CompactedEntry, out: &mut Effects) {
        let tp = entry.segment.tp;
        let Some(compaction) = self.compaction.as_mut().filter(|compaction| compaction.tp == tp) else {
            return;
        };
        let stays = self.partitions.get(&tp).is_some_and(|partition| {
            let start = partition.start_target;
            !partition.removing && (start == compaction.start || start <= entry.segment.base)
        });
        compaction.refused |= !stays && !cfg!(mutant = "compaction_takes_the_place_of_what_went");
        if compaction.refused || self.poisoned {
            out.removals.push(entry.segment);
            return;
        }
        compaction.bytes_after += entry.bytes;
        compaction.entries += 1;
        self.ring.push(Entry::Compacted(*entry));
        if cfg!(mutant = "compaction_before_its_entry") {
            self.replace(entry, out);
        }
    }

    /// The entry of a file is durable: it takes the place of its segments, and their files go.
    pub(super) fn compaction_proven(&mut self, now: Now, entry: &CompactedEntry, out: &mut Effects) {
        self.replace(entry, out);
        if let Some(compaction) = &mut self.compaction {
            compaction.entries -= 1;
            self.finish_compaction(now, out);
        }
    }

    fn replace(&mut self, entry: &CompactedEntry, out: &mut Effects) {
        let tp = entry.segment.tp;
        let Some(mut partition) = self.partitions.remove(&tp) else { return };
        let replaced = partition.log.compacted(entry);
        debug_assert!(replaced.is_ok(), "a compacted segment has no place in its log");
        if let Ok(gone) = replaced {
            self.disk_bytes += entry.file_end;
            if entry.end <= partition.start_target {
                self.disk_bytes_leaving += entry.file_end;
            }
            self.drop_files(&partition, gone, out);
        }
        self.partitions.insert(tp, partition);
    }

    /// The hands are done with a round.
    pub(super) fn compaction_over(&mut self, now: Now, tp: TopicPartition, done: bool, out: &mut Effects) {
        if let Some(compaction) = self.compaction.as_mut().filter(|compaction| compaction.tp == tp) {
            compaction.over = Some(done);
            self.finish_compaction(now, out);
        }
    }

    /// A round ends when the log has all of its files: the next one begins from there.
    fn finish_compaction(&mut self, now: Now, out: &mut Effects) {
        let ends = |compaction: &mut Compaction| compaction.over.is_some() && compaction.entries == 0;
        let Some(compaction) = self.compaction.take_if(ends) else { return };
        let tp = compaction.tp;
        if compaction.over == Some(true) && !compaction.refused {
            let bytes = (compaction.bytes_before, compaction.bytes_after);
            out.notes.push(Note::Compacted { tp, bytes });
        } else {
            self.compaction_rests.insert(tp, now.instant.after(COMPACTION_RETRY));
        }
        self.folder_goes(tp, out);
    }
}

/// Bytes that a round could make less, and those of all that it would read.
fn due_bytes(partition: &Partition, now_ms: i64) -> Option<(u64, u64)> {
    let clean_end = partition.log.clean_end();
    let config = partition.config.as_ref()?;
    if partition.epoch.is_none() || partition.removing || !config.cleanup_policy.compacts() {
        return None;
    }
    let (mut dirty, mut all) = (0, 0);
    for segment in eligible(partition, now_ms) {
        all += segment.bytes;
        if segment.end > clean_end {
            dirty += segment.bytes;
        }
    }
    Some((dirty, all))
}

/// The segments that may be compacted: from the log's start on, sealed, and old enough.
fn eligible(partition: &Partition, now_ms: i64) -> impl Iterator<Item = &Segment> {
    let log = &partition.log;
    let lag_ms = partition.config.as_ref().map_or(0, |config| config.min_compaction_lag_ms);
    let newest_ms = now_ms.saturating_sub(i64::try_from(lag_ms).unwrap_or(i64::MAX));
    let visible_end = partition.high_watermark();
    let before_last = log.segments.iter().len().saturating_sub(1);
    log.segments.iter().take(before_last).filter(|segment| segment.end > partition.start_target).take_while(
        move |segment| {
            segment.is_complete()
                && segment.created
                && segment.seal == Seal::Done
                && segment.end <= visible_end
                && segment.last_append_ms <= newest_ms
        },
    )
}
