//! What a producer sends, and when.
//!
//! Part of `producer`; its invariants hold here.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use corelog_wire::batch::ALIGNMENT;
use corelog_wire::message::{
    Acks, InitProducerIdRequest, MetadataRequest, ProduceRequest, ProduceRow, Request,
};

use super::queue::{OpenBatch, Queue};
use super::{Effect, NATURAL_IN_FLIGHT, Producer, ProducerConfig, ProducerEvent, ROWS_MAX, RequestId, Sent};
use crate::core::Outgoing;
use crate::core::metadata::{Destination, Target};

/// A request in the making.
#[derive(Default)]
struct Draft {
    rows: Vec<ProduceRow>,
    payload: Vec<Bytes>,
    batches: Vec<Sent>,
    bytes: usize,
    expires: Option<Instant>,
}

impl<T: Default> Producer<T> {
    /// When to come back with a tick, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let mut deadlines: Vec<Option<Instant>> = Vec::new();
        if !self.is_done() && self.topic_question.asked.is_none() {
            deadlines.push(self.topic_question.again_at);
        }
        if self.identity_question.asked.is_none() && self.identity.is_none() {
            deadlines.push(self.identity_question.again_at);
        }
        for queue in self.active.iter().filter_map(|&partition| self.queues.get(partition as usize)) {
            let again = queue.again_at.filter(|_| !(queue.holding && queue.in_flight > 0));
            deadlines.push(again);
            deadlines.extend(queue.open.iter().map(|batch| Some(batch.expires)));
            let resting = queue.sealed.iter().filter(|batch| batch.request.is_none());
            deadlines.extend(resting.map(|batch| Some(batch.expires)));
            if queue.open.len() == 1 && queue.in_flight < NATURAL_IN_FLIGHT && again.is_none() {
                let lingers = queue.open.front().map(|batch| batch.opened + self.config.linger);
                deadlines.push(lingers);
            }
        }
        if !self.active.is_empty() {
            deadlines.extend(self.quiet.values().copied().map(Some));
        }
        // What was due when the last input came has been done, or waits for something other than time.
        deadlines.into_iter().flatten().filter(|&at| self.handled_at.is_none_or(|handled| at > handled)).min()
    }

    /// Closed, and nothing is left to send.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.closing && self.unresolved.is_empty()
    }

    /// Asks for the topic and for a name, if they are missing.
    pub(super) fn ask(&mut self, now: Instant, out: &mut Vec<Effect<ProducerEvent<T>>>) {
        let old = self.topic.is_some() && self.topic_question.again_at.is_some_and(|at| at <= now);
        if !self.is_done() && (self.topic_stale || old) && self.topic_question.may_ask(now) {
            let request = Request::Metadata(MetadataRequest {
                topics: Some(vec![self.config.topic.to_string()]),
                auto_create: self.config.auto_create && self.topic.is_none(),
            });
            let id = self.send_any(now, request, out);
            self.topic_question.asked = Some(id);
        }
        let needed = self.config.idempotent && self.identity.is_none() && !self.closing_idle();
        if needed && self.topic.is_some() && self.identity_question.may_ask(now) {
            let id = self.send_any(now, Request::InitProducerId(InitProducerIdRequest {}), out);
            self.identity_question.asked = Some(id);
        }
    }

    fn closing_idle(&self) -> bool {
        self.closing && self.active.is_empty()
    }

    fn send_any(
        &mut self,
        now: Instant,
        request: Request,
        out: &mut Vec<Effect<ProducerEvent<T>>>,
    ) -> RequestId {
        let id = self.request_id();
        let deadline = now + self.config.request_deadline;
        let outgoing =
            Outgoing { id, target: Target::Any, request, payload: vec![], deadline, answered: true };
        out.push(Effect::Send(outgoing));
        id
    }

    /// Sends all that may be sent: in rounds, each with at most one batch of a partition, so that a request never
    /// carries two of them.
    pub(super) fn dispatch(&mut self, now: Instant, out: &mut Vec<Effect<ProducerEvent<T>>>) {
        self.quiet.retain(|_, until| *until > now);
        loop {
            let mut drafts: BTreeMap<Destination, Draft> = BTreeMap::new();
            let mut any = false;
            let active: Vec<u32> = self.active.iter().copied().collect();
            for partition in active {
                let Some((destination, place)) = self.next_batch(now, partition) else { continue };
                any = true;
                let draft = drafts.entry(destination.clone()).or_default();
                let batch_bytes = self.queues[partition as usize].sealed[place].bytes.len();
                let full = draft.bytes + batch_bytes > self.config.request_bytes_max;
                if !draft.rows.is_empty() && (full || draft.rows.len() == ROWS_MAX) {
                    let full = std::mem::take(draft);
                    self.send(now, destination.clone(), full, out);
                }
                let draft = drafts.entry(destination).or_default();
                self.add(partition, place, draft);
            }
            for (destination, draft) in drafts {
                self.send(now, destination, draft, out);
            }
            if !any {
                return;
            }
        }
    }

    /// The next batch of a partition that may be sent now, sealed: its leader and its place among the sealed.
    fn next_batch(&mut self, now: Instant, partition: u32) -> Option<(Destination, usize)> {
        let Self { config, topic, queues, identity, flush_through, closing, .. } = self;
        let topic = topic.as_ref()?;
        let queue = queues.get_mut(partition as usize)?;
        if queue.again_at.is_some_and(|at| at > now) || queue.in_flight >= config.in_flight_max {
            return None;
        }
        queue.again_at = None;
        if queue.holding {
            if queue.in_flight > 0 {
                return None;
            }
            queue.holding = false;
        }
        let Some(leader) = topic.leader(partition) else {
            self.topic_stale = true;
            return None;
        };
        if self.quiet.contains_key(leader) {
            return None;
        }
        if queue.forgotten {
            if *identity == queue.identity {
                // The name is spent here; others may go on under it, this one waits for another.
                *identity = None;
            }
            queue.rename((*identity)?, topic.tp(partition));
        }
        if let Some(place) = queue.sealed.iter().position(|batch| batch.request.is_none()) {
            return Some((leader.clone(), place));
        }
        let forced =
            |batch: &OpenBatch<T>| *closing || flush_through.is_some_and(|through| batch.id <= through);
        if queue.window() >= config.in_flight_max as u64
            || queue.doomed.is_some()
            || !is_due(config, queue, now, forced)
        {
            return None;
        }
        if config.idempotent && queue.identity.is_none() {
            if identity.is_some_and(|identity| queue.spent == Some(identity)) {
                // The name is spent here; others may go on under it, this one waits for another.
                *identity = None;
            }
            queue.identity = Some((*identity)?);
        }
        let name = queue.identity.map(|identity| (identity, queue.next_sequence));
        let batch = queue.open.pop_front()?;
        queue.body_bytes_hint = batch.body_bytes();
        let before = batch.memory_bytes();
        let sealed = batch.seal(config.compression, name, topic.tp(partition), queue.next_ordinal);
        queue.next_ordinal += 1;
        queue.next_sequence = queue.next_sequence.advance(sealed.records);
        self.memory_bytes = self.memory_bytes - before + sealed.memory_bytes;
        queue.sealed.push_back(sealed);
        if queue.open.is_empty() {
            self.chooser.completed(partition, topic, &mut self.random);
        }
        Some((leader.clone(), queue.sealed.len() - 1))
    }

    fn add(&mut self, partition: u32, place: usize, draft: &mut Draft) {
        let (Some(topic), Some(queue)) = (&self.topic, self.queues.get_mut(partition as usize)) else {
            return;
        };
        let Some(batch) = queue.sealed.get_mut(place) else { return };
        debug_assert!(batch.bytes.len().is_multiple_of(ALIGNMENT));
        queue.in_flight += 1;
        // The request's id is the next one: a draft is sent before another is begun for its destination, but several
        // destinations share a round, so `send` sets it.
        draft.rows.push(ProduceRow {
            tp: topic.tp(partition),
            first_byte: u32::try_from(draft.bytes).unwrap_or(u32::MAX),
            bytes: u32::try_from(batch.bytes.len()).unwrap_or(u32::MAX),
        });
        draft.bytes += batch.bytes.len();
        draft.payload.push(batch.bytes.clone());
        draft.expires = Some(draft.expires.map_or(batch.expires, |expires| expires.max(batch.expires)));
        draft.batches.push(Sent { partition, batch: batch.id });
        batch.request = Some(RequestId::new(self.next_request));
    }

    fn send(
        &mut self,
        now: Instant,
        destination: Destination,
        draft: Draft,
        out: &mut Vec<Effect<ProducerEvent<T>>>,
    ) {
        let id = self.request_id();
        for sent in &draft.batches {
            let queue = self.queues.get_mut(sent.partition as usize);
            let batch = queue.and_then(|queue| queue.sealed.iter_mut().find(|batch| batch.id == sent.batch));
            if let Some(batch) = batch {
                batch.request = Some(id);
            }
        }
        // The broker is given the whole time; the answer is awaited a little longer, so that its word wins.
        let remaining = draft.expires.map_or(self.config.request_deadline, |at| at.duration_since(now));
        let patience = self.config.request_deadline.min(remaining.max(REQUEST_DEADLINE_MIN));
        let request = Request::Produce(ProduceRequest {
            acks: self.config.acks,
            deadline_ms: u32::try_from(patience.as_millis()).unwrap_or(u32::MAX),
            rows: draft.rows,
        });
        self.requests.insert(id, draft.batches);
        out.push(Effect::Send(Outgoing {
            id,
            target: Target::At(destination),
            request,
            payload: draft.payload,
            deadline: now + patience + ANSWER_GRACE,
            answered: self.config.acks != Acks::None,
        }));
    }
}

/// A request gets at least this long, even if its records expire before.
const REQUEST_DEADLINE_MIN: std::time::Duration = std::time::Duration::from_secs(1);
/// How much longer than the broker's own deadline an answer is awaited.
const ANSWER_GRACE: std::time::Duration = std::time::Duration::from_secs(2);

/// Whether the first open batch goes now.
fn is_due<T>(
    config: &ProducerConfig,
    queue: &Queue<T>,
    now: Instant,
    forced: impl FnOnce(&OpenBatch<T>) -> bool,
) -> bool {
    let Some(batch) = queue.open.front() else { return false };
    let waited = queue.in_flight < NATURAL_IN_FLIGHT && batch.opened + config.linger <= now;
    batch.complete || queue.open.len() > 1 || forced(batch) || waited
}
