//! Batches: bytes made apart from this code, round trips, and each rule broken.
//!
//! `golden/batch.hex` was made by a Python program: the body by the package kafka-python, the checksums by a bitwise
//! CRC-32C and by zlib.

use bytes::{Bytes, BytesMut};

use super::*;
use crate::error::ErrorCode;
use crate::ids::{LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, TopicId, TopicPartition};
use crate::keys::bloom_of;
use crate::records::{Records, RecordsBuilder};
use crate::testing::{Rng, golden};

const LIMITS: BatchLimits = BatchLimits { batch_bytes_max: 8 << 20 };

fn tp() -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes([0xa5; 16]), 3)
}

fn fields() -> BatchFields {
    BatchFields {
        attributes: Attributes::default(),
        record_count: 4,
        last_offset_delta: 3,
        base_timestamp_ms: 1_700_000_000_000,
        max_timestamp_ms: 1_700_000_123_456,
        producer_id: ProducerId::new(4242),
        producer_epoch: ProducerEpoch::new(7),
        base_sequence: Sequence::new(2_147_483_640),
        tag_bloom: bloom_of(b"red"),
    }
}

fn stamp() -> Stamp {
    Stamp {
        base_offset: Offset::new(1 << 40),
        append_timestamp_ms: 1_700_000_200_000,
        leader_epoch: LeaderEpoch::new(9),
    }
}

/// The batch of `golden/batch.hex`, as its producer sends it.
fn produced() -> Bytes {
    let mut records = RecordsBuilder::default();
    records.push(0, 0, Some(b"key"), Some(b"value"), &[]).unwrap();
    records.push(1, 5, None, Some(b"second"), &[(b"tag", Some(b"red")), (b"empty", Some(b""))]).unwrap();
    records.push(2, -1000, Some(b""), None, &[(b"null", None)]).unwrap();
    records.push(3, 123_456, Some(&[b'k'; 70]), Some(&[b'v'; 300]), &[]).unwrap();
    records.into_batch(&fields(), tp())
}

fn stamped(produced: &Bytes) -> Bytes {
    let (header, _) = parse_header(produced, tp()).unwrap();
    let mut bytes = BytesMut::from(&stamp().encode(header.header_crc)[..]);
    bytes.extend_from_slice(&produced[STAMP_BYTES..]);
    bytes.freeze()
}

fn check(bytes: impl Into<Bytes>) -> Result<CheckedBatch, BatchError> {
    CheckedBatch::check(bytes.into(), tp(), &LIMITS)
}

/// The produced batch with one field changed and the header's checksum made anew.
fn changed(at: usize, field: &[u8]) -> Vec<u8> {
    let mut bytes = produced().to_vec();
    bytes[at..at + field.len()].copy_from_slice(field);
    reseal(&mut bytes);
    bytes
}

