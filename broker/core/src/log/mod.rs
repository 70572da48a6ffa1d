//! One partition's log: offsets, epochs, producers, segments, and which bytes are where.
//!
//! Called by `shard` for appends and reads, and by `recovery`, which replays journal entries through the same
//! functions. Knows no disk, no socket, no acknowledgement.
//!
//! Offsets and who moves them:
//! - `log_start`: retention, the disk budget and delete-records; decides what may be read.
//! - `destaged_end`: extent entries that are durable; decides what the journal may forget.
//! - `durable_end`: flushed commits; decides what is acknowledged and, with one replica, the high watermark.
//! - `end`: appends; decides the next offset.
//!
//! Invariant: `log_start <= durable_end <= end` and `destaged_end <= durable_end`.

mod ages;
mod epochs;
mod producers;
mod segments;
mod tail;

pub use ages::{Ages, Unread};
pub use epochs::EpochTable;
pub use producers::{Admission, Appended, Producer, ProducerRefusal, ProducerTable};
pub use segments::{Seal, Segment, Segments};
pub use tail::{Place, Tail};

use crate::journal::{CompactedEntry, ExtentEntry, PlacedDirect, Position, SegmentUse};
use corelog_wire::batch::{BatchHeader, Stamp};
use corelog_wire::ids::{Offset, TopicPartition};

/// Offset after the last record of a batch at `base`.
#[must_use]
pub fn batch_end(header: &BatchHeader, base: Offset) -> Offset {
    Offset::new(base.get() + u64::from(header.last_offset_delta) + 1)
}

/// The log of one partition.
#[derive(Clone, Debug)]
#[expect(clippy::struct_field_names, reason = "the log start is the field's name for it")]
pub struct Log {
    tp: TopicPartition,
    log_start: Offset,
    destaged_end: Offset,
    durable_end: Offset,
    end: Offset,
    clean_end: Offset,
    /// Which epoch wrote what.
    pub epochs: EpochTable,
    /// Who appended what last.
    pub producers: ProducerTable,
    /// The files.
    pub segments: Segments,
    /// What is in memory.
    pub tail: Tail,
    /// When what was appended.
    pub ages: Ages,
}

/// The offsets a checkpoint remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOffsets {
    /// See [`Log`].
    pub log_start: Offset,
    /// See [`Log`].
    pub destaged_end: Offset,
    /// See [`Log`].
    pub end: Offset,
    /// See [`Log`].
    pub clean_end: Offset,
}

/// A replayed entry contradicts the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayFault {
    /// Batches are missing between the log and the entry.
    #[error("a batch at offset {} follows a log that ends at {}", got.get(), expected.get())]
    Gap {
        /// Where the log ends.
        expected: Offset,
        /// Where the batch starts.
        got: Offset,
    },
    /// A log start past the end of the log.
    #[error("the log starts at {} and ends at {}", log_start.get(), end.get())]
    StartBeyondEnd {
        /// Where it is said to start.
        log_start: Offset,
        /// Where it ends.
        end: Offset,
    },
    /// An extent of a segment the log does not have.
    #[error("an extent at offset {} belongs to no segment of the log", first.get())]
    UnknownSegment {
        /// Where the extent starts.
        first: Offset,
    },
}

impl Log {
    /// An empty log.
    #[must_use]
    pub fn new(tp: TopicPartition) -> Self {
        let zero = Offset::ZERO;
        let offsets = LogOffsets { log_start: zero, destaged_end: zero, end: zero, clean_end: zero };
        Self::restore(tp, offsets, EpochTable::default(), ProducerTable::default(), Segments::default())
    }

    /// A log as a checkpoint remembers it.
    #[must_use]
    pub fn restore(
        tp: TopicPartition,
        offsets: LogOffsets,
        epochs: EpochTable,
        producers: ProducerTable,
        segments: Segments,
    ) -> Self {
        let LogOffsets { log_start, destaged_end, end, clean_end } = offsets;
        Self {
            tp,
            log_start,
            destaged_end,
            durable_end: end,
            end,
            clean_end,
            epochs,
            producers,
            segments,
            tail: Tail::default(),
            ages: Ages::default(),
        }
    }

    /// The partition.
    #[must_use]
    pub fn tp(&self) -> TopicPartition {
        self.tp
    }

