//! Any bytes as an index file, as they are and with checksums that hold; any bytes as the archive of one.
#![no_main]

use corelog_broker_fuzz::{BLOCK, Input, reseal_header, segment, u32_at};
use corelog_core::journal::{SegmentId, SegmentUse};
use corelog_core::segment::{Index, IndexFile, IndexFileContent, ProducerBatch, ProducerRecord};
use corelog_wire::ids::{Offset, TopicId, TopicPartition};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static IMAGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut index = Index::new();
    for batch in 0..6 {
        index.push(Offset::new(batch * 3), BLOCK as u64 + batch * 80_000, 70_000, 1_000);
    }
    let batch = ProducerBatch {
        first_sequence: 0,
        last_sequence: 4,
        base_offset: 3,
        end_offset: 8,
        append_timestamp_ms: 1_000,
    };
    let producer = ProducerRecord { id: 7, epoch: 0, batches: vec![batch; 2] };
    let (epochs, producers) = (vec![(1, 0), (2, 3)], vec![producer.clone(), producer]);
    IndexFileContent { end: 18, file_end: 1 << 20, index, epochs, producers }.encode(segment())
});

fuzz_target!(|data: &[u8]| {
    open(data);
    // The input is the whole file, with the right checksums.
    let mut file = data.to_vec();
    reseal(&mut file, 0);
    open(&file);
    // The input is the archive.
    let mut file = IMAGE[..64].to_vec();
    let Ok(archive_bytes) = u32::try_from(data.len()) else { return };
    file[40..44].copy_from_slice(&archive_bytes.to_le_bytes());
    file.extend_from_slice(data);
    reseal(&mut file, 0);
    open(&file);
    // The input says what to change in a sound file.
    let mut file = IMAGE.clone();
    Input(data).change(&mut file, reseal);
    open(&file);
});

/// As the file of the segment that the images speak of, and of the one it says it is of.
fn open(bytes: &[u8]) {
    open_as(bytes, segment());
    if let Some(named) = named(bytes) {
        open_as(bytes, named);
    }
}

/// As docs/FORMAT.md has it.
fn named(bytes: &[u8]) -> Option<SegmentId> {
    let topic = TopicId::from_bytes(*bytes.get(8..)?.first_chunk()?);
    let base = bytes.get(32..)?.first_chunk().map(|base| u64::from_le_bytes(*base))?;
    let (partition, segment_use) = (u32_at(bytes, 24), SegmentUse(u32_at(bytes, 28)));
    Some(SegmentId { tp: TopicPartition::new(topic, partition), base: Offset::new(base), segment_use })
}

fn open_as(bytes: &[u8], segment: SegmentId) {
    let Ok(file) = IndexFile::open(bytes, segment) else { return };
    let content = file.content();
    assert_eq!(content.index.broken_invariant(), None);
    for offset in [0, content.end / 2, content.end, u64::MAX] {
        let start = file.start_for(Offset::new(offset));
        assert!(start >= BLOCK as u64 && start <= content.file_end);
    }
    for time in [i64::MIN, 0, 1_000, i64::MAX] {
        let start = file.start_for_time(time);
        assert!(start >= BLOCK as u64 && start <= content.file_end);
    }
    assert_eq!(IndexFile::open(&content.encode(segment), segment).as_ref(), Ok(&file));
}

fn reseal(file: &mut [u8], _: usize) {
    let used = 64 + u32_at(file, 40) as usize;
    if let Some(archive) = file.get(64..used) {
        let crc = crc32fast::hash(archive);
        file[44..48].copy_from_slice(&crc.to_le_bytes());
    }
    if file.len() >= 64 {
        reseal_header(&mut file[..64], 0x3158_4C43);
    }
}
