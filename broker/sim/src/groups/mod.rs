//! A consumer group in bad weather: the coordinator's and the client library's very decisions, with a store, logs, a
//! network, processes and users of their own.
//!
//! Called by the tests and the binary. Members join, leave, crash, pause for longer than their session, work slowly and
//! use an instance id twice; words are late, lost and overtake each other; the store refuses, or does what it does not
//! confirm; the coordinator starts again. Then the weather calms, and everything has to be done. Invariant: one seed,
//! one run.

mod broker;
mod checker;
mod member;
mod plan;

use crate::rng::Rng;
use crate::trace::Trace;
use broker::{Broker, Change};
use checker::Checker;
use corelog_client::core::{Input, Outgoing, RequestId};
use corelog_client::{Error, core};
use corelog_core::group::AskId;
use corelog_wire::message::{Answer, Request};
use member::Member;
pub use plan::Plan;
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// What happens at some time.
enum Event {
    /// A request reaches the broker.
    Arrive { member: usize, life: u64, id: RequestId, request: core::Outgoing },
    /// An answer reaches a member.
    Answer { member: usize, life: u64, id: RequestId, answer: Answer, payload: bytes::Bytes },
    /// A member waits no longer for an answer.
    GiveUp { member: usize, life: u64, id: RequestId },
    /// A member's timer.
    Wake { member: usize, life: u64 },
    /// A change reaches the store.
    Write { life: u64, change: Box<Change> },
    /// The store's word reaches the coordinator.
    Written { life: u64, done: bool },
    /// The coordinator reads the group.
    Read { life: u64 },
    /// Somebody looks at the broker's clock, and appends records.
    Tick,
    /// Something happens to a member, or to the broker.
    Trouble,
}

/// How a run went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What is wrong, if anything is.
    pub violation: Option<String>,
    /// Hash of all that happened.
    pub hash: u64,
    /// What happened how often.
    pub counts: Counts,
}

/// What happened how often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Batches given to users.
    pub given: u64,
    /// Batches that were given before.
    pub repeated: u64,
    /// Partitions that went from one member to another.
    pub moved: u64,
    /// Commits that the store took.
    pub committed: u64,
    /// Sessions that ended here, by the member's own clock or the coordinator's word.
    pub lost: u64,
    /// Coordinators.
    pub lives: u64,
    /// Members.
    pub members: u64,
}

/// One run.
pub struct Sim {
    plan: Plan,
    rng: Rng,
    trace: Trace,
    now: u64,
    events: u64,
    calendar: BTreeMap<(u64, u64), Event>,
    origin: Instant,
    broker: Broker,
    members: Vec<Member>,
    /// Whom to answer.
    asked: BTreeMap<AskId, (usize, u64, RequestId)>,
    asks: u64,
    checker: Checker,
    counts: Counts,
    calm: bool,
}

impl Sim {
    /// A run of this plan.
    #[must_use]
    pub fn new(plan: Plan, printing: bool) -> Self {
        let mut rng = Rng::new(plan.seed ^ 0x6762_6f75_7000);
        let broker = Broker::new(&plan, rng.fork(1));
        let mut sim = Self {
            rng,
            trace: Trace::new(printing),
            now: 0,
            events: 0,
            calendar: BTreeMap::new(),
            origin: Instant::now(),
            broker,
            members: Vec::new(),
            asked: BTreeMap::new(),
            asks: 0,
            checker: Checker::new(plan.commit),
            counts: Counts::default(),
            calm: false,
            plan,
        };
        sim.counts.lives = 1;
        sim.plan_in(0, Event::Tick);
        sim.plan_in(50, Event::Trouble);
        for _ in 0..sim.plan.members {
            sim.come(None);
        }
        sim
    }

