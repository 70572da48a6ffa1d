//! The router behind a real socket, with a source made for the test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::state::{
    BudgetNumbers, Distribution, GroupInfo, GroupPlace, LagNumbers, PartitionStanding, SettingInfo,
    ShardNumbers,
};
use super::*;

struct Served {
    address: SocketAddr,
    phase: watch::Sender<Phase>,
}

struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        serde_json::from_str(&self.body).unwrap()
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Serves this picture to everybody who asks; without one, nobody answers.
async fn served(snapshot: Option<Snapshot>) -> Served {
    let (questions, mut inbox) = mpsc::channel::<Question>(8);
    let (phase, phase_seen) = watch::channel(Phase::Ready);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let patience = if snapshot.is_some() { PATIENCE } else { Duration::from_millis(100) };
    let router = router_within(Sources { questions, phase: phase_seen }, patience);
    tokio::spawn(async move { axum::serve(listener, router).await });
    tokio::spawn(async move {
        let mut unanswered = Vec::new();
        while let Some(question) = inbox.recv().await {
            match (&snapshot, question) {
                (Some(snapshot), Question::Picture(reply)) => drop(reply.send(snapshot.clone())),
                (Some(snapshot), Question::Health(reply)) => drop(reply.send(snapshot.health())),
                (Some(_), Question::Settings { topic, reply }) => {
                    assert_eq!(topic, "orders");
                    drop(reply.send(Some(vec![setting()])));
                }
                (Some(snapshot), Question::Group { name, reply }) => {
                    drop(reply.send(snapshot.groups.iter().find(|group| group.name == name).cloned()));
                }
                (None, question) => unanswered.push(question),
            }
        }
    });
    Served { address, phase }
}

impl Served {
    async fn get(&self, path: &str) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head: head.to_owned(), body: body.to_owned() }
    }
}

fn setting() -> SettingInfo {
    SettingInfo { name: "durability".to_owned(), value: "disk".to_owned(), is_default: true }
}

fn partition(number: u32, standing: Option<PartitionStanding>) -> PartitionInfo {
    PartitionInfo {
        partition: number,
        leader: Some(1),
        leader_epoch: 2,
        shard: 0,
        replicas: vec![1],
        in_sync_replicas: vec![1],
        standing,
    }
}

fn snapshot() -> Snapshot {
    let standing = |records_in| PartitionStanding {
        log_start: 5,
        high_watermark: 10,
        log_end: 12,
        bytes: 4_096,
        segments: 1,
        records_in,
        bytes_in: 100 * records_in,
        records_out: 3,
        bytes_out: 300,
    };
    let mut flush = hdrhistogram::Histogram::new(2).unwrap();
    flush.record(1_500).unwrap();
    let shard = |number| ShardNumbers {
        shard: number,
        busy: Duration::from_millis(1_500),
        journal_used_bytes: 8_192,
        flush: Distribution::of_micros(&flush),
        requests: vec![
            ("produce".to_owned(), Distribution::of_micros(&flush)),
            ("fetch".to_owned(), Distribution::default()),
        ],
        memory: vec![
            BudgetNumbers { name: "input", bytes: 7, bytes_max: Some(100) },
            BudgetNumbers { name: "tail_cache", bytes: 9, bytes_max: None },
        ],
        connections: 2,
        connections_closed: vec![("client", 4), ("garbage", 1)],
        ..ShardNumbers::default()
    };
    Snapshot {
        broker: BrokerInfo {
            id: 1,
            cluster: "dev".to_owned(),
            version: "0.1.0".to_owned(),
            shards: 2,
            uptime_ms: 2_500,
            metadata_revision: 42,
            ..BrokerInfo::default()
        },
        shards: vec![shard(0), shard(1)],
        silent: Vec::new(),
        groups_left_out: true,
        topics: vec![
            TopicInfo {
                name: "orders".to_owned(),
                id: "0707".to_owned(),
                replication_factor: 1,
                config: Vec::new(),
                partitions: vec![
                    partition(0, Some(standing(10))),
                    partition(1, Some(standing(20))),
                    partition(2, None),
                ],
            },
            TopicInfo { name: "empty.topic-1_x".to_owned(), ..TopicInfo::default() },
        ],
        groups: vec![GroupInfo {
            name: "billing".to_owned(),
            members: 1,
            partitions: vec![
                GroupPlace {
                    topic: "orders".to_owned(),
                    partition: 0,
                    member: Some("00ff".to_owned()),
                    committed: Some(7),
                    lag: Some(LagNumbers {
                        records: 3,
                        bytes: 1_000,
                        seconds: 2.5,
                        overtaken_in_seconds: Some(60.0),
                    }),
                },
                GroupPlace { topic: "orders".to_owned(), partition: 2, ..GroupPlace::default() },
            ],
        }],
    }
}

