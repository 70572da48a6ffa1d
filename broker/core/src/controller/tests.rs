//! Decisions carried out in the model store, as the control plane does it.

use super::*;
use crate::meta::model::{Model, Weather};
use crate::meta::values::{DataDirId, ProcessId};
use crate::topic::TopicOverrides;
use corelog_wire::message::{AlterTopicRequest, CreateTopicRequest};

struct World {
    model: Model<Value>,
    image: Image,
    controller: Controller,
    defaults: TopicOverrides,
}

fn identity(process: u64) -> ReplicaIdentity {
    ReplicaIdentity {
        broker: BrokerId::new(1),
        data_dir: DataDirId::from_bytes([9; 16]),
        process: ProcessId::new(process),
    }
}

fn id(byte: u8) -> TopicId {
    TopicId::from_bytes([byte; 16])
}

fn name(text: &str) -> TopicName {
    TopicName::new(text).unwrap()
}

fn request(name: &str, partitions: u32, settings: &[(&str, &str)]) -> CreateTopicRequest {
    let config = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    CreateTopicRequest { name: name.to_owned(), partitions, replication_factor: 0, config }
}

fn alter_request(partitions: Option<u32>, settings: &[(&str, Option<&str>)]) -> AlterTopicRequest {
    let config = settings.iter().map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned))).collect();
    AlterTopicRequest { name: "orders".to_owned(), config, partitions }
}

impl World {
    fn new() -> Self {
        let keys = Keys::new("test").unwrap();
        Self {
            model: Model::default(),
            image: Image::new(keys.clone()),
            controller: Controller::new(keys, None),
            defaults: TopicOverrides::default(),
        }
    }

    /// Performs up to `steps` steps; whether all that were tried took place.
    fn perform_some(&mut self, plan: &Plan, steps: usize) -> bool {
        let done = plan.steps.iter().take(steps).all(|txn| self.model.txn(txn).unwrap().is_done());
        self.catch_up();
        done
    }

    fn perform(&mut self, plan: &Plan) -> bool {
        self.perform_some(plan, usize::MAX)
    }

    fn catch_up(&mut self) {
        let root = self.image.keys().root();
        let (revision, events) = self.model.events_after(&root, self.image.revision()).unwrap();
        for event in events {
            self.image.apply(event).unwrap();
        }
        self.image.advance(revision).unwrap();
        let loaded = Image::load(self.image.keys().clone(), self.model.range(&root)).unwrap();
        assert_eq!(format!("{loaded:?}"), format!("{:?}", self.image), "watching and reading show the same");
    }

    fn create(&mut self, name: &str, partitions: u32, id: TopicId) -> Result<Plan, Refusal> {
        let request = request(name, partitions, &[]);
        let plan = self.controller.create_topic(&self.image, &request, &self.defaults, id, identity(1))?;
        assert!(self.perform(&plan));
        Ok(plan)
    }

    fn epochs(&self) -> Vec<u32> {
        self.image.partitions().map(|(_, partition)| partition.value.leader_epoch.get()).collect()
    }
}

#[test]
fn a_created_topic_is_found_by_name_and_by_id() {
    let mut world = World::new();
    world.create("orders", 3, id(1)).unwrap();
    let topic = world.image.topic(&name("orders")).unwrap();
    assert_eq!((topic.value.id, topic.value.partitions), (id(1), 3));
    assert_eq!(world.image.topic_by_id(id(1)).unwrap().0, &name("orders"));
    let numbers: Vec<u32> = world.image.partitions_of(id(1)).map(|(number, _)| number).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let partition = world.image.partition(TopicPartition::new(id(1), 2)).unwrap();
    assert_eq!(partition.value.leader, Some(BrokerId::new(1)));
    assert_eq!(partition.value.leader_epoch, FIRST_LEADER_EPOCH);
    assert_eq!(partition.value.isr, [identity(1)]);
    assert!(world.image.partition(TopicPartition::new(id(1), 3)).is_none());
}

