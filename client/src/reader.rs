//! Readers as users see them: batches by `next`, records as a stream.
//!
//! Around `core`'s machine behind a lock. Invariant: nothing is fetched beyond the prefetch bound, so a slow taker holds
//! back the broker, not the memory.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corelog_wire::records::RecordHeader;
use tokio::sync::Notify;

use crate::client::{Client, seed};
use crate::core::{
    Batch, Effect, Input, Outgoing, Partitions, Reader as Machine, ReaderConfig, RecordView, Start,
};
use crate::driver::{Cell, Job};
use crate::error::{Error, Result};

/// How a reader works, before it does.
#[derive(Clone)]
#[must_use]
pub struct ReaderBuilder {
    client: Client,
    config: ReaderConfig,
    seed: Option<u64>,
}

impl ReaderBuilder {
    pub(crate) fn new(client: Client, topic: &str) -> Self {
        Self { client, config: ReaderConfig::new(topic), seed: None }
    }

    fn with(mut self, change: impl FnOnce(&mut ReaderConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Only these partitions.
    pub fn partitions(self, partitions: impl IntoIterator<Item = u32>) -> Self {
        self.with(|config| config.partitions = Partitions::Only(partitions.into_iter().collect()))
    }

    /// Where to begin in each partition: with the earliest record unless said otherwise.
    pub fn from(self, start: Start) -> Self {
        self.with(|config| config.start = start)
    }

    /// Only records with any of these tags, the values of headers named `tag`: at most 16. The broker leaves out batches
    /// that have none, so little else is sent. Positions and lag count what is left out as read.
    ///
    /// ```no_run
    /// # async fn run(client: corelog_client::Client) -> corelog_client::Result<()> {
    /// use corelog_client::{Record, TAG_HEADER};
    ///
    /// let producer = client.producer("orders").build()?;
    /// producer.send(Record::new("one apple").header(TAG_HEADER, "fruit")).await?;
    /// let reader = client.topic_reader("orders").tags(["fruit", "nuts"]).build()?;
    /// # Ok(()) }
    /// ```
    pub fn tags<T: AsRef<[u8]>>(self, tags: impl IntoIterator<Item = T>) -> Self {
        let tags = tags.into_iter().map(|tag| Bytes::copy_from_slice(tag.as_ref())).collect();
        self.with(|config| config.tags = tags)
    }

    /// Where to go on when the offset is outside the log. Without this, it is an error.
    pub fn reset(self, start: Start) -> Self {
        self.with(|config| config.reset = Some(start))
    }

    /// Most bytes that wait to be taken: 32 MiB unless said otherwise.
    pub fn prefetch_bytes(self, prefetch_bytes_max: usize) -> Self {
        self.with(|config| config.prefetch_bytes_max = prefetch_bytes_max)
    }

    /// Most bytes of one answer, and of one partition in it: 8 and 4 MiB unless said otherwise.
    pub fn fetch_bytes(self, fetch_bytes_max: u32, partition_bytes_max: u32) -> Self {
        self.with(|config| {
            config.fetch_bytes_max = fetch_bytes_max;
            config.partition_bytes_max = partition_bytes_max;
        })
    }

    /// How long the broker may wait for new records, and for how many bytes of them: 500 ms and 1 unless said
    /// otherwise.
    pub fn wait(self, wait: Duration, bytes_min: u32) -> Self {
        self.with(|config| {
            config.wait = wait;
            config.bytes_min = bytes_min;
        })
    }

    /// When failures that come and go are told: after 30 s unless said otherwise.
    pub fn patience(self, patience: Duration) -> Self {
        self.with(|config| config.patience = patience)
    }

    /// The seed of waits between attempts, to repeat a run.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// The reader. It begins to fetch in the background.
    ///
    /// # Errors
    /// [`Error::Usage`] if the settings make no sense together; [`Error::Closed`] if the runtime has ended.
    pub fn build(self) -> Result<Reader> {
        let Self { client, config, seed: given } = self;
        let topic = config.topic.clone();
        let machine = Machine::new(config, given.unwrap_or_else(seed))?;
        let state = State { machine, effects: Vec::new(), takers: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), bell: Notify::new() });
        if !client.pool.work(Job::new(shared.clone(), client.pool.clone())) {
            return Err(Error::Closed);
        }
        Ok(Reader { inner: Arc::new(Inner { shared, topic }) })
    }
}

/// Reads partitions of a topic, without a group. Clones share one position.
#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    topic: Arc<str>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
    }
}

struct Shared {
    state: Mutex<State>,
    /// For the driver: there is something to do.
    bell: Notify,
}

struct State {
    machine: Machine,
    effects: Vec<Effect<crate::core::ReaderEvent>>,
    /// Those who wait for a batch.
    takers: Vec<Waker>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let takers = {
            let mut state = self.lock();
            state.machine.close();
            std::mem::take(&mut state.takers)
        };
        takers.into_iter().for_each(Waker::wake);
        self.bell.notify_one();
    }
}

impl Cell for Shared {
    fn handle(&self, now: Instant, input: Input, out: &mut Vec<Outgoing>) {
        let mut state = self.lock();
        let State { machine, effects, takers } = &mut *state;
        machine.handle(now, input, effects);
        let mut changed = false;
        for effect in effects.drain(..) {
            match effect {
                Effect::Send(outgoing) => out.push(outgoing),
                Effect::Event(crate::core::ReaderEvent::Changed) => changed = true,
            }
        }
        let takers = if changed { std::mem::take(takers) } else { Vec::new() };
        drop(state);
        takers.into_iter().for_each(Waker::wake);
    }

    fn deadline(&self) -> Option<Instant> {
        self.lock().machine.deadline()
    }

    fn bell(&self) -> &Notify {
        &self.bell
    }

