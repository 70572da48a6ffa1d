//! The consumer of a group: a member of it, and a reader for each topic that it got partitions of.
//!
//! A driver carries out the effects of [`Consumer::handle`], feeds the answers back and comes back at
//! [`Consumer::deadline`]; users take what comes with [`Consumer::take`]. What was taken before counts as done with when
//! they take again.
//!
//! Invariants: records are given only of partitions that the group granted, and only while its session must still
//! last; a partition is let go of only when its records are done with and, if commits are the consumer's affair,
//! committed; a commit never names more than was done with. Heartbeats go on while the user is slow, until
//! `processing_max`: then the consumer leaves by itself, and joins again when it is asked for more.
//!
//! It refuses to know sockets, and what the records are for.

mod commits;
mod config;
mod member;
mod part;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corelog_wire::ids::{TopicId, TopicPartition};
use corelog_wire::message::Answer;

use self::commits::Commits;
pub use self::commits::{CommitId, Progress};
pub use self::config::{CommitMode, ConsumerConfig};
use self::member::Member;
pub use self::part::Share;
use self::part::{Part, Stage};
use super::random::Random;
use super::{
    Batch, Effect, Input, Outgoing, Partitions, Reader, ReaderConfig, ReaderEvent, RequestId, Start, Target,
};
use crate::error::Error;

/// What a consumer gives.
#[derive(Clone, Debug)]
pub enum Taken {
    /// Records of one partition.
    Records(Batch),
    /// Partitions came.
    Assigned(Vec<Share>),
    /// Partitions are to be let go of. They are when the user takes again: what is done for them until then counts.
    Revoked(Vec<Share>),
    /// Partitions were lost with the session: others may work on them already, and nothing can be committed any more.
    Lost(Vec<Share>),
}

/// News for those who wait.
#[derive(Clone, Debug)]
pub enum ConsumerEvent {
    /// There may be something to take.
    Changed,
    /// A commit has ended.
    Committed(CommitId, Result<(), Error>),
}

/// One topic's reader.
#[derive(Debug)]
struct TopicReader {
    /// Of its requests.
    slot: u64,
    machine: Reader,
}

/// Batches that are committed together before they are given.
const EARLY_MAX: usize = 32;

/// Bits of a request's number that are a reader's own; those above say which reader it is, 0 is the consumer itself.
const SLOT_SHIFT: u32 = 40;

/// Why nothing more is given, for ever.
#[derive(Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// What is done is being committed, then the group is left; until then at most.
    Closing {
        until: Instant,
    },
    Closed,
}

type Out = Vec<Effect<ConsumerEvent>>;

/// The state of a consumer.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a state of its own")]
pub struct Consumer {
    config: ConsumerConfig,
    random: Random,
    member: Member,
    commits: Commits,
    parts: BTreeMap<TopicPartition, Part>,
    /// Those where nothing was committed and it is not known yet where the group begins.
    beginnings: BTreeSet<TopicPartition>,
    readers: BTreeMap<TopicId, TopicReader>,
    next_slot: u64,
    next_request: u64,
    /// What the user has not heard yet.
    news: VecDeque<Taken>,
    /// What the user took last was word of these leaving.
    told: BTreeSet<TopicPartition>,
    /// Whether the user wants to hear of partitions that come and go.
    listens: bool,
    /// Whether he says himself how far he is ([`Consumer::done_with`]), instead of by taking again.
    by_record: bool,
    /// Batches whose ends have to be committed before they are given.
    early: VecDeque<(TopicPartition, Batch)>,
    /// The topic whose turn it is to be taken from.
    turn: Option<TopicId>,
    /// When the user took last, or has had something to take since.
    taken_at: Option<Instant>,
    /// He found nothing when he took last, and nothing has come since.
    waits: bool,
    /// The user was away for too long; the group is joined again when he comes back.
    resting: bool,
    /// The session ended when something was taken and not committed, and the user has not taken again since.
    lost_taken: bool,
    /// What the user shall hear.
    complaint: Option<Error>,
    phase: Phase,
}

