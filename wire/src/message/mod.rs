//! The messages: plain structs, and their FlatBuffers headers.
//!
//! Called by whoever owns a connection. Invariants: a message that was decoded has passed the verifier under our own
//! limits and then the range checks of its struct, so nothing behind it checks again; decoding never panics. This room
//! refuses to know about frames' bounds, and of a payload it knows only which bytes a row claims.

mod fetch;
mod groups;
mod membership;
mod offsets;
mod produce;
mod session;
mod topics;

use flatbuffers::{FlatBufferBuilder, Follow, InvalidFlatbuffer, Verifiable, VerifierOptions, WIPOffset};
use thiserror::Error;

pub use self::fetch::{
    At, DeleteRecordsAnswer, DeleteRecordsRequest, DeleteRecordsRow, DeletedRow, FetchAnswer, FetchRequest,
    FetchRow, FetchedRow, ListOffsetsAnswer, ListOffsetsRequest, ListOffsetsRow, ListedRow,
};
pub use self::groups::{
    DeleteGroupAnswer, DeleteGroupRequest, DescribeGroupAnswer, DescribeGroupRequest, GroupLag,
    GroupPartition, ListGroupsAnswer, ListGroupsRequest, ListedGroup, MemberDescription,
};
pub use self::membership::{
    Assignor, GroupHeartbeatAnswer, GroupHeartbeatRequest, Leave, MemberWishes, TopicShare,
};
pub use self::offsets::{
    CommittedRow, OFFSET_METADATA_BYTES_MAX, OffsetCommitAnswer, OffsetCommitRequest, OffsetFetchAnswer,
    OffsetFetchRequest, OffsetRow, is_offset_metadata,
};
pub use self::produce::{
    Acks, InitProducerIdAnswer, InitProducerIdRequest, ProduceAnswer, ProduceRequest, ProduceRow, ProducedRow,
};
pub use self::session::{
    HelloAnswer, HelloRequest, MetadataAnswer, MetadataBroker, MetadataPartition, MetadataRequest,
    MetadataTopic,
};
pub use self::topics::{
    AlterTopicAnswer, AlterTopicRequest, CreateTopicAnswer, CreateTopicRequest, DeleteTopicAnswer,
    DeleteTopicRequest, DescribeTopicAnswer, DescribeTopicRequest, PartitionDescription, TopicSetting,
};

use crate::error::ErrorCode;
use crate::frame::{ALIGNMENT, Kind};
use crate::generated::common as fb;
use crate::ids::{TopicId, TopicPartition};

/// Why a header is not the message it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MessageError {
    /// Not a FlatBuffer of this message within our limits.
    #[error("the header is not a valid FlatBuffer: {0}")]
    Invalid(#[from] InvalidFlatbuffer),
    /// A field without which the message has no meaning.
    #[error("{field} is missing")]
    Missing {
        /// The field's name in the schema.
        field: &'static str,
    },
    /// A field's value is outside its range.
    #[error("{field} is out of range: {value}")]
    OutOfRange {
        /// The field's name in the schema.
        field: &'static str,
        /// The value that was sent.
        value: i64,
    },
    /// A row claims bytes that are misaligned, outside the payload or an earlier row's.
    #[error("row {row} claims bytes {first_byte} and {bytes} more of a payload of {payload_bytes}")]
    RowOutside {
        /// The row's place among the rows.
        row: usize,
        /// First byte that it claims.
        first_byte: u32,
        /// How many bytes it claims.
        bytes: u32,
        /// The payload's length.
        payload_bytes: usize,
    },
    /// Not a fault of the message: the answer is a refusal. [`Answer::decode`] gives it as [`Answer::Refused`].
    #[error("the request was refused: {}: {}", .0.code, .0.message)]
    Refused(Refusal),
}

impl MessageError {
    /// The code of the refusal that a request with this error gets.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(refusal) => refusal.code,
            Self::Invalid(_) | Self::Missing { .. } | Self::OutOfRange { .. } | Self::RowOutside { .. } => {
                ErrorCode::Malformed
            }
        }
    }
}

