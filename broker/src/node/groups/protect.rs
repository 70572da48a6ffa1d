//! Groups that topics protect from retention: tells the shards how far they have read.
//!
//! Part of the group actor. Invariants: only what the store confirmed counts as read; a word that is lost is said again with
//! the next look. Refuses to know what a shard does with it.

use super::lag::LagMeter;
use crate::net::Place;
use crate::node::command::Command;
use corelog_core::group::{Coordinator, GroupName};
use corelog_core::shard::{Input, ReadUpTo};
use corelog_wire::ids::{ShardId, TopicId, TopicPartition};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Topics that protect groups: how many partitions each has, and whom it protects.
pub type Protecting = BTreeMap<TopicId, (u32, Arc<[GroupName]>)>;

/// Everybody whom a topic protects.
pub(super) fn named(protecting: &Protecting) -> BTreeSet<GroupName> {
    protecting.values().flat_map(|(_, groups)| groups.iter().cloned()).collect()
}

impl LagMeter {
    /// Tells every shard how far protected groups have read. One that has no room for the word hears the next.
    pub(super) fn tell_read(&self, protecting: &Protecting, coordinator: &Coordinator) {
        let view = Arc::clone(&self.views.borrow());
        let mut by_shard: BTreeMap<ShardId, Vec<ReadUpTo>> = BTreeMap::new();
        for (&topic, (partitions, groups)) in protecting {
            for tp in (0..*partitions).map(|partition| TopicPartition::new(topic, partition)) {
                if let Place::Shard(shard) = view.place(tp) {
                    let offset = coordinator.read_up_to(tp, groups);
                    by_shard.entry(shard).or_default().push(ReadUpTo {
                        tp,
                        groups: Arc::clone(groups),
                        offset,
                    });
                }
            }
        }
        for (shard, rows) in by_shard {
            if let Some(link) = self.shards.get(usize::from(shard.get())) {
                drop(link.try_send(Command::Input(Input::Read(rows))));
            }
        }
    }
}
