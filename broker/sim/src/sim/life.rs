//! The life of the broker process and of its topics: start, recovery judged, death.

use super::{Event, Seat, Sim};
use crate::checker::check_segments;
use crate::client::{Client, Known};
use crate::disk::CutStyle;
use crate::hands::{Booted, Hands, Tools};
use crate::shadow::{Judgement, Shadow};
use crate::world::{MILLIS, SECONDS};
use corelog_core::journal::Position;
use corelog_core::shard::{Input, Note};
use corelog_core::topic::{Durability, FullPolicy};
use corelog_wire::ids::{LeaderEpoch, Offset, TopicPartition};

impl Sim {
    /// Starts the process: every shard recovers from what the disk has.
    pub(super) fn boot(&mut self) {
        self.starts += 1;
        self.trace.event("boot", &[self.starts]);
        for shard in 0..self.plan.shards {
            let index = usize::from(shard);
            let seat =
                std::mem::replace(&mut self.seats[index], Seat::Empty(Shadow::new(self.plan.ring_bytes)));
            let Seat::Empty(shadow) = seat else { continue };
            let journal = self.disk.open(&format!("shard-{shard}/journal"));
            let judgement = journal.map(|journal| shadow.judge(&self.disk, journal));
            let config = self.plan.shard_config(shard);
            let mut tools = Tools { disk: &mut self.disk, trace: &mut self.trace, now: self.world.nanos() };
            match Hands::boot(config, self.plan.chunk_bytes, shadow, &mut tools) {
                Ok(mut booted) => {
                    if let Some(judgement) = judgement {
                        self.judge_recovery(shard, &judgement, &mut booted);
                    }
                    self.seats[index] = Seat::Booting(Box::new(booted));
                }
                Err((fault, shadow)) => {
                    self.trace.say(format_args!("shard {shard} refuses to start: {fault:?}"));
                    self.seats[index] = Seat::Empty(shadow);
                    if self.disk.was_spoiled(&format!("shard-{shard}/")) {
                        self.given_up = true;
                    } else {
                        self.checker
                            .violated(format!("shard {shard} refuses to start on a sound disk: {fault:?}"));
                    }
                    return;
                }
            }
        }
        self.start_if_ready();
        self.trouble_after_start();
    }

    /// Holds what recovery made of the journal against what is provably on the disk.
    fn judge_recovery(&mut self, shard: u16, judgement: &Judgement, booted: &mut Booted) {
        let snapshot = booted.hands().shard().snapshot();
        let head = Position::new(snapshot.journal_head);
        self.trace.event("recovered", &[head.get(), u64::from(snapshot.read_only)]);
        let spoiled = self.disk.was_spoiled(&format!("shard-{shard}/"));
        self.quarantined[usize::from(shard)] = snapshot.read_only;
        if snapshot.read_only {
            self.verdicts.1 += 1;
            if !spoiled {
                self.checker
                    .violated(format!("shard {shard}: a sound journal is called corrupt: {}", booted.report));
            }
            return;
        }
        if head < judgement.flushed_to {
            self.checker.violated(format!(
                "D4: shard {shard} was cut at {}, though everything below {} is known to be flushed",
                head.get(),
                judgement.flushed_to.get()
            ));
        }
        self.verdicts.0 += u64::from(judgement.whole_to.get() < self.last_end(booted.hands().shadow()));
        let excused = self.excused_from(booted.hands(), head);
        booted.shadow_mut().cut(head);
        for (tp, base, _) in excused {
            self.checker.excused_from(tp, base, &mut self.trace);
        }
        let memory: Vec<(TopicPartition, Offset)> = self
            .known
            .iter()
            .filter(|known| known.shard == shard)
            .map(|known| {
                let end =
                    booted.hands().shard().describe(known.tp).map_or(Offset::ZERO, |found| found.log_end);
                (known.tp, end)
            })
            .collect();
        for (tp, end) in memory {
            self.checker.memory_lost(tp, end, &mut self.trace);
        }
    }

