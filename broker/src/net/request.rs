//! What a request asks for: checked at the door, cut by shard, handed to whoever can answer it.
//!
//! Called by a connection's reading side, in the order of its requests. Invariants: what reaches a shard is checked and
//! belongs to it, as far as the view of the topics is right; whoever cannot take a request at once refuses it. This file
//! refuses to know sockets.

use super::Inner;
use super::budget::Charge;
use super::config::{ANSWER_HEADER_BYTES_MAX, DEADLINE_GRACE, THROTTLE_MS};
use super::connection::Connection;
use super::gather::{FetchGather, Gathered, begin};
use super::merge::{FetchRound, Part, Route, Split, route};
use super::mesh::{Ask, FetchAsk, Reply, ToShard};
use super::read::Stop;
use super::reply::{Asked, Owner, Ticket, Waiting, last_moment, refusal};
use super::seam::ControlRequest;
use super::serve::Frame;
use bytes::Bytes;
use corelog_core::limits;
use corelog_core::shard::{FetchRow, ProduceRow, RequestId};
use corelog_wire::batch::{BatchLimits, CheckedBatch};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{CorrelationId, ShardId, TopicPartition};
use corelog_wire::message::{
    Acks, Answer, DeleteRecordsRow, FetchRequest, ListOffsetsRow, ProduceRequest, Refusal, Request,
};
use futures_lite::future::or;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

/// What a description of a group has beside its partitions: its members.
const GROUP_TEXT_BYTES: u64 = 512 << 10;

/// What a listing of groups takes at most.
const LISTED_GROUPS_BYTES: u64 = 512 << 10;

/// What the answer to a request needs to know of it.
struct Envelope {
    correlation: CorrelationId,
    arrived: Instant,
    bytes: usize,
    charge: Charge,
}

impl Inner {
    /// Hands on one request after Hello.
    pub(super) async fn request(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        frame: Frame,
    ) -> Result<(), Stop> {
        let Frame { correlation, request, payload, payload_bytes, charge, arrived } = frame;
        let kind = request.kind();
        if self.draining.get() {
            self.refuse(
                connection,
                kind.as_u16(),
                correlation,
                ErrorCode::ShuttingDown,
                "the broker is stopping",
            );
            return Ok(());
        }
        let envelope = Envelope { correlation, arrived, bytes: payload_bytes, charge };
        let ticket = |envelope: Envelope| {
            let Envelope { correlation, arrived, bytes, charge } = envelope;
            Ticket::new(Rc::clone(connection), kind, correlation, arrived, bytes, charge)
        };
        if self.pending.borrow().len() >= self.config.requests_max {
            let reply = self.throttled("the broker has too many requests under way");
            self.answer(ticket(envelope), reply);
            return Ok(());
        }
        match request {
            Request::Produce(produce) => self.produce(produce, payload, || ticket(envelope)).await,
            Request::Fetch(fetch) => {
                let bytes_max = fetch.max_bytes.min(connection.window_bytes.get());
                let reserved = self.room_for_answer(connection, bytes_max.into()).await?;
                let mut ticket = ticket(envelope);
                ticket.promise(bytes_max.into(), reserved);
                self.fetch(fetch, bytes_max, ticket);
            }
            Request::ListOffsets(list) => self.list_offsets(list.rows, ticket(envelope)),
            Request::DeleteRecords(delete) => self.delete_records(&delete.rows, ticket(envelope)),
            request @ (Request::Metadata(_)
            | Request::CreateTopic(_)
            | Request::DeleteTopic(_)
            | Request::AlterTopic(_)
            | Request::DescribeTopic(_)
            | Request::InitProducerId(_)) => {
                // Without a listing what these bring is small; they wait for room and take none.
                let bytes = self.listing_bytes(&request);
                let reserved = self.room_for_answer(connection, bytes).await?;
                let mut ticket = ticket(envelope);
                // The connection is read on meanwhile: how long the control thread takes is not its doing.
                ticket.reserve(reserved);
                self.consult(&self.doors.control, request, ANSWER_HEADER_BYTES_MAX, ticket);
            }
            request @ (Request::GroupHeartbeat(_)
            | Request::OffsetCommit(_)
            | Request::OffsetFetch(_)
            | Request::ListGroups(_)
            | Request::DescribeGroup(_)
            | Request::DeleteGroup(_)) => {
                let bytes = self.listing_bytes(&request);
                let reserved = self.room_for_answer(connection, bytes).await?;
                let mut ticket = ticket(envelope);
                match &request {
                    // It is held while nothing changes for the member.
                    Request::GroupHeartbeat(heartbeat) if heartbeat.max_wait_ms > 0 => ticket.park(),
                    _ => ticket.reserve(reserved),
                }
                // Of a list there is no more than there is room for; all else is small.
                let bytes_max = if bytes > 0 { bytes } else { ANSWER_HEADER_BYTES_MAX };
                self.consult(&self.doors.groups, request, bytes_max, ticket);
            }
            // Answered by `serve` before it comes here.
            Request::Hello(_) => {}
        }
        Ok(())
    }

