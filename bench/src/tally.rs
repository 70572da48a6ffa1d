//! Accounts of a run: which requests count, when they were answered, and what became of the others.
//!
//! Called by every driver of load, so that all are measured alike. Invariants: latencies are of requests whose intended
//! times are within the measured window, throughput is of answers within it; refused requests are neither. This file
//! refuses to know how requests are sent.

use std::time::Duration;

use crate::measure::{Latencies, nanoseconds};
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
    /// How long the last answers may take.
    pub drain: Duration,
}

/// One second of a run, from its start, warm-up included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Second {
    /// Requests that were answered.
    pub answered: u64,
    /// The longest response that was answered.
    pub max_ns: u64,
}

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
    pub seconds: Vec<Second>,
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
    seconds: Vec<Second>,
    sent: u64,
    answered_all: u64,
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
        Self {
            plan: plan.clone(),
            latencies: Latencies::default(),
            seconds: Vec::new(),
            sent: 0,
            answered_all: 0,
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

    /// When the last answer may come.
    #[must_use]
    pub fn wait_until(&self) -> Duration {
        self.send_until() + self.plan.drain
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
        let second = usize::try_from(answered.as_secs()).unwrap_or(usize::MAX);
        if second < SECONDS_MAX {
            if self.seconds.len() <= second {
                self.seconds.resize(second + 1, Second::default());
            }
            let second = &mut self.seconds[second];
            second.answered += 1;
            second.max_ns = second.max_ns.max(nanoseconds(answered.saturating_sub(intended)));
        }
    }

    /// What happened.
    #[must_use]
    pub fn finish(self) -> Outcome {
        Outcome {
            latencies: self.latencies,
            answered: self.answered,
            window: self.plan.measured,
            seconds: self.seconds,
            sent: self.sent,
            refused: self.refused,
            refusal: self.refusal,
            unanswered: self.sent - self.answered_all,
            backlog: self.backlog,
        }
    }
}

/// Seconds that are kept one by one: a run of 11 days.
const SECONDS_MAX: usize = 1 << 20;
