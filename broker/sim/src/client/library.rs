//! The client library's own producer in the simulated world: the decisions that an application links, driven by this
//! clock and these connections.
//!
//! It writes to one topic. What it does about refusals, silence and broken connections is its own; the checker judges
//! the batches it seals like any other's. A record that it seals a second time, under another name, must not have been
//! appended the first time. Every record must end in time, delivered or not.

use super::{Ask, Desk, Reply};
use crate::checker::{BatchId, Scene, Sent};
use crate::world::MILLIS;
use bytes::Bytes;
use corelog_client::core::{
    AppendRefusal, Effect, Input, Outgoing, Producer, ProducerConfig, ProducerEvent, RecordRef,
    RequestId as ClientRequestId,
};
use corelog_client::{Acks, Error};
use corelog_core::shard::RequestId;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{BrokerId, LeaderEpoch, ProducerEpoch, ProducerId, ShardId, TopicId, TopicPartition};
use corelog_wire::message::{
    Answer, InitProducerIdAnswer, MetadataAnswer, MetadataBroker, MetadataPartition, MetadataTopic,
    ProduceRequest, Request,
};
use corelog_wire::records::Records;
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

const TOPIC: &str = "topic";
/// A record that could not be delivered ends after this long; shorter than the calm at the end of a run.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(12);

/// A request of the library's that is under way.
struct UnderWay {
    id: ClientRequestId,
    batches: Vec<BatchId>,
    deadline: Instant,
}

/// The library's producer.
pub struct Library {
    /// The moment that virtual time counts from; only differences matter.
    epoch: Instant,
    seed: u64,
    pause: (u64, u64),
    batch_bytes_max: u64,
    value_bytes_max: u64,
    topic: Option<TopicId>,
    producer: Option<Producer<()>>,
    next_record_at: u64,
    records: u64,
    /// Batches by the number of their first record: what a batch is recognised by when it is sealed anew.
    sealed: BTreeMap<u64, (BatchId, Bytes)>,
    requests: BTreeMap<RequestId, UnderWay>,
    /// Refusal of the last answer that had one.
    refusal: ErrorCode,
}

impl Library {
    /// A producer that pauses so long between records. Of the origin of its instants only differences count.
    #[must_use]
    pub fn new(seed: u64, pause: (u64, u64), batch_bytes_max: u64, value_bytes_max: u64) -> Self {
        Self {
            epoch: Instant::now(),
            seed,
            pause,
            batch_bytes_max,
            value_bytes_max,
            topic: None,
            producer: None,
            next_record_at: 0,
            records: 0,
            sealed: BTreeMap::new(),
            requests: BTreeMap::new(),
            refusal: ErrorCode::None,
        }
    }

    /// Whether records have not ended, and the last refusal.
    #[must_use]
    pub fn stuck(&self) -> Option<(u64, ErrorCode)> {
        let oldest = self.producer.as_ref().and_then(Producer::oldest_unresolved)?;
        Some((oldest, self.refusal))
    }

    pub(super) fn wake(&mut self, desk: &mut Desk<'_>) {
        let now = self.instant(desk.now);
        if self.requests.values().any(|request| request.deadline <= now) {
            desk.hang_up = true;
            return;
        }
        self.begin(desk);
        self.append(desk);
        self.handle(Input::Tick, desk);
        self.ask_for_wake(desk);
    }

    pub(super) fn answered(
        &mut self,
        reply: &Reply,
        desk: &mut Desk<'_>,
        scene: &mut dyn FnMut(TopicPartition) -> Scene,
    ) {
        let Some(request) = self.requests.remove(&reply.request) else { return };
        if let Answer::Produce(answer) = &reply.answer {
            for (row, batch) in answer.rows.iter().zip(&request.batches) {
                if row.error == ErrorCode::None {
                    desk.checker.acked(*batch, row, &scene(row.tp));
                } else {
                    desk.checker.counts.refused += 1;
                    self.refusal = row.error;
                }
            }
        }
        let (answer, payload) = (reply.answer.clone(), Bytes::new());
        self.handle(Input::Answered { id: request.id, answer, payload }, desk);
        self.wake(desk);
    }