    /// What the lists in an answer take at most.
    fn listing_bytes(&self, request: &Request) -> u64 {
        let bytes = match request {
            Request::Metadata(metadata) => self.view().listing_bytes(metadata.topics.as_ref().map(Vec::len)),
            Request::DescribeTopic(_) => self.view().listing_bytes(Some(1)),
            // A row for each partition at most, with a text of some hundred bytes; a longer list is refused.
            Request::OffsetFetch(_) | Request::DescribeGroup(_) => {
                GROUP_TEXT_BYTES + 4 * self.view().listing_bytes(None)
            }
            Request::ListGroups(_) => LISTED_GROUPS_BYTES,
            _ => 0,
        };
        bytes.min(ANSWER_HEADER_BYTES_MAX)
    }

    /// Waits until there is room among the answers that clients have not taken yet.
    async fn room_for_answer(&self, connection: &Connection, bytes: u64) -> Result<Charge, Stop> {
        let mut reserved = self.output.empty_charge();
        let bytes = bytes.min(self.output.bytes_max() / 4);
        or(reserved.grow(bytes), connection.wait_until(|_| false)).await;
        connection.ended().map_or(Ok(reserved), |end| Err(Stop(end)))
    }

    /// Checks the batches (one pass over each; others get their turn between two) and hands them on.
    async fn produce(
        self: &Rc<Self>,
        request: ProduceRequest,
        payload: Bytes,
        ticket: impl FnOnce() -> Ticket,
    ) {
        let ProduceRequest { acks, deadline_ms, rows } = request;
        let deadline = bounded(deadline_ms);
        let limits = BatchLimits { batch_bytes_max: limits::BATCH_BYTES_MAX };
        let mut checked = Vec::with_capacity(rows.len());
        for row in rows {
            let first = row.first_byte as usize;
            // Within the payload: the rows were held against it when the header was read.
            let batch = payload.slice(first..first + row.bytes as usize);
            let batch = CheckedBatch::check(batch, row.tp, &limits)
                .map_err(|error| (error.code(), format!("{error}. {}", error.code().help())));
            checked.push(ProduceRow { tp: row.tp, batch });
            crate::rt::yield_if_needed().await;
        }
        drop(payload);
        let ask = |rows| Ask::Produce { acks, deadline, rows };
        let routed = route(checked, |row| self.place(row.tp));
        if acks == Acks::None {
            self.produce_silently(routed, ask);
            return;
        }
        match routed {
            Route::One(shard, rows) => self.ask_for(ticket(), shard, ask(rows)),
            Route::Many(split) => {
                let (places, rows) = begin(&split, |row: &ProduceRow| row.tp);
                let asks = split.parts.into_iter().map(|part| (part.shard, ask(part.rows))).collect();
                self.gather(ticket(), places, asks, Gathered::Produced(rows));
            }
        }
    }

    /// Nobody waits: rows that nobody owns, or that find no room on their way, are lost, as was asked for.
    fn produce_silently(self: &Rc<Self>, routed: Route<ProduceRow>, ask: impl Fn(Vec<ProduceRow>) -> Ask) {
        match routed {
            Route::One(shard, rows) => self.ask(shard, RequestId(0), ask(rows)),
            Route::Many(Split { parts, .. }) => {
                for part in parts {
                    self.ask(part.shard, RequestId(0), ask(part.rows));
                }
            }
        }
    }

    fn fetch(self: &Rc<Self>, request: FetchRequest, bytes_max: u32, ticket: Ticket) {
        let FetchRequest { max_wait_ms, min_bytes, max_bytes: _, rows, filter } = request;
        let bytes_min = min_bytes.min(bytes_max);
        let wait_max = bounded(max_wait_ms);
        let rows = rows.into_iter().map(|row| FetchRow {
            tp: row.tp,
            offset: row.offset,
            bytes_max: row.max_bytes,
            leader_epoch: row.leader_epoch,
        });
        let split = route(rows.collect(), |row: &FetchRow| self.place(row.tp)).into_split();
        let (places, rows) = begin(&split, |row: &FetchRow| row.tp);
        let parts = u32::try_from(split.parts.len()).unwrap_or(u32::MAX);
        let bytes_min = if parts == 1 { bytes_min } else { 1 };
        let round = FetchRound::new(split.parts.len(), !wait_max.is_zero(), !split.refused.is_empty());
        let part = |part: Part<FetchRow>| {
            let bytes_max = bytes_max / parts;
            let ask = FetchAsk {
                wait_max: Duration::ZERO,
                patience: wait_max,
                bytes_min,
                bytes_max,
                rows: part.rows,
                filter: filter.clone(),
            };
            (part.shard, ask)
        };
        let parts: Vec<(ShardId, FetchAsk)> = split.parts.into_iter().map(part).collect();
        let asks = parts.iter().map(|(shard, ask)| (*shard, Ask::Fetch(ask.clone()))).collect();
        let again = parts.into_iter().map(|(_, ask)| ask).collect();
        let until = Instant::now() + wait_max;
        let fetch = FetchGather { rows, round, again, bytes_min, until };
        self.gather(ticket, places, asks, Gathered::Fetched(fetch));
    }