#[test]
fn a_topic_of_many_partitions_appears_at_once() {
    let world = World::new();
    let request = request("wide", 1_000, &[]);
    let plan =
        world.controller.create_topic(&world.image, &request, &world.defaults, id(1), identity(1)).unwrap();
    assert_eq!(plan.steps.len(), 8);
    for cut in 0..plan.steps.len() {
        let mut world = World::new();
        assert!(world.perform_some(&plan, cut));
        assert_eq!(world.image.topics().count(), 0);
        assert_eq!(world.image.partitions().count(), 0, "cut after {cut}");
        // What was cut short is swept away, and then the same plan goes through again.
        let sweep = world.controller.sweep(&world.image);
        assert!(world.perform(&sweep));
        assert!(world.perform(&plan));
        assert_eq!(world.image.partitions().count(), 1_000);
        assert_eq!(world.controller.sweep(&world.image), Plan::default());
    }
}

#[test]
fn who_does_not_say_how_many_partitions_gets_one() {
    let mut world = World::new();
    world.create("orders", 0, id(1)).unwrap();
    assert_eq!(world.image.partitions().count(), 1);
}

#[test]
fn of_two_creators_of_one_name_one_wins() {
    let mut world = World::new();
    let create = |id| {
        let request = request("orders", 2, &[]);
        world.controller.create_topic(&world.image, &request, &world.defaults, id, identity(1)).unwrap()
    };
    let (first, second) = (create(id(1)), create(id(2)));
    assert!(world.perform(&first));
    assert!(!world.perform(&second));
    assert_eq!(world.image.topic(&name("orders")).unwrap().value.id, id(1));
    assert_eq!(world.create("orders", 2, id(3)), Err(Refusal::Exists { name: name("orders"), id: id(1) }));
}

#[test]
fn an_unknown_outcome_is_recognised_by_the_drawn_id() {
    for weather in [Weather::UnknownButDone, Weather::UnknownNotDone] {
        let mut world = World::new();
        let request = request("orders", 1, &[]);
        let plan = world
            .controller
            .create_topic(&world.image, &request, &world.defaults, id(1), identity(1))
            .unwrap();
        world.model.txn_in(weather, &plan.steps[0]).unwrap_err();
        let again = world.model.txn(&plan.steps[0]).unwrap();
        assert_eq!(again.is_done(), weather == Weather::UnknownNotDone);
        world.catch_up();
        assert_eq!(world.image.topic(&name("orders")).unwrap().value.id, id(1));
    }
}

#[test]
fn absurd_topics_are_refused_with_their_code() {
    let world = World::new();
    let refusal = |request: &CreateTopicRequest| {
        let plan = world.controller.create_topic(&world.image, request, &world.defaults, id(1), identity(1));
        let refusal = plan.unwrap_err();
        (refusal.code(), refusal.to_string())
    };
    let (code, text) = refusal(&request("a/b", 1, &[]));
    assert_eq!(code, ErrorCode::InvalidName);
    assert!(text.contains("'/'"), "{text}");
    assert_eq!(refusal(&request("a", 10_001, &[])).0, ErrorCode::InvalidConfig);
    let (code, text) = refusal(&request("a", 1, &[("full_policy", "protect-unread")]));
    assert_eq!(code, ErrorCode::InvalidConfig);
    assert!(text.contains("protect_groups"), "{text}");
    assert_eq!(refusal(&request("a", 1, &[("segment_bytes", "1MiB")])).0, ErrorCode::InvalidConfig);
    assert_eq!(refusal(&request("a", 1, &[("min_insync_replicas", "2")])).0, ErrorCode::InvalidConfig);
    let three = CreateTopicRequest { replication_factor: 3, ..request("a", 1, &[]) };
    assert_eq!(refusal(&three).1, "a replication factor of 3 needs as many brokers; there are 1");
}

