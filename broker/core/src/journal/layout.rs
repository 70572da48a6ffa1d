//! The bytes of a commit: header, entries, padding. All numbers little-endian.
//!
//! Called by the hands (pack), by `ring` (sizes), by `scan` and `recovery` (parse). Header, 64 bytes: 0 magic "CLJ1" |
//! 4 version u8 = 1 | 5 flags u8 = 0 | 6 zero u16 | 8 session u64 | 16 position u64 | 24 `flushed_to` u64 | 32 bytes u32
//! (all of the commit, a multiple of [`BLOCK`]) | 36 `entries_bytes` u32 | 40 `entry_count` u32 | 44 `prev_crc` u32 | 48
//! `body_crc` u32 | 52 zero u64 | 60 `header_crc` u32. Entries (`entry`) follow, then
//! zeros up to `bytes`.
//!
//! Invariants: what [`Packer`] packs, [`CommitHeader::parse`] and [`entries`] give back; no bytes make this room panic;
//! zeros are never a commit. It refuses to know where in a ring the bytes lie and whether a sound commit counts.

mod entry;

pub(crate) use entry::{DIRECT_STAMP_AT, ENTRY_HEADER_BYTES, entry_bytes};
pub use entry::{EntryView, entries};

use super::{Commit, DirectWrite, Entry, Position, Session};
use crate::limits::{BLOCK, COMMIT_BYTES_MAX};
use corelog_wire::batch::BatchError;
use entry::{ENTRY, pack_entry, pack_stamped};
use thiserror::Error;

/// Bytes of a commit before its first entry.
pub const COMMIT_HEADER_BYTES: u64 = 64;

const HEADER: usize = 64;

const MAGIC: [u8; 4] = *b"CLJ1";
const VERSION: u8 = 1;
/// Not zero, so that a header of zeros has no checksum of zero.
const CRC_SEED: u32 = 0x314A_4C43;

/// Where the fields of a commit header are.
mod at {
    pub(super) const VERSION: usize = 4;
    pub(super) const SESSION: usize = 8;
    pub(super) const POSITION: usize = 16;
    pub(super) const FLUSHED_TO: usize = 24;
    pub(super) const BYTES: usize = 32;
    pub(super) const ENTRIES_BYTES: usize = 36;
    pub(super) const ENTRY_COUNT: usize = 40;
    pub(super) const PREV_CRC: usize = 44;
    pub(super) const BODY_CRC: usize = 48;
    pub(super) const ZERO: usize = 52;
    pub(super) const CRC: usize = 60;
}

const _: () = assert!(HEADER as u64 == COMMIT_HEADER_BYTES && ENTRY as u64 == ENTRY_HEADER_BYTES);
const _: () = assert!(COMMIT_BYTES_MAX <= u32::MAX as u64 && COMMIT_BYTES_MAX.is_multiple_of(BLOCK));

/// Why bytes are not a commit, or not one of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LayoutError {
    /// The bytes end too early.
    #[error("{bytes} bytes where {wanted} were expected")]
    Short {
        /// What there was.
        bytes: u64,
        /// What was expected.
        wanted: u64,
    },
    /// No commit starts here.
    #[error("no commit header")]
    Magic,
    /// A header that was torn or rotted.
    #[error("the commit header's checksum is wrong")]
    HeaderChecksum,
    /// Written by a newer broker.
    #[error("commit format {version} is unknown here: start a newer broker")]
    NewerVersion {
        /// The version that was found.
        version: u8,
    },
    /// The header's checksum holds but a value may not be.
    #[error("the commit header contradicts itself: {what}")]
    Header {
        /// In what.
        what: &'static str,
    },
    /// Entries that were torn or rotted.
    #[error("the checksum of the commit's entries is wrong")]
    BodyChecksum,
    /// An entry whose values may not be, though the checksums hold.
    #[error("the entry {at} bytes into the commit contradicts itself: {what}")]
    Entry {
        /// Where it starts in the commit.
        at: u32,
        /// In what.
        what: &'static str,
    },
    /// An entry of a kind that this version does not know.
    #[error("the entry {at} bytes into the commit is of the unknown kind {kind}: start a newer broker")]
    UnknownKind {
        /// Where it starts in the commit.
        at: u32,
        /// Its kind.
        kind: u8,
    },
    /// A batch that is not what its entry says.
    #[error("the entry {at} bytes into the commit has a bad batch: {error}")]
    Batch {
        /// Where the entry starts in the commit.
        at: u32,
        /// What is wrong with the batch.
        error: BatchError,
    },
}

