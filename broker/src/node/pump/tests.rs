//! A shard with its hands on real files: what was acknowledged is there, byte for byte, wherever it went.
//!
//! The files are in the temporary folder, which must be on a disk: set TMPDIR if it is memory.

use super::Pump;
use crate::disk::{DiskSnapshot, Folders, Queues};
use crate::net::FetchReady;
use crate::node::layout::DataFolder;
use crate::node::shard::{Replies, ShardHandle};
use crate::rt;
use bytes::Bytes;
use corelog_core::recovery::Report;
use corelog_core::shard::{Fetch, FetchRow, Input, Produce, ProduceRow, RequestId, ShardConfig};
use corelog_core::topic::{TopicConfig, TopicOverrides};
use corelog_wire::batch::{BatchFields, BatchLimits, CheckedBatch, STAMP_BYTES};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{LeaderEpoch, Offset, ShardId, TopicId, TopicPartition};
use corelog_wire::message::{Acks, Answer, At, ListOffsetsRow};
use corelog_wire::records::RecordsBuilder;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_mins(2);
const TOPIC: TopicId = TopicId::from_bytes([9; 16]);
const MIB: u64 = 1 << 20;

pub(crate) fn tp(partition: u32) -> TopicPartition {
    TopicPartition::new(TOPIC, partition)
}

fn config() -> ShardConfig {
    ShardConfig {
        shard: ShardId::new(0),
        ring_bytes: MIB,
        tail_cache_bytes: 128 << 10,
        disk_bytes_max: 1 << 30,
        recycled_bytes_max: 64 * MIB,
        prewrite: false,
    }
}

/// A batch whose bytes follow from its numbers.
fn batch(partition: u32, number: u32, bytes: usize) -> Bytes {
    let mut state = u64::from(partition) << 32 | u64::from(number) | 1 << 63;
    let value: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    })
    .take(bytes)
    .collect();
    let mut body = RecordsBuilder::with_capacity(0);
    body.push(0, 0, None, Some(&value), &[]).unwrap();
    body.into_batch(&BatchFields::plain(1, i64::from(number)), tp(partition))
}

/// What the shard answered.
#[derive(Default)]
struct Heard {
    answers: RefCell<BTreeMap<RequestId, Answer>>,
    fetched: RefCell<BTreeMap<RequestId, FetchReady>>,
    some: rt::Signal,
    requests: Cell<u64>,
}

impl Replies for Heard {
    fn answer(&self, request: RequestId, answer: Answer) {
        self.answers.borrow_mut().insert(request, answer);
        self.some.notify();
    }

    fn fetched(&self, ready: FetchReady) {
        self.fetched.borrow_mut().insert(ready.request, ready);
        self.some.notify();
    }
}

/// A shard under test.
#[derive(Clone)]
struct Bench {
    handle: ShardHandle,
    heard: Rc<Heard>,
    report: Report,
}

impl Bench {
    fn lead(&self, partition: u32, epoch: u32, segment_bytes: u64) {
        let mut config = TopicConfig::resolve(&TopicOverrides::default(), &TopicOverrides::default(), 1);
        config.segment_bytes = segment_bytes;
        config.record_bytes_max = config.batch_bytes_max;
        config.retention_ms = None;
        self.handle.push(Input::Lead { tp: tp(partition), epoch: LeaderEpoch::new(epoch), config });
    }

    fn request(&self) -> RequestId {
        self.heard.requests.set(self.heard.requests.get() + 1);
        RequestId(self.heard.requests.get())
    }

    fn produce(&self, partition: u32, bytes: Bytes) -> RequestId {
        let request = self.request();
        let limits = BatchLimits { batch_bytes_max: corelog_core::limits::BATCH_BYTES_MAX };
        let batch = CheckedBatch::check(bytes, tp(partition), &limits).unwrap();
        let rows = vec![ProduceRow { tp: tp(partition), batch: Ok(batch) }];
        let deadline = Duration::from_secs(30);
        self.handle.push(Input::Produce(Produce { request, acks: Acks::All, deadline, rows }));
        request
    }

    async fn answer(&self, request: RequestId) -> Answer {
        loop {
            let answer = self.heard.answers.borrow_mut().remove(&request);
            match answer {
                Some(answer) => return answer,
                None => self.heard.some.wait().await,
            }
        }
    }

    async fn produced(&self, request: RequestId) -> (ErrorCode, u64) {
        match self.answer(request).await {
            Answer::Produce(answer) => (answer.rows[0].error, answer.rows[0].base_offset.get()),
            other => panic!("{other:?}"),
        }
    }

