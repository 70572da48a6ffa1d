//! What one shard's hands committed, remembered outside the disk: the referee of every recovery.
//!
//! Written by `hands`, read by the checker. Knows which commit held which batch, which extents were proven, and, by
//! comparing with the disk, which commits are still whole. From that it derives on its own, without the core's scan,
//! what recovery may cut and what it may not. Invariant: commits are in order of position without gaps.

use crate::disk::{Disk, FileId};
use corelog_core::journal::{Commit, DirectWrite, Entry, ExtentEntry, Position, RING_DATA_START, SegmentId};
use corelog_core::shard::ExtentWrite;
use corelog_wire::ids::{Offset, TopicPartition};
use std::collections::{BTreeMap, VecDeque};

/// One commit as it was written.
#[derive(Clone, Debug)]
pub struct CommitShadow {
    /// Where it starts.
    pub at: Position,
    /// All of it.
    pub bytes: u64,
    /// What its header says is flushed.
    pub flushed_to: Position,
    crc: u32,
    /// Partition, base offset and end offset of each batch.
    pub batches: Vec<(TopicPartition, Offset, Offset)>,
    extents: Vec<ExtentEntry>,
}

/// The memory of one shard's commits and extents.
#[derive(Clone, Debug)]
pub struct Shadow {
    ring_bytes: u64,
    commits: VecDeque<CommitShadow>,
    /// Extents that a commit names, by segment and place in its file.
    extents: BTreeMap<(SegmentId, u64), ExtentEntry>,
    /// Where the newest session started: everything below was flushed then.
    session_first: Position,
}

/// What recovery may do with what is on the disk.
#[derive(Debug)]
pub struct Judgement {
    /// The first commit of the last lap that is not whole; where the last one ended if all are.
    pub whole_to: Position,
    /// Everything below was provably flushed, by what is readable.
    pub flushed_to: Position,
}

impl Shadow {
    /// Nothing was written yet.
    #[must_use]
    pub const fn new(ring_bytes: u64) -> Self {
        Self {
            ring_bytes,
            commits: VecDeque::new(),
            extents: BTreeMap::new(),
            session_first: Position::new(0),
        }
    }

    /// A commit was packed and is about to be written.
    pub fn committed(&mut self, commit: &Commit, packed: &[u8]) {
        let mut shadow = CommitShadow {
            at: commit.at,
            bytes: commit.bytes,
            flushed_to: commit.flushed_to,
            crc: crc32fast::hash(packed),
            batches: Vec::new(),
            extents: Vec::new(),
        };
        for entry in &commit.entries {
            match entry {
                Entry::Batch { tp, stamp, batch, .. } | Entry::Direct { tp, stamp, batch, .. } => {
                    let records = u64::from(batch.header().last_offset_delta) + 1;
                    let end = Offset::new(stamp.base_offset.get() + records);
                    shadow.batches.push((*tp, stamp.base_offset, end));
                }
                Entry::Extent(extent) => {
                    shadow.extents.push(*extent);
                    self.extents.insert((extent.segment, extent.file_position), *extent);
                }
                Entry::Compacted(_) | Entry::LogStart { .. } | Entry::Removed { .. } => {}
            }
        }
        for write in &commit.direct {
            let extent = extent_of(commit, write);
            self.overwrites(extent.segment, extent.file_position, extent.bytes);
            shadow.extents.push(extent);
            self.extents.insert((extent.segment, extent.file_position), extent);
        }
        let end = commit.at.plus(commit.bytes);
        while self.commits.front().is_some_and(|oldest| end.since(oldest.at) > self.ring_bytes) {
            self.commits.pop_front();
        }
        self.commits.push_back(shadow);
    }

    /// An extent is about to be written. Whatever was proven there before is not any more.
    pub fn extent_written(&mut self, extent: &ExtentWrite) {
        self.overwrites(extent.segment, extent.file_position, extent.bytes);
    }

    fn overwrites(&self, segment: SegmentId, from: u64, bytes: u64) {
        let to = from + bytes;
        let overwritten = |place: &(SegmentId, u64), old: &ExtentEntry| {
            place.0 == segment && old.file_position < to && from < old.file_position + old.bytes
        };
        let broken = self.extents.iter().find(|(place, old)| overwritten(place, old));
        assert!(broken.is_none(), "an extent overwrites one that was proven: {broken:?}");
    }

    /// A segment's file is gone.
    pub fn file_removed(&mut self, segment: SegmentId) {
        self.extents.retain(|(of, _), _| *of != segment);
    }

    /// Extents that were proven and whose files were not removed.
    pub fn extents(&self) -> impl Iterator<Item = &ExtentEntry> {
        self.extents.values()
    }

