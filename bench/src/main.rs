//! The program: parses the command line and ends with a code.

use std::process::ExitCode;

use clap::Parser;

use corelog_bench::args::{Arguments, Command, CompareArguments};
use corelog_bench::error::Error;
use corelog_bench::{compaction, compare, groups, ramp, strawman, suite};

/// What the process ends with.
const INVALID: u8 = 3;

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(run) => suite::run(&run),
        Command::Suite(all) => suite::all(&all),
        Command::Ramp(search) => ramp::search(&search),
        Command::Groups(commits) => groups::run(&commits),
        Command::Compaction(updates) => compaction::run(&updates),
        Command::Limits(limits) => suite::limits(&limits).map(|()| true),
        Command::Compare(compare) => return compared(&compare),
        Command::Strawman(strawman) => strawman::serve(&strawman).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: a run is invalid: see the marks under the table");
            ExitCode::from(INVALID)
        }
        Err(error) => failed(&error),
    }
}

fn compared(arguments: &CompareArguments) -> ExitCode {
    match compare::files(&arguments.before, &arguments.after, arguments.tolerance) {
        Ok(comparison) => {
            print!("{}", comparison.text);
            if comparison.worse.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(if matches!(error, Error::Setup(_)) { 2 } else { 1 })
}
