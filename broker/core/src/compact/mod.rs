//! Compaction: of each key only the newest record stays, below an offset that moves up.
//!
//! A [`Round`] is the work on one partition's sealed segments. It reads those that are new since the last round for the
//! newest offset of each key, as many keys as memory is set aside for; then it writes all segments up to there anew, a group
//! of neighbours into one file, without the records that a later one of the same key supersedes, and without tombstones that
//! are old enough. Records without a key stay.
//!
//! Called by the hands: [`Round::advance`] says what to read and write, a slice of work at a time; they report each file that
//! is durable to the shard, which alone decides whether it takes the place of its inputs (`shard::compact`).
//!
//! Invariants: offsets stay as they are, and a file covers those of its inputs without a gap: where records went, the batch
//! around them spans the hole. Every body is held against its checksum before a record of it is written again, so that
//! damage is never sealed anew. A round that meets damage ends there. This room refuses to know files, time and codecs.

mod latest;
mod output;
mod source;
#[cfg(test)]
mod tests;

use crate::journal::{CompactedEntry, SegmentId, SegmentUse};
use crate::limits::COMPACTION_SLICE_BYTES;
use crate::segment::SegmentError;
use bytes::Bytes;
use corelog_wire::batch::{BatchError, CheckedBatch, Compression};
use corelog_wire::ids::{LeaderEpoch, Offset, TopicPartition};
use corelog_wire::records::{Record, Records};
use latest::Latest;
use output::Output;
use source::{Fed, Source};
use std::collections::VecDeque;

/// Opens and closes the bodies of batches.
pub trait Codec {
    /// The records of a body.
    ///
    /// # Errors
    /// In words: it is not what it should be, or too long.
    fn decompress(&self, compression: Compression, body: Bytes) -> Result<Bytes, String>;

    /// A body of records.
    ///
    /// # Errors
    /// In words.
    fn compress(&self, compression: Compression, records: &[u8]) -> Result<Bytes, String>;
}

/// A segment that a round reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// Its file.
    pub segment: SegmentId,
    /// Offset after its last record.
    pub end: Offset,
    /// File position after its last extent.
    pub file_end: u64,
    /// Bytes of its batches.
    pub bytes: u64,
    /// When its last batch was appended, in milliseconds since the Unix epoch.
    pub last_append_ms: i64,
}

/// What a round is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The partition.
    pub tp: TopicPartition,
    /// Neighbours, the oldest segment of the log first.
    pub inputs: Vec<Input>,
    /// Where the log starts. Below it batches may be missing.
    pub start: Offset,
    /// Everything below went through a round that came to its end.
    pub clean_end: Offset,
    /// Tombstones that were appended before go, in milliseconds since the Unix epoch.
    pub tombstones_before_ms: i64,
    /// Tombstones from here on stay, whatever their age: somebody protected has not read them.
    pub unread_from: Offset,
    /// Keys to know the newest offset of at once.
    pub keys_max: usize,
    /// Bytes of batches in one file.
    pub segment_bytes: u64,
    /// The first file's use; each next one's is one higher.
    pub first_use: SegmentUse,
    /// Epochs and where each starts.
    pub epochs: Vec<(LeaderEpoch, Offset)>,
}

/// What the hands do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// Let others work, then ask again.
    Turn,
    /// Read at least so many bytes and feed them ([`Round::feed`]).
    Read {
        /// Of which file.
        segment: SegmentId,
        /// From which position.
        from: u64,
        /// How many; they end at or before the last extent.
        bytes: u64,
        /// Where the last extent ends: nothing behind it is of use.
        file_end: u64,
    },
    /// Put bytes into a file, which is made with the first ones.
    Write {
        /// Which file.
        segment: SegmentId,
        /// Where; a multiple of the block size.
        file_position: u64,
        /// As many blocks.
        bytes: Vec<u8>,
    },
    /// Flush the file, give it its index file, make both names durable, and tell the shard.
    Finish {
        /// What the file is.
        done: CompactedEntry,
        /// The index file.
        index_file: Vec<u8>,
    },
    /// The round is over.
    Done,
}

