//! What a shard wants done. The hands perform effects in any order and report completions as inputs.

use crate::compact;
use crate::group::GroupName;
use crate::journal::{Commit, Position, SegmentId};
use crate::shard::input::RequestId;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{LeaderEpoch, Offset, TopicPartition};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{Answer, ListedRow};

/// The effects of one or more steps, grouped by hand. Reused from turn to turn: the hands drain it.
#[derive(Debug, Default)]
pub struct Effects {
    /// Pack in this order, write and flush; then `CommitFlushed`. Until `release` passes them their bytes stay in
    /// memory: reads and extents name them by position.
    pub commits: Vec<Commit>,
    /// Answers that are complete.
    pub answers: Vec<(RequestId, Answer)>,
    /// Fetches to read and answer.
    pub reads: Vec<ReadPlan>,
    /// Time look-ups to finish in segments and answer.
    pub lookups: Vec<LookupPlan>,
    /// Extents to gather from memory, write and flush; then `ExtentFlushed`.
    pub extents: Vec<ExtentWrite>,
    /// Index files to write; then `Sealed`.
    pub seals: Vec<SegmentSeal>,
    /// Rounds of compaction to go through, one at a time: `Compacted` for each file, then `CompactionOver`.
    pub compactions: Vec<compact::Plan>,
    /// A checkpoint slot to write and flush; then `CheckpointFlushed`.
    pub checkpoint: Option<CheckpointWrite>,
    /// Segment files (and their index files) that nothing needs any more.
    pub removals: Vec<SegmentId>,
    /// Partitions removed whole: their folders go once their files are gone.
    pub removed: Vec<TopicPartition>,
    /// Bytes of commits below this position may leave memory.
    pub release: Option<Position>,
    /// Chunk of the ring to write for the first time (zeros) and flush; then `Prewritten`.
    pub prewrite: Option<Prewrite>,
    /// Things an operator should read.
    pub notes: Vec<Note>,
}

impl Effects {
    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commits.is_empty()
            && self.answers.is_empty()
            && self.reads.is_empty()
            && self.lookups.is_empty()
            && self.extents.is_empty()
            && self.seals.is_empty()
            && self.compactions.is_empty()
            && self.checkpoint.is_none()
            && self.removals.is_empty()
            && self.removed.is_empty()
            && self.release.is_none()
            && self.prewrite.is_none()
            && self.notes.is_empty()
    }
}

/// Bytes of one batch in memory: a commit's bytes at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Where the batch's stamp starts in the journal.
    pub position: Position,
    /// Of a direct batch: where it starts in the memory of its commit's direct writes.
    pub direct: Option<u32>,
    /// Whole batch.
    pub bytes: u32,
}

/// One fetch to answer.
#[derive(Debug)]
pub struct ReadPlan {
    /// Whom to answer.
    pub request: RequestId,
    /// In the order asked.
    pub rows: Vec<ReadRow>,
    /// Which batches of segments; what is in memory has been looked through.
    pub filter: TagFilter,
}

/// One partition of a fetch answer.
#[derive(Debug)]
pub struct ReadRow {
    /// The partition.
    pub tp: TopicPartition,
    /// `None`, or why there is nothing to read.
    pub error: ErrorCode,
    /// Offset after the last record a consumer may see.
    pub high_watermark: Offset,
    /// First offset that is there.
    pub log_start: Offset,
    /// Offset after the last record.
    pub log_end: Offset,
    /// The epoch of the leader that answers.
    pub leader_epoch: LeaderEpoch,
    /// With a filter: up to where every batch that is asked for is in `source`. Of a segment the hands find out.
    pub next_offset: Option<Offset>,
    /// The bytes to send, in order.
    pub source: Source,
}

/// Where the bytes of a row are.
#[derive(Debug)]
pub enum Source {
    /// Nothing to send.
    Nothing,
    /// In memory.
    Tail(Vec<Slice>),
    /// In a segment file.
    Segment(SegmentRead),
}

/// A read from one segment file. The hands read aligned chunks and take batches with
/// [`segment::BatchScan`](crate::segment::BatchScan), which checks topic seed, offsets and epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRead {
    /// The file.
    pub segment: SegmentId,
    /// Where to start.
    pub start: SegmentStart,
    /// File position after the last extent.
    pub file_end: u64,
    /// First offset wanted; the batch that holds it is the first one sent.
    pub from: Offset,
    /// Batches at or after this offset are not sent.
    pub until: Offset,
    /// At most this many bytes, unless the first batch alone is larger.
    pub bytes_max: u32,
}