    pub(super) fn lost(&mut self, desk: &mut Desk<'_>) {
        for request in std::mem::take(&mut self.requests).into_values() {
            let error = Error::ConnectionLost { reason: "it broke".into() };
            self.handle(Input::Failed { id: request.id, error }, desk);
        }
        self.ask_for_wake(desk);
    }

    fn instant(&self, nanos: u64) -> Instant {
        self.epoch + Duration::from_nanos(nanos)
    }

    /// A producer of its own for a topic that is there; when the topic goes, or the producer gives up, another one.
    fn begin(&mut self, desk: &mut Desk<'_>) {
        let gone = self.topic.is_none_or(|topic| desk.known.iter().all(|known| known.tp.topic != topic));
        let over = self.producer.as_ref().is_none_or(|producer| {
            producer.oldest_unresolved().is_none() && (gone || producer.last_error().is_some())
        });
        if !over || desk.known.is_empty() || !self.requests.is_empty() {
            return;
        }
        self.topic = Some(desk.rng.pick(desk.known).tp.topic);
        self.seed = self.seed.wrapping_add(1);
        let batch_bytes_max = usize::try_from(self.batch_bytes_max).unwrap_or(usize::MAX);
        let mut config = ProducerConfig::new(TOPIC);
        config.acks = desk.rng.pick(&[Acks::All, Acks::Leader]);
        config.batch_bytes_max = batch_bytes_max;
        config.record_bytes_max = batch_bytes_max / 2;
        config.batch_bytes = batch_bytes_max / 2;
        config.in_flight_max = usize::try_from(desk.rng.between(1, 5)).unwrap_or(1);
        config.delivery_deadline = DELIVERY_DEADLINE;
        config.request_deadline = Duration::from_secs(3);
        config.topic_age_max = Duration::from_secs(2);
        match Producer::new(config, self.seed) {
            Ok(producer) => self.producer = Some(producer),
            Err(error) => desk.checker.violated(format!("the library refuses its configuration: {error}")),
        }
    }

    fn append(&mut self, desk: &mut Desk<'_>) {
        if desk.now < self.next_record_at || desk.now >= desk.produce_until {
            return;
        }
        self.next_record_at = desk.now + desk.rng.between(self.pause.0, self.pause.1);
        let now = self.instant(desk.now);
        let Some(producer) = &mut self.producer else { return };
        for _ in 0..desk.rng.between(1, 6) {
            let most = self.value_bytes_max.min(self.batch_bytes_max / 8);
            let mut value = vec![0; 8 + usize::try_from(desk.rng.below(most)).unwrap_or(0)];
            desk.rng.fill(&mut value);
            value[..8].copy_from_slice(&self.records.to_le_bytes());
            match producer.append(now, desk.wall_ms, &RecordRef::new(&value)) {
                Ok(_) => self.records += 1,
                Err(AppendRefusal::NotReady | AppendRefusal::Full) => return,
                Err(AppendRefusal::Failed(Error::Refused { .. })) => return,
                Err(AppendRefusal::Failed(error)) => {
                    desk.checker.violated(format!("the library refuses a sound record: {error}"));
                }
            }
        }
    }

