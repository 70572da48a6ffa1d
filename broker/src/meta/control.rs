//! The control plane of one broker: decides with the controller, performs in the store, keeps the image up to date.
//!
//! Owned by one task of the control thread; everybody else sees copies of its [`Image`]. Invariants: the image shows
//! what the store has answered, never what was merely asked for; a request is answered after the image shows it. A
//! decision that the store refuses was made on an old image, so it is made again, a few times.

use std::fs::File;
use std::io::Read as _;

use corelog_core::controller::{
    Controller, EpochRaise, Image, ImageError, ProducerIdBlock, RaiseRefusal, Refusal,
};
use corelog_core::meta::keys::Keys;
use corelog_core::meta::values::{Plan, ReplicaIdentity, Value};
use corelog_core::meta::{Revision, Txn};
use corelog_core::topic::{TopicName, TopicOverrides};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{LeaderEpoch, ProducerId, TopicId, TopicPartition};
use corelog_wire::message::{AlterTopicRequest, CreateTopicRequest, DeleteTopicRequest};
use thiserror::Error;

use super::values::{self, ValueError};
use super::{MetaStore, Store, StoreError, Watch};

/// Producer ids taken from the store at once.
const PRODUCER_IDS_BLOCK: u32 = 1_000;
/// How often a decision is made again when somebody else was faster.
const TRIES_MAX: u32 = 5;

/// Why a request has no success.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The asker is wrong or early.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store has no answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store holds what this broker cannot read.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The store holds what cannot be true.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Others changed the same keys each time this was tried.
    #[error("others changed the same metadata {TRIES_MAX} times in a row; try again")]
    Contended,
    /// The system gives no random numbers.
    #[error("no random numbers from /dev/urandom: {0}")]
    Random(#[from] std::io::Error),
}

impl ControlError {
    /// The code on the wire. A fault of the store leaves the outcome open, which is what `DEADLINE` says.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Store(_) | Self::Value(_) | Self::Image(_) | Self::Contended | Self::Random(_) => {
                ErrorCode::Deadline
            }
        }
    }
}

/// What a broker leads after its start, and what it must not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Granted, with the epochs.
    pub leads: Vec<(TopicPartition, LeaderEpoch)>,
    /// Refused, and why.
    pub refused: Vec<(TopicPartition, RaiseRefusal)>,
}

/// Decides, performs, remembers.
#[derive(Debug)]
pub struct ControlPlane {
    store: Store,
    controller: Controller,
    image: Image,
    watch: Watch,
    identity: ReplicaIdentity,
    defaults: TopicOverrides,
    producer_ids: Option<ProducerIdBlock>,
}

impl ControlPlane {
    /// Reads the metadata, tidies up what an earlier run has cut short, and has the leader epochs raised of all
    /// partitions that are this broker's. The broker leads these, in these epochs, and nothing else.
    ///
    /// # Errors
    /// [`ControlError`]; then the broker leads nothing.
    pub async fn start(
        store: Store,
        keys: Keys,
        identity: ReplicaIdentity,
        defaults: TopicOverrides,
    ) -> Result<(Self, Leadership), ControlError> {
        let (image, watch) = load(&store, &keys).await?;
        let controller = Controller::new(keys, None);
        let mut control = Self { store, controller, image, watch, identity, defaults, producer_ids: None };
        let sweep = control.controller.sweep(&control.image);
        if !control.perform(sweep).await? {
            return Err(ControlError::Contended);
        }
        let EpochRaise { plan, leads, refused } = control.controller.raise_epochs(&control.image, identity);
        if !control.perform(plan).await? {
            return Err(ControlError::Contended);
        }
        Ok((control, Leadership { leads, refused }))
    }

    /// The metadata as of the last answer.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The broker's topic defaults.
    #[must_use]
    pub fn defaults(&self) -> &TopicOverrides {
        &self.defaults
    }

