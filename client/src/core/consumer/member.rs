//! A consumer's membership: joining, heartbeats, what the group grants, and leaving.
//!
//! Part of `consumer`; its invariants hold here. The session counts from when a heartbeat was sent that was answered, so
//! that it has ended here before it ends at the coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{MemberEpoch, MemberId, TopicPartition};
use corelog_wire::message::{
    GroupHeartbeatAnswer, GroupHeartbeatRequest, Leave, OffsetFetchAnswer, OffsetFetchRequest, Request,
};

use super::{
    Consumer, ConsumerEvent, Out, Part, Partitions, Phase, Reader, ReaderConfig, Share, Stage, Taken,
    TopicReader, outgoing,
};
use crate::core::random::Random;
use crate::core::{Effect, Input, RequestId, Start};
use crate::error::Error;

/// Least time between two heartbeats that have nothing to say.
const BEAT_GAP: Duration = Duration::from_millis(10);
/// Heartbeats under way at once: one that is held, and one that has something to say.
const BEATS_MAX: usize = 2;

#[derive(Debug)]
pub(super) struct Member {
    id: MemberId,
    /// Zero: not joined.
    epoch: MemberEpoch,
    /// The session lasts at least until then.
    safe_until: Option<Instant>,
    /// How many heartbeats it has sent.
    beat: u64,
    /// Heartbeats under way, and when they were sent.
    beats: BTreeMap<RequestId, Instant>,
    /// There is something to say that the coordinator waits for.
    news: bool,
    attempts: u32,
    again_at: Option<Instant>,
    /// Since when nothing works out.
    trouble: Option<Instant>,
    granted: BTreeMap<TopicPartition, Arc<str>>,
    /// Offsets that are being asked for, and of which partitions.
    asking: Option<(RequestId, BTreeSet<TopicPartition>)>,
    ask_again_at: Option<Instant>,
    ask_attempts: u32,
    /// The last heartbeat of all.
    farewell: Option<RequestId>,
    left: bool,
    /// Who was here before, and is to be said farewell for; and the request that does.
    forerunner: Option<(MemberId, MemberEpoch, u64)>,
    farewell_before: Option<RequestId>,
}

impl Member {
    pub(super) fn new(random: &mut Random) -> Self {
        let (high, low) = (u128::from(random.number()), u128::from(random.number()));
        Self {
            id: MemberId::new(high << 64 | low),
            epoch: MemberEpoch::new(0),
            safe_until: None,
            beat: 0,
            beats: BTreeMap::new(),
            news: false,
            attempts: 0,
            again_at: None,
            trouble: None,
            granted: BTreeMap::new(),
            asking: None,
            ask_again_at: None,
            ask_attempts: 0,
            farewell: None,
            left: false,
            forerunner: None,
            farewell_before: None,
        }
    }

    /// Who comes after it. It tells the group that its forerunner has gone, before it joins: the group may not know, and would
    /// keep everything for it until its session ends.
    fn successor(&self, random: &mut Random) -> Self {
        let before = self.is_joined().then_some((self.id, self.epoch, self.beat));
        Self { forerunner: before.or(self.forerunner), ..Self::new(random) }
    }

    pub(super) fn name(&self) -> (MemberId, MemberEpoch) {
        (self.id, self.epoch)
    }

    pub(super) fn is_joined(&self) -> bool {
        self.epoch.get() > 0
    }

    /// Whether nobody else can have been given what this member has.
    pub(super) fn is_safe(&self, now: Instant) -> bool {
        self.safe_until.is_some_and(|until| now < until || cfg!(mutant = "consumer_never_fences_itself"))
    }

    /// Whether it has told the coordinator that it goes.
    pub(super) fn says_farewell(&self) -> bool {
        self.farewell.is_some() || self.left
    }

    pub(super) fn has_left(&self) -> bool {
        self.left
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let again = self.again_at.filter(|_| self.beats.is_empty());
        [self.safe_until, again, self.ask_again_at].into_iter().flatten().min()
    }
}

impl Consumer {
    /// Ends what was granted when the session must have ended.
    pub(super) fn fence(&mut self, now: Instant, out: &mut Out) {
        if self.member.safe_until.is_some() && !self.member.is_safe(now) {
            let next = self.member.successor(&mut self.random);
            self.lose(next, out);
        }
    }

