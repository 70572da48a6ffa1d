use super::*;
use crate::meta::{EmbeddedStore, Store};
use corelog_core::meta::keys::Keys;
use corelog_core::meta::values::{DataDirId, ProcessId, ReplicaIdentity};
use corelog_wire::ids::{BrokerId, LeaderEpoch, MemberEpoch, MemberId, Offset, TopicId, TopicPartition};
use corelog_wire::message::{
    Assignor, DeleteGroupRequest, DescribeGroupRequest, GroupHeartbeatRequest, Leave, ListGroupsRequest,
    ListedGroup, MemberWishes, OffsetCommitRequest, OffsetFetchRequest, OffsetRow,
};
use std::path::Path;

const SETTINGS: CoordinatorSettings = CoordinatorSettings {
    offset_interval: Duration::from_millis(1),
    offsets_retention: Duration::from_hours(1),
};

fn topic() -> TopicId {
    TopicId::from_bytes([7; 16])
}

fn tp(partition: u32) -> TopicPartition {
    TopicPartition::new(topic(), partition)
}

/// An actor, the way to it and the way to tell it of topics.
struct World {
    requests: mpsc::Sender<ControlRequest>,
    topics: watch::Sender<Arc<Topics>>,
    stop: oneshot::Sender<()>,
    actor: tokio::task::JoinHandle<()>,
    store: EmbeddedStore,
}

impl World {
    async fn start(folder: &Path) -> Self {
        let store = EmbeddedStore::open(&folder.join("meta.redb")).unwrap();
        let identity = ReplicaIdentity {
            broker: BrokerId::new(1),
            data_dir: DataDirId::from_bytes([1; 16]),
            process: ProcessId::new(1),
        };
        let kept = GroupStore::new(Store::Embedded(store.clone()), Keys::new("test").unwrap(), identity);
        let known = Topics::from([("orders".to_owned(), (topic(), 4))]);
        let (topics, seen) = watch::channel(Arc::new(known));
        // No shard is there to say how far a group is behind.
        let meter = LagMeter { views: watch::channel(Arc::default()).1, shards: Vec::new() };
        let groups =
            Groups::new(kept, SETTINGS, seen, watch::channel(Arc::default()).1, meter).await.unwrap();
        let (requests, inbox) = mpsc::channel(16);
        let (stop, stopped) = oneshot::channel();
        Self { requests, topics, stop, actor: tokio::spawn(groups.run(inbox, stopped)), store }
    }

    async fn send(&self, request: Request) -> oneshot::Receiver<Answer> {
        let (reply, answer) = oneshot::channel();
        let answer_bytes_max = 4_096;
        let sent = self.requests.send(ControlRequest { request, answer_bytes_max, reply }).await;
        sent.unwrap();
        answer
    }

    async fn ask(&self, request: Request) -> Answer {
        self.send(request).await.await.unwrap()
    }

    async fn refused(&self, request: Request) -> ErrorCode {
        let kind = request.kind();
        match self.ask(request).await {
            Answer::Refused { kind: answered, refusal } if answered == kind => refusal.code,
            answer => panic!("{answer:?}"),
        }
    }

    async fn granted(&self, request: Request) -> (MemberEpoch, Vec<u32>) {
        granted(self.ask(request).await)
    }

    async fn offsets(&self) -> Vec<(u32, u64)> {
        let request = Request::OffsetFetch(OffsetFetchRequest { group: "billing".to_owned() });
        let Answer::OffsetFetch(answer) = self.ask(request).await else { panic!("no offsets") };
        answer.rows.iter().map(|row| (row.tp.partition, row.offset.get())).collect()
    }

    async fn stop(self) {
        drop(self.stop);
        self.actor.await.unwrap();
        self.store.close().await;
    }
}

fn granted(answer: Answer) -> (MemberEpoch, Vec<u32>) {
    let Answer::GroupHeartbeat(answer) = answer else { panic!("{answer:?}") };
    assert!(answer.granted.iter().all(|share| share.name == "orders" && share.topic == topic()));
    (answer.member_epoch, answer.granted.into_iter().flat_map(|share| share.partitions).collect())
}

fn run<T>(test: impl AsyncFnOnce(&Path) -> T) -> T {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test(folder.path()))
}

fn wishes() -> MemberWishes {
    MemberWishes {
        session_timeout: Duration::from_secs(10),
        topics: vec!["orders".to_owned()],
        patterns: Vec::new(),
        assignor: Assignor::Uniform,
        instance: None,
        client_name: "test".to_owned(),
    }
}

