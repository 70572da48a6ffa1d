//! What other threads ask of a shard: the control thread's side of the only channel into it.
//!
//! The shard's pump takes these between turns. Bounded: whoever asks waits for room, the shard never does.

use crate::disk::DiskSnapshot;
use crate::net::NetSnapshot;
use corelog_core::shard::{Input, PartitionLag, PartitionSnapshot, Reader, ShardSnapshot};
use corelog_wire::ids::TopicPartition;
use tokio::sync::{mpsc, oneshot};

/// Commands that may wait for a shard.
pub const COMMANDS_MAX: usize = 1_024;

/// One thing asked of a shard.
#[derive(Debug)]
pub enum Command {
    /// Hand this to the shard's step: leadership, settings, removal.
    Input(Input),
    /// Say so when the shard has before it, in its own order, all that was handed to it earlier.
    Taken {
        /// Takes the word.
        reply: oneshot::Sender<()>,
    },
    /// Where these partitions stand.
    Describe {
        /// Which.
        partitions: Vec<TopicPartition>,
        /// In the same order; `None` for one that is not here.
        reply: oneshot::Sender<Vec<Option<PartitionSnapshot>>>,
    },
    /// How far these are behind; see [`Shard::lag`](corelog_core::shard::Shard::lag).
    Lag {
        /// Who, and where they go on.
        rows: Vec<Reader>,
        /// In the same order; `None` for one that is not here.
        reply: oneshot::Sender<Vec<Option<PartitionLag>>>,
    },
    /// Where the shard itself stands, without its hands: costs the same however many partitions it has.
    Glance {
        /// Takes the numbers.
        reply: oneshot::Sender<ShardSnapshot>,
    },
    /// Where the shard stands.
    Report {
        /// Takes the numbers.
        reply: oneshot::Sender<ShardReport>,
    },
    /// Stop: accept nothing more, make everything durable, checkpoint, close, end.
    Stop,
}

/// The numbers of one shard and its hands.
#[derive(Debug)]
pub struct ShardReport {
    /// The decisions.
    pub shard: ShardSnapshot,
    /// The disk.
    pub disk: DiskSnapshot,
    /// The network, once it is up.
    pub net: Option<NetSnapshot>,
    /// Bytes and records appended and read, by topic partition.
    pub traffic: Vec<(TopicPartition, PartitionTraffic)>,
}

/// What went in and out of one partition since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionTraffic {
    /// Records produced and appended.
    pub records_in: u64,
    /// Bytes of the batches they came in.
    pub bytes_in: u64,
    /// Bytes of the batches sent to readers.
    pub bytes_out: u64,
    /// Records sent to readers.
    pub records_out: u64,
}

/// The way to one shard.
pub type ShardLink = mpsc::Sender<Command>;
