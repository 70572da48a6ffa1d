//! What a reader asks for, and when.
//!
//! Part of `reader`; its invariants hold here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use corelog_wire::message::{
    FetchRequest, FetchRow, ListOffsetsRequest, ListOffsetsRow, MetadataRequest, Request,
};

use super::{Effect, Log, Next, Reader, ReaderEvent, RequestId, UnderWay};
use crate::core::Outgoing;
use crate::core::metadata::{Destination, Target};

/// Rows in one request.
const ROWS_MAX: usize = 1024;

type Out = Vec<Effect<ReaderEvent>>;

impl Reader {
    /// When to come back with a tick, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        let topic = self.topic_again_at.filter(|_| self.topic_asked.is_none());
        let trouble =
            self.topic_trouble.iter().chain(self.logs.values().filter_map(|log| log.trouble.as_ref()));
        let trouble = trouble.map(|(since, _)| *since + self.config.patience);
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

    /// The logs that `wanted` selects, by leader, the one whose turn it is first.
    fn by_leader(&mut self, now: Instant, wanted: impl Fn(&Log) -> bool) -> BTreeMap<Destination, Vec<u32>> {
        let mut by_leader: BTreeMap<Destination, Vec<u32>> = BTreeMap::new();
        let Some(topic) = &self.topic else { return by_leader };
        let mut leaderless = false;
        for (&partition, log) in self.logs.range(self.turn..).chain(self.logs.range(..self.turn)) {
            let rests =
                log.request.is_none() && log.failure.is_none() && log.again_at.is_none_or(|at| at <= now);
            if !rests || !wanted(log) {
                continue;
            }
            match topic.leader(partition) {
                Some(leader) => by_leader.entry(leader.clone()).or_default().push(partition),
                None => leaderless = true,
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
                self.send(now, leader.clone(), request, partitions.to_vec(), 0, out);
            }
        }
    }

    pub(super) fn fetch(&mut self, now: Instant, out: &mut Out) {
        let partition_bytes_max = self.config.partition_bytes_max as usize;
        // Half a portion in the buffer: time to ask for the next, so that the taker need not wait.
        let hungry = |log: &Log| log.buffered_bytes < partition_bytes_max.div_ceil(2) && !log.paused;
        let by_leader = self.by_leader(now, |log| matches!(log.next, Next::Fetch(_)) && hungry(log));
        let leaders = self.topic.iter().flat_map(|topic| &topic.partitions);
        let leaders = leaders.filter_map(|place| place.leader.as_ref()).collect::<BTreeSet<_>>().len().max(1);
        // A fair share of the room for each leader, so that one with nothing new cannot block the others.
        let share = (self.config.prefetch_bytes_max / 2 / leaders).max(1);
        let bytes_max = self.config.fetch_bytes_max.min(u32::try_from(share).unwrap_or(u32::MAX));
        for (leader, partitions) in by_leader {
            for partitions in partitions.chunks(ROWS_MAX) {
                let reserved: usize = self.requests.values().map(|request| request.reserved_bytes).sum();
                let used = self.buffered_bytes() + reserved;
                let alone = used == 0;
                if !alone && used + bytes_max as usize > self.config.prefetch_bytes_max {
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
                });
                self.send(now, leader.clone(), request, partitions.to_vec(), bytes_max as usize, out);
            }
        }
    }

    fn send(
        &mut self,
        now: Instant,
        leader: Destination,
        request: Request,
        partitions: Vec<u32>,
        reserved_bytes: usize,
        out: &mut Out,
    ) {
        let id: RequestId = self.request_id();
        for partition in &partitions {
            if let Some(log) = self.logs.get_mut(partition) {
                log.request = Some(id);
            }
        }
        let deadline = now + self.config.request_deadline + self.config.wait;
        self.requests.insert(id, UnderWay { partitions, reserved_bytes });
        out.push(Effect::Send(Outgoing {
            id,
            target: Target::At(leader),
            request,
            payload: vec![],
            deadline,
            answered: true,
        }));
    }
}
