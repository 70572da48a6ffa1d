//! Troubles, as the plan enables them, at random moments.

use super::{Event, Seat, Sim};
use crate::disk::{Class, CutStyle, Fault};
use crate::plan::Trouble;
use crate::world::{MILLIS, SECONDS};
use corelog_core::journal::SegmentId;
use corelog_core::limits::{KIB, MIB};
use corelog_core::segment;
use corelog_core::shard::Input;
use corelog_core::topic::Durability;

impl Sim {
    /// One trouble, and the next one's time.
    pub(super) fn trouble(&mut self) {
        if self.healed {
            return;
        }
        let wait = self.nemesis.between(10 * MILLIS, 2 * self.plan.trouble_every);
        self.world.after(wait, Event::Trouble);
        let trouble = self.nemesis.pick(&self.plan.troubles.clone());
        self.trace.event("trouble", &[trouble as u64]);
        self.trace.say(format_args!("trouble: {trouble:?}"));
        match trouble {
            Trouble::Kill => self.kill(),
            Trouble::PowerCut => self.cut_power_somehow(),
            Trouble::Restart => {
                for shard in 0..self.plan.shards {
                    self.tell(shard, Input::Drain);
                }
                // A stop that does not come to an end is ended.
                self.world.after(8 * SECONDS, Event::Operator { incarnation: self.incarnation });
            }
            Trouble::WriteError => self.arm(Fault::WriteError),
            Trouble::FlushError => self.arm(Fault::FlushError),
            Trouble::LostWrite | Trouble::MisdirectedWrite if self.may_spoil() => {
                let lost = trouble == Trouble::LostWrite;
                self.arm(if lost { Fault::LostWrite } else { Fault::MisdirectedWrite });
            }
            Trouble::JournalRot if self.may_spoil() => self.rot_journal(),
            Trouble::SegmentRot if self.may_spoil() => self.rot_segment(),
            Trouble::CheckpointRot if self.may_spoil() => self.rot_checkpoint(),
            Trouble::LostWrite
            | Trouble::MisdirectedWrite
            | Trouble::JournalRot
            | Trouble::SegmentRot
            | Trouble::CheckpointRot => {}
            Trouble::FullDisk => {
                let room = self.nemesis.between(0, 2 * MIB);
                // Others write to the file system too, and leave no margin.
                let margin = if self.nemesis.percent(60) { crate::hands::MARGIN_BYTES } else { 0 };
                self.disk.set_capacity(self.disk.used() + margin + room);
                let wait = self.nemesis.between(500 * MILLIS, 6 * SECONDS);
                self.world.after(wait, Event::Room);
            }
            Trouble::SlowDisk => {
                let until = self.world.nanos() + self.nemesis.between(SECONDS, 5 * SECONDS);
                let factor = self.nemesis.between(3, 60);
                self.disk.slow_until(until, factor);
            }
            Trouble::ClockJump => self.jump_clock(),
            Trouble::Disconnect => {
                for client in 0..self.clients.len() {
                    if self.nemesis.percent(40) {
                        self.lose_connection(client);
                    }
                }
            }
            Trouble::Topics => self.change_topics(),
            // Clients do it on their own.
            Trouble::DeleteRecords => {}
        }
    }

    pub(super) fn cut_power_somehow(&mut self) {
        let style = CutStyle::draw(&mut self.nemesis);
        self.cut_power(style);
    }

    /// The moments in which a start records what it found, and those right after it, are short: some starts meet a power
    /// cut in them, so that what a start believes to be durable has to be.
    pub(super) fn trouble_after_start(&mut self) {
        if self.healed || !self.plan.troubles.contains(&Trouble::PowerCut) || !self.nemesis.percent(15) {
            return;
        }
        let wait = self.nemesis.between(0, 20 * MILLIS);
        self.world.after(wait, Event::PowerCut { incarnation: self.incarnation });
    }

    fn may_spoil(&mut self) -> bool {
        self.damages += 1;
        self.damages <= self.plan.damages_max
    }

    fn arm(&mut self, fault: Fault) {
        let class = self.nemesis.pick(&[
            Class::Journal,
            Class::Journal,
            Class::Segment,
            Class::Segment,
            Class::Checkpoint,
            Class::Index,
        ]);
        self.trace.say(format_args!("armed {fault:?} for {class:?}"));
        self.disk.arm(fault, class);
    }

