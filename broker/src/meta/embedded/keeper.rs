//! The thread that owns the redb file.
//!
//! One turn: take what waits, perform it in order inside one redb transaction, commit if something changed, publish,
//! answer. Invariants: answers and events leave after the commit; `revision` is that of the file after it.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;

use bytes::Bytes;
use corelog_core::meta::{
    Compacted, Event, Key, KeyValue, Op, Range, Revision, SessionId, Txn, TxnAnswer, TxnOutcome, TxnRefusal,
};
use redb::{Database, ReadableDatabase as _, ReadableTable, Table};
use tokio::sync::{broadcast, mpsc};

use super::file::{self, ENTRIES, Held, LOCAL, OpenError, REVISION_KEY, STATE, StoredEntry};
use super::{Answer, Command, LocalWrite, Request};
use crate::meta::StoreError;
use crate::meta::watch::{Published, Watch};

/// Requests that share a commit.
const TURN_MAX: usize = 128;
/// Changes that are kept for watches that start in the past.
const HISTORY_MAX: usize = 4_096;
/// Revisions that a watch may be behind before it is told to read again.
const WATCH_LAG_MAX: usize = 1_024;

type Reply = Result<Answer, StoreError>;

pub(super) struct Keeper {
    database: Database,
    revision: Revision,
    sessions: BTreeSet<SessionId>,
    last_session: u64,
    history: VecDeque<Event>,
    /// Changes up to here are not in `history` any more.
    compacted: Revision,
    publisher: broadcast::Sender<Published>,
    /// Why nothing works any more.
    failed: Option<String>,
}

/// What one turn changed, one element per revision.
type Changed = Vec<Vec<Event>>;

