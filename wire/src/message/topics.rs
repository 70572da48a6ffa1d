//! Create, delete, alter and describe a topic.
//!
//! Part of `message`; its invariants hold here. Whether a name, a number or a setting is allowed is for the broker to
//! say, as the answer names the rule.

use flatbuffers::{FlatBufferBuilder, ForwardsUOffset, Vector, WIPOffset};

use super::{MessageError, Refusal, each, finish, owned, root, topic_bytes, topic_id};
use crate::generated::common::{Setting, SettingArgs};
use crate::generated::topics as fb;
use crate::ids::{BrokerId, LeaderEpoch, Offset, ShardId, TopicId};

/// Creates a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateTopicRequest {
    /// Its name.
    pub name: String,
    /// How many partitions; 0: the broker's default.
    pub partitions: u32,
    /// How many replicas each; 0: the broker's default.
    pub replication_factor: u16,
    /// Settings that differ from their defaults: name and value.
    pub config: Vec<(String, String)>,
}

/// The topic exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateTopicAnswer {
    /// Its id.
    pub id: TopicId,
}

/// Deletes a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteTopicRequest {
    /// Its name.
    pub name: String,
}

/// The topic is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteTopicAnswer {}

/// Changes a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlterTopicRequest {
    /// Its name.
    pub name: String,
    /// Settings to change: name and value; no value: back to the default.
    pub config: Vec<(String, Option<String>)>,
    /// How many partitions it shall have, if that is to change.
    pub partitions: Option<u32>,
}

/// The topic is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlterTopicAnswer {}

/// Asks for a topic's settings and the state of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribeTopicRequest {
    /// Its name.
    pub name: String,
}

/// One setting of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSetting {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
    /// Whether the value is the broker's default.
    pub is_default: bool,
}

/// The state of a partition. What only its leader knows is 0 where no leader could be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionDescription {
    /// Its number in the topic.
    pub partition: u32,
    /// The broker that leads it, if one does.
    pub leader: Option<BrokerId>,
    /// The epoch of that leadership.
    pub leader_epoch: LeaderEpoch,
    /// The leader's shard that owns it.
    pub shard: ShardId,
    /// Lowest offset that can be read.
    pub log_start: Offset,
    /// Lowest offset that consumers cannot read yet.
    pub high_watermark: Offset,
    /// The offset that the next record gets.
    pub log_end: Offset,
    /// Bytes of its batches on the leader.
    pub bytes: u64,
    /// Segments on the leader.
    pub segments: u32,
}

/// A topic's settings and the state of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribeTopicAnswer {
    /// Its id.
    pub id: TopicId,
    /// All its settings, by name.
    pub config: Vec<TopicSetting>,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionDescription>,
}

