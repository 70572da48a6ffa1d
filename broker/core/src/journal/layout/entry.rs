//! The entries of a commit: how each is packed, and how it is read back. Every entry is a multiple of 8 and starts with 32
//! bytes: 0 kind u8 | 1 flags u8 = 0 | 2 zero u16 | 4 bytes u32 (all of the entry) | 8 topic id | 24 partition u32 | 28
//! segment use u32 (batch, direct batch, extent and compacted; else 0). A compacted segment adds 32 base offset u64 | 40 end u64 |
//! 48 bytes u64 | 56 file end u64 | 64 max timestamp i64 | 72 last append time i64 | 80 clean end u64. A direct batch adds 32 file position u64 | 40 the first 96 bytes
//! of the batch, with its stamp.
//!
//! Called by `layout`, which knows the commit around them, by `ring` (sizes) and by `recovery` (views). Invariants: what is
//! packed is what is read back; no bytes make it panic.

use super::{CommitHeader, LayoutError, field, put, u32_at, u32_of, u64_at};
use crate::journal::layout::COMMIT_HEADER_BYTES;
use crate::journal::{CompactedEntry, Entry, ExtentEntry, SegmentId, SegmentUse};
use crate::limits::BLOCK;
use corelog_wire::batch::{
    BatchError, BatchHeader, CheckedBatch, HEADER_BYTES, STAMP_BYTES, Stamp, parse_header,
};
use corelog_wire::ids::{Offset, TopicId, TopicPartition};

/// Bytes of an entry before what its kind adds: where the stamp of a batch starts.
pub(crate) const ENTRY_HEADER_BYTES: u64 = 32;

pub(super) const ENTRY: usize = 32;
pub(super) const EXTENT: usize = ENTRY + 40;
pub(super) const COMPACTED: usize = ENTRY + 56;
pub(super) const LOG_START: usize = ENTRY + 8;
/// Where the header of a direct batch starts in its entry.
pub(super) const DIRECT_BATCH: usize = ENTRY + 8;
pub(super) const DIRECT: usize = DIRECT_BATCH + HEADER_BYTES;

pub(super) const KIND_BATCH: u8 = 1;
pub(super) const KIND_EXTENT: u8 = 2;
pub(super) const KIND_LOG_START: u8 = 3;
pub(super) const KIND_REMOVED: u8 = 4;
// Kind 5 is Truncate, once there are followers.
pub(super) const KIND_DIRECT: u8 = 6;
pub(super) const KIND_COMPACTED: u8 = 7;

/// Where the fields of an entry are.
pub(super) mod entry_at {
    pub(in super::super) const FLAGS: usize = 1;
    pub(in super::super) const BYTES: usize = 4;
    pub(in super::super) const TOPIC: usize = 8;
    pub(in super::super) const PARTITION: usize = 24;
    pub(in super::super) const SEGMENT_USE: usize = 28;
    pub(in super::super) const LOG_START: usize = 32;
    pub(in super::super) const DIRECT_POSITION: usize = 32;
    pub(in super::super) const BASE: usize = 32;
    pub(in super::super) const FILE_POSITION: usize = 40;
    pub(in super::super) const EXTENT_BYTES: usize = 48;
    pub(in super::super) const FIRST: usize = 56;
    pub(in super::super) const END: usize = 64;
    pub(in super::super) const COMPACTED_END: usize = 40;
    pub(in super::super) const COMPACTED_BYTES: usize = 48;
    pub(in super::super) const FILE_END: usize = 56;
    pub(in super::super) const MAX_TIMESTAMP: usize = 64;
    pub(in super::super) const LAST_APPEND: usize = 72;
    pub(in super::super) const CLEAN_END: usize = 80;
}

/// Where the stamp of a direct batch starts in its entry.
pub(crate) const DIRECT_STAMP_AT: u64 = DIRECT_BATCH as u64;

/// Bytes of an entry in a commit.
#[must_use]
pub(crate) fn entry_bytes(entry: &Entry) -> u64 {
    match entry {
        Entry::Batch { batch, .. } => ENTRY_HEADER_BYTES + batch.bytes().len() as u64,
        Entry::Direct { .. } => DIRECT as u64,
        Entry::Extent(_) => EXTENT as u64,
        Entry::Compacted(_) => COMPACTED as u64,
        Entry::LogStart { .. } => LOG_START as u64,
        Entry::Removed { .. } => ENTRY_HEADER_BYTES,
    }
}

/// The first bytes of a batch, with its stamp.
pub(super) fn pack_stamped(stamp: &Stamp, batch: &CheckedBatch, bytes: &[u8], out: &mut [u8]) {
    put(out, 0, &stamp.encode(batch.header().header_crc));
    put(out, STAMP_BYTES, &bytes[STAMP_BYTES..]);
}

