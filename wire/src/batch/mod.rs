//! The record batch: the same bytes on the wire and on disk.
//!
//! Called by producers (seal), by the broker at its door (check) and before it serves what it stored, by recovery
//! (`parse_header`) and by consumers. Invariant: a [`CheckedBatch`] exists only if every rule of its format held. This room
//! refuses to know what the records say; see `records` for uncompressed ones.
//!
//! Layout, little-endian. Stamp, the broker's (all zeros when produced): 0 `base_offset` u64 | 8 `append_timestamp_ms` i64 |
//! 16 `leader_epoch` u32 | 20 `stamp_crc` u32. Header, the producer's: 24 `batch_bytes` u32 | 28 format u8 = 1 | 29 zero u8 |
//! 30 attributes u16 | 32 `record_count` u32 | 36 `last_offset_delta` u32 | 40 `base_timestamp_ms` i64 |
//! 48 `max_timestamp_ms` i64 | 56 `producer_id` i64 | 64 `producer_epoch` i16 | 66 zero u16 | 68 `base_sequence` i32 |
//! 72 `tag_bloom` u64 | 80 `body_bytes` u32 | 84 `body_crc32c` u32 | 88 `header_crc` u32 | 92 zero u32. Body from 96, padded
//! with zeros to a multiple of 8.

mod check;
mod header;
mod seal;
mod stamp;

pub use self::check::{BatchError, BatchLimits, BodyCheck, CheckedBatch, StoredBatches};
pub use self::header::{Attributes, BatchHeader, Compression, parse_header};
pub use self::seal::{BatchFields, seal, seal_body};
pub use self::stamp::Stamp;

/// Length of the broker's stamp, the first bytes of a batch.
pub const STAMP_BYTES: usize = 24;
/// Length of stamp and header; the body begins here.
pub const HEADER_BYTES: usize = 96;
/// Batches are padded with zeros to a multiple of this.
pub const ALIGNMENT: usize = 8;
/// The format that this version writes and reads.
pub const FORMAT: u8 = 1;
/// Most records in a batch.
pub const RECORDS_PER_BATCH_MAX: u32 = 1 << 20;
/// Fewest bytes of an uncompressed record.
pub const RECORD_BYTES_MIN: usize = 7;

/// Where the fields are.
mod at {
    pub(super) const BATCH_BYTES: usize = 24;
    pub(super) const FORMAT: usize = 28;
    pub(super) const ZERO_8: usize = 29;
    pub(super) const ATTRIBUTES: usize = 30;
    pub(super) const RECORD_COUNT: usize = 32;
    pub(super) const LAST_OFFSET_DELTA: usize = 36;
    pub(super) const BASE_TIMESTAMP: usize = 40;
    pub(super) const MAX_TIMESTAMP: usize = 48;
    pub(super) const PRODUCER_ID: usize = 56;
    pub(super) const PRODUCER_EPOCH: usize = 64;
    pub(super) const ZERO_16: usize = 66;
    pub(super) const BASE_SEQUENCE: usize = 68;
    pub(super) const TAG_BLOOM: usize = 72;
    pub(super) const BODY_BYTES: usize = 80;
    pub(super) const BODY_CRC: usize = 84;
    pub(super) const HEADER_CRC: usize = 88;
    pub(super) const ZERO_32: usize = 92;
}

/// `N` bytes of a batch's first 96, at a place that is known to be within them.
fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
mod tests;
