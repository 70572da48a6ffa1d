//! Answers on their way back: from the shard, from other shards and from the control thread to the connection that asked.
//!
//! Called by the pump (through [`Answers`](super::Answers)), the mesh, the control thread's replies and the tick.
//! Invariants: a request is answered at most once; an answer for somebody who is gone is dropped, and what it held with
//! it. This file refuses to know how answers are found.

use super::budget::{Charge, Pool};
use super::config::THROTTLE_MS;
use super::connection::Connection;
use super::gather::Gather;
use super::mesh::{PeerAnswer, Reply, ToShard};
use super::output::OutFrame;
use super::seam::{FetchReadyRow, PayloadSlice};
use super::{Inner, config::NetConfig};
use corelog_core::shard::{Input, RequestId};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::{Kind, PRELUDE_BYTES, Prelude};
use corelog_wire::ids::{CorrelationId, ShardId};
use corelog_wire::message::{Answer, FetchAnswer, FetchedRow, Refusal};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

/// The right to answer one request of a connection, and what the request holds until then.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) connection: Rc<Connection>,
    pub(super) kind: Kind,
    correlation: CorrelationId,
    arrived: Instant,
    bytes: u64,
    promised_bytes: u64,
    /// Of the header.
    charge: Charge,
    /// For the answer.
    reserved: Option<Charge>,
    /// Whether it waits at the end of a log.
    parked: bool,
}

impl Ticket {
    /// Counts a request in; `bytes` of it stay in memory.
    pub(super) fn new(
        connection: Rc<Connection>,
        kind: Kind,
        correlation: CorrelationId,
        arrived: Instant,
        bytes: usize,
        charge: Charge,
    ) -> Self {
        let bytes = bytes as u64;
        connection.in_flight.set(connection.in_flight.get() + 1);
        connection.in_flight_bytes.set(connection.in_flight_bytes.get() + bytes);
        Self {
            connection,
            kind,
            correlation,
            arrived,
            bytes,
            promised_bytes: 0,
            charge,
            reserved: None,
            parked: false,
        }
    }

    /// There is this charge for the answer.
    pub(super) fn reserve(&mut self, reserved: Charge) {
        self.reserved = Some(reserved);
    }

    /// The answer may bring so many bytes, for which there is this charge.
    pub(super) fn promise(&mut self, bytes: u64, reserved: Charge) {
        self.set_parked(false);
        self.reserve(reserved);
        self.promised_bytes += bytes;
        let promised = &self.connection.promised_bytes;
        promised.set(promised.get() + bytes);
    }

    /// Nobody knows when there will be an answer: until then it holds nothing up.
    pub(super) fn park(&mut self) {
        self.set_parked(true);
        drop(self.take_promise());
    }

    /// Whether what is reserved suffices for an answer of so many bytes, or can be made to without waiting.
    pub(super) fn covers(&mut self, pool: &Pool, bytes: u64) -> bool {
        let charge = self.reserved.get_or_insert_with(|| pool.empty_charge());
        let more = bytes.saturating_sub(charge.bytes());
        more == 0 || charge.try_grow(more)
    }

    /// Takes back what was promised, with its charge.
    pub(super) fn take_promise(&mut self) -> Option<Charge> {
        let promised = &self.connection.promised_bytes;
        promised.set(promised.get() - std::mem::take(&mut self.promised_bytes));
        self.connection.changed.notify();
        self.reserved.take()
    }

    fn set_parked(&mut self, parks: bool) {
        match (self.parked, parks) {
            (false, true) => self.connection.parks(self.charge.bytes()),
            (true, false) => self.connection.unparks(self.charge.bytes()),
            _ => {}
        }
        self.parked = parks;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        drop(self.take_promise());
        self.set_parked(false);
        let Connection { in_flight, in_flight_bytes, .. } = &*self.connection;
        in_flight.set(in_flight.get() - 1);
        in_flight_bytes.set(in_flight_bytes.get() - self.bytes);
        self.connection.changed.notify();
    }
}

/// What an answer answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addressee {
    /// The kind's number, known or not.
    pub(super) kind: u16,
    pub(super) correlation: CorrelationId,
    /// The kind and when the request had been read, if it is to be measured.
    pub(super) request: Option<(Kind, Instant)>,
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) owner: Owner,
    pub(super) asked: Asked,
}

