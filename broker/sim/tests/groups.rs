//! Consumer groups in bad weather, seed by seed.
//!
//! `GROUP_SEEDS=n` runs another number of them than two thousand.

use corelog_sim::groups::{Counts, run_seed};
use corelog_sim::seeds::run_all;

const SEEDS: u64 = 2_000;
/// These are run once more: the same seed is the same run.
const TWICE: usize = 20;

#[test]
fn every_group_keeps_every_promise() {
    let seeds = std::env::var("GROUP_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let outcomes = run_all(
        seeds,
        "make sim GROUPS=1 SEED=",
        |seed| run_seed(seed, false),
        |outcome| outcome.violation.clone(),
    );
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
