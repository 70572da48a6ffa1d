//! The producer's part of a batch before its body: fields, and the two checksums over them.
//!
//! Called by `check` and `seal`, and by recovery and index building, which read headers only. Invariant: a
//! [`BatchHeader`] that `parse_header` gives has a checksum that holds for its topic and partition, and fields within
//! their ranges. This file refuses to know bodies.

use super::{ALIGNMENT, BatchError, FORMAT, HEADER_BYTES, STAMP_BYTES, Stamp, array, at};
use crate::ids::{ProducerEpoch, ProducerId, Sequence, TopicPartition};

/// How a body is compressed; the number is that of Kafka's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Compression {
    /// Not.
    #[default]
    None = 0,
    /// gzip.
    Gzip = 1,
    /// Snappy in xerial's framing.
    Snappy = 2,
    /// LZ4 in its frame format.
    Lz4 = 3,
    /// Zstandard.
    Zstd = 4,
}

impl Compression {
    /// The codec of this number.
    #[must_use]
    pub const fn from_u16(codec: u16) -> Option<Self> {
        match codec {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lz4),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The name in configuration and command output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// What kind of batch it is. The bits are Kafka's; the timestamp type is always create time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// How the body is compressed (bits 0 to 2).
    pub compression: Compression,
    /// Part of a transaction (bit 4).
    pub transactional: bool,
    /// Written by a broker to mark a transaction's end (bit 5).
    pub control: bool,
}

impl Attributes {
    const CODEC_MASK: u16 = 0b111;
    const TRANSACTIONAL: u16 = 1 << 4;
    const CONTROL: u16 = 1 << 5;

    /// The attributes of a batch that is only compressed.
    #[must_use]
    pub const fn compressed(compression: Compression) -> Self {
        Self { compression, transactional: false, control: false }
    }

    /// The number in the header.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self.compression as u16
            | if self.transactional { Self::TRANSACTIONAL } else { 0 }
            | if self.control { Self::CONTROL } else { 0 }
    }

    /// The attributes of a number, if all its bits are known.
    #[must_use]
    pub const fn from_u16(bits: u16) -> Option<Self> {
        if bits & !(Self::CODEC_MASK | Self::TRANSACTIONAL | Self::CONTROL) != 0 {
            return None;
        }
        match Compression::from_u16(bits & Self::CODEC_MASK) {
            Some(compression) => Some(Self {
                compression,
                transactional: bits & Self::TRANSACTIONAL != 0,
                control: bits & Self::CONTROL != 0,
            }),
            None => None,
        }
    }
}

/// The producer's fields of a batch, parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Length of stamp, header, body and padding, a multiple of 8.
    pub batch_bytes: u32,
    /// What kind of batch it is.
    pub attributes: Attributes,
    /// How many records the body holds.
    pub record_count: u32,
    /// Offset of the last record less that of the first: `record_count` - 1, or more after compaction.
    pub last_offset_delta: u32,
    /// Create time of the first record, in milliseconds since 1970; the records' times are relative to it.
    pub base_timestamp_ms: i64,
    /// Latest create time of the records. The producer's word: it is not compared with anything.
    pub max_timestamp_ms: i64,
    /// Who produced it, if idempotent.
    pub producer_id: ProducerId,
    /// That producer's epoch.
    pub producer_epoch: ProducerEpoch,
    /// Sequence of the first record.
    pub base_sequence: Sequence,
    /// Filter over the records' tags: see `keys`.
    pub tag_bloom: u64,
    /// Length of the body without padding.
    pub body_bytes: u32,
    /// Kafka's checksum over the fields that Kafka has, and the body.
    pub body_crc32c: u32,
    /// Checksum over topic, partition and header.
    pub header_crc: u32,
}

