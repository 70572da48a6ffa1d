//! What a consumer commits, and who waits for it.
//!
//! Part of `consumer`; its invariants hold here. One commit is under way at a time; what is wanted meanwhile makes the
//! next one together, so that a later commit never arrives before an earlier one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{LeaderEpoch, Offset, TopicId, TopicPartition};
use corelog_wire::message::{
    OFFSET_METADATA_BYTES_MAX, OffsetCommitAnswer, OffsetCommitRequest, OffsetRow, Request,
    is_offset_metadata,
};

use super::{CommitMode, Consumer, ConsumerEvent, Out, Phase, Share, Stage, outgoing};
use crate::core::{Batch, Effect, RequestId};
use crate::error::Error;

/// How far records are done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The next record to read.
    pub offset: u64,
    /// The epoch of the record before it.
    pub leader_epoch: LeaderEpoch,
    /// What is to be remembered with it.
    pub metadata: String,
}

impl Progress {
    /// A batch is done with.
    #[must_use]
    pub fn after(batch: &Batch) -> Self {
        Self { offset: batch.next_offset(), leader_epoch: batch.leader_epoch(), metadata: String::new() }
    }

    /// Everything below this offset is done with.
    #[must_use]
    pub fn at(offset: u64) -> Self {
        Self { offset, leader_epoch: LeaderEpoch::new(0), metadata: String::new() }
    }
}

/// Names a commit that a user waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(u64);

/// Somebody waits for these to be committed.
#[derive(Debug)]
struct Ticket {
    id: CommitId,
    places: BTreeSet<TopicPartition>,
}

/// A commit under way.
#[derive(Debug)]
struct Flight {
    request: RequestId,
    rows: BTreeMap<TopicPartition, Progress>,
    tickets: Vec<Ticket>,
}

#[derive(Debug, Default)]
pub(super) struct Commits {
    wanted: BTreeMap<TopicPartition, Progress>,
    tickets: Vec<Ticket>,
    flight: Option<Flight>,
    attempts: u32,
    again_at: Option<Instant>,
    /// When the consumer last committed by itself.
    last: Option<Instant>,
    next_id: u64,
}

impl Commits {
    /// A commit does not go back: what is more and was wanted before stays.
    pub(super) fn want(&mut self, tp: TopicPartition, progress: Progress) {
        if self.wanted.get(&tp).is_none_or(|before| before.offset <= progress.offset) {
            self.wanted.insert(tp, progress);
        }
    }

    /// Nothing is wanted any more; what is under way is.
    pub(super) fn forget_wanted(&mut self) {
        self.wanted.clear();
    }

    /// Wants it unless as much is wanted or under way.
    fn want_more(&mut self, tp: TopicPartition, done: &Progress) {
        let flying = self.flight.as_ref().and_then(|flight| flight.rows.get(&tp));
        if [flying, self.wanted.get(&tp)].into_iter().flatten().all(|other| other.offset < done.offset) {
            self.wanted.insert(tp, done.clone());
        }
    }

    /// Whether nothing of a partition is on its way.
    fn is_clear_of(&self, tp: TopicPartition) -> bool {
        let flies = self.flight.as_ref().is_some_and(|flight| flight.rows.contains_key(&tp));
        !flies && !self.wanted.contains_key(&tp)
    }

    /// Nothing more comes of what was wanted.
    pub(super) fn fail_all(&mut self, error: &Error, out: &mut Out) {
        self.wanted.clear();
        let flying = self.flight.take().map(|flight| flight.tickets).unwrap_or_default();
        let tickets = flying.into_iter().chain(self.tickets.drain(..));
        let ended = |ticket: Ticket| Effect::Event(ConsumerEvent::Committed(ticket.id, Err(error.clone())));
        out.extend(tickets.map(ended));
        (self.attempts, self.again_at) = (0, None);
    }
}

/// What was granted is lost, and with it what was not committed.
pub(super) fn session_over() -> Error {
    Error::refused(ErrorCode::UnknownMember, "the session in the group has ended")
}

impl Consumer {
    /// Commits this; [`ConsumerEvent::Committed`] says what became of it. [`super::Input::Tick`] makes it so.
    ///
    /// # Errors
    /// [`Error::Usage`] for a partition that is not this consumer's, and metadata that no group takes; [`Error::Closed`].
    pub fn commit_offsets(&mut self, offsets: Vec<(Share, Progress)>) -> Result<CommitId, Error> {
        if self.phase != Phase::Open {
            return Err(Error::Closed);
        }
        let mut wanted = Vec::with_capacity(offsets.len());
        for (share, progress) in offsets {
            if !is_offset_metadata(&progress.metadata) {
                return Err(Error::usage(format!(
                    "metadata of a commit has at most {OFFSET_METADATA_BYTES_MAX} bytes, none of them control characters"
                )));
            }
            wanted.push((self.place_of(&share)?, progress));
        }
        Ok(self.commit_places(wanted))
    }

