//! The requests of one shard that wait for their answer.
//!
//! Invariant: an id is answered once; ids of answered requests are never found again, so late answers are harmless.
//! This file refuses to know what is done with an answer.

use corelog_core::shard::RequestId;
use std::time::Instant;

/// The requests under way, by id.
#[derive(Debug)]
pub(super) struct Pending<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    under_way: usize,
}

#[derive(Debug)]
struct Slot<T> {
    /// Distinguishes the requests that had this slot one after the other. Never 0, so no request has id 0.
    generation: u32,
    deadline: Instant,
    waiting: Option<T>,
}

impl<T> Pending<T> {
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new(), under_way: 0 }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.under_way
    }

    /// Takes a request in and names it.
    pub(super) fn insert(&mut self, waiting: T, deadline: Instant) -> RequestId {
        self.under_way += 1;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 1, deadline, waiting: None });
            u32::try_from(self.slots.len() - 1).unwrap_or_else(|_| unreachable!("bounded by connections"))
        });
        let slot = &mut self.slots[index as usize];
        (slot.deadline, slot.waiting) = (deadline, Some(waiting));
        RequestId(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// A request that still waits.
    pub(super) fn get(&self, id: RequestId) -> Option<&T> {
        let (index, generation) = parts(id);
        let slot = self.slots.get(index)?;
        slot.waiting.as_ref().filter(|_| slot.generation == generation)
    }

    /// Takes a request out to answer it; `None` if it was answered.
    pub(super) fn take(&mut self, id: RequestId) -> Option<T> {
        self.get(id)?;
        let (index, _) = parts(id);
        let slot = &mut self.slots[index];
        let waiting = slot.waiting.take()?;
        slot.generation = slot.generation.checked_add(1).unwrap_or(1);
        // It came from an index of 32 bits.
        self.free.push(u32::try_from(index).unwrap_or_default());
        self.under_way -= 1;
        Some(waiting)
    }

    /// The requests whose deadline passed.
    pub(super) fn expired(&self, now: Instant) -> Vec<RequestId> {
        self.ids(|slot, _| slot.deadline <= now)
    }

    /// The requests for which this holds.
    pub(super) fn matching(&self, mut holds: impl FnMut(&T) -> bool) -> Vec<RequestId> {
        self.ids(|_, waiting| holds(waiting))
    }

    fn ids(&self, mut holds: impl FnMut(&Slot<T>, &T) -> bool) -> Vec<RequestId> {
        let mut ids = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.waiting.as_ref().is_some_and(|waiting| holds(slot, waiting)) {
                ids.push(RequestId(u64::from(slot.generation) << 32 | index as u64));
            }
        }
        ids
    }
}

/// Slot and generation.
#[expect(clippy::cast_possible_truncation, reason = "the halves of the number")]
fn parts(id: RequestId) -> (usize, u32) {
    (id.0 as u32 as usize, (id.0 >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_id_is_answered_once_and_its_slot_serves_again() {
        let now = Instant::now();
        let mut pending = Pending::new();
        let first = pending.insert('a', now);
        assert_eq!(pending.take(first), Some('a'));
        assert_eq!(pending.take(first), None);
        let second = pending.insert('b', now);
        assert_ne!(first, second);
        assert_eq!(pending.take(first), None, "a late answer does not reach the next request");
        assert_eq!((pending.len(), pending.take(second), pending.len()), (1, Some('b'), 0));
        assert_eq!(pending.take(RequestId(0)), None);
        assert_eq!(pending.take(RequestId(u64::MAX)), None);
    }

    #[test]
    fn what_is_overdue_is_found() {
        let now = Instant::now();
        let mut pending = Pending::new();
        let early = pending.insert(1, now);
        let late = pending.insert(2, now + Duration::from_secs(9));
        assert_eq!(pending.expired(now), [early]);
        assert_eq!(pending.matching(|value| *value == 2), [late]);
    }
}
