//! Groups that topics protect from retention: tells the shards how far they have read.
//!
//! Part of the group actor. Invariants: only what the store confirmed counts as read; a shard has one picture at most on its
//! way, and one that was lost is made good by the next; when a group goes back, shards have been told before its client is
//! answered. Refuses to know what a shard does with it.

use super::lag::LagMeter;
use crate::net::Place;
use crate::node::command::{Command, ShardLink};
use corelog_core::group::{Coordinator, GroupName};
use corelog_core::shard::{Input, ReadUpTo};
use corelog_wire::ids::{Offset, ShardId, TopicId, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

/// Topics that protect groups: how many partitions each has, and whom it protects.
pub type Protecting = BTreeMap<TopicId, (u32, Vec<GroupName>)>;

/// What is to be told to each shard.
type Words = BTreeMap<ShardId, Vec<ReadUpTo>>;

/// Partitions in one command, about.
const ROWS_AT_ONCE: usize = 1_000;

/// What has to be told, and to whom.
#[derive(Debug)]
pub(super) struct Protector {
    protecting: watch::Receiver<Arc<Protecting>>,
    meter: LagMeter,
    /// Pictures that shards have not taken yet.
    under_way: BTreeMap<ShardId, oneshot::Receiver<()>>,
}

impl Protector {
    pub(super) fn new(protecting: watch::Receiver<Arc<Protecting>>, meter: LagMeter) -> Self {
        Self { protecting, meter, under_way: BTreeMap::new() }
    }

    /// Waits until topics protect others, maybe. Never, when nobody says so any more.
    pub(super) async fn changed(&mut self) {
        if self.protecting.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Everybody whom a topic protects.
    pub(super) fn protected(&mut self) -> BTreeSet<GroupName> {
        let protecting = self.protecting.borrow_and_update();
        protecting.values().flat_map(|(_, groups)| groups.iter().cloned()).collect()
    }

    /// Tells every shard that took the last picture how far protected groups have read.
    pub(super) fn tell_all(&mut self, coordinator: &Coordinator) {
        self.under_way
            .retain(|_, taken| matches!(taken.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        let mut by_shard = Words::new();
        for (&topic, (partitions, groups)) in &**self.protecting.borrow() {
            let offsets = coordinator.read_up_to(topic, *partitions, groups);
            let rows =
                (0..).zip(offsets).map(|(number, offset)| (TopicPartition::new(topic, number), offset));
            self.add(groups, rows, &mut by_shard);
        }
        for (shard, words) in by_shard {
            if self.under_way.contains_key(&shard) {
                continue;
            }
            let Some(link) = self.link(shard) else { continue };
            let (commands, taken) = commands(words);
            // One that has no room for all of it hears the rest with the next.
            if commands.into_iter().all(|command| link.try_send(command).is_ok()) {
                self.under_way.insert(shard, taken);
            }
        }
    }

    /// Tells shards of partitions where a group went back, which are in order. Ends when they have taken that; none if they need
    /// not know.
    pub(super) fn tell_back(
        &self,
        partitions: &[TopicPartition],
        coordinator: &Coordinator,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let mut by_shard = Words::new();
        let protecting = self.protecting.borrow();
        for of_topic in partitions.chunk_by(|one, next| one.topic == next.topic) {
            let topic = of_topic[0].topic;
            let Some((count, groups)) = protecting.get(&topic) else { continue };
            let offsets = coordinator.read_up_to(topic, *count, groups);
            let rows = of_topic.iter().filter_map(|tp| Some((*tp, *offsets.get(tp.partition as usize)?)));
            self.add(groups, rows, &mut by_shard);
        }
        let words =
            by_shard.into_iter().filter_map(|(shard, words)| Some((self.link(shard)?.clone(), words)));
        let words: Vec<(ShardLink, Vec<ReadUpTo>)> = words.collect();
        (!words.is_empty()).then_some(async move {
            for (link, words) in words {
                let (commands, taken) = commands(words);
                for command in commands {
                    // A shard that has ended keeps nothing for anybody.
                    drop(link.send(command).await);
                }
                drop(taken.await);
            }
        })
    }

    fn link(&self, shard: ShardId) -> Option<&ShardLink> {
        self.meter.shards.get(usize::from(shard.get()))
    }

    /// Adds what groups have read to the words to the shards that lead there.
    fn add(
        &self,
        groups: &[GroupName],
        rows: impl IntoIterator<Item = (TopicPartition, Offset)>,
        by_shard: &mut Words,
    ) {
        let view = self.meter.views.borrow();
        let mut here: BTreeMap<ShardId, Vec<(TopicPartition, Offset)>> = BTreeMap::new();
        for row in rows {
            if let Place::Shard(shard) = view.place(row.0) {
                here.entry(shard).or_default().push(row);
            }
        }
        for (shard, rows) in here {
            // In pieces, so that a shard's step stays short.
            let pieces = rows.chunks(ROWS_AT_ONCE);
            let words = pieces.map(|rows| ReadUpTo { groups: groups.to_vec(), rows: rows.to_vec() });
            by_shard.entry(shard).or_default().extend(words);
        }
    }
}

/// What a shard is sent to know all of this, and the word that it has taken it.
fn commands(words: Vec<ReadUpTo>) -> (Vec<Command>, oneshot::Receiver<()>) {
    let (mut commands, mut together, mut rows) = (Vec::new(), Vec::new(), 0);
    for word in words {
        rows += word.rows.len();
        together.push(word);
        if rows >= ROWS_AT_ONCE {
            rows = 0;
            commands.push(Command::Input(Input::GroupsRead(std::mem::take(&mut together))));
        }
    }
    commands.push(Command::Input(Input::GroupsRead(together)));
    let (reply, taken) = oneshot::channel();
    commands.push(Command::Taken { reply });
    (commands, taken)
}
