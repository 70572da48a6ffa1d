//! Recycling: the file of a segment that left the log becomes the file of a new one.
//!
//! A flush into blocks that were written before changes no metadata of the file system, and costs a fraction of one into
//! blocks that were merely allocated. A file waits under its old name, where a restart sweeps it away as it does any file
//! that no log names; only the extent that makes the new segment gives it its new one.
//!
//! Invariants: what waits counts as allocated, and goes before an append is refused for want of room; a partition's folder
//! is empty of what waits before it goes. Nothing here decides what is true of a log: a file that is not reused, for
//! whatever reason, is one that is made anew.

use super::{Effects, Shard};
use crate::journal::SegmentId;
use crate::log::Segment;
use corelog_wire::ids::TopicPartition;
use std::collections::VecDeque;

/// A file that waits to be used again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retired {
    pub id: SegmentId,
    pub allocated: u64,
}

impl Shard {
    /// A segment left the log, and nobody writes to its file: it waits if there is room for it, or goes. Its bytes no longer
    /// count as allocated.
    pub(super) fn retire(&mut self, id: SegmentId, segment: &Segment, out: &mut Effects) {
        let waiting: u64 = self.retired.iter().map(|retired| retired.allocated).sum();
        let allocated = segment.allocated;
        // What was only allocated is no better than a new file.
        let mostly_written = segment.file_end >= allocated / 2;
        let fits = waiting + allocated <= self.config.recycled_bytes_max && self.has_disk_room(allocated);
        if mostly_written && fits && self.pause.is_none() {
            self.disk_bytes += allocated;
            self.retired.push_back(Retired { id, allocated });
        } else {
            out.removals.push(id);
        }
    }

    /// The partition has just opened a segment: a file that waits will be its file, if the segment before says that it will be
    /// filled.
    pub(super) fn reuse(&mut self, tp: TopicPartition) {
        let Some(partition) = self.partitions.get_mut(&tp) else { return };
        let before = partition.log.segments.iter().rev().nth(1).map_or(0, |segment| segment.bytes);
        let Some(index) = self.retired.iter().position(|retired| retired.allocated / 2 <= before) else {
            return;
        };
        let Some(Retired { id, allocated }) = self.retired.remove(index) else { return };
        if let Some(last) = partition.log.segments.last_mut() {
            last.made_of = Some(id);
            last.allocated = allocated;
            self.opening.insert(tp);
        }
    }

    /// Lets go of the file that waited longest; false if none does.
    pub(super) fn evict(&mut self, out: &mut Effects) -> bool {
        let Some(Retired { id, allocated }) = self.retired.pop_front() else { return false };
        self.disk_bytes -= allocated;
        out.removals.push(id);
        true
    }

    /// Lets go of a partition's files.
    pub(super) fn evict_of(&mut self, tp: TopicPartition, out: &mut Effects) {
        let (gone, kept): (VecDeque<Retired>, _) =
            self.retired.drain(..).partition(|retired| retired.id.tp == tp);
        self.retired = kept;
        for Retired { id, allocated } in gone {
            self.disk_bytes -= allocated;
            out.removals.push(id);
        }
    }
}
