//! What a reader asks for, and when.
//!
//! Part of `reader`; its invariants hold here. Each leader has two lanes. Partitions that are behind are answered at
//! once, so one large request of them at a time will do. Requests of partitions that are at their end wait at the
//! broker: several may wait, as partitions come to their ends one by one, but they leave half of the leader's room to
//! those behind, however many wait.

use std::collections::BTreeSet;
use std::time::Instant;

use corelog_wire::message::{
    FetchRequest, FetchRow, ListOffsetsRequest, ListOffsetsRow, MetadataRequest, Request,
};

use super::{Effect, Log, Next, Reader, ReaderEvent, RequestId, UnderWay};
use crate::core::Outgoing;
use crate::core::metadata::{Destination, Target};

/// Rows in one request.
const ROWS_MAX: usize = 1024;

/// Requests that may wait at one leader for records to come.
const WAITING_MAX: usize = 4;

/// What the requests of a lane have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Places in a log are asked for.
    Offsets,
    /// Records that are there, as far as is known.
    Behind,
    /// Records to come.
    AtEnd,
}

type Out = Vec<Effect<ReaderEvent>>;

impl Reader {
    /// When to come back with a tick, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        let topic = self.topic_again_at.filter(|_| self.topic_asked.is_none());
        let gone = self.topic_trouble.as_ref().map(|trouble| self.told_at(trouble));
        let trouble = self.logs.values().filter_map(|log| log.trouble.as_ref());
        let trouble = trouble.map(|(since, _)| *since + self.config.patience).chain(gone);
        let logs = self.logs.values().filter(|log| log.request.is_none()).filter_map(|log| log.again_at);
        // What was due when the last input came has been done, or waits for something other than time.
        let due = |at: &Instant| self.handled_at.is_none_or(|handled| *at > handled);
        topic.into_iter().chain(trouble).chain(logs).filter(due).min()
    }

    pub(super) fn ask_topic(&mut self, now: Instant, out: &mut Out) {
        let again = self.topic_again_at.is_none_or(|at| at <= now);
        let wanted = self.topic_stale || self.topic_again_at.is_some();
        if !wanted || !again || self.topic_asked.is_some() {
            return;
        }
        let request = Request::Metadata(MetadataRequest {
            topics: Some(vec![self.config.topic.to_string()]),
            auto_create: false,
        });
        let id = self.request_id();
        self.topic_asked = Some(id);
        let deadline = now + self.config.request_deadline;
        let outgoing =
            Outgoing { id, target: Target::Any, request, payload: vec![], deadline, answered: true };
        out.push(Effect::Send(outgoing));
    }

    /// The logs that `wanted` selects, by leader. The one whose turn it is comes first, and its leader.
    fn by_leader(&mut self, now: Instant, wanted: impl Fn(&Log) -> bool) -> Vec<(Destination, Vec<u32>)> {
        let mut by_leader: Vec<(Destination, Vec<u32>)> = Vec::new();
        let Some(topic) = &self.topic else { return by_leader };
        let mut leaderless = false;
        for (&partition, log) in self.logs.range(self.turn..).chain(self.logs.range(..self.turn)) {
            let rests =
                log.request.is_none() && log.failure.is_none() && log.again_at.is_none_or(|at| at <= now);
            if !rests || !wanted(log) {
                continue;
            }
            let Some(leader) = topic.leader(partition) else {
                leaderless = true;
                continue;
            };
            match by_leader.iter_mut().find(|(other, _)| other == leader) {
                Some((_, partitions)) => partitions.push(partition),
                None => by_leader.push((leader.clone(), vec![partition])),
            }
        }
        self.topic_stale |= leaderless;
        by_leader
    }

    pub(super) fn list_offsets(&mut self, now: Instant, out: &mut Out) {
        let by_leader = self.by_leader(now, |log| matches!(log.next, Next::Ask(_)));
        for (leader, partitions) in by_leader {
            for partitions in partitions.chunks(ROWS_MAX) {
                let row = |&partition: &u32| {
                    let (topic, log) = (self.topic.as_ref()?, self.logs.get(&partition)?);
                    let Next::Ask(at) = log.next else { return None };
                    Some(ListOffsetsRow { tp: topic.tp(partition), at })
                };
                let rows = partitions.iter().filter_map(row).collect();
                let request = Request::ListOffsets(ListOffsetsRequest { rows });
                let under_way = UnderWay {
                    leader: leader.clone(),
                    lane: Lane::Offsets,
                    partitions: partitions.to_vec(),
                    reserved_bytes: 0,
                };
                self.send(now, request, under_way, out);
            }
        }
    }

    pub(super) fn fetch(&mut self, now: Instant, out: &mut Out) {
        let leaders = self.topic.iter().flat_map(|topic| &topic.partitions);
        let leaders = leaders.filter_map(|place| place.leader.as_ref()).collect::<BTreeSet<_>>().len().max(1);
        let share = self.config.prefetch_bytes_max / 2 / leaders;
        for (lane, requests_max, share) in
            [(Lane::Behind, 1, share), (Lane::AtEnd, WAITING_MAX, share / WAITING_MAX)]
        {
            let share = u32::try_from(share.max(1)).unwrap_or(u32::MAX);
            self.fetch_lane(now, lane, requests_max, self.config.fetch_bytes_max.min(share), out);
        }
    }

    /// Asks for what a lane may ask for; `bytes_max`: of each answer.
    fn fetch_lane(&mut self, now: Instant, lane: Lane, requests_max: usize, bytes_max: u32, out: &mut Out) {
        let partition_bytes_max = self.config.partition_bytes_max as usize;
        // Half a portion in the buffer: time to ask for the next, so that the taker need not wait.
        let hungry = |log: &Log| log.buffered_bytes < partition_bytes_max.div_ceil(2) && !log.paused;
        for (leader, partitions) in self.by_leader(now, |log| log.lane() == lane && hungry(log)) {
            for partitions in partitions.chunks(ROWS_MAX) {
                if self.under_way_count(&leader, lane) >= requests_max {
                    break;
                }
                let reserved: usize = self.requests.values().map(|request| request.reserved_bytes).sum();
                let used = self.buffered_bytes() + reserved;
                if used > 0 && used + bytes_max as usize > self.config.prefetch_bytes_max {
                    return;
                }
                let row = |&partition: &u32| {
                    let (topic, log) = (self.topic.as_ref()?, self.logs.get(&partition)?);
                    let Next::Fetch(offset) = log.next else { return None };
                    let max_bytes = self.config.partition_bytes_max.min(bytes_max);
                    Some(FetchRow { tp: topic.tp(partition), offset, max_bytes, leader_epoch: None })
                };
                let request = Request::Fetch(FetchRequest {
                    max_wait_ms: u32::try_from(self.config.wait.as_millis()).unwrap_or(u32::MAX),
                    min_bytes: self.config.bytes_min,
                    max_bytes: bytes_max,
                    rows: partitions.iter().filter_map(row).collect(),
                    filter: self.filter.clone(),
                });
                let under_way = UnderWay {
                    leader: leader.clone(),
                    lane,
                    partitions: partitions.to_vec(),
                    reserved_bytes: bytes_max as usize,
                };
                self.send(now, request, under_way, out);
            }
        }
    }

    /// Requests of a lane at a leader. One that no log waits for any more, after a seek, does not stand in the way.
    fn under_way_count(&self, leader: &Destination, lane: Lane) -> usize {
        let waits = |id: RequestId, partition: &u32| {
            self.logs.get(partition).is_some_and(|log| log.request == Some(id))
        };
        let counts = |(id, request): &(&RequestId, &UnderWay)| {
            request.leader == *leader
                && request.lane == lane
                && request.partitions.iter().any(|partition| waits(**id, partition))
        };
        self.requests.iter().filter(counts).count()
    }

    fn send(&mut self, now: Instant, request: Request, under_way: UnderWay, out: &mut Out) {
        let id: RequestId = self.request_id();
        for partition in &under_way.partitions {
            if let Some(log) = self.logs.get_mut(partition) {
                log.request = Some(id);
            }
        }
        let target = Target::At(under_way.leader.clone());
        let deadline = now + self.config.request_deadline + self.config.wait;
        self.requests.insert(id, under_way);
        out.push(Effect::Send(Outgoing { id, target, request, payload: vec![], deadline, answered: true }));
    }
}

impl Log {
    /// Where its next request goes.
    fn lane(&self) -> Lane {
        match self.next {
            Next::Ask(_) => Lane::Offsets,
            Next::Fetch(offset) if self.high_watermark.is_some_and(|end| offset >= end) => Lane::AtEnd,
            Next::Fetch(_) => Lane::Behind,
        }
    }
}
