//! The coordinator of this broker's groups: sessions, waiting heartbeats, committed offsets, and what is to be stored.
//!
//! Called by the control thread's hands, which load and store groups and carry answers. One change of a group is on its
//! way to the store at a time; what is asked meanwhile waits and makes the next one together. Invariants: what a group
//! is changes only by what the store has confirmed; an answer leaves only after everything it says is stored; answers
//! that read see what was asked before them. A change that the store refuses, or whose outcome is unknown, is forgotten
//! here and the group is read again: nobody was answered that it was done.
//!
//! Refuses to know the store's keys and revisions, connections, and the wall clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use corelog_wire::ids::{LeaderEpoch, MemberEpoch, MemberId, Offset, TopicPartition};
use thiserror::Error;

use super::{MemberInfo, MemberRefusal, Membership, Topics};
use crate::limits::{GROUP_REQUESTS_MAX, GROUPS_MAX};
use crate::time::Instant;

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
        /// What it wants, if that changed.
        info: Option<MemberInfo>,
        /// How long the answer may be held while nothing changes for the member.
        wait: Duration,
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
}

impl Ask {
    fn member(&self) -> Option<MemberId> {
        match self {
            Self::Join { member, .. } | Self::Heartbeat { member, .. } | Self::Leave { member, .. } => {
                Some(*member)
            }
            Self::Commit { member, .. } => member.map(|(id, _)| id),
            Self::Offsets => None,
        }
    }

    /// Whether it must not be done before what waits already: what a member committed has to be in before it lets go or
    /// leaves, and who reads sees what was asked before.
    fn is_behind(&self, waiting: &[(Option<AskId>, Self)]) -> bool {
        let member = self.member();
        waiting.iter().any(|(_, other)| member.is_none() || other.member() == member)
    }
}

/// What a coordinator is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupInput {
    /// Somebody asks.
    Ask {
        /// The request.
        ask_id: AskId,
        /// The group.
        group: String,
        /// What.
        ask: Ask,
    },
    /// A group as the store has it; empty if it has none. At the start of the broker, or after [`GroupEffect::Load`].
    Loaded {
        /// The group.
        group: String,
        /// Who is in it.
        membership: Membership,
        /// How far it has come.
        offsets: BTreeMap<TopicPartition, Committed>,
    },
    /// What became of the [`GroupEffect::Store`] of a group.
    Stored {
        /// The group.
        group: String,
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
        group: String,
    },
    /// Store what changed, all or nothing, if the claim still holds; answered by [`GroupInput::Stored`].
    Store {
        /// The group.
        group: String,
        /// Who is in it, if that changed.
        membership: Option<Membership>,
        /// The offsets that changed.
        offsets: BTreeMap<TopicPartition, Committed>,
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
    Committed(Vec<(TopicPartition, Result<(), MemberRefusal>)>),
    /// To [`Ask::Offsets`].
    Offsets(BTreeMap<TopicPartition, Committed>),
    /// To anything: no.
    Refused(GroupRefusal),
}

/// Why a group refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GroupRefusal {
    /// The member is not what it thinks it is.
    #[error(transparent)]
    Member(#[from] MemberRefusal),
    /// Offsets were to be set from outside while members work.
    #[error("the group has members; stop them first")]
    NotEmpty,
    /// The store did not confirm a change, or too much waits for it. The change may yet turn out to be made.
    #[error("the group's coordinator cannot store changes at the moment; try again")]
    Unavailable,
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
    offsets: BTreeMap<TopicPartition, Committed>,
    promises: Vec<(AskId, Promise)>,
}

#[derive(Debug, Default)]
struct Group {
    loaded: bool,
    membership: Membership,
    offsets: BTreeMap<TopicPartition, Committed>,
    /// When each member's session ends.
    sessions: BTreeMap<MemberId, Instant>,
    held: BTreeMap<MemberId, Held>,
    waiting: Vec<(Option<AskId>, Ask)>,
    draft: Option<Draft>,
    /// Offsets are not stored again before.
    offsets_after: Instant,
    topics_changed: bool,
}

/// All groups that this broker coordinates.
#[derive(Debug)]
pub struct Coordinator {
    groups: BTreeMap<String, Group>,
    topics: Topics,
    /// Least time between two stores of a group's offsets.
    offset_interval: Duration,
}

impl Coordinator {
    /// A coordinator without groups.
    #[must_use]
    pub fn new(offset_interval: Duration) -> Self {
        Self { groups: BTreeMap::new(), topics: Topics::new(), offset_interval }
    }

