//! What the controller decides: pure functions from the [`Image`] and a request to the transactions that carry it out.
//!
//! Called by the control plane, which performs the transactions in the metadata store, and by the simulator, which
//! performs them in its model. Every transaction compares what the image was built from, so a decision that was made
//! on an old image is refused by the store, never half made.
//!
//! Invariants: a topic id, a producer id and a (partition, leader epoch) are given once. A topic's data may be removed
//! only when its tombstone is stored. A broker leads in no epoch that a transaction did not give it.
//!
//! An unknown outcome is settled by reading again: if `topics/<name>` carries the id that this request drew, the
//! request was done. Refuses to know: the store, time, randomness (ids are handed in).

mod image;
mod placement;
mod topics;

pub use image::{Image, ImageError, Versioned};
pub use placement::shard_of;
use thiserror::Error;

use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{BrokerId, LeaderEpoch, ProducerId, TopicId, TopicPartition};

use crate::meta::keys::Keys;
use crate::meta::values::{PartitionValue, Plan, ProducerIdsValue, ReplicaIdentity, Value};
use crate::meta::{Compare, Key, Op, Revision, TXN_OPS_MAX, Txn};
use crate::topic::{ConfigError, TopicName, TopicNameError};

/// Most partitions of one topic. Beyond this a topic makes more metadata than data.
pub const TOPIC_PARTITIONS_MAX: u32 = 10_000;
/// The epoch in which a new partition is led. Zero is no epoch.
pub const FIRST_LEADER_EPOCH: LeaderEpoch = LeaderEpoch::new(1);

/// Makes decisions for one cluster.
#[derive(Debug, Clone)]
pub struct Controller {
    keys: Keys,
    /// Create revision of the controller key that this controller holds; every transaction compares it. None in the
    /// embedded store, whose file lock admits one broker.
    term: Option<Revision>,
}

/// Why a request is refused. Maps one to one to a wire code.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A topic of this name exists.
    #[error("topic {name} exists already")]
    Exists {
        /// The name.
        name: TopicName,
        /// Its id.
        id: TopicId,
    },
    /// The name is not a topic's.
    #[error(transparent)]
    InvalidName(#[from] TopicNameError),
    /// A setting is not legal.
    #[error(transparent)]
    InvalidConfig(#[from] ConfigError),
    /// No topic has this name.
    #[error("there is no topic {name}")]
    UnknownTopic {
        /// The name.
        name: TopicName,
    },
    /// A number of partitions outside 1 to [`TOPIC_PARTITIONS_MAX`].
    #[error("a topic has 1 to {TOPIC_PARTITIONS_MAX} partitions; {asked} were asked for")]
    Partitions {
        /// What was asked for.
        asked: u32,
    },
    /// Fewer partitions than there are.
    #[error("topic {name} has {has} partitions and can only get more; {asked} were asked for")]
    FewerPartitions {
        /// The topic.
        name: TopicName,
        /// How many it has.
        has: u32,
        /// What was asked for.
        asked: u32,
    },
    /// More replicas than brokers.
    #[error("a replication factor of {asked} needs as many brokers; there are {brokers}")]
    ReplicationFactor {
        /// What was asked for.
        asked: u16,
        /// Live brokers.
        brokers: u16,
    },
    /// All 2^63 producer ids were handed out.
    #[error("all producer ids were handed out")]
    ProducerIdsExhausted,
}

impl Refusal {
    /// The code on the wire.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Exists { .. } => ErrorCode::Exists,
            Self::InvalidName(_) => ErrorCode::InvalidName,
            Self::InvalidConfig(_)
            | Self::Partitions { .. }
            | Self::FewerPartitions { .. }
            | Self::ReplicationFactor { .. } => ErrorCode::InvalidConfig,
            Self::UnknownTopic { .. } => ErrorCode::UnknownTopic,
            Self::ProducerIdsExhausted => ErrorCode::UnknownProducer,
        }
    }
}

/// What a starting broker must have granted before it leads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EpochRaise {
    /// Independent transactions: each grants the partitions it puts, whatever becomes of the others.
    pub plan: Plan,
    /// What the broker leads once the plan is done, with the epochs.
    pub leads: Vec<(TopicPartition, LeaderEpoch)>,
    /// What it must not lead, and why. These stay offline.
    pub refused: Vec<(TopicPartition, RaiseRefusal)>,
}

/// Why a broker must not lead a partition that metadata gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RaiseRefusal {
    /// The in-sync replica was in another data directory: this one may lack what was acknowledged.
    #[error("the in-sync replica is in another data directory; this one may lack acknowledged records")]
    OtherDataDir,
    /// All epochs were used.
    #[error("all leader epochs were used")]
    EpochsExhausted,
}

/// Producer ids that this broker alone may hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProducerIdBlock {
    first: i64,
    end: i64,
}

impl ProducerIdBlock {
    /// Takes the next id of the block; none when it is used up.
    pub fn take(&mut self) -> Option<ProducerId> {
        if self.first == self.end {
            return None;
        }
        self.first += 1;
        Some(ProducerId::new(self.first - 1))
    }

