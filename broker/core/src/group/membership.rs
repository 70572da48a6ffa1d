//! Who is in one consumer group, who has which partition, and whose commits count.
//!
//! Called by the group's coordinator, which keeps this in the metadata store: a change is made on a copy, the copy is
//! stored, and only then does it count and is anybody answered. So a coordinator that starts again goes on where the
//! store is. The idea is that of KIP-848: the coordinator computes who is to have what, each member is told what it may
//! have, and a partition goes over only after its old holder has let go of it.
//!
//! Invariants: a partition has one holder at most, from the moment the holder may learn of it until the holder has said,
//! knowing that it should, that it let go, or has left. The epoch of a group and of a member never falls. A member's
//! epoch rises whenever what it may have changes, so a word said in an older epoch releases nothing. Every wanted
//! partition that is held by its target's member is not on its way elsewhere.
//!
//! Refuses to know time (sessions end by [`Membership::leave`]), stores, and committed offsets.

use std::collections::{BTreeMap, BTreeSet};

use corelog_wire::ids::{MemberEpoch, MemberId, TopicId, TopicPartition};
use corelog_wire::message::Assignor;
use thiserror::Error;

use super::assign::assign;
use super::{MemberInfo, Subscription};
use crate::limits::{GROUP_BYTES_MAX, GROUP_MEMBERS_MAX};

/// The topics that exist: by name, the id and the number of partitions.
pub type Topics = BTreeMap<String, (TopicId, u32)>;

/// Why a member is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MemberRefusal {
    /// Its session ended, or it never joined. It has nothing any more and has to join again.
    #[error("the group does not know this member (any more): stop what it has and join again")]
    UnknownMember,
    /// It names an epoch that it was not given, or partitions that it does not hold.
    #[error("the member claims what the group did not give it: stop what it has and join again")]
    Fenced,
    /// Another living member has the instance id.
    #[error("another member of this group has this instance id")]
    InstanceInUse,
    /// The group takes no more members, or no more of what its members say and have.
    #[error(
        "the group is full: {GROUP_MEMBERS_MAX} members at most, and {GROUP_BYTES_MAX} bytes of what is kept of them"
    )]
    GroupFull,
    /// A commit for a partition that the member did not hold when it said so.
    #[error("the member does not hold partition {} of topic {}", tp.partition, tp.topic)]
    NotHolder {
        /// The partition.
        tp: TopicPartition,
    },
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    info: MemberInfo,
    /// When what it may have changed last.
    epoch: MemberEpoch,
    /// Left for a restart: holds its partitions but works on none.
    away: bool,
}

/// Who has a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Holding {
    member: MemberId,
    /// The epoch of the member that gave it the partition.
    since: MemberEpoch,
    /// The member was told to let go.
    leaving: bool,
}

/// One group's members and what each has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    epoch: u64,
    members: BTreeMap<MemberId, Member>,
    target: BTreeMap<TopicPartition, MemberId>,
    holdings: BTreeMap<TopicPartition, Holding>,
    /// Since when nobody is in it, in milliseconds since 1970; known for a group without members.
    idle_since_ms: Option<i64>,
}

/// A [`Membership`] as it is stored and shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MembershipRecord {
    /// How often anything about who has what changed.
    pub epoch: u64,
    /// By id.
    pub members: Vec<MemberRecord>,
    /// By topic and partition.
    pub held: Vec<HeldRecord>,
    /// Since when nobody is in it, in milliseconds since 1970; known for a group without members.
    pub idle_since_ms: Option<i64>,
}

/// A member as it is stored and shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRecord {
    /// Who.
    pub id: MemberId,
    /// What it said of itself.
    pub info: MemberInfo,
    /// When what it may have changed last.
    pub epoch: MemberEpoch,
    /// Left for a restart.
    pub away: bool,
}

/// Who has a partition, as it is stored and shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldRecord {
    /// Which partition.
    pub tp: TopicPartition,
    /// Its holder.
    pub holder: MemberId,
    /// The epoch of the holder that gave it the partition.
    pub since: MemberEpoch,
    /// Who is to have it; the holder was told to let go if that is somebody else, or nobody.
    pub target: Option<MemberId>,
}

/// A stored membership that cannot be: what is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct BrokenRecord(pub &'static str);