/// The parsed header of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitHeader {
    /// The start of the shard that wrote it.
    pub session: Session,
    /// Where it says it starts.
    pub position: Position,
    /// Everything below was known to be flushed when it was packed.
    pub flushed_to: Position,
    /// All of it: header, entries and padding.
    pub bytes: u32,
    /// Its entries.
    pub entries_bytes: u32,
    /// How many entries there are.
    pub entry_count: u32,
    /// `header_crc` of the commit before it; 0 if there was none.
    pub prev_crc: u32,
    /// crc32 of the entries.
    pub body_crc: u32,
    /// crc32 of the header up to here, from a seed that is not zero.
    pub header_crc: u32,
}

impl CommitHeader {
    /// Reads the header that `bytes` start with. Looks at nothing after it.
    ///
    /// # Errors
    /// See [`LayoutError`]; none of those about entries.
    pub fn parse(bytes: &[u8]) -> Result<Self, LayoutError> {
        let Some(header) = bytes.first_chunk::<HEADER>() else {
            return Err(LayoutError::Short { bytes: bytes.len() as u64, wanted: COMMIT_HEADER_BYTES });
        };
        if header[..at::VERSION] != MAGIC {
            return Err(LayoutError::Magic);
        }
        let header_crc = u32_at(header, at::CRC);
        if header_crc != seeded_crc(&header[..at::CRC]) {
            return Err(LayoutError::HeaderChecksum);
        }
        if header[at::VERSION] > VERSION {
            return Err(LayoutError::NewerVersion { version: header[at::VERSION] });
        }
        let parsed = Self {
            session: Session(u64_at(header, at::SESSION)),
            position: Position::new(u64_at(header, at::POSITION)),
            flushed_to: Position::new(u64_at(header, at::FLUSHED_TO)),
            bytes: u32_at(header, at::BYTES),
            entries_bytes: u32_at(header, at::ENTRIES_BYTES),
            entry_count: u32_at(header, at::ENTRY_COUNT),
            prev_crc: u32_at(header, at::PREV_CRC),
            body_crc: u32_at(header, at::BODY_CRC),
            header_crc,
        };
        let reserved = [&header[at::VERSION..at::SESSION], &header[at::ZERO..at::CRC]];
        if reserved != [&[VERSION, 0, 0, 0][..], &[0; at::CRC - at::ZERO]] {
            return Err(LayoutError::Header { what: "something where zeros belong" });
        }
        parsed.contradiction().map_or(Ok(parsed), |what| Err(LayoutError::Header { what }))
    }

    fn contradiction(&self) -> Option<&'static str> {
        let bytes = u64::from(self.bytes);
        let used = COMMIT_HEADER_BYTES + u64::from(self.entries_bytes);
        if bytes == 0 || !bytes.is_multiple_of(BLOCK) || bytes > COMMIT_BYTES_MAX {
            return Some("its length");
        }
        if used > bytes || !self.entries_bytes.is_multiple_of(8) {
            return Some("the length of its entries");
        }
        if u64::from(self.entry_count) * ENTRY_HEADER_BYTES > u64::from(self.entries_bytes)
            || (self.entry_count == 0) != (self.entries_bytes == 0)
        {
            return Some("the number of its entries");
        }
        if !self.position.get().is_multiple_of(BLOCK) || self.position.get() > u64::MAX / 2 {
            return Some("its position");
        }
        if self.flushed_to > self.position || !self.flushed_to.get().is_multiple_of(BLOCK) {
            return Some("what it says is flushed");
        }
        None
    }

    /// Holds the entries against their checksum. `commit`: the bytes of the commit from its header on.
    ///
    /// # Errors
    /// [`LayoutError::Short`] or [`LayoutError::BodyChecksum`].
    pub fn check_body(&self, commit: &[u8]) -> Result<(), LayoutError> {
        if crc32fast::hash(self.body(commit)?) == self.body_crc {
            Ok(())
        } else {
            Err(LayoutError::BodyChecksum)
        }
    }

    fn body<'commit>(&self, commit: &'commit [u8]) -> Result<&'commit [u8], LayoutError> {
        let wanted = HEADER + self.entries_bytes as usize;
        commit
            .get(HEADER..wanted)
            .ok_or(LayoutError::Short { bytes: commit.len() as u64, wanted: wanted as u64 })
    }
}

/// Turns commits into bytes, in their order, each linked to the one before it.
#[derive(Debug)]
pub struct Packer {
    session: Session,
    last_crc: u32,
    next: Option<Position>,
}

