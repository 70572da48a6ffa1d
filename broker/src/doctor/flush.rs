//! Measures what a commit costs: one block written directly into blocks written before, then flushed.
//!
//! The same pattern as the journal's, so the numbers are those a producer will see at best. The file is removed
//! however the measurement ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, OFlags, StatxFlags, statx};

const BLOCK_BYTES: usize = 4 << 10;
const BLOCKS: u64 = 256;
/// Flushes that are measured, unless they take longer than [`TIME_MAX`].
const FLUSHES_MAX: usize = 200;
const TIME_MAX: Duration = Duration::from_secs(3);

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Measured {
    pub(super) flushes: usize,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    /// Alignment of memory and of file offsets that direct I/O asks for, where the kernel says.
    pub(super) alignment: Option<(u32, u32)>,
}

/// Removes the file.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_file(&self.0);
    }
}

/// Measures in a folder.
///
/// # Errors
/// Whatever the file system refuses, `O_DIRECT` first of all.
pub(super) fn measure(folder: &Path) -> io::Result<Measured> {
    let path = folder.join(format!(".corelog-doctor-{}", std::process::id()));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlags::DIRECT.bits().cast_signed())
        .open(&path)?;
    let _removed = Removed(path);
    let alignment = alignment(&file);
    let (memory, at) = aligned();
    let block = &memory[at..at + BLOCK_BYTES];
    for number in 0..BLOCKS {
        file.write_all_at(block, number * BLOCK_BYTES as u64)?;
    }
    file.sync_all()?;
    let mut took = Vec::with_capacity(FLUSHES_MAX);
    let began = Instant::now();
    while took.len() < FLUSHES_MAX && began.elapsed() < TIME_MAX {
        let start = Instant::now();
        let number = took.len() as u64 % BLOCKS;
        file.write_all_at(block, number * BLOCK_BYTES as u64)?;
        file.sync_data()?;
        took.push(start.elapsed());
    }
    took.sort_unstable();
    let percentile = |percent: usize| took.get((took.len() * percent / 100).min(took.len() - 1)).copied();
    Ok(Measured {
        flushes: took.len(),
        p50: percentile(50).unwrap_or_default(),
        p99: percentile(99).unwrap_or_default(),
        alignment,
    })
}

fn alignment(file: &File) -> Option<(u32, u32)> {
    let at = statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let known = at.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && at.stx_dio_offset_align != 0;
    known.then_some((at.stx_dio_mem_align, at.stx_dio_offset_align))
}

/// Memory with an aligned block in it, and where that starts.
fn aligned() -> (Vec<u8>, usize) {
    let memory = vec![0_u8; 2 * BLOCK_BYTES];
    let at = memory.as_ptr().addr().next_multiple_of(BLOCK_BYTES) - memory.as_ptr().addr();
    (memory, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_aligned_and_inside() {
        let (memory, at) = aligned();
        assert_eq!(memory[at..].as_ptr().addr() % BLOCK_BYTES, 0);
        assert!(at + BLOCK_BYTES <= memory.len());
    }

    #[test]
    fn a_folder_that_refuses_is_an_error_and_no_file_is_left() {
        assert!(measure(Path::new("/proc")).is_err());
        let directory = tempfile::tempdir().unwrap();
        if let Ok(measured) = measure(directory.path()) {
            assert!(measured.flushes > 0 && measured.p50 <= measured.p99);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