impl Consumer {
    /// A consumer that has done nothing yet: the first [`Input::Tick`] makes it join.
    ///
    /// # Errors
    /// As [`ConsumerConfig::check`].
    pub fn new(config: ConsumerConfig, seed: u64) -> Result<Self, Error> {
        config.check()?;
        let mut random = Random::new(seed);
        Ok(Self {
            member: Member::new(&mut random),
            commits: Commits::default(),
            parts: BTreeMap::new(),
            beginnings: BTreeSet::new(),
            readers: BTreeMap::new(),
            next_slot: 1,
            next_request: 0,
            news: VecDeque::new(),
            told: BTreeSet::new(),
            listens: false,
            by_record: false,
            early: VecDeque::new(),
            turn: None,
            taken_at: None,
            // Until there is something to take nobody is late.
            waits: true,
            resting: false,
            lost_taken: false,
            complaint: None,
            phase: Phase::Open,
            config,
            random,
        })
    }

    /// Takes an input; afterwards everything that can be asked for has been.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Out) {
        if self.phase == Phase::Closed {
            return;
        }
        self.route(now, input, out);
        if self.waits && self.is_ready() {
            (self.waits, self.taken_at) = (false, Some(now));
        }
        self.fence(now, out);
        self.limit_processing(now, out);
        self.let_go(now, out);
        self.fetch_offsets(now, out);
        self.commit(now, out);
        self.beat(now, out);
        self.close_when_done(now, out);
        debug_assert_eq!(self.broken_invariant(), None);
    }

    /// Hands an input to whom it concerns.
    fn route(&mut self, now: Instant, input: Input, out: &mut Out) {
        let id = match &input {
            Input::Answered { id, .. } | Input::Failed { id, .. } | Input::Sent { id } => *id,
            Input::Tick => {
                let topics: Vec<TopicId> = self.readers.keys().copied().collect();
                for topic in topics {
                    self.drive(now, topic, Input::Tick, out);
                }
                return;
            }
        };
        let slot = id.get() >> SLOT_SHIFT;
        if slot > 0 {
            // A reader that is gone asked for it otherwise.
            let reader = self.readers.iter().find(|(_, reader)| reader.slot == slot).map(|(topic, _)| *topic);
            if let Some(topic) = reader {
                let id = RequestId::new(id.get() & ((1 << SLOT_SHIFT) - 1));
                self.drive(now, topic, readdressed(input, id), out);
            }
            return;
        }
        match input {
            Input::Answered { id, answer, .. } => self.answered(now, id, answer, out),
            Input::Failed { id, error } => self.failed(now, id, &error, Duration::ZERO, out),
            Input::Sent { .. } | Input::Tick => {}
        }
    }

    fn answered(&mut self, now: Instant, id: RequestId, answer: Answer, out: &mut Out) {
        match answer {
            Answer::GroupHeartbeat(answer) => self.beat_answered(now, id, &answer, out),
            Answer::OffsetFetch(answer) => self.offsets_answered(now, id, &answer, out),
            Answer::OffsetCommit(answer) => self.commit_answered(now, id, &answer, out),
            Answer::Refused { refusal, .. } => {
                let throttle = Duration::from_millis(refusal.throttle_ms.into());
                self.failed(now, id, &refusal.into(), throttle, out);
            }
            _ => self.failed(now, id, &Error::protocol("an answer of another kind"), Duration::ZERO, out),
        }
    }

    /// Lets a reader work; its requests are sent under numbers of their own.
    fn drive(&mut self, now: Instant, topic: TopicId, input: Input, out: &mut Out) {
        let Some(reader) = self.readers.get_mut(&topic) else { return };
        let mut effects = Vec::new();
        reader.machine.handle(now, input, &mut effects);
        let slot = reader.slot << SLOT_SHIFT;
        out.extend(effects.into_iter().map(|effect| match effect {
            Effect::Send(outgoing) => {
                let id = RequestId::new(slot | outgoing.id.get());
                Effect::Send(Outgoing { id, ..outgoing })
            }
            Effect::Event(ReaderEvent::Changed) => Effect::Event(ConsumerEvent::Changed),
        }));
        self.note_beginnings(topic);
        if !self.config.reader.tags.is_empty() {
            self.pass_over(topic);
        }
    }

    /// What there is next, from each topic and partition in turn; none if there is nothing now. [`Input::Tick`] makes it
    /// go on.
    pub fn take(&mut self, now: Instant) -> Option<Result<Taken, Error>> {
        if self.phase != Phase::Open {
            return None;
        }
        let taken = self.take_next(now);
        self.waits = taken.is_none();
        taken
    }

    fn take_next(&mut self, now: Instant) -> Option<Result<Taken, Error>> {
        // Who says himself how far he is gets on by that, not by taking more.
        if !self.by_record || !self.is_with_user() {
            self.taken_at = Some(now);
        }
        (self.resting, self.lost_taken) = (false, false);
        self.came_back();
        if let Some(complaint) = self.complaint.take() {
            return Some(Err(complaint));
        }
        if let Some(news) = self.take_news() {
            return Some(news);
        }
        if !self.member.is_safe(now) {
            return None;
        }
        if self.config.commit == CommitMode::Before {
            return self.take_committed();
        }
        Some(self.take_batch()?.map(|(tp, batch)| self.give(tp, batch)))
    }

    /// The next batch whose end is committed. Those after it are committed meanwhile.
    fn take_committed(&mut self) -> Option<Result<Taken, Error>> {
        while self.early.len() < EARLY_MAX {
            match self.take_batch() {
                Some(Ok((tp, batch))) => {
                    if !self.is_committed(tp, &batch) {
                        self.commits.want(tp, Progress::after(&batch));
                    }
                    self.early.push_back((tp, batch));
                }
                Some(Err(error)) => return Some(Err(error)),
                None => break,
            }
        }
        let place = self.early.iter().position(|(tp, batch)| self.is_committed(*tp, batch))?;
        let (tp, batch) = self.early.remove(place)?;
        Some(Ok(self.give(tp, batch)))
    }

    /// Whether there is something to take.
    fn is_ready(&self) -> bool {
        let given_early = || self.early.iter().any(|(tp, batch)| self.is_committed(*tp, batch));
        let readers = || self.readers.values().any(|reader| reader.machine.is_ready());
        let records = if self.config.commit == CommitMode::Before && self.early.len() >= EARLY_MAX {
            given_early()
        } else {
            given_early() || readers()
        };
        records || self.complaint.is_some() || self.listens && !self.news.is_empty()
    }

    /// The user took again: what he had is done with, unless he says so himself.
    fn came_back(&mut self) {
        for (tp, part) in &mut self.parts {
            if !self.by_record {
                part.done.clone_from(&part.given);
            }
            // What is committed already has to be given, as nobody else will.
            let waits = self.early.iter().any(|(early, _)| early == tp);
            let free = part.stage == Stage::Leaving && !waits && !part.is_with_user();
            if free && (!self.listens || self.told.contains(tp)) {
                part.stage = Stage::Letting;
                self.told.remove(tp);
            }
        }
    }

    fn take_news(&mut self) -> Option<Result<Taken, Error>> {
        while let Some(news) = self.news.pop_front() {
            if let Taken::Revoked(shares) = &news {
                let told = |(tp, part): (&TopicPartition, &Part)| shares.contains(&part.share).then_some(*tp);
                self.told.extend(self.parts.iter().filter_map(told));
            }
            if self.listens {
                return Some(Ok(news));
            }
        }
        None
    }

    fn take_batch(&mut self) -> Option<Result<(TopicPartition, Batch), Error>> {
        let turn = self.turn.unwrap_or(TopicId::from_bytes([0; 16]));
        let later = self.readers.range(turn..).map(|(topic, _)| *topic);
        let topics: Vec<TopicId> = later.chain(self.readers.range(..turn).map(|(topic, _)| *topic)).collect();
        for topic in topics {
            let Some(taken) = self.readers.get_mut(&topic).and_then(|reader| reader.machine.take()) else {
                continue;
            };
            self.turn = self.readers.range(topic..).nth(1).map(|(topic, _)| *topic);
            let with_place = |batch: Batch| (TopicPartition::new(topic, batch.partition()), batch);
            return Some(taken.map(with_place));
        }
        None
    }

    fn give(&mut self, tp: TopicPartition, batch: Batch) -> Taken {
        if let Some(part) = self.parts.get_mut(&tp) {
            part.given = Some(Progress::after(&batch));
        }
        Taken::Records(batch)
    }

    fn is_committed(&self, tp: TopicPartition, batch: &Batch) -> bool {
        let committed = self.parts.get(&tp).and_then(|part| part.committed);
        committed.is_some_and(|committed| committed >= batch.next_offset())
    }

    /// From now on, [`Consumer::take`] also tells which partitions come and go.
    pub fn listen(&mut self) {
        self.listens = true;
    }

    /// Takes nothing from a partition until [`Consumer::resume`]; what is buffered stays.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is not this consumer's.
    pub fn pause(&mut self, share: &Share) -> Result<(), Error> {
        let (reader, partition) = self.reader_of(share)?;
        reader.pause(partition)
    }

    /// Takes from a partition again. [`Input::Tick`] makes it so.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is not this consumer's.
    pub fn resume(&mut self, share: &Share) -> Result<(), Error> {
        let (reader, partition) = self.reader_of(share)?;
        reader.resume(partition)
    }

    /// Goes on elsewhere in a partition; what was buffered is dropped. What is committed already stays so, if it is
    /// more. [`Input::Tick`] makes it so.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is not this consumer's.
    pub fn seek(&mut self, share: &Share, start: Start) -> Result<(), Error> {
        let place = self.place_of(share)?;
        self.early.retain(|(tp, _)| *tp != place);
        let (reader, partition) = self.reader_of(share)?;
        reader.seek(partition, start)?;
        // What was taken before has nothing to do with what will be.
        for part in self.parts.values_mut().filter(|part| part.share == *share) {
            (part.given, part.done) = (None, None);
            if part.committed.is_none() {
                self.beginnings.insert(place);
            }
        }
        Ok(())
    }

    fn reader_of(&mut self, share: &Share) -> Result<(&mut Reader, u32), Error> {
        let place = self.place_of(share)?;
        let reader = self.readers.get_mut(&place.topic).filter(|_| self.parts[&place].stage == Stage::Read);
        let reader = reader.ok_or_else(|| not_here(share))?;
        Ok((&mut reader.machine, place.partition))
    }

    fn place_of(&self, share: &Share) -> Result<TopicPartition, Error> {
        let place = self.parts.iter().find(|(_, part)| part.share == *share).map(|(tp, _)| *tp);
        place.ok_or_else(|| not_here(share))
    }

    /// The partitions that are read here.
    pub fn shares(&self) -> impl Iterator<Item = &Share> {
        let here = |part: &&Part| matches!(part.stage, Stage::Wanted | Stage::Read);
        self.parts.values().filter(here).map(|part| &part.share)
    }

    /// The partitions that this member may be at work on, which nobody else may then: for those who check that.
    pub fn holds(&self, now: Instant) -> impl Iterator<Item = TopicPartition> + '_ {
        let holds = self.member.is_safe(now) && !self.member.says_farewell();
        self.parts.keys().copied().filter(move |_| holds)
    }

    /// Which partition a batch is of, while that is this consumer's.
    #[must_use]
    pub fn place_of_batch(&self, batch: &Batch) -> Option<TopicPartition> {
        let is_its =
            |part: &Part| part.share.topic == *batch.topic() && part.share.partition == batch.partition();
        self.parts.iter().find(|(_, part)| is_its(part)).map(|(tp, _)| *tp)
    }

    /// How many offsets lie between the position in a partition and its high watermark; none until both are known.
    #[must_use]
    pub fn lag(&self, share: &Share) -> Option<u64> {
        let tp = self.place_of(share).ok()?;
        let reader = &self.readers.get(&tp.topic)?.machine;
        Some(reader.high_watermark(tp.partition)?.saturating_sub(reader.position(tp.partition)?))
    }

    /// Bytes that wait for the taker.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.readers.values().map(|reader| reader.machine.buffered_bytes()).sum()
    }

    /// Whether it ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether it gives nothing more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.phase != Phase::Open
    }

    /// Gives nothing more, takes what was taken for done with, commits it if commits are the consumer's affair, and
    /// leaves the group. [`Input::Tick`] makes it so.
    pub fn close(&mut self, now: Instant) {
        let taken = self.phase == Phase::Open && !self.by_record;
        for part in self.parts.values_mut().filter(|_| taken) {
            part.done.clone_from(&part.given);
        }
        self.drop_out(now);
    }

    /// As [`Consumer::close`], but nobody knows whether what was taken last is done with.
    pub fn drop_out(&mut self, now: Instant) {
        if self.phase != Phase::Open {
            return;
        }
        self.phase = Phase::Closing { until: now + self.config.close_patience };
        let all: Vec<TopicPartition> = self.parts.keys().copied().collect();
        for tp in all {
            self.stop_reading(tp);
        }
        self.readers.clear();
        if self.config.commit == CommitMode::Before {
            // What is not given any more is not to be committed.
            self.commits.forget_wanted();
            self.early.clear();
        }
    }

    /// Ends it here and now; the group finds out when the session is over.
    pub fn abandon(&mut self, out: &mut Out) {
        self.phase = Phase::Closed;
        self.readers.clear();
        self.commits.fail_all(&Error::Closed, out);
        out.push(Effect::Event(ConsumerEvent::Changed));
    }

    fn close_when_done(&mut self, now: Instant, out: &mut Out) {
        let Phase::Closing { until } = self.phase else { return };
        if self.member.has_left() || now >= until {
            self.abandon(out);
        }
    }

    /// When to come back with a tick, if nothing happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if self.phase == Phase::Closed {
            return None;
        }
        let closing = match self.phase {
            Phase::Closing { until } => Some(until),
            Phase::Open | Phase::Closed => None,
        };
        let readers = self.readers.values().filter_map(|reader| reader.machine.deadline());
        let own = [closing, self.member.deadline(), self.commit_deadline(), self.processing_deadline()];
        own.into_iter().flatten().chain(readers).min()
    }

    /// Until when the user has to come back.
    fn processing_deadline(&self) -> Option<Instant> {
        let takes = !self.waits && (self.is_with_user() || !self.told.is_empty() || self.is_ready());
        let late = takes || self.by_record && self.is_with_user();
        let taken_at = self.taken_at.filter(|_| late && !self.resting && self.phase == Phase::Open)?;
        Some(taken_at + self.config.processing_max)
    }

    fn is_with_user(&self) -> bool {
        self.parts.values().any(Part::is_with_user)
    }

    /// A user who was away for too long holds up the group no longer.
    fn limit_processing(&mut self, now: Instant, out: &mut Out) {
        if self.processing_deadline().is_none_or(|at| now < at) {
            return;
        }
        self.resting = true;
        self.leave(now, out);
        let other = Member::new(&mut self.random);
        self.lose(other, out);
    }

    fn request(&mut self) -> RequestId {
        let id = RequestId::new(self.next_request);
        self.next_request += 1;
        id
    }

    /// A reader's share of what may be buffered.
    fn share_memory(&mut self) {
        let readers = self.readers.len().max(1);
        for reader in self.readers.values_mut() {
            reader.machine.set_prefetch_bytes_max(self.config.reader.prefetch_bytes_max / readers);
        }
    }

    /// What is wrong with the state, if anything is.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        for (tp, part) in &self.parts {
            let reads = self
                .readers
                .get(&tp.topic)
                .is_some_and(|reader| reader.machine.partitions().any(|partition| partition == tp.partition));
            if self.phase == Phase::Open && reads != (part.stage == Stage::Read) {
                return Some("a partition is read that should not be, or the other way round");
            }
            let done = part.done.as_ref().map_or(0, |done| done.offset);
            if part.given.as_ref().map_or(0, |given| given.offset) < done && part.given.is_some() {
                return Some("more is done with than was given");
            }
        }
        self.readers.values().find_map(|reader| reader.machine.broken_invariant())
    }
}

fn not_here(share: &Share) -> Error {
    Error::usage(format!(
        "partition {} of {} is not this consumer's (any more)",
        share.partition, share.topic
    ))
}

fn readdressed(input: Input, id: RequestId) -> Input {
    match input {
        Input::Answered { answer, payload, .. } => Input::Answered { id, answer, payload },
        Input::Failed { error, .. } => Input::Failed { id, error },
        Input::Sent { .. } => Input::Sent { id },
        Input::Tick => Input::Tick,
    }
}

/// A request of the consumer itself.
fn outgoing(id: RequestId, request: corelog_wire::message::Request, deadline: Instant) -> Outgoing {
    Outgoing { id, target: Target::Any, request, payload: Vec::<Bytes>::new(), deadline, answered: true }
}

#[cfg(test)]
mod tests;