    /// The commits of the last lap, oldest first.
    #[must_use]
    pub const fn commits(&self) -> &VecDeque<CommitShadow> {
        &self.commits
    }

    /// The commit that holds this batch, if it is of the last lap.
    #[must_use]
    pub fn holding(&self, tp: TopicPartition, base: Offset) -> Option<&CommitShadow> {
        let holds =
            |commit: &&CommitShadow| commit.batches.iter().any(|(of, at, _)| (*of, *at) == (tp, base));
        self.commits.iter().rev().find(holds)
    }

    /// Where in the journal file a commit lies: one or two ranges of offset and length.
    #[must_use]
    pub fn ranges(&self, commit: &CommitShadow) -> Vec<(u64, u64)> {
        let start = commit.at.in_ring(self.ring_bytes);
        let first = commit.bytes.min(self.ring_bytes - start);
        let mut ranges = vec![(RING_DATA_START + start, first)];
        if first < commit.bytes {
            ranges.push((RING_DATA_START, commit.bytes - first));
        }
        ranges
    }

    /// Whether a power cut now would leave this commit as it was written.
    #[must_use]
    pub fn is_durable(&self, commit: &CommitShadow, disk: &Disk, journal: FileId) -> bool {
        self.ranges(commit).iter().all(|&(offset, bytes)| disk.is_durable(journal, offset, bytes))
    }

    /// Whether the ledger of damage names any block of this commit.
    #[must_use]
    pub fn is_damaged(&self, commit: &CommitShadow, disk: &Disk, journal: FileId) -> bool {
        self.ranges(commit).iter().any(|&(offset, bytes)| disk.damage().touches(journal, offset, bytes))
    }

    fn is_whole(&self, commit: &CommitShadow, disk: &Disk, journal: FileId) -> bool {
        let mut hasher = crc32fast::Hasher::new();
        for (offset, bytes) in self.ranges(commit) {
            hasher.update(&disk.peek(journal, offset, bytes));
        }
        hasher.finalize() == commit.crc
    }

    /// What is left of the commits, as the disk is now.
    #[must_use]
    pub fn judge(&self, disk: &Disk, journal: FileId) -> Judgement {
        let end = self.commits.back().map_or(self.session_first, |last| last.at.plus(last.bytes));
        let mut judgement = Judgement { whole_to: end, flushed_to: self.session_first };
        for commit in self.commits.iter().rev() {
            if self.is_whole(commit, disk, journal) {
                judgement.flushed_to = judgement.flushed_to.max(commit.flushed_to);
            } else {
                judgement.whole_to = commit.at;
            }
        }
        judgement
    }

    /// Batches in commits at or after `from`.
    #[must_use]
    pub fn batches_from(&self, from: Position) -> Vec<(TopicPartition, Offset, Offset)> {
        let after = self.commits.iter().filter(|commit| commit.at >= from);
        after.flat_map(|commit| commit.batches.iter().copied()).collect()
    }

    /// A commit failed: it proves no extent. Its own direct writes may be what failed.
    pub fn commit_failed(&mut self, at: Position) {
        let failed = self.commits.iter().rev().find(|commit| commit.at == at);
        for extent in failed.iter().flat_map(|commit| &commit.extents) {
            self.extents.remove(&(extent.segment, extent.file_position));
        }
    }

    /// Recovery goes on at `head`: what was committed from there on never was.
    pub fn cut(&mut self, head: Position) {
        while self.commits.back().is_some_and(|last| last.at >= head) {
            if let Some(cut) = self.commits.pop_back() {
                for extent in cut.extents {
                    self.extents.remove(&(extent.segment, extent.file_position));
                }
            }
        }
    }

    /// The new session is recorded: everything below `first` is flushed from now on.
    pub const fn session_started(&mut self, first: Position) {
        self.session_first = first;
    }
}

/// A direct write as the extent that it is.
fn extent_of(commit: &Commit, write: &DirectWrite) -> ExtentEntry {
    let (mut first, mut last) = (None, Offset::ZERO);
    for entry in &commit.entries {
        if let Entry::Direct { tp, segment_use, stamp, batch, .. } = entry
            && (*tp, *segment_use) == (write.segment.tp, write.segment.segment_use)
        {
            first.get_or_insert(stamp.base_offset);
            last = Offset::new(stamp.base_offset.get() + u64::from(batch.header().last_offset_delta) + 1);
        }
    }
    let DirectWrite { segment, file_position, bytes } = *write;
    ExtentEntry { segment, file_position, bytes, first: first.unwrap_or(last), end: last }
}
