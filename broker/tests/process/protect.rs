//! What a named group has not read stays, across a kill, while the same retention takes it from a topic that protects
//! nobody.

use crate::dev::until;
use crate::support::{Broker, data_folder, path};
use corelog_client::{Client, NewTopic, ResetTo, Start};

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
    assert_eq!(broker.interrupt(), Some(0));
}
