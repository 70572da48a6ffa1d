//! Idempotent producers of one partition (KIP-98, KIP-360): which batches a producer appended last, so that a retry
//! is told apart from a new batch and from a gap.
//!
//! Derived from the log only: appending and replaying the same batches gives the same table. It outlives the records
//! themselves, since a producer may be older than what retention left.
//!
//! Invariant: per producer the remembered batches have consecutive sequences, at most [`PRODUCER_WINDOW`] of them.

use crate::limits::{PRODUCER_EXPIRY_MS, PRODUCER_WINDOW, PRODUCERS_MAX};
use corelog_wire::batch::BatchHeader;
use corelog_wire::ids::{Offset, ProducerEpoch, ProducerId, Sequence};
use std::collections::{BTreeMap, VecDeque};

/// One batch a producer appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Sequence of its first record.
    pub first: Sequence,
    /// Sequence of its last record.
    pub last: Sequence,
    /// Where it is.
    pub base: Offset,
    /// Offset after its last record.
    pub end: Offset,
    /// When it was appended, in milliseconds since the Unix epoch.
    pub append_timestamp_ms: i64,
}

/// What is remembered of one producer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Producer {
    /// Its newest epoch.
    pub epoch: ProducerEpoch,
    /// Oldest first; never empty.
    pub batches: VecDeque<Appended>,
}

impl Producer {
    fn last_append_ms(&self) -> i64 {
        self.batches.back().map_or(0, |batch| batch.append_timestamp_ms)
    }
}

/// Whether a batch may be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is new.
    New,
    /// It is in the log already: answer with these offsets, once they satisfy the acks asked for.
    Duplicate(Appended),
}

/// Why a batch may not be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProducerRefusal {
    /// A batch before this one is missing, or it overlaps one that is there.
    #[error("sequence {} was expected next from this producer, not {}", expected.get(), got.get())]
    OutOfOrder {
        /// What would have been right.
        expected: Sequence,
        /// What came.
        got: Sequence,
    },
    /// It was appended so long ago that its offsets are forgotten.
    #[error("sequence {} was appended before the last {PRODUCER_WINDOW} batches; its offset is forgotten", got.get())]
    DuplicateTooOld {
        /// What came.
        got: Sequence,
    },
    /// A newer epoch of this producer has appended.
    #[error("epoch {} of this producer was superseded by epoch {}", got.get(), current.get())]
    Fenced {
        /// The newest epoch.
        current: ProducerEpoch,
        /// What came.
        got: ProducerEpoch,
    },
    /// Nothing is known of this producer, and it does not start at sequence 0.
    #[error("nothing is known of this producer here, and sequence {} is not its first", got.get())]
    Unknown {
        /// What came.
        got: Sequence,
    },
}

/// The producers of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerTable {
    producers: BTreeMap<ProducerId, Producer>,
}

impl ProducerTable {
    /// Every producer, by id.
    pub fn iter(&self) -> impl Iterator<Item = (ProducerId, &Producer)> {
        self.producers.iter().map(|(id, producer)| (*id, producer))
    }

    /// Puts a producer back as it was remembered; refuses what breaks the invariant.
    #[must_use]
    pub fn restore(&mut self, id: ProducerId, producer: Producer) -> bool {
        let consecutive = producer
            .batches
            .iter()
            .zip(producer.batches.iter().skip(1))
            .all(|(earlier, later)| earlier.last.successor() == later.first && earlier.end <= later.base);
        let sound = consecutive && (1..=PRODUCER_WINDOW).contains(&producer.batches.len());
        if sound {
            self.producers.insert(id, producer);
        }
        sound
    }

    /// Whether a batch with this header may be appended.
    ///
    /// # Errors
    /// See [`ProducerRefusal`].
    pub fn admit(&self, header: &BatchHeader) -> Result<Admission, ProducerRefusal> {
        if header.producer_id == ProducerId::NONE {
            return Ok(Admission::New);
        }
        let got = header.base_sequence;
        let Some(producer) = self.producers.get(&header.producer_id) else {
            return if got == Sequence::ZERO {
                Ok(Admission::New)
            } else {
                Err(ProducerRefusal::Unknown { got })
            };
        };
        if header.producer_epoch < producer.epoch && !cfg!(mutant = "old_producer_epoch_appends") {
            return Err(ProducerRefusal::Fenced { current: producer.epoch, got: header.producer_epoch });
        }
        if header.producer_epoch > producer.epoch {
            return if got == Sequence::ZERO {
                Ok(Admission::New)
            } else {
                Err(ProducerRefusal::OutOfOrder { expected: Sequence::ZERO, got })
            };
        }
        let last = got.advance(header.record_count - 1);
        if let Some(same) = producer.batches.iter().find(|batch| batch.first == got && batch.last == last) {
            return Ok(Admission::Duplicate(*same));
        }
        let expected = producer.batches.back().map_or(Sequence::ZERO, |batch| batch.last.successor());
        if got == expected {
            return Ok(Admission::New);
        }
        // Half of the circle of sequences lies behind: what is there has been appended before.
        let behind = expected.get().wrapping_sub(got.get()) & i32::MAX;
        if behind <= i32::MAX / 2
            && producer.batches.front().is_some_and(|oldest| is_before(last, oldest.first))
        {
            return Err(ProducerRefusal::DuplicateTooOld { got });
        }
        Err(ProducerRefusal::OutOfOrder { expected, got })
    }

    /// A batch was appended.
    pub fn appended(&mut self, header: &BatchHeader, base: Offset, end: Offset, append_timestamp_ms: i64) {
        if header.producer_id == ProducerId::NONE {
            return;
        }
        if !self.producers.contains_key(&header.producer_id) {
            self.make_room(append_timestamp_ms);
        }
        let first = header.base_sequence;
        let batch =
            Appended { first, last: first.advance(header.record_count - 1), base, end, append_timestamp_ms };
        let producer = self
            .producers
            .entry(header.producer_id)
            .or_insert_with(|| Producer { epoch: header.producer_epoch, batches: VecDeque::new() });
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            producer.batches.clear();
        }
        producer.batches.push_back(batch);
        if producer.batches.len() > PRODUCER_WINDOW {
            producer.batches.pop_front();
        }
    }

    /// Forgets the expired producers when the table is full, or else the one that is idle longest.
    fn make_room(&mut self, now_ms: i64) {
        if self.producers.len() < PRODUCERS_MAX {
            return;
        }
        self.producers.retain(|_, producer| now_ms - producer.last_append_ms() < PRODUCER_EXPIRY_MS);
        if self.producers.len() >= PRODUCERS_MAX {
            let idle = self.producers.iter().min_by_key(|(id, producer)| (producer.last_append_ms(), **id));
            if let Some(id) = idle.map(|(id, _)| *id) {
                self.producers.remove(&id);
            }
        }
    }
}

/// Whether `a` comes before `b` on the circle of sequences.
fn is_before(a: Sequence, b: Sequence) -> bool {
    let ahead = b.get().wrapping_sub(a.get()) & i32::MAX;
    ahead != 0 && ahead <= i32::MAX / 2
}
