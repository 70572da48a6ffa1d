//! List, describe and delete consumer groups.
//!
//! Part of `message`; its invariants hold here. Whether a name is allowed is for the broker to say.

use std::time::Duration;

use flatbuffers::{FlatBufferBuilder, WIPOffset};

use super::membership::member_id;
use super::{
    MemberWishes, MessageError, Refusal, each, finish, owned, partition, root, text, topic_bytes, topic_id,
    wire_partition,
};
use crate::generated::groups as fb;
use crate::ids::{MemberEpoch, MemberId, Offset, TopicId, TopicPartition};

/// Asks which groups there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListGroupsRequest {
    /// Only groups whose names come after this one.
    pub after: String,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedGroup {
    /// Its name.
    pub name: String,
    /// How many members it has.
    pub members: u32,
}

/// Groups, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListGroupsAnswer {
    /// As many as an answer holds.
    pub groups: Vec<ListedGroup>,
    /// Whether there are groups after the last of these.
    pub more: bool,
}

/// Asks who is in a group, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribeGroupRequest {
    /// The group.
    pub group: String,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDescription {
    /// Who.
    pub member: MemberId,
    /// When what it may have changed last.
    pub member_epoch: MemberEpoch,
    /// Whether it left for a restart.
    pub away: bool,
    /// What it said of itself.
    pub wishes: MemberWishes,
}

/// Where a group is in a partition. What only the partition's leader knows is missing where it could not be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPartition {
    /// Which partition.
    pub tp: TopicPartition,
    /// Its topic's name; empty if the topic is gone.
    pub topic: String,
    /// The member that holds it, if one does.
    pub member: Option<MemberId>,
    /// Whether the holder was told to let go.
    pub leaving: bool,
    /// The next record that the group has to read, if it committed anything.
    pub committed: Option<Offset>,
    /// What the committer wanted to remember.
    pub metadata: String,
    /// Where the group is behind what there is.
    pub lag: Option<GroupLag>,
}

/// How far a group is behind in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLag {
    /// Lowest offset that can be read.
    pub log_start: Offset,
    /// Lowest offset that consumers cannot read yet.
    pub high_watermark: Offset,
    /// Bytes of the batches that the group has not read.
    pub bytes: u64,
    /// Since when the first record that it has not read has been there; zero if it has read all.
    pub behind: Duration,
    /// Time until retention deletes what it has not read; none: never, as things are.
    pub overtaken_in: Option<Duration>,
}

/// Who is in a group, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribeGroupAnswer {
    /// How often anything about who has what changed.
    pub epoch: u64,
    /// Its members, by id.
    pub members: Vec<MemberDescription>,
    /// Where it is, by topic and partition.
    pub partitions: Vec<GroupPartition>,
}

/// Deletes a group that has no members, or its offsets of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteGroupRequest {
    /// The group.
    pub group: String,
    /// Only its offsets of this topic.
    pub topic: Option<TopicId>,
}

/// The group, or its offsets of the topic, are gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteGroupAnswer {}

impl ListGroupsRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64);
        let after = text(&mut b, &self.after);
        let root = fb::ListGroupsRequest::create(&mut b, &fb::ListGroupsRequestArgs { after });
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::ListGroupsRequest<'_>>(bytes)?;
        Ok(Self { after: owned(table.after()) })
    }
}

impl ListGroupsAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64 + 64 * self.groups.len());
        let groups: Vec<_> = self
            .groups
            .iter()
            .map(|group| {
                let name = Some(b.create_string(&group.name));
                fb::ListedGroup::create(&mut b, &fb::ListedGroupArgs { name, members: group.members })
            })
            .collect();
        let groups = Some(b.create_vector(&groups));
        let args = fb::ListGroupsAnswerArgs { groups, more: self.more, ..Default::default() };
        let root = fb::ListGroupsAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::ListGroupsAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        let listed = |group: fb::ListedGroup<'_>| {
            Ok(ListedGroup { name: group.name().to_owned(), members: group.members() })
        };
        Ok(Self { groups: each(table.groups(), listed)?, more: table.more() })
    }
}

