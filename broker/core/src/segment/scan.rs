//! Walking a segment file from batch to batch, in the chunks that the hands read.
//!
//! Called by the hands of the broker and of the simulator, for fetches ([`BatchScan::take`]), look-ups by time
//! ([`BatchScan::find_time`]) and for the index of a segment that has none ([`BatchScan::index`]). Every header is checked
//! before anything follows from it: its checksum for this very partition, its length, its offset (the one after the
//! batch before), its epoch (never below the one before). What fails is an error that names the place; nothing is
//! skipped.
//!
//! Between the last batch of an extent and the next block are zeros, perhaps fewer than a header has. A batch that starts
//! off a block boundary has another before it, so its first eight bytes, its base offset, are not zero; at a block
//! boundary there is never padding. So eight zeros off a boundary are padding. Should rot make them of a batch, the offset
//! of the next batch, or the end of the file, tells.
//!
//! A walk for a reader with a tag filter passes over batches that are not asked for, by their headers, up to a bound; then it
//! is over, and [`BatchScan::next_offset`] says how far it came.
//!
//! Invariants: a range given out is whole batches of this partition, in order, and lacks only what the filter leaves out;
//! the walk never passes `file_end`. This room refuses to know files: it asks for bytes and is given some.

use super::{BLOCK, Index, SegmentError};
use crate::journal::SegmentId;
use crate::limits::{COMMIT_BYTES_MAX, FILTER_PASSED_BYTES_MAX};
use crate::shard::SegmentRead;
use corelog_wire::batch::{BatchError, HEADER_BYTES, parse_header};
use corelog_wire::ids::{LeaderEpoch, Offset};
use corelog_wire::keys::TagFilter;
use std::ops::Range;

/// Where a batch would have its base offset: see above.
const PADDING: [u8; 8] = [0; 8];

/// What one chunk gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Whole batches to send, in order, as ranges of the chunk.
    pub ranges: Vec<Range<usize>>,
    /// What is to be done next.
    pub next: Next,
}

/// What a walk needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: it is over.
    Done,
    /// More of the file.
    Read {
        /// File position of the next batch or padding.
        from: u64,
        /// At least this many bytes from there; they end at or before the last extent.
        bytes: u64,
    },
}

/// What a look-up by time found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The first batch that is late enough: the first of its offsets that was asked for, and its max timestamp.
    At(Offset, i64),
    /// No batch is late enough.
    None,
    /// More of the file is needed.
    Read {
        /// File position of the next batch or padding.
        from: u64,
        /// At least this many bytes from there; they end at or before the last extent.
        bytes: u64,
    },
}

/// A walk through one segment file.
#[derive(Clone, Debug)]
pub struct BatchScan {
    segment: SegmentId,
    file_end: u64,
    from: Offset,
    until: Offset,
    /// How many bytes may still be given out.
    bytes_left: u64,
    /// Whether a batch was given out.
    began: bool,
    filter: TagFilter,
    /// How many bytes may still be passed over.
    passed_left: u64,
    /// File position of the next batch or padding.
    at: u64,
    /// Offset of the next batch; none before the first, unless that is the segment's first.
    expected: Option<Offset>,
    /// Epoch of the batch before.
    epoch: Option<LeaderEpoch>,
}

/// A sound header.
struct Seen {
    bytes: u32,
    base: Offset,
    /// Offset after its last record.
    end: Offset,
    epoch: LeaderEpoch,
    max_timestamp_ms: i64,
    tag_bloom: u64,
}

enum Step {
    Batch(Seen),
    Read { from: u64, bytes: u64 },
    End,
}

/// Bytes of a file and where they are.
#[derive(Clone, Copy)]
struct Chunk<'chunk> {
    bytes: &'chunk [u8],
    start: u64,
}

impl<'chunk> Chunk<'chunk> {
    /// The bytes of the file from `at` up to `end`, as far as the chunk has them; none if it does not reach `at`.
    fn from(&self, at: u64, end: u64) -> &'chunk [u8] {
        let index = |position: u64| {
            let within = position.saturating_sub(self.start).min(self.bytes.len() as u64);
            // Not beyond the length of the slice.
            usize::try_from(within).unwrap_or(self.bytes.len())
        };
        if at < self.start { &[] } else { self.bytes.get(index(at)..index(end)).unwrap_or(&[]) }
    }
}

