//! `GroupHeartbeat`: joining a consumer group, staying in it, learning what one may have, and leaving.
//!
//! Part of `message`; its invariants hold here. Whether a name, a pattern or a timeout is allowed is for the broker to
//! say, as the answer names the rule.

use std::time::Duration;

use flatbuffers::{FlatBufferBuilder, WIPOffset};

use super::{
    MessageError, Refusal, each, finish, owned, partition, root, text, topic_bytes, topic_id, wire_partition,
};
use crate::generated::groups as fb;
use crate::ids::{MemberEpoch, MemberId, TopicId, TopicPartition};

/// A rule for who gets which partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Assignor {
    /// As even over all topics as the subscriptions allow, with as few moves as that takes.
    #[default]
    Uniform = 0,
    /// Contiguous ranges, topic by topic, so that partitions of the same number meet at the same member.
    Range = 1,
}

impl Assignor {
    /// Every assignor, by number.
    pub const ALL: [Self; 2] = [Self::Uniform, Self::Range];

    /// The name in settings and command output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Range => "range",
        }
    }

    /// The assignor of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|assignor| assignor.name() == name)
    }
}

/// What a member says of itself when it joins, and whenever it changes its mind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberWishes {
    /// How long it may be silent before its session ends.
    pub session_timeout: Duration,
    /// Topics that it wants, by name.
    pub topics: Vec<String>,
    /// Topics that it wants, by pattern: `*` stands for any characters.
    pub patterns: Vec<String>,
    /// How it wants partitions to be spread.
    pub assignor: Assignor,
    /// A name that outlives the process.
    pub instance: Option<String>,
    /// What a person calls the program.
    pub client_name: String,
}

/// Whether a member stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Leave {
    /// It stays.
    No = 0,
    /// It is gone for good.
    Yes = 1,
    /// It comes back under its instance id, and until then keeps what it has.
    Away = 2,
}

/// A member joins, says that it is there, or leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHeartbeatRequest {
    /// The group.
    pub group: String,
    /// Who.
    pub member: MemberId,
    /// What it knows; zero: it joins.
    pub member_epoch: MemberEpoch,
    /// Whether it leaves.
    pub leave: Leave,
    /// How long the answer may be held while nothing changes for the member.
    pub max_wait_ms: u32,
    /// The partitions that it works on.
    pub owned: Vec<TopicPartition>,
    /// How many heartbeats it has sent, this one included: one that comes after a later one says nothing any more.
    pub beat: u64,
    /// What it wants: when it joins, and when that changed.
    pub wishes: Option<Box<MemberWishes>>,
}

/// Partitions of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicShare {
    /// The topic.
    pub topic: TopicId,
    /// Its name; empty if the broker does not know it (any more).
    pub name: String,
    /// Which of its partitions.
    pub partitions: Vec<u32>,
}

/// What a member may have; nothing, to one that left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHeartbeatAnswer {
    /// Since when.
    pub member_epoch: MemberEpoch,
    /// All of it.
    pub granted: Vec<TopicShare>,
}

