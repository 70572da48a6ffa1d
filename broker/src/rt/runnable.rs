//! Which tasks of an executor can run, so that one who knows that none can may let the thread sleep.
//!
//! Used by `tasks`, which counts every task that it starts, and by `ring`, whose driver sleeps in the kernel itself while
//! requests follow each other closely: glommio's own way of going to sleep enters the kernel a dozen times
//! (`docs/decisions/0017-sleep-in-our-ring.md`).
//!
//! Invariants: the counts are never smaller than the number of tasks that were woken and have not run since; whoever wakes
//! a task from another thread ends the thread's sleep; a task that nobody can wake any more goes, as without the count.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Wake, Waker};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

thread_local! {
    static COUNTS: Arc<Counts> = Arc::default();
    /// The task that runs is not of the main queue.
    static ASIDE: Cell<bool> = const { Cell::new(false) };
    /// Operations that only the executor's own rings and threads complete.
    static OUTSIDE: Cell<usize> = const { Cell::new(0) };
    static SLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Who is next, beside the task that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A task of the main queue.
    Main,
    /// Somebody whom only the executor can find.
    Executor,
    /// Nobody.
    Nobody,
}

/// What other threads may touch too.
#[derive(Debug)]
struct Counts {
    thread: ThreadId,
    /// Tasks of the main queue that can run.
    main: AtomicUsize,
    /// Tasks of all other queues that can run.
    aside: AtomicUsize,
    /// Another thread woke a task, which the executor sees only when it looks.
    foreign: AtomicBool,
    /// The thread sleeps, or is about to, where the executor cannot wake it.
    asleep: AtomicBool,
    /// An event counter that ends such a sleep.
    bell: OnceLock<OwnedFd>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            thread: std::thread::current().id(),
            main: AtomicUsize::new(0),
            aside: AtomicUsize::new(0),
            foreign: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            bell: OnceLock::new(),
        }
    }
}

/// Who is next on this thread.
pub(super) fn next() -> Next {
    COUNTS.with(|counts| {
        let executor = counts.foreign.swap(false, SeqCst) || counts.aside.load(SeqCst) > 0;
        match counts.main.load(SeqCst) {
            _ if executor || OUTSIDE.get() > 0 => Next::Executor,
            0 => Next::Nobody,
            _ => Next::Main,
        }
    })
}

/// Calls `sleep`, which may wait until the bell rings, unless a task can run.
pub(super) fn sleep_unless_woken(sleep: impl FnOnce()) {
    COUNTS.with(|counts| {
        // First the word, then the look: whoever comes in between sees the word and rings.
        counts.asleep.store(true, SeqCst);
        let tasks = counts.main.load(SeqCst) + counts.aside.load(SeqCst);
        if tasks == 0 && !counts.foreign.load(SeqCst) {
            let from = Instant::now();
            sleep();
            SLEPT.set(SLEPT.get() + from.elapsed());
        }
        counts.asleep.store(false, SeqCst);
    });
}

/// How long this thread slept that way since the last call. The executor takes it for work.
pub(super) fn take_slept() -> Duration {
    SLEPT.take()
}

/// Gives this thread its bell; there is one for its life.
pub(super) fn bell(make: impl FnOnce() -> std::io::Result<OwnedFd>) -> std::io::Result<OwnedFd> {
    COUNTS.with(|counts| {
        if counts.bell.get().is_none() {
            // Only this thread sets it.
            drop(counts.bell.set(make()?));
        }
        counts.bell.get().map_or_else(|| Err(std::io::ErrorKind::NotFound.into()), OwnedFd::try_clone)
    })
}

/// Waits for what only the executor's own rings and threads complete.
pub(crate) async fn outside<R>(operation: impl Future<Output = R>) -> R {
    struct Out;
    impl Drop for Out {
        fn drop(&mut self) {
            OUTSIDE.set(OUTSIDE.get() - 1);
        }
    }
    OUTSIDE.set(OUTSIDE.get() + 1);
    let _out = Out;
    operation.await
}

/// A task of the queue that the task that runs is in.
pub(super) fn counted<R>(task: impl Future<Output = R>) -> impl Future<Output = R> {
    counted_in(ASIDE.get(), task)
}

/// A task of a queue that is not the main one.
pub(super) fn counted_aside<R>(task: impl Future<Output = R>) -> impl Future<Output = R> {
    counted_in(true, task)
}

fn counted_in<R>(aside: bool, task: impl Future<Output = R>) -> impl Future<Output = R> {
    let counts = COUNTS.with(Arc::clone);
    let counted = Counted(Arc::new(Task { counts, aside, state: AtomicU8::new(Task::WAITS) }));
    counted.0.can_run();
    async move {
        let mut task = pin!(task);
        // Not held: it keeps the task that it wakes.
        let mut known = Weak::new();
        poll_fn(|cx| {
            let waker = counted.0.waker(&known, cx.waker());
            known = Arc::downgrade(&waker);
            counted.0.becomes(Task::WAITS);
            let before = ASIDE.replace(counted.0.aside);
            let polled = task.as_mut().poll(&mut Context::from_waker(&Waker::from(waker)));
            ASIDE.set(before);
            polled
        })
        .await
    }
}

/// Counts a task until it is dropped.
struct Counted(Arc<Task>);

#[derive(Debug)]
struct Task {
    counts: Arc<Counts>,
    aside: bool,
    state: AtomicU8,
}

/// A waker that counts.
struct Counting {
    task: Arc<Task>,
    inner: Waker,
}

impl Task {
    const WAITS: u8 = 0;
    const CAN_RUN: u8 = 1;
    const OVER: u8 = 2;

    fn count(&self) -> &AtomicUsize {
        if self.aside { &self.counts.aside } else { &self.counts.main }
    }

    fn can_run(&self) {
        if self.state.compare_exchange(Self::WAITS, Self::CAN_RUN, SeqCst, SeqCst).is_ok() {
            self.count().fetch_add(1, SeqCst);
        }
    }

    /// The waker that is known, if somebody still has it and it wakes the same.
    fn waker(self: &Arc<Self>, known: &Weak<Counting>, inner: &Waker) -> Arc<Counting> {
        let known = known.upgrade().filter(|known| known.inner.will_wake(inner));
        known.unwrap_or_else(|| Arc::new(Counting { task: Arc::clone(self), inner: inner.clone() }))
    }

    fn becomes(&self, state: u8) {
        if self.state.swap(state, SeqCst) == Self::CAN_RUN {
            self.count().fetch_sub(1, SeqCst);
        }
    }
}

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.task.can_run();
        self.inner.wake_by_ref();
        let counts = &self.task.counts;
        if std::thread::current().id() == counts.thread {
            return;
        }
        counts.foreign.store(true, SeqCst);
        if let Some(bell) = counts.bell.get().filter(|_| counts.asleep.load(SeqCst)) {
            // It cannot be full: that takes longer than machines last.
            let _rung = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.becomes(Task::OVER);
    }
}
