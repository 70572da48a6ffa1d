//! A producer: several lanes, each a partition with its own sequence, up to five batches under way.
//!
//! An idempotent producer sends everything again, in order, after a refusal, a timeout or a broken connection, until it
//! is told. It gives a batch up only when every attempt was refused in words that promise it was not appended, and then
//! uses the batch's sequence for another. A plain producer sends an unknown batch again or forgets it.

use super::{Ask, Desk, Reply, TAGS};
use crate::checker::{BatchId, Scene, Sent};
use crate::world::{MILLIS, SECONDS};
use bytes::Bytes;
use corelog_core::shard::RequestId;
use corelog_wire::batch::BatchFields;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{ProducerEpoch, ProducerId, Sequence, TopicPartition};
use corelog_wire::keys::bloom_of;
use corelog_wire::message::{Acks, Answer, ProducedRow};
use corelog_wire::records::RecordsBuilder;
use std::collections::{BTreeMap, VecDeque};

/// A producer waits this long for an answer before it gives the connection up.
const PATIENCE: u64 = 4 * SECONDS;

#[derive(Debug)]
struct Flight {
    id: BatchId,
    bytes: Bytes,
    sequence: i32,
    /// Counts the batches of its lane.
    number: usize,
    outstanding: Option<u64>,
    /// Some attempt may have been appended.
    unknown: bool,
    /// Sealed for another partition, or of an epoch that a newer one has replaced: it must be refused.
    astray: bool,
}

#[derive(Debug)]
struct Lane {
    tp: TopicPartition,
    shard: u16,
    producer: Option<(i64, i16)>,
    next_sequence: i32,
    next_number: usize,
    /// The epoch before this one and its next sequence, until a batch shows that it is fenced.
    former: Option<((i64, i16), i32)>,
    flights: VecDeque<Flight>,
    again_at: Option<u64>,
    stopped: bool,
    /// The last refusal, for whoever asks why a batch is stuck.
    refusal: ErrorCode,
}

/// What a producer is like.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Retries under a producer id.
    pub idempotent: bool,
    /// What it waits for.
    pub acks: Acks,
    /// Batches under way per lane.
    pub window: usize,
    /// Shortest and longest pause between batches.
    pub pause: (u64, u64),
    /// Largest value.
    pub value_bytes_max: u64,
    /// Largest batch.
    pub batch_bytes_max: u64,
}

/// One producer.
#[derive(Debug)]
pub struct Producer {
    style: Style,
    lanes: Vec<Lane>,
    lanes_max: usize,
    next_batch_at: u64,
    requests: BTreeMap<RequestId, Vec<(usize, BatchId)>>,
}

/// What a refusal says about the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// It was not appended.
    NotAppended,
    /// It may have been.
    Unknown,
    /// The producer cannot go on under its id.
    Fatal,
}

fn meaning(code: ErrorCode) -> Meaning {
    match code {
        ErrorCode::DiskFull
        | ErrorCode::ReadOnly
        | ErrorCode::NotLeader
        | ErrorCode::Throttled
        | ErrorCode::OutOfOrderSequence
        | ErrorCode::UnknownProducer
        | ErrorCode::UnknownPartition => Meaning::NotAppended,
        ErrorCode::DuplicateTooOld | ErrorCode::FencedProducer => Meaning::Fatal,
        _ if cfg!(mutant = "silence_taken_for_refusal") => Meaning::NotAppended,
        _ => Meaning::Unknown,
    }
}

impl Producer {
    /// A producer that will use up to `lanes_max` partitions of one shard.
    #[must_use]
    pub const fn new(style: Style, lanes_max: usize) -> Self {
        Self { style, lanes: Vec::new(), lanes_max, next_batch_at: 0, requests: BTreeMap::new() }
    }

    /// A batch that was neither acknowledged nor given up, and the last refusal of its lane.
    #[must_use]
    pub fn stuck(&self) -> Option<(TopicPartition, BatchId, ErrorCode)> {
        let mut live = self.lanes.iter().filter(|lane| !lane.stopped);
        live.find_map(|lane| lane.flights.front().map(|flight| (lane.tp, flight.id, lane.refusal)))
    }

    pub(super) fn wake(&mut self, desk: &mut Desk<'_>) {
        self.choose_lanes(desk);
        let overdue = |flight: &Flight| flight.outstanding.is_some_and(|at| desk.now >= at + PATIENCE);
        if self.lanes.iter().any(|lane| lane.flights.iter().any(overdue)) {
            desk.hang_up = true;
            return;
        }
        for index in 0..self.lanes.len() {
            self.send_again(index, desk);
        }
        if desk.now >= self.next_batch_at && desk.now < desk.produce_until {
            self.next_batch_at = desk.now + desk.rng.between(self.style.pause.0, self.style.pause.1);
            self.send_new(desk);
        }
        self.ask_for_wake(desk);
    }

