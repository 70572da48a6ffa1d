//! The reader of one topic's partitions: Fetch requests out, batches of records to their taker.
//!
//! A driver carries out the effects of [`Reader::handle`], feeds the answers back and comes back at
//! [`Reader::deadline`]; users take batches with [`Reader::take`] and move with [`Reader::seek`].
//!
//! Invariants: of a partition, offsets given to the taker grow by one from record to record, starting at the position
//! asked for, beside what a tag filter leaves out: nothing is skipped in silence, and whatever stands in the way is an error that stays until the taker
//! seeks; what is buffered stays below `prefetch_bytes_max`, or is a single answer; every batch was held against its
//! checksums, seeded with its topic and partition. It refuses to know sockets, and who takes.

mod answers;
mod batch;
mod fetch;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use corelog_wire::batch::CheckedBatch;
use corelog_wire::ids::{Offset, TopicId};
use corelog_wire::keys::{TAGS_PER_FILTER_MAX, TagFilter};
use corelog_wire::message::At;

pub use self::batch::{Batch, BatchRecords, RecordView};
use self::fetch::Lane;
use super::metadata::{Destination, Topic};
use super::random::{Backoff, Random};
use super::{Effect, Input, RequestId};
use crate::error::Error;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the oldest record there is.
    Earliest,
    /// With the next record to come.
    Latest,
    /// With this offset.
    Offset(u64),
    /// With the first record of this create time (milliseconds since 1970) or later.
    Timestamp(i64),
}

impl Start {
    /// The place to ask a broker for; none if the offset is known.
    const fn at(self) -> Result<Offset, At> {
        match self {
            Self::Earliest => Err(At::Earliest),
            Self::Latest => Err(At::Latest),
            Self::Timestamp(timestamp_ms) => Err(At::Timestamp(timestamp_ms)),
            Self::Offset(offset) => Ok(Offset::new(offset)),
        }
    }
}

/// Which partitions of its topic a reader reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Partitions {
    /// All there are and will be.
    All,
    /// These.
    Only(Vec<u32>),
    /// Those that are assigned by and by, of the topic of this id: [`Reader::assign`].
    Assigned(TopicId),
}

/// How a reader works.
#[derive(Clone, Debug)]
pub struct ReaderConfig {
    /// The topic's name.
    pub topic: Arc<str>,
    /// Which partitions.
    pub partitions: Partitions,
    /// Where to begin in each.
    pub start: Start,
    /// Where to go on when the offset is outside the log; none: that is an error.
    pub reset: Option<Start>,
    /// Records without one of these tags are left out; none are if this is empty.
    pub tags: Vec<Bytes>,
    /// How long the broker may wait for new records.
    pub wait: Duration,
    /// The broker waits until it has this many bytes.
    pub bytes_min: u32,
    /// Most bytes of one answer.
    pub fetch_bytes_max: u32,
    /// Most bytes of one partition in one answer.
    pub partition_bytes_max: u32,
    /// Most bytes that wait for the taker.
    pub prefetch_bytes_max: usize,
    /// Most bytes of a decompressed batch.
    pub body_bytes_max: usize,
    /// How long a single request may take, besides waiting for records.
    pub request_deadline: Duration,
    /// When the taker hears of failures that come and go.
    pub patience: Duration,
    /// Waits between attempts.
    pub backoff: Backoff,
    /// After this long the topic's partitions are asked for again.
    pub topic_age_max: Duration,
}

impl ReaderConfig {
    /// The defaults for a topic.
    #[must_use]
    pub fn new(topic: impl Into<Arc<str>>) -> Self {
        Self {
            topic: topic.into(),
            partitions: Partitions::All,
            start: Start::Earliest,
            reset: None,
            tags: Vec::new(),
            wait: Duration::from_millis(500),
            bytes_min: 1,
            fetch_bytes_max: 8 << 20,
            partition_bytes_max: 4 << 20,
            prefetch_bytes_max: 32 << 20,
            body_bytes_max: crate::codec::BODY_BYTES_MAX,
            request_deadline: Duration::from_secs(30),
            patience: Duration::from_secs(30),
            backoff: Backoff::default(),
            topic_age_max: Duration::from_mins(1),
        }
    }

