//! The layout of the keys: which subject lies where, and back.
//!
//! Everything of a cluster lies under `/corelog/<cluster>/`. Invariant: [`Keys::subject`] is the inverse of the
//! functions that make keys; a key it does not know is [`Subject::Unknown`], left alone, because a newer broker may
//! have written it.

use corelog_wire::ids::{BrokerId, TopicId, TopicPartition};
use thiserror::Error;

use super::Key;
use crate::group::{GroupName, PageId};
use crate::topic::TopicName;

/// The longest cluster name.
pub const CLUSTER_NAME_BYTES_MAX: usize = 64;

/// A text that is not a cluster's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a cluster name has 1 to {CLUSTER_NAME_BYTES_MAX} characters of a-z A-Z 0-9 _ -")]
pub struct ClusterNameError;

/// What a key is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A topic, by name.
    Topic(TopicName),
    /// A partition.
    Partition(TopicPartition),
    /// The tombstone of a topic: its data may be removed.
    Deleted(TopicId),
    /// The next producer id to hand out.
    ProducerIds,
    /// A live broker.
    Broker(BrokerId),
    /// The acting controller.
    Controller,
    /// A consumer group: its claim, and who is in it.
    Group(GroupName),
    /// Committed offsets of a group, a page of a topic's.
    Offsets(GroupName, PageId),
    /// Nothing this version knows.
    Unknown,
}

/// Makes and reads the keys of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    root: String,
}

impl Keys {
    /// The keys of the cluster of this name.
    ///
    /// # Errors
    /// [`ClusterNameError`].
    pub fn new(cluster: &str) -> Result<Self, ClusterNameError> {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if cluster.is_empty() || cluster.len() > CLUSTER_NAME_BYTES_MAX || !cluster.chars().all(legal) {
            return Err(ClusterNameError);
        }
        Ok(Self { root: format!("/corelog/{cluster}/") })
    }

    /// The prefix of everything.
    #[must_use]
    pub fn root(&self) -> Key {
        Key::new(self.root.as_str())
    }

    /// `topics/<name>`
    #[must_use]
    pub fn topic(&self, name: &TopicName) -> Key {
        Key::new(format!("{}topics/{name}", self.root))
    }

    /// `partitions/<topic-id>/<n>`
    #[must_use]
    pub fn partition(&self, tp: TopicPartition) -> Key {
        Key::new(format!("{}partitions/{}/{}", self.root, tp.topic, tp.partition))
    }

    /// `deleted/<topic-id>`
    #[must_use]
    pub fn deleted(&self, topic: TopicId) -> Key {
        Key::new(format!("{}deleted/{topic}", self.root))
    }

    /// `producer_ids`
    #[must_use]
    pub fn producer_ids(&self) -> Key {
        Key::new(format!("{}producer_ids", self.root))
    }

    /// `brokers/<id>`
    #[must_use]
    pub fn broker(&self, broker: BrokerId) -> Key {
        Key::new(format!("{}brokers/{broker}", self.root))
    }

    /// `controller`
    #[must_use]
    pub fn controller(&self) -> Key {
        Key::new(format!("{}controller", self.root))
    }

    /// The prefix of all groups.
    #[must_use]
    pub fn groups(&self) -> Key {
        Key::new(format!("{}groups/", self.root))
    }

    /// `groups/<group>`
    #[must_use]
    pub fn group(&self, group: &GroupName) -> Key {
        Key::new(format!("{}groups/{group}", self.root))
    }

    /// The prefix of all committed offsets.
    #[must_use]
    pub fn offsets(&self) -> Key {
        Key::new(format!("{}offsets/", self.root))
    }

    /// The prefix of a group's committed offsets.
    #[must_use]
    pub fn offsets_of(&self, group: &GroupName) -> Key {
        Key::new(format!("{}offsets/{group}/", self.root))
    }

    /// `offsets/<group>/<topic-id>/<first partition>`
    #[must_use]
    pub fn offsets_page(&self, group: &GroupName, page: PageId) -> Key {
        Key::new(format!("{}offsets/{group}/{}/{}", self.root, page.topic, page.first))
    }

    /// What a key is about.
    #[must_use]
    pub fn subject(&self, key: &Key) -> Subject {
        self.known_subject(key).unwrap_or(Subject::Unknown)
    }

    fn known_subject(&self, key: &Key) -> Option<Subject> {
        let rest = key.as_str().strip_prefix(&self.root)?;
        match rest.split_once('/') {
            None if rest == "producer_ids" => Some(Subject::ProducerIds),
            None if rest == "controller" => Some(Subject::Controller),
            Some(("topics", name)) => TopicName::new(name).ok().map(Subject::Topic),
            Some(("deleted", id)) => topic_id(id).map(Subject::Deleted),
            Some(("brokers", id)) => number(id).map(BrokerId::new).map(Subject::Broker),
            Some(("partitions", place)) => {
                let (topic, partition) = place.split_once('/')?;
                Some(Subject::Partition(TopicPartition::new(topic_id(topic)?, number(partition)?)))
            }
            Some(("groups", name)) => GroupName::new(name).ok().map(Subject::Group),
            Some(("offsets", place)) => {
                let (group, page) = place.split_once('/')?;
                let (topic, first) = page.split_once('/')?;
                let page = PageId { topic: topic_id(topic)?, first: number(first)? };
                let is_page = PageId::of(TopicPartition::new(page.topic, page.first)) == page;
                GroupName::new(group).ok().filter(|_| is_page).map(|group| Subject::Offsets(group, page))
            }
            None | Some(_) => None,
        }
    }
}

