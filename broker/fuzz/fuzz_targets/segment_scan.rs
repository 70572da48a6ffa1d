//! A segment file with changes, walked in chunks. What is given out is whole batches without gaps; the walk ends.
#![no_main]

use corelog_broker_fuzz::{BLOCK, Input, read, reseal_batch, reseal_header, segment, segment_file, tp};
use corelog_core::segment::{BatchScan, Found, Index, Next, parse_first_block};
use corelog_core::shard::{SegmentRead, SegmentStart};
use corelog_wire::batch::{BodyCheck, StoredBatches};
use corelog_wire::ids::Offset;
use corelog_wire::keys::TagFilter;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(segment_file);

fuzz_target!(|data: &[u8]| {
    let _ = parse_first_block(data);
    let mut input = Input(data);
    let from = input.below(20) as u64;
    let wanted = SegmentRead {
        segment: segment(),
        start: SegmentStart::ByIndexFile,
        file_end: input.below(IMAGE.len() + BLOCK) as u64,
        from: Offset::new(from),
        until: Offset::new(from + input.below(20) as u64),
        bytes_max: u32::try_from(input.below(20_000)).unwrap_or(0),
    };
    // The first extent, often; else anywhere.
    let start = if input.byte().unwrap_or(0) < 200 { BLOCK } else { input.below(IMAGE.len()) } as u64;
    let (more, time) = (input.below(9_000) as u64, 1_000 + i64::try_from(input.below(20)).unwrap_or(0));
    let mut file = IMAGE.clone();
    input.change(&mut file, reseal);
    let _ = parse_first_block(&file);
    take(&file, &wanted, &TagFilter::ALL, start, more);
    take(&file, &wanted, &TagFilter::of(["red"]).unwrap_or_default(), start, more);
    find(&file, &wanted, start, more, time);
    index(&file, &wanted, more);
});

fn take(file: &[u8], wanted: &SegmentRead, filter: &TagFilter, start: u64, more: u64) {
    let mut scan = BatchScan::new(wanted, start).filtered(filter.clone());
    let (mut from, mut bytes, mut sent) = (start, 1, Vec::new());
    for _ in 0..1_000 {
        let chunk = read(file, from, bytes + more);
        let Ok(taken) = scan.take(&chunk, from) else { return };
        for range in taken.ranges {
            sent.extend_from_slice(&chunk[range]);
        }
        let Next::Read { from: next, bytes: least } = taken.next else {
            assert!(scan.next_offset() >= wanted.from);
            let mut expected = None;
            for batch in StoredBatches::new(sent.into(), tp(0), BodyCheck::Skip) {
                // A changed reserved byte of the body's padding is not the walk's to find.
                let Ok(batch) = batch else { return };
                let base = batch.stamp().map(|stamp| stamp.base_offset);
                let follows =
                    |expected| if filter.is_all() { Some(expected) == base } else { Some(expected) <= base };
                assert!(expected.is_none_or(follows), "a gap");
                assert!(filter.asks_for(batch.header().tag_bloom), "it was not asked for");
                expected =
                    base.and_then(|base| base.checked_add(u64::from(batch.header().last_offset_delta) + 1));
            }
            return;
        };
        assert!(next >= from && least > 0 && next + least <= wanted.file_end);
        if next + least > file.len() as u64 {
            return;
        }
        (from, bytes) = (next, least);
    }
    panic!("the walk does not end");
}

fn find(file: &[u8], wanted: &SegmentRead, start: u64, more: u64, time: i64) {
    let mut scan = BatchScan::new(wanted, start);
    let (mut from, mut bytes) = (start, 1);
    for _ in 0..1_000 {
        match scan.find_time(&read(file, from, bytes + more), from, time) {
            Err(_) | Ok(Found::None) => return,
            Ok(Found::At(offset, found)) => {
                assert!(found >= time && offset >= wanted.from && offset < wanted.until);
                return;
            }
            Ok(Found::Read { from: next, bytes: least }) => {
                if next + least > file.len() as u64 {
                    return;
                }
                (from, bytes) = (next, least);
            }
        }
    }
    panic!("the walk does not end");
}

fn index(file: &[u8], wanted: &SegmentRead, more: u64) {
    let mut scan = BatchScan::new(wanted, BLOCK as u64);
    let mut index = Index::new();
    let (mut from, mut bytes) = (BLOCK as u64, 1);
    for _ in 0..1_000 {
        match scan.index(&read(file, from, bytes + more), from, &mut index) {
            Err(_) | Ok(Next::Done) => break,
            Ok(Next::Read { from: next, bytes: least }) => {
                if next + least > file.len() as u64 {
                    break;
                }
                (from, bytes) = (next, least);
            }
        }
    }
    assert_eq!(index.broken_invariant(), None);
}

fn reseal(file: &mut [u8], block: usize) {
    if block == 0 {
        reseal_header(&mut file[..64], 0x3153_4C43);
    } else {
        reseal_batch(&mut file[block * BLOCK..], 0);
    }
}
