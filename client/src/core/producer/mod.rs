//! The producer of one topic: records in, Produce requests out, a result for every record.
//!
//! A driver calls [`Producer::append`] for each record, carries out the effects of [`Producer::handle`], feeds the
//! answers back and comes back at [`Producer::deadline`]. `T` is the driver's own handle on a batch, by which it finds
//! who waits for its records.
//!
//! Invariants: every batch ends once, delivered or undelivered; a batch that was sealed is sent again only as the same
//! bytes, under the same producer id, epoch and sequence; from the oldest batch of a partition that has not ended,
//! itself included, at most `in_flight_max` are sealed, whatever became of the others, so that the broker remembers each
//! that is sent again; when one is refused the others are waited for before they are sent again in their order; the
//! bytes of all batches stay below `memory_bytes_max`. It refuses to know sockets, and who waits.

mod answers;
mod dispatch;
mod queue;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corelog_wire::batch::Compression;
use corelog_wire::ids::{Offset, ProducerEpoch, ProducerId};
use corelog_wire::message::Acks;

use self::queue::{OpenBatch, Queue};
use super::metadata::{Destination, Topic};
use super::partitioner::{Chooser, Partitioner};
use super::random::{Backoff, Random};
use super::record::RecordRef;
use super::{Effect, Input, RequestId};
use crate::error::Error;

/// Most batches of a partition under way at once: as many as a broker remembers of a producer.
pub(crate) const IN_FLIGHT_MAX: usize = 5;
/// While this many batches of a partition are under way, an incomplete one waits and grows ("natural batching"): one is
/// being flushed, the next is queued behind it.
const NATURAL_IN_FLIGHT: usize = 2;
/// What a batch costs besides its records.
const BATCH_OVERHEAD_BYTES: usize = 512;
/// What a record may cost besides key, value and headers, and each header besides its name and value.
const RECORD_OVERHEAD_BYTES: usize = 48;
/// Rows in one request.
const ROWS_MAX: usize = 1024;
/// A batch's limit on the wire, less its header and padding.
const BATCH_HEADER_BYTES: usize = corelog_wire::batch::HEADER_BYTES + corelog_wire::batch::ALIGNMENT;

/// How a producer works.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// The topic's name.
    pub topic: Arc<str>,
    /// What an acknowledgement means.
    pub acks: Acks,
    /// Whether batches carry a producer id and sequences, so that a retry is never appended twice. Not with
    /// [`Acks::None`].
    pub idempotent: bool,
    /// How long a record waits for company. At zero it waits only while batches before it are under way.
    pub linger: Duration,
    /// How bodies are compressed.
    pub compression: Compression,
    /// A batch is complete at this many bytes of uncompressed records. A larger record is a batch of its own.
    pub batch_bytes: usize,
    /// Most bytes of all records that are not yet delivered.
    pub memory_bytes_max: usize,
    /// Largest record: key, value and headers.
    pub record_bytes_max: usize,
    /// Largest batch that the broker takes.
    pub batch_bytes_max: usize,
    /// Largest payload of a request.
    pub request_bytes_max: usize,
    /// Most batches of a partition under way, 1 to 5.
    pub in_flight_max: usize,
    /// When a record that could not be delivered fails.
    pub delivery_deadline: Duration,
    /// How long a single request may take.
    pub request_deadline: Duration,
    /// Waits between attempts.
    pub backoff: Backoff,
    /// After this long the topic's partitions are asked for again.
    pub topic_age_max: Duration,
    /// Which partition a record goes to.
    pub partitioner: Partitioner,
    /// Whether the broker may create the topic, where it allows that.
    pub auto_create: bool,
}

impl ProducerConfig {
    /// The defaults for a topic.
    #[must_use]
    pub fn new(topic: impl Into<Arc<str>>) -> Self {
        Self {
            topic: topic.into(),
            acks: Acks::All,
            idempotent: true,
            linger: Duration::ZERO,
            compression: Compression::None,
            batch_bytes: 1 << 20,
            memory_bytes_max: 64 << 20,
            record_bytes_max: 4 << 20,
            batch_bytes_max: 8 << 20,
            request_bytes_max: 16 << 20,
            in_flight_max: IN_FLIGHT_MAX,
            delivery_deadline: Duration::from_mins(2),
            request_deadline: Duration::from_secs(30),
            backoff: Backoff::default(),
            topic_age_max: Duration::from_mins(1),
            partitioner: Partitioner::default(),
            auto_create: true,
        }
    }