    /// Makes a topic.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn create_topic(&mut self, request: &CreateTopicRequest) -> Result<TopicId, ControlError> {
        let id = draw_topic_id()?;
        for _ in 0..TRIES_MAX {
            let (image, defaults) = (&self.image, &self.defaults);
            let plan = self.controller.create_topic(image, request, defaults, id, self.identity)?;
            if self.perform(plan).await? {
                return Ok(id);
            }
        }
        Err(ControlError::Contended)
    }

    /// Changes a topic. Answers its id; what changed is in the image.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn alter_topic(&mut self, request: &AlterTopicRequest) -> Result<TopicId, ControlError> {
        for _ in 0..TRIES_MAX {
            let id = self.topic_id(&request.name)?;
            let plan = self.controller.alter_topic(&self.image, request, &self.defaults, self.identity)?;
            if self.perform(plan).await? {
                return Ok(id);
            }
        }
        Err(ControlError::Contended)
    }

    /// Deletes a topic. Answers the id whose data may be removed now.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn delete_topic(&mut self, request: &DeleteTopicRequest) -> Result<TopicId, ControlError> {
        for _ in 0..TRIES_MAX {
            let id = self.topic_id(&request.name)?;
            let plan = self.controller.delete_topic(&self.image, &request.name)?;
            if self.perform(plan).await? {
                return Ok(id);
            }
        }
        Err(ControlError::Contended)
    }

    /// Forgets a tombstone. Only once no broker has data of the topic any more.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn forget_deleted(&mut self, id: TopicId) -> Result<(), ControlError> {
        while let Some(txn) = self.controller.forget_deleted(&self.image, id) {
            self.perform(Plan { steps: vec![txn] }).await?;
        }
        Ok(())
    }

    /// A producer id that nobody else has or will have.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn producer_id(&mut self) -> Result<ProducerId, ControlError> {
        for _ in 0..TRIES_MAX {
            if let Some(id) = self.producer_ids.as_mut().and_then(ProducerIdBlock::take) {
                return Ok(id);
            }
            let (block, txn) = self.controller.allocate_producer_ids(&self.image, PRODUCER_IDS_BLOCK)?;
            if self.perform(Plan { steps: vec![txn] }).await? {
                self.producer_ids = Some(block);
            }
        }
        Err(ControlError::Contended)
    }

    fn topic_id(&self, name: &str) -> Result<TopicId, Refusal> {
        let name = TopicName::new(name)?;
        match self.image.topic(&name) {
            Some(topic) => Ok(topic.value.id),
            None => Err(Refusal::UnknownTopic { name }),
        }
    }

    /// Performs a plan and waits until the image shows it. False when a step was refused: the image shows why.
    async fn perform(&mut self, plan: Plan) -> Result<bool, ControlError> {
        for step in plan.steps {
            let (revision, done) = self.perform_step(step).await?;
            self.catch_up(revision).await?;
            if !done {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn perform_step(&mut self, step: Txn<Value>) -> Result<(Revision, bool), ControlError> {
        let answer = self.store.txn(values::encode_txn(step)?).await?;
        Ok((answer.revision, answer.is_done()))
    }

    /// Applies changes up to a revision that the store has answered with.
    async fn catch_up(&mut self, revision: Revision) -> Result<(), ControlError> {
        while self.image.revision() < revision {
            let changes = match self.watch.next().await {
                Ok(changes) => changes,
                Err(StoreError::Compacted(_)) => {
                    let (image, watch) = load(&self.store, self.image.keys()).await?;
                    (self.image, self.watch) = (image, watch);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for event in changes.events {
                if let Some(event) = values::decode_event(self.image.keys(), event)? {
                    self.image.apply(event)?;
                }
            }
            self.image.advance(changes.revision)?;
        }
        Ok(())
    }
}

async fn load(store: &Store, keys: &Keys) -> Result<(Image, Watch), ControlError> {
    let range = values::decode_range(keys, store.range(keys.root()).await?)?;
    let watch = store.watch(keys.root(), range.revision).await?;
    Ok((Image::load(keys.clone(), range)?, watch))
}

/// A random topic id: a uuid of version 4.
fn draw_topic_id() -> Result<TopicId, std::io::Error> {
    let mut bytes = random_bytes::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(TopicId::from_bytes(bytes))
}

/// Random bytes of the system, for ids.
///
/// # Errors
/// When `/dev/urandom` cannot be read.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], std::io::Error> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::EmbeddedStore;
    use corelog_core::meta::Op;
    use corelog_core::meta::values::{DataDirId, ProcessId};
    use corelog_wire::ids::BrokerId;
    use std::path::Path;

    fn identity(process: u64) -> ReplicaIdentity {
        ReplicaIdentity {
            broker: BrokerId::new(1),
            data_dir: DataDirId::from_bytes([1; 16]),
            process: ProcessId::new(process),
        }
    }

    fn keys() -> Keys {
        Keys::new("test").unwrap()
    }

    fn create(name: &str, partitions: u32) -> CreateTopicRequest {
        CreateTopicRequest { name: name.to_owned(), partitions, replication_factor: 0, config: Vec::new() }
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    async fn start(path: &Path, process: u64) -> (EmbeddedStore, ControlPlane, Leadership) {
        let store = EmbeddedStore::open(path).unwrap();
        let started = ControlPlane::start(
            Store::Embedded(store.clone()),
            keys(),
            identity(process),
            TopicOverrides::default(),
        );
        let (control, leadership) = started.await.unwrap();
        (store, control, leadership)
    }

    #[test]
    fn topics_and_ids_survive_restarts_and_epochs_rise() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meta.redb");
        run(async {
            let (store, mut control, leadership) = start(&path, 1).await;
            assert_eq!(leadership, Leadership::default());
            let id = control.create_topic(&create("orders", 300)).await.unwrap();
            assert_eq!(control.image().partitions_of(id).count(), 300);
            assert_eq!(control.producer_id().await.unwrap(), ProducerId::new(0));
            assert_eq!(control.producer_id().await.unwrap(), ProducerId::new(1));
            store.close().await;

            for (process, epoch) in [(2, 2), (3, 3)] {
                let (store, mut control, leadership) = start(&path, process).await;
                assert_eq!(leadership.leads.len(), 300);
                assert!(leadership.leads.iter().all(|(_, granted)| *granted == LeaderEpoch::new(epoch)));
                assert!(leadership.refused.is_empty());
                let given = control.producer_id().await.unwrap();
                assert_eq!(given, ProducerId::new(i64::from(PRODUCER_IDS_BLOCK) * i64::from(epoch - 1)));
                store.close().await;
            }
        });
    }

    #[test]
    fn requests_are_carried_out_or_refused_with_their_code() {
        let directory = tempfile::tempdir().unwrap();
        run(async {
            let (_store, mut control, _) = start(&directory.path().join("meta.redb"), 1).await;
            let id = control.create_topic(&create("orders", 2)).await.unwrap();
            let again = control.create_topic(&create("orders", 2)).await.unwrap_err();
            assert_eq!(again.code(), ErrorCode::Exists);
            let config = vec![("retention_ms".to_owned(), Some("1h".to_owned()))];
            let alter = AlterTopicRequest { name: "orders".to_owned(), config, partitions: Some(200) };
            assert_eq!(control.alter_topic(&alter).await.unwrap(), id);
            let (_, topic) = control.image().topic_by_id(id).unwrap();
            assert_eq!((topic.value.partitions, topic.value.overrides.iter().count()), (200, 1));
            let delete = DeleteTopicRequest { name: "orders".to_owned() };
            assert_eq!(control.delete_topic(&delete).await.unwrap(), id);
            assert!(control.image().is_deleted(id));
            assert_eq!(control.delete_topic(&delete).await.unwrap_err().code(), ErrorCode::UnknownTopic);
            control.forget_deleted(id).await.unwrap();
            assert!(!control.image().is_deleted(id));
            assert_ne!(control.create_topic(&create("orders", 1)).await.unwrap(), id);
        });
    }

    #[test]
    fn a_decision_on_an_old_image_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        run(async {
            let (store, mut first, _) = start(&directory.path().join("meta.redb"), 1).await;
            let second =
                ControlPlane::start(Store::Embedded(store), keys(), identity(1), TopicOverrides::default());
            let (mut second, _) = second.await.unwrap();
            let mut given = Vec::new();
            for _ in 0..3 {
                given.push(first.producer_id().await.unwrap());
                given.push(second.producer_id().await.unwrap());
            }
            given.sort_unstable();
            given.dedup();
            assert_eq!(given.len(), 6);
            first.create_topic(&create("orders", 1)).await.unwrap();
            let late = second.create_topic(&create("orders", 1)).await.unwrap_err();
            assert_eq!(late.code(), ErrorCode::Exists);
        });
    }

    #[test]
    fn a_start_sweeps_what_was_cut_short() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meta.redb");
        run(async {
            let (store, control, _) = start(&path, 1).await;
            let plan = control.controller.create_topic(
                control.image(),
                &create("wide", 300),
                &TopicOverrides::default(),
                TopicId::from_bytes([4; 16]),
                identity(1),
            );
            let first = plan.unwrap().steps.swap_remove(0);
            store.txn(values::encode_txn(first).unwrap()).await.unwrap();
            store.close().await;
            let (store, _control, leadership) = start(&path, 2).await;
            assert_eq!(leadership, Leadership::default());
            assert_eq!(store.range(keys().root()).await.unwrap().entries, []);
        });
    }

    #[test]
    fn metadata_of_a_newer_broker_stops_the_start() {
        let directory = tempfile::tempdir().unwrap();
        run(async {
            let store = EmbeddedStore::open(&directory.path().join("meta.redb")).unwrap();
            let newer = Op::put(keys().producer_ids(), bytes::Bytes::from_static(br#"{"version":9}"#));
            store.txn(Txn { then: vec![newer], ..Txn::default() }).await.unwrap();
            let started =
                ControlPlane::start(Store::Embedded(store), keys(), identity(1), TopicOverrides::default())
                    .await;
            assert!(matches!(started, Err(ControlError::Value(ValueError::Newer { version: 9, .. }))));
        });
    }

    #[test]
    fn drawn_ids_are_uuids_of_version_4() {
        let (one, other) = (draw_topic_id().unwrap(), draw_topic_id().unwrap());
        assert_ne!(one, other);
        let text = one.to_string();
        assert_eq!(&text[14..15], "4");
        assert!("89ab".contains(&text[19..20]));
    }
}
