//! Random segments read in random chunks against the list of their batches; damage of every kind.

use super::*;
use crate::journal::SegmentUse;
use crate::segment::first_block;
use crate::shard::SegmentStart;
use corelog_wire::batch::{BatchFields, BodyCheck, STAMP_BYTES, Stamp, StoredBatches, seal_body};
use corelog_wire::ids::{TopicId, TopicPartition};
use corelog_wire::keys::bloom_of;

const BLOCK_BYTES: usize = 4096;

struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

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

#[derive(Clone, Debug)]
struct Batch {
    at: u64,
    base: u64,
    end: u64,
    max_timestamp_ms: i64,
    tag_bloom: u64,
    bytes: Vec<u8>,
}

/// A segment file and what is in it.
struct File {
    id: SegmentId,
    bytes: Vec<u8>,
    batches: Vec<Batch>,
    /// Where its extents start.
    extents: Vec<u64>,
}

fn id(base: u64) -> SegmentId {
    let tp = TopicPartition::new(TopicId::from_bytes([0x42; 16]), 1);
    SegmentId { tp, base: Offset::new(base), segment_use: SegmentUse(3) }
}

fn batch_bytes(tp: TopicPartition, body: usize, fields: &BatchFields, base: u64, epoch: u32) -> Vec<u8> {
    let body: Vec<u8> = (0..body).map(|i| u8::try_from(i % 250).unwrap() + 1).collect();
    let mut bytes = seal_body(&body, fields, tp).to_vec();
    let header_crc = u32::from_le_bytes(bytes[88..92].try_into().unwrap());
    let stamp = Stamp {
        base_offset: Offset::new(base),
        append_timestamp_ms: 1_700_000_000_000,
        leader_epoch: LeaderEpoch::new(epoch),
    };
    bytes[..STAMP_BYTES].copy_from_slice(&stamp.encode(header_crc));
    bytes
}

impl File {
    fn new(base: u64) -> Self {
        let id = id(base);
        Self { id, bytes: first_block(id), batches: Vec::new(), extents: Vec::new() }
    }

