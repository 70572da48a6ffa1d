//! Between the words of the wire and those of the coordinator.
//!
//! Invariant: what reaches the coordinator is within its bounds, and what does not is refused with the rule it broke.

use super::{
    Ask, CommitRefusal, Committed, Coordinator, GroupName, GroupRefusal, GroupReply, HeldRecord, MemberInfo,
    MemberRecord, MemberRefusal, Topics,
};
use crate::limits::{OFFSET_METADATA_BYTES_MAX, REQUEST_DEADLINE_MAX};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Kind;
use corelog_wire::ids::{MemberEpoch, TopicId, TopicPartition};
use corelog_wire::message::{
    Answer, CommittedRow, DeleteGroupAnswer, DescribeGroupAnswer, GroupHeartbeatAnswer,
    GroupHeartbeatRequest, GroupPartition, Leave, ListGroupsAnswer, ListGroupsRequest, ListedGroup,
    MemberDescription, OffsetCommitAnswer, OffsetCommitRequest, OffsetFetchAnswer, OffsetRow, Refusal,
    Request, TopicShare, is_offset_metadata,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Groups in one answer to `ListGroups`.
const LISTED_MAX: usize = 1_000;
/// What one offset takes in an answer, its metadata apart.
const OFFSET_ROW_BYTES: u64 = 96;
/// What a partition takes in a description, its texts apart.
const PLACE_BYTES: u64 = 192;
/// What a member takes in a description, its texts apart.
const MEMBER_BYTES: u64 = 256;

/// What a request asks of a group.
#[derive(Debug)]
pub struct Question {
    /// The group.
    pub group: GroupName,
    /// What.
    pub ask: Ask,
}

impl Question {
    /// What a request asks.
    ///
    /// # Errors
    /// A refusal if it breaks a rule that needs no group to be known.
    pub fn of(request: Request) -> Result<Self, Refusal> {
        let (group, ask) = match request {
            Request::GroupHeartbeat(heartbeat) => (heartbeat.group.clone(), heartbeat_ask(heartbeat)?),
            Request::OffsetCommit(commit) => (commit.group.clone(), commit_ask(commit)?),
            Request::OffsetFetch(fetch) => (fetch.group, Ask::Offsets),
            Request::DeleteGroup(delete) => (delete.group, Ask::Delete { topic: delete.topic }),
            _ => return Err(Refusal::new(ErrorCode::UnsupportedKind, "this request is not about a group")),
        };
        Ok(Self { group: named(&group)?, ask })
    }
}

/// A group's name as a request has it.
///
/// # Errors
/// `INVALID_GROUP`: it is none.
pub fn named(group: &str) -> Result<GroupName, Refusal> {
    GroupName::new(group).map_err(invalid)
}

fn invalid(what: impl std::fmt::Display) -> Refusal {
    Refusal::new(ErrorCode::InvalidGroup, what.to_string())
}

fn too_large(what: &str, bytes: u64, bytes_max: u64) -> Refusal {
    let message = format!("{what} would take {bytes} bytes, an answer has at most {bytes_max}");
    Refusal::new(ErrorCode::TooLarge, message)
}

fn heartbeat_ask(heartbeat: GroupHeartbeatRequest) -> Result<Ask, Refusal> {
    let GroupHeartbeatRequest { member, member_epoch, leave, max_wait_ms, owned, beat, wishes, .. } =
        heartbeat;
    let info = wishes.map(|wishes| MemberInfo::of(*wishes)).transpose().map_err(invalid)?;
    let joins = member_epoch == MemberEpoch::new(0);
    Ok(match (leave, info) {
        (Leave::Yes, _) => Ask::Leave { member, away: false },
        (Leave::Away, _) => Ask::Leave { member, away: true },
        (Leave::No, Some(info)) if joins => Ask::Join { member, info },
        (Leave::No, info) => Ask::Heartbeat {
            member,
            epoch: member_epoch,
            has: owned.into_iter().collect(),
            beat,
            info,
            wait: Duration::from_millis(max_wait_ms.into()).min(REQUEST_DEADLINE_MAX),
        },
    })
}

fn commit_ask(commit: OffsetCommitRequest) -> Result<Ask, Refusal> {
    if !commit.rows.iter().all(|row| is_offset_metadata(&row.metadata)) {
        let rule = format!(
            "the metadata of an offset has at most {OFFSET_METADATA_BYTES_MAX} bytes, none of them control characters"
        );
        return Err(invalid(rule));
    }
    let offset = |row: OffsetRow| {
        let OffsetRow { tp, offset, leader_epoch, metadata } = row;
        (tp, Committed { offset, leader_epoch, metadata })
    };
    Ok(Ask::Commit { member: commit.member, offsets: commit.rows.into_iter().map(offset).collect() })
}

/// The answer to a request of a kind, of so many bytes at most.
#[must_use]
pub fn answer(kind: Kind, reply: GroupReply, topics: &Topics, bytes_max: u64) -> Answer {
    match reply {
        GroupReply::Granted { epoch, partitions } => Answer::GroupHeartbeat(GroupHeartbeatAnswer {
            member_epoch: epoch,
            granted: shares(&partitions, topics),
        }),
        GroupReply::Left => Answer::GroupHeartbeat(GroupHeartbeatAnswer {
            member_epoch: MemberEpoch::new(0),
            granted: Vec::new(),
        }),
        GroupReply::Committed(rows) => {
            Answer::OffsetCommit(OffsetCommitAnswer { rows: rows.into_iter().map(committed_row).collect() })
        }
        GroupReply::Offsets(offsets) => {
            let bytes: u64 = offsets.values().map(|row| OFFSET_ROW_BYTES + row.metadata.len() as u64).sum();
            if bytes > bytes_max {
                return Answer::Refused { kind, refusal: too_large("the list of offsets", bytes, bytes_max) };
            }
            let row = |(tp, committed): (TopicPartition, Committed)| {
                let Committed { offset, leader_epoch, metadata } = committed;
                OffsetRow { tp, offset, leader_epoch, metadata }
            };
            Answer::OffsetFetch(OffsetFetchAnswer { rows: offsets.into_iter().map(row).collect() })
        }
        GroupReply::Deleted => Answer::DeleteGroup(DeleteGroupAnswer {}),
        GroupReply::Refused(refusal) => {
            Answer::Refused { kind, refusal: Refusal::new(group_code(refusal), refusal.to_string()) }
        }
    }
}

fn committed_row((tp, result): (TopicPartition, Result<(), CommitRefusal>)) -> CommittedRow {
    match result {
        Ok(()) => CommittedRow { tp, error: ErrorCode::None, message: String::new() },
        Err(refusal) => {
            let error = match refusal {
                CommitRefusal::Member(refusal) => member_code(refusal),
                CommitRefusal::UnknownTopic(_) => ErrorCode::UnknownTopic,
                CommitRefusal::UnknownPartition(_) => ErrorCode::UnknownPartition,
            };
            CommittedRow { tp, error, message: refusal.to_string() }
        }
    }
}

fn group_code(refusal: GroupRefusal) -> ErrorCode {
    match refusal {
        GroupRefusal::Member(refusal) => member_code(refusal),
        GroupRefusal::NotEmpty => ErrorCode::GroupNotEmpty,
        GroupRefusal::UnknownGroup => ErrorCode::UnknownGroup,
        GroupRefusal::Unavailable => ErrorCode::CoordinatorUnavailable,
    }
}

fn member_code(refusal: MemberRefusal) -> ErrorCode {
    match refusal {
        MemberRefusal::UnknownMember => ErrorCode::UnknownMember,
        MemberRefusal::Fenced => ErrorCode::FencedMember,
        MemberRefusal::InstanceInUse => ErrorCode::InstanceInUse,
        MemberRefusal::GroupFull => ErrorCode::GroupFull,
        MemberRefusal::NotHolder { .. } => ErrorCode::NotHolder,
    }
}

fn shares(partitions: &BTreeSet<TopicPartition>, topics: &Topics) -> Vec<TopicShare> {
    let mut shares: Vec<TopicShare> = Vec::new();
    for tp in partitions {
        match shares.last_mut() {
            Some(share) if share.topic == tp.topic => share.partitions.push(tp.partition),
            _ => shares.push(TopicShare {
                topic: tp.topic,
                name: String::new(),
                partitions: vec![tp.partition],
            }),
        }
    }
    let wanted: BTreeMap<TopicId, usize> =
        shares.iter().enumerate().map(|(place, share)| (share.topic, place)).collect();
    for (name, (id, _)) in topics {
        if let Some(share) = wanted.get(id).and_then(|&place| shares.get_mut(place)) {
            share.name.clone_from(name);
        }
    }
    shares
}

/// The groups after a name, as many as one answer holds.
#[must_use]
pub fn listed(coordinator: &Coordinator, request: &ListGroupsRequest) -> ListGroupsAnswer {
    let mut after = coordinator.groups_after(&request.after);
    let groups: Vec<ListedGroup> = after
        .by_ref()
        .take(LISTED_MAX)
        .map(|(name, membership)| ListedGroup {
            name: name.to_string(),
            members: u32::try_from(membership.members().count()).unwrap_or(u32::MAX),
        })
        .collect();
    ListGroupsAnswer { groups, more: after.next().is_some() }
}

/// Who is in a group and where it is, without what only shards know.
///
/// # Errors
/// A refusal if there is no such group, or the answer would have more bytes than it may.
pub fn described(
    coordinator: &Coordinator,
    group: &GroupName,
    bytes_max: u64,
) -> Result<DescribeGroupAnswer, Refusal> {
    let Some((membership, offsets)) = coordinator.group(group) else {
        let what = format!("group {:?} has neither members nor offsets", group.as_str());
        return Err(Refusal::new(ErrorCode::UnknownGroup, what));
    };
    let record = membership.record();
    let names: BTreeMap<TopicId, &String> =
        coordinator.topics().iter().map(|(name, (id, _))| (*id, name)).collect();
    let held: BTreeMap<TopicPartition, HeldRecord> =
        record.held.into_iter().map(|held| (held.tp, held)).collect();
    let mut places: BTreeSet<TopicPartition> = held.keys().chain(offsets.keys()).copied().collect();
    // In the others of its topics it has everything still to read.
    let topics: BTreeSet<TopicId> = places.iter().map(|tp| tp.topic).collect();
    for (topic, partitions) in coordinator.topics().values().filter(|(topic, _)| topics.contains(topic)) {
        places.extend((0..*partitions).map(|partition| TopicPartition::new(*topic, partition)));
    }
    let partition = |tp: TopicPartition| {
        let (held, committed) = (held.get(&tp), offsets.get(&tp));
        GroupPartition {
            tp,
            topic: names.get(&tp.topic).map(|name| (*name).clone()).unwrap_or_default(),
            member: held.map(|held| held.holder),
            leaving: held.is_some_and(|held| held.target != Some(held.holder)),
            committed: committed.map(|committed| committed.offset),
            metadata: committed.map(|committed| committed.metadata.clone()).unwrap_or_default(),
            lag: None,
        }
    };
    let member = |member: MemberRecord| {
        let MemberRecord { id, info, epoch, away } = member;
        MemberDescription { member: id, member_epoch: epoch, away, wishes: info.wishes() }
    };
    let topic_bytes: usize = coordinator.topics().keys().map(String::len).sum();
    let metadata_bytes: usize = offsets.values().map(|row| row.metadata.len()).sum();
    let bytes = PLACE_BYTES * places.len() as u64
        + (topic_bytes + metadata_bytes) as u64
        + record.members.iter().map(|member| MEMBER_BYTES + member.info.text_bytes() as u64).sum::<u64>();
    if bytes > bytes_max {
        return Err(too_large("the description", bytes, bytes_max));
    }
    Ok(DescribeGroupAnswer {
        epoch: record.epoch,
        members: record.members.into_iter().map(member).collect(),
        partitions: places.into_iter().map(partition).collect(),
    })
}
