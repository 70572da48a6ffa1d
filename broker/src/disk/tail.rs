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
    commits: VecDeque<(Position, Shared)>,
    bytes: u64,
}

impl Tail {
    /// Adds the next commit.
    pub(super) fn push(&mut self, at: Position, commit: Shared) {
        let bytes = (*commit).as_ref().len() as u64;
        let end = self.commits.back().map(|(at, last)| at.plus((**last).as_ref().len() as u64));
        assert!(end.is_none_or(|end| end <= at), "commits enter memory in their order");
        self.bytes += bytes;
        self.commits.push_back((at, commit));
    }

    /// Lets go of every commit that ends at or below a position.
    pub(super) fn release(&mut self, below: Position) {
        while let Some((at, commit)) = self.commits.front() {
            let bytes = (**commit).as_ref().len() as u64;
            if at.plus(bytes) > below {
                break;
            }
            self.bytes -= bytes;
            self.commits.pop_front();
        }
    }

    /// The bytes of one batch, without a copy. `None` if they are not here: a bug of whoever named them.
    pub(super) fn slice(&self, slice: Slice) -> Option<PayloadSlice> {
        let after = self.commits.partition_point(|(at, _)| *at <= slice.position);
        let (at, commit) = self.commits.get(after.checked_sub(1)?)?;
        let start = usize::try_from(slice.position.since(*at)).ok()?;
        let end = start + slice.bytes as usize;
        (end <= (**commit).as_ref().len()).then(|| PayloadSlice::new(Rc::clone(commit), start, end))
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
        Slice { position: Position::new(position), bytes }
    }

    fn tail() -> Tail {
        let mut tail = Tail::default();
        tail.push(Position::new(100), Rc::new(vec![1_u8; 50]));
        tail.push(Position::new(150), Rc::new(vec![2_u8; 50]));
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
    }

    #[test]
    fn a_released_commit_lives_until_its_last_reader() {
        let mut tail = tail();
        let reader = tail.slice(slice(120, 4)).unwrap();
        tail.release(Position::new(149));
        assert_eq!(tail.bytes(), 100);
        tail.release(Position::new(150));
        assert_eq!(tail.bytes(), 50);
        assert!(tail.slice(slice(120, 4)).is_none());
        assert_eq!(reader.as_ref(), [1; 4]);
    }
}
