//! The control actor: the one task that turns metadata requests into transactions, tells shards what they lead, and
//! publishes where every partition is.
//!
//! Runs on the control thread. Requests come from the network hands of every shard over one bounded channel, one at a
//! time: metadata changes are rare and their order matters. Invariants: a shard leads only what a transaction granted;
//! the view shows a partition only after its shard has been told, and has it before any request that the view sends; a
//! topic's tombstone is forgotten only when its shards reported the partitions gone. Refuses to know sockets, files and
//! how a shard works.

use super::command::{Command, ShardLink};
use super::groups::Protecting;
use crate::meta::control::{ControlError, ControlPlane, Leadership};
use crate::meta::{EmbeddedStore, StoreError};
use crate::net::{ControlRequest, View, listing_bytes};
use corelog_core::controller::shard_of;
use corelog_core::group::Topics;
use corelog_core::shard::{Input, PartitionSnapshot};
use corelog_core::topic::{TopicConfig, TopicName, TopicOverrides};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Kind;
use corelog_wire::ids::{BrokerId, LeaderEpoch, Offset, ProducerEpoch, ShardId, TopicId, TopicPartition};
use corelog_wire::message::{
    AlterTopicAnswer, Answer, CreateTopicAnswer, CreateTopicRequest, DeleteTopicAnswer, DescribeTopicAnswer,
    InitProducerIdAnswer, MetadataAnswer, MetadataBroker, MetadataPartition, MetadataRequest, MetadataTopic,
    PartitionDescription, Refusal, Request, TopicSetting,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// How long a shard may take to take in what it was told.
const TAKEN_PATIENCE: Duration = Duration::from_secs(5);

/// What the actor is given.
#[derive(Debug)]
pub struct Control {
    /// Decides and remembers.
    pub plane: ControlPlane,
    /// Keeps which shard has which partition.
    pub store: EmbeddedStore,
    /// The ways to the shards, by number.
    pub shards: Vec<ShardLink>,
    /// Where clients reach this broker.
    pub address: String,
    /// This broker.
    pub broker: BrokerId,
    /// Whether asking for an unknown topic may make it. `dev` only.
    pub auto_create: bool,
    /// Takes the pictures.
    pub shown: Shown,
    placement: BTreeMap<TopicPartition, ShardId>,
    /// What this broker leads.
    leads: BTreeMap<TopicPartition, LeaderEpoch>,
}

/// Where the rest of the broker looks: pictures that are replaced whole.
#[derive(Debug)]
pub struct Shown {
    /// Where every partition is led.
    pub view: watch::Sender<Arc<View>>,
    /// Which topics there are, for consumer groups.
    pub topics: watch::Sender<Arc<Topics>>,
    /// Which topics protect groups from retention.
    pub protecting: watch::Sender<Arc<Protecting>>,
}

impl Control {
    /// An actor that leads nothing yet.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn new(
        plane: ControlPlane,
        store: EmbeddedStore,
        shards: Vec<ShardLink>,
        address: String,
        broker: BrokerId,
        auto_create: bool,
        shown: Shown,
    ) -> Result<Self, StoreError> {
        let placement = store.placements().await?.into_iter().collect();
        Ok(Self {
            plane,
            store,
            shards,
            address,
            broker,
            auto_create,
            shown,
            placement,
            leads: BTreeMap::new(),
        })
    }

    /// Tells every shard what it leads after the start. `held` is what recovery found on each shard.
    ///
    /// # Errors
    /// The store failed.
    pub async fn begin(
        &mut self,
        leadership: Leadership,
        held: Vec<(ShardId, Vec<TopicPartition>)>,
    ) -> Result<(), ControlError> {
        for (tp, why) in leadership.refused {
            tracing::error!(topic = %tp.topic, partition = tp.partition, "not led: {why}");
        }
        // Where the bytes are wins over what was recorded: the record is an aid, the bytes are the fact.
        for (shard, partitions) in &held {
            for tp in partitions {
                self.placement.insert(*tp, *shard);
            }
        }
        self.settle_deleted(&held).await?;
        self.lead(leadership.leads).await?;
        self.publish();
        Ok(())
    }

    /// Answers requests until the last asker is gone or `stop` fires.
    pub async fn run(
        mut self,
        mut requests: mpsc::Receiver<ControlRequest>,
        mut stop: oneshot::Receiver<()>,
    ) {
        loop {
            tokio::select! {
                biased;
                _ = &mut stop => return,
                request = requests.recv() => {
                    let Some(ControlRequest { request, answer_bytes_max, reply }) = request else { return };
                    let answer = self.answer(request, answer_bytes_max).await;
                    // An asker that left needs no answer.
                    drop(reply.send(answer));
                }
            }
        }
    }

    async fn answer(&mut self, request: Request, bytes_max: u64) -> Answer {
        let kind = request.kind();
        let answered = match request {
            Request::Metadata(request) => self.metadata(&request, bytes_max).await,
            Request::CreateTopic(request) => {
                self.create(&request).await.map(|id| Answer::CreateTopic(CreateTopicAnswer { id }))
            }
            Request::DeleteTopic(request) => {
                let deleted = self.plane.delete_topic(&request).await;
                self.after_delete(deleted).await
            }
            Request::AlterTopic(request) => {
                let altered = self.plane.alter_topic(&request).await;
                self.after_alter(altered).await
            }
            Request::DescribeTopic(request) => self.describe(&request.name, bytes_max).await,
            Request::InitProducerId(_) => self.plane.producer_id().await.map(|producer_id| {
                Answer::InitProducerId(InitProducerIdAnswer {
                    producer_id,
                    producer_epoch: ProducerEpoch::new(0),
                })
            }),
            _ => {
                return refused(
                    kind,
                    ErrorCode::UnsupportedKind,
                    "this request is not the control thread's".to_owned(),
                );
            }
        };
        answered.unwrap_or_else(|error| {
            if !matches!(error, ControlError::Refused(_)) {
                tracing::error!(%error, "a metadata request failed");
            }
            refused(kind, error.code(), error.to_string())
        })
    }

    async fn create(&mut self, request: &CreateTopicRequest) -> Result<TopicId, ControlError> {
        let id = self.plane.create_topic(request).await?;
        self.lead_new(id).await?;
        Ok(id)
    }

    async fn after_alter(&mut self, altered: Result<TopicId, ControlError>) -> Result<Answer, ControlError> {
        let id = altered?;
        let config = self.config_of(id);
        let known: Vec<TopicPartition> = self.leads.keys().copied().filter(|tp| tp.topic == id).collect();
        for &tp in &known {
            self.tell(tp, Input::Configure { tp, config: config.clone() }).await;
        }
        // What was asked for holds from the answer on.
        self.until_taken(known.iter().filter_map(|tp| self.placement.get(tp).copied()).collect()).await;
        self.lead_new(id).await?;
        Ok(Answer::AlterTopic(AlterTopicAnswer {}))
    }

    async fn after_delete(&mut self, deleted: Result<TopicId, ControlError>) -> Result<Answer, ControlError> {
        let id = deleted?;
        let gone: Vec<TopicPartition> = self.leads.keys().copied().filter(|tp| tp.topic == id).collect();
        for tp in &gone {
            self.leads.remove(tp);
        }
        self.publish();
        for tp in &gone {
            self.tell(*tp, Input::Remove { tp: *tp }).await;
        }
        // The tombstone stays until a start finds nothing of the topic on any shard: see `settle_deleted`.
        Ok(Answer::DeleteTopic(DeleteTopicAnswer {}))
    }

    /// Leads what a transaction granted and no shard was told yet.
    async fn lead_new(&mut self, id: TopicId) -> Result<(), ControlError> {
        let granted: Vec<(TopicPartition, LeaderEpoch)> = self
            .plane
            .image()
            .partitions_of(id)
            .filter(|(_, partition)| partition.value.leader == Some(self.broker))
            .map(|(number, partition)| (TopicPartition::new(id, number), partition.value.leader_epoch))
            .filter(|(tp, _)| !self.leads.contains_key(tp))
            .collect();
        let led = self.lead(granted).await;
        // Also what the store did not let be led: it is there, and others of the topic may have new settings.
        self.publish();
        led
    }

    async fn lead(&mut self, granted: Vec<(TopicPartition, LeaderEpoch)>) -> Result<(), ControlError> {
        let shards = u16::try_from(self.shards.len()).unwrap_or(u16::MAX);
        let known: BTreeSet<TopicPartition> = self.placement.keys().copied().collect();
        let fresh: Vec<(TopicPartition, ShardId)> = granted
            .iter()
            .map(|(tp, _)| *tp)
            .filter(|tp| !known.contains(tp))
            .map(|tp| (tp, shard_of(tp, shards)))
            .collect();
        if !fresh.is_empty() {
            for (tp, shard) in self.store.place(&fresh).await? {
                self.placement.insert(tp, shard);
            }
        }
        let mut configs: BTreeMap<TopicId, TopicConfig> = BTreeMap::new();
        let mut told = BTreeSet::new();
        for (tp, epoch) in granted {
            let config = configs.entry(tp.topic).or_insert_with(|| self.config_of(tp.topic)).clone();
            self.tell(tp, Input::Lead { tp, epoch, config }).await;
            told.extend(self.placement.get(&tp).copied());
            self.leads.insert(tp, epoch);
        }
        self.until_taken(told).await;
        Ok(())
    }

    /// Waits until these shards have all that they were told before whatever comes from now on. Otherwise the first
    /// request for a new partition could be there before the shard leads it.
    async fn until_taken(&self, shards: BTreeSet<ShardId>) {
        let mut words = Vec::new();
        for shard in shards {
            let Some(link) = self.shards.get(usize::from(shard.get())) else { continue };
            let (reply, word) = oneshot::channel();
            if link.send(Command::Taken { reply }).await.is_ok() {
                words.push((shard, word));
            }
        }
        for (shard, word) in words {
            // Without its word requests may come too early, and are told to try again.
            if tokio::time::timeout(TAKEN_PATIENCE, word).await.is_err() {
                tracing::warn!(shard = shard.get(), "a shard is slow to take what it is told");
            }
        }
    }

    /// Removes what tombstones say is gone, and forgets the tombstones of topics that left nothing.
    async fn settle_deleted(&mut self, held: &[(ShardId, Vec<TopicPartition>)]) -> Result<(), ControlError> {
        let deleted: Vec<TopicId> = self.plane.image().deleted().map(|(id, _)| id).collect();
        for id in deleted {
            let left: Vec<TopicPartition> = held
                .iter()
                .flat_map(|(_, partitions)| partitions)
                .copied()
                .filter(|tp| tp.topic == id)
                .collect();
            if left.is_empty() {
                self.plane.forget_deleted(id).await?;
                continue;
            }
            for tp in left {
                self.tell(tp, Input::Remove { tp }).await;
            }
        }
        let gone: Vec<TopicPartition> =
            self.placement.keys().copied().filter(|tp| self.plane.image().partition(*tp).is_none()).collect();
        let held: BTreeSet<TopicPartition> =
            held.iter().flat_map(|(_, partitions)| partitions).copied().collect();
        let gone: Vec<TopicPartition> = gone.into_iter().filter(|tp| !held.contains(tp)).collect();
        for tp in &gone {
            self.placement.remove(tp);
        }
        self.store.forget_placements(&gone).await?;
        let unknown = held.iter().filter(|tp| {
            !self.plane.image().is_deleted(tp.topic) && self.plane.image().partition(**tp).is_none()
        });
        for tp in unknown {
            tracing::warn!(topic = %tp.topic, partition = tp.partition,
                "the metadata does not know this partition; its data is set aside, not removed");
        }
        Ok(())
    }

    async fn metadata(&mut self, request: &MetadataRequest, bytes_max: u64) -> Result<Answer, ControlError> {
        if let Some(names) = request.topics.as_ref().filter(|_| request.auto_create && self.auto_create) {
            for name in names {
                self.create_if_missing(name).await?;
            }
        }
        let image = self.plane.image();
        let bytes: u64 = match &request.topics {
            Some(names) => names.iter().map(|name| self.listed_bytes(name)).sum(),
            None => image.topics().map(|(name, _)| self.listed_bytes(name.as_str())).sum(),
        };
        if bytes > bytes_max {
            return Ok(too_long(Kind::Metadata, bytes, bytes_max));
        }
        let topics = match &request.topics {
            Some(names) => names.iter().map(|name| self.topic_metadata(name)).collect(),
            None => image.topics().map(|(name, _)| self.topic_metadata(name.as_str())).collect(),
        };
        let brokers = vec![MetadataBroker { id: self.broker, address: self.address.clone() }];
        Ok(Answer::Metadata(MetadataAnswer { brokers, topics, revision: image.revision().get() }))
    }

    async fn create_if_missing(&mut self, name: &str) -> Result<(), ControlError> {
        let Ok(valid) = TopicName::new(name) else { return Ok(()) };
        if self.plane.image().topic(&valid).is_some() {
            return Ok(());
        }
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions: 1,
            replication_factor: 1,
            config: Vec::new(),
        };
        self.create(&request).await.map(drop)
    }

    /// What a topic takes in a listing, or the word that it is not there.
    fn listed_bytes(&self, name: &str) -> u64 {
        let topic = TopicName::new(name).ok().and_then(|name| self.plane.image().topic(&name));
        let (partitions, replicas) = topic
            .map_or((0, 0), |topic| (topic.value.partitions.into(), topic.value.replication_factor.into()));
        listing_bytes(1, name.len() as u64, partitions, replicas)
    }

    fn topic_metadata(&self, name: &str) -> MetadataTopic {
        let missing = |error| MetadataTopic {
            error,
            name: name.to_owned(),
            id: TopicId::from_bytes([0; 16]),
            partitions: Vec::new(),
        };
        let Ok(valid) = TopicName::new(name) else { return missing(ErrorCode::InvalidName) };
        let Some(topic) = self.plane.image().topic(&valid) else { return missing(ErrorCode::UnknownTopic) };
        let id = topic.value.id;
        let partitions = self
            .plane
            .image()
            .partitions_of(id)
            .map(|(number, partition)| {
                let tp = TopicPartition::new(id, number);
                MetadataPartition {
                    partition: number,
                    leader: partition
                        .value
                        .leader
                        .filter(|leader| *leader != self.broker || self.leads.contains_key(&tp)),
                    leader_epoch: partition.value.leader_epoch,
                    shard: self.placement.get(&tp).copied().unwrap_or(ShardId::new(0)),
                    replicas: partition.value.replicas.clone(),
                    in_sync_replicas: partition.value.isr.iter().map(|replica| replica.broker).collect(),
                }
            })
            .collect();
        MetadataTopic { error: ErrorCode::None, name: name.to_owned(), id, partitions }
    }

    async fn describe(&self, name: &str, bytes_max: u64) -> Result<Answer, ControlError> {
        let bytes = self.listed_bytes(name);
        if bytes > bytes_max {
            return Ok(too_long(Kind::DescribeTopic, bytes, bytes_max));
        }
        let metadata = self.topic_metadata(name);
        if metadata.error != ErrorCode::None {
            let message = format!("topic {name:?}: {}", metadata.error.help());
            return Ok(refused(Kind::DescribeTopic, metadata.error, message));
        }
        let id = metadata.id;
        let tps: Vec<TopicPartition> =
            metadata.partitions.iter().map(|row| TopicPartition::new(id, row.partition)).collect();
        let standing = self.standing(&tps).await;
        let partitions = metadata
            .partitions
            .into_iter()
            .map(|row| described(&row, standing.get(&TopicPartition::new(id, row.partition))))
            .collect();
        let config = self.config_entries(id);
        Ok(Answer::DescribeTopic(DescribeTopicAnswer { id, config, partitions }))
    }

    fn config_entries(&self, id: TopicId) -> Vec<TopicSetting> {
        let overrides = self.overrides_of(id);
        let entries = self.config_of(id).describe(&overrides, self.plane.defaults());
        entries
            .into_iter()
            .map(|entry| TopicSetting {
                name: entry.key.name().to_owned(),
                is_default: entry.is_default(),
                value: entry.value,
            })
            .collect()
    }

    /// Where partitions stand, as their shards say.
    pub async fn standing(
        &self,
        partitions: &[TopicPartition],
    ) -> BTreeMap<TopicPartition, PartitionSnapshot> {
        let mut by_shard: BTreeMap<ShardId, Vec<TopicPartition>> = BTreeMap::new();
        for tp in partitions {
            if let Some(shard) = self.placement.get(tp) {
                by_shard.entry(*shard).or_default().push(*tp);
            }
        }
        let mut standing = BTreeMap::new();
        for (shard, partitions) in by_shard {
            let Some(link) = self.shards.get(usize::from(shard.get())) else { continue };
            let (reply, answer) = oneshot::channel();
            let asked = link.send(Command::Describe { partitions: partitions.clone(), reply }).await;
            let Ok(snapshots) = answer.await else { continue };
            if asked.is_ok() {
                let known = partitions.into_iter().zip(snapshots);
                standing.extend(known.filter_map(|(tp, snapshot)| Some((tp, snapshot?))));
            }
        }
        standing
    }

    fn overrides_of(&self, id: TopicId) -> TopicOverrides {
        self.plane.image().topic_by_id(id).map(|(_, topic)| topic.value.overrides.clone()).unwrap_or_default()
    }

    fn config_of(&self, id: TopicId) -> TopicConfig {
        let replicas =
            self.plane.image().topic_by_id(id).map_or(1, |(_, topic)| topic.value.replication_factor);
        TopicConfig::resolve(&self.overrides_of(id), self.plane.defaults(), replicas)
    }

    async fn tell(&self, tp: TopicPartition, input: Input) {
        let Some(shard) = self.placement.get(&tp) else { return };
        let Some(link) = self.shards.get(usize::from(shard.get())) else { return };
        if link.send(Command::Input(input)).await.is_err() {
            tracing::error!(shard = shard.get(), "a shard takes no commands any more");
        }
    }

    fn publish(&self) {
        let image = self.plane.image();
        let topics = image.topics().map(|(_, topic)| {
            let id = topic.value.id;
            let owner = |number| {
                let tp = TopicPartition::new(id, number);
                self.leads.contains_key(&tp).then(|| self.placement.get(&tp).copied()).flatten()
            };
            (id, (0..topic.value.partitions).map(owner).collect())
        });
        self.shown.view.send_replace(Arc::new(View::new(topics)));
        let topics =
            image.topics().map(|(name, topic)| (name.to_string(), (topic.value.id, topic.value.partitions)));
        self.shown.topics.send_replace(Arc::new(topics.collect()));
        let protecting = image.topics().filter_map(|(_, topic)| {
            let groups = self.config_of(topic.value.id).protect_groups;
            (!groups.is_empty()).then_some((topic.value.id, (topic.value.partitions, groups)))
        });
        self.shown.protecting.send_replace(Arc::new(protecting.collect()));
    }
}

