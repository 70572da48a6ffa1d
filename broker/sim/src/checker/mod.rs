//! The referee: what was promised, what was seen, and whether the two agree.
//!
//! Clients tell it what they asked and what they got, `broker` what recovery found and what an operator was told. It
//! knows nothing of the core's state. It streams: each event is judged when it comes, against offsets known by then
//! (`partition`); raw files are read by `files`. The first contradiction ends the run.
//!
//! Rules, by their names in the project's reliability notes: an acknowledged or read record stays at its offset until
//! a told-of log start passes it (D2, D4, D7, O1, O6, O7); what was refused for good never appears (D6); one batch, one
//! offset (O2, P2); sequence order is offset order (O3); later operations get later offsets (O4); readers skip nothing
//! and see whole batches as they were sealed (O5, O8, O9). What the ledger of damage excuses is excused, nothing else.

mod files;
mod partition;

pub use files::check_segments;
pub use partition::{Read, Readable};

use crate::trace::Trace;
use bytes::Bytes;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{Offset, TopicId, TopicPartition};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{FetchedRow, ListedRow, ProducedRow};
use partition::Partition;
use std::collections::BTreeMap;

/// Names a batch as a producer made it.
pub type BatchId = u64;

/// One batch that was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Where to.
    pub tp: TopicPartition,
    /// Producer id and epoch; none if the producer is not idempotent.
    pub producer: Option<(i64, i16)>,
    /// Sequence of its first record.
    pub sequence: i32,
    /// How many records it has.
    pub records: u32,
    /// When it was sent first.
    pub invoked: u64,
    /// The newest create time of its records.
    pub max_timestamp_ms: i64,
    /// The filter of its tags.
    pub tag_bloom: u64,
    /// Everything after the stamp, folded.
    pub fingerprint: (u32, u32),
    /// What its producer was told at last.
    pub fate: Fate,
    /// Where it is, once known.
    pub base: Option<u64>,
    /// How often it may be in the log.
    pub copies_max: u32,
    copies: u32,
}

/// What a producer knows of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing yet, or nothing for certain.
    Open,
    /// It was acknowledged.
    Acked,
    /// Every attempt was refused in words that promise it was not appended.
    Refused,
}

impl Sent {
    /// A batch that is about to be sent for the first time. `bytes`: all of it, sealed.
    #[must_use]
    pub fn new(
        tp: TopicPartition,
        producer: Option<(i64, i16)>,
        sequence: i32,
        bytes: &[u8],
        now: u64,
    ) -> Self {
        Self {
            tp,
            producer,
            sequence,
            records: partition::u32_at(bytes, 32),
            invoked: now,
            max_timestamp_ms: partition::u64_at(bytes, 48).cast_signed(),
            tag_bloom: partition::u64_at(bytes, 72),
            fingerprint: partition::fingerprint(bytes),
            fate: Fate::Open,
            base: None,
            copies_max: 1,
            copies: 0,
        }
    }
}

/// What the checker has to know of the moment to judge an answer.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    /// Virtual time.
    pub now: u64,
    /// When the request was sent.
    pub invoked: u64,
    /// The disk spoiled blocks of this partition's segments.
    pub segments_damaged: bool,
    /// The shard was found corrupt and said so.
    pub quarantined: bool,
    /// An earlier row of the same answer may have used up what the reader asked for.
    pub may_be_empty: bool,
}

/// The referee of one run.
#[derive(Debug, Default)]
pub struct Checker {
    batches: Vec<Sent>,
    by_fingerprint: BTreeMap<(TopicPartition, u32, u32), BatchId>,
    partitions: BTreeMap<TopicPartition, Partition>,
    violation: Option<String>,
    /// Acknowledged batches, reads of batches, refusals: to see that a run was not idle.
    pub counts: Counts,
    /// The wall clock jumped so far that producers may be forgotten.
    pub producers_may_expire: bool,
}

/// How much a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches acknowledged.
    pub acked: u64,
    /// Batches served and verified.
    pub read: u64,
    /// Rows refused.
    pub refused: u64,
}

impl Checker {
    /// What contradicts a promise, if anything does.
    #[must_use]
    pub fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// Something contradicts a promise. The first one stays.
    pub fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A partition was created.
    pub fn created(&mut self, tp: TopicPartition, memory: bool) {
        self.partitions.insert(tp, Partition::new(tp, memory));
    }

    /// A partition's topic was deleted: nothing is promised any more.
    pub fn deleted(&mut self, tp: TopicPartition) {
        self.partitions.remove(&tp);
    }

    /// Partitions that are judged.
    pub fn partitions(&self) -> impl Iterator<Item = TopicPartition> {
        self.partitions.keys().copied()
    }

    /// A producer made a batch and is about to send it.
    pub fn sent(&mut self, sent: Sent) -> BatchId {
        let id = self.batches.len() as BatchId;
        self.by_fingerprint.insert((sent.tp, sent.fingerprint.0, sent.fingerprint.1), id);
        self.batches.push(sent);
        id
    }

    /// A producer that is not idempotent sends a batch again.
    pub fn sent_again(&mut self, id: BatchId) {
        self.batches[id as usize].copies_max += 1;
    }

