//! Compressing and decompressing batch bodies.
//!
//! Called by the producer when it seals a batch and by the reader when it opens one. Invariant: decompression never
//! gives, and never reserves, more than the bound it was handed, whatever the input promises. It refuses to know what a
//! body holds.

use corelog_wire::batch::Compression;

use crate::error::Error;

/// Most bytes that a decompressed body may have: twice the largest batch that any topic can be set to take, since a body
/// is at most that long before a producer of this library compresses it.
pub const BODY_BYTES_MAX: usize = 32 << 20;

/// Appends the compressed `body` to `out`.
///
/// # Errors
/// [`Error::Usage`] if this build lacks the codec.
pub fn compress(compression: Compression, body: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    match compression {
        Compression::None => {
            out.extend_from_slice(body);
            Ok(())
        }
        #[cfg(feature = "codecs")]
        Compression::Gzip => codecs::gzip(body, out),
        #[cfg(feature = "codecs")]
        Compression::Snappy => codecs::snappy(body, out),
        #[cfg(feature = "codecs")]
        Compression::Lz4 => codecs::lz4(body, out),
        #[cfg(feature = "codecs")]
        Compression::Zstd => codecs::zstd(body, out),
        #[cfg(not(feature = "codecs"))]
        other => Err(missing(other)),
    }
}

/// The decompressed `body`.
///
/// # Errors
/// In words, if the input is damaged, would be longer than `bytes_max`, or this build lacks the codec.
pub fn decompress(compression: Compression, body: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
    match compression {
        Compression::None if body.len() <= bytes_max => Ok(body.to_vec()),
        Compression::None => Err(too_long(bytes_max)),
        #[cfg(feature = "codecs")]
        Compression::Gzip => codecs::gunzip(body, bytes_max),
        #[cfg(feature = "codecs")]
        Compression::Snappy => codecs::unsnappy(body, bytes_max),
        #[cfg(feature = "codecs")]
        Compression::Lz4 => codecs::unlz4(body, bytes_max),
        #[cfg(feature = "codecs")]
        Compression::Zstd => codecs::unzstd(body, bytes_max),
        #[cfg(not(feature = "codecs"))]
        other => Err(missing(other).to_string()),
    }
}

#[cfg(not(feature = "codecs"))]
fn missing(compression: Compression) -> Error {
    Error::usage(format!("this build has no {}: build it with the feature `codecs`", compression.name()))
}

fn too_long(bytes_max: usize) -> String {
    format!("decompressed it would be longer than {bytes_max} bytes")
}

#[cfg(feature = "codecs")]
mod codecs {
    use std::cell::RefCell;
    use std::io::{Read, Write};

    use super::too_long;
    use crate::error::Error;

    /// First bytes of xerial's framing of Snappy: magic, version 1, compatible with 1.
    const XERIAL: [u8; 16] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0, 0, 0, 0, 1, 0, 0, 0, 1];
    const XERIAL_MAGIC_BYTES: usize = 8;
    /// Block length that xerial's writer uses.
    const XERIAL_BLOCK_BYTES: usize = 32 << 10;
    /// Fast, and far better than the other codecs on logs.
    const ZSTD_LEVEL: i32 = 1;
    /// Largest window that a zstd frame may ask for: 32 MiB, as the largest body.
    const ZSTD_WINDOW_LOG_MAX: u32 = 25;

    fn failed(error: &dyn std::fmt::Display) -> Error {
        // Compression into memory fails only by a bug of the codec, which is no reason to lose the process.
        Error::usage(format!("the body could not be compressed: {error}"))
    }

    pub(super) fn gzip(body: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::fast());
        encoder.write_all(body).and_then(|()| encoder.finish()).map(|_| ()).map_err(|error| failed(&error))
    }

    pub(super) fn gunzip(body: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
        read_bounded(flate2::read::MultiGzDecoder::new(body), bytes_max)
    }

    pub(super) fn lz4(body: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let mut encoder = lz4_flex::frame::FrameEncoder::new(out);
        encoder.write_all(body).map_err(|error| failed(&error))?;
        encoder.finish().map(|_| ()).map_err(|error| failed(&error))
    }

    pub(super) fn unlz4(body: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
        read_bounded(lz4_flex::frame::FrameDecoder::new(body), bytes_max)
    }

    thread_local! {
        /// A context is large and slow to make, so a thread keeps one.
        static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    }

    pub(super) fn zstd(body: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        let compressed = ZSTD.with_borrow_mut(|slot| {
            let compressor = match slot {
                Some(compressor) => compressor,
                None => slot.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
            };
            compressor.compress(body)
        });
        out.extend_from_slice(&compressed.map_err(|error| failed(&error))?);
        Ok(())
    }

    pub(super) fn unzstd(body: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
        let mut decoder =
            zstd::stream::read::Decoder::with_buffer(body).map_err(|error| error.to_string())?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(|error| error.to_string())?;
        read_bounded(decoder, bytes_max)
    }

    pub(super) fn snappy(body: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        out.extend_from_slice(&XERIAL);
        let mut encoder = snap::raw::Encoder::new();
        for block in body.chunks(XERIAL_BLOCK_BYTES) {
            let at = out.len();
            out.resize(at + 4 + snap::raw::max_compress_len(block.len()), 0);
            let bytes = encoder.compress(block, &mut out[at + 4..]).map_err(|error| failed(&error))?;
            let length = u32::try_from(bytes).map_err(|error| failed(&error))?;
            out[at..at + 4].copy_from_slice(&length.to_be_bytes());
            out.truncate(at + 4 + bytes);
        }
        Ok(())
    }

    /// Some Kafka producers write a bare block without framing; both are read.
    pub(super) fn unsnappy(body: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        if body.get(..XERIAL_MAGIC_BYTES) != Some(&XERIAL[..XERIAL_MAGIC_BYTES]) {
            unsnappy_block(body, bytes_max, &mut out)?;
            return Ok(out);
        }
        let mut rest = body.get(XERIAL.len()..).ok_or("the framing is cut off")?;
        while let Some((length, blocks)) = rest.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            let (block, next) = blocks.split_at_checked(length).ok_or("a block is cut off")?;
            unsnappy_block(block, bytes_max, &mut out)?;
            rest = next;
        }
        if rest.is_empty() { Ok(out) } else { Err("a block's length is cut off".to_owned()) }
    }

    fn unsnappy_block(block: &[u8], bytes_max: usize, out: &mut Vec<u8>) -> Result<(), String> {
        let bytes = snap::raw::decompress_len(block).map_err(|error| error.to_string())?;
        if bytes > bytes_max - out.len() {
            return Err(too_long(bytes_max));
        }
        // Snappy makes at most 64 bytes of 3: a length beyond that is a lie, and must not be reserved.
        if bytes > block.len().saturating_mul(32) {
            return Err("a block promises more than it can hold".to_owned());
        }
        let at = out.len();
        out.resize(at + bytes, 0);
        let written = snap::raw::Decoder::new().decompress(block, &mut out[at..]);
        written.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Reads to the end, but no further than the bound.
    fn read_bounded(reader: impl Read, bytes_max: usize) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        let bound = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
        reader.take(bound).read_to_end(&mut out).map_err(|error| error.to_string())?;
        if out.len() > bytes_max { Err(too_long(bytes_max)) } else { Ok(out) }
    }
}

