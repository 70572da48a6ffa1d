//! The door: bytes become a [`CheckedBatch`], or a typed error.
//!
//! Called by the broker for what producers send and before it serves cold reads, by consumers for what they fetched.
//! Invariant: nobody else makes a [`CheckedBatch`]. This file refuses to know which offset is expected next.

use bytes::Bytes;
use thiserror::Error;

use super::header::parse_header;
use super::{
    BatchHeader, Compression, HEADER_BYTES, RECORD_BYTES_MIN, RECORDS_PER_BATCH_MAX, STAMP_BYTES, Stamp,
};
use crate::error::ErrorCode;
use crate::ids::TopicPartition;

/// Why bytes are not a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BatchError {
    /// The bytes end before the batch does.
    #[error("the batch needs {needed} bytes, there are {available}")]
    Truncated {
        /// How many bytes it needs.
        needed: usize,
        /// How many there are.
        available: usize,
    },
    /// The batch is longer than a broker takes.
    #[error("the batch has {batch_bytes} bytes, the limit is {batch_bytes_max}")]
    TooLarge {
        /// The batch's length.
        batch_bytes: u32,
        /// The longest that is taken.
        batch_bytes_max: u32,
    },
    /// The lengths contradict each other, or that of the bytes.
    #[error("a batch of {batch_bytes} bytes cannot have a body of {body_bytes}, or not here")]
    BadLength {
        /// The batch's length by its header.
        batch_bytes: u32,
        /// The body's length by its header.
        body_bytes: u32,
    },
    /// Of a format that this version does not know.
    #[error("batch format {format} is unknown")]
    UnknownFormat {
        /// The format.
        format: u8,
    },
    /// The header is damaged, or was sealed for another topic or partition: its seed is not in it, so that the two
    /// cannot be told apart.
    #[error("the header's checksum is wrong for this topic and partition")]
    BadHeaderChecksum,
    /// The stamp is damaged, or another batch's.
    #[error("the stamp's checksum is wrong")]
    BadStampChecksum,
    /// The body is damaged.
    #[error("the body's checksum is wrong")]
    BadBodyChecksum,
    /// A reserved field or the padding is not zero.
    #[error("a reserved field or the padding is not zero")]
    NotZero,
    /// An attribute that this version does not know.
    #[error("attributes {bits:#06x} are unknown")]
    UnknownAttributes {
        /// All attributes.
        bits: u16,
    },
    /// An attribute that only a broker may set, or that is not supported yet.
    #[error("a producer may not set the attributes {bits:#06x}")]
    ForbiddenAttributes {
        /// All attributes.
        bits: u16,
    },
    /// The number of records and the last offset contradict each other or the length.
    #[error("{record_count} records with a last offset delta of {last_offset_delta} are not possible here")]
    BadRecordCount {
        /// The number of records.
        record_count: u32,
        /// The last offset delta.
        last_offset_delta: u32,
    },
    /// Producer id, epoch and sequence contradict each other.
    #[error("producer id, epoch and sequence contradict each other")]
    BadProducer,
    /// A produced batch has been stamped already.
    #[error("a produced batch must have an empty stamp")]
    Stamped,
    /// A stored batch has not been stamped.
    #[error("a stored batch must have a stamp")]
    NotStamped,
}

impl BatchError {
    /// The code that a producer of such a batch gets. `WRONG_TOPIC` is never one: see
    /// [`BatchError::BadHeaderChecksum`].
    #[must_use]
    pub const fn code(self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::UnknownFormat { .. } => ErrorCode::UnsupportedVersion,
            Self::Truncated { .. }
            | Self::BadLength { .. }
            | Self::BadHeaderChecksum
            | Self::BadStampChecksum
            | Self::BadBodyChecksum
            | Self::NotZero
            | Self::UnknownAttributes { .. }
            | Self::ForbiddenAttributes { .. }
            | Self::BadRecordCount { .. }
            | Self::BadProducer
            | Self::Stamped
            | Self::NotStamped => ErrorCode::CorruptBatch,
        }
    }
}

/// What a broker takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most bytes of a batch.
    pub batch_bytes_max: u32,
}

/// Whether a stored batch's body is held against its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyCheck {
    /// It is.
    Verify,
    /// It is not: the bytes are known to be whole, or whoever gets them checks.
    Skip,
}

/// A batch whose every rule held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedBatch {
    bytes: Bytes,
    header: BatchHeader,
    stamp: Option<Stamp>,
}

