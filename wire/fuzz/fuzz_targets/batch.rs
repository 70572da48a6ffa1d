//! Any bytes as a batch, produced or stored, and as a run of stored ones. What is accepted keeps the format's rules.
#![no_main]

use bytes::Bytes;
use corelog_wire::batch::{BatchLimits, BodyCheck, CheckedBatch, HEADER_BYTES, StoredBatches};
use corelog_wire::ids::{TopicId, TopicPartition};
use libfuzzer_sys::fuzz_target;

const TP: TopicPartition = TopicPartition::new(TopicId::from_bytes([0xa5; 16]), 3);
const LIMITS: BatchLimits = BatchLimits { batch_bytes_max: 1 << 20 };

fuzz_target!(|data: &[u8]| {
    read(data);
    // A fuzzer rarely finds a checksum; give it the right one, so that what is behind it is reached.
    let mut data = data.to_vec();
    if let Some(first) = data.first_chunk_mut::<HEADER_BYTES>() {
        let crc = header_checksum(first);
        first[88..92].copy_from_slice(&crc.to_le_bytes());
        read(&data);
    }
});

fn read(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    if let Ok(batch) = CheckedBatch::check(bytes.clone(), TP, &LIMITS) {
        check(&batch);
        assert!(batch.stamp().is_none());
        assert_eq!(batch.header().last_offset_delta, batch.header().record_count - 1);
    }
    let mut total = 0;
    for batch in StoredBatches::new(bytes.clone(), TP, BodyCheck::Skip).flatten() {
        check(&batch);
        assert!(batch.stamp().is_some());
        total += batch.bytes().len();
    }
    assert!(total <= bytes.len());
    if let Ok(batch) = CheckedBatch::check_stored(bytes, TP, BodyCheck::Verify) {
        check(&batch);
    }
}

/// As docs/FORMAT.md has it.
fn header_checksum(first: &[u8; HEADER_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(TP.topic.as_bytes());
    hasher.update(&TP.partition.to_le_bytes());
    hasher.update(&first[24..88]);
    hasher.finalize()
}

fn check(batch: &CheckedBatch) {
    let header = batch.header();
    assert_eq!(batch.bytes().len(), header.batch_bytes as usize);
    assert_eq!(batch.body().len(), header.body_bytes as usize);
    assert!(batch.bytes().len().is_multiple_of(8));
    assert!(header.record_count > 0 && header.last_offset_delta >= header.record_count - 1);
}
