//! Appends: who may, at which offset, and when the producer is told.
//!
//! A batch gets its offset when it is admitted and its acknowledgement when its commit is flushed; between the two
//! its row is parked on the partition. A duplicate is parked the same way, beside the first copy. What comes to a memory
//! topic while nobody waits for its records is acknowledged at once, and nobody waits for its commit; unless much waits
//! already, as when the device does not keep up.

use super::input::{Produce, ProduceRow, RequestId};
use super::partition::{ParkedAck, Partition};
use super::{Effects, Parked, Shard};
use crate::group::GroupName;
use crate::journal::{ENTRY_HEADER_BYTES, Entry, SegmentUse};
use crate::limits::{LAZY_COMMIT_BYTES, PARKED_PRODUCES_MAX, REQUEST_DEADLINE_MAX, ROWS_MAX};
use crate::log::{Admission, Appended, ProducerRefusal};
use crate::time::{Instant, Now};
use crate::topic::{FullPolicy, TopicConfig};
use corelog_wire::batch::{CheckedBatch, Compression, Stamp};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{LeaderEpoch, Offset, TopicPartition};
use corelog_wire::message::{Acks, Answer, ProduceAnswer, ProducedRow};
use corelog_wire::records::Records;
use std::collections::VecDeque;

/// Groups that a refusal names.
const NAMES_MAX: usize = 3;

/// A produce request that waits for flushes.
#[derive(Debug)]
pub(super) struct ParkedProduce {
    rows: Vec<ProducedRow>,
    waiting: usize,
    pub deadline: Instant,
}

/// A produce request that waits for room in the journal; nothing of it was appended.
#[derive(Debug)]
pub(super) struct StalledProduce {
    pub request: Produce,
    bytes: u64,
    pub deadline: Instant,
}

/// Why a batch was not appended.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendRefusal {
    /// No such partition on this shard.
    #[error("this shard has no such partition; ask for the metadata again")]
    UnknownPartition,
    /// The broker does not lead the partition yet.
    #[error("this broker does not lead the partition; ask for the metadata again")]
    NotLeader,
    /// The device failed.
    #[error("the log's device failed; nothing is appended until the broker is restarted on a sound one")]
    Poisoned,
    /// The journal was found corrupt at the start.
    #[error("the journal is corrupt; the partition can be read, not appended to")]
    ReadOnly,
    /// The shard takes no more requests.
    #[error("the broker is shutting down")]
    ShuttingDown,
    /// The batch is larger than the topic or the journal takes.
    #[error("the batch has {bytes} bytes; {bytes_max} is the most here")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// One of its records is larger than the topic takes.
    #[error("a record has {bytes} bytes; the topic's record_bytes_max is {bytes_max}")]
    RecordTooLarge {
        /// Its key, value and headers.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// The producer's sequence does not fit.
    #[error(transparent)]
    Producer(#[from] ProducerRefusal),
    /// No room on disk.
    #[error(
        "the disk or the broker's disk_bytes_max is full, and the topic's full_policy could not make any; free room or raise it"
    )]
    DiskFull,
    /// No room on disk, and retention waits for who has to read.
    #[error(
        "the disk or the broker's disk_bytes_max is full, and nothing of this topic goes that is not read by {}; \
         let them read and commit, or free room or raise it",
        names(.groups)
    )]
    DiskFullOfUnread {
        /// The topic's `protect_groups`.
        groups: Vec<GroupName>,
    },
    /// More replicas are required than there are.
    #[error("acks=all needs {needed} in-sync replicas; there is 1")]
    NotEnoughReplicas {
        /// The topic's `min_insync_replicas`.
        needed: u32,
    },
}