impl Packer {
    /// A packer for the commits of `session`. `last_crc`: `header_crc` of the last commit that stands before them, 0 if
    /// there is none.
    #[must_use]
    pub const fn new(session: Session, last_crc: u32) -> Self {
        Self { session, last_crc, next: None }
    }

    /// `header_crc` of the last commit that was packed.
    #[must_use]
    pub const fn last_crc(&self) -> u32 {
        self.last_crc
    }

    /// Packs the next commit into `out`: header, entries, zeros to the end. Every byte of `out` is written, so it may be
    /// recycled memory. Copies every batch exactly once; of its first 24 bytes the stamp is written instead.
    ///
    /// # Panics
    /// If the commit is of another session, does not start where the one before it ended, or does not fill `out`:
    /// bugs of the caller, noticed before anything reaches the disk.
    pub fn pack(&mut self, commit: &Commit, out: &mut [u8]) {
        assert_eq!(commit.session, self.session, "a commit of another session");
        assert!(self.next.is_none_or(|next| next == commit.at), "a commit that is not the next one");
        assert_eq!(commit.bytes, out.len() as u64, "a buffer that is not the commit's size");
        assert!(
            commit.bytes.is_multiple_of(BLOCK) && commit.bytes <= COMMIT_BYTES_MAX,
            "a commit of odd size"
        );
        let entries_bytes: u64 = commit.entries.iter().map(entry_bytes).sum();
        assert!(COMMIT_HEADER_BYTES + entries_bytes <= commit.bytes, "a commit with more entries than room");

        let (header, body) = out.split_at_mut(HEADER);
        let mut rest = &mut *body;
        let mut count = 0_u32;
        for entry in &commit.entries {
            let bytes = pack_entry(entry, rest);
            rest = &mut rest[bytes..];
            count += 1;
        }
        let padding = rest.len();
        rest.fill(0);
        let body_crc = crc32fast::hash(&body[..body.len() - padding]);

        header.fill(0);
        put(header, 0, &MAGIC);
        put(header, at::VERSION, &[VERSION, 0]);
        put(header, at::SESSION, &commit.session.0.to_le_bytes());
        put(header, at::POSITION, &commit.at.get().to_le_bytes());
        put(header, at::FLUSHED_TO, &commit.flushed_to.get().to_le_bytes());
        put(header, at::BYTES, &u32_of(commit.bytes).to_le_bytes());
        put(header, at::ENTRIES_BYTES, &u32_of(entries_bytes).to_le_bytes());
        put(header, at::ENTRY_COUNT, &count.to_le_bytes());
        put(header, at::PREV_CRC, &self.last_crc.to_le_bytes());
        put(header, at::BODY_CRC, &body_crc.to_le_bytes());
        let header_crc = seeded_crc(&header[..at::CRC]);
        put(header, at::CRC, &header_crc.to_le_bytes());

        self.last_crc = header_crc;
        self.next = Some(commit.at.plus(commit.bytes));
    }

    /// Packs the batches of a direct write of this commit, stamped, into `out`, zeros behind them. Copies each exactly once.
    ///
    /// # Panics
    /// If `out` is not the write's size: a bug of the caller, noticed before anything reaches the disk.
    pub fn pack_direct(commit: &Commit, write: &DirectWrite, out: &mut [u8]) {
        assert_eq!(
            write.bytes.next_multiple_of(BLOCK),
            out.len() as u64,
            "memory that is not the write's size"
        );
        let mut rest = out;
        for entry in &commit.entries {
            if let Entry::Direct { tp, segment_use, stamp, batch, .. } = entry
                && (*tp, *segment_use) == (write.segment.tp, write.segment.segment_use)
            {
                let (own, after) = rest.split_at_mut(batch.bytes().len());
                pack_stamped(stamp, batch, batch.bytes(), own);
                rest = after;
            }
        }
        assert!((rest.len() as u64) < BLOCK, "batches that are not those of the write");
        rest.fill(0);
    }
}

/// crc32 from [`CRC_SEED`].
fn seeded_crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(CRC_SEED);
    hasher.update(bytes);
    hasher.finalize()
}

/// The `N` bytes at `at`; zeros beyond the end.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(bytes, at))
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A length that is bounded by [`COMMIT_BYTES_MAX`].
const fn u32_of(bytes: u64) -> u32 {
    assert!(bytes <= u32::MAX as u64, "a length beyond that of a commit");
    #[expect(clippy::cast_possible_truncation, reason = "just compared")]
    {
        bytes as u32
    }
}

#[cfg(test)]
mod tests;
