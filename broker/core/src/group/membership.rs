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
use std::time::Duration;

use corelog_wire::ids::{MemberEpoch, MemberId, TopicId, TopicPartition};
use corelog_wire::message::Assignor;
use thiserror::Error;

use super::Subscription;
use super::assign::assign;
use crate::limits::GROUP_MEMBERS_MAX;

/// The topics that exist: by name, the id and the number of partitions.
pub type Topics = BTreeMap<String, (TopicId, u32)>;

/// What a member says of itself when it joins, and whenever it changes its mind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// How long it may be silent before its session ends.
    pub session_timeout: Duration,
    /// A name that outlives the process: a member that left for a restart gets its partitions back under it.
    pub instance: Option<String>,
    /// What it wants to read.
    pub subscription: Subscription,
    /// How it wants the group's partitions to be spread.
    pub assignor: Assignor,
}

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
    /// The group takes no more members.
    #[error("the group has {GROUP_MEMBERS_MAX} members and takes no more")]
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
}

impl Membership {
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
        match holder {
            Some(other) if other != id && !self.members[&other].away => {
                return Err(MemberRefusal::InstanceInUse);
            }
            Some(other) if other != id => self.take_seat(other, id),
            _ => {}
        }
        let known = self.members.get(&id);
        if known.is_some_and(|member| member.info == info && !member.away) {
            return Ok(());
        }
        if known.is_none() && self.members.len() >= GROUP_MEMBERS_MAX {
            return Err(MemberRefusal::GroupFull);
        }
        // One that is new enters an epoch that its group has not reached, and which `reconcile` then begins.
        let epoch = known.map_or(MemberEpoch::new(self.epoch + 1), |member| member.epoch);
        self.members.insert(id, Member { info, epoch, away: false });
        self.settle(topics);
        Ok(())
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
        if epoch < member.epoch {
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
    /// [`MemberRefusal::UnknownMember`].
    pub fn change(&mut self, id: MemberId, info: MemberInfo, topics: &Topics) -> Result<(), MemberRefusal> {
        let member = self.members.get_mut(&id).ok_or(MemberRefusal::UnknownMember)?;
        if member.info != info {
            member.info = info;
            self.settle(topics);
        }
        Ok(())
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
    pub fn topics_changed(&mut self, topics: &Topics) {
        self.settle(topics);
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
