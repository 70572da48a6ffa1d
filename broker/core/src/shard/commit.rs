//! Commits: when one is cut, and what its flush proves.
//!
//! A commit is cut at the end of a turn, when one may start: what gathers while the device is busy goes together
//! (group commit without a timer). Only what nobody waits for, neither a producer nor a reader, gathers for longer:
//! each commit costs a write and a flush, however little is in it. Proofs come in order of position; only here do
//! acknowledgements that say flushed, extents, log starts and removals take effect.

use super::partition::Partition;
use super::{Effects, InMemory, Note, Shard};
use crate::journal::{Commit, Cut, Entry, Position, Proof};
use crate::limits::{IDLE_MARK_AFTER, LAZY_COMMIT_AFTER, LAZY_COMMIT_BYTES};
use crate::log::Place;
use crate::time::{Instant, Now};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{Offset, TopicPartition};
use std::collections::BTreeSet;

impl Shard {
    /// The end of a turn: cut what gathered, destage, checkpoint, let go of memory.
    pub(super) fn turn(&mut self, now: Now, out: &mut Effects) {
        self.admit_stalled(now, out);
        if !self.read_only {
            self.hurry_if_due(now);
            if self.ring.is_urgent() {
                while let Some(cut) = self.cut_next() {
                    self.place(cut, out);
                }
            }
            self.lazy_since = self.lazy_since.filter(|_| self.ring.pending_bytes() > 0);
            self.destage(out);
            self.checkpoint(out);
            if let Some(prewrite) = self.ring.next_prewrite() {
                out.prewrite = Some(prewrite);
            }
        }
        self.release_memory(out);
        self.finish_draining(out);
    }

    pub(super) fn commit_flushed(&mut self, now: Now, at: Position, out: &mut Effects) {
        self.last_flush_at = now.instant;
        for proof in self.ring.flushed(at) {
            self.proven(now, proof, out);
        }
    }

    /// The device failed: nothing is acknowledged any more, everything durable stays readable.
    pub(super) fn poison(&mut self, what: &'static str, out: &mut Effects) {
        if cfg!(mutant = "failed_flush_ignored") || self.poisoned {
            return;
        }
        let promised: Vec<_> = self.partitions.keys().copied().collect();
        self.keep_promises(promised.into_iter(), out);
        for partition in self.partitions.values_mut() {
            partition.promised = Offset::ZERO;
        }
        self.poisoned = true;
        self.lazy_since = None;
        self.ring.fail();
        self.capture = None;
        let message =
            "the log's device failed before the flush; the batch may still be there after a restart";
        let may_have_landed = if cfg!(mutant = "refused_what_may_land") {
            ErrorCode::NotLeader
        } else {
            ErrorCode::LogPoisoned
        };
        self.fail_produces(may_have_landed, message, out);
        self.fail_deletions(ErrorCode::LogPoisoned, out);
        out.notes.push(Note::Poisoned { what });
    }

    /// When an idle shard's last commit is due to be marked as flushed.
    pub(super) fn mark_due_at(&self) -> Option<Instant> {
        (!self.read_only && self.ring.wants_mark()).then(|| self.last_flush_at.after(IDLE_MARK_AFTER))
    }

    pub(super) fn mark_if_idle(&mut self, now: Now, out: &mut Effects) {
        if self.mark_due_at().is_some_and(|due| due <= now.instant)
            && let Some(commit) = self.ring.cut_mark()
        {
            self.keep_in_memory(&commit, Vec::new());
            out.commits.push(commit);
        }
    }

    pub(super) fn prewritten(&mut self, ring_offset: u64, out: &mut Effects) {
        self.ring.prewritten(ring_offset);
        if let Some(prewrite) = self.ring.next_prewrite() {
            out.prewrite = Some(prewrite);
        }
    }

    /// When what nobody waits for gets its commit, at the latest.
    pub(super) fn lazy_due_at(&self) -> Option<Instant> {
        self.lazy_since.map(|since| since.after(LAZY_COMMIT_AFTER))
    }

    fn hurry_if_due(&mut self, now: Now) {
        let waits = self.draining || self.capture.is_some() || !self.stalled.is_empty();
        let much = self.ring.pending_bytes() >= LAZY_COMMIT_BYTES;
        if waits || much || self.lazy_due_at().is_some_and(|due| due <= now.instant) {
            self.lazy_since = None;
            self.ring.hurry();
        }
    }

