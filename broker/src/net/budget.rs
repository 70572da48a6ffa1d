//! Memory by bytes: a pool per shard and purpose, and the charges taken from it.
//!
//! Called by whoever reads a frame (input) or queues an answer (output). A charge lives as long as the memory it
//! stands for, wherever that goes, also on another core; dropping it gives the bytes back. Invariant: what is charged
//! exceeds the pool only by one overdraft and by what was settled beyond what was taken: headers and refusals. This file refuses to know what the bytes are.
//!
//! A frame has one charge, from its header to its payload, and grows as its bytes arrive, so many may hold a part and wait for the rest. So that they cannot wait for each
//! other for ever, the first in the queue may overdraw if it already holds something and nobody else overdraws: it will
//! get its frame whole, hand it on and give everything back.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A bounded number of bytes. Only the shard it belongs to waits on it; charges may be dropped anywhere.
#[derive(Clone, Debug)]
pub(super) struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bytes_max: u64,
    used: AtomicU64,
    /// Whether the queue may be non-empty. Set under the lock.
    contended: AtomicBool,
    /// Whether a living charge is an overdraft.
    overdrawn: AtomicBool,
    /// Locked only while somebody waits or stops waiting.
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    next_ticket: u64,
    /// Those who hold a part already come before those who hold nothing, or the latter would keep the former from
    /// finishing.
    waiting: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    ticket: u64,
    holds_a_part: bool,
    waker: Waker,
}

/// Bytes taken from a pool.
#[derive(Debug)]
pub(super) struct Charge {
    pool: Pool,
    bytes: u64,
    overdraft: bool,
}

impl Pool {
    /// A pool of so many bytes.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self(Arc::new(Shared {
            bytes_max,
            used: AtomicU64::new(0),
            contended: AtomicBool::new(false),
            overdrawn: AtomicBool::new(false),
            queue: Mutex::default(),
        }))
    }

    /// Bytes charged now.
    pub(super) fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The most that is given out, overdraft and forced charges apart.
    pub(super) fn bytes_max(&self) -> u64 {
        self.0.bytes_max
    }

    /// Whether somebody waits: connections that hold bytes without progress should go.
    pub(super) fn contended(&self) -> bool {
        self.0.contended.load(Ordering::Acquire)
    }

    /// A charge of nothing, to grow.
    pub(super) fn empty_charge(&self) -> Charge {
        Charge { pool: self.clone(), bytes: 0, overdraft: false }
    }

    /// Charges bytes that exist already, whatever the pool says.
    #[cfg(test)]
    pub(super) fn force(&self, bytes: u64) -> Charge {
        let mut charge = self.empty_charge();
        charge.settle(bytes);
        charge
    }

    fn try_take(&self, bytes: u64) -> bool {
        let update = |used: u64| used.checked_add(bytes).filter(|&after| after <= self.0.bytes_max);
        self.0.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, update).is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing under the lock can panic half-way.
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, bytes: u64, overdraft: bool) {
        self.0.used.fetch_sub(bytes, Ordering::AcqRel);
        if overdraft {
            self.0.overdrawn.store(false, Ordering::Release);
        }
        if self.contended() {
            self.wake_first();
        }
    }

    fn wake_first(&self) {
        let first = self.lock().waiting.front().map(|first| first.waker.clone());
        if let Some(waker) = first {
            waker.wake();
        }
    }
}

impl Charge {
    /// Bytes charged.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes more from the pool; waits in turn while there is not enough.
    pub(super) fn grow(&mut self, bytes: u64) -> Grow<'_> {
        Grow { charge: self, bytes, ticket: None }
    }

    /// Makes the charge what there is in the end, whatever the pool says: gives back what is too much.
    pub(super) fn settle(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.pool.give_back(self.bytes - bytes, false);
        } else {
            self.pool.0.used.fetch_add(bytes - self.bytes, Ordering::AcqRel);
        }
        self.bytes = bytes;
    }

    /// Takes more without waiting, if nobody waits and there is enough.
    pub(super) fn try_grow(&mut self, bytes: u64) -> bool {
        let taken = !self.pool.contended() && self.pool.try_take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 || self.overdraft {
            self.pool.give_back(self.bytes, self.overdraft);
        }
    }
}

