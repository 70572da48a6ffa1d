//! The frame around every message: a prelude of 32 bytes, the FlatBuffers header, the payload.
//!
//! Called by whoever owns a connection, on both sides. Invariants: the bounds of a frame are known to be sound and
//! within the caps before a byte is reserved for it; an error says what the connection must do next. This file refuses
//! to know what a header says and what a payload holds.
//!
//! Layout of the prelude, little-endian: 0 magic `CLG1` | 4 version u8 | 5 flags u8 (bit 0 answer) | 6 kind u16 |
//! 8 `header_bytes` u32 | 12 `payload_bytes` u32 | 16 correlation u64 | 24 `header_crc` u32 | 28 `prelude_crc` u32 (of
//! bytes 0 to 28). Both checksums are CRC-32/ISO-HDLC.

use thiserror::Error;

use crate::error::ErrorCode;
use crate::ids::CorrelationId;

/// Length of a prelude.
pub const PRELUDE_BYTES: usize = 32;
/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"CLG1";
/// Version of the frame's layout.
pub const VERSION: u8 = 1;
/// Headers are padded with zeros to a multiple of this, so that payloads are aligned.
pub const ALIGNMENT: usize = 8;

/// Flag of an answer.
const FLAG_ANSWER: u8 = 1;
/// Bytes that the prelude's own checksum covers.
const PRELUDE_CRC_AT: usize = 28;

/// What a request asks for; its answer is of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Kind {
    /// Agree on version, features and shard; the first request of a connection.
    Hello = 1,
    /// Brokers, topics, leaders.
    Metadata = 2,
    /// Create a topic.
    CreateTopic = 3,
    /// Delete a topic.
    DeleteTopic = 4,
    /// Change a topic's settings or its number of partitions.
    AlterTopic = 5,
    /// A topic's settings and the state of its partitions.
    DescribeTopic = 6,
    /// Append record batches.
    Produce = 7,
    /// Read record batches.
    Fetch = 8,
    /// Offsets by place or by time.
    ListOffsets = 9,
    /// Name for an idempotent producer.
    InitProducerId = 10,
    /// Raise the start of logs.
    DeleteRecords = 11,
    /// Join a consumer group, stay in it, leave it.
    GroupHeartbeat = 32,
    /// Store how far a group has come.
    OffsetCommit = 33,
    /// How far a group has come.
    OffsetFetch = 34,
    /// Which groups there are.
    ListGroups = 35,
    /// Who is in a group, and where it is.
    DescribeGroup = 36,
    /// Delete a group, or its offsets of a topic.
    DeleteGroup = 37,
}

impl Kind {
    /// Every kind, by number.
    pub const ALL: &[Self] = &[
        Self::Hello,
        Self::Metadata,
        Self::CreateTopic,
        Self::DeleteTopic,
        Self::AlterTopic,
        Self::DescribeTopic,
        Self::Produce,
        Self::Fetch,
        Self::ListOffsets,
        Self::InitProducerId,
        Self::DeleteRecords,
        Self::GroupHeartbeat,
        Self::OffsetCommit,
        Self::OffsetFetch,
        Self::ListGroups,
        Self::DescribeGroup,
        Self::DeleteGroup,
    ];

    /// The kind of this number, if this version knows it.
    #[must_use]
    pub const fn from_u16(kind: u16) -> Option<Self> {
        match kind {
            1 => Some(Self::Hello),
            2 => Some(Self::Metadata),
            3 => Some(Self::CreateTopic),
            4 => Some(Self::DeleteTopic),
            5 => Some(Self::AlterTopic),
            6 => Some(Self::DescribeTopic),
            7 => Some(Self::Produce),
            8 => Some(Self::Fetch),
            9 => Some(Self::ListOffsets),
            10 => Some(Self::InitProducerId),
            11 => Some(Self::DeleteRecords),
            32 => Some(Self::GroupHeartbeat),
            33 => Some(Self::OffsetCommit),
            34 => Some(Self::OffsetFetch),
            35 => Some(Self::ListGroups),
            36 => Some(Self::DescribeGroup),
            37 => Some(Self::DeleteGroup),
            _ => None,
        }
    }

