//! Destaging: bytes leave the journal for their partition's segment, oldest first, and memory follows.
//!
//! An extent takes everything durable of one partition since its last extent. Its entry is queued only when the hands
//! reported it flushed, and the journal may forget its bytes only when that entry is durable. One extent per
//! partition is under way at a time, so extents are proven in offset order.

use super::partition::{ExtentUnderWay, Partition};
use super::{DiskFailure, Effects, ExtentBeingWritten, ExtentWrite, Make, Note, Pause, SegmentSeal, Shard};
use crate::journal::{Entry, ExtentEntry, Position, SegmentId};
use crate::limits::{
    BLOCK, DESTAGE_START_SHARE, DESTAGE_URGENT_DIVISOR, DESTAGE_URGENT_TIMES, DISK_FULL_RETRY,
    EXTENT_BYTES_FULL, EXTENT_BYTES_IN_FLIGHT_MAX, EXTENTS_IN_FLIGHT_MAX,
};
use crate::log::Seal;
use crate::segment::index_file;
use crate::time::Now;
use corelog_wire::ids::TopicPartition;
use std::collections::BTreeSet;

impl Shard {
    /// Starts extents while the ring is a quarter full of bytes that are in no segment.
    pub(super) fn destage(&mut self, out: &mut Effects) {
        if self.poisoned || self.pause.is_some_and(|pause| !pause.trying) {
            return;
        }
        while self.extents.len() < EXTENTS_IN_FLIGHT_MAX
            && self.extents.values().map(|extent| extent.bytes).sum::<u64>() < EXTENT_BYTES_IN_FLIGHT_MAX
        {
            let Some(tp) = self.next_to_destage() else { return };
            let Some(write) = self.extent_for(tp) else { return };
            if cfg!(mutant = "extent_entry_before_flush")
                && let Some(under_way) = self.partitions.get(&tp).and_then(|partition| partition.extent)
            {
                self.ring.push(Entry::Extent(under_way.entry));
            }
            self.extents.insert(write.segment, ExtentBeingWritten { bytes: write.bytes, doomed: false });
            out.extents.push(write);
        }
    }

    pub(super) fn extent_flushed(&mut self, segment: SegmentId, file_position: u64, out: &mut Effects) {
        self.extent_over(segment, out);
        let Some(partition) = self.partitions.get_mut(&segment.tp) else { return };
        let Some(under_way) =
            partition.extent.as_mut().filter(|extent| is_of(&extent.entry, segment, file_position))
        else {
            return;
        };
        under_way.flushed = true;
        let entry = under_way.entry;
        let allocate_to = under_way.allocate_to;
        let Some(file) = partition.log.segments.find_mut(segment.base, segment.segment_use) else {
            // Retention took the segment while the extent was being written.
            partition.extent = None;
            return;
        };
        let more = allocate_to.saturating_sub(file.allocated);
        self.disk_bytes += more;
        file.allocated = file.allocated.max(allocate_to);
        file.created = true;
        file.written |= file.made_of.take().is_some();
        if !self.poisoned && !cfg!(mutant = "extent_entry_before_flush") {
            self.ring.push(Entry::Extent(entry));
        }
        self.file_made(segment.tp);
        if more > 0 {
            self.disk_has_room(out);
        }
    }

    pub(super) fn extent_failed(
        &mut self,
        now: Now,
        segment: SegmentId,
        file_position: u64,
        cause: DiskFailure,
        out: &mut Effects,
    ) {
        self.extent_over(segment, out);
        if let Some(partition) = self.partitions.get_mut(&segment.tp)
            && partition.extent.is_some_and(|extent| is_of(&extent.entry, segment, file_position))
        {
            partition.extent = None;
        }
        match cause {
            DiskFailure::Fault => self.poison("a segment write failed", out),
            DiskFailure::NoSpace => self.pause(now, true, out),
            DiskFailure::Busy => self.pause(now, false, out),
        }
    }

    /// Something found no room, or lacked something else. Nothing is damaged: it is tried again later.
    pub(super) fn pause(&mut self, now: Now, full: bool, out: &mut Effects) {
        let was_full = self.is_disk_full();
        let before = self.pause;
        self.pause = Some(Pause {
            full: full || was_full,
            retry_at: now.instant.after(DISK_FULL_RETRY),
            trying: false,
            // Several may fail in one try.
            dropped: before.is_some_and(|before| !before.trying && before.dropped),
        });
        if full {
            while self.evict(out) {}
        }
        if full && !was_full {
            out.notes.push(Note::DiskFull);
        }
    }

