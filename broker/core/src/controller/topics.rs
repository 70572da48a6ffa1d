//! Creating, altering and deleting topics.
//!
//! A topic may have more partitions than one transaction can hold. So partition keys come first and `topics/<name>`,
//! which makes them count, last; a plan that was cut short leaves keys that nobody counts, and [`Controller::sweep`]
//! removes them.

use corelog_wire::ids::{TopicId, TopicPartition};
use corelog_wire::message::{AlterTopicRequest, CreateTopicRequest};

use super::{Controller, FIRST_LEADER_EPOCH, Image, Refusal, TOPIC_PARTITIONS_MAX, as_seen};
use crate::meta::values::{DeletedValue, PartitionValue, Plan, ReplicaIdentity, TopicValue, Value};
use crate::meta::{Compare, Op, Txn};
use crate::topic::{TopicConfig, TopicName, TopicOverrides};

/// Partitions of a topic whose creator did not say.
const PARTITIONS_DEFAULT: u32 = 1;

impl Controller {
    /// Makes a topic. `id` is drawn at random by the caller, `leader` holds the only replica. The topic is there after
    /// the last step; when the outcome is unknown, it was made if the store shows `id` under its name.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn create_topic(
        &self,
        image: &Image,
        request: &CreateTopicRequest,
        defaults: &TopicOverrides,
        id: TopicId,
        leader: ReplicaIdentity,
    ) -> Result<Plan, Refusal> {
        let name = TopicName::new(&request.name)?;
        if let Some(topic) = image.topic(&name) {
            return Err(Refusal::Exists { name, id: topic.value.id });
        }
        let partitions = match request.partitions {
            0 => PARTITIONS_DEFAULT,
            asked => check_partitions(asked)?,
        };
        let replication_factor = match request.replication_factor {
            0 | 1 => 1,
            asked => return Err(Refusal::ReplicationFactor { asked, brokers: 1 }),
        };
        let overrides = TopicOverrides::from_pairs(request.config.iter().map(|(k, v)| (k, v)))?;
        TopicConfig::check(&overrides, defaults, replication_factor)?;

        let new = self.new_partitions(image, id, 0..partitions, leader);
        let key = self.keys.topic(&name);
        let value = TopicValue { id, partitions, replication_factor, overrides };
        let topic = (Compare::Absent(key.clone()), Op::put(key, Value::Topic(value)));
        Ok(self.plan(new, vec![topic]))
    }

    /// Changes a topic: its settings, and the number of its partitions, which may only grow. Everything counts after
    /// the last step. A request that changes nothing makes an empty plan.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn alter_topic(
        &self,
        image: &Image,
        request: &AlterTopicRequest,
        defaults: &TopicOverrides,
        leader: ReplicaIdentity,
    ) -> Result<Plan, Refusal> {
        let name = TopicName::new(&request.name)?;
        let Some(topic) = image.topic(&name) else {
            return Err(Refusal::UnknownTopic { name });
        };
        let (has, asked) = (topic.value.partitions, request.partitions.unwrap_or(topic.value.partitions));
        if asked < has {
            return Err(Refusal::FewerPartitions { name, has, asked });
        }
        let mut value = TopicValue { partitions: check_partitions(asked)?, ..topic.value.clone() };
        for key in request.config.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key) {
            value.overrides.unset(key)?;
        }
        let chosen = request.config.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
        value.overrides.merge(&TopicOverrides::from_pairs(chosen)?);
        TopicConfig::check(&value.overrides, defaults, value.replication_factor)?;
        if value == topic.value {
            return Ok(Plan::default());
        }

        let new = self.new_partitions(image, value.id, has..asked, leader);
        let key = self.keys.topic(&name);
        let change = (Compare::Modified(key.clone(), topic.modified), Op::put(key, Value::Topic(value)));
        Ok(self.plan(new, vec![change]))
    }

    /// Deletes a topic. It is gone, and its data may be removed, after the first step; the others only tidy up.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn delete_topic(&self, image: &Image, name: &str) -> Result<Plan, Refusal> {
        let name = TopicName::new(name)?;
        let Some(topic) = image.topic(&name) else {
            return Err(Refusal::UnknownTopic { name });
        };
        let id = topic.value.id;
        let (topic_key, tombstone_key) = (self.keys.topic(&name), self.keys.deleted(id));
        let tombstone = Value::Deleted(DeletedValue { name: name.to_string() });
        let mut changes = vec![
            (Compare::Modified(topic_key.clone(), topic.modified), Op::delete(topic_key)),
            (Compare::Absent(tombstone_key.clone()), Op::put(tombstone_key, tombstone)),
        ];
        let removals = image.stored_partitions_of(id).map(|(tp, partition)| {
            let key = self.keys.partition(tp);
            (Compare::Modified(key.clone(), partition.modified), Op::delete(key))
        });
        changes.extend(removals);
        Ok(self.plan(changes, Vec::new()))
    }

    /// Removes partition keys that no topic counts: what a plan that was cut short has left. For a controller that
    /// starts, before it makes other plans.
    #[must_use]
    pub fn sweep(&self, image: &Image) -> Plan {
        let removals = image.leftovers().map(|(tp, partition)| {
            let key = self.keys.partition(tp);
            (Compare::Modified(key.clone(), partition.modified), Op::delete(key))
        });
        self.plan(removals.collect(), Vec::new())
    }

    /// Forgets a tombstone. Only once no broker has data of the topic any more; none if there is no tombstone.
    #[must_use]
    pub fn forget_deleted(&self, image: &Image, id: TopicId) -> Option<Txn<Value>> {
        let (_, tombstone) = image.deleted().find(|(deleted, _)| *deleted == id)?;
        let key = self.keys.deleted(id);
        Some(self.txn(vec![(Compare::Modified(key.clone(), tombstone.modified), Op::delete(key))]))
    }

    fn new_partitions(
        &self,
        image: &Image,
        id: TopicId,
        numbers: std::ops::Range<u32>,
        leader: ReplicaIdentity,
    ) -> Vec<(Compare, Op<Value>)> {
        let change = |number| {
            let tp = TopicPartition::new(id, number);
            let key = self.keys.partition(tp);
            let value = PartitionValue {
                replicas: vec![leader.broker],
                leader: Some(leader.broker),
                leader_epoch: FIRST_LEADER_EPOCH,
                isr: vec![leader],
            };
            (as_seen(&key, image.partition_modified(tp)), Op::put(key, Value::Partition(value)))
        };
        numbers.map(change).collect()
    }
}

fn check_partitions(asked: u32) -> Result<u32, Refusal> {
    if (1..=TOPIC_PARTITIONS_MAX).contains(&asked) { Ok(asked) } else { Err(Refusal::Partitions { asked }) }
}
