//! Golden bytes, round trips and damage.

use super::entry::*;
use super::*;
use crate::journal::{CompactedEntry, ExtentEntry, SegmentId, SegmentUse};
use corelog_wire::batch::{
    BatchFields, BatchLimits, CheckedBatch, HEADER_BYTES, STAMP_BYTES, Stamp, seal_body,
};
use corelog_wire::ids::{LeaderEpoch, Offset, TopicId, TopicPartition};

/// The commit of [`golden_commit`] up to its padding, computed by another program.
const GOLDEN: &str = concat!(
    "434c4a3101000000090000000000000000700000000000000050000000000000",
    "001000002001000004000000bebafeca2ff566b200000000000000004a5d1173",
    "0100000090000000101112131415161718191a1b1c1d1e1f0300000007000000",
    "2900000000000000c869e5cf8b01000005000000b61cd59d7000000001000000",
    "02000000010000007b68e5cf8b0100007b68e5cf8b010000ffffffffffffffff",
    "ffff0000ffffffff000000000000000010000000f70370b24af37a9600000000",
    "6120676f6c64656e20626f64792c203102000000480000001011121314151617",
    "18191a1b1c1d1e1f03000000060000000a000000000000000020000000000000",
    "0810000000000000140000000000000029000000000000000300000028000000",
    "101112131415161718191a1b1c1d1e1f03000000000000000f00000000000000",
    "0400000020000000101112131415161718191a1b1c1d1e1f0300000000000000",
);

/// The entry of [`direct_entry`]: the header of [`GOLDEN`]'s batch behind its place in a segment.
const GOLDEN_DIRECT: &str = concat!(
    "0600000088000000101112131415161718191a1b1c1d1e1f0300000007000000",
    "0030000000000000",
    "2900000000000000c869e5cf8b01000005000000b61cd59d7000000001000000",
    "02000000010000007b68e5cf8b0100007b68e5cf8b010000ffffffffffffffff",
    "ffff0000ffffffff000000000000000010000000f70370b24af37a9600000000",
);

/// The entry of [`compacted`], computed by another program.
const GOLDEN_COMPACTED: &str = concat!(
    "0700000058000000101112131415161718191a1b1c1d1e1f0300000001000080",
    "0a00000000000000290000000000000008100000000000000030000000000000",
    "7b68e5cf8b010000c869e5cf8b0100002900000000000000",
);

fn tp() -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes(std::array::from_fn(|i| 0x10 + u8::try_from(i).unwrap())), 3)
}

fn batch(body: &[u8], records: u32) -> CheckedBatch {
    let bytes = seal_body(body, &BatchFields::plain(records, 1_700_000_000_123), tp());
    CheckedBatch::check(bytes, tp(), &BatchLimits { batch_bytes_max: 1 << 23 }).unwrap()
}

fn batch_entry(base: u64, body: &[u8]) -> Entry {
    let stamp = Stamp {
        base_offset: Offset::new(base),
        append_timestamp_ms: 1_700_000_000_456,
        leader_epoch: LeaderEpoch::new(5),
    };
    Entry::Batch { tp: tp(), segment_use: SegmentUse(7), stamp, batch: batch(body, 2) }
}

fn extent() -> ExtentEntry {
    ExtentEntry {
        segment: SegmentId { tp: tp(), base: Offset::new(10), segment_use: SegmentUse(6) },
        file_position: 8192,
        bytes: 4104,
        first: Offset::new(20),
        end: Offset::new(41),
    }
}

fn commit(at: u64, session: u64, flushed_to: u64, entries: Vec<Entry>) -> Commit {
    let used = COMMIT_HEADER_BYTES + entries.iter().map(entry_bytes).sum::<u64>();
    Commit {
        at: Position::new(at),
        bytes: used.next_multiple_of(BLOCK),
        session: Session(session),
        flushed_to: Position::new(flushed_to),
        entries,
        direct: Vec::new(),
    }
}

fn golden_commit() -> Commit {
    let entries = vec![
        batch_entry(41, b"a golden body, 1"),
        Entry::Extent(extent()),
        Entry::LogStart { tp: tp(), log_start: Offset::new(15) },
        Entry::Removed { tp: tp() },
    ];
    commit(0x7000, 9, 0x5000, entries)
}