/// Why a round ends early.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompactError {
    /// A segment is not what was written.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A batch is not.
    #[error("the batch at offset {}: {error}", offset.get())]
    Batch {
        /// The batch, or one before it.
        offset: Offset,
        /// What is wrong.
        error: BatchError,
    },
    /// A body that cannot be read, or written again.
    #[error("the batch at offset {}: {why}", offset.get())]
    Body {
        /// The batch.
        offset: Offset,
        /// What is wrong.
        why: String,
    },
}

#[derive(Debug)]
enum Phase {
    /// The newest offset of each key is gathered.
    Map,
    /// Files are written: the inputs of this one that are still to be read, and whether it is the last.
    Write {
        output: Box<Output>,
        last: bool,
    },
    Over,
}

/// The work on one partition. See the module.
#[derive(Debug)]
pub struct Round {
    plan: Plan,
    latest: Latest,
    /// Keys are known up to here.
    mapped_end: Offset,
    phase: Phase,
    source: Source,
    /// Segments of which the files to come are made.
    left: VecDeque<Input>,
    files: u32,
    wants: VecDeque<Want>,
}

impl Round {
    /// A round by this plan.
    #[must_use]
    pub fn new(plan: Plan) -> Self {
        let dirty = plan.inputs.iter().filter(|input| input.end > plan.clean_end).copied();
        // Each new offset may be of another key.
        let end = plan.inputs.last().map_or(plan.clean_end, |last| last.end);
        let records = usize::try_from(end.get().saturating_sub(plan.clean_end.get())).unwrap_or(usize::MAX);
        Self {
            latest: Latest::for_keys(records.min(plan.keys_max)),
            mapped_end: plan.clean_end,
            phase: Phase::Map,
            source: Source::new(dirty.collect(), plan.clean_end.max(plan.start)),
            left: plan.inputs.iter().copied().collect(),
            files: 0,
            wants: VecDeque::new(),
            plan,
        }
    }

    /// The partition.
    #[must_use]
    pub const fn tp(&self) -> TopicPartition {
        self.plan.tp
    }

    /// What to do next.
    ///
    /// # Errors
    /// [`CompactError`]; the round is over then.
    pub fn advance(&mut self, codec: &dyn Codec) -> Result<Want, CompactError> {
        let mut worked = 0;
        loop {
            if let Some(want) = self.wants.pop_front() {
                return Ok(want);
            }
            if worked >= COMPACTION_SLICE_BYTES {
                return Ok(Want::Turn);
            }
            if matches!(self.phase, Phase::Over) {
                return Ok(Want::Done);
            }
            match self.source.next()? {
                Fed::Batch(batch) => {
                    worked += batch.bytes().len();
                    self.take(&batch, codec)?;
                }
                Fed::Need(want) => return Ok(want),
                Fed::End => self.end_of_source(codec)?,
            }
        }
    }

    /// Takes what [`Want::Read`] asked for, and perhaps more: the bytes of the file from `start` on.
    ///
    /// # Errors
    /// [`CompactError`]; the round is over then.
    pub fn feed(&mut self, chunk: Bytes, start: u64) -> Result<(), CompactError> {
        self.source.feed(chunk, start)
    }

