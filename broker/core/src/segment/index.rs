//! The sparse index over a segment: where to start looking for an offset or a time.
//!
//! A segment that takes extents has an [`Index`] in memory (`log` pushes to it, checkpoints keep it); one that takes no
//! more has an index file with the same entries and with what truncation would need of it ([`IndexFileContent`]). An
//! index may only ever say too early a position: a scan goes on from there. A missing or damaged index file costs a
//! scan of the segment and nothing else.
//!
//! Index file, little-endian: 64 bytes of header (0 magic "CLX1" | 4 version u8 = 1 | 5 flags u8 = 0 | 6 zero u16 | 8 topic
//! id | 24 partition u32 | 28 segment use u32 | 32 base offset u64 | 40 archive bytes u32 | 44 crc32 of the archive u32 |
//! 48 zeros | 60 crc32 of 0..60 u32), the rkyv archive, zeros up to a block.
//!
//! Invariants: the entries' offsets and positions rise strictly, their times never fall; the first batch that was
//! pushed keeps its entry; there are at most [`INDEX_ENTRIES_MAX`] in memory. This room refuses to know what the
//! batches say, and of `log` it knows only what is put into an index file.

use super::layout::{field, id_header, parse_id_header, seal_header};
use super::{BLOCK, SegmentError};
use crate::checkpoint::{capture_epochs, capture_producers};
use crate::journal::SegmentId;
use crate::limits::{INDEX_ENTRIES_MAX, INDEX_STEP_BYTES};
use crate::log;
use corelog_wire::ids::Offset;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize, rancor};

const MAGIC: [u8; 4] = *b"CLX1";
const VERSION: u8 = 1;
/// Not zero, so that a header of zeros has no checksum of zero.
const CRC_SEED: u32 = 0x3158_4C43;
const HEADER_BYTES: usize = 64;
const BLOCK_BYTES: usize = 4096;
const ARCHIVE_BYTES_AT: usize = 40;
const ARCHIVE_CRC_AT: usize = 44;
const ZERO_AT: usize = 48;
const CRC_AT: usize = 60;

const _: () = assert!(BLOCK_BYTES as u64 == BLOCK);
const _: () = assert!(INDEX_ENTRIES_MAX >= 2);

/// One batch that an index knows.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Its base offset.
    pub offset: u64,
    /// Where it starts in the file.
    pub file_position: u64,
    /// The latest max timestamp of all batches of the segment before it; the smallest number there is if it is the
    /// first. So a batch with a later one is here or further on.
    pub max_timestamp_before_ms: i64,
}

/// The index of one segment, in memory. Plain numbers, so that a checkpoint can keep it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Index {
    entries: Vec<IndexEntry>,
    /// Least bytes between two entries.
    step_bytes: u64,
    /// Where the last batch that was pushed ends; 0 before the first.
    file_end: u64,
    /// The latest max timestamp of all batches; the smallest number there is before the first.
    max_timestamp_ms: i64,
}

impl Default for Index {
    fn default() -> Self {
        Self { entries: Vec::new(), step_bytes: INDEX_STEP_BYTES, file_end: 0, max_timestamp_ms: i64::MIN }
    }
}

impl Index {
    /// An index of no batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of the next batch of the segment: its base offset, where it starts in the file, its length and its max
    /// timestamp. Batches come in the order of the log; one that does not is left out, since what a disk said may have led
    /// here, and an index without it is still right.
    pub fn push(&mut self, base_offset: Offset, file_position: u64, bytes: u32, max_timestamp_ms: i64) {
        let in_order = file_position >= self.file_end
            && self.entries.last().is_none_or(|last| last.offset < base_offset.get());
        if !in_order {
            self.max_timestamp_ms = self.max_timestamp_ms.max(max_timestamp_ms);
            return;
        }
        let entry = IndexEntry {
            offset: base_offset.get(),
            file_position,
            max_timestamp_before_ms: self.max_timestamp_ms,
        };
        if self.wants(file_position) {
            if self.entries.len() >= INDEX_ENTRIES_MAX {
                self.thin();
            }
            if self.wants(file_position) {
                self.entries.push(entry);
            }
        }
        self.file_end = file_position.saturating_add(u64::from(bytes));
        self.max_timestamp_ms = self.max_timestamp_ms.max(max_timestamp_ms);
    }

    fn wants(&self, file_position: u64) -> bool {
        self.entries
            .last()
            .is_none_or(|last| file_position.saturating_sub(last.file_position) >= self.step_bytes)
    }

