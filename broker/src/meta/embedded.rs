//! The embedded metadata store: one redb file, one thread that owns it, for one broker.
//!
//! The thread takes all requests that wait, performs their transactions one after the other inside one durable redb
//! commit, and answers them after it: under load a commit is shared. Handles are cheap to clone and work from any
//! executor. Sessions live as long as the process: keys of an earlier process go when the file is opened.
//!
//! Invariant: after a failed commit nothing is answered as done any more; the broker has to be started again.

mod file;
mod keeper;
mod placements;

use std::path::Path;

use bytes::Bytes;
use corelog_core::meta::{Key, KeyValue, Range, Revision, SessionId, Txn, TxnAnswer};
pub use file::OpenError;
use tokio::sync::{mpsc, oneshot};

use super::{MetaStore, StoreError, Watch};
use keeper::Keeper;

/// Requests that wait for the thread. Beyond this, askers wait.
const REQUESTS_MAX: usize = 256;

/// What the thread is asked.
#[derive(Debug)]
enum Command {
    Get(Key),
    Range(Key),
    Txn(Txn),
    Watch { prefix: Key, after: Revision },
    OpenSession,
    EndSession(SessionId),
    Compact(Revision),
    ReadLocal { prefix: String },
    WriteLocal { writes: Vec<LocalWrite> },
    Close,
}

/// A change of what concerns this broker alone.
#[derive(Debug)]
enum LocalWrite {
    PutIfAbsent(String, Bytes),
    Delete(String),
}

/// What the thread answers.
#[derive(Debug)]
enum Answer {
    Entry(Option<KeyValue>),
    Range(Range),
    Txn(TxnAnswer),
    Watch(Watch),
    Session(SessionId),
    Local(Vec<(String, Bytes)>),
    Done,
}

#[derive(Debug)]
struct Request {
    command: Command,
    reply: oneshot::Sender<Result<Answer, StoreError>>,
}

/// A handle to the store. The file is closed when the last one is gone, or by [`EmbeddedStore::close`].
#[derive(Debug, Clone)]
pub struct EmbeddedStore {
    requests: mpsc::Sender<Request>,
}

impl EmbeddedStore {
    /// Opens the file or makes it, and starts the thread. Blocks for a few milliseconds.
    ///
    /// # Errors
    /// [`OpenError`]; the file is as it was.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let keeper = Keeper::open(path)?;
        let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
        let spawned =
            std::thread::Builder::new().name("metadata".to_owned()).spawn(move || keeper.run(inbox));
        match spawned {
            Ok(_) => Ok(Self { requests }),
            Err(error) => Err(OpenError::Io { path: path.to_owned(), what: error.to_string() }),
        }
    }

    /// Forgets the changes up to a revision, so that watches from before are told to read again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn compact(&self, up_to: Revision) -> Result<(), StoreError> {
        self.ask(Command::Compact(up_to)).await.map(drop)
    }

    /// Closes the file; answered when it is closed. Other handles find the store closed.
    pub async fn close(&self) {
        // A store that is closed already is what was wanted.
        let _ = self.ask(Command::Close).await;
    }

    async fn ask(&self, command: Command) -> Result<Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(Request { command, reply }).await;
        sent.map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl MetaStore for EmbeddedStore {
    async fn get(&self, key: Key) -> Result<Option<KeyValue>, StoreError> {
        match self.ask(Command::Get(key)).await? {
            Answer::Entry(entry) => Ok(entry),
            answer => unreachable!("get was answered with {answer:?}"),
        }
    }

    async fn range(&self, prefix: Key) -> Result<Range, StoreError> {
        match self.ask(Command::Range(prefix)).await? {
            Answer::Range(range) => Ok(range),
            answer => unreachable!("range was answered with {answer:?}"),
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, StoreError> {
        match self.ask(Command::Txn(txn)).await? {
            Answer::Txn(answer) => Ok(answer),
            answer => unreachable!("a transaction was answered with {answer:?}"),
        }
    }

    async fn watch(&self, prefix: Key, after: Revision) -> Result<Watch, StoreError> {
        match self.ask(Command::Watch { prefix, after }).await? {
            Answer::Watch(watch) => Ok(watch),
            answer => unreachable!("watch was answered with {answer:?}"),
        }
    }

    async fn open_session(&self) -> Result<SessionId, StoreError> {
        match self.ask(Command::OpenSession).await? {
            Answer::Session(session) => Ok(session),
            answer => unreachable!("opening a session was answered with {answer:?}"),
        }
    }

    async fn end_session(&self, session: SessionId) -> Result<(), StoreError> {
        self.ask(Command::EndSession(session)).await.map(drop)
    }
}

#[cfg(test)]
mod tests;