/// A request that is refused as a whole; the answer to any kind, known or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why; never [`ErrorCode::None`].
    pub code: ErrorCode,
    /// Details for a person.
    pub message: String,
    /// How long the client should wait before its next request.
    pub throttle_ms: u32,
}

impl Refusal {
    /// A refusal with no wait.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), throttle_ms: 0 }
    }

    /// The header of an answer that says only this.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + self.message.len());
        let message = text(&mut b, &self.message);
        let args = fb::RefusalArgs { error: self.code.as_u16(), message, throttle_ms: self.throttle_ms };
        let root = fb::Refusal::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads the beginning that the answers of all kinds share: a refusal, or none if the answer is not one.
    ///
    /// # Errors
    /// [`MessageError::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, MessageError> {
        let table = root::<fb::Refusal<'_>>(bytes)?;
        let prefix = Self::of(table.error(), table.message(), table.throttle_ms());
        Ok(prefix.err())
    }

    /// `Err` if the common beginning of an answer says that it is a refusal.
    fn of(code: u16, message: Option<&str>, throttle_ms: u32) -> Result<(), Self> {
        match ErrorCode::received(code) {
            ErrorCode::None => Ok(()),
            code => Err(Self { code, message: owned(message), throttle_ms }),
        }
    }
}

/// Lists the kinds once, for both directions.
macro_rules! kinds {
    ($($kind:ident($request:ident, $answer:ident);)*) => {
        /// What a client asks.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Request {
            $(
                #[doc = concat!("A [`Kind::", stringify!($kind), "`].")]
                $kind($request),
            )*
        }

        impl Request {
            /// The kind that its frame carries.
            #[must_use]
            pub const fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }

            /// Its header, padded to a multiple of 8.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                match self {
                    $(Self::$kind(request) => request.encode(),)*
                }
            }

            /// Reads the header of a request of this kind.
            ///
            /// # Errors
            /// Any [`MessageError`] but a refusal.
            pub fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, MessageError> {
                match kind {
                    $(Kind::$kind => $request::decode(bytes).map(Self::$kind),)*
                }
            }
        }

        /// What a broker answers.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Answer {
            $(
                #[doc = concat!("To a [`Kind::", stringify!($kind), "`].")]
                $kind($answer),
            )*
            /// To a request of any kind: no.
            Refused {
                /// The request's kind.
                kind: Kind,
                /// Why not.
                refusal: Refusal,
            },
        }

        impl Answer {
            /// The kind that its frame carries.
            #[must_use]
            pub const fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                    Self::Refused { kind, .. } => *kind,
                }
            }

            /// Its header, padded to a multiple of 8.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                match self {
                    $(Self::$kind(answer) => answer.encode(),)*
                    Self::Refused { refusal, .. } => refusal.encode(),
                }
            }

            /// Reads the header of an answer of this kind. A refusal is [`Answer::Refused`], not an error.
            ///
            /// # Errors
            /// Any [`MessageError`] but a refusal.
            pub fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, MessageError> {
                let answer = match kind {
                    $(Kind::$kind => $answer::decode(bytes).map(Self::$kind),)*
                };
                match answer {
                    Err(MessageError::Refused(refusal)) => Ok(Self::Refused { kind, refusal }),
                    answer => answer,
                }
            }
        }
    };
}

kinds! {
    Hello(HelloRequest, HelloAnswer);
    Metadata(MetadataRequest, MetadataAnswer);
    CreateTopic(CreateTopicRequest, CreateTopicAnswer);
    DeleteTopic(DeleteTopicRequest, DeleteTopicAnswer);
    AlterTopic(AlterTopicRequest, AlterTopicAnswer);
    DescribeTopic(DescribeTopicRequest, DescribeTopicAnswer);
    Produce(ProduceRequest, ProduceAnswer);
    Fetch(FetchRequest, FetchAnswer);
    ListOffsets(ListOffsetsRequest, ListOffsetsAnswer);
    InitProducerId(InitProducerIdRequest, InitProducerIdAnswer);
    DeleteRecords(DeleteRecordsRequest, DeleteRecordsAnswer);
    GroupHeartbeat(GroupHeartbeatRequest, GroupHeartbeatAnswer);
    OffsetCommit(OffsetCommitRequest, OffsetCommitAnswer);
    OffsetFetch(OffsetFetchRequest, OffsetFetchAnswer);
    ListGroups(ListGroupsRequest, ListGroupsAnswer);
    DescribeGroup(DescribeGroupRequest, DescribeGroupAnswer);
    DeleteGroup(DeleteGroupRequest, DeleteGroupAnswer);
}

