//! The first block of a segment file, the names of files and folders, and what can be wrong with any of them.
//!
//! Called by the hands (create, open, name), by `scan` and `index` for the errors, and by a recovery that lost both
//! checkpoints. First block, 4096 bytes, little-endian: 0 magic "CLS1" | 4 version u8 = 1 | 5 flags u8 = 0 | 6 zero u16 |
//! 8 topic id | 24 partition u32 | 28 segment use u32 | 32 base offset u64 | 40 zeros | 60 crc32 of 0..60 u32 | 64 zeros.
//!
//! Invariant: a name and a block are read only in the one form in which they are written. This room refuses to know
//! where the data directory is.

use crate::journal::{SegmentId, SegmentUse};
use crate::limits::BLOCK;
use corelog_wire::batch::BatchError;
use corelog_wire::ids::{LeaderEpoch, Offset, TopicId, TopicPartition};
use thiserror::Error;

const BLOCK_BYTES: usize = 4096;
const HEADER_BYTES: usize = 64;
const MAGIC: [u8; 4] = *b"CLS1";
const VERSION: u8 = 1;
/// Not zero, so that a block of zeros has no checksum of zero.
const CRC_SEED: u32 = 0x3153_4C43;

const TOPIC_AT: usize = 8;
const PARTITION_AT: usize = 24;
const USE_AT: usize = 28;
const BASE_AT: usize = 32;
const CRC_AT: usize = 60;

const LOG_SUFFIX: &str = ".log";
const INDEX_SUFFIX: &str = ".idx";

const _: () = assert!(BLOCK_BYTES as u64 == BLOCK);

/// Why a segment, its index file, or a place in it cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SegmentError {
    /// Fewer bytes than there must be.
    #[error("{bytes} bytes where {wanted} were expected")]
    Short {
        /// What there was.
        bytes: u64,
        /// What was expected.
        wanted: u64,
    },
    /// Not a file of this kind.
    #[error("this is not a file of that kind")]
    Magic,
    /// Written by a newer broker. It is left as it is.
    #[error("format {version} is unknown here: start a newer broker")]
    NewerVersion {
        /// The version that was found.
        version: u8,
    },
    /// Torn or rotten.
    #[error("wrong checksum")]
    Checksum,
    /// The checksum holds but the content may not be.
    #[error("the file contradicts itself: {what}")]
    Contradiction {
        /// In what.
        what: &'static str,
    },
    /// The file of another segment.
    #[error("this file belongs to {} from offset {} on, use {}", found.tp, found.base, found.segment_use.0)]
    OtherSegment {
        /// Whose it is.
        found: SegmentId,
    },
    /// There is no sound batch of this partition where one must start.
    #[error("no sound batch at file position {file_position}, where offset {expected} was expected: {error}")]
    Batch {
        /// Where it should start.
        file_position: u64,
        /// The offset it should have, or an offset before which it should start.
        expected: Offset,
        /// What is wrong with it.
        error: BatchError,
    },
    /// A sound batch that is not the one that must be here.
    #[error("offset {found} at file position {file_position}, where offset {expected} was expected")]
    OffsetGap {
        /// Where it starts.
        file_position: u64,
        /// The offset it should have.
        expected: Offset,
        /// The offset it has.
        found: Offset,
    },
    /// A sound batch of a leadership before that of the batch before it.
    #[error("epoch {found} after epoch {before} at file position {file_position} (offset {expected})")]
    EpochFell {
        /// Where it starts.
        file_position: u64,
        /// Its offset.
        expected: Offset,
        /// The epoch of the batch before.
        before: LeaderEpoch,
        /// Its epoch.
        found: LeaderEpoch,
    },
    /// The last extent ends, but there should be more.
    #[error(
        "nothing after offset {expected} up to file position {file_end}, where everything below {until} should be"
    )]
    Missing {
        /// Where the last extent ends.
        file_end: u64,
        /// The offset that should come next.
        expected: Offset,
        /// Everything below should be there.
        until: Offset,
    },
    /// A batch that would reach beyond the last extent, or is longer than any may be.
    #[error(
        "{batch_bytes} bytes of batch at file position {file_position} (offset {expected}), but the last extent ends at {file_end}"
    )]
    BeyondEnd {
        /// Where it starts.
        file_position: u64,
        /// Its offset.
        expected: Offset,
        /// Its length by its header.
        batch_bytes: u64,
        /// Where the last extent ends.
        file_end: u64,
    },
}