/// Packs one entry at the start of `out` and gives its length.
pub(super) fn pack_entry(entry: &Entry, out: &mut [u8]) -> usize {
    match entry {
        Entry::Batch { tp, segment_use, stamp, batch } => {
            let bytes = ENTRY + batch.bytes().len();
            pack_entry_header(KIND_BATCH, *tp, *segment_use, &mut out[..bytes]);
            pack_stamped(stamp, batch, batch.bytes(), &mut out[ENTRY..bytes]);
            bytes
        }
        Entry::Direct { tp, segment_use, stamp, batch, file_position } => {
            pack_entry_header(KIND_DIRECT, *tp, *segment_use, &mut out[..DIRECT]);
            put(out, entry_at::DIRECT_POSITION, &file_position.to_le_bytes());
            pack_stamped(stamp, batch, &batch.bytes()[..HEADER_BYTES], &mut out[DIRECT_BATCH..DIRECT]);
            DIRECT
        }
        Entry::Extent(extent) => {
            let SegmentId { tp, base, segment_use } = extent.segment;
            pack_entry_header(KIND_EXTENT, tp, segment_use, &mut out[..EXTENT]);
            put(out, entry_at::BASE, &base.get().to_le_bytes());
            put(out, entry_at::FILE_POSITION, &extent.file_position.to_le_bytes());
            put(out, entry_at::EXTENT_BYTES, &extent.bytes.to_le_bytes());
            put(out, entry_at::FIRST, &extent.first.get().to_le_bytes());
            put(out, entry_at::END, &extent.end.get().to_le_bytes());
            EXTENT
        }
        Entry::Compacted(compacted) => {
            pack_compacted(compacted, &mut out[..COMPACTED]);
            COMPACTED
        }
        Entry::LogStart { tp, log_start } => {
            pack_entry_header(KIND_LOG_START, *tp, SegmentUse(0), &mut out[..LOG_START]);
            put(out, entry_at::LOG_START, &log_start.get().to_le_bytes());
            LOG_START
        }
        Entry::Removed { tp } => {
            pack_entry_header(KIND_REMOVED, *tp, SegmentUse(0), &mut out[..ENTRY]);
            ENTRY
        }
    }
}

fn pack_compacted(compacted: &CompactedEntry, out: &mut [u8]) {
    let SegmentId { tp, base, segment_use } = compacted.segment;
    pack_entry_header(KIND_COMPACTED, tp, segment_use, out);
    put(out, entry_at::BASE, &base.get().to_le_bytes());
    put(out, entry_at::COMPACTED_END, &compacted.end.get().to_le_bytes());
    put(out, entry_at::COMPACTED_BYTES, &compacted.bytes.to_le_bytes());
    put(out, entry_at::FILE_END, &compacted.file_end.to_le_bytes());
    put(out, entry_at::MAX_TIMESTAMP, &compacted.max_timestamp_ms.to_le_bytes());
    put(out, entry_at::LAST_APPEND, &compacted.last_append_ms.to_le_bytes());
    put(out, entry_at::CLEAN_END, &compacted.clean_end.get().to_le_bytes());
}

fn pack_entry_header(kind: u8, tp: TopicPartition, segment_use: SegmentUse, entry: &mut [u8]) {
    put(entry, 0, &[kind, 0, 0, 0]);
    put(entry, entry_at::BYTES, &u32_of(entry.len() as u64).to_le_bytes());
    put(entry, entry_at::TOPIC, tp.topic.as_bytes());
    put(entry, entry_at::PARTITION, &tp.partition.to_le_bytes());
    put(entry, entry_at::SEGMENT_USE, &segment_use.0.to_le_bytes());
}

/// One entry of a commit that was read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryView {
    /// A record batch. Its header and stamp are checked; its body is covered by the commit's checksum.
    Batch {
        /// The partition.
        tp: TopicPartition,
        /// The file its segment has or will have.
        segment_use: SegmentUse,
        /// Where the batch starts in the commit.
        at_in_commit: u32,
        /// All of the batch.
        bytes: u32,
        /// What the producer said of it.
        header: BatchHeader,
        /// What the broker said of it.
        stamp: Stamp,
    },
    /// A record batch that is in its segment. Its header and stamp are checked.
    Direct {
        /// The partition.
        tp: TopicPartition,
        /// The file of its segment.
        segment_use: SegmentUse,
        /// Where it starts in the file.
        file_position: u64,
        /// What the producer said of it.
        header: BatchHeader,
        /// What the broker said of it.
        stamp: Stamp,
    },
    /// Bytes of a partition are in a segment, flushed.
    Extent(ExtentEntry),
    /// A file takes the place of some segments.
    Compacted(CompactedEntry),
    /// Everything of the partition below `log_start` is gone.
    LogStart {
        /// The partition.
        tp: TopicPartition,
        /// The first offset that is still there.
        log_start: Offset,
    },
    /// Nothing of the partition is left.
    Removed {
        /// The partition.
        tp: TopicPartition,
    },
}

