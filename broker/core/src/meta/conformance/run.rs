//! Runs one script: names become keys, revisions and sessions; answers are compared with what the script expects.

use std::collections::BTreeMap;

use bytes::Bytes;
use thiserror::Error;

use super::{Do, Entry, If, Script, Seen, Step};
use crate::meta::{
    Compacted, Compare, Event, Key, KeyValue, Op, Range, Revision, SessionId, Txn, TxnAnswer, TxnOutcome,
    TxnRefusal,
};

/// What a store is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Read a key.
    Get(Key),
    /// Read a prefix.
    Range(Key),
    /// Perform a transaction.
    Txn(Txn),
    /// Open a session.
    Open,
    /// End a session.
    End(SessionId),
    /// Watch a prefix; the number names the watch from now on.
    Watch {
        /// Name of the watch.
        watch: usize,
        /// What it watches.
        prefix: Key,
        /// It sees changes after this revision.
        after: Revision,
    },
    /// Take what the watch sees next: at least so many changes, and all there are by then.
    Next {
        /// Name of the watch.
        watch: usize,
        /// Wait for so many.
        events: usize,
    },
    /// Wait until the watch is told that it is too late.
    NextLapse {
        /// Name of the watch.
        watch: usize,
    },
    /// Forget changes up to a revision.
    Compact(Revision),
}

/// What the store said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Command::Get`].
    Entry(Option<KeyValue>),
    /// To [`Command::Range`].
    Range(Range),
    /// To [`Command::Txn`].
    Txn(Result<TxnAnswer, TxnRefusal>),
    /// To [`Command::Open`].
    Session(SessionId),
    /// To [`Command::Next`] and [`Command::NextLapse`].
    Events(Result<Vec<Event>, Compacted>),
    /// To the others.
    Done,
}

/// A store that does not do what a script says.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("metadata script {script:?}, step {step}: {what}")]
pub struct Mismatch {
    /// The script.
    pub script: &'static str,
    /// The step, from 1.
    pub step: usize,
    /// What was expected and what came.
    pub what: String,
}

/// Runs one script under a prefix of its own, which must be empty.
#[derive(Debug)]
pub struct Runner {
    script: &'static Script,
    prefix: String,
    at: usize,
    /// The last revision seen: a named revision must be above it.
    last: Revision,
    revisions: BTreeMap<&'static str, Revision>,
    sessions: BTreeMap<&'static str, SessionId>,
    watches: Vec<&'static str>,
}

impl Runner {
    /// At the first step of `script`. Keys start with `prefix`.
    #[must_use]
    pub fn new(script: &'static Script, prefix: &str) -> Self {
        Self {
            script,
            prefix: prefix.to_owned(),
            at: 0,
            last: Revision::ZERO,
            revisions: BTreeMap::new(),
            sessions: BTreeMap::new(),
            watches: Vec::new(),
        }
    }

    /// What to ask the store next; none at the end of the script.
    ///
    /// # Panics
    /// When the script uses a name before it has a meaning: a mistake in the script.
    pub fn command(&mut self) -> Option<Command> {
        let step = *self.script.steps.get(self.at)?;
        Some(match step {
            Step::Get(key, _) => Command::Get(self.key(key)),
            Step::Range(prefix, _) => Command::Range(self.key(prefix)),
            Step::Done(compares, then, _) | Step::Idle(compares, then, _) => {
                Command::Txn(self.txn(compares, then, &[]))
            }
            Step::Refused(compares, then, reads, _) => Command::Txn(self.txn(compares, then, reads)),
            Step::Illegal(then) => Command::Txn(self.txn(&[], then, &[])),
            Step::Open(_) => Command::Open,
            Step::End(session) => Command::End(self.sessions[session]),
            Step::Watch(name, prefix, after) => {
                self.watches.push(name);
                let after = self.revisions[after];
                Command::Watch { watch: self.watches.len() - 1, prefix: self.key(prefix), after }
            }
            Step::Sees(name, events) => Command::Next { watch: self.watch(name), events: events.len() },
            Step::Lapsed(name) => Command::NextLapse { watch: self.watch(name) },
            Step::Compact(revision) => Command::Compact(self.revisions[revision]),
        })
    }

