//! `kill -9` under load: every acknowledged record is there once, in order, at its acknowledged offset.
//!
//! One idempotent producer with acks=all lives through all kills and keeps its own history of what was acknowledged. The
//! broker is killed at a random moment up to 300 ms after it served again. `CORELOG_KILL_CYCLES` makes the run longer.

use crate::support::{Broker, Random, data_folder, setting};
use corelog_client::{Acks, Client, Record, Start};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PARTITIONS: u32 = 4;
const TOPIC: &str = "history";

/// What the producer was told: partition and offset, by the record's number.
type History = HashMap<u64, (u32, u64)>;

#[test]
fn every_acknowledged_record_survives_kills_once_and_in_order() {
    let cycles = setting("CORELOG_KILL_CYCLES", 20);
    let seed = setting("CORELOG_KILL_SEED", 1);
    println!("{cycles} cycles, seed {seed}");
    let folder = data_folder();
    let mut broker = Broker::dev(folder.path(), 0, 1);
    let (address, port) = (broker.address.clone(), broker.port());
    let stop = Arc::new(AtomicBool::new(false));
    let producing = std::thread::spawn({
        let (stop, address) = (Arc::clone(&stop), address.clone());
        move || runtime().block_on(produce(&address, seed, &stop))
    });
    let mut random = Random(seed);
    for _ in 0..cycles {
        // Not to wait for anything, but to have the kill at a random moment of whatever goes on.
        std::thread::sleep(Duration::from_millis(random.below(300)));
        broker.kill();
        broker = Broker::dev(folder.path(), port, 1);
        assert!(broker.said.contains("recovered"), "{}", broker.said);
    }
    stop.store(true, Ordering::Relaxed);
    let (history, sent) = producing.join().unwrap();
    println!("{} of {sent} records acknowledged", history.len());
    assert_eq!(history.len() as u64, sent, "a producer that retries without end is told of every record");
    assert!(sent > cycles, "the load was next to nothing");
    runtime().block_on(check(&address, &history));
    assert_eq!(broker.interrupt(), Some(0));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Sends numbered records until told to stop, then waits for every acknowledgement.
async fn produce(address: &str, seed: u64, stop: &AtomicBool) -> (History, u64) {
    let client = Client::connect(address).await.unwrap();
    let topic = corelog_client::NewTopic::partitions(PARTITIONS).config("segment_bytes", "16MiB");
    client.admin().create_topic(TOPIC, topic).await.unwrap();
    let producer =
        client.producer(TOPIC).acks(Acks::All).delivery_deadline(Duration::from_mins(5)).build().unwrap();
    let mut random = Random(seed ^ 0xABCD);
    let mut history = History::new();
    let (mut number, mut waiting) = (0, std::collections::VecDeque::new());
    while !stop.load(Ordering::Relaxed) {
        let partition = u32::try_from(number % u64::from(PARTITIONS)).unwrap();
        let mut value = format!("{number} ").into_bytes();
        value.resize(value.len() + usize::try_from(random.below(4_000)).unwrap(), b'.');
        let ticket = producer.enqueue(Record::new(value).partition(partition)).await.unwrap();
        waiting.push_back((number, ticket));
        number += 1;
        while waiting.len() > 2_000 {
            let (number, ticket) = waiting.pop_front().unwrap();
            let delivery = ticket.await.unwrap();
            history.insert(number, (delivery.partition, delivery.offset.unwrap()));
        }
    }
    for (number, ticket) in waiting {
        let delivery = ticket.await.unwrap();
        history.insert(number, (delivery.partition, delivery.offset.unwrap()));
    }
    producer.close().await.unwrap();
    (history, number)
}

/// Reads everything back and holds it against the history.
async fn check(address: &str, history: &History) {
    let client = Client::connect(address).await.unwrap();
    let ends = client.admin().list_offsets(TOPIC, Start::Latest).await.unwrap();
    let mut found: HashMap<u64, (u32, u64)> = HashMap::new();
    for end in ends {
        let reader = client.reader(TOPIC, end.partition).from(Start::Earliest).build().unwrap();
        let (mut expected_offset, mut last_number) = (0, None);
        while expected_offset < end.offset {
            let batch = reader.next().await.unwrap().expect("there are records up to the end");
            for record in &batch {
                assert_eq!(record.offset(), expected_offset, "partition {}", end.partition);
                expected_offset += 1;
                let value = record.value().unwrap();
                let text = std::str::from_utf8(value).unwrap();
                let number: u64 = text.split(' ').next().unwrap().parse().unwrap();
                assert!(last_number < Some(number), "record {number} after {last_number:?}");
                last_number = Some(number);
                let before = found.insert(number, (end.partition, record.offset()));
                assert_eq!(before, None, "record {number} is there twice");
            }
        }
    }
    for (number, place) in history {
        assert_eq!(found.get(number), Some(place), "record {number}, acknowledged at {place:?}");
    }
    assert_eq!(found.len(), history.len(), "records that were never sent");
}
