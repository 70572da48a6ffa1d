//! One request whose rows belong to several shards, until their answers are one; and every fetch.
//!
//! Called by `request` (begin) and `reply` (a part answered). Who gets which rows and when a fetch is complete is
//! `merge`'s to decide. Invariants: the ticket is answered once, when the merge says so; batches leave only within a
//! charge that was taken for them. A fetch that waits at the end of a log has none: if there is no room when it is
//! woken it lets go of what came, waits for its turn, and asks again.

use super::Inner;
use super::budget::{Charge, Pool};
use super::config::DEADLINE_GRACE;
use super::connection::Connection;
use super::merge::{AnswerRow, FetchRound, FetchStep, Rows, Split};
use super::mesh::{Ask, FetchAsk, Reply};
use super::reply::{Owner, Ticket, last_moment};
use super::seam::{FetchReadyRow, PayloadSlice};
use corelog_core::shard::{FetchRow, RequestId};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{ShardId, TopicPartition};
use corelog_wire::message::{
    Answer, DeleteRecordsAnswer, DeletedRow, ListOffsetsAnswer, ListedRow, ProduceAnswer, ProducedRow,
    Refusal,
};
use futures_lite::future::or;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The request and what is known of its answer.
#[derive(Debug)]
pub(super) struct Gather {
    /// Gone once it is answered.
    ticket: Option<Ticket>,
    parts: Vec<Asked>,
    /// Parts that have not answered yet.
    missing: usize,
    rows: Gathered,
    /// The answer, if the only part refused the whole.
    refused: Option<Reply>,
    /// Whether nobody is asked until there is room for the answer.
    waits_for_room: bool,
}

impl Gather {
    /// Whether parts are still of interest.
    fn is_open(&self) -> bool {
        self.ticket.is_some() && !self.waits_for_room
    }
}

/// One part.
#[derive(Debug)]
struct Asked {
    shard: ShardId,
    /// Its rows: place in the request, and partition.
    rows: Vec<(usize, TopicPartition)>,
    /// While it is under way.
    request: Option<RequestId>,
}

#[derive(Debug)]
pub(super) enum Gathered {
    Produced(Rows<ProducedRow>),
    Listed(Rows<ListedRow>),
    Deleted(Rows<DeletedRow>),
    Fetched(FetchGather),
}

/// A fetch.
#[derive(Debug)]
pub(super) struct FetchGather {
    pub(super) rows: Rows<FetchReadyRow>,
    pub(super) round: FetchRound,
    /// What each part is asked if it is asked again.
    pub(super) again: Vec<FetchAsk>,
    /// Bytes with which it need not wait.
    pub(super) bytes_min: u32,
    /// How long the client waits.
    pub(super) until: Instant,
}

impl Gather {
    pub(super) fn is_of(&self, connection: &Rc<Connection>) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| Rc::ptr_eq(&ticket.connection, connection))
    }
}

/// The places and partitions of each part, and an answer in which refused rows are filled in.
pub(super) fn begin<R, A: AnswerRow>(
    split: &Split<R>,
    tp: impl Fn(&R) -> TopicPartition,
) -> (Vec<Vec<(usize, TopicPartition)>>, Rows<A>) {
    let mut rows = Rows::new(split.row_count());
    for (place, row, code) in &split.refused {
        rows.set(*place, A::refused(tp(row), *code, code.help()));
    }
    let asked = split.parts.iter().map(|part| {
        let partitions = part.rows.iter().map(&tp);
        part.places.iter().copied().zip(partitions).collect()
    });
    (asked.collect(), rows)
}

impl Inner {
    /// Asks every part and answers when the merge is complete; at once if there is no part to ask.
    pub(super) fn gather(
        self: &Rc<Self>,
        ticket: Ticket,
        places: Vec<Vec<(usize, TopicPartition)>>,
        asks: Vec<(ShardId, Ask)>,
        rows: Gathered,
    ) {
        let parts = asks.iter().zip(places);
        let parts: Vec<_> =
            parts.map(|((shard, _), rows)| Asked { shard: *shard, rows, request: None }).collect();
        let missing = parts.len();
        let gather = Rc::new(RefCell::new(Gather {
            ticket: Some(ticket),
            parts,
            missing,
            rows,
            refused: None,
            waits_for_room: false,
        }));
        if asks.is_empty() {
            self.finish(&gather);
        } else {
            self.ask_parts(&gather, asks);
        }
    }

    fn ask_parts(self: &Rc<Self>, gather: &Rc<RefCell<Gather>>, asks: Vec<(ShardId, Ask)>) {
        for (part, (shard, ask)) in asks.into_iter().enumerate() {
            // A part that is answered within the call may have ended the whole: nobody waits for the others then.
            if !gather.borrow().is_open() {
                return;
            }
            let until = last_moment(&self.config, ask.wait_max());
            // Named before it is asked: it may be answered (refused) within the call.
            let request = self.expect(shard, Owner::Part { gather: Rc::clone(gather), part }, until);
            gather.borrow_mut().parts[part].request = Some(request);
            self.ask(shard, request, ask);
        }
    }

