//! The journal file: commits out, and zeros ahead of them.
//!
//! Called by the room's `perform`, after `recover` has read the file. A commit is packed into memory of the arena, which is its
//! only copy, and that memory goes into the tail. Either the file is opened so that a write that has completed is durable, or
//! each write is flushed (`docs/decisions/0009-durable-writes.md`). The write of one commit may overlap that of the next; the
//! shard puts their completions in order.
//!
//! Invariant: after the first failure on this file nothing is acknowledged any more, whoever met it. A flush that
//! fails reports other writers' losses too, and reports them once.

use super::arena::{Arena, Filling, Frozen, Part};
use super::error::{DiskError, Result};
use super::meters::Meters;
use crate::rt::{self, Stable};
use corelog_core::journal::{Commit, Packer, Position, RING_DATA_START};
use corelog_core::limits::BLOCK;
use corelog_core::shard::Prewrite;
use rustix::fs::OFlags;
use std::cell::{Cell, RefCell};
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

/// Zeros are written in pieces of this size.
const ZEROS_BYTES: u64 = 1 << 20;

/// How a write becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushes {
    /// By the kernel, right behind the write (or through the drive's cache, where the drive can): one completion.
    WithWrites,
    /// By a flush of its own.
    AfterWrites,
}

impl Flushes {
    /// What is faster for the thread that calls. The kernel's own flush is the work of an ordinary thread of the kernel's on the
    /// same processor, which a thread with real-time priority keeps waiting; a flush of its own runs with the priority of
    /// who asked for it.
    pub(super) fn for_this_thread() -> Self {
        // Source: proc_pid_stat(5), field 41 (policy), counted behind the name, which may hold anything.
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
        let policy = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(38));
        // First in, first out; round robin; deadline.
        if matches!(policy, Some("1" | "2" | "6")) { Self::AfterWrites } else { Self::WithWrites }
    }
}

/// The open journal of a shard.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Rc<OwnedFd>,
    uring: rt::Ring,
    flushes: Flushes,
    ring_bytes: u64,
    packer: RefCell<Packer>,
    failed: Cell<bool>,
}

impl Journal {
    /// Opens the journal of a shard whose recovery is over.
    pub(super) fn open(
        path: &Path,
        flushes: Flushes,
        uring: rt::Ring,
        ring_bytes: u64,
        packer: Packer,
    ) -> Result<Self> {
        let flags =
            OFlags::DIRECT | if flushes == Flushes::WithWrites { OFlags::DSYNC } else { OFlags::empty() };
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(|error| DiskError::system("opening", path, error))?;
        Ok(Self {
            path: path.to_owned(),
            file: Rc::new(file.into()),
            uring,
            flushes,
            ring_bytes,
            packer: RefCell::new(packer),
            failed: Cell::new(false),
        })
    }

    /// Puts a commit into one piece of memory. The one copy of its batches between socket and disk.
    pub(super) fn pack(&self, commit: &Commit, arena: &Arena) -> Filling {
        let mut memory = arena.take(usize::try_from(commit.bytes).unwrap_or(usize::MAX));
        self.packer.borrow_mut().pack(commit, memory.bytes_mut());
        memory
    }

    /// Writes a packed commit and makes it durable.
    pub(super) async fn write(&self, at: Position, packed: Rc<Frozen>, meters: &Meters) -> Result<()> {
        let start = Instant::now();
        let bytes = packed.bytes().len() as u64;
        let written = async {
            self.sound()?;
            let offset = at.in_ring(self.ring_bytes);
            match wrap(offset, bytes, self.ring_bytes) {
                None => self.write_at(packed, RING_DATA_START + offset).await,
                Some(first) => self.write_around(&packed, offset, first).await,
            }
        };
        let result = written.await;
        self.settle(result.as_ref().err());
        if result.is_ok() {
            // Somebody else's flush may have failed meanwhile, for a write of ours.
            self.sound()?;
            meters.committed(bytes, start.elapsed());
        }
        result
    }

    /// Writes a commit that goes around the end of the ring: two writes, once a lap.
    async fn write_around(&self, packed: &Rc<Frozen>, offset: u64, first: u64) -> Result<()> {
        let cut = usize::try_from(first).unwrap_or(usize::MAX);
        let part = |range| Rc::new(Part { whole: Rc::clone(packed), range });
        self.write_at(part(0..cut), RING_DATA_START + offset).await?;
        self.write_at(part(cut..packed.bytes().len()), RING_DATA_START).await
    }

    /// Writes zeros over a part of the ring and makes them durable, so that a later commit there changes no metadata.
    pub(super) async fn prewrite(&self, part: Prewrite) -> Result<()> {
        let written = async {
            self.sound()?;
            let zeros = zeros(part.bytes.min(ZEROS_BYTES));
            let end = part.ring_offset + part.bytes;
            let mut at = part.ring_offset;
            while at < end {
                let bytes = ZEROS_BYTES.min(end - at);
                let range = 0..usize::try_from(bytes).unwrap_or(0);
                let piece = Rc::new(Part { whole: Rc::clone(&zeros), range });
                self.write_at(piece, RING_DATA_START + at).await?;
                at += bytes;
                rt::yield_if_needed().await;
            }
            Ok(())
        };
        let result = written.await;
        self.settle(result.as_ref().err());
        result
    }

    /// Durable when it returns.
    async fn write_at(&self, memory: Rc<dyn Stable>, at: u64) -> Result<()> {
        let wanted = memory.bytes().len();
        debug_assert!(
            at.is_multiple_of(BLOCK) && (wanted as u64).is_multiple_of(BLOCK),
            "an unaligned write"
        );
        let failed = |what| move |error| DiskError::system(what, &self.path, error);
        let done = self.uring.write(&self.file, memory, at).await.map_err(failed("writing"))?;
        if done != wanted {
            return Err(DiskError::Short { what: "writing", path: self.path.clone(), at, wanted, done });
        }
        if self.flushes == Flushes::AfterWrites {
            self.sound()?;
            self.uring.flush(&self.file).await.map_err(failed("flushing"))?;
        }
        Ok(())
    }

    fn sound(&self) -> Result<()> {
        if self.failed.get() { Err(DiskError::Poisoned(self.path.clone())) } else { Ok(()) }
    }

    fn settle(&self, error: Option<&DiskError>) {
        if let Some(error) = error
            && !self.failed.replace(true)
        {
            tracing::error!(%error, "the journal failed");
        }
    }
}

/// Memory full of zeros, for which no arena has to make room.
fn zeros(bytes: u64) -> Rc<Frozen> {
    let mut memory = Arena::new(0).take(usize::try_from(bytes).unwrap_or(usize::MAX));
    memory.bytes_mut().fill(0);
    memory.freeze()
}

/// How many bytes of a commit fit before the end of the ring, if not all do.
fn wrap(offset: u64, bytes: u64, ring_bytes: u64) -> Option<u64> {
    let room = ring_bytes - offset;
    (room < bytes).then_some(room)
}

#[cfg(test)]
mod tests {
    use super::wrap;

    #[test]
    fn a_commit_wraps_only_when_it_must() {
        assert_eq!(wrap(0, 8, 64), None);
        assert_eq!(wrap(56, 8, 64), None);
        assert_eq!(wrap(60, 8, 64), Some(4));
    }
}
