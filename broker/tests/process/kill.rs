//! `kill -9` under load: every acknowledged record is there once, in order, at its acknowledged offset.
//!
//! One idempotent producer with acks=all lives through all kills. It writes what it is about to send and what was
//! acknowledged to a history file of its own, flushed before it sends on; the check knows that file and what the broker
//! gives, nothing else. `KILL_CYCLES` makes the run longer, `KILL_SEED` another one, `KILL_HISTORY` names the file, to keep it.

use crate::support::{Broker, Random, data_folder, path, setting};
use corelog_client::{Acks, Client, NewTopic, Record, Start, Ticket};
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const PARTITIONS: u32 = 4;
const TOPIC: &str = "history";
/// Records announced and sent at a time.
const GROUP: u64 = 256;
/// Records that wait for their acknowledgement before the producer waits too.
const WAITING_MAX: usize = 1_000;
/// Fewer acknowledged records than this in the median cycle are no load under which a kill would mean much.
const CYCLE_RECORDS_MIN: u64 = 500;
/// How long a producer may take to be served again.
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn every_acknowledged_record_survives_kills_once_and_in_order() {
    let cycles = setting("KILL_CYCLES", 20);
    let seed = setting("KILL_SEED", 1);
    println!("{cycles} cycles, seed {seed}");
    let folder = data_folder();
    let history = std::env::var_os("KILL_HISTORY").map_or_else(|| path(&folder, "history"), PathBuf::from);
    let data = path(&folder, "data");
    let mut broker = Broker::dev(&data, 0, 1);
    let (address, port) = (broker.address.clone(), broker.port());
    let progress = Arc::<Progress>::default();
    let producing = std::thread::spawn({
        let (progress, address, history) = (Arc::clone(&progress), address.clone(), history.clone());
        move || runtime().block_on(produce(&address, seed, &history, &progress))
    });
    let mut random = Random(seed);
    let (mut by_cycle, mut before) = (Vec::new(), 0);
    for cycle in 0..cycles {
        // One kill in four comes whenever it comes, also before anything was acknowledged again.
        if cycle % 4 != 3 {
            progress.wait_beyond(before);
        }
        // Not to wait for anything, but to have the kill at a random moment of whatever goes on.
        std::thread::sleep(Duration::from_millis(random.below(300)));
        broker.kill();
        let acknowledged = progress.acknowledged();
        by_cycle.push(acknowledged - before);
        before = acknowledged;
        broker = Broker::dev(&data, port, 1);
        assert!(broker.said.contains("recovered"), "{}", broker.said);
    }
    progress.stop();
    producing.join().unwrap();
    by_cycle.sort_unstable();
    let (least, median) = (by_cycle[0], by_cycle[by_cycle.len() / 2]);
    let checked = runtime().block_on(check(&address, &history));
    println!(
        "\n{checked} records acknowledged, each found once; in a cycle at least {least}, {median} in the median"
    );
    assert!(
        median >= CYCLE_RECORDS_MIN,
        "the load was next to nothing: {median} records in the median cycle"
    );
    assert_eq!(broker.interrupt(), Some(0));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// What the producer tells the one who kills.
#[derive(Default)]
struct Progress {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    acknowledged: u64,
    stopped: bool,
}

impl Progress {
    /// Records whose acknowledgement is in the history file.
    fn acknowledged(&self) -> u64 {
        self.state.lock().unwrap().acknowledged
    }

    fn wait_beyond(&self, acknowledged: u64) {
        let state = self.state.lock().unwrap();
        let waited =
            self.changed.wait_timeout_while(state, PATIENCE, |state| state.acknowledged <= acknowledged);
        assert!(!waited.unwrap().1.timed_out(), "nothing was acknowledged for {PATIENCE:?}");
    }

    /// Adds acknowledged records. Whether to go on.
    fn add(&self, acknowledged: u64) -> bool {
        let mut state = self.state.lock().unwrap();
        state.acknowledged += acknowledged;
        self.changed.notify_all();
        !state.stopped
    }

    fn stop(&self) {
        self.state.lock().unwrap().stopped = true;
    }
}

/// The producer's own memory: a line `sending FIRST END` before records leave, a line `acked NUMBER PARTITION OFFSET` for
/// each acknowledgement.
struct History {
    file: File,
    lines: String,
}

impl History {
    fn acknowledged(&mut self, number: u64, partition: u32, offset: u64) {
        writeln!(self.lines, "acked {number} {partition} {offset}").unwrap();
    }

    fn sending(&mut self, first: u64, end: u64) {
        writeln!(self.lines, "sending {first} {end}").unwrap();
    }

    /// Returns when everything said is on the disk.
    fn flush(&mut self) {
        self.file.write_all(self.lines.as_bytes()).unwrap();
        self.file.sync_data().unwrap();
        self.lines.clear();
    }
}

/// Sends numbered records until told to stop, then waits for every acknowledgement.
async fn produce(address: &str, seed: u64, history: &Path, progress: &Progress) {
    let client = Client::connect(address).await.unwrap();
    let topic = NewTopic::partitions(PARTITIONS).config("segment_bytes", "16MiB");
    client.admin().create_topic(TOPIC, topic).await.unwrap();
    let producer =
        client.producer(TOPIC).acks(Acks::All).delivery_deadline(Duration::from_mins(5)).build().unwrap();
    let mut history = History { file: File::create(history).unwrap(), lines: String::new() };
    let mut random = Random(seed ^ 0xABCD);
    let (mut number, mut waiting) = (0, VecDeque::<(u64, Ticket)>::new());
    loop {
        // All that is known already, and as many more as are too many.
        let mut acknowledged = 0;
        while let Some((first, ticket)) = waiting.pop_front() {
            let delivery = match ticket.try_result() {
                Some(delivery) => delivery.unwrap(),
                None if waiting.len() >= WAITING_MAX => ticket.await.unwrap(),
                None => {
                    waiting.push_front((first, ticket));
                    break;
                }
            };
            history.acknowledged(first, delivery.partition, delivery.offset.unwrap());
            acknowledged += 1;
        }
        history.sending(number, number + GROUP);
        history.flush();
        if !progress.add(acknowledged) {
            break;
        }
        for _ in 0..GROUP {
            let partition = u32::try_from(number % u64::from(PARTITIONS)).unwrap();
            let mut value = format!("{number} ").into_bytes();
            // Mostly small: what a long run sends has to fit into the disk budget of `dev`.
            let padding_max = if random.below(8) == 0 { 4_000 } else { 300 };
            value.resize(value.len() + usize::try_from(random.below(padding_max)).unwrap(), b'.');
            let ticket = producer.enqueue(Record::new(value).partition(partition)).await.unwrap();
            waiting.push_back((number, ticket));
            number += 1;
        }
        // The client's driver has this thread too.
        tokio::task::yield_now().await;
    }
    for (number, ticket) in waiting {
        let delivery = ticket.await.unwrap();
        history.acknowledged(number, delivery.partition, delivery.offset.unwrap());
    }
    history.flush();
    producer.close().await.unwrap();
}

/// What a history file says: the end of the numbers that were sent, and partition and offset of the acknowledged ones.
fn read_history(path: &Path) -> (u64, HashMap<u64, (u32, u64)>) {
    let text = std::fs::read_to_string(path).unwrap();
    let (mut sent, mut acknowledged) = (0, HashMap::new());
    for line in text.lines() {
        let (what, numbers) = line.split_once(' ').unwrap();
        let numbers: Vec<u64> = numbers.split(' ').map(|number| number.parse().unwrap()).collect();
        match (what, numbers.as_slice()) {
            ("sending", &[first, end]) => {
                assert_eq!(first, sent, "the history has a gap");
                sent = end;
            }
            ("acked", &[number, partition, offset]) => {
                assert!(number < sent, "record {number} was acknowledged and never sent");
                let place = (u32::try_from(partition).unwrap(), offset);
                assert_eq!(acknowledged.insert(number, place), None, "record {number} acknowledged twice");
            }
            _ => panic!("a line of the history means nothing: {line}"),
        }
    }
    (sent, acknowledged)
}

/// Reads everything back and holds it against the history file. Gives the number of acknowledged records.
async fn check(address: &str, history: &Path) -> usize {
    let (sent, acknowledged) = read_history(history);
    let client = Client::connect(address).await.unwrap();
    let ends = client.admin().list_offsets(TOPIC, Start::Latest).await.unwrap();
    assert_eq!(ends.len(), PARTITIONS as usize);
    let mut found = 0;
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
                assert!(number < sent, "record {number} was never sent");
                // Numbers rise within a partition, so none is there twice.
                assert!(last_number < Some(number), "record {number} after {last_number:?}");
                last_number = Some(number);
                assert_eq!(u64::from(end.partition), number % u64::from(PARTITIONS));
                // The producer waited for every acknowledgement, so there is no record without one.
                let place = (end.partition, record.offset());
                assert_eq!(acknowledged.get(&number), Some(&place), "record {number} is at {place:?}");
                found += 1;
            }
        }
    }
    assert_eq!(found, acknowledged.len(), "acknowledged records are missing");
    found
}
