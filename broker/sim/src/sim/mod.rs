//! One run: a broker, its disk, its clients and their troubles, from one seed.
//!
//! One thread, one queue. Everything that happens is an `Event`; whoever handles one may add others. The life of the
//! process is in `life`, the troubles in `nemesis`, what must hold at the end in `finish`.

mod finish;
mod life;
mod nemesis;
mod net;
mod readers;

use crate::checker::{Checker, Counts};
use crate::client::{Ask, Auditor, Client, Consumer, Deleter, Known, Library, Producer, Style};
use crate::disk::{Disk, OpId};
use crate::hands::{Booted, Hands, Reply, Tools};
use crate::plan::{Plan, TopicPlan, Trouble};
use crate::rng::Rng;
use crate::shadow::Shadow;
use crate::trace::Trace;
use crate::world::{MICROS, MILLIS, World};
use corelog_core::shard::{Input, RequestId};
use corelog_core::topic::TopicConfig;
use corelog_wire::ids::{LeaderEpoch, Offset, TopicId, TopicPartition};
use corelog_wire::message::Acks;
use std::collections::BTreeMap;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Hash of everything that happened.
    pub hash: u64,
    /// Events in the trace.
    pub events: u64,
    /// What contradicts a promise, if anything does.
    pub violation: Option<String>,
    /// How much was done.
    pub counts: Counts,
    /// Starts of the broker.
    pub starts: u64,
    /// Starts that found a torn tail, and starts that found corruption.
    pub verdicts: (u64, u64),
    /// How long it lasted, in virtual nanoseconds. A run whose disk lost what no shard can start without ends there.
    pub lasted: u64,
}

/// Something that happens at a moment.
#[derive(Debug)]
enum Event {
    /// A disk operation completes.
    Disk(OpId),
    /// A shard's pump runs.
    Turn { shard: u16, incarnation: u64 },
    /// A shard asked to be told the time.
    Tick { shard: u16, incarnation: u64 },
    /// A client asked to be woken.
    Wake { client: usize },
    /// A request reaches the broker.
    Arrive { client: usize, conn: u64, incarnation: u64, request: RequestId, shard: u16, ask: Ask },
    /// An answer reaches its client.
    Deliver { client: usize, conn: u64, reply: Reply },
    /// A client notices that its connection is gone.
    Lost { client: usize, conn: u64 },
    /// The broker is started.
    Boot { incarnation: u64 },
    /// Something bad happens.
    Trouble,
    /// The power goes soon after a start.
    PowerCut { incarnation: u64 },
    /// The file system has room again.
    Room,
    /// Somebody restarts a broker that stopped acknowledging, or that does not come to rest.
    Operator { incarnation: u64 },
    /// Troubles end.
    Heal,
    /// Everything should have its answer by now.
    Settled,
}

/// One topic, as the metadata has it.
#[derive(Debug)]
struct Topic {
    id: TopicId,
    partitions: u32,
    config: TopicConfig,
    epoch: LeaderEpoch,
    deleted: bool,
}

/// Where a shard of the process is in its life.
enum Seat {
    /// Not running; what was committed so far.
    Empty(Shadow),
    /// Recovered, recording its session.
    Booting(Box<Booted>),
    /// Running.
    Up(Box<Hands>),
}

/// A client and its connection.
struct Seated {
    client: Option<Client>,
    conn: u64,
    /// The last message each way arrives then: a connection keeps its order.
    up_at: u64,
    down_at: u64,
    wake_at: u64,
    /// Nothing that was sent on connections before this one arrives any more: what is sent later than something that
    /// was lost is lost too.
    broken_before: u64,
}

struct Origin {
    client: usize,
    conn: u64,
    shard: u16,
}

