//! What the network hands need of the rest of the broker, and what they give it. Nothing else crosses.
//!
//! - The shard's pump takes [`Input`]s through [`Inbox`] and gives answers back through
//!   [`Answers`](super::Answers): `answer` for a complete message, `fetched` for a fetch whose bytes are at hand.
//! - The control thread takes [`ControlRequest`]s from the bounded channels of its [`Doors`] and publishes a [`View`].
//! - Both sides of a shard boundary are this room's own: see `mesh`.
//!
//! Invariant: nothing here blocks. This file refuses to know sockets and frames.

use corelog_core::shard::{Input, RequestId};
use corelog_core::topic::TOPIC_NAME_BYTES_MAX as NAME_BYTES_MAX;
use corelog_wire::batch::parse_header;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{LeaderEpoch, Offset, ShardId, TopicId, TopicPartition};
use corelog_wire::message::{Answer, Request};
use std::collections::BTreeMap;
use std::rc::Rc;
use tokio::sync::{mpsc, oneshot};

/// Where the shard on this core takes its inputs.
pub trait Inbox {
    /// Queues an input for the next turn. What the network has under way is bounded by the network's own limits, so
    /// this neither waits nor refuses. Every produce, fetch, look-up and deletion is answered through
    /// [`Answers`](super::Answers), once; a produce with [`Acks::None`](corelog_wire::message::Acks::None) need not be.
    fn submit(&self, input: Input);
}

impl<I: Inbox + ?Sized> Inbox for Rc<I> {
    fn submit(&self, input: Input) {
        (**self).submit(input);
    }
}

/// Bytes of whole batches on their way to a socket: a part of a buffer that others share. The buffer is held until the
/// last byte is written or the connection is gone.
#[derive(Clone)]
pub struct PayloadSlice {
    owner: Rc<dyn AsRef<[u8]>>,
    start: usize,
    end: usize,
}

impl PayloadSlice {
    /// Bytes `start..end` of a shared buffer.
    ///
    /// # Panics
    /// When the buffer has fewer bytes: a bug of the caller, which must not become a read of other memory.
    #[must_use]
    pub fn new(owner: Rc<dyn AsRef<[u8]>>, start: usize, end: usize) -> Self {
        assert!(start <= end && end <= (*owner).as_ref().len(), "a payload slice lies within its buffer");
        Self { owner, start, end }
    }

    /// A slice that has its bytes for itself.
    #[must_use]
    pub fn owned(bytes: bytes::Bytes) -> Self {
        let end = bytes.len();
        Self { owner: Rc::new(bytes), start: 0, end }
    }

    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl AsRef<[u8]> for PayloadSlice {
    fn as_ref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.start..self.end]
    }
}

impl std::fmt::Debug for PayloadSlice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PayloadSlice({} bytes)", self.len())
    }
}

/// A fetch whose bytes are in memory.
#[derive(Debug)]
pub struct FetchReady {
    /// Whom to answer.
    pub request: RequestId,
    /// In the order asked.
    pub rows: Vec<FetchReadyRow>,
}

/// One partition of a fetch whose bytes are in memory.
#[derive(Clone, Debug)]
pub struct FetchReadyRow<S = PayloadSlice> {
    /// The partition.
    pub tp: TopicPartition,
    /// `None`, or why there is nothing.
    pub error: ErrorCode,
    /// Details of the error for a person.
    pub message: String,
    /// Offset after the last record a consumer may see.
    pub high_watermark: Offset,
    /// First offset that is there.
    pub log_start: Offset,
    /// Offset after the last record.
    pub log_end: Offset,
    /// The epoch of the leader that answers.
    pub leader_epoch: LeaderEpoch,
    /// With a filter: every batch before it that was asked for is in `slices`.
    pub next_offset: Option<Offset>,
    /// Whole batches, in order.
    pub slices: Vec<S>,
}