    /// Appends batches `numbers` of a partition, several under way, and checks their offsets.
    async fn append(&self, partition: u32, numbers: std::ops::Range<u32>, bytes: impl Fn(u32) -> usize) {
        let mut requests = std::collections::VecDeque::new();
        for number in numbers {
            requests.push_back((number, self.produce(partition, batch(partition, number, bytes(number)))));
            if requests.len() > 7 {
                let (number, request) = requests.pop_front().unwrap();
                self.appended(number, request).await;
            }
        }
        for (number, request) in requests {
            self.appended(number, request).await;
        }
    }

    async fn appended(&self, number: u32, request: RequestId) {
        let produced = self.produced(request).await;
        assert_eq!(
            produced,
            (ErrorCode::None, u64::from(number)),
            "{:?} {:?}",
            self.handle,
            self.handle.snapshot()
        );
    }

    async fn fetch(&self, partition: u32, offset: u64, bytes_max: u32) -> FetchReady {
        let request = self.request();
        let row = FetchRow { tp: tp(partition), offset: Offset::new(offset), bytes_max, leader_epoch: None };
        let wait_max = Duration::from_secs(10);
        self.handle.push(Input::Fetch(Fetch {
            request,
            wait_max,
            bytes_min: 1,
            bytes_max,
            rows: vec![row],
            filter: corelog_wire::keys::TagFilter::ALL,
        }));
        loop {
            let ready = self.heard.fetched.borrow_mut().remove(&request);
            match ready {
                Some(ready) => return ready,
                None => self.heard.some.wait().await,
            }
        }
    }

    /// Reads a partition from `from` to `end` and holds every byte against what was produced.
    async fn verify(
        &self,
        partition: u32,
        from: u32,
        end: u32,
        bytes_max: u32,
        bytes: impl Fn(u32) -> usize,
    ) {
        let mut number = from;
        while number < end {
            let ready = self.fetch(partition, u64::from(number), bytes_max).await;
            let row = &ready.rows[0];
            assert_eq!(row.error, ErrorCode::None, "{}", row.message);
            let payload: Vec<u8> = row.slices.iter().flat_map(|slice| slice.as_ref().to_vec()).collect();
            assert!(!payload.is_empty(), "nothing at offset {number} of partition {partition}");
            let mut rest = &payload[..];
            while !rest.is_empty() {
                let expected = batch(partition, number, bytes(number));
                let (stored, more) = rest.split_at(expected.len());
                assert_eq!(stored[STAMP_BYTES..], expected[STAMP_BYTES..], "batch {number}");
                assert_eq!(stored[..8], u64::from(number).to_le_bytes(), "base offset of batch {number}");
                rest = more;
                number += 1;
            }
        }
    }

    async fn list(&self, partition: u32, at: At) -> (ErrorCode, u64) {
        let request = self.request();
        self.handle
            .push(Input::ListOffsets { request, rows: vec![ListOffsetsRow { tp: tp(partition), at }] });
        match self.answer(request).await {
            Answer::ListOffsets(answer) => (answer.rows[0].error, answer.rows[0].offset.get()),
            other => panic!("{other:?}"),
        }
    }

    fn disk(&self) -> DiskSnapshot {
        self.handle.disk_snapshot()
    }
}

/// Starts a shard on an executor of its own, runs `main` and stops the shard without draining it, as a crash would
/// that spares what is in the kernel.
fn run<Task: Future<Output = ()> + 'static>(
    data: &Path,
    config: ShardConfig,
    main: impl Fn(Bench) -> Task + Clone + Send + 'static,
) {
    let folder = DataFolder::open(data, 1, &config).unwrap();
    let folders = folder.folders(0);
    let running = rt::start(&rt::Options::default(), vec![folders], move |context, folders: Folders| {
        let main = main.clone();
        async move {
            let queues =
                Queues { cold: context.cold, background: context.background, compaction: context.compaction };
            let (pump, report) =
                Pump::open(folders, config, context.ring, queues, rt::Clock::new()).await.unwrap();
            let (handle, heard) = (pump.handle(), Rc::new(Heard::default()));
            handle.reply_to(Rc::<Heard>::clone(&heard));
            let ended = Rc::new(rt::Signal::default());
            let ended_too = Rc::clone(&ended);
            rt::spawn(async move {
                pump.run().await.unwrap();
                ended_too.notify();
            });
            main(Bench { handle: handle.clone(), heard, report }).await;
            assert_eq!(handle.shard.borrow().broken_invariant(), None);
            handle.stop();
            ended.wait().await;
        }
    })
    .unwrap();
    let (done, ended) = channel();
    std::thread::spawn(move || done.send(running.join().map_err(|error| error.to_string())));
    ended.recv_timeout(PATIENCE).expect("the shard hangs").unwrap();
}

