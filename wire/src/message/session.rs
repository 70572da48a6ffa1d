//! Hello and Metadata: with whom one speaks, and where the partitions are.
//!
//! Part of `message`; its invariants hold here.

use flatbuffers::{FlatBufferBuilder, Vector, WIPOffset};

use super::{MessageError, Refusal, each, finish, owned, root, text, topic_id};
use crate::error::ErrorCode;
use crate::generated::session as fb;
use crate::ids::{BrokerId, LeaderEpoch, ShardId, TopicId};

/// The first request of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloRequest {
    /// Name of the client program or library.
    pub client_name: String,
    /// Its version.
    pub client_version: String,
    /// Lowest protocol version that the client speaks, 1 or more.
    pub version_min: u8,
    /// Highest protocol version that the client speaks.
    pub version_max: u8,
    /// Features that the client would use, one bit each; none is defined yet.
    pub features: u64,
    /// The shard that the client wants the connection steered to.
    pub shard: Option<ShardId>,
}

impl HelloRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(128);
        let client_name = text(&mut b, &self.client_name);
        let client_version = text(&mut b, &self.client_version);
        let args = fb::HelloRequestArgs {
            client_name,
            client_version,
            version_min: self.version_min,
            version_max: self.version_max,
            features: self.features,
            shard: self.shard.map(ShardId::get),
        };
        let root = fb::HelloRequest::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`]; the range of versions must not be empty.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::HelloRequest<'_>>(bytes)?;
        let (version_min, version_max) = (table.version_min(), table.version_max());
        if version_min == 0 {
            return Err(MessageError::OutOfRange { field: "version_min", value: 0 });
        }
        if version_max < version_min {
            return Err(MessageError::OutOfRange { field: "version_max", value: version_max.into() });
        }
        Ok(Self {
            client_name: owned(table.client_name()),
            client_version: owned(table.client_version()),
            version_min,
            version_max,
            features: table.features(),
            shard: table.shard().map(ShardId::new),
        })
    }
}

/// What the connection may carry from here on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloAnswer {
    /// The version that both sides speak.
    pub version: u8,
    /// Those of the client's features that the broker grants.
    pub features: u64,
    /// The cluster's name.
    pub cluster: String,
    /// The broker that answers.
    pub broker: BrokerId,
    /// The shard that owns the connection now.
    pub shard: ShardId,
    /// How many shards the broker has.
    pub shards: u16,
    /// Longest header that the broker takes.
    pub header_bytes_max: u32,
    /// Longest payload that the broker takes.
    pub payload_bytes_max: u32,
    /// Longest record that the broker takes.
    pub record_bytes_max: u32,
    /// Longest batch that the broker takes.
    pub batch_bytes_max: u32,
}

impl HelloAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(128);
        let cluster = text(&mut b, &self.cluster);
        let args = fb::HelloAnswerArgs {
            version: self.version,
            features: self.features,
            cluster,
            broker: self.broker.get(),
            shard: self.shard.get(),
            shards: self.shards,
            header_bytes_max: self.header_bytes_max,
            payload_bytes_max: self.payload_bytes_max,
            record_bytes_max: self.record_bytes_max,
            batch_bytes_max: self.batch_bytes_max,
            ..Default::default()
        };
        let root = fb::HelloAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`]; version and shards must not be 0, and the shard must be one of them.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::HelloAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        if table.version() == 0 {
            return Err(MessageError::OutOfRange { field: "version", value: 0 });
        }
        if table.shard() >= table.shards() {
            return Err(MessageError::OutOfRange { field: "shard", value: table.shard().into() });
        }
        Ok(Self {
            version: table.version(),
            features: table.features(),
            cluster: owned(table.cluster()),
            broker: BrokerId::new(table.broker()),
            shard: ShardId::new(table.shard()),
            shards: table.shards(),
            header_bytes_max: table.header_bytes_max(),
            payload_bytes_max: table.payload_bytes_max(),
            record_bytes_max: table.record_bytes_max(),
            batch_bytes_max: table.batch_bytes_max(),
        })
    }
}

/// Asks who the brokers are and where partitions are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataRequest {
    /// The topics, by name; none: every topic.
    pub topics: Option<Vec<String>>,
    /// Whether a named topic that does not exist is to be created, where the broker allows it.
    pub auto_create: bool,
}

impl MetadataRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(128);
        let topics = self.topics.as_ref().map(|topics| {
            let names: Vec<_> = topics.iter().map(|name| b.create_string(name)).collect();
            b.create_vector(&names)
        });
        let args = fb::MetadataRequestArgs { topics, auto_create: self.auto_create };
        let root = fb::MetadataRequest::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::MetadataRequest<'_>>(bytes)?;
        Ok(Self {
            topics: table.topics().map(|topics| topics.iter().map(str::to_owned).collect()),
            auto_create: table.auto_create(),
        })
    }
}

