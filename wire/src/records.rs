//! Records within an uncompressed batch body: those of Kafka's record batch v2, byte for byte.
//!
//! Called by producers (before they compress) and consumers (after they have decompressed). Invariants: reading never
//! panics, reserves nothing that a length merely promises, and ends; keys and values are pieces of the body, not copies.
//! This file refuses to know codecs and checksums.
//!
//! A record is: length varint | attributes i8, unused | timestamp delta varlong | offset delta varint | key length
//! varint (-1: none), key | value length varint (-1: none), value | count of headers varint, and for each: name length
//! varint, name, value length varint (-1: none), value. Varints are zigzag. A varint that is longer than it need be is
//! read as Kafka reads it; one with more bits than its type is an error.

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::batch::{self, BatchFields, RECORD_BYTES_MIN};
use crate::ids::TopicPartition;

/// Why a body cannot be read, or a record not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecordsError {
    /// The body, or a record by its own length, ends in the middle of a field.
    #[error("the record ends in the middle of a field")]
    Truncated,
    /// A varint with more bits than its type.
    #[error("a varint has more bits than its type")]
    BadVarint,
    /// A length or count that is negative where it may not be.
    #[error("a length or count of {length} is not possible")]
    BadLength {
        /// The length or count.
        length: i64,
    },
    /// Offset deltas must grow from record to record.
    #[error("offset delta {delta} does not follow")]
    BadOffsetDelta {
        /// The offset delta.
        delta: i32,
    },
    /// A record's fields end before its length says, or bytes follow the last record.
    #[error("{bytes} bytes are left over")]
    LeftOver {
        /// How many.
        bytes: usize,
    },
    /// A record to write has 2 GiB or more.
    #[error("a record of {bytes} bytes is too long for the format")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

/// A header of a record to write: name and value.
pub type HeaderRef<'a> = (&'a [u8], Option<&'a [u8]>);

/// Writes records, behind the room that a batch's header needs.
#[derive(Clone, Debug)]
pub struct RecordsBuilder {
    buffer: BytesMut,
    record_count: u32,
    last_offset_delta: u32,
}

impl Default for RecordsBuilder {
    fn default() -> Self {
        Self::with_capacity(0)
    }
}

impl RecordsBuilder {
    /// No records, and room for records of this many bytes.
    #[must_use]
    pub fn with_capacity(body_bytes: usize) -> Self {
        // The last 8 are for the padding.
        let mut buffer = BytesMut::with_capacity(batch::HEADER_BYTES + body_bytes + batch::ALIGNMENT);
        buffer.put_bytes(0, batch::HEADER_BYTES);
        Self { buffer, record_count: 0, last_offset_delta: 0 }
    }

    /// Appends a record; key, value and headers are copied, once. Offset deltas must grow: usually they count the
    /// records.
    ///
    /// # Errors
    /// [`RecordsError::TooLong`], [`RecordsError::BadOffsetDelta`]; nothing is appended then.
    pub fn push(
        &mut self,
        offset_delta: u32,
        timestamp_delta: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[HeaderRef<'_>],
    ) -> Result<(), RecordsError> {
        let fields = fields_bytes(offset_delta, timestamp_delta, key, value, headers);
        let Ok(length) = i32::try_from(fields) else {
            return Err(RecordsError::TooLong { bytes: fields });
        };
        let delta = offset_delta.cast_signed();
        if delta < 0 || (self.record_count > 0 && offset_delta <= self.last_offset_delta) {
            return Err(RecordsError::BadOffsetDelta { delta });
        }
        self.record_count += 1;
        self.last_offset_delta = offset_delta;
        let buffer = &mut self.buffer;
        buffer.reserve(fields + VARINT_BYTES_MAX);
        put_varint(buffer, length.into());
        buffer.put_u8(0);
        put_varint(buffer, timestamp_delta);
        put_varint(buffer, delta.into());
        put_optional(buffer, key);
        put_optional(buffer, value);
        put_varint(buffer, signed(headers.len()));
        for &(name, value) in headers {
            put_optional(buffer, Some(name));
            put_optional(buffer, value);
        }
        Ok(())
    }

    /// How many bytes [`RecordsBuilder::push`] would append.
    #[must_use]
    pub fn record_bytes(
        offset_delta: u32,
        timestamp_delta: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[HeaderRef<'_>],
    ) -> usize {
        let fields = fields_bytes(offset_delta, timestamp_delta, key, value, headers);
        varint_bytes(signed(fields)) + fields
    }

    /// How many records there are.
    #[must_use]
    pub const fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Offset delta of the last record; 0 if there is none.
    #[must_use]
    pub const fn last_offset_delta(&self) -> u32 {
        self.last_offset_delta
    }

    /// The records, to be compressed for [`batch::seal_body`].
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.buffer[batch::HEADER_BYTES..]
    }

    /// Makes a batch of the records without copying them. `fields` gives everything but the number of records and the
    /// last offset delta, which are known here.
    ///
    /// # Panics
    /// When the records have 4 GiB or more: a bug of the caller.
    #[must_use]
    pub fn into_batch(self, fields: &BatchFields, tp: TopicPartition) -> Bytes {
        let Self { mut buffer, record_count, last_offset_delta } = self;
        batch::seal(&mut buffer, &BatchFields { record_count, last_offset_delta, ..*fields }, tp);
        buffer.freeze()
    }
}

/// One record; its key, value and headers are pieces of the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its offset less the batch's base offset.
    pub offset_delta: u32,
    /// Its create time less the batch's base timestamp, in milliseconds.
    pub timestamp_delta: i64,
    /// Its key; an empty one is a key.
    pub key: Option<Bytes>,
    /// Its value; none is a tombstone.
    pub value: Option<Bytes>,
    /// Its headers, in their order.
    pub headers: RecordHeaders,
}

