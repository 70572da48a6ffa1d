//! Golden bytes, round trips, damage, and an index against the list of its batches.

use super::*;
use crate::journal::SegmentUse;
use corelog_wire::ids::{TopicId, TopicPartition};

fn id() -> SegmentId {
    let tp = TopicPartition::new(TopicId::from_bytes([0x42; 16]), 1);
    SegmentId { tp, base: Offset::new(100), segment_use: SegmentUse(3) }
}

fn content() -> IndexFileContent {
    let mut index = Index::new();
    index.push(Offset::new(100), 4096, 70_000, 1_000);
    index.push(Offset::new(110), 77_824, 70_000, 900);
    index.push(Offset::new(125), 147_824, 800, 1_100);
    let batch = |first: i32, base: u64| ProducerBatch {
        first_sequence: first,
        last_sequence: first + 4,
        base_offset: base,
        end_offset: base + 5,
        append_timestamp_ms: 1_050,
    };
    IndexFileContent {
        end: 130,
        file_end: 151_552,
        index,
        epochs: vec![(1, 0), (4, 100)],
        producers: vec![
            ProducerRecord { id: 7, epoch: 0, batches: vec![batch(0, 50), batch(5, 90)] },
            ProducerRecord { id: 9, epoch: 2, batches: vec![batch(20, 60)] },
        ],
    }
}

/// Makes the checksums hold again after a change.
fn reseal(file: &mut [u8]) {
    let used = HEADER_BYTES + u32::from_le_bytes(field(file, ARCHIVE_BYTES_AT)) as usize;
    if let Some(archive) = file.get(HEADER_BYTES..used) {
        let crc = crc32fast::hash(archive);
        file[ARCHIVE_CRC_AT..ZERO_AT].copy_from_slice(&crc.to_le_bytes());
    }
    seal_header(file, CRC_SEED);
}

