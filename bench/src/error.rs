//! What can go wrong in a benchmark, by blame: the asker's setup, the system, the peer. A run whose records do not add
//! up is not an error but an invalid run: see `check`.

use std::io;

use thiserror::Error;

/// Why a benchmark could not be run.
#[derive(Debug, Error)]
pub enum Error {
    /// The asker can correct it.
    #[error("{0}")]
    Setup(String),
    /// The system refused.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The peer refused, or did not speak its protocol.
    #[error("the peer: {0}")]
    Peer(String),
    /// A connection of the load ended. Expected of a peer that was killed in its run.
    #[error("the peer: connection {0} was closed")]
    Gone(usize),
}

/// What most functions here return.
pub type Result<T> = std::result::Result<T, Error>;

/// Names what was being done when the system refused.
pub trait Doing<T> {
    /// Names it.
    ///
    /// # Errors
    /// [`Error::System`].
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::System { doing: what(), source: source.into() })
    }
}
