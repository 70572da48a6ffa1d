//! The seeds: each a virtual minute of clients and troubles, judged by the checker.
//!
//! `SIM_SEEDS=n` runs another number of them than two thousand.

use corelog_sim::plan::TROUBLE;
use corelog_sim::seeds::run_all;
use corelog_sim::{Outcome, run_seed};

const SEEDS: u64 = 2_000;
/// These are run once more: the same seed is the same run.
const TWICE: u64 = 50;

#[test]
fn every_seed_keeps_every_promise() {
    let seeds = std::env::var("SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let outcomes = run_all(
        seeds,
        "make sim SEED=",
        |seed| run_seed(seed, false),
        |outcome| outcome.violation.as_ref().map(ToString::to_string),
    );
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
