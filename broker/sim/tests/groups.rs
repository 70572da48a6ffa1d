//! Consumer groups in bad weather, seed by seed.
//!
//! `GROUP_SEEDS=n` runs another number of them than two thousand.

use corelog_sim::groups::{Counts, Outcome, run_seed};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

const SEEDS: u64 = 2_000;
const THREADS: usize = 2;
/// These are run once more: the same seed is the same run.
const TWICE: usize = 20;

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
                        panic!("a decision panicked; again with: make sim GROUPS=1 SEED={seed}")
                    });
                    if let Some(violation) = &outcome.violation {
                        failed.store(true, Ordering::Relaxed);
                        panic!("{violation}; again with: make sim GROUPS=1 SEED={seed}");
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
fn every_group_keeps_every_promise() {
    let seeds = std::env::var("GROUP_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let outcomes = run_all(seeds);
    assert_eq!(outcomes.len() as u64, seeds);
    let sum = |of: fn(&Counts) -> u64| outcomes.iter().map(|(_, outcome)| of(&outcome.counts)).sum::<u64>();
    let whole = Counts {
        given: sum(|counts| counts.given),
        repeated: sum(|counts| counts.repeated),
        moved: sum(|counts| counts.moved),
        committed: sum(|counts| counts.committed),
        lost: sum(|counts| counts.lost),
        lives: sum(|counts| counts.lives),
        members: sum(|counts| counts.members),
    };
    println!("{seeds} seeds: {whole}");
    // A simulator that does nothing finds nothing.
    assert!(whole.given > 50 * seeds && whole.committed > 20 * seeds, "{whole}");
    assert!(whole.moved > 5 * seeds && whole.repeated > seeds, "{whole}");
    assert!(whole.lives > 2 * seeds && whole.members > 4 * seeds, "{whole}");
    for (seed, first) in outcomes.iter().take(TWICE) {
        assert_eq!(run_seed(*seed, false).hash, first.hash, "seed {seed} is not the same run twice");
    }
}