fn small(number: u32) -> usize {
    100 + number as usize % 977
}

#[test]
fn acknowledged_batches_survive_restarts_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), config(), |bench| async move {
        bench.lead(0, 1, MIB);
        bench.lead(1, 1, MIB);
        bench.append(0, 0..100, small).await;
        bench.append(1, 0..10, small).await;
        bench.verify(0, 0, 100, 1 << 20, small).await;
        assert!(bench.disk().tail_reads > 0 && bench.disk().cold_reads == 0);
    });
    for epoch in 2..5 {
        run(folder.path(), config(), move |bench| async move {
            assert_eq!((bench.report.partitions, bench.report.older_slot), (2, false));
            bench.lead(0, epoch, MIB);
            bench.lead(1, epoch, MIB);
            let end = 100 + 10 * (epoch - 2);
            bench.verify(0, 0, end, 4_000, small).await;
            bench.verify(1, 0, 10, 1, small).await;
            bench.append(0, end..end + 10, small).await;
        });
    }
}

#[test]
fn a_ring_goes_round_and_cold_reads_give_what_left_it() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = |number: u32| 1_000 + (number as usize * 7_919) % 30_000;
    run(folder.path(), config(), move |bench| async move {
        bench.lead(0, 1, 2 * MIB);
        bench.lead(1, 1, 2 * MIB);
        bench.append(0, 0..400, bytes).await;
        bench.append(1, 0..5, small).await;
        let snapshot = bench.handle.snapshot();
        assert!(snapshot.journal_head > 5 * config().ring_bytes, "{snapshot:?}");
        assert!(snapshot.tail_bytes < config().ring_bytes, "{snapshot:?}");
        bench.verify(0, 0, 400, 100_000, bytes).await;
        let disk = bench.disk();
        assert!(disk.cold_reads > 10 && disk.extents > 3);
        assert!(disk.cold_file_bytes < 3 * disk.cold_read_bytes);
        // From the middle, backwards and larger than a chunk.
        for from in [399, 250, 3] {
            bench.verify(0, from, 400, 3 << 20, bytes).await;
        }
    });
    run(folder.path(), config(), move |bench| async move {
        bench.lead(0, 2, 2 * MIB);
        bench.verify(0, 0, 400, 64_000, bytes).await;
        bench.append(0, 400..500, bytes).await;
        bench.verify(0, 0, 500, 1 << 20, bytes).await;
        bench.handle.drain().await;
    });
    run(folder.path(), config(), move |bench| async move {
        assert_eq!(bench.report.replayed_batches, 0, "a drained shard replays nothing");
        bench.lead(0, 3, 2 * MIB);
        bench.lead(1, 3, 2 * MIB);
        bench.verify(0, 0, 500, 1 << 20, bytes).await;
        bench.verify(1, 0, 5, 1 << 20, small).await;
    });
}

#[test]
fn a_batch_larger_than_any_chunk_comes_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let config = ShardConfig { ring_bytes: 64 * MIB, ..config() };
    let bytes = |number: u32| if number.is_multiple_of(2) { 7 << 20 } else { 10 };
    run(folder.path(), config, move |bench| async move {
        bench.lead(0, 1, 64 * MIB);
        // Beyond the ring, so that the first of them have left memory.
        bench.append(0, 0..20, bytes).await;
        bench.verify(0, 0, 20, 1 << 20, bytes).await;
        assert!(bench.disk().cold_reads > 0);
        bench.handle.drain().await;
    });
    // The same without commits beside.
    let config = ShardConfig { ring_bytes: 64 * MIB, ..self::config() };
    run(folder.path(), config, move |bench| async move {
        bench.lead(0, 2, 64 * MIB);
        bench.verify(0, 0, 20, 1 << 20, bytes).await;
    });
}

#[test]
fn times_are_found_in_segments() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), config(), |bench| async move {
        bench.lead(0, 1, MIB);
        bench.append(0, 0..300, |_| 10_000).await;
        for number in [0, 1, 77, 150, 299] {
            assert_eq!(
                bench.list(0, At::Timestamp(number)).await,
                (ErrorCode::None, u64::try_from(number).unwrap())
            );
        }
        assert_eq!(bench.list(0, At::Timestamp(300)).await, (ErrorCode::None, 300));
        assert_eq!(bench.list(0, At::Earliest).await, (ErrorCode::None, 0));
    });
}