/// The first block of a segment file.
#[must_use]
pub fn first_block(id: SegmentId) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    block[..HEADER_BYTES].copy_from_slice(&id_header(MAGIC, VERSION, id));
    seal_header(&mut block, CRC_SEED);
    block
}

/// Whose file it is, from its first block.
///
/// # Errors
/// [`SegmentError`], but none about batches and none about another segment.
pub fn parse_first_block(block: &[u8]) -> Result<SegmentId, SegmentError> {
    let Some(block) = block.first_chunk::<BLOCK_BYTES>() else {
        return Err(SegmentError::Short { bytes: block.len() as u64, wanted: BLOCK });
    };
    let id = parse_id_header(block, MAGIC, VERSION, CRC_SEED)?;
    let zeros = [&block[BASE_AT + 8..CRC_AT], &block[HEADER_BYTES..]];
    if zeros.iter().any(|range| range.iter().any(|&byte| byte != 0)) {
        return Err(SegmentError::Contradiction { what: "something where zeros belong" });
    }
    Ok(id)
}

/// The first 40 of the 64 bytes that name a segment; segment files and index files share them.
pub(super) fn id_header(magic: [u8; 4], version: u8, id: SegmentId) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &magic);
    put(magic.len(), &[version]);
    put(TOPIC_AT, id.tp.topic.as_bytes());
    put(PARTITION_AT, &id.tp.partition.to_le_bytes());
    put(USE_AT, &id.segment_use.0.to_le_bytes());
    put(BASE_AT, &id.base.get().to_le_bytes());
    header
}

