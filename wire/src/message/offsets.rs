//! `OffsetCommit` and `OffsetFetch`: how far a consumer group has come.
//!
//! Part of `message`; its invariants hold here. Whether a commit counts is for the group's coordinator to say.

use flatbuffers::{FlatBufferBuilder, WIPOffset};

use super::membership::member_id;
use super::{MessageError, Refusal, each, finish, owned, partition, root, text, wire_partition};
use crate::error::ErrorCode;
use crate::generated::groups as fb;
use crate::ids::{LeaderEpoch, MemberEpoch, MemberId, Offset, TopicPartition};

/// Most bytes of the metadata of a commit.
pub const OFFSET_METADATA_BYTES_MAX: usize = 1 << 10;

/// Whether a group takes this as the metadata of a commit: not too long, and no control characters.
#[must_use]
pub fn is_offset_metadata(text: &str) -> bool {
    text.len() <= OFFSET_METADATA_BYTES_MAX && !text.chars().any(char::is_control)
}

/// How far a group has come in a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetRow {
    /// Which partition.
    pub tp: TopicPartition,
    /// The next record to read.
    pub offset: Offset,
    /// The epoch of the record before it, as far as the committer knew.
    pub leader_epoch: LeaderEpoch,
    /// What the committer wants to remember.
    pub metadata: String,
}

/// Stores how far a group has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommitRequest {
    /// The group.
    pub group: String,
    /// The member, and what it knew; none: set from outside, which a group without members takes.
    pub member: Option<(MemberId, MemberEpoch)>,
    /// The offsets.
    pub rows: Vec<OffsetRow>,
}

/// What became of an offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedRow {
    /// Of which partition.
    pub tp: TopicPartition,
    /// Why it was not stored; [`ErrorCode::None`] if it was.
    pub error: ErrorCode,
    /// Details of the error for a person.
    pub message: String,
}

/// What became of the offsets, in the request's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommitAnswer {
    /// The rows.
    pub rows: Vec<CommittedRow>,
}

/// Asks how far a group has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetFetchRequest {
    /// The group.
    pub group: String,
}

/// How far a group has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetFetchAnswer {
    /// In every partition in which something was committed.
    pub rows: Vec<OffsetRow>,
}

impl OffsetCommitRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(128 + 64 * self.rows.len());
        let rows: Vec<_> = self.rows.iter().map(|row| row.write(&mut b)).collect();
        let args = fb::OffsetCommitRequestArgs {
            group: Some(b.create_string(&self.group)),
            member: self.member.map(|(id, _)| b.create_vector(id.as_bytes())),
            member_epoch: self.member.map_or(0, |(_, epoch)| epoch.get()),
            rows: Some(b.create_vector(&rows)),
        };
        let root = fb::OffsetCommitRequest::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::OffsetCommitRequest<'_>>(bytes)?;
        let member = table.member().map(member_id).transpose()?;
        Ok(Self {
            group: table.group().to_owned(),
            member: member.map(|id| (id, MemberEpoch::new(table.member_epoch()))),
            rows: each(table.rows(), |row| Ok(OffsetRow::read(&row)))?,
        })
    }
}

impl OffsetCommitAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + 48 * self.rows.len());
        let rows: Vec<_> = self.rows.iter().map(|row| row.write(&mut b)).collect();
        let args = fb::OffsetCommitAnswerArgs { rows: Some(b.create_vector(&rows)), ..Default::default() };
        let root = fb::OffsetCommitAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::OffsetCommitAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        Ok(Self { rows: each(table.rows(), |row| Ok(CommittedRow::read(&row)))? })
    }
}

impl OffsetFetchRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64);
        let args = fb::OffsetFetchRequestArgs { group: Some(b.create_string(&self.group)) };
        let root = fb::OffsetFetchRequest::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::OffsetFetchRequest<'_>>(bytes)?;
        Ok(Self { group: table.group().to_owned() })
    }
}

impl OffsetFetchAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + 64 * self.rows.len());
        let rows: Vec<_> = self.rows.iter().map(|row| row.write(&mut b)).collect();
        let args = fb::OffsetFetchAnswerArgs { rows: Some(b.create_vector(&rows)), ..Default::default() };
        let root = fb::OffsetFetchAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::OffsetFetchAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        Ok(Self { rows: each(table.rows(), |row| Ok(OffsetRow::read(&row)))? })
    }
}

impl OffsetRow {
    fn write<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::OffsetRow<'b>> {
        let tp = wire_partition(self.tp);
        let args = fb::OffsetRowArgs {
            topic_partition: Some(&tp),
            offset: self.offset.get(),
            leader_epoch: self.leader_epoch.get(),
            metadata: text(b, &self.metadata),
        };
        fb::OffsetRow::create(b, &args)
    }

    fn read(table: &fb::OffsetRow<'_>) -> Self {
        Self {
            tp: partition(table.topic_partition()),
            offset: Offset::new(table.offset()),
            leader_epoch: LeaderEpoch::new(table.leader_epoch()),
            metadata: owned(table.metadata()),
        }
    }
}

impl CommittedRow {
    fn write<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::CommittedRow<'b>> {
        let tp = wire_partition(self.tp);
        let message = text(b, &self.message);
        let args = fb::CommittedRowArgs { topic_partition: Some(&tp), error: self.error.as_u16(), message };
        fb::CommittedRow::create(b, &args)
    }

    fn read(table: &fb::CommittedRow<'_>) -> Self {
        Self {
            tp: partition(table.topic_partition()),
            error: ErrorCode::received(table.error()),
            message: owned(table.message()),
        }
    }
}