#[test]
fn a_removed_partition_leaves_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let topics = folder.path().join("topics");
    run(folder.path(), config(), move |bench| {
        let topics = topics.clone();
        async move {
            bench.lead(0, 1, MIB);
            bench.append(0, 0..300, |_| 10_000).await;
            assert!(std::fs::read_dir(&topics).unwrap().count() == 1);
            bench.handle.push(Input::Remove { tp: tp(0) });
            // Entry, proof, files, folder: each takes its time, and the shard says when the first two are over.
            while bench.handle.describe(tp(0)).is_some() {
                rt::sleep(Duration::from_millis(1)).await;
            }
            bench.handle.drain().await;
        }
    });
    // The stop waited for the removals.
    assert_eq!(std::fs::read_dir(folder.path().join("topics")).unwrap().count(), 0);
}

#[test]
fn the_ring_is_written_once_in_full_beside_appends() {
    let folder = tempfile::tempdir().unwrap();
    let config = ShardConfig { ring_bytes: 64 * MIB, prewrite: true, ..config() };
    run(folder.path(), config, |bench| async move {
        bench.lead(0, 1, MIB);
        bench.append(0, 0..500, small).await;
        bench.handle.drain().await;
    });
    run(folder.path(), config, |bench| async move {
        bench.lead(0, 2, MIB);
        bench.verify(0, 0, 500, 1 << 20, small).await;
    });
}

#[test]
fn a_damaged_segment_gives_what_is_sound_and_then_a_typed_error() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), config(), |bench| async move {
        bench.lead(0, 1, 4 * MIB);
        bench.append(0, 0..200, |_| 10_000).await;
        bench.handle.drain().await;
    });
    let partition = folder.path().join("topics").join(corelog_core::segment::folder_name(tp(0)));
    let segment = std::fs::read_dir(partition).unwrap().map(|entry| entry.unwrap().path()).next().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    // In the header of the third batch.
    let third = 4_096 + 2 * batch(0, 0, 10_000).len();
    bytes[third + 40] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    run(folder.path(), config(), |bench| async move {
        bench.lead(0, 2, 4 * MIB);
        let ready = bench.fetch(0, 0, 1 << 20).await;
        let bytes: usize = ready.rows[0].slices.iter().map(crate::net::PayloadSlice::len).sum();
        assert_eq!((ready.rows[0].error, bytes), (ErrorCode::None, 2 * batch(0, 0, 10_000).len()));
        let ready = bench.fetch(0, 2, 1 << 20).await;
        assert_eq!((ready.rows[0].error, ready.rows[0].slices.len()), (ErrorCode::CorruptBatch, 0));
    });
}

#[test]
fn files_that_a_crash_brought_back_are_removed_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    run(folder.path(), config(), |bench| async move {
        bench.lead(0, 1, MIB);
        bench.append(0, 0..300, |_| 10_000).await;
    });
    let partition = folder.path().join("topics").join(corelog_core::segment::folder_name(tp(0)));
    let names = || {
        let entries = std::fs::read_dir(&partition).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    // Of a segment that the log has left, of one that another use of its place has replaced, and what is nobody's.
    let strays = [
        "00000000000000000007-00000000.log",
        "00000000000000000007-00000000.idx",
        "00000000000000000000-00000000.idx.tmp",
    ];
    for name in strays.iter().chain(&["notes.txt"]) {
        std::fs::write(partition.join(name), b"stray").unwrap();
    }
    run(folder.path(), config(), |bench| async move {
        bench.lead(0, 2, MIB);
        bench.append(0, 300..400, |_| 10_000).await;
        bench.verify(0, 0, 400, 1 << 20, |_| 10_000).await;
    });
    let after = names();
    assert!(strays.iter().all(|name| !after.contains(std::ffi::OsStr::new(name))), "{after:?}");
    assert!(after.contains(std::ffi::OsStr::new("notes.txt")));
    let logs = |names: &std::collections::BTreeSet<std::ffi::OsString>| {
        names.iter().filter(|name| name.to_string_lossy().ends_with(".log")).cloned().collect::<Vec<_>>()
    };
    assert!(logs(&before).iter().all(|name| after.contains(name)), "{before:?} {after:?}");
}