/// A broker of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataBroker {
    /// Its number.
    pub id: BrokerId,
    /// Where clients reach it, as host:port.
    pub address: String,
}

/// Where a partition is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataPartition {
    /// Its number in the topic.
    pub partition: u32,
    /// The broker that leads it, if one does.
    pub leader: Option<BrokerId>,
    /// The epoch of that leadership.
    pub leader_epoch: LeaderEpoch,
    /// The leader's shard that owns it; a hint for steering.
    pub shard: ShardId,
    /// The brokers that hold it, the preferred leader first.
    pub replicas: Vec<BrokerId>,
    /// Those of them that are in sync.
    pub in_sync_replicas: Vec<BrokerId>,
}

/// What is known of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataTopic {
    /// Why the topic cannot be described; [`ErrorCode::None`] if it is.
    pub error: ErrorCode,
    /// Its name.
    pub name: String,
    /// Its id; all zeros if there is an error.
    pub id: TopicId,
    /// Its partitions; empty if there is an error.
    pub partitions: Vec<MetadataPartition>,
}

/// Who the brokers are and where partitions are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataAnswer {
    /// The brokers that are alive.
    pub brokers: Vec<MetadataBroker>,
    /// The topics asked for.
    pub topics: Vec<MetadataTopic>,
    /// The metadata store's revision that this describes; a client keeps the answer with the highest.
    pub revision: u64,
}

impl MetadataAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(1024);
        let brokers: Vec<_> = self
            .brokers
            .iter()
            .map(|broker| {
                let address = Some(b.create_string(&broker.address));
                fb::MetadataBroker::create(&mut b, &fb::MetadataBrokerArgs { id: broker.id.get(), address })
            })
            .collect();
        let brokers = Some(b.create_vector(&brokers));
        let topics: Vec<_> = self.topics.iter().map(|topic| topic.write(&mut b)).collect();
        let topics = Some(b.create_vector(&topics));
        let args = fb::MetadataAnswerArgs { brokers, topics, revision: self.revision, ..Default::default() };
        let root = fb::MetadataAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`]; each topic without an error must have its id.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::MetadataAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        Ok(Self {
            brokers: each(table.brokers(), |broker: fb::MetadataBroker<'_>| {
                Ok(MetadataBroker { id: BrokerId::new(broker.id()), address: broker.address().to_owned() })
            })?,
            topics: each(table.topics(), MetadataTopic::read)?,
            revision: table.revision(),
        })
    }
}

impl MetadataTopic {
    fn write<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::MetadataTopic<'b>> {
        let partitions: Vec<_> = self.partitions.iter().map(|partition| partition.write(b)).collect();
        let partitions = Some(b.create_vector(&partitions));
        let name = Some(b.create_string(&self.name));
        let topic = Some(b.create_vector(self.id.as_bytes()));
        let args = fb::MetadataTopicArgs { error: self.error.as_u16(), name, topic, partitions };
        fb::MetadataTopic::create(b, &args)
    }

    fn read(table: fb::MetadataTopic<'_>) -> Result<Self, MessageError> {
        let error = ErrorCode::received(table.error());
        let id = match table.topic() {
            None if error != ErrorCode::None => TopicId::from_bytes([0; 16]),
            topic => topic_id(topic)?,
        };
        Ok(Self {
            error,
            name: table.name().to_owned(),
            id,
            partitions: each(table.partitions(), |table| Ok(MetadataPartition::read(&table)))?,
        })
    }
}

impl MetadataPartition {
    fn write<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::MetadataPartition<'b>> {
        let replicas = Some(brokers_written(b, &self.replicas));
        let in_sync_replicas = Some(brokers_written(b, &self.in_sync_replicas));
        let args = fb::MetadataPartitionArgs {
            partition: self.partition,
            leader: self.leader.map(BrokerId::get),
            leader_epoch: self.leader_epoch.get(),
            shard: self.shard.get(),
            replicas,
            in_sync_replicas,
        };
        fb::MetadataPartition::create(b, &args)
    }

    fn read(table: &fb::MetadataPartition<'_>) -> Self {
        Self {
            partition: table.partition(),
            leader: table.leader().map(BrokerId::new),
            leader_epoch: LeaderEpoch::new(table.leader_epoch()),
            shard: ShardId::new(table.shard()),
            replicas: brokers_read(table.replicas()),
            in_sync_replicas: brokers_read(table.in_sync_replicas()),
        }
    }
}

fn brokers_written<'b>(b: &mut FlatBufferBuilder<'b>, brokers: &[BrokerId]) -> WIPOffset<Vector<'b, u32>> {
    let brokers: Vec<u32> = brokers.iter().map(|broker| broker.get()).collect();
    b.create_vector(&brokers)
}

fn brokers_read(brokers: Option<Vector<'_, u32>>) -> Vec<BrokerId> {
    brokers.map(|brokers| brokers.iter().map(BrokerId::new).collect()).unwrap_or_default()
}
