//! Producers as users see them: handles, tickets, deliveries.
//!
//! Around `core`'s machine behind a lock. Invariants: a record that was taken has a result, which its ticket gives, and
//! which `flush` and `close` count if nobody asked; nothing is done per record but copying it into its batch under the
//! lock.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use corelog_wire::batch::Compression;
use corelog_wire::message::Acks;
use tokio::sync::Notify;

use crate::client::{Client, seed};
use crate::core::{
    AppendRefusal, Delivered, Effect, Input, Outgoing, Partitioner, Producer as Machine, ProducerConfig,
    ProducerEvent, Record, RecordRef,
};
use crate::driver::{Cell, Job};
use crate::error::{Error, Result};

/// Where a record is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivery {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The record's offset; none if no acknowledgement was asked for.
    pub offset: Option<u64>,
    /// The record's create time, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// When the leader appended it, in milliseconds since 1970; 0 if no acknowledgement was asked for.
    pub append_timestamp_ms: i64,
    /// Whether every replica that was counted had flushed it.
    pub durable: bool,
}

/// How a producer works, before it does.
#[derive(Clone)]
#[must_use]
pub struct ProducerBuilder {
    client: Client,
    config: ProducerConfig,
    idempotent: Option<bool>,
    seed: Option<u64>,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, topic: &str) -> Self {
        let mut config = ProducerConfig::new(topic);
        if let Some(limits) = client.pool.limits() {
            // A broker that says 0 says nothing.
            let known = |said: u32, ours: usize| if said == 0 { ours } else { said as usize };
            config.record_bytes_max = known(limits.record, config.record_bytes_max);
            config.batch_bytes_max = known(limits.batch, config.batch_bytes_max);
            config.request_bytes_max = known(limits.payload, config.request_bytes_max);
            config.batch_bytes = config.batch_bytes.min(config.batch_bytes_max / 2);
        }
        Self { client, config, idempotent: None, seed: None }
    }

    fn with(mut self, change: impl FnOnce(&mut ProducerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// What an acknowledgement means: [`Acks::All`] unless said otherwise.
    pub fn acks(self, acks: Acks) -> Self {
        self.with(|config| config.acks = acks)
    }

    /// Whether retries are recognised by the broker, so that a record is never there twice. Yes, unless said otherwise
    /// or there are no acknowledgements.
    pub fn idempotent(self, idempotent: bool) -> Self {
        Self { idempotent: Some(idempotent), ..self }
    }

    /// How long a record waits for company. At zero, the default, it waits only while batches before it are under way.
    pub fn linger(self, linger: Duration) -> Self {
        self.with(|config| config.linger = linger)
    }

    /// How batches are compressed: not, unless said otherwise.
    pub fn compression(self, compression: Compression) -> Self {
        self.with(|config| config.compression = compression)
    }

    /// A batch is complete at this many bytes: 1 MiB unless said otherwise. A larger record is a batch of its own.
    pub fn batch_bytes(self, batch_bytes: usize) -> Self {
        self.with(|config| config.batch_bytes = batch_bytes)
    }

    /// Most bytes of records that are not delivered yet: 64 MiB unless said otherwise.
    pub fn memory_bytes(self, memory_bytes_max: usize) -> Self {
        self.with(|config| config.memory_bytes_max = memory_bytes_max)
    }

    /// Most batches of a partition under way, 1 to 5: 5 unless said otherwise.
    pub fn in_flight_max(self, in_flight_max: usize) -> Self {
        self.with(|config| config.in_flight_max = in_flight_max)
    }

    /// When a record that could not be delivered fails: after 120 s unless said otherwise.
    pub fn delivery_deadline(self, delivery_deadline: Duration) -> Self {
        self.with(|config| config.delivery_deadline = delivery_deadline)
    }

    /// How long a single request may take: 30 s unless said otherwise.
    pub fn request_deadline(self, request_deadline: Duration) -> Self {
        self.with(|config| config.request_deadline = request_deadline)
    }

    /// Which partition a record goes to.
    pub fn partitioner(self, partitioner: Partitioner) -> Self {
        self.with(|config| config.partitioner = partitioner)
    }

    /// Whether the broker may create the topic, if it allows that at all (`corelog dev` does). Yes unless said
    /// otherwise.
    pub fn auto_create(self, auto_create: bool) -> Self {
        self.with(|config| config.auto_create = auto_create)
    }

    /// The seed of waits between attempts and of sticky partitions, to repeat a run.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// The producer. It asks for its topic in the background; records wait for that.
    ///
    /// # Errors
    /// [`Error::Usage`] if the settings make no sense together; [`Error::Closed`] if the runtime has ended.
    pub fn build(self) -> Result<Producer> {
        let Self { client, mut config, idempotent, seed: given } = self;
        config.idempotent = idempotent.unwrap_or(config.acks != Acks::None);
        let (topic, patience) = (config.topic.clone(), config.delivery_deadline);
        let machine = Machine::new(config, given.unwrap_or_else(seed))?;
        let state = State { machine, effects: Vec::new(), undelivered: 0, first_error: None, gone: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), bell: Notify::new(), moved: Notify::new() });
        if !client.pool.work(Job::new(shared.clone(), client.pool.clone())) {
            return Err(Error::Closed);
        }
        Ok(Producer { inner: Arc::new(Inner { shared, topic, patience, now: client.now }) })
    }
}