/// See [`Charge::grow`].
#[must_use = "a future does nothing unless it is awaited"]
pub(super) struct Grow<'a> {
    charge: &'a mut Charge,
    bytes: u64,
    /// The place in the queue, once there is one.
    ticket: Option<u64>,
}

impl Grow<'_> {
    /// Takes the bytes if the pool has them or if this charge may overdraw. Only the first in the queue asks, and who
    /// overdraws already.
    fn take(&mut self) -> bool {
        let pool = &self.charge.pool;
        if pool.try_take(self.bytes) {
            self.charge.bytes += self.bytes;
            return true;
        }
        let may_overdraw = self.charge.overdraft
            || (self.charge.bytes > 0 && !pool.0.overdrawn.swap(true, Ordering::AcqRel));
        if may_overdraw {
            pool.0.used.fetch_add(self.bytes, Ordering::AcqRel);
            self.charge.overdraft = true;
            self.charge.bytes += self.bytes;
        }
        may_overdraw
    }

    fn leave_queue(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let mut queue = self.charge.pool.lock();
        queue.waiting.retain(|waiter| waiter.ticket != ticket);
        let next = queue.waiting.front().map(|first| first.waker.clone());
        self.charge.pool.0.contended.store(next.is_some(), Ordering::Release);
        drop(queue);
        if let Some(waker) = next {
            waker.wake();
        }
    }

    /// Whether this is the first in the queue, after queueing if need be.
    fn is_first(&mut self, waker: &Waker) -> bool {
        let mut queue = self.charge.pool.lock();
        if let Some(ticket) = self.ticket {
            if let Some(waiter) = queue.waiting.iter_mut().find(|waiter| waiter.ticket == ticket) {
                waiter.waker.clone_from(waker);
            }
        } else {
            let ticket = queue.next_ticket;
            let holds_a_part = self.charge.bytes > 0;
            let waiter = Waiter { ticket, holds_a_part, waker: waker.clone() };
            let place = if holds_a_part {
                queue.waiting.iter().take_while(|waiter| waiter.holds_a_part).count()
            } else {
                queue.waiting.len()
            };
            queue.waiting.insert(place, waiter);
            queue.next_ticket += 1;
            self.ticket = Some(ticket);
            self.charge.pool.0.contended.store(true, Ordering::Release);
        }
        queue.waiting.front().map(|first| first.ticket) == self.ticket
    }
}

