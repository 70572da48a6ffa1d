//! What a shard keeps and what goes: leadership, retention, the disk budget, delete-records, removal, the clean stop.
//!
//! A log start moves in two steps: its entry is queued, and only when that entry is durable do reads below it end and
//! files go. So no crash brings back what a consumer was told is gone, and none loses what it was not.

use super::partition::Partition;
use super::{Effects, Note, ReadUpTo, RequestId, Shard};
use crate::journal::Entry;
use crate::limits::{BLOCK, DISK_MARGIN_BYTES, DISK_MARGIN_SHARE, PARTITIONS_MAX, ROWS_MAX};
use crate::log::{Log, Segment};
use crate::time::Now;
use crate::topic::TopicConfig;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{LeaderEpoch, Offset, TopicId, TopicPartition};
use corelog_wire::message::{Answer, DeleteRecordsAnswer, DeletedRow};

/// A delete-records request that waits for its entries.
#[derive(Debug)]
pub(super) struct ParkedDeletion {
    rows: Vec<DeletedRow>,
    /// Which rows wait, and for which log start.
    waiting: Vec<(usize, Offset)>,
}

impl Shard {
    pub(super) fn lead(
        &mut self,
        tp: TopicPartition,
        epoch: LeaderEpoch,
        config: TopicConfig,
        out: &mut Effects,
    ) {
        if !self.partitions.contains_key(&tp) && self.partitions.len() >= PARTITIONS_MAX {
            out.notes.push(Note::TooManyPartitions { tp });
            return;
        }
        self.keep_promises(std::iter::once(tp), out);
        let partition = self.partitions.entry(tp).or_insert_with(|| Partition::new(Log::new(tp)));
        if partition.removing {
            return;
        }
        let newest = partition.epoch.max(partition.log.epochs.last());
        // The epoch that wrote the log before this start is over: its unflushed records may have been seen elsewhere.
        let over = partition.epoch.is_none() && partition.log.epochs.last() == Some(epoch);
        if over || newest.is_some_and(|newest| epoch < newest) {
            out.notes.push(Note::EpochBehind { tp, epoch, newest });
            return;
        }
        partition.configure(config);
        if partition.epoch.replace(epoch) != Some(epoch) {
            // Groups may have gone back while another led.
            partition.read_up_to = None;
        }
        self.seal_complete(tp, out);
    }

    pub(super) fn configure(&mut self, tp: TopicPartition, config: TopicConfig, out: &mut Effects) {
        self.keep_promises(std::iter::once(tp), out);
        if let Some(partition) = self.partitions.get_mut(&tp) {
            partition.configure(config);
        }
    }

    pub(super) fn take_read(&mut self, words: &[ReadUpTo]) {
        for ReadUpTo { groups, rows } in words {
            for (tp, offset) in rows {
                if let Some(partition) = self.partitions.get_mut(tp) {
                    partition.take_read(groups, *offset);
                }
            }
        }
    }

    /// A tombstone says the partition is gone.
    pub(super) fn remove(&mut self, tp: TopicPartition, out: &mut Effects) {
        if self.read_only || self.poisoned {
            return;
        }
        let Some(partition) = self.partitions.get_mut(&tp) else { return };
        if partition.removing {
            return;
        }
        partition.removing = true;
        partition.epoch = None;
        partition.promised = Offset::ZERO;
        // Nothing of the partition may follow its removal in the journal.
        self.ring.withdraw(tp);
        self.ring.push(Entry::Removed { tp });
        for request in super::fetch::take_waiting_of(self, tp) {
            self.fetch_due(request, out);
        }
    }

    pub(super) fn removal_proven(&mut self, tp: TopicPartition, out: &mut Effects) {
        let Some(mut partition) = self.partitions.remove(&tp) else { return };
        self.streams.remove(&tp);
        self.opening.remove(&tp);
        if let Some(position) = partition.undestaged {
            self.undestaged.remove(&(position, tp));
        }
        self.undestaged_bytes -= partition.undestaged_bytes();
        let segments = partition.log.segments.take_all();
        self.drop_files(&partition, segments, out);
        self.evict_of(tp, out);
        // Its folder goes when nobody writes to a file in it any more.
        if self.extents.keys().any(|segment| segment.tp == tp) || self.is_compacting(tp) {
            self.removed_meanwhile.insert(tp);
        } else {
            out.removed.push(tp);
        }
        self.fail_acks(tp, partition.acks, out);
        self.deletions_over(tp, out);
    }

