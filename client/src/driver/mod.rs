//! The hands of the client: sockets, timers and tasks around the machines of `core`.
//!
//! Generic over the [`Runtime`]; handles talk to it by channels and locks that need none. Invariants: whatever a handle
//! waits for ends, as its machine has a deadline for it, and ends with [`Error::Closed`](crate::Error::Closed) when the
//! runtime drops the drivers. It refuses to decide anything.

mod connection;
#[cfg(feature = "glommio")]
mod glommio;
mod pool;
#[cfg(feature = "tokio")]
mod tokio;
mod worker;

use std::future::Future;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::BytesMut;

pub(crate) use self::connection::ConnectionJob;
pub(crate) use self::pool::{Command, Pool};
pub(crate) use self::worker::{Cell, Job};

#[cfg(feature = "glommio")]
pub use self::glommio::{Glommio, GlommioStream};
#[cfg(feature = "tokio")]
pub use self::tokio::{Tokio, TokioStream};

/// A connected byte stream.
pub trait Stream: Unpin {
    /// Reads at most `limit` bytes to the end of `buffer`, whose room is reserved; 0 at the stream's end.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
        limit: usize,
    ) -> Poll<io::Result<usize>>;

    /// Writes some of the slices' bytes, in order; gives how many. If it is called again after it was pending, the
    /// first bytes are the same.
    fn poll_write(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;
}

/// What the client needs of an asynchronous runtime.
///
/// `spawn` takes the concrete driver, not any future, so that no bound is put on it that only some runtimes need: tokio
/// finds that `Driver<Tokio>` can be sent to another thread, a runtime of one thread does not ask.
pub trait Runtime: Clone + Sized + 'static {
    /// Its connections.
    type Stream: Stream;
    /// A timer.
    type Sleep: Future<Output = ()> + Unpin;

    /// Connects to `address` (host:port).
    fn connect(&self, address: &str) -> impl Future<Output = io::Result<Self::Stream>>;

    /// Waits until then.
    fn sleep_until(&self, at: Instant) -> Self::Sleep;

    /// The time by which `sleep_until` waits.
    fn now() -> Instant;

    /// Runs a driver to its end in the background.
    fn spawn(&self, driver: Driver<Self>);
}

/// A task of the client.
pub struct Driver<R: Runtime> {
    runtime: R,
    task: Task,
}

enum Task {
    /// Spawns the others, so that handles need not know the runtime.
    Root(::tokio::sync::mpsc::UnboundedReceiver<Command>),
    Connection(ConnectionJob),
    Worker(Job),
}

impl<R: Runtime> Driver<R> {
    pub(crate) fn root(runtime: R, commands: ::tokio::sync::mpsc::UnboundedReceiver<Command>) -> Self {
        Self { runtime, task: Task::Root(commands) }
    }

    /// Does the work, to its end.
    pub async fn run(self) {
        let Self { runtime, task } = self;
        match task {
            Task::Root(mut commands) => {
                while let Some(command) = commands.recv().await {
                    let task = match command {
                        Command::Connect(job) => Task::Connection(job),
                        Command::Work(job) => Task::Worker(job),
                    };
                    runtime.spawn(Self { runtime: runtime.clone(), task });
                }
            }
            Task::Connection(job) => connection::run(&runtime, job).await,
            Task::Worker(job) => worker::run(&runtime, job).await,
        }
    }
}
