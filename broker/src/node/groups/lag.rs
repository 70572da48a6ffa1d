//! How far groups are behind: asked of the shards that lead their partitions.

use crate::net::{Place, View};
use crate::node::command::{Command, ShardLink};
use corelog_core::shard::PartitionLag;
use corelog_wire::ids::{Offset, ShardId, TopicPartition};
use corelog_wire::message::{Answer, DescribeGroupAnswer, GroupLag, GroupPartition};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// How long a shard may take to say.
const PATIENCE: Duration = Duration::from_secs(1);

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
    pub(super) async fn complete(self, mut answer: DescribeGroupAnswer, reply: oneshot::Sender<Answer>) {
        let rows = answer.partitions.iter().map(|row| (row.tp, row.committed)).collect();
        let lags = self.ask(rows).await;
        for row in &mut answer.partitions {
            let GroupPartition { tp, lag, .. } = row;
            *lag = lags.get(tp).copied().map(told);
        }
        // An asker that left needs no answer.
        drop(reply.send(Answer::DescribeGroup(answer)));
    }

    /// How far consumers are behind that go on at these offsets. A shard that does not say so in time is left out.
    async fn ask(
        &self,
        rows: Vec<(TopicPartition, Option<Offset>)>,
    ) -> BTreeMap<TopicPartition, PartitionLag> {
        let view = Arc::clone(&self.views.borrow());
        let mut by_shard: BTreeMap<ShardId, Vec<(TopicPartition, Option<Offset>)>> = BTreeMap::new();
        for row in rows {
            if let Place::Shard(shard) = view.place(row.0) {
                by_shard.entry(shard).or_default().push(row);
            }
        }
        let mut lags = BTreeMap::new();
        for (shard, rows) in by_shard {
            let Some(link) = self.shards.get(usize::from(shard.get())) else { continue };
            let tps: Vec<TopicPartition> = rows.iter().map(|(tp, _)| *tp).collect();
            let asked = async {
                let (reply, answer) = oneshot::channel();
                link.send(Command::Lag { rows, reply }).await.ok()?;
                answer.await.ok()
            };
            let told = tokio::time::timeout(PATIENCE, asked).await.ok().flatten().unwrap_or_default();
            lags.extend(tps.into_iter().zip(told).filter_map(|(tp, lag)| Some((tp, lag?))));
        }
        lags
    }
}

fn told(lag: PartitionLag) -> GroupLag {
    let PartitionLag { log_start, high_watermark, bytes, behind, overtaken_in } = lag;
    GroupLag { log_start, high_watermark, bytes, behind, overtaken_in }
}
