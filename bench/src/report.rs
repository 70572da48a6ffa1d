//! What is said of the runs: tables for people (Markdown, so that they can be pasted), JSON for programs.
//!
//! Called by `main`. Invariants: a table says the median and the spread of the repeats; rows name their durability class;
//! what is marked is said under the table.

use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::limits::Limits;
use crate::machine::{Machine, microseconds};
use crate::measure::{Latencies, Summary};
use crate::peer::Peer;
use crate::run::RunResult;
use crate::workload::{Load, Workload};

/// Version of the JSON's layout: raised when a field changes its meaning or goes.
pub const SCHEMA: &str = "corelog-bench/3";

/// Bytes of a request that count as a mebibyte: a thousand records of a kilobyte.
const LARGE_BYTES: usize = 1_000_000;
/// Share of fio's figure from which the strawman counts.
const CEILING_SHARE: f64 = 0.8;

/// Everything that was measured in one call.
#[derive(Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The command line.
    pub command: Vec<String>,
    /// Where.
    pub machine: Machine,
    /// What the machine gives without a broker.
    pub limits: Limits,
    /// What was run.
    pub workloads: Vec<Workload>,
    /// Each repeat of each workload, in the order in which they ran.
    pub runs: Vec<RunResult>,
}

/// Median, least and most of the repeats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    /// Of these values; none if there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }

    /// The middle one.
    #[must_use]
    pub const fn median(self) -> f64 {
        self.median
    }

    /// The least.
    #[must_use]
    pub const fn min(self) -> f64 {
        self.min
    }

    /// The most.
    #[must_use]
    pub const fn max(self) -> f64 {
        self.max
    }

    fn cell(spread: Option<Self>, digits: usize) -> String {
        let Some(Self { median, min, max }) = spread else { return "-".to_owned() };
        let number = |value: f64| grouped(value, digits);
        if number(min) == number(max) {
            return number(median);
        }
        format!("{} [{}-{}]", number(median), number(min), number(max))
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Self::cell(Some(*self), f.precision().unwrap_or_default()))
    }
}

/// A number with its thousands apart.
fn grouped(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, fraction) = text.split_once('.').map_or((&text[..], None), |(w, f)| (w, Some(f)));
    let mut out = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