fn heartbeat(member: u128, epoch: MemberEpoch, owned: &[u32], max_wait_ms: u32) -> GroupHeartbeatRequest {
    let joins = epoch == MemberEpoch::new(0);
    GroupHeartbeatRequest {
        group: "billing".to_owned(),
        member: MemberId::new(member),
        member_epoch: epoch,
        leave: Leave::No,
        max_wait_ms,
        beat: 0,
        owned: owned.iter().map(|&partition| tp(partition)).collect(),
        wishes: joins.then(|| Box::new(wishes())),
    }
}

fn join(member: u128) -> Request {
    Request::GroupHeartbeat(heartbeat(member, MemberEpoch::new(0), &[], 0))
}

fn beat(member: u128, epoch: MemberEpoch, owned: &[u32], max_wait_ms: u32) -> Request {
    Request::GroupHeartbeat(heartbeat(member, epoch, owned, max_wait_ms))
}

fn leave(member: u128) -> Request {
    let heartbeat = heartbeat(member, MemberEpoch::new(0), &[], 0);
    Request::GroupHeartbeat(GroupHeartbeatRequest { leave: Leave::Yes, ..heartbeat })
}

fn row(partition: u32, offset: u64) -> OffsetRow {
    let (offset, leader_epoch) = (Offset::new(offset), LeaderEpoch::new(1));
    OffsetRow { tp: tp(partition), offset, leader_epoch, metadata: String::new() }
}

fn commit(member: Option<(u128, MemberEpoch)>, rows: Vec<OffsetRow>) -> Request {
    let member = member.map(|(id, epoch)| (MemberId::new(id), epoch));
    Request::OffsetCommit(OffsetCommitRequest { group: "billing".to_owned(), member, rows })
}

fn delete() -> Request {
    Request::DeleteGroup(DeleteGroupRequest { group: "billing".to_owned(), topic: None })
}

fn describe() -> Request {
    Request::DescribeGroup(DescribeGroupRequest { group: "billing".to_owned() })
}

#[test]
fn a_partition_goes_over_when_its_holder_lets_go_and_a_held_heartbeat_hears_of_it_at_once() {
    run(async |folder| {
        let world = World::start(folder).await;
        let (first, all) = world.granted(join(1)).await;
        assert_eq!(all, [0, 1, 2, 3]);
        // It would be held for a minute; the test is over long before.
        let held = world.send(beat(1, first, &all, 60_000)).await;
        let (second, nothing) = world.granted(join(2)).await;
        assert_eq!(nothing, [0; 0]);
        let (now, kept) = granted(held.await.unwrap());
        assert_eq!(kept.len(), 2);
        let waiting = world.send(beat(2, second, &[], 60_000)).await;
        world.granted(beat(1, now, &kept, 0)).await;
        let (_, got) = granted(waiting.await.unwrap());
        assert_eq!([kept, got].concat().len(), 4);
        world.stop().await;
    });
}

#[test]
fn members_and_offsets_outlive_the_broker() {
    run(async |folder| {
        let world = World::start(folder).await;
        let (epoch, all) = world.granted(join(1)).await;
        let Answer::OffsetCommit(answer) =
            world.ask(commit(Some((1, epoch)), vec![row(0, 5), row(3, 9)])).await
        else {
            panic!("not committed")
        };
        assert!(answer.rows.iter().all(|row| row.error == ErrorCode::None));
        let held = world.send(beat(1, epoch, &all, 60_000)).await;
        world.stop().await;
        let Ok(Answer::Refused { refusal, .. }) = held.await else {
            panic!("held for longer than the broker")
        };
        assert_eq!(refusal.code, ErrorCode::ShuttingDown);

        let world = World::start(folder).await;
        assert_eq!(world.granted(beat(1, epoch, &all, 0)).await, (epoch, all));
        assert_eq!(world.offsets().await, [(0, 5), (3, 9)]);
        world.stop().await;
    });
}