    fn last_end(&self, shadow: &Shadow) -> u64 {
        shadow.commits().back().map_or(0, |last| last.at.get() + last.bytes)
    }

    /// Batches whose loss is excused: those from the first cut commit on that the disk had spoiled. Nothing said about
    /// it that it was flushed, which is the stated limit of what recovery can notice.
    fn excused_from(&self, hands: &Hands, head: Position) -> Vec<(TopicPartition, Offset, Offset)> {
        let (shadow, journal) = (hands.shadow(), hands.journal());
        let spoiled = shadow
            .commits()
            .iter()
            .find(|commit| commit.at >= head && shadow.is_damaged(commit, &self.disk, journal));
        spoiled.map_or(Vec::new(), |commit| shadow.batches_from(commit.at))
    }

    /// Once every shard has recorded its session: the process serves.
    pub(super) fn start_if_ready(&mut self) {
        let ready = |seat: &Seat| matches!(seat, Seat::Booting(booted) if booted.is_ready());
        if self.up || !self.seats.iter().all(ready) {
            return;
        }
        self.up = true;
        self.trace.event("up", &[self.starts]);
        for index in 0..self.seats.len() {
            let seat = std::mem::replace(&mut self.seats[index], Seat::Empty(Shadow::new(0)));
            if let Seat::Booting(booted) = seat {
                let mut hands = Box::new(booted.into_hands());
                hands.session_started();
                if let Err(what) = check_segments(&self.disk, hands.shadow(), &self.checker) {
                    self.checker.violated(what);
                }
                self.seats[index] = Seat::Up(hands);
            }
        }
        for topic in 0..self.topics.len() {
            self.topics[topic].epoch = LeaderEpoch::new(self.topics[topic].epoch.get() + 1);
            self.lead(topic);
        }
        for shard in 0..self.plan.shards {
            self.bury(shard);
        }
        for index in 0..self.clients.len() {
            if let Some(Client::Auditor(auditor)) = &mut self.clients[index].client {
                auditor.start();
                self.with_client(index, |client, desk, _| client.wake(desk));
            }
        }
    }

    /// Tells the shards which partitions of a topic they lead.
    pub(super) fn lead(&mut self, topic: usize) {
        let Some(topic) = self.topics.get(topic) else { return };
        if topic.deleted {
            return;
        }
        let (epoch, config) = (topic.epoch, topic.config.clone());
        for tp in partitions_of(topic.id, topic.partitions) {
            self.tell(self.shard_of(tp), Input::Lead { tp, epoch, config: config.clone() });
        }
    }

    /// Removes partitions whose topics have a tombstone.
    fn bury(&mut self, shard: u16) {
        let Seat::Up(hands) = &self.seats[usize::from(shard)] else { return };
        let deleted =
            |tp: &TopicPartition| self.topics.iter().any(|topic| topic.deleted && topic.id == tp.topic);
        let dead: Vec<TopicPartition> = hands.shard().partitions().filter(deleted).collect();
        for tp in dead {
            self.tell(shard, Input::Remove { tp });
        }
    }

    /// A topic is in the metadata from now on.
    pub(super) fn topic_created(&mut self, topic: usize) {
        let Topic { id, partitions, memory } = Topic::of(&self.topics[topic]);
        for tp in partitions_of(id, partitions) {
            self.checker.created(tp, memory);
            self.known.push(Known { tp, shard: self.shard_of(tp) });
        }
        if self.up {
            self.topics[topic].epoch = LeaderEpoch::new(1);
            self.lead(topic);
        }
    }

    /// A topic has a tombstone from now on.
    pub(super) fn delete_topic(&mut self, topic: usize) {
        self.topics[topic].deleted = true;
        let Topic { id, partitions, .. } = Topic::of(&self.topics[topic]);
        for tp in partitions_of(id, partitions) {
            self.checker.deleted(tp);
            self.known.retain(|known| known.tp != tp);
            self.tell(self.shard_of(tp), Input::Remove { tp });
        }
    }

