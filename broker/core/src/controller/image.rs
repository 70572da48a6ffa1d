//! The metadata as one broker knows it, applied from the store's keys.
//!
//! Invariants: the image's revision never falls (a store that shows an older one was restored, and is refused); a
//! topic is found by its id exactly when it is found by its name; a partition is shown only while its topic is there
//! and counts it. Keys of an unknown subject are left alone.

use std::collections::BTreeMap;

use corelog_wire::ids::{BrokerId, TopicId, TopicPartition};
use thiserror::Error;

use crate::meta::keys::{Keys, Subject};
use crate::meta::values::{
    BrokerValue, ControllerValue, DeletedValue, PartitionValue, ProducerIdsValue, TopicValue, Value,
};
use crate::meta::{Event, Key, KeyValue, Range, Revision};
use crate::topic::TopicName;

/// A value with the revisions that a compare needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<V> {
    /// The value.
    pub value: V,
    /// When its key came to be.
    pub created: Revision,
    /// When it was last put.
    pub modified: Revision,
}

/// Why a change cannot be applied. A fault of the store, never of an asker.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The store is older than what was seen of it: it was restored from a backup.
    #[error("the metadata store is at revision {got}, but revision {seen} was seen before: was it restored?")]
    WentBack {
        /// What the store shows.
        got: Revision,
        /// What was seen.
        seen: Revision,
    },
    /// A value lies under a key of another subject.
    #[error("metadata key {key} holds a value that does not belong there")]
    WrongValue {
        /// The key.
        key: Key,
    },
    /// Two topics have one id.
    #[error("topic id {id} is used by both {first} and {second}")]
    SharedId {
        /// The id.
        id: TopicId,
        /// A topic that has it.
        first: TopicName,
        /// The other.
        second: TopicName,
    },
}

/// The metadata of one cluster.
#[derive(Debug, Clone)]
pub struct Image {
    keys: Keys,
    revision: Revision,
    topics: BTreeMap<TopicName, Versioned<TopicValue>>,
    names: BTreeMap<TopicId, TopicName>,
    partitions: BTreeMap<TopicPartition, Versioned<PartitionValue>>,
    deleted: BTreeMap<TopicId, Versioned<DeletedValue>>,
    brokers: BTreeMap<BrokerId, Versioned<BrokerValue>>,
    producer_ids: Option<Versioned<ProducerIdsValue>>,
    controller: Option<Versioned<ControllerValue>>,
}

impl Image {
    /// Of an empty store.
    #[must_use]
    pub fn new(keys: Keys) -> Self {
        Self {
            keys,
            revision: Revision::ZERO,
            topics: BTreeMap::new(),
            names: BTreeMap::new(),
            partitions: BTreeMap::new(),
            deleted: BTreeMap::new(),
            brokers: BTreeMap::new(),
            producer_ids: None,
            controller: None,
        }
    }