impl Report {
    /// The whole text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.machine.lines() {
            _ = writeln!(text, "{line}");
        }
        for line in self.limits.lines().into_iter().chain(self.ceiling()) {
            _ = writeln!(text, "{line}");
        }
        if self.is_of_kills() {
            _ = writeln!(text, "\n{KILLS_CAPTION}\n");
            text.push_str(&table(&KILLS, &self.kills()));
        } else {
            _ = writeln!(
                text,
                "\nMedian [least-most] of the repeats; latencies in microseconds, from the intended time.\n"
            );
            text.push_str(&table(&FIGURES, &self.rows(|workload, runs| self.figures(workload, runs))));
            _ = writeln!(text, "\nAudit: what the device and the processors did meanwhile.\n");
            text.push_str(&table(&AUDIT, &self.rows(Self::audit)));
            let consumers = self.consumers();
            if !consumers.is_empty() {
                _ = writeln!(text, "\nConsumers: {CONSUMERS_CAPTION}\n");
                text.push_str(&table(&CONSUMERS, &consumers));
            }
        }
        text.push('\n');
        for (workload, runs) in self.groups() {
            let valid = runs.iter().filter(|run| run.is_valid());
            let (count, records) =
                valid.fold((0, 0), |(count, records), run| (count + 1, records + run.verdict.acknowledged));
            _ = writeln!(
                text,
                "{}, {}: {count} of {} runs valid: {records} acknowledged records read once, in order",
                workload.name,
                peer_of(&runs),
                runs.len()
            );
            for run in runs {
                for mark in &run.marks {
                    _ = writeln!(text, "  repeat {}: {mark}", run.repeat + 1);
                }
            }
        }
        text
    }

    /// Whether the strawman may stand for the machine: what it does with four requests of a mebibyte in flight, against what
    /// fio does with one write and flush at a time. None if neither was measured.
    #[must_use]
    pub fn ceiling(&self) -> Option<String> {
        let fio = self.limits.fio.as_ref()?.mb_per_second;
        let large = |workload: &&Workload| {
            let bytes = workload.records.bytes.unwrap_or_default() * workload.records.per_request as usize;
            let four = matches!(workload.load, Load::Closed { connections, in_flight, .. } if connections * in_flight == 4);
            four && bytes >= LARGE_BYTES
        };
        let workload = self.workloads.iter().find(large)?;
        let runs = self.runs.iter().filter(|run| run.peer == Peer::Strawman && run.workload == workload.name);
        let share = Spread::of(runs.map(|run| run.mb_per_second))?.median() / fio;
        let counts = if share >= CEILING_SHARE { "counts" } else { "does NOT count" };
        Some(format!(
            "strawman   {share:.2} of fio's 1 MiB write and flush ({}): it {counts} as the machine's ceiling (from {CEILING_SHARE} on)",
            workload.name
        ))
    }

    /// Whether every run may be reported.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.runs.iter().all(RunResult::is_valid)
    }

    /// Whether brokers were killed: then the runs say what is left, and not how fast it was.
    #[must_use]
    pub fn is_of_kills(&self) -> bool {
        self.runs.iter().any(|run| run.killed.is_some())
    }

    /// Rows of [`KILLS`].
    #[must_use]
    pub fn kills(&self) -> Vec<Vec<String>> {
        self.rows(|workload, runs| {
            let sum = |of: fn(&RunResult) -> u64| -> String {
                let sum: u64 = runs.iter().map(|run| of(run)).sum();
                sum.to_string()
            };
            let ready = runs.iter().filter_map(|run| Some(run.killed.as_ref()?.ready_after_s));
            vec![
                workload.name.clone(),
                peer_of(runs).to_owned(),
                runs.first().map_or("", |run| run.class).to_owned(),
                runs.len().to_string(),
                sum(|run| run.killed.map_or(0, |killed| killed.unanswered)),
                sum(|run| run.verdict.acknowledged),
                sum(|run| run.verdict.lost),
                sum(|run| run.verdict.duplicated),
                sum(|run| run.verdict.disordered + run.verdict.misplaced + run.verdict.foreign),
                sum(|run| run.verdict.unacknowledged),
                Spread::cell(Spread::of(ready), 2),
            ]
        })
    }

    /// Runs of the same workload and peer, in the order of the workloads and of their first runs.
    pub fn groups(&self) -> impl Iterator<Item = (&Workload, Vec<&RunResult>)> {
        let mut peers: Vec<Peer> = Vec::new();
        for run in &self.runs {
            if !peers.contains(&run.peer) {
                peers.push(run.peer);
            }
        }
        self.workloads.iter().flat_map(move |workload| {
            let of = |&peer: &Peer| {
                let same = |run: &&RunResult| run.workload == workload.name && run.peer == peer;
                (workload, self.runs.iter().filter(same).collect())
            };
            peers.iter().map(of).collect::<Vec<_>>()
        })
    }

    fn rows(&self, row: impl Fn(&Workload, &[&RunResult]) -> Vec<String>) -> Vec<Vec<String>> {
        self.groups()
            .filter(|(_, runs)| !runs.is_empty())
            .map(|(workload, runs)| row(workload, &runs))
            .collect()
    }

    /// Throughput as a share of the strawman's, of the same workload and class.
    #[must_use]
    pub fn of_strawman(&self, runs: &[&RunResult]) -> Option<f64> {
        let first = runs.first()?;
        let same = |run: &&RunResult| {
            run.peer == Peer::Strawman && run.workload == first.workload && run.class == first.class
        };
        let strawman = Spread::of(self.runs.iter().filter(same).map(|run| run.mb_per_second))?;
        let own = Spread::of(runs.iter().map(|run| run.mb_per_second))?;
        Some(own.median / strawman.median)
    }

    fn figures(&self, workload: &Workload, runs: &[&RunResult]) -> Vec<String> {
        let each = |of: fn(&RunResult) -> Option<f64>, digits| {
            Spread::cell(Spread::of(runs.iter().filter_map(|run| of(run))), digits)
        };
        #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a latency")]
        let us = |ns: u64| ns as f64 / 1000.0;
        let latency = |of: fn(&RunResult) -> Option<u64>| {
            Spread::cell(Spread::of(runs.iter().filter_map(|run| of(run)).map(us)), 0)
        };
        let mut merged = Latencies::default();
        for run in runs {
            merged.merge(&run.latencies);
        }
        let tail = crate::measure::Percentile::P99_9.of(&merged.response);
        vec![
            workload.name.clone(),
            peer_of(runs).to_owned(),
            workload.load.line(),
            runs.first().map_or("", |run| run.class).to_owned(),
            each(|run| Some(run.mb_per_second), 1),
            self.of_strawman(runs).map_or_else(|| "-".to_owned(), |share| format!("{share:.2}")),
            each(|run| Some(run.records_per_second), 0),
            latency(|run| run.response.p50),
            latency(|run| run.response.p99),
            microseconds(tail),
            each(|run| run.device_same.as_ref().map(|device| device.mb_per_second), 0),
            each(|run| run.fio_same.as_ref().map(|fio| fio.mb_per_second), 0),
            runs.len().to_string(),
        ]
    }

    fn audit(workload: &Workload, runs: &[&RunResult]) -> Vec<String> {
        let each = |of: &dyn Fn(&RunResult) -> Option<f64>, digits| {
            Spread::cell(Spread::of(runs.iter().filter_map(|run| of(run))), digits)
        };
        #[expect(clippy::cast_precision_loss, reason = "counts of a run")]
        let float = |number: u64| number as f64;
        let requests = |run: &RunResult| run.requests_per_second * run.audit.seconds;
        vec![
            workload.name.clone(),
            peer_of(runs).to_owned(),
            each(&|run| Some(run.requests_per_second), 0),
            each(&|run| run.audit.device.map(|device| float(device.flushes) / run.audit.seconds), 0),
            each(&|run| run.acks_per_flush, 1),
            each(&|run| run.device_same.as_ref().map(|same| float(same.bytes as u64) / 1024.0), 0),
            each(&|run| run.write_amplification, 2),
            each(&|run| run.audit.broker_cpu_s.map(|cpu| cpu * 1e6 / requests(run)), 1),
            each(&|run| run.audit.broker_cpu_s.map(|cpu| cpu * 100.0 / run.audit.seconds), 0),
            each(&|run| Some(run.audit.generator_cpu_s * 100.0 / run.audit.seconds), 0),
            each(&|run| Some(run.audit.others_cpu_s * 100.0 / run.audit.seconds), 0),
            each(&|run| run.audit.broker_rss_peak_bytes.map(|bytes| float(bytes) / 1e6), 0),
            each(&|run| Some(run.read_back_mb_per_second), 0),
        ]
    }
}