    /// Checks what came back and goes on to the next step.
    ///
    /// # Errors
    /// [`Mismatch`] when it is not what the script says.
    pub fn answer(&mut self, answer: Answer) -> Result<(), Mismatch> {
        let step = self.script.steps[self.at];
        self.at += 1;
        self.check(step, answer).map_err(|what| Mismatch { script: self.script.name, step: self.at, what })
    }

    fn check(&mut self, step: Step, answer: Answer) -> Result<(), String> {
        match (step, answer) {
            (Step::Get(_, expected), Answer::Entry(entry)) => {
                same(&expected.map(|expected| self.entry(expected)), &entry)
            }
            (Step::Range(_, expected), Answer::Range(range)) => {
                let expected: Vec<KeyValue> = expected.iter().map(|expected| self.entry(*expected)).collect();
                same(&expected, &range.entries)?;
                not_below(self.last, range.revision)
            }
            (Step::Done(_, _, name), Answer::Txn(Ok(answer))) => {
                same(&TxnOutcome::Done, &answer.outcome)?;
                self.bind(name, answer.revision)
            }
            (Step::Idle(_, _, name), Answer::Txn(Ok(answer))) => {
                same(&TxnOutcome::Done, &answer.outcome)?;
                not_below(self.revisions[name], answer.revision)
            }
            (Step::Refused(_, _, _, expected), Answer::Txn(Ok(answer))) => {
                let reads = expected.iter().map(|entry| entry.map(|entry| self.entry(entry))).collect();
                same(&TxnOutcome::Refused(reads), &answer.outcome)?;
                not_below(self.last, answer.revision)
            }
            (Step::Illegal(_), Answer::Txn(Err(_)))
            | (Step::Watch(..) | Step::Compact(_) | Step::End(_), Answer::Done) => Ok(()),
            (Step::Open(name), Answer::Session(session)) => {
                self.sessions.insert(name, session);
                Ok(())
            }
            (Step::Sees(_, expected), Answer::Events(Ok(events))) => {
                self.learn(expected, &events)?;
                let expected: Vec<Event> = expected.iter().map(|seen| self.seen(*seen)).collect();
                same(&expected, &events)
            }
            (Step::Lapsed(_), Answer::Events(Err(Compacted { up_to }))) => not_below(up_to, self.last),
            (step, answer) => Err(format!("{step:?} was answered with {answer:?}")),
        }
    }

    fn bind(&mut self, name: &'static str, revision: Revision) -> Result<(), String> {
        if revision <= self.last {
            return Err(format!("a change made revision {revision}, not above {}", self.last));
        }
        self.last = revision;
        self.revisions.insert(name, revision);
        Ok(())
    }

    /// Names the revisions that only a watch tells: those at which sessions ended.
    fn learn(&mut self, expected: &[Seen], events: &[Event]) -> Result<(), String> {
        for (seen, event) in expected.iter().zip(events) {
            match *seen {
                Seen::Gone(_, name) if !self.revisions.contains_key(name) => {
                    self.bind(name, event.revision())?;
                }
                Seen::Gone(..) | Seen::Put(_) => {}
            }
        }
        Ok(())
    }

    fn key(&self, ending: &str) -> Key {
        Key::new(format!("{}{ending}", self.prefix))
    }

    fn watch(&self, name: &str) -> usize {
        self.watches.iter().rposition(|known| *known == name).unwrap_or(usize::MAX)
    }

    fn entry(&self, entry: Entry) -> KeyValue {
        KeyValue {
            key: self.key(entry.key),
            value: Bytes::from_static(entry.value.as_bytes()),
            create_revision: self.revisions[entry.created],
            mod_revision: self.revisions[entry.modified],
        }
    }

