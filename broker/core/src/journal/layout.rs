//! The bytes of a commit: header, entries, padding. All numbers little-endian.
//!
//! Called by the hands (pack), by `ring` (sizes), by `scan` and `recovery` (parse). Header, 64 bytes: 0 magic "CLJ1" |
//! 4 version u8 = 1 | 5 flags u8 = 0 | 6 zero u16 | 8 session u64 | 16 position u64 | 24 `flushed_to` u64 | 32 bytes u32
//! (all of the commit, a multiple of [`BLOCK`]) | 36 `entries_bytes` u32 | 40 `entry_count` u32 | 44 `prev_crc` u32 | 48
//! `body_crc` u32 | 52 zero u64 | 60 `header_crc` u32. Entries follow, then zeros up to `bytes`. Every entry is a
//! multiple of 8 and starts with 32 bytes: 0 kind u8 | 1 flags u8 = 0 | 2 zero u16 | 4 bytes u32 (all of the entry) |
//! 8 topic id | 24 partition u32 | 28 segment use u32 (batch, direct batch and extent; else 0). A direct batch adds 32 file
//! position u64 | 40 the first 96 bytes of the batch, with its stamp.
//!
//! Invariants: what [`Packer`] packs, [`CommitHeader::parse`] and [`entries`] give back; no bytes make this room panic;
//! zeros are never a commit. It refuses to know where in a ring the bytes lie and whether a sound commit counts.

use super::{Commit, DirectWrite, Entry, ExtentEntry, Position, SegmentId, SegmentUse, Session};
use crate::limits::{BLOCK, COMMIT_BYTES_MAX};
use corelog_wire::batch::{
    BatchError, BatchHeader, CheckedBatch, HEADER_BYTES, STAMP_BYTES, Stamp, parse_header,
};
use corelog_wire::ids::{Offset, TopicId, TopicPartition};
use thiserror::Error;

/// Bytes of a commit before its first entry.
pub const COMMIT_HEADER_BYTES: u64 = 64;
/// Bytes of an entry before what its kind adds: where the stamp of a batch starts.
pub(crate) const ENTRY_HEADER_BYTES: u64 = 32;

const HEADER: usize = 64;
const ENTRY: usize = 32;
const EXTENT: usize = ENTRY + 40;
const LOG_START: usize = ENTRY + 8;
/// Where the header of a direct batch starts in its entry.
const DIRECT_BATCH: usize = ENTRY + 8;
const DIRECT: usize = DIRECT_BATCH + HEADER_BYTES;

const MAGIC: [u8; 4] = *b"CLJ1";
const VERSION: u8 = 1;
/// Not zero, so that a header of zeros has no checksum of zero.
const CRC_SEED: u32 = 0x314A_4C43;

const KIND_BATCH: u8 = 1;
const KIND_EXTENT: u8 = 2;
const KIND_LOG_START: u8 = 3;
const KIND_REMOVED: u8 = 4;
// Kind 5 is Truncate, once there are followers.
const KIND_DIRECT: u8 = 6;

/// Where the fields of a commit header are.
mod at {
    pub(super) const VERSION: usize = 4;
    pub(super) const SESSION: usize = 8;
    pub(super) const POSITION: usize = 16;
    pub(super) const FLUSHED_TO: usize = 24;
    pub(super) const BYTES: usize = 32;
    pub(super) const ENTRIES_BYTES: usize = 36;
    pub(super) const ENTRY_COUNT: usize = 40;
    pub(super) const PREV_CRC: usize = 44;
    pub(super) const BODY_CRC: usize = 48;
    pub(super) const ZERO: usize = 52;
    pub(super) const CRC: usize = 60;
}

/// Where the fields of an entry are.
mod entry_at {
    pub(super) const FLAGS: usize = 1;
    pub(super) const BYTES: usize = 4;
    pub(super) const TOPIC: usize = 8;
    pub(super) const PARTITION: usize = 24;
    pub(super) const SEGMENT_USE: usize = 28;
    pub(super) const LOG_START: usize = 32;
    pub(super) const DIRECT_POSITION: usize = 32;
    pub(super) const BASE: usize = 32;
    pub(super) const FILE_POSITION: usize = 40;
    pub(super) const EXTENT_BYTES: usize = 48;
    pub(super) const FIRST: usize = 56;
    pub(super) const END: usize = 64;
}

