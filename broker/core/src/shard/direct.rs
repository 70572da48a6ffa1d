//! The direct path: the batches of a large stream go to their segment alone, and the journal holds only their headers.
//!
//! A commit whose batches are direct is written to the ring only after they are flushed in their segments, so that its entries
//! prove them. Everything else is as for any commit: its place in the ring is its place in the log, and proofs come in order.
//! A partition goes direct when what waits of it is large, the file of its open segment has blocks that were written before,
//! and nothing of it is in the journal alone: a segment holds a log in its order. What is in the way is destaged at once, and
//! the partition's batches wait for that.
//!
//! Invariants: a direct write goes into a file that is there and long enough; no extent of a partition is under way beside its
//! direct writes. A file is not removed or used again while one is, because the entry that makes it needless comes later in
//! the journal than what is written to it, and is proven later.

use super::Shard;
use crate::journal::{Commit, DirectFile, DirectPlan, SegmentUse};
use crate::limits::{BLOCK, DIRECT_AGAIN_SHARE, DIRECT_BYTES_MIN, DIRECT_SHARE};
use corelog_wire::ids::TopicPartition;
use std::collections::BTreeMap;

impl Shard {
    /// What the next commit does with the streams that wait.
    pub(super) fn direct_plan(&mut self) -> DirectPlan {
        let mut plan = DirectPlan::default();
        self.held.clear();
        let any = !self.streams.is_empty() || !self.opening.is_empty();
        let may = any && self.ring.may_cut() && self.pause.is_none() && !self.draining;
        let enough = DIRECT_BYTES_MIN.min(self.ring.bytes() / DIRECT_SHARE);
        let enough_again = enough / DIRECT_AGAIN_SHARE;
        if !may || self.ring.pending_bytes() < enough_again {
            return plan;
        }
        let mut waiting: BTreeMap<TopicPartition, Vec<(SegmentUse, u64)>> = BTreeMap::new();
        for ((tp, segment_use), bytes) in self.ring.waiting_by_segment() {
            waiting.entry(tp).or_default().push((segment_use, bytes));
        }
        for (tp, segments) in waiting {
            let (opens, streams) = (self.opening.contains(&tp), self.streams.contains(&tp));
            let Some(partition) = self.partitions.get(&tp).filter(|partition| !partition.removing) else {
                continue;
            };
            let (Some(segment), [(segment_use, bytes)]) = (partition.log.segments.last(), &segments[..])
            else {
                continue;
            };
            let enough = if partition.direct { enough_again } else { enough };
            if !(opens || streams) || *segment_use != segment.segment_use || *bytes < enough {
                continue;
            }
            let alone = partition.undestaged.is_none() && partition.extent.is_none();
            if streams && (alone || cfg!(mutant = "direct_overtakes_the_journal")) {
                let file = DirectFile {
                    segment: segment.id(tp),
                    next: segment.assigned_end,
                    until: segment.allocated,
                };
                plan.files.insert((tp, *segment_use), file);
            } else if !alone && self.ring.is_roomy() {
                self.held.insert(tp);
            }
        }
        plan.held.clone_from(&self.held);
        plan
    }

    /// Notes what of a commit goes to segments alone.
    pub(super) fn write_direct(&mut self, commit: &Commit) {
        for write in &commit.direct {
            let id = write.segment;
            let segment = self
                .partitions
                .get_mut(&id.tp)
                .and_then(|partition| partition.log.segments.find_mut(id.base, id.segment_use));
            if let Some(segment) = segment {
                segment.assigned_end = (write.file_position + write.bytes).next_multiple_of(BLOCK);
            }
        }
    }

    /// An extent of a partition is in its segment. If that made the file of the open segment, it is decided here whether large
    /// batches may go into it alone.
    pub(super) fn file_made(&mut self, tp: TopicPartition) {
        let last = self.partitions.get(&tp).and_then(|partition| partition.log.segments.last());
        let Some(last) = last.filter(|last| last.created) else { return };
        self.opening.remove(&tp);
        if last.written && !last.full {
            self.streams.insert(tp);
        }
    }
}
