//! A file that takes the place of some segments: batches sealed anew, the hole of what went inside them.
//!
//! Small batches become larger ones. One that loses nothing and is large enough is taken as it is.

use super::{Codec, CompactError, Input, Opened, Want};
use crate::journal::{CompactedEntry, SegmentId};
use crate::limits::{BLOCK, COMPACTION_IO_BYTES};
use crate::segment::{Index, IndexFileContent, first_block};
use corelog_wire::batch::{
    Attributes, BatchFields, CheckedBatch, Compression, STAMP_BYTES, Stamp, parse_header, seal_body,
};
use corelog_wire::ids::{LeaderEpoch, Offset};
use corelog_wire::records::{Record, RecordsBuilder};

/// A batch is closed when its records have so many bytes.
const BATCH_BYTES: usize = 64 << 10;
/// A batch that loses nothing is taken as it is from this size on.
const WHOLE_BATCH_BYTES: usize = 16 << 10;
/// A tag filter with more bits than eight tags have is of little use.
const TAG_BITS_MAX: u32 = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Output {
    segment: SegmentId,
    end: Offset,
    last_append_ms: i64,
    max_timestamp_ms: i64,
    /// Everything below is in batches that are closed.
    closed_end: Offset,
    open: Option<Open>,
    /// What is closed and not written.
    unwritten: Vec<u8>,
    /// Where that goes.
    file_position: u64,
    bytes: u64,
    index: Index,
    /// Of the last batch.
    epoch: LeaderEpoch,
}

/// A batch that takes records.
#[derive(Debug)]
struct Open {
    builder: RecordsBuilder,
    compression: Compression,
    epoch: LeaderEpoch,
    append_timestamp_ms: i64,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    tag_bloom: u64,
}

impl Output {
    /// The file of these inputs, which are neighbours.
    pub(super) fn new(segment: SegmentId, inputs: &[Input]) -> Self {
        Self {
            segment,
            end: inputs.last().map_or(segment.base, |last| last.end),
            last_append_ms: inputs.iter().map(|input| input.last_append_ms).max().unwrap_or(i64::MIN),
            max_timestamp_ms: i64::MIN,
            closed_end: segment.base,
            open: None,
            unwritten: first_block(segment),
            file_position: 0,
            bytes: 0,
            index: Index::new(),
            epoch: LeaderEpoch::new(0),
        }
    }

    /// Takes the records of the next batch that stay.
    pub(super) fn take(
        &mut self,
        batch: &CheckedBatch,
        opened: &Opened,
        stays: impl Fn(Offset, &Record) -> bool,
        codec: &dyn Codec,
    ) -> Result<(), CompactError> {
        let header = batch.header();
        let records = opened
            .records()
            .filter(|record| record.as_ref().map_or(true, |(offset, record)| stays(*offset, record)));
        let records: Vec<(Offset, Record)> = records.collect::<Result<_, _>>()?;
        let whole = records.len() == header.record_count as usize;
        if whole && batch.bytes().len() >= WHOLE_BATCH_BYTES {
            self.close(opened.base, codec)?;
            if self.closed_end == opened.base {
                self.epoch = opened.epoch;
                self.put(batch.bytes(), opened.base, opened.end, header.max_timestamp_ms);
                return Ok(());
            }
        }
        for (offset, record) in records {
            let timestamp_ms = header.base_timestamp_ms.saturating_add(record.timestamp_delta);
            self.push(
                opened,
                header.attributes.compression,
                header.tag_bloom,
                offset,
                timestamp_ms,
                &record,
                codec,
            )?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "each is a part of the record or of the batch around it")]
    fn push(
        &mut self,
        from: &Opened,
        compression: Compression,
        tag_bloom: u64,
        offset: Offset,
        timestamp_ms: i64,
        record: &Record,
        codec: &dyn Codec,
    ) -> Result<(), CompactError> {
        let is_near = |base: Offset| offset.get() - base.get() <= u64::from(i32::MAX.cast_unsigned());
        let fits = self.open.as_ref().is_none_or(|open| {
            let tags = open.tag_bloom | tag_bloom;
            let tags_fit = tags == open.tag_bloom || tags.count_ones() <= TAG_BITS_MAX;
            (open.compression, open.epoch) == (compression, from.epoch)
                && open.builder.body().len() < BATCH_BYTES
                && tags_fit
        });
        if !fits || !is_near(self.closed_end) {
            // It ends where this record begins: the hole between is part of it.
            self.close(offset, codec)?;
        }
        while !is_near(self.closed_end) {
            self.skip(offset, from.epoch, codec)?;
        }
        let delta = u32::try_from(offset.get() - self.closed_end.get()).unwrap_or(u32::MAX);
        let open = self.open.get_or_insert_with(|| Open {
            builder: RecordsBuilder::with_capacity(BATCH_BYTES),
            compression,
            epoch: from.epoch,
            append_timestamp_ms: i64::MIN,
            base_timestamp_ms: timestamp_ms,
            max_timestamp_ms: timestamp_ms,
            tag_bloom: 0,
        });
        open.append_timestamp_ms = open.append_timestamp_ms.max(from.append_timestamp_ms);
        open.max_timestamp_ms = open.max_timestamp_ms.max(timestamp_ms);
        open.tag_bloom |= tag_bloom;
        let headers: Vec<_> = record.headers.iter().collect();
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            headers.iter().map(|header| (&header.name[..], header.value.as_deref())).collect();
        let time = timestamp_ms.wrapping_sub(open.base_timestamp_ms);
        open.builder
            .push(delta, time, record.key.as_deref(), record.value.as_deref(), &headers)
            .map_err(|error| CompactError::Body { offset, why: error.to_string() })
    }

