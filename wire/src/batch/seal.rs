//! Sealing: what a producer does to a body, compressed or not, to make a batch of it.
//!
//! Called by the client's producer, by the Kafka listener and by tests. Invariant: what is sealed here passes
//! [`super::CheckedBatch::check`] unless it is larger than the limits or its fields contradict each other. This file
//! refuses to compress.

use bytes::{BufMut, Bytes, BytesMut};

use super::header::header_checksum;
use super::{ALIGNMENT, Attributes, BatchHeader, FORMAT, HEADER_BYTES, STAMP_BYTES, at};
use crate::ids::{ProducerEpoch, ProducerId, Sequence, TopicPartition};

/// What a producer says of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFields {
    /// What kind of batch it is, and how the body was compressed.
    pub attributes: Attributes,
    /// How many records the body holds.
    pub record_count: u32,
    /// Offset of the last record less that of the first: `record_count` - 1, or more after compaction.
    pub last_offset_delta: u32,
    /// Create time of the first record, in milliseconds since 1970.
    pub base_timestamp_ms: i64,
    /// Latest create time of the records.
    pub max_timestamp_ms: i64,
    /// Who produces it, if idempotent.
    pub producer_id: ProducerId,
    /// That producer's epoch.
    pub producer_epoch: ProducerEpoch,
    /// Sequence of the first record.
    pub base_sequence: Sequence,
    /// Filter over the records' tags: see `keys`.
    pub tag_bloom: u64,
}

impl BatchFields {
    /// The fields of an uncompressed batch of a producer that is not idempotent, with no tags, whose records have
    /// consecutive offsets and all the same time.
    #[must_use]
    pub const fn plain(record_count: u32, timestamp_ms: i64) -> Self {
        Self {
            attributes: Attributes::compressed(super::Compression::None),
            record_count,
            last_offset_delta: record_count.saturating_sub(1),
            base_timestamp_ms: timestamp_ms,
            max_timestamp_ms: timestamp_ms,
            producer_id: ProducerId::NONE,
            producer_epoch: ProducerEpoch::NONE,
            base_sequence: Sequence::NONE,
            tag_bloom: 0,
        }
    }
}

/// Makes a batch of `buffer`: [`HEADER_BYTES`] of room, which are overwritten, and the body. Copies nothing, unless
/// there is no room left for the padding.
///
/// # Panics
/// When the buffer is shorter than the room or longer than a batch can be (4 GiB): bugs of the caller.
pub fn seal(buffer: &mut BytesMut, fields: &BatchFields, tp: TopicPartition) {
    let (_, body) = buffer.split_at(HEADER_BYTES);
    let (Ok(body_bytes), Ok(batch_bytes)) =
        (u32::try_from(body.len()), u32::try_from(buffer.len().next_multiple_of(ALIGNMENT)))
    else {
        panic!("a batch has less than 4 GiB");
    };
    let mut header = BatchHeader {
        batch_bytes,
        attributes: fields.attributes,
        record_count: fields.record_count,
        last_offset_delta: fields.last_offset_delta,
        base_timestamp_ms: fields.base_timestamp_ms,
        max_timestamp_ms: fields.max_timestamp_ms,
        producer_id: fields.producer_id,
        producer_epoch: fields.producer_epoch,
        base_sequence: fields.base_sequence,
        tag_bloom: fields.tag_bloom,
        body_bytes,
        body_crc32c: 0,
        header_crc: 0,
    };
    header.body_crc32c = header.checksum_of_body(body);
    buffer[..HEADER_BYTES].copy_from_slice(&header.encode(tp));
    buffer.put_bytes(0, buffer.len().next_multiple_of(ALIGNMENT) - buffer.len());
}

/// Makes a batch of a body, which is copied once.
///
/// # Panics
/// When the body is longer than a batch can be (4 GiB): a bug of the caller.
#[must_use]
pub fn seal_body(body: &[u8], fields: &BatchFields, tp: TopicPartition) -> Bytes {
    let mut buffer = BytesMut::with_capacity((HEADER_BYTES + body.len()).next_multiple_of(ALIGNMENT));
    buffer.put_bytes(0, HEADER_BYTES);
    buffer.put_slice(body);
    seal(&mut buffer, fields, tp);
    buffer.freeze()
}

impl BatchHeader {
    /// The first bytes of the batch: an empty stamp, and the header with its checksum made anew for this partition.
    fn encode(&self, tp: TopicPartition) -> [u8; HEADER_BYTES] {
        let mut first = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| first[at..at + bytes.len()].copy_from_slice(bytes);
        put(at::BATCH_BYTES, &self.batch_bytes.to_le_bytes());
        put(at::FORMAT, &[FORMAT]);
        put(at::ATTRIBUTES, &self.attributes.as_u16().to_le_bytes());
        put(at::RECORD_COUNT, &self.record_count.to_le_bytes());
        put(at::LAST_OFFSET_DELTA, &self.last_offset_delta.to_le_bytes());
        put(at::BASE_TIMESTAMP, &self.base_timestamp_ms.to_le_bytes());
        put(at::MAX_TIMESTAMP, &self.max_timestamp_ms.to_le_bytes());
        put(at::PRODUCER_ID, &self.producer_id.get().to_le_bytes());
        put(at::PRODUCER_EPOCH, &self.producer_epoch.get().to_le_bytes());
        put(at::BASE_SEQUENCE, &self.base_sequence.get().to_le_bytes());
        put(at::TAG_BLOOM, &self.tag_bloom.to_le_bytes());
        put(at::BODY_BYTES, &self.body_bytes.to_le_bytes());
        put(at::BODY_CRC, &self.body_crc32c.to_le_bytes());
        let header_crc = header_checksum(&first, tp);
        first[at::HEADER_CRC..at::HEADER_CRC + 4].copy_from_slice(&header_crc.to_le_bytes());
        debug_assert_eq!(first[..STAMP_BYTES], [0; STAMP_BYTES]);
        first
    }
}