    /// The coordinator does not know this member any more.
    pub(super) fn rejoin(&mut self, now: Instant, out: &mut Out) {
        let other = Member::new(&mut self.random);
        self.lose(other, out);
        self.member.again_at = Some(now + self.config.reader.backoff.after(1, &mut self.random));
    }

    /// Everything that was granted is lost; this member begins.
    pub(super) fn lose(&mut self, member: Member, out: &mut Out) {
        self.beginnings.clear();
        self.lost_taken |= self.parts.values().any(Part::is_taken_uncommitted);
        let lost: Vec<Share> = std::mem::take(&mut self.parts).into_values().map(|part| part.share).collect();
        self.readers.clear();
        self.early.clear();
        self.told.clear();
        self.commits.fail_all(&super::commits::session_over(), out);
        self.member = member;
        // Whoever ends has nothing to leave any more.
        self.member.left = self.phase != Phase::Open;
        if !lost.is_empty() {
            self.news.push_back(Taken::Lost(lost));
        }
        out.push(Effect::Event(ConsumerEvent::Changed));
    }

    /// Sends a heartbeat if one is due.
    pub(super) fn beat(&mut self, now: Instant, out: &mut Out) {
        if self.phase != Phase::Open && self.has_committed() {
            self.leave(now, out);
        }
        let waits = self.member.again_at.is_some_and(|at| now < at);
        let speaks = self.member.news && self.member.attempts == 0;
        let room = if speaks { BEATS_MAX } else { 1 };
        if self.resting
            || self.member.farewell.is_some()
            || self.member.left
            || self.member.beats.len() >= room
            || waits && !speaks
        {
            return;
        }
        let joins = !self.member.is_joined();
        let session = self.config.wishes.session_timeout;
        let wait = if joins { Duration::ZERO } else { session / 3 };
        let id = self.request();
        let heartbeat = match self.member.forerunner {
            Some((member, member_epoch, beat)) => {
                self.member.farewell_before = Some(id);
                let same = self.heartbeat(Leave::Yes, wait);
                GroupHeartbeatRequest { member, member_epoch, beat: beat + 1, wishes: None, ..same }
            }
            None => self.heartbeat(Leave::No, wait),
        };
        out.push(Effect::Send(outgoing(id, Request::GroupHeartbeat(heartbeat), now + wait + session / 3)));
        self.member.beats.insert(id, now);
        self.member.news = false;
        self.member.again_at = Some(now + BEAT_GAP);
    }

    /// Says once that this member goes, if it ever came.
    pub(super) fn leave(&mut self, now: Instant, out: &mut Out) {
        if self.member.farewell.is_some() || self.member.left {
            return;
        }
        if !self.member.is_joined() && self.member.beats.is_empty() {
            self.member.left = true;
            return;
        }
        let comes_back = self.config.wishes.instance.is_some() && self.phase != Phase::Open;
        let heartbeat = self.heartbeat(if comes_back { Leave::Away } else { Leave::Yes }, Duration::ZERO);
        let id = self.request();
        let deadline = now + self.config.close_patience;
        out.push(Effect::Send(outgoing(id, Request::GroupHeartbeat(heartbeat), deadline)));
        self.member.farewell = Some(id);
    }

    fn heartbeat(&mut self, leave: Leave, wait: Duration) -> GroupHeartbeatRequest {
        let joins = !self.member.is_joined();
        self.member.beat += 1;
        GroupHeartbeatRequest {
            group: self.config.group.clone(),
            member: self.member.id,
            member_epoch: self.member.epoch,
            leave,
            max_wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            owned: self.parts.keys().copied().collect(),
            beat: self.member.beat,
            wishes: joins.then(|| Box::new(self.config.wishes.clone())),
        }
    }