    fn ask_for_wake(&self, desk: &mut Desk<'_>) {
        if desk.now < desk.produce_until {
            desk.wake(self.next_batch_at);
        }
        for lane in &self.lanes {
            if let Some(at) = lane.again_at {
                desk.wake(at.max(desk.now + MILLIS));
            }
            if let Some(at) = lane.flights.iter().filter_map(|flight| flight.outstanding).min() {
                desk.wake(at + PATIENCE);
            }
        }
    }

    /// Lanes of deleted topics go; free places are filled from the shard of the first lane.
    fn choose_lanes(&mut self, desk: &mut Desk<'_>) {
        for lane in &mut self.lanes {
            if !desk.known.iter().any(|known| known.tp == lane.tp) {
                lane.stopped = true;
            }
        }
        if self.requests.is_empty()
            && self.lanes.iter().any(|lane| lane.stopped && lane.refusal != ErrorCode::ReadOnly)
        {
            self.lanes.retain(|lane| !lane.stopped || lane.refusal == ErrorCode::ReadOnly);
        }
        if self.lanes.len() >= self.lanes_max || desk.known.is_empty() {
            return;
        }
        let known = desk.rng.pick(desk.known);
        let shard = self.lanes.first().map_or(known.shard, |lane| lane.shard);
        if known.shard != shard || self.lanes.iter().any(|lane| lane.tp == known.tp) {
            return;
        }
        let producer = self.style.idempotent.then(|| new_producer(desk));
        self.lanes.push(Lane {
            tp: known.tp,
            shard,
            producer,
            next_sequence: 0,
            next_number: 0,
            former: None,
            flights: VecDeque::new(),
            again_at: None,
            stopped: false,
            refusal: ErrorCode::None,
        });
    }

    /// After trouble: everything of the lane again, in order, once nothing of it is under way.
    fn send_again(&mut self, index: usize, desk: &mut Desk<'_>) {
        let lane = &mut self.lanes[index];
        let under_way = lane.flights.iter().any(|flight| flight.outstanding.is_some());
        if lane.stopped || under_way || lane.again_at.is_none_or(|at| desk.now < at) {
            return;
        }
        lane.again_at = None;
        for flight in &mut lane.flights {
            flight.outstanding = Some(desk.now);
            let rows = vec![(lane.tp, flight.bytes.clone())];
            let ask = Ask::Produce { acks: self.style.acks, deadline_ms: 2_000, rows };
            let request = desk.send(lane.shard, ask);
            self.requests.insert(request, vec![(index, flight.id)]);
        }
    }

    fn send_new(&mut self, desk: &mut Desk<'_>) {
        let mut rows = Vec::new();
        let mut under_way = Vec::new();
        for index in 0..self.lanes.len() {
            let lane = &self.lanes[index];
            let open = !lane.stopped && lane.again_at.is_none() && lane.window() < self.style.window;
            if !open || desk.rng.percent(30) {
                continue;
            }
            self.begin_epoch(index, desk);
            let (id, bytes) = self.make(index, desk);
            rows.push((self.lanes[index].tp, bytes));
            under_way.push((index, id));
        }
        let Some(&(first, _)) = under_way.first() else { return };
        let deadline_ms = desk.rng.pick(&[200, 2_000, 30_000]);
        let ask = Ask::Produce { acks: self.style.acks, deadline_ms, rows };
        let request = desk.send(self.lanes[first].shard, ask);
        if self.style.acks == Acks::None {
            for (index, _) in under_way {
                self.lanes[index].flights.clear();
            }
            return;
        }
        self.requests.insert(request, under_way);
    }

    /// Seals a batch for the lane and puts it in flight.
    fn make(&mut self, index: usize, desk: &mut Desk<'_>) -> (BatchId, Bytes) {
        let lane = &mut self.lanes[index];
        let timestamp_ms = desk.wall_ms - desk.rng.below(50).cast_signed();
        let mut builder = RecordsBuilder::with_capacity(1024);
        let records = desk.rng.between(1, 6);
        for delta in 0..records {
            let room = (self.style.batch_bytes_max / records).saturating_sub(200).max(1);
            let mut value = vec![0; desk.rng.below(self.style.value_bytes_max.min(room)) as usize + 8];
            desk.rng.fill(&mut value);
            let pushed = builder.push(delta as u32, 0, None, Some(&value), &[]);
            assert_eq!(pushed, Ok(()), "a record that cannot be written");
        }
        let mut fields = BatchFields::plain(records as u32, timestamp_ms);
        for tag in TAGS.iter().filter(|_| desk.rng.percent(20)) {
            fields.tag_bloom |= bloom_of(tag);
        }
        if let Some((id, epoch)) = lane.producer {
            fields.producer_id = ProducerId::new(id);
            fields.producer_epoch = ProducerEpoch::new(epoch);
            fields.base_sequence = Sequence::new(lane.next_sequence);
        }
        // A client whose buffers got mixed up sends the right bytes to the wrong place.
        let elsewhere = desk.rng.pick(desk.known).tp;
        let astray = lane.producer.is_none() && elsewhere != lane.tp && desk.rng.percent(5);
        let bytes = builder.into_batch(&fields, if astray { elsewhere } else { lane.tp });
        let id = lane.fly(bytes.clone(), lane.producer, lane.next_sequence, astray, desk);
        lane.next_sequence += records as i32;
        (id, bytes)
    }

