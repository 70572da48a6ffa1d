//! Clients: state machines that send requests over a connection that may break, and tell the checker what they learn.
//!
//! Called by `sim` with a [`Desk`]: what a client sees of the world, and where it leaves what it wants. A client never
//! knows whether an unanswered request took effect, and treats it so.

mod auditor;
mod consumer;
mod deleter;
mod library;
mod producer;

pub use auditor::Auditor;
pub use consumer::Consumer;
pub use deleter::Deleter;
pub use library::Library;
pub use producer::{Producer, Style};

use crate::checker::{Checker, Scene};
use crate::hands::Reply;
use crate::rng::Rng;
use bytes::Bytes;
use corelog_core::shard::{FetchRow, RequestId};
use corelog_wire::ids::{Offset, TopicPartition};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{Acks, ListOffsetsRow};

/// What a client asks.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Append batches.
    Produce {
        /// What to wait for.
        acks: Acks,
        /// How long the broker may wait.
        deadline_ms: u64,
        /// Partition and sealed batch.
        rows: Vec<(TopicPartition, Bytes)>,
    },
    /// Read.
    Fetch {
        /// How long the broker may wait.
        wait_ms: u64,
        /// Answer from so many bytes on.
        bytes_min: u32,
        /// At most so many.
        bytes_max: u32,
        /// What.
        rows: Vec<FetchRow>,
        /// Which batches of it.
        filter: TagFilter,
    },
    /// Look up offsets.
    List(Vec<ListOffsetsRow>),
    /// Move log starts up.
    Delete(Vec<(TopicPartition, Offset)>),
}

/// Tags that batches have, and readers ask for.
const TAGS: [&[u8]; 4] = [b"red", b"green", b"blue", b"grey"];

/// A partition that clients may use.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Which.
    pub tp: TopicPartition,
    /// Who has it.
    pub shard: u16,
}

/// What a client sees, and where it leaves what it wants.
pub struct Desk<'a> {
    /// Virtual time.
    pub now: u64,
    /// The client's wall clock.
    pub wall_ms: i64,
    /// The clients' chance.
    pub rng: &'a mut Rng,
    /// The referee.
    pub checker: &'a mut Checker,
    /// Partitions by the metadata of now.
    pub known: &'a [Known],
    /// Producers stop making batches at this time.
    pub produce_until: u64,
    /// The next request's name.
    pub next_request: &'a mut u64,
    /// The next producer id.
    pub next_producer: &'a mut i64,
    /// Requests to send, in this order: to which shard.
    pub sends: Vec<(RequestId, u16, Ask)>,
    /// When to wake the client at the latest.
    pub wake_at: u64,
    /// The client gives its connection up.
    pub hang_up: bool,
}

impl Desk<'_> {
    /// Sends a request.
    pub fn send(&mut self, shard: u16, ask: Ask) -> RequestId {
        *self.next_request += 1;
        let request = RequestId(*self.next_request);
        self.sends.push((request, shard, ask));
        request
    }

    /// Asks to be woken at `at`, if not earlier.
    pub fn wake(&mut self, at: u64) {
        self.wake_at = self.wake_at.min(at);
    }
}

/// One client.
pub enum Client {
    /// Appends.
    Producer(Producer),
    /// Appends as the client library does.
    Library(Box<Library>),
    /// Reads.
    Consumer(Consumer),
    /// Reads everything after each start.
    Auditor(Auditor),
    /// Deletes records.
    Deleter(Deleter),
}

impl Client {
    /// Time passed.
    pub fn wake(&mut self, desk: &mut Desk<'_>) {
        match self {
            Self::Producer(producer) => producer.wake(desk),
            Self::Library(library) => library.wake(desk),
            Self::Consumer(consumer) => consumer.wake(desk),
            Self::Auditor(auditor) => auditor.wake(desk),
            Self::Deleter(deleter) => deleter.wake(desk),
        }
    }

    /// An answer came. `scene` gives what the checker must know about a partition.
    pub fn answered(
        &mut self,
        reply: &Reply,
        desk: &mut Desk<'_>,
        scene: &mut dyn FnMut(TopicPartition) -> Scene,
    ) {
        match self {
            Self::Producer(producer) => producer.answered(reply, desk, scene),
            Self::Library(library) => library.answered(reply, desk, scene),
            Self::Consumer(consumer) => consumer.answered(reply, desk, scene),
            Self::Auditor(auditor) => auditor.answered(reply, desk, scene),
            Self::Deleter(deleter) => deleter.answered(reply, desk),
        }
    }

    /// The connection is gone; whatever was not answered is unknown.
    pub fn lost(&mut self, desk: &mut Desk<'_>) {
        match self {
            Self::Producer(producer) => producer.lost(desk),
            Self::Library(library) => library.lost(desk),
            Self::Consumer(consumer) => consumer.lost(desk),
            Self::Auditor(auditor) => auditor.lost(desk),
            Self::Deleter(deleter) => deleter.lost(desk),
        }
    }
}