    fn list_offsets(self: &Rc<Self>, rows: Vec<ListOffsetsRow>, ticket: Ticket) {
        match route(rows, |row| self.place(row.tp)) {
            Route::One(shard, rows) => self.ask_for(ticket, shard, Ask::ListOffsets(rows)),
            Route::Many(split) => {
                let (places, rows) = begin(&split, |row: &ListOffsetsRow| row.tp);
                let asks =
                    split.parts.into_iter().map(|part| (part.shard, Ask::ListOffsets(part.rows))).collect();
                self.gather(ticket, places, asks, Gathered::Listed(rows));
            }
        }
    }

    fn delete_records(self: &Rc<Self>, rows: &[DeleteRecordsRow], ticket: Ticket) {
        let rows = rows.iter().map(|row| (row.tp, row.before)).collect();
        match route(rows, |(tp, _)| self.place(*tp)) {
            Route::One(shard, rows) => self.ask_for(ticket, shard, Ask::DeleteRecords(rows)),
            Route::Many(split) => {
                let (places, rows) = begin(&split, |(tp, _)| *tp);
                let asks =
                    split.parts.into_iter().map(|part| (part.shard, Ask::DeleteRecords(part.rows))).collect();
                self.gather(ticket, places, asks, Gathered::Deleted(rows));
            }
        }
    }

    /// Asks one shard on behalf of a connection.
    fn ask_for(self: &Rc<Self>, ticket: Ticket, shard: ShardId, ask: Ask) {
        let until = last_moment(&self.config, ask.wait_max());
        let request = self.expect(shard, Owner::Connection(ticket), until);
        self.ask(shard, request, ask);
    }

    /// Names a request that this shard is going to ask of that one.
    pub(super) fn expect(&self, shard: ShardId, owner: Owner, until: Instant) -> RequestId {
        if shard != self.shard {
            self.forwarded_out.set(self.forwarded_out.get() + 1);
        }
        self.pending.borrow_mut().insert(Waiting { owner, asked: Asked::Shard(shard) }, until)
    }

    /// Asks a shard. A request that finds no room on its way to another shard is refused.
    pub(super) fn ask(self: &Rc<Self>, shard: ShardId, request: RequestId, ask: Ask) {
        if shard == self.shard {
            self.submit(ask.into_input(request));
            return;
        }
        let room = self.forwarded_out.get() <= self.config.forwarded_max;
        let message = ToShard::Request { from: self.shard, request, ask: Box::new(ask) };
        if room && self.requests[usize::from(shard.get())].try_send(message).is_ok() {
            self.metrics.forwarded.add(1);
        } else {
            let reply = self.throttled("too many requests wait for other shards of this broker");
            self.complete(request, reply);
        }
    }

    /// Asks an actor of the control thread.
    fn consult(
        self: &Rc<Self>,
        door: &mpsc::Sender<ControlRequest>,
        request: Request,
        answer_bytes_max: u64,
        ticket: Ticket,
    ) {
        let kind = ticket.kind;
        let until = Instant::now() + self.config.request_deadline + DEADLINE_GRACE;
        let (reply, answer) = oneshot::channel();
        let waiting = Waiting { owner: Owner::Connection(ticket), asked: Asked::Control };
        let id = self.pending.borrow_mut().insert(waiting, until);
        match door.try_send(ControlRequest { request, answer_bytes_max, reply }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                let reply = self.throttled("the broker has many requests of this kind under way");
                return self.complete(id, reply);
            }
            Err(TrySendError::Closed(_)) => {
                return self.fail(id, ErrorCode::ShuttingDown, "the broker is stopping");
            }
        }
        let net = Rc::clone(self);
        crate::rt::spawn(async move {
            let unanswered = || Answer::Refused {
                kind,
                refusal: Refusal {
                    throttle_ms: THROTTLE_MS,
                    ..refusal(ErrorCode::Deadline, "the broker gave the request up")
                },
            };
            let answer = answer.await.unwrap_or_else(|_| unanswered());
            net.complete(id, Reply::Message(answer));
        });
    }

    fn place(&self, tp: TopicPartition) -> super::seam::Place {
        self.view().place(tp)
    }
}

/// A wait that a client asked for, within what the broker allows.
fn bounded(wait_ms: u32) -> Duration {
    Duration::from_millis(wait_ms.into()).min(limits::REQUEST_DEADLINE_MAX)
}