/// Who waits for an answer.
#[derive(Debug)]
pub(super) enum Owner {
    Connection(Ticket),
    /// One part of a request whose rows belong to several shards.
    Part {
        gather: Rc<RefCell<Gather>>,
        part: usize,
    },
    /// Another shard.
    Peer {
        shard: ShardId,
        request: RequestId,
    },
}

impl Owner {
    fn is(&self, connection: &Rc<Connection>) -> bool {
        match self {
            Self::Connection(ticket) => Rc::ptr_eq(&ticket.connection, connection),
            Self::Part { gather, .. } => gather.borrow().is_of(connection),
            Self::Peer { .. } => false,
        }
    }
}

/// Who was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Shard(ShardId),
    Control,
}

impl Inner {
    /// Takes an answer in and passes it on. Answers to nobody are dropped.
    pub(super) fn complete(self: &Rc<Self>, request: RequestId, reply: Reply) {
        let Some(waiting) = self.take_waiting(request) else { return };
        match waiting.owner {
            Owner::Connection(ticket) => self.answer(ticket, reply),
            Owner::Part { gather, part } => self.part_answered(&gather, part, reply),
            Owner::Peer { shard, request } => {
                self.forwarded_here.borrow_mut().remove(&(shard, request));
                let answer = PeerAnswer { request, reply: reply.into_sendable() };
                // No room only if the asker gave up on thousands of requests at once: it has answered them itself.
                drop(self.answers[usize::from(shard.get())].try_send(answer));
            }
        }
    }

    fn take_waiting(&self, request: RequestId) -> Option<Waiting> {
        let waiting = self.pending.borrow_mut().take(request)?;
        if matches!(waiting.asked, Asked::Shard(shard) if shard != self.shard) {
            self.forwarded_out.set(self.forwarded_out.get() - 1);
        }
        Some(waiting)
    }

    /// Refuses a request under way.
    pub(super) fn fail(self: &Rc<Self>, request: RequestId, code: ErrorCode, why: &str) {
        let kind = Kind::Hello; // Replaced by the kind of whoever asked.
        self.complete(request, Reply::Message(Answer::Refused { kind, refusal: refusal(code, why) }));
    }

    /// Refuses what nobody answered in time.
    pub(super) fn expire(self: &Rc<Self>, now: Instant) {
        let expired = self.pending.borrow().expired(now);
        for request in expired {
            self.metrics.expired.add(1);
            self.forget(request);
            self.fail(request, ErrorCode::Deadline, "the broker did not answer in time");
        }
    }

    /// Answers a connection.
    pub(super) fn answer(self: &Rc<Self>, mut ticket: Ticket, reply: Reply) {
        let content = encode(reply);
        let to = Addressee {
            kind: ticket.kind.as_u16(),
            correlation: ticket.correlation,
            request: Some((ticket.kind, ticket.arrived)),
        };
        let charge = ticket.take_promise().unwrap_or_else(|| self.output.empty_charge());
        self.send(&ticket.connection, to, content, charge);
    }

    /// Queues an answer's frame. What it takes beyond its charge is taken whatever the pool says.
    pub(super) fn send(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        to: Addressee,
        (header, payload): (Vec<u8>, Vec<PayloadSlice>),
        mut charge: Charge,
    ) {
        let Addressee { kind, correlation, request } = to;
        let payload_bytes: usize = payload.iter().map(PayloadSlice::len).sum();
        // Bounded by what a fetch may ask for and by the largest batch.
        let payload_bytes_u32 = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
        let prelude = Prelude::answer(kind, correlation, &header, payload_bytes_u32).encode();
        charge.settle((PRELUDE_BYTES + header.len() + payload_bytes) as u64);
        let detached = payload.is_empty();
        let frame =
            OutFrame { prelude, header, payload, detached, request, queued: Instant::now(), _charge: charge };
        if connection.push(frame) {
            self.tell_flusher(connection);
        }
    }

    pub(super) fn tell_flusher(&self, connection: &Rc<Connection>) {
        self.to_flush.borrow_mut().push_back(Rc::clone(connection));
        self.flusher.notify();
    }

