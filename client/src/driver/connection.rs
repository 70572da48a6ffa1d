//! Drives one connection: connects, then moves bytes between the socket and its machine until one of them ends.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Weak;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::pool::{Pool, Reply};
use super::{Runtime, Stream};
use crate::core::{
    Connection, ConnectionEffect as Effect, ConnectionInput as Input, Destination, Submission,
};
use crate::error::Error;

/// How often a connection moves bytes before others on its thread have their turn.
const TURNS_MAX: usize = 32;

/// A connection to be made.
pub(crate) struct ConnectionJob {
    pub(super) pool: Weak<Pool>,
    pub(super) client_name: String,
    pub(super) connect_deadline: Duration,
    pub(super) destination: Destination,
    pub(super) number: u64,
    pub(super) submissions: mpsc::UnboundedReceiver<Submission<Reply>>,
}

impl Drop for ConnectionJob {
    fn drop(&mut self) {
        self.end(&Error::Closed);
    }
}

impl ConnectionJob {
    /// Takes no more submissions, and fails those that came. The pool forgets the connection first, so that those who
    /// hear of the failure and try again get another one.
    fn end(&mut self, error: &Error) {
        if let Some(pool) = self.pool.upgrade() {
            pool.forget(&self.destination, self.number);
        }
        self.submissions.close();
        while let Ok(submission) = self.submissions.try_recv() {
            submission.token.failed(error.clone());
        }
    }
}

pub(super) async fn run<R: Runtime>(runtime: &R, mut job: ConnectionJob) {
    let deadline = R::now() + job.connect_deadline;
    let address = job.destination.address.clone();
    let unreachable = |reason: String| Error::Unreachable { address: address.clone(), reason: reason.into() };
    let stream = {
        let mut connect = pin!(runtime.connect(&address));
        let mut patience = runtime.sleep_until(deadline);
        poll_fn(|cx| match connect.as_mut().poll(cx) {
            Poll::Ready(stream) => Poll::Ready(stream.map_err(|error| unreachable(error.to_string()))),
            Poll::Pending => Pin::new(&mut patience)
                .poll(cx)
                .map(|()| Err(unreachable(format!("no connection within {:?}", job.connect_deadline)))),
        })
        .await
    };
    let stream = match stream {
        Ok(stream) => stream,
        Err(error) => return job.end(&error),
    };
    let machine = Connection::new(&job.client_name, job.destination.shard, deadline);
    let mut link = Link { runtime, stream, machine, effects: Vec::new(), timer: None };
    let error = poll_fn(|cx| link.poll(cx, &mut job)).await;
    job.end(&error);
}

/// An open connection.
struct Link<'a, R: Runtime> {
    runtime: &'a R,
    stream: R::Stream,
    machine: Connection<Reply>,
    effects: Vec<Effect<Reply>>,
    timer: Option<(Instant, R::Sleep)>,
}

impl<R: Runtime> Link<'_, R> {
    /// Does what can be done now; ready when the connection has ended.
    fn poll(&mut self, cx: &mut Context<'_>, job: &mut ConnectionJob) -> Poll<Error> {
        for _ in 0..TURNS_MAX {
            let mut progress = false;
            loop {
                match job.submissions.poll_recv(cx) {
                    Poll::Ready(Some(submission)) => self.handle(Input::Submit(submission)),
                    // All handles and drivers are gone, so nobody waits for anything.
                    Poll::Ready(None) => return Poll::Ready(Error::Closed),
                    Poll::Pending => break,
                }
                progress = true;
            }
            progress |= self.write(cx);
            progress |= self.read(cx);
            progress |= self.tick(cx);
            if let Some(error) = self.perform(job) {
                return Poll::Ready(error);
            }
            if !progress {
                return Poll::Pending;
            }
        }
        // Others on this thread have their turn, then this goes on.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn handle(&mut self, input: Input<Reply>) {
        self.machine.handle(R::now(), input, &mut self.effects);
    }

    fn lost(&mut self, error: Option<&io::Error>) {
        let reason = error.map_or_else(|| "the broker closed it".into(), ToString::to_string);
        self.handle(Input::Lost(Error::ConnectionLost { reason: reason.into() }));
    }

    fn write(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.machine.has_outgoing() {
            return false;
        }
        let written = {
            let mut slices = Vec::new();
            self.machine.outgoing(&mut slices);
            self.stream.poll_write(cx, &slices)
        };
        match written {
            Poll::Ready(Ok(0)) => self.lost(None),
            Poll::Ready(Ok(bytes)) => self.handle(Input::Written(bytes)),
            Poll::Ready(Err(error)) => self.lost(Some(&error)),
            Poll::Pending => return false,
        }
        true
    }

    /// Reads straight into the buffer of which the machine cuts headers and payloads: no copy but the kernel's.
    fn read(&mut self, cx: &mut Context<'_>) -> bool {
        let (buffer, room) = self.machine.receive_room();
        match self.stream.poll_read(cx, buffer, room) {
            Poll::Ready(Ok(0)) => self.lost(None),
            Poll::Ready(Ok(_)) => self.handle(Input::Received),
            Poll::Ready(Err(error)) => self.lost(Some(&error)),
            Poll::Pending => return false,
        }
        true
    }

    /// Keeps a timer at the earliest deadline, or at an earlier one that has become needless: it is cheaper to wake up
    /// once in vain than to set a timer for each request.
    fn tick(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.machine.deadline() else {
            return false;
        };
        if self.timer.as_ref().is_none_or(|(at, _)| *at > deadline) {
            self.timer = Some((deadline, self.runtime.sleep_until(deadline)));
        }
        let Some((_, timer)) = &mut self.timer else { return false };
        if Pin::new(timer).poll(cx).is_pending() {
            return false;
        }
        self.timer = None;
        self.handle(Input::Tick);
        true
    }

    /// Hands out answers; gives why the connection ends, if it does.
    fn perform(&mut self, job: &ConnectionJob) -> Option<Error> {
        let mut end = None;
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Greeted(greeting) => {
                    if let Some(pool) = job.pool.upgrade() {
                        pool.greeted(&job.destination, job.number, &greeting);
                    }
                }
                Effect::Answered { token, answer, payload } => token.answered(answer, payload),
                Effect::Sent { token } => token.sent(),
                Effect::Failed { token, error } => token.failed(error),
                Effect::Close(error) => end = Some(error),
            }
        }
        end
    }
}
