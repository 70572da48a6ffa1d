//! One shard: every partition a core owns, its journal, and who waits for what. The whole of it is
//! [`Shard::step`]: same state, same inputs, same effects.
//!
//! Called by the pump of the hands and by the simulator. The rooms within: `produce` (admission, acks), `fetch`
//! (visibility, long polls), `commit` (cuts and proofs), `destage` (extents, seals, memory), `direct` (large streams), `keep` (retention, disk
//! budget, removal), `recycle` (files used again), `capture` (checkpoints).
//!
//! Invariants: an acknowledgement that says flushed leaves only in the step that took the proof of the flush; whoever asks
//! sees what was acknowledged before; nothing is read above
//! the high watermark; a file is removed only after the entry that makes it needless is durable.

mod capture;
mod commit;
mod compact;
mod destage;
mod direct;
mod effects;
mod fetch;
mod input;
mod keep;
mod lag;
mod partition;
mod produce;
mod recycle;

pub use compact::COMPACTED_USES;
pub use effects::{
    CheckpointWrite, Effects, ExtentWrite, LookupPlan, LookupRow, Make, Note, Prewrite, ReadPlan, ReadRow,
    SegmentRead, SegmentSeal, SegmentStart, Slice, Source,
};
pub use input::{DiskFailure, Fetch, FetchRow, Input, Produce, ProduceRow, ReadUpTo, RequestId};
pub use lag::{PartitionLag, Reader};
pub use produce::AppendRefusal;

use crate::journal::{Packer, Position, Ring, SegmentId, SegmentUse, Session};
use crate::limits::HOUSEKEEPING_INTERVAL;
use crate::log::Log;
use crate::time::{Instant, Now};
use capture::Capture;
use compact::Compaction;
use corelog_wire::ids::{LeaderEpoch, Offset, ShardId, TopicPartition};
use fetch::ParkedFetch;
use keep::ParkedDeletion;
use partition::Partition;
use produce::{ParkedProduce, StalledProduce};
use recycle::Retired;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What a shard is made with.
#[derive(Clone, Copy, Debug)]
pub struct ShardConfig {
    /// Which shard.
    pub shard: ShardId,
    /// Size of its ring, a multiple of the block size. At least
    /// [`JOURNAL_BYTES_MIN`](crate::limits::JOURNAL_BYTES_MIN) outside tests.
    pub ring_bytes: u64,
    /// Memory for bytes that are in segments already.
    pub tail_cache_bytes: u64,
    /// What its segment files may take on disk, together.
    pub disk_bytes_max: u64,
    /// What segment files may take that left the log and wait to be used again, within `disk_bytes_max`.
    pub recycled_bytes_max: u64,
    /// Whether to write the ring in full once, in the background.
    pub prewrite: bool,
}

/// Where a shard stands, in numbers, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardSnapshot {
    /// Partitions held.
    pub partitions: u64,
    /// Journal: bytes ever committed.
    pub journal_head: u64,
    /// Journal: bytes ever flushed.
    pub journal_flushed: u64,
    /// Journal: bytes of the ring that a checkpoint slot needs.
    pub journal_used_bytes: u64,
    /// Journal: bytes that wait for a commit.
    pub journal_pending_bytes: u64,
    /// Bytes of commits held in memory.
    pub tail_bytes: u64,
    /// Segment files: bytes allocated.
    pub disk_bytes: u64,
    /// What they may take.
    pub disk_bytes_max: u64,
    /// Produce requests that wait for their flush.
    pub parked_produces: u64,
    /// Fetch requests that wait for records.
    pub parked_fetches: u64,
    /// Checkpoints written since the start.
    pub checkpoints: u64,
    /// Whether the device failed.
    pub poisoned: bool,
    /// Whether the journal was found corrupt and nothing is appended.
    pub read_only: bool,
    /// Whether the file system was full at the last try, or the budget refused an append lately.
    pub disk_full: bool,
}

/// Where a partition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionSnapshot {
    /// First offset that is there.
    pub log_start: Offset,
    /// Offset after the last record a consumer may see.
    pub high_watermark: Offset,
    /// Offset after the last record.
    pub log_end: Offset,
    /// The epoch this broker leads in, if it leads.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Bytes of all its batches.
    pub bytes: u64,
    /// Its segments.
    pub segments: u32,
}

/// The kinds of parked requests that have a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Parked {
    Produce,
    Fetch,
}

/// A commit whose bytes are in memory, and whose partitions have places in it.
#[derive(Debug)]
struct InMemory {
    at: Position,
    /// With those of its direct writes.
    bytes: u64,
    partitions: Vec<TopicPartition>,
}

