//! The report as one file to look at, with its charts within: nothing is loaded from elsewhere.
//!
//! Called by `suite`. Invariants: curves end where fewer than 100 samples lie beyond; rows of different durability classes
//! are in different lists; what a run is marked with is shown beside it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;

use crate::chart::{Axis, Scale, Series, escaped, svg};
use crate::measure::{Latencies, SAMPLES_BEYOND_MIN};
use crate::peer::Peer;
use crate::report::{CONSUMERS, CONSUMERS_CAPTION, KILLS, KILLS_CAPTION, Report, Spread};
use crate::run::{RunResult, Second};
use crate::workload::{Load, Workload};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1320px;margin:2rem auto;padding:0 1rem;color:#222}\
    h2{margin-top:3rem;border-top:1px solid #ddd;padding-top:1rem}pre{background:#f6f6f6;padding:1rem;overflow:auto}\
    table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #ddd}\
    th:first-child,td:first-child{text-align:left}.charts{display:grid;grid-template-columns:1fr 1fr;gap:1.5rem}\
    figure{margin:0}figcaption{font-weight:600}svg{width:100%;font:11px system-ui,sans-serif}.grid{stroke:#e4e4e4;fill:none}\
    .axis{fill:#555}.line{fill:none;stroke-width:2}.key{display:inline-block;width:1.2em;height:.8em;margin-right:.4em}\
    .mark{color:#a40000;margin:.2rem 0}small{display:block;color:#777;white-space:nowrap}@media(max-width:900px){.charts{grid-template-columns:1fr}}";

/// Nines of a percentile axis: 1/(1-q), so that each nine is as wide.
const NINES: [(f64, &str); 6] =
    [(1.0, "0%"), (10.0, "90%"), (100.0, "99%"), (1e3, "99.9%"), (1e4, "99.99%"), (1e5, "99.999%")];

const fn colour(peer: Peer) -> &'static str {
    match peer {
        Peer::Corelog => "#0b62c4",
        Peer::Strawman => "#777777",
        Peer::RedisAlways => "#c0392b",
        Peer::RedisEverysec => "#e59866",
        Peer::Nats => "#27ae60",
        Peer::Kafka => "#b08cd9",
        Peer::KafkaFlush => "#6c3483",
    }
}

/// The whole file.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut out = String::from("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">");
    _ = write!(out, "<title>corelog-bench</title><style>{STYLE}</style><h1>corelog-bench</h1>");
    _ = write!(out, "<pre>{}</pre>", escaped(&head(report).join("\n")));
    _ = write!(out, "<pre>{}</pre>", escaped(&report.command.join(" ")));
    out.push_str(
        "<p>Latencies are from the intended time of sending, in microseconds. Every acknowledged record was read back \
         and checked. Medians of the repeats, with the least and the most; rows of different durability are not \
         ranked.</p>",
    );
    if report.is_of_kills() {
        table(&mut out, "Kills", KILLS_CAPTION, &KILLS, &report.kills());
    } else {
        for workload in &report.workloads {
            section(&mut out, report, workload);
        }
        let consumers = report.consumers();
        if !consumers.is_empty() {
            table(&mut out, "Consumers", CONSUMERS_CAPTION, &CONSUMERS, &consumers);
        }
        rates(&mut out, report);
    }
    configurations(&mut out, report);
    out.push_str("</html>\n");
    out
}

/// The machine and what it gives.
fn head(report: &Report) -> Vec<String> {
    [report.machine.lines(), report.limits.lines()].concat().into_iter().chain(report.ceiling()).collect()
}

fn table(out: &mut String, heading: &str, caption: &str, titles: &[&str], rows: &[Vec<String>]) {
    _ = write!(out, "<h2>{heading}</h2><p>{caption}</p><table><tr>");
    for title in titles {
        _ = write!(out, "<th>{title}</th>");
    }
    for row in rows {
        out.push_str("</tr><tr>");
        for cell in row {
            _ = write!(out, "<td>{}</td>", small(&escaped(cell)));
        }
    }
    out.push_str("</tr></table>");
}

fn section(out: &mut String, report: &Report, workload: &Workload) {
    let groups: Vec<(Peer, Vec<&RunResult>)> = report
        .groups()
        .filter(|(of, runs)| of.name == workload.name && !runs.is_empty())
        .map(|(_, runs)| (runs[0].peer, runs))
        .collect();
    _ = write!(out, "<h2>{}</h2>", escaped(&workload.name));
    let (about, load) = (escaped(&workload.about), escaped(&workload.load.line()));
    _ = write!(out, "<p>{about} Load: {load}.</p>");
    let mut classes: Vec<&str> = groups.iter().map(|(_, runs)| runs[0].class).collect();
    classes.sort_unstable();
    classes.dedup();
    for class in classes {
        let of_class = groups.iter().filter(|(_, runs)| runs[0].class == class);
        figures(out, report, class, of_class);
    }
    let merged: Vec<(Peer, Latencies)> = groups
        .iter()
        .map(|(peer, runs)| {
            let mut latencies = Latencies::default();
            for run in runs {
                latencies.merge(&run.latencies);
            }
            (*peer, latencies)
        })
        .collect();
    let mut curves = Vec::new();
    for (peer, latencies) in &merged {
        for (kind, histogram, dashed) in
            [("response", &latencies.response, false), ("service", &latencies.service, true)]
        {
            let name = format!("{}, {kind}", peer.name());
            curves.push(Series { name, colour: colour(*peer), dashed, points: percentiles(histogram) });
        }
    }
    let by_second = |value: fn(&Second) -> Option<f64>| -> Vec<Series> {
        groups
            .iter()
            .flat_map(|(peer, runs)| runs.iter().map(|run| (*peer, *run)))
            .map(|(peer, run)| Series {
                name: format!("{}, repeat {}", peer.name(), run.repeat + 1),
                colour: colour(peer),
                dashed: false,
                points: run
                    .seconds
                    .iter()
                    .filter_map(|second| Some((second.from_s, value(second)?)))
                    .collect(),
            })
            .collect()
    };
    let seconds = Axis { title: "second of the run, warm-up included", scale: Scale::Linear, ticks: &[] };
    let latency = Axis { title: "microseconds", scale: Scale::Logarithmic, ticks: &[] };
    let rate = Axis { title: "requests answered in a second", scale: Scale::Linear, ticks: &[] };
    let nines = Axis { title: "percentile", scale: Scale::Logarithmic, ticks: &NINES };
    out.push_str("<div class=\"charts\">");
    figure(out, "Latency by percentile: response, and service dashed", &svg(nines, latency, &curves));
    let answered = by_second(|second| Some(second.per_second));
    figure(out, "Throughput over time", &svg(seconds, rate, &answered));
    let p99 = by_second(|second| second.p99_ns.map(us));
    // No second of a few large requests has enough of them for one.
    if p99.iter().any(|line| !line.points.is_empty()) {
        figure(out, "99th percentile of each second", &svg(seconds, latency, &p99));
    }
    let longest = by_second(|second| Some(us(second.max_ns)));
    figure(out, "Longest response of each second", &svg(seconds, latency, &longest));
    out.push_str("</div>");
}

/// A cell with its spread, if it has one, on a line of its own.
fn small(cell: &str) -> String {
    match cell.split_once(" [") {
        Some((median, spread)) => format!("{median}<small>[{spread}</small>"),
        None => cell.to_owned(),
    }
}

fn figures<'a>(
    out: &mut String,
    report: &Report,
    class: &str,
    groups: impl Iterator<Item = &'a (Peer, Vec<&'a RunResult>)>,
) {
    _ = write!(
        out,
        "<table><tr><th>durability: {}<th>MB/s<th>of strawman<th>records/s<th>p50<th>p99<th>acks/flush<th>broker \
         us/request<th>bytes written/payload<th>peak RSS MB<th>repeats</tr>",
        escaped(class)
    );
    let mut marks = Vec::new();
    for (peer, runs) in groups {
        let each = |of: &dyn Fn(&RunResult) -> Option<f64>, digits: usize| {
            Spread::of(runs.iter().filter_map(|run| of(run)))
                .map_or_else(|| "-".to_owned(), |spread| small(&format!("{spread:.digits$}")))
        };
        let requests = |run: &RunResult| run.requests_per_second * run.audit.seconds;
        let cells = [
            each(&|run| Some(run.mb_per_second), 1),
            report.of_strawman(runs).map_or_else(|| "-".to_owned(), |share| format!("{share:.2}")),
            each(&|run| Some(run.records_per_second), 0),
            each(&|run| run.response.p50.map(us), 0),
            each(&|run| run.response.p99.map(us), 0),
            each(&|run| run.acks_per_flush, 1),
            each(&|run| run.audit.broker_cpu_s.map(|cpu| cpu * 1e6 / requests(run)), 1),
            each(&|run| run.write_amplification, 2),
            each(&|run| run.audit.broker_rss_peak_bytes.map(|bytes| float(bytes) / 1e6), 0),
            runs.len().to_string(),
        ];
        let key = format!("<span class=\"key\" style=\"background:{}\"></span>", colour(*peer));
        _ = write!(out, "<tr><td>{key}{}<td>{}</tr>", peer.name(), cells.join("<td>"));
        for run in runs {
            let of = |mark: &String| format!("{}, repeat {}: {mark}", peer.name(), run.repeat + 1);
            marks.extend(run.marks.iter().map(of));
        }
    }
    out.push_str("</table>");
    for mark in marks {
        _ = write!(out, "<p class=\"mark\">{}</p>", escaped(&mark));
    }
}

