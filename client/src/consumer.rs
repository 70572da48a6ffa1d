//! Consumers of a group as users see them: batches by `next`, or batches and the partitions that come and go by
//! `next_event`.
//!
//! Around `core`'s machine behind a lock. Invariants: heartbeats go on in the background while the user works; nothing is
//! fetched beyond the prefetch bound.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use corelog_wire::message::Assignor;
use tokio::sync::{Notify, oneshot};

use crate::client::{Client, seed};
use crate::core::{
    Batch, CommitId, CommitMode, Consumer as Machine, ConsumerConfig, ConsumerEvent, Effect, Input, Outgoing,
    Progress, Share, Start, Taken,
};
use crate::driver::{Cell, Job};
use crate::error::{Error, Result};

/// How a consumer works, before it does.
#[derive(Clone)]
#[must_use]
pub struct ConsumerBuilder {
    client: Client,
    config: ConsumerConfig,
    seed: Option<u64>,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, group: &str) -> Self {
        let mut config = ConsumerConfig::new(group);
        config.wishes.client_name.clone_from(&client.pool.client_name);
        Self { client, config, seed: None }
    }

    fn with(mut self, change: impl FnOnce(&mut ConsumerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Topics to read; one that does not exist yet counts once it does.
    pub fn topics<T: Into<String>>(self, topics: impl IntoIterator<Item = T>) -> Self {
        self.with(|config| config.wishes.topics.extend(topics.into_iter().map(Into::into)))
    }

    /// All topics of this pattern, also those to come; `*` stands for any characters.
    pub fn pattern(self, pattern: impl Into<String>) -> Self {
        self.with(|config| config.wishes.patterns.push(pattern.into()))
    }

    /// Where to begin where the group has committed nothing: with the earliest record unless said otherwise.
    pub fn from(self, start: Start) -> Self {
        self.with(|config| config.start = start)
    }

    /// Only records with any of these tags, the values of headers named `tag`: at most 16. The broker leaves out batches
    /// that have none, so little else is sent. Positions and lag count what is left out as read.
    pub fn tags<T: AsRef<[u8]>>(self, tags: impl IntoIterator<Item = T>) -> Self {
        let tags = tags.into_iter().map(|tag| bytes::Bytes::copy_from_slice(tag.as_ref())).collect();
        self.with(|config| config.reader.tags = tags)
    }

    /// Where to go on when a committed offset is outside the log. Without this, it is an error.
    pub fn reset(self, reset: Start) -> Self {
        self.with(|config| config.reader.reset = Some(reset))
    }

    /// When to commit: every second after the records are done with, unless said otherwise.
    pub fn commit(self, commit: CommitMode) -> Self {
        self.with(|config| config.commit = commit)
    }

    /// How long the group waits for a consumer that is silent: 10 s unless said otherwise. Heartbeats go on in the
    /// background, so that this bounds how long a crash holds up its partitions, not how long records may take.
    pub fn session_timeout(self, session_timeout: Duration) -> Self {
        self.with(|config| config.wishes.session_timeout = session_timeout)
    }

    /// How long the user may be away with records before the consumer leaves the group: 5 min unless said otherwise.
    pub fn processing_max(self, processing_max: Duration) -> Self {
        self.with(|config| config.processing_max = processing_max)
    }

    /// A name of this consumer that outlives its process: closed and started again within the session timeout, it has
    /// the partitions it had. No two consumers of a group may have the same at a time.
    pub fn instance(self, instance: impl Into<String>) -> Self {
        self.with(|config| config.wishes.instance = Some(instance.into()))
    }

    /// How the group's partitions should be spread: evenly, with few moves, unless said otherwise.
    pub fn assignor(self, assignor: Assignor) -> Self {
        self.with(|config| config.wishes.assignor = assignor)
    }

    /// Most bytes that wait to be taken, of all topics together: 32 MiB unless said otherwise.
    pub fn prefetch_bytes(self, prefetch_bytes_max: usize) -> Self {
        self.with(|config| config.reader.prefetch_bytes_max = prefetch_bytes_max)
    }

    /// How long the broker may wait for new records, and for how many bytes of them: 500 ms and 1 unless said
    /// otherwise.
    pub fn wait(self, wait: Duration, bytes_min: u32) -> Self {
        self.with(|config| {
            config.reader.wait = wait;
            config.reader.bytes_min = bytes_min;
        })
    }

    /// When failures that come and go are told: after 30 s unless said otherwise.
    pub fn patience(self, patience: Duration) -> Self {
        self.with(|config| config.reader.patience = patience)
    }

    /// The seed of waits between attempts and of the member's id, to repeat a run.
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// The consumer. It joins its group in the background.
    ///
    /// # Errors
    /// [`Error::Usage`] if the settings make no sense together; [`Error::Closed`] if the runtime has ended.
    pub fn build(self) -> Result<Consumer> {
        let Self { client, config, seed: given } = self;
        let machine = Machine::new(config, given.unwrap_or_else(seed))?;
        let state = State { machine, effects: Vec::new(), takers: Vec::new(), commits: BTreeMap::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), bell: Notify::new(), now: client.now });
        if !client.pool.work(Job::new(shared.clone(), client.pool.clone())) {
            return Err(Error::Closed);
        }
        Ok(Consumer { inner: Arc::new(Inner { shared }) })
    }
}

