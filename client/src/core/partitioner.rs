//! Which partition a record goes to.
//!
//! Asked by the producer for each record. Invariant: a keyed record goes to the partition that owns its key's slot, so
//! that all clients agree; the partition given is always one that exists, or an error. It refuses to know what became of
//! the records before.

use std::fmt;
use std::sync::Arc;

use corelog_wire::keys::slot_of;

use super::metadata::Topic;
use super::random::Random;
use super::record::RecordRef;

/// A user's own choice: given the record and the number of partitions, the partition.
pub type Choice = dyn Fn(&RecordRef<'_>, u32) -> u32 + Send + Sync;

/// How partitions are chosen for records that do not name theirs.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Partitioner {
    /// By key; without one, a partition that changes with each batch ("sticky").
    #[default]
    Keyed,
    /// Sticky for all records, whether they have a key or not.
    Sticky,
    /// Always this one.
    Explicit(u32),
    /// The user's own.
    Custom(Arc<Choice>),
}

impl fmt::Debug for Partitioner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keyed => f.write_str("Keyed"),
            Self::Sticky => f.write_str("Sticky"),
            Self::Explicit(partition) => write!(f, "Explicit({partition})"),
            Self::Custom(_) => f.write_str("Custom(..)"),
        }
    }
}

/// The partition of a key: that of its hash slot. A new topic's map is slot % partitions.
#[must_use]
pub fn partition_of_key(key: &[u8], partitions: u32) -> u32 {
    slot_of(key) % partitions.max(1)
}

/// Chooses partitions.
#[derive(Debug)]
pub(crate) struct Chooser {
    partitioner: Partitioner,
    sticky: u32,
}

impl Chooser {
    pub(crate) fn new(partitioner: Partitioner) -> Self {
        Self { partitioner, sticky: u32::MAX }
    }

    /// The partition for a record; it may be one that does not exist, by the record's own or the user's choice.
    pub(crate) fn choose(&mut self, record: &RecordRef<'_>, topic: &Topic, random: &mut Random) -> u32 {
        let partitions = topic.partition_count();
        if let Some(partition) = record.partition {
            return partition;
        }
        match &self.partitioner {
            Partitioner::Explicit(partition) => *partition,
            Partitioner::Custom(choice) => choice(record, partitions),
            Partitioner::Keyed if record.key.is_some() => {
                partition_of_key(record.key.unwrap_or_default(), partitions)
            }
            Partitioner::Keyed | Partitioner::Sticky => {
                if self.sticky >= partitions {
                    self.move_on(topic, random);
                }
                self.sticky
            }
        }
    }

    /// A batch of this partition is complete: if it is the sticky one, another takes its place.
    pub(crate) fn completed(&mut self, partition: u32, topic: &Topic, random: &mut Random) {
        if partition == self.sticky {
            self.move_on(topic, random);
        }
    }

    /// Another partition by chance, if possible one that has a leader.
    fn move_on(&mut self, topic: &Topic, random: &mut Random) {
        let partitions = topic.partition_count();
        let is_other = |partition: u32| partition != self.sticky || partitions == 1;
        let step = u32::try_from(random.below(partitions.into())).unwrap_or(0);
        let candidates = || (0..partitions).map(|i| (step + i) % partitions).filter(|&p| is_other(p));
        let led = candidates().find(|&partition| topic.leader(partition).is_some());
        self.sticky = led.or_else(|| candidates().next()).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::metadata::{Destination, Place};
    use corelog_wire::ids::{LeaderEpoch, TopicId};

    fn topic(led: &[bool]) -> Topic {
        let place = |&led: &bool| Place {
            leader: led.then(|| Destination { address: "a:1".into(), shard: None }),
            leader_epoch: LeaderEpoch::new(1),
        };
        let partitions = led.iter().map(place).collect();
        Topic { name: "t".into(), id: TopicId::from_bytes([7; 16]), partitions }
    }

    fn keyed(key: &[u8]) -> RecordRef<'_> {
        RecordRef { key: Some(key), ..RecordRef::default() }
    }

    #[test]
    fn keys_fall_where_kafka_puts_them() {
        // Slots of these keys: 63,724 and 8,731.
        assert_eq!((partition_of_key(b"21", 4), partition_of_key(b"abc", 4)), (0, 3));
        let mut chooser = Chooser::new(Partitioner::Keyed);
        let (topic, mut random) = (topic(&[true; 4]), Random::new(1));
        assert_eq!(chooser.choose(&keyed(b"abc"), &topic, &mut random), 3);
        assert_eq!(chooser.choose(&keyed(b""), &topic, &mut random), partition_of_key(b"", 4));
        let own = RecordRef { partition: Some(9), ..keyed(b"abc") };
        assert_eq!(chooser.choose(&own, &topic, &mut random), 9);
    }

    #[test]
    fn sticky_stays_until_its_batch_is_complete_and_avoids_the_leaderless() {
        let mut chooser = Chooser::new(Partitioner::Keyed);
        let (topic, mut random) = (topic(&[true, false, true]), Random::new(3));
        let mut seen = [0; 3];
        for _ in 0..100 {
            let partition = chooser.choose(&RecordRef::default(), &topic, &mut random);
            assert_eq!(chooser.choose(&RecordRef::default(), &topic, &mut random), partition);
            chooser.completed(partition, &topic, &mut random);
            assert_ne!(chooser.choose(&RecordRef::default(), &topic, &mut random), partition);
            seen[partition as usize] += 1;
        }
        assert_eq!(seen, [50, 0, 50]);
    }

    #[test]
    fn a_custom_choice_sees_the_record() {
        let choice = |record: &RecordRef<'_>, partitions: u32| {
            u32::try_from(record.value.map_or(0, <[u8]>::len)).unwrap() % partitions
        };
        let mut chooser = Chooser::new(Partitioner::Custom(Arc::new(choice)));
        let record = RecordRef { value: Some(b"four!"), ..RecordRef::default() };
        assert_eq!(chooser.choose(&record, &topic(&[true; 4]), &mut Random::new(1)), 1);
    }
}