fn xorshift(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[test]
fn golden_bytes() {
    let file = content().encode(id());
    assert_eq!(file.len(), 4096);
    let used = HEADER_BYTES + u32::from_le_bytes(field(&file, ARCHIVE_BYTES_AT)) as usize;
    let hex: String = file[..used].iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    assert_eq!(hex, GOLDEN);
    assert!(file[used..].iter().all(|&byte| byte == 0));
}

/// The archive is rkyv's; a change of it is a change of the format.
const GOLDEN: &str = concat!(
    "434c583101000000424242424242424242424242424242420100000003000000",
    "640000000000000038010000ed42f6bf000000000000000000000000216f8223",
    "6400000000000000001000000000000000000000000000806e00000000000000",
    "0030010000000000e8030000000000007d000000000000007041020000000000",
    "e803000000000000010000000000000000000000000000000400000000000000",
    "6400000000000000000000000400000032000000000000003700000000000000",
    "1a0400000000000005000000090000005a000000000000005f00000000000000",
    "1a0400000000000014000000180000003c000000000000004100000000000000",
    "1a0400000000000007000000000000000000000094ffffff0200000000000000",
    "090000000000000002000000bcffffff01000000000000008200000000000000",
    "0050020000000000f8feffff0300000000000100000000009044020000000000",
    "4c0400000000000020ffffff0200000098ffffff02000000",
);

#[test]
fn what_is_written_is_read_back() {
    let file = content().encode(id());
    let read = IndexFile::open(&file, id()).unwrap();
    assert_eq!(read.content(), &content());
    // Bytes of a read may lie anywhere in memory.
    for shift in 1..17 {
        let mut shifted = vec![0; shift];
        shifted.extend_from_slice(&file);
        assert_eq!(IndexFile::open(&shifted[shift..], id()).as_ref(), Ok(&read));
    }
    let starts: Vec<u64> =
        [99, 100, 109, 110, 124, 125, 1_000].map(|o| read.start_for(Offset::new(o))).to_vec();
    assert_eq!(starts, [4096, 4096, 4096, 77_824, 77_824, 147_824, 147_824]);
    let starts: Vec<u64> =
        [i64::MIN, 0, 1_000, 1_001, 1_100, 1_101, i64::MAX].map(|t| read.start_for_time(t)).to_vec();
    assert_eq!(starts, [4096, 4096, 4096, 147_824, 147_824, 147_824, 147_824]);
}

#[test]
fn an_empty_index_starts_at_the_first_extent() {
    let empty = IndexFileContent { index: Index::new(), ..content() };
    let read = IndexFile::open(&empty.encode(id()), id()).unwrap();
    assert_eq!((read.start_for(Offset::new(120)), read.start_for_time(0)), (BLOCK, BLOCK));
    assert_eq!((Index::new().start_for(Offset::new(0)), Index::new().start_for_time(0)), (None, None));
    assert_eq!(Index::new().max_timestamp_ms(), None);
}

#[test]
fn any_changed_byte_before_the_padding_is_noticed() {
    let file = content().encode(id());
    let used = HEADER_BYTES + u32::from_le_bytes(field(&file, ARCHIVE_BYTES_AT)) as usize;
    for byte in 0..used {
        for flip in [0x01, 0x80, 0xff] {
            let mut changed = file.clone();
            changed[byte] ^= flip;
            assert!(IndexFile::open(&changed, id()).is_err(), "byte {byte}");
        }
    }
    for cut in 0..used {
        assert!(IndexFile::open(&file[..cut], id()).is_err(), "cut at {cut}");
    }
    assert_eq!(IndexFile::open(&[0; 4096], id()), Err(SegmentError::Magic));
}

#[test]
fn the_index_file_of_another_segment_is_refused() {
    let other = SegmentId { segment_use: SegmentUse(4), ..id() };
    assert_eq!(
        IndexFile::open(&content().encode(other), id()),
        Err(SegmentError::OtherSegment { found: other })
    );
}

#[test]
fn sound_checksums_do_not_excuse_impossible_content() {
    let change = |change: fn(&mut IndexFileContent)| {
        let mut content = content();
        change(&mut content);
        IndexFile::open(&content.encode(id()), id())
    };
    let changes: [fn(&mut IndexFileContent); 12] = [
        |c| c.end = 100,
        |c| c.end = 125,
        |c| c.file_end = 147_900,
        |c| c.index.entries.swap(0, 1),
        |c| c.index.entries[1].offset = 100,
        |c| c.index.entries[1].file_position = 4096,
        |c| c.index.entries[2].max_timestamp_before_ms = 999,
        |c| c.index.entries[0].file_position = 0,
        |c| c.index.entries[0].offset = 99,
        |c| c.index.max_timestamp_ms = 999,
        |c| c.index.step_bytes = 1,
        |c| c.epochs[1].0 = 1,
    ];
    for (row, wrong) in changes.into_iter().enumerate() {
        let read = change(wrong);
        assert!(matches!(read, Err(SegmentError::Contradiction { .. })), "change {row}: {read:?}");
    }
    assert!(change(|c| c.producers.clear()).is_ok());
    let mut newer = content().encode(id());
    newer[4] = 2;
    reseal(&mut newer);
    assert_eq!(IndexFile::open(&newer, id()), Err(SegmentError::NewerVersion { version: 2 }));
}

#[test]
fn random_archives_with_sound_checksums_never_panic() {
    let file = content().encode(id());
    let used = u64::from(u32::from_le_bytes(field::<4>(&file, ARCHIVE_BYTES_AT)));
    let mut seed = 0x9E37_79B9_7F4A_7C15;
    let mut refused = 0;
    for _ in 0..30_000 {
        let mut changed = file.clone();
        for _ in 0..=xorshift(&mut seed) % 4 {
            let at = HEADER_BYTES + usize::try_from(xorshift(&mut seed) % used).unwrap();
            changed[at] = xorshift(&mut seed).to_le_bytes()[0];
        }
        if xorshift(&mut seed).is_multiple_of(8) {
            changed[ARCHIVE_BYTES_AT] = xorshift(&mut seed).to_le_bytes()[0];
        }
        reseal(&mut changed);
        refused += usize::from(IndexFile::open(&changed, id()).is_err());
    }
    assert!(refused > 1_000, "{refused}");
}

#[test]
fn an_index_never_says_too_late() {
    for seed in 1..=40_u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut index = Index::new();
        let mut batches = Vec::new();
        let (mut offset, mut at) = (1_000, BLOCK);
        let sizes = [2_000, 70_000, 600_000][usize::try_from(seed % 3).unwrap()];
        for _ in 0..4_000 {
            let bytes = 96 + xorshift(&mut random) % sizes / 8 * 8;
            let time = 5_000
                + i64::try_from(xorshift(&mut random) % 1_000).unwrap()
                + i64::try_from(offset).unwrap();
            index.push(Offset::new(offset), at, u32::try_from(bytes).unwrap(), time);
            batches.push((offset, at, time));
            offset += 1 + xorshift(&mut random) % 9;
            at += bytes;
            if xorshift(&mut random).is_multiple_of(20) {
                at = at.next_multiple_of(BLOCK);
            }
        }
        assert_eq!(index.broken_invariant(), None);
        assert!(index.entries().len() <= INDEX_ENTRIES_MAX);
        // Sparse, but not more than it must be.
        let gap_max = index.step_bytes / INDEX_STEP_BYTES * (INDEX_STEP_BYTES + sizes + 2 * BLOCK);
        assert!(index.entries().windows(2).all(|p| p[1].file_position - p[0].file_position <= gap_max));
        assert_eq!(index.start_for(Offset::new(999)), None);
        for &(offset, at, time) in &batches {
            let start = index.start_for(Offset::new(offset)).unwrap();
            assert!(start <= at && at - start <= gap_max, "seed {seed}: {start} for {at}");
            let (_, first_at, _) = batches.iter().find(|batch| batch.2 >= time).unwrap();
            let start = index.start_for_time(time).unwrap();
            assert!(start <= *first_at, "seed {seed}: {start} for time {time} at {first_at}");
        }
        let latest = batches.iter().map(|batch| batch.2).max();
        assert_eq!(index.max_timestamp_ms(), latest);
        assert_eq!(index.start_for_time(latest.unwrap() + 1), None);
    }
}

