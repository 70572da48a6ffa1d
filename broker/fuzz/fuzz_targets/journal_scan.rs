//! A journal file with changes: superblocks, commits, entries, and a whole recovery over it.
//!
//! Must end; must give only commits that hold by every rule; must not cut what was flushed.
#![no_main]

use corelog_broker_fuzz::{
    BLOCK, Input, RING_BYTES, RING_BYTES_WRAPPED, journal, read, reseal_batch, reseal_header, seeded_crc,
    u32_at,
};
use corelog_core::checkpoint::{SlotHeader, encode_slot};
use corelog_core::journal::{
    CommitHeader, Position, RING_DATA_START, Scan, SegmentUse, Superblock, Verdict, entries,
};
use corelog_core::recovery::Recovery;
use corelog_core::shard::ShardConfig;
use corelog_wire::ids::ShardId;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static IMAGES: LazyLock<[Vec<u8>; 2]> = LazyLock::new(|| [journal(RING_BYTES), journal(RING_BYTES_WRAPPED)]);

fuzz_target!(|data: &[u8]| {
    parse_raw(data);
    let mut input = Input(data);
    let mut file = IMAGES[input.below(2)].clone();
    let ring_bytes = (file.len() - 2 * BLOCK) as u64;
    // Often the start, where an empty checkpoint is right.
    let from = Position::new((input.below(64).saturating_sub(32) * BLOCK) as u64);
    let flushed_to = Position::new(from.get() + (input.below(32).saturating_sub(20) * BLOCK) as u64);
    input.change(&mut file, reseal);
    scan(&file, ring_bytes, from, flushed_to);
    recover(&file, ring_bytes, from, flushed_to);
});

/// Any bytes as one superblock pair, one commit.
fn parse_raw(data: &[u8]) {
    let _ = Superblock::parse_newest(data);
    if let Ok(header) = CommitHeader::parse(data)
        && header.check_body(data).is_ok()
        && let Ok(views) = entries(&header, data)
    {
        assert!(views.count() <= header.entry_count as usize + 1);
    }
}

fn scan(file: &[u8], ring_bytes: u64, from: Position, flushed_to: Position) {
    let Ok((superblock, _)) = Superblock::parse_newest(file) else { return };
    if superblock.ring_bytes() != ring_bytes {
        return;
    }
    let known = superblock.flushed_to().max(flushed_to);
    let mut scan = Scan::new(superblock.clone(), from, flushed_to);
    let (mut at, mut last_crc, mut fed) = (from, None, 0);
    while let Some(wanted) = scan.next_read() {
        assert!(wanted.bytes > 0 && wanted.ring_offset + wanted.bytes <= ring_bytes);
        let bytes = read(file, RING_DATA_START + wanted.ring_offset, wanted.bytes);
        fed += wanted.bytes;
        assert!(fed <= ring_bytes, "the scan does not end");
        for scanned in scan.feed(&bytes) {
            let header = scanned.header;
            assert_eq!(header.position, at);
            assert_eq!(CommitHeader::parse(&scanned.bytes), Ok(header));
            assert_eq!(header.check_body(&scanned.bytes), Ok(()));
            assert!(superblock.session_covers(header.session, at));
            assert!(last_crc.is_none_or(|crc| crc == header.prev_crc));
            if let Ok(views) = entries(&header, &scanned.bytes) {
                assert!(views.count() <= header.entry_count as usize + 1);
            }
            at = at.plus(scanned.bytes.len() as u64);
            last_crc = Some(header.header_crc);
        }
    }
    match scan.finish().0 {
        Verdict::Clean { end } | Verdict::Torn { end } => {
            assert_eq!(end, at);
            assert!(end >= known, "what was flushed is cut");
        }
        Verdict::Corrupt { from, .. } => assert_eq!(from, at),
    }
}

fn recover(file: &[u8], ring_bytes: u64, from: Position, flushed_to: Position) {
    let config = ShardConfig {
        shard: ShardId::new(0),
        ring_bytes,
        tail_cache_bytes: 1 << 20,
        disk_bytes_max: 1 << 30,
        recycled_bytes_max: 0,
        prewrite: false,
    };
    let header = SlotHeader {
        generation: 0,
        replay_from: from,
        flushed_to,
        next_use: SegmentUse(3),
        ..SlotHeader::default()
    };
    let slots = [Some(encode_slot(&header, 0, &[])), None];
    let Ok(mut recovery) = Recovery::new(config, &file[..2 * BLOCK], &slots) else { return };
    while let Some(wanted) = recovery.next_read() {
        recovery.feed(&read(file, RING_DATA_START + wanted.ring_offset, wanted.bytes));
    }
    if let Ok(recovered) = recovery.finish() {
        assert_eq!(recovered.shard.broken_invariant(), None);
        if matches!(recovered.report.verdict, Verdict::Corrupt { .. }) {
            assert!(recovered.superblocks.is_empty());
        }
    }
}

fn reseal(file: &mut [u8], block: usize) {
    let start = block * BLOCK;
    if block < 2 {
        let crc = seeded_crc(&file[start..start + BLOCK - 4], 0x534A_4C43);
        file[start + BLOCK - 4..start + BLOCK].copy_from_slice(&crc.to_le_bytes());
        return;
    }
    let commit = &mut file[start..];
    for partition in 0..2 {
        if u32_at(commit, 88) == partition {
            reseal_batch(&mut commit[96..], partition);
        }
    }
    let entries_bytes = u32_at(commit, 36) as usize;
    if let Some(body) = commit.get(64..64 + entries_bytes) {
        let crc = crc32fast::hash(body);
        commit[48..52].copy_from_slice(&crc.to_le_bytes());
    }
    reseal_header(&mut commit[..64], 0x314A_4C43);
}