    /// One part answered.
    pub(super) fn part_answered(self: &Rc<Self>, gather: &Rc<RefCell<Gather>>, part: usize, reply: Reply) {
        if !gather.borrow().is_open() {
            // The rows have left already.
            return;
        }
        let step = gather.borrow_mut().take(part, reply);
        match step {
            FetchStep::Wait => {}
            FetchStep::Answer => self.finish(gather),
            FetchStep::Park => {
                let asks = gather.borrow_mut().park(Instant::now());
                self.ask_parts(gather, asks);
            }
        }
    }

    /// Tells the parts that still wait, and answers the client: at once if there is room for what came.
    fn finish(self: &Rc<Self>, gather: &Rc<RefCell<Gather>>) {
        let mut done = gather.borrow_mut();
        let waiting: Vec<RequestId> = done.parts.iter_mut().filter_map(|part| part.request.take()).collect();
        let short = done.short_of_room(&self.output);
        drop(done);
        for request in waiting {
            self.forget(request);
            self.abandon(request);
        }
        match short {
            None => self.answer_gathered(gather),
            Some((charge, bytes)) => {
                crate::rt::spawn(Rc::clone(self).ask_when_there_is_room(Rc::clone(gather), charge, bytes));
            }
        }
    }

    fn answer_gathered(self: &Rc<Self>, gather: &Rc<RefCell<Gather>>) {
        let mut done = gather.borrow_mut();
        let Some(ticket) = done.ticket.take() else { return };
        let reply = done.refused.take().unwrap_or_else(|| done.rows.reply());
        drop(done);
        self.answer(ticket, reply);
    }

    /// Asks the parts of a fetch again for what they have now, once its charge is so many bytes. If that takes longer
    /// than the client waits, it is answered without batches.
    async fn ask_when_there_is_room(
        self: Rc<Self>,
        gather: Rc<RefCell<Gather>>,
        mut charge: Charge,
        bytes: u64,
    ) {
        let patience = gather.borrow().patience(Instant::now()) + DEADLINE_GRACE;
        let more = bytes.saturating_sub(charge.bytes());
        // In two steps, because only who holds a part gets more than there is.
        let first = more.min(self.output.bytes_max() / 4);
        let room = async {
            charge.grow(first).await;
            if more > first {
                charge.grow(more - first).await;
            }
            true
        };
        let late = async {
            crate::rt::sleep(patience).await;
            false
        };
        if !or(room, late).await {
            return self.answer_gathered(&gather);
        }
        let asks = gather.borrow_mut().resume(charge, bytes, Instant::now());
        self.ask_parts(&gather, asks);
    }
}

impl Gather {
    /// Takes the answer of one part.
    fn take(&mut self, part: usize, reply: Reply) -> FetchStep {
        let Asked { rows: asked, request, .. } = &mut self.parts[part];
        *request = None;
        let places: Vec<usize> = asked.iter().map(|(place, _)| *place).collect();
        let mut something = true;
        match (&mut self.rows, reply) {
            (Gathered::Produced(rows), Reply::Message(Answer::Produce(answer))) => {
                rows.fill(&places, answer.rows);
            }
            (Gathered::Listed(rows), Reply::Message(Answer::ListOffsets(answer))) => {
                rows.fill(&places, answer.rows);
            }
            (Gathered::Deleted(rows), Reply::Message(Answer::DeleteRecords(answer))) => {
                rows.fill(&places, answer.rows);
            }
            (Gathered::Fetched(fetch), Reply::Fetched(answered)) => {
                something = fetch.is_worth_answering(part, &answered);
                if !something {
                    fetch.move_on(part, &answered);
                }
                fetch.rows.fill(&places, answered);
            }
            (rows, Reply::Message(Answer::Refused { kind, refusal })) => {
                rows.refuse(asked, &refusal);
                if self.parts.len() == 1 && places.len() == self.rows.count() {
                    self.refused = Some(Reply::Message(Answer::Refused { kind, refusal }));
                }
            }
            (rows, _) => {
                debug_assert!(false, "an answer of another kind");
                rows.refuse(asked, &Refusal::new(ErrorCode::Deadline, "the broker gave another answer"));
            }
        }
        if let Gathered::Fetched(fetch) = &mut self.rows {
            return fetch.round.answered(something);
        }
        self.missing -= 1;
        if self.missing == 0 { FetchStep::Answer } else { FetchStep::Wait }
    }

    /// Nothing to read anywhere: gives back what is held for the answer. What each part is asked, to wait this time.
    fn park(&mut self, now: Instant) -> Vec<(ShardId, Ask)> {
        let wait_max = self.patience(now);
        if let Some(ticket) = &mut self.ticket {
            ticket.park();
        }
        self.asks(|ask| FetchAsk { wait_max, patience: wait_max, ..ask })
    }