/// Writes to a topic. Clones share one buffer; when the last is dropped, what was taken is still sent as long as the
/// runtime lives: [`Producer::close`] is the way to know.
#[derive(Clone)]
pub struct Producer {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    topic: Arc<str>,
    patience: Duration,
    now: fn() -> Instant,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.lock().machine.close();
        self.shared.bell.notify_one();
    }
}

struct Shared {
    state: Mutex<State>,
    /// For the driver: there is something to do.
    bell: Notify,
    /// For handles that wait: the topic, room, or the end of a batch.
    moved: Notify,
}

struct State {
    machine: Machine<Arc<Outcome>>,
    effects: Vec<Effect<ProducerEvent<Arc<Outcome>>>>,
    /// Records that failed since the last flush.
    undelivered: u64,
    first_error: Option<Error>,
    /// The driver is gone.
    gone: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock would have been a bug of the machine; its state is still the best there is.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait; `out` takes what is to be sent.
    fn perform(&self, state: &mut State, out: &mut Vec<Outgoing>) {
        let mut moved = false;
        for effect in state.effects.drain(..) {
            match effect {
                Effect::Send(outgoing) => out.push(outgoing),
                Effect::Event(event) => {
                    moved = true;
                    match event {
                        ProducerEvent::Delivered { batch, delivered } => batch.resolve(Ok(delivered)),
                        ProducerEvent::Undelivered { batch, records, error } => {
                            state.undelivered += u64::from(records);
                            state.first_error.get_or_insert_with(|| error.clone());
                            batch.resolve(Err(error));
                        }
                        ProducerEvent::Ready | ProducerEvent::Room => {}
                    }
                }
            }
        }
        if moved {
            self.moved.notify_waiters();
        }
    }
}

impl Cell for Shared {
    fn handle(&self, now: Instant, input: Input, out: &mut Vec<Outgoing>) {
        let mut state = self.lock();
        let State { machine, effects, .. } = &mut *state;
        machine.handle(now, input, effects);
        self.perform(&mut state, out);
    }

    fn deadline(&self) -> Option<Instant> {
        self.lock().machine.deadline()
    }

    fn bell(&self) -> &Notify {
        &self.bell
    }

    fn is_done(&self) -> bool {
        self.lock().machine.is_done()
    }

    fn abandoned(&self) {
        let mut state = self.lock();
        state.gone = true;
        let State { machine, effects, .. } = &mut *state;
        machine.abandon(&Error::Closed, effects);
        self.perform(&mut state, &mut Vec::new());
    }
}

impl Producer {
    /// Sends a record and waits for its acknowledgement: when this returns, it is there, as durably as the chosen
    /// acknowledgements say.
    ///
    /// # Errors
    /// As [`Producer::enqueue`], and whatever prevented the delivery.
    pub async fn send(&self, record: impl Into<Record>) -> Result<Delivery> {
        self.enqueue(record).await?.await
    }

    /// Takes a record as soon as there is room for it; its ticket gives the delivery.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; [`Error::Usage`] for a partition that does not exist; [`Error::Deadline`] if there was no
    /// room within the delivery deadline; [`Error::Closed`]; what the broker says against the topic.
    pub async fn enqueue(&self, record: impl Into<Record>) -> Result<Ticket> {
        let record = record.into();
        self.wait(|state, now, now_ms| record.lend(|record| self.append(state, now, now_ms, record))).await
    }

