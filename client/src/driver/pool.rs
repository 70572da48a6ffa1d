//! One connection for each broker and shard, opened when something is to be sent.
//!
//! Shared by all handles and drivers of a client. Invariant: every submission gets a reply, even if its connection is
//! never made. It refuses to know what requests mean.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use corelog_wire::message::{Answer, HelloAnswer};
use tokio::sync::mpsc;

use super::{ConnectionJob, Job};
use crate::core::{Destination, Input, Outgoing, RequestId, Submission, Target};
use crate::error::Error;

/// What the root driver is told to spawn.
pub(crate) enum Command {
    Connect(ConnectionJob),
    Work(Job),
}

/// Who gets an answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) inputs: mpsc::UnboundedSender<Input>,
    pub(crate) id: RequestId,
}

impl Reply {
    // Nobody waits any more if the channel is closed.
    pub(crate) fn answered(self, answer: Answer, payload: Bytes) {
        let _ = self.inputs.send(Input::Answered { id: self.id, answer, payload });
    }

    pub(crate) fn failed(self, error: Error) {
        let _ = self.inputs.send(Input::Failed { id: self.id, error });
    }

    pub(crate) fn sent(self) {
        let _ = self.inputs.send(Input::Sent { id: self.id });
    }
}

/// The most bytes that a broker said it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) payload: u32,
    pub(crate) record: u32,
    pub(crate) batch: u32,
}

pub(crate) struct Pool {
    pub(crate) client_name: String,
    pub(crate) connect_deadline: Duration,
    bootstrap: Vec<Arc<str>>,
    commands: mpsc::UnboundedSender<Command>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connections: BTreeMap<Destination, Line>,
    /// Which bootstrap address is tried next.
    preferred: usize,
    next_line: u64,
    limits: Option<Limits>,
}

/// A connection's driver, from afar.
struct Line {
    number: u64,
    greeted: bool,
    submissions: mpsc::UnboundedSender<Submission<Reply>>,
}

impl Pool {
    pub(crate) fn new(
        client_name: String,
        bootstrap: Vec<Arc<str>>,
        connect_deadline: Duration,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Self {
        Self { client_name, connect_deadline, bootstrap, commands, state: Mutex::default() }
    }

    /// Sends a request; its reply comes in any case.
    pub(crate) fn submit(self: &Arc<Self>, outgoing: Outgoing, inputs: &mpsc::UnboundedSender<Input>) {
        let Outgoing { id, target, request, payload, deadline, answered } = outgoing;
        let token = Reply { inputs: inputs.clone(), id };
        let mut submission = Submission { token, request, payload, deadline, answered };
        let mut state = self.lock();
        let destination = match target {
            Target::At(destination) => destination,
            Target::Any => state.any(&self.bootstrap),
        };
        // A driver that has just ended is replaced once; a new one takes everything.
        let mut unserved = None;
        for _ in 0..2 {
            let line = match state.line(self, &destination) {
                Ok(line) => line,
                Err(job) => {
                    unserved = Some(job);
                    break;
                }
            };
            match line.submissions.send(submission) {
                Ok(()) => return,
                Err(mpsc::error::SendError(back)) => submission = back,
            }
            state.connections.remove(&destination);
        }
        drop(state);
        // Its end is told to the pool, which takes the lock.
        drop(unserved);
        submission.token.failed(Error::Closed);
    }

    /// Spawns a machine's driver; false if the runtime is gone.
    pub(crate) fn work(&self, job: Job) -> bool {
        self.commands.send(Command::Work(job)).is_ok()
    }

    /// A connection said Hello.
    pub(super) fn greeted(&self, destination: &Destination, number: u64, greeting: &HelloAnswer) {
        let mut state = self.lock();
        state.limits = Some(Limits {
            payload: greeting.payload_bytes_max,
            record: greeting.record_bytes_max,
            batch: greeting.batch_bytes_max,
        });
        if let Some(line) = state.connections.get_mut(destination).filter(|line| line.number == number) {
            line.greeted = true;
        }
    }

    /// A connection ended.
    pub(super) fn forget(&self, destination: &Destination, number: u64) {
        let mut state = self.lock();
        if state.connections.get(destination).is_some_and(|line| line.number == number) {
            state.connections.remove(destination);
        }
        let preferred = state.preferred % self.bootstrap.len().max(1);
        if self.bootstrap.get(preferred) == Some(&destination.address) {
            state.preferred = preferred + 1;
        }
    }

    pub(crate) fn limits(&self) -> Option<Limits> {
        self.lock().limits
    }

    pub(crate) fn bootstrap_count(&self) -> usize {
        self.bootstrap.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing below panics between two changes that belong together.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A connection that works, or the next bootstrap address.
    fn any(&self, bootstrap: &[Arc<str>]) -> Destination {
        let open = self.connections.iter().find(|(_, line)| line.greeted && !line.submissions.is_closed());
        if let Some((destination, _)) = open {
            return destination.clone();
        }
        let address = bootstrap.get(self.preferred % bootstrap.len().max(1));
        Destination { address: address.cloned().unwrap_or_default(), shard: None }
    }

    /// The connection to this destination, or a new one; the job of the new one comes back if the runtime is gone.
    fn line(&mut self, pool: &Arc<Pool>, destination: &Destination) -> Result<&Line, ConnectionJob> {
        if !self.connections.contains_key(destination) {
            let number = self.next_line;
            self.next_line += 1;
            let (submissions, receiver) = mpsc::unbounded_channel();
            let job = ConnectionJob {
                pool: Arc::downgrade(pool),
                client_name: pool.client_name.clone(),
                connect_deadline: pool.connect_deadline,
                destination: destination.clone(),
                number,
                submissions: receiver,
            };
            if let Err(mpsc::error::SendError(Command::Connect(job))) =
                pool.commands.send(Command::Connect(job))
            {
                return Err(job);
            }
            self.connections.insert(destination.clone(), Line { number, greeted: false, submissions });
        }
        Ok(&self.connections[destination])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corelog_wire::message::{InitProducerIdRequest, Request};
    use std::time::Instant;

    #[test]
    fn a_request_fails_when_the_runtime_is_gone() {
        let (commands, receiver) = mpsc::unbounded_channel();
        drop(receiver);
        let pool = Arc::new(Pool::new("t".into(), vec!["a:1".into()], Duration::from_secs(5), commands));
        let outgoing = Outgoing {
            id: RequestId::new(7),
            target: Target::Any,
            request: Request::InitProducerId(InitProducerIdRequest {}),
            payload: vec![],
            deadline: Instant::now() + Duration::from_secs(5),
            answered: true,
        };
        let (inputs, mut replies) = mpsc::unbounded_channel();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            pool.submit(outgoing, &inputs);
            done.send(()).unwrap();
        });
        ended.recv_timeout(Duration::from_secs(30)).expect("it does not wait for itself");
        let reply = replies.try_recv();
        assert!(matches!(&reply, Ok(Input::Failed { error: Error::Closed, .. })), "{reply:?}");
    }
}