    /// Whether the settings make sense together.
    ///
    /// # Errors
    /// [`Error::Usage`].
    pub fn check(&self) -> Result<(), Error> {
        if self.partitions == Partitions::Only(Vec::new()) {
            return Err(Error::usage("a reader needs at least one partition"));
        }
        if self.fetch_bytes_max == 0 || self.partition_bytes_max == 0 || self.prefetch_bytes_max == 0 {
            return Err(Error::usage("a reader needs room for at least one byte"));
        }
        if self.reset.is_some_and(|reset| matches!(reset, Start::Offset(_))) {
            return Err(Error::usage(
                "reset to earliest, latest or a time: an offset may be outside the log again",
            ));
        }
        self.filter().map(|_| ())
    }

    fn filter(&self) -> Result<TagFilter, Error> {
        let too_many =
            || Error::usage(format!("at most {TAGS_PER_FILTER_MAX} tags can be asked for at once"));
        TagFilter::of(&self.tags).ok_or_else(too_many)
    }
}

/// News for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReaderEvent {
    /// There may be something to take.
    Changed,
}

/// Where a log is read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A broker has to be asked.
    Ask(At),
    /// Here.
    Fetch(Offset),
}

/// One partition's log.
#[derive(Debug)]
struct Log {
    next: Next,
    /// Offset of the next record for the taker; none until it is known.
    position: Option<Offset>,
    /// Whether the broker has said that it is within the log.
    confirmed: bool,
    /// Records of earlier times are dropped, up to the first that is not.
    skip_before_ms: Option<i64>,
    buffered: VecDeque<CheckedBatch>,
    buffered_bytes: usize,
    /// The request under way.
    request: Option<RequestId>,
    paused: bool,
    /// What stands in the way, once the buffer is empty.
    failure: Option<Error>,
    /// A failure that comes and goes: since when, and which.
    trouble: Option<(Instant, Error)>,
    attempts: u32,
    again_at: Option<Instant>,
    /// Lowest offset that can be read.
    earliest: Option<Offset>,
    high_watermark: Option<Offset>,
}

impl Log {
    fn new(start: Start) -> Self {
        let mut log = Self {
            next: Next::Fetch(Offset::ZERO),
            position: None,
            confirmed: false,
            skip_before_ms: None,
            buffered: VecDeque::new(),
            buffered_bytes: 0,
            request: None,
            paused: false,
            failure: None,
            trouble: None,
            attempts: 0,
            again_at: None,
            earliest: None,
            high_watermark: None,
        };
        log.seek(start);
        log
    }

    /// Begins anew. An answer still under way does not count any more, as it is not this log's request.
    fn seek(&mut self, start: Start) {
        (self.next, self.position) = match start.at() {
            Ok(offset) => (Next::Fetch(offset), Some(offset)),
            Err(at) => (Next::Ask(at), None),
        };
        self.confirmed = false;
        self.skip_before_ms = match start {
            Start::Timestamp(timestamp_ms) => Some(timestamp_ms),
            Start::Earliest | Start::Latest | Start::Offset(_) => None,
        };
        self.buffered.clear();
        self.buffered_bytes = 0;
        self.request = None;
        self.failure = None;
        self.trouble = None;
        self.attempts = 0;
        self.again_at = None;
    }
}

/// A request under way.
#[derive(Debug)]
struct UnderWay {
    leader: Destination,
    lane: Lane,
    partitions: Vec<u32>,
    /// Room that its answer may need.
    reserved_bytes: usize,
}

/// The state of a reader.
#[derive(Debug)]
pub struct Reader {
    config: ReaderConfig,
    filter: TagFilter,
    random: Random,
    topic: Option<Topic>,
    /// Why the topic is not known: since when, and what.
    topic_trouble: Option<(Instant, Error)>,
    /// What the taker shall hear of it.
    complaint: Option<Error>,
    topic_asked: Option<RequestId>,
    topic_attempts: u32,
    topic_again_at: Option<Instant>,
    topic_stale: bool,
    logs: BTreeMap<u32, Log>,
    requests: BTreeMap<RequestId, UnderWay>,
    next_request: u64,
    /// The partition whose turn it is to be taken from, and to be fetched first.
    turn: u32,
    closed: bool,
    handled_at: Option<Instant>,
}

