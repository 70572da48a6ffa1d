//! A partition that a member works on: how far it is on its way through here, and how far its user is.
//!
//! Part of `consumer`; its invariants hold here. Invariant: nothing is done with that was not given.

use std::sync::Arc;

use super::Progress;

/// A partition of a topic, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number.
    pub partition: u32,
}

/// How far a partition is on its way through here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Where to begin is not known yet.
    Wanted,
    /// It is read.
    Read,
    /// The group wants it back, and the user may be at work on it.
    Leaving,
    /// It goes as soon as what was done is committed.
    Letting,
}

/// A partition that this member works on.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) share: Share,
    pub(super) stage: Stage,
    /// After the last record that was given, and after the last that is done with.
    pub(super) given: Option<Progress>,
    pub(super) done: Option<Progress>,
    /// What the group has.
    pub(super) committed: Option<u64>,
}

impl Part {
    /// What is done with and not committed.
    pub(super) fn uncommitted(&self) -> Option<&Progress> {
        let done = if cfg!(mutant = "consumer_commits_what_is_not_done") { &self.given } else { &self.done };
        done.as_ref().filter(|done| self.committed.is_none_or(|committed| committed < done.offset))
    }

    /// Whether anything that was given is not committed.
    pub(super) fn is_taken_uncommitted(&self) -> bool {
        self.given.as_ref().is_some_and(|given| self.committed.is_none_or(|done| done < given.offset))
    }

    pub(super) fn is_with_user(&self) -> bool {
        self.given.as_ref().map(|given| given.offset) != self.done.as_ref().map(|done| done.offset)
    }
}
