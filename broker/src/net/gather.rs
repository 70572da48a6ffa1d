//! One request whose rows belong to several shards, until their answers are one.
//!
//! Called by `request` (begin) and `reply` (a part answered). Who gets which rows and when a fetch is complete is
//! `merge`'s to decide. Invariant: the ticket is answered once, when the merge says so.

use super::Inner;
use super::connection::Connection;
use super::merge::{AnswerRow, FetchRound, FetchStep, Rows, Split};
use super::mesh::{Ask, FetchAsk, Reply};
use super::reply::{Owner, Ticket, last_moment};
use super::seam::FetchReadyRow;
use corelog_core::shard::RequestId;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{ShardId, TopicPartition};
use corelog_wire::message::{
    Answer, DeleteRecordsAnswer, DeletedRow, ListOffsetsAnswer, ListedRow, ProduceAnswer, ProducedRow,
    Refusal,
};
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

/// A fetch across shards.
#[derive(Debug)]
pub(super) struct FetchGather {
    pub(super) rows: Rows<FetchReadyRow>,
    pub(super) round: FetchRound,
    /// What each part is asked if all are to wait.
    pub(super) again: Vec<FetchAsk>,
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
        let gather = Rc::new(RefCell::new(Gather { ticket: Some(ticket), parts, missing, rows }));
        if asks.is_empty() {
            self.finish(&gather);
        } else {
            self.ask_parts(&gather, asks);
        }
    }

    fn ask_parts(self: &Rc<Self>, gather: &Rc<RefCell<Gather>>, asks: Vec<(ShardId, Ask)>) {
        for (part, (shard, ask)) in asks.into_iter().enumerate() {
            // A part that is refused within the call may have ended the whole: nobody waits for the others then.
            if gather.borrow().ticket.is_none() {
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
        if gather.borrow().ticket.is_none() {
            // The rows have left already.
            return;
        }
        let step = gather.borrow_mut().take(part, reply);
        match step {
            FetchStep::Wait => {}
            FetchStep::Answer => self.finish(gather),
            FetchStep::Park => {
                let asks = gather.borrow().asks_again(Instant::now());
                self.ask_parts(gather, asks);
            }
        }
    }

    /// Answers the client and tells the parts that still wait.
    fn finish(self: &Rc<Self>, gather: &Rc<RefCell<Gather>>) {
        let mut done = gather.borrow_mut();
        let Some(ticket) = done.ticket.take() else { return };
        let waiting: Vec<RequestId> = done.parts.iter_mut().filter_map(|part| part.request.take()).collect();
        let reply = done.rows.reply();
        drop(done);
        for request in waiting {
            self.forget(request);
            self.abandon(request);
        }
        self.answer(ticket, reply);
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
                something = answered.iter().any(|row| row.error != ErrorCode::None || !row.slices.is_empty());
                fetch.rows.fill(&places, answered);
            }
            (rows, Reply::Message(Answer::Refused { refusal, .. })) => rows.refuse(asked, &refusal),
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

    /// What each part of a fetch is asked when all are to wait.
    fn asks_again(&self, now: Instant) -> Vec<(ShardId, Ask)> {
        let Gathered::Fetched(fetch) = &self.rows else { return Vec::new() };
        let wait_max: Duration = fetch.until.saturating_duration_since(now);
        let asks = self.parts.iter().zip(&fetch.again);
        asks.map(|(part, again)| (part.shard, Ask::Fetch(FetchAsk { wait_max, ..again.clone() }))).collect()
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