    /// Gives what was acknowledged before its commit was cut a place where it can be read, if a commit may start. Whether
    /// some of it has none yet.
    pub(super) fn hurry_promises(
        &mut self,
        asked: impl Iterator<Item = TopicPartition> + Clone,
        out: &mut Effects,
    ) -> bool {
        if !self.has_promised_more(asked.clone()) {
            return false;
        }
        self.ring.hurry();
        while let Some(cut) = self.cut_next() {
            self.place(cut, out);
        }
        self.has_promised_more(asked)
    }

    /// The same, however many commits are under way, for those who cannot wait.
    pub(super) fn keep_promises(&mut self, asked: impl Iterator<Item = TopicPartition>, out: &mut Effects) {
        if !self.has_promised_more(asked) {
            return;
        }
        while let Some(cut) = self.ring.cut_beyond_the_bound() {
            self.place(cut, out);
        }
    }

    fn has_promised_more(&self, mut asked: impl Iterator<Item = TopicPartition>) -> bool {
        let more = |tp| self.partitions.get(&tp).is_some_and(Partition::has_promised_more);
        !cfg!(mutant = "reads_miss_what_is_acknowledged") && asked.any(more)
    }

    fn cut_next(&mut self) -> Option<Cut> {
        if self.poisoned {
            return None;
        }
        let mut plan = self.direct_plan();
        self.ring.cut(&mut plan)
    }

    fn keep_in_memory(&mut self, commit: &Commit, partitions: Vec<TopicPartition>) {
        let bytes = commit.bytes + commit.direct_bytes();
        self.memory_bytes += bytes;
        self.in_memory.push_back(InMemory { at: commit.at, bytes, partitions });
    }

    /// A commit was cut: its batches have their places in memory.
    fn place(&mut self, cut: Cut, out: &mut Effects) {
        let mut placed = BTreeSet::new();
        let mut positions = cut.placed.iter();
        for entry in &cut.commit.entries {
            let (Entry::Batch { tp, segment_use, stamp, batch }
            | Entry::Direct { tp, segment_use, stamp, batch, .. }) = entry
            else {
                continue;
            };
            let Some(at) = positions.next() else { break };
            let Some(partition) = self.partitions.get_mut(tp) else { continue };
            let header = batch.header();
            partition.log.tail.push(Place {
                base: stamp.base_offset,
                end: crate::log::batch_end(header, stamp.base_offset),
                position: at.position,
                direct: at.direct,
                bytes: header.batch_bytes,
                segment_use: *segment_use,
                max_timestamp_ms: header.max_timestamp_ms,
                tag_bloom: header.tag_bloom,
            });
            partition.direct = at.direct.is_some();
            if at.direct.is_none() {
                self.undestaged_bytes += u64::from(header.batch_bytes);
            }
            placed.insert(*tp);
        }
        let partitions: Vec<TopicPartition> = placed.into_iter().collect();
        for tp in &partitions {
            self.reindex_undestaged(*tp);
            let memory = self.partitions.get(tp).is_some_and(|partition| !partition.waits_for_disk());
            if memory || cfg!(mutant = "leader_counts_memory") {
                self.visible_moved(*tp, out);
            }
        }
        self.write_direct(&cut.commit);
        self.keep_in_memory(&cut.commit, partitions);
        out.commits.push(cut.commit);
    }

    /// The proof of a commit: what was waiting for it takes effect.
    fn proven(&mut self, now: Now, proof: Proof, out: &mut Effects) {
        for (tp, end) in proof.batches {
            if let Some(partition) = self.partitions.get_mut(&tp) {
                partition.log.made_durable(end);
                if partition.log.direct_proven() {
                    self.reindex_undestaged(tp);
                    self.seal_complete(tp, out);
                }
                self.visible_moved(tp, out);
            }
        }
        for entry in proof.control {
            match entry {
                Entry::Extent(extent) => self.extent_proven(&extent, out),
                Entry::Compacted(entry) => self.compaction_proven(now, &entry, out),
                Entry::LogStart { tp, log_start } => self.log_start_proven(tp, log_start, out),
                Entry::Removed { tp } => self.removal_proven(tp, out),
                Entry::Batch { .. } | Entry::Direct { .. } => {}
            }
        }
    }

    fn visible_moved(&mut self, tp: TopicPartition, out: &mut Effects) {
        self.release_acks(tp, out);
        self.wake_fetches(tp, out);
    }
}