/// An extent in the hands of the hands.
#[derive(Clone, Copy, Debug)]
struct ExtentBeingWritten {
    bytes: u64,
    /// The segment left the log meanwhile: its file goes when this is over.
    doomed: bool,
}

/// Something could not be written for want of room, or of something else that may come back.
#[derive(Clone, Copy, Debug)]
struct Pause {
    /// Whether it was room on the file system.
    full: bool,
    retry_at: Instant,
    /// The time has come: what waits is tried again.
    trying: bool,
    /// A segment was dropped to make room since the last try.
    dropped: bool,
}

/// One shard.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a state of its own: poisoned while draining is real"
)]
pub struct Shard {
    config: ShardConfig,
    ring: Ring,
    session: Session,
    /// Checksum of the last commit before this session's first.
    last_crc: u32,
    partitions: BTreeMap<TopicPartition, Partition>,
    next_use: SegmentUse,
    produces: BTreeMap<RequestId, ParkedProduce>,
    /// Requests that wait for room in the journal, in the order they came.
    stalled: VecDeque<StalledProduce>,
    fetches: BTreeMap<RequestId, ParkedFetch>,
    deletions: BTreeMap<RequestId, ParkedDeletion>,
    deadlines: BTreeSet<(Instant, RequestId, Parked)>,
    /// Commits in memory, oldest first.
    in_memory: VecDeque<InMemory>,
    /// Bytes of them.
    memory_bytes: u64,
    /// Partitions by the position of the first batch that only the journal holds.
    undestaged: BTreeSet<(Position, TopicPartition)>,
    /// Bytes in no segment yet.
    undestaged_bytes: u64,
    /// Partitions whose open segment takes large batches alone.
    streams: BTreeSet<TopicPartition>,
    /// Partitions whose open segment is to be made of a file that waits for it.
    opening: BTreeSet<TopicPartition>,
    /// Streams whose batches wait until nothing of theirs is in the journal alone.
    held: BTreeSet<TopicPartition>,
    /// Extents being written: at most one per segment.
    extents: BTreeMap<SegmentId, ExtentBeingWritten>,
    /// Partitions that are gone while an extent was being written to one of their files.
    removed_meanwhile: BTreeSet<TopicPartition>,
    /// Files that wait to be used again, the one that waited longest first.
    retired: VecDeque<Retired>,
    /// Bytes allocated to segment files, those that wait included.
    disk_bytes: u64,
    /// Of these, bytes whose log start is on its way to the journal.
    disk_bytes_leaving: u64,
    compaction: Option<Compaction>,
    /// Partitions whose last round failed, and when the next may begin.
    compaction_rests: BTreeMap<TopicPartition, Instant>,
    /// The use of the newest file that compaction made.
    compacted_use: SegmentUse,
    capture: Option<Capture>,
    captured_at: Position,
    generation: u64,
    checkpoints: u64,
    poisoned: bool,
    read_only: bool,
    pause: Option<Pause>,
    /// A checkpoint found no room at the last try.
    checkpoint_waits: bool,
    /// An index file could not be written lately.
    seals_failed: bool,
    /// An append was refused since the last look at the budget, which had no room for it.
    budget_full: bool,
    draining: bool,
    drained: bool,
    housekeeping_at: Instant,
    last_flush_at: Instant,
    /// Since when something waits for a commit that nobody waits for.
    lazy_since: Option<Instant>,
}

/// What recovery hands over.
#[derive(Debug)]
pub(crate) struct Recovering {
    pub config: ShardConfig,
    pub session: Session,
    pub head: Position,
    pub last_crc: u32,
    pub needed: [Position; 2],
    pub generation: u64,
    pub next_use: SegmentUse,
    pub logs: Vec<Log>,
    /// Commits in memory, their bytes and the partitions that have places in them, oldest first.
    pub in_memory: Vec<(Position, u64, Vec<TopicPartition>)>,
    pub read_only: bool,
    pub written_in_full: bool,
}