#[test]
fn a_deleted_topic_leaves_a_tombstone_and_its_name() {
    let mut world = World::new();
    world.create("orders", 300, id(1)).unwrap();
    let plan = world.controller.delete_topic(&world.image, "orders").unwrap();
    assert_eq!(plan.steps.len(), 3);
    assert!(world.perform_some(&plan, 1));
    assert!(world.image.topic(&name("orders")).is_none());
    assert!(world.image.is_deleted(id(1)));
    assert_eq!(world.image.partitions().count(), 0);
    // Cut short here: the name is free, the leftovers are swept.
    world.create("orders", 2, id(2)).unwrap();
    assert_eq!(world.image.partitions().count(), 2);
    let sweep = world.controller.sweep(&world.image);
    assert!(world.perform(&sweep));
    assert_eq!(world.image.stored_partitions_of(id(1)).count(), 0);
    assert_eq!(world.image.stored_partitions_of(id(2)).count(), 2);

    let forget = world.controller.forget_deleted(&world.image, id(1)).unwrap();
    assert!(world.perform(&Plan { steps: vec![forget] }));
    assert!(!world.image.is_deleted(id(1)));
    assert_eq!(world.controller.forget_deleted(&world.image, id(2)), None);
    let gone = world.controller.delete_topic(&world.image, "nothing").unwrap_err();
    assert_eq!(gone.code(), ErrorCode::UnknownTopic);
}

#[test]
fn a_topic_that_changed_is_not_deleted_by_an_old_decision() {
    let mut world = World::new();
    world.create("orders", 1, id(1)).unwrap();
    let old = world.controller.delete_topic(&world.image, "orders").unwrap();
    let alter = alter_request(Some(2), &[]);
    let plan = world.controller.alter_topic(&world.image, &alter, &world.defaults, identity(1)).unwrap();
    assert!(world.perform(&plan));
    assert!(!world.perform(&old));
    assert!(!world.image.is_deleted(id(1)));
}

#[test]
fn partitions_grow_and_never_shrink() {
    let mut world = World::new();
    world.create("orders", 2, id(1)).unwrap();
    let plan = |world: &World, partitions| {
        world.controller.alter_topic(
            &world.image,
            &alter_request(Some(partitions), &[]),
            &world.defaults,
            identity(1),
        )
    };
    let refusal = plan(&world, 1).unwrap_err();
    assert_eq!(refusal.to_string(), "topic orders has 2 partitions and can only get more; 1 were asked for");
    assert_eq!(plan(&world, 2).unwrap(), Plan::default());
    let wide = plan(&world, 200).unwrap();
    assert!(world.perform_some(&wide, 1));
    assert_eq!(world.image.partitions().count(), 2);
    // The first try was cut short; the next one takes its leftovers over.
    let again = plan(&world, 150).unwrap();
    assert!(world.perform(&again));
    assert_eq!(world.image.partitions().count(), 150);
}

#[test]
fn settings_are_set_and_unset() {
    let mut world = World::new();
    let create = request("orders", 1, &[("retention_ms", "1h"), ("durability", "memory")]);
    let plan =
        world.controller.create_topic(&world.image, &create, &world.defaults, id(1), identity(1)).unwrap();
    assert!(world.perform(&plan));
    let alter = alter_request(None, &[("retention_ms", Some("2h")), ("durability", None)]);
    let plan = world.controller.alter_topic(&world.image, &alter, &world.defaults, identity(1)).unwrap();
    assert!(world.perform(&plan));
    let topic = world.image.topic(&name("orders")).unwrap();
    assert_eq!(topic.value.overrides, TopicOverrides::from_pairs([("retention_ms", "7200000")]).unwrap());
    let bad = alter_request(None, &[("a", Some("b"))]);
    let refusal = world.controller.alter_topic(&world.image, &bad, &world.defaults, identity(1)).unwrap_err();
    assert_eq!(refusal.code(), ErrorCode::InvalidConfig);
}

#[test]
fn a_starting_broker_gets_a_new_epoch_for_everything_it_leads() {
    let mut world = World::new();
    world.create("orders", 200, id(1)).unwrap();
    let raise = world.controller.raise_epochs(&world.image, identity(2));
    assert_eq!(raise.plan.steps.len(), 2);
    assert_eq!(raise.leads.len(), 200);
    assert!(raise.leads.iter().all(|(_, epoch)| *epoch == LeaderEpoch::new(2)));
    assert!(world.perform(&raise.plan));
    assert_eq!(world.epochs(), [2; 200]);
    let (_, partition) = world.image.partitions_of(id(1)).next().unwrap();
    assert_eq!(partition.value.isr, [identity(2)]);
    // The same raise again is an old decision: an epoch is given once.
    assert!(!world.perform(&raise.plan));
    assert_eq!(world.epochs(), [2; 200]);
}

