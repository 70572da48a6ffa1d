//! Hostile clients beside a healthy one: the broker neither ends nor grows, says what is wrong where it can, and serves on.
//!
//! `IDLE_CONNECTIONS` sets how many connections stay idle (10,000, or what the limit on descriptors allows), `HOSTILE_ROUNDS`
//! how often the healthy client is compared before its latency counts as harmed (4).

use crate::attack::{self, Attackers, produced};
use crate::support::{Broker, Random, data_folder, setting};
use crate::wire::{PATIENCE, batch, greeted, produce_frame};
use corelog_client::{Client, NewTopic, Record};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::TopicPartition;
use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const TOPIC: &str = "healthy";
const BULK: &str = "bulk";
/// Records sent one after the other for one figure, at least: with 1,000, a 99th percentile has ten beyond it.
const SAMPLES_MIN: usize = 1_000;
/// How long they are sent, at least: with and without hostile clients as long, so that what else disturbs does so in both.
const MEASURED_MIN: Duration = Duration::from_secs(4);
/// How often each of the hostile clients attacks meanwhile, at least.
const ATTACKS_MIN: u64 = 100;
const SLOW_READERS: usize = 20;
/// A 99th percentile below this counts as this. Nothing does in an optimised build. In another one a look at the deadlines of
/// 10,000 connections takes milliseconds, which says nothing about the broker that anybody runs.
const LATENCY_FLOOR: Duration =
    if cfg!(debug_assertions) { Duration::from_millis(10) } else { Duration::ZERO };

/// What a shard of `corelog dev` may take for requests, answers and caches: a quarter each for requests and for answers,
/// which `/metrics` tells, and for the tail cache, and a quarter for what is on its way.
const SHARD_BUDGET_KIB: u64 = 256 << 10;
/// What no budget counts: code and its libraries, stacks, the executor's own buffers and rings, the metadata store, the heap's
/// slack. An idle broker's 60 MB are most of it.
const BESIDE_THE_BUDGET_KIB: u64 = 80 << 10;
/// What each connection costs beside the budget: its state and its task.
const CONNECTION_KIB: u64 = 5;

/// Held by each test, so that they run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn what_can_be_answered_is_answered() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = data_folder();
    let broker = Broker::dev(folder.path(), 0, 1);
    let tp = topic(&broker, TOPIC);
    let mut random = Random(3);
    for _ in 0..20 {
        attack::garbage(&broker.address, &mut random);
    }
    attack::huge_prefix(&broker.address);
    let mut stream = greeted(&broker.address);
    attack::unknown_kind(&mut stream);
    attack::wrong_checksums(&mut stream, tp);
    attack::wrong_topics(&mut stream, tp);
    // The same connection still serves.
    stream.write_all(&produce_frame(tp, &batch(tp, b"value"))).unwrap();
    assert_eq!(produced(&mut stream), ErrorCode::None);
    assert_eq!(broker.interrupt(), Some(0));
}

#[test]
fn a_hostile_client_costs_only_itself() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let idle_max = idle_connections();
    let folder = data_folder();
    let broker = Broker::dev(folder.path(), 0, 1);
    let quarter = broker.metric("corelog_memory_limit_bytes{shard=\"0\",budget=\"requests\"}");
    assert_eq!(quarter / 1_024 * 4, SHARD_BUDGET_KIB, "the budget is not what this test takes it for");
    let (tp, bulk) = (topic(&broker, TOPIC), topic(&broker, BULK));
    fill(&broker, bulk);
    let runtime = runtime();
    let client = runtime.block_on(Client::connect(&broker.address)).unwrap();

    let budget = SHARD_BUDGET_KIB + BESIDE_THE_BUDGET_KIB + CONNECTION_KIB * idle_max;
    let mut ratio = f64::MAX;
    for round in 1..=setting("HOSTILE_ROUNDS", 4) {
        let quiet = runtime.block_on(latencies(&client, &|| true));
        let attacked =
            attacked(&broker, (tp, bulk), idle_max, |enough| runtime.block_on(latencies(&client, enough)));
        let peak = broker.status_kib("VmHWM:");
        println!("\nround {round}: 99 of 100 within {quiet:?} alone, {attacked:?} beside hostile clients");
        println!("         resident at most {peak} KiB of {budget}, now {}", broker.resident_kib());
        assert!(peak <= budget, "grew to {peak} KiB, {budget} are the most");
        ratio = ratio.min(attacked.as_secs_f64() / quiet.max(LATENCY_FLOOR).as_secs_f64());
        if ratio <= 2.0 {
            break;
        }
    }
    assert!(ratio <= 2.0, "a healthy client's 99th percentile grew by {ratio:.1} at the least");
    assert_eq!(broker.interrupt(), Some(0));
}