    /// Opens an extent: the ones before end at a block.
    fn extent(&mut self) -> &mut Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        self.extents.push(self.bytes.len() as u64);
        self
    }

    fn batch(&mut self, body: usize, records: u32, max_timestamp_ms: i64, epoch: u32) -> &mut Self {
        let base = self.end();
        // Every third batch is red.
        let tag_bloom = if self.batches.len() % 3 == 1 { bloom_of(b"red") } else { bloom_of(b"green") };
        let fields = BatchFields { tag_bloom, ..BatchFields::plain(records, max_timestamp_ms) };
        let bytes = batch_bytes(self.id.tp, body, &fields, base, epoch);
        let (at, end) = (self.bytes.len() as u64, base + u64::from(records));
        self.bytes.extend_from_slice(&bytes);
        self.batches.push(Batch { at, base, end, max_timestamp_ms, tag_bloom, bytes });
        self
    }

    /// The file ends at a block, and its size goes beyond the last extent.
    fn done(&mut self) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        let file_end = self.bytes.len() as u64;
        self.bytes.resize(self.bytes.len() + 3 * BLOCK_BYTES, 0xDD);
        file_end
    }

    fn end(&self) -> u64 {
        self.batches.last().map_or(self.id.base.get(), |last| last.end)
    }

    fn random(random: &mut Random) -> (Self, u64) {
        let mut file = Self::new(random.below(3) * 100);
        let mut epoch = 0;
        for _ in 0..=random.below(5) {
            file.extent();
            for _ in 0..=random.below(12) {
                // Around the sizes that leave next to nothing, or nothing, before a block ends.
                let body = match random.below(4) {
                    0 => 8 + random.size(100),
                    1 => 3_900 + random.size(200),
                    2 => 8 + random.size(20_000),
                    _ => 500,
                };
                let records =
                    1 + u32::try_from(random.below(u64::try_from(body / 7).unwrap().min(20))).unwrap();
                let time = 1_000 + i64::try_from(random.below(500)).unwrap();
                epoch += u32::try_from(random.below(8) / 7).unwrap();
                file.batch(body, records, time, epoch);
            }
        }
        let file_end = file.done();
        (file, file_end)
    }

    fn read(&self, file_end: u64, from: u64, until: u64, bytes_max: u32) -> SegmentRead {
        SegmentRead {
            segment: self.id,
            start: SegmentStart::ByIndexFile,
            file_end,
            from: Offset::new(from),
            until: Offset::new(until),
            bytes_max,
        }
    }

    /// A chunk that has the bytes wanted, and some before and after.
    fn chunk(&self, from: u64, bytes: u64, random: &mut Random) -> (&[u8], u64) {
        let start = usize::try_from(from).unwrap();
        let end = start + usize::try_from(bytes).unwrap();
        let start = start.saturating_sub(random.size(5_000));
        let end = (end + random.size(30_000)).min(self.bytes.len());
        (&self.bytes[start..end], start as u64)
    }

    fn walk(&self, read: &SegmentRead, start: u64, random: &mut Random) -> Result<Vec<u8>, SegmentError> {
        self.go_through(&mut BatchScan::new(read, start), read, start, random)
    }

    fn go_through(
        &self,
        scan: &mut BatchScan,
        read: &SegmentRead,
        start: u64,
        random: &mut Random,
    ) -> Result<Vec<u8>, SegmentError> {
        let (mut from, mut bytes) = (start, 1);
        let mut sent = Vec::new();
        for _ in 0..10_000 {
            let (chunk, chunk_start) = self.chunk(from, bytes, random);
            let taken = scan.take(chunk, chunk_start)?;
            for range in taken.ranges {
                sent.extend_from_slice(&chunk[range]);
            }
            match taken.next {
                Next::Done => return Ok(sent),
                Next::Read { from: next, bytes: wanted } => {
                    assert!(next >= from && wanted > 0 && next + wanted <= read.file_end, "{next} {wanted}");
                    (from, bytes) = (next, wanted);
                }
            }
        }
        panic!("the walk does not end")
    }

    fn find(&self, read: &SegmentRead, start: u64, time: i64, random: &mut Random) -> Option<(Offset, i64)> {
        let mut scan = BatchScan::new(read, start);
        let (mut from, mut bytes) = (start, 1);
        for _ in 0..10_000 {
            let (chunk, chunk_start) = self.chunk(from, bytes, random);
            match scan.find_time(chunk, chunk_start, time).unwrap() {
                Found::At(offset, found) => return Some((offset, found)),
                Found::None => return None,
                Found::Read { from: next, bytes: wanted } => (from, bytes) = (next, wanted),
            }
        }
        panic!("the walk does not end")
    }

    fn index(&self, file_end: u64, random: &mut Random) -> Index {
        let mut scan = BatchScan::new(&self.read(file_end, 0, 0, 0), BLOCK);
        let mut index = Index::new();
        let (mut from, mut bytes) = (BLOCK, 1);
        loop {
            let (chunk, chunk_start) = self.chunk(from, bytes, random);
            match scan.index(chunk, chunk_start, &mut index).unwrap() {
                Next::Done => break,
                Next::Read { from: next, bytes: wanted } => (from, bytes) = (next, wanted),
            }
        }
        assert_eq!(scan.expected(), Some(Offset::new(self.end())));
        index
    }

    /// What a walk must give.
    fn wanted(&self, from: u64, until: u64, bytes_max: u32) -> Vec<u8> {
        self.wanted_of(&TagFilter::ALL, from, until, bytes_max)
    }

    fn wanted_of(&self, filter: &TagFilter, from: u64, until: u64, bytes_max: u32) -> Vec<u8> {
        let mut wanted = Vec::new();
        let within = self.batches.iter().filter(|batch| batch.end > from && batch.base < until);
        for batch in within.filter(|batch| filter.asks_for(batch.tag_bloom)) {
            if !wanted.is_empty() && wanted.len() + batch.bytes.len() > bytes_max as usize {
                break;
            }
            wanted.extend_from_slice(&batch.bytes);
            if wanted.len() >= bytes_max as usize {
                break;
            }
        }
        wanted
    }
}