    /// A batch was acknowledged.
    pub fn acked(&mut self, id: BatchId, row: &ProducedRow, scene: &Scene) {
        self.counts.acked += 1;
        let Some(partition) = self.partitions.get_mut(&row.tp) else { return };
        let sent = &mut self.batches[id as usize];
        sent.fate = Fate::Acked;
        let result = partition.acked(id, sent, row, scene);
        self.judge(result);
    }

    /// Every attempt to send a batch was refused for good: it must never appear.
    pub fn refused(&mut self, id: BatchId) {
        let sent = &mut self.batches[id as usize];
        sent.fate = Fate::Refused;
        if let Some(base) = sent.base {
            self.violated(format!("D6: batch {id} was refused for good and is at offset {base}"));
        }
    }

    /// A producer was refused in a way that nothing in its own conduct explains.
    pub fn refused_fatally(&mut self, id: BatchId, code: ErrorCode) {
        let sent = &self.batches[id as usize];
        let lossy = self.partitions.get(&sent.tp).is_none_or(|partition| partition.lost_tail);
        let expired = code == ErrorCode::UnknownProducer && self.producers_may_expire;
        if !lossy && !expired {
            self.violated(format!(
                "P3: {code} for batch {id} of producer {:?}, sequence {}, whose predecessors were acknowledged",
                sent.producer, sent.sequence
            ));
        }
    }

    /// Whether the broker may have forgotten what it knew of a partition's producers.
    #[must_use]
    pub fn may_forget(&self, tp: TopicPartition) -> bool {
        let lossy = |partition: &Partition| partition.memory || partition.lost_tail;
        self.producers_may_expire || self.partitions.get(&tp).is_none_or(lossy)
    }

    /// A fetch was answered. Says how the reader goes on.
    pub fn fetched(
        &mut self,
        from: Offset,
        filter: &TagFilter,
        row: &FetchedRow,
        bytes: &Bytes,
        scene: &Scene,
    ) -> Read {
        let Some(partition) = self.partitions.get_mut(&row.tp) else { return Read::Nothing };
        let book = partition::Book { batches: &mut self.batches, by_fingerprint: &self.by_fingerprint };
        match partition.fetched(book, (from.get(), filter), row, bytes, scene) {
            Ok(read) => {
                if let Read::Advanced { batches, .. } = read {
                    self.counts.read += batches;
                }
                read
            }
            Err(what) => {
                self.violated(what);
                Read::Nothing
            }
        }
    }

    /// A place in a log was looked up. `time`: which create time was asked for; none for the latest offset.
    pub fn listed(&mut self, time: Option<i64>, row: &ListedRow, scene: &Scene) {
        let Some(partition) = self.partitions.get_mut(&row.tp) else { return };
        let result = partition.listed(time, row, scene);
        self.judge(result);
    }

    /// The log start moved, and the broker said so.
    pub fn start_moved(&mut self, tp: TopicPartition, to: Offset) {
        if let Some(partition) = self.partitions.get_mut(&tp) {
            partition.start_moved(to.get());
        }
    }

    /// A client's request to delete records was answered: they stay away from now on.
    pub fn start_acknowledged(&mut self, tp: TopicPartition, to: Offset, now: u64) {
        if let Some(partition) = self.partitions.get_mut(&tp) {
            partition.start_acknowledged(now, to.get());
        }
    }

    /// The topic acknowledges in memory from now on, or has until now.
    pub fn may_lose_tails(&mut self, topic: TopicId) {
        for (_, partition) in self.partitions.iter_mut().filter(|(tp, _)| tp.topic == topic) {
            partition.memory = true;
        }
    }

    /// A crash took what a partition held only in memory: nothing from `end` on is promised.
    pub fn memory_lost(&mut self, tp: TopicPartition, end: Offset, trace: &mut Trace) {
        if let Some(partition) = self.partitions.get_mut(&tp)
            && partition.memory
        {
            trace.event("memory lost", &[end.get()]);
            partition.forget_from(end.get(), &mut self.batches);
        }
    }

    /// The disk spoiled what only its last, unmarked commits held: the stated limit of what can be noticed.
    pub fn excused_from(&mut self, tp: TopicPartition, base: Offset, trace: &mut Trace) {
        if let Some(partition) = self.partitions.get_mut(&tp) {
            trace.event("excused", &[base.get()]);
            partition.forget_from(base.get(), &mut self.batches);
        }
    }

    /// What readers must be able to read of a partition.
    pub fn readable(&self, tp: TopicPartition) -> Option<Readable> {
        self.partitions.get(&tp).map(Partition::readable)
    }

    /// The first known offset at or after `from`, for a reader that was told of damage.
    #[must_use]
    pub fn next_known(&self, tp: TopicPartition, from: u64) -> Option<u64> {
        self.partitions.get(&tp)?.next_known(from)
    }

    /// The batch that is known to be at this offset.
    #[must_use]
    pub fn at(&self, tp: TopicPartition, base: u64) -> Option<&Sent> {
        self.partitions.get(&tp)?.at(base).map(|id| &self.batches[id as usize])
    }

    fn judge(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.violated(what);
        }
    }
}