impl Keeper {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let database = file::open(path)?;
        let (publisher, _) = broadcast::channel(WATCH_LAG_MAX);
        let mut keeper = Self {
            database,
            revision: Revision::ZERO,
            sessions: BTreeSet::new(),
            last_session: 0,
            history: VecDeque::new(),
            compacted: Revision::ZERO,
            publisher,
            failed: None,
        };
        let io = |error: redb::Error| OpenError::Io { path: path.to_owned(), what: error.to_string() };
        keeper.revision = keeper.stored_revision().map_err(io)?;
        keeper.drop_earlier_sessions().map_err(io)?;
        keeper.compacted = keeper.revision;
        Ok(keeper)
    }

    /// Serves until all handles are gone or one of them closes the store.
    pub(super) fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        while let Some(first) = inbox.blocking_recv() {
            let mut turn = vec![first];
            while turn.len() < TURN_MAX
                && !matches!(turn.last(), Some(Request { command: Command::Close, .. }))
            {
                match inbox.try_recv() {
                    Ok(request) => turn.push(request),
                    Err(_) => break,
                }
            }
            let close = turn.pop_if(|request| matches!(request.command, Command::Close));
            self.turn(turn);
            if let Some(close) = close {
                inbox.close();
                drop(self);
                // Whoever asked may have given up waiting.
                let _ = close.reply.send(Ok(Answer::Done));
                return;
            }
        }
    }

    fn turn(&mut self, requests: Vec<Request>) {
        let (commands, replies): (Vec<_>, Vec<_>) =
            requests.into_iter().map(|r| (r.command, r.reply)).unzip();
        let answers = match &self.failed {
            Some(what) => commands.iter().map(|_| Err(StoreError::Failed { what: what.clone() })).collect(),
            None => self.answers(&commands),
        };
        for (reply, answer) in replies.into_iter().zip(answers) {
            // Whoever asked may have given up waiting.
            let _ = reply.send(answer);
        }
    }

    fn answers(&mut self, commands: &[Command]) -> Vec<Reply> {
        let before = self.revision;
        let mut committing = false;
        match self.perform(commands, &mut committing) {
            Ok((answers, changed)) => {
                self.publish(changed);
                answers
            }
            Err(error) => {
                self.revision = before;
                let what = error.to_string();
                tracing::error!(%what, "the metadata store failed; start the broker again");
                self.failed = Some(what.clone());
                let blame = |command: &Command| match command {
                    Command::Txn(_) | Command::EndSession(_) | Command::WriteLocal { .. } if committing => {
                        StoreError::Unknown { what: what.clone() }
                    }
                    _ => StoreError::Failed { what: what.clone() },
                };
                commands.iter().map(|command| Err(blame(command))).collect()
            }
        }
    }

    /// Performs all commands in one redb transaction. `committing` is set once the outcome may be unknown.
    fn perform(
        &mut self,
        commands: &[Command],
        committing: &mut bool,
    ) -> Result<(Vec<Reply>, Changed), redb::Error> {
        let mut changed = Changed::new();
        let mut answers = Vec::with_capacity(commands.len());
        if !commands.iter().any(writes) {
            let read = self.database.begin_read()?;
            let (entries, local) = (read.open_table(ENTRIES)?, read.open_table(LOCAL)?);
            for command in commands {
                answers.push(self.read(command, &entries, &local)?);
            }
            return Ok((answers, changed));
        }
        let write = self.database.begin_write()?;
        let mut local_changed = false;
        {
            let (mut entries, mut local) = (write.open_table(ENTRIES)?, write.open_table(LOCAL)?);
            for command in commands {
                answers.push(match command {
                    Command::Txn(txn) => self.txn(txn, &mut entries, &mut changed)?,
                    Command::EndSession(session) => self.end_session(*session, &mut entries, &mut changed)?,
                    Command::WriteLocal { writes } => {
                        local_changed |= write_local(writes, &mut local)?;
                        Ok(Answer::Done)
                    }
                    command => self.read(command, &entries, &local)?,
                });
            }
            if !changed.is_empty() {
                write.open_table(STATE)?.insert(REVISION_KEY, self.revision.get())?;
            }
        }
        if changed.is_empty() && !local_changed {
            write.abort()?;
        } else {
            *committing = true;
            write.commit()?;
        }
        Ok((answers, changed))
    }

    /// Performs a command that changes no table.
    fn read(
        &mut self,
        command: &Command,
        entries: &impl ReadableTable<&'static str, StoredEntry>,
        local: &impl ReadableTable<&'static str, &'static [u8]>,
    ) -> Result<Reply, redb::Error> {
        Ok(match command {
            Command::Get(key) => Ok(Answer::Entry(find(entries, key)?.map(|held| held.entry))),
            Command::Range(prefix) => {
                let entries = scan(entries, prefix)?.into_iter().map(|held| held.entry).collect();
                Ok(Answer::Range(Range { revision: self.revision, entries }))
            }
            Command::Watch { prefix, after } => self.watch(prefix, *after),
            Command::OpenSession => {
                self.last_session += 1;
                let session = SessionId::new(self.last_session);
                self.sessions.insert(session);
                Ok(Answer::Session(session))
            }
            Command::Compact(up_to) => {
                self.forget((*up_to).min(self.revision));
                Ok(Answer::Done)
            }
            Command::ReadLocal { prefix } => Ok(Answer::Local(scan_local(local, prefix)?)),
            Command::Txn(_) | Command::EndSession(_) | Command::WriteLocal { .. } | Command::Close => {
                unreachable!("{command:?} is not a read")
            }
        })
    }

    fn txn(
        &mut self,
        txn: &Txn,
        entries: &mut Table<'_, &'static str, StoredEntry>,
        changed: &mut Changed,
    ) -> Result<Reply, redb::Error> {
        if let Err(refusal) = self.check(txn) {
            return Ok(Err(refusal.into()));
        }
        let mut holds = true;
        for compare in &txn.compares {
            let held = find(entries, compare.key())?;
            holds = holds && compare.holds(held.as_ref().map(|held| &held.entry));
        }
        let outcome = if holds {
            self.apply(&txn.then, entries, changed)?;
            TxnOutcome::Done
        } else {
            let mut reads = Vec::with_capacity(txn.otherwise_reads.len());
            for key in &txn.otherwise_reads {
                reads.push(find(entries, key)?.map(|held| held.entry));
            }
            TxnOutcome::Refused(reads)
        };
        Ok(Ok(Answer::Txn(TxnAnswer { revision: self.revision, outcome })))
    }

    fn check(&self, txn: &Txn) -> Result<(), TxnRefusal> {
        txn.check_whole()?;
        for op in &txn.then {
            let Op::Put { session, .. } = op else { continue };
            if let Some(session) = session.filter(|session| !self.sessions.contains(session)) {
                return Err(TxnRefusal::SessionEnded { session });
            }
        }
        Ok(())
    }

    fn apply(
        &mut self,
        ops: &[Op],
        entries: &mut Table<'_, &'static str, StoredEntry>,
        changed: &mut Changed,
    ) -> Result<(), redb::Error> {
        let revision = self.revision.next();
        let mut events = Vec::with_capacity(ops.len());
        for op in ops {
            events.extend(apply_one(op, revision, entries)?);
        }
        if !events.is_empty() {
            events.sort_by(|left, right| left.key().cmp(right.key()));
            self.revision = revision;
            changed.push(events);
        }
        Ok(())
    }

    fn end_session(
        &mut self,
        session: SessionId,
        entries: &mut Table<'_, &'static str, StoredEntry>,
        changed: &mut Changed,
    ) -> Result<Reply, redb::Error> {
        if self.sessions.remove(&session) {
            let ops = held_by(entries, |holder| holder == session)?;
            self.apply(&ops, entries, changed)?;
        }
        Ok(Ok(Answer::Done))
    }

    fn watch(&self, prefix: &Key, after: Revision) -> Reply {
        if after < self.compacted {
            return Err(Compacted { up_to: self.compacted }.into());
        }
        let wanted = |event: &&Event| event.revision() > after && event.key().starts_with(prefix);
        let past = self.history.iter().filter(wanted).cloned().collect();
        // What this turn changed is published after it, so this subscription sees it.
        Ok(Answer::Watch(Watch::new(prefix.clone(), after, past, self.publisher.subscribe())))
    }

    fn publish(&mut self, changed: Changed) {
        for events in changed {
            self.history.extend(events.iter().cloned());
            // Nobody may be watching.
            let _ = self.publisher.send(events.into());
        }
        while self.history.len() > HISTORY_MAX {
            let Some(oldest) = self.history.front().map(Event::revision) else { break };
            self.forget(oldest);
        }
    }

    fn forget(&mut self, up_to: Revision) {
        self.compacted = self.compacted.max(up_to);
        while self.history.front().is_some_and(|event| event.revision() <= self.compacted) {
            self.history.pop_front();
        }
    }

    fn stored_revision(&self) -> Result<Revision, redb::Error> {
        let state = self.database.begin_read()?.open_table(STATE)?;
        Ok(Revision::new(state.get(REVISION_KEY)?.map_or(0, |revision| revision.value())))
    }

    /// Sessions end with their process.
    fn drop_earlier_sessions(&mut self) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        let mut changed = Changed::new();
        {
            let mut entries = write.open_table(ENTRIES)?;
            let ops = held_by(&entries, |_| true)?;
            self.apply(&ops, &mut entries, &mut changed)?;
            write.open_table(STATE)?.insert(REVISION_KEY, self.revision.get())?;
        }
        if changed.is_empty() {
            write.abort()?;
        } else {
            write.commit()?;
        }
        Ok(())
    }
}