    fn rot_journal(&mut self) {
        let shard = self.nemesis.below(self.seats.len() as u64) as usize;
        let shadow = match &self.seats[shard] {
            Seat::Empty(shadow) => shadow,
            Seat::Booting(_) => return,
            Seat::Up(hands) => hands.shadow(),
        };
        let Some(journal) = self.disk.open(&format!("shard-{shard}/journal")) else { return };
        let commits = shadow.commits();
        if commits.is_empty() {
            return;
        }
        let at = self.nemesis.below(commits.len() as u64) as usize;
        let ranges = shadow.ranges(&commits[at]);
        let (offset, bytes) = self.nemesis.pick(&ranges);
        self.trace.say(format_args!("rot in the commit at {}", commits[at].at.get()));
        self.disk.rot(journal, offset, bytes);
    }

    fn rot_segment(&mut self) {
        let shard = self.nemesis.below(self.seats.len() as u64) as usize;
        let Seat::Up(hands) = &self.seats[shard] else { return };
        let extents: Vec<_> = hands.shadow().extents().copied().collect();
        if extents.is_empty() {
            return;
        }
        let extent = self.nemesis.pick(&extents);
        if let Some(file) = crate::hands::Hands::open_segment(extent.segment, &self.disk) {
            self.disk.rot(file, extent.file_position, extent.bytes);
        }
    }

    /// One slot of one shard, or an index file. Never both slots: losing both is a case of its own.
    fn rot_checkpoint(&mut self) {
        let shard = self.nemesis.below(self.seats.len() as u64);
        if self.nemesis.percent(50) {
            let slots = [0, 1].map(|slot| format!("shard-{shard}/checkpoint-{slot}"));
            if slots.iter().any(|slot| self.disk.was_spoiled(slot)) {
                return;
            }
            let slot = self.nemesis.pick(&[0, 1]);
            if let Some(file) = self.disk.open(&slots[slot]) {
                let bytes = self.disk.size(file);
                self.disk.rot(file, 0, bytes);
            }
            return;
        }
        let is_index = |path: &String| std::path::Path::new(path).extension().is_some_and(|end| end == "idx");
        let indexes: Vec<String> = self.disk.list("topics").into_iter().filter(is_index).collect();
        if let Some(path) = indexes.get(self.nemesis.below(indexes.len() as u64) as usize)
            && let Some(file) = self.disk.open(path)
        {
            let bytes = self.disk.size(file);
            self.disk.rot(file, 0, bytes);
        }
    }

    fn jump_clock(&mut self) {
        let by_ms = if self.nemesis.percent(20) {
            self.checker.producers_may_expire = true;
            self.nemesis.between(1, 3 * 86_400_000).cast_signed()
        } else {
            self.nemesis.between(1, 3_600_000).cast_signed()
        };
        self.world.jump_wall(if self.nemesis.percent(50) { by_ms } else { -by_ms });
    }

    fn change_topics(&mut self) {
        let live: Vec<usize> = (0..self.topics.len()).filter(|&topic| !self.topics[topic].deleted).collect();
        match self.nemesis.below(3) {
            0 if live.len() < 5 => {
                let topic = self.plan.another_topic(&mut self.nemesis);
                self.create_topic(&topic);
            }
            1 if live.len() > 1 => {
                let topic = self.nemesis.pick(&live);
                self.delete_topic(topic);
            }
            _ => {
                let topic = self.nemesis.pick(&live);
                let config = &mut self.topics[topic].config;
                config.retention_bytes = self.nemesis.pick(&[None, Some(128 * KIB), Some(MIB)]);
                config.retention_ms = self.nemesis.pick(&[None, Some(3_000), Some(60_000)]);
                if self.nemesis.percent(25) {
                    config.durability = match config.durability {
                        Durability::Disk => Durability::Memory,
                        Durability::Memory => Durability::Disk,
                    };
                    self.checker.may_lose_tails(self.topics[topic].id);
                }
                self.configure_topic(topic);
            }
        }
    }

    /// The paths of a segment's file and its index, for scenarios.
    #[must_use]
    pub fn paths_of(segment: SegmentId) -> [String; 2] {
        let folder = segment::folder_name(segment.tp);
        [
            format!("topics/{folder}/{}", segment::file_name(segment)),
            format!("topics/{folder}/{}", segment::index_file_name(segment)),
        ]
    }
}
