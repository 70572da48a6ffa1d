//! Replays seeds: `corelog-sim [--seed N] [--seeds A..B] [--trace]`.
//!
//! Without arguments: a hundred seeds. Ends with 1 at the first seed that violates a promise.

use corelog_sim::{Plan, run_seed};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

const USAGE: &str = "usage: corelog-sim [--seed N] [--seeds A..B] [--trace]";

struct Arguments {
    seeds: Range<u64>,
    trace: bool,
}

fn parse(arguments: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut parsed = Arguments { seeds: 0..100, trace: false };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--trace" => parsed.trace = true,
            "--seed" => {
                let seed: u64 = arguments.next()?.parse().ok()?;
                parsed.seeds = seed..seed.checked_add(1)?;
            }
            "--seeds" => {
                let range = arguments.next()?;
                let (from, to) = range.split_once("..")?;
                parsed.seeds = from.parse().ok()?..to.parse().ok()?;
            }
            _ => return None,
        }
    }
    Some(parsed)
}

/// The seed that is running.
static SEED: AtomicU64 = AtomicU64::new(0);

/// An assertion of the broker's decisions ends the process; say first how to come back here.
#[expect(clippy::print_stdout, reason = "it is a command")]
fn tell_the_seed_of_a_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        report(what);
        println!("again with: make sim SEED={}", SEED.load(Ordering::Relaxed));
    }));
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]
fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    tell_the_seed_of_a_panic();
    for seed in arguments.seeds {
        SEED.store(seed, Ordering::Relaxed);
        if arguments.trace {
            println!("{:#?}", Plan::draw(seed));
        }
        let outcome = run_seed(seed, arguments.trace);
        println!(
            "seed {seed}: hash {:016x}, {} events, {} acked, {} read, {} refused, {} starts, {} torn, {} corrupt",
            outcome.hash,
            outcome.events,
            outcome.counts.acked,
            outcome.counts.read,
            outcome.counts.refused,
            outcome.starts,
            outcome.verdicts.0,
            outcome.verdicts.1,
        );
        if let Some(violation) = outcome.violation {
            println!("FAILED: {violation}\nagain with: make sim SEED={seed}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
