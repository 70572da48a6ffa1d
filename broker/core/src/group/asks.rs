//! What a group's coordinator is asked and told, what it answers, and what it wants done.
//!
//! Plain data, between the coordinator and whoever carries it out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use corelog_wire::ids::{LeaderEpoch, MemberEpoch, MemberId, Offset, TopicId, TopicPartition};
use thiserror::Error;

use super::{GroupName, MemberInfo, MemberRefusal, Membership, Topics};
use crate::limits::OFFSETS_PER_PAGE;

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
    pub(super) fn is_behind(&self, waiting: &[(Option<AskId>, Self)]) -> bool {
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

    pub(super) fn last(self) -> TopicPartition {
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
    /// Topics protect these groups from retention, and no others: how far they have read is kept while they are away.
    Protected(BTreeSet<GroupName>),
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
    /// The group's offsets in these partitions went back, or are gone: who keeps records until it has read them should know
    /// before the answers that follow are given.
    WentBack {
        /// Which.
        partitions: Vec<TopicPartition>,
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