/// The entries of a commit whose body was checked ([`CommitHeader::check_body`]). `commit`: its bytes from the header on.
/// The iterator ends after its first error.
///
/// # Errors
/// [`LayoutError::Short`] if the bytes end before the entries do; the iterator gives those about entries.
pub fn entries<'commit>(
    header: &CommitHeader,
    commit: &'commit [u8],
) -> Result<impl Iterator<Item = Result<EntryView, LayoutError>> + use<'commit>, LayoutError> {
    Ok(Entries { rest: header.body(commit)?, at: u32_of(COMMIT_HEADER_BYTES), left: header.entry_count })
}

struct Entries<'commit> {
    /// From the next entry to the end of the entries.
    rest: &'commit [u8],
    /// Where the next entry starts in the commit.
    at: u32,
    /// How many entries should follow.
    left: u32,
}

impl Iterator for Entries<'_> {
    type Item = Result<EntryView, LayoutError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() && self.left == 0 {
            return None;
        }
        let view = self.take();
        if view.is_err() {
            (self.rest, self.left) = (&[], 0);
        }
        Some(view)
    }
}

impl Entries<'_> {
    fn take(&mut self) -> Result<EntryView, LayoutError> {
        let at = self.at;
        let contradicts = |what| LayoutError::Entry { at, what };
        if self.left == 0 {
            return Err(contradicts("there are more entries than the header says"));
        }
        let Some(header) = self.rest.first_chunk::<ENTRY>() else {
            return Err(contradicts("there are fewer entries than the header says"));
        };
        if header[entry_at::FLAGS..entry_at::BYTES] != [0; 3] {
            return Err(contradicts("something where zeros belong"));
        }
        let bytes = u32_at(header, entry_at::BYTES);
        if bytes < u32_of(ENTRY_HEADER_BYTES) || !bytes.is_multiple_of(8) {
            return Err(contradicts("its length"));
        }
        let Some((entry, rest)) = self.rest.split_at_checked(bytes as usize) else {
            return Err(contradicts("its length"));
        };
        let view = view(header, entry, at)?;
        self.rest = rest;
        self.at += bytes;
        self.left -= 1;
        Ok(view)
    }
}

/// The entry at `at`; `entry` starts with `header` and is as long as it says.
fn view(header: &[u8; ENTRY], entry: &[u8], at: u32) -> Result<EntryView, LayoutError> {
    let contradicts = |what| LayoutError::Entry { at, what };
    let topic = TopicId::from_bytes(field(header, entry_at::TOPIC));
    let tp = TopicPartition::new(topic, u32_at(header, entry_at::PARTITION));
    let segment_use = SegmentUse(u32_at(header, entry_at::SEGMENT_USE));
    let kind = header[0];
    let (bytes_expected, has_segment) = match kind {
        KIND_BATCH => (None, true),
        KIND_EXTENT => (Some(EXTENT), true),
        KIND_COMPACTED => (Some(COMPACTED), true),
        KIND_LOG_START => (Some(LOG_START), false),
        KIND_REMOVED => (Some(ENTRY), false),
        KIND_DIRECT => (Some(DIRECT), true),
        kind => return Err(LayoutError::UnknownKind { at, kind }),
    };
    if bytes_expected.is_some_and(|bytes| bytes != entry.len()) {
        return Err(contradicts("its length is not that of its kind"));
    }
    if !has_segment && segment_use != SegmentUse(0) {
        return Err(contradicts("a segment where none belongs"));
    }
    match kind {
        KIND_BATCH => view_batch(tp, segment_use, &entry[ENTRY..], at),
        KIND_DIRECT => view_direct(tp, segment_use, entry, at),
        KIND_EXTENT => view_extent(tp, segment_use, entry).map(EntryView::Extent).map_err(contradicts),
        KIND_COMPACTED => {
            view_compacted(tp, segment_use, entry).map(EntryView::Compacted).map_err(contradicts)
        }
        KIND_LOG_START => {
            Ok(EntryView::LogStart { tp, log_start: Offset::new(u64_at(entry, entry_at::LOG_START)) })
        }
        _ => Ok(EntryView::Removed { tp }),
    }
}

