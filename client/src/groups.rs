//! Administration of consumer groups: list, describe, reset, delete.
//!
//! Invariant: a reset that was planned is carried out as it was shown, or refused.

use std::collections::BTreeMap;

use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{LeaderEpoch, Offset, TopicPartition};
use corelog_wire::message::{
    Answer, DeleteGroupRequest, DescribeGroupAnswer, DescribeGroupRequest, ListGroupsRequest, ListedGroup,
    OffsetCommitRequest, OffsetFetchRequest, OffsetRow, Request,
};

use crate::admin::{Admin, unexpected};
use crate::core::{Start, Target};
use crate::error::{Error, Result};

/// A group, its members and how far it has come, as its coordinator describes it.
pub type GroupDescription = DescribeGroupAnswer;

/// Where a group is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// At a place in each log.
    Place(Start),
    /// So many records after (or before) what is committed, within the log.
    Shift(i64),
}

/// A partition whose committed offset is to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetRow {
    /// The partition.
    pub partition: u32,
    /// What is committed.
    pub before: Option<u64>,
    /// What will be.
    pub after: u64,
}

/// A reset that was planned and not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetPlan {
    group: String,
    topic: corelog_wire::ids::TopicId,
    /// By partition.
    pub rows: Vec<ResetRow>,
}

impl Admin {
    /// All groups, by name.
    ///
    /// # Errors
    /// A broker that cannot be reached.
    pub async fn list_groups(&self) -> Result<Vec<ListedGroup>> {
        let mut groups: Vec<ListedGroup> = Vec::new();
        loop {
            let after = groups.last().map(|group| group.name.clone()).unwrap_or_default();
            let request = Request::ListGroups(ListGroupsRequest { after });
            let Answer::ListGroups(answer) = self.client.call(Target::Any, request, true).await? else {
                return Err(unexpected());
            };
            let more = answer.more && !answer.groups.is_empty();
            groups.extend(answer.groups);
            if !more {
                return Ok(groups);
            }
        }
    }

    /// Who is in a group, and where it is.
    ///
    /// # Errors
    /// `UNKNOWN_GROUP` as [`Error::Refused`]; a broker that cannot be reached.
    pub async fn describe_group(&self, group: &str) -> Result<GroupDescription> {
        let request = Request::DescribeGroup(DescribeGroupRequest { group: group.to_owned() });
        match self.client.call(Target::Any, request, true).await? {
            Answer::DescribeGroup(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    /// Deletes a group without members.
    ///
    /// # Errors
    /// `UNKNOWN_GROUP` and `GROUP_NOT_EMPTY` as [`Error::Refused`]; a broker that cannot be reached.
    pub async fn delete_group(&self, group: &str) -> Result<()> {
        self.delete(DeleteGroupRequest { group: group.to_owned(), topic: None }).await
    }

    /// Deletes what a group without members has committed in a topic.
    ///
    /// # Errors
    /// As [`Admin::delete_group`], and `UNKNOWN_TOPIC`.
    pub async fn delete_group_offsets(&self, group: &str, topic: &str) -> Result<()> {
        let topic = Some(self.topic(topic).await?.id);
        self.delete(DeleteGroupRequest { group: group.to_owned(), topic }).await
    }

    async fn delete(&self, request: DeleteGroupRequest) -> Result<()> {
        match self.client.call(Target::Any, Request::DeleteGroup(request), false).await? {
            Answer::DeleteGroup(_) => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// What a reset of a group's offsets in a topic would change. `partitions`: only these.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC` as [`Error::Refused`]; [`Error::Usage`] for a partition that does not exist, or a shift where
    /// nothing is committed; a broker that cannot be reached.
    pub async fn plan_reset(
        &self,
        group: &str,
        topic: &str,
        partitions: Option<&[u32]>,
        to: ResetTo,
    ) -> Result<ResetPlan> {
        let id = self.topic(topic).await?.id;
        let earliest = self.list_offsets(topic, Start::Earliest).await?;
        let latest = self.list_offsets(topic, Start::Latest).await?;
        let wanted = match to {
            ResetTo::Place(start) => self.list_offsets(topic, start).await?,
            ResetTo::Shift(_) => Vec::new(),
        };
        let committed = self.committed(group).await?;
        let all: Vec<u32> = earliest.iter().map(|listed| listed.partition).collect();
        let mut rows = Vec::new();
        for &partition in partitions.unwrap_or(&all) {
            let place = usize::try_from(partition).unwrap_or(usize::MAX);
            let (Some(earliest), Some(latest)) = (earliest.get(place), latest.get(place)) else {
                return Err(Error::usage(format!(
                    "there is no partition {partition}: topic {topic} has {}",
                    all.len()
                )));
            };
            let before = committed.get(&TopicPartition::new(id, partition)).copied();
            let after = match (to, before) {
                (ResetTo::Place(_), _) => wanted.get(place).map_or(earliest.offset, |wanted| wanted.offset),
                (ResetTo::Shift(shift), Some(before)) => before.saturating_add_signed(shift),
                (ResetTo::Shift(_), None) => {
                    let what = format!(
                        "nothing is committed in partition {partition}: a shift needs a place to begin"
                    );
                    return Err(Error::usage(what));
                }
            };
            rows.push(ResetRow { partition, before, after: after.clamp(earliest.offset, latest.offset) });
        }
        Ok(ResetPlan { group: group.to_owned(), topic: id, rows })
    }

    /// Carries a reset out. The group must not have members.
    ///
    /// # Errors
    /// `GROUP_NOT_EMPTY` and others as [`Error::Refused`]; a broker that cannot be reached.
    pub async fn reset(&self, plan: &ResetPlan) -> Result<()> {
        let row = |row: &ResetRow| OffsetRow {
            tp: TopicPartition::new(plan.topic, row.partition),
            offset: Offset::new(row.after),
            leader_epoch: LeaderEpoch::new(0),
            metadata: String::new(),
        };
        let request = OffsetCommitRequest {
            group: plan.group.clone(),
            member: None,
            rows: plan.rows.iter().map(row).collect(),
        };
        let request = Request::OffsetCommit(request);
        let Answer::OffsetCommit(answer) = self.client.call(Target::Any, request, true).await? else {
            return Err(unexpected());
        };
        match answer.rows.iter().find(|row| row.error != ErrorCode::None) {
            Some(row) => Err(Error::refused(row.error, &row.message)),
            None => Ok(()),
        }
    }

    /// What a group has committed.
    async fn committed(&self, group: &str) -> Result<BTreeMap<TopicPartition, u64>> {
        let request = Request::OffsetFetch(OffsetFetchRequest { group: group.to_owned() });
        let Answer::OffsetFetch(answer) = self.client.call(Target::Any, request, true).await? else {
            return Err(unexpected());
        };
        Ok(answer.rows.iter().map(|row| (row.tp, row.offset.get())).collect())
    }
}