const _: () = assert!(HEADER as u64 == COMMIT_HEADER_BYTES && ENTRY as u64 == ENTRY_HEADER_BYTES);
const _: () = assert!(COMMIT_BYTES_MAX <= u32::MAX as u64 && COMMIT_BYTES_MAX.is_multiple_of(BLOCK));

/// Why bytes are not a commit, or not one of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The bytes end too early.
    #[error("{bytes} bytes where {wanted} were expected")]
    Short {
        /// What there was.
        bytes: u64,
        /// What was expected.
        wanted: u64,
    },
    /// No commit starts here.
    #[error("no commit header")]
    Magic,
    /// A header that was torn or rotted.
    #[error("the commit header's checksum is wrong")]
    HeaderChecksum,
    /// Written by a newer broker.
    #[error("commit format {version} is unknown here: start a newer broker")]
    NewerVersion {
        /// The version that was found.
        version: u8,
    },
    /// The header's checksum holds but a value may not be.
    #[error("the commit header contradicts itself: {what}")]
    Header {
        /// In what.
        what: &'static str,
    },
    /// Entries that were torn or rotted.
    #[error("the checksum of the commit's entries is wrong")]
    BodyChecksum,
    /// An entry whose values may not be, though the checksums hold.
    #[error("the entry {at} bytes into the commit contradicts itself: {what}")]
    Entry {
        /// Where it starts in the commit.
        at: u32,
        /// In what.
        what: &'static str,
    },
    /// An entry of a kind that this version does not know.
    #[error("the entry {at} bytes into the commit is of the unknown kind {kind}: start a newer broker")]
    UnknownKind {
        /// Where it starts in the commit.
        at: u32,
        /// Its kind.
        kind: u8,
    },
    /// A batch that is not what its entry says.
    #[error("the entry {at} bytes into the commit has a bad batch: {error}")]
    Batch {
        /// Where the entry starts in the commit.
        at: u32,
        /// What is wrong with the batch.
        error: BatchError,
    },
}

/// The parsed header of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitHeader {
    /// The start of the shard that wrote it.
    pub session: Session,
    /// Where it says it starts.
    pub position: Position,
    /// Everything below was known to be flushed when it was packed.
    pub flushed_to: Position,
    /// All of it: header, entries and padding.
    pub bytes: u32,
    /// Its entries.
    pub entries_bytes: u32,
    /// How many entries there are.
    pub entry_count: u32,
    /// `header_crc` of the commit before it; 0 if there was none.
    pub prev_crc: u32,
    /// crc32 of the entries.
    pub body_crc: u32,
    /// crc32 of the header up to here, from a seed that is not zero.
    pub header_crc: u32,
}

impl CommitHeader {
    /// Reads the header that `bytes` start with. Looks at nothing after it.
    ///
    /// # Errors
    /// See [`LayoutError`]; none of those about entries.
    pub fn parse(bytes: &[u8]) -> Result<Self, LayoutError> {
        let Some(header) = bytes.first_chunk::<HEADER>() else {
            return Err(LayoutError::Short { bytes: bytes.len() as u64, wanted: COMMIT_HEADER_BYTES });
        };
        if header[..at::VERSION] != MAGIC {
            return Err(LayoutError::Magic);
        }
        let header_crc = u32_at(header, at::CRC);
        if header_crc != seeded_crc(&header[..at::CRC]) {
            return Err(LayoutError::HeaderChecksum);
        }
        if header[at::VERSION] > VERSION {
            return Err(LayoutError::NewerVersion { version: header[at::VERSION] });
        }
        let parsed = Self {
            session: Session(u64_at(header, at::SESSION)),
            position: Position::new(u64_at(header, at::POSITION)),
            flushed_to: Position::new(u64_at(header, at::FLUSHED_TO)),
            bytes: u32_at(header, at::BYTES),
            entries_bytes: u32_at(header, at::ENTRIES_BYTES),
            entry_count: u32_at(header, at::ENTRY_COUNT),
            prev_crc: u32_at(header, at::PREV_CRC),
            body_crc: u32_at(header, at::BODY_CRC),
            header_crc,
        };
        let reserved = [&header[at::VERSION..at::SESSION], &header[at::ZERO..at::CRC]];
        if reserved != [&[VERSION, 0, 0, 0][..], &[0; at::CRC - at::ZERO]] {
            return Err(LayoutError::Header { what: "something where zeros belong" });
        }
        parsed.contradiction().map_or(Ok(parsed), |what| Err(LayoutError::Header { what }))
    }

