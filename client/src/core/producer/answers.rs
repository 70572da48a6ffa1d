//! What a producer makes of answers, failures and time.
//!
//! Part of `producer`; its invariants hold here.

use std::time::{Duration, Instant};

use corelog_wire::error::ErrorCode;
use corelog_wire::message::{Answer, MetadataAnswer, ProduceAnswer, ProducedRow};

use super::queue::Queue;
use super::{Delivered, Effect, Identity, Producer, ProducerEvent, RequestId, Sent};
use crate::core::metadata::topic_of;
use crate::error::Error;

/// What to do about a batch that was not accepted.
enum Verdict {
    /// Send it again.
    Retry,
    /// Send it again, and those behind it, under another name.
    Rename,
    /// Give it up.
    Fail,
    /// Give everything up.
    Fatal,
}

impl<T: Default> Producer<T> {
    pub(super) fn answered(
        &mut self,
        now: Instant,
        id: RequestId,
        answer: Answer,
        out: &mut Vec<Effect<ProducerEvent<T>>>,
    ) {
        match answer {
            Answer::Metadata(answer) if self.topic_question.asked == Some(id) => {
                self.topic_told(now, &answer, out);
            }
            Answer::InitProducerId(answer) if self.identity_question.asked == Some(id) => {
                self.identity_question = super::Question::default();
                self.identity = Some(Identity { id: answer.producer_id, epoch: answer.producer_epoch });
            }
            Answer::Produce(answer) => self.produced(now, id, &answer, out),
            Answer::Refused { refusal, .. } => {
                let throttle = Duration::from_millis(refusal.throttle_ms.into());
                self.throttled(now, id, throttle);
                self.failed(now, id, &refusal.into(), out);
            }
            _ => self.failed(now, id, &Error::protocol("an answer of another kind"), out),
        }
    }

