//! The coordinator of this broker's groups: sessions, waiting heartbeats, committed offsets, and what is to be stored.
//!
//! Called by the control thread's hands, which load and store groups and carry answers. One change of a group is on its
//! way to the store at a time; what is asked meanwhile waits and makes the next one together. Invariants: what a group
//! is changes only by what the store has confirmed; an answer leaves only after everything it says is stored; answers
//! that read see what was asked before them. A change that the store refuses, or whose outcome is unknown, is forgotten
//! here and the group is read again: nobody was answered that it was done.
//!
//! Refuses to know the store's keys and revisions, connections, and where the wall clock comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use corelog_wire::ids::{LeaderEpoch, MemberEpoch, MemberId, Offset, TopicId, TopicPartition};
use thiserror::Error;

use super::{GroupName, MemberInfo, MemberRefusal, Membership, Topics};
use crate::limits::{GROUP_REQUESTS_MAX, GROUPS_MAX, OFFSETS_PER_PAGE};
use crate::time::{Instant, Now};

/// Names a request among those that are not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// How far a group has come in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The next record to read.
    pub offset: Offset,
    /// The epoch of the record before it, as far as the committer knew.
    pub leader_epoch: LeaderEpoch,
    /// What the committer wants to remember.
    pub metadata: String,
}

/// What is asked of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// A member joins.
    Join {
        /// Who.
        member: MemberId,
        /// What it wants.
        info: MemberInfo,
    },
    /// A member says that it is there, and what it has.
    Heartbeat {
        /// Who.
        member: MemberId,
        /// What it knows.
        epoch: MemberEpoch,
        /// What it works on.
        has: BTreeSet<TopicPartition>,
        /// How many it has sent.
        beat: u64,
        /// What it wants, if that changed.
        info: Option<MemberInfo>,
        /// How long the answer may be held while nothing changes for the member.
        wait: Duration,
    },
    /// What may a member have?
    Granted {
        /// Who.
        member: MemberId,
    },
    /// A member goes; for a restart if `away`.
    Leave {
        /// Who.
        member: MemberId,
        /// Whether it comes back under its instance id.
        away: bool,
    },
    /// Stores offsets. Without a member only a group that has none takes it, and sets them as they are; of a member
    /// an offset below the stored one changes nothing: words may be late, and progress is not undone by them.
    Commit {
        /// Who, and what it knew.
        member: Option<(MemberId, MemberEpoch)>,
        /// How far it has come.
        offsets: Vec<(TopicPartition, Committed)>,
    },
    /// Reads all offsets.
    Offsets,
    /// Forgets the group, if it has no members, or its offsets of a topic.
    Delete {
        /// Only its offsets of this topic.
        topic: Option<TopicId>,
    },
}

impl Ask {
    fn member(&self) -> Option<MemberId> {
        match self {
            Self::Join { member, .. }
            | Self::Heartbeat { member, .. }
            | Self::Granted { member }
            | Self::Leave { member, .. } => Some(*member),
            Self::Commit { member, .. } => member.map(|(id, _)| id),
            Self::Offsets | Self::Delete { .. } => None,
        }
    }

    /// Whether it must not be done before what waits already: what a member committed has to be in before it lets go or
    /// leaves, and who reads sees what was asked before.
    fn is_behind(&self, waiting: &[(Option<AskId>, Self)]) -> bool {
        let member = self.member();
        waiting.iter().any(|(_, other)| member.is_none() || other.member() == member)
    }
}

/// Committed offsets that are stored together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId {
    /// Of this topic.
    pub topic: TopicId,
    /// [`OFFSETS_PER_PAGE`] partitions from this one on.
    pub first: u32,
}

impl PageId {
    /// The page of a partition.
    #[must_use]
    pub fn of(tp: TopicPartition) -> Self {
        Self { topic: tp.topic, first: tp.partition / OFFSETS_PER_PAGE * OFFSETS_PER_PAGE }
    }

    fn last(self) -> TopicPartition {
        TopicPartition::new(self.topic, self.first + (OFFSETS_PER_PAGE - 1))
    }
}

/// A group as the store has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredGroup {
    /// Who is in it.
    pub membership: Membership,
    /// How far it has come.
    pub offsets: BTreeMap<TopicPartition, Committed>,
}

/// What becomes of a group in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Only offsets change.
    Keep,
    /// Who is in it changes, or the store has not had it before.
    Put(Membership),
    /// It goes, with all that belongs to it.
    Delete,
}

