//! The batches of one log that are still in memory, by the position of their bytes in the journal.
//!
//! A batch enters when its commit is cut and leaves when the hands may drop the commit's bytes. The hands keep the
//! bytes; here is only where each batch lies.
//!
//! Invariants: offsets are contiguous and positions rise from place to place.

use crate::journal::{PlacedDirect, Position, SegmentUse};
use crate::shard::Slice;
use corelog_wire::ids::Offset;
use std::collections::VecDeque;

/// Where one batch is in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset of its first record.
    pub base: Offset,
    /// Offset after its last record.
    pub end: Offset,
    /// Where its stamp starts in the journal.
    pub position: Position,
    /// Of a batch that the journal does not hold: where it is.
    pub direct: Option<PlacedDirect>,
    /// The whole batch.
    pub bytes: u32,
    /// The file of the segment it belongs to.
    pub segment_use: SegmentUse,
    /// The newest create time of its records, in milliseconds since the Unix epoch.
    pub max_timestamp_ms: i64,
    /// The filter of its tags.
    pub tag_bloom: u64,
}

impl Place {
    /// Its bytes in memory.
    #[must_use]
    pub fn slice(&self) -> Slice {
        Slice {
            position: self.position,
            direct: self.direct.map(|direct| direct.in_memory),
            bytes: self.bytes,
        }
    }
}

/// The batches in memory, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    places: VecDeque<Place>,
}

impl Tail {
    /// A batch has its place in a commit.
    pub fn push(&mut self, place: Place) {
        debug_assert!(
            self.places.back().is_none_or(|last| last.end == place.base && last.position < place.position)
        );
        self.places.push_back(place);
    }

    /// The commits below `position` leave memory.
    pub fn release_below(&mut self, position: Position) {
        while self.places.front().is_some_and(|place| place.position < position) {
            self.places.pop_front();
        }
    }

    /// Nothing is in memory any more.
    pub fn clear(&mut self) {
        self.places.clear();
    }

    /// Everything below `offset` is gone from the log.
    pub fn forget_below(&mut self, offset: Offset) {
        while self.places.front().is_some_and(|place| place.end <= offset) {
            self.places.pop_front();
        }
    }

    /// Offset of the first record in memory.
    #[must_use]
    pub fn start(&self) -> Option<Offset> {
        self.places.front().map(|place| place.base)
    }

    /// Offset after the last record in memory.
    #[must_use]
    pub fn end(&self) -> Option<Offset> {
        self.places.back().map(|place| place.end)
    }

    /// The batches from the one that holds `offset` on; nothing if that one is not in memory.
    pub fn from(&self, offset: Offset) -> impl Iterator<Item = &Place> {
        let first = if self.start().is_some_and(|start| start <= offset) {
            self.places.partition_point(|place| place.end <= offset)
        } else {
            self.places.len()
        };
        self.places.range(first..)
    }

    /// How many batches are in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether no batch is in memory.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// What contradicts the invariants, if anything does.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        let contiguous = self
            .places
            .iter()
            .zip(self.places.iter().skip(1))
            .all(|(earlier, later)| earlier.end == later.base && earlier.position < later.position);
        (!contiguous).then_some("the batches in memory are not contiguous")
    }
}