    /// How many are left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.end.abs_diff(self.first)
    }
}

impl Controller {
    /// A controller of the cluster that `keys` lay out, holding the controller key created at `term`, if there is one.
    #[must_use]
    pub fn new(keys: Keys, term: Option<Revision>) -> Self {
        Self { keys, term }
    }

    /// Raises the leader epoch of every partition that metadata gives to this broker. A broker that starts leads
    /// nothing before: an unflushed tail of the old epoch may have reached followers, and the same (epoch, offset)
    /// must never name two records.
    #[must_use]
    pub fn raise_epochs(&self, image: &Image, broker: ReplicaIdentity) -> EpochRaise {
        let mut raise = EpochRaise::default();
        let mut changes = Vec::new();
        for (tp, partition) in image.partitions() {
            if !is_for(&partition.value, broker.broker) {
                continue;
            }
            match raised(&partition.value, broker) {
                Err(refusal) => raise.refused.push((tp, refusal)),
                Ok(value) => {
                    raise.leads.push((tp, value.leader_epoch));
                    let key = self.keys.partition(tp);
                    let compare = Compare::Modified(key.clone(), partition.modified);
                    changes.push((compare, Op::put(key, Value::Partition(value))));
                }
            }
        }
        raise.plan = self.plan(changes, Vec::new());
        raise
    }

    /// Takes a block of producer ids for this broker. The block is the broker's only once the transaction is done.
    ///
    /// # Errors
    /// [`Refusal::ProducerIdsExhausted`].
    pub fn allocate_producer_ids(
        &self,
        image: &Image,
        count: u32,
    ) -> Result<(ProducerIdBlock, Txn<Value>), Refusal> {
        let stored = image.producer_ids();
        let first = stored.map_or(0, |ids| ids.value.next);
        let next = first.checked_add(u64::from(count)).ok_or(Refusal::ProducerIdsExhausted)?;
        let exhausted = |_| Refusal::ProducerIdsExhausted;
        let block = ProducerIdBlock {
            first: i64::try_from(first).map_err(exhausted)?,
            end: i64::try_from(next).map_err(exhausted)?,
        };
        let key = self.keys.producer_ids();
        let compare = as_seen(&key, stored.map(|ids| ids.modified));
        let change = (compare, Op::put(key, Value::ProducerIds(ProducerIdsValue { next })));
        Ok((block, self.txn(vec![change])))
    }

    /// One transaction of changes, each with what it was decided on.
    fn txn(&self, changes: Vec<(Compare, Op<Value>)>) -> Txn<Value> {
        let (mut compares, then): (Vec<Compare>, Vec<Op<Value>>) = changes.into_iter().unzip();
        compares.extend(self.term.map(|term| Compare::Created(self.keys.controller(), term)));
        let otherwise_reads = then.iter().map(|op| op.key().clone()).collect();
        Txn { compares, then, otherwise_reads }
    }

    /// As many transactions as `changes` need, with `last` whole in the last one.
    fn plan(&self, changes: Vec<(Compare, Op<Value>)>, last: Vec<(Compare, Op<Value>)>) -> Plan {
        let room = TXN_OPS_MAX - 1;
        let mut steps: Vec<Vec<(Compare, Op<Value>)>> = Vec::new();
        for change in changes {
            match steps.last_mut() {
                Some(step) if step.len() < room => step.push(change),
                _ => steps.push(vec![change]),
            }
        }
        match steps.last_mut() {
            Some(step) if step.len() + last.len() <= room => step.extend(last),
            _ if last.is_empty() => {}
            _ => steps.push(last),
        }
        Plan { steps: steps.into_iter().map(|step| self.txn(step)).collect() }
    }
}

/// The compare that holds as long as nobody changed the key since it was seen.
fn as_seen(key: &Key, modified: Option<Revision>) -> Compare {
    match modified {
        Some(revision) => Compare::Modified(key.clone(), revision),
        None => Compare::Absent(key.clone()),
    }
}

/// Whether the broker is the one to lead: it did so before, or nobody else can.
fn is_for(partition: &PartitionValue, broker: BrokerId) -> bool {
    partition.leader == Some(broker) || partition.replicas == [broker]
}

fn raised(partition: &PartitionValue, broker: ReplicaIdentity) -> Result<PartitionValue, RaiseRefusal> {
    let same_disk =
        |member: &&ReplicaIdentity| member.broker == broker.broker && member.data_dir == broker.data_dir;
    let member = partition.isr.iter().find(same_disk).ok_or(RaiseRefusal::OtherDataDir)?;
    let epoch = partition.leader_epoch.get().checked_add(1).ok_or(RaiseRefusal::EpochsExhausted)?;
    let isr = partition.isr.iter().map(|other| if other == member { broker } else { *other }).collect();
    Ok(PartitionValue {
        replicas: partition.replicas.clone(),
        leader: Some(broker.broker),
        leader_epoch: LeaderEpoch::new(epoch),
        isr,
    })
}

#[cfg(test)]
mod tests;
