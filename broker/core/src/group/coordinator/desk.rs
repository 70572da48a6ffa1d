//! One group at its coordinator: what the store has of it, what waits, whose heartbeat is held, and the change that is on
//! its way.
//!
//! Part of `coordinator`; its invariants hold here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use corelog_wire::ids::{MemberEpoch, MemberId, TopicId, TopicPartition};

use super::super::asks::{
    Ask, AskId, Change, CommitRefusal, Committed, GroupEffect, GroupRefusal, GroupReply, PageId, StoredGroup,
};
use super::super::{GroupName, MemberRefusal, Membership, Topics};
use super::refused;
use crate::time::{Instant, Now};

/// An answer that is given once what it rests on is stored.
#[derive(Debug)]
pub(super) enum Promise {
    Granted { member: MemberId, known: Option<MemberEpoch>, wait: Duration },
    Offsets,
    Ready(GroupReply),
}

/// A heartbeat that waits for something to change.
#[derive(Debug)]
pub(super) struct Held {
    ask_id: AskId,
    known: MemberEpoch,
    until: Instant,
}

/// A change on its way to the store.
#[derive(Debug)]
pub(super) struct Draft {
    membership: Membership,
    /// Offsets that change; none is forgotten.
    pub(super) offsets: BTreeMap<TopicPartition, Option<Committed>>,
    /// The group goes.
    deleted: bool,
    pub(super) promises: Vec<(AskId, Promise)>,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) loaded: bool,
    /// The store has it.
    pub(super) is_stored: bool,
    pub(super) membership: Membership,
    pub(super) offsets: BTreeMap<TopicPartition, Committed>,
    /// When each member's session ends.
    sessions: BTreeMap<MemberId, Instant>,
    /// The last heartbeat that was heard of each.
    pub(super) beats: BTreeMap<MemberId, u64>,
    held: BTreeMap<MemberId, Held>,
    pub(super) waiting: Vec<(Option<AskId>, Ask)>,
    pub(super) draft: Option<Draft>,
    /// Offsets are not stored again before.
    offsets_after: Instant,
    pub(super) topics_changed: bool,
    /// When it has to be looked at, as the coordinator noted.
    pub(super) alarm: Option<Instant>,
}

/// The topics that exist.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) topics: Topics,
    partitions: BTreeMap<TopicId, u32>,
}

impl World {
    pub(super) fn new(topics: Topics) -> Self {
        Self { partitions: topics.values().copied().collect(), topics }
    }

    fn check(&self, tp: TopicPartition) -> Result<(), CommitRefusal> {
        match self.partitions.get(&tp.topic) {
            None => Err(CommitRefusal::UnknownTopic(tp.topic)),
            Some(&count) if tp.partition >= count => Err(CommitRefusal::UnknownPartition(tp)),
            Some(_) => Ok(()),
        }
    }
}

impl Group {
    /// Takes what the store has. Everybody in it gets a whole session: nobody could be heard meanwhile.
    pub(super) fn load(&mut self, now: Now, stored: Option<StoredGroup>) {
        (self.loaded, self.is_stored) = (true, stored.is_some());
        let StoredGroup { membership, offsets } = stored.unwrap_or_default();
        self.sessions =
            membership.members().map(|(id, info)| (id, now.instant.after(info.session_timeout))).collect();
        (self.membership, self.offsets) = (membership, offsets);
        // Topics may have changed while nobody coordinated the group.
        self.topics_changed = true;
    }

    /// A member spoke: its session begins anew, whatever becomes of what it said. What it said before something that was
    /// heard already says nothing any more: it is asked about what it may have, no more.
    pub(super) fn seen(&mut self, now: Now, ask: Ask) -> Ask {
        let (member, beat) = match &ask {
            Ask::Heartbeat { member, beat, .. } => (*member, Some(*beat)),
            Ask::Join { member, .. } => (*member, None),
            _ => return ask,
        };
        // Of those who are no members nothing is kept: anybody may call himself anything.
        let Some(info) = self.membership.info(member) else { return ask };
        if let Some(beat) = beat {
            let last = self.beats.entry(member).or_default();
            if beat < *last {
                return Ask::Granted { member };
            }
            *last = beat;
        }
        if !cfg!(mutant = "group_session_counts_from_the_join") {
            self.sessions.insert(member, now.instant.after(info.session_timeout));
        }
        ask
    }