fn writes(command: &Command) -> bool {
    matches!(command, Command::Txn(_) | Command::EndSession(_) | Command::WriteLocal { .. })
}

fn apply_one(
    op: &Op,
    revision: Revision,
    entries: &mut Table<'_, &'static str, StoredEntry>,
) -> Result<Option<Event>, redb::Error> {
    match op {
        Op::Delete { key } => {
            let removed = entries.remove(key.as_str())?.is_some();
            Ok(removed.then(|| Event::Delete { key: key.clone(), revision }))
        }
        Op::Put { key, value, session } => {
            let before = find(entries, key)?;
            let create_revision = before.map_or(revision, |held| held.entry.create_revision);
            let session = session.map_or(0, SessionId::get);
            entries.insert(key.as_str(), (create_revision.get(), revision.get(), session, &value[..]))?;
            let entry =
                KeyValue { key: key.clone(), value: value.clone(), create_revision, mod_revision: revision };
            Ok(Some(Event::Put(entry)))
        }
    }
}

fn find(
    entries: &impl ReadableTable<&'static str, StoredEntry>,
    key: &Key,
) -> Result<Option<Held>, redb::Error> {
    Ok(entries.get(key.as_str())?.map(|stored| Held::new(key, stored.value())))
}

fn scan(
    entries: &impl ReadableTable<&'static str, StoredEntry>,
    prefix: &Key,
) -> Result<Vec<Held>, redb::Error> {
    let mut found = Vec::new();
    for entry in entries.range(prefix.as_str()..)? {
        let (key, stored) = entry?;
        let key = Key::new(key.value());
        if !key.starts_with(prefix) {
            break;
        }
        found.push(Held::new(&key, stored.value()));
    }
    Ok(found)
}

/// Removals of the keys of sessions. Scans everything: sessions end rarely, and metadata is small.
fn held_by(
    entries: &impl ReadableTable<&'static str, StoredEntry>,
    ended: impl Fn(SessionId) -> bool,
) -> Result<Vec<Op>, redb::Error> {
    let held = scan(entries, &Key::new(""))?;
    let gone = held.into_iter().filter(|held| held.session.is_some_and(&ended));
    Ok(gone.map(|held| Op::delete(held.entry.key)).collect())
}

fn scan_local(
    local: &impl ReadableTable<&'static str, &'static [u8]>,
    prefix: &str,
) -> Result<Vec<(String, Bytes)>, redb::Error> {
    let mut found = Vec::new();
    for row in local.range(prefix..)? {
        let (key, value) = row?;
        if !key.value().starts_with(prefix) {
            break;
        }
        found.push((key.value().to_owned(), Bytes::copy_from_slice(value.value())));
    }
    Ok(found)
}

/// Whether anything changed.
fn write_local(
    writes: &[LocalWrite],
    local: &mut Table<'_, &'static str, &'static [u8]>,
) -> Result<bool, redb::Error> {
    let mut changed = false;
    for write in writes {
        match write {
            LocalWrite::PutIfAbsent(key, value) => {
                if local.get(key.as_str())?.is_none() {
                    local.insert(key.as_str(), &value[..])?;
                    changed = true;
                }
            }
            LocalWrite::Delete(key) => changed |= local.remove(key.as_str())?.is_some(),
        }
    }
    Ok(changed)
}