    /// Now and then an idle producer starts again under a new epoch of its id.
    fn begin_epoch(&mut self, index: usize, desk: &mut Desk<'_>) {
        let lane = &mut self.lanes[index];
        if let Some((id, epoch)) = lane.producer
            && lane.flights.is_empty()
            && lane.next_sequence > 0
            && desk.rng.percent(2)
        {
            lane.former = Some(((id, epoch), lane.next_sequence));
            lane.producer = Some((id, epoch + 1));
            lane.next_sequence = 0;
        }
    }

    /// The producer's former incarnation was only asleep: it goes on where it was, and must be refused.
    fn send_zombie(&mut self, index: usize, desk: &mut Desk<'_>) {
        let lane = &mut self.lanes[index];
        let Some((producer, sequence)) = lane.former.take() else { return };
        if desk.checker.may_forget(lane.tp) {
            return;
        }
        let mut builder = RecordsBuilder::with_capacity(64);
        let pushed = builder.push(0, 0, None, Some(b"zombie"), &[]);
        assert_eq!(pushed, Ok(()), "a record that cannot be written");
        let mut fields = BatchFields::plain(1, desk.wall_ms);
        fields.producer_id = ProducerId::new(producer.0);
        fields.producer_epoch = ProducerEpoch::new(producer.1);
        fields.base_sequence = Sequence::new(sequence);
        let bytes = builder.into_batch(&fields, lane.tp);
        let id = lane.fly(bytes.clone(), Some(producer), sequence, true, desk);
        let ask = Ask::Produce { acks: self.style.acks, deadline_ms: 2_000, rows: vec![(lane.tp, bytes)] };
        let request = desk.send(lane.shard, ask);
        self.requests.insert(request, vec![(index, id)]);
    }

    pub(super) fn answered(
        &mut self,
        reply: &Reply,
        desk: &mut Desk<'_>,
        scene: &mut dyn FnMut(TopicPartition) -> Scene,
    ) {
        let Some(rows) = self.requests.remove(&reply.request) else { return };
        for (row, (index, id)) in rows.into_iter().enumerate() {
            match &reply.answer {
                Answer::Produce(answer) => match answer.rows.get(row) {
                    Some(row) => self.row_answered(index, id, row, desk, scene),
                    None => desk.checker.violated("a produce answer lacks a row".to_owned()),
                },
                Answer::Refused { refusal, .. } => self.row_refused(index, id, refusal.code, desk),
                _ => desk.checker.violated("a produce request got another kind of answer".to_owned()),
            }
        }
        self.wake(desk);
    }

    fn row_answered(
        &mut self,
        index: usize,
        id: BatchId,
        row: &ProducedRow,
        desk: &mut Desk<'_>,
        scene: &mut dyn FnMut(TopicPartition) -> Scene,
    ) {
        if row.error != ErrorCode::None {
            desk.checker.counts.refused += 1;
            return self.row_refused(index, id, row.error, desk);
        }
        let lane = &mut self.lanes[index];
        if lane.flights.iter().any(|flight| flight.id == id && flight.astray) {
            lane.flights.retain(|flight| flight.id != id);
            let (tp, idempotent) = (lane.tp, lane.producer.is_some());
            return match idempotent {
                true if desk.checker.may_forget(tp) => {}
                true => {
                    desk.checker.violated(format!("P4: {tp}: a batch of a former epoch was acknowledged"));
                }
                false => {
                    desk.checker
                        .violated(format!("O9: {tp}: a batch for another partition was acknowledged"));
                }
            };
        }
        desk.checker.acked(id, row, &scene(row.tp));
        lane.flights.retain(|flight| flight.id != id);
        lane.refusal = ErrorCode::None;
        self.send_zombie(index, desk);
    }

