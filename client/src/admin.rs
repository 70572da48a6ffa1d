//! Administration: topics, offsets, retention by hand. That of groups is in `groups`.
//!
//! Each call is one request to any broker, but those about offsets, which go to the partitions' leaders.

use std::collections::BTreeMap;

use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{Offset, TopicId};
use corelog_wire::message::{
    AlterTopicRequest, Answer, At, CreateTopicRequest, DeleteRecordsRequest, DeleteRecordsRow,
    DeleteTopicRequest, DescribeTopicAnswer, DescribeTopicRequest, ListOffsetsRequest, ListOffsetsRow,
    MetadataRequest, Request,
};

use crate::client::Client;
use crate::core::{Start, Target, Topic, addresses};
use crate::error::{Error, Result};

/// A topic to create.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTopic {
    partitions: u32,
    replication_factor: u16,
    config: Vec<(String, String)>,
}

impl NewTopic {
    /// With this many partitions; 0: the broker's default.
    #[must_use]
    pub fn partitions(partitions: u32) -> Self {
        Self { partitions, ..Self::default() }
    }

    /// With this many replicas of each; 0: the broker's default.
    #[must_use]
    pub fn replication_factor(self, replication_factor: u16) -> Self {
        Self { replication_factor, ..self }
    }

    /// With a setting of its own, such as `retention_ms`.
    #[must_use]
    pub fn config(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.push((name.into(), value.into()));
        self
    }
}

/// Changes to a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicChange {
    partitions: Option<u32>,
    config: Vec<(String, Option<String>)>,
}

impl TopicChange {
    /// No change yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// More partitions, this many in all.
    #[must_use]
    pub fn partitions(self, partitions: u32) -> Self {
        Self { partitions: Some(partitions), ..self }
    }

    /// A setting to this value.
    #[must_use]
    pub fn set(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.push((name.into(), Some(value.into())));
        self
    }

    /// A setting back to its default.
    #[must_use]
    pub fn unset(mut self, name: impl Into<String>) -> Self {
        self.config.push((name.into(), None));
        self
    }
}

/// A topic and its settings, as the broker describes it.
pub type TopicDescription = DescribeTopicAnswer;

/// A place in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// The partition.
    pub partition: u32,
    /// For a time: where the first batch with a record of that time or later begins; the log's end if there is none.
    pub offset: u64,
    /// For a time: that batch's latest time.
    pub timestamp_ms: Option<i64>,
}

/// Administration.
#[derive(Clone)]
pub struct Admin {
    pub(crate) client: Client,
}

/// Rows in one request: a quarter of what a broker takes.
const ROWS_MAX: usize = 1024;

