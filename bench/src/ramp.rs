//! The search for the highest rate that a peer keeps up with: an open loop whose rate doubles until the 99th percentile is
//! over the target or a backlog grows, then the middle between what held and what did not, until they are close.
//!
//! Called by `main`. Invariants: a rate holds only if its 99th percentile has the samples to be claimed; peers take turns at
//! each rate of their own search, none sees another's.

use std::time::Duration;

use crate::args::RampArguments;
use crate::error::{Error, Result};
use crate::measure::nanoseconds;
use crate::run::RunResult;
use crate::stage::Stage;
use crate::workload::{Load, Workload};

/// Requests of a step, so that a 99th percentile may be claimed.
const REQUESTS_MIN: f64 = 20_000.0;
/// Steps of one search at most.
const STEPS_MAX: u32 = 24;

/// Searches for each peer; whether all runs were valid.
///
/// # Errors
/// [`Error`] if a run could not be made; [`Error::Setup`] if the workload has no open loop.
pub fn search(arguments: &RampArguments) -> Result<bool> {
    let workload = Workload::read(&arguments.file)?;
    let Load::Open { rate: from, .. } = workload.load else {
        return Err(Error::Setup(format!("{} has no open loop, whose rate could be raised", workload.name)));
    };
    let target = Duration::try_from_secs_f64(arguments.p99_ms / 1000.0)
        .map_err(|_| Error::Setup(format!("{} ms is no time", arguments.p99_ms)))?;
    if !(arguments.within > 0.0 && arguments.within < 1.0) {
        return Err(Error::Setup(format!("--within is a share between 0 and 1, not {}", arguments.within)));
    }
    let mut stage = Stage::set(&arguments.place, &arguments.subjects, None)?;
    let mut found = Vec::new();
    for subject in 0..stage.subjects.len() {
        let mut search = Search::new(from, arguments.within);
        while let Some(rate) = search.next() {
            let step = at_rate(&workload, rate);
            let name = stage.subjects[subject].peer().name();
            eprint!("{} {name} ... ", step.name);
            let result = stage.run(&step, search.steps, subject, 1)?;
            search.tried(rate, holds(result, target));
            if !stage.report.workloads.iter().any(|other| other.name == step.name) {
                stage.report.workloads.push(step);
            }
        }
        found.push((stage.subjects[subject].peer().name(), search));
    }
    let valid = stage.publish(&arguments.output)?;
    println!("\nHighest rate with 99% within {} ms and no growing backlog:\n", arguments.p99_ms);
    for (name, search) in found {
        match (search.holds, search.fails) {
            (Some(holds), Some(fails)) => println!("{name}: {holds:.0}/s ({fails:.0}/s was too much)"),
            (Some(holds), None) => println!("{name}: {holds:.0}/s, and more: the search ended there"),
            (None, _) => println!("{name}: none from {from:.0}/s down to {:.0}/s", search.rate),
        }
    }
    Ok(valid)
}

/// The workload at another rate, with a name of its own, for as long as it takes to claim its 99th percentile.
fn at_rate(workload: &Workload, rate: f64) -> Workload {
    let mut step = workload.clone();
    step.name = format!("{}@{rate:.0}", workload.name);
    if let Load::Open { rate: intended, .. } = &mut step.load {
        *intended = rate;
    }
    step.time.measured_s = step.time.measured_s.max(REQUESTS_MIN / rate);
    step
}

fn holds(result: &RunResult, target: Duration) -> bool {
    let within = result.response.p99.is_some_and(|p99| p99 <= nanoseconds(target));
    within && result.is_valid() && result.refused == 0 && !result.is_overloaded()
}

/// What is known of one peer.
#[derive(Debug)]
struct Search {
    rate: f64,
    within: f64,
    holds: Option<f64>,
    fails: Option<f64>,
    steps: u32,
}

impl Search {
    const fn new(from: f64, within: f64) -> Self {
        Self { rate: from, within, holds: None, fails: None, steps: 0 }
    }

    /// The next rate to try; none when it is known well enough.
    fn next(&mut self) -> Option<f64> {
        self.rate = match (self.holds, self.fails) {
            (None, None) => self.rate,
            (Some(holds), None) => holds * 2.0,
            (None, Some(fails)) => fails / 2.0,
            (Some(holds), Some(fails)) => f64::midpoint(holds, fails),
        };
        let known = matches!((self.holds, self.fails), (Some(holds), Some(fails)) if fails - holds <= holds * self.within);
        (!known && self.steps < STEPS_MAX && (1.0..=1e6).contains(&self.rate)).then_some(self.rate)
    }

    fn tried(&mut self, rate: f64, holds: bool) {
        self.steps += 1;
        *(if holds { &mut self.holds } else { &mut self.fails }) = Some(rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(from: f64, limit: f64) -> Search {
        let mut search = Search::new(from, 0.05);
        while let Some(rate) = search.next() {
            search.tried(rate, rate <= limit);
        }
        search
    }

    #[test]
    fn the_limit_is_found_from_below_and_from_above() {
        for from in [100.0, 7_000.0, 900_000.0] {
            let found = search(from, 12_345.0);
            let (holds, fails) = (found.holds.unwrap(), found.fails.unwrap());
            assert!(holds <= 12_345.0 && fails > 12_345.0 && fails <= holds * 1.05, "{found:?}");
        }
    }

    #[test]
    fn a_search_without_an_end_ends() {
        let all = search(1000.0, f64::INFINITY);
        assert!(all.fails.is_none() && all.holds.unwrap() > 500_000.0, "{all:?}");
        let none = search(1000.0, 0.0);
        assert!(none.holds.is_none() && none.steps <= STEPS_MAX, "{none:?}");
    }
}