/// One run.
pub struct Sim {
    plan: Plan,
    world: World<Event>,
    disk: Disk,
    trace: Trace,
    checker: Checker,
    net: Rng,
    chance: Rng,
    nemesis: Rng,
    topics: Vec<Topic>,
    known: Vec<Known>,
    seats: Vec<Seat>,
    quarantined: Vec<bool>,
    up: bool,
    incarnation: u64,
    clients: Vec<Seated>,
    requests: BTreeMap<RequestId, Origin>,
    next_request: u64,
    next_producer: i64,
    turn_due: Vec<bool>,
    tick_at: Vec<u64>,
    turns: u64,
    drained: Vec<bool>,
    damages: u32,
    healed: bool,
    /// A shard refused to start on a disk that was spoiled: nothing more to see.
    given_up: bool,
    starts: u64,
    verdicts: (u64, u64),
    /// Where each audit was when time was up last.
    audited: Vec<Waits>,
    /// How far the groups have read that topics protect, as the shards were told since they are up.
    read_up_to: BTreeMap<TopicPartition, Offset>,
    /// How far they had read who went back, until the shard has taken that.
    going_back: BTreeMap<TopicPartition, Offset>,
}

/// What an audit waits for: a partition, the offset reached and the one to reach.
type Waits = Option<(TopicPartition, u64, u64)>;

impl Sim {
    /// A run by this plan; `printing` writes its trace.
    #[must_use]
    pub fn new(plan: Plan, printing: bool) -> Self {
        let mut rng = Rng::new(plan.seed ^ 0x5eed);
        let disk = Disk::new(rng.fork(1), plan.sector, plan.capacity, plan.weather.clone());
        let shards = usize::from(plan.shards);
        let mut sim = Self {
            world: World::new(rng.fork(2)),
            disk,
            trace: Trace::new(printing),
            checker: Checker::default(),
            net: rng.fork(3),
            chance: rng.fork(4),
            nemesis: rng.fork(5),
            topics: Vec::new(),
            known: Vec::new(),
            seats: (0..shards).map(|_| Seat::Empty(Shadow::new(plan.ring_bytes))).collect(),
            quarantined: vec![false; shards],
            up: false,
            incarnation: 0,
            clients: Vec::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            next_producer: 0,
            turn_due: vec![false; shards],
            tick_at: vec![u64::MAX; shards],
            turns: 0,
            drained: vec![false; shards],
            damages: 0,
            healed: false,
            given_up: false,
            starts: 0,
            verdicts: (0, 0),
            audited: Vec::new(),
            read_up_to: BTreeMap::new(),
            going_back: BTreeMap::new(),
            plan,
        };
        sim.begin();
        sim
    }

    fn begin(&mut self) {
        for shard in 0..self.plan.shards {
            let config = self.plan.shard_config(shard);
            Hands::format(&config, &mut Tools { disk: &mut self.disk, trace: &mut self.trace, now: 0 });
        }
        self.disk.take_scheduled();
        for topic in self.plan.topics.clone() {
            self.create_topic(&topic);
        }
        self.seat_clients();
        self.world.at(0, Event::Boot { incarnation: 0 });
        self.world.at(self.plan.trouble_until, Event::Heal);
        self.world.at(self.plan.produce_until + MILLIS, Event::Settled);
        if !self.plan.troubles.is_empty() {
            let first = self.nemesis.below(2 * self.plan.trouble_every);
            self.world.after(first, Event::Trouble);
        }
    }