    pub(super) fn beat_answered(
        &mut self,
        now: Instant,
        id: RequestId,
        answer: &GroupHeartbeatAnswer,
        out: &mut Out,
    ) {
        if self.member.farewell == Some(id) {
            self.member.left = true;
            return;
        }
        // One of an earlier membership otherwise.
        let Some(sent) = self.member.beats.remove(&id) else { return };
        (self.member.attempts, self.member.trouble) = (0, None);
        if self.member.farewell_before.take_if(|farewell| *farewell == id).is_some() {
            (self.member.forerunner, self.member.again_at) = (None, None);
            return;
        }
        let from = if cfg!(mutant = "consumer_session_from_the_answer") { now } else { sent };
        let until = from + self.config.wishes.session_timeout;
        self.member.safe_until = Some(self.member.safe_until.map_or(until, |was| was.max(until)));
        if answer.member_epoch <= self.member.epoch {
            return;
        }
        self.member.epoch = answer.member_epoch;
        // The coordinator gives on what is not held any more, and takes commits, under the epoch that it hears.
        self.member.news = true;
        self.member.granted = BTreeMap::new();
        for share in &answer.granted {
            let name: Arc<str> = share.name.as_str().into();
            let places =
                share.partitions.iter().map(|&partition| TopicPartition::new(share.topic, partition));
            self.member.granted.extend(places.map(|tp| (tp, name.clone())));
        }
        if self.phase == Phase::Open {
            self.revoke(out);
            self.assign(out);
        }
        self.let_go(now, out);
    }

    /// What is not granted any more is not given any more.
    fn revoke(&mut self, out: &mut Out) {
        let gone = |(tp, part): &(&TopicPartition, &Part)| {
            matches!(part.stage, Stage::Wanted | Stage::Read) && !self.member.granted.contains_key(tp)
        };
        let gone: Vec<TopicPartition> = self.parts.iter().filter(gone).map(|(tp, _)| *tp).collect();
        let mut shares = Vec::with_capacity(gone.len());
        for tp in gone {
            self.stop_reading(tp);
            let waits = self.listens || self.early.iter().any(|(early, _)| *early == tp);
            if let Some(part) = self.parts.get_mut(&tp) {
                part.stage = if waits || part.is_with_user() { Stage::Leaving } else { Stage::Letting };
                shares.push(part.share.clone());
            }
        }
        if !shares.is_empty() {
            self.news.push_back(Taken::Revoked(shares));
            out.push(Effect::Event(ConsumerEvent::Changed));
        }
    }

    /// Reads nothing more of a partition.
    pub(super) fn stop_reading(&mut self, tp: TopicPartition) {
        let Some(reader) = self.readers.get_mut(&tp.topic) else { return };
        reader.machine.unassign(tp.partition);
    }

    /// Takes what is granted and not here yet.
    fn assign(&mut self, out: &mut Out) {
        let mut shares = Vec::new();
        for (tp, name) in &self.member.granted {
            // One that is still being let go of comes back later. A topic without a name is gone.
            if self.parts.contains_key(tp) || name.is_empty() {
                continue;
            }
            let share = Share { topic: name.clone(), partition: tp.partition };
            shares.push(share.clone());
            let part = Part { share, stage: Stage::Wanted, given: None, done: None, committed: None };
            self.parts.insert(*tp, part);
        }
        if !shares.is_empty() {
            self.news.push_back(Taken::Assigned(shares));
            out.push(Effect::Event(ConsumerEvent::Changed));
        }
    }

    /// Lets go of what is done with and committed.
    pub(super) fn let_go(&mut self, now: Instant, out: &mut Out) {
        let letting = self.parts.iter().filter(|(_, part)| part.stage == Stage::Letting);
        let gone: Vec<TopicPartition> =
            letting.map(|(tp, _)| *tp).filter(|tp| self.is_settled(*tp)).collect();
        #[cfg(mutant = "consumer_lets_go_of_what_is_with_the_user")]
        let gone: Vec<TopicPartition> = {
            let leaving = |part: &Part| matches!(part.stage, Stage::Letting | Stage::Leaving);
            self.parts.iter().filter(|(_, part)| leaving(part)).map(|(tp, _)| *tp).collect()
        };
        if gone.is_empty() {
            return;
        }
        for tp in gone {
            self.parts.remove(&tp);
            self.beginnings.remove(&tp);
            // Should it come back, what was asked about it before is out of date.
            if let Some((_, asked)) = &mut self.member.asking {
                asked.remove(&tp);
            }
        }
        self.member.news = true;
        let before = self.readers.len();
        let parts = &self.parts;
        self.readers.retain(|topic, _| parts.keys().any(|tp| tp.topic == *topic));
        if self.readers.len() != before {
            self.share_memory();
        }
        if self.phase == Phase::Open {
            self.assign(out);
        }
        self.fetch_offsets(now, out);
    }

