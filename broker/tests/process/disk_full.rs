//! A broker on a file system that becomes full: producers are refused with what to do, readers and everything
//! acknowledged are left alone, and when there is room again it goes on without a restart.
//!
//! The file system is a small one of its own, which only root may mount; anybody else is told that the test was skipped.

use crate::support::{Broker, Random, data_folder};
use crate::wire::{batch, greeted, produce_frame, produced_row};
use corelog_client::{Client, ErrorCode, NewTopic, Record};
use corelog_wire::ids::TopicPartition;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// The journal of a `dev` broker takes 64 MiB of it, the margin 16.
const DISK_MIB: u64 = 256;
/// What somebody else has taken of it.
const BALLAST_MIB: u64 = 64;
/// Much more than the file system holds.
const RECORDS_MAX: u64 = 2 * DISK_MIB;
/// How long the broker may take to see that there is room.
const PATIENCE: Duration = Duration::from_secs(30);

struct SmallDisk {
    mount: PathBuf,
    _folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new() -> Option<Self> {
        let folder = data_folder();
        let (image, mount) = (folder.path().join("image"), folder.path().join("mount"));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(DISK_MIB * MIB).unwrap();
        let ran = |program: &str, first: &[&str], rest: &[&Path]| {
            Command::new(program).args(first).args(rest).output().is_ok_and(|output| output.status.success())
        };
        // Without a reserve for root, under which a file system that is full for others is not full for a test.
        let mounted = rustix::process::geteuid().is_root()
            && ran("mkfs.ext4", &["-q", "-F", "-m", "0"], &[&image])
            && ran("mount", &["-o", "loop"], &[&image, &mount]);
        if !mounted {
            // Past the capture of what a test prints: a test that did nothing must not look like one that passed.
            let said = "\nSKIPPED: a full file system needs root, mkfs.ext4 and a loop device\n";
            std::io::stderr().write_all(said.as_bytes()).unwrap();
        }
        mounted.then_some(Self { mount, _folder: folder })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let ended = Command::new("umount").arg("--lazy").arg(&self.mount).status();
        if !ended.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.mount.display());
        }
    }
}

#[test]
fn a_full_disk_refuses_producers_keeps_what_was_acknowledged_and_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::new() else { return };
    let ballast = disk.mount.join("ballast");
    let file = std::fs::File::create(&ballast).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, BALLAST_MIB * MIB).unwrap();
    drop(file);
    let data = disk.mount.join("data");
    let broker = Broker::dev(&data, 0, 1);
    let tp = topic(&broker, "bulk");

    let mut acknowledged = produce_until_refused(&broker, 1);
    println!("{} MiB acknowledged beside the ballast", acknowledged.len() as u64 / MIB);
    assert_eq!(broker.metric("corelog_shard_disk_full{shard=\"0\"}"), 1);
    refused_in_so_many_words(&broker, tp);
    is_there(&broker, &acknowledged);

    // A producer that is at it while room is made needs nobody's help, nor does the broker.
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| broker.run(&["produce", "bulk", "--output", "json"], b"patient\n"));
        refused_in_so_many_words(&broker, tp);
        std::fs::remove_file(&ballast).unwrap();
        let output = patient.join().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert_eq!(output.stdout.split(|byte| *byte == b'\n').count(), 2, "one line: acknowledged");
    });
    acknowledged.extend_from_slice(b"patient\n");
    let more = produce_until_refused(&broker, 2);
    assert!(more.len() as u64 >= BALLAST_MIB / 2 * MIB, "only {} bytes into the room made", more.len());
    acknowledged.extend_from_slice(&more);
    is_there(&broker, &acknowledged);

    // Neither a crash nor a start needs room.
    let port = broker.port();
    broker.kill();
    let broker = Broker::dev(&data, port, 1);
    assert!(broker.said.contains("recovered"), "{}", broker.said);
    is_there(&broker, &acknowledged);

    // An operator makes room.
    topic(&broker, "other");
    broker.succeed(&["topic", "delete", "bulk"], b"");
    let again = broker.run(&["produce", "other"], b"again\n");
    assert_eq!(again.status.code(), Some(0), "{}", String::from_utf8_lossy(&again.stderr));
    let began = Instant::now();
    while broker.metric("corelog_shard_disk_full{shard=\"0\"}") == 1 {
        assert!(began.elapsed() < PATIENCE, "the broker still thinks that the disk is full");
    }
    assert_eq!(broker.succeed(&["consume", "other", "--until-end"], b""), b"again\n");
    assert_eq!(broker.interrupt(), Some(0));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn topic(broker: &Broker, name: &str) -> TopicPartition {
    let id = runtime().block_on(async {
        let client = Client::connect(&broker.address).await.unwrap();
        let topic = NewTopic::partitions(1).config("segment_bytes", "16MiB");
        client.admin().create_topic(name, topic).await.unwrap()
    });
    TopicPartition::new(id, 0)
}

/// Sends mebibytes one after the other, until one is refused for good; gives those that were acknowledged.
fn produce_until_refused(broker: &Broker, seed: u64) -> Vec<u8> {
    runtime().block_on(async {
        let client = Client::connect(&broker.address).await.unwrap();
        // Longer than a broker that could make room by destaging would need.
        let producer = client.producer("bulk").delivery_deadline(Duration::from_secs(5)).build().unwrap();
        let (mut random, mut acknowledged) = (Random(seed), Vec::new());
        for _ in 0..RECORDS_MAX {
            let value: Vec<u8> = (0..MIB / 8).flat_map(|_| random.next().to_le_bytes()).collect();
            match producer.send(Record::new(value.clone())).await {
                Ok(_) => acknowledged.extend_from_slice(&value),
                Err(error) => {
                    assert_eq!(error.code(), Some(ErrorCode::DiskFull), "{error}");
                    assert!(error.help().contains("delete records or raise"), "{}", error.help());
                    return acknowledged;
                }
            }
        }
        panic!("{RECORDS_MAX} MiB fit into a file system of {DISK_MIB}");
    })
}

/// The broker's own answer to a produce: at once, typed, and with what to do.
fn refused_in_so_many_words(broker: &Broker, tp: TopicPartition) {
    let mut stream = greeted(&broker.address);
    stream.write_all(&produce_frame(tp, &batch(tp, b"one more"))).unwrap();
    let row = produced_row(&mut stream);
    assert_eq!(row.error, ErrorCode::DiskFull, "{}", row.message);
    assert!(row.message.contains("free room"), "{}", row.message);
}

fn is_there(broker: &Broker, acknowledged: &[u8]) {
    let back = broker.succeed(&["consume", "bulk", "--from", "earliest", "--until-end"], b"");
    assert!(back == acknowledged, "{} bytes came back of {}", back.len(), acknowledged.len());
}