impl AppendRefusal {
    /// Its code on the wire.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownPartition => ErrorCode::UnknownPartition,
            Self::NotLeader => ErrorCode::NotLeader,
            Self::Poisoned => ErrorCode::LogPoisoned,
            Self::ReadOnly => ErrorCode::ReadOnly,
            Self::ShuttingDown => ErrorCode::ShuttingDown,
            Self::TooLarge { .. } | Self::RecordTooLarge { .. } => ErrorCode::TooLarge,
            Self::Producer(ProducerRefusal::OutOfOrder { .. }) => ErrorCode::OutOfOrderSequence,
            Self::Producer(ProducerRefusal::DuplicateTooOld { .. }) => ErrorCode::DuplicateTooOld,
            Self::Producer(ProducerRefusal::Fenced { .. }) => ErrorCode::FencedProducer,
            Self::Producer(ProducerRefusal::Unknown { .. }) => ErrorCode::UnknownProducer,
            Self::DiskFull | Self::DiskFullOfUnread { .. } => ErrorCode::DiskFull,
            Self::NotEnoughReplicas { .. } => ErrorCode::NotEnoughReplicas,
        }
    }
}

/// A batch that is in the log, or on its way.
struct Accepted {
    base: Offset,
    end: Offset,
    append_timestamp_ms: i64,
}

impl Shard {
    /// Takes a produce request: at once if the journal has room for it, else behind those that wait for room already.
    pub(super) fn produce(&mut self, now: Now, request: Produce, out: &mut Effects) {
        let deadline = now.instant.after(request.deadline.min(REQUEST_DEADLINE_MAX));
        let bytes = request_bytes(&request);
        let crowded = self.produces.len() + self.stalled.len() >= PARKED_PRODUCES_MAX;
        if crowded || request.rows.len() > ROWS_MAX {
            refuse_all(&request, ErrorCode::Throttled, "too many requests are waiting; try again", out);
        } else if bytes > self.ring.bytes() / 2 {
            refuse_all(
                &request,
                ErrorCode::TooLarge,
                "the request is larger than half the journal; send less at once",
                out,
            );
        } else if self.stalled.is_empty() && self.may_admit(bytes) {
            self.admit(now, request, deadline, out);
        } else {
            self.deadlines.insert((deadline, request.request, Parked::Produce));
            self.stalled.push_back(StalledProduce { request, bytes, deadline });
        }
    }

    /// Takes the requests that waited for room in the journal, in order, as far as there is room now.
    pub(super) fn admit_stalled(&mut self, now: Now, out: &mut Effects) {
        while let Some(stalled) = self.stalled.front() {
            if !self.may_admit(stalled.bytes) {
                return;
            }
            let Some(StalledProduce { request, deadline, .. }) = self.stalled.pop_front() else { return };
            self.deadlines.remove(&(deadline, request.request, Parked::Produce));
            self.admit(now, request, deadline, out);
        }
    }

    /// Whether the journal has room; a shard that refuses everything needs none to say so.
    fn may_admit(&self, bytes: u64) -> bool {
        self.ring.admits(bytes) || self.poisoned || self.read_only || self.draining || self.is_stuck()
    }

    fn admit(&mut self, now: Now, request: Produce, deadline: Instant, out: &mut Effects) {
        let Produce { request: id, acks, rows, .. } = request;
        let mut parked = ParkedProduce { rows: Vec::with_capacity(rows.len()), waiting: 0, deadline };
        for row in rows {
            let tp = row.tp;
            let answer = match self.append_row(now, acks, row, out) {
                Ok(accepted) => {
                    if acks != Acks::None && self.park_ack(tp, accepted.end, id) {
                        parked.waiting += 1;
                    }
                    self.produced(tp, &accepted)
                }
                Err((code, message)) => refused(tp, code, message),
            };
            parked.rows.push(answer);
        }
        if acks == Acks::None {
            return;
        }
        if parked.waiting == 0 {
            out.answers.push((id, answer(parked.rows)));
        } else {
            self.deadlines.insert((deadline, id, Parked::Produce));
            self.produces.insert(id, parked);
        }
    }

    /// The deadline of a produce request passed: what is not known to be durable may still become so.
    pub(super) fn produce_expired(&mut self, request: RequestId, out: &mut Effects) {
        if let Some(at) = self.stalled.iter().position(|stalled| stalled.request.request == request)
            && let Some(stalled) = self.stalled.remove(at)
        {
            let message = "the journal had no room before the deadline; nothing was appended, try again";
            refuse_all(&stalled.request, ErrorCode::Throttled, message, out);
            return;
        }
        let Some(mut parked) = self.produces.remove(&request) else { return };
        let message = "the deadline passed before the flush; the batch may still be appended";
        for row in &mut parked.rows {
            if row.error == ErrorCode::None && !self.is_acknowledgeable(row) {
                *row = refused(row.tp, ErrorCode::Deadline, message.to_owned());
            }
        }
        out.answers.push((request, answer(parked.rows)));
    }