#[test]
fn another_data_directory_does_not_lead() {
    let mut world = World::new();
    world.create("orders", 1, id(1)).unwrap();
    let stranger = ReplicaIdentity { data_dir: DataDirId::from_bytes([8; 16]), ..identity(2) };
    let raise = world.controller.raise_epochs(&world.image, stranger);
    assert_eq!(raise.refused, [(TopicPartition::new(id(1), 0), RaiseRefusal::OtherDataDir)]);
    assert_eq!((raise.leads.len(), raise.plan.steps.len()), (0, 0));
    let other = ReplicaIdentity { broker: BrokerId::new(2), ..identity(2) };
    assert_eq!(world.controller.raise_epochs(&world.image, other), EpochRaise::default());
}

#[test]
fn producer_ids_are_given_once() {
    let mut world = World::new();
    let mut given = Vec::new();
    for _ in 0..3 {
        let (mut block, txn) = world.controller.allocate_producer_ids(&world.image, 2).unwrap();
        // A second broker decides on the same image and is refused.
        let (_, other) = world.controller.allocate_producer_ids(&world.image, 2).unwrap();
        assert!(world.perform(&Plan { steps: vec![txn] }));
        assert!(!world.perform(&Plan { steps: vec![other] }));
        assert_eq!(block.left(), 2);
        given.extend(std::iter::from_fn(|| block.take()).map(ProducerId::get));
    }
    assert_eq!(given, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn producer_ids_end_before_they_repeat() {
    let mut world = World::new();
    let last = ProducerIdsValue { next: i64::MAX as u64 - 1 };
    let put = Op::put(world.image.keys().producer_ids(), Value::ProducerIds(last));
    assert!(world.perform(&Plan { steps: vec![Txn { then: vec![put], ..Txn::default() }] }));
    assert!(world.controller.allocate_producer_ids(&world.image, 1).is_ok());
    let refusal = world.controller.allocate_producer_ids(&world.image, 2).unwrap_err();
    assert_eq!(refusal, Refusal::ProducerIdsExhausted);
}

#[test]
fn a_controller_that_lost_its_term_changes_nothing() {
    let mut world = World::new();
    let keys = world.image.keys().clone();
    let claim = |broker| {
        let value = Value::Controller(crate::meta::values::ControllerValue { broker: BrokerId::new(broker) });
        Txn { then: vec![Op::put(keys.controller(), value)], ..Txn::default() }
    };
    let term = world.model.txn(&claim(1)).unwrap().revision;
    world.catch_up();
    world.controller = Controller::new(keys.clone(), Some(term));
    world.create("first", 126, id(1)).unwrap();
    let resign = Txn { then: vec![Op::delete(keys.controller())], ..Txn::default() };
    world.model.txn(&resign).unwrap();
    world.model.txn(&claim(2)).unwrap();
    let late = request("late", 1, &[]);
    let plan =
        world.controller.create_topic(&world.image, &late, &world.defaults, id(2), identity(1)).unwrap();
    assert!(!world.perform(&plan));
    assert!(world.image.topic(&name("late")).is_none());
}

#[test]
fn a_store_that_went_back_is_refused() {
    let mut world = World::new();
    world.create("orders", 1, id(1)).unwrap();
    let seen = world.image.revision();
    let refused = world.image.advance(Revision::ZERO).unwrap_err();
    assert_eq!(refused, ImageError::WentBack { got: Revision::ZERO, seen });
}

#[test]
fn a_value_under_the_wrong_key_is_a_fault() {
    let mut image = Image::new(Keys::new("test").unwrap());
    let key = image.keys().producer_ids();
    let entry = crate::meta::KeyValue {
        key: key.clone(),
        value: Value::Deleted(crate::meta::values::DeletedValue { name: String::new() }),
        create_revision: Revision::new(1),
        mod_revision: Revision::new(1),
    };
    assert_eq!(image.apply(crate::meta::Event::Put(entry)), Err(ImageError::WrongValue { key }));
}