/// What a coordinator is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupInput {
    /// Somebody asks.
    Ask {
        /// The request.
        ask_id: AskId,
        /// The group.
        group: GroupName,
        /// What.
        ask: Ask,
    },
    /// A group as the store has it, if it has it. At the start of the broker, or after [`GroupEffect::Load`].
    Loaded {
        /// The group.
        group: GroupName,
        /// What the store has.
        stored: Option<StoredGroup>,
    },
    /// What became of the [`GroupEffect::Store`] of a group.
    Stored {
        /// The group.
        group: GroupName,
        /// Whether it is stored. False also when that is not known.
        done: bool,
    },
    /// Topics came, went or grew.
    Topics(Topics),
    /// Time has passed.
    Tick,
}

/// What a coordinator wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEffect {
    /// Claim a group anew, then read it; answered by [`GroupInput::Loaded`]. With the claim everything fails that was
    /// asked of the store before and has not happened yet, by this coordinator or an earlier one: what is read must not
    /// change behind the back of members who are answered by it.
    Load {
        /// The group.
        group: GroupName,
    },
    /// Store what changed, all or nothing, if the claim still holds; answered by [`GroupInput::Stored`].
    Store {
        /// The group.
        group: GroupName,
        /// What becomes of the group.
        change: Change,
        /// All pages with offsets that changed, as they are to be; a page without offsets goes.
        pages: BTreeMap<PageId, BTreeMap<u32, Committed>>,
    },
    /// Answer a request.
    Reply {
        /// The request.
        ask_id: AskId,
        /// The answer.
        reply: GroupReply,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupReply {
    /// To [`Ask::Join`] and [`Ask::Heartbeat`]: what the member may have.
    Granted {
        /// Since when.
        epoch: MemberEpoch,
        /// All of it.
        partitions: BTreeSet<TopicPartition>,
    },
    /// To [`Ask::Leave`].
    Left,
    /// To [`Ask::Commit`], a row for a row.
    Committed(Vec<(TopicPartition, Result<(), CommitRefusal>)>),
    /// To [`Ask::Offsets`].
    Offsets(BTreeMap<TopicPartition, Committed>),
    /// To [`Ask::Delete`].
    Deleted,
    /// To anything: no.
    Refused(GroupRefusal),
}

/// Why a group refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GroupRefusal {
    /// The member is not what it thinks it is.
    #[error(transparent)]
    Member(#[from] MemberRefusal),
    /// Offsets were to be set or deleted from outside while members work.
    #[error("the group has members; stop them first")]
    NotEmpty,
    /// There is nothing to delete.
    #[error("there is no such group, or it has no offsets of the topic")]
    UnknownGroup,
    /// The store did not confirm a change, or too much waits for it. The change may yet turn out to be made.
    #[error("the group's coordinator cannot store changes at the moment; try again")]
    Unavailable,
}

/// Why an offset is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum CommitRefusal {
    /// The member may not.
    #[error(transparent)]
    Member(#[from] MemberRefusal),
    /// There is no such topic.
    #[error("there is no topic {0} (any more)")]
    UnknownTopic(TopicId),
    /// The topic has fewer partitions.
    #[error("topic {} has no partition {}", .0.topic, .0.partition)]
    UnknownPartition(TopicPartition),
}

/// An answer that is given once what it rests on is stored.
#[derive(Debug)]
enum Promise {
    Granted { member: MemberId, known: Option<MemberEpoch>, wait: Duration },
    Offsets,
    Ready(GroupReply),
}

/// A heartbeat that waits for something to change.
#[derive(Debug)]
struct Held {
    ask_id: AskId,
    known: MemberEpoch,
    until: Instant,
}

/// A change on its way to the store.
#[derive(Debug)]
struct Draft {
    membership: Membership,
    /// Offsets that change; none is forgotten.
    offsets: BTreeMap<TopicPartition, Option<Committed>>,
    /// The group goes.
    deleted: bool,
    promises: Vec<(AskId, Promise)>,
}

#[derive(Debug, Default)]
struct Group {
    loaded: bool,
    /// The store has it.
    is_stored: bool,
    membership: Membership,
    offsets: BTreeMap<TopicPartition, Committed>,
    /// When each member's session ends.
    sessions: BTreeMap<MemberId, Instant>,
    /// The last heartbeat that was heard of each.
    beats: BTreeMap<MemberId, u64>,
    held: BTreeMap<MemberId, Held>,
    waiting: Vec<(Option<AskId>, Ask)>,
    draft: Option<Draft>,
    /// Offsets are not stored again before.
    offsets_after: Instant,
    topics_changed: bool,
    /// When it has to be looked at, as the coordinator noted.
    alarm: Option<Instant>,
}

/// The topics that exist.
#[derive(Debug, Default)]
struct World {
    topics: Topics,
    partitions: BTreeMap<TopicId, u32>,
}

impl World {
    fn new(topics: Topics) -> Self {
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

/// All groups that this broker coordinates.
#[derive(Debug)]
pub struct Coordinator {
    groups: BTreeMap<GroupName, Group>,
    /// When groups have to be looked at.
    alarms: BTreeSet<(Instant, GroupName)>,
    world: World,
    settings: CoordinatorSettings,
}

/// What an operator may decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoordinatorSettings {
    /// Least time between two stores of a group's offsets.
    pub offset_interval: Duration,
    /// How long the offsets of a group without members are kept.
    pub offsets_retention: Duration,
}

impl Coordinator {
    /// A coordinator without groups, where these topics exist.
    #[must_use]
    pub fn new(topics: Topics, settings: CoordinatorSettings) -> Self {
        Self { groups: BTreeMap::new(), alarms: BTreeSet::new(), world: World::new(topics), settings }
    }

    /// The groups whose names come after this one, in order.
    pub fn groups_after(&self, after: &str) -> impl Iterator<Item = (&GroupName, &Membership)> {
        let later = self.groups.iter().skip_while(move |(name, _)| name.as_str() <= after);
        later.filter(|(_, group)| group.is_stored).map(|(name, group)| (name, &group.membership))
    }

    /// How many groups are kept here, with those that are only asked about.
    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether nothing is kept here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Whether anything of a group is kept here.
    #[must_use]
    pub fn knows(&self, name: &GroupName) -> bool {
        self.groups.contains_key(name)
    }

    /// What the store has of a group.
    #[must_use]
    pub fn group(&self, name: &GroupName) -> Option<(&Membership, &BTreeMap<TopicPartition, Committed>)> {
        let group = self.groups.get(name).filter(|group| group.is_stored)?;
        Some((&group.membership, &group.offsets))
    }

    /// The topics that exist, by name.
    #[must_use]
    pub fn topics(&self) -> &Topics {
        &self.world.topics
    }

    /// When [`GroupInput::Tick`] is due.
    #[must_use]
    pub fn next_tick(&self) -> Option<Instant> {
        self.alarms.first().map(|(at, _)| *at)
    }

    /// Takes one input. What is to be done is appended to `out`.
    pub fn step(&mut self, now: Now, input: GroupInput, out: &mut Vec<GroupEffect>) {
        match input {
            GroupInput::Ask { ask_id, group, ask } => self.ask(now, ask_id, &group, ask, out),
            GroupInput::Loaded { group, stored } => {
                let entry = self.groups.entry(group.clone()).or_default();
                if !entry.loaded {
                    entry.load(now, stored);
                    self.pump(now, &group, out);
                }
            }
            GroupInput::Stored { group, done } => {
                if let Some(entry) = self.groups.get_mut(&group) {
                    entry.stored(now, &group, done, self.settings.offset_interval, out);
                    self.pump(now, &group, out);
                }
            }
            GroupInput::Topics(topics) => {
                self.world = World::new(topics);
                let names: Vec<GroupName> = self.groups.keys().cloned().collect();
                for name in names {
                    if let Some(group) = self.groups.get_mut(&name) {
                        group.topics_changed = true;
                    }
                    self.pump(now, &name, out);
                }
            }
            GroupInput::Tick => {
                while let Some((at, name)) = self.alarms.pop_first() {
                    if at > now.instant {
                        self.alarms.insert((at, name));
                        break;
                    }
                    if let Some(group) = self.groups.get_mut(&name) {
                        group.alarm = None;
                        group.expire(now, self.settings.offsets_retention, out);
                    }
                    self.pump(now, &name, out);
                }
            }
        }
    }

    fn ask(&mut self, now: Now, ask_id: AskId, name: &GroupName, ask: Ask, out: &mut Vec<GroupEffect>) {
        if !self.groups.contains_key(name) && self.groups.len() < GROUPS_MAX {
            out.push(GroupEffect::Load { group: name.clone() });
            self.groups.insert(name.clone(), Group::default());
        }
        let room = |group: &&mut Group| group.waiting.len() < GROUP_REQUESTS_MAX;
        let Some(group) = self.groups.get_mut(name).filter(room) else {
            return out.push(refused(ask_id, GroupRefusal::Unavailable));
        };
        let ask = group.seen(now, ask);
        group.waiting.push((Some(ask_id), ask));
        self.pump(now, name, out);
    }

    /// Works on what waits, and notes when the group has to be looked at again.
    fn pump(&mut self, now: Now, name: &GroupName, out: &mut Vec<GroupEffect>) {
        self.work(now, name, out);
        let Some(group) = self.groups.get_mut(name) else { return };
        let next = group.next_alarm(now, self.settings.offsets_retention);
        if let Some(before) = std::mem::replace(&mut group.alarm, next).filter(|before| Some(*before) != next)
        {
            self.alarms.remove(&(before, name.clone()));
        }
        if let Some(next) = next {
            self.alarms.insert((next, name.clone()));
        }
    }

    /// Works on what waits, unless a change of the group is on its way.
    fn work(&mut self, now: Now, name: &GroupName, out: &mut Vec<GroupEffect>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        if !group.loaded || group.draft.is_some() {
            return;
        }
        if group.waiting.is_empty() && !group.topics_changed {
            if !group.is_stored {
                self.forget(name);
            }
            return;
        }
        let draft = group.drafted(now, &self.world);
        let change = group.change(&draft);
        if change == Change::Keep && draft.offsets.is_empty() {
            for (ask_id, promise) in draft.promises {
                group.keep(now, ask_id, promise, out);
            }
            // One that the store does not have either is not worth its place.
            if group.waiting.is_empty() && !group.is_stored {
                self.forget(name);
            }
            return;
        }
        let pages = group.pages(&draft);
        group.draft = Some(draft);
        out.push(GroupEffect::Store { group: name.clone(), change, pages });
    }

    fn forget(&mut self, name: &GroupName) {
        if let Some(alarm) = self.groups.remove(name).and_then(|group| group.alarm) {
            self.alarms.remove(&(alarm, name.clone()));
        }
    }
}

impl Group {
    /// Takes what the store has. Everybody in it gets a whole session: nobody could be heard meanwhile.
    fn load(&mut self, now: Now, stored: Option<StoredGroup>) {
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
    fn seen(&mut self, now: Now, ask: Ask) -> Ask {
        let (member, beat) = match &ask {
            Ask::Heartbeat { member, beat, .. } => (*member, Some(*beat)),
            Ask::Join { member, .. } => (*member, None),
            _ => return ask,
        };
        if let Some(beat) = beat {
            let last = self.beats.entry(member).or_default();
            if beat < *last {
                return Ask::Granted { member };
            }
            *last = beat;
        }
        let counts = !cfg!(mutant = "group_session_counts_from_the_join");
        if let Some(info) = self.membership.info(member).filter(|_| counts) {
            self.sessions.insert(member, now.instant.after(info.session_timeout));
        }
        ask
    }

    /// Ends the sessions of the silent, and answers heartbeats that were held long enough. Not while the group is being
    /// read: what is known of it then may be out of date.
    fn expire(&mut self, now: Now, offsets_retention: Duration, out: &mut Vec<GroupEffect>) {
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
    fn idle_left(&self, now: Now, offsets_retention: Duration) -> Option<Duration> {
        let since = self.membership.idle_since_ms()?;
        let idle = Duration::from_millis(u64::try_from(now.wall_ms.saturating_sub(since)).unwrap_or(0));
        Some(offsets_retention.saturating_sub(idle))
    }

    /// When something is due here that nobody asks for.
    fn next_alarm(&self, now: Now, offsets_retention: Duration) -> Option<Instant> {
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
    fn drafted(&mut self, now: Now, world: &World) -> Draft {
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
    fn change(&self, draft: &Draft) -> Change {
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
    fn pages(&self, draft: &Draft) -> BTreeMap<PageId, BTreeMap<u32, Committed>> {
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

    fn stored(
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
        for (tp, committed) in draft.offsets {
            match committed {
                Some(committed) => self.offsets.insert(tp, committed),
                None => self.offsets.remove(&tp),
            };
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
    fn keep(&mut self, now: Now, ask_id: AskId, promise: Promise, out: &mut Vec<GroupEffect>) {
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

fn refused(ask_id: AskId, refusal: GroupRefusal) -> GroupEffect {
    GroupEffect::Reply { ask_id, reply: GroupReply::Refused(refusal) }
}

#[cfg(test)]
mod tests;