    /// What is durable or visible of a partition moved: acks up to it may leave.
    pub(super) fn release_acks(&mut self, tp: TopicPartition, out: &mut Effects) {
        let Some(partition) = self.partitions.get_mut(&tp) else { return };
        let mut done = Vec::new();
        while partition.acks.front().is_some_and(|ack| ack.end <= partition.acknowledgeable_end(ack.durable))
        {
            done.extend(partition.acks.pop_front());
        }
        for ack in done {
            self.acknowledged(ack.request, out);
        }
    }

    /// A partition is gone: whoever waits for its flushes is told so.
    pub(super) fn fail_acks(&mut self, tp: TopicPartition, acks: VecDeque<ParkedAck>, out: &mut Effects) {
        for ack in acks {
            let Some(parked) = self.produces.get_mut(&ack.request) else { continue };
            for row in parked.rows.iter_mut().filter(|row| row.tp == tp && row.error == ErrorCode::None) {
                *row = refused(tp, ErrorCode::UnknownTopic, "the topic was deleted".to_owned());
            }
            self.acknowledged(ack.request, out);
        }
    }

    /// One row less to wait for; the last one sends the answer.
    fn acknowledged(&mut self, request: RequestId, out: &mut Effects) {
        let Some(parked) = self.produces.get_mut(&request) else { return };
        parked.waiting -= 1;
        if parked.waiting == 0
            && let Some(parked) = self.produces.remove(&request)
        {
            self.deadlines.remove(&(parked.deadline, request, Parked::Produce));
            out.answers.push((request, answer(parked.rows)));
        }
    }

    /// Answers every parked produce with what is known: appended and flushed, or not known.
    pub(super) fn fail_produces(&mut self, code: ErrorCode, message: &str, out: &mut Effects) {
        for (request, mut parked) in std::mem::take(&mut self.produces) {
            self.deadlines.remove(&(parked.deadline, request, Parked::Produce));
            for row in &mut parked.rows {
                if row.error == ErrorCode::None && !self.is_acknowledgeable(row) {
                    *row = refused(row.tp, code, message.to_owned());
                }
            }
            out.answers.push((request, answer(parked.rows)));
        }
        for partition in self.partitions.values_mut() {
            partition.acks.clear();
        }
    }

    /// Parks a row until what it waits for reaches `end`; false if it is there already.
    fn park_ack(&mut self, tp: TopicPartition, end: Offset, request: RequestId) -> bool {
        let Some(partition) = self.partitions.get_mut(&tp) else { return false };
        let durable = partition.waits_for_disk();
        if end <= partition.acknowledgeable_end(durable) {
            return false;
        }
        partition.acks.push_back(ParkedAck { end, durable, request });
        true
    }

    fn is_acknowledgeable(&self, row: &ProducedRow) -> bool {
        let Some(partition) = self.partitions.get(&row.tp) else { return false };
        // These ends only ever lie between batches: past a batch's start they are past the batch.
        row.base_offset < partition.acknowledgeable_end(row.durable)
    }

    fn produced(&self, tp: TopicPartition, accepted: &Accepted) -> ProducedRow {
        let partition = self.partitions.get(&tp);
        ProducedRow {
            tp,
            error: ErrorCode::None,
            message: String::new(),
            base_offset: accepted.base,
            append_timestamp_ms: accepted.append_timestamp_ms,
            log_start: partition.map_or(Offset::ZERO, |partition| partition.log.log_start()),
            replicas_reached: 1,
            durable: partition.is_some_and(Partition::waits_for_disk),
        }
    }

    fn append_row(
        &mut self,
        now: Now,
        acks: Acks,
        row: ProduceRow,
        out: &mut Effects,
    ) -> Result<Accepted, (ErrorCode, String)> {
        let batch = row.batch?;
        self.append(now, acks, row.tp, batch, out).map_err(|refusal| (refusal.code(), refusal.to_string()))
    }

