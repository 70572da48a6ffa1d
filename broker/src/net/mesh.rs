//! Between the shards of one broker: connections handed over, requests forwarded, answers brought back.
//!
//! Made once by boot, one endpoint per shard. Every channel is bounded. Requests that find a channel full are refused
//! with `THROTTLED`; answers always find room, because a shard never has more requests out than its own channel of
//! answers has places. Invariant: what crosses is owned and `Send`. This file refuses to know what a request says.

use super::config::NetConfig;
use super::seam::{FetchReadyRow, PayloadSlice};
use bytes::Bytes;
use corelog_core::shard::{Fetch, FetchRow, Input, Produce, ProduceRow, RequestId};
use corelog_wire::ids::{CorrelationId, Offset, ShardId, TopicPartition};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{Acks, Answer, HelloRequest, ListOffsetsRow};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Messages that a shard's channel of requests holds.
const REQUESTS_MAX: usize = 4_096;

/// One shard's ends of the mesh.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) shard: ShardId,
    pub(super) requests: Vec<mpsc::Sender<ToShard>>,
    pub(super) answers: Vec<mpsc::Sender<PeerAnswer>>,
    pub(super) requests_in: mpsc::Receiver<ToShard>,
    pub(super) answers_in: mpsc::Receiver<PeerAnswer>,
}

/// The endpoints of all shards, in order.
#[must_use]
pub fn mesh(shards: u16, config: &NetConfig) -> Vec<Endpoint> {
    let (requests, requests_in): (Vec<_>, Vec<_>) = (0..shards).map(|_| mpsc::channel(REQUESTS_MAX)).unzip();
    let (answers, answers_in): (Vec<_>, Vec<_>) =
        (0..shards).map(|_| mpsc::channel(config.forwarded_max.max(1))).unzip();
    let ends = requests_in.into_iter().zip(answers_in);
    ends.zip(0..shards)
        .map(|((requests_in, answers_in), shard)| Endpoint {
            shard: ShardId::new(shard),
            requests: requests.clone(),
            answers: answers.clone(),
            requests_in,
            answers_in,
        })
        .collect()
}

/// What a shard is asked by another.
#[derive(Debug)]
pub(super) enum ToShard {
    /// Serve this connection.
    Adopt(Box<HandedOver>),
    /// Do this and answer `from`.
    Request {
        from: ShardId,
        /// The asker's name of the request.
        request: RequestId,
        ask: Box<Ask>,
    },
    /// The asker no longer waits.
    Forget { from: ShardId, request: RequestId },
}

/// A connection on its way to the shard that its Hello named.
#[derive(Debug)]
pub(super) struct HandedOver {
    pub(super) descriptor: OwnedFd,
    pub(super) greeting: Greeting,
}

/// A Hello that the shard it names is to answer.
#[derive(Debug)]
pub(super) struct Greeting {
    pub(super) hello: HelloRequest,
    pub(super) correlation: CorrelationId,
    /// When the Hello had been read.
    pub(super) arrived: Instant,
    /// What the client sent behind its Hello.
    pub(super) unread: Vec<u8>,
}

/// The answer to a forwarded request.
#[derive(Debug)]
pub(super) struct PeerAnswer {
    /// The asker's name of the request.
    pub(super) request: RequestId,
    pub(super) reply: Reply<Bytes>,
}

/// An answer: a message, or a fetch with the bytes that go with it.
#[derive(Debug)]
pub(super) enum Reply<S = PayloadSlice> {
    Message(Answer),
    Fetched(Vec<FetchReadyRow<S>>),
}

impl Reply {
    /// The same answer, fit to cross. Copies the batches of a fetch once: the buffers that hold them belong to this
    /// shard, and counting their references on another core would make every reader of the tail pay for it.
    pub(super) fn into_sendable(self) -> Reply<Bytes> {
        match self {
            Self::Message(answer) => Reply::Message(answer),
            Self::Fetched(rows) => {
                Reply::Fetched(rows.into_iter().map(|row| row.map(|slices| copy(&slices))).collect())
            }
        }
    }
}

impl Reply<Bytes> {
    pub(super) fn into_local(self) -> Reply {
        match self {
            Self::Message(answer) => Reply::Message(answer),
            Self::Fetched(rows) => {
                let local = |slices: Vec<Bytes>| slices.into_iter().map(PayloadSlice::owned).collect();
                Reply::Fetched(rows.into_iter().map(|row| row.map(local)).collect())
            }
        }
    }
}

fn copy(slices: &[PayloadSlice]) -> Vec<Bytes> {
    let bytes = slices.iter().map(PayloadSlice::len).sum();
    if bytes == 0 {
        return Vec::new();
    }
    let mut all = Vec::with_capacity(bytes);
    for slice in slices {
        all.extend_from_slice(slice.as_ref());
    }
    vec![all.into()]
}

impl<S> FetchReadyRow<S> {
    fn map<T>(self, slices: impl FnOnce(Vec<S>) -> Vec<T>) -> FetchReadyRow<T> {
        FetchReadyRow {
            tp: self.tp,
            error: self.error,
            message: self.message,
            high_watermark: self.high_watermark,
            log_start: self.log_start,
            log_end: self.log_end,
            leader_epoch: self.leader_epoch,
            next_offset: self.next_offset,
            slices: slices(self.slices),
        }
    }
}

/// A request for one shard.
#[derive(Debug)]
pub(super) enum Ask {
    Produce { acks: Acks, deadline: Duration, rows: Vec<ProduceRow> },
    Fetch(FetchAsk),
    ListOffsets(Vec<ListOffsetsRow>),
    DeleteRecords(Vec<(TopicPartition, Offset)>),
}

/// A fetch for one shard.
#[derive(Clone, Debug)]
pub(super) struct FetchAsk {
    /// How long it may wait for records.
    pub(super) wait_max: Duration,
    /// How long the asker waits for the answer, however long reading takes.
    pub(super) patience: Duration,
    pub(super) bytes_min: u32,
    pub(super) bytes_max: u32,
    pub(super) rows: Vec<FetchRow>,
    pub(super) filter: TagFilter,
}

impl Ask {
    /// The input that says it, under this name.
    pub(super) fn into_input(self, request: RequestId) -> Input {
        match self {
            Self::Produce { acks, deadline, rows } => {
                Input::Produce(Produce { request, acks, deadline, rows })
            }
            Self::Fetch(FetchAsk { wait_max, patience: _, bytes_min, bytes_max, rows, filter }) => {
                Input::Fetch(Fetch { request, wait_max, bytes_min, bytes_max, rows, filter })
            }
            Self::ListOffsets(rows) => Input::ListOffsets { request, rows },
            Self::DeleteRecords(rows) => Input::DeleteRecords { request, rows },
        }
    }

    /// How long the asker waits at most, if the request says so.
    pub(super) fn wait_max(&self) -> Option<Duration> {
        match self {
            Self::Produce { deadline, .. } => Some(*deadline),
            Self::Fetch(fetch) => Some(fetch.patience),
            Self::ListOffsets(_) | Self::DeleteRecords(_) => None,
        }
    }

    /// Whether nobody waits for an answer.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Self::Produce { acks: Acks::None, .. })
    }
}

const _: fn() = || {
    fn crosses<T: Send>() {}
    crosses::<Endpoint>();
};