impl Reader {
    /// A reader that has done nothing yet: the first [`Input::Tick`] makes it ask for its topic.
    ///
    /// # Errors
    /// As [`ReaderConfig::check`].
    pub fn new(config: ReaderConfig, seed: u64) -> Result<Self, Error> {
        config.check()?;
        let filter = config.filter()?;
        let named: &[u32] = match &config.partitions {
            Partitions::Only(partitions) => partitions,
            Partitions::All | Partitions::Assigned(_) => &[],
        };
        Ok(Self {
            logs: named.iter().map(|&partition| (partition, Log::new(config.start))).collect(),
            random: Random::new(seed),
            topic: None,
            topic_trouble: None,
            complaint: None,
            topic_asked: None,
            topic_attempts: 0,
            topic_again_at: None,
            topic_stale: true,
            requests: BTreeMap::new(),
            next_request: 0,
            turn: 0,
            closed: false,
            handled_at: None,
            filter,
            config,
        })
    }

    /// Takes an input; afterwards everything that can be fetched has been asked for.
    pub fn handle(&mut self, now: Instant, input: Input, out: &mut Vec<Effect<ReaderEvent>>) {
        match input {
            Input::Answered { id, answer, payload } => self.answered(now, id, answer, &payload, out),
            Input::Failed { id, error } => self.failed(now, id, &error, out),
            Input::Sent { .. } | Input::Tick => {}
        }
        self.handled_at = Some(now);
        if self.closed {
            return;
        }
        self.complain(now, out);
        self.ask_topic(now, out);
        self.list_offsets(now, out);
        self.fetch(now, out);
        debug_assert_eq!(self.broken_invariant(), None);
    }

    /// The next batch, from each partition in turn; none if there is nothing now. An error stays until
    /// [`Reader::seek`], unless it comes and goes by itself. Afterwards [`Input::Tick`] fetches more.
    pub fn take(&mut self) -> Option<Result<Batch, Error>> {
        if self.closed {
            return None;
        }
        if let Some(complaint) = self.complaint.take() {
            return Some(Err(complaint));
        }
        loop {
            let ready = |log: &Log| !log.paused && (!log.buffered.is_empty() || log.failure.is_some());
            let found = self.logs.range(self.turn..).chain(self.logs.range(..self.turn));
            let partition = found.filter(|(_, log)| ready(log)).map(|(&partition, _)| partition).next()?;
            self.turn = partition.wrapping_add(1);
            if let Some(result) = self.take_from(partition) {
                return Some(result);
            }
        }
    }

    /// The next batch of a log; none if all its records are dropped, or the log is failing.
    fn take_from(&mut self, partition: u32) -> Option<Result<Batch, Error>> {
        let (topic, log) = (self.topic.as_ref()?, self.logs.get_mut(&partition)?);
        let Some(batch) = log.buffered.pop_front() else {
            let failure = log.failure.clone()?;
            // What comes and goes is said once; it is said again if it stays.
            if failure.is_retriable() {
                log.failure = None;
            }
            return Some(Err(failure));
        };
        log.buffered_bytes -= batch.bytes().len();
        let position = log.position?;
        match Batch::open(topic, partition, &batch, position, log.skip_before_ms, &self.config) {
            Ok(batch) => {
                let batch = match log.next {
                    Next::Fetch(next) if log.buffered.is_empty() => batch.until(next),
                    _ => batch,
                };
                log.position = Some(Offset::new(batch.next_offset()));
                if batch.is_empty() {
                    return None;
                }
                log.skip_before_ms = None;
                Some(Ok(batch.with_high_watermark(log.high_watermark)))
            }
            Err(reason) => {
                let error = Error::Corrupt { partition, offset: position.get(), reason: reason.into() };
                log.buffered.clear();
                log.buffered_bytes = 0;
                // What a fetch under way brings lies beyond the damage.
                log.request = None;
                log.failure = Some(error.clone());
                Some(Err(error))
            }
        }
    }

