//! The broker's part of a batch: where and when it was appended, and under which leadership.
//!
//! Called by the leader when it appends and by everyone who reads a stored batch. Invariant: a stamp is bound to its
//! batch, as its checksum covers the header's. This file refuses to know how offsets are given.

use super::{BatchError, STAMP_BYTES};
use crate::ids::{LeaderEpoch, Offset};

/// Bytes that the stamp's checksum covers, besides the batch's header checksum.
const STAMP_CRC_AT: usize = 20;

/// What the broker adds to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Offset of the batch's first record.
    pub base_offset: Offset,
    /// When the leader appended it, in milliseconds since 1970.
    pub append_timestamp_ms: i64,
    /// The leadership that appended it.
    pub leader_epoch: LeaderEpoch,
}

impl Stamp {
    /// The stamp's bytes, for the batch with this header checksum.
    #[must_use]
    pub fn encode(&self, header_crc: u32) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[0..8].copy_from_slice(&self.base_offset.get().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.append_timestamp_ms.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.leader_epoch.get().to_le_bytes());
        let crc = checksum(&bytes, header_crc);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the stamp of the batch with this header checksum; none if the batch has not been stamped (all zeros).
    ///
    /// # Errors
    /// [`BatchError::BadStampChecksum`].
    pub fn decode(bytes: &[u8; STAMP_BYTES], header_crc: u32) -> Result<Option<Self>, BatchError> {
        if bytes == &[0; STAMP_BYTES] {
            return Ok(None);
        }
        let [b0, b1, b2, b3, b4, b5, b6, b7, t0, t1, t2, t3, t4, t5, t6, t7, e0, e1, e2, e3, c0, c1, c2, c3] =
            *bytes;
        if u32::from_le_bytes([c0, c1, c2, c3]) != checksum(bytes, header_crc) {
            return Err(BatchError::BadStampChecksum);
        }
        Ok(Some(Self {
            base_offset: Offset::new(u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7])),
            append_timestamp_ms: i64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            leader_epoch: LeaderEpoch::new(u32::from_le_bytes([e0, e1, e2, e3])),
        }))
    }
}

fn checksum(stamp: &[u8; STAMP_BYTES], header_crc: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&stamp[..STAMP_CRC_AT]);
    hasher.update(&header_crc.to_le_bytes());
    hasher.finalize()
}
