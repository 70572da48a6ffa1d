//! Reads every partition of a shard from its start to its end, once after each start of the broker and at the end.
//!
//! Reading skips nothing (the checker sees to that), so an audit that reached an offset has seen everything below it
//! that must be there.

use super::{Ask, Desk, Known, Reply};
use crate::checker::{Read, Scene};
use crate::world::{MILLIS, SECONDS};
use corelog_core::shard::{FetchRow, RequestId};
use corelog_wire::ids::{Offset, TopicPartition};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::Answer;
use std::collections::BTreeMap;

const PATIENCE: u64 = 6 * SECONDS;

/// The audit of one shard.
#[derive(Debug)]
pub struct Auditor {
    shard: u16,
    /// Partitions to read, with the offset reached and the end that must be reached.
    left: BTreeMap<TopicPartition, (u64, u64)>,
    wanted: bool,
    outstanding: Option<(RequestId, u64, TopicPartition)>,
    next_at: u64,
    finished: u64,
}

impl Auditor {
    /// An auditor of this shard, with nothing to do yet.
    #[must_use]
    pub const fn new(shard: u16) -> Self {
        Self { shard, left: BTreeMap::new(), wanted: false, outstanding: None, next_at: 0, finished: 0 }
    }

    /// Read everything, from now on.
    pub fn start(&mut self) {
        self.wanted = true;
        self.left.clear();
    }

    /// Whether an audit is still under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.wanted || !self.left.is_empty()
    }

    /// What an unfinished audit waits for.
    #[must_use]
    pub fn waits_for(&self) -> Option<(TopicPartition, u64, u64)> {
        self.left.iter().next().map(|(tp, (from, to))| (*tp, *from, *to))
    }

    /// How many audits were finished.
    #[must_use]
    pub const fn finished(&self) -> u64 {
        self.finished
    }

    pub(super) fn wake(&mut self, desk: &mut Desk<'_>) {
        if let Some((_, sent, _)) = self.outstanding {
            if desk.now >= sent + PATIENCE {
                desk.hang_up = true;
            } else {
                desk.wake(sent + PATIENCE);
            }
            return;
        }
        if desk.now < self.next_at {
            return desk.wake(self.next_at);
        }
        if self.wanted {
            self.wanted = false;
            let mine = desk.known.iter().filter(|known| known.shard == self.shard);
            let end = |known: &Known| desk.checker.readable(known.tp).map_or(0, |readable| readable.end);
            self.left = mine.map(|known| (known.tp, (0, end(known)))).collect();
        }
        let known = desk.known;
        self.left.retain(|tp, _| known.iter().any(|known| known.tp == *tp));
        let Some((&tp, &(offset, _))) = self.left.first_key_value() else { return };
        let row = FetchRow { tp, offset: Offset::new(offset), bytes_max: 256 << 10, leader_epoch: None };
        let ask = Ask::Fetch {
            wait_ms: 0,
            bytes_min: 1,
            bytes_max: 256 << 10,
            rows: vec![row],
            filter: TagFilter::ALL,
        };
        let request = desk.send(self.shard, ask);
        self.outstanding = Some((request, desk.now, tp));
        desk.wake(desk.now + PATIENCE);
    }

    pub(super) fn answered(
        &mut self,
        reply: &Reply,
        desk: &mut Desk<'_>,
        scene: &mut dyn FnMut(TopicPartition) -> Scene,
    ) {
        let Some((request, sent, tp)) = self.outstanding else { return };
        if request != reply.request {
            return;
        }
        self.outstanding = None;
        self.next_at = desk.now;
        if let Answer::Fetch(answer) = &reply.answer
            && let Some(row) = answer.rows.first()
            && let Some((offset, end)) = self.left.get_mut(&tp)
        {
            let scene = Scene { invoked: sent, ..scene(tp) };
            let bytes = reply.payload.slice(..row.bytes as usize);
            match desk.checker.fetched(Offset::new(*offset), &TagFilter::ALL, row, &bytes, &scene) {
                Read::Advanced { next, .. } => *offset = next,
                Read::StartsAt(start) if start > *offset => *offset = start,
                Read::Damaged => {
                    *offset = desk.checker.next_known(tp, *offset).unwrap_or(*end).max(*offset + 1);
                }
                // A shard that said it is corrupt may be without its end.
                Read::Nothing | Read::StartsAt(_) if scene.quarantined => *offset = *end,
                Read::Nothing | Read::StartsAt(_) => self.next_at = desk.now + 20 * MILLIS,
            }
            if *offset >= *end {
                self.left.remove(&tp);
                if self.left.is_empty() {
                    self.finished += 1;
                }
            }
        } else {
            self.next_at = desk.now + 50 * MILLIS;
        }
        self.wake(desk);
    }

    pub(super) fn lost(&mut self, desk: &mut Desk<'_>) {
        self.outstanding = None;
        self.next_at = desk.now + desk.rng.between(20 * MILLIS, 100 * MILLIS);
        desk.wake(self.next_at);
    }
}
