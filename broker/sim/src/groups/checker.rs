//! What has to be true of a group, from what users were given and what the store took.
//!
//! G1: nobody is at work on a partition that another one may be at work on. G2, G3: committed offsets never fall, and
//! whoever gets a partition begins where the group has come to. G4: what is committed was done with before, or, at most
//! once, is never given again. G5 is the calm's: whoever is silent loses what he has, and everything is done in the end.

use super::Counts;
use corelog_client::{Batch, CommitMode};
use corelog_wire::ids::TopicPartition;
use corelog_wire::message::Request;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
struct Place {
    /// Everything below was given to somebody, and is done with.
    given: u64,
    done: u64,
    committed: Option<u64>,
    /// Who was seen with it last.
    holder: Option<usize>,
}

pub(super) struct Checker {
    commit: CommitMode,
    places: BTreeMap<TopicPartition, Place>,
    /// How far each member has been given what it has.
    reads: BTreeMap<(usize, TopicPartition), u64>,
    /// What users have and are not done with.
    open: BTreeMap<(usize, TopicPartition), u64>,
    pub(super) violation: Option<String>,
}

impl Checker {
    pub(super) fn new(commit: CommitMode) -> Self {
        Self {
            commit,
            places: BTreeMap::new(),
            reads: BTreeMap::new(),
            open: BTreeMap::new(),
            violation: None,
        }
    }

    fn fail(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    /// What members may be at work on.
    pub(super) fn holders(&mut self, holds: &[(usize, Vec<TopicPartition>)], counts: &mut Counts) {
        let mut taken = BTreeMap::new();
        for (member, tps) in holds {
            for tp in tps {
                if let Some(other) = taken.insert(*tp, *member) {
                    self.fail(|| format!("members {other} and {member} may both be at work on {tp:?}"));
                }
                let place = self.places.entry(*tp).or_default();
                if place.holder.replace(*member).is_some_and(|before| before != *member) {
                    counts.moved += 1;
                }
            }
        }
    }

    /// What a member has; of what it has not, it knows nothing any more.
    pub(super) fn shares(&mut self, member: usize, has: impl Iterator<Item = TopicPartition>) {
        let has: BTreeSet<TopicPartition> = has.collect();
        let gone = |(of, tp): &(usize, TopicPartition)| *of == member && !has.contains(tp);
        self.reads.retain(|key, _| !gone(key));
    }

    /// A user is given records.
    pub(super) fn given(
        &mut self,
        member: usize,
        batch: &Batch,
        tp: Option<TopicPartition>,
        counts: &mut Counts,
    ) {
        let Some(tp) = tp else {
            return self.fail(|| format!("member {member} gives what it does not have"));
        };
        counts.given += 1;
        let (first, next) = (batch.first_offset(), batch.next_offset());
        let place = self.places.entry(tp).or_default();
        let (given, committed) = (place.given, place.committed);
        place.given = given.max(next);
        counts.repeated += u64::from(first < given);
        for (record, expected) in batch.iter().zip(first..) {
            let is = record.value().and_then(|value| value.try_into().ok()).map(u64::from_le_bytes);
            if is != Some(record.offset()) || record.offset() != expected {
                self.fail(|| format!("{tp:?}: offset {expected} holds {is:?}"));
            }
        }
        let before = self.reads.insert((member, tp), next);
        if self.commit == CommitMode::Before {
            // What is given has been committed, and what was committed by others is not given.
            if committed.is_none_or(|committed| committed < next) || first < given {
                self.fail(|| {
                    format!("member {member} is given {tp:?} from {first} to {next}; {given} were given, {committed:?} is committed")
                });
            }
        } else if before != Some(first) && first != committed.unwrap_or(0) {
            self.fail(|| {
                format!("member {member} reads {tp:?} from {first}: not from {before:?}, nor the committed {committed:?}")
            });
        }
        self.open.insert((member, tp), next);
    }

    /// A user takes again: what he had is done with.
    pub(super) fn came_back(&mut self, member: usize) {
        let done = self.open.extract_if(.., |(of, _), _| *of == member);
        for ((_, tp), next) in done.collect::<Vec<_>>() {
            let place = self.places.entry(tp).or_default();
            place.done = place.done.max(next);
        }
    }

    /// A user ends: what he had is done with.
    pub(super) fn closes(&mut self, member: usize) {
        self.came_back(member);
    }

    /// A member asks the broker.
    pub(super) fn asks(&mut self, request: &Request, member: usize) {
        let Request::OffsetCommit(commit) = request else { return };
        if self.commit == CommitMode::Before {
            return;
        }
        for row in &commit.rows {
            let done = self.places.get(&row.tp).map_or(0, |place| place.done);
            if row.offset.get() > done {
                let (tp, offset) = (row.tp, row.offset);
                self.fail(|| {
                    format!("member {member} commits {offset} of {tp:?}, where {done} is done with")
                });
            }
        }
    }

    /// The store took offsets; how many.
    pub(super) fn stored(&mut self, offsets: &[(TopicPartition, u64, Option<u64>)]) -> u64 {
        for &(tp, offset, before) in offsets {
            if before.is_some_and(|before| before > offset) {
                self.fail(|| format!("{tp:?}: the committed offset falls from {before:?} to {offset}"));
            }
            self.places.entry(tp).or_default().committed = Some(offset);
        }
        offsets.len() as u64
    }

    /// What was not done with in a partition although there was time.
    pub(super) fn unfinished(&self, tp: TopicPartition, end: u64, committed: Option<u64>) -> Option<String> {
        let given = self.places.get(&tp).map_or(0, |place| place.given);
        // At most once: what was committed and then lost was never given.
        let wanted =
            if self.commit == CommitMode::Before { committed.unwrap_or(0).max(given) } else { given };
        if wanted < end {
            return Some(format!("{tp:?} has {end} records, {given} were given, {committed:?} is committed"));
        }
        let automatic = self.commit != CommitMode::Manual;
        if automatic && committed.unwrap_or(0) < end {
            return Some(format!("{tp:?} has {end} records, only {committed:?} is committed"));
        }
        None
    }
}