/// A member of a consumer group. Clones are the same member.
///
/// What was taken before counts as done with when the next is taken: then it may be committed, and partitions that are
/// to go to others are let go of. Code that works on records elsewhere takes [`CommitMode::Manual`].
#[derive(Clone)]
pub struct Consumer {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let shared = &self.shared;
        shared.lock().machine.drop_out((shared.now)());
        shared.wake();
    }
}

struct Shared {
    state: Mutex<State>,
    /// For the driver: there is something to do.
    bell: Notify,
    now: fn() -> Instant,
}

struct State {
    machine: Machine,
    effects: Vec<Effect<ConsumerEvent>>,
    /// Those who wait for something to take, or for the end.
    takers: Vec<Waker>,
    /// Those who wait for a commit.
    commits: BTreeMap<CommitId, oneshot::Sender<Result<()>>>,
}

impl State {
    /// Passes on what the machine has to say; whether there may be something to take.
    fn settle(&mut self, out: &mut Vec<Outgoing>) -> bool {
        let mut changed = false;
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Send(outgoing) => out.push(outgoing),
                Effect::Event(ConsumerEvent::Changed) => changed = true,
                Effect::Event(ConsumerEvent::Committed(id, result)) => {
                    // Nobody waits if the caller has gone away.
                    let _ = self.commits.remove(&id).map(|waiter| waiter.send(result));
                }
            }
        }
        changed
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets those who wait look again, and the driver work.
    fn wake(&self) {
        let takers = std::mem::take(&mut self.lock().takers);
        takers.into_iter().for_each(Waker::wake);
        self.bell.notify_one();
    }
}

impl Cell for Shared {
    fn handle(&self, now: Instant, input: Input, out: &mut Vec<Outgoing>) {
        let mut state = self.lock();
        let State { machine, effects, .. } = &mut *state;
        machine.handle(now, input, effects);
        let changed = state.settle(out) || state.machine.is_closed();
        let takers = if changed { std::mem::take(&mut state.takers) } else { Vec::new() };
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
        {
            let mut state = self.lock();
            let State { machine, effects, .. } = &mut *state;
            machine.abandon(effects);
            state.settle(&mut Vec::new());
        }
        self.wake();
    }
}

impl Consumer {
    /// The next batch, from each topic and partition in turn; none once the consumer was closed. Waits for records as
    /// long as there are none. May be dropped while it waits: nothing is lost.
    ///
    /// # Errors
    /// As [`crate::Reader::next`]; refusals of the group, such as `INSTANCE_IN_USE`, after the patience.
    pub async fn next(&self) -> Result<Option<Batch>> {
        loop {
            match self.take().await? {
                Some(Taken::Records(batch)) => return Ok(Some(batch)),
                Some(Taken::Assigned(_) | Taken::Revoked(_) | Taken::Lost(_)) => {}
                None => return Ok(None),
            }
        }
    }

    /// What there is next: as [`Consumer::next`], and the partitions that come and go.
    ///
    /// After [`Taken::Revoked`] the user may still finish and commit; the partitions go to others when he takes again.
    ///
    /// # Errors
    /// As [`Consumer::next`].
    pub async fn next_event(&self) -> Result<Option<Taken>> {
        self.inner.shared.lock().machine.listen();
        self.take().await
    }

    async fn take(&self) -> Result<Option<Taken>> {
        poll_fn(|cx| self.poll_take(cx)).await.transpose()
    }