impl Record {
    /// Bytes of key, value and headers: what a limit on records counts.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        let field = |field: &Option<Bytes>| field.as_ref().map_or(0, Bytes::len) as u64;
        let headers = self.headers.iter().map(|header| header.name.len() as u64 + field(&header.value));
        field(&self.key) + field(&self.value) + headers.sum::<u64>()
    }
}

/// The headers of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeaders {
    /// All of them, already read once.
    bytes: Bytes,
    count: usize,
}

/// A header of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Its name; by convention UTF-8. Several headers may have the same.
    pub name: Bytes,
    /// Its value.
    pub value: Option<Bytes>,
}

impl RecordHeaders {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The headers, in their order.
    pub fn iter(&self) -> impl Iterator<Item = RecordHeader> + use<> {
        let mut rest = Rest { bytes: self.bytes.clone() };
        // They were read when the record was.
        (0..self.count).map_while(move |_| rest.header().ok())
    }
}

/// The records of an uncompressed body. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Records {
    rest: Rest,
    /// Records still to come.
    remaining: u32,
    /// Lowest offset delta that the next record may have.
    delta_min: i64,
}

impl Records {
    /// The records of `body`, of which the batch's header promises `record_count`.
    #[must_use]
    pub const fn new(body: Bytes, record_count: u32) -> Self {
        Self { rest: Rest { bytes: body }, remaining: record_count, delta_min: 0 }
    }

    fn record(&mut self) -> Result<Record, RecordsError> {
        let length = self.rest.varint()?;
        let mut fields = Rest { bytes: self.rest.take(length)? };
        fields.skip_attributes()?;
        let timestamp_delta = fields.varlong()?;
        let delta = fields.varint()?;
        let key = fields.optional()?;
        let value = fields.optional()?;
        let headers = fields.headers()?;
        if !fields.bytes.is_empty() {
            return Err(RecordsError::LeftOver { bytes: fields.bytes.len() });
        }
        let offset_delta = u32::try_from(delta).map_err(|_| RecordsError::BadOffsetDelta { delta })?;
        if i64::from(delta) < self.delta_min {
            return Err(RecordsError::BadOffsetDelta { delta });
        }
        self.delta_min = i64::from(delta) + 1;
        Ok(Record { offset_delta, timestamp_delta, key, value, headers })
    }
}

impl Iterator for Records {
    type Item = Result<Record, RecordsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = if self.remaining > 0 {
            self.remaining -= 1;
            self.record()
        } else if self.rest.bytes.is_empty() {
            return None;
        } else {
            Err(RecordsError::LeftOver { bytes: self.rest.bytes.len() })
        };
        if record.is_err() {
            self.remaining = 0;
            self.rest.bytes = Bytes::new();
        }
        Some(record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // What a header promises is no reason to reserve memory for more than the body can hold.
        (0, Some(self.rest.bytes.len() / RECORD_BYTES_MIN + 1))
    }
}

