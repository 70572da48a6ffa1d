//! The records that are sent: seeded random bytes behind a mark that says whose record it is and which one.
//!
//! Called by producers (to write) and by `check` (to read). Invariant: every record of a run has another mark. Batches
//! are encoded once; a request patches the marks of a copy in place and seals it, so that the generator's own cost is
//! a checksum and not an encoder's.

use bytes::BytesMut;
use corelog_wire::batch::{self, BatchFields, seal};
use corelog_wire::ids::TopicPartition;
use corelog_wire::records::RecordsBuilder;

use crate::error::{Error, Result};
use crate::schedule::Random;

/// Length of a mark, and of the shortest record.
pub const MARK_BYTES: usize = 32;

/// Whose record it is, and which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The run, so that no other run's records are taken for this one's.
    pub run: u64,
    /// The producer, which is one connection.
    pub producer: u32,
    /// The partition it was meant for.
    pub partition: u32,
    /// Counts the producer's records of that partition, from 0.
    pub sequence: u64,
    /// When it should have been sent, in nanoseconds from the run's start.
    pub intended_ns: u64,
}

impl Mark {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; MARK_BYTES] {
        let mut bytes = [0; MARK_BYTES];
        bytes[0..8].copy_from_slice(&self.run.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.producer.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.partition.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.intended_ns.to_le_bytes());
        bytes
    }

    /// The mark of a record's value; none if it is too short to have one.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Self> {
        let (fields, _) = value.split_first_chunk::<MARK_BYTES>()?;
        let number = |at: usize| -> u64 {
            (0..8).rev().fold(0, |number, byte| number << 8 | u64::from(fields[at + byte]))
        };
        let [.., p0, p1, p2, p3] = number(8).to_be_bytes();
        let [q0, q1, q2, q3, ..] = number(8).to_be_bytes();
        Some(Self {
            run: number(0),
            producer: u32::from_be_bytes([p0, p1, p2, p3]),
            partition: u32::from_be_bytes([q0, q1, q2, q3]),
            sequence: number(16),
            intended_ns: number(24),
        })
    }
}

/// A batch whose marks are still to be written.
#[derive(Clone, Debug)]
pub struct Template {
    /// Room for the header, then the records.
    unsealed: BytesMut,
    /// Where the marks are.
    marks_at: Vec<usize>,
    records: u32,
}

impl Template {
    /// A batch of so many records of so many bytes each.
    ///
    /// # Errors
    /// [`Error::Setup`] if a record is shorter than a mark, or the batch is empty or too long for the format.
    pub fn new(records: u32, record_bytes: usize, seed: u64) -> Result<Self> {
        if record_bytes < MARK_BYTES {
            return Err(Error::Setup(format!(
                "a record needs {MARK_BYTES} bytes for its mark, {record_bytes} are too few"
            )));
        }
        if records == 0 || records > batch::RECORDS_PER_BATCH_MAX {
            return Err(Error::Setup(format!(
                "a batch has 1 to {} records, not {records}",
                batch::RECORDS_PER_BATCH_MAX
            )));
        }
        let mut random = Random::new(seed);
        let mut value = vec![0; record_bytes];
        let mut builder = RecordsBuilder::default();
        let mut unsealed = BytesMut::zeroed(batch::HEADER_BYTES);
        let mut marks_at = Vec::new();
        for delta in 0..records {
            random.fill(&mut value);
            builder
                .push(delta, 0, None, Some(&value), &[])
                .map_err(|error| Error::Setup(error.to_string()))?;
            // The value is followed by the count of headers, one byte.
            marks_at.push(batch::HEADER_BYTES + builder.body().len() - 1 - record_bytes);
        }
        unsealed.extend_from_slice(builder.body());
        Ok(Self { unsealed, marks_at, records })
    }

    /// How many records it has.
    #[must_use]
    pub const fn records(&self) -> u32 {
        self.records
    }

    /// Length of a batch that is sealed.
    #[must_use]
    pub fn batch_bytes(&self) -> usize {
        self.unsealed.len().next_multiple_of(batch::ALIGNMENT)
    }

    /// Makes a batch of `buffer`, which is empty or a batch of this template: writes the marks, the first one being
    /// `first`, and seals it. Copies the records if the buffer is empty.
    pub fn fill(&self, buffer: &mut BytesMut, first: Mark, fields: &BatchFields, tp: TopicPartition) {
        if buffer.is_empty() {
            buffer.reserve(self.batch_bytes());
            buffer.extend_from_slice(&self.unsealed);
        } else {
            buffer.truncate(self.unsealed.len());
        }
        let mut mark = first;
        for &at in &self.marks_at {
            buffer[at..at + MARK_BYTES].copy_from_slice(&mark.encode());
            mark.sequence += 1;
        }
        seal(buffer, fields, tp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corelog_wire::batch::{BatchLimits, CheckedBatch};
    use corelog_wire::ids::TopicId;
    use corelog_wire::records::Records;

    #[test]
    fn a_mark_comes_back() {
        let mark = Mark {
            run: 0x0102_0304_0506_0708,
            producer: 0x1112_1314,
            partition: 0x2122_2324,
            sequence: u64::MAX - 5,
            intended_ns: 0x3132_3334_3536_3738,
        };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        assert_eq!(Mark::decode(&mark.encode()[..31]), None);
    }

    #[test]
    fn a_patched_batch_is_one_that_a_broker_takes() {
        let tp = TopicPartition::new(TopicId::from_bytes([7; 16]), 3);
        let template = Template::new(200, 100, 9).unwrap();
        let mut buffer = BytesMut::new();
        for first in [0, 1_000_000] {
            let mark = Mark { run: 5, producer: 2, partition: 3, sequence: first, intended_ns: 77 };
            template.fill(&mut buffer, mark, &BatchFields::plain(200, 1), tp);
            assert_eq!(buffer.len(), template.batch_bytes());
            let limits = BatchLimits { batch_bytes_max: 1 << 20 };
            let checked = CheckedBatch::check(buffer.clone().freeze(), tp, &limits).unwrap();
            let records: Vec<_> = Records::new(checked.body(), 200).map(|record| record.unwrap()).collect();
            assert_eq!(records.len(), 200);
            for (record, sequence) in records.iter().zip(first..) {
                let value = record.value.as_ref().unwrap();
                assert_eq!(value.len(), 100);
                assert_eq!(Mark::decode(value), Some(Mark { sequence, ..mark }));
            }
        }
    }

    #[test]
    fn what_cannot_be_marked_is_refused() {
        assert!(Template::new(1, MARK_BYTES - 1, 0).is_err());
        assert!(Template::new(0, 100, 0).is_err());
    }
}