impl DescribeGroupRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64);
        let group = Some(b.create_string(&self.group));
        let root = fb::DescribeGroupRequest::create(&mut b, &fb::DescribeGroupRequestArgs { group });
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError::Invalid`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::DescribeGroupRequest<'_>>(bytes)?;
        Ok(Self { group: table.group().to_owned() })
    }
}

impl DescribeGroupAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b =
            FlatBufferBuilder::with_capacity(256 + 256 * self.members.len() + 128 * self.partitions.len());
        let members: Vec<_> = self.members.iter().map(|member| member.write(&mut b)).collect();
        let partitions: Vec<_> = self.partitions.iter().map(|row| row.write(&mut b)).collect();
        let args = fb::DescribeGroupAnswerArgs {
            epoch: self.epoch,
            members: Some(b.create_vector(&members)),
            partitions: Some(b.create_vector(&partitions)),
            ..Default::default()
        };
        let root = fb::DescribeGroupAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::DescribeGroupAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        Ok(Self {
            epoch: table.epoch(),
            members: each(table.members(), |member| MemberDescription::read(&member))?,
            partitions: each(table.partitions(), |row| GroupPartition::read(&row))?,
        })
    }
}

impl MemberDescription {
    fn write<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::MemberDescription<'b>> {
        let args = fb::MemberDescriptionArgs {
            member: Some(b.create_vector(self.member.as_bytes())),
            member_epoch: self.member_epoch.get(),
            away: self.away,
            wishes: Some(self.wishes.write(b)),
        };
        fb::MemberDescription::create(b, &args)
    }

    fn read(table: &fb::MemberDescription<'_>) -> Result<Self, MessageError> {
        Ok(Self {
            member: member_id(table.member())?,
            member_epoch: MemberEpoch::new(table.member_epoch()),
            away: table.away(),
            wishes: MemberWishes::read(&table.wishes())?,
        })
    }
}

impl GroupPartition {
    fn write<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::GroupPartition<'b>> {
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let tp = wire_partition(self.tp);
        let args = fb::GroupPartitionArgs {
            topic_partition: Some(&tp),
            topic: (!self.topic.is_empty()).then(|| b.create_shared_string(&self.topic)),
            member: self.member.map(|member| b.create_vector(member.as_bytes())),
            leaving: self.leaving,
            committed: self.committed.map(Offset::get),
            metadata: text(b, &self.metadata),
            log_start: self.lag.map(|lag| lag.log_start.get()),
            high_watermark: self.lag.map(|lag| lag.high_watermark.get()),
            lag_bytes: self.lag.map(|lag| lag.bytes),
            lag_ms: self.lag.map(|lag| milliseconds(lag.behind)),
            overtaken_in_ms: self.lag.and_then(|lag| lag.overtaken_in).map(milliseconds),
        };
        fb::GroupPartition::create(b, &args)
    }

    fn read(table: &fb::GroupPartition<'_>) -> Result<Self, MessageError> {
        let lag = table.high_watermark().map(|high_watermark| GroupLag {
            log_start: Offset::new(table.log_start().unwrap_or(0)),
            high_watermark: Offset::new(high_watermark),
            bytes: table.lag_bytes().unwrap_or(0),
            behind: Duration::from_millis(table.lag_ms().unwrap_or(0)),
            overtaken_in: table.overtaken_in_ms().map(Duration::from_millis),
        });
        Ok(Self {
            tp: partition(table.topic_partition()),
            topic: owned(table.topic()),
            member: table.member().map(member_id).transpose()?,
            leaving: table.leaving(),
            committed: table.committed().map(Offset::new),
            metadata: owned(table.metadata()),
            lag,
        })
    }
}

impl DeleteGroupRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(64);
        let topic = self.topic.map(|topic| topic_bytes(&mut b, topic));
        let group = Some(b.create_string(&self.group));
        let root = fb::DeleteGroupRequest::create(&mut b, &fb::DeleteGroupRequestArgs { group, topic });
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::DeleteGroupRequest<'_>>(bytes)?;
        let topic = table.topic().map(|topic| topic_id(Some(topic))).transpose()?;
        Ok(Self { group: table.group().to_owned(), topic })
    }
}

impl DeleteGroupAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(32);
        let root = fb::DeleteGroupAnswer::create(&mut b, &fb::DeleteGroupAnswerArgs::default());
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::DeleteGroupAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        Ok(Self {})
    }
}