    /// Ends the sessions of the silent, and answers heartbeats that were held long enough. Not while the group is being
    /// read: what is known of it then may be out of date.
    pub(super) fn expire(
        &mut self,
        now: Now,
        offsets_retention: Option<Duration>,
        out: &mut Vec<GroupEffect>,
    ) {
        if !self.loaded {
            return;
        }
        if self.draft.is_none() && self.idle_left(now, offsets_retention) == Some(Duration::ZERO) {
            self.waiting.push((None, Ask::Delete { topic: None }));
        }
        let silent: Vec<MemberId> =
            self.sessions.iter().filter(|(_, end)| **end <= now.instant).map(|(&id, _)| id).collect();
        for member in silent {
            self.sessions.remove(&member);
            self.waiting.push((None, Ask::Leave { member, away: false }));
        }
        let over: Vec<MemberId> =
            self.held.iter().filter(|(_, held)| held.until <= now.instant).map(|(&id, _)| id).collect();
        for member in over {
            self.release(member, out);
        }
    }

    /// How long until a group without members is forgotten.
    fn idle_left(&self, now: Now, offsets_retention: Option<Duration>) -> Option<Duration> {
        let since = self.membership.idle_since_ms()?;
        let idle = Duration::from_millis(u64::try_from(now.wall_ms.saturating_sub(since)).unwrap_or(0));
        Some(offsets_retention?.saturating_sub(idle))
    }

    /// When something is due here that nobody asks for.
    pub(super) fn next_alarm(&self, now: Now, offsets_retention: Option<Duration>) -> Option<Instant> {
        if !self.loaded {
            return None;
        }
        let silent = self.sessions.values().min().copied();
        let held = self.held.values().map(|held| held.until).min();
        // What else is due waits for the change that is on its way.
        let is_free = self.draft.is_none();
        let early = (is_free && !self.waiting.is_empty()).then_some(self.offsets_after);
        let idle =
            self.idle_left(now, offsets_retention).filter(|_| is_free).map(|left| now.instant.after(left));
        [silent, held, early, idle].into_iter().flatten().min()
    }

    /// What the group would be after all that waits, and the answers that would follow.
    pub(super) fn drafted(&mut self, now: Now, world: &World) -> Draft {
        let mut draft = Draft {
            membership: self.membership.clone(),
            offsets: BTreeMap::new(),
            deleted: false,
            promises: Vec::new(),
        };
        if std::mem::take(&mut self.topics_changed) {
            // With more partitions than it can hold the group stays as it is; the surplus is not worked on.
            let _ = draft.membership.topics_changed(&world.topics);
            let gone =
                |tp: &&TopicPartition| matches!(world.check(**tp), Err(CommitRefusal::UnknownTopic(_)));
            draft.offsets.extend(self.offsets.keys().filter(gone).map(|&tp| (tp, None)));
        }
        let early = now.instant < self.offsets_after;
        let mut later = Vec::new();
        for (ask_id, ask) in std::mem::take(&mut self.waiting) {
            let too_early = early && matches!(ask, Ask::Commit { .. });
            if draft.deleted || too_early || ask.is_behind(&later) {
                later.push((ask_id, ask));
                continue;
            }
            let promise = draft.take(ask, world, self);
            draft.promises.extend(ask_id.map(|ask_id| (ask_id, promise)));
        }
        self.waiting = later;
        let noted = draft.membership.idle_since_ms().is_some();
        if noted != draft.membership.is_empty() || !draft.offsets.is_empty() {
            draft.membership.note_idle(now.wall_ms);
        }
        draft
    }

    /// What a draft makes of the group in the store.
    pub(super) fn change(&self, draft: &Draft) -> Change {
        let kept = self.offsets.keys().any(|tp| draft.offsets.get(tp) != Some(&None));
        let has_offsets = kept || draft.offsets.values().any(Option::is_some);
        if draft.deleted || draft.membership.is_empty() && !has_offsets {
            return if self.is_stored { Change::Delete } else { Change::Keep };
        }
        if draft.membership != self.membership || !self.is_stored {
            return Change::Put(draft.membership.clone());
        }
        Change::Keep
    }