    /// Asks where to begin.
    pub(super) fn fetch_offsets(&mut self, now: Instant, out: &mut Out) {
        let wanted: BTreeSet<TopicPartition> =
            self.parts.iter().filter(|(_, part)| part.stage == Stage::Wanted).map(|(tp, _)| *tp).collect();
        let waits = self.member.ask_again_at.is_some_and(|at| now < at);
        if wanted.is_empty() || waits || self.member.asking.is_some() || self.phase != Phase::Open {
            return;
        }
        let id = self.request();
        let request = OffsetFetchRequest { group: self.config.group.clone() };
        let deadline = now + self.config.wishes.session_timeout;
        out.push(Effect::Send(outgoing(id, Request::OffsetFetch(request), deadline)));
        self.member.asking = Some((id, wanted));
        self.member.ask_again_at = None;
    }

    pub(super) fn offsets_answered(
        &mut self,
        now: Instant,
        id: RequestId,
        answer: &OffsetFetchAnswer,
        out: &mut Out,
    ) {
        let Some((_, asked)) = self.member.asking.take_if(|(asked, _)| *asked == id) else { return };
        self.member.ask_attempts = 0;
        let known: BTreeMap<TopicPartition, u64> =
            answer.rows.iter().map(|row| (row.tp, row.offset.get())).collect();
        let mut topics = BTreeSet::new();
        for tp in asked {
            let Some(part) = self.parts.get_mut(&tp).filter(|part| part.stage == Stage::Wanted) else {
                continue;
            };
            part.stage = Stage::Read;
            part.committed = known.get(&tp).copied();
            if part.committed.is_none() {
                self.beginnings.insert(tp);
            }
            let ignores = cfg!(mutant = "consumer_begins_anew");
            let start = part.committed.filter(|_| !ignores).map_or(self.config.start, Start::Offset);
            let topic = part.share.topic.clone();
            if !self.readers.contains_key(&tp.topic) {
                let partitions = Partitions::Assigned(tp.topic);
                let config = ReaderConfig { topic, partitions, ..self.config.reader.clone() };
                let seed = self.random.number();
                // The settings were checked when the consumer was made.
                let Ok(machine) = Reader::new(config, seed) else { continue };
                self.readers.insert(tp.topic, TopicReader { slot: self.next_slot, machine });
                self.next_slot += 1;
                self.share_memory();
            }
            if let Some(reader) = self.readers.get_mut(&tp.topic) {
                reader.machine.assign(tp.partition, start);
            }
            topics.insert(tp.topic);
        }
        for topic in topics {
            self.drive(now, topic, Input::Tick, out);
        }
    }

    /// A request of the consumer itself failed.
    pub(super) fn failed(
        &mut self,
        now: Instant,
        id: RequestId,
        error: &Error,
        throttle: Duration,
        out: &mut Out,
    ) {
        if self.member.farewell == Some(id) {
            self.member.left = true;
            return;
        }
        if self.commit_failed(now, id, error, throttle, out) {
            return;
        }
        let backoff = self.config.reader.backoff;
        if self.member.asking.take_if(|(asked, _)| *asked == id).is_some() {
            self.member.ask_attempts = self.member.ask_attempts.saturating_add(1);
            let wait = backoff.after(self.member.ask_attempts, &mut self.random);
            self.member.ask_again_at = Some(now + wait.max(throttle));
            return;
        }
        if self.member.beats.remove(&id).is_none() {
            return;
        }
        let for_another = self.member.farewell_before.take_if(|farewell| *farewell == id).is_some();
        match error.code() {
            Some(ErrorCode::UnknownMember | ErrorCode::FencedMember) if for_another => {
                (self.member.forerunner, self.member.again_at) = (None, None);
                return;
            }
            Some(ErrorCode::UnknownMember | ErrorCode::FencedMember) => return self.rejoin(now, out),
            Some(ErrorCode::InvalidGroup | ErrorCode::UnsupportedKind) => {
                self.complaint = Some(error.clone());
                out.push(Effect::Event(ConsumerEvent::Changed));
            }
            _ => {}
        }
        self.member.attempts = self.member.attempts.saturating_add(1);
        let wait = backoff.after(self.member.attempts, &mut self.random);
        self.member.again_at = Some(now + wait.max(throttle));
        let since = *self.member.trouble.get_or_insert(now);
        if since + self.config.reader.patience <= now {
            self.member.trouble = Some(now);
            self.complaint = Some(Error::deadline("a heartbeat", Some(error.clone())));
            out.push(Effect::Event(ConsumerEvent::Changed));
        }
    }
}
