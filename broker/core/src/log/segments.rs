//! The segments of one log: which files there are, what each holds, and where its next extent goes.
//!
//! A segment is open while appended batches are assigned to it, then full; it is sealed when every batch is in its
//! file and an index file was asked for. Rolling is decided when a batch is appended, so that extents never cross
//! from one file to the next, and is recorded by the batch's entry (its segment use changes).
//!
//! Invariants: segments are contiguous and ascending; only the last one is open; `proven_end` never passes `end`.

use super::{EpochTable, ProducerTable};
use crate::journal::{CompactedEntry, SegmentId, SegmentUse};
use crate::limits::{BLOCK, GROWTH_STEP_BYTES, GROWTH_STEP_BYTES_MAX};
use crate::segment::Index;
use crate::shard::{COMPACTED_USES, SegmentStart};
use corelog_wire::ids::{Offset, TopicPartition};
use std::collections::VecDeque;

/// How far a segment is on the way to its index file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal {
    /// None was asked for.
    Open,
    /// It is being written.
    UnderWay,
    /// It could not be written.
    Failed,
    /// It is there.
    Done,
}

/// One segment of a log.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Offset of its first record.
    pub base: Offset,
    /// Which file of that base offset.
    pub segment_use: SegmentUse,
    /// Offset after the last record assigned to it.
    pub end: Offset,
    /// Offset after the last record that an extent entry proves to be in its file.
    pub proven_end: Offset,
    /// Bytes of all batches assigned to it.
    pub bytes: u64,
    /// File position after the last proven extent.
    pub file_end: u64,
    /// File position after the last direct write that was begun, or after the last proven byte.
    pub assigned_end: u64,
    /// The size the file has been given.
    pub allocated: u64,
    /// Whether the file exists.
    pub created: bool,
    /// The file that it will be made of, if not of a new one.
    pub made_of: Option<SegmentId>,
    /// Whether all its blocks were written before.
    pub written: bool,
    /// Whether it takes no more batches.
    pub full: bool,
    /// Whether it has its index file.
    pub seal: Seal,
    /// The newest create time of its records: for look-ups by time.
    pub max_timestamp_ms: i64,
    /// When its first batch was appended: for rolling by age.
    pub opened_ms: i64,
    /// When its last batch was appended: for retention.
    pub last_append_ms: i64,
    /// Where its batches are in the file, until it is sealed.
    pub index: Option<Index>,
    /// The log's tables when it was opened.
    pub opening: Option<Box<(EpochTable, ProducerTable)>>,
}

impl Segment {
    fn open(base: Offset, segment_use: SegmentUse) -> Self {
        Self {
            base,
            segment_use,
            end: base,
            proven_end: base,
            bytes: 0,
            file_end: BLOCK,
            assigned_end: BLOCK,
            allocated: 0,
            created: false,
            made_of: None,
            written: false,
            full: false,
            seal: Seal::Open,
            max_timestamp_ms: i64::MIN,
            opened_ms: i64::MAX,
            last_append_ms: i64::MIN,
            index: Some(Index::default()),
            opening: None,
        }
    }

    /// One that compaction has made.
    fn compacted(entry: &CompactedEntry) -> Self {
        Self {
            end: entry.end,
            proven_end: entry.end,
            bytes: entry.bytes,
            file_end: entry.file_end,
            assigned_end: entry.file_end,
            allocated: entry.file_end,
            created: true,
            full: true,
            seal: Seal::Done,
            max_timestamp_ms: entry.max_timestamp_ms,
            opened_ms: entry.last_append_ms,
            last_append_ms: entry.last_append_ms,
            index: None,
            ..Self::open(entry.segment.base, entry.segment.segment_use)
        }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self, tp: TopicPartition) -> SegmentId {
        SegmentId { tp, base: self.base, segment_use: self.segment_use }
    }

    /// Whether every batch assigned to it is in its file and none will come.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.full && self.proven_end == self.end
    }

    /// Where a scan for `offset` starts.
    #[must_use]
    pub fn start_for(&self, offset: Offset) -> SegmentStart {
        match &self.index {
            Some(index) => SegmentStart::At(index.start_for(offset).unwrap_or(BLOCK)),
            None => SegmentStart::ByIndexFile,
        }
    }

    /// The size to give the file before an extent of `bytes` (a multiple of the block size) goes to its end.
    /// Small segments grow in small steps.
    #[must_use]
    pub fn allocation_for(&self, bytes: u64) -> u64 {
        let needed = self.assigned_end + bytes;
        if needed <= self.allocated {
            return self.allocated;
        }
        let step = self.allocated.clamp(GROWTH_STEP_BYTES, GROWTH_STEP_BYTES_MAX);
        needed.next_multiple_of(step)
    }
}

/// The segments of one log, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    segments: VecDeque<Segment>,
}