    fn is_done(&self) -> bool {
        self.lock().machine.is_closed()
    }

    fn abandoned(&self) {
        self.close();
    }
}

impl Reader {
    /// The next batch, from each partition in turn; none once the reader was closed. Waits for records as long as there
    /// are none. May be dropped while it waits: nothing is lost.
    ///
    /// # Errors
    /// [`Error::OffsetOutOfRange`], [`Error::Corrupt`] and other obstacles: the same again until [`Reader::seek`].
    /// [`Error::Deadline`] when a broker could not be reached for longer than the patience: it goes on trying.
    pub async fn next(&self) -> Result<Option<Batch>> {
        poll_fn(|cx| self.poll_next(cx)).await.transpose()
    }

    /// The next batch, if there is one now.
    ///
    /// # Errors
    /// As [`Reader::next`].
    pub fn try_next(&self) -> Result<Option<Batch>> {
        let taken = self.inner.shared.lock().machine.take();
        if taken.is_some() {
            self.inner.shared.bell.notify_one();
        }
        taken.transpose()
    }

    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Batch>>> {
        let mut state = self.inner.shared.lock();
        if let Some(taken) = state.machine.take() {
            drop(state);
            self.inner.shared.bell.notify_one();
            return Poll::Ready(Some(taken));
        }
        if state.machine.is_closed() {
            return Poll::Ready(None);
        }
        if !state.takers.iter().any(|taker| taker.will_wake(cx.waker())) {
            state.takers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The records one by one, as a stream. Errors as of [`Reader::next`]; the stream ends when the reader is closed.
    #[must_use]
    pub fn records(&self) -> RecordStream {
        RecordStream { reader: self.clone(), batch: None, place: 0 }
    }

    /// Goes on elsewhere in a partition; what was prefetched of it is dropped.
    ///
    /// # Errors
    /// [`Error::Usage`] if the partition is not read here, or not known yet.
    pub fn seek(&self, partition: u32, start: Start) -> Result<()> {
        self.change(|machine| machine.seek(partition, start))
    }

    /// Gives nothing of a partition until [`Reader::resume`].
    ///
    /// # Errors
    /// As [`Reader::seek`].
    pub fn pause(&self, partition: u32) -> Result<()> {
        self.change(|machine| machine.pause(partition))
    }

    /// Gives records of a partition again.
    ///
    /// # Errors
    /// As [`Reader::seek`].
    pub fn resume(&self, partition: u32) -> Result<()> {
        self.change(|machine| machine.resume(partition))
    }

    fn change(&self, change: impl FnOnce(&mut Machine) -> Result<()>) -> Result<()> {
        let takers = {
            let mut state = self.inner.shared.lock();
            change(&mut state.machine)?;
            std::mem::take(&mut state.takers)
        };
        takers.into_iter().for_each(Waker::wake);
        self.inner.shared.bell.notify_one();
        Ok(())
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &Arc<str> {
        &self.inner.topic
    }

    /// The partitions that are read, as far as they are known.
    #[must_use]
    pub fn partitions(&self) -> Vec<u32> {
        self.inner.shared.lock().machine.partitions().collect()
    }

    /// Offset of the next record of a partition; none until it is known.
    #[must_use]
    pub fn position(&self, partition: u32) -> Option<u64> {
        self.inner.shared.lock().machine.position(partition)
    }

    /// Lowest offset of a partition that cannot be read yet, as the broker said last.
    #[must_use]
    pub fn high_watermark(&self, partition: u32) -> Option<u64> {
        self.inner.shared.lock().machine.high_watermark(partition)
    }

    /// How many offsets lie between the position and the high watermark; none until both are known.
    #[must_use]
    pub fn lag(&self, partition: u32) -> Option<u64> {
        let state = self.inner.shared.lock();
        let high_watermark = state.machine.high_watermark(partition)?;
        Some(high_watermark.saturating_sub(state.machine.position(partition)?))
    }

    /// Ends it: whoever waits for a batch gets none.
    pub fn close(&self) {
        self.inner.shared.close();
    }
}

/// A record that was read, on its own. Its bytes are pieces of the answer that brought it, which stays in memory as
/// long as one of them does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumedRecord {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: u64,
    /// The create time, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// The key; an empty one is a key.
    pub key: Option<Bytes>,
    /// The value; none is a tombstone.
    pub value: Option<Bytes>,
    /// The headers, in their order.
    pub headers: Vec<RecordHeader>,
}

impl ConsumedRecord {
    pub(crate) fn of(batch: &Batch, record: RecordView<'_>) -> Self {
        Self {
            topic: batch.topic().clone(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp_ms: record.timestamp_ms(),
            key: record.key_bytes(),
            value: record.value_bytes(),
            headers: record.headers().collect(),
        }
    }
}

/// The records of a [`Reader`], one by one.
pub struct RecordStream {
    reader: Reader,
    batch: Option<Batch>,
    place: usize,
}

impl RecordStream {
    /// The next record; none once the reader was closed.
    ///
    /// # Errors
    /// As [`Reader::next`].
    pub async fn next(&mut self) -> Result<Option<ConsumedRecord>> {
        poll_fn(|cx| self.poll_record(cx)).await.transpose()
    }

    fn poll_record(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ConsumedRecord>>> {
        loop {
            if let Some(batch) = &self.batch
                && let Some(record) = batch.get(self.place)
            {
                self.place += 1;
                return Poll::Ready(Some(Ok(ConsumedRecord::of(batch, record))));
            }
            (self.batch, self.place) = (None, 0);
            match self.reader.poll_next(cx) {
                Poll::Ready(Some(Ok(batch))) => self.batch = Some(batch),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl futures_core::Stream for RecordStream {
    type Item = Result<ConsumedRecord>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_record(cx)
    }
}