impl Membership {
    /// What is stored of it.
    #[must_use]
    pub fn record(&self) -> MembershipRecord {
        let member = |(&id, member): (&MemberId, &Member)| MemberRecord {
            id,
            info: member.info.clone(),
            epoch: member.epoch,
            away: member.away,
        };
        let held = |(&tp, holding): (&TopicPartition, &Holding)| HeldRecord {
            tp,
            holder: holding.member,
            since: holding.since,
            target: self.target.get(&tp).copied(),
        };
        MembershipRecord {
            epoch: self.epoch,
            members: self.members.iter().map(member).collect(),
            held: self.holdings.iter().map(held).collect(),
            idle_since_ms: self.idle_since_ms,
        }
    }

    /// What was stored.
    ///
    /// # Errors
    /// [`BrokenRecord`]: no membership was ever like this.
    pub fn restore(record: MembershipRecord) -> Result<Self, BrokenRecord> {
        let mut restored =
            Self { epoch: record.epoch, idle_since_ms: record.idle_since_ms, ..Self::default() };
        for MemberRecord { id, info, epoch, away } in record.members {
            restored.members.insert(id, Member { info, epoch, away });
        }
        for HeldRecord { tp, holder, since, target } in record.held {
            let holding = Holding { member: holder, since, leaving: target != Some(holder) };
            restored.holdings.insert(tp, holding);
            if let Some(target) = target {
                restored.target.insert(tp, target);
            }
        }
        restored.broken_invariant().map_or(Ok(restored), |rule| Err(BrokenRecord(rule)))
    }

    /// Since when nobody is in it, in milliseconds since 1970, if nobody is.
    #[must_use]
    pub fn idle_since_ms(&self) -> Option<i64> {
        self.idle_since_ms
    }

    /// Notes that now nobody is in it, if so.
    pub(super) fn note_idle(&mut self, now_ms: i64) {
        self.idle_since_ms = self.members.is_empty().then_some(now_ms);
    }

    /// About what it takes to store it.
    fn stored_bytes(&self) -> usize {
        const MEMBER_BYTES: usize = 256;
        const HOLDING_BYTES: usize = 48;
        let texts: usize = self.members.values().map(|member| member.info.text_bytes()).sum();
        // A text may need an escape for each of its bytes.
        MEMBER_BYTES * self.members.len() + 2 * texts + HOLDING_BYTES * self.holdings.len()
    }

    /// How often anything about who has what changed.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether nobody is in the group.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// What a member said of itself.
    #[must_use]
    pub fn info(&self, id: MemberId) -> Option<&MemberInfo> {
        self.members.get(&id).map(|member| &member.info)
    }

    /// Who is in the group.
    pub fn members(&self) -> impl Iterator<Item = (MemberId, &MemberInfo)> {
        self.members.iter().map(|(&id, member)| (id, &member.info))
    }

    /// Takes a member in. One that is known already, whose first answer was lost, is left what it has. Its epoch and
    /// what it has are in [`Membership::granted`] afterwards.
    ///
    /// # Errors
    /// [`MemberRefusal::InstanceInUse`], [`MemberRefusal::GroupFull`].
    pub fn join(&mut self, id: MemberId, info: MemberInfo, topics: &Topics) -> Result<(), MemberRefusal> {
        let holder = info.instance.as_ref().and_then(|instance| self.instance_holder(instance));
        let seat = holder.filter(|&other| other != id);
        if seat.is_some_and(|other| !self.members[&other].away) {
            return Err(MemberRefusal::InstanceInUse);
        }
        let known = self.members.get(&id);
        if known.is_some_and(|member| member.info == info && !member.away) {
            return Ok(());
        }
        if known.is_none() && seat.is_none() && self.members.len() >= GROUP_MEMBERS_MAX {
            return Err(MemberRefusal::GroupFull);
        }
        self.within_bounds(|group| {
            if let Some(old) = seat {
                group.take_seat(old, id);
            }
            // One that is new enters an epoch that its group has not reached, and which `reconcile` then begins.
            let known = group.members.get(&id);
            let epoch = known.map_or(MemberEpoch::new(group.epoch + 1), |member| member.epoch);
            group.members.insert(id, Member { info, epoch, away: false });
            group.settle(topics);
        })
    }

