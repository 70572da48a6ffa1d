//! Frames as they come off a socket: whole, or so large that the rest is received where it will be written from.
//!
//! Called by `server`. A pure function of the bytes. Invariant: nothing is taken of a frame whose prelude or batch does
//! not check. This file refuses to know what a request's header says: the strawman has neither topics nor partitions.

use corelog_wire::batch::{HEADER_BYTES, parse_header};
use corelog_wire::frame::{Caps, Kind, PRELUDE_BYTES, Prelude};
use corelog_wire::ids::{TopicId, TopicPartition};

use crate::error::{Error, Result};

/// Longest payload, and the length of the memory that is written at once.
pub const PAYLOAD_BYTES_MAX: u32 = 8 << 20;
/// Longest header.
pub(super) const HEADER_BYTES_MAX: u32 = 4096;
/// From this length on a payload is received in place instead of copied.
pub(super) const LARGE_BYTES: usize = 32 << 10;

const CAPS: Caps = Caps { header_bytes_max: HEADER_BYTES_MAX, payload_bytes_max: PAYLOAD_BYTES_MAX };

/// What every batch is sealed for, as there is but one log.
#[must_use]
pub const fn place() -> TopicPartition {
    TopicPartition::new(TopicId::from_bytes(*b"strawman's topic"), 0)
}

/// What a connection's input begins with.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// A frame, all of it.
    Whole {
        /// What to call it in the answer.
        correlation: u64,
        /// Whether it asks for the counters instead of appending.
        status: bool,
        /// Whether it is acknowledged as soon as it is in memory: it has a header, whatever that says.
        early: bool,
        /// What is to be appended.
        payload: &'a [u8],
        /// The frame's length.
        bytes: usize,
    },
    /// The beginning of a large one, up to and including its header.
    Large {
        /// What to call it in the answer.
        correlation: u64,
        /// As of a whole one.
        early: bool,
        /// Where the payload begins.
        payload_at: usize,
        /// Its length.
        payload_bytes: usize,
    },
    /// Too little to tell.
    More,
}

/// Looks at the beginning of a connection's input.
pub(super) fn next(input: &[u8]) -> Result<Next<'_>> {
    let Some(prelude) = input.first_chunk::<PRELUDE_BYTES>() else { return Ok(Next::More) };
    let prelude = Prelude::decode(prelude, &CAPS).map_err(|error| Error::Peer(error.to_string()))?;
    let correlation = prelude.correlation.get();
    let early = prelude.header_bytes > 0;
    let payload_at = PRELUDE_BYTES + prelude.header_bytes as usize;
    let payload_bytes = prelude.payload_bytes as usize;
    if let Some(payload) = input.get(payload_at..payload_at + payload_bytes) {
        let status = prelude.kind != Kind::Produce.as_u16();
        if !status {
            check(payload)?;
        }
        return Ok(Next::Whole { correlation, status, early, payload, bytes: payload_at + payload_bytes });
    }
    if payload_bytes >= LARGE_BYTES && input.len() >= payload_at {
        return Ok(Next::Large { correlation, early, payload_at, payload_bytes });
    }
    Ok(Next::More)
}

/// Whether a payload is a batch as it was sealed: its header's checksum and its body's.
pub(super) fn check(payload: &[u8]) -> Result<()> {
    let damaged = |reason: String| Error::Peer(format!("a request's payload is damaged: {reason}"));
    let (header, _) = parse_header(payload, place()).map_err(|error| damaged(error.to_string()))?;
    let body = HEADER_BYTES..HEADER_BYTES + header.body_bytes as usize;
    let sound = payload.len() == header.batch_bytes as usize
        && payload.get(body).is_some_and(|body| header.checksum_of_body(body) == header.body_crc32c);
    if sound { Ok(()) } else { Err(damaged("its checksum or its length is wrong".to_owned())) }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use corelog_wire::batch::BatchFields;
    use corelog_wire::ids::CorrelationId;

    use super::*;
    use crate::payload::{Mark, Template};

    fn frame(record_bytes: usize) -> Vec<u8> {
        let mut batch = BytesMut::new();
        let mark = Mark { run: 1, producer: 0, partition: 0, sequence: 0, intended_ns: 0 };
        Template::new(&[vec![7; record_bytes]]).unwrap().fill(
            &mut batch,
            mark,
            &BatchFields::plain(1, 1),
            place(),
        );
        let bytes = u32::try_from(batch.len()).unwrap();
        let header = [7; 16];
        let prelude = Prelude::request(Kind::Produce, CorrelationId::new(9), &header, bytes);
        [&prelude.encode()[..], &header, &batch].concat()
    }

    #[test]
    fn a_frame_is_taken_when_it_is_whole() {
        let frame = frame(100);
        for cut in 0..frame.len() {
            assert_eq!(next(&frame[..cut]).unwrap(), Next::More, "{cut}");
        }
        let two = [&frame[..], &frame].concat();
        let payload = &frame[PRELUDE_BYTES + 16..];
        let whole = Next::Whole { correlation: 9, status: false, early: true, payload, bytes: frame.len() };
        assert_eq!(next(&two).unwrap(), whole);
    }

    #[test]
    fn a_large_one_is_known_by_its_head() {
        let frame = frame(100_000);
        let payload_at = PRELUDE_BYTES + 16;
        let payload_bytes = frame.len() - payload_at;
        assert_eq!(next(&frame[..payload_at - 1]).unwrap(), Next::More);
        assert_eq!(
            next(&frame[..payload_at]).unwrap(),
            Next::Large { correlation: 9, early: true, payload_at, payload_bytes }
        );
    }

    #[test]
    fn damage_is_refused() {
        let frame = frame(100);
        for at in [0, 12, PRELUDE_BYTES + 16 + 30, frame.len() - 20] {
            let mut damaged = frame.clone();
            damaged[at] ^= 1;
            assert!(next(&damaged).is_err(), "{at}");
        }
    }
}