    fn take(&mut self, batch: &CheckedBatch, codec: &dyn Codec) -> Result<(), CompactError> {
        let opened = Opened::of(batch, codec)?;
        match &mut self.phase {
            Phase::Map => {
                if self.latest.len() >= self.plan.keys_max {
                    // The rest is for the next round.
                    self.source.stop();
                    return Ok(());
                }
                for record in opened.records() {
                    let (offset, record) = record?;
                    if let Some(key) = &record.key
                        && offset >= self.plan.clean_end
                    {
                        self.latest.note(key, offset);
                    }
                }
                self.mapped_end = opened.end;
                Ok(())
            }
            Phase::Write { output, .. } => {
                let (latest, mapped_end) = (&self.latest, self.mapped_end);
                let unread_from = self.plan.unread_from;
                let is_old = opened.append_timestamp_ms < self.plan.tombstones_before_ms;
                let stays = |offset: Offset, record: &Record| {
                    let Some(key) = &record.key else { return true };
                    let superseded = latest.of(key).is_some_and(|newest| newest > offset);
                    let forgotten = record.value.is_none() && is_old && offset < mapped_end.min(unread_from);
                    !superseded && !forgotten
                };
                output.take(batch, &opened, stays, codec)?;
                self.wants.extend(output.full_blocks());
                Ok(())
            }
            Phase::Over => Ok(()),
        }
    }

    fn end_of_source(&mut self, codec: &dyn Codec) -> Result<(), CompactError> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Map => {
                // What no key is known of stays as it is.
                let mapped_end = self.mapped_end;
                self.left.retain(|input| input.segment.base < mapped_end);
            }
            Phase::Write { output, last } => {
                let counts = last || cfg!(mutant = "compaction_counts_as_clean_early");
                let clean_end = if counts { self.mapped_end } else { self.plan.clean_end };
                self.wants.extend(output.finish(clean_end, &self.plan.epochs, codec)?);
            }
            Phase::Over => {}
        }
        self.begin_file();
        Ok(())
    }

    /// The next file: of as many segments as would fit into it if nothing went.
    fn begin_file(&mut self) {
        let Some(first) = self.left.pop_front() else { return };
        let (mut group, mut bytes) = (vec![first], first.bytes);
        while let Some(next) = self.left.pop_front_if(|next| bytes + next.bytes <= self.plan.segment_bytes) {
            bytes += next.bytes;
            group.push(next);
        }
        let segment =
            SegmentId { segment_use: SegmentUse(self.plan.first_use.0 + self.files), ..first.segment };
        self.files += 1;
        let output = Box::new(Output::new(segment, &group));
        self.source = Source::new(group, self.plan.start);
        self.phase = Phase::Write { output, last: self.left.is_empty() };
    }
}

/// A batch whose body was checked and opened.
#[derive(Debug)]
struct Opened {
    body: Bytes,
    base: Offset,
    /// Offset after its last record.
    end: Offset,
    epoch: LeaderEpoch,
    append_timestamp_ms: i64,
    record_count: u32,
}

impl Opened {
    fn of(batch: &CheckedBatch, codec: &dyn Codec) -> Result<Self, CompactError> {
        let header = batch.header();
        let stamp = batch.stamp().copied();
        let error = BatchError::NotStamped;
        let stamp = stamp.ok_or(CompactError::Batch { offset: Offset::ZERO, error })?;
        let body = codec
            .decompress(header.attributes.compression, batch.body())
            .map_err(|why| CompactError::Body { offset: stamp.base_offset, why })?;
        Ok(Self {
            body,
            base: stamp.base_offset,
            end: crate::log::batch_end(header, stamp.base_offset),
            epoch: stamp.leader_epoch,
            append_timestamp_ms: stamp.append_timestamp_ms,
            record_count: header.record_count,
        })
    }

    /// Its records and their offsets.
    fn records(&self) -> impl Iterator<Item = Result<(Offset, Record), CompactError>> + '_ {
        Records::new(self.body.clone(), self.record_count).map(|record| {
            let bad = |why: String| CompactError::Body { offset: self.base, why };
            let record = record.map_err(|error| bad(error.to_string()))?;
            let offset =
                self.base.checked_add(record.offset_delta.into()).filter(|offset| *offset < self.end);
            let offset = offset.ok_or_else(|| bad("a record's offset is beyond its batch's".to_owned()))?;
            Ok((offset, record))
        })
    }
}