    /// Where the group begins is committed before anything is read there: a member that ends without a word leaves the place to
    /// the next, and nobody seems to be behind who has nothing to read.
    pub(super) fn note_beginnings(&mut self, topic: TopicId) {
        let Some(reader) = self.readers.get(&topic) else { return };
        let all = TopicPartition::new(topic, 0)..=TopicPartition::new(topic, u32::MAX);
        let known = self.beginnings.range(all);
        let known: Vec<(TopicPartition, u64)> =
            known.filter_map(|tp| Some((*tp, reader.machine.confirmed_position(tp.partition)?))).collect();
        for (tp, position) in known {
            self.beginnings.remove(&tp);
            let part = self.parts.get_mut(&tp);
            let Some(part) = part.filter(|part| part.committed.is_none() && part.given.is_none()) else {
                continue;
            };
            match self.config.commit {
                CommitMode::After(_) => {
                    (part.given, part.done) = (Some(Progress::at(position)), Some(Progress::at(position)));
                }
                CommitMode::Before => self.commits.want_more(tp, &Progress::at(position)),
                CommitMode::Manual => {}
            }
        }
    }

    /// What a tag filter leaves out is done with where the user has nothing and nothing waits for him.
    pub(super) fn pass_over(&mut self, topic: TopicId) {
        let Some(reader) = self.readers.get(&topic) else { return };
        let all = TopicPartition::new(topic, 0)..=TopicPartition::new(topic, u32::MAX);
        for (tp, part) in self.parts.range_mut(all) {
            if part.is_with_user() || self.early.iter().any(|(early, _)| early == tp) {
                continue;
            }
            let done = part.done.as_ref().map(|done| done.offset).or(part.committed);
            if let Some(position) = reader.machine.confirmed_position(tp.partition)
                && done.is_none_or(|done| done < position)
            {
                (part.given, part.done) = (Some(Progress::at(position)), Some(Progress::at(position)));
            }
        }
    }

    /// From now on, [`Consumer::done_with`] says how far the user is.
    ///
    /// # Errors
    /// [`Error::Usage`] unless commits are the consumer's affair.
    pub fn by_record(&mut self) -> Result<(), Error> {
        if !matches!(self.config.commit, CommitMode::After(_)) {
            return Err(Error::usage("this commits by itself what is done: use CommitMode::After"));
        }
        (self.by_record, self.listens) = (true, true);
        Ok(())
    }

    /// Of a partition everything that was given is done with up to an offset. Nothing changes for one that is not here any
    /// more.
    pub fn done_with(&mut self, now: Instant, share: &Share, offset: u64) {
        let part = self.place_of(share).ok().and_then(|tp| self.parts.get_mut(&tp));
        if let Some(part) = part
            && let Some(given) = part.given.as_ref().filter(|given| offset <= given.offset)
            && part.done.as_ref().is_none_or(|done| done.offset < offset)
        {
            part.done = Some(Progress { offset, ..given.clone() });
            self.taken_at = Some(now);
        }
    }

    /// Commits all that was taken so far. As [`Consumer::commit_offsets`].
    ///
    /// # Errors
    /// [`Error::Closed`]; `UNKNOWN_MEMBER` as [`Error::Refused`] if the session has ended since something was taken that is not
    /// committed: others work on it.
    pub fn commit_taken(&mut self) -> Result<CommitId, Error> {
        if self.phase != Phase::Open {
            return Err(Error::Closed);
        }
        if self.lost_taken {
            return Err(session_over());
        }
        let ahead = |(&tp, part): (&TopicPartition, &super::Part)| {
            let given = part.given.as_ref()?;
            part.committed.is_none_or(|committed| committed < given.offset).then(|| (tp, given.clone()))
        };
        let wanted = self.parts.iter().filter_map(ahead).collect();
        Ok(self.commit_places(wanted))
    }

    fn commit_places(&mut self, wanted: Vec<(TopicPartition, Progress)>) -> CommitId {
        let id = CommitId(self.commits.next_id);
        self.commits.next_id += 1;
        let places = wanted.iter().map(|(tp, _)| *tp).collect();
        for (tp, progress) in wanted {
            self.commits.want(tp, progress);
        }
        self.commits.tickets.push(Ticket { id, places });
        id
    }

    /// Whether nothing is left to commit.
    pub(super) fn has_committed(&self) -> bool {
        let automatic = matches!(self.config.commit, CommitMode::After(_));
        let open = automatic && self.parts.values().any(|part| part.uncommitted().is_some());
        !open && self.commits.wanted.is_empty() && self.commits.flight.is_none()
    }

    /// Whether a partition may be let go of as far as commits go.
    pub(super) fn is_settled(&self, tp: TopicPartition) -> bool {
        let automatic = matches!(self.config.commit, CommitMode::After(_));
        let open = automatic && self.parts.get(&tp).is_some_and(|part| part.uncommitted().is_some());
        !open && self.commits.is_clear_of(tp)
    }

