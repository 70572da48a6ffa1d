//! Cold reads: records that left memory, from segment files.
//!
//! Called by the room's `perform`; runs in its own queue with few shares, a few reads at a time. What is read is sent
//! from the read buffer without a copy and never enters the tail: a backfill must not hurt those who read the end.
//! Where a read ended is remembered, and the last chunk of a few segments with it, so that a reader who goes on does
//! neither look up nor read twice. Memory: what is on its way to readers is counted, and beyond a limit reads shrink
//! to about a batch each.

use super::error::DiskError;
use super::meters::Meters;
use super::segments::{Hold, Recent, Segments};
use crate::net::PayloadSlice;
use crate::rt;
use corelog_core::journal::SegmentId;
use corelog_core::limits::{BLOCK, KIB, MIB};
use corelog_core::segment::{BatchScan, Found, Next, SegmentError};
use corelog_core::shard::{SegmentRead, SegmentStart};
use corelog_wire::ids::Offset;
use corelog_wire::keys::TagFilter;
use glommio::io::ReadResult;
use glommio::sync::Semaphore;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Reads from files at once, per shard.
const READS_MAX: u64 = 4;
/// Least and most bytes of one read, unless a single batch needs more.
const CHUNK_BYTES_MIN: u64 = 64 * KIB;
const CHUNK_BYTES_MAX: u64 = MIB;
/// Look-ups by time read headers only, so their chunks need not be long.
const TIME_CHUNK_BYTES: u64 = 256 * KIB;
/// Bytes on their way to readers beyond which reads shrink to [`CHUNK_BYTES_MIN`].
const HELD_BYTES_MAX: u64 = 64 * MIB;
/// Segments whose last chunk is kept.
const CHUNKS_MAX: usize = 4;
/// Ends of reads that are remembered.
const HINTS_MAX: usize = 4_096;

/// Why a read gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ColdError {
    /// The file cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// It can, but what is in it is not what was written.
    #[error(transparent)]
    Segment(#[from] SegmentError),
}

/// Reads from segments.
#[derive(Debug)]
pub(super) struct Cold {
    segments: Rc<Segments>,
    reads: Rc<Semaphore>,
    hints: RefCell<Hints>,
    chunks: RefCell<Recent<Rc<Chunk>>>,
    held: Rc<Cell<u64>>,
}

/// A part of a file in memory.
#[derive(Debug)]
struct Chunk {
    start: u64,
    bytes: ReadResult,
    held: Rc<Cell<u64>>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.held.set(self.held.get() - self.bytes.len() as u64);
    }
}

impl Chunk {
    fn covers(&self, from: u64, bytes: u64) -> bool {
        self.start <= from && from + bytes <= self.start + self.bytes.len() as u64
    }
}

impl Cold {
    /// Reads from these segments.
    pub(super) fn new(segments: Rc<Segments>) -> Self {
        Self {
            segments,
            reads: Rc::new(Semaphore::new(READS_MAX)),
            hints: RefCell::default(),
            chunks: RefCell::new(Recent::new(CHUNKS_MAX)),
            held: Rc::default(),
        }
    }

    /// Bytes on their way to readers.
    pub(super) fn held_bytes(&self) -> u64 {
        self.held.get()
    }

    /// The batches that `read` and a filter ask for, and where to go on behind them. If something is wrong behind the first
    /// of them, those before it.
    pub(super) async fn read(
        &self,
        mut read: SegmentRead,
        filter: &TagFilter,
        hold: &Hold,
        meters: &Meters,
    ) -> Result<(Vec<PayloadSlice>, Offset), ColdError> {
        if self.held.get() > HELD_BYTES_MAX {
            read.bytes_max = read.bytes_max.min(u32::try_from(CHUNK_BYTES_MIN).unwrap_or(u32::MAX));
        }
        match self.scan(&read, filter, hold, meters).await {
            Err(ColdError::Segment(error)) if sound_until(&error).is_some_and(|until| until > read.from) => {
                tracing::error!(segment = ?read.segment, %error, "a segment is damaged; what lies before is served");
                meters.failures.add(1);
                read.until = sound_until(&error).unwrap_or(read.until);
                self.scan(&read, filter, hold, meters).await
            }
            result => result,
        }
    }