    /// The groups and who is in them, as stored.
    pub fn groups(&self) -> impl Iterator<Item = (&str, &Membership)> {
        self.groups.iter().map(|(name, group)| (name.as_str(), &group.membership))
    }

    /// Takes one input. What is to be done is appended to `out`.
    pub fn step(&mut self, now: Instant, input: GroupInput, out: &mut Vec<GroupEffect>) {
        match input {
            GroupInput::Ask { ask_id, group, ask } => self.ask(now, ask_id, &group, ask, out),
            GroupInput::Loaded { group, membership, offsets } => {
                let entry = self.groups.entry(group.clone()).or_default();
                if !entry.loaded {
                    entry.load(now, membership, offsets);
                    self.pump(now, &group, out);
                }
            }
            GroupInput::Stored { group, done } => {
                if let Some(entry) = self.groups.get_mut(&group) {
                    entry.stored(now, &group, done, self.offset_interval, out);
                    self.pump(now, &group, out);
                }
            }
            GroupInput::Topics(topics) => {
                self.topics = topics;
                self.groups.values_mut().for_each(|group| group.topics_changed = true);
                self.pump_all(now, out);
            }
            GroupInput::Tick => {
                self.groups.values_mut().for_each(|group| group.expire(now, out));
                self.pump_all(now, out);
            }
        }
    }

    fn ask(&mut self, now: Instant, ask_id: AskId, name: &str, ask: Ask, out: &mut Vec<GroupEffect>) {
        if !self.groups.contains_key(name) && self.groups.len() < GROUPS_MAX {
            out.push(GroupEffect::Load { group: name.to_owned() });
            self.groups.insert(name.to_owned(), Group::default());
        }
        let room = |group: &&mut Group| group.waiting.len() < GROUP_REQUESTS_MAX;
        let Some(group) = self.groups.get_mut(name).filter(room) else {
            return out.push(refused(ask_id, GroupRefusal::Unavailable));
        };
        group.seen(now, &ask);
        group.waiting.push((Some(ask_id), ask));
        self.pump(now, name, out);
    }

    fn pump_all(&mut self, now: Instant, out: &mut Vec<GroupEffect>) {
        let names: Vec<String> = self.groups.keys().cloned().collect();
        for name in names {
            self.pump(now, &name, out);
        }
    }

    /// Works on what waits, unless a change of the group is on its way.
    fn pump(&mut self, now: Instant, name: &str, out: &mut Vec<GroupEffect>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        if !group.loaded || group.draft.is_some() {
            return;
        }
        if group.waiting.is_empty() && !group.topics_changed {
            return;
        }
        let draft = group.drafted(now, &self.topics);
        let membership = (draft.membership != group.membership).then(|| draft.membership.clone());
        if membership.is_none() && draft.offsets.is_empty() {
            for (ask_id, promise) in draft.promises {
                group.keep(now, ask_id, promise, out);
            }
            // One that the store does not have either is not worth its place.
            if group.waiting.is_empty() && group.membership.is_empty() && group.offsets.is_empty() {
                self.groups.remove(name);
            }
            return;
        }
        let offsets = draft.offsets.clone();
        group.draft = Some(draft);
        out.push(GroupEffect::Store { group: name.to_owned(), membership, offsets });
    }
}

impl Group {
    /// Takes what the store has. Everybody in it gets a whole session: nobody could be heard meanwhile.
    fn load(&mut self, now: Instant, membership: Membership, offsets: BTreeMap<TopicPartition, Committed>) {
        self.sessions =
            membership.members().map(|(id, info)| (id, now.after(info.session_timeout))).collect();
        (self.membership, self.offsets, self.loaded) = (membership, offsets, true);
        // Topics may have changed while nobody coordinated the group.
        self.topics_changed = true;
    }

    /// A member spoke: its session begins anew, whatever becomes of what it said.
    fn seen(&mut self, now: Instant, ask: &Ask) {
        let (Ask::Heartbeat { member, .. } | Ask::Join { member, .. }) = ask else { return };
        if let Some(info) = self.membership.info(*member) {
            self.sessions.insert(*member, now.after(info.session_timeout));
        }
    }