fn described(row: &MetadataPartition, snapshot: Option<&PartitionSnapshot>) -> PartitionDescription {
    let offset = |of: fn(&PartitionSnapshot) -> Offset| snapshot.map_or(Offset::ZERO, of);
    PartitionDescription {
        partition: row.partition,
        leader: row.leader,
        leader_epoch: row.leader_epoch,
        shard: row.shard,
        log_start: offset(|snapshot| snapshot.log_start),
        high_watermark: offset(|snapshot| snapshot.high_watermark),
        log_end: offset(|snapshot| snapshot.log_end),
        bytes: snapshot.map_or(0, |snapshot| snapshot.bytes),
        segments: snapshot.map_or(0, |snapshot| snapshot.segments),
    }
}

/// Built, such an answer would take many times the memory of its request, and clients would not take it.
fn too_long(kind: Kind, bytes: u64, bytes_max: u64) -> Answer {
    let what = format!(
        "the list would take {bytes} bytes, an answer has at most {bytes_max}. Ask for fewer topics at once, by name"
    );
    refused(kind, ErrorCode::TooLarge, what)
}

fn refused(kind: Kind, code: ErrorCode, message: String) -> Answer {
    Answer::Refused { kind, refusal: Refusal::new(code, message) }
}

#[cfg(test)]
mod tests;