    /// Runs to the end.
    pub fn run(mut self) -> Outcome {
        let trouble_ends = self.plan.trouble_ms;
        let mut violation = self.until(trouble_ends);
        if violation.is_none() {
            self.calm = true;
            self.members.iter_mut().for_each(Member::settle);
            violation = self.until(trouble_ends + self.plan.calm_ms());
        }
        let violation = violation.or_else(|| self.unfinished());
        Outcome {
            violation: violation.map(|what| format!("at {} ms: {what}", self.now)),
            hash: self.trace.hash(),
            counts: self.counts,
        }
    }

    fn until(&mut self, end: u64) -> Option<String> {
        while let Some(entry) = self.calendar.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((now, _), event) = entry.remove_entry();
            self.now = now;
            self.trace.at(now * 1_000_000);
            self.happen(event);
            if let Some(violation) = self.checker.violation.take() {
                return Some(violation);
            }
        }
        None
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { member, life, id, request } => self.arrive(member, life, id, request),
            Event::Answer { member, life, id, answer, payload } => {
                if self.members[member].awaits(life, id) {
                    self.input(member, Input::Answered { id, answer, payload });
                }
            }
            Event::GiveUp { member, life, id } => {
                if self.members[member].awaits(life, id) {
                    let error = Error::ConnectionLost { reason: "no answer".into() };
                    self.input(member, Input::Failed { id, error });
                }
            }
            Event::Wake { member, life } => {
                if self.members[member].wakes(life, self.now) {
                    self.input(member, Input::Tick);
                }
            }
            Event::Write { life, change } => {
                let luck = if self.calm { 9 } else { self.rng.below(20) };
                let (applied, offsets) = self.broker.apply(*change, luck > 0);
                if let Some(offsets) = offsets {
                    self.counts.committed += self.checker.stored(&offsets);
                }
                self.plan_in(1, Event::Written { life, done: applied && luck > 1 });
            }
            Event::Written { life, done } => self.tell(|broker, now| broker.written(life, done, now)),
            Event::Read { life } => self.tell(|broker, now| broker.read(life, now)),
            Event::Tick => {
                if !self.calm {
                    self.broker.append();
                }
                self.tell(Broker::tick);
                self.plan_in(10, Event::Tick);
            }
            Event::Trouble => {
                if !self.calm {
                    self.trouble();
                    let pause = 1 + self.rng.below(2 * self.plan.trouble_every_ms);
                    self.plan_in(pause, Event::Trouble);
                }
            }
        }
    }

    fn arrive(&mut self, member: usize, life: u64, id: RequestId, request: Outgoing) {
        let Outgoing { request, .. } = request;
        if let Some((answer, payload, after)) = self.broker.answer(&request) {
            return self.send_back(member, life, id, answer, payload, after);
        }
        self.asks += 1;
        let ask_id = AskId(self.asks);
        self.asked.insert(ask_id, (member, life, id));
        self.tell(|broker, now| broker.ask(ask_id, request, now));
    }

    /// Lets the coordinator take a step and carries out what it wants. Each step may be its last.
    fn tell(&mut self, step: impl FnOnce(&mut Broker, u64) -> Vec<broker::Wish>) {
        let wishes = step(&mut self.broker, self.now);
        let life = self.broker.life();
        let dies = !self.calm && !wishes.is_empty() && self.rng.one_in(self.plan.restart_one_in);
        // What it wanted before it died may have gone out or not.
        let done = if dies { self.rng.below(wishes.len() as u64 + 1) as usize } else { wishes.len() };
        for wish in wishes.into_iter().take(done) {
            match wish {
                broker::Wish::Read => self.plan_in(3, Event::Read { life }),
                broker::Wish::Write(change) => {
                    let after = self.rng.below(20) + if self.calm { 0 } else { self.rng.below(3) * 50 };
                    self.plan_in(after, Event::Write { life, change });
                }
                broker::Wish::Reply(ask_id, answer) => {
                    if let Some((member, of, id)) = self.asked.remove(&ask_id) {
                        self.send_back(member, of, id, answer, bytes::Bytes::new(), 0);
                    }
                }
            }
        }
        if dies {
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.trace.event("restart", &[]);
        self.counts.lives += 1;
        self.asked.clear();
        self.tell(Broker::restart);
    }

    fn send_back(
        &mut self,
        member: usize,
        life: u64,
        id: RequestId,
        answer: Answer,
        payload: bytes::Bytes,
        after: u64,
    ) {
        if let Some(way) = self.way() {
            if self.trace.printing() && !matches!(answer, Answer::Fetch(_) | Answer::Metadata(_)) {
                self.trace.say(format_args!("  to member {member} in {way} ms: {answer:?}"));
            }
            self.plan_in(after + way, Event::Answer { member, life, id, answer, payload });
        }
    }

    /// How long something takes on its way; none if it is lost.
    fn way(&mut self) -> Option<u64> {
        match self.rng.below(100) {
            0..2 if !self.calm => None,
            2..8 if !self.calm => Some(self.rng.below(1_200)),
            _ => Some(self.rng.below(4)),
        }
    }

    /// A member gets an input, and its user takes what he can.
    fn input(&mut self, member: usize, input: Input) {
        let now = self.at(self.now);
        let before = self.members[member].lost;
        self.trace.event("input", &[member as u64]);
        let sent = self.members[member].input(
            now,
            self.now,
            input,
            &mut self.rng,
            &mut self.checker,
            &mut self.counts,
        );
        self.counts.lost += self.members[member].lost - before;
        self.dispatch(member, sent);
    }

    fn dispatch(&mut self, member: usize, sent: Vec<Outgoing>) {
        let life = self.members[member].life;
        for outgoing in sent {
            let id = outgoing.id;
            self.trace.event("ask", &[member as u64, id.get()]);
            if !matches!(outgoing.request, Request::Fetch(_) | Request::Metadata(_)) {
                self.trace.say(format_args!("  {}", words(&outgoing.request)));
            }
            self.checker.asks(&outgoing.request, member);
            let gives_up = outgoing.deadline.saturating_duration_since(self.at(self.now));
            let gives_up = u64::try_from(gives_up.as_millis()).unwrap_or(u64::MAX) + 1;
            // A broken connection is noticed sooner than a deadline, most of the time.
            let noticed = if self.rng.one_in(2) { self.rng.below(600) + 400 } else { u64::MAX };
            let waits = outgoing.deadline_of_wait();
            self.plan_in(gives_up.min(noticed.saturating_add(waits)), Event::GiveUp { member, life, id });
            if let Some(way) = self.way() {
                self.plan_in(way, Event::Arrive { member, life, id, request: outgoing });
            }
        }
        if let Some(at) = self.members[member].next_wake(self.origin) {
            self.wake_at(member, at.max(self.now + 1));
        }
        let holds: Vec<_> = self
            .members
            .iter()
            .enumerate()
            .map(|(number, member)| (number, member.holds(self.at(self.now))))
            .collect();
        self.checker.holders(&holds, &mut self.counts);
    }

    fn come(&mut self, instance: Option<String>) {
        let number = self.members.len();
        self.counts.members += 1;
        self.members.push(Member::new(&self.plan, number, instance, &mut self.rng));
        let after = self.rng.below(300);
        self.wake_at(number, self.now + after);
    }

    /// Wakes a member then, unless it is woken before.
    fn wake_at(&mut self, member: usize, at: u64) {
        let (life, known) = (self.members[member].life, &mut self.members[member].wake_at);
        if known.is_none_or(|known| at < known) {
            *known = Some(at);
            self.plan_in(at - self.now, Event::Wake { member, life });
        }
    }

    /// Somebody crashes, pauses, leaves or comes; or the topics grow.
    fn trouble(&mut self) {
        let alive: Vec<usize> =
            (0..self.members.len()).filter(|&member| self.members[member].is_here()).collect();
        let kind = self.rng.below(10);
        let room = alive.len() < self.plan.members_max && self.members.len() < 4 * self.plan.members_max;
        if alive.is_empty() || kind < 3 && room {
            let instance = self.plan.statics.then(|| format!("i{}", self.rng.below(4)));
            return self.come(instance);
        }
        let member = self.rng.pick(&alive);
        self.trace.event("trouble", &[kind, member as u64]);
        match kind {
            3 | 4 => {
                self.members[member].crash();
                if room {
                    let instance = self.members[member].instance.clone();
                    self.come(instance);
                }
            }
            5 | 6 => {
                let longest = 3 * self.plan.session_ms;
                let until = self.now + self.rng.below(longest);
                self.members[member].pause(until);
                self.wake_at(member, until + 1);
            }
            7 => {
                let now = self.at(self.now);
                self.members[member].leave(now, &mut self.checker);
                self.wake_at(member, self.now + 1);
            }
            8 => self.members[member].slow_down(self.now + self.rng.below(2 * self.plan.processing_ms)),
            _ if self.plan.grows && self.broker.partitions() < 240 => {
                self.tell(Broker::grow);
            }
            _ => self.restart(),
        }
    }

    /// What is not as it has to be once the weather has been calm for long enough.
    fn unfinished(&self) -> Option<String> {
        let alive: Vec<&Member> = self.members.iter().filter(|member| member.is_here()).collect();
        if alive.is_empty() {
            return None;
        }
        let mut shares: Vec<usize> =
            alive.iter().map(|member| member.holds(self.at(self.now)).len()).collect();
        let all: usize = shares.iter().sum();
        if all != self.broker.partitions() as usize {
            return Some(format!(
                "{all} of {} partitions are worked on: {shares:?}",
                self.broker.partitions()
            ));
        }
        // Of several with one instance id one is let in.
        let mut instances: Vec<_> = alive.iter().map(|member| (&member.instance, member.number)).collect();
        instances.sort_unstable();
        instances.dedup_by(|left, right| left.0.is_some() && left.0 == right.0);
        shares.sort_unstable_by(|left, right| right.cmp(left));
        let seats = &shares[..instances.len()];
        let spread = seats.iter().max()? - seats.iter().min()?;
        if spread > 1 && self.plan.is_uniform() {
            return Some(format!("partitions are spread unevenly: {shares:?}"));
        }
        self.broker.ends().find_map(|(tp, end)| self.checker.unfinished(tp, end, self.broker.committed(tp)))
    }

    fn at(&self, ms: u64) -> Instant {
        self.origin + Duration::from_millis(ms)
    }

    fn plan_in(&mut self, after: u64, event: Event) {
        self.events += 1;
        self.calendar.insert((self.now + after, self.events), event);
    }
}

