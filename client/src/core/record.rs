//! Records on their way in, borrowed and owned.
//!
//! Made by users, copied once into a batch by the producer. Invariant: an absent key or value is not an empty one.

use bytes::Bytes;

/// A record to produce that borrows what it holds, so that nothing is allocated for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// The key; an empty one is a key.
    pub key: Option<&'a [u8]>,
    /// The value; none is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Names and values of headers. The value of a header named `tag` is a tag.
    pub headers: &'a [(&'a [u8], Option<&'a [u8]>)],
    /// Create time in milliseconds since 1970; none: now.
    pub timestamp_ms: Option<i64>,
    /// The partition, whatever the partitioner would choose.
    pub partition: Option<u32>,
}

impl<'a> RecordRef<'a> {
    /// A record with this value and nothing else.
    #[must_use]
    pub const fn new(value: &'a [u8]) -> Self {
        Self { key: None, value: Some(value), headers: &[], timestamp_ms: None, partition: None }
    }

    /// Bytes of key, value and headers.
    #[must_use]
    pub fn content_bytes(&self) -> usize {
        let optional = |bytes: Option<&[u8]>| bytes.map_or(0, <[u8]>::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + optional(*value)).sum();
        optional(self.key) + optional(self.value) + headers
    }
}

/// A record to produce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    key: Option<Bytes>,
    value: Option<Bytes>,
    headers: Vec<(Bytes, Option<Bytes>)>,
    timestamp_ms: Option<i64>,
    partition: Option<u32>,
}

impl Record {
    /// A record with this value.
    #[must_use]
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self { value: Some(value.into()), ..Self::default() }
    }

    /// A record without a value: under compaction it deletes what was under its key.
    #[must_use]
    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), ..Self::default() }
    }

    /// With this key; an empty one is a key.
    #[must_use]
    pub fn key(self, key: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), Some(value.into())));
        self
    }

    /// With one more tag, by which brokers can filter.
    #[must_use]
    pub fn tag(self, tag: impl Into<Bytes>) -> Self {
        self.header(Bytes::from_static(corelog_wire::keys::TAG_HEADER.as_bytes()), tag)
    }

    /// With this create time, in milliseconds since 1970, instead of now.
    #[must_use]
    pub fn timestamp_ms(self, timestamp_ms: i64) -> Self {
        Self { timestamp_ms: Some(timestamp_ms), ..self }
    }

    /// To this partition, whatever the partitioner would choose.
    #[must_use]
    pub fn partition(self, partition: u32) -> Self {
        Self { partition: Some(partition), ..self }
    }

    /// Lends the record. Allocates only if it has headers.
    pub fn lend<R>(&self, use_it: impl FnOnce(&RecordRef<'_>) -> R) -> R {
        let headers: Vec<(&[u8], Option<&[u8]>)> =
            self.headers.iter().map(|(name, value)| (name.as_ref(), value.as_deref())).collect();
        use_it(&RecordRef {
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: &headers,
            timestamp_ms: self.timestamp_ms,
            partition: self.partition,
        })
    }
}

impl<T: Into<Bytes>> From<T> for Record {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}