    /// Hands an input to the library and carries out what it wants; what needs no broker is answered at once.
    fn handle(&mut self, input: Input, desk: &mut Desk<'_>) {
        let now = self.instant(desk.now);
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let Some(producer) = &mut self.producer else { return };
            let mut effects = Vec::new();
            producer.handle(now, input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Send(outgoing) => inputs.extend(self.send(outgoing, desk)),
                    Effect::Event(ProducerEvent::Undelivered { error: Error::TooLarge { .. }, .. }) => {
                        desk.checker.violated("the library sealed a batch that is too large".to_owned());
                    }
                    Effect::Event(_) => {}
                }
            }
        }
    }

    fn send(&mut self, outgoing: Outgoing, desk: &mut Desk<'_>) -> Option<Input> {
        let answer = match &outgoing.request {
            Request::Metadata(_) => Answer::Metadata(self.metadata(desk)),
            Request::InitProducerId(_) => {
                *desk.next_producer += 1;
                Answer::InitProducerId(InitProducerIdAnswer {
                    producer_id: ProducerId::new(*desk.next_producer),
                    producer_epoch: ProducerEpoch::new(0),
                })
            }
            Request::Produce(request) => {
                self.produce(&outgoing, request, desk);
                return None;
            }
            other => {
                desk.checker.violated(format!("the library's producer asks {:?}", other.kind()));
                return None;
            }
        };
        Some(Input::Answered { id: outgoing.id, answer, payload: Bytes::new() })
    }

    fn produce(&mut self, outgoing: &Outgoing, request: &ProduceRequest, desk: &mut Desk<'_>) {
        let rows: Vec<_> =
            request.rows.iter().map(|row| row.tp).zip(outgoing.payload.iter().cloned()).collect();
        let shard = desk.known.iter().find(|known| rows.first().is_some_and(|(tp, _)| *tp == known.tp));
        // The topic went since the library asked: any shard will say so.
        let shard = shard.map_or(0, |known| known.shard);
        let batches = rows.iter().map(|(tp, bytes)| self.seal(*tp, bytes, desk)).collect();
        let deadline_ms = u64::from(request.deadline_ms);
        let sent = desk.send(shard, Ask::Produce { acks: request.acks, deadline_ms, rows });
        self.requests.insert(sent, UnderWay { id: outgoing.id, batches, deadline: outgoing.deadline });
    }

    /// The batch as the checker knows it: the same bytes are the same batch. If its records were sealed before in another
    /// way, the library holds that they were not appended.
    fn seal(&mut self, tp: TopicPartition, bytes: &Bytes, desk: &mut Desk<'_>) -> BatchId {
        let records = u32_at(bytes, 32);
        let first = Records::new(bytes.slice(96..), records).next().and_then(Result::ok);
        let number = first.and_then(|record| record.value).map_or(u64::MAX, |value| u64_at(&value, 0));
        if let Some((batch, before)) = self.sealed.get(&number) {
            if before == bytes {
                return *batch;
            }
            desk.checker.refused(*batch);
        }
        let producer = (u64_at(bytes, 56).cast_signed(), u32_at(bytes, 64).cast_signed() as i16);
        let sequence = u32_at(bytes, 68).cast_signed();
        let batch = desk.checker.sent(Sent::new(tp, Some(producer), sequence, bytes, desk.now));
        self.sealed.insert(number, (batch, bytes.clone()));
        batch
    }

    fn metadata(&self, desk: &Desk<'_>) -> MetadataAnswer {
        let ours = |known: &&super::Known| Some(known.tp.topic) == self.topic;
        let partitions: Vec<_> = desk
            .known
            .iter()
            .filter(ours)
            .map(|known| MetadataPartition {
                partition: known.tp.partition,
                leader: Some(BrokerId::new(1)),
                leader_epoch: LeaderEpoch::new(1),
                shard: ShardId::new(known.shard),
                replicas: Vec::new(),
                in_sync_replicas: Vec::new(),
            })
            .collect();
        let error = if partitions.is_empty() { ErrorCode::UnknownTopic } else { ErrorCode::None };
        let id = self.topic.unwrap_or(TopicId::from_bytes([0; 16]));
        MetadataAnswer {
            brokers: vec![MetadataBroker { id: BrokerId::new(1), address: "broker".to_owned() }],
            topics: vec![MetadataTopic { error, name: TOPIC.to_owned(), id, partitions }],
            revision: desk.now,
        }
    }

    fn ask_for_wake(&self, desk: &mut Desk<'_>) {
        if desk.now < desk.produce_until {
            desk.wake(self.next_record_at.max(desk.now + MILLIS));
        }
        let ours = self.producer.as_ref().and_then(Producer::deadline);
        let requests = self.requests.values().map(|request| request.deadline).min();
        for at in [ours, requests].into_iter().flatten() {
            let nanos =
                u64::try_from(at.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX);
            desk.wake(nanos.max(desk.now + MILLIS));
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}
