//! The records that are sent: seeded random bytes behind a mark that says whose record it is and which one.
//!
//! Called by producers (to write) and by `check` (to read). Invariant: every record of a run has another mark. Batches
//! are encoded once; a request patches the marks of a copy in place and seals it, so that the generator's own cost is
//! a checksum and not an encoder's.

use std::path::Path;

use bytes::BytesMut;
use corelog_wire::batch::{self, BatchFields, seal};
use corelog_wire::ids::TopicPartition;
use corelog_wire::records::RecordsBuilder;

use crate::error::{Doing, Error, Result};
use crate::schedule::Random;
use crate::workload::{RecordShape, Size};

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

/// Records of all requests together from which on sizes by chance come again.
const RECORDS_BEFORE_AGAIN: usize = 1_000;
/// Bytes of a file's lines from which on they come again.
const FILE_BYTES_MAX: usize = 16 << 20;

/// The values of a few requests, which producers send by turns. All peers get the same.
#[derive(Clone, Debug)]
pub struct Values {
    requests: Vec<Vec<Vec<u8>>>,
}

impl Values {
    /// What a workload's records are.
    ///
    /// # Errors
    /// [`Error::System`] if the file cannot be read; [`Error::Setup`] if it has no line, or a request has no record.
    pub fn new(records: &RecordShape, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed);
        let per_request = records.per_request as usize;
        let made = |bytes: usize, random: &mut Random| {
            let mut value = vec![0; bytes];
            random.fill(&mut value);
            value
        };
        let values: Vec<Vec<u8>> = if let Some(path) = &records.file {
            let lines = lines(path)?;
            let count = lines.len().next_multiple_of(per_request.max(1));
            lines.into_iter().cycle().take(count).collect()
        } else if let Some(bytes) = records.bytes {
            (0..per_request).map(|_| made(bytes, &mut random)).collect()
        } else {
            let count = RECORDS_BEFORE_AGAIN.next_multiple_of(per_request.max(1));
            (0..count).map(|_| made(size(&records.mixed, random.unit()), &mut random)).collect()
        };
        let requests: Vec<_> = values.chunks(per_request.max(1)).map(<[Vec<u8>]>::to_vec).collect();
        if requests.is_empty() {
            return Err(Error::Setup("requests must have 1 record or more".to_owned()));
        }
        Ok(Self { requests })
    }

    /// Those of each request.
    #[must_use]
    pub fn requests(&self) -> &[Vec<Vec<u8>>] {
        &self.requests
    }

    /// Bytes of the values of so many requests, in the mean.
    #[must_use]
    pub fn bytes_of(&self, requests: u64) -> u64 {
        let bytes: usize = self.requests.iter().flatten().map(Vec::len).sum();
        requests * bytes as u64 / self.requests.len() as u64
    }
}

/// The size that comes when chance says this, above 0 and up to 1.
fn size(sizes: &[Size], chance: f64) -> usize {
    let mut left = chance * sizes.iter().map(|size| size.weight).sum::<f64>();
    let reached = sizes.iter().find(|size| {
        left -= size.weight;
        left <= 0.0
    });
    reached.or(sizes.last()).map_or(MARK_BYTES, |size| size.bytes)
}

/// A file's lines, those too short for a mark made longer with blanks.
fn lines(path: &Path) -> Result<Vec<Vec<u8>>> {
    let mut text = std::fs::read(path).doing(|| format!("reading {}", path.display()))?;
    text.truncate(FILE_BYTES_MAX);
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| {
        let mut line = line.to_vec();
        line.resize(line.len().max(MARK_BYTES), b' ');
        line
    });
    let lines: Vec<Vec<u8>> = lines.collect();
    if lines.is_empty() {
        return Err(Error::Setup(format!("{} has no line to send", path.display())));
    }
    Ok(lines)
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
    /// A batch of records with these values.
    ///
    /// # Errors
    /// [`Error::Setup`] if one is shorter than a mark, or the batch is empty or too long for the format.
    pub fn new(values: &[Vec<u8>]) -> Result<Self> {
        if let Some(short) = values.iter().find(|value| value.len() < MARK_BYTES) {
            return Err(Error::Setup(format!(
                "a record needs {MARK_BYTES} bytes for its mark, {} are too few",
                short.len()
            )));
        }
        let records = u32::try_from(values.len()).unwrap_or(u32::MAX);
        if records == 0 || records > batch::RECORDS_PER_BATCH_MAX {
            return Err(Error::Setup(format!(
                "a batch has 1 to {} records, not {records}",
                batch::RECORDS_PER_BATCH_MAX
            )));
        }
        let mut builder = RecordsBuilder::default();
        let mut unsealed = BytesMut::zeroed(batch::HEADER_BYTES);
        let mut marks_at = Vec::new();
        for (delta, value) in (0..).zip(values) {
            builder
                .push(delta, 0, None, Some(value), &[])
                .map_err(|error| Error::Setup(error.to_string()))?;
            // The value is followed by the count of headers, one byte.
            marks_at.push(batch::HEADER_BYTES + builder.body().len() - 1 - value.len());
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
        let template = Template::new(&vec![vec![7; 100]; 200]).unwrap();
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
        assert!(Template::new(&[vec![7; MARK_BYTES - 1]]).is_err());
        assert!(Template::new(&[]).is_err());
    }

    fn shape(text: &str) -> RecordShape {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn sizes_come_as_often_as_they_weigh() {
        let mixed =
            "mixed = [{ bytes = 100, weight = 9.0 }, { bytes = 5000, weight = 1.0 }]\nper_request = 7";
        let values = Values::new(&shape(mixed), 3).unwrap();
        assert!(values.requests().iter().all(|request| request.len() == 7));
        let all: Vec<usize> = values.requests().iter().flatten().map(Vec::len).collect();
        let large = all.iter().filter(|bytes| **bytes == 5000).count();
        assert!(all.iter().all(|bytes| matches!(bytes, 100 | 5000)));
        assert!((60..140).contains(&large), "{large} of {}", all.len());
        let bytes = values.bytes_of(values.requests().len() as u64);
        assert_eq!(bytes, all.iter().sum::<usize>() as u64);
        let same = Values::new(&shape("bytes = 64"), 3).unwrap();
        assert_eq!((same.requests().len(), same.bytes_of(10)), (1, 640));
    }

    #[test]
    fn lines_of_a_file_are_sent_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let long = "a line that is longer than a mark, as most are";
        std::fs::write(&path, format!("short\n\n{long}\nlast")).unwrap();
        let named = |path: &Path| shape(&format!("file = {:?}\nper_request = 2", path.to_str().unwrap()));
        let values = Values::new(&named(&path), 1).unwrap();
        let [first, second] = values.requests() else { panic!("{values:?}") };
        assert!(first[0].len() == MARK_BYTES && first[0].starts_with(b"short "), "{first:?}");
        assert_eq!(first[1], long.as_bytes());
        assert!(second[0].starts_with(b"last ") && second[1] == first[0], "{second:?}");
        std::fs::write(&path, "\n\n").unwrap();
        assert!(Values::new(&named(&path), 1).is_err());
        assert!(Values::new(&named(&folder.path().join("nothing")), 1).is_err());
    }
}
