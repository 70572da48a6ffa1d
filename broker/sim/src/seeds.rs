//! Many seeds at once, for the tests: each whole on one of a few threads, up to the first that fails.

use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

const THREADS: usize = 2;

/// Runs the seeds below `seeds`; gives what became of each, by seed.
///
/// # Panics
/// With the first violation, and how to come back to it: `again` followed by the seed.
pub fn run_all<O: Send>(
    seeds: u64,
    again: &str,
    run: fn(u64) -> O,
    violation: fn(&O) -> Option<String>,
) -> Vec<(u64, O)> {
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let outcomes = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let outcome = catch_unwind(|| run(seed)).unwrap_or_else(|_| {
                        failed.store(true, Ordering::Relaxed);
                        panic!("a decision panicked; again with: {again}{seed}")
                    });
                    if let Some(violation) = violation(&outcome) {
                        failed.store(true, Ordering::Relaxed);
                        panic!("{violation}; again with: {again}{seed}");
                    }
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push((seed, outcome));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcomes.sort_unstable_by_key(|(seed, _)| *seed);
    outcomes
}