    /// Periodic: retention by time and by bytes, and another try on a full disk.
    pub(super) fn keep(&mut self, now: Now, out: &mut Effects) {
        self.retry_after_pause(now, out);
        self.budget_full = self.budget_full && (self.is_stuck() || !self.has_disk_room(0));
        if self.read_only || self.poisoned {
            return;
        }
        self.retry_seals(out);
        let partitions: Vec<TopicPartition> = self.partitions.keys().copied().collect();
        for tp in partitions {
            self.keep_partition(tp, now, out);
        }
        self.compact(now, out);
    }

    /// Retention of one partition: periodic, and when it opens a segment, so that a fast one keeps to its settings, and what it
    /// drops is there to be used again.
    pub(super) fn keep_partition(&mut self, tp: TopicPartition, now: Now, out: &mut Effects) {
        let Some(partition) = self.partitions.get_mut(&tp) else { return };
        let expired = expired(partition, now.wall_ms);
        out.notes.extend(partition.note_waiting(expired.waits, now.instant));
        if let Some((to, reason)) = expired.to {
            self.advance_log_start(tp, to, reason, out);
        }
    }

    /// Queues a new log start; reads below it end when its entry is durable. False if there is nothing to move, or no
    /// room in the journal to say so.
    fn advance_log_start(
        &mut self,
        tp: TopicPartition,
        to: Offset,
        reason: &'static str,
        out: &mut Effects,
    ) -> bool {
        let has_room = self.ring.admits_log_start();
        let Some(partition) = self.partitions.get_mut(&tp) else { return false };
        if to <= partition.start_target || partition.removing || !has_room {
            return false;
        }
        // A segment that ends here goes as a whole: what is appended behind this entry belongs to another file, as a
        // replay will find it.
        if partition.log.segments.last().is_some_and(|last| last.base < last.end && last.end <= to) {
            partition.log.segments.fill_last();
        }
        let from = partition.start_target;
        let leaving = partition.log.segments.iter().filter(|segment| from < segment.end && segment.end <= to);
        self.disk_bytes_leaving += leaving.map(|segment| segment.allocated).sum::<u64>();
        partition.start_target = to;
        self.ring.push(Entry::LogStart { tp, log_start: to });
        out.notes.push(Note::LogStartMoved { tp, from, to, reason });
        if cfg!(mutant = "files_go_before_the_log_start_is_durable") {
            self.log_start_proven(tp, to, out);
        }
        true
    }

    pub(super) fn log_start_proven(&mut self, tp: TopicPartition, to: Offset, out: &mut Effects) {
        let Some(partition) = self.partitions.get_mut(&tp) else { return };
        let before = partition.undestaged_bytes();
        let gone = partition.log.advance_start(to);
        self.undestaged_bytes -= before - partition.undestaged_bytes();
        self.reindex_undestaged(tp);
        if let Some(partition) = self.partitions.remove(&tp) {
            self.drop_files(&partition, gone, out);
            self.partitions.insert(tp, partition);
        }
        self.deletions_proven(tp, out);
        self.wake_fetches(tp, out);
    }

    /// Files that left the log: they go now, or when the extent being written to them is done.
    pub(super) fn drop_files(&mut self, partition: &Partition, segments: Vec<Segment>, out: &mut Effects) {
        for segment in segments {
            let id = segment.id(partition.tp());
            self.disk_bytes -= segment.allocated;
            if segment.end <= partition.start_target {
                self.disk_bytes_leaving = self.disk_bytes_leaving.saturating_sub(segment.allocated);
            }
            if let Some(extent) = self.extents.get_mut(&id) {
                extent.doomed = true;
            } else if segment.created && !partition.removing {
                self.retire(id, &segment, out);
            } else if segment.created {
                out.removals.push(id);
            } else if let Some(old) = segment.made_of {
                // An extent that failed may have given the file its new name.
                out.removals.extend([old, id]);
            }
        }
    }

    /// Whether the file system is full and the journal cannot take what it cannot pass on.
    pub(super) fn is_stuck(&self) -> bool {
        self.is_disk_full() && self.ring.head().since(self.ring.needed_from()) > self.ring.bytes() / 2
    }