    /// Closes the batch that takes records, which then ends at `end`; with none there is nothing to do.
    fn close(&mut self, end: Offset, codec: &dyn Codec) -> Result<(), CompactError> {
        let Some(open) = self.open.take() else { return Ok(()) };
        self.seal(&open, end, codec)
    }

    /// A batch without records up to `end`, or as far as one can span.
    fn skip(&mut self, end: Offset, epoch: LeaderEpoch, codec: &dyn Codec) -> Result<(), CompactError> {
        let nothing = Open {
            builder: RecordsBuilder::with_capacity(0),
            compression: Compression::None,
            epoch,
            append_timestamp_ms: self.last_append_ms,
            base_timestamp_ms: 0,
            max_timestamp_ms: 0,
            tag_bloom: 0,
        };
        self.seal(&nothing, end, codec)
    }

    /// A batch from the last closed one up to `end`.
    fn seal(&mut self, open: &Open, end: Offset, codec: &dyn Codec) -> Result<(), CompactError> {
        let base = self.closed_end;
        let bad = |why: String| CompactError::Body { offset: base, why };
        let span = end.get() - base.get() - 1;
        // A hole that is longer than a batch can span is for the next one.
        let last_offset_delta = u32::try_from(span).unwrap_or(u32::MAX).min(i32::MAX.cast_unsigned());
        let end = Offset::new(base.get() + u64::from(last_offset_delta) + 1);
        let fields = BatchFields {
            attributes: Attributes::compressed(open.compression),
            last_offset_delta,
            max_timestamp_ms: open.max_timestamp_ms,
            tag_bloom: open.tag_bloom,
            ..BatchFields::plain(open.builder.record_count(), open.base_timestamp_ms)
        };
        let body = codec.compress(open.compression, open.builder.body()).map_err(bad)?;
        let sealed = seal_body(&body, &fields, self.segment.tp);
        let (header, _) = parse_header(&sealed, self.segment.tp).map_err(|error| bad(error.to_string()))?;
        let stamp = Stamp {
            base_offset: base,
            append_timestamp_ms: open.append_timestamp_ms,
            leader_epoch: open.epoch,
        };
        let mut batch = stamp.encode(header.header_crc).to_vec();
        batch.extend_from_slice(&sealed[STAMP_BYTES..]);
        self.epoch = open.epoch;
        self.put(&batch, base, end, open.max_timestamp_ms);
        Ok(())
    }

    fn put(&mut self, batch: &[u8], base: Offset, end: Offset, max_timestamp_ms: i64) {
        let at = self.file_position + self.unwritten.len() as u64;
        self.index.push(base, at, u32::try_from(batch.len()).unwrap_or(u32::MAX), max_timestamp_ms);
        self.unwritten.extend_from_slice(batch);
        self.bytes += batch.len() as u64;
        self.max_timestamp_ms = self.max_timestamp_ms.max(max_timestamp_ms);
        self.closed_end = end;
    }

    /// What can be written before the end is known.
    pub(super) fn full_blocks(&mut self) -> Option<Want> {
        if self.unwritten.len() < COMPACTION_IO_BYTES {
            return None;
        }
        let whole = self.unwritten.len() / BLOCK_BYTES * BLOCK_BYTES;
        let rest = self.unwritten.split_off(whole);
        let bytes = std::mem::replace(&mut self.unwritten, rest);
        Some(self.write(bytes))
    }

    fn write(&mut self, bytes: Vec<u8>) -> Want {
        let file_position = self.file_position;
        self.file_position += bytes.len() as u64;
        Want::Write { segment: self.segment, file_position, bytes }
    }

    /// The rest of the file. `clean_end`: what is said of the log once the file is part of it.
    pub(super) fn finish(
        mut self,
        clean_end: Offset,
        epochs: &[(LeaderEpoch, Offset)],
        codec: &dyn Codec,
    ) -> Result<[Want; 2], CompactError> {
        self.close(self.end, codec)?;
        while self.closed_end < self.end {
            // Nothing stayed, or the hole at the end is too long for one batch.
            let before = epochs.iter().take_while(|(_, start)| *start <= self.closed_end);
            let epoch = before.last().map_or(self.epoch, |(epoch, _)| self.epoch.max(*epoch));
            self.skip(self.end, epoch, codec)?;
        }
        let mut bytes = std::mem::take(&mut self.unwritten);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        let write = self.write(bytes);
        let done = CompactedEntry {
            segment: self.segment,
            end: self.end,
            bytes: self.bytes,
            file_end: self.file_position,
            max_timestamp_ms: self.max_timestamp_ms,
            last_append_ms: self.last_append_ms,
            clean_end,
        };
        let content = IndexFileContent {
            end: self.end.get(),
            file_end: self.file_position,
            index: self.index,
            epochs: epochs
                .iter()
                .filter(|(_, start)| *start < self.segment.base)
                .map(|(epoch, start)| (epoch.get(), start.get()))
                .collect(),
            producers: Vec::new(),
        };
        Ok([write, Want::Finish { done, index_file: content.encode(self.segment) }])
    }
}

const BLOCK_BYTES: usize = 4096;
const _: () = assert!(BLOCK_BYTES as u64 == BLOCK);