/// Verifies `bytes` and gives its root table. The limits follow from the length, so that work and memory do too: tables
/// may share bytes, which the apparent size counts each time.
fn root<'a, T>(bytes: &'a [u8]) -> Result<T::Inner, MessageError>
where
    T: Follow<'a> + Verifiable + 'a,
{
    const DEPTH_MAX: usize = 8;
    const TABLES_MIN: usize = 4096;
    const BYTES_PER_TABLE: usize = 24;
    let options = VerifierOptions {
        max_depth: DEPTH_MAX,
        max_tables: TABLES_MIN.max(bytes.len() / BYTES_PER_TABLE),
        max_apparent_size: bytes.len().saturating_mul(4).saturating_add(1024),
        ignore_missing_null_terminator: false,
    };
    Ok(flatbuffers::root_with_opts::<T>(&options, bytes)?)
}

/// The finished buffer (copied once), padded to the alignment of payloads.
fn finish<T>(mut builder: FlatBufferBuilder<'_>, root: WIPOffset<T>) -> Vec<u8> {
    builder.finish_minimal(root);
    let data = builder.finished_data();
    let padded = data.len().next_multiple_of(ALIGNMENT);
    let mut bytes = Vec::with_capacity(padded);
    bytes.extend_from_slice(data);
    bytes.resize(padded, 0);
    bytes
}

/// A string of a message under construction; none if it is empty.
fn text<'b>(builder: &mut FlatBufferBuilder<'b>, text: &str) -> Option<WIPOffset<&'b str>> {
    (!text.is_empty()).then(|| builder.create_string(text))
}

/// A string of a received message; empty if there is none.
fn owned(text: Option<&str>) -> String {
    text.map(str::to_owned).unwrap_or_default()
}

/// Reads each row of a received vector; no vector has no rows.
fn each<'a, T, R>(
    rows: Option<flatbuffers::Vector<'a, flatbuffers::ForwardsUOffset<T>>>,
    read: impl FnMut(T::Inner) -> Result<R, MessageError>,
) -> Result<Vec<R>, MessageError>
where
    T: Follow<'a> + 'a,
{
    rows.map(|rows| rows.iter().map(read).collect()).transpose().map(Option::unwrap_or_default)
}

fn wire_partition(tp: TopicPartition) -> fb::TopicPartition {
    fb::TopicPartition::new(tp.topic.as_bytes(), tp.partition)
}

fn partition(tp: &fb::TopicPartition) -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes(tp.topic().into()), tp.partition())
}

fn topic_id(bytes: Option<flatbuffers::Vector<'_, u8>>) -> Result<TopicId, MessageError> {
    let bytes = bytes.ok_or(MessageError::Missing { field: "topic" })?.bytes();
    let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    let bytes =
        bytes.try_into().map_err(|_| MessageError::OutOfRange { field: "topic length", value: length })?;
    Ok(TopicId::from_bytes(bytes))
}

fn topic_bytes<'b>(
    builder: &mut FlatBufferBuilder<'b>,
    topic: TopicId,
) -> WIPOffset<flatbuffers::Vector<'b, u8>> {
    builder.create_vector(topic.as_bytes())
}

/// Checks that rows, in their order, claim aligned, disjoint pieces of a payload. `claims` are (first byte, bytes).
fn claims_within(claims: impl Iterator<Item = (u32, u32)>, payload_bytes: usize) -> Result<(), MessageError> {
    let mut end = 0;
    for (row, (first_byte, bytes)) in claims.enumerate() {
        let error = MessageError::RowOutside { row, first_byte, bytes, payload_bytes };
        let first = u64::from(first_byte);
        let aligned = (first_byte | bytes).is_multiple_of(8);
        if !aligned || first < end || first + u64::from(bytes) > payload_bytes as u64 {
            return Err(error);
        }
        end = first + u64::from(bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
