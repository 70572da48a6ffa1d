//! The tail: bytes of recent commits, by their position in the journal.
//!
//! Holds the very buffers that were written. Readers share them by reference count, so whatever the tail lets go
//! lives on until the last reader is done. What must stay is decided by the shard (`Effects::release`); nothing is
//! dropped here on its own.

use crate::net::PayloadSlice;
use corelog_core::journal::Position;
use corelog_core::shard::Slice;
use std::collections::VecDeque;
use std::rc::Rc;

/// Memory that can be shared with readers.
pub(super) type Shared = Rc<dyn AsRef<[u8]>>;

/// Commits in memory, oldest first.
#[derive(Default)]
pub(super) struct Tail {
    commits: VecDeque<InMemory>,
    bytes: u64,
}

/// What is in memory of a commit.
struct InMemory {
    at: Position,
    /// As it is in the ring.
    ring: Shared,
    /// Its direct writes.
    direct: Option<Shared>,
}

impl InMemory {
    fn end(&self) -> Position {
        self.at.plus((*self.ring).as_ref().len() as u64)
    }

    fn bytes(&self) -> u64 {
        let direct = self.direct.as_ref().map_or(0, |direct| (**direct).as_ref().len());
        ((*self.ring).as_ref().len() + direct) as u64
    }
}

impl Tail {
    /// Adds the next commit, and the memory of its direct writes if it has any.
    pub(super) fn push(&mut self, at: Position, ring: Shared, direct: Option<Shared>) {
        assert!(
            self.commits.back().is_none_or(|last| last.end() <= at),
            "commits enter memory in their order"
        );
        let commit = InMemory { at, ring, direct };
        self.bytes += commit.bytes();
        self.commits.push_back(commit);
    }

    /// Lets go of every commit that ends at or below a position.
    pub(super) fn release(&mut self, below: Position) {
        while let Some(commit) = self.commits.pop_front_if(|commit| commit.end() <= below) {
            self.bytes -= commit.bytes();
        }
    }

    /// The bytes of one batch, without a copy. `None` if they are not here: a bug of whoever named them.
    pub(super) fn slice(&self, slice: Slice) -> Option<PayloadSlice> {
        let after = self.commits.partition_point(|commit| commit.at <= slice.position);
        let commit = self.commits.get(after.checked_sub(1)?)?;
        let (memory, start) = match slice.direct {
            Some(start) => (commit.direct.as_ref()?, start as usize),
            None => (&commit.ring, usize::try_from(slice.position.since(commit.at)).ok()?),
        };
        let end = start + slice.bytes as usize;
        (end <= (**memory).as_ref().len()).then(|| PayloadSlice::new(Rc::clone(memory), start, end))
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl std::fmt::Debug for Tail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tail({} commits, {} bytes)", self.commits.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::{Position, Rc, Slice, Tail};

    fn slice(position: u64, bytes: u32) -> Slice {
        Slice { position: Position::new(position), direct: None, bytes }
    }

    fn tail() -> Tail {
        let mut tail = Tail::default();
        tail.push(Position::new(100), Rc::new(vec![1_u8; 50]), None);
        tail.push(Position::new(150), Rc::new(vec![2_u8; 50]), Some(Rc::new(vec![3_u8; 70])));
        tail
    }

    #[test]
    fn slices_are_found_by_position_and_stay_within_a_commit() {
        let tail = tail();
        let found = |position, bytes| tail.slice(slice(position, bytes)).map(|found| found.as_ref().to_vec());
        assert_eq!(found(100, 50), Some(vec![1; 50]));
        assert_eq!(found(198, 2), Some(vec![2; 2]));
        assert_eq!(found(149, 2), None);
        assert_eq!(found(99, 1), None);
        assert_eq!(found(200, 1), None);
        let direct = |from, bytes| Slice { direct: Some(from), ..slice(160, bytes) };
        assert_eq!(tail.slice(direct(60, 10)).unwrap().as_ref(), [3; 10]);
        assert!(tail.slice(direct(60, 11)).is_none());
        assert!(tail.slice(Slice { direct: Some(0), ..slice(120, 1) }).is_none());
    }

    #[test]
    fn a_released_commit_lives_until_its_last_reader() {
        let mut tail = tail();
        let reader = tail.slice(slice(120, 4)).unwrap();
        tail.release(Position::new(149));
        assert_eq!(tail.bytes(), 170);
        tail.release(Position::new(150));
        assert_eq!(tail.bytes(), 120);
        assert!(tail.slice(slice(120, 4)).is_none());
        assert_eq!(reader.as_ref(), [1; 4]);
    }
}
