//! The metadata store's vocabulary: what may be asked of it and what it answers, as data.
//!
//! A store keeps small values under text keys and counts its changes: every transaction that changes something makes
//! one new [`Revision`]. The words are etcd's, because etcd is one of the stores; the embedded one and the simulator's
//! [`model`] mean the same by them, which [`conformance`] checks. Called by the controller (to say what it wants), by
//! the broker's stores (to perform it) and by the simulator.
//!
//! Invariants: safety rests on [`Compare`] and on nothing else; a session (etcd's lease) says when to try, never that
//! it is safe. A transaction is all or nothing; its outcome may be unknown, and then a re-read that shows no change
//! proves nothing.
//!
//! Refuses to know: how values are written ([`values`] has them as types; the broker writes them as JSON), files,
//! sockets, time.

pub mod conformance;
pub mod keys;
pub mod model;
pub mod values;

use std::fmt;

use bytes::Bytes;
use thiserror::Error;

/// Compares, and operations, that one transaction may hold (etcd's own bound).
pub const TXN_OPS_MAX: usize = 128;
/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// The largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// The keys and values that one transaction may put, in bytes: with its compares it fits etcd's 1.5 MiB request.
pub const TXN_BYTES_MAX: usize = 5 << 18;

const _: () = assert!(TXN_BYTES_MAX + TXN_OPS_MAX * KEY_BYTES_MAX <= 3 << 19);

/// How many changes the store has seen. Moved by each transaction that changes something; decides who was first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(u64);

impl Revision {
    /// Before the first change.
    pub const ZERO: Self = Self(0);