/// Puts the checksum of a 64-byte header into its last four bytes.
pub(super) fn seal_header(file: &mut [u8], seed: u32) {
    let crc = seeded_crc(&file[..CRC_AT], seed);
    file[CRC_AT..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// Magic, checksum, version and name of a 64-byte header. Bytes 40..60 are the caller's to judge.
pub(super) fn parse_id_header(
    file: &[u8],
    magic: [u8; 4],
    version: u8,
    seed: u32,
) -> Result<SegmentId, SegmentError> {
    let Some(header) = file.first_chunk::<HEADER_BYTES>() else {
        return Err(SegmentError::Short { bytes: file.len() as u64, wanted: HEADER_BYTES as u64 });
    };
    if header[..magic.len()] != magic {
        return Err(SegmentError::Magic);
    }
    if u32::from_le_bytes(field(header, CRC_AT)) != seeded_crc(&header[..CRC_AT], seed) {
        return Err(SegmentError::Checksum);
    }
    let found = header[magic.len()];
    if found > version {
        return Err(SegmentError::NewerVersion { version: found });
    }
    if header[magic.len()..TOPIC_AT] != [version, 0, 0, 0] {
        return Err(SegmentError::Contradiction { what: "something where zeros belong" });
    }
    let topic = TopicId::from_bytes(field(header, TOPIC_AT));
    Ok(SegmentId {
        tp: TopicPartition::new(topic, u32::from_le_bytes(field(header, PARTITION_AT))),
        base: Offset::new(u64::from_le_bytes(field(header, BASE_AT))),
        segment_use: SegmentUse(u32::from_le_bytes(field(header, USE_AT))),
    })
}

/// The folder of a partition's files, below the one of all topics.
#[must_use]
pub fn folder_name(tp: TopicPartition) -> String {
    tp.to_string()
}

/// The name of a segment file in its folder.
#[must_use]
pub fn file_name(id: SegmentId) -> String {
    name(id, LOG_SUFFIX)
}

/// The name of a segment's index file in its folder.
#[must_use]
pub fn index_file_name(id: SegmentId) -> String {
    name(id, INDEX_SUFFIX)
}

fn name(id: SegmentId, suffix: &str) -> String {
    format!("{:020}-{:08x}{suffix}", id.base.get(), id.segment_use.0)
}

/// Base offset and use of the segment that a file belongs to, from its name. `None` unless [`file_name`] or
/// [`index_file_name`] gives exactly this name.
#[must_use]
pub fn parse_file_name(name: &str) -> Option<(Offset, SegmentUse)> {
    let stem = name.strip_suffix(LOG_SUFFIX).or_else(|| name.strip_suffix(INDEX_SUFFIX))?;
    let (base, segment_use) = stem.split_once('-')?;
    let decimal = base.len() == 20 && base.bytes().all(|c| c.is_ascii_digit());
    let hexadecimal =
        segment_use.len() == 8 && segment_use.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    if !decimal || !hexadecimal {
        return None;
    }
    Some((Offset::new(base.parse().ok()?), SegmentUse(u32::from_str_radix(segment_use, 16).ok()?)))
}

fn seeded_crc(bytes: &[u8], seed: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// The `N` bytes at `at`; zeros beyond the end.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SegmentId {
        let topic = TopicId::from_bytes(std::array::from_fn(|i| 0x10 + u8::try_from(i).unwrap()));
        SegmentId {
            tp: TopicPartition::new(topic, 3),
            base: Offset::new(0x0102_0304_0506_0708),
            segment_use: SegmentUse(7),
        }
    }

    #[test]
    fn golden_bytes() {
        let block = first_block(id());
        let mut golden = Vec::new();
        golden.extend_from_slice(b"CLS1\x01\0\0\0");
        golden.extend(0x10..0x20_u8);
        golden.extend_from_slice(b"\x03\0\0\0\x07\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01");
        golden.extend_from_slice(&[0; 20]);
        // Computed with another implementation of crc32 (zlib's, started from the seed).
        golden.extend_from_slice(&[0xf8, 0x76, 0x41, 0x2f]);
        assert_eq!(block.len(), 4096);
        assert_eq!(block[..64], golden);
        assert!(block[64..].iter().all(|&byte| byte == 0));
        assert_eq!(parse_first_block(&block), Ok(id()));
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let block = first_block(id());
        for byte in 0..block.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = block.clone();
                changed[byte] ^= flip;
                assert!(parse_first_block(&changed).is_err(), "byte {byte}");
            }
        }
        for cut in [0, 63, 64, 4095] {
            assert!(
                matches!(parse_first_block(&block[..cut]), Err(SegmentError::Short { .. })),
                "cut at {cut}"
            );
        }
        assert_eq!(parse_first_block(&[0; 4096]), Err(SegmentError::Magic));
    }

    #[test]
    fn a_newer_version_is_said_to_be_one() {
        let mut block = first_block(id());
        block[4] = 2;
        seal_header(&mut block, CRC_SEED);
        assert_eq!(parse_first_block(&block), Err(SegmentError::NewerVersion { version: 2 }));
        for (at, value) in [(4, 0), (5, 1), (6, 1), (44, 1)] {
            let mut block = first_block(id());
            block[at] = value;
            seal_header(&mut block, CRC_SEED);
            assert!(
                matches!(parse_first_block(&block), Err(SegmentError::Contradiction { .. })),
                "byte {at}"
            );
        }
    }

    #[test]
    fn names_are_written_and_read_in_one_form() {
        assert_eq!(folder_name(id().tp), "10111213-1415-1617-1819-1a1b1c1d1e1f/3");
        assert_eq!(file_name(id()), "00072623859790382856-00000007.log");
        assert_eq!(index_file_name(id()), "00072623859790382856-00000007.idx");
        assert_eq!(parse_file_name(&file_name(id())), Some((id().base, id().segment_use)));
        assert_eq!(parse_file_name(&index_file_name(id())), Some((id().base, id().segment_use)));
        let last = SegmentId { base: Offset::new(u64::MAX), segment_use: SegmentUse(u32::MAX), ..id() };
        assert_eq!(file_name(last), "18446744073709551615-ffffffff.log");
        assert_eq!(parse_file_name(&file_name(last)), Some((last.base, last.segment_use)));
        for name in [
            "",
            "00072623859790382856-00000007.log.tmp",
            "00072623859790382856-00000007",
            "00072623859790382856-0000000A.log",
            "00072623859790382856-+0000007.log",
            "+0072623859790382856-00000007.log",
            "0072623859790382856-00000007.log",
            "000072623859790382856-00000007.log",
            "99999999999999999999-00000007.log",
            "00072623859790382856-000000007.log",
            "0007262385979038285\u{663}-00000007.log",
            " 0072623859790382856-00000007.log",
        ] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }
}
