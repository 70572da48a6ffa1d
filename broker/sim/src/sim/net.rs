//! Between clients and broker: connections that keep their order, delay, and break.
//!
//! A connection that a client gave up may still deliver what it had under way: such a request is appended and nobody
//! hears of it.

use super::{Event, Origin, Seat, Sim};
use crate::checker::Scene;
use crate::client::{Ask, Client, Desk};
use crate::hands::Reply;
use crate::world::{MICROS, MILLIS};
use bytes::Bytes;
use corelog_core::shard::{Fetch, Input, Produce, ProduceRow, RequestId};
use corelog_wire::batch::{BatchLimits, CheckedBatch};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::TopicPartition;
use corelog_wire::message::Answer;
use std::time::Duration;

impl Sim {
    /// Lets a client act, then does what it wants.
    pub(super) fn with_client(
        &mut self,
        index: usize,
        act: impl FnOnce(&mut Client, &mut Desk<'_>, &mut dyn FnMut(TopicPartition) -> Scene),
    ) {
        let Some(mut client) = self.clients[index].client.take() else { return };
        let now = self.world.nanos();
        let mut desk = Desk {
            now,
            wall_ms: self.world.now().wall_ms,
            rng: &mut self.chance,
            checker: &mut self.checker,
            known: &self.known,
            produce_until: self.plan.produce_until,
            next_request: &mut self.next_request,
            next_producer: &mut self.next_producer,
            sends: Vec::new(),
            wake_at: u64::MAX,
            hang_up: false,
        };
        let (disk, quarantined, shards) = (&self.disk, &self.quarantined, u32::from(self.plan.shards));
        let mut scene = |tp: TopicPartition| {
            let shard = crc32fast::hash(tp.topic.as_bytes()).wrapping_add(tp.partition) % shards;
            Scene {
                now,
                invoked: now,
                segments_damaged: disk.was_spoiled(&format!("topics/{}/{}/", tp.topic, tp.partition)),
                quarantined: quarantined[shard as usize],
                may_be_empty: false,
            }
        };
        act(&mut client, &mut desk, &mut scene);
        let (sends, wake_at, hang_up) = (desk.sends, desk.wake_at, desk.hang_up);
        self.clients[index].client = Some(client);
        for (request, shard, ask) in sends {
            self.send(index, request, shard, ask);
        }
        if wake_at < self.clients[index].wake_at {
            self.clients[index].wake_at = wake_at.max(now + MICROS);
            self.world.at(wake_at.max(now + MICROS), Event::Wake { client: index });
        }
        if hang_up {
            self.lose_connection(index);
        }
    }

    fn send(&mut self, client: usize, request: RequestId, shard: u16, ask: Ask) {
        let delay = self.net.between(20 * MICROS, 600 * MICROS);
        let seated = &mut self.clients[client];
        seated.up_at = seated.up_at.max(self.world.nanos() + delay) + 1;
        let (conn, incarnation, at) = (seated.conn, self.incarnation, seated.up_at);
        self.world.at(at, Event::Arrive { client, conn, incarnation, request, shard, ask });
    }

    pub(super) fn arrive(
        &mut self,
        client: usize,
        conn: u64,
        incarnation: u64,
        request: RequestId,
        shard: u16,
        ask: Ask,
    ) {
        let current = self.clients[client].conn == conn;
        let process_is_there = self.up && incarnation == self.incarnation;
        if conn < self.clients[client].broken_before
            || !process_is_there
            || (!current && self.net.percent(50))
        {
            self.clients[client].broken_before = conn + 1;
            if current {
                let wait = self.net.between(MILLIS, 300 * MILLIS);
                self.world.after(wait, Event::Lost { client, conn });
            }
            return;
        }
        let quiet = matches!(&ask, Ask::Produce { acks: corelog_wire::message::Acks::None, .. });
        if !quiet {
            self.requests.insert(request, Origin { client, conn, shard });
        }
        let input = self.input_of(request, ask);
        self.tell(shard, input);
    }

    pub(super) fn send_reply(&mut self, reply: Reply) {
        self.check_acknowledged(&reply);
        let Some(origin) = self.requests.remove(&reply.request) else { return };
        let seated = &mut self.clients[origin.client];
        if seated.conn != origin.conn {
            return;
        }
        let delay = self.net.between(20 * MICROS, 600 * MICROS);
        seated.down_at = seated.down_at.max(self.world.nanos() + delay) + 1;
        let (client, conn, at) = (origin.client, origin.conn, seated.down_at);
        self.world.at(at, Event::Deliver { client, conn, reply });
    }

    /// An acknowledgement that says flushed may leave only when a power cut could not take the batch any more.
    fn check_acknowledged(&mut self, reply: &Reply) {
        let Answer::Produce(answer) = &reply.answer else { return };
        for row in answer.rows.iter().filter(|row| row.error == ErrorCode::None && row.durable) {
            let topic = self.topics.iter().find(|topic| topic.id == row.tp.topic);
            if topic.is_none_or(|topic| topic.deleted) {
                continue;
            }
            let Seat::Up(hands) = &self.seats[usize::from(self.shard_of(row.tp))] else { continue };
            let (shadow, journal) = (hands.shadow(), hands.journal());
            if let Some(commit) = shadow.holding(row.tp, row.base_offset)
                && !shadow.is_durable(commit, &self.disk, journal)
                && !shadow.is_damaged(commit, &self.disk, journal)
            {
                let what = format!(
                    "D2: {} offset {} is acknowledged, but its commit at {} is not durable",
                    row.tp,
                    row.base_offset,
                    commit.at.get()
                );
                self.checker.violated(what);
            }
        }
    }

    /// The client's connection is gone, by its own will or not.
    pub(super) fn lose_connection(&mut self, client: usize) {
        let conn = self.clients[client].conn;
        self.trace.event("connection lost", &[client as u64, conn]);
        self.clients[client].conn += 1;
        let gone: Vec<(RequestId, u16)> = self
            .requests
            .iter()
            .filter(|(_, origin)| origin.client == client && origin.conn == conn)
            .map(|(request, origin)| (*request, origin.shard))
            .collect();
        for (request, shard) in gone {
            self.requests.remove(&request);
            self.tell(shard, Input::Forget { request });
        }
        self.with_client(client, |client, desk, _| client.lost(desk));
    }

    /// A request at the broker's door.
    fn input_of(&self, request: RequestId, ask: Ask) -> Input {
        match ask {
            Ask::Produce { acks, deadline_ms, rows } => {
                let row = |(tp, bytes)| ProduceRow { tp, batch: self.check(tp, bytes) };
                let rows = rows.into_iter().map(row).collect();
                Input::Produce(Produce { request, acks, deadline: Duration::from_millis(deadline_ms), rows })
            }
            Ask::Fetch { wait_ms, bytes_min, bytes_max, rows, filter } => {
                let wait_max = Duration::from_millis(wait_ms);
                Input::Fetch(Fetch { request, wait_max, bytes_min, bytes_max, rows, filter })
            }
            Ask::List(rows) => Input::ListOffsets { request, rows },
            Ask::Delete(rows) => Input::DeleteRecords { request, rows },
        }
    }

    fn check(&self, tp: TopicPartition, bytes: Bytes) -> Result<CheckedBatch, (ErrorCode, String)> {
        let limits = BatchLimits { batch_bytes_max: corelog_core::limits::BATCH_BYTES_MAX };
        let checked = CheckedBatch::check(bytes.clone(), tp, &limits);
        if cfg!(mutant = "door_takes_any_topic") && checked.is_err() {
            let others = self.known.iter().map(|known| known.tp);
            let mut sealed_for = others.filter_map(|tp| CheckedBatch::check(bytes.clone(), tp, &limits).ok());
            return sealed_for.next().ok_or((ErrorCode::CorruptBatch, String::new()));
        }
        checked.map_err(|error| (error.code(), error.to_string()))
    }
}
