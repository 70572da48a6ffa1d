//! Which shard of this broker holds which partition: recorded once, so that it stays where its bytes are.
//!
//! Kept beside the metadata but not part of it: no revision, no watch, nobody else's business.

use bytes::Bytes;
use corelog_wire::ids::{ShardId, TopicPartition};

use super::{Answer, Command, EmbeddedStore, LocalWrite};
use crate::meta::StoreError;

const PREFIX: &str = "shard/";

impl EmbeddedStore {
    /// Every recorded placement, in the order of the written partitions.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn placements(&self) -> Result<Vec<(TopicPartition, ShardId)>, StoreError> {
        let command = Command::ReadLocal { prefix: PREFIX.to_owned() };
        let Answer::Local(rows) = self.ask(command).await? else {
            unreachable!("reading local rows was answered otherwise");
        };
        rows.iter().map(|(key, value)| placement(key, value)).collect()
    }

    /// Records where partitions go, unless that was recorded before, and says where each is. Durable when answered.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn place(
        &self,
        wanted: &[(TopicPartition, ShardId)],
    ) -> Result<Vec<(TopicPartition, ShardId)>, StoreError> {
        let write = |(tp, shard): &(TopicPartition, ShardId)| {
            LocalWrite::PutIfAbsent(key(*tp), Bytes::copy_from_slice(&shard.get().to_le_bytes()))
        };
        self.ask(Command::WriteLocal { writes: wanted.iter().map(write).collect() }).await?;
        let recorded: std::collections::BTreeMap<_, _> = self.placements().await?.into_iter().collect();
        Ok(wanted.iter().map(|(tp, shard)| (*tp, recorded.get(tp).copied().unwrap_or(*shard))).collect())
    }

    /// Forgets where partitions were. Only once their bytes are gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_placements(&self, gone: &[TopicPartition]) -> Result<(), StoreError> {
        let writes = gone.iter().map(|tp| LocalWrite::Delete(key(*tp))).collect();
        self.ask(Command::WriteLocal { writes }).await.map(drop)
    }
}

fn key(tp: TopicPartition) -> String {
    format!("{PREFIX}{}/{}", tp.topic, tp.partition)
}

fn placement(key: &str, value: &[u8]) -> Result<(TopicPartition, ShardId), StoreError> {
    let read = || {
        let (topic, partition) = key.strip_prefix(PREFIX)?.split_once('/')?;
        let tp = TopicPartition::new(topic.parse().ok()?, partition.parse().ok()?);
        Some((tp, ShardId::new(u16::from_le_bytes(value.try_into().ok()?))))
    };
    read().ok_or_else(|| StoreError::Failed {
        what: format!("the record {key} of a partition's shard is damaged"),
    })
}