impl CheckedBatch {
    /// Checks a batch as a producer sends it: `bytes` are the batch and nothing else. Reads the body once and copies
    /// nothing.
    ///
    /// # Errors
    /// Any [`BatchError`] but [`BatchError::NotStamped`].
    pub fn check(bytes: Bytes, tp: TopicPartition, limits: &BatchLimits) -> Result<Self, BatchError> {
        let (header, stamp) = parse_header(&bytes, tp)?;
        let batch_bytes_max = limits.batch_bytes_max;
        if header.batch_bytes > batch_bytes_max {
            return Err(BatchError::TooLarge { batch_bytes: header.batch_bytes, batch_bytes_max });
        }
        if stamp.is_some() {
            return Err(BatchError::Stamped);
        }
        let BatchHeader { attributes, record_count, last_offset_delta, .. } = header;
        if attributes.control || attributes.transactional {
            return Err(BatchError::ForbiddenAttributes { bits: attributes.as_u16() });
        }
        let fewest = u64::from(record_count) * RECORD_BYTES_MIN as u64;
        let too_many = attributes.compression == Compression::None && fewest > u64::from(header.body_bytes);
        let possible = (1..=RECORDS_PER_BATCH_MAX).contains(&record_count);
        if too_many || !possible || last_offset_delta != record_count - 1 {
            return Err(BatchError::BadRecordCount { record_count, last_offset_delta });
        }
        Self::checked(bytes, header, None, BodyCheck::Verify)
    }

    /// Checks a batch as a broker stores and serves it: `bytes` are the batch and nothing else. Copies nothing.
    ///
    /// # Errors
    /// Any [`BatchError`] but those about limits, forbidden attributes and stamps that should be empty.
    pub fn check_stored(bytes: Bytes, tp: TopicPartition, body: BodyCheck) -> Result<Self, BatchError> {
        let (header, stamp) = parse_header(&bytes, tp)?;
        let stamp = stamp.ok_or(BatchError::NotStamped)?;
        Self::checked(bytes, header, Some(stamp), body)
    }

    /// Length, padding and body.
    fn checked(
        bytes: Bytes,
        header: BatchHeader,
        stamp: Option<Stamp>,
        check: BodyCheck,
    ) -> Result<Self, BatchError> {
        let batch_bytes = usize::try_from(header.batch_bytes).unwrap_or(usize::MAX);
        if bytes.len() < batch_bytes {
            return Err(BatchError::Truncated { needed: batch_bytes, available: bytes.len() });
        }
        if bytes.len() > batch_bytes {
            return Err(BatchError::BadLength {
                batch_bytes: header.batch_bytes,
                body_bytes: header.body_bytes,
            });
        }
        let batch = Self { bytes, header, stamp };
        let (body, padding) = batch.bytes.split_at(batch.body_end());
        if padding.iter().any(|&byte| byte != 0) {
            return Err(BatchError::NotZero);
        }
        if check == BodyCheck::Verify && header.checksum_of_body(&body[HEADER_BYTES..]) != header.body_crc32c
        {
            return Err(BatchError::BadBodyChecksum);
        }
        Ok(batch)
    }

    fn body_end(&self) -> usize {
        // Not beyond the batch's length, which is that of the bytes.
        HEADER_BYTES + usize::try_from(self.header.body_bytes).unwrap_or(usize::MAX - HEADER_BYTES)
    }

    /// The parsed header.
    #[must_use]
    pub const fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The stamp of a stored batch; none for a produced one.
    #[must_use]
    pub const fn stamp(&self) -> Option<&Stamp> {
        self.stamp.as_ref()
    }

    /// The whole batch.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The whole batch, given away.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// Everything after the stamp. A leader writes its own stamp ([`Stamp::encode`]) and then these.
    #[must_use]
    pub fn after_stamp(&self) -> Bytes {
        self.bytes.slice(STAMP_BYTES..)
    }

    /// The body without padding: records, compressed as the attributes say.
    #[must_use]
    pub fn body(&self) -> Bytes {
        self.bytes.slice(HEADER_BYTES..self.body_end())
    }
}

/// The batches of a run of stored ones, as a Fetch answers it and as they lie in a log. Ends after the first error.
#[derive(Clone, Debug)]
pub struct StoredBatches {
    rest: Bytes,
    tp: TopicPartition,
    body: BodyCheck,
}

impl StoredBatches {
    /// The batches of `run`. Copies nothing.
    #[must_use]
    pub const fn new(run: Bytes, tp: TopicPartition, body: BodyCheck) -> Self {
        Self { rest: run, tp, body }
    }

    fn take(&mut self) -> Result<CheckedBatch, BatchError> {
        let (header, stamp) = parse_header(&self.rest, self.tp)?;
        let stamp = stamp.ok_or(BatchError::NotStamped)?;
        let needed = usize::try_from(header.batch_bytes).unwrap_or(usize::MAX);
        if self.rest.len() < needed {
            return Err(BatchError::Truncated { needed, available: self.rest.len() });
        }
        CheckedBatch::checked(self.rest.split_to(needed), header, Some(stamp), self.body)
    }
}

impl Iterator for StoredBatches {
    type Item = Result<CheckedBatch, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let batch = self.take();
        if batch.is_err() {
            self.rest = Bytes::new();
        }
        Some(batch)
    }
}
