//! Random logs against a map: what a round leaves, and what it must not touch.

use super::*;
use crate::limits::BLOCK;
use crate::segment::{BatchScan, IndexFile, Next, first_block};
use crate::shard::{SegmentRead, SegmentStart};
use corelog_wire::batch::{
    Attributes, BatchFields, BodyCheck, STAMP_BYTES, Stamp, StoredBatches, parse_header, seal_body,
};
use corelog_wire::ids::TopicId;
use corelog_wire::records::RecordsBuilder;
use std::collections::{BTreeMap, BTreeSet};

const NOW_MS: i64 = 1_700_000_000_000;

/// A codec that leaves a mark on what it closed.
struct Backwards;

impl Codec for Backwards {
    fn decompress(&self, compression: Compression, body: Bytes) -> Result<Bytes, String> {
        match compression {
            Compression::None => Ok(body),
            _ => Ok(body.iter().rev().copied().collect()),
        }
    }

    fn compress(&self, compression: Compression, records: &[u8]) -> Result<Bytes, String> {
        self.decompress(compression, Bytes::copy_from_slice(records))
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn size(&mut self, bound: u64) -> usize {
        usize::try_from(self.below(bound)).unwrap()
    }
}

/// Key, value and create time.
type Content = (Option<Vec<u8>>, Option<Vec<u8>>, i64);

/// A log in memory.
struct World {
    random: Random,
    tp: TopicPartition,
    files: BTreeMap<SegmentId, Vec<u8>>,
    segments: Vec<Input>,
    produced: Vec<Content>,
    clean_end: Offset,
    start: Offset,
    use_next: u32,
    epoch: u32,
    epochs: Vec<(LeaderEpoch, Offset)>,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            tp: TopicPartition::new(TopicId::from_bytes([9; 16]), 3),
            files: BTreeMap::new(),
            segments: Vec::new(),
            produced: Vec::new(),
            clean_end: Offset::ZERO,
            start: Offset::ZERO,
            use_next: 1,
            epoch: 0,
            epochs: vec![(LeaderEpoch::new(0), Offset::ZERO)],
        }
    }

    fn end(&self) -> Offset {
        Offset::new(self.produced.len() as u64)
    }

    fn record(&mut self, keys: u64) -> Content {
        let key = self.random.below(20).min(1) * (1 + self.random.below(keys));
        let key = (key > 0).then(|| key.to_string().into_bytes());
        let value = (self.random.below(6) > 0).then(|| {
            let bytes = if self.random.below(40) == 0 { 9_000 } else { 5 + self.random.size(60) };
            (0..bytes).map(|_| u8::try_from(self.random.below(256)).unwrap()).collect()
        });
        (key, value, NOW_MS + i64::try_from(self.random.below(1_000)).unwrap())
    }

    /// A sealed segment of random batches.
    fn append(&mut self, batches: u64, keys: u64, append_ms: i64) {
        let id = SegmentId { tp: self.tp, base: self.end(), segment_use: SegmentUse(self.use_next) };
        self.use_next += 1;
        let (mut file, mut bytes) = (first_block(id), 0);
        for _ in 0..batches {
            if self.random.below(6) == 0 {
                file.resize(file.len().next_multiple_of(4096), 0);
            }
            if self.random.below(12) == 0 {
                self.epoch += 1;
                let end = self.end();
                self.epochs.retain(|(_, start)| *start < end);
                self.epochs.push((LeaderEpoch::new(self.epoch), end));
            }
            let batch = self.batch(keys, append_ms);
            bytes += batch.len() as u64;
            file.extend_from_slice(&batch);
        }
        file.resize(file.len().next_multiple_of(4096), 0);
        let file_end = file.len() as u64;
        self.files.insert(id, file);
        self.segments.push(Input {
            segment: id,
            end: self.end(),
            file_end,
            bytes,
            last_append_ms: append_ms,
        });
    }

    fn batch(&mut self, keys: u64, append_ms: i64) -> Vec<u8> {
        let base = self.end();
        let mut builder = RecordsBuilder::with_capacity(0);
        let count = 1 + u32::try_from(self.random.below(30)).unwrap();
        for delta in 0..count {
            let (key, value, time) = self.record(keys);
            let headers: &[(&[u8], Option<&[u8]>)] =
                if time % 3 == 0 { &[(b"tag", Some(b"red")), (b"empty", None)] } else { &[] };
            builder.push(delta, time - NOW_MS, key.as_deref(), value.as_deref(), headers).unwrap();
            self.produced.push((key, value, time));
        }
        let compression = if self.random.below(3) == 0 { Compression::Lz4 } else { Compression::None };
        let body = Backwards.compress(compression, builder.body()).unwrap();
        let fields = BatchFields {
            attributes: Attributes::compressed(compression),
            max_timestamp_ms: NOW_MS + 1_000,
            tag_bloom: 7,
            ..BatchFields::plain(count, NOW_MS)
        };
        let sealed = seal_body(&body, &fields, self.tp);
        let (header, _) = parse_header(&sealed, self.tp).unwrap();
        let stamp = Stamp {
            base_offset: base,
            append_timestamp_ms: append_ms,
            leader_epoch: LeaderEpoch::new(self.epoch),
        };
        [&stamp.encode(header.header_crc)[..], &sealed[STAMP_BYTES..]].concat()
    }

    /// Where the newest of a key is a tombstone.
    fn tombstones(&self) -> BTreeSet<u64> {
        let mut newest = BTreeMap::new();
        for (offset, (key, value, _)) in self.read() {
            newest.insert(key, (offset, value));
        }
        let gone = newest.into_iter().filter(|(key, (_, value))| key.is_some() && value.is_none());
        gone.map(|(_, (offset, _))| offset).collect()
    }

    fn plan(&self, keys_max: usize, tombstones_before_ms: i64) -> Plan {
        Plan {
            tp: self.tp,
            inputs: self.segments.iter().copied().filter(|input| input.end > self.start).collect(),
            start: self.start,
            clean_end: self.clean_end,
            tombstones_before_ms,
            unread_from: Offset::new(u64::MAX),
            keys_max,
            segment_bytes: 100_000,
            first_use: SegmentUse(1 << 31 | self.use_next),
            epochs: self.epochs.clone(),
        }
    }

    /// Goes through a round; with `stop`, only so many of its files take their place.
    fn compact(&mut self, plan: Plan, stop: usize) -> Result<usize, CompactError> {
        self.use_next += 100;
        let mut round = Round::new(plan);
        let mut installed = 0;
        for _ in 0..1_000_000 {
            match round.advance(&Backwards)? {
                Want::Turn => {}
                Want::Read { segment, from, bytes, file_end } => {
                    let end = (from + bytes + self.random.below(60_000)).min(file_end);
                    assert!(end >= from + bytes);
                    let start = from.saturating_sub(self.random.below(5_000));
                    let file = &self.files[&segment];
                    let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
                    round.feed(Bytes::copy_from_slice(&file[range]), start)?;
                }
                Want::Write { segment, file_position, bytes } => {
                    assert!(bytes.len().is_multiple_of(4096));
                    let file = self.files.entry(segment).or_default();
                    assert_eq!(file.len() as u64, file_position, "files grow without a gap");
                    file.extend_from_slice(&bytes);
                }
                Want::Finish { done, index_file } => {
                    IndexFile::open(&index_file, done.segment).unwrap();
                    assert_eq!(self.files[&done.segment].len() as u64, done.file_end);
                    if installed < stop {
                        installed += 1;
                        self.install(&done);
                    }
                }
                Want::Done => return Ok(installed),
            }
        }
        panic!("the round does not end")
    }

    fn install(&mut self, done: &CompactedEntry) {
        let first = self.segments.iter().position(|input| input.segment.base == done.segment.base).unwrap();
        let last = self.segments.iter().position(|input| input.end == done.end).unwrap();
        let CompactedEntry { segment, end, file_end, bytes, last_append_ms, clean_end, .. } = *done;
        self.segments.splice(first..=last, [Input { segment, end, file_end, bytes, last_append_ms }]);
        self.clean_end = self.clean_end.max(clean_end);
    }

    /// Every record that is there, held against what was produced; every segment lies whole behind the one before.
    fn read(&self) -> Vec<(u64, Content)> {
        let mut all = Vec::new();
        for input in self.segments.iter().filter(|input| input.end > self.start) {
            let from = self.start.max(input.segment.base);
            let read = SegmentRead {
                segment: input.segment,
                start: SegmentStart::At(BLOCK),
                file_end: input.file_end,
                from,
                until: input.end,
                bytes_max: u32::MAX,
            };
            let file = &self.files[&input.segment];
            let taken = BatchScan::new(&read, BLOCK).take(file, 0).unwrap();
            assert_eq!(taken.next, Next::Done);
            for range in taken.ranges {
                let run = Bytes::copy_from_slice(&file[range]);
                for batch in StoredBatches::new(run, self.tp, BodyCheck::Verify) {
                    let batch = batch.unwrap();
                    for record in Opened::of(&batch, &Backwards).unwrap().records() {
                        let (offset, record) = record.unwrap();
                        let time = batch.header().base_timestamp_ms + record.timestamp_delta;
                        assert!(time <= batch.header().max_timestamp_ms);
                        if time % 3 == 0 {
                            assert_eq!((record.headers.len(), batch.header().tag_bloom), (2, 7));
                        }
                        let content = (
                            record.key.map(|key| key.to_vec()),
                            record.value.map(|value| value.to_vec()),
                            time,
                        );
                        let place = usize::try_from(offset.get()).unwrap();
                        assert_eq!(content, self.produced[place], "the record at {offset} is another");
                        all.push((offset.get(), content));
                    }
                }
            }
        }
        assert!(all.is_sorted_by_key(|(offset, _)| *offset));
        all.retain(|(offset, _)| *offset >= self.start.get());
        all
    }

    /// What a reader who reads everything knows in the end must be what was produced last.
    fn check(&self) {
        let read = self.read();
        let (mut known, mut truth) = (BTreeMap::new(), BTreeMap::new());
        let from = usize::try_from(self.start.get()).unwrap();
        for (place, (key, value, _)) in self.produced.iter().enumerate().skip(from) {
            match key {
                None => assert!(read.iter().any(|(offset, _)| *offset == place as u64), "{place} had no key"),
                Some(key) => drop(truth.insert(key.clone(), value.clone())),
            }
        }
        for (_, (key, value, _)) in &read {
            let Some(key) = key else { continue };
            known.insert(key.clone(), value.clone());
        }
        truth.retain(|_, value| value.is_some());
        known.retain(|_, value| value.is_some());
        assert_eq!(known, truth);
        let mut seen = BTreeSet::new();
        let below = read.iter().filter(|(offset, _)| *offset < self.clean_end.get());
        for (offset, key) in below.filter_map(|(offset, (key, ..))| Some((offset, key.as_ref()?))) {
            assert!(seen.insert(key), "{key:?} is there twice below {}, again at {offset}", self.clean_end);
        }
    }
}