/// Samples by name and labels. Checks what every reader of OpenMetrics relies on.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let (mut types, mut helped) = (BTreeMap::new(), BTreeSet::new());
    assert!(text.ends_with("# EOF\n"), "no end");
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} described twice");
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(name.starts_with("corelog_") && help.len() > 5, "{line}");
            helped.insert(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# UNIT ") {
            let (name, unit) = rest.split_once(' ').unwrap();
            assert!(name.ends_with(&format!("_{unit}")), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let suffixes = ["", "_total", "_sum", "_count", "_bucket"];
            let mut families = suffixes.iter().filter_map(|suffix| name.strip_suffix(suffix));
            let family =
                families.find(|family| types.contains_key(*family)).unwrap_or_else(|| panic!("{line}"));
            assert!(helped.contains(family), "{family} is not explained");
            assert_eq!(types[family] == "counter", name.ends_with("_total"), "{line}");
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} twice");
        }
    }
    samples
}

#[test]
fn metrics_are_openmetrics_and_say_what_the_broker_does() {
    run(async {
        let reply = served(Some(snapshot())).await.get("/metrics").await;
        assert_eq!(reply.status, 200);
        assert!(
            reply.head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{}",
            reply.head
        );
        let samples = parse(&reply.body);
        for (series, value) in [
            ("corelog_broker{version=\"0.1.0\",cluster=\"dev\",broker=\"1\"}", 1.0),
            ("corelog_ready", 1.0),
            ("corelog_uptime_seconds", 2.5),
            ("corelog_shard_busy_seconds_total{shard=\"1\"}", 1.5),
            ("corelog_journal_used_bytes{shard=\"0\"}", 8_192.0),
            ("corelog_topic_records_in_total{topic=\"orders\"}", 30.0),
            ("corelog_topic_records_out_total{topic=\"orders\"}", 6.0),
            ("corelog_topic_in_bytes_total{topic=\"orders\"}", 3_000.0),
            ("corelog_topic_out_bytes_total{topic=\"orders\"}", 600.0),
            ("corelog_topic_size_bytes{topic=\"orders\"}", 8_192.0),
            ("corelog_topic_partitions{topic=\"orders\"}", 3.0),
            ("corelog_flush_duration_seconds_count{shard=\"0\"}", 1.0),
            ("corelog_flush_duration_seconds_bucket{le=\"0.001\",shard=\"0\"}", 0.0),
            ("corelog_flush_duration_seconds_bucket{le=\"0.0025\",shard=\"0\"}", 1.0),
            ("corelog_flush_duration_seconds_bucket{le=\"+Inf\",shard=\"0\"}", 1.0),
            ("corelog_request_duration_seconds_count{shard=\"0\",kind=\"produce\"}", 1.0),
            ("corelog_memory_used_bytes{shard=\"0\",budget=\"input\"}", 7.0),
            ("corelog_memory_limit_bytes{shard=\"0\",budget=\"input\"}", 100.0),
            ("corelog_connections{shard=\"1\"}", 2.0),
            ("corelog_connections_closed_total{shard=\"1\",cause=\"client\"}", 4.0),
            ("corelog_shard_poisoned{shard=\"0\"}", 0.0),
            ("corelog_group_members{group=\"billing\"}", 1.0),
            ("corelog_group_lag_records{group=\"billing\",topic=\"orders\",partition=\"0\"}", 3.0),
            ("corelog_group_lag_bytes{group=\"billing\",topic=\"orders\",partition=\"0\"}", 1_000.0),
            ("corelog_group_lag_seconds{group=\"billing\",topic=\"orders\",partition=\"0\"}", 2.5),
            ("corelog_group_overtaken_in_seconds{group=\"billing\",topic=\"orders\",partition=\"0\"}", 60.0),
        ] {
            assert_eq!(samples.get(series), Some(&value), "{series} in\n{}", reply.body);
        }
        assert!(!samples.contains_key("corelog_memory_limit_bytes{shard=\"0\",budget=\"tail_cache\"}"));
        assert!(!samples.contains_key("corelog_request_duration_seconds_count{shard=\"0\",kind=\"fetch\"}"));
    });
}