impl<S: AsRef<[u8]>> FetchReadyRow<S> {
    /// How many records and bytes its batches have. Looks at the header of each.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        let (mut records, mut bytes) = (0, 0);
        for slice in &self.slices {
            let mut rest = slice.as_ref();
            bytes += rest.len() as u64;
            while let Ok((header, _)) = parse_header(rest, self.tp) {
                records += u64::from(header.record_count);
                rest = rest.get(header.batch_bytes as usize..).unwrap_or_default();
            }
        }
        (records, bytes)
    }
}

/// The ways to the actors of the control thread.
#[derive(Clone, Debug)]
pub struct Doors {
    /// Takes `Metadata`, `CreateTopic`, `DeleteTopic`, `AlterTopic`, `DescribeTopic` and `InitProducerId`.
    pub control: mpsc::Sender<ControlRequest>,
    /// Takes all that is about consumer groups.
    pub groups: mpsc::Sender<ControlRequest>,
}

/// A request for an actor of the control thread.
#[derive(Debug)]
pub struct ControlRequest {
    /// What is asked.
    pub request: Request,
    /// Most bytes that an answer which lists topics or partitions may take, by [`listing_bytes`].
    pub answer_bytes_max: u64,
    /// Takes the answer, of the same kind or a refusal. Dropped unanswered: the asker is told to try again. The asker
    /// stops waiting after the request deadline.
    pub reply: oneshot::Sender<Answer>,
}

/// What an answer takes at most that lists so many topics, whose names have so many bytes together, with so many
/// partitions and their `replicas` (the largest number of one partition).
#[must_use]
pub fn listing_bytes(topics: u64, name_bytes: u64, partitions: u64, replicas: u64) -> u64 {
    let of_partition = LISTED_PARTITION_BYTES + 2 * LISTED_REPLICA_BYTES * replicas;
    topics * LISTED_TOPIC_BYTES + name_bytes + partitions * of_partition
}

/// One topic of a listing, its name apart.
const LISTED_TOPIC_BYTES: u64 = 96;
/// One partition of a listing, its replicas apart.
const LISTED_PARTITION_BYTES: u64 = 96;
/// One replica of a partition.
const LISTED_REPLICA_BYTES: u64 = 4;

/// Which shard of this broker owns which partition: an immutable picture, replaced whole by the control thread through
/// a watch channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// By topic; the index is the partition's number. `None`: led by another broker.
    topics: BTreeMap<TopicId, Vec<Option<ShardId>>>,
    /// Partitions of all topics, and of the largest one.
    partitions: u64,
    partitions_most: u64,
}

/// Where a partition is led, as a [`View`] has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this shard of this broker.
    Shard(ShardId),
    /// Not on this broker.
    NotHere,
    /// The topic has no such partition.
    UnknownPartition,
    /// There is no such topic.
    UnknownTopic,
}

impl View {
    /// The picture of these topics; the index of an owner is its partition's number.
    #[must_use]
    pub fn new(topics: impl IntoIterator<Item = (TopicId, Vec<Option<ShardId>>)>) -> Self {
        let topics: BTreeMap<TopicId, Vec<Option<ShardId>>> = topics.into_iter().collect();
        let partitions = || topics.values().map(|owners| owners.len() as u64);
        let (all, most) = (partitions().sum(), partitions().max().unwrap_or(0));
        Self { topics, partitions: all, partitions_most: most }
    }

    /// What an answer that lists so many topics, or all, takes at most, by [`listing_bytes`] and with the longest names.
    #[must_use]
    pub fn listing_bytes(&self, topics: Option<usize>) -> u64 {
        let here = self.topics.len() as u64;
        let (topics, partitions) = match topics {
            None => (here, self.partitions),
            Some(topics) => {
                let topics = topics as u64;
                (topics, topics.saturating_mul(self.partitions_most).min(self.partitions))
            }
        };
        listing_bytes(topics, topics * NAME_BYTES_MAX as u64, partitions, 1)
    }

    /// Where a partition is led.
    #[must_use]
    pub fn place(&self, tp: TopicPartition) -> Place {
        let Some(owners) = self.topics.get(&tp.topic) else {
            return Place::UnknownTopic;
        };
        let index = usize::try_from(tp.partition).unwrap_or(usize::MAX);
        match owners.get(index) {
            None => Place::UnknownPartition,
            Some(None) => Place::NotHere,
            Some(Some(shard)) => Place::Shard(*shard),
        }
    }
}