#[cfg(all(test, feature = "codecs"))]
mod tests {
    use super::*;

    const ALL: [Compression; 5] =
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

    fn bodies() -> Vec<Vec<u8>> {
        let mut random = crate::core::Random::new(5);
        let noise = (0..100_000).map(|_| random.number().to_le_bytes()[0]).collect();
        let text = b"2026-11-21 10:00:00 INFO a line of a log that repeats itself\n".repeat(3_000);
        vec![vec![], b"x".to_vec(), text, noise, vec![0; 1 << 20]]
    }

    #[test]
    fn what_was_compressed_comes_back() {
        for compression in ALL {
            for body in bodies() {
                let mut out = b"before".to_vec();
                compress(compression, &body, &mut out).unwrap();
                let again = decompress(compression, &out[6..], body.len()).unwrap();
                assert!(again == body, "{} of {} bytes", compression.name(), body.len());
            }
        }
    }

    #[test]
    fn a_body_that_would_be_too_long_is_refused() {
        for compression in ALL {
            let mut out = Vec::new();
            compress(compression, &vec![0; 1 << 20], &mut out).unwrap();
            let error = decompress(compression, &out, (1 << 20) - 1).unwrap_err();
            assert!(error.contains("longer"), "{}: {error}", compression.name());
        }
    }

    #[test]
    fn damaged_input_is_an_error_or_other_bytes_but_no_panic() {
        let mut random = crate::core::Random::new(9);
        for compression in ALL {
            let mut out = Vec::new();
            compress(compression, &bodies()[2], &mut out).unwrap();
            for _ in 0..200 {
                let mut damaged = out.clone();
                for _ in 0..=random.below(4) {
                    let at = usize::try_from(random.below(damaged.len() as u64)).unwrap();
                    damaged[at] = random.number().to_le_bytes()[0];
                }
                damaged.truncate(usize::try_from(random.below(damaged.len() as u64 * 2)).unwrap());
                if let Ok(again) = decompress(compression, &damaged, 1 << 20) {
                    assert!(again.len() <= 1 << 20);
                }
            }
        }
    }

    #[test]
    fn a_snappy_block_that_lies_about_its_length_reserves_nothing() {
        // A varint of 16 MiB and nothing behind it.
        let block = [0x80, 0x80, 0x80, 0x08];
        assert!(decompress(Compression::Snappy, &block, BODY_BYTES_MAX).unwrap_err().contains("promises"));
    }

    #[test]
    fn snappy_has_xerials_framing() {
        let mut out = Vec::new();
        compress(Compression::Snappy, b"abc", &mut out).unwrap();
        assert_eq!(out[..16], *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01");
        assert_eq!(out[16..], [0, 0, 0, 5, 3, 2 << 2, b'a', b'b', b'c']);
        assert_eq!(decompress(Compression::Snappy, &out[20..], 10).unwrap(), b"abc", "a bare block");
    }
}
