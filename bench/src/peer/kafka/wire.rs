//! What of Kafka's protocol the driver needs, in the newest versions without tagged fields.
//!
//! Called by the room's session. Source: <https://kafka.apache.org/protocol>, and the record batch of
//! <https://kafka.apache.org/documentation/#recordbatch>. Invariant: what is read is bounded by what was received; bytes that
//! are not the protocol's are an error.

use crate::error::{Error, Result};

/// Kinds of requests, with the version that is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    Produce,
    Fetch,
    Versions,
    CreateTopics,
    DeleteTopics,
}

impl Api {
    const fn key_and_version(self) -> (i16, i16) {
        match self {
            Self::Produce => (0, 7),
            Self::Fetch => (1, 4),
            Self::Versions => (18, 0),
            Self::CreateTopics => (19, 2),
            Self::DeleteTopics => (20, 1),
        }
    }
}

/// A request that is being written.
#[derive(Debug)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    /// A request with its header.
    pub(super) fn request(api: Api, correlation: i32) -> Self {
        let (key, version) = api.key_and_version();
        let mut this = Self(vec![0; 4]);
        this.i16(key).i16(version).i32(correlation).string("corelog-bench");
        this
    }

    /// Without a header.
    pub(super) const fn bare() -> Self {
        Self(Vec::new())
    }

    pub(super) fn i8(&mut self, value: i8) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn i16(&mut self, value: i16) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn i32(&mut self, value: i32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn i64(&mut self, value: i64) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    pub(super) fn string(&mut self, value: &str) -> &mut Self {
        self.i16(i16::try_from(value.len()).unwrap_or(i16::MAX)).raw(value.as_bytes())
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A number as records have it: zigzag, seven bits a byte.
    pub(super) fn varint(&mut self, value: i64) -> &mut Self {
        let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
        while rest >= 0x80 {
            self.0.push(u8::try_from(rest & 0x7f).unwrap_or(0) | 0x80);
            rest >>= 7;
        }
        self.0.push(u8::try_from(rest).unwrap_or(0));
        self
    }

    pub(super) const fn len(&self) -> usize {
        self.0.len()
    }

    /// Its bytes.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// A whole request, its length in front, of which so many bytes follow elsewhere.
    pub(super) fn finish(mut self, more: usize) -> Vec<u8> {
        let bytes = self.0.len() - 4 + more;
        self.0[..4].copy_from_slice(&i32::try_from(bytes).unwrap_or(i32::MAX).to_be_bytes());
        self.0
    }
}

/// What was received, from the front.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .0
            .split_at_checked(bytes)
            .ok_or_else(|| Error::Peer("a message of Kafka's ends too early".to_owned()))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    pub(super) fn i8(&mut self) -> Result<i8> {
        Ok(i8::from_be_bytes(self.array()?))
    }

    pub(super) fn i16(&mut self) -> Result<i16> {
        Ok(i16::from_be_bytes(self.array()?))
    }

    pub(super) fn i32(&mut self) -> Result<i32> {
        Ok(i32::from_be_bytes(self.array()?))
    }

    pub(super) fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_be_bytes(self.array()?))
    }

    /// A string, or none.
    pub(super) fn string(&mut self) -> Result<Option<&'a [u8]>> {
        let length = self.i16()?;
        usize::try_from(length).ok().map(|length| self.take(length)).transpose()
    }

    /// Bytes, or none.
    pub(super) fn bytes(&mut self) -> Result<&'a [u8]> {
        let length = self.i32()?;
        self.take(usize::try_from(length).unwrap_or(0))
    }

    pub(super) fn varint(&mut self) -> Result<i64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = u64::from(self.array::<1>()?[0]);
            value |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed());
            }
        }
        Err(Error::Peer("a number of a record of Kafka's is too long".to_owned()))
    }
}

/// Where in a batch its checksum is, and from where on it covers.
pub(super) const CRC_AT: usize = 17;
pub(super) const CRC_FROM: usize = 21;