#[test]
fn rounds_leave_the_newest_of_each_key_and_what_has_none() {
    let mut unread_ever = 0;
    for seed in 1..=60 {
        let mut world = World::new(seed);
        for step in 0..6 {
            for _ in 0..=world.random.below(3) {
                let (batches, keys) = (1 + world.random.below(20), 1 + world.random.below(80));
                world.append(batches, keys, NOW_MS + step * 1_000);
            }
            if world.random.below(4) == 0 {
                let end = world.end().get() - world.start.get();
                world.start = Offset::new(world.start.get() + world.random.below(end.min(40) + 1));
            }
            let keys_max = if world.random.below(3) == 0 { 10 } else { 1_000 };
            let stop = if world.random.below(3) == 0 { world.random.size(3) } else { usize::MAX };
            let before_ms = if world.random.below(2) == 0 { 0 } else { NOW_MS + step * 1_000 - 1_500 };
            let plan = world.plan(keys_max, before_ms);
            world.compact(plan, stop).unwrap();
            world.check();
        }
        // Old as they are, those stay that somebody protected has not read.
        let unread_from = Offset::new(world.start.get().midpoint(world.end().get()));
        let unread: BTreeSet<u64> = world.tombstones().split_off(&unread_from.get());
        let plan = Plan { unread_from, ..world.plan(10_000, i64::MAX) };
        world.compact(plan, usize::MAX).unwrap();
        world.check();
        assert_eq!(world.clean_end, world.end(), "seed {seed}: all keys had room");
        assert_eq!(world.tombstones(), unread, "seed {seed}: all others were old enough");
        unread_ever += unread.len();
    }
    assert!(unread_ever > 60, "hardly any tombstone was unread: {unread_ever}");
}

