//! Replays seeds: `corelog-sim [--groups] [--seed N] [--seeds A..B] [--trace] [--corpus ROOT]`.
//!
//! Without arguments: a hundred seeds; with `--groups`, of consumer groups. Ends with 1 at the first seed that violates a promise. With `--corpus`, pieces of
//! each seed's disk go to the fuzz targets of the repository at ROOT.

use corelog_sim::corpus::Corpus;
use corelog_sim::{Plan, Sim, groups};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const USAGE: &str = "usage: corelog-sim [--groups] [--seed N] [--seeds A..B] [--trace] [--corpus ROOT]";

struct Arguments {
    seeds: Range<u64>,
    trace: bool,
    groups: bool,
    corpus: Option<PathBuf>,
}

fn parse(arguments: impl Iterator<Item = String>) -> Option<Arguments> {
    let mut parsed = Arguments { seeds: 0..100, trace: false, groups: false, corpus: None };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--trace" => parsed.trace = true,
            "--groups" => parsed.groups = true,
            "--corpus" => parsed.corpus = Some(arguments.next()?.into()),
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

/// Whether it is one of groups.
static GROUPS: AtomicBool = AtomicBool::new(false);

/// An assertion of the broker's decisions ends the process; say first how to come back here.
#[expect(clippy::print_stdout, reason = "it is a command")]
fn tell_the_seed_of_a_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        report(what);
        let groups = if GROUPS.load(Ordering::Relaxed) { "GROUPS=1 " } else { "" };
        println!("again with: make sim {groups}SEED={}", SEED.load(Ordering::Relaxed));
    }));
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a command")]
fn main() -> ExitCode {
    let Some(arguments) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    tell_the_seed_of_a_panic();
    if arguments.groups {
        GROUPS.store(true, Ordering::Relaxed);
        return run_groups(arguments.seeds, arguments.trace);
    }
    for seed in arguments.seeds {
        SEED.store(seed, Ordering::Relaxed);
        if arguments.trace {
            println!("{:#?}", Plan::draw(seed));
        }
        let mut sim = Sim::new(Plan::draw(seed), arguments.trace);
        let outcome = sim.run();
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
        if let Some(root) = &arguments.corpus
            && let Err(error) = write_corpus(root, seed, &Corpus::of(sim.disk()))
        {
            eprintln!("corelog-sim: {}: {error}", root.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

#[expect(clippy::print_stdout, reason = "it is a command")]
fn run_groups(seeds: Range<u64>, trace: bool) -> ExitCode {
    for seed in seeds {
        SEED.store(seed, Ordering::Relaxed);
        let plan = groups::Plan::draw(seed);
        if trace {
            println!("{plan:#?}");
        }
        let outcome = groups::Sim::new(plan, trace).run();
        println!("seed {seed}: hash {:016x}, {}", outcome.hash, outcome.counts);
        if let Some(violation) = outcome.violation {
            println!("FAILED: {violation}\nagain with: make sim GROUPS=1 SEED={seed}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn write_corpus(root: &Path, seed: u64, corpus: &Corpus) -> io::Result<()> {
    for (number, (folder, bytes)) in corpus.iter().enumerate() {
        std::fs::write(root.join(folder).join(format!("sim-{seed}-{number:02}")), bytes)?;
    }
    Ok(())
}