    /// Every second entry goes, from the second one on; the step doubles.
    fn thin(&mut self) {
        let mut row = 0;
        self.entries.retain(|_| {
            row += 1;
            row % 2 == 1
        });
        self.step_bytes = self.step_bytes.saturating_mul(2);
    }

    /// Where to start looking for the batch that holds `offset`: the start of a batch at or before it. `None` if the
    /// index knows no such batch.
    #[must_use]
    pub fn start_for(&self, offset: Offset) -> Option<u64> {
        let after = self.entries.partition_point(|entry| entry.offset <= offset.get());
        self.entries[..after].last().map(|entry| entry.file_position)
    }

    /// Where to start looking for the first batch whose max timestamp is `timestamp_ms` or later: the start of a batch at
    /// or before it. `None` if no batch is so late.
    #[must_use]
    pub fn start_for_time(&self, timestamp_ms: i64) -> Option<u64> {
        if timestamp_ms > self.max_timestamp_ms { None } else { self.floor_for_time(timestamp_ms) }
    }

    /// The last entry that has no batch so late before it.
    fn floor_for_time(&self, timestamp_ms: i64) -> Option<u64> {
        let after = self.entries.partition_point(|entry| entry.max_timestamp_before_ms < timestamp_ms);
        self.entries.get(after.saturating_sub(1)).map(|entry| entry.file_position)
    }

    /// The latest max timestamp of all batches; `None` before the first.
    #[must_use]
    pub fn max_timestamp_ms(&self) -> Option<i64> {
        (!self.entries.is_empty()).then_some(self.max_timestamp_ms)
    }

    /// Where the last batch that was pushed ends in the file; 0 before the first.
    #[must_use]
    pub const fn file_end(&self) -> u64 {
        self.file_end
    }

    /// The entries, in the order of the log.
    #[must_use]
    pub fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// What contradicts this room's invariants, if anything does. To be asked of an index that was read back.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        if self.entries.len() > INDEX_ENTRIES_MAX {
            return Some("an index has more entries than there may be");
        }
        let rise = self.entries.windows(2).all(|pair| {
            pair[0].offset < pair[1].offset
                && pair[0].file_position < pair[1].file_position
                && pair[0].max_timestamp_before_ms <= pair[1].max_timestamp_before_ms
        });
        if !rise {
            return Some("the entries of an index do not rise");
        }
        let last = self.entries.last();
        if last.is_some_and(|last| {
            last.file_position >= self.file_end || last.max_timestamp_before_ms > self.max_timestamp_ms
        }) {
            return Some("an index ends before its last entry");
        }
        if self.entries.first().is_some_and(|first| first.file_position < BLOCK) {
            return Some("an index names a batch in the first block");
        }
        if self.step_bytes < INDEX_STEP_BYTES {
            return Some("the step of an index is too small");
        }
        None
    }
}

/// One batch that a producer appended.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerBatch {
    /// Sequence of its first record.
    pub first_sequence: i32,
    /// Sequence of its last record.
    pub last_sequence: i32,
    /// Offset of its first record.
    pub base_offset: u64,
    /// Offset after its last record.
    pub end_offset: u64,
    /// When it was appended, in milliseconds since the Unix epoch.
    pub append_timestamp_ms: i64,
}

/// One producer and the batches that are remembered of it, oldest first.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ProducerRecord {
    /// Its id.
    pub id: i64,
    /// Its newest epoch.
    pub epoch: i16,
    /// Its last batches.
    pub batches: Vec<ProducerBatch>,
}

/// What an index file says of its segment.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct IndexFileContent {
    /// Offset after the segment's last record.
    pub end: u64,
    /// File position after its last extent.
    pub file_end: u64,
    /// Where to start looking.
    pub index: Index,
    /// Leader epochs and their start offsets, as they were at the segment's start.
    pub epochs: Vec<(u32, u64)>,
    /// Producers, as they were at the segment's start.
    pub producers: Vec<ProducerRecord>,
}

impl IndexFileContent {
    /// What is to be said of a segment.
    fn of(segment: &log::Segment) -> Self {
        let (epochs, producers) = segment
            .opening
            .as_deref()
            .map(|(epochs, producers)| (capture_epochs(epochs), capture_producers(producers)))
            .unwrap_or_default();
        Self {
            end: segment.end.get(),
            file_end: segment.file_end,
            index: segment.index.clone().unwrap_or_default(),
            epochs,
            producers,
        }
    }