#[test]
fn a_full_index_keeps_its_first_entry_and_doubles_its_step() {
    let mut index = Index::new();
    for batch in 0..2 * INDEX_ENTRIES_MAX as u64 {
        index.push(Offset::new(batch), BLOCK + batch * INDEX_STEP_BYTES, 4096, 0);
    }
    assert_eq!(index.entries()[0].file_position, BLOCK);
    assert_eq!(index.step_bytes, 2 * INDEX_STEP_BYTES);
    assert_eq!(index.entries().len(), INDEX_ENTRIES_MAX);
    let steps = index.entries().windows(2).map(|pair| pair[1].file_position - pair[0].file_position);
    assert!(steps.into_iter().all(|step| step == 2 * INDEX_STEP_BYTES));
}

#[test]
fn a_batch_out_of_order_is_left_out_but_not_its_time() {
    let mut index = Index::new();
    index.push(Offset::new(10), 4096, 1_200, 1_000);
    for (offset, at) in [(11, 4096), (11, 5_288), (10, 8_192), (9, 8_192)] {
        index.push(Offset::new(offset), at, 1_200, 2_000);
    }
    assert_eq!((index.entries().len(), index.file_end()), (1, 5_296));
    assert_eq!((index.start_for_time(2_000), index.broken_invariant()), (Some(4096), None));
}

#[test]
fn an_index_survives_a_checkpoint() {
    let index = content().index;
    let bytes = rkyv::to_bytes::<rancor::Error>(&index).unwrap();
    let read: Index = rkyv::from_bytes::<Index, rancor::Error>(&bytes).unwrap();
    assert_eq!(read, index);
}
