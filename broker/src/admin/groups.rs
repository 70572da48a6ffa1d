//! Asks the group actor how groups are, for pictures of the broker.
//!
//! Part of gathering; whoever calls bounds the time.

use corelog_wire::ids::Offset;
use corelog_wire::message::{
    Answer, DescribeGroupAnswer, DescribeGroupRequest, GroupPartition, ListGroupsRequest, Request,
};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

use super::state::{GroupInfo, GroupPlace, LagNumbers};
use crate::net::ControlRequest;

/// Groups in a picture: of more, the first by name are shown.
const GROUPS_SHOWN_MAX: usize = 1_000;

/// The groups, by name, as many as are shown and can be asked in time, and whether there are more.
pub(super) async fn all(door: &mpsc::Sender<ControlRequest>, patience: Duration) -> (Vec<GroupInfo>, bool) {
    let until = Instant::now() + patience;
    let mut groups: Vec<GroupInfo> = Vec::new();
    loop {
        let after = groups.last().map(|group| group.name.clone()).unwrap_or_default();
        let list = Request::ListGroups(ListGroupsRequest { after });
        let Some(Answer::ListGroups(listed)) = ask(door, list).await else { return (groups, false) };
        for group in listed.groups {
            if groups.len() >= GROUPS_SHOWN_MAX || Instant::now() >= until {
                return (groups, true);
            }
            groups.extend(one(door, &group.name).await);
        }
        if !listed.more {
            return (groups, false);
        }
    }
}

/// One group; none if there is no such group.
pub(super) async fn one(door: &mpsc::Sender<ControlRequest>, name: &str) -> Option<GroupInfo> {
    let request = Request::DescribeGroup(DescribeGroupRequest { group: name.to_owned() });
    match ask(door, request).await? {
        Answer::DescribeGroup(answer) => Some(info(name, answer)),
        _ => None,
    }
}

async fn ask(door: &mpsc::Sender<ControlRequest>, request: Request) -> Option<Answer> {
    let (reply, answer) = oneshot::channel();
    // This answer crosses no network.
    door.send(ControlRequest { request, answer_bytes_max: u64::MAX, reply }).await.ok()?;
    answer.await.ok()
}

fn info(name: &str, answer: DescribeGroupAnswer) -> GroupInfo {
    GroupInfo {
        name: name.to_owned(),
        members: answer.members.len(),
        partitions: answer.partitions.into_iter().map(place).collect(),
    }
}

fn place(row: GroupPartition) -> GroupPlace {
    let numbers = |lag: corelog_wire::message::GroupLag| LagNumbers {
        records: lag.high_watermark.get().saturating_sub(row.committed.unwrap_or(lag.log_start).get()),
        bytes: lag.bytes,
        seconds: lag.behind.as_secs_f64(),
        overtaken_in_seconds: lag.overtaken_in.map(|left| left.as_secs_f64()),
    };
    GroupPlace {
        lag: row.lag.map(numbers),
        topic: if row.topic.is_empty() { row.tp.topic.to_string() } else { row.topic },
        partition: row.tp.partition,
        member: row.member.map(|member| member.to_string()),
        committed: row.committed.map(Offset::get),
    }
}