    /// The number on the wire.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self as u16
    }

    /// Its place in [`Kind::ALL`].
    #[must_use]
    pub const fn place(self) -> usize {
        let mut place = 0;
        while Self::ALL[place] as u16 != self as u16 {
            place += 1;
        }
        place
    }

    /// The name in documents, logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hello => "Hello",
            Self::Metadata => "Metadata",
            Self::CreateTopic => "CreateTopic",
            Self::DeleteTopic => "DeleteTopic",
            Self::AlterTopic => "AlterTopic",
            Self::DescribeTopic => "DescribeTopic",
            Self::Produce => "Produce",
            Self::Fetch => "Fetch",
            Self::ListOffsets => "ListOffsets",
            Self::InitProducerId => "InitProducerId",
            Self::DeleteRecords => "DeleteRecords",
            Self::GroupHeartbeat => "GroupHeartbeat",
            Self::OffsetCommit => "OffsetCommit",
            Self::OffsetFetch => "OffsetFetch",
            Self::ListGroups => "ListGroups",
            Self::DescribeGroup => "DescribeGroup",
            Self::DeleteGroup => "DeleteGroup",
        }
    }
}

/// The largest frame that a side takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Most bytes of a header.
    pub header_bytes_max: u32,
    /// Most bytes of a payload.
    pub payload_bytes_max: u32,
}

impl Caps {
    /// What a connection may send before it has said Hello (and, where it must, who it is).
    pub const BEFORE_HELLO: Self = Self { header_bytes_max: 4096, payload_bytes_max: 0 };
}

/// The first 32 bytes of a frame, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prelude {
    /// Whether the frame is an answer.
    pub answer: bool,
    /// The kind's number, known or not: see [`Prelude::known_kind`].
    pub kind: u16,
    /// Length of the header, a multiple of 8.
    pub header_bytes: u32,
    /// Length of the payload.
    pub payload_bytes: u32,
    /// Ties an answer to its request.
    pub correlation: CorrelationId,
    /// Checksum of the header.
    pub header_crc: u32,
}

/// Why a frame is not accepted. [`FrameError::remedy`] says what the connection does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The peer does not speak this protocol, or the stream is out of step.
    #[error("the frame does not begin with the magic bytes")]
    BadMagic,
    /// The prelude is of another version of the layout.
    #[error("frame version {version} is unknown; this side speaks {VERSION}")]
    BadVersion {
        /// The version that was sent.
        version: u8,
    },
    /// The prelude was damaged on its way, so its lengths cannot be trusted.
    #[error("the prelude's checksum is wrong")]
    BadPreludeChecksum,
    /// A flag that this version does not know.
    #[error("flags {flags:#04x} are unknown")]
    UnknownFlags {
        /// All flags that were sent.
        flags: u8,
    },
    /// The header's length is not a multiple of 8.
    #[error("the header's length {header_bytes} is not a multiple of 8")]
    Misaligned {
        /// The request's correlation.
        correlation: CorrelationId,
        /// The length that was sent.
        header_bytes: u32,
    },
    /// Header or payload exceed the caps.
    #[error("a header of {header_bytes} and a payload of {payload_bytes} bytes exceed {} and {}",
        caps.header_bytes_max, caps.payload_bytes_max)]
    TooLarge {
        /// The request's correlation.
        correlation: CorrelationId,
        /// The header's length.
        header_bytes: u32,
        /// The payload's length.
        payload_bytes: u32,
        /// What is taken.
        caps: Caps,
    },
    /// No such kind in this version.
    #[error("kind {kind} is unknown")]
    UnknownKind {
        /// The request's correlation.
        correlation: CorrelationId,
        /// The kind that was sent.
        kind: u16,
    },
    /// The header was damaged on its way; the frame's bounds are sound.
    #[error("the header's checksum is wrong")]
    BadHeaderChecksum {
        /// The request's correlation.
        correlation: CorrelationId,
    },
}

