//! Compaction in bad weather: whatever a crash takes, a reader of everything knows what was produced last.

#![expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "counts of a few thousand")]
#![expect(clippy::unwrap_used, reason = "a world that is not as it should be ends the test")]

use corelog_core::segment::{folder_name, parse_file_name};
use corelog_core::shard::{COMPACTED_USES, Input, Note, RequestId};
use corelog_core::topic::CleanupPolicy;
use corelog_sim::disk::CutStyle;
use corelog_sim::rig::Rig;
use corelog_sim::rng::Rng;
use corelog_sim::world::SECONDS;
use corelog_wire::batch::BatchFields;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{Offset, ProducerEpoch, ProducerId, Sequence};
use corelog_wire::records::{Records, RecordsBuilder};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

const RING: u64 = 1 << 20;
const STYLES: [CutStyle; 4] = [CutStyle::AllOld, CutStyle::AllNew, CutStyle::OldOrNew, CutStyle::Torn];

/// Key and value; a tombstone has none.
type Content = (Vec<u8>, Option<Vec<u8>>);

struct World {
    rig: Rig,
    rng: Rng,
    /// By offset: one producer sends one record after the other, and again after a crash.
    produced: Vec<Content>,
    acknowledged: usize,
    keys: u64,
    start: u64,
    rounds: u64,
    interrupted: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0xc0_ffee);
        let mut rig = Rig::new(seed, RING, 1);
        rig.topic.cleanup_policy = CleanupPolicy::Compact;
        rig.topic.delete_retention_ms = rng.pick(&[0, 2_000, 86_400_000]);
        rig.topic.min_compaction_lag_ms = rng.pick(&[0, 0, 3_000]);
        rig.topic.segment_bytes = rng.pick(&[16 << 10, 64 << 10]);
        rig.configure();
        let keys = rng.pick(&[1, 5, 40, 400]);
        Self { rig, rng, produced: Vec::new(), acknowledged: 0, keys, start: 0, rounds: 0, interrupted: 0 }
    }

    /// Sends so many records, the ones first that nobody has acknowledged yet.
    fn produce(&mut self, records: usize) {
        for place in self.acknowledged..self.acknowledged + records {
            if place == self.produced.len() {
                let key = self.rng.below(self.keys).to_string().into_bytes();
                let mut value = vec![0; self.rng.between(10, 3_000) as usize];
                self.rng.fill(&mut value);
                self.produced.push((key, self.rng.percent(80).then_some(value)));
            }
            let (key, value) = &self.produced[place];
            let mut builder = RecordsBuilder::with_capacity(0);
            builder.push(0, 0, Some(key), value.as_deref(), &[]).unwrap();
            let fields = BatchFields {
                producer_id: ProducerId::new(1),
                producer_epoch: ProducerEpoch::new(0),
                base_sequence: Sequence::new(place as i32),
                ..BatchFields::plain(1, self.rig.wall_ms())
            };
            let batch = builder.into_batch(&fields, self.rig.tp(0));
            let request = self.rig.produce(0, &batch);
            let row = loop {
                if let Some(row) = self.rig.produced(request) {
                    break row;
                }
                assert!(self.rig.complete_next(), "a produce without an answer");
                self.rig.turn();
            };
            assert_eq!(row.error, ErrorCode::None, "record {place}");
            assert_eq!(row.base_offset.get(), place as u64);
            self.acknowledged = place + 1;
        }
    }

    /// Something happens, and some of what is under way goes on.
    fn step(&mut self) {
        match self.rng.below(10) {
            0..=5 => {
                let records = self.rng.between(1, 30) as usize;
                self.produce(records);
            }
            6..=7 => self.rig.jump(self.rng.between(1, 3 * SECONDS)),
            8 if self.rng.percent(20) => self.delete(),
            _ => self.rig.turn(),
        }
        for _ in 0..self.rng.below(40) {
            if !self.rig.complete_next() {
                break;
            }
            self.rig.turn();
        }
        self.count_rounds();
    }

    fn count_rounds(&mut self) {
        let notes = self.rig.take_notes();
        self.rounds += notes.iter().filter(|note| matches!(note, Note::Compacted { .. })).count() as u64;
    }

    /// Moves the log start into the middle of what there is.
    fn delete(&mut self) {
        let to = self.rng.between(self.start, self.acknowledged as u64);
        let rows = vec![(self.rig.tp(0), Offset::new(to))];
        self.rig.tell(Input::DeleteRecords { request: RequestId(u64::MAX), rows });
        self.rig.settle();
        self.start = self.start.max(to);
    }

    fn crash(&mut self) {
        let tp = self.rig.tp(0);
        let kept: Vec<_> = self.rig.hands().shard().files().flat_map(|(_, files)| files).collect();
        let unnamed = |path: String| {
            let name = path.rsplit('/').next().unwrap_or_default();
            parse_file_name(name).is_some_and(|(base, segment_use)| {
                let named = kept.iter().any(|id| (id.base, id.segment_use) == (base, segment_use));
                segment_use >= COMPACTED_USES && !named
            })
        };
        let files = self.rig.disk.list(&format!("topics/{}", folder_name(tp)));
        self.interrupted += u64::from(files.into_iter().any(unnamed));
        if self.rng.percent(30) {
            self.rig.kill();
        } else {
            self.rig.cut(self.rng.pick(&STYLES));
        }
        self.rig.boot();
    }

    /// Reads everything and holds it against what was produced.
    fn check(&mut self, seed: u64) {
        let snapshot = self.rig.hands().shard().describe(self.rig.tp(0)).unwrap();
        let (start, end) = (snapshot.log_start.get(), snapshot.log_end.get() as usize);
        assert!(
            end >= self.acknowledged,
            "SEED={seed}: {} were acknowledged, {end} are there",
            self.acknowledged
        );
        assert!(start >= self.start, "SEED={seed}: deleted records are back");
        let mut known = BTreeMap::new();
        for batch in self.rig.read_batches(0, start).unwrap() {
            let base = batch.stamp().unwrap().base_offset.get();
            for record in Records::new(batch.body(), batch.header().record_count) {
                let record = record.unwrap();
                let offset = base + u64::from(record.offset_delta);
                if offset < start {
                    continue;
                }
                let content = (record.key.unwrap().to_vec(), record.value.map(|value| value.to_vec()));
                assert_eq!(
                    content, self.produced[offset as usize],
                    "SEED={seed}: offset {offset} is another"
                );
                known.insert(content.0, content.1);
            }
        }
        let mut truth: BTreeMap<_, _> = self.produced[start as usize..end].iter().cloned().collect();
        truth.retain(|_, value| value.is_some());
        known.retain(|_, value| value.is_some());
        assert_eq!(known, truth, "SEED={seed}: up to {end}");
    }
}

#[test]
fn no_crash_loses_the_newest_record_of_a_key_or_brings_an_old_one_back() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2_000);
    let (next, rounds, interrupted) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let run = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            let mut world = World::new(seed);
            for _ in 0..6 {
                for _ in 0..world.rng.between(1, 25) {
                    world.step();
                }
                world.crash();
                world.check(seed);
            }
            world.rig.wait(100 * SECONDS);
            world.check(seed);
            world.count_rounds();
            rounds.fetch_add(world.rounds, Ordering::Relaxed);
            interrupted.fetch_add(world.interrupted, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(run))));
    let (rounds, interrupted) = (rounds.into_inner(), interrupted.into_inner());
    println!("{seeds} seeds, {rounds} rounds, {interrupted} crashes in the middle of a file");
    assert!(rounds >= seeds && interrupted >= seeds / 10);
}