    fn contradiction(&self) -> Option<&'static str> {
        let bytes = u64::from(self.bytes);
        let used = COMMIT_HEADER_BYTES + u64::from(self.entries_bytes);
        if bytes == 0 || !bytes.is_multiple_of(BLOCK) || bytes > COMMIT_BYTES_MAX {
            return Some("its length");
        }
        if used > bytes || !self.entries_bytes.is_multiple_of(8) {
            return Some("the length of its entries");
        }
        if u64::from(self.entry_count) * ENTRY_HEADER_BYTES > u64::from(self.entries_bytes)
            || (self.entry_count == 0) != (self.entries_bytes == 0)
        {
            return Some("the number of its entries");
        }
        if !self.position.get().is_multiple_of(BLOCK) || self.position.get() > u64::MAX / 2 {
            return Some("its position");
        }
        if self.flushed_to > self.position || !self.flushed_to.get().is_multiple_of(BLOCK) {
            return Some("what it says is flushed");
        }
        None
    }

    /// Holds the entries against their checksum. `commit`: the bytes of the commit from its header on.
    ///
    /// # Errors
    /// [`LayoutError::Short`] or [`LayoutError::BodyChecksum`].
    pub fn check_body(&self, commit: &[u8]) -> Result<(), LayoutError> {
        if crc32fast::hash(self.body(commit)?) == self.body_crc {
            Ok(())
        } else {
            Err(LayoutError::BodyChecksum)
        }
    }

    fn body<'commit>(&self, commit: &'commit [u8]) -> Result<&'commit [u8], LayoutError> {
        let wanted = HEADER + self.entries_bytes as usize;
        commit
            .get(HEADER..wanted)
            .ok_or(LayoutError::Short { bytes: commit.len() as u64, wanted: wanted as u64 })
    }
}

/// Bytes of the entry of a direct batch, however long that is.
pub(crate) const DIRECT_ENTRY_BYTES: u64 = DIRECT as u64;
/// Where the stamp of a direct batch starts in its entry.
pub(crate) const DIRECT_STAMP_AT: u64 = DIRECT_BATCH as u64;

/// Bytes of an entry in a commit.
#[must_use]
pub(crate) fn entry_bytes(entry: &Entry) -> u64 {
    match entry {
        Entry::Batch { batch, .. } => ENTRY_HEADER_BYTES + batch.bytes().len() as u64,
        Entry::Direct { .. } => DIRECT_ENTRY_BYTES,
        Entry::Extent(_) => EXTENT as u64,
        Entry::LogStart { .. } => LOG_START as u64,
        Entry::Removed { .. } => ENTRY_HEADER_BYTES,
    }
}

/// Turns commits into bytes, in their order, each linked to the one before it.
#[derive(Debug)]
pub struct Packer {
    session: Session,
    last_crc: u32,
    next: Option<Position>,
}

impl Packer {
    /// A packer for the commits of `session`. `last_crc`: `header_crc` of the last commit that stands before them, 0 if
    /// there is none.
    #[must_use]
    pub const fn new(session: Session, last_crc: u32) -> Self {
        Self { session, last_crc, next: None }
    }

    /// `header_crc` of the last commit that was packed.
    #[must_use]
    pub const fn last_crc(&self) -> u32 {
        self.last_crc
    }