    fn seen(&self, seen: Seen) -> Event {
        match seen {
            Seen::Put(entry) => Event::Put(self.entry(entry)),
            Seen::Gone(key, revision) => {
                Event::Delete { key: self.key(key), revision: self.revisions[revision] }
            }
        }
    }

    fn txn(&self, compares: &[If], then: &[Do], reads: &[&str]) -> Txn {
        let compare = |compare: &If| match *compare {
            If::Absent(key) => Compare::Absent(self.key(key)),
            If::Present(key) => Compare::Present(self.key(key)),
            If::Modified(key, revision) => Compare::Modified(self.key(key), self.revisions[revision]),
            If::Created(key, revision) => Compare::Created(self.key(key), self.revisions[revision]),
        };
        let value = |value: &'static str| Bytes::from_static(value.as_bytes());
        let op = |op: &Do| match *op {
            Do::Put(key, text) => Op::put(self.key(key), value(text)),
            Do::PutIn(key, text, session) => {
                Op::Put { key: self.key(key), value: value(text), session: Some(self.sessions[session]) }
            }
            Do::Delete(key) => Op::delete(self.key(key)),
        };
        Txn {
            compares: compares.iter().map(compare).collect(),
            then: then.iter().map(op).collect(),
            otherwise_reads: reads.iter().map(|key| self.key(key)).collect(),
        }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(expected: &T, got: &T) -> Result<(), String> {
    if expected == got { Ok(()) } else { Err(format!("expected {expected:?}, got {got:?}")) }
}

fn not_below(least: Revision, got: Revision) -> Result<(), String> {
    if got >= least { Ok(()) } else { Err(format!("revision {got} is below {least}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::conformance::SCRIPTS;
    use crate::meta::model::Model;

    /// Watches of the model: prefix and the revision they have seen.
    type Watches = Vec<(Key, Revision)>;

    fn perform(model: &mut Model<Bytes>, watches: &mut Watches, command: Command) -> Answer {
        let next = |watches: &mut Watches, model: &Model<Bytes>, watch: usize| {
            let (prefix, after) = &mut watches[watch];
            Answer::Events(model.events_after(prefix, *after).map(|(revision, events)| {
                *after = revision;
                events
            }))
        };
        match command {
            Command::Get(key) => Answer::Entry(model.get(&key).cloned()),
            Command::Range(prefix) => Answer::Range(model.range(&prefix)),
            Command::Txn(txn) => Answer::Txn(model.txn(&txn)),
            Command::Open => Answer::Session(model.open_session()),
            Command::End(session) => {
                model.end_session(session);
                Answer::Done
            }
            Command::Watch { prefix, after, .. } => {
                watches.push((prefix, after));
                Answer::Done
            }
            Command::Next { watch, .. } | Command::NextLapse { watch } => next(watches, model, watch),
            Command::Compact(revision) => {
                model.compact(revision);
                Answer::Done
            }
        }
    }

    #[test]
    fn the_model_follows_every_script() {
        let mut model = Model::default();
        for script in SCRIPTS {
            let mut runner = Runner::new(script, &format!("/test/{}/", script.name));
            let mut watches = Watches::new();
            while let Some(command) = runner.command() {
                let answer = perform(&mut model, &mut watches, command);
                runner.answer(answer).unwrap();
            }
        }
    }

    #[test]
    fn a_store_that_forgets_a_compare_is_found() {
        let found = SCRIPTS.iter().any(|script| {
            let mut model = Model::default();
            let mut watches = Watches::new();
            let mut runner = Runner::new(script, "/test/");
            std::iter::from_fn(|| {
                let command = match runner.command()? {
                    Command::Txn(txn) => Command::Txn(Txn { compares: Vec::new(), ..txn }),
                    command => command,
                };
                let answer = perform(&mut model, &mut watches, command);
                Some(runner.answer(answer))
            })
            .any(|step| step.is_err())
        });
        assert!(found);
    }
}