    /// Whether a batch of `bytes` fits the disk budget, with everything that is on its way to segments.
    pub(super) fn has_disk_room(&self, bytes: u64) -> bool {
        let padding = BLOCK * self.undestaged.len() as u64;
        let on_its_way = self.undestaged_bytes + self.ring.pending_bytes() + padding;
        let margin = DISK_MARGIN_BYTES.min(self.config.disk_bytes_max / DISK_MARGIN_SHARE);
        // Files whose log start is on its way to the journal go before anything appended now is destaged.
        let staying = self.disk_bytes.saturating_sub(self.disk_bytes_leaving);
        staying + on_its_way + bytes + margin <= self.config.disk_bytes_max
    }

    /// Drops the oldest segment of the topic on this shard that its policy lets go; false if it has none.
    pub(super) fn drop_oldest(&mut self, tp: TopicPartition, out: &mut Effects) -> bool {
        let oldest = self
            .partitions
            .range(TopicPartition::new(tp.topic, 0)..)
            .take_while(|(other, _)| other.topic == tp.topic)
            .filter(|(_, partition)| !partition.removing)
            .filter_map(|(other, partition)| {
                let segment =
                    partition.log.segments.iter().find(|segment| segment.end > partition.start_target)?;
                let is_whole = segment.proven_end == segment.end && segment.end > segment.base;
                (is_whole && partition.may_give_way(segment.end)).then_some((
                    segment.last_append_ms,
                    *other,
                    segment.end,
                ))
            })
            .min();
        oldest.is_some_and(|(_, from, to)| self.advance_log_start(from, to, "disk_bytes_max", out))
    }

    /// Whether a whole segment of the topic on this shard would go if a protected group had read it.
    pub(super) fn has_unread(&self, topic: TopicId) -> bool {
        let partitions = self.partitions.range(TopicPartition::new(topic, 0)..);
        partitions.take_while(|(tp, _)| tp.topic == topic).any(|(_, partition)| {
            let mut later =
                partition.log.segments.iter().filter(|segment| segment.end > partition.start_target);
            later.next().is_some_and(|oldest| oldest.base < oldest.end && !partition.may_expire(oldest.end))
        })
    }

    pub(super) fn delete_records(
        &mut self,
        request: RequestId,
        rows: &[(TopicPartition, Offset)],
        out: &mut Effects,
    ) {
        self.keep_promises(rows.iter().map(|(tp, _)| *tp), out);
        let mut parked = ParkedDeletion { rows: Vec::new(), waiting: Vec::new() };
        for (tp, before) in rows.iter().take(ROWS_MAX) {
            let row = match self.may_delete(*tp, *before) {
                Ok(log_start) => {
                    if *before > log_start {
                        parked.waiting.push((parked.rows.len(), *before));
                    }
                    DeletedRow { tp: *tp, error: ErrorCode::None, log_start: log_start.max(*before) }
                }
                Err(error) => DeletedRow { tp: *tp, error, log_start: Offset::ZERO },
            };
            parked.rows.push(row);
        }
        for (row, before) in std::mem::take(&mut parked.waiting) {
            let answer = &mut parked.rows[row];
            // Two requests may ask for the same: the first one's entry does for both.
            let under_way =
                self.partitions.get(&answer.tp).is_some_and(|partition| before <= partition.start_target);
            if under_way || self.advance_log_start(answer.tp, before, "delete_records", out) {
                parked.waiting.push((row, before));
            } else {
                answer.error = ErrorCode::Throttled;
            }
        }
        if parked.waiting.is_empty() {
            out.answers.push((request, deleted(parked.rows)));
        } else {
            self.deletions.insert(request, parked);
        }
    }

    pub(super) fn fail_deletions(&mut self, error: ErrorCode, out: &mut Effects) {
        for (request, mut parked) in std::mem::take(&mut self.deletions) {
            for (row, _) in &parked.waiting {
                parked.rows[*row].error = error;
            }
            out.answers.push((request, deleted(parked.rows)));
        }
    }

    /// The clean stop: no new appends, waiting fetches are answered, then everything is made durable.
    pub(super) fn drain(&mut self, out: &mut Effects) {
        self.draining = true;
        self.answer_all_fetches(out);
    }

