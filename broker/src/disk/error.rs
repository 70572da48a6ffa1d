//! What goes wrong with files, told apart only as far as it decides something: full, or broken.

use corelog_core::shard::DiskFailure;
use std::io;
use std::path::{Path, PathBuf};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The system said no.
    #[error("{what} {path}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Fewer bytes were written or read than there had to be.
    #[error("{what} {path}: {done} of {wanted} bytes at {at}")]
    Short {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// How many bytes it would have been.
        wanted: usize,
        /// How many it were.
        done: usize,
    },
    /// An earlier failure on this file: what it holds is uncertain, and nothing more is tried.
    #[error("{0} failed before")]
    Poisoned(PathBuf),
}

impl DiskError {
    /// An error of the system, with what was tried.
    pub(super) fn system(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self::System { what, path: path.to_owned(), source }
    }

    /// What it means for the shard.
    #[must_use]
    pub fn failure(&self) -> DiskFailure {
        match self {
            Self::System { source, .. }
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                DiskFailure::NoSpace
            }
            Self::System { .. } | Self::Short { .. } | Self::Poisoned(_) => DiskFailure::Fault,
        }
    }
}

/// Shorthand.
pub(super) type Result<T> = std::result::Result<T, DiskError>;