/// Where a scan of a segment starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentStart {
    /// At a file position that is known to start a batch at or before the offset wanted.
    At(u64),
    /// Look it up in the segment's index file; without one, at the first extent.
    ByIndexFile,
}

/// A time look-up whose answer is in segments for some rows.
#[derive(Debug)]
pub struct LookupPlan {
    /// Whom to answer.
    pub request: RequestId,
    /// In the order asked.
    pub rows: Vec<LookupRow>,
}

/// One row of a time look-up.
#[derive(Debug)]
pub enum LookupRow {
    /// Known.
    Known(ListedRow),
    /// The base offset of the first batch of these reads whose max timestamp is at least this; if none is, `otherwise`.
    Scan {
        /// What to scan, in order: one segment, or two if the first has lost records to the log start.
        reads: Vec<SegmentRead>,
        /// Milliseconds since the Unix epoch.
        timestamp_ms: i64,
        /// The answer if the scan finds none.
        otherwise: ListedRow,
    },
}

/// Where the file of an extent comes from. One that is made has its first block written
/// ([`segment::first_block`](crate::segment::first_block)), and its folder flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    /// It is there.
    Nothing,
    /// It does not exist yet.
    New,
    /// It is this one, which left the log, under a new name; its index file goes. Somebody who still reads it keeps it as it
    /// is, and one that is not there any more is no loss: then a new one is made.
    Of(SegmentId),
}

/// Bytes of one partition to put into its segment.
#[derive(Debug)]
pub struct ExtentWrite {
    /// The file.
    pub segment: SegmentId,
    /// Where the file comes from.
    pub make: Make,
    /// Where the extent starts; a multiple of the block size.
    pub file_position: u64,
    /// The file's size must be at least this (preallocated) before writing.
    pub allocate_to: u64,
    /// Batches to put one after the other.
    pub slices: Vec<Slice>,
    /// Sum of the slices, without padding.
    pub bytes: u64,
    /// Whether somebody may have to wait for it. Otherwise it is to be in nobody's way.
    pub urgent: bool,
}

/// The index file of a segment that takes no more extents.
#[derive(Debug)]
pub struct SegmentSeal {
    /// The segment.
    pub segment: SegmentId,
    /// The whole file, padded to the block size.
    pub index_file: Vec<u8>,
}

/// A checkpoint slot to write.
#[derive(Debug)]
pub struct CheckpointWrite {
    /// 0 or 1.
    pub slot: u8,
    /// The whole slot, padded to the block size.
    pub bytes: Vec<u8>,
}

/// A part of the ring to write for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prewrite {
    /// Offset in the ring.
    pub ring_offset: u64,
    /// A multiple of the block size.
    pub bytes: u64,
}

/// What an operator should read, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The device failed: no append is acknowledged any more on this shard.
    Poisoned {
        /// What failed.
        what: &'static str,
    },
    /// The file system is full: appends that need room are refused until there is some.
    DiskFull,
    /// There is room again.
    DiskRoom,
    /// Records went by the retention settings or by the disk budget.
    LogStartMoved {
        /// The partition.
        tp: TopicPartition,
        /// From here.
        from: Offset,
        /// To here.
        to: Offset,
        /// `retention_ms`, `retention_bytes`, `disk_bytes_max` or `delete_records`.
        reason: &'static str,
    },
    /// Retention has waited for long for a group that the topic protects.
    RetentionWaits {
        /// The partition.
        tp: TopicPartition,
        /// Those that it protects.
        groups: Vec<GroupName>,
        /// All of them have read and committed what lies before this.
        read_up_to: Offset,
    },
    /// A round of compaction came to its end.
    Compacted {
        /// The partition.
        tp: TopicPartition,
        /// Bytes of the segments that it read, and of the files that took their place.
        bytes: (u64, u64),
    },
    /// The shard has as many partitions as it takes.
    TooManyPartitions {
        /// The one that was turned away.
        tp: TopicPartition,
    },
    /// The metadata grants an epoch that is older than one the log has seen: an old metadata store came back. The
    /// partition is not led.
    EpochBehind {
        /// The partition.
        tp: TopicPartition,
        /// What was granted.
        epoch: LeaderEpoch,
        /// What the log has seen.
        newest: Option<LeaderEpoch>,
    },
    /// Everything accepted is durable and checkpointed; the shard may be dropped.
    Drained,
}
