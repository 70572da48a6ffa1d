//! What is stored under the keys, as types. How they are written is the broker's affair (versioned JSON).
//!
//! Called by the controller, which makes them and reads them. Invariant: a value says everything about its subject
//! that its key does not.

use corelog_wire::ids::{BrokerId, LeaderEpoch, TopicId};

use super::Txn;
use crate::topic::TopicOverrides;

/// The identity of a data directory: made with it, lost with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataDirId([u8; 16]);

impl DataDirId {
    /// An identity from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// One run of a broker's process: drawn at random at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(u64);

impl ProcessId {
    /// A process by its number.
    #[must_use]
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Who holds a replica: the broker, the data directory it is in, and the run of the broker that vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaIdentity {
    /// The broker.
    pub broker: BrokerId,
    /// A disk member is electable only with the same data directory.
    pub data_dir: DataDirId,
    /// A memory member is electable only with the same process.
    pub process: ProcessId,
}

/// `topics/<name>`. Put last when a topic is made, removed first when it is deleted: a topic is there when this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicValue {
    /// Never used again, not even for a topic of the same name.
    pub id: TopicId,
    /// How many partitions count. Partition keys beyond are leftovers of a change that was cut short.
    pub partitions: u32,
    /// Replicas of each partition.
    pub replication_factor: u16,
    /// The settings somebody chose.
    pub overrides: TopicOverrides,
}

/// `partitions/<topic-id>/<n>`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionValue {
    /// Who holds the partition, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// Who leads it, if anybody does.
    pub leader: Option<BrokerId>,
    /// Raised by every transaction that names a leader, the same one too; never falls.
    pub leader_epoch: LeaderEpoch,
    /// Who holds everything that was acknowledged.
    pub isr: Vec<ReplicaIdentity>,
}

/// `deleted/<topic-id>`: the one permission to remove a topic's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletedValue {
    /// The name it had, for people.
    pub name: String,
}

/// `producer_ids`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerIdsValue {
    /// Every id below this was handed out.
    pub next: u64,
}

/// `brokers/<id>`, under the broker's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerValue {
    /// Where clients reach it.
    pub address: String,
    /// How many shards it has.
    pub shards: u16,
    /// Where it stands, for placement.
    pub rack: Option<String>,
    /// The identity of its data directory.
    pub data_dir: DataDirId,
    /// The run of its process.
    pub process: ProcessId,
}

/// `controller`, under the controller's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControllerValue {
    /// Who acts.
    pub broker: BrokerId,
}

/// A value of any subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of `topics/<name>`.
    Topic(TopicValue),
    /// Of `partitions/<topic-id>/<n>`.
    Partition(PartitionValue),
    /// Of `deleted/<topic-id>`.
    Deleted(DeletedValue),
    /// Of `producer_ids`.
    ProducerIds(ProducerIdsValue),
    /// Of `brokers/<id>`.
    Broker(BrokerValue),
    /// Of `controller`.
    Controller(ControllerValue),
}

/// Transactions to perform one after the other. Who makes the plan says which step makes the change visible, and what
/// a plan that was cut short leaves behind. A step that is refused ends the plan: somebody else was faster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Txn<Value>>,
}
