//! Accounts of a run: which requests count, when they were answered, and what became of the others.
//!
//! Called by every driver of load, so that all are measured alike. Invariants: latencies are of requests whose intended
//! times are within the measured window, throughput is of answers within it; refused requests are neither. This file
//! refuses to know how requests are sent.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::measure::{Latencies, histogram, nanoseconds};
use crate::workload::Load;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How requests are sent.
    pub load: Load,
    /// Makes the arrival times.
    pub seed: u64,
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub measured: Duration,
    /// How long the next of the last answers may take.
    pub drain: Duration,
    /// Whether the load may end before its time because the peer is gone: it was killed.
    pub may_go: bool,
}

/// A part of a run, warm-up included: the responses of the requests that were answered in it.
#[derive(Clone, Debug)]
pub struct Interval {
    /// From the run's start.
    pub from: Duration,
    /// How long it is.
    pub length: Duration,
    /// Nanoseconds.
    pub response: Histogram<u64>,
}

impl Interval {
    /// With nothing answered yet.
    #[must_use]
    pub fn new(from: Duration, length: Duration) -> Self {
        Self { from, length, response: histogram() }
    }
}

/// How much longer than for the next answer the generator waits for all of them.
const DRAINS_MAX: u32 = 10;

/// Memory for intervals is taken before the load: a run has this many at most, of a second each if it is short enough.
const INTERVALS_MAX: u32 = 300;

/// What happened.
#[derive(Debug)]
pub struct Outcome {
    /// Of the requests whose intended times are within the measured window.
    pub latencies: Latencies,
    /// Requests that were answered within the measured window.
    pub answered: u64,
    /// How long the window was.
    pub window: Duration,
    /// By second.
    pub intervals: Vec<Interval>,
    /// All requests that were sent.
    pub sent: u64,
    /// Requests that were refused, at any time.
    pub refused: u64,
    /// The first refusal.
    pub refusal: Option<String>,
    /// Requests without an answer at the end.
    pub unanswered: u64,
    /// Requests that were due and not answered, at the window's begin and end: an open loop's backlog.
    pub backlog: (u64, u64),
}

/// Called at the edges of the measured window, on the generator's thread.
pub trait Window {
    /// Intended times count from here.
    fn starts(&mut self, at: Instant);
    /// The window begins.
    fn begins(&mut self);
    /// The window ends.
    fn ends(&mut self);
}

/// The accounts.
#[derive(Debug)]
pub struct Tally {
    plan: Plan,
    latencies: Latencies,
    intervals: Vec<Interval>,
    sent: u64,
    answered_all: u64,
    last_answer: Duration,
    answered: u64,
    refused: u64,
    refusal: Option<String>,
    backlog: (u64, u64),
    edges: Edges,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edges {
    Before,
    Within,
    After,
}

impl Tally {
    /// Nothing sent yet.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        let load = (plan.warm_up + plan.measured).as_secs_f64();
        let length = (load / f64::from(INTERVALS_MAX)).ceil().max(1.0);
        let length = Duration::from_secs_f64(length);
        let intervals = (0..=INTERVALS_MAX).map(|number| length * number);
        let intervals = intervals.take_while(|&from| from < plan.warm_up + plan.measured);
        Self {
            plan: plan.clone(),
            latencies: Latencies::default(),
            intervals: intervals.map(|from| Interval::new(from, length)).collect(),
            sent: 0,
            answered_all: 0,
            last_answer: Duration::ZERO,
            answered: 0,
            refused: 0,
            refusal: None,
            backlog: (0, 0),
            edges: Edges::Before,
        }
    }

    /// When the last request may be sent.
    #[must_use]
    pub fn send_until(&self) -> Duration {
        self.plan.warm_up + self.plan.measured
    }

    /// When nothing is to be hoped for any more: that long after the last request and the last answer. What came too fast is
    /// waited for as long as answers come, for ten times that; the slowest are not to be left out of the figures.
    #[must_use]
    pub fn wait_until(&self) -> Duration {
        let longest = self.send_until() + self.plan.drain * DRAINS_MAX;
        longest.min(self.send_until().max(self.last_answer) + self.plan.drain)
    }

    /// When [`Tally::pass_edges`] has something to notice next.
    #[must_use]
    pub fn next_edge(&self) -> Duration {
        match self.edges {
            Edges::Before => self.plan.warm_up,
            Edges::Within => self.send_until(),
            Edges::After => self.wait_until(),
        }
    }

    /// Notices that the window has begun or ended.
    pub fn pass_edges(&mut self, now: Duration, window: &mut dyn Window) {
        let backlog = self.sent - self.answered_all;
        if self.edges == Edges::Before && now >= self.plan.warm_up {
            self.edges = Edges::Within;
            self.backlog.0 = backlog;
            window.begins();
        }
        if self.edges == Edges::Within && now >= self.send_until() {
            self.edges = Edges::After;
            self.backlog.1 = backlog;
            window.ends();
        }
    }

    /// Whether the window is over and every request has its answer.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.edges == Edges::After && self.sent == self.answered_all
    }

    /// Notes that a request was sent.
    pub const fn sent(&mut self) {
        self.sent += 1;
    }

    /// Notes a request's answer; all times are from the run's start.
    pub fn answered(
        &mut self,
        intended: Duration,
        sent: Duration,
        answered: Duration,
        refused: Option<&str>,
    ) {
        self.answered_all += 1;
        self.last_answer = answered;
        if let Some(refusal) = refused {
            self.refused += 1;
            self.refusal.get_or_insert_with(|| refusal.to_owned());
            return;
        }
        let window = self.plan.warm_up..self.send_until();
        if window.contains(&intended) {
            self.latencies.record(intended, sent, answered);
        }
        if window.contains(&answered) {
            self.answered += 1;
        }
        // What is answered after the load counts to its last part.
        let number = self.intervals.partition_point(|interval| interval.from <= answered);
        if let Some(interval) = number.checked_sub(1).and_then(|number| self.intervals.get_mut(number)) {
            interval.response.saturating_record(nanoseconds(answered.saturating_sub(intended)));
        }
    }

    /// What happened.
    #[must_use]
    pub fn finish(self) -> Outcome {
        Outcome {
            latencies: self.latencies,
            answered: self.answered,
            window: self.plan.measured,
            intervals: self.intervals,
            sent: self.sent,
            refused: self.refused,
            refusal: self.refusal,
            unanswered: self.sent - self.answered_all,
            backlog: self.backlog,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Arrival;
    use crate::workload::{Acks, Load};

    #[test]
    fn whoever_still_answers_is_waited_for_but_not_for_ever() {
        let plan = Plan {
            load: Load::Open { connections: 1, rate: 2.0, arrival: Arrival::Constant, acks: Acks::All },
            seed: 0,
            warm_up: Duration::ZERO,
            measured: Duration::from_secs(1),
            drain: Duration::from_secs(4),
            may_go: false,
        };
        let mut tally = Tally::new(&plan);
        let mut until = |last_answer: u64| {
            tally.sent();
            tally.answered(Duration::ZERO, Duration::ZERO, Duration::from_secs(last_answer), None);
            tally.wait_until().as_secs()
        };
        assert_eq!([0, 1, 5, 30, 39].map(&mut until), [5, 5, 9, 34, 41]);
    }
}