fn view_batch(
    tp: TopicPartition,
    segment_use: SegmentUse,
    batch: &[u8],
    at: u32,
) -> Result<EntryView, LayoutError> {
    let (header, stamp) = stamped_header(tp, batch, at)?;
    if header.batch_bytes as usize != batch.len() {
        return Err(LayoutError::Entry { at, what: "its length is not that of its batch" });
    }
    let at_in_commit = at + u32_of(ENTRY_HEADER_BYTES);
    Ok(EntryView::Batch { tp, segment_use, at_in_commit, bytes: header.batch_bytes, header, stamp })
}

fn view_direct(
    tp: TopicPartition,
    segment_use: SegmentUse,
    entry: &[u8],
    at: u32,
) -> Result<EntryView, LayoutError> {
    let (header, stamp) = stamped_header(tp, &entry[DIRECT_BATCH..], at)?;
    let file_position = u64_at(entry, entry_at::DIRECT_POSITION);
    let end = file_position.checked_add(u64::from(header.batch_bytes));
    let misplaced = file_position < BLOCK || !file_position.is_multiple_of(8);
    if misplaced || end.is_none_or(|end| end > u64::MAX / 2) {
        return Err(LayoutError::Entry { at, what: "a batch that is not where one can be in a segment" });
    }
    Ok(EntryView::Direct { tp, segment_use, file_position, header, stamp })
}

/// The header and the stamp that `batch` starts with.
fn stamped_header(tp: TopicPartition, batch: &[u8], at: u32) -> Result<(BatchHeader, Stamp), LayoutError> {
    let (header, stamp) = parse_header(batch, tp).map_err(|error| LayoutError::Batch { at, error })?;
    let Some(stamp) = stamp else { return Err(LayoutError::Batch { at, error: BatchError::NotStamped }) };
    if header.record_count == 0 {
        return Err(LayoutError::Entry { at, what: "a batch without records" });
    }
    if stamp.base_offset.checked_add(u64::from(header.last_offset_delta) + 1).is_none() {
        return Err(LayoutError::Entry { at, what: "offsets beyond the last there can be" });
    }
    Ok((header, stamp))
}

fn view_extent(
    tp: TopicPartition,
    segment_use: SegmentUse,
    entry: &[u8],
) -> Result<ExtentEntry, &'static str> {
    let offset_at = |at| Offset::new(u64_at(entry, at));
    let extent = ExtentEntry {
        segment: SegmentId { tp, base: offset_at(entry_at::BASE), segment_use },
        file_position: u64_at(entry, entry_at::FILE_POSITION),
        bytes: u64_at(entry, entry_at::EXTENT_BYTES),
        first: offset_at(entry_at::FIRST),
        end: offset_at(entry_at::END),
    };
    if extent.file_position < BLOCK || !extent.file_position.is_multiple_of(BLOCK) {
        return Err("an extent that does not start at a block after the first");
    }
    let end = extent.file_position.checked_add(extent.bytes);
    if extent.bytes == 0 || !extent.bytes.is_multiple_of(8) || end.is_none_or(|end| end > u64::MAX / 2) {
        return Err("the length of an extent");
    }
    if extent.segment.base > extent.first || extent.first >= extent.end {
        return Err("the offsets of an extent");
    }
    Ok(extent)
}

fn view_compacted(
    tp: TopicPartition,
    segment_use: SegmentUse,
    entry: &[u8],
) -> Result<CompactedEntry, &'static str> {
    let offset_at = |at| Offset::new(u64_at(entry, at));
    let compacted = CompactedEntry {
        segment: SegmentId { tp, base: offset_at(entry_at::BASE), segment_use },
        end: offset_at(entry_at::COMPACTED_END),
        bytes: u64_at(entry, entry_at::COMPACTED_BYTES),
        file_end: u64_at(entry, entry_at::FILE_END),
        max_timestamp_ms: u64_at(entry, entry_at::MAX_TIMESTAMP).cast_signed(),
        last_append_ms: u64_at(entry, entry_at::LAST_APPEND).cast_signed(),
        clean_end: offset_at(entry_at::CLEAN_END),
    };
    if compacted.segment.base >= compacted.end {
        return Err("the offsets of a compacted segment");
    }
    let CompactedEntry { bytes, file_end, .. } = compacted;
    let holds = file_end.is_multiple_of(BLOCK) && file_end <= u64::MAX / 2;
    if !holds || bytes == 0 || !bytes.is_multiple_of(8) || file_end.saturating_sub(BLOCK) < bytes {
        return Err("the length of a compacted segment");
    }
    Ok(compacted)
}