    /// Packs the next commit into `out`: header, entries, zeros to the end. Every byte of `out` is written, so it may be
    /// recycled memory. Copies every batch exactly once; of its first 24 bytes the stamp is written instead.
    ///
    /// # Panics
    /// If the commit is of another session, does not start where the one before it ended, or does not fill `out`:
    /// bugs of the caller, noticed before anything reaches the disk.
    pub fn pack(&mut self, commit: &Commit, out: &mut [u8]) {
        assert_eq!(commit.session, self.session, "a commit of another session");
        assert!(self.next.is_none_or(|next| next == commit.at), "a commit that is not the next one");
        assert_eq!(commit.bytes, out.len() as u64, "a buffer that is not the commit's size");
        assert!(
            commit.bytes.is_multiple_of(BLOCK) && commit.bytes <= COMMIT_BYTES_MAX,
            "a commit of odd size"
        );
        let entries_bytes: u64 = commit.entries.iter().map(entry_bytes).sum();
        assert!(COMMIT_HEADER_BYTES + entries_bytes <= commit.bytes, "a commit with more entries than room");

        let (header, body) = out.split_at_mut(HEADER);
        let mut rest = &mut *body;
        let mut count = 0_u32;
        for entry in &commit.entries {
            let bytes = pack_entry(entry, rest);
            rest = &mut rest[bytes..];
            count += 1;
        }
        let padding = rest.len();
        rest.fill(0);
        let body_crc = crc32fast::hash(&body[..body.len() - padding]);

        header.fill(0);
        put(header, 0, &MAGIC);
        put(header, at::VERSION, &[VERSION, 0]);
        put(header, at::SESSION, &commit.session.0.to_le_bytes());
        put(header, at::POSITION, &commit.at.get().to_le_bytes());
        put(header, at::FLUSHED_TO, &commit.flushed_to.get().to_le_bytes());
        put(header, at::BYTES, &u32_of(commit.bytes).to_le_bytes());
        put(header, at::ENTRIES_BYTES, &u32_of(entries_bytes).to_le_bytes());
        put(header, at::ENTRY_COUNT, &count.to_le_bytes());
        put(header, at::PREV_CRC, &self.last_crc.to_le_bytes());
        put(header, at::BODY_CRC, &body_crc.to_le_bytes());
        let header_crc = seeded_crc(&header[..at::CRC]);
        put(header, at::CRC, &header_crc.to_le_bytes());

        self.last_crc = header_crc;
        self.next = Some(commit.at.plus(commit.bytes));
    }

    /// Packs the batches of a direct write of this commit, stamped, into `out`, zeros behind them. Copies each exactly once.
    ///
    /// # Panics
    /// If `out` is not the write's size: a bug of the caller, noticed before anything reaches the disk.
    pub fn pack_direct(commit: &Commit, write: &DirectWrite, out: &mut [u8]) {
        assert_eq!(
            write.bytes.next_multiple_of(BLOCK),
            out.len() as u64,
            "memory that is not the write's size"
        );
        let mut rest = out;
        for entry in &commit.entries {
            if let Entry::Direct { tp, segment_use, stamp, batch, .. } = entry
                && (*tp, *segment_use) == (write.segment.tp, write.segment.segment_use)
            {
                let (own, after) = rest.split_at_mut(batch.bytes().len());
                pack_stamped(stamp, batch, batch.bytes(), own);
                rest = after;
            }
        }
        assert!((rest.len() as u64) < BLOCK, "batches that are not those of the write");
        rest.fill(0);
    }
}

/// The first bytes of a batch, with its stamp.
fn pack_stamped(stamp: &Stamp, batch: &CheckedBatch, bytes: &[u8], out: &mut [u8]) {
    put(out, 0, &stamp.encode(batch.header().header_crc));
    put(out, STAMP_BYTES, &bytes[STAMP_BYTES..]);
}

/// Packs one entry at the start of `out` and gives its length.
fn pack_entry(entry: &Entry, out: &mut [u8]) -> usize {
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

/// crc32 from [`CRC_SEED`].
fn seeded_crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(CRC_SEED);
    hasher.update(bytes);
    hasher.finalize()
}

/// The `N` bytes at `at`; zeros beyond the end.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A length that is bounded by [`COMMIT_BYTES_MAX`].
const fn u32_of(bytes: u64) -> u32 {
    assert!(bytes <= u32::MAX as u64, "a length beyond that of a commit");
    #[expect(clippy::cast_possible_truncation, reason = "just compared")]
    {
        bytes as u32
    }
}

#[cfg(test)]
mod tests;