    /// All pages on which a draft changes something, as they would be.
    pub(super) fn pages(&self, draft: &Draft) -> BTreeMap<PageId, BTreeMap<u32, Committed>> {
        let touched: BTreeSet<PageId> = draft.offsets.keys().map(|&tp| PageId::of(tp)).collect();
        let page = |page: PageId| {
            let places = TopicPartition::new(page.topic, page.first)..=page.last();
            let before =
                self.offsets.range(places.clone()).map(|(tp, committed)| (tp.partition, committed.clone()));
            let mut rows: BTreeMap<u32, Committed> = before.collect();
            for (tp, committed) in draft.offsets.range(places) {
                match committed {
                    Some(committed) => rows.insert(tp.partition, committed.clone()),
                    None => rows.remove(&tp.partition),
                };
            }
            (page, rows)
        };
        touched.into_iter().map(page).collect()
    }

    pub(super) fn stored(
        &mut self,
        now: Now,
        name: &GroupName,
        done: bool,
        offset_interval: Duration,
        out: &mut Vec<GroupEffect>,
    ) {
        let Some(draft) = self.draft.take() else { return };
        if !done && !cfg!(mutant = "group_unknown_outcome_counts_as_done") {
            self.loaded = false;
            let unanswered = draft.promises.into_iter().map(|(ask_id, _)| ask_id);
            out.extend(unanswered.map(|ask_id| refused(ask_id, GroupRefusal::Unavailable)));
            out.push(GroupEffect::Load { group: name.clone() });
            return;
        }
        if !draft.offsets.is_empty() {
            self.offsets_after = now.instant.after(offset_interval);
        }
        self.is_stored = self.change(&draft) != Change::Delete;
        self.membership = if self.is_stored { draft.membership } else { Membership::default() };
        let mut partitions = Vec::new();
        for (tp, committed) in draft.offsets {
            let now_at = committed.as_ref().map(|committed| committed.offset);
            let before = match committed {
                Some(committed) => self.offsets.insert(tp, committed),
                None => self.offsets.remove(&tp),
            };
            if before.map(|committed| committed.offset) > now_at {
                partitions.push(tp);
            }
        }
        if !partitions.is_empty() {
            out.push(GroupEffect::WentBack { partitions });
        }
        self.renew_sessions(now);
        for (ask_id, promise) in draft.promises {
            self.keep(now, ask_id, promise, out);
        }
        let news = |(id, held): (&MemberId, &Held)| {
            let epoch = self.membership.granted(*id).map(|(epoch, _)| epoch);
            (epoch != Some(held.known)).then_some(*id)
        };
        let told: Vec<MemberId> = self.held.iter().filter_map(news).collect();
        for member in told {
            self.release(member, out);
        }
    }

    /// Members that are new begin their sessions; those that went have none.
    fn renew_sessions(&mut self, now: Now) {
        self.beats.retain(|id, _| self.membership.info(*id).is_some());
        let mut before = std::mem::take(&mut self.sessions);
        for (id, info) in self.membership.members() {
            let end = before.remove(&id).unwrap_or(now.instant.after(info.session_timeout));
            self.sessions.insert(id, end);
        }
    }

    /// Gives the answer that was promised, or holds it while it has nothing new to say.
    pub(super) fn keep(&mut self, now: Now, ask_id: AskId, promise: Promise, out: &mut Vec<GroupEffect>) {
        let (member, known, wait) = match promise {
            Promise::Granted { member, known, wait } => (member, known, wait),
            Promise::Offsets => {
                let reply = GroupReply::Offsets(self.offsets.clone());
                return out.push(GroupEffect::Reply { ask_id, reply });
            }
            Promise::Ready(reply) => return out.push(GroupEffect::Reply { ask_id, reply }),
        };
        // One heartbeat of a member is held: the one before comes from a connection that it gave up.
        self.release(member, out);
        let epoch = self.membership.granted(member).map(|(epoch, _)| epoch);
        // A member that is held for longer than this could take the silence for a broken connection.
        let wait_max = self.membership.info(member).map_or(Duration::ZERO, |info| info.session_timeout / 3);
        let wait = wait.min(wait_max);
        match known.filter(|known| Some(*known) == epoch && !wait.is_zero()) {
            Some(known) => {
                self.held.insert(member, Held { ask_id, known, until: now.instant.after(wait) });
            }
            None => out.push(self.said_to(member, ask_id)),
        }
    }