    fn seat_clients(&mut self) {
        let mut clients = Vec::new();
        let plan = &self.plan;
        for number in 0..plan.producers + plan.plain_producers {
            let idempotent = number < plan.producers;
            let acks = if idempotent { &[Acks::All, Acks::Leader][..] } else { &[Acks::All, Acks::None] };
            let style = Style {
                idempotent,
                acks: self.chance.pick(acks),
                window: if idempotent { self.chance.between(1, 5) as usize } else { 1 },
                pause: plan.pause,
                value_bytes_max: plan.value_bytes_max,
                batch_bytes_max: plan.batch_bytes_max(),
            };
            clients.push(Client::Producer(Producer::new(style, self.chance.between(1, 3) as usize)));
        }
        let (batch_bytes_max, value_bytes_max) = (plan.batch_bytes_max(), plan.value_bytes_max);
        for _ in 0..plan.libraries {
            let library = Library::new(self.chance.draw(), plan.pause, batch_bytes_max, value_bytes_max);
            clients.push(Client::Library(Box::new(library)));
        }
        for _ in 0..plan.consumers {
            clients.push(Client::Consumer(Consumer::new(self.chance.percent(60))));
        }
        for shard in 0..plan.shards {
            clients.push(Client::Auditor(Auditor::new(shard)));
        }
        if plan.troubles.contains(&Trouble::DeleteRecords) {
            clients.push(Client::Deleter(Deleter::default()));
        }
        for (index, client) in clients.into_iter().enumerate() {
            let wake_at = self.chance.between(MILLIS, 40 * MILLIS);
            self.clients.push(Seated {
                client: Some(client),
                conn: 0,
                up_at: 0,
                down_at: 0,
                wake_at,
                broken_before: 0,
            });
            self.world.at(wake_at, Event::Wake { client: index });
        }
    }

    /// Runs to the end or to the first violation.
    pub fn run(&mut self) -> Outcome {
        while self.checker.violation().is_none() && !self.given_up {
            let Some(event) = self.world.next_until(self.plan.end) else {
                if self.audits_go_on() {
                    continue;
                }
                self.finish();
                break;
            };
            self.trace.at(self.world.nanos());
            self.handle(event);
            for (op, at) in self.disk.take_scheduled() {
                self.world.at(at, Event::Disk(op));
            }
        }
        if let Some(what) = self.checker.violation() {
            self.trace.say(format_args!("VIOLATION {what}"));
        }
        Outcome {
            hash: self.trace.hash(),
            events: self.trace.events(),
            violation: self.checker.violation().map(str::to_owned),
            counts: self.checker.counts,
            starts: self.starts,
            verdicts: self.verdicts,
            lasted: self.world.nanos(),
        }
    }