/// What is left to read.
#[derive(Clone, Debug)]
struct Rest {
    bytes: Bytes,
}

impl Rest {
    fn varint(&mut self) -> Result<i32, RecordsError> {
        let raw = u32::try_from(self.raw_varint(32)?).map_err(|_| RecordsError::BadVarint)?;
        Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    fn varlong(&mut self) -> Result<i64, RecordsError> {
        let raw = self.raw_varint(64)?;
        Ok((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }

    fn raw_varint(&mut self, bits: u32) -> Result<u64, RecordsError> {
        let mut raw = 0;
        for (read, &byte) in self.bytes.iter().enumerate().take(VARINT_BYTES_MAX) {
            #[expect(clippy::cast_possible_truncation, reason = "at most 9")]
            let shift = 7 * read as u32;
            let low = u64::from(byte & 0x7f);
            if shift >= bits || low >> (bits - shift).min(7) != 0 {
                return Err(RecordsError::BadVarint);
            }
            raw |= low << shift;
            if byte & 0x80 == 0 {
                let _ = self.bytes.split_to(read + 1);
                return Ok(raw);
            }
        }
        Err(if self.bytes.len() < VARINT_BYTES_MAX {
            RecordsError::Truncated
        } else {
            RecordsError::BadVarint
        })
    }

    fn take(&mut self, length: i32) -> Result<Bytes, RecordsError> {
        let length =
            usize::try_from(length).map_err(|_| RecordsError::BadLength { length: length.into() })?;
        if length > self.bytes.len() {
            return Err(RecordsError::Truncated);
        }
        Ok(self.bytes.split_to(length))
    }

    fn optional(&mut self) -> Result<Option<Bytes>, RecordsError> {
        match self.varint()? {
            -1 => Ok(None),
            length => self.take(length).map(Some),
        }
    }

    fn skip_attributes(&mut self) -> Result<(), RecordsError> {
        self.take(1).map(|_| ())
    }

    fn headers(&mut self) -> Result<RecordHeaders, RecordsError> {
        let count = self.varint()?;
        let count = usize::try_from(count).map_err(|_| RecordsError::BadLength { length: count.into() })?;
        let all = self.bytes.clone();
        for _ in 0..count {
            self.header()?;
        }
        let bytes = all.slice(..all.len() - self.bytes.len());
        Ok(RecordHeaders { bytes, count })
    }

    fn header(&mut self) -> Result<RecordHeader, RecordsError> {
        let length = self.varint()?;
        let name = self.take(length)?;
        let value = self.optional()?;
        Ok(RecordHeader { name, value })
    }
}

/// Longest varint there is.
const VARINT_BYTES_MAX: usize = 10;

const fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

fn varint_bytes(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

fn put_varint(buffer: &mut BytesMut, value: i64) {
    let mut raw = zigzag(value);
    while raw > 0x7f {
        buffer.put_u8(raw.to_le_bytes()[0] | 0x80);
        raw >>= 7;
    }
    buffer.put_u8(raw.to_le_bytes()[0]);
}

fn put_optional(buffer: &mut BytesMut, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(buffer, -1),
        Some(bytes) => {
            put_varint(buffer, signed(bytes.len()));
            buffer.put_slice(bytes);
        }
    }
}

fn optional_bytes(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| varint_bytes(signed(bytes.len())) + bytes.len())
}

/// Length of a record's fields, without the length that precedes them.
fn fields_bytes(
    offset_delta: u32,
    timestamp_delta: i64,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    headers: &[HeaderRef<'_>],
) -> usize {
    let headers_bytes: usize =
        headers.iter().map(|&(name, value)| optional_bytes(Some(name)) + optional_bytes(value)).sum();
    1 + varint_bytes(timestamp_delta)
        + varint_bytes(offset_delta.into())
        + optional_bytes(key)
        + optional_bytes(value)
        + varint_bytes(signed(headers.len()))
        + headers_bytes
}

/// A length as the format has it. No slice is longer than `isize::MAX`.
fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rng, unhex};

    /// Written by the package kafka-python: ("key", "value"), then (no key, "second", tag=red, empty=""), then
    /// ("", no value, null=none).
    const KAFKA: &str =
        "1c000000066b65790a76616c756500 36000a02010c7365636f6e640406746167067265640a656d70747900
        1a00cf0f04000102086e756c6c01";

    type Written<'a> = (i64, Option<&'a [u8]>, Option<&'a [u8]>, Vec<HeaderRef<'a>>);