pub(crate) fn unexpected() -> Error {
    Error::protocol("an answer of another kind")
}

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Creates a topic.
    ///
    /// # Errors
    /// `EXISTS`, `INVALID_NAME` and `INVALID_CONFIG` as [`Error::Refused`]; a broker that cannot be reached.
    pub async fn create_topic(&self, name: &str, topic: NewTopic) -> Result<TopicId> {
        let NewTopic { partitions, replication_factor, config } = topic;
        let request = CreateTopicRequest { name: name.to_owned(), partitions, replication_factor, config };
        match self.client.call(Target::Any, Request::CreateTopic(request), false).await? {
            Answer::CreateTopic(answer) => Ok(answer.id),
            _ => Err(unexpected()),
        }
    }

    /// Creates a topic unless it exists, whatever its settings are.
    ///
    /// # Errors
    /// As [`Admin::create_topic`], without `EXISTS`.
    pub async fn ensure_topic(&self, name: &str, topic: NewTopic) -> Result<()> {
        match self.create_topic(name, topic).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(ErrorCode::Exists) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes a topic and all its records.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC` as [`Error::Refused`]; a broker that cannot be reached.
    pub async fn delete_topic(&self, name: &str) -> Result<()> {
        let request = Request::DeleteTopic(DeleteTopicRequest { name: name.to_owned() });
        match self.client.call(Target::Any, request, false).await? {
            Answer::DeleteTopic(_) => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// Changes a topic's settings or adds partitions.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC` and `INVALID_CONFIG` as [`Error::Refused`]; a broker that cannot be reached.
    pub async fn alter_topic(&self, name: &str, change: TopicChange) -> Result<()> {
        let TopicChange { partitions, config } = change;
        let request = Request::AlterTopic(AlterTopicRequest { name: name.to_owned(), config, partitions });
        match self.client.call(Target::Any, request, true).await? {
            Answer::AlterTopic(_) => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// A topic's settings and the state of its partitions.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC` as [`Error::Refused`]; a broker that cannot be reached.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription> {
        let request = Request::DescribeTopic(DescribeTopicRequest { name: name.to_owned() });
        match self.client.call(Target::Any, request, true).await? {
            Answer::DescribeTopic(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// A broker that cannot be reached.
    pub async fn list_topics(&self) -> Result<Vec<Topic>> {
        let answer = self.metadata(None).await?;
        let addresses = addresses(&answer);
        let topics = answer.topics.iter().map(|topic| Topic::read(topic, &addresses));
        let mut topics = topics.collect::<Result<Vec<_>>>()?;
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    }

    /// One topic's partitions and leaders.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC` as [`Error::Refused`]; a broker that cannot be reached.
    pub async fn topic(&self, name: &str) -> Result<Topic> {
        let answer = self.metadata(Some(vec![name.to_owned()])).await?;
        crate::core::topic_of(&answer, name)
    }

    async fn metadata(&self, topics: Option<Vec<String>>) -> Result<corelog_wire::message::MetadataAnswer> {
        let request = Request::Metadata(MetadataRequest { topics, auto_create: false });
        match self.client.call(Target::Any, request, true).await? {
            Answer::Metadata(answer) => Ok(answer),
            _ => Err(unexpected()),
        }
    }

    /// A place in each partition of a topic, by number. An offset is given back as it is.
    ///
    /// # Errors
    /// `UNKNOWN_TOPIC` and others as [`Error::Refused`]; a broker that cannot be reached.
    pub async fn list_offsets(&self, topic: &str, start: Start) -> Result<Vec<ListedOffset>> {
        let topic = self.topic(topic).await?;
        let at = match start {
            Start::Earliest => At::Earliest,
            Start::Latest => At::Latest,
            Start::Timestamp(timestamp_ms) => At::Timestamp(timestamp_ms),
            Start::Offset(offset) => {
                let listed = |partition| ListedOffset { partition, offset, timestamp_ms: None };
                return Ok((0..topic.partition_count()).map(listed).collect());
            }
        };
        let mut listed = Vec::new();
        let by_leader = by_leader(&topic, 0..topic.partition_count());
        let requests = by_leader.iter().flat_map(|(target, partitions)| {
            partitions.chunks(ROWS_MAX).map(move |partitions| (target.clone(), partitions))
        });
        for (target, partitions) in requests {
            let rows = partitions.iter().map(|&partition| ListOffsetsRow { tp: topic.tp(partition), at });
            let request = Request::ListOffsets(ListOffsetsRequest { rows: rows.collect() });
            let Answer::ListOffsets(answer) = self.client.call(target, request, true).await? else {
                return Err(unexpected());
            };
            for row in answer.rows {
                refused(row.error, "")?;
                listed.push(ListedOffset {
                    partition: row.tp.partition,
                    offset: row.offset.get(),
                    timestamp_ms: (row.timestamp_ms >= 0).then_some(row.timestamp_ms),
                });
            }
        }
        listed.sort_by_key(|listed| listed.partition);
        let complete = listed.iter().map(|listed| listed.partition).eq(0..topic.partition_count());
        if complete { Ok(listed) } else { Err(Error::protocol("not every partition was answered")) }
    }

    /// Deletes the records of a partition below an offset; gives the log's start now.
    ///
    /// # Errors
    /// `OFFSET_OUT_OF_RANGE` and others as [`Error::Refused`]; a broker that cannot be reached.
    pub async fn delete_records(&self, topic: &str, partition: u32, before: u64) -> Result<u64> {
        let topic = self.topic(topic).await?;
        let target = leader_of(&topic, partition);
        let row = DeleteRecordsRow { tp: topic.tp(partition), before: Offset::new(before) };
        let request = Request::DeleteRecords(DeleteRecordsRequest { rows: vec![row] });
        let Answer::DeleteRecords(answer) = self.client.call(target, request, true).await? else {
            return Err(unexpected());
        };
        let row = answer.rows.first().ok_or_else(unexpected)?;
        refused(row.error, "")?;
        Ok(row.log_start.get())
    }
}

fn refused(code: ErrorCode, message: &str) -> Result<()> {
    if code == ErrorCode::None { Ok(()) } else { Err(Error::refused(code, message)) }
}

/// Whom to ask about a partition. About one without a leader anybody: the broker says why it cannot answer.
fn leader_of(topic: &Topic, partition: u32) -> Target {
    topic.leader(partition).map_or(Target::Any, |leader| Target::At(leader.clone()))
}

/// The partitions by whom to ask about them.
fn by_leader(topic: &Topic, partitions: impl IntoIterator<Item = u32>) -> BTreeMap<Target, Vec<u32>> {
    let mut by_leader: BTreeMap<Target, Vec<u32>> = BTreeMap::new();
    for partition in partitions {
        by_leader.entry(leader_of(topic, partition)).or_default().push(partition);
    }
    by_leader
}