    /// Takes a connection that ended off the shard's list, and all that waits for it with it.
    pub(super) fn retire(self: &Rc<Self>, connection: &Rc<Connection>) {
        if connection.in_flight.get() > 0 {
            let waiting = self.pending.borrow().matching(|waiting| waiting.owner.is(connection));
            for request in waiting {
                self.forget(request);
                self.abandon(request);
            }
        }
        self.remove_connection(connection);
    }

    /// Nobody waits for this answer any more.
    pub(super) fn abandon(&self, request: RequestId) {
        drop(self.take_waiting(request));
    }

    /// Tells whoever was asked that nobody waits any more; parked fetches then go. Appends stay.
    pub(super) fn forget(&self, request: RequestId) {
        let asked = self.pending.borrow().get(request).map(|waiting| waiting.asked);
        match asked {
            Some(Asked::Shard(shard)) if shard == self.shard => self.submit(Input::Forget { request }),
            Some(Asked::Shard(shard)) => {
                let message = ToShard::Forget { from: self.shard, request };
                // Without room the fetch stays parked until its own deadline.
                drop(self.requests[usize::from(shard.get())].try_send(message));
            }
            Some(Asked::Control) | None => {}
        }
    }

    /// What the refusal of a request that must wait says.
    pub(super) fn throttled(&self, why: &str) -> Reply {
        self.metrics.throttled.add(1);
        let refusal = Refusal { throttle_ms: THROTTLE_MS, ..refusal(ErrorCode::Throttled, why) };
        Reply::Message(Answer::Refused { kind: Kind::Hello, refusal })
    }
}

/// A refusal with what went wrong and what to do.
pub(super) fn refusal(code: ErrorCode, why: &str) -> Refusal {
    Refusal::new(code, explained(code, why))
}

/// What went wrong and what to do.
pub(super) fn explained(code: ErrorCode, why: &str) -> String {
    match (code, why) {
        (ErrorCode::None, why) => why.to_owned(),
        (code, "") => code.help().to_owned(),
        (code, why) if why.contains(code.help()) => why.to_owned(),
        (code, why) => format!("{why}. {}", code.help()),
    }
}

/// The header of an answer and the payload that goes with it.
fn encode(reply: Reply) -> (Vec<u8>, Vec<PayloadSlice>) {
    match reply {
        Reply::Fetched(rows) => fetched(rows),
        Reply::Message(mut answer) => {
            explain(&mut answer);
            (answer.encode(), Vec::new())
        }
    }
}

/// Says what to do where the shard only said what is wrong.
fn explain(answer: &mut Answer) {
    match answer {
        Answer::Produce(answer) => {
            for row in answer.rows.iter_mut().filter(|row| row.error != ErrorCode::None) {
                row.message = explained(row.error, &row.message);
            }
        }
        Answer::Refused { refusal, .. } => refusal.message = explained(refusal.code, &refusal.message),
        _ => {}
    }
}

/// The header of a fetch's answer, and its payload row after row. Batches are multiples of 8 bytes, so rows are aligned.
fn fetched(rows: Vec<FetchReadyRow>) -> (Vec<u8>, Vec<PayloadSlice>) {
    let mut payload = Vec::new();
    let mut first_byte = 0;
    let rows = rows
        .into_iter()
        .map(|row| {
            let bytes: usize = row.slices.iter().map(PayloadSlice::len).sum();
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            payload.extend(row.slices);
            let fetched = FetchedRow {
                tp: row.tp,
                error: row.error,
                message: explained(row.error, &row.message),
                high_watermark: row.high_watermark,
                log_start: row.log_start,
                log_end: row.log_end,
                leader_epoch: row.leader_epoch,
                first_byte,
                bytes,
                next_offset: row.next_offset,
            };
            first_byte = first_byte.saturating_add(bytes);
            fetched
        })
        .collect();
    (FetchAnswer { throttle_ms: 0, rows }.encode(), payload)
}

/// When a request is answered at the latest, whoever failed to.
pub(super) fn last_moment(config: &NetConfig, wait_max: Option<std::time::Duration>) -> Instant {
    Instant::now() + wait_max.unwrap_or(config.request_deadline) + super::config::DEADLINE_GRACE
}