#[test]
fn a_walk_gives_what_was_written_whatever_the_chunks() {
    for seed in 1..=60 {
        let mut random = Random::new(seed);
        let (file, file_end) = File::random(&mut random);
        for _ in 0..12 {
            let (base, end) = (file.id.base.get(), file.end());
            let from = base + random.below(end - base);
            let until = from + 1 + random.below(end - from);
            let bytes_max = u32::try_from(random.below(60_000)).unwrap();
            // A start is the first extent, any extent or any batch that is not behind what is wanted.
            let starts: Vec<u64> = file.batches.iter().filter(|b| b.base <= from).map(|b| b.at).collect();
            let start = starts[random.size(starts.len() as u64)];
            let sent = file.walk(&file.read(file_end, from, until, bytes_max), start, &mut random).unwrap();
            assert!(sent == file.wanted(from, until, bytes_max), "seed {seed}, from {from} until {until}");
            let stored = StoredBatches::new(sent.into(), file.id.tp, BodyCheck::Verify);
            assert!(stored.map(Result::unwrap).count() >= 1);
        }
    }
}

#[test]
fn a_walk_with_a_filter_gives_what_is_asked_for_and_says_how_far_it_came() {
    for seed in 1..=60 {
        let mut random = Random::new(seed);
        let (file, file_end) = File::random(&mut random);
        let filter = TagFilter::of(["red"]).unwrap();
        let (base, end) = (file.id.base.get(), file.end());
        let bytes_max = u32::try_from(random.below(60_000)).unwrap();
        let mut from = base + random.below(end - base);
        let (whole, mut all) = (file.wanted_of(&filter, from, end, u32::MAX), Vec::new());
        while from < end {
            let starts: Vec<u64> = file.batches.iter().filter(|b| b.base <= from).map(|b| b.at).collect();
            let start = starts[random.size(starts.len() as u64)];
            let read = file.read(file_end, from, end, bytes_max);
            let mut scan = BatchScan::new(&read, start).filtered(filter.clone());
            let sent = file.go_through(&mut scan, &read, start, &mut random).unwrap();
            assert!(sent == file.wanted_of(&filter, from, end, bytes_max), "seed {seed}, from {from}");
            let next = scan.next_offset().get();
            assert!(next > from, "seed {seed}: it does not get beyond {from}");
            let at = file.batches.iter().find(|batch| batch.base == next).map_or(file_end, |batch| batch.at);
            assert!(scan.position() <= at && at - scan.position() < BLOCK, "seed {seed}, {next}");
            all.extend_from_slice(&sent);
            from = next;
        }
        assert!(all == whole, "seed {seed}");
    }
}

#[test]
fn a_walk_that_finds_nothing_ends_in_time() {
    let mut file = File::new(0);
    file.extent();
    let mut passed = 0;
    while passed <= 2 * FILTER_PASSED_BYTES_MAX {
        file.batch(1 << 20, 1, 1, 0);
        passed += 1 << 20;
    }
    let file_end = file.done();
    let read = file.read(file_end, 0, file.end(), u32::MAX);
    let nothing = TagFilter::of(["blue"]).unwrap();
    let mut scan = BatchScan::new(&read, BLOCK).filtered(nothing);
    let taken = scan.take(&file.bytes, 0).unwrap();
    assert_eq!((taken.ranges, taken.next), (vec![], Next::Done));
    let next = usize::try_from(scan.next_offset().get()).unwrap();
    assert!(next > 0 && file.batches[next].at - BLOCK >= FILTER_PASSED_BYTES_MAX);
    assert!(file.batches[next - 1].at - BLOCK <= FILTER_PASSED_BYTES_MAX);
}