/// Runs one seed from beginning to end.
#[must_use]
pub fn run_seed(seed: u64, printing: bool) -> Outcome {
    Sim::new(Plan::draw(seed), printing).run()
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { given, repeated, moved, committed, lost, lives, members } = self;
        write!(
            f,
            "{given} given, {repeated} repeated, {moved} moved, {committed} committed, {lost} lost, {lives} lives, \
             {members} members"
        )
    }
}

/// What is asked, for the reader of a trace.
fn words(request: &Request) -> String {
    match request {
        Request::GroupHeartbeat(heartbeat) => {
            let owned: Vec<u32> = heartbeat.owned.iter().map(|tp| tp.partition).collect();
            let (epoch, leave) = (heartbeat.member_epoch, heartbeat.leave);
            format!("heartbeat of {} in epoch {epoch}, owns {owned:?}, leaves: {leave:?}", heartbeat.member)
        }
        Request::OffsetCommit(commit) => {
            let rows: Vec<(u32, u64)> =
                commit.rows.iter().map(|row| (row.tp.partition, row.offset.get())).collect();
            format!("commit {rows:?}")
        }
        other => other.kind().name().to_owned(),
    }
}

/// How long an answer may be held by the broker.
trait Waits {
    fn deadline_of_wait(&self) -> u64;
}

impl Waits for Outgoing {
    fn deadline_of_wait(&self) -> u64 {
        match &self.request {
            Request::GroupHeartbeat(heartbeat) => heartbeat.max_wait_ms.into(),
            Request::Fetch(fetch) => fetch.max_wait_ms.into(),
            _ => 0,
        }
    }
}