    /// Ends the sessions of the silent, and answers heartbeats that were held long enough. Not while the group is being
    /// read: what is known of it then may be out of date.
    fn expire(&mut self, now: Instant, out: &mut Vec<GroupEffect>) {
        if !self.loaded {
            return;
        }
        let silent: Vec<MemberId> =
            self.sessions.iter().filter(|(_, end)| **end <= now).map(|(&id, _)| id).collect();
        for member in silent {
            self.sessions.remove(&member);
            self.waiting.push((None, Ask::Leave { member, away: false }));
        }
        let over: Vec<MemberId> =
            self.held.iter().filter(|(_, held)| held.until <= now).map(|(&id, _)| id).collect();
        for member in over {
            self.release(member, out);
        }
    }

    /// What the group would be after all that waits, and the answers that would follow.
    fn drafted(&mut self, now: Instant, topics: &Topics) -> Draft {
        let mut draft =
            Draft { membership: self.membership.clone(), offsets: BTreeMap::new(), promises: Vec::new() };
        if std::mem::take(&mut self.topics_changed) {
            draft.membership.topics_changed(topics);
        }
        let early = now < self.offsets_after;
        let mut later = Vec::new();
        for (ask_id, ask) in std::mem::take(&mut self.waiting) {
            if early && matches!(ask, Ask::Commit { .. }) || ask.is_behind(&later) {
                later.push((ask_id, ask));
                continue;
            }
            let promise = draft.take(ask, topics, &self.offsets);
            draft.promises.extend(ask_id.map(|ask_id| (ask_id, promise)));
        }
        self.waiting = later;
        draft
    }

    fn stored(
        &mut self,
        now: Instant,
        name: &str,
        done: bool,
        offset_interval: Duration,
        out: &mut Vec<GroupEffect>,
    ) {
        let Some(draft) = self.draft.take() else { return };
        if !done {
            self.loaded = false;
            let unanswered = draft.promises.into_iter().map(|(ask_id, _)| ask_id);
            out.extend(unanswered.map(|ask_id| refused(ask_id, GroupRefusal::Unavailable)));
            out.push(GroupEffect::Load { group: name.to_owned() });
            return;
        }
        if !draft.offsets.is_empty() {
            self.offsets_after = now.after(offset_interval);
        }
        self.membership = draft.membership;
        self.offsets.extend(draft.offsets);
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
    fn renew_sessions(&mut self, now: Instant) {
        let mut before = std::mem::take(&mut self.sessions);
        for (id, info) in self.membership.members() {
            let end = before.remove(&id).unwrap_or(now.after(info.session_timeout));
            self.sessions.insert(id, end);
        }
    }

    /// Gives the answer that was promised, or holds it while it has nothing new to say.
    fn keep(&mut self, now: Instant, ask_id: AskId, promise: Promise, out: &mut Vec<GroupEffect>) {
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
                self.held.insert(member, Held { ask_id, known, until: now.after(wait) });
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
    fn take(&mut self, ask: Ask, topics: &Topics, stored: &BTreeMap<TopicPartition, Committed>) -> Promise {
        let refused = |refusal: MemberRefusal| Promise::Ready(GroupReply::Refused(refusal.into()));
        match ask {
            Ask::Join { member, info } => match self.membership.join(member, info, topics) {
                Ok(()) => Promise::Granted { member, known: None, wait: Duration::ZERO },
                Err(refusal) => refused(refusal),
            },
            Ask::Heartbeat { member, epoch, has, info, wait } => {
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
            Ask::Commit { member, offsets } => self.commit(member, offsets, stored),
            Ask::Offsets => Promise::Offsets,
        }
    }

    fn commit(
        &mut self,
        member: Option<(MemberId, MemberEpoch)>,
        offsets: Vec<(TopicPartition, Committed)>,
        stored: &BTreeMap<TopicPartition, Committed>,
    ) -> Promise {
        if member.is_none() && !self.membership.is_empty() {
            return Promise::Ready(GroupReply::Refused(GroupRefusal::NotEmpty));
        }
        let mut rows = Vec::with_capacity(offsets.len());
        for (tp, committed) in offsets {
            let check = member.map_or(Ok(()), |(id, epoch)| self.membership.check_commit(id, epoch, tp));
            let before = self.offsets.get(&tp).or_else(|| stored.get(&tp));
            let forward = member.is_none() || before.is_none_or(|before| before.offset <= committed.offset);
            if check.is_ok() && forward && before != Some(&committed) {
                self.offsets.insert(tp, committed);
            }
            rows.push((tp, check));
        }
        Promise::Ready(GroupReply::Committed(rows))
    }
}

fn refused(ask_id: AskId, refusal: GroupRefusal) -> GroupEffect {
    GroupEffect::Reply { ask_id, reply: GroupReply::Refused(refusal) }
}

#[cfg(test)]
mod tests;