/// A topic id exactly as it is written: one subject must not have two keys.
fn topic_id(text: &str) -> Option<TopicId> {
    text.parse().ok().filter(|id: &TopicId| id.to_string() == text)
}

/// A number exactly as it is written: no sign, no leading zeros.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number: &u32| number.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new("prod-1").unwrap()
    }

    fn topic_id_of(byte: u8) -> TopicId {
        TopicId::from_bytes([byte; 16])
    }

    #[test]
    fn keys_are_laid_out_as_documented() {
        let keys = keys();
        let id = topic_id_of(0xab);
        assert_eq!(keys.root().as_str(), "/corelog/prod-1/");
        assert_eq!(
            keys.topic(&TopicName::new("orders.v1").unwrap()).as_str(),
            "/corelog/prod-1/topics/orders.v1"
        );
        assert_eq!(
            keys.partition(TopicPartition::new(id, 12)).as_str(),
            "/corelog/prod-1/partitions/abababab-abab-abab-abab-abababababab/12"
        );
        assert_eq!(keys.deleted(id).as_str(), "/corelog/prod-1/deleted/abababab-abab-abab-abab-abababababab");
        assert_eq!(keys.broker(BrokerId::new(7)).as_str(), "/corelog/prod-1/brokers/7");
        let group = GroupName::new("billing").unwrap();
        let page = PageId::of(TopicPartition::new(id, 40));
        assert_eq!(keys.group(&group).as_str(), "/corelog/prod-1/groups/billing");
        assert_eq!(
            keys.offsets_page(&group, page).as_str(),
            "/corelog/prod-1/offsets/billing/abababab-abab-abab-abab-abababababab/32"
        );
    }

    #[test]
    fn every_key_leads_back_to_its_subject() {
        let keys = keys();
        let name = TopicName::new("a-b_c.d").unwrap();
        let tp = TopicPartition::new(topic_id_of(3), u32::MAX);
        let (group, page) = (GroupName::new("g.1").unwrap(), PageId::of(tp));
        for (key, subject) in [
            (keys.topic(&name), Subject::Topic(name)),
            (keys.partition(tp), Subject::Partition(tp)),
            (keys.deleted(tp.topic), Subject::Deleted(tp.topic)),
            (keys.producer_ids(), Subject::ProducerIds),
            (keys.broker(BrokerId::new(0)), Subject::Broker(BrokerId::new(0))),
            (keys.controller(), Subject::Controller),
            (keys.group(&group), Subject::Group(group.clone())),
            (keys.offsets_page(&group, page), Subject::Offsets(group.clone(), page)),
        ] {
            assert_eq!(keys.subject(&key), subject, "{key}");
        }
    }

    #[test]
    fn other_keys_are_left_alone() {
        let keys = keys();
        let id = topic_id_of(3);
        for key in [
            "/corelog/prod-2/producer_ids".to_owned(),
            "/corelog/prod-1/".to_owned(),
            "/corelog/prod-1/topics".to_owned(),
            "/corelog/prod-1/topics/".to_owned(),
            "/corelog/prod-1/topics/a/b".to_owned(),
            "/corelog/prod-1/brokers/+7".to_owned(),
            "/corelog/prod-1/brokers/07".to_owned(),
            "/corelog/prod-1/brokers/4294967296".to_owned(),
            format!("/corelog/prod-1/partitions/{id}"),
            format!("/corelog/prod-1/partitions/{id}/-1"),
            format!("/corelog/prod-1/partitions/{id}/1/2"),
            "/corelog/prod-1/deleted/ABABABAB-abab-abab-abab-abababababab".to_owned(),
            "/corelog/prod-1/shadows/1".to_owned(),
            "/corelog/prod-1/groups/a/b".to_owned(),
            "/corelog/prod-1/offsets/a".to_owned(),
            format!("/corelog/prod-1/offsets/a/{id}/7"),
            format!("/corelog/prod-1/offsets/a/{id}/16/0"),
        ] {
            assert_eq!(keys.subject(&Key::new(key.clone())), Subject::Unknown, "{key}");
        }
    }

    #[test]
    fn cluster_names_cannot_break_out_of_their_prefix() {
        for name in ["", "a/b", "..", "a b", "ü", &"x".repeat(65)] {
            assert_eq!(Keys::new(name), Err(ClusterNameError), "{name}");
        }
    }
}