    /// Whether the settings make sense together.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn check(&self) -> Result<(), Error> {
        if self.idempotent && self.acks == Acks::None {
            return Err(Error::usage(
                "an idempotent producer needs acknowledgements: choose acks leader or all",
            ));
        }
        if !(1..=IN_FLIGHT_MAX).contains(&self.in_flight_max) {
            return Err(Error::usage(format!("in_flight_max must be from 1 to {IN_FLIGHT_MAX}")));
        }
        if self.batch_bytes == 0 || self.batch_bytes + BATCH_HEADER_BYTES > self.batch_bytes_max {
            let most = self.batch_bytes_max.saturating_sub(BATCH_HEADER_BYTES);
            return Err(Error::usage(format!("batch_bytes must be from 1 to {most}")));
        }
        if self.delivery_deadline.is_zero() || self.request_deadline.is_zero() {
            return Err(Error::usage("deadlines must be longer than nothing"));
        }
        Ok(())
    }
}

/// The name under which an idempotent producer writes to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its id.
    pub id: ProducerId,
    /// Its epoch.
    pub epoch: ProducerEpoch,
}

/// A record that was taken.
#[derive(Debug)]
pub struct Appended<'a, T> {
    /// The handle of its batch.
    pub batch: &'a T,
    /// Its place in its batch.
    pub index: u32,
    /// Its partition.
    pub partition: u32,
    /// Its create time.
    pub timestamp_ms: i64,
    /// Whether [`Producer::handle`] should be called soon: a batch was begun or completed.
    pub wake: bool,
}

/// Why a record was not taken.
#[derive(Clone, Debug)]
pub enum AppendRefusal {
    /// The topic is not known yet: wait for [`ProducerEvent::Ready`].
    NotReady,
    /// There is no memory: wait for [`ProducerEvent::Room`].
    Full,
    /// It never will be.
    Failed(Error),
}

/// Where a batch went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// Its partition.
    pub partition: u32,
    /// Offset of its first record; none if nothing was asked for (`acks` none).
    pub base_offset: Option<Offset>,
    /// When the leader appended it, in milliseconds since 1970; 0 if nothing was asked for.
    pub append_timestamp_ms: i64,
    /// Whether every replica counted had flushed it.
    pub durable: bool,
}

/// News for those who wait.
#[derive(Debug)]
pub enum ProducerEvent<T> {
    /// A batch was acknowledged.
    Delivered {
        /// The batch.
        batch: T,
        /// Where it is.
        delivered: Delivered,
    },
    /// A batch failed. It may have been appended if the error is about time or connections.
    Undelivered {
        /// The batch.
        batch: T,
        /// How many records it had.
        records: u32,
        /// Why.
        error: Error,
    },
    /// The topic is known now, or will not be.
    Ready,
    /// There is memory again for those who were refused.
    Room,
}

/// A question that is asked again when it was not answered.
#[derive(Debug, Default)]
struct Question {
    asked: Option<RequestId>,
    attempts: u32,
    /// Not before.
    again_at: Option<Instant>,
}

impl Question {
    fn may_ask(&self, now: Instant) -> bool {
        self.asked.is_none() && self.again_at.is_none_or(|at| at <= now)
    }

    fn failed(&mut self, now: Instant, backoff: Backoff, random: &mut Random) {
        self.asked = None;
        self.attempts = self.attempts.saturating_add(1);
        self.again_at = Some(now + backoff.after(self.attempts, random));
    }
}

/// A batch of a request under way.
#[derive(Clone, Copy, Debug)]
struct Sent {
    partition: u32,
    batch: u64,
}

