//! A client that deletes records now and then, and remembers what it was promised.

use super::{Ask, Desk, Reply};
use crate::world::{MILLIS, SECONDS};
use corelog_core::shard::RequestId;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::Offset;
use corelog_wire::message::Answer;

/// One deleter.
#[derive(Debug, Default)]
pub struct Deleter {
    outstanding: Option<RequestId>,
    next_at: u64,
}

impl Deleter {
    pub(super) fn wake(&mut self, desk: &mut Desk<'_>) {
        if desk.now >= desk.produce_until {
            return;
        }
        if desk.now < self.next_at {
            return desk.wake(self.next_at);
        }
        self.next_at = desk.now + desk.rng.between(SECONDS, 6 * SECONDS);
        desk.wake(self.next_at);
        if self.outstanding.is_some() || desk.known.is_empty() {
            return;
        }
        let known = desk.rng.pick(desk.known);
        let Some(readable) = desk.checker.readable(known.tp) else { return };
        let before = desk.rng.between(readable.start, readable.end.max(readable.start));
        // The broker may delete up to here from the moment it gets the request.
        desk.checker.start_moved(known.tp, Offset::new(before));
        let request = desk.send(known.shard, Ask::Delete(vec![(known.tp, Offset::new(before))]));
        self.outstanding = Some(request);
    }

    pub(super) fn answered(&mut self, reply: &Reply, desk: &mut Desk<'_>) {
        if self.outstanding != Some(reply.request) {
            return;
        }
        self.outstanding = None;
        if let Answer::DeleteRecords(answer) = &reply.answer {
            for row in answer.rows.iter().filter(|row| row.error == ErrorCode::None) {
                desk.checker.start_acknowledged(row.tp, row.log_start, desk.now);
            }
        }
        desk.wake(desk.now + 100 * MILLIS);
    }

    pub(super) fn lost(&mut self, desk: &mut Desk<'_>) {
        self.outstanding = None;
        desk.wake(desk.now + 100 * MILLIS);
    }
}
