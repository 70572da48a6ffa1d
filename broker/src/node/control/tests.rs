//! The actor with a store in a folder of its own, and a shard that the test plays.

use super::*;
use crate::meta::Store;
use corelog_core::meta::keys::Keys;
use corelog_core::meta::values::{DataDirId, ProcessId, ReplicaIdentity};

fn run<T>(future: impl Future<Output = T>) -> T {
    let bounded = async { tokio::time::timeout(std::time::Duration::from_mins(1), future).await.unwrap() };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(bounded)
}

struct World {
    control: Control,
    commands: mpsc::Receiver<Command>,
    views: watch::Receiver<Arc<View>>,
    _folder: tempfile::TempDir,
}

async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("meta.redb")).unwrap();
    let identity = ReplicaIdentity {
        broker: BrokerId::new(1),
        data_dir: DataDirId::from_bytes([1; 16]),
        process: ProcessId::new(1),
    };
    let keys = Keys::new("test").unwrap();
    let plane =
        ControlPlane::start(Store::Embedded(store.clone()), keys, identity, TopicOverrides::default());
    let (plane, _) = plane.await.unwrap();
    let (link, commands) = mpsc::channel(64);
    let (view, views) = watch::channel(Arc::new(View::default()));
    let shown = Shown {
        view,
        topics: watch::channel(Arc::new(Topics::new())).0,
        protecting: watch::channel(Arc::default()).0,
    };
    let control = Control::new(plane, store, vec![link], "here:1".to_owned(), BrokerId::new(1), false, shown);
    World { control: control.await.unwrap(), commands, views, _folder: folder }
}

fn create(name: &str, partitions: u32) -> Request {
    let name = name.to_owned();
    Request::CreateTopic(CreateTopicRequest { name, partitions, replication_factor: 1, config: Vec::new() })
}

/// A shard that takes everything at once.
fn obedient(mut commands: mpsc::Receiver<Command>) {
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            if let Command::Taken { reply } = command {
                reply.send(()).unwrap();
            }
        }
    });
}

#[test]
fn requests_are_sent_to_a_new_partition_only_when_its_shard_has_taken_it() {
    run(async {
        let World { mut control, mut commands, views, _folder } = world().await;
        let creating = tokio::spawn(async move {
            let answer = control.answer(create("orders", 1), u64::MAX).await;
            (control, answer)
        });
        let Some(Command::Input(Input::Lead { tp, .. })) = commands.recv().await else {
            panic!("the shard is told to lead first")
        };
        let Some(Command::Taken { reply }) = commands.recv().await else {
            panic!("the shard is asked whether it has it")
        };
        assert_eq!(views.borrow().place(tp), crate::net::Place::UnknownTopic, "nobody is sent there yet");
        reply.send(()).unwrap();
        let (_control, answer) = creating.await.unwrap();
        assert!(matches!(answer, Answer::CreateTopic(_)), "{answer:?}");
        assert_eq!(views.borrow().place(tp), crate::net::Place::Shard(ShardId::new(0)));
    });
}

#[test]
fn a_list_that_no_answer_holds_is_refused_before_it_is_made() {
    run(async {
        let World { mut control, commands, views, _folder } = world().await;
        obedient(commands);
        for name in ["one", "two"] {
            let answer = control.answer(create(name, 100), u64::MAX).await;
            assert!(matches!(answer, Answer::CreateTopic(_)), "{answer:?}");
        }
        let list =
            |topics: Option<Vec<String>>| Request::Metadata(MetadataRequest { topics, auto_create: false });
        let one = listing_bytes(1, 3, 100, 1);
        let answer = control.answer(list(Some(vec!["one".to_owned()])), one).await;
        assert!(matches!(&answer, Answer::Metadata(answer) if answer.topics.len() == 1), "{answer:?}");
        for topics in [None, Some(vec!["one".to_owned(), "two".to_owned()])] {
            let answer = control.answer(list(topics), 2 * one - 1).await;
            let Answer::Refused { refusal, .. } = answer else { panic!("{answer:?}") };
            assert_eq!(refusal.code, ErrorCode::TooLarge);
            assert!(refusal.message.contains("fewer topics"), "{refusal:?}");
        }
        let describe =
            Request::DescribeTopic(corelog_wire::message::DescribeTopicRequest { name: "one".to_owned() });
        let answer = control.answer(describe, one - 1).await;
        assert!(matches!(answer, Answer::Refused { .. }), "{answer:?}");
        // What the network reserves for it is no less.
        assert!(views.borrow().listing_bytes(None) >= 2 * one);
    });
}
