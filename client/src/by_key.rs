//! Processing by key: many records at once, and those of one key in their order.
//!
//! Around a [`Consumer`]. Records go to lanes by their key's hash; a lane has one record at a time at work. Of a partition
//! only what is done without a gap counts as done, so that a crash repeats records and skips none. Everything runs in the task of
//! whoever calls: a user who wants other processors to help spawns tasks of his own.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::consumer::Consumer;
use crate::core::{Batch, Share, Taken};
use crate::error::{Error, Result};
use crate::reader::ConsumedRecord;

/// Records for each lane that wait before nothing more is taken.
const WAITING_MAX: usize = 64;

/// Why processing ended.
#[derive(Debug)]
pub enum ProcessError<E> {
    /// The consumer cannot go on.
    Consumer(Error),
    /// A record could not be processed. It, and those of its partition behind it, count as not done.
    Process(E),
}

impl<E: std::fmt::Display> std::fmt::Display for ProcessError<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Consumer(error) => error.fmt(f),
            Self::Process(error) => write!(f, "a record could not be processed: {error}"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for ProcessError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Consumer(error) => Some(error),
            Self::Process(error) => Some(error),
        }
    }
}

/// A record of a partition that is this consumer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    /// Which time the partition was here.
    lease: u64,
    offset: u64,
}

/// What of a partition is done.
#[derive(Debug, Default)]
struct Prefix {
    lease: u64,
    /// Records in their order: offset, the next offset to read once it is done, and whether it is.
    records: VecDeque<(u64, u64, bool)>,
}

impl Prefix {
    fn take(&mut self, batch: &Batch) {
        let offsets: Vec<u64> = batch.iter().map(|record| record.offset()).collect();
        let after = offsets.iter().copied().skip(1).chain([batch.next_offset()]);
        self.records.extend(offsets.iter().copied().zip(after).map(|(offset, after)| (offset, after, false)));
    }

    /// A record is done; gives how far everything is, if that has moved.
    fn done(&mut self, offset: u64) -> Option<u64> {
        let place = self.records.binary_search_by_key(&offset, |(offset, ..)| *offset).ok()?;
        self.records[place].2 = true;
        let mut end = None;
        while let Some((_, after, _)) = self.records.pop_front_if(|(.., done)| *done) {
            end = Some(after);
        }
        end
    }
}

/// Records on their way through the user's hands.
struct Lanes<F, Fut> {
    process: F,
    each: Vec<Lane<Fut>>,
    prefixes: BTreeMap<Share, Prefix>,
    leases: u64,
    /// For records without a key.
    turn: usize,
}

struct Lane<Fut> {
    waiting: VecDeque<(Place, ConsumedRecord)>,
    at_work: Option<(Place, Share, Pin<Box<Fut>>)>,
}

impl<F, Fut, E> Lanes<F, Fut>
where
    F: FnMut(ConsumedRecord) -> Fut,
    Fut: Future<Output = std::result::Result<(), E>>,
{
    fn new(lanes: usize, process: F) -> Self {
        let lane = || Lane { waiting: VecDeque::new(), at_work: None };
        let each = std::iter::repeat_with(lane).take(lanes.max(1)).collect();
        Self { process, each, prefixes: BTreeMap::new(), leases: 0, turn: 0 }
    }

    fn has_room(&self) -> bool {
        let waiting: usize = self.each.iter().map(|lane| lane.waiting.len()).sum();
        waiting < WAITING_MAX * self.each.len()
    }

    fn is_idle(&self) -> bool {
        self.each.iter().all(|lane| lane.waiting.is_empty() && lane.at_work.is_none())
    }

    fn take(&mut self, batch: &Batch) {
        let share = Share { topic: batch.topic().clone(), partition: batch.partition() };
        let leases = &mut self.leases;
        let prefix = self.prefixes.entry(share).or_insert_with(|| {
            *leases += 1;
            Prefix { lease: *leases, records: VecDeque::new() }
        });
        prefix.take(batch);
        let lease = prefix.lease;
        for record in batch {
            let lane = if let Some(key) = record.key() {
                let mut hasher = DefaultHasher::new();
                key.hash(&mut hasher);
                usize::try_from(hasher.finish() % self.each.len() as u64).unwrap_or(0)
            } else {
                self.turn = (self.turn + 1) % self.each.len();
                self.turn
            };
            let place = Place { lease, offset: record.offset() };
            self.each[lane].waiting.push_back((place, ConsumedRecord::of(batch, record)));
        }
    }

    /// Others have these partitions now: what is at work goes on, and counts for nothing.
    fn lose(&mut self, shares: &[Share]) {
        for share in shares {
            if let Some(Prefix { lease, .. }) = self.prefixes.remove(share) {
                self.each.iter_mut().for_each(|lane| lane.waiting.retain(|(place, _)| place.lease != lease));
            }
        }
    }

    /// Lets every lane work. Ready with how far a partition is, or with the failure of a record.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(Share, u64), E>> {
        for lane in &mut self.each {
            loop {
                if lane.at_work.is_none()
                    && let Some((place, record)) = lane.waiting.pop_front()
                {
                    let share = Share { topic: record.topic.clone(), partition: record.partition };
                    lane.at_work = Some((place, share, Box::pin((self.process)(record))));
                }
                let Some((place, share, future)) = &mut lane.at_work else { break };
                let Poll::Ready(result) = future.as_mut().poll(cx) else { break };
                let (place, share) = (*place, share.clone());
                lane.at_work = None;
                if let Err(error) = result {
                    return Poll::Ready(Err(error));
                }
                let prefix = self.prefixes.get_mut(&share).filter(|prefix| prefix.lease == place.lease);
                if let Some(end) = prefix.and_then(|prefix| prefix.done(place.offset)) {
                    return Poll::Ready(Ok((share, end)));
                }
            }
        }
        Poll::Pending
    }
}

