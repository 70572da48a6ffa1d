//! What is queued for one partition: batches that still take records, then sealed ones.
//!
//! Part of `producer`. Invariants: sealed batches are in the order of their sequences, open ones come after them; only
//! the last open batch takes records.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use corelog_wire::batch::{
    Attributes, BatchFields, Compression, HEADER_BYTES, RECORDS_PER_BATCH_MAX, parse_header, seal_body,
};
use corelog_wire::ids::{ProducerEpoch, ProducerId, Sequence, TopicPartition};
use corelog_wire::keys::{TAG_HEADER, TAGS_PER_BATCH_MAX, bloom_of};
use corelog_wire::records::RecordsBuilder;

use super::{BATCH_OVERHEAD_BYTES, Identity, RequestId};
use crate::codec;
use crate::core::record::RecordRef;
use crate::error::Error;

/// First room of a batch, so that a partition with little traffic costs little.
const BODY_BYTES_FIRST: usize = 1 << 10;

/// A batch that takes records.
#[derive(Debug)]
pub(super) struct OpenBatch<T> {
    pub(super) id: u64,
    pub(super) handle: T,
    pub(super) opened: Instant,
    pub(super) expires: Instant,
    /// It takes no more records.
    pub(super) complete: bool,
    builder: RecordsBuilder,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    tag_bloom: u64,
    /// The blooms of the tags in it, each once: at most [`TAGS_PER_BATCH_MAX`].
    tags: Vec<u64>,
}

/// A batch with its final bytes.
#[derive(Debug)]
pub(super) struct SealedBatch<T> {
    pub(super) id: u64,
    /// Its number among the partition's sealed batches.
    pub(super) ordinal: u64,
    pub(super) handle: T,
    pub(super) expires: Instant,
    pub(super) bytes: Bytes,
    pub(super) records: u32,
    pub(super) memory_bytes: usize,
    /// The request that carries it now.
    pub(super) request: Option<RequestId>,
    /// Why it is still here.
    pub(super) last_error: Option<Error>,
    /// It may be in the log: it was sent, and what became of that is not known.
    pub(super) uncertain: bool,
}

/// The batches of a partition.
#[derive(Debug)]
pub(super) struct Queue<T> {
    pub(super) open: VecDeque<OpenBatch<T>>,
    pub(super) sealed: VecDeque<SealedBatch<T>>,
    pub(super) in_flight: usize,
    /// The ordinal that the next sealed batch gets.
    pub(super) next_ordinal: u64,
    /// The name under which the sealed batches are written, and the next sequence of it.
    pub(super) identity: Option<Identity>,
    pub(super) next_sequence: Sequence,
    /// A name whose sequence has a gap: it must not be used again.
    pub(super) spent: Option<Identity>,
    /// A batch failed, so those behind it cannot follow: they fail too as soon as they are not in flight.
    pub(super) doomed: Option<Error>,
    /// The broker has forgotten the name before any of the sealed batches was appended: once all have come back they are
    /// sealed again under another.
    pub(super) forgotten: bool,
    /// A batch was refused: nothing is sent until all in flight have come back.
    pub(super) holding: bool,
    pub(super) attempts: u32,
    pub(super) again_at: Option<Instant>,
    /// Room that the next batch will probably need.
    pub(super) body_bytes_hint: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            open: VecDeque::new(),
            sealed: VecDeque::new(),
            in_flight: 0,
            next_ordinal: 0,
            identity: None,
            next_sequence: Sequence::ZERO,
            spent: None,
            doomed: None,
            forgotten: false,
            holding: false,
            attempts: 0,
            again_at: None,
            body_bytes_hint: BODY_BYTES_FIRST,
        }
    }
}

impl<T> Queue<T> {
    /// Batches that have been sealed since the oldest that has not ended, itself included. A broker remembers only so
    /// many of a producer: the oldest must still be among them when it is sent again, whatever became of the others.
    pub(super) fn window(&self) -> u64 {
        self.sealed.front().map_or(0, |oldest| self.next_ordinal - oldest.ordinal)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.sealed.is_empty()
    }

    /// The sequence has a gap, or may have one: what was sealed fails, what follows needs another name.
    pub(super) fn doom(&mut self, error: &Error) {
        if self.sealed.is_empty() {
            // Nothing that could end the doom later.
            self.spend();
        } else if self.identity.is_some() {
            self.doomed.get_or_insert_with(|| error.clone());
        }
    }

    /// Once nothing is left of what was sealed under a doomed or forgotten name, the name is dropped.
    pub(super) fn bury(&mut self) {
        if self.sealed.is_empty() && (self.doomed.take().is_some() || self.forgotten) {
            self.spend();
        }
    }

    /// The name is not used again.
    pub(super) fn spend(&mut self) {
        self.forgotten = false;
        self.spent = self.identity.take().or(self.spent);
        self.next_sequence = Sequence::ZERO;
    }

    /// Seals again what was sealed under a forgotten name, none of which was appended. The bodies are copied.
    pub(super) fn rename(&mut self, identity: Identity, tp: TopicPartition) {
        self.spend();
        self.identity = Some(identity);
        for batch in &mut self.sealed {
            debug_assert!(batch.request.is_none() && !batch.uncertain);
            batch.reseal(identity, self.next_sequence, tp);
            self.next_sequence = self.next_sequence.advance(batch.records);
        }
    }
}

