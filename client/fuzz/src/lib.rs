//! The client's codecs, by symbolic links to their source: they are not part of the client's API, and need not be for
//! this.

mod codec;
#[expect(dead_code, reason = "the codecs need one constructor of it")]
mod error;

pub use codec::BODY_BYTES_MAX;
pub use error::Error;

use corelog_wire::batch::Compression;

/// Every codec, and none.
pub const ALL: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

/// The compressed `body`.
///
/// # Errors
/// As the client's.
pub fn compress(compression: Compression, body: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    codec::compress(compression, body, &mut out)?;
    Ok(out)
}

/// The decompressed `body`, of at most `bytes_max`.
///
/// # Errors
/// As the client's.
pub fn decompress(compression: Compression, body: &[u8], bytes_max: usize) -> Result<Vec<u8>, String> {
    codec::decompress(compression, body, bytes_max)
}
