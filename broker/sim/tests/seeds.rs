//! The seeds: each a virtual minute of clients and troubles, judged by the checker.
//!
//! `SIM_SEEDS=n` runs another number of them than two thousand.

use corelog_sim::plan::TROUBLE;
use corelog_sim::{Outcome, run_seed};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

const SEEDS: u64 = 2_000;
const THREADS: usize = 2;
/// These are run once more: the same seed is the same run.
const TWICE: u64 = 50;

/// Runs the seeds on all threads, each seed whole on one of them. Ends at the first failure.
fn run_all(seeds: u64) -> Vec<(u64, Outcome)> {
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
                    let outcome = catch_unwind(|| run_seed(seed, false)).unwrap_or_else(|_| {
                        failed.store(true, Ordering::Relaxed);
                        panic!("a decision panicked; again with: make sim SEED={seed}")
                    });
                    if let Some(violation) = &outcome.violation {
                        failed.store(true, Ordering::Relaxed);
                        panic!("{violation}; again with: make sim SEED={seed}");
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

#[test]
fn every_seed_keeps_every_promise() {
    let seeds = std::env::var("SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let outcomes = run_all(seeds);
    assert_eq!(outcomes.len() as u64, seeds);
    // A simulator that does nothing finds nothing.
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(|(_, outcome)| of(outcome)).sum::<u64>();
    assert!(sum(|outcome| outcome.counts.acked) > 500 * seeds, "batches are acknowledged");
    assert!(sum(|outcome| outcome.counts.read) > 2_000 * seeds, "batches are read");
    assert!(sum(|outcome| outcome.counts.refused) > seeds, "batches are refused");
    assert!(sum(|outcome| outcome.starts) > 3 * seeds, "the broker is started again");
    let short = outcomes.iter().filter(|(_, outcome)| outcome.lasted < TROUBLE).count() as u64;
    assert!(short <= seeds / 20, "{short} of {seeds} runs ended before their minute was over");
    if seeds >= 500 {
        assert!(sum(|outcome| outcome.verdicts.0) > seeds / 10, "tails are torn");
        assert!(sum(|outcome| outcome.verdicts.1) > seeds / 500, "journals are corrupt");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..TWICE {
        let (first, second) = (run_seed(seed, false), run_seed(seed, false));
        assert_eq!(first, second, "seed {seed} is not one run");
    }
    let (one, other) = (run_seed(1, false), run_seed(2, false));
    assert_ne!(one.hash, other.hash, "another seed is another run");
}
