//! Direct writes: the batches of large streams from memory of their commit into their segment files, durable.
//!
//! Called by the room's `perform` before the commit that proves them is written. The memory was packed as the file has it, and
//! goes into the tail like any commit's: it is the batches' one copy. Everything is written at once, in pieces, then each file
//! is flushed once.

use super::arena::{Frozen, Part};
use super::error::{DiskError, Result};
use super::segments::{Hold, Recent, Segments};
use crate::rt;
use corelog_core::journal::{DirectWrite, SegmentId};
use corelog_core::limits::BLOCK;
use rustix::fs::OFlags;
use std::cell::RefCell;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Largest write. Some of these at once keep a fast device busy; the kernel cuts larger ones.
const PIECE_BYTES: usize = 1 << 20;
/// After a file could not be opened for want of a descriptor.
const RETRY: Duration = Duration::from_millis(500);
/// Open files per shard. Beyond it the longest unused is closed.
pub(super) const OPEN_MAX: usize = 16;

/// Writes to segments past the journal.
#[derive(Debug)]
pub(super) struct Direct {
    segments: Rc<Segments>,
    uring: rt::Ring,
    open: RefCell<Recent<Rc<OwnedFd>>>,
}

impl Direct {
    /// Writes to these segments.
    pub(super) fn new(segments: Rc<Segments>, uring: rt::Ring) -> Self {
        Self { segments, uring, open: RefCell::new(Recent::new(OPEN_MAX)) }
    }

    /// Writes each from its part of `memory`, which has them one after the other, each from a block on. Durable when it
    /// returns.
    pub(super) async fn write(&self, writes: Vec<(DirectWrite, Hold)>, memory: &Rc<Frozen>) -> Result<()> {
        // All before the first write, which nothing leaves behind.
        let mut files = Vec::with_capacity(writes.len());
        for (_, hold) in &writes {
            let path = self.segments.path(hold);
            files.push((self.file(hold, path.clone()).await?, path));
        }
        let failure = Rc::new(RefCell::new(None));
        let under_way = rt::Gate::default();
        let mut from = 0;
        for ((write, _), (file, path)) in writes.iter().zip(&files) {
            let bytes = usize::try_from(write.bytes.next_multiple_of(BLOCK)).unwrap_or(usize::MAX);
            for piece in (0..bytes).step_by(PIECE_BYTES) {
                let range = from + piece..from + bytes.min(piece + PIECE_BYTES);
                let part = Part { whole: Rc::clone(memory), range };
                let at = write.file_position + piece as u64;
                let written = write_piece(self.uring.clone(), Rc::clone(file), path.clone(), part, at);
                let (failure, pass) = (Rc::clone(&failure), under_way.enter());
                rt::spawn(async move {
                    if let Err(error) = written.await {
                        failure.borrow_mut().get_or_insert(error);
                    }
                    drop(pass);
                });
            }
            from += bytes;
        }
        under_way.idle().await;
        if let Some(error) = failure.borrow_mut().take() {
            return Err(error);
        }
        for (file, path) in files {
            self.uring.flush(&file).await.map_err(|error| DiskError::system("flushing", &path, error))?;
        }
        Ok(())
    }

    async fn file(&self, hold: &Hold, path: PathBuf) -> Result<Rc<OwnedFd>> {
        if let Some(file) = self.open.borrow_mut().get(hold.id()) {
            return Ok(file);
        }
        let opened = loop {
            let opening = path.clone();
            let opened = rt::blocking(move || {
                OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(opening)
            });
            match opened.await.map_err(|error| DiskError::system("opening", &path, error)) {
                Ok(opened) => break opened,
                // Nothing is damaged, and the commit has no other way: it waits, as an extent would.
                Err(error) if error.is_out_of_descriptors() => {
                    tracing::warn!(%error, "a stream waits for a descriptor");
                    rt::sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        };
        let file = Rc::new(OwnedFd::from(opened));
        self.open.borrow_mut().insert(hold.id(), Rc::clone(&file));
        Ok(file)
    }

    /// Closes the file of a segment that left the log.
    pub(super) fn forget(&self, id: SegmentId) {
        self.open.borrow_mut().remove(id);
    }
}

async fn write_piece(uring: rt::Ring, file: Rc<OwnedFd>, path: PathBuf, part: Part, at: u64) -> Result<()> {
    let wanted = part.range.len();
    let written = uring.write(&file, Rc::new(part), at).await;
    let done = written.map_err(|error| DiskError::system("writing", &path, error))?;
    if done == wanted { Ok(()) } else { Err(DiskError::Short { what: "writing", path, at, wanted, done }) }
}
