//! What a named group has not read stays, across a kill, while the same retention takes it from a topic that protects
//! nobody.

use crate::dev::until;
use crate::support::{Broker, data_folder, path};
use corelog_client::{Client, ErrorCode, NewTopic, ResetTo, Start};
use std::time::Duration;

const PROTECTED: &str = "invoices";
const OTHER: &str = "clicks";
const GROUP: &str = "billing";
const RECORDS: u64 = 96;
const RECORD_BYTES: usize = 60_000;

async fn fill(client: &Client, topic: &str) {
    let producer = client.producer(topic).build().unwrap();
    for _ in 0..RECORDS {
        producer.send(vec![7; RECORD_BYTES]).await.unwrap();
    }
}

async fn create(client: &Client, topic: &str, groups: &str) {
    let topic_of = NewTopic::partitions(1)
        .config("segment_bytes", "1MiB")
        .config("batch_bytes_max", "128KiB")
        .config("record_bytes_max", "64KiB")
        .config("retention_bytes", "1MiB")
        .config("protect_groups", groups);
    client.admin().create_topic(topic, topic_of).await.unwrap();
}

async fn commit(client: &Client, offset: u64) {
    let to = ResetTo::Place(Start::Offset(offset));
    let plan = client.admin().plan_reset(GROUP, PROTECTED, None, to).await.unwrap();
    client.admin().reset(&plan).await.unwrap();
}

fn log_start(broker: &Broker, topic: &str) -> u64 {
    let described = broker.succeed(&["--output", "json", "topic", "describe", topic], b"");
    let described: serde_json::Value = serde_json::from_slice(&described).unwrap();
    described["partitions"][0]["log_start"].as_u64().unwrap()
}

#[test]
fn retention_leaves_what_a_protected_group_has_not_read() {
    let folder = data_folder();
    let data = path(&folder, "data");
    let broker = Broker::dev(&data, 0, 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = runtime.block_on(async {
        let client = Client::connect(&broker.address).await.unwrap();
        create(&client, PROTECTED, GROUP).await;
        create(&client, OTHER, "none").await;
        fill(&client, PROTECTED).await;
        fill(&client, OTHER).await;
        client
    });
    // One shard looks after both at the same time: when the one has been seen to, so has the other.
    until("retention took what nobody protects", || log_start(&broker, OTHER) > RECORDS / 2);
    assert_eq!(log_start(&broker, PROTECTED), 0);

    let read = RECORDS / 2;
    runtime.block_on(commit(&client, read));
    until("retention took what was read", || log_start(&broker, PROTECTED) > 0);
    let port = broker.port();
    broker.kill();

    // The shard hears anew how far the group is, and keeps to it when there is more to remove.
    let broker = Broker::dev(&data, port, 1);
    let before = log_start(&broker, OTHER);
    runtime.block_on(async {
        fill(&client, PROTECTED).await;
        fill(&client, OTHER).await;
    });
    until("retention goes on", || log_start(&broker, OTHER) > before + RECORDS / 2);
    let kept = log_start(&broker, PROTECTED);
    assert!((1..=read).contains(&kept), "kept from {kept}, read up to {read}");
    runtime.block_on(commit(&client, 2 * RECORDS));
    until("retention took what was read", || log_start(&broker, PROTECTED) > RECORDS);

    // Who is put back finds all of it from then on, though the shard was told otherwise a moment ago.
    let start = log_start(&broker, PROTECTED);
    runtime.block_on(async {
        commit(&client, start).await;
        fill(&client, PROTECTED).await;
    });
    assert_eq!(log_start(&broker, PROTECTED), start);
    assert_eq!(broker.interrupt(), Some(0));
}

/// The least that `serve` takes beside a journal of 64 MiB: twice that and a segment of the default size.
const DISK_BYTES_MAX: &str = "disk_bytes_max = \"640MiB\"\nsegment_pool_bytes = \"0\"";
const MIB: usize = 1 << 20;
const DISK_MIB: usize = 640;
const SEGMENT_MIB: u64 = 16;

/// Sends mebibytes until one is refused for good; gives how many were acknowledged, and the refusal.
async fn send_until_refused(client: &Client) -> (usize, corelog_client::Error) {
    // Longer than the broker needs to make room for a producer where it may.
    let producer = client.producer(PROTECTED).delivery_deadline(Duration::from_secs(5)).build().unwrap();
    for sent in 0..DISK_MIB {
        if let Err(refused) = producer.send(vec![7; MIB]).await {
            return (sent, refused);
        }
    }
    panic!("{DISK_MIB} MiB fit into a budget of as many");
}

#[test]
fn a_full_budget_waits_for_what_is_not_read_and_takes_what_is() {
    let folder = data_folder();
    let broker = Broker::serve(folder.path(), 1, DISK_BYTES_MAX);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(&broker.address).await.unwrap();
        let topic = NewTopic::partitions(1)
            .config("segment_bytes", format!("{SEGMENT_MIB}MiB"))
            .config("protect_groups", GROUP)
            .config("full_policy", "protect-unread");
        client.admin().create_topic(PROTECTED, topic).await.unwrap();

        let (acknowledged, refused) = send_until_refused(&client).await;
        assert_eq!(refused.code(), Some(ErrorCode::DiskFull), "{refused}");
        assert!(refused.to_string().contains(GROUP), "names who has to read: {refused}");
        assert!(acknowledged > DISK_MIB / 2, "refused after {acknowledged} MiB");
        assert_eq!(log_start(&broker, PROTECTED), 0);

        // A producer that waits goes on without a restart when the group has read some of it.
        let producer = client.producer(PROTECTED).build().unwrap();
        let read = acknowledged as u64 / 2;
        let (waited, ()) = tokio::join!(producer.send(vec![7; MIB]), commit(&client, read));
        assert_eq!(waited.unwrap().offset, Some(acknowledged as u64));
        let (more, refused) = send_until_refused(&client).await;
        assert_eq!(refused.code(), Some(ErrorCode::DiskFull), "{refused}");
        let start = log_start(&broker, PROTECTED);
        // Segments go whole.
        assert!(
            (read - 2 * SEGMENT_MIB..=read).contains(&start),
            "read up to {read}, kept from {start}, {more} more"
        );
    });
    assert_eq!(broker.interrupt(), Some(0));
}
