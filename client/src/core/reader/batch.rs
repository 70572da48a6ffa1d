//! A batch as its taker sees it: opened, checked, and cut to what was asked for.
//!
//! Made by the reader. Invariants: every record in it was read once, so reading it again cannot fail; keys and values
//! are pieces of the bytes that came from the socket, or of the decompressed body: nothing is copied per record.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use corelog_wire::batch::{CheckedBatch, Compression};
use corelog_wire::ids::{LeaderEpoch, Offset};
use corelog_wire::keys::TAG_HEADER;
use corelog_wire::records::{RecordHeader, RecordHeaders, Records};

use super::ReaderConfig;
use crate::codec;
use crate::core::metadata::Topic;

/// A piece of the body.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    bytes: u32,
}

impl Span {
    /// Where `piece`, cut from `body`, lies in it.
    fn of(piece: &Bytes, body: &Bytes) -> Self {
        // An empty piece may point anywhere.
        let start = if piece.is_empty() { 0 } else { piece.as_ptr() as usize - body.as_ptr() as usize };
        // Bodies are shorter than 4 GiB: their length is a u32 in the batch's header, or bounded by the decompression.
        let narrow = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Self { start: narrow(start), bytes: narrow(piece.len()) }
    }

    fn range(self) -> std::ops::Range<usize> {
        let start = self.start as usize;
        start..start + self.bytes as usize
    }
}

/// One record's place.
#[derive(Clone, Debug)]
struct Entry {
    offset: u64,
    timestamp_ms: i64,
    key: Option<Span>,
    value: Option<Span>,
    headers: Option<Box<RecordHeaders>>,
}

/// Records of one partition that lie together.
#[derive(Clone)]
pub struct Batch {
    topic: Arc<str>,
    partition: u32,
    next_offset: u64,
    leader_epoch: LeaderEpoch,
    append_timestamp_ms: i64,
    high_watermark: Option<u64>,
    body: Bytes,
    entries: Vec<Entry>,
}

impl Batch {
    /// Opens a batch whose header and stamp have been checked: holds the body against its checksum, decompresses it,
    /// reads every record once, and drops those below `position` and those of a time before `skip_before_ms` up to the
    /// first that is not, and those without a tag that is asked for.
    pub(super) fn open(
        topic: &Topic,
        partition: u32,
        batch: &CheckedBatch,
        position: Offset,
        skip_before_ms: Option<i64>,
        config: &ReaderConfig,
    ) -> Result<Self, String> {
        let (header, stamp) = (batch.header(), batch.stamp().ok_or("the batch has no stamp")?);
        let body = batch.body();
        if header.checksum_of_body(&body) != header.body_crc32c {
            return Err("the body's checksum is wrong".to_owned());
        }
        let body = match header.attributes.compression {
            Compression::None => body,
            compression => codec::decompress(compression, &body, config.body_bytes_max)?.into(),
        };
        let base = stamp.base_offset.get();
        let last =
            base.checked_add(header.last_offset_delta.into()).ok_or("the offsets are beyond the last")?;
        let mut opened = Self {
            topic: topic.name.clone(),
            partition,
            next_offset: last.saturating_add(1),
            leader_epoch: stamp.leader_epoch,
            append_timestamp_ms: stamp.append_timestamp_ms,
            high_watermark: None,
            entries: Vec::new(),
            body,
        };
        if header.attributes.control {
            return Ok(opened);
        }
        let records = Records::new(opened.body.clone(), header.record_count);
        opened.entries.reserve(records.size_hint().1.unwrap_or(0).min(header.record_count as usize));
        let mut skip_before_ms = skip_before_ms.unwrap_or(i64::MIN);
        for record in records {
            let record = record.map_err(|error| error.to_string())?;
            if record.offset_delta > header.last_offset_delta {
                return Err("a record's offset is beyond its batch's".to_owned());
            }
            let offset = base + u64::from(record.offset_delta);
            let timestamp_ms = header.base_timestamp_ms.saturating_add(record.timestamp_delta);
            if offset < position.get() || timestamp_ms < skip_before_ms {
                continue;
            }
            skip_before_ms = i64::MIN;
            if !config.tags.is_empty() && !has_any(&record.headers, &config.tags) {
                continue;
            }
            let span = |piece: &Bytes| Span::of(piece, &opened.body);
            opened.entries.push(Entry {
                offset,
                timestamp_ms,
                key: record.key.as_ref().map(span),
                value: record.value.as_ref().map(span),
                headers: (!record.headers.is_empty()).then(|| Box::new(record.headers)),
            });
        }
        Ok(opened)
    }