    fn append(
        &mut self,
        now: Now,
        acks: Acks,
        tp: TopicPartition,
        batch: CheckedBatch,
        out: &mut Effects,
    ) -> Result<Accepted, AppendRefusal> {
        let bytes = batch.bytes().len() as u64;
        self.may_append(acks, tp, &batch)?;
        let header = *batch.header();
        let partition = self.partitions.get(&tp).ok_or(AppendRefusal::UnknownPartition)?;
        match partition.log.producers.admit(&header)? {
            Admission::Duplicate(first) if cfg!(mutant = "duplicate_acked_at_once") => {
                return Ok(Accepted {
                    base: first.base,
                    end: Offset::ZERO,
                    append_timestamp_ms: first.append_timestamp_ms,
                });
            }
            Admission::Duplicate(first) if !cfg!(mutant = "duplicates_appended") => {
                let Appended { base, end, append_timestamp_ms, .. } = first;
                return Ok(Accepted { base, end, append_timestamp_ms });
            }
            Admission::Duplicate(_) | Admission::New => {}
        }
        self.make_room(tp, bytes, out)?;
        let (epoch, config) = self.leading(tp)?;
        let opened_after_ms = oldest_opening(config, now.wall_ms);
        let segment_bytes = config.segment_bytes;
        let partition = self.partitions.get_mut(&tp).ok_or(AppendRefusal::UnknownPartition)?;
        let little = self.ring.pending_bytes() < LAZY_COMMIT_BYTES;
        let lazy = little && !partition.waits_for_disk() && partition.waiting.is_empty();
        let log = &mut partition.log;
        let (segment_use, opens) = match log.segments.last() {
            Some(last) if !log.segments.wants_roll(bytes, segment_bytes, opened_after_ms) => {
                (last.segment_use, false)
            }
            _ => {
                self.next_use = SegmentUse(self.next_use.0 + 1);
                (self.next_use, true)
            }
        };
        let base = log.end();
        let stamp = Stamp { base_offset: base, append_timestamp_ms: now.wall_ms, leader_epoch: epoch };
        log.append(&header, &stamp, header.batch_bytes, segment_use);
        let end = log.end();
        if lazy {
            partition.promised = end;
        }
        if opens {
            self.streams.remove(&tp);
            self.opening.remove(&tp);
            self.reuse(tp);
            self.keep_partition(tp, now, out);
        }
        let entry = Entry::Batch { tp, segment_use, stamp, batch };
        if lazy {
            self.ring.push_lazily(entry);
            self.lazy_since.get_or_insert(now.instant);
        } else {
            self.ring.push(entry);
        }
        Ok(Accepted { base, end, append_timestamp_ms: now.wall_ms })
    }

    /// Everything that does not depend on the producer.
    fn may_append(&self, acks: Acks, tp: TopicPartition, batch: &CheckedBatch) -> Result<(), AppendRefusal> {
        if self.read_only {
            return Err(AppendRefusal::ReadOnly);
        }
        if self.poisoned {
            return Err(AppendRefusal::Poisoned);
        }
        if self.draining {
            return Err(AppendRefusal::ShuttingDown);
        }
        let (_, config) = self.leading(tp)?;
        let bytes_max = config.batch_bytes_max.min(self.ring.batch_bytes_max());
        let bytes = batch.bytes().len() as u64;
        if bytes > bytes_max {
            return Err(AppendRefusal::TooLarge { bytes, bytes_max });
        }
        if let Some(bytes) = record_larger_than(config.record_bytes_max, batch) {
            return Err(AppendRefusal::RecordTooLarge { bytes, bytes_max: config.record_bytes_max });
        }
        let needed = u32::from(config.min_insync_replicas);
        if acks == Acks::All && needed > 1 {
            return Err(AppendRefusal::NotEnoughReplicas { needed });
        }
        Ok(())
    }

