//! Tasks, queues, timers and blocking calls of the executor this thread runs.
//!
//! Every function here must be called from within an executor.

use super::runnable;
use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

/// A queue of tasks with its own share of the core.
#[derive(Clone, Copy, Debug)]
pub struct Queue(glommio::TaskQueueHandle);

impl Queue {
    /// A queue with `shares` of the core, against the 1,000 of the queue that the shard itself runs in.
    pub(super) fn new(shares: usize, name: &str) -> Self {
        let latency = glommio::Latency::NotImportant;
        Self(glommio::executor().create_task_queue(glommio::Shares::Static(shares), latency, name))
    }
}

/// Runs a task to its end in the caller's queue. Its first step runs before this returns, so no `RefCell` that it
/// borrows may be borrowed here.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    glommio::spawn_local(runnable::counted(task)).detach();
}

/// Runs a task to its end in `queue`.
pub fn spawn_in(queue: Queue, task: impl Future<Output = ()> + 'static) {
    match glommio::spawn_local_into(runnable::counted_aside(task), queue.0) {
        Ok(task) => drop(task.detach()),
        // Queues are made once per executor and never removed.
        Err(error) => unreachable!("a queue of another executor: {error}"),
    }
}

/// Waits. Late by up to the preempt timer when the core is busy.
pub async fn sleep(wait: Duration) {
    glommio::timer::sleep(wait).await;
}

/// Lets others run if the preempt timer says it is their turn.
pub async fn yield_if_needed() {
    glommio::yield_if_needed().await;
}

/// Lets everything that can run go first.
pub async fn yield_now() {
    glommio::executor().yield_now().await;
}

/// Runs a blocking call on the shard's one helper thread. A panic of `call` is raised again here: inside the helper
/// it would end the thread and leave the caller waiting for ever.
pub async fn blocking<R: Send + 'static>(call: impl FnOnce() -> R + Send + 'static) -> R {
    let call = glommio::executor().spawn_blocking(move || catch_unwind(AssertUnwindSafe(call)));
    let caught: Result<R, Box<dyn Any + Send>> = runnable::outside(call).await;
    match caught {
        Ok(result) => result,
        Err(panic) => resume_unwind(panic),
    }
}
