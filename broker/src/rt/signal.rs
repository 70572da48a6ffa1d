//! Waking one local task: a flag with a waker, and a timer that is set again rather than made again.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// A flag that one task of this executor waits for. Setting it twice before it is seen counts once.
#[derive(Debug, Default)]
pub struct Signal {
    set: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Signal {
    /// Sets the flag and wakes the waiter.
    pub fn notify(&self) {
        let waiter = if self.set.replace(true) { None } else { self.waiter.take() };
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Takes the flag, waiting until it is set.
    pub async fn wait(&self) {
        poll_fn(|cx| if self.take_or_wait(cx.waker()) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Takes the flag; if it is not set, `waker` is woken when it is.
    fn take_or_wait(&self, waker: &Waker) -> bool {
        let set = self.set.replace(false);
        if !set {
            *self.waiter.borrow_mut() = Some(waker.clone());
        }
        set
    }
}

/// A timer of one task. Moving its deadline to later costs nothing until it fires.
#[derive(Debug, Default)]
pub struct Alarm {
    armed: RefCell<Option<(Instant, glommio::timer::Timer)>>,
}

impl Alarm {
    /// Waits for `signal`, but not longer than `wait`. Whether the signal was set; may return early without it.
    pub async fn wait(&self, signal: &Signal, wait: Option<Duration>) -> bool {
        if let Some(wait) = wait {
            self.arm(wait);
        }
        poll_fn(|cx| {
            if signal.take_or_wait(cx.waker()) {
                return Poll::Ready(true);
            }
            let mut armed = self.armed.borrow_mut();
            match armed.as_mut().map(|(_, timer)| Pin::new(timer).poll(cx)) {
                Some(Poll::Ready(_)) => {
                    *armed = None;
                    Poll::Ready(false)
                }
                Some(Poll::Pending) | None => Poll::Pending,
            }
        })
        .await
    }

    /// Sets the timer if it is not set, or set later than `wait` from now. An earlier timer stays: it fires early
    /// once, which is cheaper than moving it every turn.
    fn arm(&self, wait: Duration) {
        let due = Instant::now() + wait;
        let mut armed = self.armed.borrow_mut();
        if armed.as_ref().is_none_or(|(at, _)| *at > due) {
            *armed = Some((due, glommio::timer::Timer::new(wait)));
        }
    }
}