    /// Goes on elsewhere in a partition; what was buffered is dropped. [`Input::Tick`] makes it so.
    ///
    /// # Errors
    /// [`Error::Usage`] if the partition is not read here.
    pub fn seek(&mut self, partition: u32, start: Start) -> Result<(), Error> {
        self.log_mut(partition)?.seek(start);
        Ok(())
    }

    /// Reads a partition from here on. [`Input::Tick`] makes it so.
    pub fn assign(&mut self, partition: u32, start: Start) {
        self.logs.insert(partition, Log::new(start));
        if self.topic.as_ref().is_some_and(|topic| partition >= topic.partition_count()) {
            (self.topic_stale, self.topic_again_at) = (true, None);
        }
    }

    /// Reads a partition no more; what was buffered of it is dropped.
    pub fn unassign(&mut self, partition: u32) {
        self.logs.remove(&partition);
    }

    /// Most bytes that wait for the taker, from now on.
    pub fn set_prefetch_bytes_max(&mut self, prefetch_bytes_max: usize) {
        self.config.prefetch_bytes_max = prefetch_bytes_max.max(1);
    }

    /// Takes nothing from a partition until [`Reader::resume`]; what is buffered stays.
    ///
    /// # Errors
    /// [`Error::Usage`] if the partition is not read here.
    pub fn pause(&mut self, partition: u32) -> Result<(), Error> {
        self.log_mut(partition)?.paused = true;
        Ok(())
    }

    /// Takes from a partition again. [`Input::Tick`] makes it so.
    ///
    /// # Errors
    /// [`Error::Usage`] if the partition is not read here.
    pub fn resume(&mut self, partition: u32) -> Result<(), Error> {
        self.log_mut(partition)?.paused = false;
        Ok(())
    }

    /// Takes and fetches no more.
    pub fn close(&mut self) {
        self.closed = true;
        self.logs.clear();
    }

    /// Whether it was closed.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.closed
    }

    /// The partitions read here, as far as they are known.
    pub fn partitions(&self) -> impl Iterator<Item = u32> + '_ {
        self.logs.keys().copied()
    }

    /// Offset of the next record for the taker; none until it is known.
    #[must_use]
    pub fn position(&self, partition: u32) -> Option<u64> {
        self.logs.get(&partition)?.position.map(Offset::get)
    }

    /// The same, once the broker has said that it is within the log.
    #[must_use]
    pub fn confirmed_position(&self, partition: u32) -> Option<u64> {
        self.position(partition).filter(|_| self.logs[&partition].confirmed)
    }

    /// Lowest offset that cannot be read yet, as the broker said last.
    #[must_use]
    pub fn high_watermark(&self, partition: u32) -> Option<u64> {
        self.logs.get(&partition)?.high_watermark.map(Offset::get)
    }

    /// Lowest offset that can be read, as the broker said last.
    #[must_use]
    pub fn log_start(&self, partition: u32) -> Option<u64> {
        self.logs.get(&partition)?.earliest.map(Offset::get)
    }

    /// Whether there is something to take.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let ready = |log: &Log| !log.paused && (!log.buffered.is_empty() || log.failure.is_some());
        self.complaint.is_some() || self.logs.values().any(ready)
    }

    /// Bytes that wait for the taker.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.logs.values().map(|log| log.buffered_bytes).sum()
    }

    /// What is wrong with the state, if anything is.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        for (partition, log) in &self.logs {
            let bytes: usize = log.buffered.iter().map(|batch| batch.bytes().len()).sum();
            if bytes != log.buffered_bytes {
                return Some("buffered bytes are miscounted");
            }
            let carried = log
                .request
                .is_none_or(|id| self.requests.get(&id).is_some_and(|r| r.partitions.contains(partition)));
            if !carried {
                return Some("a log waits for a request that does not exist");
            }
        }
        None
    }

    fn log_mut(&mut self, partition: u32) -> Result<&mut Log, Error> {
        let unknown = || Error::usage(format!("partition {partition} is not read here"));
        self.logs.get_mut(&partition).ok_or_else(unknown)
    }

    fn request_id(&mut self) -> RequestId {
        let id = RequestId::new(self.next_request);
        self.next_request += 1;
        id
    }
}

#[cfg(test)]
pub(super) mod tests;