/// Titles of [`Report::kills`].
pub const KILLS: [&str; 11] = [
    "workload",
    "peer",
    "class",
    "kills",
    "requests unanswered",
    "records acknowledged",
    "lost",
    "twice",
    "displaced",
    "there unacknowledged",
    "ready again, s",
];

/// What is to be known of consumers.
pub const CONSUMERS_CAPTION: &str = "End to end is from a record's intended time to its consumer, in microseconds. Lagging ones \
    read another topic beside the load.";

/// What is to be known of a kill.
pub const KILLS_CAPTION: &str = "Each broker was killed (SIGKILL) under load, started again on what it left, and every record \
    read. A kill leaves what the kernel holds: it takes a power cut to lose what was never flushed.";

impl Report {
    /// Rows of [`CONSUMERS`], of the workloads that have some.
    #[must_use]
    pub fn consumers(&self) -> Vec<Vec<String>> {
        self.rows(Self::readers).into_iter().filter(|row| !row.is_empty()).collect()
    }

    /// A row of [`CONSUMERS`]; empty for a workload without consumers.
    fn readers(workload: &Workload, runs: &[&RunResult]) -> Vec<String> {
        if runs.iter().all(|run| run.followed.is_none() && run.drained.is_none() && run.lagged.is_none()) {
            return Vec::new();
        }
        #[expect(clippy::cast_precision_loss, reason = "for a table")]
        let float = |number: u64| number as f64;
        let each = |of: &dyn Fn(&RunResult) -> Option<f64>, digits| {
            Spread::cell(Spread::of(runs.iter().filter_map(|run| of(run))), digits)
        };
        let mut merged = crate::measure::histogram();
        for followed in runs.iter().filter_map(|run| run.followed.as_ref()) {
            // Cannot fail: all have the same bounds.
            _ = merged.add(&followed.latencies);
        }
        let end_to_end = |of: fn(&Summary) -> Option<u64>| {
            move |run: &RunResult| Some(float(of(&run.followed.as_ref()?.end_to_end)?) / 1000.0)
        };
        let readers = workload.readers;
        let drained = |run: &RunResult| Some(run.drained.as_ref()?.mb_per_second);
        vec![
            workload.name.clone(),
            peer_of(runs).to_owned(),
            runs.first().map_or("", |run| run.class).to_owned(),
            readers.following.to_string(),
            each(&|run| run.response.p50.map(|p50| float(p50) / 1000.0), 0),
            each(&end_to_end(|summary| summary.p50), 0),
            each(&end_to_end(|summary| summary.p99), 0),
            microseconds(crate::measure::Percentile::P99_9.of(&merged)),
            format!("{}{}", readers.draining, if readers.cold { " cold" } else { "" }),
            each(&drained, 0),
            each(
                &|run| {
                    let drained = run.drained.as_ref()?;
                    Some(drained.audit.broker_cpu_s? * 1e9 / float(drained.followed.bytes) * 1024.0 / 1e3)
                },
                3,
            ),
            each(&|run| run.drained.as_ref()?.audit.device.map(|device| float(device.bytes_read) / 1e6), 0),
            readers.lagging.to_string(),
            each(&|run| Some(float(run.lagged.as_ref()?.bytes) / 1e6 / run.audit.seconds), 0),
            each(
                &|run| run.lagged.as_ref().and(run.audit.device).map(|device| float(device.bytes_read) / 1e6),
                0,
            ),
        ]
    }
}