impl CreateTopicRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(256);
        let config =
            settings(&mut b, self.config.iter().map(|(name, value)| (&**name, Some(&**value), false)));
        let name = Some(b.create_string(&self.name));
        let args = fb::CreateTopicRequestArgs {
            name,
            partitions: self.partitions,
            replication_factor: self.replication_factor,
            config: Some(config),
        };
        let root = fb::CreateTopicRequest::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`]; each setting must have a value.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::CreateTopicRequest<'_>>(bytes)?;
        Ok(Self {
            name: table.name().to_owned(),
            partitions: table.partitions(),
            replication_factor: table.replication_factor(),
            config: each(table.config(), |setting: Setting<'_>| {
                let value = setting.value().ok_or(MessageError::Missing { field: "value" })?;
                Ok((setting.name().to_owned(), value.to_owned()))
            })?,
        })
    }
}

impl CreateTopicAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64);
        let topic = Some(topic_bytes(&mut b, self.id));
        let root =
            fb::CreateTopicAnswer::create(&mut b, &fb::CreateTopicAnswerArgs { topic, ..Default::default() });
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::CreateTopicAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        Ok(Self { id: topic_id(table.topic())? })
    }
}

impl DeleteTopicRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64);
        let name = Some(b.create_string(&self.name));
        let root = fb::DeleteTopicRequest::create(&mut b, &fb::DeleteTopicRequestArgs { name });
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::DeleteTopicRequest<'_>>(bytes)?;
        Ok(Self { name: table.name().to_owned() })
    }
}

impl DeleteTopicAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(32);
        let root = fb::DeleteTopicAnswer::create(&mut b, &fb::DeleteTopicAnswerArgs::default());
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::DeleteTopicAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        Ok(Self {})
    }
}

impl AlterTopicRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(256);
        let config =
            settings(&mut b, self.config.iter().map(|(name, value)| (&**name, value.as_deref(), false)));
        let name = Some(b.create_string(&self.name));
        let args = fb::AlterTopicRequestArgs { name, config: Some(config), partitions: self.partitions };
        let root = fb::AlterTopicRequest::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::AlterTopicRequest<'_>>(bytes)?;
        Ok(Self {
            name: table.name().to_owned(),
            config: each(table.config(), |setting: Setting<'_>| {
                Ok((setting.name().to_owned(), setting.value().map(str::to_owned)))
            })?,
            partitions: table.partitions(),
        })
    }
}

impl AlterTopicAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(32);
        let root = fb::AlterTopicAnswer::create(&mut b, &fb::AlterTopicAnswerArgs::default());
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::AlterTopicAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        Ok(Self {})
    }
}

impl DescribeTopicRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64);
        let name = Some(b.create_string(&self.name));
        let root = fb::DescribeTopicRequest::create(&mut b, &fb::DescribeTopicRequestArgs { name });
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::DescribeTopicRequest<'_>>(bytes)?;
        Ok(Self { name: table.name().to_owned() })
    }
}

impl DescribeTopicAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(1024);
        let rows =
            self.config.iter().map(|setting| (&*setting.name, Some(&*setting.value), setting.is_default));
        let config = settings(&mut b, rows);
        let partitions: Vec<_> = self.partitions.iter().map(|partition| partition.write(&mut b)).collect();
        let partitions = Some(b.create_vector(&partitions));
        let topic = Some(topic_bytes(&mut b, self.id));
        let args =
            fb::DescribeTopicAnswerArgs { topic, config: Some(config), partitions, ..Default::default() };
        let root = fb::DescribeTopicAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::DescribeTopicAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        Ok(Self {
            id: topic_id(table.topic())?,
            config: each(table.config(), |setting: Setting<'_>| {
                Ok(TopicSetting {
                    name: setting.name().to_owned(),
                    value: owned(setting.value()),
                    is_default: setting.is_default(),
                })
            })?,
            partitions: each(table.partitions(), |table| Ok(PartitionDescription::read(&table)))?,
        })
    }
}

impl PartitionDescription {
    fn write<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::PartitionDescription<'b>> {
        let args = fb::PartitionDescriptionArgs {
            partition: self.partition,
            leader: self.leader.map(BrokerId::get),
            leader_epoch: self.leader_epoch.get(),
            shard: self.shard.get(),
            log_start: self.log_start.get(),
            high_watermark: self.high_watermark.get(),
            log_end: self.log_end.get(),
            bytes: self.bytes,
            segments: self.segments,
        };
        fb::PartitionDescription::create(b, &args)
    }

    fn read(table: &fb::PartitionDescription<'_>) -> Self {
        Self {
            partition: table.partition(),
            leader: table.leader().map(BrokerId::new),
            leader_epoch: LeaderEpoch::new(table.leader_epoch()),
            shard: ShardId::new(table.shard()),
            log_start: Offset::new(table.log_start()),
            high_watermark: Offset::new(table.high_watermark()),
            log_end: Offset::new(table.log_end()),
            bytes: table.bytes(),
            segments: table.segments(),
        }
    }
}

type Settings<'b> = WIPOffset<Vector<'b, ForwardsUOffset<Setting<'b>>>>;

/// Writes settings of (name, value, is default).
fn settings<'b, 's>(
    b: &mut FlatBufferBuilder<'b>,
    rows: impl Iterator<Item = (&'s str, Option<&'s str>, bool)>,
) -> Settings<'b> {
    let rows: Vec<_> = rows
        .map(|(name, value, is_default)| {
            let name = Some(b.create_string(name));
            let value = value.map(|value| b.create_string(value));
            Setting::create(b, &SettingArgs { name, value, is_default })
        })
        .collect();
    b.create_vector(&rows)
}
