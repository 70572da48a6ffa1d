//! The journal: one ring per shard through which every append of every partition becomes durable.
//!
//! A commit gathers the entries of many partitions, is padded to [`BLOCK`] and is made durable by one write and one
//! flush. Positions count bytes since the journal's birth and never wrap; the ring is where they are kept
//! ([`Position::in_ring`]). This room knows the bytes (`layout`, `superblock`), the room left and the order of
//! proofs (`ring`), and how to tell a torn tail from corruption (`scan`). It knows no file.
//!
//! Invariants: positions are handed out in order and without gaps; a commit counts as flushed only when every
//! commit before it is; a block is written again only when no checkpoint slot needs it.

mod cut;
mod layout;
mod ring;
mod scan;
mod superblock;

pub use cut::{DirectFile, DirectPlan};
pub(crate) use layout::ENTRY_HEADER_BYTES;
pub use layout::{COMMIT_HEADER_BYTES, CommitHeader, EntryView, LayoutError, Packer, entries};
pub use ring::{Cut, Placed, PlacedDirect, Proof, Ring};
pub use scan::{RingRead, Scan, Scanned, Verdict};
pub use superblock::{SUPERBLOCK_BYTES, SUPERBLOCK_SLOTS, SessionStart, Superblock, SuperblockError};

use crate::limits::BLOCK;
use corelog_wire::batch::{CheckedBatch, Stamp};
use corelog_wire::ids::{Offset, TopicPartition};

/// A byte position in the journal since its birth. Counts bytes, not records; never wraps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    /// The position `bytes` after the journal's birth.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes since the journal's birth.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position `bytes` later.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }

    /// Bytes from `earlier` to here; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Offset of this position in the ring's data (the superblocks come before it in the file).
    #[must_use]
    pub const fn in_ring(self, ring_bytes: u64) -> u64 {
        self.0 % ring_bytes
    }
}

/// Where the ring's data starts in the journal file: after the superblocks.
pub const RING_DATA_START: u64 = SUPERBLOCK_SLOTS * BLOCK;

/// Counts the starts of a shard's journal. Each start that appends has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session(pub u64);

/// Distinguishes the files that a segment of one base offset had over time, and the lives of a recycled file.
/// Unique within a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentUse(pub u32);

/// Names one segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId {
    /// The partition whose log it holds.
    pub tp: TopicPartition,
    /// Offset of its first record.
    pub base: Offset,
    /// Which file of that base offset.
    pub segment_use: SegmentUse,
}

/// Proof that an extent is in its segment, flushed before this entry was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtentEntry {
    /// The segment it went to.
    pub segment: SegmentId,
    /// Where in the file it starts; a multiple of [`BLOCK`].
    pub file_position: u64,
    /// Bytes of batches, without the padding to [`BLOCK`].
    pub bytes: u64,
    /// Offset of its first record.
    pub first: Offset,
    /// Offset after its last record.
    pub end: Offset,
}

/// A file that takes the place of neighbouring segments, compacted; it is flushed, and its name, before this entry was
/// written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactedEntry {
    /// The new file; its base is that of the first segment it takes the place of.
    pub segment: SegmentId,
    /// Offset after the last record of the last one.
    pub end: Offset,
    /// Bytes of its batches.
    pub bytes: u64,
    /// File position after them; a multiple of [`BLOCK`].
    pub file_end: u64,
    /// The newest create time of its records, in milliseconds since the Unix epoch.
    pub max_timestamp_ms: i64,
    /// When the last record of its segments was appended, in milliseconds since the Unix epoch.
    pub last_append_ms: i64,
    /// Of everything below, only the newest record of each key is left.
    pub clean_end: Offset,
}

/// One entry as it is handed to the journal.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A record batch at its assigned place in a partition's log.
    Batch {
        /// The partition.
        tp: TopicPartition,
        /// The file its segment will have; a change of it opens a segment with this batch.
        segment_use: SegmentUse,
        /// Replaces the zeros the producer sent.
        stamp: Stamp,
        /// The bytes as they came.
        batch: CheckedBatch,
    },
    /// A record batch that is in its segment and not in the ring, flushed there before this entry was written.
    Direct {
        /// The partition.
        tp: TopicPartition,
        /// The file of its segment.
        segment_use: SegmentUse,
        /// Replaces the zeros the producer sent.
        stamp: Stamp,
        /// The bytes as they came; the entry holds their header.
        batch: CheckedBatch,
        /// Where in the file it starts; only the first of a [`DirectWrite`] starts a block.
        file_position: u64,
    },
    /// See [`ExtentEntry`].
    Extent(ExtentEntry),
    /// See [`CompactedEntry`].
    Compacted(CompactedEntry),
    /// Everything of the partition below `log_start` is gone.
    LogStart {
        /// The partition.
        tp: TopicPartition,
        /// The first offset that is still there.
        log_start: Offset,
    },
    /// The partition was removed by a tombstone; nothing of it is left.
    Removed {
        /// The partition.
        tp: TopicPartition,
    },
}

/// The batches of one commit that go to one segment and not into the ring, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectWrite {
    /// The segment, whose file is there and long enough.
    pub segment: SegmentId,
    /// Where in the file the first one starts; a multiple of [`BLOCK`].
    pub file_position: u64,
    /// Bytes of all, without the padding to [`BLOCK`].
    pub bytes: u64,
}

/// One commit as decided: what goes where. The hands write and flush what is direct, in memory that follows one another in
/// the order of `direct`, each from a block on ([`Packer::pack_direct`]); only then is the commit itself written. They pack it with the shard's [`Packer`], write it to
/// `at.in_ring(..)` (around the end of the ring where needed), flush, and report
/// [`CommitFlushed`](crate::shard::Input::CommitFlushed).
#[derive(Clone, Debug)]
pub struct Commit {
    /// Where it starts.
    pub at: Position,
    /// Header, entries and padding; a multiple of [`BLOCK`].
    pub bytes: u64,
    /// The start of the journal this commit belongs to.
    pub session: Session,
    /// Everything below is known to be flushed.
    pub flushed_to: Position,
    /// In the order of the log.
    pub entries: Vec<Entry>,
    /// What of it goes to segments.
    pub direct: Vec<DirectWrite>,
}

impl Commit {
    /// Bytes that its direct writes take in memory and on disk, each padded to [`BLOCK`].
    #[must_use]
    pub fn direct_bytes(&self) -> u64 {
        self.direct.iter().map(|write| write.bytes.next_multiple_of(BLOCK)).sum()
    }
}