    /// As [`Producer::enqueue`], for a record that is only lent.
    ///
    /// # Errors
    /// As [`Producer::enqueue`].
    pub async fn enqueue_ref(&self, record: &RecordRef<'_>) -> Result<Ticket> {
        self.wait(|state, now, now_ms| self.append(state, now, now_ms, record)).await
    }

    /// Takes a record if there is room for it now.
    ///
    /// # Errors
    /// As [`Producer::enqueue`], and [`Error::Busy`].
    pub fn try_enqueue(&self, record: impl Into<Record>) -> Result<Ticket> {
        let record = record.into();
        let mut state = self.inner.shared.lock();
        let taken = record.lend(|record| self.append(&mut state, (self.inner.now)(), now_ms(), record));
        taken.map_err(|refusal| match refusal {
            AppendRefusal::Failed(error) => error,
            AppendRefusal::NotReady => Error::Busy { reason: "the topic is not known yet" },
            AppendRefusal::Full => Error::Busy { reason: "its buffer is full" },
        })
    }

    /// Takes many records, as there is room for them, without tickets: what fails is counted by [`Producer::flush`] and
    /// [`Producer::close`]. The cheapest way: one lock, one look at the clock, no allocation for a record.
    ///
    /// # Errors
    /// As [`Producer::enqueue`]; the records before the one that was refused have been taken.
    pub async fn enqueue_all(&self, records: &[RecordRef<'_>]) -> Result<()> {
        let mut taken = 0;
        while taken < records.len() {
            let from = taken;
            taken +=
                self.wait(|state, now, now_ms| self.append_all(state, now, now_ms, &records[from..])).await?;
        }
        Ok(())
    }

    /// Sends what was taken so far without waiting for more, and waits until each record has its result.
    ///
    /// # Errors
    /// [`Error::Undelivered`] if records failed since the last flush.
    pub async fn flush(&self) -> Result<()> {
        let last = self.inner.shared.lock().machine.flush();
        self.settled(last).await
    }

    /// Takes no more records, sends what was taken, and waits until each has its result.
    ///
    /// # Errors
    /// [`Error::Undelivered`] if records failed since the last flush.
    pub async fn close(&self) -> Result<()> {
        let last = {
            let mut state = self.inner.shared.lock();
            state.machine.close();
            state.machine.flush()
        };
        self.settled(last).await
    }

    /// The topic's name.
    #[must_use]
    pub fn topic(&self) -> &Arc<str> {
        &self.inner.topic
    }

    /// Bytes of records that are not delivered yet.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.inner.shared.lock().machine.memory_bytes()
    }

    /// Records that failed since the last flush.
    #[must_use]
    pub fn undelivered(&self) -> u64 {
        self.inner.shared.lock().undelivered
    }

    /// How many partitions the topic has, once that is known.
    #[must_use]
    pub fn partition_count(&self) -> Option<u32> {
        self.inner.shared.lock().machine.topic().map(crate::core::Topic::partition_count)
    }

    async fn settled(&self, last: Option<u64>) -> Result<()> {
        let shared = &self.inner.shared;
        shared.bell.notify_one();
        loop {
            let moved = shared.moved.notified();
            let mut moved = std::pin::pin!(moved);
            moved.as_mut().enable();
            {
                let mut state = shared.lock();
                let oldest = state.machine.oldest_unresolved();
                if state.gone || last.is_none_or(|last| oldest.is_none_or(|oldest| oldest > last)) {
                    let records = std::mem::take(&mut state.undelivered);
                    return match state.first_error.take() {
                        Some(first) => Err(Error::Undelivered { records, first: Arc::new(first) }),
                        None => Ok(()),
                    };
                }
            }
            moved.await;
        }
    }

