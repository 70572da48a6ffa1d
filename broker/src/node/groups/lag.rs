//! How far groups are behind: asked of the shards that lead their partitions.

use crate::net::{Place, View};
use crate::node::command::{Command, ShardLink};
use corelog_core::group::{Committed, Coordinator, GroupName, Topics};
use corelog_core::shard::{PartitionLag, Reader};
use corelog_wire::ids::{Offset, ShardId, TopicPartition};
use corelog_wire::message::{Answer, DescribeGroupAnswer, GroupLag, GroupPartition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long a shard may take to say.
const PATIENCE: Duration = Duration::from_secs(1);
/// Places that are looked at together.
const READERS_AT_ONCE: usize = 10_000;

/// Knows whom to ask.
#[derive(Clone, Debug)]
pub struct LagMeter {
    /// Which shard leads which partition.
    pub views: watch::Receiver<Arc<View>>,
    /// The ways to the shards, by number.
    pub shards: Vec<ShardLink>,
}

impl LagMeter {
    /// Adds to a description what only shards know, and answers with it.
    pub(super) async fn complete(
        self,
        group: GroupName,
        mut answer: DescribeGroupAnswer,
        reply: oneshot::Sender<Answer>,
    ) {
        let reader = |row: &GroupPartition| Reader { group: group.clone(), tp: row.tp, next: row.committed };
        let readers = answer.partitions.iter().map(reader).collect();
        for (row, lag) in answer.partitions.iter_mut().zip(self.ask(readers).await) {
            row.lag = lag.map(told);
        }
        // An asker that left needs no answer.
        drop(reply.send(Answer::DescribeGroup(answer)));
    }

    /// Which of these retention is about to overtake, and when.
    pub(super) async fn look(self, readers: Vec<Reader>) -> Vec<(Reader, Option<Duration>)> {
        let risk = |lag: PartitionLag| lag.overtaken_in.filter(|_| lag.is_at_risk);
        let lags = self.ask(readers.clone()).await;
        // Of whom nothing was learnt, nothing is said.
        readers.into_iter().zip(lags).filter_map(|(reader, lag)| Some((reader, risk(lag?)))).collect()
    }

    /// How far these are behind, in their order. A shard that does not say so in time leaves its own out.
    async fn ask(&self, readers: Vec<Reader>) -> Vec<Option<PartitionLag>> {
        let view = Arc::clone(&self.views.borrow());
        let mut lags = vec![None; readers.len()];
        let mut by_shard: BTreeMap<ShardId, (Vec<usize>, Vec<Reader>)> = BTreeMap::new();
        for (number, reader) in readers.into_iter().enumerate() {
            if let Place::Shard(shard) = view.place(reader.tp) {
                let (numbers, rows) = by_shard.entry(shard).or_default();
                numbers.push(number);
                rows.push(reader);
            }
        }
        for (shard, (numbers, rows)) in by_shard {
            let Some(link) = self.shards.get(usize::from(shard.get())) else { continue };
            let asked = async {
                let (reply, answer) = oneshot::channel();
                link.send(Command::Lag { rows, reply }).await.ok()?;
                answer.await.ok()
            };
            let told = tokio::time::timeout(PATIENCE, asked).await.ok().flatten().unwrap_or_default();
            for (number, lag) in numbers.into_iter().zip(told) {
                lags[number] = lag;
            }
        }
        lags
    }
}

/// Says once when retention is about to overtake a group, and again after it was out of danger.
#[derive(Debug, Default)]
pub(super) struct Watchman {
    /// The last group that was looked at.
    last: String,
    warned: BTreeSet<(GroupName, TopicPartition)>,
}

impl Watchman {
    /// Whom to look at next: so many places at most, those of every group in turn.
    pub(super) fn next(&mut self, coordinator: &Coordinator) -> Vec<Reader> {
        let mut readers = Vec::new();
        let last = std::mem::take(&mut self.last);
        for (name, _) in coordinator.groups_after(&last) {
            if readers.len() >= READERS_AT_ONCE {
                break;
            }
            self.last = name.to_string();
            let Some((_, offsets)) = coordinator.group(name) else { continue };
            let reader = |(&tp, committed): (&TopicPartition, &Committed)| Reader {
                group: name.clone(),
                tp,
                next: Some(committed.offset),
            };
            readers.extend(offsets.iter().map(reader));
        }
        if readers.len() < READERS_AT_ONCE {
            self.last.clear();
            self.warned.retain(|(group, _)| coordinator.group(group).is_some());
        }
        readers
    }

    /// Takes what was seen.
    pub(super) fn seen(&mut self, seen: Vec<(Reader, Option<Duration>)>, topics: &Topics) {
        for (Reader { group, tp, next }, risk) in seen {
            let Some(left) = risk else {
                self.warned.remove(&(group, tp));
                continue;
            };
            if self.warned.insert((group.clone(), tp)) {
                let topic = topics.iter().find(|(_, (id, _))| *id == tp.topic).map_or("", |(name, _)| name);
                tracing::warn!(
                    %group, topic, partition = tp.partition, offset = next.map(Offset::get), seconds_left = left.as_secs_f64(),
                    "retention is about to delete records that a consumer group has not read"
                );
            }
        }
    }
}

fn told(lag: PartitionLag) -> GroupLag {
    let PartitionLag { log_start, high_watermark, bytes, behind, overtaken_in, .. } = lag;
    GroupLag { log_start, high_watermark, bytes, behind, overtaken_in }
}