    /// A member says what it has, and how far it knows what it was given. What it was told to let go of and does not
    /// name any more goes to its next holder.
    ///
    /// # Errors
    /// [`MemberRefusal::UnknownMember`], [`MemberRefusal::Fenced`].
    pub fn heard(
        &mut self,
        id: MemberId,
        epoch: MemberEpoch,
        has: &BTreeSet<TopicPartition>,
    ) -> Result<(), MemberRefusal> {
        let member = self.members.get(&id).ok_or(MemberRefusal::UnknownMember)?;
        if epoch > member.epoch {
            return Err(MemberRefusal::Fenced);
        }
        if epoch < member.epoch && !cfg!(mutant = "group_words_of_older_epochs_count") {
            // It does not know yet what it has; what it says of it is out of date.
            return Ok(());
        }
        let holds = |tp: &TopicPartition| self.holdings.get(tp).is_some_and(|holding| holding.member == id);
        if !has.iter().all(holds) {
            return Err(MemberRefusal::Fenced);
        }
        let before = self.holdings.len();
        self.holdings.retain(|tp, holding| holding.member != id || !holding.leaving || has.contains(tp));
        if self.holdings.len() != before {
            self.reconcile();
        }
        Ok(())
    }

    /// A member changes what it wants.
    ///
    /// # Errors
    /// [`MemberRefusal::UnknownMember`], [`MemberRefusal::GroupFull`].
    pub fn change(&mut self, id: MemberId, info: MemberInfo, topics: &Topics) -> Result<(), MemberRefusal> {
        let member = self.members.get(&id).ok_or(MemberRefusal::UnknownMember)?;
        if member.info == info {
            return Ok(());
        }
        self.within_bounds(|group| {
            if let Some(member) = group.members.get_mut(&id) {
                member.info = info;
            }
            group.settle(topics);
        })
    }

    /// A member is gone: it left, or its session ended. What it had is free at once.
    pub fn leave(&mut self, id: MemberId, topics: &Topics) {
        if self.members.remove(&id).is_some() {
            self.holdings.retain(|_, holding| holding.member != id);
            self.settle(topics);
        }
    }

    /// A member with an instance id stops for a restart, and works on nothing until then. What it has stays its own
    /// until its session ends. Without an instance id nobody could come back for it, so it leaves.
    pub fn go_away(&mut self, id: MemberId, topics: &Topics) {
        match self.members.get_mut(&id) {
            Some(member) if member.info.instance.is_some() => member.away = true,
            _ => self.leave(id, topics),
        }
    }

    /// Topics or partitions came or went.
    ///
    /// # Errors
    /// [`MemberRefusal::GroupFull`]: there are more partitions than the group can hold. It stays as it is.
    pub fn topics_changed(&mut self, topics: &Topics) -> Result<(), MemberRefusal> {
        self.within_bounds(|group| group.settle(topics))
    }

    /// What a member may have, and the epoch in which that is so. None if it is no member.
    #[must_use]
    pub fn granted(&self, id: MemberId) -> Option<(MemberEpoch, BTreeSet<TopicPartition>)> {
        let epoch = self.members.get(&id)?.epoch;
        let own = self.holdings.iter().filter(|(_, holding)| holding.member == id && !holding.leaving);
        Some((epoch, own.map(|(&tp, _)| tp).collect()))
    }

    /// Whether a member may commit an offset of a partition: it holds it, and spoke after it had been given it.
    ///
    /// # Errors
    /// [`MemberRefusal`].
    pub fn check_commit(
        &self,
        id: MemberId,
        epoch: MemberEpoch,
        tp: TopicPartition,
    ) -> Result<(), MemberRefusal> {
        let member = self.members.get(&id).ok_or(MemberRefusal::UnknownMember)?;
        if epoch > member.epoch {
            return Err(MemberRefusal::Fenced);
        }
        match self.holdings.get(&tp) {
            Some(holding) if holding.member == id && holding.since <= epoch => Ok(()),
            _ => Err(MemberRefusal::NotHolder { tp }),
        }
    }