/// What a connection does after a [`FrameError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Close without an answer: nothing in the prelude can be trusted.
    Close,
    /// Answer with this refusal, then close. The rest of the frame is not awaited, as it may be of any length. So that
    /// the answer survives, shut down the sending half, drop what still comes for a bounded time and number of bytes,
    /// and only then close.
    RefuseThenClose {
        /// The refusal's code.
        code: ErrorCode,
        /// The request to answer.
        correlation: CorrelationId,
    },
    /// Read header and payload to their ends (both are within the caps), drop them, answer with this refusal, go on.
    SkipAndRefuse {
        /// The refusal's code.
        code: ErrorCode,
        /// The request to answer.
        correlation: CorrelationId,
    },
}

impl FrameError {
    /// What the connection does next. A client, which cannot refuse an answer, closes in every case.
    #[must_use]
    pub const fn remedy(&self) -> Remedy {
        match *self {
            Self::BadMagic
            | Self::BadVersion { .. }
            | Self::BadPreludeChecksum
            | Self::UnknownFlags { .. } => Remedy::Close,
            Self::Misaligned { correlation, .. } => {
                Remedy::RefuseThenClose { code: ErrorCode::Malformed, correlation }
            }
            Self::TooLarge { correlation, .. } => {
                Remedy::RefuseThenClose { code: ErrorCode::TooLarge, correlation }
            }
            Self::UnknownKind { correlation, .. } => {
                Remedy::SkipAndRefuse { code: ErrorCode::UnsupportedKind, correlation }
            }
            Self::BadHeaderChecksum { correlation } => {
                Remedy::SkipAndRefuse { code: ErrorCode::Malformed, correlation }
            }
        }
    }
}

impl Prelude {
    /// The prelude of a request with this header (padded, as messages encode it).
    #[must_use]
    pub fn request(kind: Kind, correlation: CorrelationId, header: &[u8], payload_bytes: u32) -> Self {
        Self::around(false, kind.as_u16(), correlation, header, payload_bytes)
    }

    /// The prelude of an answer with this header (padded, as messages encode it). The kind is the request's, known or
    /// not.
    #[must_use]
    pub fn answer(kind: u16, correlation: CorrelationId, header: &[u8], payload_bytes: u32) -> Self {
        Self::around(true, kind, correlation, header, payload_bytes)
    }

    /// # Panics
    /// When the header is not padded or longer than 4 GiB: a bug of this side.
    fn around(
        answer: bool,
        kind: u16,
        correlation: CorrelationId,
        header: &[u8],
        payload_bytes: u32,
    ) -> Self {
        assert!(header.len().is_multiple_of(ALIGNMENT), "a header is padded to a multiple of {ALIGNMENT}");
        let Ok(header_bytes) = u32::try_from(header.len()) else {
            panic!("a header has at most 4 GiB, not {}", header.len());
        };
        let header_crc = crc32fast::hash(header);
        Self { answer, kind, header_bytes, payload_bytes, correlation, header_crc }
    }