impl Place {
    /// The refusal of a row whose partition is not on this broker; `None` if it is.
    #[must_use]
    pub fn refusal(self) -> Option<ErrorCode> {
        match self {
            Self::Shard(_) => None,
            Self::NotHere => Some(ErrorCode::NotLeader),
            Self::UnknownPartition => Some(ErrorCode::UnknownPartition),
            Self::UnknownTopic => Some(ErrorCode::UnknownTopic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corelog_wire::ids::BrokerId;
    use corelog_wire::message::{MetadataAnswer, MetadataPartition, MetadataTopic};

    #[test]
    fn a_view_tells_the_four_places_apart() {
        let topic = TopicId::from_bytes([7; 16]);
        let view = View::new([(topic, vec![Some(ShardId::new(1)), None])]);
        let place = |topic, partition| view.place(TopicPartition::new(topic, partition));
        assert_eq!(place(topic, 0), Place::Shard(ShardId::new(1)));
        assert_eq!(place(topic, 1), Place::NotHere);
        assert_eq!(place(topic, 2), Place::UnknownPartition);
        assert_eq!(place(TopicId::from_bytes([8; 16]), 0), Place::UnknownTopic);
        assert_eq!(place(topic, 0).refusal(), None);
        assert_eq!(place(topic, 1).refusal(), Some(ErrorCode::NotLeader));
    }

    #[test]
    fn a_listing_takes_no_more_than_is_reckoned() {
        let partition = |partition| MetadataPartition {
            partition,
            leader: Some(BrokerId::new(u32::MAX)),
            leader_epoch: LeaderEpoch::new(u32::MAX),
            shard: ShardId::new(u16::MAX),
            replicas: vec![BrokerId::new(1); 3],
            in_sync_replicas: vec![BrokerId::new(1); 3],
        };
        let topic = |name: &str, partitions| MetadataTopic {
            error: ErrorCode::None,
            name: name.to_owned(),
            id: TopicId::from_bytes([255; 16]),
            partitions: (0..partitions).map(partition).collect(),
        };
        for (topics, partitions) in [(1_000, 1), (1, 10_000), (100, 100)] {
            let answer = MetadataAnswer {
                brokers: Vec::new(),
                topics: (0..topics).map(|_| topic("a-name", partitions)).collect(),
                revision: u64::MAX,
            };
            let encoded = Answer::Metadata(answer).encode().len() as u64;
            let reckoned = listing_bytes(topics, 6 * topics, topics * u64::from(partitions), 3);
            assert!(encoded <= reckoned + 128, "{encoded} bytes of {reckoned}");
            assert!(3 * encoded >= reckoned, "{encoded} bytes of {reckoned}");
        }
    }

    #[test]
    fn a_view_reckons_what_a_listing_takes() {
        let owners = |count| vec![Some(ShardId::new(0)); count];
        let id = |number| TopicId::from_bytes([number; 16]);
        let view = View::new([(id(1), owners(10)), (id(2), owners(1_000))]);
        assert_eq!(view.listing_bytes(Some(0)), 0);
        let name_bytes = NAME_BYTES_MAX as u64;
        assert_eq!(view.listing_bytes(Some(1)), listing_bytes(1, name_bytes, 1_000, 1));
        assert_eq!(view.listing_bytes(None), listing_bytes(2, 2 * name_bytes, 1_010, 1));
        assert_eq!(view.listing_bytes(Some(2)), view.listing_bytes(None));
    }

    #[test]
    fn a_slice_shows_its_part_of_the_buffer() {
        let slice = PayloadSlice::new(Rc::new(vec![1_u8, 2, 3, 4]), 1, 3);
        assert_eq!((slice.as_ref(), slice.len(), slice.is_empty()), (&[2_u8, 3][..], 2, false));
    }

    #[test]
    #[should_panic(expected = "within its buffer")]
    fn a_slice_beyond_its_buffer_is_a_bug() {
        let _ = PayloadSlice::new(Rc::new(vec![1_u8]), 0, 2);
    }
}
