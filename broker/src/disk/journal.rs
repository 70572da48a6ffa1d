//! The journal file: commits out, zeros ahead of them, and the superblock.
//!
//! Called by the room's `perform` for commits and pre-writes, by `recover` for everything that is read. A commit is
//! packed into one aligned buffer, which is its only copy, and that buffer goes into the tail. The file is opened so that
//! a write that has completed is flushed (`docs/decisions/0009-durable-writes.md`). The write of one commit may overlap
//! that of the next; the shard puts their completions in order.
//!
//! Invariant: after the first failure on this file nothing is acknowledged any more, whoever met it. A flush that
//! fails reports other writers' losses too, and reports them once.

use super::buffer::{Filling, Pool};
use super::error::{DiskError, Result};
use super::file::File;
use super::meters::Meters;
use corelog_core::journal::{Commit, Packer, Position, RING_DATA_START};
use corelog_core::shard::Prewrite;
use glommio::io::DmaBuffer;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

/// Zeros are written in pieces of this size.
const ZEROS_BYTES: u64 = 1 << 20;

/// The open journal of a shard.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    ring_bytes: u64,
    packer: RefCell<Packer>,
    failed: Cell<bool>,
}

impl Journal {
    /// The journal in an open file whose recovery is over.
    pub(super) fn new(file: File, ring_bytes: u64, packer: Packer) -> Self {
        Self { file, ring_bytes, packer: RefCell::new(packer), failed: Cell::new(false) }
    }

    /// Puts a commit into one buffer. The one copy of its batches between socket and disk.
    pub(super) fn pack(&self, commit: &Commit, pool: &Pool) -> Filling {
        let mut buffer = pool.take(usize::try_from(commit.bytes).unwrap_or(usize::MAX));
        self.packer.borrow_mut().pack(commit, buffer.bytes_mut());
        buffer
    }

    /// Writes a packed commit and makes it durable.
    pub(super) async fn write(&self, at: Position, packed: Rc<DmaBuffer>, meters: &Meters) -> Result<()> {
        let start = Instant::now();
        let bytes = packed.len() as u64;
        let written = async {
            self.sound()?;
            let offset = at.in_ring(self.ring_bytes);
            match wrap(offset, bytes, self.ring_bytes) {
                None => self.file.write(packed, RING_DATA_START + offset).await,
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

    /// Writes a commit that goes around the end of the ring: two writes, each from a copy of its part. Once a lap.
    async fn write_around(&self, packed: &DmaBuffer, offset: u64, first: u64) -> Result<()> {
        let (head, tail) = packed.as_bytes().split_at(usize::try_from(first).unwrap_or(usize::MAX));
        let (head, tail) = (copied(head), copied(tail));
        self.file.write(head, RING_DATA_START + offset).await?;
        self.file.write(tail, RING_DATA_START).await
    }

    /// Writes zeros over a part of the ring and makes them durable, so that a later commit there changes no metadata.
    pub(super) async fn prewrite(&self, part: Prewrite) -> Result<()> {
        let written = async {
            self.sound()?;
            let zeros = copied(&vec![0; usize::try_from(part.bytes.min(ZEROS_BYTES)).unwrap_or(0)]);
            let end = part.ring_offset + part.bytes;
            let mut at = part.ring_offset;
            while at < end {
                let piece = match end - at {
                    left if left < zeros.len() as u64 => {
                        copied(&zeros.as_bytes()[..usize::try_from(left).unwrap_or(0)])
                    }
                    _ => Rc::clone(&zeros),
                };
                let bytes = piece.len() as u64;
                self.file.write(piece, RING_DATA_START + at).await?;
                at += bytes;
                crate::rt::yield_if_needed().await;
            }
            Ok(())
        };
        let result = written.await;
        self.settle(result.as_ref().err());
        result
    }

    fn sound(&self) -> Result<()> {
        if self.failed.get() { Err(DiskError::Poisoned(self.file.path().to_owned())) } else { Ok(()) }
    }

    fn settle(&self, error: Option<&DiskError>) {
        if let Some(error) = error
            && !self.failed.replace(true)
        {
            tracing::error!(%error, "the journal failed");
        }
    }
}

/// Opens the journal that [`format`](super::format) made.
pub(super) async fn open(path: &Path) -> Result<File> {
    File::open_durable(path).await
}

/// How many bytes of a commit fit before the end of the ring, if not all do.
fn wrap(offset: u64, bytes: u64, ring_bytes: u64) -> Option<u64> {
    let room = ring_bytes - offset;
    (room < bytes).then_some(room)
}

/// A buffer of its own for bytes that are written from no recycled one.
pub(super) fn copied(bytes: &[u8]) -> Rc<DmaBuffer> {
    let mut buffer = glommio::allocate_dma_buffer_global(bytes.len());
    buffer.as_bytes_mut().copy_from_slice(bytes);
    Rc::new(buffer)
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