#[test]
fn a_group_of_which_nothing_stays_is_a_hole() {
    let mut world = World::new(1);
    let push = |world: &mut World, value: u8| {
        world.produced.push((Some(b"k".to_vec()), Some(vec![value]), NOW_MS));
        let base = Offset::new(world.produced.len() as u64 - 1);
        let id = SegmentId { tp: world.tp, base, segment_use: SegmentUse(world.use_next) };
        world.use_next += 1;
        let mut builder = RecordsBuilder::with_capacity(0);
        builder.push(0, 0, Some(b"k"), Some(&[value]), &[]).unwrap();
        let sealed = seal_body(builder.body(), &BatchFields::plain(1, NOW_MS), world.tp);
        let (header, _) = parse_header(&sealed, world.tp).unwrap();
        let stamp =
            Stamp { base_offset: base, append_timestamp_ms: NOW_MS, leader_epoch: LeaderEpoch::new(0) };
        let mut file = first_block(id);
        file.extend_from_slice(&stamp.encode(header.header_crc));
        file.extend_from_slice(&sealed[STAMP_BYTES..]);
        file.resize(8192, 0);
        world.files.insert(id, file);
        let (end, bytes) = (Offset::new(base.get() + 1), 60_000);
        world.segments.push(Input { segment: id, end, file_end: 8192, bytes, last_append_ms: NOW_MS });
    };
    // Each counts as so large that a file takes only one.
    (0..4).for_each(|value| push(&mut world, value));
    let plan = world.plan(10, 0);
    assert_eq!(world.compact(plan, usize::MAX), Ok(4));
    assert_eq!(world.read().iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [3]);
    // In the next round they are as small as they are, and become one.
    let plan = Plan { clean_end: Offset::ZERO, ..world.plan(10, 0) };
    assert_eq!(world.compact(plan, usize::MAX), Ok(1));
    assert_eq!(world.read().len(), 1);
}

#[test]
fn damage_ends_the_round_and_is_not_sealed_anew() {
    for seed in 1..=40 {
        let mut world = World::new(seed);
        (0..3).for_each(|_| world.append(12, 20, NOW_MS));
        let victim = world.segments[world.random.size(3)];
        let file = world.files.get_mut(&victim.segment).unwrap();
        let at = 4096 + usize::try_from(Random(seed | 1).below(file.len() as u64 - 4096)).unwrap();
        file[at] ^= 0x10;
        let damaged = file.clone();
        let sound = damaged[at] == 0x10 && damaged[at - 1] == 0;
        let files = world.files.len();
        let plan = world.plan(1_000, 0);
        let result = world.compact(plan, 0);
        // Only padding between extents may be what it likes.
        assert!(result.is_err() || sound, "seed {seed}: {at} of {} was not noticed", damaged.len());
        assert!(result.is_ok() || world.files.len() <= files + 1);
    }
}