#[test]
fn requests_that_break_a_rule_are_refused_with_its_code() {
    run(async |folder| {
        let world = World::start(folder).await;
        let named = |group: &str| Request::OffsetFetch(OffsetFetchRequest { group: group.to_owned() });
        assert_eq!(world.refused(named("a/b")).await, ErrorCode::InvalidGroup);
        assert_eq!(world.refused(describe()).await, ErrorCode::UnknownGroup);
        assert_eq!(world.refused(delete()).await, ErrorCode::UnknownGroup);
        let epoch = MemberEpoch::new(3);
        assert_eq!(world.refused(beat(1, epoch, &[], 0)).await, ErrorCode::UnknownMember);
        let mut short = heartbeat(1, MemberEpoch::new(0), &[], 0);
        short.wishes.as_mut().unwrap().session_timeout = Duration::from_millis(1);
        assert_eq!(world.refused(Request::GroupHeartbeat(short)).await, ErrorCode::InvalidGroup);
        let metadata = "two\nlines".to_owned();
        let lines = commit(None, vec![OffsetRow { metadata, ..row(0, 1) }]);
        assert_eq!(world.refused(lines).await, ErrorCode::InvalidGroup);

        let (epoch, _) = world.granted(join(1)).await;
        assert_eq!(world.refused(commit(None, vec![row(0, 1)])).await, ErrorCode::GroupNotEmpty);
        assert_eq!(world.refused(delete()).await, ErrorCode::GroupNotEmpty);
        let ahead = MemberEpoch::new(epoch.get() + 1);
        assert_eq!(world.refused(beat(1, ahead, &[], 0)).await, ErrorCode::FencedMember);
        let Answer::OffsetCommit(answer) =
            world.ask(commit(Some((1, epoch)), vec![row(0, 1), row(4, 1)])).await
        else {
            panic!("not answered")
        };
        let errors: Vec<ErrorCode> = answer.rows.iter().map(|row| row.error).collect();
        assert_eq!(errors, [ErrorCode::None, ErrorCode::UnknownPartition]);
        world.granted(leave(1)).await;
        let late = world.ask(commit(Some((1, epoch)), vec![row(0, 1)])).await;
        let Answer::OffsetCommit(late) = late else { panic!("not answered") };
        assert_eq!(late.rows[0].error, ErrorCode::UnknownMember);
        world.stop().await;
    });
}

#[test]
fn groups_are_listed_described_and_deleted() {
    run(async |folder| {
        let world = World::start(folder).await;
        let (epoch, _) = world.granted(join(1)).await;
        world.ask(commit(Some((1, epoch)), vec![row(2, 5)])).await;
        let list = |after: &str| Request::ListGroups(ListGroupsRequest { after: after.to_owned() });
        let Answer::ListGroups(listed) = world.ask(list("a")).await else { panic!("not listed") };
        assert_eq!(listed.groups, [ListedGroup { name: "billing".to_owned(), members: 1 }]);
        let Answer::ListGroups(listed) = world.ask(list("billing")).await else { panic!("not listed") };
        assert!(listed.groups.is_empty() && !listed.more);

        let Answer::DescribeGroup(described) = world.ask(describe()).await else { panic!("not described") };
        assert_eq!(described.members[0].wishes, wishes());
        let places: Vec<_> = described
            .partitions
            .iter()
            .map(|row| (row.tp.partition, row.topic.as_str(), row.member, row.committed.map(Offset::get)))
            .collect();
        let holder = Some(MemberId::new(1));
        let none = |partition| (partition, "orders", holder, None);
        assert_eq!(places, [none(0), none(1), (2, "orders", holder, Some(5)), none(3)]);

        world.granted(leave(1)).await;
        assert_eq!(world.offsets().await, [(2, 5)]);
        assert!(matches!(world.ask(delete()).await, Answer::DeleteGroup(_)));
        assert_eq!(world.offsets().await, []);
        world.stop().await;
    });
}

#[test]
fn a_topic_that_goes_takes_the_offsets_with_it() {
    run(async |folder| {
        let world = World::start(folder).await;
        world.ask(commit(None, vec![row(2, 5)])).await;
        world.topics.send_replace(Arc::new(Topics::new()));
        // What is asked after the news sees what they change.
        while !world.offsets().await.is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(world.refused(describe()).await, ErrorCode::UnknownGroup);
        world.stop().await;
    });
}

#[test]
fn an_answer_larger_than_the_asker_takes_is_refused() {
    run(async |folder| {
        let world = World::start(folder).await;
        let metadata = "x".repeat(1_024);
        let rows = (0..4).map(|partition| OffsetRow { metadata: metadata.clone(), ..row(partition, 1) });
        world.ask(commit(None, rows.collect())).await;
        let fetch = Request::OffsetFetch(OffsetFetchRequest { group: "billing".to_owned() });
        assert_eq!(world.refused(fetch).await, ErrorCode::TooLarge);
        assert_eq!(world.refused(describe()).await, ErrorCode::TooLarge);
        world.stop().await;
    });
}