#[test]
fn groups_are_shown_with_their_lag() {
    run(async {
        let served = served(Some(snapshot())).await;
        let list: serde_json::Value = serde_json::from_str(&served.get("/v1/groups").await.body).unwrap();
        let line = serde_json::json!({"name": "billing", "members": 1, "lag_records": 3, "lag_seconds": 2.5});
        assert_eq!(list, serde_json::json!({ "groups": [line] }));
        let group: serde_json::Value =
            serde_json::from_str(&served.get("/v1/groups/billing").await.body).unwrap();
        assert_eq!(group["partitions"][0]["lag"]["overtaken_in_seconds"], 60.0);
        assert!(group["partitions"][1]["lag"].is_null());
        assert_eq!(served.get("/v1/groups/other").await.status, 404);
    });
}

#[test]
fn metrics_of_an_empty_broker_are_openmetrics_too() {
    run(async {
        let reply = served(Some(Snapshot::default())).await.get("/metrics").await;
        assert_eq!(parse(&reply.body).get("corelog_shards_silent"), Some(&0.0));
    });
}

#[test]
fn a_healthy_broker_is_ready() {
    run(async {
        let served = served(Some(snapshot())).await;
        for (path, said) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
            let reply = served.get(path).await;
            assert_eq!((reply.status, reply.body.as_str()), (200, said));
        }
        for (phase, said) in
            [(Phase::Starting, "the broker is starting\n"), (Phase::Stopping, "the broker is stopping\n")]
        {
            served.phase.send_replace(phase);
            let reply = served.get("/readyz").await;
            assert_eq!((reply.status, reply.body.as_str()), (503, said));
            assert_eq!(served.get("/healthz").await.status, 200);
        }
    });
}

#[test]
fn what_is_wrong_is_said_in_sentences() {
    run(async {
        let mut wrong = snapshot();
        wrong.shards[1].poisoned = true;
        let served_wrong = served(Some(wrong)).await;
        let reply = served_wrong.get("/readyz").await;
        assert_eq!(reply.status, 503);
        assert_eq!(reply.body, "shard 1: a write fault has stopped its log; look at the disk\n");
        // It is alive, and restarting it would not help.
        assert_eq!(served_wrong.get("/healthz").await.status, 200);
        let broker = served_wrong.get("/v1/broker").await.json();
        assert_eq!(broker["problems"][0], "shard 1: a write fault has stopped its log; look at the disk");

        let hung = Snapshot { silent: vec![1], ..snapshot() };
        let reply = served(Some(hung)).await.get("/healthz").await;
        assert_eq!((reply.status, reply.body.as_str()), (503, "shard 1 does not answer\n"));
    });
}

#[test]
fn the_json_says_what_there_is() {
    run(async {
        let served = served(Some(snapshot())).await;
        let broker = served.get("/v1/broker").await.json();
        assert_eq!(
            (&broker["id"], &broker["phase"], &broker["cluster"]),
            (&1.into(), &"ready".into(), &"dev".into())
        );
        let topics = served.get("/v1/topics").await.json();
        assert_eq!(topics["topics"][0]["name"], "orders");
        assert_eq!(
            (&topics["topics"][0]["partitions"], &topics["topics"][0]["bytes"]),
            (&3.into(), &8_192.into())
        );
        let topic = served.get("/v1/topics/orders").await.json();
        assert_eq!(topic["config"][0]["value"], "disk");
        assert_eq!(topic["partitions"][1]["high_watermark"], 10);
        assert_eq!(topic["partitions"][2].get("high_watermark"), None);
        let rows = served.get("/v1/partitions?topic=orders").await.json();
        assert_eq!(rows["partitions"].as_array().unwrap().len(), 3);
        assert_eq!(
            (&rows["partitions"][2]["topic"], &rows["partitions"][2]["partition"]),
            (&"orders".into(), &2.into())
        );
        assert_eq!(served.get("/v1/partitions").await.json()["partitions"].as_array().unwrap().len(), 3);
    });
}