    /// The same batch, of which it is known that nothing that is asked for lies between it and `next_offset`.
    pub(super) fn until(self, next_offset: Offset) -> Self {
        Self { next_offset: next_offset.get(), ..self }
    }

    pub(super) fn with_high_watermark(self, high_watermark: Option<Offset>) -> Self {
        Self { high_watermark: high_watermark.map(Offset::get), ..self }
    }

    /// The topic's name.
    #[must_use]
    pub const fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// The partition.
    #[must_use]
    pub const fn partition(&self) -> u32 {
        self.partition
    }

    /// Offset of the first record that is here; that after the batch if there is none.
    #[must_use]
    pub fn first_offset(&self) -> u64 {
        self.entries.first().map_or(self.next_offset, |entry| entry.offset)
    }

    /// The offset after the batch, and after what a tag filter left out behind it: where to go on once its records are
    /// done with.
    #[must_use]
    pub const fn next_offset(&self) -> u64 {
        self.next_offset
    }

    /// The epoch of the leader that appended the batch.
    #[must_use]
    pub const fn leader_epoch(&self) -> LeaderEpoch {
        self.leader_epoch
    }

    /// When the leader appended the batch, in milliseconds since 1970.
    #[must_use]
    pub const fn append_timestamp_ms(&self) -> i64 {
        self.append_timestamp_ms
    }

    /// Lowest offset that could not be read yet, as the broker said last before the batch was taken.
    #[must_use]
    pub const fn high_watermark(&self) -> Option<u64> {
        self.high_watermark
    }

    /// How many records there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The records, in the order of their offsets.
    pub fn iter(&self) -> BatchRecords<'_> {
        BatchRecords { batch: self, entries: self.entries.iter() }
    }

    /// A record by its place here.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<RecordView<'_>> {
        self.entries.get(place).map(|entry| RecordView { batch: self, entry })
    }
}

/// Whether a record has one of these tags.
fn has_any(headers: &RecordHeaders, tags: &[Bytes]) -> bool {
    let is_asked = |value: &Bytes| tags.contains(value);
    let is_tag = |header: &RecordHeader| header.name == TAG_HEADER.as_bytes();
    headers.iter().filter(is_tag).any(|header| header.value.as_ref().is_some_and(is_asked))
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, partition, .. } = self;
        write!(f, "Batch({topic}/{partition}, {}..{})", self.first_offset(), self.next_offset)
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = RecordView<'a>;
    type IntoIter = BatchRecords<'a>;

    fn into_iter(self) -> BatchRecords<'a> {
        self.iter()
    }
}

/// The records of a [`Batch`].
#[derive(Clone, Debug)]
pub struct BatchRecords<'a> {
    batch: &'a Batch,
    entries: std::slice::Iter<'a, Entry>,
}

impl<'a> Iterator for BatchRecords<'a> {
    type Item = RecordView<'a>;

    fn next(&mut self) -> Option<RecordView<'a>> {
        let entry = self.entries.next()?;
        Some(RecordView { batch: self.batch, entry })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.entries.size_hint()
    }
}

impl ExactSizeIterator for BatchRecords<'_> {}

/// One record of a [`Batch`].
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    batch: &'a Batch,
    entry: &'a Entry,
}

impl<'a> RecordView<'a> {
    /// Its partition.
    #[must_use]
    pub const fn partition(&self) -> u32 {
        self.batch.partition
    }

    /// Its offset.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.entry.offset
    }

    /// Its create time, in milliseconds since 1970.
    #[must_use]
    pub const fn timestamp_ms(&self) -> i64 {
        self.entry.timestamp_ms
    }

    /// Its key; an empty one is a key.
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.entry.key.map(|span| &self.batch.body[span.range()])
    }

    /// Its value; none is a tombstone.
    #[must_use]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.entry.value.map(|span| &self.batch.body[span.range()])
    }

    /// Its key as bytes that may outlive the batch. Not a copy: the whole answer stays in memory as long as they do.
    #[must_use]
    pub fn key_bytes(&self) -> Option<Bytes> {
        self.entry.key.map(|span| self.batch.body.slice(span.range()))
    }

    /// Its value as bytes that may outlive the batch. Not a copy: the whole answer stays in memory as long as they do.
    #[must_use]
    pub fn value_bytes(&self) -> Option<Bytes> {
        self.entry.value.map(|span| self.batch.body.slice(span.range()))
    }

    /// Its headers, in their order.
    pub fn headers(&self) -> impl Iterator<Item = RecordHeader> + use<'a> {
        self.entry.headers.iter().flat_map(|headers| headers.iter())
    }
}
