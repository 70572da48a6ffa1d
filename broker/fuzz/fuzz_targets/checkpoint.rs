//! Any bytes as a checkpoint slot, as they are and with checksums that hold; a sound slot with changes. What is read is a
//! log that keeps its invariants, and a recovery from it ends.
#![no_main]

use corelog_broker_fuzz::{BLOCK, Input, RING_BYTES, batch, journal, read, segment, stored, tp, u32_at};
use corelog_core::checkpoint::{PartitionImage, SlotHeader, decode_slot, encode_slot};
use corelog_core::journal::{ExtentEntry, Position, RING_DATA_START, SegmentUse};
use corelog_core::log::{Log, Place, batch_end};
use corelog_core::recovery::Recovery;
use corelog_core::shard::ShardConfig;
use corelog_wire::batch::parse_header;
use corelog_wire::ids::{Offset, ShardId};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static JOURNAL: LazyLock<Vec<u8>> = LazyLock::new(|| journal(RING_BYTES));

static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut body = Vec::new();
    for partition in 0..2 {
        let image = PartitionImage::capture(&log(partition));
        image.encode_into(&mut body).expect("a sound image");
    }
    let header = SlotHeader {
        generation: 4,
        replay_from: Position::new(0),
        flushed_to: Position::new(0),
        next_use: SegmentUse(9),
        ..SlotHeader::default()
    };
    encode_slot(&header, 2, &body)
});

fn log(partition: u32) -> Log {
    let mut log = Log::new(tp(partition));
    for base in 0..5 {
        let bytes = stored(&batch(partition, 300, 1, 1_000), base, 1);
        let (header, stamp) = parse_header(&bytes, tp(partition)).expect("a sound batch");
        let stamp = stamp.expect("a stamped batch");
        let place = Place {
            base: stamp.base_offset,
            end: batch_end(&header, stamp.base_offset),
            position: Position::new(base * BLOCK as u64),
            direct: None,
            bytes: header.batch_bytes,
            segment_use: SegmentUse(1 + partition),
            max_timestamp_ms: header.max_timestamp_ms,
            tag_bloom: 0,
        };
        log.replay(&header, &stamp, place).expect("the next batch");
    }
    let mut id = segment();
    (id.tp, id.segment_use) = (tp(partition), SegmentUse(1 + partition));
    let (first, end) = (Offset::new(0), Offset::new(3));
    log.destaged(&ExtentEntry { segment: id, file_position: BLOCK as u64, bytes: 1_200, first, end })
        .expect("a segment that is there");
    log
}

fuzz_target!(|data: &[u8]| {
    check(data);
    let mut slot = data.to_vec();
    reseal(&mut slot, 0);
    check(&slot);
    let mut slot = IMAGE.clone();
    Input(data).change(&mut slot, reseal);
    check(&slot);
});

fn check(slot: &[u8]) {
    let Ok((_, images)) = decode_slot(slot) else { return };
    for image in images {
        if let Ok(log) = image.restore() {
            assert_eq!(log.broken_invariant(), None);
        }
    }
    let config = ShardConfig {
        shard: ShardId::new(0),
        ring_bytes: RING_BYTES,
        tail_cache_bytes: 1 << 20,
        disk_bytes_max: 1 << 30,
        recycled_bytes_max: 0,
        prewrite: false,
    };
    let slots = [Some(slot.to_vec()), None];
    let Ok(mut recovery) = Recovery::new(config, &JOURNAL[..2 * BLOCK], &slots) else { return };
    let mut fed = 0;
    while let Some(wanted) = recovery.next_read() {
        fed += wanted.bytes;
        assert!(wanted.bytes > 0 && fed <= RING_BYTES, "the scan does not end");
        recovery.feed(&read(&JOURNAL, RING_DATA_START + wanted.ring_offset, wanted.bytes));
    }
    if let Ok(recovered) = recovery.finish() {
        assert_eq!(recovered.shard.broken_invariant(), None);
    }
}

/// Makes every checksum of a slot hold, as far as its lengths say where they are.
fn reseal(slot: &mut [u8], _: usize) {
    let body_bytes = u32_at(slot, 40) as usize;
    if let Some(body) = slot.get_mut(BLOCK..BLOCK + body_bytes) {
        let mut at = 0;
        while at + 8 <= body.len() {
            let bytes = u32_at(body, at) as usize;
            let Some(archive) = body.get(at + 8..at + 8 + bytes) else { break };
            let crc = crc32fast::hash(archive);
            body[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
            at = (at + 8 + bytes).next_multiple_of(8);
        }
        let crc = crc32fast::hash(body);
        slot[48..52].copy_from_slice(&crc.to_le_bytes());
    }
    if slot.len() >= 64 {
        let crc = crc32fast::hash(&slot[..60]);
        slot[60..64].copy_from_slice(&crc.to_le_bytes());
    }
}