impl<T> SealedBatch<T> {
    /// The same records under another name. Nothing changes if the bytes are not a batch of this partition, which would
    /// be a bug: the broker refuses them then as it did before.
    fn reseal(&mut self, identity: Identity, base_sequence: Sequence, tp: TopicPartition) {
        let header = parse_header(&self.bytes, tp).map(|(header, _)| header);
        debug_assert!(header.is_ok());
        let Ok(header) = header else { return };
        let fields = BatchFields {
            attributes: header.attributes,
            record_count: header.record_count,
            last_offset_delta: header.last_offset_delta,
            base_timestamp_ms: header.base_timestamp_ms,
            max_timestamp_ms: header.max_timestamp_ms,
            producer_id: identity.id,
            producer_epoch: identity.epoch,
            base_sequence,
            tag_bloom: header.tag_bloom,
        };
        let body = HEADER_BYTES..HEADER_BYTES + header.body_bytes as usize;
        self.bytes = seal_body(&self.bytes[body], &fields, tp);
    }
}

impl<T: Default> OpenBatch<T> {
    pub(super) fn new(id: u64, now: Instant, expires: Instant, body_bytes: usize) -> Self {
        Self {
            id,
            handle: T::default(),
            opened: now,
            expires,
            complete: false,
            builder: RecordsBuilder::with_capacity(body_bytes),
            base_timestamp_ms: 0,
            max_timestamp_ms: i64::MIN,
            tag_bloom: 0,
            tags: Vec::new(),
        }
    }
}

impl<T> OpenBatch<T> {
    pub(super) fn body_bytes(&self) -> usize {
        self.builder.body().len()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.body_bytes() + BATCH_OVERHEAD_BYTES
    }

    pub(super) fn records(&self) -> u32 {
        self.builder.record_count()
    }

    /// Whether the batch takes no more before this record; it is complete from then on.
    pub(super) fn completes_before(
        &mut self,
        record: &RecordRef<'_>,
        record_bytes: usize,
        batch_bytes: usize,
    ) -> bool {
        if self.records() > 0 {
            let full =
                self.body_bytes() + record_bytes > batch_bytes || self.records() == RECORDS_PER_BATCH_MAX;
            self.complete |= full || self.too_many_tags(record);
        }
        self.complete
    }

    fn too_many_tags(&self, record: &RecordRef<'_>) -> bool {
        if record.headers.is_empty() {
            return false;
        }
        let mut fresh: Vec<u64> = tags(record).filter(|tag| !self.tags.contains(tag)).collect();
        fresh.sort_unstable();
        fresh.dedup();
        self.tags.len() + fresh.len() > TAGS_PER_BATCH_MAX
    }

    /// Appends a record and gives its place.
    pub(super) fn push(&mut self, timestamp_ms: i64, record: &RecordRef<'_>) -> Result<u32, Error> {
        let index = self.builder.record_count();
        if index == 0 {
            self.base_timestamp_ms = timestamp_ms;
        }
        let delta = timestamp_ms.saturating_sub(self.base_timestamp_ms);
        self.builder
            .push(index, delta, record.key, record.value, record.headers)
            .map_err(|error| Error::usage(error.to_string()))?;
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        for tag in tags(record) {
            self.tag_bloom |= tag;
            if !self.tags.contains(&tag) && self.tags.len() < TAGS_PER_BATCH_MAX {
                self.tags.push(tag);
            }
        }
        Ok(index)
    }

    /// Gives the batch its final bytes. The body is copied only if it is compressed, and not if that makes it longer.
    pub(super) fn seal(
        self,
        compression: Compression,
        name: Option<(Identity, Sequence)>,
        tp: TopicPartition,
        ordinal: u64,
    ) -> SealedBatch<T> {
        let (identity, base_sequence) = name.unzip();
        let mut fields = BatchFields {
            attributes: Attributes::default(),
            base_timestamp_ms: self.base_timestamp_ms,
            max_timestamp_ms: self.max_timestamp_ms,
            producer_id: identity.map_or(ProducerId::NONE, |identity| identity.id),
            producer_epoch: identity.map_or(ProducerEpoch::NONE, |identity| identity.epoch),
            base_sequence: base_sequence.unwrap_or(Sequence::NONE),
            tag_bloom: self.tag_bloom,
            ..BatchFields::plain(self.builder.record_count(), 0)
        };
        let records = self.builder.record_count();
        let mut compressed = Vec::new();
        let shorter = compression != Compression::None
            && codec::compress(compression, self.builder.body(), &mut compressed).is_ok()
            && compressed.len() < self.builder.body().len();
        let bytes = if shorter {
            fields.attributes = Attributes::compressed(compression);
            fields.last_offset_delta = self.builder.last_offset_delta();
            seal_body(&compressed, &fields, tp)
        } else {
            self.builder.into_batch(&fields, tp)
        };
        SealedBatch {
            id: self.id,
            ordinal,
            handle: self.handle,
            expires: self.expires,
            memory_bytes: bytes.len() + BATCH_OVERHEAD_BYTES,
            bytes,
            records,
            request: None,
            last_error: None,
            uncertain: false,
        }
    }
}

/// The blooms of a record's tags.
fn tags(record: &RecordRef<'_>) -> impl Iterator<Item = u64> {
    let is_tag = |name: &[u8]| name == TAG_HEADER.as_bytes();
    record.headers.iter().filter(move |(name, _)| is_tag(name)).filter_map(|(_, value)| value.map(bloom_of))
}