#[test]
fn what_is_not_there_is_refused_in_json() {
    run(async {
        let served = served(Some(snapshot())).await;
        for (path, status, said) in [
            ("/v1/topics/nothing", 404, "there is no topic \"nothing\""),
            ("/v1/partitions?topic=nothing", 404, "there is no topic \"nothing\""),
            ("/v1/partitions?tpoic=orders", 400, "the only parameter is topic=NAME"),
            ("/nowhere", 404, "there is nothing here"),
        ] {
            let reply = served.get(path).await;
            assert_eq!(reply.status, status, "{path}");
            assert!(reply.json()["error"].as_str().unwrap().starts_with(said), "{path}");
        }
    });
}

#[test]
fn a_broker_that_hangs_is_said_to() {
    run(async {
        let served = Arc::new(served(None).await);
        // More askers than pictures may be taken at once: all are told.
        let askers = (0..SNAPSHOTS_MAX + 2).map(|_| {
            let served = Arc::clone(&served);
            tokio::spawn(async move { served.get("/healthz").await })
        });
        for asker in askers.collect::<Vec<_>>() {
            let reply = asker.await.unwrap();
            assert_eq!(reply.status, 503);
            assert_eq!(reply.json()["error"], "the broker does not answer");
        }
        served.phase.send_replace(Phase::Starting);
        assert_eq!(served.get("/healthz").await.status, 200);
        assert_eq!(served.get("/metrics").await.status, 503);
    });
}

#[test]
fn serving_ends_when_it_is_told_to() {
    run(async {
        let (questions, _inbox) = mpsc::channel(1);
        let (_phase, phase) = watch::channel(Phase::Ready);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = serve(listener, Sources { questions, phase }, async move { drop(stopped.await) });
        let served = tokio::spawn(served);
        stop.send(()).unwrap();
        served.await.unwrap().unwrap();
    });
}

/// A server with these bounds, whose broker is starting.
async fn bounded(bounds: Bounds) -> (SocketAddr, oneshot::Sender<()>) {
    let (questions, _inbox) = mpsc::channel(1);
    let (_phase, phase) = watch::channel(Phase::Starting);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let sources = Sources { questions, phase };
    tokio::spawn(serve_within(listener, bounds, sources, async move { drop(stopped.await) }));
    (address, stop)
}

const LONG: Duration = Duration::from_hours(1);

#[test]
fn who_says_nothing_or_too_slowly_is_closed() {
    run(async {
        let short = Duration::from_millis(50);
        let bounds = Bounds { silence: short, life: LONG, ..Bounds::default() };
        let (address, _stop) = bounded(bounds).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let end = tokio::time::timeout(Duration::from_mins(1), silent.read_to_end(&mut Vec::new())).await;
        assert!(end.is_ok(), "a silent connection stays open");

        let bounds = Bounds { silence: LONG, life: short, ..Bounds::default() };
        let (address, _stop) = bounded(bounds).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /healthz HTTP/1.1\r\nx: ").await.unwrap();
        let end = tokio::time::timeout(Duration::from_mins(1), slow.read_to_end(&mut Vec::new())).await;
        assert!(end.is_ok(), "a header that never ends is waited for");
    });
}

#[test]
fn more_connections_than_there_are_places_wait() {
    run(async {
        let bounds = Bounds { connections: 1, silence: LONG, life: LONG };
        let (address, _stop) = bounded(bounds).await;
        let served = Served { address, phase: watch::channel(Phase::Starting).0 };
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(b"GET /healthz HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        // It is answered, so it has the place.
        assert!(first.read(&mut [0; 1_024]).await.unwrap() > 0);
        let second = served.get("/healthz");
        tokio::pin!(second);
        let early = tokio::time::timeout(Duration::from_millis(100), &mut second).await;
        assert!(early.is_err(), "two connections in one place");
        drop(first);
        assert_eq!(second.await.status, 200);
    });
}
