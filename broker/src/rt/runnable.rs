//! Which tasks of an executor can run, so that one who knows that none can may let the thread sleep.
//!
//! Used by `tasks`, which counts every task that it starts, and by `ring`, whose driver sleeps in the kernel itself while
//! requests follow each other closely: glommio's own way of going to sleep enters the kernel a dozen times
//! (`docs/decisions/0017-sleep-in-our-ring.md`).
//!
//! Invariants: a task that was woken is counted until its next step, and none that was not (one that is woken by another
//! thread just before a step may have one more, uncounted); whoever wakes a task from another thread ends the thread's sleep;
//! a task that nobody can wake any more goes, as without the count.

use pin_project_lite::pin_project;
use std::cell::Cell;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Wake, Waker};
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
#[derive(Debug, Default)]
struct Counts {
    /// Tasks of the main queue that can run.
    main: AtomicUsize,
    /// Tasks of all other queues that can run, and those that other threads woke: the executor sees these only when it
    /// looks.
    aside: AtomicUsize,
    /// The thread sleeps, or is about to, where the executor cannot wake it.
    asleep: AtomicBool,
    /// An event counter that ends such a sleep.
    bell: OnceLock<OwnedFd>,
}

impl Counts {
    fn are_of_this_thread(self: &Arc<Self>) -> bool {
        // A thread that ends has none any more.
        COUNTS.try_with(|counts| Arc::ptr_eq(counts, self)).unwrap_or(false)
    }
}

/// Who is next on this thread.
pub(super) fn next() -> Next {
    COUNTS.with(|counts| match counts.main.load(SeqCst) {
        _ if counts.aside.load(SeqCst) > 0 || OUTSIDE.get() > 0 => Next::Executor,
        0 => Next::Nobody,
        _ => Next::Main,
    })
}

/// Calls `sleep`, which may wait until the bell rings, unless a task can run.
pub(super) fn sleep_unless_woken(sleep: impl FnOnce()) {
    COUNTS.with(|counts| {
        // First the word, then the look: whoever comes in between sees the word and rings.
        counts.asleep.store(true, SeqCst);
        if counts.main.load(SeqCst) + counts.aside.load(SeqCst) == 0 {
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
        let bell = if let Some(bell) = counts.bell.get() {
            bell
        } else {
            let bell = make()?;
            counts.bell.get_or_init(|| bell)
        };
        bell.try_clone()
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

fn counted_in<F: Future>(aside: bool, task: F) -> Counted<F> {
    let counts = COUNTS.with(Arc::clone);
    let count = Count(Arc::new(Task { counts, aside, state: AtomicU8::new(Task::WAITS) }));
    count.0.can_run(aside);
    Counted { task, count, known: Weak::new() }
}

pin_project! {
    /// A task that is counted. An `async` block around it would hold the task twice: once as what it captured.
    struct Counted<F> {
        #[pin]
        task: F,
        count: Count,
        // Not held: it keeps the task that it wakes.
        known: Weak<Counting>,
    }
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let counted = self.project();
        let count = &counted.count.0;
        let waker = count.waker(counted.known, cx.waker());
        *counted.known = Arc::downgrade(&waker);
        count.becomes(Task::WAITS);
        let before = ASIDE.replace(count.aside);
        let polled = counted.task.poll(&mut Context::from_waker(&Waker::from(waker)));
        ASIDE.set(before);
        polled
    }
}

/// Counts a task until it is dropped.
struct Count(Arc<Task>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.becomes(Task::OVER);
    }
}

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
    /// Counted with the main queue.
    const IN_MAIN: u8 = 1;
    /// Counted with the others.
    const ASIDE: u8 = 2;
    const OVER: u8 = 3;

    fn can_run(&self, aside: bool) {
        let state = if aside { Self::ASIDE } else { Self::IN_MAIN };
        if self.state.compare_exchange(Self::WAITS, state, SeqCst, SeqCst).is_ok() {
            let count = if aside { &self.counts.aside } else { &self.counts.main };
            count.fetch_add(1, SeqCst);
        }
    }

    fn becomes(&self, state: u8) {
        match self.state.swap(state, SeqCst) {
            Self::IN_MAIN => drop(self.counts.main.fetch_sub(1, SeqCst)),
            Self::ASIDE => drop(self.counts.aside.fetch_sub(1, SeqCst)),
            _ => {}
        }
    }

    /// The waker that is known, if somebody still has it and it wakes the same.
    fn waker(self: &Arc<Self>, known: &Weak<Counting>, inner: &Waker) -> Arc<Counting> {
        let known = known.upgrade().filter(|known| known.inner.will_wake(inner));
        known.unwrap_or_else(|| Arc::new(Counting { task: Arc::clone(self), inner: inner.clone() }))
    }
}

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let counts = &self.task.counts;
        let foreign = !counts.are_of_this_thread();
        self.task.can_run(foreign || self.task.aside);
        self.inner.wake_by_ref();
        if let Some(bell) = counts.bell.get().filter(|_| foreign && counts.asleep.load(SeqCst)) {
            // It cannot be full: that takes longer than machines last.
            let _rung = rustix::io::write(bell, &1_u64.to_ne_bytes());
        }
    }
}