/// Does `measure` while everything that means harm is at it.
fn attacked(
    broker: &Broker,
    (tp, bulk): (TopicPartition, TopicPartition),
    idle_max: u64,
    measure: impl FnOnce(&dyn Fn() -> bool) -> Duration,
) -> Duration {
    let mut idle: Vec<TcpStream> = (0..idle_max).map(|_| greeted(&broker.address)).collect();
    let attackers = Attackers::start(&broker.address, tp);
    let (stop, stopped) = channel();
    let reading = std::thread::spawn({
        let address = broker.address.clone();
        move || attack::slow_readers(&address, bulk, SLOW_READERS, &stopped)
    });
    let measured = measure(&|| attackers.attacks_least() >= ATTACKS_MIN);
    let connections = broker.metric("corelog_connections{shard=\"0\"}");
    drop(stop);
    let ((taken, closed), attacks) = (reading.join().unwrap(), attackers.stop());
    println!(
        "         {connections} connections; slow readers took {taken} bytes, {closed} were closed; {attacks:?}"
    );
    assert!(connections >= idle_max, "{connections} of {idle_max} idle connections were left in peace");
    assert!(taken >= SLOW_READERS, "slow readers were not served: {taken} bytes");
    // Being idle was no offence.
    for stream in idle.iter_mut().step_by(997) {
        attack::unknown_kind(stream);
    }
    measured
}

/// As many idle connections as descriptors allow, the most that are asked for. Raises this process's limit to the most it
/// may have; the broker inherits it.
fn idle_connections() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    // Beside them each end has the attackers' connections, and files.
    let room = limit.maximum.unwrap_or(u64::MAX).saturating_sub(1_000);
    let idle = setting("IDLE_CONNECTIONS", 10_000).min(room);
    println!("{idle} idle connections");
    idle
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn topic(broker: &Broker, name: &str) -> TopicPartition {
    let id = runtime().block_on(async {
        let client = Client::connect(&broker.address).await.unwrap();
        client.admin().create_topic(name, NewTopic::partitions(1)).await.unwrap()
    });
    TopicPartition::new(id, 0)
}

/// Latency that 99 of 100 single acknowledged records stay within, sent one after the other until it is `enough`.
async fn latencies(client: &Client, enough: &dyn Fn() -> bool) -> Duration {
    let producer = client.producer(TOPIC).build().unwrap();
    let (began, mut taken) = (Instant::now(), Vec::new());
    while taken.len() < SAMPLES_MIN || began.elapsed() < MEASURED_MIN || !enough() {
        let sent = Instant::now();
        producer.send(Record::new("healthy")).await.unwrap();
        taken.push(sent.elapsed());
        assert!(began.elapsed() < 2 * PATIENCE, "{} records in {:?}", taken.len(), began.elapsed());
    }
    producer.close().await.unwrap();
    taken.sort();
    taken[taken.len() * 99 / 100]
}

/// Something for greedy readers to read: 48 MiB.
fn fill(broker: &Broker, tp: TopicPartition) {
    let mut stream = greeted(&broker.address);
    for _ in 0..16 {
        stream.write_all(&produce_frame(tp, &batch(tp, &vec![7; 3 << 20]))).unwrap();
        assert_eq!(produced(&mut stream), ErrorCode::None);
    }
}
