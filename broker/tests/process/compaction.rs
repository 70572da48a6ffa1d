//! Compaction under `kill -9`: what is left of a topic is what was produced last of each key.
//!
//! `COMPACTION_RECORDS` makes the run longer, `COMPACTION_KEYS` and `COMPACTION_KILLS` another one.

use crate::support::{Broker, Random, data_folder, path, setting};
use corelog_client::{Acks, Client, Record, Start};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const TOPIC: &str = "accounts";
const PARTITIONS: u32 = 2;
const VALUE_BYTES: usize = 1_000;
const PATIENCE: Duration = Duration::from_mins(2);

/// Number of the update that a key has last; none of one that was deleted.
type Accounts = BTreeMap<Vec<u8>, Option<u64>>;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Updates keys at random, some by a tombstone; lives through every kill. Gives what each has in the end.
async fn produce(address: &str, records: u64, sent: &AtomicU64) -> Accounts {
    let client = Client::connect(address).await.unwrap();
    let producer = client.producer(TOPIC).acks(Acks::All).batch_bytes(48 << 10).build().unwrap();
    let (keys, mut random, mut accounts) = (setting("COMPACTION_KEYS", 400), Random(5), Accounts::new());
    for number in 0..records {
        let key = random.below(keys).to_string().into_bytes();
        let deletes = random.below(20) == 0;
        let mut value = number.to_le_bytes().to_vec();
        value.resize(VALUE_BYTES, 7);
        let record =
            if deletes { Record::tombstone(key.clone()) } else { Record::new(value).key(key.clone()) };
        // Every ticket is answered when the producer is closed, or that fails.
        drop(producer.enqueue(record).await.unwrap());
        accounts.insert(key, (!deletes).then_some(number));
        sent.store(number + 1, Ordering::Relaxed);
        if number % 500 == 499 {
            producer.flush().await.unwrap();
        }
    }
    producer.close().await.unwrap();
    accounts.retain(|_, number| number.is_some());
    accounts
}

/// What a reader of everything knows in the end, and how many records it was.
async fn read(address: &str) -> (Accounts, u64) {
    let client = Client::connect(address).await.unwrap();
    let ends = client.admin().list_offsets(TOPIC, Start::Latest).await.unwrap();
    let reader = client.topic_reader(TOPIC).from(Start::Earliest).build().unwrap();
    let (mut accounts, mut records) = (Accounts::new(), 0);
    let is_over = || ends.iter().all(|end| reader.position(end.partition).is_some_and(|at| at >= end.offset));
    while !is_over() {
        let Ok(batch) = tokio::time::timeout(Duration::from_millis(20), reader.next()).await else {
            continue;
        };
        for record in &batch.unwrap().unwrap() {
            records += 1;
            let number = record.value().map(|value| u64::from_le_bytes(value[..8].try_into().unwrap()));
            accounts.insert(record.key().unwrap().to_vec(), number);
        }
    }
    accounts.retain(|_, number| number.is_some());
    (accounts, records)
}

fn written(broker: &Broker) -> u64 {
    broker.metric("corelog_compaction_written_bytes_total{shard=\"0\"}")
}

#[test]
fn what_is_left_of_each_key_is_its_newest_record_whatever_is_killed() {
    let (records, kills) = (setting("COMPACTION_RECORDS", 60_000), setting("COMPACTION_KILLS", 5));
    let folder = data_folder();
    let data = path(&folder, "data");
    let mut broker = Broker::dev(&data, 0, 1);
    let (address, port) = (broker.address.clone(), broker.port());
    let partitions = PARTITIONS.to_string();
    let mut create = vec!["topic", "create", TOPIC, "--partitions", &partitions];
    for setting in
        ["cleanup_policy=compact", "segment_bytes=1MiB", "batch_bytes_max=64KiB", "record_bytes_max=16KiB"]
    {
        create.extend(["--config", setting]);
    }
    broker.succeed(&create, b"");
    let sent = Arc::new(AtomicU64::new(0));
    let producing = std::thread::spawn({
        let (address, sent) = (address.clone(), Arc::clone(&sent));
        move || runtime().block_on(produce(&address, records, &sent))
    });
    let (mut random, mut compacted) = (Random(9), 0);
    for kill in 0..kills {
        let until = records * (kill + 1) / (kills + 2);
        crate::dev::until("more was produced", || sent.load(Ordering::Relaxed) >= until);
        // Not to wait for anything, but to have the kill at a random moment of whatever goes on.
        std::thread::sleep(Duration::from_millis(random.below(1_500)));
        compacted += written(&broker);
        broker.kill();
        broker = Broker::dev(&data, port, 1);
    }
    let truth = producing.join().unwrap();
    let (all, began) = (runtime().block_on(read(&address)), Instant::now());
    assert_eq!(all.0, truth);
    // What is in the journal alone, a quarter of it, is not compacted; of the rest little but the newest is left in the end.
    let left = loop {
        let (accounts, left) = runtime().block_on(read(&address));
        assert_eq!(accounts, truth);
        if left < records / 3 {
            break left;
        }
        assert!(began.elapsed() < PATIENCE, "{left} of {records} records are left");
    };
    compacted += written(&broker);
    println!(
        "{records} records of {} keys, {kills} kills: {left} are left, {compacted} bytes were written anew",
        truth.len()
    );
    broker.kill();
    let broker = Broker::dev(&data, port, 1);
    assert_eq!(runtime().block_on(read(&address)).0, truth);
    assert_eq!(broker.interrupt(), Some(0));
}