/// The state of a producer.
#[derive(Debug)]
pub struct Producer<T> {
    config: ProducerConfig,
    random: Random,
    chooser: Chooser,
    topic: Option<Topic>,
    /// Why the topic is not known.
    topic_error: Option<Error>,
    topic_question: Question,
    topic_stale: bool,
    identity: Option<Identity>,
    identity_question: Question,
    queues: Vec<Queue<T>>,
    /// The queues that hold anything.
    active: BTreeSet<u32>,
    requests: BTreeMap<RequestId, Vec<Sent>>,
    /// Until when a destination asked not to be sent anything.
    quiet: BTreeMap<Destination, Instant>,
    next_request: u64,
    next_batch: u64,
    /// The batches that have not ended.
    unresolved: BTreeSet<u64>,
    /// Batches up to this one are sent however small they are.
    flush_through: Option<u64>,
    memory_bytes: usize,
    room_wanted: bool,
    closing: bool,
    fatal: Option<Error>,
    /// When an input was handled last: what was due by then has been done.
    handled_at: Option<Instant>,
}

impl<T: Default> Producer<T> {
    /// A producer that has done nothing yet: the first [`Input::Tick`] makes it ask for its topic.
    ///
    /// # Errors
    /// As [`ProducerConfig::check`].
    pub fn new(config: ProducerConfig, seed: u64) -> Result<Self, Error> {
        config.check()?;
        Ok(Self {
            random: Random::new(seed),
            chooser: Chooser::new(config.partitioner.clone()),
            topic: None,
            topic_error: None,
            topic_question: Question::default(),
            topic_stale: true,
            identity: None,
            identity_question: Question::default(),
            queues: Vec::new(),
            active: BTreeSet::new(),
            requests: BTreeMap::new(),
            quiet: BTreeMap::new(),
            next_request: 0,
            next_batch: 0,
            unresolved: BTreeSet::new(),
            flush_through: None,
            memory_bytes: 0,
            room_wanted: false,
            closing: false,
            fatal: None,
            handled_at: None,
            config,
        })
    }