impl Shard {
    pub(crate) fn recovered(from: Recovering) -> Self {
        let prewrite = from.config.prewrite && !from.read_only && !from.written_in_full;
        let mut shard = Self {
            config: from.config,
            ring: Ring::new(from.config.ring_bytes, from.session, from.head, from.needed, prewrite),
            session: from.session,
            last_crc: from.last_crc,
            partitions: BTreeMap::new(),
            next_use: from.next_use,
            produces: BTreeMap::new(),
            stalled: VecDeque::new(),
            fetches: BTreeMap::new(),
            deletions: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            in_memory: VecDeque::new(),
            memory_bytes: 0,
            undestaged: BTreeSet::new(),
            undestaged_bytes: 0,
            streams: BTreeSet::new(),
            opening: BTreeSet::new(),
            held: BTreeSet::new(),
            extents: BTreeMap::new(),
            removed_meanwhile: BTreeSet::new(),
            retired: VecDeque::new(),
            disk_bytes: 0,
            disk_bytes_leaving: 0,
            compaction: None,
            compaction_rests: BTreeMap::new(),
            compacted_use: COMPACTED_USES,
            capture: None,
            captured_at: from.needed[0].max(from.needed[1]),
            generation: from.generation,
            checkpoints: 0,
            poisoned: false,
            read_only: from.read_only,
            pause: None,
            checkpoint_waits: false,
            seals_failed: false,
            budget_full: false,
            draining: false,
            drained: false,
            housekeeping_at: Instant::default(),
            last_flush_at: Instant::default(),
            lazy_since: None,
        };
        for (at, bytes, partitions) in from.in_memory {
            shard.memory_bytes += bytes;
            shard.in_memory.push_back(InMemory { at, bytes, partitions });
        }
        for mut log in from.logs {
            let tp = log.tp();
            // The file that one of these was to be made of is swept away with whatever no log names.
            for segment in log.segments.iter_mut().filter(|segment| !segment.created) {
                segment.allocated = 0;
            }
            let uses = log.segments.iter().map(|segment| segment.segment_use);
            shard.compacted_use = uses.max().unwrap_or_default().max(shard.compacted_use);
            shard.disk_bytes += log.segments.iter().map(|segment| segment.allocated).sum::<u64>();
            let partition = Partition::new(log);
            shard.undestaged_bytes += partition.undestaged_bytes();
            shard.partitions.insert(tp, partition);
            shard.reindex_undestaged(tp);
        }
        shard
    }