    /// There is room for so many bytes. What each part is asked, to answer with what there is.
    fn resume(&mut self, charge: Charge, bytes: u64, now: Instant) -> Vec<(ShardId, Ask)> {
        let patience = self.patience(now);
        let Some(ticket) = self.ticket.as_mut().filter(|ticket| ticket.connection.ended().is_none()) else {
            // Nobody waits any more.
            self.ticket = None;
            return Vec::new();
        };
        ticket.promise(bytes, charge);
        self.waits_for_room = false;
        let parts = self.parts.len();
        if let Gathered::Fetched(fetch) = &mut self.rows {
            fetch.round = FetchRound::new(parts, false, false);
        }
        self.asks(|ask| FetchAsk { patience, ..ask })
    }

    fn asks(&mut self, ask: impl Fn(FetchAsk) -> FetchAsk) -> Vec<(ShardId, Ask)> {
        let Gathered::Fetched(fetch) = &mut self.rows else { return Vec::new() };
        fetch.rows.drop_payload();
        let asks = self.parts.iter().zip(&fetch.again);
        asks.map(|(part, again)| (part.shard, Ask::Fetch(ask(again.clone())))).collect()
    }

    /// How much longer the client of a fetch waits.
    fn patience(&self, now: Instant) -> Duration {
        match &self.rows {
            Gathered::Fetched(fetch) => fetch.until.saturating_duration_since(now),
            _ => Duration::ZERO,
        }
    }

    /// Whether the batches at hand are more than there is room for: then they are let go, and this is the charge so
    /// far and what it must become.
    fn short_of_room(&mut self, pool: &Pool) -> Option<(Charge, u64)> {
        let (Some(ticket), Gathered::Fetched(fetch)) = (&mut self.ticket, &mut self.rows) else {
            return None;
        };
        let bytes = fetch.rows.payload_bytes();
        if ticket.covers(pool, bytes) {
            return None;
        }
        fetch.rows.drop_payload();
        self.waits_for_room = true;
        let charge = ticket.take_promise().unwrap_or_else(|| pool.empty_charge());
        Some((charge, bytes))
    }
}

impl FetchGather {
    /// Whether these rows of a part are worth an answer: an error, as many bytes as were asked for, or batches that were
    /// passed over with more behind them.
    fn is_worth_answering(&self, part: usize, rows: &[FetchReadyRow]) -> bool {
        let bytes: usize = rows.iter().flat_map(|row| &row.slices).map(PayloadSlice::len).sum();
        let moves = |(asked, row): (&FetchRow, &FetchReadyRow)| {
            row.next_offset.is_some_and(|next| asked.offset < next && next < row.high_watermark)
        };
        bytes >= self.bytes_min.max(1) as usize
            || rows.iter().any(|row| row.error != ErrorCode::None)
            || self.again[part].rows.iter().zip(rows).any(moves)
    }

    /// When a part is asked again, what was passed over need not be looked at once more.
    fn move_on(&mut self, part: usize, rows: &[FetchReadyRow]) {
        for (asked, row) in
            self.again[part].rows.iter_mut().zip(rows).filter(|(_, row)| row.slices.is_empty())
        {
            asked.offset = row.next_offset.map_or(asked.offset, |next| next.max(asked.offset));
        }
    }
}

impl Gathered {
    fn refuse(&mut self, asked: &[(usize, TopicPartition)], refusal: &Refusal) {
        let (code, message) = (refusal.code, &refusal.message);
        match self {
            Self::Produced(rows) => rows.refuse(asked, code, message),
            Self::Listed(rows) => rows.refuse(asked, code, message),
            Self::Deleted(rows) => rows.refuse(asked, code, message),
            Self::Fetched(fetch) => fetch.rows.refuse(asked, code, message),
        }
    }

    /// How many rows the answer has.
    fn count(&self) -> usize {
        match self {
            Self::Produced(rows) => rows.count(),
            Self::Listed(rows) => rows.count(),
            Self::Deleted(rows) => rows.count(),
            Self::Fetched(fetch) => fetch.rows.count(),
        }
    }

    fn reply(&mut self) -> Reply {
        match self {
            Self::Produced(rows) => {
                Reply::Message(Answer::Produce(ProduceAnswer { throttle_ms: 0, rows: rows.take() }))
            }
            Self::Listed(rows) => {
                Reply::Message(Answer::ListOffsets(ListOffsetsAnswer { rows: rows.take() }))
            }
            Self::Deleted(rows) => {
                Reply::Message(Answer::DeleteRecords(DeleteRecordsAnswer { rows: rows.take() }))
            }
            Self::Fetched(fetch) => Reply::Fetched(fetch.rows.take()),
        }
    }
}
