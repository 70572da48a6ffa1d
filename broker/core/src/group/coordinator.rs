//! The coordinator of this broker's groups: sessions, waiting heartbeats, committed offsets, and what is to be stored.
//!
//! Called by the control thread's hands, which load and store groups and carry answers. One change of a group is on its
//! way to the store at a time; what is asked meanwhile waits and makes the next one together. Invariants: what a group
//! is changes only by what the store has confirmed; an answer leaves only after everything it says is stored; answers
//! that read see what was asked before them. A change that the store refuses, or whose outcome is unknown, is forgotten
//! here and the group is read again: nobody was answered that it was done.
//!
//! Refuses to know the store's keys and revisions, connections, and where the wall clock comes from.

mod desk;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use corelog_wire::ids::{Offset, TopicId, TopicPartition};

use super::asks::{Ask, AskId, Change, Committed, GroupEffect, GroupInput, GroupRefusal, GroupReply};
use super::{GroupName, Membership, Topics};
use crate::limits::{GROUP_REQUESTS_MAX, GROUPS_MAX};
use crate::time::{Instant, Now};
use desk::{Group, World};

/// All groups that this broker coordinates.
#[derive(Debug)]
pub struct Coordinator {
    groups: BTreeMap<GroupName, Group>,
    /// When groups have to be looked at.
    alarms: BTreeSet<(Instant, GroupName)>,
    world: World,
    /// Whose offsets do not expire.
    protected: BTreeSet<GroupName>,
    settings: CoordinatorSettings,
}

/// What an operator may decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoordinatorSettings {
    /// Least time between two stores of a group's offsets.
    pub offset_interval: Duration,
    /// How long the offsets of a group without members are kept, unless a topic protects it.
    pub offsets_retention: Duration,
}

impl Coordinator {
    /// A coordinator without groups, where these topics exist.
    #[must_use]
    pub fn new(topics: Topics, settings: CoordinatorSettings) -> Self {
        Self {
            groups: BTreeMap::new(),
            alarms: BTreeSet::new(),
            world: World::new(topics),
            protected: BTreeSet::new(),
            settings,
        }
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

    /// For each partition of a topic the offset before which all of these groups have read it, as far as their commits are
    /// stored. A group that has committed nothing there has read nothing.
    #[must_use]
    pub fn read_up_to(&self, topic: TopicId, partitions: u32, groups: &[GroupName]) -> Vec<Offset> {
        let mut read = vec![Offset::new(u64::MAX); partitions as usize];
        for group in groups {
            let committed = self.group(group).map(|(_, offsets)| {
                offsets.range(TopicPartition::new(topic, 0)..TopicPartition::new(topic, partitions))
            });
            let mut committed = committed.into_iter().flatten().peekable();
            for (partition, least) in (0..).zip(&mut read) {
                let here = committed.next_if(|(tp, _)| tp.partition == partition);
                *least = here.map_or(Offset::ZERO, |(_, committed)| committed.offset).min(*least);
            }
        }
        read
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
            GroupInput::Protected(groups) => {
                let before = std::mem::replace(&mut self.protected, groups);
                let changed: Vec<GroupName> = before.symmetric_difference(&self.protected).cloned().collect();
                for name in changed {
                    self.pump(now, &name, out);
                }
            }
            GroupInput::Tick => {
                while let Some((at, name)) = self.alarms.pop_first() {
                    if at > now.instant {
                        self.alarms.insert((at, name));
                        break;
                    }
                    let offsets_retention = self.offsets_retention(&name);
                    if let Some(group) = self.groups.get_mut(&name) {
                        group.alarm = None;
                        group.expire(now, offsets_retention, out);
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
        let offsets_retention = self.offsets_retention(name);
        let Some(group) = self.groups.get_mut(name) else { return };
        let next = group.next_alarm(now, offsets_retention);
        if let Some(before) = std::mem::replace(&mut group.alarm, next).filter(|before| Some(*before) != next)
        {
            self.alarms.remove(&(before, name.clone()));
        }
        if let Some(next) = next {
            self.alarms.insert((next, name.clone()));
        }
    }

    /// How long the group's offsets are kept without members; none: for ever.
    fn offsets_retention(&self, name: &GroupName) -> Option<Duration> {
        (!self.protected.contains(name)).then_some(self.settings.offsets_retention)
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

fn refused(ask_id: AskId, refusal: GroupRefusal) -> GroupEffect {
    GroupEffect::Reply { ask_id, reply: GroupReply::Refused(refusal) }
}

#[cfg(test)]
mod tests;