    /// Whether the file system was full at the last try.
    pub(super) fn is_disk_full(&self) -> bool {
        self.pause.is_some_and(|pause| pause.full)
    }

    /// What was tried again and needed room has found it.
    fn disk_has_room(&mut self, out: &mut Effects) {
        if let Some(pause) = self.pause.take_if(|pause| pause.trying)
            && pause.full
        {
            out.notes.push(Note::DiskRoom);
        }
    }

    /// Lets what waits be tried again. With nothing left that does, it is over.
    pub(super) fn retry_after_pause(&mut self, now: Now, out: &mut Effects) {
        let idle = self.extents.is_empty() && self.capture.is_none() && self.next_to_destage().is_none();
        let Some(pause) = &mut self.pause else { return };
        if pause.trying && idle && !self.checkpoint_waits {
            self.disk_has_room(out);
        } else if now.instant >= pause.retry_at {
            pause.trying = true;
            self.checkpoint_waits = false;
        }
    }

    /// The hands are done with an extent; a segment that left the log meanwhile loses its file now.
    fn extent_over(&mut self, segment: SegmentId, out: &mut Effects) {
        if !self.extents.remove(&segment).is_some_and(|extent| extent.doomed) {
            return;
        }
        out.removals.push(segment);
        self.folder_goes(segment.tp, out);
    }

    /// A partition that is gone loses its folder once nobody writes to it.
    pub(super) fn folder_goes(&mut self, tp: TopicPartition, out: &mut Effects) {
        let last = !self.extents.keys().any(|other| other.tp == tp) && !self.is_compacting(tp);
        if last && self.removed_meanwhile.remove(&tp) {
            out.removed.push(tp);
        }
    }

    /// The entry of an extent is durable.
    pub(super) fn extent_proven(&mut self, extent: &ExtentEntry, out: &mut Effects) {
        let tp = extent.segment.tp;
        let Some(partition) = self.partitions.get_mut(&tp) else { return };
        if partition.extent.is_some_and(|under_way| under_way.entry == *extent) {
            partition.extent = None;
        }
        let before = partition.undestaged_bytes();
        // A segment that retention took meanwhile has nothing left to prove.
        let known = partition.log.destaged(extent).is_ok();
        debug_assert!(
            known || extent.end <= partition.start_target,
            "an extent of an unknown segment was proven"
        );
        self.undestaged_bytes -= before - partition.undestaged_bytes();
        self.reindex_undestaged(tp);
        self.seal_complete(tp, out);
    }

    /// Asks for the index files of segments that take no more extents.
    pub(super) fn seal_complete(&mut self, tp: TopicPartition, out: &mut Effects) {
        let Some(partition) = self.partitions.get_mut(&tp) else { return };
        for segment in partition.log.segments.iter_mut() {
            let wanted = segment.is_complete() && segment.created && segment.index.is_some();
            if wanted && segment.seal == Seal::Open {
                segment.seal = Seal::UnderWay;
                let id = segment.id(tp);
                out.seals.push(SegmentSeal { segment: id, index_file: index_file(id, segment) });
            }
        }
    }

    /// An index file is in place, or could not be written: then the segment keeps in memory what would be in it.
    pub(super) fn index_written(&mut self, segment: SegmentId, written: bool) {
        let Some(partition) = self.partitions.get_mut(&segment.tp) else { return };
        let Some(file) = partition.log.segments.find_mut(segment.base, segment.segment_use) else { return };
        if written {
            file.seal = Seal::Done;
            file.opening = None;
            file.index = None;
        } else {
            file.seal = Seal::Failed;
            self.seals_failed = true;
        }
    }

    /// Asks again for the index files that could not be written.
    pub(super) fn retry_seals(&mut self, out: &mut Effects) {
        if !std::mem::take(&mut self.seals_failed) {
            return;
        }
        let mut failed = BTreeSet::new();
        for (tp, partition) in &mut self.partitions {
            for segment in partition.log.segments.iter_mut().filter(|segment| segment.seal == Seal::Failed) {
                segment.seal = Seal::Open;
                failed.insert(*tp);
            }
        }
        for tp in failed {
            self.seal_complete(tp, out);
        }
    }