    pub(crate) fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Taken>>> {
        let shared = &self.inner.shared;
        let taken = {
            let mut state = shared.lock();
            let taken = state.machine.take((shared.now)());
            if taken.is_none() {
                if state.machine.is_over() {
                    return Poll::Ready(None);
                }
                if !state.takers.iter().any(|taker| taker.will_wake(cx.waker())) {
                    state.takers.push(cx.waker().clone());
                }
            }
            taken
        };
        // Taking makes room, and says that what was taken before is done with.
        shared.bell.notify_one();
        taken.map_or(Poll::Pending, |taken| Poll::Ready(Some(taken)))
    }

    /// Commits all that was taken so far, and waits until the group has it.
    ///
    /// # Errors
    /// `NOT_HOLDER` or `UNKNOWN_MEMBER` as [`Error::Refused`] if partitions went to others meanwhile; [`Error::Closed`].
    pub async fn commit(&self) -> Result<()> {
        self.commit_by(Machine::commit_taken).await
    }

    /// Commits everything up to the end of a batch in its partition. As [`Consumer::commit`].
    ///
    /// # Errors
    /// As [`Consumer::commit_offsets`].
    pub async fn commit_batch(&self, batch: &Batch) -> Result<()> {
        let share = Share { topic: batch.topic().clone(), partition: batch.partition() };
        self.commit_offsets(vec![(share, Progress::after(batch))]).await
    }

    /// Commits this, and waits until the group has it. A commit does not go back: what is less than the group has
    /// changes nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] for a partition that is not this consumer's; else as [`Consumer::commit`].
    pub async fn commit_offsets(&self, offsets: Vec<(Share, Progress)>) -> Result<()> {
        self.commit_by(|machine| machine.commit_offsets(offsets)).await
    }

    async fn commit_by(&self, commit: impl FnOnce(&mut Machine) -> Result<CommitId>) -> Result<()> {
        let committed = {
            let mut state = self.inner.shared.lock();
            let id = commit(&mut state.machine)?;
            let (waiter, committed) = oneshot::channel();
            state.commits.insert(id, waiter);
            committed
        };
        self.inner.shared.bell.notify_one();
        committed.await.unwrap_or(Err(Error::Closed))
    }

    /// From now on [`Consumer::done_with`] says how far the user is.
    pub(crate) fn by_record(&self) -> Result<()> {
        self.inner.shared.lock().machine.by_record()
    }

    pub(crate) fn done_with(&self, share: &Share, offset: u64) {
        let shared = &self.inner.shared;
        shared.lock().machine.done_with((shared.now)(), share, offset);
        shared.bell.notify_one();
    }

    /// Gives nothing of a partition until [`Consumer::resume`].
    ///
    /// # Errors
    /// [`Error::Usage`] if it is not this consumer's.
    pub fn pause(&self, share: &Share) -> Result<()> {
        self.change(|machine| machine.pause(share))
    }

    /// Gives records of a partition again.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is not this consumer's.
    pub fn resume(&self, share: &Share) -> Result<()> {
        self.change(|machine| machine.resume(share))
    }

    /// Goes on elsewhere in a partition; what was prefetched of it is dropped.
    ///
    /// # Errors
    /// [`Error::Usage`] if it is not this consumer's.
    pub fn seek(&self, share: &Share, start: Start) -> Result<()> {
        self.change(|machine| machine.seek(share, start))
    }

    fn change(&self, change: impl FnOnce(&mut Machine) -> Result<()>) -> Result<()> {
        change(&mut self.inner.shared.lock().machine)?;
        self.inner.shared.wake();
        Ok(())
    }

    /// The partitions that are this consumer's now.
    #[must_use]
    pub fn partitions(&self) -> Vec<Share> {
        self.inner.shared.lock().machine.shares().cloned().collect()
    }

    /// How many offsets lie between the position in a partition and its high watermark; none until both are known.
    #[must_use]
    pub fn lag(&self, share: &Share) -> Option<u64> {
        self.inner.shared.lock().machine.lag(share)
    }

    /// Ends it: takes what was taken for done with, commits it unless commits are the user's affair, and leaves the
    /// group, so that others go on at once. Waits until that is done, 5 s at most.
    pub async fn close(&self) {
        self.end(Machine::close).await;
    }

    /// As [`Consumer::close`], but what was taken last does not count as done with: whoever gets its partition next gets
    /// it again.
    pub async fn leave(&self) {
        self.end(Machine::drop_out).await;
    }

    async fn end(&self, end: fn(&mut Machine, Instant)) {
        let shared = &self.inner.shared;
        end(&mut shared.lock().machine, (shared.now)());
        shared.wake();
        poll_fn(|cx| {
            let mut state = shared.lock();
            if state.machine.is_closed() {
                return Poll::Ready(());
            }
            state.takers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