impl BatchScan {
    /// A walk for `read` that starts at `start`: the first extent ([`BLOCK`]), the start of any other, or that of any batch
    /// at or before the offset wanted. `read.until` must not lie beyond what the extents below `read.file_end` hold: if
    /// the file ends before it, batches are missing.
    #[must_use]
    pub fn new(read: &SegmentRead, start: u64) -> Self {
        Self {
            segment: read.segment,
            file_end: read.file_end,
            from: read.from,
            until: read.until,
            bytes_left: u64::from(read.bytes_max),
            began: false,
            filter: TagFilter::ALL,
            passed_left: FILTER_PASSED_BYTES_MAX,
            at: start,
            expected: (start <= BLOCK).then_some(read.segment.base),
            epoch: None,
        }
    }

    /// The same walk for a reader who asks for some batches only.
    #[must_use]
    pub fn filtered(self, filter: TagFilter) -> Self {
        Self { filter, ..self }
    }

    /// Takes the batches that overlap the offsets wanted and are asked for out of `chunk`, the bytes of the file from `chunk_start` on: as
    /// many as the chunk holds whole and `bytes_max` allows, the first one in any case. Nothing is copied.
    ///
    /// # Errors
    /// [`SegmentError`], those about batches. The ranges that came before it in this chunk are lost with it; the walk
    /// must not be continued.
    pub fn take(&mut self, chunk: &[u8], chunk_start: u64) -> Result<Taken, SegmentError> {
        let chunk = Chunk { bytes: chunk, start: chunk_start };
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let next = loop {
            if self.from >= self.until {
                break Next::Done;
            }
            let seen = match self.step(chunk)? {
                Step::Batch(seen) => seen,
                Step::Read { from, bytes } => break Next::Read { from, bytes },
                Step::End => break self.ended()?,
            };
            if seen.base >= self.until {
                break Next::Done;
            }
            if seen.end <= self.from {
                self.pass(&seen);
                continue;
            }
            if self.expected.is_none() && seen.base > self.from {
                return Err(self.gap(self.from, seen.base));
            }
            if !self.filter.asks_for(seen.tag_bloom) {
                self.pass(&seen);
                let left = self.passed_left.checked_sub(u64::from(seen.bytes));
                if left.is_none() || seen.end >= self.until {
                    break Next::Done;
                }
                self.passed_left = left.unwrap_or_default();
                continue;
            }
            let bytes = u64::from(seen.bytes);
            if self.began && bytes > self.bytes_left {
                break Next::Done;
            }
            let whole = chunk.from(self.at, self.at + bytes);
            if (whole.len() as u64) < bytes {
                break Next::Read { from: self.at, bytes };
            }
            let start = usize::try_from(self.at - chunk.start).unwrap_or(usize::MAX);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end += whole.len(),
                _ => ranges.push(start..start + whole.len()),
            }
            self.began = true;
            self.bytes_left = self.bytes_left.saturating_sub(bytes);
            self.pass(&seen);
            if seen.end >= self.until || self.bytes_left == 0 {
                break Next::Done;
            }
        };
        Ok(Taken { ranges, next })
    }

    /// Looks for the first batch that overlaps the offsets wanted and whose max timestamp is `timestamp_ms` or later. The
    /// walk may start at any batch that is not behind it. Reads headers only.
    ///
    /// # Errors
    /// [`SegmentError`], those about batches.
    pub fn find_time(
        &mut self,
        chunk: &[u8],
        chunk_start: u64,
        timestamp_ms: i64,
    ) -> Result<Found, SegmentError> {
        let chunk = Chunk { bytes: chunk, start: chunk_start };
        loop {
            if self.from >= self.until {
                return Ok(Found::None);
            }
            let seen = match self.step(chunk)? {
                Step::Batch(seen) => seen,
                Step::Read { from, bytes } => return Ok(Found::Read { from, bytes }),
                Step::End => return self.ended().map(|_| Found::None),
            };
            if seen.base >= self.until {
                return Ok(Found::None);
            }
            if seen.end > self.from && seen.max_timestamp_ms >= timestamp_ms {
                return Ok(Found::At(seen.base.max(self.from), seen.max_timestamp_ms));
            }
            self.pass(&seen);
        }
    }

    /// Puts every batch of the chunk into `index`. For a segment without one: the walk starts at the first extent. Reads
    /// headers only; does not heed the offsets wanted.
    ///
    /// # Errors
    /// [`SegmentError`], those about batches. What came before is in the index.
    pub fn index(&mut self, chunk: &[u8], chunk_start: u64, index: &mut Index) -> Result<Next, SegmentError> {
        let chunk = Chunk { bytes: chunk, start: chunk_start };
        loop {
            match self.step(chunk)? {
                Step::Batch(seen) => {
                    index.push(seen.base, self.at, seen.bytes, seen.max_timestamp_ms);
                    self.pass(&seen);
                }
                Step::Read { from, bytes } => return Ok(Next::Read { from, bytes }),
                Step::End => return Ok(Next::Done),
            }
        }
    }

    /// Offset of the next batch, once one was passed: after a whole walk, the end of the segment.
    #[must_use]
    pub const fn expected(&self) -> Option<Offset> {
        self.expected
    }

    /// File position of the next batch, or of padding before it.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.at
    }

    /// Where a reader goes on after [`BatchScan::take`]: every batch before it that was asked for was given out.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.expected.map_or(self.from, |expected| expected.max(self.from))
    }

    /// Passes padding and gives the header of the next batch, checked.
    fn step(&mut self, chunk: Chunk<'_>) -> Result<Step, SegmentError> {
        loop {
            if self.at >= self.file_end {
                return Ok(Step::End);
            }
            let wanted = (HEADER_BYTES as u64).min(self.file_end - self.at);
            let header = chunk.from(self.at, self.at + wanted);
            if !self.at.is_multiple_of(BLOCK) && header.first_chunk() == Some(&PADDING) {
                self.at = self.at.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
                continue;
            }
            if header.len() as u64 == wanted {
                return self.check(header).map(Step::Batch);
            }
            return Ok(Step::Read { from: self.at, bytes: wanted });
        }
    }

    /// Checks the header at the place of the walk.
    fn check(&self, bytes: &[u8]) -> Result<Seen, SegmentError> {
        let expected = self.expected.unwrap_or(self.from);
        let bad = |error| SegmentError::Batch { file_position: self.at, expected, error };
        let (header, stamp) = parse_header(bytes, self.segment.tp).map_err(bad)?;
        let stamp = stamp.ok_or(bad(BatchError::NotStamped))?;
        let batch_bytes = u64::from(header.batch_bytes);
        if batch_bytes > self.file_end - self.at || batch_bytes > COMMIT_BYTES_MAX {
            let (file_position, file_end) = (self.at, self.file_end);
            return Err(SegmentError::BeyondEnd { file_position, expected, batch_bytes, file_end });
        }
        let base = stamp.base_offset;
        // Records that were deleted before they left the journal are in no extent: a gap below what is wanted, and so
        // below the log start, is as it should be.
        let gap =
            self.expected.is_some_and(|expected| base < expected || (base > expected && base > self.from));
        if gap || base < self.segment.base {
            return Err(self.gap(expected.max(self.segment.base), base));
        }
        let Some(end) = base.checked_add(u64::from(header.last_offset_delta) + 1) else {
            return Err(self.gap(expected, base));
        };
        if let Some(before) = self.epoch
            && stamp.leader_epoch < before
        {
            let found = stamp.leader_epoch;
            return Err(SegmentError::EpochFell { file_position: self.at, expected, before, found });
        }
        Ok(Seen {
            bytes: header.batch_bytes,
            base,
            end,
            epoch: stamp.leader_epoch,
            max_timestamp_ms: header.max_timestamp_ms,
            tag_bloom: header.tag_bloom,
        })
    }

    /// At the end of the file: what was wanted must have come.
    fn ended(&self) -> Result<Next, SegmentError> {
        let expected = self.expected.unwrap_or(self.from);
        if expected < self.until {
            return Err(SegmentError::Missing { file_end: self.file_end, expected, until: self.until });
        }
        Ok(Next::Done)
    }

    fn gap(&self, expected: Offset, found: Offset) -> SegmentError {
        SegmentError::OffsetGap { file_position: self.at, expected, found }
    }

    /// Goes on behind a batch.
    fn pass(&mut self, seen: &Seen) {
        self.at += u64::from(seen.bytes);
        self.expected = Some(seen.end);
        self.epoch = Some(seen.epoch);
    }
}

#[cfg(test)]
mod tests;