impl GroupHeartbeatRequest {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(256 + 24 * self.owned.len());
        let owned: Vec<_> = self.owned.iter().map(|&tp| wire_partition(tp)).collect();
        let owned = (!owned.is_empty()).then(|| b.create_vector(&owned));
        let wishes = self.wishes.as_ref().map(|wishes| wishes.write(&mut b));
        let args = fb::GroupHeartbeatRequestArgs {
            group: Some(b.create_string(&self.group)),
            member: Some(b.create_vector(self.member.as_bytes())),
            member_epoch: self.member_epoch.get(),
            leave: self.leave as u8,
            wait_ms_max: self.max_wait_ms,
            owned,
            wishes,
            beat: self.beat,
        };
        let root = fb::GroupHeartbeatRequest::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`]; who joins must say what it wants.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::GroupHeartbeatRequest<'_>>(bytes)?;
        let leave = match table.leave() {
            0 => Leave::No,
            1 => Leave::Yes,
            2 => Leave::Away,
            other => return Err(MessageError::OutOfRange { field: "leave", value: other.into() }),
        };
        let wishes = table.wishes().map(|wishes| MemberWishes::read(&wishes).map(Box::new)).transpose()?;
        if table.member_epoch() == 0 && leave == Leave::No && wishes.is_none() {
            return Err(MessageError::Missing { field: "wishes" });
        }
        Ok(Self {
            group: table.group().to_owned(),
            member: member_id(table.member())?,
            member_epoch: MemberEpoch::new(table.member_epoch()),
            leave,
            max_wait_ms: table.wait_ms_max(),
            owned: table.owned().map(|owned| owned.iter().map(partition).collect()).unwrap_or_default(),
            beat: table.beat(),
            wishes,
        })
    }
}

impl GroupHeartbeatAnswer {
    /// Its header, padded to a multiple of 8.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = FlatBufferBuilder::with_capacity(256);
        let granted: Vec<_> = self.granted.iter().map(|share| share.write(&mut b)).collect();
        let args = fb::GroupHeartbeatAnswerArgs {
            member_epoch: self.member_epoch.get(),
            granted: Some(b.create_vector(&granted)),
            ..Default::default()
        };
        let root = fb::GroupHeartbeatAnswer::create(&mut b, &args);
        finish(b, root)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let table = root::<fb::GroupHeartbeatAnswer<'_>>(bytes)?;
        Refusal::of(table.error(), table.message(), table.throttle_ms()).map_err(MessageError::Refused)?;
        Ok(Self {
            member_epoch: MemberEpoch::new(table.member_epoch()),
            granted: each(table.granted(), |share| TopicShare::read(&share))?,
        })
    }
}

impl TopicShare {
    fn write<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::TopicShare<'b>> {
        let args = fb::TopicShareArgs {
            topic: Some(topic_bytes(b, self.topic)),
            name: text(b, &self.name),
            partitions: Some(b.create_vector(&self.partitions)),
        };
        fb::TopicShare::create(b, &args)
    }

    fn read(table: &fb::TopicShare<'_>) -> Result<Self, MessageError> {
        Ok(Self {
            topic: topic_id(Some(table.topic()))?,
            name: owned(table.name()),
            partitions: table.partitions().map(|numbers| numbers.iter().collect()).unwrap_or_default(),
        })
    }
}

impl MemberWishes {
    pub(super) fn write<'b>(&self, b: &mut FlatBufferBuilder<'b>) -> WIPOffset<fb::MemberWishes<'b>> {
        let topics: Vec<_> = self.topics.iter().map(|name| b.create_string(name)).collect();
        let patterns: Vec<_> = self.patterns.iter().map(|pattern| b.create_string(pattern)).collect();
        let args = fb::MemberWishesArgs {
            session_timeout_ms: milliseconds(self.session_timeout),
            topics: Some(b.create_vector(&topics)),
            patterns: Some(b.create_vector(&patterns)),
            assignor: self.assignor as u8,
            instance: self.instance.as_ref().map(|instance| b.create_string(instance)),
            client_name: text(b, &self.client_name),
        };
        fb::MemberWishes::create(b, &args)
    }

    pub(super) fn read(table: &fb::MemberWishes<'_>) -> Result<Self, MessageError> {
        let assignor = Assignor::ALL.into_iter().find(|assignor| *assignor as u8 == table.assignor());
        let unknown = MessageError::OutOfRange { field: "assignor", value: table.assignor().into() };
        Ok(Self {
            session_timeout: Duration::from_millis(table.session_timeout_ms().into()),
            topics: each(table.topics(), |name| Ok(name.to_owned()))?,
            patterns: each(table.patterns(), |pattern| Ok(pattern.to_owned()))?,
            assignor: assignor.ok_or(unknown)?,
            instance: table.instance().map(str::to_owned),
            client_name: owned(table.client_name()),
        })
    }
}

/// Whole milliseconds, as many as the field holds.
fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

pub(super) fn member_id(bytes: flatbuffers::Vector<'_, u8>) -> Result<MemberId, MessageError> {
    let length = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
    let bytes = bytes.bytes().try_into();
    let bytes = bytes.map_err(|_| MessageError::OutOfRange { field: "member length", value: length })?;
    Ok(MemberId::from_bytes(bytes))
}
