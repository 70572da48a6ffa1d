//! One shard as its neighbours on the executor see it: a mailbox for inputs, a place for answers, and its numbers.
//!
//! Used by `net` (requests), by `disk` (completions) and by boot (commands from the control thread). Invariant: the shard
//! itself is borrowed only within a call, so whoever holds a handle may ask at any time between turns.

use super::command::PartitionTraffic;
use crate::disk::{DiskSnapshot, Results, ShardDisk};
use crate::net::{Answers, FetchReady, Inbox};
use crate::rt;
use corelog_core::shard::{Input, PartitionLag, PartitionSnapshot, Reader, RequestId, Shard, ShardSnapshot};
use corelog_wire::ids::TopicPartition;
use corelog_wire::message::Answer;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Takes the answers to requests.
pub trait Replies {
    /// A complete answer.
    fn answer(&self, request: RequestId, answer: Answer);
    /// A fetch whose bytes are at hand.
    fn fetched(&self, ready: FetchReady);
}

impl Replies for Answers {
    fn answer(&self, request: RequestId, answer: Answer) {
        Self::answer(self, request, answer);
    }

    fn fetched(&self, ready: FetchReady) {
        Self::fetched(self, ready);
    }
}

/// Inputs on their way to the shard, and where its answers go.
#[derive(Default)]
pub(super) struct Mailbox {
    pub(super) inputs: RefCell<VecDeque<Input>>,
    pub(super) wake: rt::Signal,
    pub(super) stopped: Cell<bool>,
    pub(super) drained: Cell<bool>,
    pub(super) drained_signal: rt::Signal,
    pub(super) traffic: RefCell<BTreeMap<TopicPartition, PartitionTraffic>>,
    replies: OnceCell<Rc<dyn Replies>>,
}

impl Mailbox {
    fn push(&self, input: Input) {
        self.inputs.borrow_mut().push_back(input);
        self.wake.notify();
    }
}

impl Results for Mailbox {
    fn completed(&self, input: Input) {
        self.push(input);
    }

    fn answered(&self, request: RequestId, answer: Answer) {
        if let Some(replies) = self.replies.get() {
            replies.answer(request, answer);
        }
    }

    fn fetched(&self, ready: FetchReady) {
        let mut traffic = self.traffic.borrow_mut();
        for row in ready.rows.iter().filter(|row| !row.slices.is_empty()) {
            let ((records, bytes), traffic) = (row.size(), traffic.entry(row.tp).or_default());
            traffic.records_out += records;
            traffic.bytes_out += bytes;
        }
        drop(traffic);
        if let Some(replies) = self.replies.get() {
            replies.fetched(ready);
        }
    }
}

/// A shard, on its own executor. Clones are the same shard.
#[derive(Clone)]
pub struct ShardHandle {
    pub(super) mailbox: Rc<Mailbox>,
    pub(super) shard: Rc<RefCell<Shard>>,
    pub(super) disk: Rc<ShardDisk>,
}

impl ShardHandle {
    /// Queues an input for the next turn.
    pub fn push(&self, input: Input) {
        self.mailbox.push(input);
    }

    /// Sends the answers there from now on. Once, before the first request.
    pub fn reply_to(&self, replies: Rc<dyn Replies>) {
        let taken = self.mailbox.replies.set(replies).is_ok();
        debug_assert!(taken, "the answers of a shard go to two places");
    }

    /// Where the shard stands.
    #[must_use]
    pub fn snapshot(&self) -> ShardSnapshot {
        self.shard.borrow().snapshot()
    }

    /// What its hands did.
    #[must_use]
    pub fn disk_snapshot(&self) -> DiskSnapshot {
        self.disk.snapshot()
    }

    /// Where a partition stands.
    #[must_use]
    pub fn describe(&self, tp: TopicPartition) -> Option<PartitionSnapshot> {
        self.shard.borrow().describe(tp)
    }

    /// How far a consumer is behind in a partition.
    #[must_use]
    pub fn lag(&self, reader: &Reader, now_ms: i64) -> Option<PartitionLag> {
        self.shard.borrow().lag(reader, now_ms)
    }

    /// The partitions held, known to the metadata or not.
    #[must_use]
    pub fn partitions(&self) -> Vec<TopicPartition> {
        self.shard.borrow().partitions().collect()
    }

    /// What went in and out of each partition since the start.
    #[must_use]
    pub fn traffic(&self) -> Vec<(TopicPartition, PartitionTraffic)> {
        self.mailbox.traffic.borrow().iter().map(|(tp, traffic)| (*tp, *traffic)).collect()
    }

    /// Takes no more requests and waits until everything accepted is durable and checkpointed. Does not return when
    /// the device failed: bound the wait.
    pub async fn drain(&self) {
        self.push(Input::Drain);
        while !self.mailbox.drained.get() {
            self.mailbox.drained_signal.wait().await;
        }
    }

    /// Ends the pump after the turn under way.
    pub fn stop(&self) {
        self.mailbox.stopped.set(true);
        self.mailbox.wake.notify();
    }
}

impl Inbox for ShardHandle {
    fn submit(&self, input: Input) {
        self.push(input);
    }
}

impl std::fmt::Debug for ShardHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardHandle({} inputs wait)", self.mailbox.inputs.borrow().len())
    }
}