/// Latency against rate, of the open-loop workloads.
fn rates(out: &mut String, report: &Report) {
    let mut series: BTreeMap<&str, Series> = BTreeMap::new();
    for (workload, runs) in report.groups() {
        let Load::Open { rate, .. } = workload.load else { continue };
        let Some(first) = runs.first() else { continue };
        if let Some(p99) = Spread::of(runs.iter().filter_map(|run| run.response.p99).map(us)) {
            let peer = first.peer;
            let line = series.entry(peer.name()).or_insert_with(|| Series {
                name: peer.name().to_owned(),
                colour: colour(peer),
                dashed: false,
                points: Vec::new(),
            });
            line.points.push((rate, p99.median()));
        }
    }
    if series.is_empty() {
        return;
    }
    let mut series: Vec<Series> = series.into_values().collect();
    for line in &mut series {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let rate = Axis { title: "requests intended in a second", scale: Scale::Linear, ticks: &[] };
    let latency = Axis { title: "p99, microseconds", scale: Scale::Logarithmic, ticks: &[] };
    out.push_str("<h2>Latency against rate</h2><div class=\"charts\">");
    figure(out, "p99 of the open-loop workloads, medians of the repeats", &svg(rate, latency, &series));
    out.push_str("</div>");
}

/// How each peer was started.
fn configurations(out: &mut String, report: &Report) {
    out.push_str("<h2>Configurations</h2>");
    let mut shown: Vec<Peer> = Vec::new();
    for run in &report.runs {
        let Some(command) = run.broker_command.as_ref().filter(|_| !shown.contains(&run.peer)) else {
            continue;
        };
        shown.push(run.peer);
        let config = run.broker_config.unwrap_or_default();
        _ = write!(out, "<p>{}</p><pre>{}\n{}</pre>", run.peer.name(), escaped(command), escaped(config));
    }
}

fn figure(out: &mut String, caption: &str, chart: &str) {
    _ = write!(out, "<figure><figcaption>{}</figcaption>{chart}</figure>", escaped(caption));
}

/// A curve over 1/(1-q), as far as enough samples lie beyond.
fn percentiles(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let samples = histogram.len();
    let mut below = 0;
    let mut points = Vec::new();
    for step in histogram.iter_recorded() {
        let beyond = samples - below;
        if beyond < SAMPLES_BEYOND_MIN {
            break;
        }
        points.push((float(samples) / float(beyond), us(step.value_iterated_to())));
        below += step.count_at_value();
    }
    points
}

fn us(ns: u64) -> f64 {
    float(ns) / 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "for charts")]
const fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::histogram;

    #[test]
    fn a_curve_ends_where_samples_do() {
        let mut latencies = histogram();
        for value in 1..=1000 {
            latencies.record(value * 1000).unwrap();
        }
        let points = percentiles(&latencies);
        assert!((points[0].0 - 1.0).abs() < 1e-9, "{:?}", points[0]);
        let last = points.last().unwrap();
        assert!((last.0 - 10.0).abs() < 0.5 && (last.1 - 900.0).abs() < 5.0, "{last:?}");
    }
}