    /// A request ended without an answer, or was refused as a whole.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        id: RequestId,
        error: &Error,
        out: &mut Vec<Effect<ProducerEvent<T>>>,
    ) {
        if self.topic_question.asked == Some(id) {
            self.topic_failed(now, error.clone(), out);
        } else if self.identity_question.asked == Some(id) {
            self.identity_question.failed(now, self.config.backoff, &mut self.random);
            self.topic_error = Some(error.clone());
        } else {
            for sent in self.requests.remove(&id).unwrap_or_default() {
                self.undelivered(now, sent, error.clone(), out);
            }
        }
    }

    /// A request without an answer was written.
    pub(super) fn sent(&mut self, now: Instant, id: RequestId, out: &mut Vec<Effect<ProducerEvent<T>>>) {
        for sent in self.requests.remove(&id).unwrap_or_default() {
            let Sent { partition, .. } = sent;
            let delivered =
                Delivered { partition, base_offset: None, append_timestamp_ms: 0, durable: false };
            self.delivered(now, sent, delivered, out);
        }
    }

    fn topic_told(&mut self, now: Instant, answer: &MetadataAnswer, out: &mut Vec<Effect<ProducerEvent<T>>>) {
        let topic = match topic_of(answer, &self.config.topic) {
            Ok(topic) => topic,
            Err(error) => return self.topic_failed(now, error, out),
        };
        if self.topic.as_ref().is_some_and(|known| known.id != topic.id) {
            let error = Error::refused(ErrorCode::UnknownTopic, "the topic was deleted and created again");
            for queue in &mut self.queues {
                queue.doom(&error);
            }
        }
        let partitions = topic.partitions.len().max(self.queues.len());
        self.queues.resize_with(partitions, Queue::default);
        let is_led = topic.partitions.iter().all(|place| place.leader.is_some());
        self.topic = Some(topic);
        self.topic_error = None;
        self.topic_question = super::Question::default();
        // Without a leader somewhere the answer grows old at once, but is not asked for at once.
        let age = if is_led { self.config.topic_age_max } else { self.config.backoff.max };
        self.topic_question.again_at = Some(now + age);
        self.topic_stale = false;
        out.push(Effect::Event(ProducerEvent::Ready));
    }

    fn topic_failed(&mut self, now: Instant, error: Error, out: &mut Vec<Effect<ProducerEvent<T>>>) {
        self.topic_question.failed(now, self.config.backoff, &mut self.random);
        self.topic_stale = true;
        self.topic_error = Some(error);
        out.push(Effect::Event(ProducerEvent::Ready));
    }

    /// The topic may have changed: it is asked for, but not more often than the backoff allows.
    fn doubt_topic(&mut self, now: Instant) {
        if !self.topic_stale {
            self.topic_stale = true;
            self.topic_question.again_at =
                Some(now + self.config.backoff.after(self.topic_question.attempts + 1, &mut self.random) / 2);
        }
    }

    fn throttled(&mut self, now: Instant, id: RequestId, throttle: Duration) {
        let partition = self.requests.get(&id).and_then(|batches| batches.first()).map(|sent| sent.partition);
        let leader =
            partition.and_then(|partition| self.topic.as_ref().and_then(|topic| topic.leader(partition)));
        if let (Some(leader), false) = (leader, throttle.is_zero()) {
            self.quiet.insert(leader.clone(), now + throttle);
        }
    }

    fn produced(
        &mut self,
        now: Instant,
        id: RequestId,
        answer: &ProduceAnswer,
        out: &mut Vec<Effect<ProducerEvent<T>>>,
    ) {
        self.throttled(now, id, Duration::from_millis(answer.throttle_ms.into()));
        let Some(batches) = self.requests.remove(&id) else { return };
        let matches = batches.len() == answer.rows.len()
            && batches.iter().zip(&answer.rows).all(|(sent, row)| sent.partition == row.tp.partition);
        for (place, sent) in batches.into_iter().enumerate() {
            match answer.rows.get(place) {
                Some(row) if matches => self.row(now, sent, row, out),
                _ => self.undelivered(now, sent, Error::protocol("the rows do not match the request's"), out),
            }
        }
    }

    fn row(&mut self, now: Instant, sent: Sent, row: &ProducedRow, out: &mut Vec<Effect<ProducerEvent<T>>>) {
        if row.error == ErrorCode::None {
            let delivered = Delivered {
                partition: sent.partition,
                base_offset: Some(row.base_offset),
                append_timestamp_ms: row.append_timestamp_ms,
                durable: row.durable,
            };
            self.delivered(now, sent, delivered, out);
        } else {
            self.undelivered(now, sent, Error::refused(row.error, &row.message), out);
        }
    }

    fn delivered(
        &mut self,
        now: Instant,
        sent: Sent,
        delivered: Delivered,
        out: &mut Vec<Effect<ProducerEvent<T>>>,
    ) {
        let Some(queue) = self.queues.get_mut(sent.partition as usize) else { return };
        let Some(place) = queue.sealed.iter().position(|batch| batch.id == sent.batch) else { return };
        queue.in_flight -= 1;
        if !queue.holding {
            queue.attempts = 0;
            queue.again_at = None;
        }
        if let Some(batch) = queue.sealed.remove(place) {
            queue.bury();
            self.resolve(batch.id, batch.memory_bytes);
            out.push(Effect::Event(ProducerEvent::Delivered { batch: batch.handle, delivered }));
        }
        self.fail_doomed(now, sent.partition, out);
    }

    fn undelivered(
        &mut self,
        now: Instant,
        sent: Sent,
        error: Error,
        out: &mut Vec<Effect<ProducerEvent<T>>>,
    ) {
        let Some(queue) = self.queues.get_mut(sent.partition as usize) else { return };
        let Some(place) = queue.sealed.iter().position(|batch| batch.id == sent.batch) else { return };
        queue.in_flight -= 1;
        let batch = &mut queue.sealed[place];
        batch.request = None;
        batch.uncertain |= !was_not_appended(&error);
        let may_rename = !batch.uncertain && queue.identity.is_some();
        match verdict(&error, place, may_rename) {
            verdict @ (Verdict::Retry | Verdict::Rename) => {
                queue.forgotten |= matches!(verdict, Verdict::Rename);
                if !queue.holding {
                    queue.holding = true;
                    queue.attempts = queue.attempts.saturating_add(1);
                    let wait = self.config.backoff.after(queue.attempts, &mut self.random);
                    queue.again_at = Some(now + wait);
                }
                queue.sealed[place].last_error = Some(error.clone());
                if queue.forgotten && queue.sealed.iter().any(|batch| batch.uncertain) {
                    // One behind it may be in the log under the name that was forgotten since.
                    queue.doom(&error);
                }
                if means_moved(&error) {
                    self.doubt_topic(now);
                }
            }
            Verdict::Fail => {
                queue.doom(&error);
                self.give_up(sent.partition, place, error, out);
            }
            Verdict::Fatal => {
                queue.doom(&error);
                self.fatal.get_or_insert_with(|| error.clone());
                self.give_up(sent.partition, place, error, out);
            }
        }
        self.fail_doomed(now, sent.partition, out);
    }

    /// A sealed batch that is not in flight ends undelivered.
    fn give_up(
        &mut self,
        partition: u32,
        place: usize,
        error: Error,
        out: &mut Vec<Effect<ProducerEvent<T>>>,
    ) {
        let Some(queue) = self.queues.get_mut(partition as usize) else { return };
        let Some(batch) = queue.sealed.remove(place) else { return };
        debug_assert!(batch.request.is_none());
        queue.bury();
        self.resolve(batch.id, batch.memory_bytes);
        let (batch, records) = (batch.handle, batch.records);
        out.push(Effect::Event(ProducerEvent::Undelivered { batch, records, error }));
    }

    /// Those behind a failed batch cannot follow it.
    fn fail_doomed(&mut self, _now: Instant, partition: u32, out: &mut Vec<Effect<ProducerEvent<T>>>) {
        loop {
            let Some(queue) = self.queues.get_mut(partition as usize) else { return };
            let Some(error) = queue.doomed.clone() else { return };
            let Some(place) = queue.sealed.iter().position(|batch| batch.request.is_none()) else { return };
            self.give_up(partition, place, error, out);
        }
    }

    /// Gives up everything at once, whatever is under way: nobody will carry out this producer's effects any more.
    pub fn abandon(&mut self, error: &Error, out: &mut Vec<Effect<ProducerEvent<T>>>) {
        self.fatal.get_or_insert_with(|| error.clone());
        self.requests.clear();
        for queue in &mut self.queues {
            queue.in_flight = 0;
            let sealed = queue.sealed.drain(..).map(|batch| (batch.handle, batch.records));
            let open = queue.open.drain(..).map(|batch| (batch.records(), batch.handle)).map(|(n, h)| (h, n));
            for (batch, records) in sealed.chain(open) {
                let error = error.clone();
                out.push(Effect::Event(ProducerEvent::Undelivered { batch, records, error }));
            }
        }
        self.unresolved.clear();
        self.memory_bytes = 0;
        self.active.clear();
        out.push(Effect::Event(ProducerEvent::Room));
    }

    /// Gives up what is too old, and everything if the producer has failed for good.
    pub(super) fn expire(&mut self, now: Instant, out: &mut Vec<Effect<ProducerEvent<T>>>) {
        let active: Vec<u32> = self.active.iter().copied().collect();
        for partition in active {
            let error = loop {
                let Some(queue) = self.queues.get_mut(partition as usize) else { return };
                let rests = |batch: &super::queue::SealedBatch<T>| batch.request.is_none();
                let old = queue.sealed.iter().position(|batch| rests(batch) && batch.expires <= now);
                let Some(place) = old else {
                    break queue.sealed.front().and_then(|batch| batch.last_error.clone());
                };
                let error = Error::deadline("delivery", queue.sealed[place].last_error.take());
                queue.doom(&error);
                self.give_up(partition, place, error, out);
            };
            self.fail_doomed(now, partition, out);
            self.expire_open(now, partition, error, out);
        }
    }

    fn expire_open(
        &mut self,
        now: Instant,
        partition: u32,
        last: Option<Error>,
        out: &mut Vec<Effect<ProducerEvent<T>>>,
    ) {
        let last = last.or_else(|| self.topic_error.clone());
        loop {
            let Some(queue) = self.queues.get_mut(partition as usize) else { return };
            let fatal = self.fatal.clone();
            let Some(batch) = queue.open.pop_front_if(|batch| fatal.is_some() || batch.expires <= now) else {
                return;
            };
            self.resolve(batch.id, batch.memory_bytes());
            let error = fatal.unwrap_or_else(|| Error::deadline("delivery", last.clone()));
            let records = batch.records();
            out.push(Effect::Event(ProducerEvent::Undelivered { batch: batch.handle, records, error }));
        }
    }
}