    /// The index file: header, archive, zeros up to a block.
    ///
    /// # Panics
    /// If it cannot be archived, which needs more than 2 GiB of it: a bug of the caller.
    #[must_use]
    pub fn encode(&self, id: SegmentId) -> Vec<u8> {
        #[expect(
            clippy::expect_used,
            reason = "archiving into memory fails only beyond 2 GiB, limits keep far below"
        )]
        let archive = rkyv::to_bytes::<rancor::Error>(self).expect("an index file of sane size");
        #[expect(clippy::expect_used, reason = "the same bound")]
        let archive_bytes = u32::try_from(archive.len()).expect("an index file of sane size");
        let used = HEADER_BYTES + archive.len();
        let mut file = Vec::with_capacity(used.next_multiple_of(BLOCK_BYTES));
        file.extend_from_slice(&id_header(MAGIC, VERSION, id));
        file[ARCHIVE_BYTES_AT..ARCHIVE_CRC_AT].copy_from_slice(&archive_bytes.to_le_bytes());
        file[ARCHIVE_CRC_AT..ZERO_AT].copy_from_slice(&crc32fast::hash(&archive).to_le_bytes());
        seal_header(&mut file, CRC_SEED);
        file.extend_from_slice(&archive);
        file.resize(used.next_multiple_of(BLOCK_BYTES), 0);
        file
    }

    /// What is wrong with content whose checksums held.
    fn contradiction(&self, base: Offset) -> Option<&'static str> {
        if let Some(broken) = self.index.broken_invariant() {
            return Some(broken);
        }
        if self.end <= base.get() || self.file_end < BLOCK {
            return Some("a segment that ends before it starts");
        }
        if self.index.file_end > self.file_end {
            return Some("an index that reaches beyond its segment");
        }
        let entries = self.index.entries();
        if entries.first().is_some_and(|entry| entry.offset < base.get())
            || entries.last().is_some_and(|entry| entry.offset >= self.end)
        {
            return Some("an index of offsets that the segment has not");
        }
        if !self.epochs.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1) {
            return Some("epochs that do not rise");
        }
        None
    }
}

/// The index file of a segment that takes no more extents.
#[must_use]
pub fn index_file(id: SegmentId, segment: &log::Segment) -> Vec<u8> {
    IndexFileContent::of(segment).encode(id)
}

/// An index file that was read back, whole and sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexFile {
    content: IndexFileContent,
}

impl IndexFile {
    /// Opens the index file of segment `id`. Copies its archive once, to where it is aligned.
    ///
    /// # Errors
    /// [`SegmentError`], but none about batches. The segment is then scanned from its first extent.
    pub fn open(bytes: &[u8], id: SegmentId) -> Result<Self, SegmentError> {
        let found = parse_id_header(bytes, MAGIC, VERSION, CRC_SEED)?;
        if found != id {
            return Err(SegmentError::OtherSegment { found });
        }
        if bytes[ZERO_AT..CRC_AT].iter().any(|&byte| byte != 0) {
            return Err(SegmentError::Contradiction { what: "something where zeros belong" });
        }
        let used = HEADER_BYTES + u32::from_le_bytes(field(bytes, ARCHIVE_BYTES_AT)) as usize;
        let Some(archive) = bytes.get(HEADER_BYTES..used) else {
            return Err(SegmentError::Short { bytes: bytes.len() as u64, wanted: used as u64 });
        };
        if crc32fast::hash(archive) != u32::from_le_bytes(field(bytes, ARCHIVE_CRC_AT)) {
            return Err(SegmentError::Checksum);
        }
        let mut aligned = AlignedVec::<16>::with_capacity(archive.len());
        aligned.extend_from_slice(archive);
        let Ok(content) = rkyv::from_bytes::<IndexFileContent, rancor::Failure>(&aligned) else {
            return Err(SegmentError::Contradiction { what: "its archive is not one of an index" });
        };
        match content.contradiction(id.base) {
            None => Ok(Self { content }),
            Some(what) => Err(SegmentError::Contradiction { what }),
        }
    }

    /// Where to start looking for the batch that holds `offset`.
    #[must_use]
    pub fn start_for(&self, offset: Offset) -> u64 {
        self.content.index.start_for(offset).unwrap_or(BLOCK)
    }

    /// Where to start looking for the first batch whose max timestamp is `timestamp_ms` or later. If none is, the scan
    /// from there finds that out.
    #[must_use]
    pub fn start_for_time(&self, timestamp_ms: i64) -> u64 {
        self.content.index.floor_for_time(timestamp_ms).unwrap_or(BLOCK)
    }

    /// All it says.
    #[must_use]
    pub const fn content(&self) -> &IndexFileContent {
        &self.content
    }
}

#[cfg(test)]
mod tests;
