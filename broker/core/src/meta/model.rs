//! A metadata store as a pure value: what the words of [`super`] mean, executable.
//!
//! Used by the simulator as its etcd and by tests as the embedded store; the conformance scripts hold it and the real
//! stores to the same answers. It can be told to lie the way a network lies: to perform a transaction and lose the
//! answer, or to lose the transaction and not say so.
//!
//! Invariants: the revision is never below the mod revision of any entry; the history above `compacted` is complete
//! and in order of revision. Refuses to know: time (sessions end when they are told to), sockets, how values look.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    Compacted, Event, Key, KeyValue, Op, Range, Revision, SessionId, Txn, TxnAnswer, TxnOutcome, TxnRefusal,
};

/// What becomes of one transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weather {
    /// It is performed and answered.
    #[default]
    Fair,
    /// It is performed, and the answer is lost.
    UnknownButDone,
    /// It is not performed, and the asker cannot tell.
    UnknownNotDone,
}

/// Why a transaction has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelError {
    /// The store did not try.
    Refused(TxnRefusal),
    /// It may or may not have taken place.
    Unknown,
}

/// The store.
#[derive(Debug, Clone)]
pub struct Model<V> {
    revision: Revision,
    entries: BTreeMap<Key, KeyValue<V>>,
    history: VecDeque<Event<V>>,
    compacted: Revision,
    sessions: BTreeMap<SessionId, BTreeSet<Key>>,
    last_session: u64,
}

impl<V> Default for Model<V> {
    fn default() -> Self {
        Self {
            revision: Revision::ZERO,
            entries: BTreeMap::new(),
            history: VecDeque::new(),
            compacted: Revision::ZERO,
            sessions: BTreeMap::new(),
            last_session: 0,
        }
    }
}

