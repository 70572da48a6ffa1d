//! What goes wrong with files, told apart only as far as it decides something: full, or broken.

use corelog_core::shard::DiskFailure;
use glommio::GlommioError;
use rustix::io::Errno;
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

    /// The same of an error that came through glommio, whose own conversion would lose the system's number.
    pub(super) fn glommio(what: &'static str, path: &Path, error: GlommioError<()>) -> Self {
        let source = match error {
            GlommioError::IoError(source) | GlommioError::EnhancedIoError { source, .. } => source,
            other => other.into(),
        };
        Self::system(what, path, source)
    }

    /// Whether the drive could not read what it holds.
    pub(super) fn is_media(&self) -> bool {
        // What the block layer says of an unreadable sector, of one whose checksum fails, and of anything else.
        let media = [Errno::NODATA, Errno::ILSEQ, Errno::IO].map(|errno| Some(errno.raw_os_error()));
        matches!(self, Self::System { source, .. } if media.contains(&source.raw_os_error()))
    }

    /// Whether this process or the system has no descriptor left: nothing is wrong with the device, and later there may be
    /// one.
    pub(super) fn is_out_of_descriptors(&self) -> bool {
        let out = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
        matches!(self, Self::System { source, .. } if out.contains(&source.raw_os_error()))
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
            Self::System { .. } if self.is_out_of_descriptors() => DiskFailure::Busy,
            Self::System { .. } | Self::Short { .. } | Self::Poisoned(_) => DiskFailure::Fault,
        }
    }
}

/// Shorthand.
pub(super) type Result<T> = std::result::Result<T, DiskError>;