/// A batch of these values, and where each value is in it. Its checksum is not right yet.
pub(super) fn batch(values: &[Vec<u8>], now_ms: i64) -> (Vec<u8>, Vec<usize>) {
    let mut body = Writer::bare();
    let mut places = Vec::new();
    for (number, value) in values.iter().enumerate() {
        let mut head = Writer::bare();
        head.i8(0).varint(0).varint(i64::try_from(number).unwrap_or(0));
        head.varint(-1).varint(i64::try_from(value.len()).unwrap_or(0));
        let length = head.len() + value.len() + 1;
        body.varint(i64::try_from(length).unwrap_or(0)).raw(&head.into_bytes());
        places.push(body.len());
        body.raw(value).varint(0);
    }
    let count = i32::try_from(places.len()).unwrap_or(i32::MAX);
    let body = body.into_bytes();
    let mut batch = Writer::bare();
    let after_length = 49 + body.len();
    batch.i64(0).i32(i32::try_from(after_length).unwrap_or(i32::MAX)).i32(-1).i8(2).i32(0);
    batch.i16(0).i32(count - 1).i64(now_ms).i64(now_ms).i64(-1).i16(-1).i32(-1).i32(count);
    let head = batch.len();
    batch.raw(&body);
    (batch.into_bytes(), places.into_iter().map(|place| place + head).collect())
}

/// The values of the whole batches at the beginning of `bytes`, with their offsets; how many bytes they are.
pub(super) fn records(bytes: &[u8], mut each: impl FnMut(u64, &[u8])) -> Result<usize> {
    let mut rest = Reader(bytes);
    loop {
        let mut ahead = rest.clone();
        let (Ok(base), Ok(length)) = (ahead.i64(), ahead.i32()) else { break };
        let Ok(batch) = ahead.take(usize::try_from(length).unwrap_or(usize::MAX)) else { break };
        let mut batch = Reader(batch);
        batch.take(45)?;
        for _ in 0..batch.i32()? {
            let length = batch.varint()?;
            let mut record = Reader(batch.take(usize::try_from(length).unwrap_or(usize::MAX))?);
            record.i8()?;
            record.varint()?;
            let offset = base + record.varint()?;
            let key = record.varint()?;
            record.take(usize::try_from(key).unwrap_or(0))?;
            let value = record.varint()?;
            each(offset.cast_unsigned(), record.take(usize::try_from(value).unwrap_or(0))?);
        }
        rest = ahead;
    }
    Ok(bytes.len() - rest.0.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_as_it_was_written() {
        let values: Vec<Vec<u8>> = (1..=3).map(|number| vec![number; 100 * usize::from(number)]).collect();
        let (batch, places) = batch(&values, 1_700_000_000_000);
        assert_eq!(places.len(), 3);
        assert_eq!(&batch[places[1]..places[1] + 100], &values[1][..100]);
        let mut twice = batch.clone();
        twice.extend_from_slice(&batch[..batch.len() - 1]);
        let mut read = Vec::new();
        let taken = records(&twice, |offset, value| read.push((offset, value.to_vec()))).unwrap();
        assert_eq!(taken, batch.len());
        assert_eq!(read, (0..).zip(values).collect::<Vec<_>>());
    }

    #[test]
    fn numbers_are_read_as_they_were_written() {
        for value in [0, -1, 1, 63, 64, -64, -65, 1 << 20, i64::MAX, i64::MIN] {
            let mut writer = Writer::bare();
            writer.varint(value);
            let bytes = writer.into_bytes();
            assert_eq!(Reader(&bytes).varint().unwrap(), value);
            assert!(Reader(&bytes[..bytes.len() - 1]).varint().is_err());
        }
        assert!(Reader(&[0xff; 11]).varint().is_err());
        assert!(Reader(&[0x7f, 0xff]).string().is_err());
    }
}