    /// Takes a record; key, value and headers are copied into its batch, the only copy there is unless the batch is
    /// compressed. `now_ms` is the time of day for records without their own.
    ///
    /// # Errors
    /// [`AppendRefusal`].
    pub fn append(
        &mut self,
        now: Instant,
        now_ms: i64,
        record: &RecordRef<'_>,
    ) -> Result<Appended<'_, T>, AppendRefusal> {
        if let Some(error) = &self.fatal {
            return Err(AppendRefusal::Failed(error.clone()));
        }
        if self.closing {
            return Err(AppendRefusal::Failed(Error::Closed));
        }
        let Some(topic) = &self.topic else {
            return Err(match &self.topic_error {
                Some(error) if error.is_final_for_topics() => AppendRefusal::Failed(error.clone()),
                _ => AppendRefusal::NotReady,
            });
        };
        let content_bytes = record.content_bytes();
        let record_bytes = content_bytes + RECORD_OVERHEAD_BYTES * (1 + record.headers.len());
        let most = self.config.record_bytes_max.min(self.config.batch_bytes_max - BATCH_HEADER_BYTES);
        if content_bytes > self.config.record_bytes_max || record_bytes > most + RECORD_OVERHEAD_BYTES {
            let bytes_max = self.config.record_bytes_max as u64;
            return Err(AppendRefusal::Failed(Error::TooLarge { bytes: content_bytes as u64, bytes_max }));
        }
        let needed = record_bytes + BATCH_OVERHEAD_BYTES;
        if self.memory_bytes > 0 && self.memory_bytes + needed > self.config.memory_bytes_max {
            self.room_wanted = true;
            return Err(AppendRefusal::Full);
        }
        let partition = self.chooser.choose(record, topic, &mut self.random);
        let Some(queue) = self.queues.get_mut(partition as usize) else {
            let partitions = topic.partition_count();
            let reason = format!("there is no partition {partition}: topic {} has {partitions}", topic.name);
            return Err(AppendRefusal::Failed(Error::usage(reason)));
        };
        let mut wake = false;
        let batch_bytes = self.config.batch_bytes;
        if queue.open.back_mut().is_none_or(|batch| batch.completes_before(record, record_bytes, batch_bytes))
        {
            let id = self.next_batch;
            self.next_batch += 1;
            self.unresolved.insert(id);
            self.active.insert(partition);
            let body_bytes = queue.body_bytes_hint.max(record_bytes);
            let expires = now + self.config.delivery_deadline;
            queue.open.push_back(OpenBatch::new(id, now, expires, body_bytes));
            self.memory_bytes += BATCH_OVERHEAD_BYTES;
            wake = true;
        }
        let timestamp_ms = record.timestamp_ms.unwrap_or(now_ms);
        let Some(batch) = queue.open.back_mut() else {
            return Err(AppendRefusal::NotReady);
        };
        let before = batch.body_bytes();
        let index = batch.push(timestamp_ms, record).map_err(AppendRefusal::Failed)?;
        self.memory_bytes += batch.body_bytes() - before;
        if batch.body_bytes() >= batch_bytes {
            batch.complete = true;
            wake = true;
        }
        if batch.complete {
            self.chooser.completed(partition, topic, &mut self.random);
        }
        let batch = queue.open.back().map(|batch| &batch.handle).ok_or(AppendRefusal::NotReady)?;
        Ok(Appended { batch, index, partition, timestamp_ms, wake })
    }

    /// Takes an input; afterwards everything that can be sent has been.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Effect<ProducerEvent<T>>>) {
        match input {
            Input::Answered { id, answer, .. } => self.answered(now, id, answer, out),
            Input::Failed { id, error } => self.failed(now, id, &error, out),
            Input::Sent { id } => self.sent(now, id, out),
            Input::Tick => {}
        }
        self.handled_at = Some(now);
        self.expire(now, out);
        self.dispatch(now, out);
        // What was missing is asked for at once: perhaps nothing else happens.
        self.ask(now, out);
        let queues = &self.queues;
        self.active
            .retain(|&partition| queues.get(partition as usize).is_some_and(|queue| !queue.is_empty()));
        if self.room_wanted && self.memory_bytes <= self.config.memory_bytes_max / 8 * 7 {
            self.room_wanted = false;
            out.push(Effect::Event(ProducerEvent::Room));
        }
        debug_assert_eq!(self.broken_invariant(), None);
    }

    /// Sends what was taken so far without waiting for more. Gives the batch up to which it holds, to be compared with
    /// [`Producer::oldest_unresolved`]; none if nothing was ever taken. [`Input::Tick`] makes it so.
    pub fn flush(&mut self) -> Option<u64> {
        let last = self.next_batch.checked_sub(1)?;
        self.flush_through = Some(last);
        Some(last)
    }

    /// Takes no more records; sends what was taken.
    pub fn close(&mut self) {
        self.closing = true;
        self.flush();
    }

    /// The oldest batch that has not ended.
    #[must_use]
    pub fn oldest_unresolved(&self) -> Option<u64> {
        self.unresolved.first().copied()
    }

    /// Bytes of records that are not delivered yet.
    #[must_use]
    pub const fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// The topic, once it is known.
    #[must_use]
    pub const fn topic(&self) -> Option<&Topic> {
        self.topic.as_ref()
    }

    /// Why the topic is not known yet, or why the producer has failed for good.
    #[must_use]
    pub fn last_error(&self) -> Option<&Error> {
        self.fatal.as_ref().or(self.topic_error.as_ref())
    }

    /// What is wrong with the state, if anything is.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        let under_way: usize = self.requests.values().map(Vec::len).sum();
        let in_flight: usize = self.queues.iter().map(|queue| queue.in_flight).sum();
        let batches: usize = self.queues.iter().map(|queue| queue.open.len() + queue.sealed.len()).sum();
        if under_way != in_flight {
            return Some("a batch is in flight without a request, or the other way round");
        }
        if batches != self.unresolved.len() {
            return Some("a batch ended without being noted, or was noted without ending");
        }
        if self.queues.iter().any(|queue| queue.in_flight > self.config.in_flight_max) {
            return Some("too many batches of a partition are in flight");
        }
        if self.queues.iter().any(|queue| queue.window() > self.config.in_flight_max as u64) {
            return Some("a batch was sealed that the broker may remember in the place of an older one");
        }
        if batches == 0 && self.memory_bytes != 0 {
            return Some("memory is accounted for that nothing uses");
        }
        None
    }

    fn request_id(&mut self) -> RequestId {
        let id = RequestId::new(self.next_request);
        self.next_request += 1;
        id
    }

    /// A batch has ended and left its queue.
    fn resolve(&mut self, id: u64, memory_bytes: usize) {
        self.unresolved.remove(&id);
        self.memory_bytes -= memory_bytes;
    }
}

#[cfg(test)]
mod tests;
