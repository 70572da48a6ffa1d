//! Reading by tag: nothing that is asked for is missing, and little else is sent.
//!
//! `TAG_BATCHES` makes a larger topic.

use crate::support::{Broker, Random, data_folder, host_log, path, setting};
use corelog_client::{Client, NewTopic, Record, Start, TAG_HEADER};
use std::collections::BTreeSet;
use std::path::Path;

const TOPIC: &str = "events";
const WANTED: &str = "wanted";
const PARTITIONS: u32 = 4;
const SHARDS: u16 = 2;
/// A record each; more than these would not come into one batch.
const TAGS_PER_BATCH: u64 = 8;

type Place = (u32, u64);

/// Batches of eight records with eight tags, about one in a hundred of which has the tag that is wanted. Gives where the
/// records with it are.
async fn produce(client: &Client) -> BTreeSet<Place> {
    client.admin().ensure_topic(TOPIC, NewTopic::partitions(PARTITIONS)).await.unwrap();
    let producer = client.producer(TOPIC).build().unwrap();
    let log = host_log();
    let mut lines = log.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).cycle();
    let (mut random, mut wanted) = (Random(7), Vec::new());
    for batch in 0..setting("TAG_BATCHES", 8_000) {
        let partition = u32::try_from(batch % u64::from(PARTITIONS)).unwrap();
        let wants = (random.below(100) == 0).then(|| random.below(TAGS_PER_BATCH));
        for record in 0..TAGS_PER_BATCH {
            // No other record of the batch, nor of the batch before it, has the same.
            let other = format!("{}-{record}-{}", batch % 1_000, random.below(1_000));
            let is_wanted = wants == Some(record);
            let tag = if is_wanted { WANTED.to_owned() } else { other };
            let value = lines.next().unwrap().to_vec();
            let record = Record::new(value).partition(partition).header(TAG_HEADER, tag);
            let ticket = producer.enqueue(record).await.unwrap();
            if is_wanted {
                wanted.push(ticket);
            }
        }
    }
    producer.flush().await.unwrap();
    let mut places = BTreeSet::new();
    for ticket in wanted {
        let delivery = ticket.await.unwrap();
        places.insert((delivery.partition, delivery.offset.unwrap()));
    }
    producer.close().await.unwrap();
    places
}

/// Reads all there is with these tags. Gives where the records are, and how many bytes the broker sent.
async fn read(broker: &Broker, tags: &[&str]) -> (BTreeSet<Place>, u64) {
    let sent = || of_all_shards(broker, "network_sent_bytes_total");
    let client = Client::connect(&broker.address).await.unwrap();
    let ends = client.admin().list_offsets(TOPIC, Start::Latest).await.unwrap();
    let before = sent();
    let reader = client.topic_reader(TOPIC).from(Start::Earliest).tags(tags).build().unwrap();
    let mut places = BTreeSet::new();
    let is_at_the_end =
        || ends.iter().all(|end| reader.position(end.partition).is_some_and(|at| at >= end.offset));
    while !is_at_the_end() {
        let taken = tokio::time::timeout(std::time::Duration::from_millis(20), reader.next()).await;
        let Ok(batch) = taken else { continue };
        for record in &batch.unwrap().unwrap() {
            let tag = record.headers().next().unwrap().value.unwrap();
            assert!(tags.is_empty() || tags.iter().any(|asked| asked.as_bytes() == tag), "{tag:?}");
            assert!(places.insert((record.partition(), record.offset())), "{record:?} came twice");
        }
    }
    reader.close();
    (places, sent() - before)
}

fn of_all_shards(broker: &Broker, name: &str) -> u64 {
    (0..SHARDS).map(|shard| broker.metric(&format!("corelog_{name}{{shard=\"{shard}\"}}"))).sum()
}

fn check(broker: &Broker, wanted: &BTreeSet<Place>, what: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (all, bytes) = runtime.block_on(read(broker, &[]));
    let (found, bytes_by_tag) = runtime.block_on(read(broker, &[WANTED]));
    println!(
        "{what}: {} of {} records wanted; {bytes} bytes sent for all, {bytes_by_tag} by tag: {} times less",
        wanted.len(),
        all.len(),
        bytes / bytes_by_tag
    );
    assert_eq!(all.len() as u64, setting("TAG_BATCHES", 8_000) * TAGS_PER_BATCH);
    assert_eq!(found, *wanted);
    assert!(bytes >= 20 * bytes_by_tag);
    let (none, _) = runtime.block_on(read(broker, &["never used"]));
    assert!(none.is_empty());
}

#[test]
fn a_tag_is_read_whole_from_memory_and_from_segments_at_a_twentieth_of_the_bytes() {
    let folder = data_folder();
    let data: &Path = &path(&folder, "data");
    let broker = Broker::dev(data, 0, SHARDS);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let client = runtime.block_on(Client::connect(&broker.address)).unwrap();
    let wanted = runtime.block_on(produce(&client));
    drop(client);
    check(&broker, &wanted, "in memory");
    let misses = || of_all_shards(&broker, "tail_cache_misses_total");
    let before = misses();
    // More than memory holds of other records. Each shard has some of them.
    broker.succeed(&["topic", "create", "filler", "--partitions", "16"], b"");
    let line = [vec![b'x'; 99_999], vec![b'\n']].concat();
    broker.succeed(&["produce", "filler"], &line.repeat(1_700));
    check(&broker, &wanted, "from segments");
    assert!(misses() > before);
    assert_eq!(broker.interrupt(), Some(0));
}

#[test]
fn tags_by_command() {
    let folder = data_folder();
    let broker = Broker::dev(&path(&folder, "data"), 0, 1);
    broker.succeed(&["topic", "create", "orders"], b"");
    broker.succeed(&["produce", "orders", "--tag", "eu", "--tag", "card"], b"one\ntwo\n");
    broker.succeed(&["produce", "orders", "--tag", "us"], b"three\n");
    broker.succeed(&["produce", "orders"], b"four\n");
    let read = |more: &[&str]| {
        let args = [&["consume", "orders", "--until-end"], more].concat();
        String::from_utf8(broker.succeed(&args, b"")).unwrap()
    };
    assert_eq!(read(&["--tag", "card", "--format", "%v%h"]), "one\ntag=eu,tag=cardtwo\ntag=eu,tag=card");
    assert_eq!(read(&["--tag", "us", "--tag", "eu"]), "one\ntwo\nthree\n");
    assert_eq!(read(&["--tag", "asia"]), "");
    assert_eq!(read(&["--tag", "us", "--group", "billing"]), "three\n");
    let described =
        String::from_utf8(broker.succeed(&["group", "describe", "billing", "--output", "json"], b""));
    let described: serde_json::Value = serde_json::from_str(&described.unwrap()).unwrap();
    assert_eq!(described["partitions"][0]["lag_records"], 0, "what was left out counts as read");
    let many: Vec<String> = (0..17).map(|tag| format!("--tag={tag}")).collect();
    let many = [vec!["consume", "orders"], many.iter().map(String::as_str).collect()].concat();
    let refused = broker.run(&many, b"");
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("at most 16 tags"));
    assert_eq!(broker.interrupt(), Some(0));
}
