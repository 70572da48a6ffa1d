//! Virtual time: one queue of events, two clocks.
//!
//! Events of the same instant come in an order drawn from the seed, so that no test depends on an order that a real
//! machine would not keep. The monotonic clock moves only forward, from event to event; the wall clock may jump.

use crate::rng::Rng;
use corelog_core::time::{Instant, Now};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// One microsecond in nanoseconds.
pub const MICROS: u64 = 1_000;
/// One millisecond in nanoseconds.
pub const MILLIS: u64 = 1_000_000;
/// One second in nanoseconds.
pub const SECONDS: u64 = 1_000_000_000;

/// Wall clock at the start of every run: 2026-01-01.
const WALL_START_MS: i64 = 1_767_225_600_000;

/// The queue and the clocks.
#[derive(Debug)]
pub struct World<E> {
    now: u64,
    wall_shift_ms: i64,
    queue: BinaryHeap<Due<E>>,
    arrivals: u64,
    rng: Rng,
}

#[derive(Debug)]
struct Due<E> {
    at: u64,
    tiebreak: u64,
    arrival: u64,
    event: E,
}

impl<E> World<E> {
    /// A world without events, at time 0.
    #[must_use]
    pub const fn new(rng: Rng) -> Self {
        Self { now: 0, wall_shift_ms: 0, queue: BinaryHeap::new(), arrivals: 0, rng }
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub const fn nanos(&self) -> u64 {
        self.now
    }

    /// Both clocks, as a step sees them.
    #[must_use]
    pub const fn now(&self) -> Now {
        Now {
            instant: Instant::from_nanos(self.now),
            wall_ms: WALL_START_MS + self.wall_shift_ms + (self.now / MILLIS) as i64,
        }
    }

    /// The wall clock jumps.
    pub fn jump_wall(&mut self, by_ms: i64) {
        self.wall_shift_ms += by_ms;
    }

    /// `event` happens `wait` nanoseconds from now.
    pub fn after(&mut self, wait: u64, event: E) {
        self.at(self.now + wait, event);
    }

    /// `event` happens at `at`, or now if that has passed.
    pub fn at(&mut self, at: u64, event: E) {
        self.arrivals += 1;
        let due = Due { at: at.max(self.now), tiebreak: self.rng.draw(), arrival: self.arrivals, event };
        self.queue.push(due);
    }

    /// Moves the clock to the next event and takes it, unless it is due after `end`.
    pub fn next_until(&mut self, end: u64) -> Option<E> {
        if self.queue.peek()?.at > end {
            return None;
        }
        let due = self.queue.pop()?;
        self.now = due.at;
        Some(due.event)
    }
}

impl<E> Ord for Due<E> {
    // Reversed: the heap gives its largest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.tiebreak, other.arrival).cmp(&(self.at, self.tiebreak, self.arrival))
    }
}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Due<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_of_time() {
        let mut world = World::new(Rng::new(1));
        for (at, name) in [(30, 'c'), (10, 'a'), (20, 'b'), (99, 'z')] {
            world.at(at, name);
        }
        let seen: Vec<char> = std::iter::from_fn(|| world.next_until(50)).collect();
        assert_eq!(seen, ['a', 'b', 'c']);
        assert_eq!(world.nanos(), 30);
    }

    #[test]
    fn ties_are_broken_by_the_seed() {
        let order = |seed| {
            let mut world = World::new(Rng::new(seed));
            for number in 0..16 {
                world.at(5, number);
            }
            std::iter::from_fn(|| world.next_until(5)).collect::<Vec<i32>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }
}