    /// First offset that is there.
    #[must_use]
    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    /// Everything below is in segments, by entries that are durable.
    #[must_use]
    pub fn destaged_end(&self) -> Offset {
        self.destaged_end
    }

    /// Everything below is durable.
    #[must_use]
    pub fn durable_end(&self) -> Offset {
        self.durable_end
    }

    /// Everything from the log start up to here is in memory or in a segment.
    #[must_use]
    pub fn held_end(&self) -> Offset {
        self.tail.end().map_or(self.destaged_end, |end| end.max(self.destaged_end))
    }

    /// The next offset.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.end
    }

    /// Of everything below, compaction has left only the newest record of each key.
    #[must_use]
    pub fn clean_end(&self) -> Offset {
        self.clean_end
    }

    /// Bytes of all batches that are there.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    /// Takes a batch to the end of the log. Opens a segment when `segment_use` is not the last one's.
    pub fn append(&mut self, header: &BatchHeader, stamp: &Stamp, bytes: u32, segment_use: SegmentUse) {
        let base = stamp.base_offset;
        let end = batch_end(header, base);
        if self.segments.last().is_none_or(|last| last.full || last.segment_use != segment_use) {
            self.segments.roll(base, segment_use, (self.epochs.clone(), self.producers.clone()));
        }
        self.segments.appended(end, bytes, header.max_timestamp_ms, stamp.append_timestamp_ms);
        self.ages.appended(base, end, bytes, stamp.append_timestamp_ms);
        self.epochs.appended(stamp.leader_epoch, base);
        self.producers.appended(header, base, end, stamp.append_timestamp_ms);
        self.end = end;
    }

    /// A commit holding everything below `end` is flushed.
    pub fn made_durable(&mut self, end: Offset) {
        self.durable_end = self.durable_end.max(end);
    }

    /// An extent entry is durable: its batches need the journal no more.
    ///
    /// # Errors
    /// The log has no such segment; it has lost it to retention, or the journal contradicts itself.
    pub fn destaged(&mut self, extent: &ExtentEntry) -> Result<(), ReplayFault> {
        let in_extent = self.tail.from(extent.first).take_while(|place| place.end <= extent.end);
        let Some(segment) = self.segments.find_mut(extent.segment.base, extent.segment.segment_use) else {
            // Retention or compaction took the segment meanwhile.
            let gone = extent.end <= self.log_start
                || self.segments.is_compacted(extent.first, extent.end, extent.segment.segment_use);
            return if gone { Ok(()) } else { Err(ReplayFault::UnknownSegment { first: extent.first }) };
        };
        // A checkpoint may know it already. One whose records were deleted meanwhile keeps its place all the same.
        if extent.file_position < segment.file_end {
            return Ok(());
        }
        if let Some(index) = &mut segment.index {
            let mut file_position = extent.file_position;
            for place in in_extent {
                index.push(place.base, file_position, place.bytes, place.max_timestamp_ms);
                file_position += u64::from(place.bytes);
            }
        }
        segment.proven_end = segment.proven_end.max(extent.end);
        segment.created = true;
        segment.file_end = (extent.file_position + extent.bytes).next_multiple_of(crate::limits::BLOCK);
        segment.assigned_end = segment.assigned_end.max(segment.file_end);
        segment.allocated = segment.allocated.max(segment.file_end);
        self.destaged_end = self.destaged_end.max(extent.end);
        Ok(())
    }

    /// Takes the direct batches that are durable into their segments; whether there were any.
    pub fn direct_proven(&mut self) -> bool {
        let mut any = false;
        loop {
            let next = self.tail.from(self.destaged_end).next().copied();
            let Some(place) = next.filter(|place| place.end <= self.durable_end) else { return any };
            let Some(PlacedDirect { file_position, .. }) = place.direct else { return any };
            self.wrote(&place, file_position);
            any = true;
        }
    }

    /// A batch is in its segment and needed the journal for nothing but the proof.
    fn wrote(&mut self, place: &Place, file_position: u64) {
        self.destaged_end = self.destaged_end.max(place.end);
        // Retention may have taken the segment meanwhile.
        let Some(segment) = self.segments.holding_mut(place.base, place.segment_use) else { return };
        if place.end <= segment.proven_end {
            return;
        }
        if let Some(index) = &mut segment.index {
            index.push(place.base, file_position, place.bytes, place.max_timestamp_ms);
        }
        segment.proven_end = place.end;
        segment.created = true;
        let file_end = (file_position + u64::from(place.bytes)).next_multiple_of(crate::limits::BLOCK);
        segment.file_end = segment.file_end.max(file_end);
        segment.assigned_end = segment.assigned_end.max(file_end);
        segment.allocated = segment.allocated.max(file_end);
    }

    /// Takes a direct batch from the journal while replaying: all of it is in its segment.
    ///
    /// # Errors
    /// The batch does not continue the log, or follows one that is in no segment.
    pub fn replay_direct(
        &mut self,
        header: &BatchHeader,
        stamp: &Stamp,
        place: &Place,
        file_position: u64,
    ) -> Result<(), ReplayFault> {
        if place.base > self.end {
            return Err(ReplayFault::Gap { expected: self.end, got: place.base });
        }
        if place.base == self.end {
            self.append(header, stamp, place.bytes, place.segment_use);
            self.made_durable(self.end);
        }
        if place.end <= self.destaged_end {
            return Ok(());
        }
        if place.base > self.destaged_end {
            return Err(ReplayFault::Gap { expected: self.destaged_end, got: place.base });
        }
        self.wrote(place, file_position);
        // What was in memory before it has gone to segments, and it is not in memory itself.
        self.tail.clear();
        Ok(())
    }

    /// The entry of a compacted segment is durable: it takes the place of those it was made of, which are given.
    ///
    /// # Errors
    /// The log has other segments there.
    pub fn compacted(&mut self, entry: &CompactedEntry) -> Result<Vec<Segment>, ReplayFault> {
        let CompactedEntry { segment, end, .. } = *entry;
        let known = self.segments.find_mut(segment.base, segment.segment_use).is_some()
            || self.segments.is_compacted(segment.base, end, segment.segment_use);
        // A checkpoint may know it already, or what became of it.
        if known || end <= self.log_start {
            return Ok(Vec::new());
        }
        let gone = self.segments.replace(entry);
        let gone = gone.ok_or(ReplayFault::UnknownSegment { first: segment.base })?;
        self.clean_end = self.clean_end.max(entry.clean_end);
        Ok(gone)
    }

    /// Moves the log start up; gives the segments that are gone with it. An offset past the end clears the log.
    pub fn advance_start(&mut self, log_start: Offset) -> Vec<Segment> {
        if log_start <= self.log_start {
            return Vec::new();
        }
        self.log_start = log_start;
        self.destaged_end = self.destaged_end.max(log_start.min(self.durable_end));
        self.epochs.forget_below(log_start);
        self.ages.forget_below(log_start);
        self.segments.take_below(log_start)
    }

    /// Takes a batch from the journal while replaying: one that is known already only gets its place in memory.
    ///
    /// # Errors
    /// The batch does not continue the log.
    pub fn replay(&mut self, header: &BatchHeader, stamp: &Stamp, place: Place) -> Result<(), ReplayFault> {
        if place.base > self.end {
            return Err(ReplayFault::Gap { expected: self.end, got: place.base });
        }
        if place.base == self.end {
            self.append(header, stamp, place.bytes, place.segment_use);
            self.made_durable(self.end);
        }
        if place.end > self.destaged_end {
            let expected = self.tail.end().unwrap_or(self.destaged_end);
            if place.base > expected || (!self.tail.is_empty() && place.base < expected) {
                return Err(ReplayFault::Gap { expected, got: place.base });
            }
            self.tail.push(place);
        }
        Ok(())
    }

    /// Where the first batch lies that only the journal holds.
    #[must_use]
    pub fn first_undestaged(&self) -> Option<Position> {
        self.tail.from(self.destaged_end).find(|place| place.direct.is_none()).map(|place| place.position)
    }

    /// What contradicts the invariants, if anything does.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        if self.log_start > self.durable_end {
            return Some("the log starts past its durable end");
        }
        if self.destaged_end > self.durable_end || self.durable_end > self.end {
            return Some("the offsets of a log are out of order");
        }
        if self.segments.last().is_some_and(|last| last.end != self.end) {
            return Some("the last segment does not end where the log ends");
        }
        self.segments.broken_invariant().or_else(|| self.tail.broken_invariant())
    }
}
