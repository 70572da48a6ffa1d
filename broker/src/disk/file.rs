//! One file opened for direct I/O, with the contract that the rest of the room relies on.
//!
//! Writes and reads are never short. Offsets, lengths and memory are multiples of [`BLOCK`]. A flush covers the writes
//! that completed before it began. Nothing is ever cancelled: whoever starts a write waits for it. Reads go only
//! through aligned reads cut to what was asked: glommio's own unaligned read returns stale memory at a file's end.

use super::BLOCK_BYTES;
use super::error::{DiskError, Result};
use crate::rt::{self, outside};
use corelog_core::limits::{BLOCK, DISK_MARGIN_BYTES, DISK_MARGIN_SHARE};
use glommio::io::{DmaBuffer, DmaFile, OpenOptions, ReadResult};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A file opened for direct reads and writes.
#[derive(Debug)]
pub(super) struct File {
    dma: DmaFile,
    path: PathBuf,
    /// The file has at least this size; 0 until known.
    allocated: Cell<u64>,
}

impl File {
    /// Opens a file that is there, or makes it.
    pub(super) async fn open(path: &Path, create: bool) -> Result<Self> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(create).mode(0o640);
        let opened = outside(options.dma_open(path)).await;
        let dma = opened.map_err(|error| DiskError::glommio("opening", path, error))?;
        Ok(Self { dma, path: path.to_owned(), allocated: Cell::new(0) })
    }

    /// Writes all of `buffer`.
    pub(super) async fn write(&self, buffer: Rc<DmaBuffer>, at: u64) -> Result<()> {
        let wanted = buffer.len();
        debug_assert!(
            at.is_multiple_of(BLOCK) && (wanted as u64).is_multiple_of(BLOCK),
            "an unaligned write"
        );
        let done = outside(self.dma.write_rc_at(buffer, at))
            .await
            .map_err(|error| DiskError::glommio("writing", &self.path, error))?;
        self.whole("writing", at, wanted, done)
    }

    /// Reads exactly `bytes` bytes.
    pub(super) async fn read(&self, at: u64, bytes: usize) -> Result<ReadResult> {
        debug_assert!(at.is_multiple_of(BLOCK) && (bytes as u64).is_multiple_of(BLOCK), "an unaligned read");
        let read = outside(self.dma.read_at_aligned(at, bytes))
            .await
            .map_err(|error| DiskError::glommio("reading", &self.path, error))?;
        self.whole("reading", at, bytes, read.len())?;
        Ok(read)
    }

    fn whole(&self, what: &'static str, at: u64, wanted: usize, done: usize) -> Result<()> {
        if done == wanted {
            return Ok(());
        }
        Err(DiskError::Short { what, path: self.path.clone(), at, wanted, done })
    }

    /// Makes every write that has completed durable, and the size. A failure must never be tried again: the kernel
    /// may have dropped what could not be written.
    pub(super) async fn flush(&self) -> Result<()> {
        outside(self.dma.fdatasync()).await.map_err(|error| DiskError::glommio("flushing", &self.path, error))
    }

    /// Gives the file blocks and a size of at least `bytes`.
    pub(super) async fn allocate(&self, bytes: u64) -> Result<()> {
        if self.allocated.get() >= bytes {
            return Ok(());
        }
        let before = std::fs::metadata(&self.path).map(|file| file.len());
        // The size too: an append that extends a file is never asynchronous on ext4.
        match outside(self.dma.pre_allocate(bytes, false)).await {
            Ok(()) => {
                self.allocated.set(bytes);
                Ok(())
            }
            Err(error) => {
                // Some of it may have been given, and would be missed elsewhere.
                if let Ok(before) = before {
                    self.set_size(before).await?;
                }
                Err(DiskError::glommio("allocating", &self.path, error))
            }
        }
    }

    /// The same, but leaves the file system the room that checkpoints and the metadata store need.
    pub(super) async fn allocate_with_margin(&self, bytes: u64) -> Result<()> {
        if self.allocated.get() < bytes {
            let room =
                std::fs::metadata(&self.path).and_then(|file| match bytes.saturating_sub(file.len()) {
                    0 => Ok(()),
                    more => check_room(&self.path, more),
                });
            room.map_err(|error| DiskError::system("allocating", &self.path, error))?;
        }
        self.allocate(bytes).await
    }

    /// Cuts or extends the file.
    pub(super) async fn set_size(&self, bytes: u64) -> Result<()> {
        outside(self.dma.truncate(bytes))
            .await
            .map_err(|error| DiskError::glommio("resizing", &self.path, error))
    }

    /// Closes the file.
    pub(super) async fn close(self) -> Result<()> {
        outside(self.dma.close()).await.map_err(|error| DiskError::glommio("closing", &self.path, error))
    }
}

/// Refuses `more` bytes on the file system that holds `path` if they would use up its margin. The room that counts is what
/// everybody may use: as root, a file system gives out its reserve too.
///
/// # Errors
/// Storage full, or the file system does not say.
pub(super) fn check_room(path: &Path, more: u64) -> std::io::Result<()> {
    let system = rustix::fs::statvfs(path)?;
    let (free, whole) = (system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize);
    let margin = DISK_MARGIN_BYTES.min(whole / DISK_MARGIN_SHARE);
    if free >= more.saturating_add(margin) { Ok(()) } else { Err(std::io::ErrorKind::StorageFull.into()) }
}

/// Shows this executor a file with content on the data device, before any other. glommio asks each executor's first
/// file of a device whether it can be polled, by reading from it, and an empty file gives the wrong answer for good.
pub(super) async fn probe(folder: &Path) -> Result<()> {
    let path = folder.join("probe");
    let written = path.clone();
    // Beside the executor, as everything that may wait for the file system.
    rt::blocking(move || std::fs::write(written, [0_u8; BLOCK_BYTES]))
        .await
        .map_err(|error| DiskError::system("writing", &path, error))?;
    let file =
        outside(DmaFile::open(&path)).await.map_err(|error| DiskError::glommio("opening", &path, error))?;
    outside(file.close()).await.map_err(|error| DiskError::glommio("closing", &path, error))?;
    let removed = path.clone();
    rt::blocking(move || std::fs::remove_file(removed))
        .await
        .map_err(|error| DiskError::system("removing", &path, error))
}

/// Reads a whole file of a multiple of [`BLOCK`] bytes, or says that there is none. One copy of its bytes.
pub(super) async fn read_whole(path: &Path) -> Result<Option<Vec<u8>>> {
    const CHUNK: u64 = 1 << 20;
    let bytes = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(DiskError::system("looking at", path, error)),
    };
    let file = File::open(path, false).await?;
    let mut whole = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    // A file that was cut short may end within a block; what is left of it is for the reader to judge.
    let mut at = 0;
    while at + BLOCK <= bytes {
        let chunk = (bytes - at).min(CHUNK) / BLOCK * BLOCK;
        whole.extend_from_slice(&file.read(at, usize::try_from(chunk).unwrap_or(usize::MAX)).await?);
        at += chunk;
    }
    file.close().await?;
    Ok(Some(whole))
}
