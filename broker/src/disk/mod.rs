//! The files of one shard: performs what the shard wants done on disk and reports how it went.
//!
//! Called by the pump (`node`), on the shard's executor. Owns the journal, the tail (recent commits in memory), the
//! segment files, the checkpoint slots. Knows how to move bytes and nothing of why: every decision came with the
//! effect, every result goes back as an input.
//!
//! Invariants: what is reported as flushed was written and then flushed; a failed flush is never tried again;
//! nothing is cancelled, and a shard's executor ends only after [`ShardDisk::close`].

mod arena;
mod buffer;
mod checkpoint;
mod cold;
mod compact;
mod direct;
mod error;
mod extents;
mod file;
mod journal;
mod meters;
mod perform;
mod recover;
mod segments;
mod tail;

pub use error::DiskError;
pub use meters::DiskSnapshot;
pub use recover::{OpenError, format, refuse_memory};

use crate::net::FetchReady;
use crate::rt;
use arena::Arena;
use buffer::Pool;
use cold::Cold;
use corelog_core::recovery::Report;
use corelog_core::shard::{Input, RequestId, Shard, ShardConfig};
use corelog_wire::message::Answer;
use direct::Direct;
use extents::Extents;
use journal::{Flushes, Journal};
use meters::Meters;
use segments::Segments;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tail::Tail;

/// [`BLOCK`](corelog_core::limits::BLOCK) as a length in memory.
const BLOCK_BYTES: usize = 4096;
const _: () = assert!(BLOCK_BYTES as u64 == corelog_core::limits::BLOCK);
/// Idle memory of pieces of extents kept per shard.
const IDLE_PIECES_BYTES_MAX: usize = 8 << 20;

/// Where results go.
pub trait Results {
    /// Something the shard has to know.
    fn completed(&self, input: Input);
    /// A complete answer.
    fn answered(&self, request: RequestId, answer: Answer);
    /// The bytes of a fetch are at hand.
    fn fetched(&self, ready: FetchReady);
}

/// Where a shard's files are.
#[derive(Clone, Debug)]
pub struct Folders {
    /// The journal and the checkpoint slots.
    pub shard: PathBuf,
    /// The segments of all partitions, of all shards.
    pub topics: PathBuf,
}

impl Folders {
    /// The folders of shard number `shard` in a data directory.
    #[must_use]
    pub fn new(data: &Path, shard: usize) -> Self {
        Self { shard: data.join(format!("shard-{shard}")), topics: data.join("topics") }
    }
}

/// The hands of one shard.
pub struct ShardDisk {
    inner: Rc<Inner>,
}

/// Shared with the tasks under way.
struct Inner {
    folders: Folders,
    journal: Journal,
    direct: Direct,
    arena: Arena,
    tail: RefCell<Tail>,
    pool: Pool,
    segments: Rc<Segments>,
    extents: Extents,
    cold: Cold,
    meters: Meters,
    results: Rc<dyn Results>,
    gate: rt::Gate,
    /// What an earlier start left is being removed.
    sweeping: rt::Gate,
    /// Nothing new may begin.
    ending: Cell<bool>,
    queues: Queues,
}

/// Where work runs that must not hurt the rest.
#[derive(Clone, Copy, Debug)]
pub struct Queues {
    /// Cold reads.
    pub cold: rt::Queue,
    /// Destaging, checkpoints, removals, pre-writes.
    pub background: rt::Queue,
    /// Compaction.
    pub compaction: rt::Queue,
}

impl ShardDisk {
    /// Recovers the shard in these folders, which [`format()`] made, and takes over its files.
    ///
    /// # Errors
    /// See [`OpenError`]. Unless the fault is the disk's, nothing was changed.
    pub async fn open(
        folders: Folders,
        config: ShardConfig,
        ring: rt::Ring,
        queues: Queues,
        results: Rc<dyn Results>,
    ) -> Result<(Shard, Self, Report), OpenError> {
        let opened = recover::recover(&folders.shard, config).await?;
        let topics = folders.topics.clone();
        rt::blocking(move || std::fs::create_dir_all(topics))
            .await
            .map_err(|error| DiskError::system("making", &folders.topics, error))?;
        let mut tail = Tail::default();
        for (at, bytes) in opened.kept {
            tail.push(at, Rc::new(bytes), None);
        }
        let path = folders.shard.join(recover::JOURNAL_NAME);
        let flushes = Flushes::for_this_thread();
        let journal = Journal::open(&path, flushes, ring.clone(), config.ring_bytes, opened.shard.packer())?;
        let pool = Pool::new(IDLE_PIECES_BYTES_MAX);
        let segments = Rc::new(Segments::new(folders.topics.clone()));
        let inner = Inner {
            journal,
            direct: Direct::new(Rc::clone(&segments), ring),
            // What waits to be destaged comes and goes in amounts up to the ring.
            arena: Arena::new(usize::try_from(config.ring_bytes).unwrap_or(usize::MAX)),
            tail: RefCell::new(tail),
            extents: Extents::new(Rc::clone(&segments), pool.clone()),
            cold: Cold::new(Rc::clone(&segments)),
            folders,
            pool,
            segments,
            meters: Meters::new(),
            results,
            gate: rt::Gate::default(),
            sweeping: rt::Gate::default(),
            ending: Cell::new(false),
            queues,
        };
        let inner = Rc::new(inner);
        // Of a damaged journal it is not known what it would have said of the files that nothing names.
        if !opened.shard.snapshot().read_only {
            inner.sweep(&opened.shard, opened.removed);
        }
        Ok((opened.shard, Self { inner }, opened.report))
    }

    /// What was done so far.
    #[must_use]
    pub fn snapshot(&self) -> DiskSnapshot {
        let inner = &self.inner;
        let tail = inner.tail.borrow().bytes();
        let idle = (inner.arena.idle_bytes() + inner.pool.idle_bytes()) as u64;
        inner.meters.snapshot([tail, idle, inner.cold.held_bytes()])
    }

    /// Waits for everything under way, then closes the segments. Nothing may be performed afterwards. The journal is
    /// closed when this is dropped: everything written to it was flushed.
    ///
    /// # Errors
    /// A file could not be closed.
    pub async fn close(&self) -> Result<(), DiskError> {
        self.inner.ending.set(true);
        self.inner.gate.idle().await;
        self.inner.segments.close().await
    }
}

impl std::fmt::Debug for ShardDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardDisk({})", self.inner.folders.shard.display())
    }
}

#[cfg(test)]
mod tests;