    /// A topic's settings are others from now on.
    pub(super) fn configure_topic(&mut self, topic: usize) {
        let config = self.topics[topic].config.clone();
        let Topic { id, partitions, .. } = Topic::of(&self.topics[topic]);
        for tp in partitions_of(id, partitions) {
            self.tell(self.shard_of(tp), Input::Configure { tp, config: config.clone() });
        }
    }

    /// The process is killed; the machine goes on.
    pub(super) fn kill(&mut self) {
        self.trace.event("kill", &[]);
        self.disk.kill();
        self.died();
    }

    /// The power goes.
    pub(super) fn cut_power(&mut self, style: CutStyle) {
        self.trace.event("power cut", &[style as u64]);
        self.disk.cut(style);
        self.died();
    }

    fn died(&mut self) {
        self.up = false;
        self.incarnation += 1;
        self.requests.clear();
        self.read_up_to.clear();
        self.going_back.clear();
        for index in 0..self.seats.len() {
            let seat = std::mem::replace(&mut self.seats[index], Seat::Empty(Shadow::new(0)));
            self.seats[index] = Seat::Empty(match seat {
                Seat::Empty(shadow) => shadow,
                Seat::Booting(booted) => booted.into_shadow(),
                Seat::Up(hands) => hands.into_shadow(),
            });
            self.turn_due[index] = false;
            self.tick_at[index] = u64::MAX;
            self.drained[index] = false;
        }
        for client in 0..self.clients.len() {
            let wait = self.net.between(MILLIS, 500 * MILLIS);
            let conn = self.clients[client].conn;
            self.clients[client].broken_before = conn + 1;
            self.world.after(wait, Event::Lost { client, conn });
        }
        let wait = self.net.between(10 * MILLIS, 800 * MILLIS);
        self.world.after(wait, Event::Boot { incarnation: self.incarnation });
    }

    /// Something that an operator should read.
    pub(super) fn note(&mut self, shard: u16, note: Note) {
        self.trace
            .event("note", &[u64::from(shard), u64::from(crc32fast::hash(format!("{note:?}").as_bytes()))]);
        self.trace.say(format_args!("  note of shard {shard}: {note:?}"));
        match note {
            Note::LogStartMoved { tp, from: _, to, reason } => {
                self.check_reason(tp, reason);
                self.check_unread(tp, to, reason);
                self.checker.start_moved(tp, to);
            }
            Note::Poisoned { .. } => {
                let wait = self.net.between(300 * MILLIS, 3 * SECONDS);
                self.world.after(wait, Event::Operator { incarnation: self.incarnation });
            }
            Note::Drained => {
                self.drained[usize::from(shard)] = true;
                if self.drained.iter().all(|drained| *drained) {
                    self.trace.event("stopped", &[]);
                    self.kill();
                }
            }
            _ => {}
        }
    }

    /// A log start moves only for a reason that the settings or a client gave.
    fn check_reason(&mut self, tp: TopicPartition, reason: &'static str) {
        let Some(topic) = self.topics.iter().find(|topic| topic.id == tp.topic) else { return };
        let config = &topic.config;
        let allowed = match reason {
            "retention_ms" => config.retention_ms.is_some(),
            "retention_bytes" => config.retention_bytes.is_some(),
            "disk_bytes_max" => config.full_policy != FullPolicy::BlockProducer,
            _ => true,
        };
        if !allowed {
            self.checker
                .violated(format!("D7: the log start of {tp} moved by {reason}, which its topic forbids"));
        }
    }
}

/// What is needed of a topic.
struct Topic {
    id: corelog_wire::ids::TopicId,
    partitions: u32,
    memory: bool,
}

impl Topic {
    fn of(topic: &super::Topic) -> Self {
        let memory = topic.config.durability == Durability::Memory;
        Self { id: topic.id, partitions: topic.partitions, memory }
    }
}

fn partitions_of(id: corelog_wire::ids::TopicId, count: u32) -> impl Iterator<Item = TopicPartition> {
    (0..count).map(move |partition| TopicPartition::new(id, partition))
}
