//! The pacemaker and the watchdog: one plain thread beside the executors.
//!
//! glommio 0.9.0 may park an executor whose queues hold runnable tasks: its scheduler loop answers "nothing ran" both
//! when there is nothing and when it was preempted before the first task. A wake from another thread ends the
//! sleep, so this thread wakes every executor every few milliseconds while it works and less often when it is idle.
//! The task that is woken may itself be the one that the executor forgot, so every beat wakes it anew, whether or not
//! it answered the last: a channel or a notification would wake only the first time.
//!
//! The same beat shows that an executor still runs its tasks. One that does not for too long ends the process: a
//! broker with a dead core would keep its place in the cluster and answer nobody.

use super::runnable;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Time between two beats of an executor that works: the longest a lost wake-up can last.
const BEAT: Duration = Duration::from_millis(5);
/// Time between two beats of an executor that does not.
const BEAT_IDLE: Duration = Duration::from_millis(20);
/// An executor that ran more tasks than this since the last beat works. The beat's own task counts.
const TASKS_IDLE_MAX: u64 = 3;

/// What an executor and the pacemaker's thread know of each other.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Of the task that answers. Locked for the length of a wake.
    waker: Mutex<Option<Waker>>,
    asked: AtomicU64,
    beats: AtomicU64,
    tasks: AtomicU64,
    busy_nanos: AtomicU64,
    ended: AtomicBool,
}

impl Pulse {
    /// Beats answered since the start.
    #[must_use]
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Time the executor spent running tasks and asking for completions, since the start.
    #[must_use]
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_nanos.load(Ordering::Relaxed))
    }

    /// The executor's side: answers beats for ever. Nobody else may ask for the executor's statistics: asking resets
    /// them.
    pub(super) async fn answer(self: Arc<Self>) {
        let mut answered = 0;
        poll_fn::<(), _>(|cx| {
            self.remember(cx.waker());
            let asked = self.asked.load(Ordering::Acquire);
            if asked != answered {
                answered = asked;
                self.record();
            }
            Poll::Pending
        })
        .await;
    }

    fn record(&self) {
        let stats = glommio::executor().executor_stats();
        let busy = stats.total_runtime().saturating_sub(runnable::take_slept());
        let busy = u64::try_from(busy.as_nanos()).unwrap_or(u64::MAX);
        self.busy_nanos.fetch_add(busy, Ordering::Relaxed);
        self.tasks.fetch_add(stats.tasks_executed(), Ordering::Relaxed);
        self.beats.fetch_add(1, Ordering::Relaxed);
    }

    fn remember(&self, waker: &Waker) {
        let mut known = self.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    /// The pacemaker's side: wakes the executor, whatever became of the last time.
    fn beat(&self) {
        self.asked.fetch_add(1, Ordering::Release);
        if let Some(waker) = &*self.waker.lock().unwrap_or_else(PoisonError::into_inner) {
            waker.wake_by_ref();
        }
    }

    /// The executor is about to end: silence is right from now on.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        // Here, because a waker is best dropped where it came from.
        *self.waker.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What the thread remembers of one executor.
#[derive(Debug, Default)]
struct Watched {
    beats: u64,
    tasks: u64,
    silent: Duration,
}

impl Watched {
    /// Looks at the executor `elapsed` after the last look. Whether it works.
    fn look(&mut self, beats: u64, tasks: u64, elapsed: Duration) -> bool {
        self.silent = if beats == self.beats { self.silent + elapsed } else { Duration::ZERO };
        // An executor that does not answer may be the one that hangs: beat it fast.
        let works = beats == self.beats || tasks - self.tasks > TASKS_IDLE_MAX;
        (self.beats, self.tasks) = (beats, tasks);
        works
    }
}

/// Runs the thread until `stop` is dropped. Calls `on_stall` with the shard and the silence when an executor
/// answered no beat for `stall_max`.
pub(super) fn run(
    pulses: &[Arc<Pulse>],
    stop: &Receiver<()>,
    stall_max: Duration,
    on_stall: fn(usize, Duration),
) {
    let mut watched: Vec<Watched> = pulses.iter().map(|_| Watched::default()).collect();
    let mut wait = BEAT;
    loop {
        let before = Instant::now();
        if stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        // A process that was stopped as a whole did not stall: count no more than a few beats at once.
        let elapsed = before.elapsed().min(4 * wait);
        let mut works = false;
        for (shard, (pulse, watched)) in pulses.iter().zip(&mut watched).enumerate() {
            if pulse.ended.load(Ordering::Acquire) {
                continue;
            }
            works |= watched.look(pulse.beats(), pulse.tasks.load(Ordering::Relaxed), elapsed);
            if watched.silent >= stall_max {
                on_stall(shard, watched.silent);
                watched.silent = Duration::ZERO;
            }
            pulse.beat();
        }
        wait = if works { BEAT } else { BEAT_IDLE };
    }
}

/// Ends the process: what a stalled executor holds can only be saved by a restart.
pub(super) fn abort(shard: usize, silent: Duration) {
    // Not through the log: its writer is a thread that would not get to it any more.
    eprintln!(
        "corelog: the executor of shard {shard} ran none of its tasks for {silent:?}; ending the process"
    );
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::{TASKS_IDLE_MAX, Watched};
    use std::time::Duration;

    const STEP: Duration = Duration::from_millis(5);

    #[test]
    fn silence_adds_up_and_a_beat_ends_it() {
        let mut watched = Watched::default();
        assert!(watched.look(0, 0, STEP));
        assert!(watched.look(0, 0, STEP));
        assert_eq!(watched.silent, 2 * STEP);
        watched.look(1, 1, STEP);
        assert_eq!(watched.silent, Duration::ZERO);
    }

    #[test]
    fn an_executor_that_only_answers_is_idle() {
        let mut watched = Watched::default();
        assert!(!watched.look(1, TASKS_IDLE_MAX, STEP));
        assert!(watched.look(2, 2 * TASKS_IDLE_MAX + 1, STEP));
    }
}
