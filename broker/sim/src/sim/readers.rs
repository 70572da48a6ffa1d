//! The groups that topics protect from retention: how far they have read is drawn, and no log start may pass it.

use super::{Seat, Sim};
use corelog_core::group::GroupName;
use corelog_core::shard::{Input, ReadUpTo};
use corelog_wire::ids::{Offset, TopicPartition};
use std::sync::Arc;

impl Sim {
    /// Groups read on: tells a shard how far they are in what it leads. Now and then the word is of others.
    pub(super) fn read_on(&mut self, shard: u16) {
        let Seat::Up(hands) = &self.seats[usize::from(shard)] else { return };
        let mut rows = Vec::new();
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
            let offset = Offset::new(self.chance.between(before.get(), end.get()));
            if self.chance.percent(10) {
                let groups = GroupName::new("others").into_iter().collect();
                rows.push(ReadUpTo { tp, groups, offset: end });
            } else {
                self.read_up_to.insert(tp, offset);
                rows.push(ReadUpTo { tp, groups: Arc::clone(groups), offset });
            }
        }
        if !rows.is_empty() {
            self.tell(shard, Input::Read(rows));
        }
    }

    /// A log start moved: nothing went that a protected group still has to read.
    pub(super) fn check_unread(&mut self, tp: TopicPartition, to: Offset, reason: &'static str) {
        let topic = self.topics.iter().find(|topic| topic.id == tp.topic);
        let protects = topic.is_some_and(|topic| !topic.config.protect_groups.is_empty());
        let read = self.read_up_to.get(&tp).copied().unwrap_or(Offset::ZERO);
        if protects && reason != "delete_records" && to > read {
            self.checker.violated(format!(
                "D7: the log start of {tp} moved to {to} by {reason}; a protected group has read up to {read}"
            ));
        }
    }
}
