//! Drives one machine: feeds it answers and time, sends what it wants sent.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{Notify, mpsc};

use super::{Pool, Runtime};
use crate::core::{Input, Outgoing};

/// A machine behind its lock, and those who wait for it.
pub(crate) trait Cell: Send + Sync {
    /// Feeds the machine, tells those who wait, and gives what is to be sent.
    fn handle(&self, now: Instant, input: Input, out: &mut Vec<Outgoing>);
    /// When to come back with a tick.
    fn deadline(&self) -> Option<Instant>;
    /// Rung by handles that want a tick.
    fn bell(&self) -> &Notify;
    /// Whether there will be nothing more to do.
    fn is_done(&self) -> bool;
    /// Nobody drives the machine any more.
    fn abandoned(&self);
}

/// A machine to drive.
pub(crate) struct Job {
    cell: Arc<dyn Cell>,
    pool: Arc<Pool>,
}

impl Job {
    pub(crate) fn new(cell: Arc<dyn Cell>, pool: Arc<Pool>) -> Self {
        Self { cell, pool }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.cell.abandoned();
    }
}

pub(super) async fn run<R: Runtime>(runtime: &R, job: Job) {
    let (sender, mut inputs) = mpsc::unbounded_channel();
    let mut out = Vec::new();
    let mut input = Input::Tick;
    loop {
        job.cell.handle(R::now(), input, &mut out);
        while let Ok(input) = inputs.try_recv() {
            job.cell.handle(R::now(), input, &mut out);
        }
        for outgoing in out.drain(..) {
            job.pool.submit(outgoing, &sender);
        }
        if job.cell.is_done() {
            return;
        }
        let deadline = job.cell.deadline();
        let timer = async {
            match deadline {
                Some(deadline) => runtime.sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        input = tokio::select! {
            biased;
            // `sender` is alive, so the channel is open.
            Some(input) = inputs.recv() => input,
            () = job.cell.bell().notified() => Input::Tick,
            () = timer => Input::Tick,
        };
    }
}
