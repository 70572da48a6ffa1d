//! Two reports side by side: ratios of medians, and whether the second is worse.
//!
//! Called by `main`. Invariants: rows of different durability classes are not compared, nor are invalid runs; a difference
//! counts as worse only if it is beyond the tolerance and the repeats of the two do not overlap.

use std::fmt::Write as _;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Doing, Error, Result};
use crate::report::{SCHEMA, Spread};

/// The part of a report that is compared.
#[derive(Debug, Deserialize)]
struct Report {
    schema: String,
    runs: Vec<Run>,
}

#[derive(Debug, Deserialize)]
struct Run {
    workload: String,
    peer: String,
    class: String,
    mb_per_second: f64,
    response: Response,
    marks: Vec<String>,
}

impl Run {
    /// What must be the same in both reports.
    fn name(&self) -> (&str, &str) {
        (&self.workload, &self.peer)
    }
}

#[derive(Debug, Deserialize)]
struct Response {
    p50: Option<u64>,
    p99: Option<u64>,
}

/// A name, whether more is better, and how it is read off a run.
type Measure = (&'static str, bool, fn(&Run) -> Option<f64>);

/// What is compared.
const MEASURES: [Measure; 3] = [
    ("MB/s", true, |run| Some(run.mb_per_second)),
    ("p50 us", false, |run| run.response.p50.map(us)),
    ("p99 us", false, |run| run.response.p99.map(us)),
];

/// What a comparison found.
#[derive(Debug)]
pub struct Comparison {
    /// A table.
    pub text: String,
    /// What is worse in the second report.
    pub worse: Vec<String>,
}

/// Compares the reports in two files.
///
/// # Errors
/// [`Error::Setup`] if one is not a report of this version, or has an invalid run.
pub fn files(before: &Path, after: &Path, tolerance: f64) -> Result<Comparison> {
    compare(&read(before)?, &read(after)?, tolerance)
}

fn read(path: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(path).doing(|| format!("reading {}", path.display()))?;
    parse(&text).map_err(|reason| Error::Setup(format!("{}: {reason}", path.display())))
}

fn parse(text: &str) -> std::result::Result<Report, String> {
    let report: Report = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if report.schema != SCHEMA {
        return Err(format!("is a report of schema {}, this program reads {SCHEMA}", report.schema));
    }
    let invalid = report.runs.iter().find(|run| run.marks.iter().any(|mark| mark.starts_with("INVALID")));
    match invalid {
        Some(run) => Err(format!("a run of {} is invalid", run.workload)),
        None => Ok(report),
    }
}

fn compare(before: &Report, after: &Report, tolerance: f64) -> Result<Comparison> {
    let mut comparison = Comparison { text: String::new(), worse: Vec::new() };
    let mut names: Vec<(&str, &str)> = Vec::new();
    for run in &before.runs {
        if !names.contains(&run.name()) {
            names.push(run.name());
        }
    }
    for name in names {
        let of = |report: &'_ Report| -> Vec<usize> {
            (0..report.runs.len()).filter(|&index| report.runs[index].name() == name).collect()
        };
        let name = format!("{}, {}", name.0, name.1);
        let (one, two) = (of(before), of(after));
        let (Some(&first), Some(&second)) = (one.first(), two.first()) else {
            _ = writeln!(comparison.text, "{name}: not in the second report");
            continue;
        };
        let (class, other) = (&before.runs[first].class, &after.runs[second].class);
        if class != other {
            return Err(Error::Setup(format!("{name}: {class} and {other} are not compared")));
        }
        for (measure, more_is_better, value) in MEASURES {
            let spread = |report: &Report, indices: &[usize]| {
                Spread::of(indices.iter().filter_map(|&index| value(&report.runs[index])))
            };
            let (Some(a), Some(b)) = (spread(before, &one), spread(after, &two)) else { continue };
            let line = format!("{name}: {measure} {a:.1} -> {b:.1}, ratio {:.3}", b.median() / a.median());
            if is_worse(a, b, more_is_better, tolerance) {
                _ = writeln!(comparison.text, "{line}  WORSE");
                comparison.worse.push(line);
            } else {
                _ = writeln!(comparison.text, "{line}");
            }
        }
    }
    Ok(comparison)
}

/// Whether `b` is worse than `a` by more than the tolerance and by more than their repeats differ among themselves.
fn is_worse(a: Spread, b: Spread, more_is_better: bool, tolerance: f64) -> bool {
    if more_is_better {
        b.median() < a.median() * (1.0 - tolerance) && b.max() < a.min()
    } else {
        b.median() > a.median() * (1.0 + tolerance) && b.min() > a.max()
    }
}

#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a latency")]
fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(class: &str, rates: &[f64], p50: u64, mark: &str) -> String {
        let marks = if mark.is_empty() { "[]".to_owned() } else { format!("[\"{mark}\"]") };
        let runs: Vec<String> = rates
            .iter()
            .map(|rate| {
                format!(
                    r#"{{"workload":"w","peer":"corelog","class":"{class}","mb_per_second":{rate},
                    "response":{{"p50":{p50},"p99":null,"max":1}},"marks":{marks}}}"#
                )
            })
            .collect();
        format!(r#"{{"schema":"{SCHEMA}","runs":[{}]}}"#, runs.join(","))
    }

    fn worse(a: &str, b: &str) -> usize {
        compare(&parse(a).unwrap(), &parse(b).unwrap(), 0.1).unwrap().worse.len()
    }

    #[test]
    fn a_clear_loss_is_worse_and_noise_is_not() {
        let base = report("flushed", &[100.0, 102.0, 98.0], 1000, "");
        assert_eq!(worse(&base, &report("flushed", &[80.0, 82.0, 78.0], 1000, "")), 1);
        assert_eq!(worse(&base, &report("flushed", &[95.0, 97.0, 93.0], 1000, "")), 0);
        // A median beyond the tolerance whose repeats overlap.
        assert_eq!(worse(&base, &report("flushed", &[80.0, 99.0, 78.0], 1000, "")), 0);
        assert_eq!(worse(&base, &report("flushed", &[100.0], 1200, "")), 1);
        assert_eq!(worse(&base, &report("flushed", &[200.0], 500, "")), 0);
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let base = parse(&report("flushed", &[100.0], 1000, "")).unwrap();
        let memory = parse(&report("memory", &[100.0], 1000, "")).unwrap();
        assert!(compare(&base, &memory, 0.1).is_err());
        assert!(parse(&report("flushed", &[1.0], 1, "INVALID: 3 lost")).is_err());
        assert!(parse(&report("flushed", &[1.0], 1, "").replace(SCHEMA, "corelog-bench/1")).is_err());
        assert!(parse("{}").is_err());
    }
}