/// Packs into memory full of old bytes.
fn pack(packer: &mut Packer, commit: &Commit) -> Vec<u8> {
    let mut out = vec![0xA5; usize::try_from(commit.bytes).unwrap()];
    packer.pack(commit, &mut out);
    out
}

fn views(bytes: &[u8]) -> Result<Vec<EntryView>, LayoutError> {
    let header = CommitHeader::parse(bytes)?;
    header.check_body(bytes)?;
    entries(&header, bytes)?.collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |c: u8| u8::try_from(char::from(c).to_digit(16).unwrap()).unwrap();
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// Makes the checksums hold again after a change.
fn reseal(commit: &mut [u8]) {
    let entries_bytes = u32_at(commit, at::ENTRIES_BYTES) as usize;
    if let Some(body) = commit.get(HEADER..HEADER + entries_bytes) {
        let body_crc = crc32fast::hash(body);
        put(commit, at::BODY_CRC, &body_crc.to_le_bytes());
    }
    let header_crc = seeded_crc(&commit[..at::CRC]);
    put(commit, at::CRC, &header_crc.to_le_bytes());
}

fn direct_entry(base: u64, body: &[u8], file_position: u64) -> Entry {
    let Entry::Batch { tp, segment_use, stamp, batch } = batch_entry(base, body) else { unreachable!() };
    Entry::Direct { tp, segment_use, stamp, batch, file_position }
}

#[test]
fn golden_bytes_of_a_direct_batch() {
    let mut direct = commit(0, 9, 0, vec![direct_entry(41, b"a golden body, 1", 0x3000)]);
    let write = DirectWrite { segment: extent().segment, file_position: 0x3000, bytes: 112 };
    let write = DirectWrite { segment: SegmentId { segment_use: SegmentUse(7), ..write.segment }, ..write };
    direct.direct.push(write.clone());
    let packed = pack(&mut Packer::new(Session(9), 0), &direct);
    let golden = unhex(GOLDEN_DIRECT);
    assert_eq!(packed[HEADER..HEADER + golden.len()], golden);
    let views = views(&packed).unwrap();
    let EntryView::Direct { tp: found, segment_use, file_position, header, stamp } = views[0] else {
        panic!("{:?}", views[0])
    };
    assert_eq!((found, segment_use, file_position), (tp(), SegmentUse(7), 0x3000));
    assert_eq!(&header, batch(b"a golden body, 1", 2).header());
    assert_eq!(stamp.base_offset, Offset::new(41));
    let mut file = vec![0xA5; 4096];
    Packer::pack_direct(&direct, &write, &mut file);
    let stored = bytes::Bytes::copy_from_slice(&file[..112]);
    assert_eq!(stored[..HEADER_BYTES], golden[DIRECT_BATCH..]);
    assert!(CheckedBatch::check_stored(stored, tp(), corelog_wire::batch::BodyCheck::Verify).is_ok());
    assert!(file[112..].iter().all(|&byte| byte == 0), "recycled memory shows through");
}

fn compacted() -> CompactedEntry {
    CompactedEntry {
        segment: SegmentId { tp: tp(), base: Offset::new(10), segment_use: SegmentUse(0x8000_0001) },
        end: Offset::new(41),
        bytes: 4104,
        file_end: 12_288,
        max_timestamp_ms: 1_700_000_000_123,
        last_append_ms: 1_700_000_000_456,
        clean_end: Offset::new(41),
    }
}

#[test]
fn golden_bytes_of_a_compacted_segment() {
    let packed = pack(&mut Packer::new(Session(9), 0), &commit(0, 9, 0, vec![Entry::Compacted(compacted())]));
    let golden = unhex(GOLDEN_COMPACTED);
    assert_eq!(packed[HEADER..HEADER + golden.len()], golden);
    assert_eq!(views(&packed).unwrap(), [EntryView::Compacted(compacted())]);
}

#[test]
fn a_compacted_segment_that_cannot_be_is_refused() {
    for broken in [
        CompactedEntry { end: Offset::new(10), ..compacted() },
        CompactedEntry { bytes: 0, ..compacted() },
        CompactedEntry { bytes: 4100, ..compacted() },
        CompactedEntry { bytes: 8200, ..compacted() },
        CompactedEntry { file_end: 12_280, ..compacted() },
        CompactedEntry { file_end: 0, ..compacted() },
        CompactedEntry { file_end: u64::MAX - 4095, ..compacted() },
    ] {
        let read =
            views(&pack(&mut Packer::new(Session(1), 0), &commit(0, 1, 0, vec![Entry::Compacted(broken)])));
        assert!(matches!(read, Err(LayoutError::Entry { .. })), "{broken:?}: {read:?}");
    }
}

#[test]
fn a_direct_batch_is_behind_the_first_block_of_a_segment() {
    for (file_position, sound) in
        [(0, false), (4088, false), (4096, true), (4104, true), (4100, false), (u64::MAX - 7, false)]
    {
        let direct = commit(0, 1, 0, vec![direct_entry(1, &[1; 16], file_position)]);
        let read = views(&pack(&mut Packer::new(Session(1), 0), &direct));
        assert_eq!(read.is_ok(), sound, "{file_position}: {read:?}");
    }
}

#[test]
fn golden_bytes() {
    let packed = pack(&mut Packer::new(Session(9), 0xCAFE_BABE), &golden_commit());
    let golden = unhex(GOLDEN);
    assert_eq!(packed.len(), 4096);
    assert_eq!(packed[..golden.len()], golden);
    assert!(packed[golden.len()..].iter().all(|&byte| byte == 0), "recycled memory shows through");
}

#[test]
fn what_is_packed_is_read_back() {
    let packed = pack(&mut Packer::new(Session(9), 0xCAFE_BABE), &golden_commit());
    let header = CommitHeader::parse(&packed).unwrap();
    assert_eq!((header.session, header.position), (Session(9), Position::new(0x7000)));
    assert_eq!(header.flushed_to, Position::new(0x5000));
    assert_eq!((header.bytes, header.entry_count, header.prev_crc), (4096, 4, 0xCAFE_BABE));
    let views = views(&packed).unwrap();
    let EntryView::Batch { tp: found, segment_use, at_in_commit, bytes, header, stamp } = views[0] else {
        panic!("{:?}", views[0])
    };
    assert_eq!((found, segment_use, at_in_commit, bytes), (tp(), SegmentUse(7), 96, 112));
    assert_eq!(&header, batch(b"a golden body, 1", 2).header());
    assert_eq!((stamp.base_offset, stamp.leader_epoch), (Offset::new(41), LeaderEpoch::new(5)));
    assert_eq!(views[1], EntryView::Extent(extent()));
    assert_eq!(views[2], EntryView::LogStart { tp: tp(), log_start: Offset::new(15) });
    assert_eq!(views[3], EntryView::Removed { tp: tp() });
    assert_eq!(views.len(), 4);
}

#[test]
fn a_batch_in_a_commit_is_a_stored_batch() {
    let packed = pack(&mut Packer::new(Session(9), 0), &golden_commit());
    let bytes = bytes::Bytes::copy_from_slice(&packed[96..96 + 112]);
    let stored = CheckedBatch::check_stored(bytes, tp(), corelog_wire::batch::BodyCheck::Verify).unwrap();
    assert_eq!(stored.stamp().unwrap().base_offset, Offset::new(41));
}

#[test]
fn commits_are_linked() {
    let mut packer = Packer::new(Session(1), 0);
    let first = commit(0, 1, 0, vec![batch_entry(0, &[7; 5_000])]);
    let second = commit(first.bytes, 1, 0, Vec::new());
    let (first, second) = (pack(&mut packer, &first), pack(&mut packer, &second));
    assert_eq!(first.len(), 8192);
    let (first, second) = (CommitHeader::parse(&first).unwrap(), CommitHeader::parse(&second).unwrap());
    assert_eq!((first.prev_crc, second.prev_crc), (0, first.header_crc));
    assert_eq!(packer.last_crc(), second.header_crc);
    assert_eq!((second.entry_count, second.entries_bytes, second.bytes), (0, 0, 4096));
}

#[test]
fn an_entry_that_fills_the_block_leaves_no_padding() {
    // 64 of the commit, 32 of the entry, 96 of the batch and its body are one block.
    let full = commit(0, 1, 0, vec![batch_entry(0, &[1; 4096 - 64 - 32 - 96])]);
    assert_eq!(full.bytes, 4096);
    assert_eq!(views(&pack(&mut Packer::new(Session(1), 0), &full)).unwrap().len(), 1);
}

#[test]
fn nothing_is_a_commit() {
    assert_eq!(CommitHeader::parse(&[0; 4096]), Err(LayoutError::Magic));
    assert_eq!(CommitHeader::parse(&[]), Err(LayoutError::Short { bytes: 0, wanted: 64 }));
    let mut magic = [0; 64];
    magic[..4].copy_from_slice(&MAGIC);
    assert_eq!(CommitHeader::parse(&magic), Err(LayoutError::HeaderChecksum));
}

#[test]
fn any_changed_byte_up_to_the_padding_is_noticed() {
    let sound = pack(&mut Packer::new(Session(9), 1), &golden_commit());
    let used = unhex(GOLDEN).len();
    for byte in 0..used {
        for bit in 0..8 {
            let mut bytes = sound.clone();
            bytes[byte] ^= 1 << bit;
            let error = views(&bytes).unwrap_err();
            let expected = match byte {
                0..4 => LayoutError::Magic,
                4..64 => LayoutError::HeaderChecksum,
                _ => LayoutError::BodyChecksum,
            };
            assert_eq!(error, expected, "bit {bit} of byte {byte}");
        }
    }
}

#[test]
fn a_torn_commit_is_noticed_at_every_cut() {
    let body: Vec<u8> = (0..9_000_u32).map(|i| u8::try_from(i % 251).unwrap() + 1).collect();
    let torn = commit(0, 9, 0, vec![batch_entry(41, &body)]);
    let sound = pack(&mut Packer::new(Session(9), 1), &torn);
    let used = COMMIT_HEADER_BYTES + entry_bytes(&torn.entries[0]);
    for cut in (0..usize::try_from(used).unwrap()).step_by(8).filter(|cut| *cut != 0) {
        // What was there before: zeros, and an older commit's bytes.
        for old in [0, 0xEE] {
            let mut bytes = sound.clone();
            bytes[cut..].fill(old);
            assert!(views(&bytes).is_err(), "cut at {cut}");
        }
        assert!(views(&sound[..cut]).is_err(), "ends at {cut}");
    }
}

#[test]
fn a_newer_version_is_said_to_be_one() {
    let mut bytes = pack(&mut Packer::new(Session(9), 1), &golden_commit());
    bytes[at::VERSION] = 2;
    reseal(&mut bytes);
    assert_eq!(CommitHeader::parse(&bytes), Err(LayoutError::NewerVersion { version: 2 }));
}

#[test]
fn sound_checksums_do_not_excuse_impossible_headers() {
    let sound = pack(&mut Packer::new(Session(9), 1), &golden_commit());
    let faults: &[(usize, &[u8])] = &[
        (at::VERSION, &[0]),
        (at::VERSION + 1, &[1]),
        (at::VERSION + 2, &[1]),
        (at::ZERO, &[1]),
        (at::ZERO + 7, &[1]),
        (at::BYTES, &[0; 4]),
        (at::BYTES, &[1]),
        (at::BYTES, &[0xff; 4]),
        (at::ENTRIES_BYTES, &[0xff, 0xff]),
        (at::ENTRIES_BYTES, &[0x21]),
        (at::ENTRIES_BYTES, &[0; 4]),
        (at::ENTRY_COUNT, &[0; 4]),
        (at::ENTRY_COUNT, &[0xff; 4]),
        (at::POSITION, &[8]),
        (at::POSITION + 7, &[0xf0]),
        (at::FLUSHED_TO, &[1]),
        (at::FLUSHED_TO + 1, &[0x80]),
    ];
    for (at, value) in faults {
        let mut bytes = sound.clone();
        put(&mut bytes, *at, value);
        reseal(&mut bytes);
        let read = CommitHeader::parse(&bytes);
        assert!(matches!(read, Err(LayoutError::Header { .. })), "{value:?} at {at}: {read:?}");
    }
}

#[test]
fn sound_checksums_do_not_excuse_impossible_entries() {
    let sound = pack(&mut Packer::new(Session(9), 1), &golden_commit());
    let (batch, extent) = (HEADER, HEADER + 144);
    let (log_start, removed) = (extent + EXTENT, extent + EXTENT + LOG_START);
    let end = removed + ENTRY;
    let faults: &[(usize, &[u8])] = &[
        (batch + 1, &[1]),
        (batch + 3, &[1]),
        (batch + entry_at::BYTES, &[0]),
        (batch + entry_at::BYTES, &[143]),
        (batch + entry_at::BYTES, &[136]),
        (batch + entry_at::BYTES, &[0xff; 4]),
        (batch + ENTRY, &[42]),
        (batch + entry_at::PARTITION, &[4]),
        (batch + ENTRY + 24, &[0x68]),
        (extent + entry_at::BYTES, &[80]),
        (extent + entry_at::FILE_POSITION, &[1]),
        (extent + entry_at::FILE_POSITION, &[0; 8]),
        (extent + entry_at::EXTENT_BYTES, &[0; 8]),
        (extent + entry_at::EXTENT_BYTES, &[4]),
        (extent + entry_at::EXTENT_BYTES, &[0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        (extent + entry_at::BASE, &[21]),
        (extent + entry_at::END, &[20]),
        (log_start + entry_at::SEGMENT_USE, &[1]),
        (log_start + entry_at::BYTES, &[32]),
        (removed, &[3]),
        (removed + entry_at::BYTES, &[0xff; 4]),
    ];
    for (at, value) in faults {
        let mut bytes = sound[..end].to_vec();
        put(&mut bytes, *at, value);
        bytes.resize(4096, 0);
        reseal(&mut bytes);
        let read = views(&bytes);
        assert!(
            matches!(read, Err(LayoutError::Entry { .. } | LayoutError::Batch { .. })),
            "{value:?} at {at}: {read:?}"
        );
    }
    for kind in [0, 5, 255] {
        let mut bytes = sound.clone();
        bytes[removed] = kind;
        reseal(&mut bytes);
        let at = u32::try_from(removed).unwrap();
        assert_eq!(views(&bytes), Err(LayoutError::UnknownKind { at, kind }));
    }
}

#[test]
fn too_many_and_too_few_entries_are_noticed_and_end_the_walk() {
    for count in [3_u8, 5] {
        let mut bytes = pack(&mut Packer::new(Session(9), 1), &golden_commit());
        bytes[at::ENTRY_COUNT] = count;
        reseal(&mut bytes);
        let header = CommitHeader::parse(&bytes).unwrap();
        let all: Vec<_> = entries(&header, &bytes).unwrap().collect();
        assert_eq!(all.iter().filter(|view| view.is_ok()).count(), usize::from(count.min(4)));
        assert!(matches!(all.last(), Some(Err(LayoutError::Entry { .. }))));
        assert_eq!(all.len(), usize::from(count.min(4)) + 1);
    }
}

#[test]
fn an_unstamped_batch_is_no_entry() {
    let mut bytes = pack(&mut Packer::new(Session(9), 1), &golden_commit());
    bytes[HEADER + ENTRY..HEADER + ENTRY + STAMP_BYTES].fill(0);
    reseal(&mut bytes);
    assert_eq!(views(&bytes), Err(LayoutError::Batch { at: 64, error: BatchError::NotStamped }));
}

#[test]
fn random_bytes_never_panic() {
    let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let sound = pack(&mut Packer::new(Session(9), 1), &golden_commit());
    let mut survived = 0;
    for _ in 0..20_000 {
        let mut bytes = sound.clone();
        for _ in 0..=next() % 4 {
            let byte = usize::try_from(next() % 400).unwrap();
            bytes[byte] = next().to_le_bytes()[0];
        }
        put(&mut bytes, 0, &MAGIC);
        reseal(&mut bytes);
        survived += usize::from(views(&bytes).is_ok());
    }
    assert!(survived > 0, "some changes are legal, such as that of a log start");
}

#[test]
#[should_panic(expected = "not the next one")]
fn a_commit_out_of_order_is_refused() {
    let mut packer = Packer::new(Session(1), 0);
    pack(&mut packer, &commit(0, 1, 0, Vec::new()));
    pack(&mut packer, &commit(0, 1, 0, Vec::new()));
}

#[test]
#[should_panic(expected = "another session")]
fn a_commit_of_another_session_is_refused() {
    pack(&mut Packer::new(Session(1), 0), &commit(0, 2, 0, Vec::new()));
}