    /// Takes one input.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Effects) {
        match input {
            Input::Lead { tp, epoch, config } => self.lead(tp, epoch, config, out),
            Input::Configure { tp, config } => self.configure(tp, config, out),
            Input::GroupsRead(words) => self.take_read(&words),
            Input::Remove { tp } => self.remove(tp, out),
            Input::Produce(request) => self.produce(now, request, out),
            Input::Fetch(request) => self.fetch(now, request, out),
            Input::ListOffsets { request, rows } => self.list_offsets(request, &rows, out),
            Input::DeleteRecords { request, rows } => self.delete_records(request, &rows, out),
            Input::Forget { request } => self.forget(request),
            Input::CommitFlushed { at } => self.commit_flushed(now, at, out),
            Input::CommitFailed { .. } | Input::PrewriteFailed => self.poison("a journal write failed", out),
            Input::ExtentFlushed { segment, file_position } => {
                self.extent_flushed(segment, file_position, out);
            }
            Input::ExtentFailed { segment, file_position, cause } => {
                self.extent_failed(now, segment, file_position, cause, out);
            }
            Input::Sealed { segment, written } => self.index_written(segment, written),
            Input::Compacted(entry) => self.compacted(&entry, out),
            Input::CompactionOver { tp, done } => self.compaction_over(now, tp, done, out),
            Input::CheckpointFlushed => self.checkpoint_flushed(out),
            Input::CheckpointFailed { cause } => self.checkpoint_failed(now, cause, out),
            Input::Prewritten { ring_offset } => self.prewritten(ring_offset, out),
            Input::Turn => self.turn(now, out),
            Input::Tick => self.tick(now, out),
            Input::Drain => self.drain(out),
        }
        debug_assert_eq!(self.broken_invariant_in_brief(), None);
    }

    /// The next time [`Input::Tick`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let parked = self.deadlines.first().map(|(at, _, _)| *at);
        let mark = self.mark_due_at();
        let housekeeping = (!self.partitions.is_empty()).then_some(self.housekeeping_at);
        let capturing = self.is_capturing().then(Instant::default);
        [parked, mark, self.lazy_due_at(), housekeeping, capturing].into_iter().flatten().min()
    }

    /// Packs this shard's commits; taken once, by the hands that write them.
    #[must_use]
    pub fn packer(&self) -> Packer {
        Packer::new(self.session, self.last_crc)
    }

    /// The segment files of every partition, those included that are not made yet.
    pub fn files(&self) -> impl Iterator<Item = (TopicPartition, Vec<SegmentId>)> {
        self.partitions.iter().map(|(tp, partition)| {
            (*tp, partition.log.segments.iter().map(|segment| segment.id(*tp)).collect())
        })
    }

    /// The use of the newest segment; files to come have later ones.
    #[must_use]
    pub const fn newest_use(&self) -> SegmentUse {
        self.next_use
    }

    /// The partitions held, known to the metadata or not.
    pub fn partitions(&self) -> impl Iterator<Item = TopicPartition> {
        self.partitions.keys().copied()
    }

    /// Where a partition stands.
    #[must_use]
    pub fn describe(&self, tp: TopicPartition) -> Option<PartitionSnapshot> {
        let partition = self.partitions.get(&tp)?;
        Some(PartitionSnapshot {
            log_start: partition.log.log_start(),
            high_watermark: partition.high_watermark(),
            log_end: partition.log.end(),
            leader_epoch: partition.epoch,
            bytes: partition.log.bytes(),
            segments: u32::try_from(partition.log.segments.iter().len()).unwrap_or(u32::MAX),
        })
    }

    /// Where the shard stands.
    #[must_use]
    pub fn snapshot(&self) -> ShardSnapshot {
        ShardSnapshot {
            partitions: self.partitions.len() as u64,
            journal_head: self.ring.head().get(),
            journal_flushed: self.ring.flushed_to().get(),
            journal_used_bytes: self.ring.head().since(self.ring.needed_from()),
            journal_pending_bytes: self.ring.pending_bytes(),
            tail_bytes: self.memory_bytes,
            disk_bytes: self.disk_bytes,
            disk_bytes_max: self.config.disk_bytes_max,
            parked_produces: (self.produces.len() + self.stalled.len()) as u64,
            parked_fetches: self.fetches.len() as u64,
            checkpoints: self.checkpoints,
            poisoned: self.poisoned,
            read_only: self.read_only,
            disk_full: self.is_disk_full() || self.budget_full,
        }
    }

    /// What contradicts this shard's invariants, if anything does. Looks at everything: for the simulator and tests.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        for partition in self.partitions.values() {
            if let Some(what) = partition.log.broken_invariant() {
                return Some(what);
            }
            if partition.shown > partition.log.end() {
                return Some("more was shown of a partition than it has");
            }
            if partition.promised > partition.log.end() {
                return Some("more was promised of a partition than it has");
            }
            if partition.undestaged != partition.log.first_undestaged() {
                return Some("the order of undestaged bytes is stale");
            }
        }
        let undestaged: u64 = self.partitions.values().map(Partition::undestaged_bytes).sum();
        if undestaged != self.undestaged_bytes {
            return Some("the count of undestaged bytes is wrong");
        }
        let allocated =
            self.partitions.values().flat_map(|p| p.log.segments.iter()).map(|s| s.allocated).sum::<u64>();
        let waiting: u64 = self.retired.iter().map(|retired| retired.allocated).sum();
        if waiting > self.config.recycled_bytes_max {
            return Some("more files wait to be used again than may");
        }
        if allocated + waiting != self.disk_bytes {
            return Some("the count of bytes on disk is wrong");
        }
        self.broken_invariant_in_brief()
    }

    fn broken_invariant_in_brief(&self) -> Option<&'static str> {
        self.ring.broken_invariant()
    }

    /// A tick: what is due by now.
    fn tick(&mut self, now: Now, out: &mut Effects) {
        while let Some((at, request, parked)) = self.deadlines.first().copied() {
            if at > now.instant {
                break;
            }
            self.deadlines.pop_first();
            match parked {
                Parked::Produce => self.produce_expired(request, out),
                Parked::Fetch => self.fetch_due(request, out),
            }
        }
        if now.instant >= self.housekeeping_at {
            self.housekeeping_at = now.instant.after(HOUSEKEEPING_INTERVAL);
            self.keep(now, out);
        }
        self.turn(now, out);
        self.mark_if_idle(now, out);
    }

    fn forget(&mut self, request: RequestId) {
        if let Some(parked) = self.produces.remove(&request) {
            self.deadlines.remove(&(parked.deadline, request, Parked::Produce));
        }
        if let Some(at) = self.stalled.iter().position(|stalled| stalled.request.request == request)
            && let Some(stalled) = self.stalled.remove(at)
        {
            self.deadlines.remove(&(stalled.deadline, request, Parked::Produce));
        }
        self.unpark_fetch(request);
        self.deletions.remove(&request);
    }
}

#[cfg(test)]
mod tests;
