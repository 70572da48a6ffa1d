//! A member: the client library's consumer, in a process that may crash or pause, with a user who takes his time.

use super::checker::Checker;
use super::plan::Plan;
use super::{Counts, Outgoing};
use crate::rng::Rng;
use corelog_client::CommitMode;
use corelog_client::core::{Consumer, ConsumerConfig, ConsumerEvent, Effect, Input, RequestId, Taken};
use corelog_wire::ids::TopicPartition;
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// What a process is up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Runs,
    /// Until then it does nothing, and knows nothing of it afterwards.
    Paused {
        until: u64,
    },
    Gone,
}

pub(super) struct Member {
    pub(super) number: usize,
    consumer: Consumer,
    process: Process,
    /// Counts up so that what was meant for a dead process finds nobody.
    pub(super) life: u64,
    pub(super) instance: Option<String>,
    outstanding: BTreeSet<RequestId>,
    /// What came while it was paused.
    waiting: VecDeque<Input>,
    manual: bool,
    /// The user is at work until then.
    busy_until: u64,
    /// From now until then he is slow.
    slow_until: u64,
    pub(super) lost: u64,
    /// When it is woken next.
    pub(super) wake_at: Option<u64>,
    settled: bool,
    leaving: bool,
}

impl Member {
    pub(super) fn new(plan: &Plan, number: usize, instance: Option<String>, rng: &mut Rng) -> Self {
        let mut config = ConsumerConfig::new("readers");
        config.wishes.session_timeout = Duration::from_millis(plan.session_ms);
        config.wishes.assignor = plan.assignor;
        config.wishes.instance.clone_from(&instance);
        config.wishes.patterns = vec!["t*".to_owned()];
        config.commit = plan.commit;
        config.processing_max = Duration::from_millis(plan.processing_ms);
        config.close_patience = Duration::from_millis(500);
        config.reader.wait = Duration::from_millis(100);
        config.reader.request_deadline = Duration::from_secs(2);
        config.reader.topic_age_max = Duration::from_secs(2);
        let seed = rng.draw();
        let mut consumer = Consumer::new(config, seed).unwrap_or_else(|error| unreachable!("{error}"));
        if plan.listens {
            consumer.listen();
        }
        Self {
            number,
            consumer,
            process: Process::Runs,
            life: 1,
            instance,
            outstanding: BTreeSet::new(),
            waiting: VecDeque::new(),
            manual: plan.commit == CommitMode::Manual,
            busy_until: 0,
            slow_until: 0,
            lost: 0,
            wake_at: None,
            settled: false,
            leaving: false,
        }
    }

    pub(super) fn is_here(&self) -> bool {
        self.process != Process::Gone && !self.leaving
    }

    pub(super) fn crash(&mut self) {
        self.process = Process::Gone;
        self.life += 1;
    }

    pub(super) fn pause(&mut self, until: u64) {
        if self.process == Process::Runs {
            self.process = Process::Paused { until };
        }
    }

    pub(super) fn leave(&mut self, now: Instant, checker: &mut Checker) {
        checker.closes(self.number);
        self.leaving = true;
        self.consumer.close(now);
    }

    pub(super) fn slow_down(&mut self, until: u64) {
        self.slow_until = until;
    }

    /// The weather is calm: nobody pauses or dawdles any more.
    pub(super) fn settle(&mut self) {
        self.settled = true;
        self.slow_until = 0;
    }

    /// What it may be at work on, as far as it may be at all.
    pub(super) fn holds(&self, now: Instant) -> Vec<TopicPartition> {
        if self.process == Process::Gone { Vec::new() } else { self.consumer.holds(now).collect() }
    }

    /// Whether an answer is for somebody; then it is awaited no longer.
    pub(super) fn awaits(&mut self, life: u64, id: RequestId) -> bool {
        self.process != Process::Gone && self.life == life && self.outstanding.remove(&id)
    }

    /// Whether this is the wake that it waits for.
    pub(super) fn wakes(&mut self, life: u64, now: u64) -> bool {
        let here = self.process != Process::Gone && self.life == life;
        here && self.wake_at.take_if(|at| *at <= now).is_some()
    }

    /// When it has to be woken, in milliseconds.
    pub(super) fn next_wake(&self, origin: Instant) -> Option<u64> {
        match self.process {
            Process::Gone => return None,
            Process::Paused { until } => return Some(until + 1),
            Process::Runs => {}
        }
        let timer = self.consumer.deadline().map(|at| {
            let after = at.saturating_duration_since(origin);
            u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
        });
        let user = (self.busy_until > 0).then_some(self.busy_until);
        [timer, user].into_iter().flatten().min()
    }

    /// The process gets an input; gives what it sends.
    pub(super) fn input(
        &mut self,
        now: Instant,
        now_ms: u64,
        input: Input,
        rng: &mut Rng,
        checker: &mut Checker,
        counts: &mut Counts,
    ) -> Vec<Outgoing> {
        match self.process {
            Process::Gone => return Vec::new(),
            Process::Paused { until } if now_ms < until && !self.settled => {
                self.waiting.push_back(input);
                return Vec::new();
            }
            Process::Paused { .. } | Process::Runs => self.process = Process::Runs,
        }
        let mut sent = Vec::new();
        let mut inputs = std::mem::take(&mut self.waiting);
        inputs.push_back(input);
        for input in inputs {
            self.handle(now, input, checker, &mut sent);
        }
        while self.busy_until <= now_ms && !self.leaving {
            if !self.take(now, now_ms, rng, checker, counts) {
                self.busy_until = 0;
                break;
            }
            self.handle(now, Input::Tick, checker, &mut sent);
        }
        // Whoever took wants the machine to look again.
        self.handle(now, Input::Tick, checker, &mut sent);
        if self.consumer.is_closed() {
            self.process = Process::Gone;
        }
        sent
    }

    fn handle(&mut self, now: Instant, input: Input, checker: &mut Checker, sent: &mut Vec<Outgoing>) {
        let mut out = Vec::new();
        self.consumer.handle(now, input, &mut out);
        checker.shares(self.number, self.consumer.holds(now));
        for effect in out {
            match effect {
                Effect::Send(outgoing) => {
                    self.outstanding.insert(outgoing.id);
                    sent.push(outgoing);
                }
                Effect::Event(ConsumerEvent::Changed | ConsumerEvent::Committed(..)) => {}
            }
        }
    }

    /// The user takes once; whether there was something.
    fn take(
        &mut self,
        now: Instant,
        now_ms: u64,
        rng: &mut Rng,
        checker: &mut Checker,
        counts: &mut Counts,
    ) -> bool {
        if self.manual && rng.one_in(3) {
            checker.came_back(self.number);
            // Nobody waits for the outcome: what is refused is read again.
            drop(self.consumer.commit_taken());
        }
        checker.came_back(self.number);
        match self.consumer.take(now) {
            Some(Ok(Taken::Records(batch))) => {
                checker.given(self.number, &batch, self.consumer.place_of_batch(&batch), counts);
                let slow = now_ms < self.slow_until;
                let work = if slow { rng.below(1_500) } else { rng.below(8) };
                self.busy_until = now_ms + 1 + work;
                false
            }
            Some(Ok(Taken::Lost(_))) => {
                self.lost += 1;
                true
            }
            Some(Ok(Taken::Assigned(_) | Taken::Revoked(_))) => true,
            Some(Err(_)) => {
                // What stays in the way is told again; the user waits a little.
                self.busy_until = now_ms + 20;
                false
            }
            None => false,
        }
    }
}