    /// Keeps the order of undestaged bytes in step with a partition's log.
    pub(super) fn reindex_undestaged(&mut self, tp: TopicPartition) {
        let Some(partition) = self.partitions.get_mut(&tp) else { return };
        let first = partition.log.first_undestaged();
        if partition.undestaged == first {
            return;
        }
        if let Some(old) = partition.undestaged {
            self.undestaged.remove(&(old, tp));
        }
        if let Some(new) = first {
            self.undestaged.insert((new, tp));
        }
        partition.undestaged = first;
    }

    /// Where the commit starts that holds the oldest batch in no segment; the head if there is none.
    pub(super) fn oldest_undestaged(&self) -> Position {
        let Some((position, _)) = self.undestaged.first() else { return self.ring.head() };
        let after = self.in_memory.partition_point(|commit| commit.at <= *position);
        after.checked_sub(1).and_then(|index| self.in_memory.get(index)).map_or(*position, |commit| commit.at)
    }

    /// Lets go of the commits that are in segments and beyond the cache.
    pub(super) fn release_memory(&mut self, out: &mut Effects) {
        let keep_from = self.oldest_undestaged().min(self.ring.flushed_to());
        let mut release = None;
        while let Some(next) = self.in_memory.get(1).map(|next| next.at).filter(|next| *next <= keep_from) {
            let oldest = self.in_memory.front().map_or(0, |commit| commit.bytes);
            if self.memory_bytes - oldest < self.config.tail_cache_bytes {
                break;
            }
            let Some(commit) = self.in_memory.pop_front() else { break };
            self.memory_bytes -= commit.bytes;
            for tp in commit.partitions {
                if let Some(partition) = self.partitions.get_mut(&tp) {
                    partition.log.tail.release_below(next);
                }
            }
            release = Some(next);
        }
        if release.is_some() {
            out.release = release;
        }
    }

    fn next_to_destage(&self) -> Option<TopicPartition> {
        let can = |tp: &TopicPartition| self.partitions.get(tp).is_some_and(Partition::can_destage);
        // What stands between a stream and the direct path goes first.
        if let Some(tp) = self.held.iter().chain(&self.opening).copied().find(can) {
            return Some(tp);
        }
        let bound = self.ring.bytes() / DESTAGE_START_SHARE;
        self.undestaged
            .iter()
            .take_while(|(position, _)| self.ring.head().since(*position) > bound)
            .map(|(_, tp)| *tp)
            .find(can)
    }

    /// Whether the journal fills faster than it is destaged, or a stream waits for its way to its segment.
    fn is_urgent(&self, tp: TopicPartition) -> bool {
        let in_journal_alone = self.ring.head().since(self.oldest_undestaged());
        in_journal_alone > self.ring.bytes() / DESTAGE_URGENT_DIVISOR * DESTAGE_URGENT_TIMES
            || self.held.contains(&tp)
            || self.opening.contains(&tp)
    }

    fn extent_for(&mut self, tp: TopicPartition) -> Option<ExtentWrite> {
        let urgent = self.is_urgent(tp);
        let partition = self.partitions.get_mut(&tp)?;
        let log = &partition.log;
        let segment = log.segments.holding(log.destaged_end())?;
        let mut durable_end = log.durable_end().min(segment.end);
        if cfg!(mutant = "destages_what_is_not_durable") {
            durable_end = segment.end;
        }
        let mut slices = Vec::new();
        let (mut bytes, mut first, mut end) = (0, None, log.destaged_end());
        for place in log.tail.from(log.destaged_end()) {
            if place.end > durable_end || bytes >= EXTENT_BYTES_FULL || place.direct.is_some() {
                break;
            }
            slices.push(place.slice());
            bytes += u64::from(place.bytes);
            first.get_or_insert(place.base);
            end = place.end;
        }
        let entry = ExtentEntry {
            segment: segment.id(tp),
            file_position: segment.assigned_end,
            bytes,
            first: first?,
            end,
        };
        let allocate_to = segment.allocation_for(bytes.next_multiple_of(BLOCK));
        let make = match segment.made_of {
            _ if segment.created => Make::Nothing,
            Some(old) => Make::Of(old),
            None => Make::New,
        };
        partition.extent = Some(ExtentUnderWay { entry, allocate_to, flushed: false });
        let ExtentEntry { segment, file_position, bytes, .. } = entry;
        Some(ExtentWrite { segment, make, file_position, allocate_to, slices, bytes, urgent })
    }
}

fn is_of(extent: &ExtentEntry, segment: SegmentId, file_position: u64) -> bool {
    extent.segment == segment && extent.file_position == file_position
}