#[test]
fn a_walk_reads_with_the_least_chunks_it_asks_for() {
    let mut random = Random::new(5);
    let (file, file_end) = File::random(&mut random);
    let read = file.read(file_end, file.id.base.get(), file.end(), u32::MAX);
    let mut scan = BatchScan::new(&read, BLOCK);
    let (mut from, mut bytes) = (4096_usize, 1_usize);
    let mut sent = Vec::new();
    loop {
        let chunk = &file.bytes[from..from + bytes];
        let taken = scan.take(chunk, from as u64).unwrap();
        taken.ranges.into_iter().for_each(|range| sent.extend_from_slice(&chunk[range]));
        let Next::Read { from: next, bytes: wanted } = taken.next else { break };
        (from, bytes) = (usize::try_from(next).unwrap(), usize::try_from(wanted).unwrap());
    }
    assert!(sent == file.wanted(0, u64::MAX, u32::MAX));
}

#[test]
fn neighbours_are_one_range() {
    let mut file = File::new(0);
    file.extent().batch(100, 1, 1, 0).batch(200, 1, 1, 0).extent().batch(300, 1, 1, 0);
    let file_end = file.done();
    let taken = BatchScan::new(&file.read(file_end, 0, 3, u32::MAX), BLOCK).take(&file.bytes, 0).unwrap();
    let (first, third) = (&file.batches[0].bytes, &file.batches[2].bytes);
    let end = 4096 + first.len() + file.batches[1].bytes.len();
    assert_eq!(taken.ranges, [4096..end, 8192..8192 + third.len()]);
    assert_eq!(taken.next, Next::Done);
}

#[test]
fn a_chunk_elsewhere_asks_again() {
    let mut file = File::new(0);
    file.extent().batch(100, 1, 1, 0);
    let file_end = file.done();
    let mut scan = BatchScan::new(&file.read(file_end, 0, 1, u32::MAX), BLOCK);
    for (start, end) in [(0, 0), (0, 4096), (8192, 10_000), (4097, 9_000)] {
        let taken = scan.take(&file.bytes[start..end], start as u64).unwrap();
        assert_eq!(taken, Taken { ranges: Vec::new(), next: Next::Read { from: BLOCK, bytes: 96 } });
    }
    assert_eq!(scan.take(&file.bytes, 0).unwrap().ranges.len(), 1);
}

#[test]
fn every_remainder_before_a_block_is_padding() {
    // Batches that leave 0, 8, 16, ... bytes before the block ends.
    for left in (0..=200).step_by(8) {
        let mut file = File::new(0);
        file.extent().batch(4096 - 96 - left, 1, 1, 0).extent().batch(50, 1, 1, 0);
        let file_end = file.done();
        let mut random = Random::new(left as u64 + 1);
        let sent = file.walk(&file.read(file_end, 0, 2, u32::MAX), BLOCK, &mut random).unwrap();
        assert!(sent == file.wanted(0, 2, u32::MAX), "{left} bytes left");
    }
}

#[test]
fn times_are_found_from_any_start_the_index_gives() {
    for seed in 1..=60 {
        let mut random = Random::new(seed);
        let (file, file_end) = File::random(&mut random);
        let index = file.index(file_end, &mut random);
        for _ in 0..12 {
            let time = 990 + i64::try_from(random.below(530)).unwrap();
            let from = file.id.base.get() + random.below(file.end() - file.id.base.get());
            let wanted = file
                .batches
                .iter()
                .find(|batch| batch.end > from && batch.max_timestamp_ms >= time)
                .map(|batch| (Offset::new(batch.base.max(from)), batch.max_timestamp_ms));
            let read = file.read(file_end, from, file.end(), u32::MAX);
            assert_eq!(file.find(&read, BLOCK, time, &mut random), wanted, "seed {seed}");
            match index.start_for_time(time) {
                Some(start) => assert_eq!(file.find(&read, start, time, &mut random), wanted, "seed {seed}"),
                None => assert_eq!(wanted, None, "seed {seed}"),
            }
        }
    }
}