fn reseal(bytes: &mut [u8]) {
    let crc = header::header_checksum(bytes.first_chunk().unwrap(), tp());
    bytes[at::HEADER_CRC..at::HEADER_CRC + 4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn golden_batch() {
    let bytes = golden("batch", &stamped(&produced()));
    let batch = CheckedBatch::check_stored(bytes.into(), tp(), BodyCheck::Verify).unwrap();
    assert_eq!(batch.stamp(), Some(&stamp()));
    assert_eq!(batch.header().body_crc32c, 0x88cd_36b9);
    assert_eq!(batch.header().record_count, 4);
    assert_eq!(batch.header().base_sequence, Sequence::new(2_147_483_640));
    assert_eq!(Records::new(batch.body(), 4).map(Result::unwrap).count(), 4);
}

#[test]
fn golden_stamp() {
    let bytes = golden("stamp", &stamp().encode(0x0123_4567));
    let bytes: [u8; STAMP_BYTES] = bytes.try_into().unwrap();
    assert_eq!(Stamp::decode(&bytes, 0x0123_4567), Ok(Some(stamp())));
    assert_eq!(Stamp::decode(&bytes, 0x0123_4568), Err(BatchError::BadStampChecksum));
    assert_eq!(Stamp::decode(&[0; STAMP_BYTES], 1), Ok(None));
    for at in 0..STAMP_BYTES {
        let mut damaged = bytes;
        damaged[at] ^= 0x10;
        assert_eq!(Stamp::decode(&damaged, 0x0123_4567), Err(BatchError::BadStampChecksum), "{at}");
    }
}

#[test]
fn a_produced_batch_is_checked_and_taken_apart() {
    let bytes = produced();
    let batch = check(bytes.clone()).unwrap();
    assert_eq!(batch.stamp(), None);
    assert_eq!(batch.bytes(), &bytes);
    assert_eq!(batch.header().batch_bytes as usize, bytes.len());
    assert_eq!(batch.after_stamp(), bytes.slice(STAMP_BYTES..));
    assert_eq!(batch.body().len(), batch.header().body_bytes as usize);
    assert_eq!(parse_header(&bytes[..HEADER_BYTES], tp()), Ok((*batch.header(), None)));
}

#[test]
fn sealing_a_body_gives_the_same_bytes() {
    let batch = check(produced()).unwrap();
    assert_eq!(seal_body(&batch.body(), &fields(), tp()), produced());
}

#[test]
fn every_damaged_bit_is_found() {
    let bytes = stamped(&produced());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1 << bit;
            let checked = CheckedBatch::check_stored(damaged.into(), tp(), BodyCheck::Verify);
            assert!(checked.is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn a_batch_in_the_wrong_place_is_found() {
    let other_partition = TopicPartition::new(tp().topic, 4);
    let other_topic = TopicPartition::new(TopicId::from_bytes([0xa4; 16]), 3);
    for other in [other_partition, other_topic] {
        let error = CheckedBatch::check(produced(), other, &LIMITS).unwrap_err();
        assert_eq!(error, BatchError::BadHeaderChecksum);
        assert_eq!(error.code(), ErrorCode::CorruptBatch);
    }
}

#[test]
fn anothers_stamp_is_found() {
    let other = seal_body(&[0; 7], &BatchFields::plain(1, 0), tp());
    let (other, _) = parse_header(&other, tp()).unwrap();
    let mut bytes = stamped(&produced()).to_vec();
    bytes[..STAMP_BYTES].copy_from_slice(&stamp().encode(other.header_crc));
    let checked = CheckedBatch::check_stored(bytes.into(), tp(), BodyCheck::Verify);
    assert_eq!(checked, Err(BatchError::BadStampChecksum));
}

#[test]
fn produced_has_no_stamp_and_stored_has_one() {
    assert_eq!(check(stamped(&produced())), Err(BatchError::Stamped));
    let stored = CheckedBatch::check_stored(produced(), tp(), BodyCheck::Verify);
    assert_eq!(stored, Err(BatchError::NotStamped));
}

#[test]
fn each_rule_of_the_header_is_kept() {
    let length = u32::try_from(produced().len()).unwrap();
    let body_bytes = check(produced()).unwrap().header().body_bytes;
    for (at, field, error) in [
        (at::FORMAT, &[2][..], BatchError::UnknownFormat { format: 2 }),
        (at::ZERO_8, &[1], BatchError::NotZero),
        (at::ZERO_16, &[0, 1], BatchError::NotZero),
        (at::ZERO_32, &[0, 0, 0, 1], BatchError::NotZero),
        (at::ATTRIBUTES, &[5, 0], BatchError::UnknownAttributes { bits: 5 }),
        (at::ATTRIBUTES, &[8, 0], BatchError::UnknownAttributes { bits: 8 }),
        (at::ATTRIBUTES, &[0, 1], BatchError::UnknownAttributes { bits: 256 }),
        (at::ATTRIBUTES, &[0x10, 0], BatchError::ForbiddenAttributes { bits: 0x10 }),
        (at::ATTRIBUTES, &[0x20, 0], BatchError::ForbiddenAttributes { bits: 0x20 }),
        (at::RECORD_COUNT, &[0; 4], BatchError::BadRecordCount { record_count: 0, last_offset_delta: 3 }),
        (
            at::RECORD_COUNT,
            &[3, 0, 0, 0],
            BatchError::BadRecordCount { record_count: 3, last_offset_delta: 3 },
        ),
        (
            at::RECORD_COUNT,
            &[5, 0, 0, 0],
            BatchError::BadRecordCount { record_count: 5, last_offset_delta: 3 },
        ),
        (at::PRODUCER_ID, &(-2_i64).to_le_bytes(), BatchError::BadProducer),
        (at::PRODUCER_EPOCH, &(-1_i16).to_le_bytes(), BatchError::BadProducer),
        (at::BASE_SEQUENCE, &(-1_i32).to_le_bytes(), BatchError::BadProducer),
        (
            at::BATCH_BYTES,
            &(length + 8).to_le_bytes(),
            BatchError::BadLength { batch_bytes: length + 8, body_bytes },
        ),
        (at::BATCH_BYTES, &[0; 4], BatchError::BadLength { batch_bytes: 0, body_bytes }),
        (at::BODY_BYTES, &[0xff; 4], BatchError::BadLength { batch_bytes: length, body_bytes: u32::MAX }),
        (at::BASE_TIMESTAMP, &[0; 8], BatchError::BadBodyChecksum),
        (at::BODY_CRC, &[0; 4], BatchError::BadBodyChecksum),
    ] {
        assert_eq!(check(changed(at, field)), Err(error), "{at} {field:?}");
    }
}

#[test]
fn lengths_are_those_of_the_bytes() {
    let bytes = produced();
    let (needed, half) = (bytes.len(), bytes.slice(..200));
    assert_eq!(check(half), Err(BatchError::Truncated { needed, available: 200 }));
    assert_eq!(check(bytes.slice(..95)), Err(BatchError::Truncated { needed: HEADER_BYTES, available: 95 }));
    let mut longer = bytes.to_vec();
    longer.resize(needed + 8, 0);
    assert!(matches!(check(longer), Err(BatchError::BadLength { .. })));

    let mut padded = bytes.to_vec();
    assert!(check(bytes.clone()).unwrap().header().body_bytes as usize + HEADER_BYTES < needed);
    padded[needed - 1] = 1;
    assert_eq!(check(padded), Err(BatchError::NotZero));

    let batch_bytes = u32::try_from(needed).unwrap();
    let limits = BatchLimits { batch_bytes_max: batch_bytes - 1 };
    let error = CheckedBatch::check(bytes, tp(), &limits).unwrap_err();
    assert_eq!(error, BatchError::TooLarge { batch_bytes, batch_bytes_max: batch_bytes - 1 });
    assert_eq!(error.code(), ErrorCode::TooLarge);
}

#[test]
fn more_records_than_a_body_can_hold_are_refused() {
    let plain = |record_count| BatchFields { tag_bloom: 9, ..BatchFields::plain(record_count, 5) };
    assert!(check(seal_body(&[0; 14], &plain(2), tp())).is_ok());
    assert!(matches!(check(seal_body(&[0; 13], &plain(2), tp())), Err(BatchError::BadRecordCount { .. })));
    // A compressed body says nothing of its records, so their number alone is bounded.
    let attributes = Attributes::compressed(Compression::Zstd);
    let compressed = |record_count| BatchFields { attributes, ..plain(record_count) };
    assert!(check(seal_body(&[0; 1], &compressed(RECORDS_PER_BATCH_MAX), tp())).is_ok());
    let many = seal_body(&[0; 1], &compressed(RECORDS_PER_BATCH_MAX + 1), tp());
    assert!(matches!(check(many), Err(BatchError::BadRecordCount { .. })));
}

#[test]
fn a_compacted_batch_is_stored_but_not_produced() {
    let fields = BatchFields { last_offset_delta: 9, ..BatchFields::plain(1, 5) };
    let bytes = seal_body(&[0; 7], &fields, tp());
    assert!(matches!(check(bytes.clone()), Err(BatchError::BadRecordCount { .. })));
    let batch = CheckedBatch::check_stored(stamped(&bytes), tp(), BodyCheck::Verify).unwrap();
    assert_eq!(batch.header().last_offset_delta, 9);
}

#[test]
fn a_body_is_looked_at_only_when_asked_for() {
    let mut bytes = stamped(&produced()).to_vec();
    bytes[HEADER_BYTES] ^= 1;
    let verified = CheckedBatch::check_stored(bytes.clone().into(), tp(), BodyCheck::Verify);
    assert_eq!(verified, Err(BatchError::BadBodyChecksum));
    assert!(CheckedBatch::check_stored(bytes.into(), tp(), BodyCheck::Skip).is_ok());
}

#[test]
fn a_run_gives_its_batches_and_then_its_error() {
    let one = stamped(&produced());
    let two = stamped(&seal_body(&[0; 7], &BatchFields::plain(1, 0), tp()));
    let run: Bytes = [&one[..], &two[..]].concat().into();
    let batches: Vec<_> =
        StoredBatches::new(run.clone(), tp(), BodyCheck::Verify).map(Result::unwrap).collect();
    assert_eq!(batches.iter().map(CheckedBatch::bytes).collect::<Vec<_>>(), [&one, &two]);

    let cut = run.slice(..run.len() - 8);
    let batches: Vec<_> = StoredBatches::new(cut, tp(), BodyCheck::Skip).collect();
    assert_eq!(batches.len(), 2);
    assert!(batches[0].is_ok());
    assert_eq!(batches[1], Err(BatchError::Truncated { needed: 104, available: 96 }));
}

#[test]
fn attributes_are_kafkas_bits() {
    for (bits, compression) in [
        (0, Compression::None),
        (1, Compression::Gzip),
        (2, Compression::Snappy),
        (3, Compression::Lz4),
        (4, Compression::Zstd),
    ] {
        assert_eq!(Attributes::compressed(compression).as_u16(), bits);
        for high in [0, 0x10, 0x20, 0x30] {
            assert_eq!(Attributes::from_u16(bits | high).map(Attributes::as_u16), Some(bits | high));
        }
    }
}

#[test]
fn mutated_batches_never_panic() {
    let mut rng = Rng(3);
    let mut reached = [0; 4];
    for round in 0..20_000 {
        let stored = round % 2 == 0;
        let mut bytes = if stored { stamped(&produced()).to_vec() } else { produced().to_vec() };
        bytes = rng.mutated(&bytes);
        if bytes.len() >= HEADER_BYTES && round % 3 > 0 {
            // So that the checks behind the header's checksum are reached.
            reseal(&mut bytes);
        }
        let bytes = Bytes::from(bytes);
        let checked = if stored {
            CheckedBatch::check_stored(bytes.clone(), tp(), BodyCheck::Skip)
        } else {
            check(bytes.clone())
        };
        let kind = match checked {
            Ok(batch) => {
                assert_eq!(batch.bytes(), &bytes);
                assert_eq!(batch.body().len(), batch.header().body_bytes as usize);
                0
            }
            Err(BatchError::BadHeaderChecksum) => 1,
            Err(BatchError::BadBodyChecksum | BatchError::BadStampChecksum) => 2,
            Err(_) => 3,
        };
        reached[kind] += 1;
        for batch in StoredBatches::new(bytes, tp(), BodyCheck::Skip).take(10).flatten() {
            assert!(batch.stamp().is_some());
        }
    }
    assert!(reached.iter().all(|&count| count > 50), "{reached:?}");
}