    /// The disk, as the run left it.
    #[must_use]
    pub const fn disk(&self) -> &Disk {
        &self.disk
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Disk(op) => self.disk_completed(op),
            Event::Turn { shard, incarnation } if incarnation == self.incarnation => self.turn(shard),
            Event::Tick { shard, incarnation } if incarnation == self.incarnation => self.tick(shard),
            Event::Boot { incarnation } if incarnation == self.incarnation => self.boot(),
            Event::Operator { incarnation } if incarnation == self.incarnation => {
                self.trace.event("operator restarts", &[]);
                self.kill();
            }
            Event::PowerCut { incarnation } if incarnation == self.incarnation && !self.healed => {
                self.cut_power_somehow();
            }
            Event::Turn { .. }
            | Event::Tick { .. }
            | Event::Boot { .. }
            | Event::Operator { .. }
            | Event::PowerCut { .. } => {}
            Event::Wake { client } => {
                if self.clients[client].wake_at <= self.world.nanos() {
                    self.clients[client].wake_at = u64::MAX;
                    self.with_client(client, |client, desk, _| client.wake(desk));
                }
            }
            Event::Arrive { client, conn, incarnation, request, shard, ask } => {
                self.arrive(client, conn, incarnation, request, shard, ask);
            }
            Event::Deliver { client, conn, reply } => {
                if self.clients[client].conn == conn {
                    self.with_client(client, |client, desk, scene| client.answered(&reply, desk, scene));
                }
            }
            Event::Lost { client, conn } => {
                if self.clients[client].conn == conn {
                    self.lose_connection(client);
                }
            }
            Event::Trouble => self.trouble(),
            Event::Room => {
                self.trace.event("room", &[]);
                self.disk.set_capacity(self.plan.capacity);
            }
            Event::Heal => self.heal(),
            Event::Settled => self.settle(),
        }
    }

    fn disk_completed(&mut self, op: OpId) {
        let Some(result) = self.disk.complete(op, &mut self.trace) else { return };
        let now = self.world.nanos();
        for shard in 0..self.plan.shards {
            let mut tools = Tools { disk: &mut self.disk, trace: &mut self.trace, now };
            match &mut self.seats[usize::from(shard)] {
                Seat::Up(hands) if hands.owns(op) => {
                    hands.completed(op, result, &mut tools);
                    self.after_hands(shard);
                    return;
                }
                Seat::Booting(booted) => {
                    if let Err(fault) = booted.completed(op, &result, &mut tools) {
                        self.trace.say(format_args!("start failed: {fault:?}"));
                        self.kill();
                        return;
                    }
                    self.start_if_ready();
                }
                Seat::Up(_) | Seat::Empty(_) => {}
            }
        }
    }

    /// Tells a shard something and sees to it that its pump runs.
    fn tell(&mut self, shard: u16, input: Input) {
        if let Seat::Up(hands) = &mut self.seats[usize::from(shard)] {
            hands.tell(input);
            self.turn_soon(shard);
        }
    }

    fn turn_soon(&mut self, shard: u16) {
        let due = &mut self.turn_due[usize::from(shard)];
        if !*due {
            *due = true;
            let wait = self.net.between(MICROS, 30 * MICROS);
            self.world.after(wait, Event::Turn { shard, incarnation: self.incarnation });
        }
    }

    fn turn(&mut self, shard: u16) {
        let index = usize::from(shard);
        self.turn_due[index] = false;
        self.turns += 1;
        let (now, nanos) = (self.world.now(), self.world.nanos());
        let Seat::Up(hands) = &mut self.seats[index] else { return };
        let mut tools = Tools { disk: &mut self.disk, trace: &mut self.trace, now: nanos };
        hands.turn(now, self.plan.inputs_max, &mut tools);
        if self.turns.is_multiple_of(32)
            && let Some(what) = hands.shard().broken_invariant()
        {
            self.checker.violated(format!("invariant of shard {shard}: {what}"));
        }
        self.after_hands(shard);
    }

    /// Sends what is ready, reads what the operator should, sees to the next turn and tick.
    fn after_hands(&mut self, shard: u16) {
        let index = usize::from(shard);
        let Seat::Up(hands) = &mut self.seats[index] else { return };
        let (replies, notes) = (hands.take_replies(), hands.take_notes());
        let more = hands.has_inputs();
        let deadline = hands.shard().next_deadline().map_or(u64::MAX, corelog_core::time::Instant::nanos);
        for note in notes {
            self.note(shard, note);
        }
        for reply in replies {
            self.send_reply(reply);
        }
        if more {
            self.turn_soon(shard);
        } else {
            self.gone_back(shard);
        }
        if deadline < self.tick_at[index] {
            let at = deadline.max(self.world.nanos() + MICROS);
            self.tick_at[index] = at;
            self.world.at(at, Event::Tick { shard, incarnation: self.incarnation });
        }
    }

    fn tick(&mut self, shard: u16) {
        let index = usize::from(shard);
        if self.world.nanos() < self.tick_at[index] {
            return;
        }
        self.tick_at[index] = u64::MAX;
        if self.chance.percent(1) {
            self.protect_others();
        }
        self.read_on(shard);
        self.tell(shard, Input::Tick);
    }

    fn shard_of(&self, tp: TopicPartition) -> u16 {
        let hash = crc32fast::hash(tp.topic.as_bytes()).wrapping_add(tp.partition);
        (hash % u32::from(self.plan.shards)) as u16
    }

    /// Adds a topic to the metadata.
    fn create_topic(&mut self, plan: &TopicPlan) {
        let mut id = [0; 16];
        self.chance.fill(&mut id);
        let topic = Topic {
            id: TopicId::from_bytes(id),
            partitions: plan.partitions,
            config: plan.config.clone(),
            epoch: LeaderEpoch::new(0),
            deleted: false,
        };
        self.topics.push(topic);
        self.topic_created(self.topics.len() - 1);
    }
}
