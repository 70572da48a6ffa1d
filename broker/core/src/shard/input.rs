//! What a shard is told. One variant per event; the hands make them, the simulator makes them.

use crate::group::GroupName;
use crate::journal::{CompactedEntry, Position, SegmentId};
use crate::topic::TopicConfig;
use corelog_wire::batch::CheckedBatch;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{LeaderEpoch, Offset, TopicPartition};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{Acks, ListOffsetsRow};
use std::time::Duration;

/// Names a request until its answer; made by the hands, opaque here. Unique among the requests under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One event.
#[derive(Debug)]
pub enum Input {
    /// The metadata says: this shard leads the partition in this epoch, with these settings.
    Lead {
        /// The partition.
        tp: TopicPartition,
        /// The epoch that a metadata transaction granted; higher than any before.
        epoch: LeaderEpoch,
        /// Its settings.
        config: TopicConfig,
    },
    /// The settings of a partition changed.
    Configure {
        /// The partition.
        tp: TopicPartition,
        /// Its settings from now on.
        config: TopicConfig,
    },
    /// How far the groups have read that partitions protect from retention. Until a partition is told, and again when it
    /// protects others, all it has is unread.
    GroupsRead(Vec<ReadUpTo>),
    /// A tombstone says that the topic is gone: remove the partition and all it has.
    Remove {
        /// The partition.
        tp: TopicPartition,
    },
    /// Append batches.
    Produce(Produce),
    /// Read batches, or wait for them.
    Fetch(Fetch),
    /// Ask for offsets by name or by time.
    ListOffsets {
        /// Whom to answer.
        request: RequestId,
        /// What is asked.
        rows: Vec<ListOffsetsRow>,
    },
    /// Move log starts up.
    DeleteRecords {
        /// Whom to answer.
        request: RequestId,
        /// Partition and the offset before which everything goes.
        rows: Vec<(TopicPartition, Offset)>,
    },
    /// The asker is gone: forget what is parked for it. Appends stay.
    Forget {
        /// Whose request.
        request: RequestId,
    },
    /// The write and the flush of the commit that starts at this position are done.
    CommitFlushed {
        /// The commit.
        at: Position,
    },
    /// The write or the flush of a commit failed. The shard's log is poisoned.
    CommitFailed {
        /// The commit.
        at: Position,
    },
    /// An extent is in its segment and flushed (and so are a new file's name and size).
    ExtentFlushed {
        /// The segment.
        segment: SegmentId,
        /// Where the extent starts in the file.
        file_position: u64,
    },
    /// An extent could not be written.
    ExtentFailed {
        /// The segment.
        segment: SegmentId,
        /// Where the extent would start.
        file_position: u64,
        /// Why.
        cause: DiskFailure,
    },
    /// A sealed segment's index file is in place, or could not be written (reads then scan the segment).
    Sealed {
        /// The segment.
        segment: SegmentId,
        /// Whether the file is there.
        written: bool,
    },
    /// A file of a round of compaction is flushed, with its index file, and the names of both are durable.
    Compacted(CompactedEntry),
    /// A round of compaction is over.
    CompactionOver {
        /// Its partition.
        tp: TopicPartition,
        /// Whether it came to its end.
        done: bool,
    },
    /// A checkpoint slot is written and flushed.
    CheckpointFlushed,
    /// A checkpoint slot could not be written.
    CheckpointFailed {
        /// Why.
        cause: DiskFailure,
    },
    /// A chunk of the ring has been written for the first time and flushed.
    Prewritten {
        /// Offset in the ring.
        ring_offset: u64,
    },
    /// A chunk of the ring could not be written for the first time.
    PrewriteFailed,
    /// The hands took all inputs there were: cut what gathered into a commit.
    Turn,
    /// Time passed: deadlines, retention, marks.
    Tick,
    /// Stop taking requests; everything accepted is to be made durable, then checkpointed.
    Drain,
}

/// How far groups have read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadUpTo {
    /// Which groups; told to a partition that protects others by now, it says nothing.
    pub groups: Vec<GroupName>,
    /// Partitions, and offsets where all of the groups go on, or further.
    pub rows: Vec<(TopicPartition, Offset)>,
}

/// Why a write to a segment or a checkpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFailure {
    /// The file system is full; nothing is damaged, the bytes are still in the journal.
    NoSpace,
    /// The process lacks something that it may have later, as a descriptor; nothing is damaged or full.
    Busy,
    /// The device or the file system refused: nothing more may be promised on it.
    Fault,
}

/// A produce request, its batches parsed and checked at the door.
#[derive(Debug)]
pub struct Produce {
    /// Whom to answer.
    pub request: RequestId,
    /// What the producer waits for.
    pub acks: Acks,
    /// When the producer stops waiting.
    pub deadline: Duration,
    /// One batch per row.
    pub rows: Vec<ProduceRow>,
}

/// One batch of a produce request.
#[derive(Debug)]
pub struct ProduceRow {
    /// Where to.
    pub tp: TopicPartition,
    /// The batch, or why it was refused at the door.
    pub batch: Result<CheckedBatch, (ErrorCode, String)>,
}

/// A fetch request.
#[derive(Clone, Debug)]
pub struct Fetch {
    /// Whom to answer.
    pub request: RequestId,
    /// Wait at most this long for `bytes_min`.
    pub wait_max: Duration,
    /// Answer as soon as this many bytes are visible.
    pub bytes_min: u32,
    /// At most this many bytes, unless the first batch alone is larger.
    pub bytes_max: u32,
    /// What is asked.
    pub rows: Vec<FetchRow>,
    /// Which batches; with it, the bytes above are those of batches that are asked for.
    pub filter: TagFilter,
}

/// One partition of a fetch request.
#[derive(Clone, Copy, Debug)]
pub struct FetchRow {
    /// Where from.
    pub tp: TopicPartition,
    /// The first offset wanted.
    pub offset: Offset,
    /// At most this many bytes of this partition.
    pub bytes_max: u32,
    /// The epoch the asker believes in, if it has one.
    pub leader_epoch: Option<LeaderEpoch>,
}