/// Reads and checks stamp and header of the batch that begins `bytes`, for scans: the body may be missing and is not
/// looked at. The stamp is none if the batch has not been stamped.
///
/// # Errors
/// [`BatchError`], but none about bodies and padding. A header sealed for another topic or partition is
/// [`BatchError::BadHeaderChecksum`].
pub fn parse_header(bytes: &[u8], tp: TopicPartition) -> Result<(BatchHeader, Option<Stamp>), BatchError> {
    let first = bytes
        .first_chunk::<HEADER_BYTES>()
        .ok_or(BatchError::Truncated { needed: HEADER_BYTES, available: bytes.len() })?;
    if first[at::FORMAT] != FORMAT {
        return Err(BatchError::UnknownFormat { format: first[at::FORMAT] });
    }
    let header_crc = u32::from_le_bytes(array(first, at::HEADER_CRC));
    if header_crc != header_checksum(first, tp) {
        return Err(BatchError::BadHeaderChecksum);
    }
    if first[at::ZERO_8] != 0
        || array::<2>(first, at::ZERO_16) != [0; 2]
        || array::<4>(first, at::ZERO_32) != [0; 4]
    {
        return Err(BatchError::NotZero);
    }
    let bits = u16::from_le_bytes(array(first, at::ATTRIBUTES));
    let header = BatchHeader {
        batch_bytes: u32::from_le_bytes(array(first, at::BATCH_BYTES)),
        attributes: Attributes::from_u16(bits).ok_or(BatchError::UnknownAttributes { bits })?,
        record_count: u32::from_le_bytes(array(first, at::RECORD_COUNT)),
        last_offset_delta: u32::from_le_bytes(array(first, at::LAST_OFFSET_DELTA)),
        base_timestamp_ms: i64::from_le_bytes(array(first, at::BASE_TIMESTAMP)),
        max_timestamp_ms: i64::from_le_bytes(array(first, at::MAX_TIMESTAMP)),
        producer_id: ProducerId::new(i64::from_le_bytes(array(first, at::PRODUCER_ID))),
        producer_epoch: ProducerEpoch::new(i16::from_le_bytes(array(first, at::PRODUCER_EPOCH))),
        base_sequence: Sequence::new(i32::from_le_bytes(array(first, at::BASE_SEQUENCE))),
        tag_bloom: u64::from_le_bytes(array(first, at::TAG_BLOOM)),
        body_bytes: u32::from_le_bytes(array(first, at::BODY_BYTES)),
        body_crc32c: u32::from_le_bytes(array(first, at::BODY_CRC)),
        header_crc,
    };
    header.check_ranges()?;
    let stamp = Stamp::decode(&array::<STAMP_BYTES>(first, 0), header_crc)?;
    Ok((header, stamp))
}

impl BatchHeader {
    /// What must hold of the fields of any batch, produced or compacted.
    fn check_ranges(&self) -> Result<(), BatchError> {
        let batch_bytes = HEADER_BYTES as u64 + u64::from(self.body_bytes);
        if u64::from(self.batch_bytes) != batch_bytes.next_multiple_of(ALIGNMENT as u64) {
            return Err(BatchError::BadLength { batch_bytes: self.batch_bytes, body_bytes: self.body_bytes });
        }
        let &Self { record_count, last_offset_delta, .. } = self;
        // Kafka's numbers are i32. A compacted batch may have lost every record.
        if last_offset_delta < record_count.saturating_sub(1) || last_offset_delta > i32::MAX.cast_unsigned()
        {
            return Err(BatchError::BadRecordCount { record_count, last_offset_delta });
        }
        let idempotent = self.producer_id.get() >= 0;
        if self.producer_id < ProducerId::NONE
            || (idempotent && (self.producer_epoch.get() < 0 || self.base_sequence.get() < 0))
        {
            return Err(BatchError::BadProducer);
        }
        Ok(())
    }

    /// Kafka's checksum of this header's fields and a body.
    #[must_use]
    pub fn checksum_of_body(&self, body: &[u8]) -> u32 {
        let mut fields = [0; 40];
        fields[0..2].copy_from_slice(&self.attributes.as_u16().to_be_bytes());
        fields[2..6].copy_from_slice(&self.last_offset_delta.to_be_bytes());
        fields[6..14].copy_from_slice(&self.base_timestamp_ms.to_be_bytes());
        fields[14..22].copy_from_slice(&self.max_timestamp_ms.to_be_bytes());
        fields[22..30].copy_from_slice(&self.producer_id.get().to_be_bytes());
        fields[30..32].copy_from_slice(&self.producer_epoch.get().to_be_bytes());
        fields[32..36].copy_from_slice(&self.base_sequence.get().to_be_bytes());
        fields[36..40].copy_from_slice(&self.record_count.to_be_bytes());
        let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        digest.update(&fields);
        digest.update(body);
        #[expect(clippy::cast_possible_truncation, reason = "the crate gives checksums of 32 bits as 64")]
        let crc = digest.finalize() as u32;
        crc
    }
}

/// Checksum over topic, partition and header, so that the right bytes in the wrong place are caught.
pub(super) fn header_checksum(first: &[u8; HEADER_BYTES], tp: TopicPartition) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(tp.topic.as_bytes());
    hasher.update(&tp.partition.to_le_bytes());
    hasher.update(&first[STAMP_BYTES..at::HEADER_CRC]);
    hasher.finalize()
}
