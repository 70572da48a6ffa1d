//! How far a group is behind, against a truth that the test knows; and the warning before retention overtakes it.

use crate::dev::until;
use crate::support::{Broker, CORELOG, data_folder, path};
use corelog_client::{Client, NewTopic, ResetTo, Start};
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TOPIC: &str = "orders";
const GROUP: &str = "billing";
const RECORDS: usize = 8;
/// Between two records.
const PAUSE: Duration = Duration::from_millis(250);

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Sends the records one by one; gives when each was acknowledged.
async fn send(client: &Client) -> Vec<Instant> {
    client.admin().ensure_topic(TOPIC, NewTopic::partitions(1)).await.unwrap();
    let producer = client.producer(TOPIC).build().unwrap();
    let mut sent = Vec::new();
    for _ in 0..RECORDS {
        producer.send(vec![7; 1_000]).await.unwrap();
        sent.push(Instant::now());
        // The records have to differ in age.
        tokio::time::sleep(PAUSE).await;
    }
    sent
}

async fn commit(client: &Client, offset: usize) {
    let to = ResetTo::Place(Start::Offset(offset as u64));
    let plan = client.admin().plan_reset(GROUP, TOPIC, None, to).await.unwrap();
    client.admin().reset(&plan).await.unwrap();
}

/// What the broker says of the group's lag: in its JSON, in its metrics and to a client.
fn check(broker: &Broker, client: &Client, sent: &[Instant], committed: usize) {
    let said = broker.get(&format!("/v1/groups/{GROUP}"));
    let body = said.split("\r\n\r\n").nth(1).unwrap();
    let group: serde_json::Value = serde_json::from_str(body).unwrap();
    let lag = &group["partitions"][0]["lag"];
    let unread = (RECORDS - committed) as u64;
    assert_eq!(lag["records"], unread, "{group}");
    let truth = sent.get(committed).map_or(Duration::ZERO, Instant::elapsed).as_secs_f64();
    let allowed = (truth / 10.0).max(0.05);
    let seconds = lag["seconds"].as_f64().unwrap();
    assert!((seconds - truth).abs() <= allowed, "{committed} committed: {seconds} s, in truth {truth} s");
    let bytes = lag["bytes"].as_u64().unwrap();
    assert!((1_000 * unread..1_200 * unread + 1).contains(&bytes), "{unread} unread: {bytes} bytes");

    let labels = format!("{{group=\"{GROUP}\",topic=\"{TOPIC}\",partition=\"0\"}}");
    assert_eq!(broker.metric(&format!("corelog_group_lag_records{labels}")), unread);
    let described = run(client.admin().describe_group(GROUP)).unwrap();
    let told = described.partitions[0].lag.unwrap();
    let now = sent.get(committed).map_or(Duration::ZERO, Instant::elapsed).as_secs_f64();
    assert!((told.behind.as_secs_f64() - now).abs() <= (now / 10.0).max(0.05), "{told:?}, in truth {now} s");
}

#[test]
fn lag_is_what_it_is_in_records_bytes_and_seconds() {
    let folder = data_folder();
    let data = path(&folder, "data");
    let broker = Broker::dev(&data, 0, 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = runtime.block_on(Client::connect(&broker.address)).unwrap();
    let sent = runtime.block_on(send(&client));
    for committed in [0, 3, RECORDS - 1, RECORDS] {
        runtime.block_on(commit(&client, committed));
        check(&broker, &client, &sent, committed);
    }
    runtime.block_on(commit(&client, 2));
    let port = broker.port();
    broker.kill();
    // Ages are not forgotten with the process.
    let broker = Broker::dev(&data, port, 1);
    check(&broker, &client, &sent, 2);
    assert_eq!(broker.interrupt(), Some(0));
}

#[test]
fn a_group_that_retention_is_about_to_overtake_is_warned_of_once() {
    let folder = data_folder();
    let log = path(&folder, "log");
    let mut command = Command::new(CORELOG);
    command.arg("dev").arg("--data-dir").arg(path(&folder, "data")).args([
        "--port",
        "0",
        "--admin-port",
        "0",
    ]);
    let broker = Broker::start_with(&mut command, Stdio::from(File::create(&log).unwrap()));
    run(async {
        let client = Client::connect(&broker.address).await.unwrap();
        let topic = NewTopic::partitions(1).config("retention_ms", "5000");
        client.admin().create_topic(TOPIC, topic).await.unwrap();
        let producer = client.producer(TOPIC).build().unwrap();
        producer.send("soon gone").await.unwrap();
        commit(&client, 0).await;
    });
    let left = || broker.get("/metrics").contains("corelog_group_overtaken_in_seconds{");
    assert!(left());
    let warned = || std::fs::read_to_string(&log).unwrap().matches("retention is about to delete").count();
    until("the warning is there", || warned() > 0);
    assert!(std::fs::read_to_string(&log).unwrap().contains("billing"));
    // Once the record is gone the group is still behind the log's start, which is no news.
    let gone = || {
        let describe = broker.succeed(&["--output", "json", "topic", "describe", TOPIC], b"");
        let described: serde_json::Value = serde_json::from_slice(&describe).unwrap();
        described["partitions"][0]["log_start"] == 1
    };
    until("the record is gone", gone);
    assert_eq!(warned(), 1);
    assert_eq!(broker.interrupt(), Some(0));
}