    /// The prelude's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PRELUDE_BYTES] {
        let mut bytes = [0; PRELUDE_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = if self.answer { FLAG_ANSWER } else { 0 };
        bytes[6..8].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.header_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.correlation.get().to_le_bytes());
        bytes[24..28].copy_from_slice(&self.header_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..PRELUDE_CRC_AT]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a prelude and holds it against the caps, so that the caller may reserve `header_bytes` and
    /// `payload_bytes`. The kind may still be unknown.
    ///
    /// # Errors
    /// Any [`FrameError`] but those of a kind or of a header.
    pub fn decode(bytes: &[u8; PRELUDE_BYTES], caps: &Caps) -> Result<Self, FrameError> {
        if bytes[0..4] != MAGIC {
            return Err(FrameError::BadMagic);
        }
        if bytes[4] != VERSION {
            return Err(FrameError::BadVersion { version: bytes[4] });
        }
        if crc32fast::hash(&bytes[..PRELUDE_CRC_AT]) != u32_at(bytes, PRELUDE_CRC_AT) {
            return Err(FrameError::BadPreludeChecksum);
        }
        if bytes[5] & !FLAG_ANSWER != 0 {
            return Err(FrameError::UnknownFlags { flags: bytes[5] });
        }
        let prelude = Self {
            answer: bytes[5] & FLAG_ANSWER != 0,
            kind: u16::from_le_bytes([bytes[6], bytes[7]]),
            header_bytes: u32_at(bytes, 8),
            payload_bytes: u32_at(bytes, 12),
            correlation: CorrelationId::new(
                u64::from(u32_at(bytes, 20)) << 32 | u64::from(u32_at(bytes, 16)),
            ),
            header_crc: u32_at(bytes, 24),
        };
        if !prelude.header_bytes.is_multiple_of(8) {
            let Self { correlation, header_bytes, .. } = prelude;
            return Err(FrameError::Misaligned { correlation, header_bytes });
        }
        prelude.check_caps(caps)?;
        Ok(prelude)
    }

    /// Holds the frame against other caps, such as those of its kind.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`].
    pub fn check_caps(&self, caps: &Caps) -> Result<(), FrameError> {
        let &Self { correlation, header_bytes, payload_bytes, .. } = self;
        if header_bytes > caps.header_bytes_max || payload_bytes > caps.payload_bytes_max {
            return Err(FrameError::TooLarge { correlation, header_bytes, payload_bytes, caps: *caps });
        }
        Ok(())
    }

    /// The kind, if this version knows it.
    ///
    /// # Errors
    /// [`FrameError::UnknownKind`].
    pub fn known_kind(&self) -> Result<Kind, FrameError> {
        Kind::from_u16(self.kind)
            .ok_or(FrameError::UnknownKind { correlation: self.correlation, kind: self.kind })
    }
}

/// Whether these are the bytes that the prelude's checksum of the header was made of.
///
/// # Errors
/// [`FrameError::BadHeaderChecksum`].
pub fn check_header(prelude: &Prelude, header: &[u8]) -> Result<(), FrameError> {
    if crc32fast::hash(header) == prelude.header_crc {
        Ok(())
    } else {
        Err(FrameError::BadHeaderChecksum { correlation: prelude.correlation })
    }
}