    /// Answers the heartbeat of a member that is held.
    fn release(&mut self, member: MemberId, out: &mut Vec<GroupEffect>) {
        if let Some(Held { ask_id, .. }) = self.held.remove(&member) {
            out.push(self.said_to(member, ask_id));
        }
    }

    fn said_to(&self, member: MemberId, ask_id: AskId) -> GroupEffect {
        let reply = match self.membership.granted(member) {
            Some((epoch, partitions)) => GroupReply::Granted { epoch, partitions },
            None => GroupReply::Refused(MemberRefusal::UnknownMember.into()),
        };
        GroupEffect::Reply { ask_id, reply }
    }
}

impl Draft {
    /// Does what is asked, in this draft only.
    fn take(&mut self, ask: Ask, world: &World, group: &Group) -> Promise {
        let refused = |refusal: MemberRefusal| Promise::Ready(GroupReply::Refused(refusal.into()));
        let topics = &world.topics;
        match ask {
            Ask::Join { member, info } => match self.membership.join(member, info, topics) {
                Ok(()) => Promise::Granted { member, known: None, wait: Duration::ZERO },
                Err(refusal) => refused(refusal),
            },
            Ask::Granted { member } => Promise::Granted { member, known: None, wait: Duration::ZERO },
            Ask::Heartbeat { member, epoch, has, info, wait, .. } => {
                let heard = self.membership.heard(member, epoch, &has);
                let changed = heard
                    .and_then(|()| info.map_or(Ok(()), |info| self.membership.change(member, info, topics)));
                match changed {
                    Ok(()) => Promise::Granted { member, known: Some(epoch), wait },
                    Err(refusal) => refused(refusal),
                }
            }
            Ask::Leave { member, away } => {
                if away {
                    self.membership.go_away(member, topics);
                } else {
                    self.membership.leave(member, topics);
                }
                Promise::Ready(GroupReply::Left)
            }
            Ask::Commit { member, offsets } => self.commit(member, offsets, world, group),
            Ask::Offsets => Promise::Offsets,
            Ask::Delete { topic } => Promise::Ready(match self.delete(topic, group) {
                Ok(()) => GroupReply::Deleted,
                Err(refusal) => GroupReply::Refused(refusal),
            }),
        }
    }

    fn commit(
        &mut self,
        member: Option<(MemberId, MemberEpoch)>,
        offsets: Vec<(TopicPartition, Committed)>,
        world: &World,
        group: &Group,
    ) -> Promise {
        if member.is_none() && !self.membership.is_empty() {
            return Promise::Ready(GroupReply::Refused(GroupRefusal::NotEmpty));
        }
        let mut rows = Vec::with_capacity(offsets.len());
        for (tp, committed) in offsets {
            let may = |(id, epoch)| self.membership.check_commit(id, epoch, tp);
            let check = world.check(tp).and_then(|()| Ok(member.map_or(Ok(()), may)?));
            let before = self.offset(tp, group);
            let forward = member.is_none()
                || cfg!(mutant = "group_offsets_fall")
                || before.is_none_or(|before| before.offset <= committed.offset);
            if check.is_ok() && forward && before != Some(&committed) {
                self.offsets.insert(tp, Some(committed));
            }
            rows.push((tp, check));
        }
        Promise::Ready(GroupReply::Committed(rows))
    }

    fn delete(&mut self, topic: Option<TopicId>, group: &Group) -> Result<(), GroupRefusal> {
        if !self.membership.is_empty() {
            return Err(GroupRefusal::NotEmpty);
        }
        let here = group.offsets.keys().chain(self.offsets.keys());
        let wanted = |tp: &&TopicPartition| topic.is_none_or(|topic| tp.topic == topic);
        let gone: Vec<TopicPartition> =
            here.filter(wanted).copied().filter(|&tp| self.offset(tp, group).is_some()).collect();
        if gone.is_empty() && !(topic.is_none() && group.is_stored) {
            return Err(GroupRefusal::UnknownGroup);
        }
        self.deleted = topic.is_none();
        self.offsets.extend(gone.into_iter().map(|tp| (tp, None)));
        Ok(())
    }

    /// How far the group has come in a partition, with what this draft changes.
    fn offset<'a>(&'a self, tp: TopicPartition, group: &'a Group) -> Option<&'a Committed> {
        match self.offsets.get(&tp) {
            Some(changed) => changed.as_ref(),
            None => group.offsets.get(&tp),
        }
    }
}