impl Segments {
    /// Every segment, oldest first.
    #[must_use]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Segment> + ExactSizeIterator {
        self.segments.iter()
    }

    /// The same, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Segment> {
        self.segments.iter_mut()
    }

    /// Puts a segment back behind the others.
    pub fn restore(&mut self, segment: Segment) {
        self.segments.push_back(segment);
    }

    /// The segment that takes batches.
    #[must_use]
    pub fn last(&self) -> Option<&Segment> {
        self.segments.back()
    }

    /// The same, to change it.
    pub fn last_mut(&mut self) -> Option<&mut Segment> {
        self.segments.back_mut()
    }

    /// The oldest segment.
    #[must_use]
    pub fn first(&self) -> Option<&Segment> {
        self.segments.front()
    }

    /// Whether a batch of `bytes` needs a new segment when segments have at most `segment_bytes` and were opened at
    /// `opened_after_ms` or later.
    #[must_use]
    pub fn wants_roll(&self, bytes: u64, segment_bytes: u64, opened_after_ms: i64) -> bool {
        self.last().is_none_or(|last| {
            let has_room = last.bytes == 0 || last.bytes + bytes <= segment_bytes;
            last.full || !has_room || last.opened_ms < opened_after_ms
        })
    }

    /// Opens a segment at `base`; the one before is full.
    pub fn roll(&mut self, base: Offset, segment_use: SegmentUse, opening: (EpochTable, ProducerTable)) {
        self.fill_last();
        let mut segment = Segment::open(base, segment_use);
        segment.opening = Some(Box::new(opening));
        self.segments.push_back(segment);
    }

    /// The last segment takes no more batches.
    pub fn fill_last(&mut self) {
        if let Some(last) = self.segments.back_mut() {
            last.full = true;
        }
    }

    /// A batch was assigned to the last segment.
    pub fn appended(&mut self, end: Offset, bytes: u32, max_timestamp_ms: i64, append_timestamp_ms: i64) {
        if let Some(last) = self.segments.back_mut() {
            last.end = end;
            last.bytes += u64::from(bytes);
            last.max_timestamp_ms = last.max_timestamp_ms.max(max_timestamp_ms);
            last.opened_ms = last.opened_ms.min(append_timestamp_ms);
            last.last_append_ms = last.last_append_ms.max(append_timestamp_ms);
        }
    }

    /// The segment that holds `offset` or will.
    #[must_use]
    pub fn holding(&self, offset: Offset) -> Option<&Segment> {
        let after = self.segments.partition_point(|segment| segment.base <= offset);
        self.segments.get(after.checked_sub(1)?).filter(|segment| offset < segment.end)
    }

    /// The segment that holds `offset`, if its file is of this use.
    pub fn holding_mut(&mut self, offset: Offset, segment_use: SegmentUse) -> Option<&mut Segment> {
        let after = self.segments.partition_point(|segment| segment.base <= offset);
        let segment = self.segments.get_mut(after.checked_sub(1)?)?;
        (offset < segment.end && segment.segment_use == segment_use).then_some(segment)
    }

    /// The segment of this name.
    pub fn find_mut(&mut self, base: Offset, segment_use: SegmentUse) -> Option<&mut Segment> {
        let index = self.segments.binary_search_by_key(&base, |segment| segment.base).ok()?;
        self.segments.get_mut(index).filter(|segment| segment.segment_use == segment_use)
    }

    /// Takes the segments that end at or below `log_start` out of the log.
    pub fn take_below(&mut self, log_start: Offset) -> Vec<Segment> {
        let mut taken = Vec::new();
        while self.segments.front().is_some_and(|segment| segment.end <= log_start) {
            // An open segment without records stays: it is where the next batch goes.
            if self.segments.front().is_some_and(|segment| segment.end == segment.base) {
                break;
            }
            taken.extend(self.segments.pop_front());
        }
        taken
    }

    /// Whether compaction has put a later file in the place of one that held these offsets.
    #[must_use]
    pub fn is_compacted(&self, first: Offset, end: Offset, segment_use: SegmentUse) -> bool {
        self.holding(first).is_some_and(|segment| {
            let later = segment.segment_use >= COMPACTED_USES && segment.segment_use > segment_use;
            later && end <= segment.end
        })
    }

    /// Puts a compacted segment in the place of those it was made of, which are given; `None` if they are not there, or the last
    /// one is among them.
    pub fn replace(&mut self, entry: &CompactedEntry) -> Option<Vec<Segment>> {
        let first = self.segments.binary_search_by_key(&entry.segment.base, |segment| segment.base).ok()?;
        let after = self.segments.partition_point(|segment| segment.end <= entry.end);
        let ends = self.segments.get(after.checked_sub(1)?).is_some_and(|last| last.end == entry.end);
        if !ends || after <= first || after >= self.segments.len() {
            return None;
        }
        let gone = self.segments.drain(first..after).collect();
        self.segments.insert(first, Segment::compacted(entry));
        Some(gone)
    }

    /// Takes everything out.
    pub fn take_all(&mut self) -> Vec<Segment> {
        self.segments.drain(..).collect()
    }

    /// What contradicts the invariants, if anything does.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        let pairs = self.segments.iter().zip(self.segments.iter().skip(1));
        for (earlier, later) in pairs {
            if earlier.end != later.base {
                return Some("segments are not contiguous");
            }
            if !earlier.full {
                return Some("a segment before the last one is open");
            }
        }
        self.segments
            .iter()
            .any(|segment| segment.proven_end > segment.end)
            .then_some("a segment is proven past its end")
    }
}