/// Whose runs these are.
fn peer_of(runs: &[&RunResult]) -> &'static str {
    runs.first().map_or("", |run| run.peer.name())
}

const FIGURES: [&str; 13] = [
    "workload",
    "peer",
    "load",
    "class",
    "MB/s",
    "of strawman",
    "records/s",
    "p50",
    "p99",
    "p99.9 (merged)",
    "device, same flushes, MB/s",
    "fio, same, MB/s",
    "repeats",
];

const AUDIT: [&str; 13] = [
    "workload",
    "peer",
    "requests/s",
    "flushes/s",
    "acks/flush",
    "KiB/flush",
    "bytes written/payload",
    "broker us/request",
    "broker CPU %",
    "generator CPU %",
    "others CPU %",
    "peak RSS MB",
    "read back MB/s",
];

/// Titles of [`Report::consumers`].
pub const CONSUMERS: [&str; 15] = [
    "workload",
    "peer",
    "class",
    "following",
    "produce p50",
    "end to end p50",
    "p99",
    "p99.9 (merged)",
    "draining",
    "drained MB/s",
    "broker us/KiB",
    "device read MB",
    "lagging",
    "they read MB/s",
    "device read MB meanwhile",
];

/// A Markdown table, aligned for the terminal.
fn table(titles: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([titles[column].chars().count()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &[String]| {
        for (column, width) in widths.iter().enumerate() {
            let cell = cells.get(column).map_or("", String::as_str);
            if column < 1 {
                _ = write!(text, "| {cell:<width$} ");
            } else {
                _ = write!(text, "| {cell:>width$} ");
            }
        }
        text.push_str("|\n");
    };
    line(&titles.iter().map(|&title| title.to_owned()).collect::<Vec<_>>());
    let rules = |column: usize| {
        let dashes = "-".repeat(widths[column].saturating_sub(1));
        if column < 1 { format!("{dashes}-") } else { format!("{dashes}:") }
    };
    line(&(0..titles.len()).map(rules).collect::<Vec<_>>());
    for row in rows {
        line(row);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_a_median_and_the_ends() {
        let spread = Spread::of([5.0, 1.0, 3.0]).unwrap();
        assert_eq!(spread, Spread { median: 3.0, min: 1.0, max: 5.0 });
        assert_eq!(Spread::of([1.0, 2.0]), Some(Spread { median: 1.5, min: 1.0, max: 2.0 }));
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::cell(Some(spread), 1), "3.0 [1.0-5.0]");
        assert_eq!(Spread::cell(Spread::of([2.0]), 0), "2");
        assert_eq!(Spread::cell(None, 0), "-");
    }

    #[test]
    fn thousands_are_apart() {
        assert_eq!(grouped(0.0, 0), "0");
        assert_eq!(grouped(999.0, 0), "999");
        assert_eq!(grouped(1_234_567.25, 1), "1,234,567.2");
        assert_eq!(grouped(-1234.0, 0), "-1,234");
        assert_eq!(grouped(-123.0, 0), "-123");
    }

    #[test]
    fn a_table_is_aligned_markdown() {
        let text = table(&["a", "long"], &[vec!["xyz".to_owned(), "1".to_owned()]]);
        assert_eq!(text, "| a   | long |\n| --- | ---: |\n| xyz |    1 |\n");
    }
}