    /// Tries until it is not told to wait.
    async fn wait<T>(
        &self,
        mut attempt: impl FnMut(&mut State, Instant, i64) -> Result<T, AppendRefusal>,
    ) -> Result<T> {
        let Inner { shared, now, patience, .. } = &*self.inner;
        let mut give_up_at = None;
        loop {
            let moved = shared.moved.notified();
            let mut moved = std::pin::pin!(moved);
            let at = now();
            {
                let mut state = shared.lock();
                match attempt(&mut state, at, now_ms()) {
                    Ok(taken) => return Ok(taken),
                    Err(AppendRefusal::Failed(error)) => return Err(error),
                    Err(AppendRefusal::NotReady | AppendRefusal::Full) => {}
                }
                // The machine moves only under the lock, so nothing is missed from here on.
                moved.as_mut().enable();
                // Batches end at their deadlines, and the topic is asked for again and again: there is always a next
                // move, so that this is seen in time.
                if at >= *give_up_at.get_or_insert(at + *patience) {
                    return Err(Error::deadline("taking a record", state.machine.last_error().cloned()));
                }
            }
            moved.await;
        }
    }

    fn append(
        &self,
        state: &mut State,
        now: Instant,
        now_ms: i64,
        record: &RecordRef<'_>,
    ) -> Result<Ticket, AppendRefusal> {
        let appended = state.machine.append(now, now_ms, record)?;
        if appended.wake {
            self.inner.shared.bell.notify_one();
        }
        Ok(Ticket {
            outcome: appended.batch.clone(),
            waiting: None,
            topic: self.inner.topic.clone(),
            partition: appended.partition,
            index: appended.index,
            timestamp_ms: appended.timestamp_ms,
        })
    }

    /// How many records were taken, at least one.
    fn append_all(
        &self,
        state: &mut State,
        now: Instant,
        now_ms: i64,
        records: &[RecordRef<'_>],
    ) -> Result<usize, AppendRefusal> {
        let mut wake = false;
        let mut refusal = None;
        let mut taken = 0;
        for record in records {
            match state.machine.append(now, now_ms, record) {
                Ok(appended) => wake |= appended.wake,
                Err(why) => {
                    refusal = Some(why);
                    break;
                }
            }
            taken += 1;
        }
        if wake {
            self.inner.shared.bell.notify_one();
        }
        match refusal {
            Some(refusal) if taken == 0 => Err(refusal),
            _ => Ok(taken),
        }
    }
}

/// The time of day, for records without their own.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// What became of a batch, shared by its records' tickets.
#[derive(Debug, Default)]
struct Outcome {
    state: Mutex<OutcomeState>,
}

#[derive(Debug, Default)]
struct OutcomeState {
    result: Option<Result<Delivered>>,
    /// Tickets that were polled, each in its place.
    waiting: Vec<Waker>,
}

impl Outcome {
    fn lock(&self) -> MutexGuard<'_, OutcomeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn resolve(&self, result: Result<Delivered>) {
        let waiting = {
            let mut state = self.lock();
            state.result = Some(result);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

/// The promise of a [`Delivery`]: await it. Dropping it takes nothing back.
#[must_use = "a record is acknowledged only when its ticket says so"]
pub struct Ticket {
    outcome: Arc<Outcome>,
    /// Its place among the wakers.
    waiting: Option<usize>,
    topic: Arc<str>,
    partition: u32,
    index: u32,
    timestamp_ms: i64,
}

impl Ticket {
    /// The record's partition.
    #[must_use]
    pub const fn partition(&self) -> u32 {
        self.partition
    }

    /// The delivery, if it is known already.
    #[must_use]
    pub fn try_result(&self) -> Option<Result<Delivery>> {
        let result = self.outcome.lock().result.clone()?;
        Some(result.map(|delivered| self.delivery(&delivered)))
    }

    fn delivery(&self, delivered: &Delivered) -> Delivery {
        Delivery {
            topic: self.topic.clone(),
            partition: self.partition,
            offset: delivered.base_offset.map(|base| base.get().saturating_add(self.index.into())),
            timestamp_ms: self.timestamp_ms,
            append_timestamp_ms: delivered.append_timestamp_ms,
            durable: delivered.durable,
        }
    }
}

impl Future for Ticket {
    type Output = Result<Delivery>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = self.outcome.clone();
        let mut state = outcome.lock();
        if let Some(result) = &state.result {
            return Poll::Ready(result.clone().map(|delivered| self.delivery(&delivered)));
        }
        if let Some(waker) = self.waiting.and_then(|place| state.waiting.get_mut(place)) {
            waker.clone_from(cx.waker());
        } else {
            self.waiting = Some(state.waiting.len());
            state.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}