    /// Sends what is due.
    pub(super) fn commit(&mut self, now: Instant, out: &mut Out) {
        if let CommitMode::After(every) = self.config.commit {
            let due = self.commits.last.is_none_or(|last| last + every <= now);
            let closing = self.phase != Phase::Open;
            for (tp, part) in &self.parts {
                if let Some(done) = part.uncommitted()
                    && (due || closing || part.stage == Stage::Letting)
                {
                    self.commits.want_more(*tp, done);
                    self.commits.last = Some(now);
                }
            }
        }
        // What was already committed, or never taken, needs no request.
        for ticket in self.commits.tickets.extract_if(.., |ticket| ticket.places.is_empty()) {
            out.push(Effect::Event(ConsumerEvent::Committed(ticket.id, Ok(()))));
        }
        let waits = self.commits.again_at.is_some_and(|at| now < at);
        if self.commits.flight.is_some() || waits || !self.member.is_joined() {
            return;
        }
        let tickets = std::mem::take(&mut self.commits.tickets);
        let rows = std::mem::take(&mut self.commits.wanted);
        if rows.is_empty() {
            return;
        }
        let request = self.request();
        let row = |(&tp, progress): (&TopicPartition, &Progress)| OffsetRow {
            tp,
            offset: Offset::new(progress.offset),
            leader_epoch: progress.leader_epoch,
            metadata: progress.metadata.clone(),
        };
        let commit = OffsetCommitRequest {
            group: self.config.group.clone(),
            member: Some(self.member.name()),
            rows: rows.iter().map(row).collect(),
        };
        let deadline = now + self.config.wishes.session_timeout;
        out.push(Effect::Send(outgoing(request, Request::OffsetCommit(commit), deadline)));
        self.commits.flight = Some(Flight { request, rows, tickets });
    }

    pub(super) fn commit_deadline(&self) -> Option<Instant> {
        let again = self.commits.again_at.filter(|_| !self.commits.wanted.is_empty());
        let CommitMode::After(every) = self.config.commit else { return again };
        let open =
            self.commits.flight.is_none() && self.parts.values().any(|part| part.uncommitted().is_some());
        let due = self.commits.last.filter(|_| open).map(|last| last + every);
        [again, due].into_iter().flatten().min()
    }

    pub(super) fn commit_answered(
        &mut self,
        now: Instant,
        id: RequestId,
        answer: &OffsetCommitAnswer,
        out: &mut Out,
    ) {
        let Some(flight) = self.commits.flight.take_if(|flight| flight.request == id) else { return };
        if !answer.rows.iter().map(|row| &row.tp).eq(flight.rows.keys()) {
            self.commits.flight = Some(flight);
            return self.failed(
                now,
                id,
                &Error::protocol("the rows do not match the request"),
                Duration::ZERO,
                out,
            );
        }
        (self.commits.attempts, self.commits.again_at) = (0, None);
        let mut errors = BTreeMap::new();
        for (row, (tp, progress)) in answer.rows.iter().zip(&flight.rows) {
            if row.error != ErrorCode::None {
                errors.insert(*tp, Error::refused(row.error, &row.message));
                self.commit_refused(*tp);
            } else if let Some(part) = self.parts.get_mut(tp) {
                part.committed = Some(part.committed.map_or(progress.offset, |was| was.max(progress.offset)));
            }
        }
        for Ticket { id, places } in flight.tickets {
            let error = places.iter().find_map(|tp| errors.get(tp)).cloned();
            out.push(Effect::Event(ConsumerEvent::Committed(id, error.map_or(Ok(()), Err))));
        }
        let lost =
            |error: &Error| matches!(error.code(), Some(ErrorCode::UnknownMember | ErrorCode::FencedMember));
        if errors.values().any(lost) {
            self.rejoin(now, out);
        }
        out.push(Effect::Event(ConsumerEvent::Changed));
    }

    /// The group has given the partition to somebody else, or it is gone: nothing of it is to be committed again.
    fn commit_refused(&mut self, tp: TopicPartition) {
        self.commits.wanted.remove(&tp);
        self.early.retain(|(early, _)| *early != tp);
        if let Some(part) = self.parts.get_mut(&tp) {
            part.done = None;
            part.given = None;
        }
    }

    /// A commit failed. Gives false if it was none.
    pub(super) fn commit_failed(
        &mut self,
        now: Instant,
        id: RequestId,
        error: &Error,
        throttle: Duration,
        out: &mut Out,
    ) -> bool {
        let Some(flight) = self.commits.flight.take_if(|flight| flight.request == id) else { return false };
        self.commits.attempts = self.commits.attempts.saturating_add(1);
        let backoff = self.config.reader.backoff;
        let wait = if error.is_retriable() {
            backoff.after(self.commits.attempts, &mut self.random)
        } else {
            backoff.max
        };
        self.commits.again_at = Some(now + wait.max(throttle));
        if error.is_retriable() {
            // A commit that may have happened may happen again.
            for (tp, progress) in flight.rows {
                self.commits.want_more(tp, &progress);
            }
            let later = std::mem::replace(&mut self.commits.tickets, flight.tickets);
            self.commits.tickets.extend(later);
            return true;
        }
        let ended = |ticket: Ticket| Effect::Event(ConsumerEvent::Committed(ticket.id, Err(error.clone())));
        out.extend(flight.tickets.into_iter().map(ended));
        self.complaint = Some(error.clone());
        out.push(Effect::Event(ConsumerEvent::Changed));
        true
    }
}