    pub(super) fn finish_draining(&mut self, out: &mut Effects) {
        if !self.draining || self.drained {
            return;
        }
        let stuck = self.poisoned || self.read_only;
        // What a full disk keeps from a checkpoint stays in the journal.
        let kept = self.is_checkpointed() || self.checkpoint_waits;
        if stuck || (self.ring.is_quiet() && self.extents.is_empty() && kept) {
            self.drained = true;
            out.notes.push(Note::Drained);
        }
    }

    fn may_delete(&self, tp: TopicPartition, before: Offset) -> Result<Offset, ErrorCode> {
        let partition = self.partitions.get(&tp).ok_or(ErrorCode::UnknownPartition)?;
        if partition.epoch.is_none() {
            return Err(ErrorCode::NotLeader);
        }
        if self.read_only {
            return Err(ErrorCode::ReadOnly);
        }
        if self.poisoned {
            return Err(ErrorCode::LogPoisoned);
        }
        if before > partition.high_watermark() {
            return Err(ErrorCode::OffsetOutOfRange);
        }
        Ok(partition.log.log_start())
    }

    /// A partition is gone: whoever waits for its log start is told so.
    fn deletions_over(&mut self, tp: TopicPartition, out: &mut Effects) {
        for parked in self.deletions.values_mut() {
            for row in parked.rows.iter_mut().filter(|row| row.tp == tp && row.error == ErrorCode::None) {
                row.error = ErrorCode::UnknownTopic;
            }
            let rows = &parked.rows;
            parked.waiting.retain(|(row, _)| rows[*row].tp != tp);
        }
        self.answer_deletions(out);
    }

    fn deletions_proven(&mut self, tp: TopicPartition, out: &mut Effects) {
        let Some(log_start) = self.partitions.get(&tp).map(|partition| partition.log.log_start()) else {
            return;
        };
        for parked in self.deletions.values_mut() {
            let rows = &parked.rows;
            parked.waiting.retain(|(row, before)| rows[*row].tp != tp || *before > log_start);
        }
        self.answer_deletions(out);
    }

    /// Answers the deletions that wait for nothing any more.
    fn answer_deletions(&mut self, out: &mut Effects) {
        for (request, parked) in self.deletions.extract_if(.., |_, parked| parked.waiting.is_empty()) {
            out.answers.push((request, deleted(parked.rows)));
        }
    }
}

/// What retention has to remove.
#[derive(Default)]
struct Expired {
    /// How far it moves the log's start, and why.
    to: Option<(Offset, &'static str)>,
    /// Whether it would move it further, were there not a group that still has to read.
    waits: bool,
}

fn expired(partition: &Partition, now_ms: i64) -> Expired {
    let mut expired = Expired::default();
    let Some(config) = partition.config.as_ref().filter(|config| config.cleanup_policy.deletes()) else {
        return expired;
    };
    let log = &partition.log;
    if let Some(retention_ms) = config.retention_ms {
        let oldest_kept_ms = now_ms.saturating_sub(i64::try_from(retention_ms).unwrap_or(i64::MAX));
        let old = log.segments.iter().take_while(|segment| segment.last_append_ms < oldest_kept_ms);
        for segment in old.filter(|segment| segment.base < segment.end && segment.end <= log.durable_end()) {
            if !partition.may_expire(segment.end) {
                expired.waits = true;
                break;
            }
            expired.to = Some((segment.end, "retention_ms"));
        }
    }
    if let Some(retention_bytes) = config.retention_bytes {
        let mut bytes = log.bytes();
        let sealed = log.segments.iter().len().saturating_sub(1);
        for segment in log.segments.iter().take(sealed) {
            bytes -= segment.bytes;
            if bytes < retention_bytes || segment.end > log.durable_end() {
                break;
            }
            if !partition.may_expire(segment.end) {
                expired.waits = true;
                break;
            }
            if expired.to.is_none_or(|(offset, _)| offset < segment.end) {
                expired.to = Some((segment.end, "retention_bytes"));
            }
        }
    }
    expired.to = expired.to.filter(|(offset, _)| *offset > partition.start_target);
    expired
}

fn deleted(rows: Vec<DeletedRow>) -> Answer {
    Answer::DeleteRecords(DeleteRecordsAnswer { rows })
}