    /// The rule of this room that does not hold, if one does not.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        let known = |id: &MemberId| self.members.contains_key(id);
        if !self.target.values().all(known) {
            return Some("a partition is meant for somebody who is no member");
        }
        if !self.holdings.values().all(|holding| known(&holding.member)) {
            return Some("a partition is held by somebody who is no member");
        }
        if self.members.values().any(|member| member.epoch.get() > self.epoch) {
            return Some("a member is ahead of its group");
        }
        let early = |holding: &Holding| holding.since > self.members[&holding.member].epoch;
        if self.holdings.values().any(early) {
            return Some("a partition was given in an epoch that its holder has not reached");
        }
        let stuck = |(tp, holding): (&TopicPartition, &Holding)| {
            holding.leaving == (self.target.get(tp) == Some(&holding.member))
        };
        if self.holdings.iter().any(stuck) {
            return Some("a partition stays where it should not, or leaves where it should stay");
        }
        if self.target.keys().any(|tp| !self.holdings.contains_key(tp)) {
            return Some("a wanted partition waits for nobody");
        }
        None
    }

    /// Makes a change, unless more would have to be kept afterwards than a group may have.
    fn within_bounds(&mut self, change: impl FnOnce(&mut Self)) -> Result<(), MemberRefusal> {
        let mut changed = self.clone();
        change(&mut changed);
        if changed.stored_bytes() > GROUP_BYTES_MAX.max(self.stored_bytes()) {
            return Err(MemberRefusal::GroupFull);
        }
        *self = changed;
        Ok(())
    }

    fn instance_holder(&self, instance: &str) -> Option<MemberId> {
        let has = |member: &Member| member.info.instance.as_deref() == Some(instance);
        self.members.iter().find(|(_, member)| has(member)).map(|(&id, _)| id)
    }

    /// Puts a new member in the place of one that is away. What that one had, it has from now on.
    fn take_seat(&mut self, old: MemberId, new: MemberId) {
        let Some(mut member) = self.members.remove(&old) else { return };
        self.epoch += 1;
        member.epoch = MemberEpoch::new(self.epoch);
        self.members.insert(new, member);
        for target in self.target.values_mut().filter(|target| **target == old) {
            *target = new;
        }
        // Nobody works on what was to be let go of.
        self.holdings.retain(|_, holding| holding.member != old || !holding.leaving);
        for holding in self.holdings.values_mut().filter(|holding| holding.member == old) {
            (holding.member, holding.since) = (new, MemberEpoch::new(self.epoch));
        }
        self.reconcile();
    }

    /// Computes anew who is to have what.
    fn settle(&mut self, topics: &Topics) {
        let wanted = |subscription: &Subscription| -> BTreeSet<TopicId> {
            topics.iter().filter(|(name, _)| subscription.wants(name)).map(|(_, &(id, _))| id).collect()
        };
        let subscriptions =
            self.members.iter().map(|(&id, member)| (id, wanted(&member.info.subscription))).collect();
        let partitions = topics.values().copied().collect();
        self.target = assign(self.assignor(), &subscriptions, &partitions, &self.target);
        self.reconcile();
    }

    /// The assignor that more members want; the default one if as many want either.
    fn assignor(&self) -> Assignor {
        let votes =
            |assignor| self.members.values().filter(|member| member.info.assignor == assignor).count();
        if votes(Assignor::Range) > votes(Assignor::Uniform) { Assignor::Range } else { Assignor::Uniform }
    }

    /// Gives what is free to whom it is meant for, and tells holders to let go of what is meant for others. Everybody
    /// for whom something changed enters a new epoch.
    fn reconcile(&mut self) {
        let epoch = MemberEpoch::new(self.epoch + 1);
        let mut changed = BTreeSet::new();
        for (tp, holding) in &mut self.holdings {
            let leaving = self.target.get(tp) != Some(&holding.member);
            if leaving != holding.leaving {
                holding.leaving = leaving;
                changed.insert(holding.member);
            }
        }
        for (&tp, &member) in &self.target {
            if cfg!(mutant = "group_gives_before_it_was_let_go") {
                self.holdings.retain(|other, holding| *other != tp || holding.member == member);
            }
            self.holdings.entry(tp).or_insert_with(|| {
                changed.insert(member);
                Holding { member, since: epoch, leaving: false }
            });
        }
        // One that has just joined is new to everything, also if nothing was left for it.
        let new = |member: &Member| member.epoch.get() > self.epoch;
        if changed.is_empty() && !self.members.values().any(new) {
            return;
        }
        self.epoch = epoch.get();
        for id in changed {
            if let Some(member) = self.members.get_mut(&id) {
                member.epoch = epoch;
            }
        }
        debug_assert_eq!(self.broken_invariant(), None);
    }
}

#[cfg(test)]
mod tests;