#[test]
fn a_rebuilt_index_knows_every_batch() {
    let mut random = Random::new(7);
    let mut file = File::new(50);
    for _ in 0..20 {
        file.extent();
        for _ in 0..10 {
            file.batch(30_000, 3, 1_000 + i64::try_from(random.below(9)).unwrap(), 0);
        }
    }
    let file_end = file.done();
    let index = file.index(file_end, &mut random);
    assert_eq!(index.broken_invariant(), None);
    assert!(index.entries().len() > 50);
    for batch in &file.batches {
        let start = index.start_for(Offset::new(batch.base)).unwrap();
        assert!(start <= batch.at && batch.at - start < 64 * 1024 + 40_000);
        let read = file.read(file_end, batch.base, batch.end, 1);
        assert!(file.walk(&read, start, &mut random).unwrap() == batch.bytes);
    }
}

fn three_extents() -> (File, u64) {
    let mut file = File::new(10);
    file.extent().batch(700, 2, 5, 1).batch(900, 3, 6, 1);
    file.extent().batch(5_000, 4, 7, 2).batch(50, 1, 8, 2);
    file.extent().batch(300, 2, 9, 4);
    let file_end = file.done();
    (file, file_end)
}

#[test]
fn any_changed_header_bit_is_noticed_and_named() {
    let (mut file, file_end) = three_extents();
    let read = file.read(file_end, 10, file.end(), u32::MAX);
    let mut random = Random::new(9);
    for batch in file.batches.clone() {
        // 96 bytes: stamp and header. The word before the body is a reserved one, and none of a checksum.
        for byte in 0..96 {
            for bit in 0..8 {
                let at = usize::try_from(batch.at).unwrap() + byte;
                file.bytes[at] ^= 1 << bit;
                let error = file.walk(&read, BLOCK, &mut random).unwrap_err();
                let expected = Offset::new(batch.base);
                assert!(
                    matches!(error, SegmentError::Batch { file_position, expected: e, .. }
                        if file_position == batch.at && e == expected),
                    "bit {bit} of byte {byte} at {at}: {error}"
                );
                file.bytes[at] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn lost_blocks_and_lost_sectors_are_noticed() {
    let (file, file_end) = three_extents();
    let read = file.read(file_end, 10, file.end(), u32::MAX);
    let mut random = Random::new(11);
    for batch in &file.batches {
        for sector in [8, 512, 4096] {
            let mut holed = File { id: file.id, bytes: file.bytes.clone(), ..File::new(10) };
            let at = usize::try_from(batch.at).unwrap();
            let start = if sector == 8 { at } else { at / sector * sector };
            holed.bytes[start..start + sector].fill(0);
            assert!(holed.walk(&read, BLOCK, &mut random).is_err(), "{sector} zeros at {start}");
        }
    }
}

#[test]
fn misplaced_batches_are_noticed() {
    let (file, file_end) = three_extents();
    let read = file.read(file_end, 10, file.end(), u32::MAX);
    let mut random = Random::new(13);
    let walk = |file: &File, random: &mut Random| file.walk(&read, BLOCK, random).unwrap_err();

    // The second extent's blocks where the third's belong, and the other way round.
    let (second, third) = (file.batches[2].at, file.batches[4].at);
    let range = |at: u64| usize::try_from(at).unwrap()..usize::try_from(at).unwrap() + BLOCK_BYTES;
    let mut misdirected = File { id: file.id, bytes: file.bytes.clone(), ..File::new(10) };
    misdirected.bytes.copy_within(range(third), range(second).start);
    let (expected, found) = (Offset::new(15), Offset::new(20));
    assert_eq!(
        walk(&misdirected, &mut random),
        SegmentError::OffsetGap { file_position: second, expected, found }
    );

    // Another partition's extent.
    let mut other = File::new(10);
    other.id.tp.partition = 2;
    other.extent().batch(700, 2, 5, 1);
    other.done();
    let mut foreign = File { id: file.id, bytes: file.bytes.clone(), ..File::new(10) };
    foreign.bytes[range(BLOCK)].copy_from_slice(&other.bytes[range(BLOCK)]);
    assert!(matches!(
        walk(&foreign, &mut random),
        SegmentError::Batch { file_position: BLOCK, error: BatchError::BadHeaderChecksum, .. }
    ));

    // A batch of an epoch before that of the batch before it.
    let mut fallen = File::new(0);
    fallen.extent().batch(100, 1, 1, 5).batch(100, 1, 1, 4);
    let fallen_end = fallen.done();
    let error = fallen.walk(&fallen.read(fallen_end, 0, 2, u32::MAX), BLOCK, &mut random).unwrap_err();
    let (file_position, expected) = (fallen.batches[1].at, Offset::new(1));
    let (before, found) = (LeaderEpoch::new(5), LeaderEpoch::new(4));
    assert_eq!(error, SegmentError::EpochFell { file_position, expected, before, found });
}

#[test]
fn an_end_that_comes_too_early_is_noticed() {
    let (file, file_end) = three_extents();
    let mut random = Random::new(15);
    let (expected, until) = (Offset::new(20), Offset::new(22));
    let short = file.read(file.batches[4].at, 10, 22, u32::MAX);
    let error = file.walk(&short, BLOCK, &mut random).unwrap_err();
    assert_eq!(error, SegmentError::Missing { file_end: short.file_end, expected, until });
    // The last extent cut inside its batch.
    let cut = file.read(file.batches[4].at + 200, 10, 22, u32::MAX);
    let error = file.walk(&cut, BLOCK, &mut random).unwrap_err();
    assert!(matches!(error, SegmentError::BeyondEnd { .. }), "{error}");
    let cut = file.read(file.batches[4].at + 40, 10, 22, u32::MAX);
    assert!(matches!(file.walk(&cut, BLOCK, &mut random), Err(SegmentError::Batch { .. })));
    assert!(file.walk(&file.read(file_end, 10, 22, u32::MAX), BLOCK, &mut random).is_ok());
}

#[test]
fn a_start_behind_what_is_wanted_is_noticed() {
    let (file, file_end) = three_extents();
    let read = file.read(file_end, 12, 22, u32::MAX);
    let error = file.walk(&read, file.batches[2].at, &mut Random::new(17)).unwrap_err();
    let (expected, found) = (Offset::new(12), Offset::new(15));
    assert_eq!(error, SegmentError::OffsetGap { file_position: file.batches[2].at, expected, found });
}

#[test]
fn nothing_wanted_is_nothing_found() {
    let (file, file_end) = three_extents();
    let mut random = Random::new(21);
    // Offset 11 is inside the first batch.
    let read = file.read(file_end, 11, 11, u32::MAX);
    assert_eq!(file.walk(&read, BLOCK, &mut random), Ok(Vec::new()));
    assert_eq!(file.find(&read, BLOCK, 5, &mut random), None);
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random::new(19);
    let (file, file_end) = three_extents();
    for _ in 0..5_000 {
        let mut bytes = file.bytes.clone();
        for _ in 0..=random.below(3) {
            let at = 4096 + random.size(bytes.len() as u64 - 4096);
            bytes[at] = random.below(256).to_le_bytes()[0];
        }
        let damaged = File { id: file.id, bytes, ..File::new(10) };
        let read = damaged.read(random.below(file_end + 9_000), random.below(30), random.below(30), 10_000);
        let mut scan = BatchScan::new(&read, random.below(file_end + 100));
        let _ = scan.take(&damaged.bytes, 0);
        let _ = scan.find_time(&damaged.bytes[4096..], 4096, 6);
        let _ = scan.index(&damaged.bytes, 0, &mut Index::new());
    }
}
