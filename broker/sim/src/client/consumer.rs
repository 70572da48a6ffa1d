//! A reader: follows the end of its partitions with long polls, or jumps about in what is there.
//!
//! Everything it is served goes to the checker. A reader that is told that its offset is gone goes on at the log start.

use super::{Ask, Desk, Known, Reply, TAGS};
use crate::checker::{Read, Scene};
use crate::world::{MILLIS, SECONDS};
use corelog_core::shard::{FetchRow, RequestId};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{Offset, TopicPartition};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{Answer, At, ListOffsetsRow};

/// A reader waits this long for an answer beyond what it asked the broker to wait.
const PATIENCE: u64 = 6 * SECONDS;

#[derive(Clone, Copy, Debug)]
struct Place {
    known: Known,
    position: u64,
}

/// One reader.
#[derive(Debug)]
pub struct Consumer {
    /// Follows the end; otherwise it jumps.
    tails: bool,
    places: Vec<Place>,
    outstanding: Option<(RequestId, u64, Asked)>,
    next_at: u64,
    polls: u64,
    /// What was asked for last.
    filter: TagFilter,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Fetch,
    List(Option<i64>),
}

impl Consumer {
    /// A reader.
    #[must_use]
    pub const fn new(tails: bool) -> Self {
        Self { tails, places: Vec::new(), outstanding: None, next_at: 0, polls: 0, filter: TagFilter::ALL }
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
        self.choose(desk);
        let Some(first) = self.places.first() else { return desk.wake(desk.now + 100 * MILLIS) };
        let shard = first.known.shard;
        self.polls += 1;
        let (ask, asked) =
            if desk.rng.percent(4) { self.list(desk) } else { (self.fetch(desk), Asked::Fetch) };
        let request = desk.send(shard, ask);
        self.outstanding = Some((request, desk.now, asked));
        desk.wake(desk.now + PATIENCE);
    }

    fn choose(&mut self, desk: &mut Desk<'_>) {
        self.places.retain(|place| desk.known.iter().any(|known| known.tp == place.known.tp));
        if desk.known.is_empty() || (self.places.len() >= 2 && !desk.rng.percent(2)) {
            return;
        }
        let known = desk.rng.pick(desk.known);
        let elsewhere = self.places.first().is_some_and(|place| place.known.shard != known.shard);
        if elsewhere || self.places.iter().any(|place| place.known.tp == known.tp) || self.places.len() >= 3 {
            return;
        }
        self.places.push(Place { known, position: 0 });
    }

    fn fetch(&mut self, desk: &mut Desk<'_>) -> Ask {
        if !self.tails && self.polls.is_multiple_of(4) {
            for place in &mut self.places {
                let end = desk.checker.readable(place.known.tp).map_or(0, |readable| readable.end);
                place.position = desk.rng.between(0, end);
            }
        }
        let row = |place: &Place| FetchRow {
            tp: place.known.tp,
            offset: Offset::new(place.position),
            bytes_max: 64 << 10,
            leader_epoch: None,
        };
        let rows = self.places.iter().map(row).collect();
        let tag = desk.rng.percent(30).then(|| desk.rng.pick(&TAGS));
        self.filter = TagFilter::of(tag).unwrap_or_default();
        Ask::Fetch {
            filter: self.filter.clone(),
            wait_ms: if self.tails { desk.rng.pick(&[50, 500, 3_000]) } else { 0 },
            bytes_min: desk.rng.pick(&[1, 1, 5_000]),
            bytes_max: desk.rng.pick(&[1, 8 << 10, 256 << 10]),
            rows,
        }
    }

    fn list(&mut self, desk: &mut Desk<'_>) -> (Ask, Asked) {
        let time = desk.rng.percent(60).then(|| desk.wall_ms - desk.rng.below(30_000).cast_signed());
        let at = time.map_or(At::Latest, At::Timestamp);
        let rows = self.places.iter().map(|place| ListOffsetsRow { tp: place.known.tp, at }).collect();
        (Ask::List(rows), Asked::List(time))
    }

    pub(super) fn answered(
        &mut self,
        reply: &Reply,
        desk: &mut Desk<'_>,
        scene: &mut dyn FnMut(TopicPartition) -> Scene,
    ) {
        let Some((request, sent, asked)) = self.outstanding else { return };
        if request != reply.request {
            return;
        }
        self.outstanding = None;
        match (&reply.answer, asked) {
            (Answer::Fetch(answer), Asked::Fetch) => {
                let mut may_be_empty = false;
                for row in &answer.rows {
                    let Some(place) = self.places.iter_mut().find(|place| place.known.tp == row.tp) else {
                        continue;
                    };
                    let from = row.first_byte as usize;
                    let bytes = reply.payload.slice(from..from + row.bytes as usize);
                    let scene = Scene { invoked: sent, may_be_empty, ..scene(row.tp) };
                    let moved = row.next_offset.is_some_and(|next| next.get() > place.position);
                    may_be_empty |= row.bytes > 0 || moved || row.error == ErrorCode::CorruptBatch;
                    match desk.checker.fetched(Offset::new(place.position), &self.filter, row, &bytes, &scene)
                    {
                        Read::Advanced { next, .. } => place.position = next,
                        Read::StartsAt(start) => place.position = start,
                        Read::Damaged => {
                            place.position =
                                desk.checker.next_known(row.tp, place.position).unwrap_or(place.position);
                        }
                        Read::Nothing => {}
                    }
                }
            }
            (Answer::ListOffsets(answer), Asked::List(time)) => {
                for row in &answer.rows {
                    let scene = Scene { invoked: sent, ..scene(row.tp) };
                    desk.checker.listed(time, row, &scene);
                }
            }
            (Answer::Refused { .. }, _) => {}
            _ => desk.checker.violated("a reader got another kind of answer".to_owned()),
        }
        let pause = if self.tails {
            desk.rng.between(MILLIS, 60 * MILLIS)
        } else {
            desk.rng.between(20 * MILLIS, 400 * MILLIS)
        };
        self.next_at = desk.now + pause;
        desk.wake(self.next_at);
    }

    pub(super) fn lost(&mut self, desk: &mut Desk<'_>) {
        self.outstanding = None;
        self.next_at = desk.now + desk.rng.between(50 * MILLIS, 300 * MILLIS);
        desk.wake(self.next_at);
    }
}