impl Future for Grow<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let nobody_before = this.ticket.is_none() && !this.charge.pool.contended();
        if (nobody_before || this.charge.overdraft) && this.take() {
            this.leave_queue();
            return Poll::Ready(());
        }
        // The place is taken before the pool is asked again, so that bytes given back in between wake this task.
        if this.is_first(cx.waker()) && this.take() {
            this.leave_queue();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Grow<'_> {
    fn drop(&mut self) {
        self.leave_queue();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn poll(grow: &mut Grow<'_>, count: &Arc<Count>) -> bool {
        let waker = Waker::from(Arc::clone(count));
        Pin::new(grow).poll(&mut Context::from_waker(&waker)).is_ready()
    }

    #[test]
    fn bytes_come_back_when_the_charge_goes() {
        let pool = Pool::new(100);
        let mut charge = pool.empty_charge();
        assert!(charge.try_grow(100) && !charge.try_grow(1));
        assert_eq!((pool.used(), charge.bytes()), (100, 100));
        drop(charge);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn a_waiter_is_woken_from_another_thread_and_gets_its_turn_before_later_ones() {
        let pool = Pool::new(100);
        let mut held = pool.empty_charge();
        assert!(held.try_grow(90));
        let (first_woken, second_woken) = (Arc::<Count>::default(), Arc::<Count>::default());
        let (mut first, mut second) = (pool.empty_charge(), pool.empty_charge());
        let mut first_grow = first.grow(50);
        assert!(!poll(&mut first_grow, &first_woken));
        let mut second_grow = second.grow(1);
        assert!(!poll(&mut second_grow, &second_woken), "one byte would fit, but somebody was first");
        assert!(pool.contended());
        std::thread::spawn(move || drop(held)).join().unwrap();
        assert_eq!(first_woken.0.load(Ordering::SeqCst), 1);
        assert!(poll(&mut first_grow, &first_woken));
        drop(first_grow);
        assert_eq!(second_woken.0.load(Ordering::SeqCst), 1);
        assert!(poll(&mut second_grow, &second_woken));
        drop(second_grow);
        assert_eq!(pool.used(), 51);
        assert!(!pool.contended());
    }

    #[test]
    fn frames_that_hold_a_part_each_cannot_wait_for_each_other_for_ever() {
        let pool = Pool::new(100);
        let woken = Arc::<Count>::default();
        let (mut a, mut b) = (pool.empty_charge(), pool.empty_charge());
        assert!(a.try_grow(50) && b.try_grow(50));
        let mut a_grow = a.grow(50);
        assert!(poll(&mut a_grow, &woken), "the first overdraws");
        drop(a_grow);
        let mut b_grow = b.grow(50);
        assert!(!poll(&mut b_grow, &woken), "only one overdraft at a time");
        assert_eq!(pool.used(), 150);
        drop(a);
        assert!(poll(&mut b_grow, &woken));
        drop(b_grow);
        drop(b);
        assert_eq!(pool.used(), 0);
    }

    #[test]
    fn a_newcomer_does_not_keep_a_part_from_growing() {
        let pool = Pool::new(100);
        let woken = Arc::<Count>::default();
        let (mut part, mut newcomer) = (pool.empty_charge(), pool.empty_charge());
        assert!(part.try_grow(100));
        let mut newcomer_grow = newcomer.grow(1);
        assert!(!poll(&mut newcomer_grow, &woken));
        let mut part_grow = part.grow(10);
        assert!(poll(&mut part_grow, &woken));
        drop(part_grow);
        let mut part_grow = part.grow(10);
        assert!(poll(&mut part_grow, &woken), "who overdraws finishes");
    }

    #[test]
    fn a_newcomer_does_not_overdraw() {
        let pool = Pool::new(100);
        let woken = Arc::<Count>::default();
        let mut charge = pool.empty_charge();
        let mut grow = charge.grow(101);
        assert!(!poll(&mut grow, &woken));
        drop(grow);
        assert!(!pool.contended(), "who stops waiting leaves the queue");
    }

    #[test]
    fn what_was_taken_for_more_than_came_is_given_back() {
        let pool = Pool::new(100);
        let woken = Arc::<Count>::default();
        let mut charge = pool.empty_charge();
        assert!(charge.try_grow(100));
        let mut next = pool.empty_charge();
        let mut grow = next.grow(30);
        assert!(!poll(&mut grow, &woken));
        charge.settle(70);
        assert_eq!((woken.0.load(Ordering::SeqCst), charge.bytes()), (1, 70));
        assert!(poll(&mut grow, &woken));
        charge.settle(80);
        assert_eq!(pool.used(), 110, "what is there counts");
        drop((grow, charge));
        assert_eq!(pool.used(), 30);
    }

    #[test]
    fn forced_charges_close_the_gate() {
        let pool = Pool::new(100);
        let woken = Arc::<Count>::default();
        let forced = pool.force(101);
        let mut charge = pool.empty_charge();
        let mut grow = charge.grow(0);
        assert!(!poll(&mut grow, &woken));
        drop(forced);
        assert!(poll(&mut grow, &woken));
    }
}
