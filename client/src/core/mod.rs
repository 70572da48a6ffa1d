//! Every decision of the client, sans-io: bytes, answers and time in; bytes, requests and results out.
//!
//! Driven by `driver`, and by the simulator. Invariants: same state, same inputs, same effects; no clock, no chance
//! but [`Random`]'s, no thread, no socket. It refuses to know runtimes.
//!
//! The machines: [`Connection`] turns bytes into answers; [`Producer`] and [`Reader`] turn records into requests and
//! answers into records; [`Consumer`] is a member of a group, and has readers. They say where a request goes
//! ([`Target`]) and get its answer by its [`RequestId`].

mod call;
mod connection;
mod consumer;
mod metadata;
mod partitioner;
mod producer;
mod random;
mod reader;
mod record;

use std::time::Instant;

use bytes::Bytes;
use corelog_wire::message::{Answer, Request};

pub use self::call::{Call, Question};
pub use self::connection::{Connection, Effect as ConnectionEffect, Input as ConnectionInput, Submission};
pub use self::consumer::{
    CommitId, CommitMode, Consumer, ConsumerConfig, ConsumerEvent, Progress, Share, Taken,
};
pub use self::metadata::{Destination, Place, Target, Topic, addresses, topic_of};
pub use self::partitioner::{Choice, Partitioner, partition_of_key};
pub use self::producer::{
    AppendRefusal, Appended, Delivered, Identity, Producer, ProducerConfig, ProducerEvent,
};
pub use self::random::{Backoff, Random};
pub use self::reader::{
    Batch, BatchRecords, Partitions, Reader, ReaderConfig, ReaderEvent, RecordView, Start,
};
pub use self::record::{Record, RecordRef};
use crate::error::Error;

/// What a machine knows a request by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

impl RequestId {
    /// The request of this number.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number, unique within its machine.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A request that a machine wants sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// What the machine knows it by.
    pub id: RequestId,
    /// Where to.
    pub target: Target,
    /// The request.
    pub request: Request,
    /// Its payload, in pieces; none is empty.
    pub payload: Vec<Bytes>,
    /// When its answer is no longer awaited.
    pub deadline: Instant,
    /// Whether there is an answer; otherwise the request ends when it was written.
    pub answered: bool,
}

/// What happens to a machine.
#[derive(Debug)]
pub enum Input {
    /// A request was answered, perhaps with a refusal.
    Answered {
        /// The request.
        id: RequestId,
        /// The answer.
        answer: Answer,
        /// The answer's payload.
        payload: Bytes,
    },
    /// A request without an answer was written.
    Sent {
        /// The request.
        id: RequestId,
    },
    /// A request failed; it may have taken effect.
    Failed {
        /// The request.
        id: RequestId,
        /// Why.
        error: Error,
    },
    /// Time passed, or a user did something.
    Tick,
}

/// What a machine wants, in order; `E` is what it has to say to its user.
#[derive(Debug)]
pub enum Effect<E> {
    /// A request to send.
    Send(Outgoing),
    /// News for the user.
    Event(E),
}
