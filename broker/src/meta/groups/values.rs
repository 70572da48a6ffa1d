//! How groups and their offsets are written: JSON, by the rules of [`super::super::values`].

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use corelog_core::group::{
    Committed, HeldRecord, MemberInfo, MemberRecord, Membership, MembershipRecord, PageId,
};
use corelog_core::meta::Key;
use corelog_core::meta::values::ReplicaIdentity;
use corelog_wire::ids::{LeaderEpoch, MemberEpoch, MemberId, Offset, TopicId, TopicPartition};
use corelog_wire::message::{Assignor, MemberWishes};
use serde::{Deserialize, Serialize};

use crate::meta::values::{VERSION, ValueError, malformed, read, write};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    version: u32,
    /// The broker that claimed it, for people.
    coordinator: u32,
    epoch: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    idle_since_ms: Option<i64>,
    members: Vec<Member>,
    held: Vec<Held>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    id: String,
    epoch: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    away: bool,
    session_timeout_ms: u64,
    topics: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    patterns: Vec<String>,
    assignor: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    client_name: String,
}

/// Who has which partitions of a topic: number, the holder's place among the members, since which of its epochs, and
/// the place of who is to have it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Held {
    topic: String,
    partitions: Vec<(u32, usize, u64, Option<usize>)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    version: u32,
    offsets: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    partition: u32,
    offset: u64,
    leader_epoch: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    metadata: String,
}

pub(super) fn write_group(
    key: &Key,
    membership: &Membership,
    identity: ReplicaIdentity,
) -> Result<Bytes, ValueError> {
    let MembershipRecord { epoch, members, held, idle_since_ms } = membership.record();
    let places: BTreeMap<MemberId, usize> =
        members.iter().enumerate().map(|(place, member)| (member.id, place)).collect();
    let mut topics: Vec<Held> = Vec::new();
    let mut last = None;
    for HeldRecord { tp, holder, since, target } in held {
        if last.replace(tp.topic) != Some(tp.topic) {
            topics.push(Held { topic: tp.topic.to_string(), partitions: Vec::new() });
        }
        // A holder that is no member would be a broken membership, which is refused when it is read.
        let holder = places.get(&holder).copied().unwrap_or(usize::MAX);
        let target = target.and_then(|target| places.get(&target).copied());
        if let Some(topic) = topics.last_mut() {
            topic.partitions.push((tp.partition, holder, since.get(), target));
        }
    }
    let members = members.into_iter().map(write_member).collect();
    let coordinator = identity.broker.get();
    write(key, &Group { version: VERSION, coordinator, epoch, idle_since_ms, members, held: topics })
}

fn write_member(member: MemberRecord) -> Member {
    let MemberRecord { id, info, epoch, away } = member;
    let MemberWishes { session_timeout, topics, patterns, assignor, instance, client_name } = info.wishes();
    Member {
        id: id.to_string(),
        epoch: epoch.get(),
        away,
        session_timeout_ms: u64::try_from(session_timeout.as_millis()).unwrap_or(u64::MAX),
        topics,
        patterns,
        assignor: assignor.name().to_owned(),
        instance,
        client_name,
    }
}

pub(super) fn read_group(key: &Key, bytes: &[u8]) -> Result<Membership, ValueError> {
    let Group { epoch, idle_since_ms, members, held, .. } = read(key, bytes)?;
    let mut records = Vec::with_capacity(members.len());
    for member in members {
        records.push(read_member(key, member)?);
    }
    let member = |place: usize| records.get(place).map(|member: &MemberRecord| member.id);
    let mut places = Vec::new();
    for Held { topic, partitions } in held {
        let topic: TopicId = topic.parse().map_err(|error| malformed(key, error))?;
        for (partition, holder, since, target) in partitions {
            let nobody = || malformed(key, "a partition is with somebody who is no member");
            let target = target.map(|target| member(target).ok_or_else(nobody)).transpose()?;
            places.push(HeldRecord {
                tp: TopicPartition::new(topic, partition),
                holder: member(holder).ok_or_else(nobody)?,
                since: MemberEpoch::new(since),
                target,
            });
        }
    }
    let record = MembershipRecord { epoch, members: records, held: places, idle_since_ms };
    Membership::restore(record).map_err(|error| malformed(key, error))
}

fn read_member(key: &Key, member: Member) -> Result<MemberRecord, ValueError> {
    let Member { id, epoch, away, session_timeout_ms, topics, patterns, assignor, instance, client_name } =
        member;
    let assignor = Assignor::named(&assignor).ok_or_else(|| malformed(key, "an unknown assignor"))?;
    let session_timeout = Duration::from_millis(session_timeout_ms);
    let wishes = MemberWishes { session_timeout, topics, patterns, assignor, instance, client_name };
    Ok(MemberRecord {
        id: id.parse().map_err(|error| malformed(key, error))?,
        info: MemberInfo::of(wishes).map_err(|error| malformed(key, error))?,
        epoch: MemberEpoch::new(epoch),
        away,
    })
}

pub(super) fn write_page(key: &Key, rows: &BTreeMap<u32, Committed>) -> Result<Bytes, ValueError> {
    let row = |(&partition, committed): (&u32, &Committed)| Row {
        partition,
        offset: committed.offset.get(),
        leader_epoch: committed.leader_epoch.get(),
        metadata: committed.metadata.clone(),
    };
    write(key, &Page { version: VERSION, offsets: rows.iter().map(row).collect() })
}

pub(super) fn read_page(
    key: &Key,
    page: PageId,
    bytes: &[u8],
    offsets: &mut BTreeMap<TopicPartition, Committed>,
) -> Result<(), ValueError> {
    let Page { offsets: rows, .. } = read(key, bytes)?;
    for Row { partition, offset, leader_epoch, metadata } in rows {
        let tp = TopicPartition::new(page.topic, partition);
        if PageId::of(tp) != page {
            return Err(malformed(key, format!("partition {partition} is not on this page")));
        }
        let committed =
            Committed { offset: Offset::new(offset), leader_epoch: LeaderEpoch::new(leader_epoch), metadata };
        offsets.insert(tp, committed);
    }
    Ok(())
}
