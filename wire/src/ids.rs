//! The names and numbers that Corelog's parts exchange, each a type of its own so that no two can be mixed up.
//!
//! Used by every other room. Invariant: a value is changed into another kind only by naming both (`new`, `get`); there
//! is no `From` between them. This file refuses to know where a number comes from or where it is stored.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The id of a topic: the 16 bytes of a uuid in their written order. A topic that is deleted and created again under
/// the same name has another id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId([u8; 16]);

/// A text that is not a topic id: not 32 hexadecimal digits in groups of 8-4-4-4-12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a topic id is 32 hexadecimal digits in groups of 8-4-4-4-12")]
pub struct TopicIdError;

/// Places of the hyphens in a written topic id.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];
/// Length of a written topic id.
const TOPIC_ID_CHARS: usize = 36;

impl TopicId {
    /// The id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The id's bytes, in the order in which they are written.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

impl FromStr for TopicId {
    type Err = TopicIdError;

    fn from_str(text: &str) -> Result<Self, TopicIdError> {
        let text = text.as_bytes();
        if text.len() != TOPIC_ID_CHARS || HYPHENS.iter().any(|&at| text.get(at) != Some(&b'-')) {
            return Err(TopicIdError);
        }
        let mut digits = text
            .iter()
            .enumerate()
            .filter(|(at, _)| !HYPHENS.contains(at))
            .map(|(_, &c)| char::from(c).to_digit(16));
        let mut bytes = [0; 16];
        for byte in &mut bytes {
            let (Some(Some(high)), Some(Some(low))) = (digits.next(), digits.next()) else {
                return Err(TopicIdError);
            };
            *byte = u8::try_from(high << 4 | low).map_err(|_| TopicIdError)?;
        }
        Ok(Self(bytes))
    }
}

/// One partition of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicId,
    /// The partition's number in the topic, from 0.
    pub partition: u32,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    #[must_use]
    pub const fn new(topic: TopicId, partition: u32) -> Self {
        Self { topic, partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// Name of a member of a consumer group, drawn at random by the member; a member that starts again draws another.
/// Written as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId([u8; 16]);

/// A text that is not a member's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a member's id has 32 hexadecimal digits in lower case")]
pub struct MemberIdError;

impl MemberId {
    /// A member by its number.
    #[must_use]
    pub const fn new(number: u128) -> Self {
        Self(number.to_be_bytes())
    }

    /// A member by the bytes that it goes by on the wire.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes that it goes by on the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl FromStr for MemberId {
    type Err = MemberIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u128::from_str_radix(text, 16).ok().filter(|_| digits && text.len() == 32);
        number.map(Self::new).ok_or(MemberIdError)
    }
}

/// A number that is a type of its own.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name($inner);

        impl $name {
            /// Gives the bare number its meaning.
            #[must_use]
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            /// The bare number.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// Place of a record in its partition's log, counted in records from 0.
    Offset(u64)
}
number! {
    /// How often the leadership of a partition was given; the number fences the leaders before it.
    LeaderEpoch(u32)
}
number! {
    /// Name of an idempotent producer, given by a broker; -1 is none.
    ProducerId(i64)
}
number! {
    /// Incarnation of a producer id; -1 is none.
    ProducerEpoch(i16)
}
number! {
    /// Number of a record within its producer id, epoch and partition, 0 to `i32::MAX` and then 0 again; -1 is none.
    Sequence(i32)
}
number! {
    /// Number of a broker in its cluster.
    BrokerId(u32)
}
number! {
    /// Number of a shard (one core's executor and all it owns) in its broker, from 0.
    ShardId(u16)
}
number! {
    /// How far a member of a group knows what it was given: the epoch of its group in which that changed last. Fences
    /// what the member said before it knew. Zero: nothing yet, the member joins.
    MemberEpoch(u64)
}
number! {
    /// The number by which a client finds the request that an answer belongs to; unique among those of a connection
    /// that are not answered yet.
    CorrelationId(u64)
}

impl Offset {
    /// The first offset of a log.
    pub const ZERO: Self = Self(0);

    /// The offset `records` further on, or none beyond the last offset there can be.
    #[must_use]
    pub const fn checked_add(self, records: u64) -> Option<Self> {
        match self.0.checked_add(records) {
            Some(offset) => Some(Self(offset)),
            None => None,
        }
    }
}

impl ProducerId {
    /// Not an idempotent producer.
    pub const NONE: Self = Self(-1);
}

impl ProducerEpoch {
    /// Not an idempotent producer.
    pub const NONE: Self = Self(-1);
}

impl Sequence {
    /// Not an idempotent producer.
    pub const NONE: Self = Self(-1);
    /// The first of a producer id and epoch in a partition.
    pub const ZERO: Self = Self(0);

    /// The sequence `records` further on. As in Kafka, 0 follows `i32::MAX`. Meaningless for [`Sequence::NONE`].
    #[must_use]
    pub const fn advance(self, records: u32) -> Self {
        let sum = self.0.cast_unsigned().wrapping_add(records);
        // 2^32 is a multiple of 2^31, so cutting the top bit counts modulo 2^31 whatever wrapped.
        Self((sum & i32::MAX.cast_unsigned()).cast_signed())
    }

    /// The sequence of the next record.
    #[must_use]
    pub const fn successor(self) -> Self {
        self.advance(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_id_is_written_as_a_uuid_and_read_back() {
        let id = TopicId::from_bytes([
            0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10,
        ]);
        assert_eq!(id.to_string(), "01234567-89ab-cdef-fedc-ba9876543210");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("01234567-89AB-CDEF-FEDC-BA9876543210".parse(), Ok(id));
    }

    #[test]
    fn a_wrong_topic_id_is_refused() {
        for text in [
            "",
            "01234567-89ab-cdef-fedc-ba987654321",
            "01234567-89ab-cdef-fedc-ba98765432100",
            "0123456789ab-cdef-fedc-ba9876543210-",
            "01234567-89ab-cdef-fedc-ba987654321g",
            "01234567-89ab-cdef-fedc-ba987654321\u{e9}",
            "01234567+89ab-cdef-fedc-ba9876543210",
            "+1234567-89ab-cdef-fedc-ba9876543210",
        ] {
            assert_eq!(text.parse::<TopicId>(), Err(TopicIdError), "{text}");
        }
    }

    #[test]
    fn a_member_id_is_written_as_digits_and_read_back() {
        let id = MemberId::new(0xab);
        assert_eq!(id.to_string(), "000000000000000000000000000000ab");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(MemberId::from_bytes(*id.as_bytes()), id);
        for text in ["", "ab", "000000000000000000000000000000AB", "+00000000000000000000000000000ab"] {
            assert_eq!(text.parse::<MemberId>(), Err(MemberIdError), "{text}");
        }
    }

    #[test]
    fn a_sequence_wraps_to_zero() {
        assert_eq!(Sequence::new(0).successor(), Sequence::new(1));
        assert_eq!(Sequence::new(i32::MAX).successor(), Sequence::ZERO);
        assert_eq!(Sequence::new(i32::MAX - 1).advance(5), Sequence::new(3));
        assert_eq!(Sequence::new(i32::MAX).advance(u32::MAX), Sequence::new(i32::MAX - 1));
    }

    #[test]
    fn an_offset_does_not_overflow() {
        assert_eq!(Offset::new(3).checked_add(4), Some(Offset::new(7)));
        assert_eq!(Offset::new(u64::MAX).checked_add(1), None);
    }
}