    fn written() -> Vec<Written<'static>> {
        vec![
            (0, Some(b"key"), Some(b"value"), vec![]),
            (5, None, Some(b"second"), vec![(b"tag", Some(b"red")), (b"empty", Some(b""))]),
            (-1000, Some(b""), None, vec![(b"null", None)]),
        ]
    }

    fn build(records: &[Written<'_>]) -> Bytes {
        let mut builder = RecordsBuilder::default();
        for (index, (timestamp_delta, key, value, headers)) in (0..).zip(records) {
            let before = builder.body().len();
            builder.push(index, *timestamp_delta, *key, *value, headers).unwrap();
            let bytes = RecordsBuilder::record_bytes(index, *timestamp_delta, *key, *value, headers);
            assert_eq!(builder.body().len() - before, bytes);
        }
        assert_eq!(builder.record_count() as usize, records.len());
        Bytes::copy_from_slice(builder.body())
    }

    fn errors(body: &[u8], record_count: u32) -> Vec<RecordsError> {
        Records::new(Bytes::copy_from_slice(body), record_count).filter_map(Result::err).collect()
    }

    #[test]
    fn records_are_kafkas() {
        assert_eq!(build(&written()), unhex(KAFKA));
    }

    #[test]
    fn what_was_written_is_read() {
        let body = Bytes::from(unhex(KAFKA));
        let read: Vec<Record> = Records::new(body.clone(), 3).map(Result::unwrap).collect();
        assert_eq!(read.len(), 3);
        for ((index, record), (timestamp_delta, key, value, headers)) in (0..).zip(&read).zip(written()) {
            assert_eq!(record.offset_delta, index);
            assert_eq!(record.timestamp_delta, timestamp_delta);
            assert_eq!(record.key.as_deref(), key);
            assert_eq!(record.value.as_deref(), value);
            assert_eq!(record.headers.len(), headers.len());
            let read: Vec<RecordHeader> = record.headers.iter().collect();
            let read: Vec<HeaderRef<'_>> = read.iter().map(|h| (&h.name[..], h.value.as_deref())).collect();
            assert_eq!(read, headers);
        }
        // Not a copy.
        let value = read[0].value.as_ref().unwrap();
        assert!(body.as_ptr_range().contains(&value.as_ptr()));
    }

    #[test]
    fn the_smallest_record_has_seven_bytes() {
        assert_eq!(RecordsBuilder::record_bytes(0, 0, None, None, &[]), RECORD_BYTES_MIN);
    }

    #[test]
    fn varints_of_every_length_come_back() {
        let mut values = vec![i64::MIN, i64::MAX, 0, -1];
        values.extend((0..63).flat_map(|bit| [1 << bit, (1 << bit) - 1, -(1 << bit), -(1 << bit) - 1]));
        for value in values {
            let mut buffer = BytesMut::new();
            put_varint(&mut buffer, value);
            assert_eq!(buffer.len(), varint_bytes(value), "{value}");
            let mut rest = Rest { bytes: buffer.freeze() };
            let mut narrow = rest.clone();
            assert_eq!(rest.varlong(), Ok(value));
            assert!(rest.bytes.is_empty());
            assert_eq!(narrow.varint().ok(), i32::try_from(value).ok(), "{value}");
        }
    }

    #[test]
    fn varints_are_bounded() {
        let varint = |bytes: &[u8]| Rest { bytes: Bytes::copy_from_slice(bytes) }.varint();
        let varlong = |bytes: &[u8]| Rest { bytes: Bytes::copy_from_slice(bytes) }.varlong();
        assert_eq!(varint(&[0xfe, 0xff, 0xff, 0xff, 0x0f]), Ok(i32::MAX));
        assert_eq!(varint(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(i32::MIN));
        assert_eq!(varint(&[0xff, 0xff, 0xff, 0xff, 0x1f]), Err(RecordsError::BadVarint));
        assert_eq!(varint(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x00]), Err(RecordsError::BadVarint));
        assert_eq!(varint(&[0x80, 0x80]), Err(RecordsError::Truncated));
        assert_eq!(varint(&[]), Err(RecordsError::Truncated));
        // Longer than it need be, as Kafka reads it too.
        assert_eq!(varint(&[0x82, 0x00]), Ok(1));
        assert_eq!(varlong(&[0xff; 10]), Err(RecordsError::BadVarint));
        assert_eq!(varlong(&[0x80; 11]), Err(RecordsError::BadVarint));
        assert_eq!(varlong(&[0x80; 9]), Err(RecordsError::Truncated));
    }

    #[test]
    fn each_rule_of_a_record_is_kept() {
        // length, attributes, timestamp delta, offset delta, no key, no value, no headers
        let good = [12, 0, 0, 0, 1, 1, 0];
        assert_eq!(errors(&good, 1), []);
        for (body, error) in [
            (&[][..], RecordsError::Truncated),
            (&[12, 0, 0, 0, 1, 1], RecordsError::Truncated),
            (&[1, 0, 0, 0, 1, 1, 0], RecordsError::BadLength { length: -1 }),
            (&[10, 0, 0, 0, 1, 1, 0], RecordsError::Truncated),
            (&[14, 0, 0, 0, 1, 1, 0, 0], RecordsError::LeftOver { bytes: 1 }),
            (&[12, 0, 0, 0, 1, 1, 0, 0], RecordsError::LeftOver { bytes: 1 }),
            (&[12, 0, 0, 1, 1, 1, 0], RecordsError::BadOffsetDelta { delta: -1 }),
            (&[12, 0, 0, 0, 3, 1, 0], RecordsError::BadLength { length: -2 }),
            (&[12, 0, 0, 0, 2, 1, 0], RecordsError::Truncated),
            (&[12, 0, 0, 0, 1, 1, 1], RecordsError::BadLength { length: -1 }),
            (&[12, 0, 0, 0, 1, 1, 2], RecordsError::Truncated),
            (&[20, 0, 0, 0, 1, 1, 0xfe, 0xff, 0xff, 0xff, 0x0f], RecordsError::Truncated),
            (&[16, 0, 0, 0, 1, 1, 2, 1, 1], RecordsError::BadLength { length: -1 }),
        ] {
            assert_eq!(errors(body, 1), [error], "{body:?}");
        }
        let twice = [good, good].concat();
        assert_eq!(errors(&twice, 2), [RecordsError::BadOffsetDelta { delta: 0 }]);
        assert_eq!(errors(&good, 2), [RecordsError::Truncated]);
    }

    #[test]
    fn offset_deltas_to_write_must_grow() {
        let mut builder = RecordsBuilder::default();
        builder.push(5, 0, None, None, &[]).unwrap();
        let before = builder.body().to_vec();
        assert_eq!(builder.push(5, 0, None, None, &[]), Err(RecordsError::BadOffsetDelta { delta: 5 }));
        assert_eq!(
            builder.push(1 << 31, 0, None, None, &[]),
            Err(RecordsError::BadOffsetDelta { delta: i32::MIN })
        );
        assert_eq!(builder.body(), before);
        assert_eq!((builder.record_count(), builder.last_offset_delta()), (1, 5));
    }

    #[test]
    fn a_promise_of_records_reserves_nothing() {
        let records = Records::new(Bytes::from_static(&[12, 0, 0, 0, 1, 1, 0]), u32::MAX);
        assert_eq!(records.size_hint(), (0, Some(2)));
        assert_eq!(records.count(), 2);
    }

    #[test]
    fn mutated_bodies_never_panic() {
        let mut rng = Rng(4);
        let original = unhex(KAFKA);
        let (mut whole, mut broken) = (0, 0);
        for _ in 0..50_000 {
            let body = Bytes::from(rng.mutated(&original));
            let bytes = body.len();
            let mut read = 0;
            let mut failed = false;
            for record in Records::new(body, 3) {
                match record {
                    Ok(record) => {
                        assert!(!failed, "a record after an error");
                        assert_eq!(record.headers.iter().count(), record.headers.len());
                        read += 1;
                    }
                    Err(_) => failed = true,
                }
            }
            assert!(read * RECORD_BYTES_MIN <= bytes);
            if failed { broken += 1 } else { whole += 1 }
        }
        assert!(whole > 1000 && broken > 1000, "{whole} whole, {broken} broken");
    }
}
