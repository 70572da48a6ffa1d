//! Cold reads: records that left memory, from segment files.
//!
//! Called by the room's `perform`; runs in its own queue with few shares, a few reads at a time. While there are commits it is one
//! short read: a commit waits on the device for what is before it (`docs/decisions/0019-reads-beside-commits.md`). What is read
//! is sent from the read buffer without a copy and never enters the tail: a backfill must not hurt those who read the end.
//! Where a read ended is remembered, and the last chunk of a few segments with it, so that a reader who goes on does
//! neither look up nor read twice. Memory: what is on its way to readers is counted, and beyond a limit reads shrink
//! to about a batch each.

use super::error::DiskError;
use super::file::File;
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
use std::time::{Duration, Instant};

/// Reads from files at once, per shard.
const READS_MAX: u64 = 4;
/// How long after a commit another one is expected.
const COMMITS_FOR: Duration = Duration::from_secs(1);
/// Bytes of one read beside commits.
const PIECE_BYTES: u64 = 128 * KIB;
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
    last_commit: Cell<Option<Instant>>,
}

/// A part of a file in memory.
#[derive(Debug)]
struct Chunk {
    start: u64,
    bytes: Content,
    held: Rc<Cell<u64>>,
}

/// What was read.
#[derive(Debug)]
enum Content {
    Whole(ReadResult),
    /// A batch that is longer than a piece, put together.
    Pieces(Vec<u8>),
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        match &self.bytes {
            Content::Whole(bytes) => bytes,
            Content::Pieces(bytes) => bytes,
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.held.set(self.held.get() - self.as_ref().len() as u64);
    }
}

impl Chunk {
    fn covers(&self, from: u64, bytes: u64) -> bool {
        self.start <= from && from + bytes <= self.start + self.as_ref().len() as u64
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
            last_commit: Cell::default(),
        }
    }

    /// There is a commit: reads keep out of the way of the next ones.
    pub(super) fn commit_at(&self, now: Instant) {
        self.last_commit.set(Some(now));
    }

    fn are_there_commits(&self) -> bool {
        self.last_commit.get().is_some_and(|at| at.elapsed() < COMMITS_FOR)
    }

    /// Reads a part of a file.
    async fn content(&self, file: &File, start: u64, bytes: u64) -> Result<Content, ColdError> {
        let length = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        // The semaphore is never closed, so it always gives.
        if !self.are_there_commits() {
            let _permit = self.reads.acquire_static_permit(1).await.ok();
            return Ok(Content::Whole(file.read(start, length(bytes)).await?));
        }
        let mut pieces = Vec::new();
        let mut at = start;
        while at < start + bytes {
            let _permit = self.reads.acquire_static_permit(READS_MAX).await.ok();
            let piece = file.read(at, length(PIECE_BYTES.min(start + bytes - at))).await?;
            if piece.len() as u64 == bytes {
                return Ok(Content::Whole(piece));
            }
            pieces.reserve_exact(length(bytes) - pieces.len());
            pieces.extend_from_slice(&piece);
            at += PIECE_BYTES;
        }
        Ok(Content::Pieces(pieces))
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
        let wanted = if self.are_there_commits() { wanted.min(PIECE_BYTES).max(bytes) } else { wanted };
        let start = from / BLOCK * BLOCK;
        let end = (from + wanted).min(read.file_end.max(from + bytes)).next_multiple_of(BLOCK);
        let file = self.segments.open(hold).await?;
        let content = self.content(&file, start, end - start).await?;
        meters.cold_file_bytes.add(end - start);
        self.held.set(self.held.get() + (end - start));
        let chunk = Rc::new(Chunk { start, bytes: content, held: Rc::clone(&self.held) });
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn beside_commits_a_read_is_made_of_pieces_and_otherwise_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let whole: Vec<u8> = (0..(MIB + BLOCK) / 8).flat_map(u64::to_le_bytes).collect();
        std::fs::write(folder.path().join("file"), &whole).unwrap();
        let (done, read) = channel();
        let options = crate::rt::Options::default();
        let running = crate::rt::start(&options, vec![folder.path().to_owned()], move |_, folder| {
            let done = done.clone();
            async move {
                super::super::file::probe(&folder).await.unwrap();
                let file = File::open(&folder.join("file"), false).await.unwrap();
                let cold = Cold::new(Rc::new(Segments::new(folder)));
                let alone = cold.content(&file, 0, MIB + BLOCK).await.unwrap();
                cold.commit_at(Instant::now());
                let beside = cold.content(&file, 0, MIB + BLOCK).await.unwrap();
                let short = cold.content(&file, BLOCK, PIECE_BYTES).await.unwrap();
                cold.commit_at(Instant::now().checked_sub(COMMITS_FOR).unwrap());
                let again = cold.content(&file, 0, MIB + BLOCK).await.unwrap();
                let contents = [alone, beside, short, again].map(|content| match content {
                    Content::Whole(bytes) => (1, bytes.to_vec()),
                    Content::Pieces(bytes) => (2, bytes),
                });
                done.send(contents).unwrap();
            }
        });
        running.unwrap().join().unwrap();
        let [alone, beside, short, again] = read.recv().unwrap();
        assert_eq!((alone.0, beside.0, short.0, again.0), (1, 2, 1, 1));
        let [from, until] = [BLOCK, BLOCK + PIECE_BYTES].map(|at| usize::try_from(at).unwrap());
        assert!(alone.1 == whole && beside.1 == whole && short.1 == whole[from..until] && again.1 == whole);
    }
}