    /// Of everything under the cluster's root.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn load(keys: Keys, range: Range<Value>) -> Result<Self, ImageError> {
        let mut image = Self::new(keys);
        for entry in range.entries {
            image.put(entry)?;
        }
        image.revision = range.revision;
        debug_assert_eq!(image.broken_invariant(), None);
        Ok(image)
    }

    /// Applies one change, and says what it is about.
    ///
    /// # Errors
    /// [`ImageError`]; the image is as before.
    pub fn apply(&mut self, event: Event<Value>) -> Result<Subject, ImageError> {
        let revision = event.revision();
        self.advance(revision)?;
        let subject = match event {
            Event::Put(entry) => self.put(entry)?,
            Event::Delete { key, .. } => self.remove(&key),
        };
        self.revision = revision;
        debug_assert_eq!(self.broken_invariant(), None);
        Ok(subject)
    }

    /// Takes note that nothing else happened up to a revision.
    ///
    /// # Errors
    /// [`ImageError::WentBack`].
    pub fn advance(&mut self, revision: Revision) -> Result<(), ImageError> {
        if revision < self.revision {
            return Err(ImageError::WentBack { got: revision, seen: self.revision });
        }
        self.revision = revision;
        Ok(())
    }

    /// The store's revision that this image shows.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The layout of the keys.
    #[must_use]
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Every topic, in the order of their names.
    pub fn topics(&self) -> impl Iterator<Item = (&TopicName, &Versioned<TopicValue>)> {
        self.topics.iter()
    }

    /// A topic by its name.
    #[must_use]
    pub fn topic(&self, name: &TopicName) -> Option<&Versioned<TopicValue>> {
        self.topics.get(name)
    }

    /// A topic by its id.
    #[must_use]
    pub fn topic_by_id(&self, id: TopicId) -> Option<(&TopicName, &Versioned<TopicValue>)> {
        self.topics.get_key_value(self.names.get(&id)?)
    }

    /// Every partition of every topic, in the order of topic id and number.
    pub fn partitions(&self) -> impl Iterator<Item = (TopicPartition, &Versioned<PartitionValue>)> {
        self.partitions.iter().map(|(tp, partition)| (*tp, partition)).filter(|(tp, _)| self.counts(*tp))
    }

    /// The partitions of one topic, in order.
    pub fn partitions_of(&self, id: TopicId) -> impl Iterator<Item = (u32, &Versioned<PartitionValue>)> {
        self.stored_partitions_of(id)
            .filter(|(tp, _)| self.counts(*tp))
            .map(|(tp, partition)| (tp.partition, partition))
    }

    /// One partition.
    #[must_use]
    pub fn partition(&self, tp: TopicPartition) -> Option<&Versioned<PartitionValue>> {
        if self.counts(tp) { self.partitions.get(&tp) } else { None }
    }

    /// Topics whose data may be removed.
    pub fn deleted(&self) -> impl Iterator<Item = (TopicId, &Versioned<DeletedValue>)> {
        self.deleted.iter().map(|(id, tombstone)| (*id, tombstone))
    }

    /// Whether the data of a topic may be removed. Not being known is no such permission.
    #[must_use]
    pub fn is_deleted(&self, id: TopicId) -> bool {
        self.deleted.contains_key(&id)
    }

    /// Live brokers.
    pub fn brokers(&self) -> impl Iterator<Item = (BrokerId, &Versioned<BrokerValue>)> {
        self.brokers.iter().map(|(id, broker)| (*id, broker))
    }

    /// The next producer ids, once some were handed out.
    #[must_use]
    pub fn producer_ids(&self) -> Option<&Versioned<ProducerIdsValue>> {
        self.producer_ids.as_ref()
    }

    /// The acting controller.
    #[must_use]
    pub fn controller(&self) -> Option<&Versioned<ControllerValue>> {
        self.controller.as_ref()
    }

    /// What is wrong with this image, if anything. The simulator asks at each step.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        if self.topics.len() != self.names.len() {
            return Some("as many ids as names");
        }
        let found =
            |(id, name): (&TopicId, &TopicName)| self.topics.get(name).is_some_and(|t| t.value.id == *id);
        if !self.names.iter().all(found) {
            return Some("every id leads to its topic");
        }
        None
    }

    /// Partition keys of a topic, leftovers too.
    pub(super) fn stored_partitions_of(
        &self,
        id: TopicId,
    ) -> impl Iterator<Item = (TopicPartition, &Versioned<PartitionValue>)> {
        let all = TopicPartition::new(id, 0)..=TopicPartition::new(id, u32::MAX);
        self.partitions.range(all).map(|(tp, partition)| (*tp, partition))
    }

    /// Partition keys that no topic counts.
    pub(super) fn leftovers(&self) -> impl Iterator<Item = (TopicPartition, &Versioned<PartitionValue>)> {
        self.partitions.iter().map(|(tp, partition)| (*tp, partition)).filter(|(tp, _)| !self.counts(*tp))
    }

    /// The revision of a stored partition key, of a leftover too.
    pub(super) fn partition_modified(&self, tp: TopicPartition) -> Option<Revision> {
        self.partitions.get(&tp).map(|partition| partition.modified)
    }

    fn counts(&self, tp: TopicPartition) -> bool {
        self.topic_by_id(tp.topic).is_some_and(|(_, topic)| tp.partition < topic.value.partitions)
    }

    fn put(&mut self, entry: KeyValue<Value>) -> Result<Subject, ImageError> {
        let subject = self.keys.subject(&entry.key);
        let (created, modified) = (entry.create_revision, entry.mod_revision);
        match (&subject, entry.value) {
            (Subject::Topic(name), Value::Topic(value)) => {
                self.put_topic(name.clone(), Versioned { value, created, modified })?;
            }
            (Subject::Partition(tp), Value::Partition(value)) => {
                self.partitions.insert(*tp, Versioned { value, created, modified });
            }
            (Subject::Deleted(id), Value::Deleted(value)) => {
                self.deleted.insert(*id, Versioned { value, created, modified });
            }
            (Subject::Broker(id), Value::Broker(value)) => {
                self.brokers.insert(*id, Versioned { value, created, modified });
            }
            (Subject::ProducerIds, Value::ProducerIds(value)) => {
                self.producer_ids = Some(Versioned { value, created, modified });
            }
            (Subject::Controller, Value::Controller(value)) => {
                self.controller = Some(Versioned { value, created, modified });
            }
            // Groups have a room of their own.
            (Subject::Group(_) | Subject::Offsets(..) | Subject::Unknown, _) => {}
            _ => return Err(ImageError::WrongValue { key: entry.key }),
        }
        Ok(subject)
    }

    fn put_topic(&mut self, name: TopicName, topic: Versioned<TopicValue>) -> Result<(), ImageError> {
        let id = topic.value.id;
        if let Some(first) = self.names.get(&id).filter(|first| **first != name) {
            return Err(ImageError::SharedId { id, first: first.clone(), second: name });
        }
        if let Some(before) = self.topics.insert(name.clone(), topic) {
            self.names.remove(&before.value.id);
        }
        self.names.insert(id, name);
        Ok(())
    }

    fn remove(&mut self, key: &Key) -> Subject {
        let subject = self.keys.subject(key);
        match &subject {
            Subject::Topic(name) => {
                if let Some(topic) = self.topics.remove(name) {
                    self.names.remove(&topic.value.id);
                }
            }
            Subject::Partition(tp) => drop(self.partitions.remove(tp)),
            Subject::Deleted(id) => drop(self.deleted.remove(id)),
            Subject::Broker(id) => drop(self.brokers.remove(id)),
            Subject::ProducerIds => self.producer_ids = None,
            Subject::Controller => self.controller = None,
            Subject::Group(_) | Subject::Offsets(..) | Subject::Unknown => {}
        }
        subject
    }
}