fn u32_at(bytes: &[u8; PRELUDE_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, golden};

    const CAPS: Caps = Caps { header_bytes_max: 64, payload_bytes_max: 1024 };

    fn prelude() -> Prelude {
        Prelude::request(Kind::Produce, CorrelationId::new(0x0102_0304_0506_0708), b"sixteen bytes ok", 1000)
    }

    /// A prelude whose own checksum was made anew after a change.
    fn changed(at: usize, byte: u8) -> [u8; PRELUDE_BYTES] {
        let mut bytes = prelude().encode();
        bytes[at] = byte;
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn golden_prelude() {
        let bytes = golden("prelude", &prelude().encode());
        let decoded = Prelude::decode(&bytes.try_into().unwrap(), &CAPS).unwrap();
        assert_eq!(decoded, prelude());
        assert_eq!(decoded.known_kind(), Ok(Kind::Produce));
        assert_eq!(check_header(&decoded, b"sixteen bytes ok"), Ok(()));
    }

    #[test]
    fn an_answer_says_so() {
        let answer = Prelude::answer(7, CorrelationId::new(9), &[], 0);
        assert_eq!(Prelude::decode(&answer.encode(), &CAPS), Ok(answer));
        assert!(answer.answer);
    }

    #[test]
    fn what_cannot_be_trusted_closes_the_connection() {
        let mut damaged = prelude().encode();
        damaged[12] ^= 1;
        for (bytes, error) in [
            (changed(0, b'X'), FrameError::BadMagic),
            (changed(4, 2), FrameError::BadVersion { version: 2 }),
            (changed(5, 2), FrameError::UnknownFlags { flags: 2 }),
            (damaged, FrameError::BadPreludeChecksum),
        ] {
            assert_eq!(Prelude::decode(&bytes, &CAPS), Err(error));
            assert_eq!(error.remedy(), Remedy::Close);
        }
    }

    #[test]
    fn what_is_too_large_is_refused_by_its_correlation() {
        let correlation = prelude().correlation;
        for bytes in [changed(8, 72), changed(15, 1)] {
            let error = Prelude::decode(&bytes, &CAPS).unwrap_err();
            assert_eq!(error.remedy(), Remedy::RefuseThenClose { code: ErrorCode::TooLarge, correlation });
        }
        let error = Prelude::decode(&changed(8, 12), &CAPS).unwrap_err();
        assert_eq!(error, FrameError::Misaligned { correlation, header_bytes: 12 });
        assert_eq!(error.remedy(), Remedy::RefuseThenClose { code: ErrorCode::Malformed, correlation });
        assert!(prelude().check_caps(&Caps::BEFORE_HELLO).is_err());
    }

    #[test]
    fn caps_are_inclusive() {
        let exact = Caps { header_bytes_max: 16, payload_bytes_max: 1000 };
        assert_eq!(prelude().check_caps(&exact), Ok(()));
        assert!(prelude().check_caps(&Caps { header_bytes_max: 15, ..exact }).is_err());
        assert!(prelude().check_caps(&Caps { payload_bytes_max: 999, ..exact }).is_err());
    }

    #[test]
    fn an_unknown_kind_or_a_damaged_header_is_skipped_and_refused() {
        let decoded = Prelude::decode(&changed(6, 200), &CAPS).unwrap();
        let correlation = decoded.correlation;
        let error = decoded.known_kind().unwrap_err();
        assert_eq!(error, FrameError::UnknownKind { correlation, kind: 200 });
        assert_eq!(error.remedy(), Remedy::SkipAndRefuse { code: ErrorCode::UnsupportedKind, correlation });
        let error = check_header(&prelude(), b"sixteen bytes no").unwrap_err();
        assert_eq!(error.remedy(), Remedy::SkipAndRefuse { code: ErrorCode::Malformed, correlation });
    }

    #[test]
    fn kinds_are_found_by_their_numbers() {
        let known: Vec<Kind> = (0..=u16::MAX).filter_map(Kind::from_u16).collect();
        assert_eq!(known, Kind::ALL);
        assert!(Kind::ALL.iter().all(|&kind| Kind::from_u16(kind.as_u16()) == Some(kind)));
    }

    #[test]
    fn mutated_preludes_are_refused_or_within_the_caps() {
        let mut rng = Rng(1);
        let mut accepted = 0;
        for _ in 0..50_000 {
            let mut bytes = rng.mutated(&prelude().encode());
            bytes.resize(PRELUDE_BYTES, 0);
            let mut bytes: [u8; PRELUDE_BYTES] = bytes.try_into().unwrap();
            // So that the checks behind the checksum are reached.
            let crc = crc32fast::hash(&bytes[..28]);
            bytes[28..].copy_from_slice(&crc.to_le_bytes());
            if let Ok(prelude) = Prelude::decode(&bytes, &CAPS) {
                assert!(prelude.header_bytes <= 64 && prelude.payload_bytes <= 1024);
                assert_eq!(prelude.encode(), bytes);
                accepted += 1;
            }
        }
        assert!(accepted > 1000, "{accepted}");
    }
}