impl<V: Clone> Model<V> {
    /// The store's revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// One entry.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&KeyValue<V>> {
        self.entries.get(key)
    }

    /// All entries under a prefix.
    #[must_use]
    pub fn range(&self, prefix: &Key) -> Range<V> {
        let from = self.entries.range(prefix.clone()..);
        let entries = from.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, entry)| entry.clone());
        Range { revision: self.revision, entries: entries.collect() }
    }

    /// Performs a transaction.
    ///
    /// # Errors
    /// [`TxnRefusal`]; nothing changed.
    pub fn txn(&mut self, txn: &Txn<V>) -> Result<TxnAnswer<V>, TxnRefusal> {
        txn.check()?;
        self.check_sessions(txn)?;
        if !txn.compares.iter().all(|compare| compare.holds(self.entries.get(compare.key()))) {
            let reads = txn.otherwise_reads.iter().map(|key| self.entries.get(key).cloned()).collect();
            return Ok(TxnAnswer { revision: self.revision, outcome: TxnOutcome::Refused(reads) });
        }
        self.apply(&txn.then);
        Ok(TxnAnswer { revision: self.revision, outcome: TxnOutcome::Done })
    }

    /// Performs a transaction in the given weather.
    ///
    /// # Errors
    /// [`ModelError::Unknown`] says nothing about whether it took place.
    pub fn txn_in(&mut self, weather: Weather, txn: &Txn<V>) -> Result<TxnAnswer<V>, ModelError> {
        match weather {
            Weather::Fair => self.txn(txn).map_err(ModelError::Refused),
            Weather::UnknownNotDone => Err(ModelError::Unknown),
            Weather::UnknownButDone => {
                self.txn(txn).map_err(ModelError::Refused)?;
                Err(ModelError::Unknown)
            }
        }
    }

    /// The changes under a prefix after a revision, and the revision up to which they are complete.
    ///
    /// # Errors
    /// [`Compacted`] when changes after that revision are no longer kept.
    pub fn events_after(
        &self,
        prefix: &Key,
        after: Revision,
    ) -> Result<(Revision, Vec<Event<V>>), Compacted> {
        if after < self.compacted {
            return Err(Compacted { up_to: self.compacted });
        }
        let wanted = |event: &&Event<V>| event.revision() > after && event.key().starts_with(prefix);
        Ok((self.revision.max(after), self.history.iter().filter(wanted).cloned().collect()))
    }

    /// Forgets the changes up to a revision; the entries stay.
    pub fn compact(&mut self, up_to: Revision) {
        self.compacted = self.compacted.max(up_to.min(self.revision));
        while self.history.front().is_some_and(|event| event.revision() <= self.compacted) {
            self.history.pop_front();
        }
    }

    /// Opens a session.
    pub fn open_session(&mut self) -> SessionId {
        self.last_session += 1;
        let session = SessionId::new(self.last_session);
        self.sessions.insert(session, BTreeSet::new());
        session
    }

    /// Ends a session: its keys go, all in one revision. Nothing happens if it has ended.
    pub fn end_session(&mut self, session: SessionId) {
        let keys = self.sessions.remove(&session).unwrap_or_default();
        let ops: Vec<Op<V>> = keys.into_iter().map(Op::delete).collect();
        self.apply(&ops);
    }

    fn check_sessions(&self, txn: &Txn<V>) -> Result<(), TxnRefusal> {
        let wanted = txn.then.iter().filter_map(|op| match op {
            Op::Put { session, .. } => *session,
            Op::Delete { .. } => None,
        });
        match wanted.into_iter().find(|session| !self.sessions.contains_key(session)) {
            Some(session) => Err(TxnRefusal::SessionEnded { session }),
            None => Ok(()),
        }
    }

    fn apply(&mut self, ops: &[Op<V>]) {
        let revision = self.revision.next();
        let mut events: Vec<Event<V>> = ops.iter().filter_map(|op| self.apply_one(op, revision)).collect();
        if events.is_empty() {
            return;
        }
        events.sort_by(|left, right| left.key().cmp(right.key()));
        self.history.extend(events);
        self.revision = revision;
    }

    fn apply_one(&mut self, op: &Op<V>, revision: Revision) -> Option<Event<V>> {
        let key = op.key().clone();
        for keys in self.sessions.values_mut() {
            keys.remove(&key);
        }
        match op {
            Op::Delete { .. } => self.entries.remove(&key).map(|_| Event::Delete { key, revision }),
            Op::Put { value, session, .. } => {
                let held = session.and_then(|session| self.sessions.get_mut(&session));
                if let Some(keys) = held {
                    keys.insert(key.clone());
                }
                let create_revision = self.entries.get(&key).map_or(revision, |entry| entry.create_revision);
                let entry = KeyValue {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision,
                    mod_revision: revision,
                };
                self.entries.insert(key, entry.clone());
                Some(Event::Put(entry))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Compare;

    fn key(text: &str) -> Key {
        Key::new(text)
    }

    fn put_if_absent(name: &str, value: u32) -> Txn<u32> {
        Txn {
            compares: vec![Compare::Absent(key(name))],
            then: vec![Op::put(key(name), value)],
            otherwise_reads: vec![key(name)],
        }
    }

    #[test]
    fn an_unknown_outcome_is_settled_by_the_same_compare() {
        for (weather, done) in [(Weather::UnknownButDone, true), (Weather::UnknownNotDone, false)] {
            let mut model = Model::default();
            assert_eq!(model.txn_in(weather, &put_if_absent("/a", 1)), Err(ModelError::Unknown));
            let again = model.txn(&put_if_absent("/a", 1)).unwrap();
            assert_eq!(again.is_done(), !done, "{weather:?}");
            assert_eq!(model.get(&key("/a")).map(|entry| entry.value), Some(1));
            assert_eq!(model.revision(), Revision::new(1));
        }
    }

    #[test]
    fn bounds_are_kept() {
        let mut model = Model::default();
        let many = |count: usize| Txn {
            then: (0..count).map(|n| Op::put(key(&format!("/{n}")), 0)).collect(),
            ..Txn::default()
        };
        assert_eq!(model.txn(&many(129)), Err(TxnRefusal::TooManyOps { ops: 129 }));
        assert!(model.txn(&many(128)).unwrap().is_done());
        let long = Txn { then: vec![Op::put(key(&"k".repeat(1025)), 0)], ..Txn::default() };
        assert_eq!(model.txn(&long), Err(TxnRefusal::KeyLength { bytes: 1025 }));
        let empty = Txn { compares: vec![Compare::Absent(key(""))], ..Txn::default() };
        assert_eq!(model.txn(&empty), Err(TxnRefusal::KeyLength { bytes: 0 }));
        assert_eq!(model.revision(), Revision::new(1));
    }

    #[test]
    fn a_key_put_without_a_session_is_freed_from_it() {
        let mut model = Model::default();
        let session = model.open_session();
        let with = Txn {
            then: vec![Op::Put { key: key("/a"), value: 1, session: Some(session) }],
            ..Txn::default()
        };
        model.txn(&with).unwrap();
        model.txn(&Txn { then: vec![Op::put(key("/a"), 2)], ..Txn::default() }).unwrap();
        model.end_session(session);
        assert_eq!(model.get(&key("/a")).map(|entry| entry.value), Some(2));
        assert_eq!(model.txn(&with), Err(TxnRefusal::SessionEnded { session }));
    }
}
