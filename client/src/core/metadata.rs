//! What the client knows about brokers and topics.
//!
//! Used by producers, readers and administration; filled from Metadata answers. Invariant: a topic's partitions are
//! those of the answer with the highest revision seen. It refuses to know when to ask again: its users find out by being
//! refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{BrokerId, LeaderEpoch, ShardId, TopicId, TopicPartition};
use corelog_wire::message::{MetadataAnswer, MetadataTopic};

use crate::error::Error;

/// One end of a connection: a broker, and the shard that the connection shall be steered to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// Host and port.
    pub address: Arc<str>,
    /// The shard, if it is known.
    pub shard: Option<ShardId>,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// Any broker will do.
    Any,
    /// This broker, best on this shard.
    At(Destination),
}

/// Where one partition is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its leader, if there is one whose address is known.
    pub leader: Option<Destination>,
    /// The epoch of that leadership.
    pub leader_epoch: LeaderEpoch,
}

/// A topic and its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Its name.
    pub name: Arc<str>,
    /// Its id.
    pub id: TopicId,
    /// Its partitions, by number.
    pub partitions: Vec<Place>,
}

impl Topic {
    /// How many partitions there are.
    #[must_use]
    pub fn partition_count(&self) -> u32 {
        u32::try_from(self.partitions.len()).unwrap_or(u32::MAX)
    }

    /// The leader of a partition.
    #[must_use]
    pub fn leader(&self, partition: u32) -> Option<&Destination> {
        self.partitions.get(partition as usize)?.leader.as_ref()
    }

    /// A partition with the topic's id.
    #[must_use]
    pub fn tp(&self, partition: u32) -> TopicPartition {
        TopicPartition::new(self.id, partition)
    }

    /// Reads one topic of an answer.
    ///
    /// # Errors
    /// What the broker says against the topic; [`Error::Protocol`] if the partitions are not numbered 0, 1, 2, ...
    pub fn read(topic: &MetadataTopic, addresses: &BTreeMap<BrokerId, Arc<str>>) -> Result<Self, Error> {
        if topic.error != ErrorCode::None {
            let name = &topic.name;
            let reason = match topic.error {
                ErrorCode::UnknownTopic => format!("there is no topic {name}"),
                other => format!("topic {name}: {}", other.help()),
            };
            return Err(Error::refused(topic.error, &reason));
        }
        let mut partitions = topic.partitions.iter().collect::<Vec<_>>();
        partitions.sort_by_key(|partition| partition.partition);
        if partitions.is_empty()
            || partitions.iter().zip(0..).any(|(partition, number)| partition.partition != number)
        {
            return Err(Error::protocol(format!(
                "the partitions of topic {} are not 0, 1, 2, ...",
                topic.name
            )));
        }
        let partitions = partitions.into_iter().map(|partition| {
            let address = partition.leader.and_then(|leader| addresses.get(&leader));
            Place {
                leader: address
                    .map(|address| Destination { address: address.clone(), shard: Some(partition.shard) }),
                leader_epoch: partition.leader_epoch,
            }
        });
        Ok(Self { name: topic.name.as_str().into(), id: topic.id, partitions: partitions.collect() })
    }
}

/// The addresses of an answer's brokers.
#[must_use]
pub fn addresses(answer: &MetadataAnswer) -> BTreeMap<BrokerId, Arc<str>> {
    answer.brokers.iter().map(|broker| (broker.id, broker.address.as_str().into())).collect()
}

/// Finds one topic in an answer.
///
/// # Errors
/// What the broker says against the topic; [`Error::Protocol`] if the answer does not speak of it.
pub fn topic_of(answer: &MetadataAnswer, name: &str) -> Result<Topic, Error> {
    let topic = answer.topics.iter().find(|topic| topic.name == name);
    let topic = topic.ok_or_else(|| Error::protocol(format!("the answer does not speak of topic {name}")))?;
    Topic::read(topic, &addresses(answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use corelog_wire::message::{MetadataBroker, MetadataPartition};

    fn partition(number: u32, leader: Option<u32>, shard: u16) -> MetadataPartition {
        MetadataPartition {
            partition: number,
            leader: leader.map(BrokerId::new),
            leader_epoch: LeaderEpoch::new(3),
            shard: ShardId::new(shard),
            replicas: vec![],
            in_sync_replicas: vec![],
        }
    }

    fn answer(partitions: Vec<MetadataPartition>) -> MetadataAnswer {
        MetadataAnswer {
            brokers: vec![MetadataBroker { id: BrokerId::new(1), address: "a:1".into() }],
            topics: vec![MetadataTopic {
                error: ErrorCode::None,
                name: "t".into(),
                id: TopicId::from_bytes([1; 16]),
                partitions,
            }],
            revision: 1,
        }
    }

    #[test]
    fn a_leader_is_found_with_its_shard() {
        let answer = answer(vec![partition(1, None, 0), partition(0, Some(1), 2), partition(2, Some(9), 0)]);
        let topic = topic_of(&answer, "t").unwrap();
        let destination = Destination { address: "a:1".into(), shard: Some(ShardId::new(2)) };
        assert_eq!(topic.leader(0), Some(&destination));
        assert_eq!((topic.leader(1), topic.leader(2), topic.leader(3)), (None, None, None));
    }

    #[test]
    fn a_topic_with_holes_is_refused() {
        assert!(matches!(topic_of(&answer(vec![partition(1, None, 0)]), "t"), Err(Error::Protocol { .. })));
        assert!(matches!(topic_of(&answer(vec![]), "t"), Err(Error::Protocol { .. })));
        assert!(matches!(topic_of(&answer(vec![]), "other"), Err(Error::Protocol { .. })));
    }
}