    /// A revision by its number.
    #[must_use]
    pub const fn new(revision: u64) -> Self {
        Self(revision)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The revision of the next change.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key, or a prefix of keys. Text, so that people can read it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// A key from text.
    #[must_use]
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this key lies under `prefix`.
    #[must_use]
    pub fn starts_with(&self, prefix: &Key) -> bool {
        self.0.starts_with(&*prefix.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A session: keys put under it go when it ends. Of etcd: a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

impl SessionId {
    /// A session by its number.
    #[must_use]
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// One entry of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue<V = Bytes> {
    /// Its key.
    pub key: Key,
    /// Its value.
    pub value: V,
    /// When the key came to be (again, after a deletion).
    pub create_revision: Revision,
    /// When the value was last put.
    pub mod_revision: Revision,
}

impl<V> KeyValue<V> {
    /// The same entry with another value.
    ///
    /// # Errors
    /// What `change` fails with.
    pub fn try_map<W, E>(self, change: impl FnOnce(&Key, V) -> Result<W, E>) -> Result<KeyValue<W>, E> {
        let value = change(&self.key, self.value)?;
        let Self { key, create_revision, mod_revision, .. } = self;
        Ok(KeyValue { key, value, create_revision, mod_revision })
    }
}

/// What must hold for a transaction to take place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(Key),
    /// The key exists.
    Present(Key),
    /// The key was last put at this revision.
    Modified(Key, Revision),
    /// The key came to be at this revision.
    Created(Key, Revision),
}

impl Compare {
    /// The key that is looked at.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Absent(key) | Self::Present(key) | Self::Modified(key, _) | Self::Created(key, _) => key,
        }
    }

    /// Whether it holds for the entry that the store has under the key.
    #[must_use]
    pub fn holds<V>(&self, entry: Option<&KeyValue<V>>) -> bool {
        match self {
            Self::Absent(_) => entry.is_none(),
            Self::Present(_) => entry.is_some(),
            Self::Modified(_, revision) => entry.is_some_and(|entry| entry.mod_revision == *revision),
            Self::Created(_, revision) => entry.is_some_and(|entry| entry.create_revision == *revision),
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op<V = Bytes> {
    /// Sets a key, whether or not it exists.
    Put {
        /// The key.
        key: Key,
        /// Its value from now on.
        value: V,
        /// The session it lives with; none outlives all sessions.
        session: Option<SessionId>,
    },
    /// Removes a key; nothing happens if it does not exist.
    Delete {
        /// The key.
        key: Key,
    },
}

impl<V> Op<V> {
    /// Sets a key that outlives all sessions.
    pub fn put(key: Key, value: V) -> Self {
        Self::Put { key, value, session: None }
    }

    /// Removes a key.
    #[must_use]
    pub fn delete(key: Key) -> Self {
        Self::Delete { key }
    }

    /// The key that changes.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// All of `then` takes place if all of `compares` hold; else nothing does, and `otherwise_reads` are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txn<V = Bytes> {
    /// What must hold.
    pub compares: Vec<Compare>,
    /// What then changes, each key at most once.
    pub then: Vec<Op<V>>,
    /// What is read otherwise, so that the asker sees what was in the way.
    pub otherwise_reads: Vec<Key>,
}

impl<V> Default for Txn<V> {
    fn default() -> Self {
        Self { compares: Vec::new(), then: Vec::new(), otherwise_reads: Vec::new() }
    }
}

impl Txn<Bytes> {
    /// Checks all bounds that every store has. Stores call it before they look at anything else.
    ///
    /// # Errors
    /// [`TxnRefusal`].
    pub fn check_whole(&self) -> Result<(), TxnRefusal> {
        self.check()?;
        let mut whole = 0;
        for op in &self.then {
            let Op::Put { key, value, .. } = op else { continue };
            if value.len() > VALUE_BYTES_MAX {
                return Err(TxnRefusal::ValueTooLarge { key: key.clone(), bytes: value.len() });
            }
            whole += key.as_str().len() + value.len();
        }
        if whole > TXN_BYTES_MAX {
            return Err(TxnRefusal::TooManyBytes { bytes: whole });
        }
        Ok(())
    }
}

impl<V> Txn<V> {
    /// The same transaction with other values.
    ///
    /// # Errors
    /// What `change` fails with.
    pub fn try_map<W, E>(self, mut change: impl FnMut(&Key, V) -> Result<W, E>) -> Result<Txn<W>, E> {
        let mut then = Vec::with_capacity(self.then.len());
        for op in self.then {
            then.push(match op {
                Op::Put { key, value, session } => {
                    let value = change(&key, value)?;
                    Op::Put { key, value, session }
                }
                Op::Delete { key } => Op::Delete { key },
            });
        }
        Ok(Txn { compares: self.compares, then, otherwise_reads: self.otherwise_reads })
    }

    /// Checks the bounds that do not depend on how values are written.
    ///
    /// # Errors
    /// [`TxnRefusal`].
    pub fn check(&self) -> Result<(), TxnRefusal> {
        let ops = self.compares.len().max(self.then.len()).max(self.otherwise_reads.len());
        if ops > TXN_OPS_MAX {
            return Err(TxnRefusal::TooManyOps { ops });
        }
        let compared = self.compares.iter().map(Compare::key);
        let mut keys = compared.chain(self.then.iter().map(Op::key)).chain(&self.otherwise_reads);
        if let Some(key) = keys.find(|key| key.as_str().is_empty() || key.as_str().len() > KEY_BYTES_MAX) {
            return Err(TxnRefusal::KeyLength { bytes: key.as_str().len() });
        }
        let mut changed: Vec<&Key> = self.then.iter().map(Op::key).collect();
        changed.sort_unstable();
        match changed.array_windows().find(|[left, right]| left == right) {
            Some([key, _]) => Err(TxnRefusal::DuplicateKey { key: (*key).clone() }),
            None => Ok(()),
        }
    }
}

/// Why a store does not even try.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TxnRefusal {
    /// More than [`TXN_OPS_MAX`] of one kind.
    #[error("a metadata transaction has {ops} operations; at most {TXN_OPS_MAX} are allowed")]
    TooManyOps {
        /// How many there were.
        ops: usize,
    },
    /// The same key is changed twice.
    #[error("a metadata transaction changes {key} twice")]
    DuplicateKey {
        /// The key.
        key: Key,
    },
    /// An empty key, or one longer than [`KEY_BYTES_MAX`].
    #[error("a metadata key has {bytes} bytes; 1 to {KEY_BYTES_MAX} are allowed")]
    KeyLength {
        /// Its length.
        bytes: usize,
    },
    /// A value larger than [`VALUE_BYTES_MAX`].
    #[error("the value of {key} has {bytes} bytes; at most {VALUE_BYTES_MAX} are allowed")]
    ValueTooLarge {
        /// The key.
        key: Key,
        /// The value's length.
        bytes: usize,
    },
    /// Keys and values of more than [`TXN_BYTES_MAX`] together.
    #[error("a metadata transaction puts {bytes} bytes; at most {TXN_BYTES_MAX} are allowed")]
    TooManyBytes {
        /// How many there were.
        bytes: usize,
    },
    /// A key was put under a session that has ended: register again with a new one.
    #[error("the metadata session {} has ended", session.get())]
    SessionEnded {
        /// The session.
        session: SessionId,
    },
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnAnswer<V = Bytes> {
    /// The store's revision afterwards. If something changed: the revision of the change.
    pub revision: Revision,
    /// Whether it took place.
    pub outcome: TxnOutcome<V>,
}

/// Whether a transaction took place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome<V = Bytes> {
    /// All compares held, all changes were made.
    Done,
    /// A compare did not hold; nothing changed. The reads, in the order in which they were asked for.
    Refused(Vec<Option<KeyValue<V>>>),
}

impl<V> TxnAnswer<V> {
    /// Whether the changes were made.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.outcome, TxnOutcome::Done)
    }
}

/// One change, seen by a watch. Events of one revision come together, in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<V = Bytes> {
    /// A key was set.
    Put(KeyValue<V>),
    /// A key went.
    Delete {
        /// The key.
        key: Key,
        /// When.
        revision: Revision,
    },
}

impl<V> Event<V> {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// When it changed.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Delete { revision, .. } => *revision,
        }
    }
}

/// All entries under a prefix, at one revision. A watch that starts after it misses nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range<V = Bytes> {
    /// The store's revision when this was read.
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<KeyValue<V>>,
}

/// The changes a watch asks for are no longer known: read the range again and watch from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("metadata changes up to revision {up_to} are no longer kept; read again and watch from there")]
pub struct Compacted {
    /// Changes up to here are gone.
    pub up_to: Revision,
}