    fn row_refused(&mut self, index: usize, id: BatchId, code: ErrorCode, desk: &mut Desk<'_>) {
        let lane = &mut self.lanes[index];
        let Some(place) = lane.flights.iter().position(|flight| flight.id == id) else { return };
        if place == 0 {
            lane.refusal = code;
        }
        if lane.flights[place].astray {
            lane.flights.remove(place);
            return;
        }
        let last = place + 1 == lane.flights.len();
        let flight = &mut lane.flights[place];
        flight.outstanding = None;
        let meaning = meaning(code);
        flight.unknown |= meaning == Meaning::Unknown;
        // Behind a batch that was refused, these say only that it is missing.
        let out_of_order = matches!(code, ErrorCode::OutOfOrderSequence | ErrorCode::UnknownProducer);
        if code == ErrorCode::CorruptBatch || code == ErrorCode::TooLarge {
            desk.checker.violated(format!("a sound batch was refused with {code}"));
        } else if meaning == Meaning::Fatal || (out_of_order && place == 0) {
            desk.checker.refused_fatally(id, code);
            self.start_over(index, desk);
        } else if code == ErrorCode::ReadOnly {
            lane.stopped = true;
        } else if lane.producer.is_none() {
            self.plain_again_or_never(index, place, desk);
        } else if last && !flight.unknown && desk.rng.percent(30) {
            let given_up = flight.sequence;
            lane.flights.pop_back();
            lane.next_sequence = given_up;
            lane.next_number -= 1;
            desk.checker.refused(id);
        } else {
            let wait = desk.rng.between(20 * MILLIS, 300 * MILLIS);
            self.lanes[index].again_at = Some(desk.now + wait);
        }
    }

    /// A plain producer after a refusal or silence.
    fn plain_again_or_never(&mut self, index: usize, place: usize, desk: &mut Desk<'_>) {
        let lane = &mut self.lanes[index];
        let Some(flight) = lane.flights.get(place) else { return };
        if flight.astray {
            lane.flights.remove(place);
        } else if desk.rng.percent(50) {
            if flight.unknown {
                desk.checker.sent_again(flight.id);
            }
            lane.again_at = Some(desk.now + desk.rng.between(20 * MILLIS, 300 * MILLIS));
        } else {
            if !flight.unknown {
                desk.checker.refused(flight.id);
            }
            lane.flights.remove(place);
        }
    }

    /// The lane goes on under a new producer id; what was under way stays unknown, what was refused stays away.
    fn start_over(&mut self, index: usize, desk: &mut Desk<'_>) {
        let lane = &mut self.lanes[index];
        for flight in lane.flights.drain(..) {
            if !flight.unknown && flight.outstanding.is_none() {
                desk.checker.refused(flight.id);
            }
        }
        lane.producer = Some(new_producer(desk));
        lane.next_sequence = 0;
        lane.former = None;
        lane.again_at = None;
    }

    pub(super) fn lost(&mut self, desk: &mut Desk<'_>) {
        self.requests.clear();
        for index in 0..self.lanes.len() {
            let again_at = desk.now + desk.rng.between(50 * MILLIS, 400 * MILLIS);
            let lane = &mut self.lanes[index];
            let plain = lane.producer.is_none();
            let mut unknown = Vec::new();
            for (place, flight) in lane.flights.iter_mut().enumerate() {
                if flight.outstanding.take().is_some() {
                    flight.unknown = true;
                    unknown.push(place);
                }
            }
            if plain {
                for place in unknown.into_iter().rev() {
                    self.plain_again_or_never(index, place, desk);
                }
            } else if !lane.flights.is_empty() {
                lane.again_at = Some(again_at);
            }
        }
        self.ask_for_wake(desk);
        desk.wake(desk.now + 50 * MILLIS);
    }
}

impl Lane {
    /// Batches since the oldest whose fate is open, whatever became of the others: the broker remembers no more.
    fn window(&self) -> usize {
        self.flights.front().map_or(0, |oldest| self.next_number - oldest.number)
    }

    /// Puts a sealed batch in flight; the checker learns of it.
    fn fly(
        &mut self,
        bytes: Bytes,
        producer: Option<(i64, i16)>,
        sequence: i32,
        astray: bool,
        desk: &mut Desk<'_>,
    ) -> BatchId {
        let id = desk.checker.sent(Sent::new(self.tp, producer, sequence, &bytes, desk.now));
        if astray {
            desk.checker.refused(id);
        }
        let outstanding = Some(desk.now);
        let number = self.next_number;
        self.next_number += 1;
        self.flights.push_back(Flight { id, bytes, sequence, number, outstanding, unknown: false, astray });
        id
    }
}

fn new_producer(desk: &mut Desk<'_>) -> (i64, i16) {
    *desk.next_producer += 1;
    (*desk.next_producer, 0)
}
