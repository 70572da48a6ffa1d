//! The groups that topics protect from retention: how far they have read is drawn, and no log start may pass it.

use super::{Seat, Sim};
use corelog_core::group::GroupName;
use corelog_core::shard::{Input, ReadUpTo};
use corelog_core::topic::FullPolicy;
use corelog_wire::ids::{Offset, TopicPartition};
use std::collections::BTreeMap;

impl Sim {
    /// Groups read on: tells a shard how far they are in what it leads. Now and then the word is of others.
    pub(super) fn read_on(&mut self, shard: u16) {
        let Seat::Up(hands) = &self.seats[usize::from(shard)] else { return };
        let mut words = Vec::new();
        for known in self.known.iter().filter(|known| known.shard == shard) {
            let tp = known.tp;
            let topic = self.topics.iter().find(|topic| topic.id == tp.topic);
            let Some(groups) = topic.map(|topic| &topic.config.protect_groups) else { continue };
            let Some(stands) = hands.shard().describe(tp) else { continue };
            if groups.is_empty() || !self.chance.percent(30) {
                continue;
            }
            let before = self.read_up_to.get(&tp).copied().unwrap_or(stands.log_start).max(stands.log_start);
            let end = stands.high_watermark.max(before);
            // Now and then an operator puts them back.
            let from = if self.chance.percent(10) { stands.log_start } else { before };
            let offset = Offset::new(self.chance.between(from.get(), end.get()));
            if self.chance.percent(10) {
                let groups = GroupName::new("others").into_iter().collect();
                words.push(ReadUpTo { groups, rows: vec![(tp, end)] });
            } else {
                if let Some(before) = self.read_up_to.insert(tp, offset) {
                    note(&mut self.going_back, tp, before);
                }
                words.push(ReadUpTo { groups: groups.clone(), rows: vec![(tp, offset)] });
            }
        }
        if !words.is_empty() {
            self.tell(shard, Input::GroupsRead(words));
        }
    }

    /// An operator has a topic protect others; how far those have read is not said yet.
    pub(super) fn protect_others(&mut self) {
        let protecting =
            self.topics.iter().enumerate().filter(|(_, topic)| !topic.config.protect_groups.is_empty());
        let protecting: Vec<usize> = protecting.map(|(index, _)| index).collect();
        if protecting.is_empty() {
            return;
        }
        let index = protecting[self.chance.between(0, protecting.len() as u64 - 1) as usize];
        let topic = &mut self.topics[index];
        let names: &[&str] =
            if topic.config.protect_groups.len() == 1 { &["auditors", "readers"] } else { &["readers"] };
        topic.config.protect_groups = names.iter().flat_map(|name| GroupName::new(name)).collect();
        let id = topic.id;
        for (tp, before) in self.read_up_to.extract_if(.., |tp, _| tp.topic == id).collect::<Vec<_>>() {
            note(&mut self.going_back, tp, before);
        }
        self.configure_topic(index);
    }

    /// A shard has taken all that it was told.
    pub(super) fn gone_back(&mut self, shard: u16) {
        let known = &self.known;
        self.going_back.retain(|tp, _| known.iter().any(|known| known.tp == *tp && known.shard != shard));
    }

    /// A log start moved: nothing went that a protected group still has to read.
    pub(super) fn check_unread(&mut self, tp: TopicPartition, to: Offset, reason: &'static str) {
        let topic = self.topics.iter().find(|topic| topic.id == tp.topic);
        let protects = topic.is_some_and(|topic| {
            let gives_way = reason == "disk_bytes_max" && topic.config.full_policy == FullPolicy::DropOldest;
            !topic.config.protect_groups.is_empty() && !gives_way
        });
        let read = self.read_up_to.get(&tp).max(self.going_back.get(&tp)).copied().unwrap_or(Offset::ZERO);
        if protects && reason != "delete_records" && to > read {
            self.checker.violated(format!(
                "D7: the log start of {tp} moved to {to} by {reason}; a protected group has read up to {read}"
            ));
        }
    }
}

fn note(going_back: &mut BTreeMap<TopicPartition, Offset>, tp: TopicPartition, before: Offset) {
    let furthest = going_back.entry(tp).or_insert(before);
    *furthest = before.max(*furthest);
}