/// What to do about a batch with `before` others of its partition unresolved before it. It may be sent under another name
/// if it has one and is certainly not in the log.
fn verdict(error: &Error, before: usize, may_rename: bool) -> Verdict {
    match error {
        Error::Refused { code: ErrorCode::FencedProducer, .. } => Verdict::Fatal,
        // It does not follow because those before it were not accepted either, or are not known to be yet.
        Error::Refused { code: ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducer, .. }
            if before > 0 =>
        {
            Verdict::Retry
        }
        // An idle producer is forgotten after a while; what follows was not appended, so nothing can be there twice.
        Error::Refused { code: ErrorCode::UnknownProducer, .. } if may_rename => Verdict::Rename,
        error if error.is_retriable() => Verdict::Retry,
        _ => Verdict::Fail,
    }
}

/// Whether a batch that failed so is not in the log for certain, nor will be. The broker says these before it appends;
/// others it may also say to those who wait for an acknowledgement.
fn was_not_appended(error: &Error) -> bool {
    match error {
        Error::Refused { code, .. } => matches!(
            code,
            ErrorCode::Throttled
                | ErrorCode::DiskFull
                | ErrorCode::NotEnoughReplicas
                | ErrorCode::OutOfOrderSequence
                | ErrorCode::UnknownProducer
        ),
        Error::Unreachable { .. } => true,
        _ => false,
    }
}

/// Whether the leader may be another one now.
fn means_moved(error: &Error) -> bool {
    match error {
        Error::Refused { code, .. } => !matches!(
            code,
            ErrorCode::Throttled
                | ErrorCode::Deadline
                | ErrorCode::DiskFull
                | ErrorCode::NotEnoughReplicas
                | ErrorCode::OutOfOrderSequence
                | ErrorCode::UnknownProducer
        ),
        _ => true,
    }
}