/// What happened next.
enum Step<E> {
    Done(Share, u64),
    Failed(E),
    Taken(Result<Option<Taken>>),
}

impl Consumer {
    /// Processes records until the consumer is closed: up to `lanes` at once, those of one key one after the other. Of each
    /// partition what is done without a gap is committed, as often as [`crate::CommitMode::After`] says; a partition that goes to another
    /// member goes when what was taken of it is done. Records without a key have no order.
    ///
    /// When nothing gets done for [`processing_max`](crate::ConsumerBuilder::processing_max), the partitions go to others, and
    /// what is at work counts for nothing.
    ///
    /// All of it runs in the caller's task: spawn within `process` to use more than one processor. After it has returned
    /// the consumer can be closed, and nothing else.
    ///
    /// ```no_run
    /// # async fn store(_: corelog_client::ConsumedRecord) -> Result<(), std::io::Error> { Ok(()) }
    /// # async fn run(client: corelog_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let consumer = client.consumer("billing").topics(["orders"]).build()?;
    /// consumer.for_each_key(32, |record| store(record)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ProcessError`]: the first record that could not be processed, or what [`Consumer::next`] says. What is at work then
    /// is dropped.
    pub async fn for_each_key<F, Fut, E>(
        &self,
        lanes: usize,
        process: F,
    ) -> std::result::Result<(), ProcessError<E>>
    where
        F: FnMut(ConsumedRecord) -> Fut,
        Fut: Future<Output = std::result::Result<(), E>>,
    {
        self.by_record().map_err(ProcessError::Consumer)?;
        let mut lanes = Lanes::new(lanes, process);
        let mut open = true;
        while open || !lanes.is_idle() {
            let step = poll_fn(|cx| {
                if let Poll::Ready(result) = lanes.poll(cx) {
                    return Poll::Ready(match result {
                        Ok((share, end)) => Step::Done(share, end),
                        Err(error) => Step::Failed(error),
                    });
                }
                if open
                    && lanes.has_room()
                    && let Poll::Ready(taken) = self.poll_take(cx)
                {
                    return Poll::Ready(Step::Taken(taken.transpose()));
                }
                Poll::Pending
            });
            match step.await {
                Step::Done(share, end) => self.done_with(&share, end),
                Step::Failed(error) => return Err(ProcessError::Process(error)),
                Step::Taken(Ok(Some(Taken::Records(batch)))) => lanes.take(&batch),
                Step::Taken(Ok(Some(Taken::Lost(shares)))) => lanes.lose(&shares),
                Step::Taken(Ok(Some(Taken::Assigned(_) | Taken::Revoked(_)))) => {}
                Step::Taken(Ok(None)) => open = false,
                Step::Taken(Err(error)) => return Err(ProcessError::Consumer(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Prefix;

    #[test]
    fn only_what_is_done_without_a_gap_counts() {
        let mut prefix = Prefix::default();
        // As of two batches, 3..6 and 9..12, of which the first lacks a record at its end.
        prefix.records.extend([(3, 4, false), (4, 6, false), (9, 10, false), (10, 12, false)]);
        assert_eq!(prefix.done(9), None);
        assert_eq!(prefix.done(4), None);
        assert_eq!(prefix.done(3), Some(10));
        assert_eq!(prefix.done(3), None, "it is done already");
        assert_eq!(prefix.done(77), None);
        assert_eq!(prefix.done(10), Some(12));
        assert!(prefix.records.is_empty());
    }
}