    fn leading(&self, tp: TopicPartition) -> Result<(LeaderEpoch, &TopicConfig), AppendRefusal> {
        let partition = self.partitions.get(&tp).ok_or(AppendRefusal::UnknownPartition)?;
        if partition.removing {
            return Err(AppendRefusal::UnknownPartition);
        }
        match (partition.epoch, &partition.config) {
            (Some(epoch), Some(config)) => Ok((epoch, config)),
            _ => Err(AppendRefusal::NotLeader),
        }
    }

    /// Reserves disk room for a batch, by the topic's policy.
    fn make_room(&mut self, tp: TopicPartition, bytes: u64, out: &mut Effects) -> Result<(), AppendRefusal> {
        let (_, config) = self.leading(tp)?;
        let may_drop = config.full_policy != FullPolicy::BlockProducer;
        if self.is_stuck() {
            // What is dropped leaves room only when its files are gone, and others may take that: one segment a try.
            if may_drop
                && let Some(pause) = &mut self.pause
                && !std::mem::replace(&mut pause.dropped, true)
            {
                self.drop_oldest(tp, out);
            }
            return Err(self.full(tp));
        }
        while !self.has_disk_room(bytes) {
            if self.evict(out) {
                continue;
            }
            if !may_drop || !self.drop_oldest(tp, out) {
                self.budget_full = true;
                return Err(self.full(tp));
            }
        }
        Ok(())
    }

    /// Why a batch for the partition finds no room: because of what has to be read first, if there is any.
    fn full(&self, tp: TopicPartition) -> AppendRefusal {
        let groups = self.leading(tp).ok().map(|(_, config)| &config.protect_groups);
        match groups.filter(|groups| !groups.is_empty() && self.has_unread(tp.topic)) {
            Some(groups) => AppendRefusal::DiskFullOfUnread { groups: groups.clone() },
            None => AppendRefusal::DiskFull,
        }
    }
}

/// The first of them, and how many there are beside.
fn names(groups: &[GroupName]) -> String {
    let (first, others) = groups.split_at(groups.len().min(NAMES_MAX));
    let first = first.iter().map(GroupName::as_str).collect::<Vec<_>>().join(", ");
    if others.is_empty() { first } else { format!("{first} and {} more", others.len()) }
}

/// The size of a record in the batch that has more bytes than `bytes_max`. Looks at records only if the body as a whole is
/// larger, and never into a compressed one.
fn record_larger_than(bytes_max: u64, batch: &CheckedBatch) -> Option<u64> {
    let header = batch.header();
    if u64::from(header.body_bytes) <= bytes_max || header.attributes.compression != Compression::None {
        return None;
    }
    let records = Records::new(batch.body(), header.record_count).map_while(Result::ok);
    records.map(|record| record.content_bytes()).find(|bytes| *bytes > bytes_max)
}

/// A segment opened before this is closed by the next append, so that retention by time has something to remove.
fn oldest_opening(config: &TopicConfig, now_ms: i64) -> i64 {
    match config.retention_ms {
        Some(retention_ms) => now_ms.saturating_sub(i64::try_from(retention_ms / 4).unwrap_or(i64::MAX)),
        None => i64::MIN,
    }
}

/// What a request's batches take in the journal.
fn request_bytes(request: &Produce) -> u64 {
    let batches = request.rows.iter().filter_map(|row| row.batch.as_ref().ok());
    batches.map(|batch| batch.bytes().len() as u64 + ENTRY_HEADER_BYTES).sum()
}

fn refuse_all(request: &Produce, code: ErrorCode, message: &str, out: &mut Effects) {
    if request.acks != Acks::None {
        let rows = request.rows.iter().map(|row| refused(row.tp, code, message.to_owned()));
        out.answers.push((request.request, answer(rows.collect())));
    }
}

fn refused(tp: TopicPartition, error: ErrorCode, message: String) -> ProducedRow {
    ProducedRow {
        tp,
        error,
        message,
        base_offset: Offset::ZERO,
        append_timestamp_ms: -1,
        log_start: Offset::ZERO,
        replicas_reached: 0,
        durable: false,
    }
}

fn answer(rows: Vec<ProducedRow>) -> Answer {
    Answer::Produce(ProduceAnswer { throttle_ms: 0, rows })
}
