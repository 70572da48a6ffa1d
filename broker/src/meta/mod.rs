//! The hands of the metadata store: performs what `corelog_core::meta` says in words.
//!
//! Called by the control plane only, never on a data path: a shard that needs metadata is told, it does not ask. Two
//! kinds of store are meant to stand behind [`MetaStore`]; the embedded one, a single redb file for a single broker,
//! is here. Every implementation passes the conformance scripts of the core.
//!
//! Invariants: an answer "done" is given only after the change is durable; an outcome that is not known is called
//! [`StoreError::Unknown`], never done and never failed. Refuses to know: what the values mean to the controller.

pub mod control;
pub mod embedded;
pub mod groups;
pub mod values;
mod watch;

use std::future::Future;

use corelog_core::meta::{Compacted, Key, KeyValue, Range, Revision, SessionId, Txn, TxnAnswer, TxnRefusal};
pub use embedded::EmbeddedStore;
use thiserror::Error;
pub use watch::{Changes, Watch};

/// Why the store has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The request breaks a bound; nothing was tried.
    #[error(transparent)]
    Refused(#[from] TxnRefusal),
    /// The changes asked for are no longer kept.
    #[error(transparent)]
    Compacted(#[from] Compacted),
    /// The change may or may not have been made. Read again, and try again under the same compare.
    #[error("the outcome of a metadata change is unknown: {what}")]
    Unknown {
        /// What happened.
        what: String,
    },
    /// The store cannot be read or written; nothing was changed.
    #[error("the metadata store failed: {what}")]
    Failed {
        /// What happened.
        what: String,
    },
    /// The store was closed.
    #[error("the metadata store is closed")]
    Closed,
}

/// What every metadata store does. The words are those of `corelog_core::meta`.
///
/// Futures need no runtime of their own: a shard's executor may await them too.
pub trait MetaStore {
    /// One entry.
    fn get(&self, key: Key) -> impl Future<Output = Result<Option<KeyValue>, StoreError>> + Send;

    /// All entries under a prefix, at one revision.
    fn range(&self, prefix: Key) -> impl Future<Output = Result<Range, StoreError>> + Send;

    /// Performs a transaction; answered when it is durable.
    fn txn(&self, txn: Txn) -> impl Future<Output = Result<TxnAnswer, StoreError>> + Send;

    /// Watches a prefix for changes after a revision.
    fn watch(&self, prefix: Key, after: Revision) -> impl Future<Output = Result<Watch, StoreError>> + Send;

    /// Opens a session. It lasts until it is ended or this process is gone.
    fn open_session(&self) -> impl Future<Output = Result<SessionId, StoreError>> + Send;

    /// Ends a session; its keys go at once.
    fn end_session(&self, session: SessionId) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// The store this broker was configured with.
#[derive(Debug, Clone)]
pub enum Store {
    /// One redb file, one broker.
    Embedded(EmbeddedStore),
}

impl MetaStore for Store {
    async fn get(&self, key: Key) -> Result<Option<KeyValue>, StoreError> {
        match self {
            Self::Embedded(store) => store.get(key).await,
        }
    }

    async fn range(&self, prefix: Key) -> Result<Range, StoreError> {
        match self {
            Self::Embedded(store) => store.range(prefix).await,
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, StoreError> {
        match self {
            Self::Embedded(store) => store.txn(txn).await,
        }
    }

    async fn watch(&self, prefix: Key, after: Revision) -> Result<Watch, StoreError> {
        match self {
            Self::Embedded(store) => store.watch(prefix, after).await,
        }
    }

    async fn open_session(&self) -> Result<SessionId, StoreError> {
        match self {
            Self::Embedded(store) => store.open_session().await,
        }
    }

    async fn end_session(&self, session: SessionId) -> Result<(), StoreError> {
        match self {
            Self::Embedded(store) => store.end_session(session).await,
        }
    }
}