    async fn scan(
        &self,
        read: &SegmentRead,
        filter: &TagFilter,
        hold: &Hold,
        meters: &Meters,
    ) -> Result<(Vec<PayloadSlice>, Offset), ColdError> {
        let mut left = u64::from(read.bytes_max);
        let mut slices = Vec::new();
        let mut scan = BatchScan::new(read, self.start(read, hold).await).filtered(filter.clone());
        let mut next = scan.take(&[], 0)?.next;
        while let Next::Read { from, bytes } = next {
            let wanted = left.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX).max(bytes);
            let chunk = self.chunk(read, hold, from, bytes, wanted, meters).await?;
            let taken = scan.take((*chunk).as_ref(), chunk.start)?;
            for range in taken.ranges {
                left = left.saturating_sub(range.len() as u64);
                let owner = Rc::clone(&chunk);
                slices.push(PayloadSlice::new(owner, range.start, range.end));
            }
            next = taken.next;
            rt::yield_if_needed().await;
        }
        if let Some(offset) = scan.expected() {
            self.hints.borrow_mut().remember(read.segment, offset, scan.position());
        }
        meters.cold_reads.add(1);
        meters.cold_read_bytes.add(slices.iter().map(|slice| slice.len() as u64).sum());
        Ok((slices, scan.next_offset()))
    }

    /// The first offset wanted whose batch is of `timestamp_ms` or later, and that batch's max timestamp.
    pub(super) async fn find_time(
        &self,
        read: &SegmentRead,
        timestamp_ms: i64,
        hold: &Hold,
        meters: &Meters,
    ) -> Result<Option<(Offset, i64)>, ColdError> {
        let start = match read.start {
            SegmentStart::At(position) => position,
            SegmentStart::ByIndexFile => {
                let index = self.segments.index(hold).await;
                index.map_or(BLOCK, |index| index.start_for_time(timestamp_ms))
            }
        };
        let mut scan = BatchScan::new(read, start);
        let mut found = scan.find_time(&[], 0, timestamp_ms)?;
        loop {
            match found {
                Found::At(offset, timestamp_ms) => return Ok(Some((offset, timestamp_ms))),
                Found::None => return Ok(None),
                Found::Read { from, bytes } => {
                    let chunk =
                        self.chunk(read, hold, from, bytes, TIME_CHUNK_BYTES.max(bytes), meters).await?;
                    found = scan.find_time((*chunk).as_ref(), chunk.start, timestamp_ms)?;
                }
            }
            rt::yield_if_needed().await;
        }
    }

    /// Where a scan for `read` starts: the best of what is known.
    async fn start(&self, read: &SegmentRead, hold: &Hold) -> u64 {
        if let Some(position) = self.hints.borrow().position(read.segment, read.from) {
            return position;
        }
        match read.start {
            SegmentStart::At(position) => position,
            SegmentStart::ByIndexFile => {
                self.segments.index(hold).await.map_or(BLOCK, |index| index.start_for(read.from))
            }
        }
    }

    /// A part of the file that has at least `bytes` bytes from `from` on, and better `wanted`, but nothing behind the
    /// last extent.
    async fn chunk(
        &self,
        read: &SegmentRead,
        hold: &Hold,
        from: u64,
        bytes: u64,
        wanted: u64,
        meters: &Meters,
    ) -> Result<Rc<Chunk>, ColdError> {
        let recent = self.chunks.borrow_mut().get(read.segment);
        if let Some(chunk) = recent
            && chunk.covers(from, bytes)
        {
            return Ok(chunk);
        }
        let start = from / BLOCK * BLOCK;
        let end = (from + wanted).min(read.file_end.max(from + bytes)).next_multiple_of(BLOCK);
        // Never closed, so it always gives.
        let permit = self.reads.acquire_static_permit(1).await.ok();
        let file = self.segments.open(hold).await?;
        let result = file.read(start, usize::try_from(end - start).unwrap_or(usize::MAX)).await?;
        drop(permit);
        meters.cold_file_bytes.add(result.len() as u64);
        self.held.set(self.held.get() + result.len() as u64);
        let chunk = Rc::new(Chunk { start, bytes: result, held: Rc::clone(&self.held) });
        self.chunks.borrow_mut().insert(read.segment, Rc::clone(&chunk));
        Ok(chunk)
    }

    /// Forgets what is kept of a segment.
    pub(super) fn forget(&self, segment: SegmentId) {
        self.chunks.borrow_mut().remove(segment);
    }
}

/// Up to which offset a damaged segment is sound, if the error tells.
fn sound_until(error: &SegmentError) -> Option<Offset> {
    match error {
        SegmentError::Batch { expected, .. }
        | SegmentError::OffsetGap { expected, .. }
        | SegmentError::EpochFell { expected, .. }
        | SegmentError::Missing { expected, .. }
        | SegmentError::BeyondEnd { expected, .. } => Some(*expected),
        SegmentError::Short { .. }
        | SegmentError::Magic
        | SegmentError::NewerVersion { .. }
        | SegmentError::Checksum
        | SegmentError::Contradiction { .. }
        | SegmentError::OtherSegment { .. } => None,
    }
}

/// Where batches start in files, learned from reads that ended there. The oldest is forgotten.
#[derive(Debug, Default)]
struct Hints {
    positions: BTreeMap<(SegmentId, Offset), u64>,
    order: VecDeque<(SegmentId, Offset)>,
}

impl Hints {
    fn position(&self, segment: SegmentId, offset: Offset) -> Option<u64> {
        self.positions.get(&(segment, offset)).copied()
    }

    fn remember(&mut self, segment: SegmentId, offset: Offset, position: u64) {
        if self.positions.insert((segment, offset), position).is_none() {
            self.order.push_back((segment, offset));
        }
        while self.order.len() > HINTS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.positions.remove(&oldest);
        }
    }
}
