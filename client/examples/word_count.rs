//! Counts the words of a file by way of a topic: each word is sent under itself as the key, so that all occurrences
//! of a word are in one partition; then every partition is read and counted.
//!
//! `cargo run -p corelog-client --example word_count FILE`, with a broker at `CORELOG_BOOTSTRAP` (127.0.0.1:9640 unless
//! said otherwise; `corelog dev` starts one).

use std::collections::BTreeMap;

use corelog_client::{Client, Compression, Error, NewTopic, RecordRef, Start};

/// Words sent at once.
const CHUNK: usize = 10_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bootstrap = std::env::var("CORELOG_BOOTSTRAP").unwrap_or_else(|_| "127.0.0.1:9640".to_owned());
    let file = std::env::args().nth(1).ok_or("which file? word_count FILE")?;
    let text = String::from_utf8_lossy(&std::fs::read(&file)?).to_lowercase();
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();

    let client = Client::connect(&bootstrap).await?;
    let topic = format!("words-{}", std::process::id());
    client.admin().create_topic(&topic, NewTopic::partitions(4)).await?;
    let counted = count(&client, &topic, &words).await;
    client.admin().delete_topic(&topic).await?;

    let counts = counted?;
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for word in &words {
        *expected.entry((*word).to_owned()).or_default() += 1;
    }
    if counts != expected {
        return Err("the topic counts otherwise than the file".into());
    }
    let mut by_count: Vec<_> = counts.into_iter().collect();
    by_count.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (word, count) in by_count.iter().take(20) {
        println!("{count:8} {word}");
    }
    println!("{} words, {} of them different", words.len(), by_count.len());
    Ok(())
}

async fn count(client: &Client, topic: &str, words: &[&str]) -> Result<BTreeMap<String, u64>, Error> {
    let producer = client.producer(topic).compression(Compression::Lz4).build()?;
    for chunk in words.chunks(CHUNK) {
        let records =
            chunk.iter().map(|word| RecordRef { key: Some(word.as_bytes()), ..RecordRef::new(b"1") });
        let records: Vec<RecordRef<'_>> = records.collect();
        producer.enqueue_all(&records).await?;
    }
    producer.close().await?;

    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let reader = client.topic_reader(topic).from(Start::Earliest).build()?;
    let mut left = words.len();
    while left > 0 {
        let Some(batch) = reader.next().await? else { break };
        for record in &batch {
            let word = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
            *counts.entry(word).or_default() += 1;
        }
        left = left.saturating_sub(batch.len());
    }
    Ok(counts)
}
