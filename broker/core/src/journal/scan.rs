//! Reading a journal back: which commits stand, and whether what ends them is a torn tail or corruption.
//!
//! Called by `recovery`, which feeds ring bytes in order. The chain of commits is followed from where the checkpoint
//! needs it to the first bad commit. From there on only headers are looked at: any sound header that says "flushed
//! up to here" about the bad commit makes it corruption. Otherwise it is a tail that was never acknowledged.
//!
//! Invariant: a commit is given out only if its header and body checksums, its position, its session and its link to
//! the commit before hold.

use super::{CommitHeader, Position, Superblock};
use crate::limits::{BLOCK, MIB};
use bytes::{Bytes, BytesMut};

const BLOCK_BYTES: usize = 4096;
const _: () = assert!(BLOCK_BYTES as u64 == BLOCK);
/// Ring bytes asked for at once.
const READ_BYTES: u64 = 4 * MIB;

/// A read the scan wants: block-aligned, never around the end of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingRead {
    /// Offset in the ring; in the file it is `RING_DATA_START` further.
    pub ring_offset: u64,
    /// Bytes to read.
    pub bytes: u64,
}

/// How the journal ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every commit that was started is there.
    Clean {
        /// Where appending goes on.
        end: Position,
    },
    /// A last write did not land whole. Nothing in it was acknowledged; it is cut.
    Torn {
        /// Where appending goes on.
        end: Position,
    },
    /// A commit that was known to be flushed is bad. Nothing may be cut.
    Corrupt {
        /// The bad commit.
        from: Position,
        /// Everything below was known to be flushed.
        flushed_to: Position,
    },
}

/// One sound commit.
#[derive(Debug)]
pub struct Scanned {
    /// Its header.
    pub header: CommitHeader,
    /// All of it.
    pub bytes: Bytes,
}

/// A scan under way.
#[derive(Debug)]
pub struct Scan {
    ring_bytes: u64,
    superblock: Superblock,
    /// Where the scan started.
    from: Position,
    /// Where the next commit should start.
    at: Position,
    /// Bytes up to here were asked for.
    asked_to: Position,
    /// Bytes up to here were fed.
    fed_to: Position,
    /// Fed, not yet judged: starts at `at`, or at the next block to search.
    carry: BytesMut,
    /// Checksum of the header before `at`, once one was seen.
    last_crc: Option<u32>,
    flushed_to: Position,
    /// Blocks that the drive could not read, in the order they were fed.
    unreadable: Vec<Position>,
    /// A commit of a session that the superblock has lost stands where the journal seemed to end.
    lost_session: bool,
    searching: Option<Search>,
}

#[derive(Debug)]
struct Search {
    bad: Position,
    /// Where the bad commit ends, as far as its header says it.
    bad_end: Position,
    /// A sound header of this lap was at or beyond the bad commit: something had been started there.
    started: bool,
    at: Position,
}

impl Scan {
    /// A scan from `from`, where a commit starts. `flushed_to` is what the checkpoint knows to be flushed.
    #[must_use]
    pub fn new(superblock: Superblock, from: Position, flushed_to: Position) -> Self {
        let known = superblock.flushed_to();
        Self {
            ring_bytes: superblock.ring_bytes(),
            superblock,
            from,
            at: from,
            asked_to: from,
            fed_to: from,
            carry: BytesMut::new(),
            last_crc: None,
            flushed_to: flushed_to.max(known),
            unreadable: Vec::new(),
            lost_session: false,
            searching: None,
        }
    }

    /// What to read next; `None` when the whole ring was asked for. Several reads may be under way; they are fed in order.
    #[must_use]
    pub fn next_read(&mut self) -> Option<RingRead> {
        if self.superblock.is_unused() {
            return None;
        }
        let left = self.ring_bytes - self.asked_to.since(self.from);
        let ring_offset = self.asked_to.in_ring(self.ring_bytes);
        let bytes = READ_BYTES.min(left).min(self.ring_bytes - ring_offset);
        self.asked_to = self.asked_to.plus(bytes);
        (bytes > 0).then_some(RingRead { ring_offset, bytes })
    }

    /// Takes the bytes of `next_read` and gives the sound commits they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Scanned> {
        self.fed_to = self.fed_to.plus(bytes.len() as u64);
        let mut sound = Vec::new();
        self.carry.extend_from_slice(bytes);
        while self.searching.is_none() {
            match self.judge_next() {
                Judged::Sound(scanned) => sound.push(scanned),
                Judged::NeedsMore => return sound,
                Judged::Bad { started, bytes } => {
                    let (bad, bad_end) = (self.at, self.at.plus(bytes));
                    self.searching = Some(Search { bad, bad_end, started, at: bad });
                }
            }
        }
        self.search();
        sound
    }

    /// Takes the next block as one that the drive cannot read.
    pub fn feed_unreadable(&mut self) -> Vec<Scanned> {
        self.unreadable.push(self.fed_to);
        self.feed(&[0; BLOCK_BYTES])
    }

    /// How the journal ends, with the checksum the next commit links to. Only after `next_read` gave `None`.
    #[must_use]
    pub fn finish(mut self) -> (Verdict, u32) {
        if self.searching.is_none() {
            // A whole lap of sound commits cannot be: the scan ran out of ring inside a commit.
            let (bad, bad_end) = (self.at, self.at.plus(self.carry.len() as u64));
            self.searching = Some(Search { bad, bad_end, started: !self.carry.is_empty(), at: bad });
        }
        // No power cut makes a block unreadable, so a commit may have stood there.
        let unreadable = self
            .searching
            .as_ref()
            .is_some_and(|search| self.unreadable.iter().any(|at| (search.bad..search.bad_end).contains(at)));
        let last_crc = self.last_crc.unwrap_or(0);
        let verdict = match &self.searching {
            Some(search)
                if (self.flushed_to > search.bad || self.lost_session || unreadable)
                    && !cfg!(mutant = "recovery_cuts_at_first_bad") =>
            {
                Verdict::Corrupt { from: search.bad, flushed_to: self.flushed_to }
            }
            Some(search) if search.started => Verdict::Torn { end: search.bad },
            _ => Verdict::Clean { end: self.at },
        };
        (verdict, last_crc)
    }

    fn judge_next(&mut self) -> Judged {
        if (self.carry.len() as u64) < BLOCK {
            return Judged::NeedsMore;
        }
        let Ok(header) = CommitHeader::parse(&self.carry) else {
            return Judged::Bad { started: false, bytes: BLOCK };
        };
        if !self.belongs(&header, self.at) {
            self.lost_session |= header.position == self.at && self.superblock.lacks(header.session);
            return Judged::Bad { started: false, bytes: BLOCK };
        }
        // A session that began right where a scan had begun knew no commit before it.
        let unlinked = header.prev_crc == 0 && self.superblock.may_begin(header.session, self.at);
        let broken = self.last_crc.is_some_and(|crc| crc != header.prev_crc) && !unlinked;
        if broken && !cfg!(mutant = "recovery_takes_stale_commits") {
            return Judged::Bad { started: true, bytes: BLOCK };
        }
        let bytes = header.bytes as usize;
        if self.at.since(self.from) + u64::from(header.bytes) > self.ring_bytes {
            return Judged::Bad { started: true, bytes: header.bytes.into() };
        }
        if self.carry.len() < bytes {
            return Judged::NeedsMore;
        }
        // The header is sound whatever the body is: what it says about earlier commits counts.
        self.flushed_to = self.flushed_to.max(header.flushed_to);
        if header.check_body(&self.carry[..bytes]).is_err() {
            return Judged::Bad { started: true, bytes: header.bytes.into() };
        }
        let bytes = self.carry.split_to(bytes).freeze();
        self.at = self.at.plus(bytes.len() as u64);
        self.last_crc = Some(header.header_crc);
        Judged::Sound(Scanned { header, bytes })
    }

    /// Looks at every block from the bad commit on for sound headers of this lap.
    fn search(&mut self) {
        let Some(mut search) = self.searching.take() else { return };
        while self.carry.len() as u64 >= BLOCK {
            if let Ok(header) = CommitHeader::parse(&self.carry)
                && self.belongs(&header, search.at)
            {
                search.started = true;
                self.flushed_to = self.flushed_to.max(header.flushed_to);
            }
            search.at = search.at.plus(BLOCK);
            let _ = self.carry.split_to(usize::try_from(BLOCK).unwrap_or(usize::MAX));
        }
        self.searching = Some(search);
    }

    fn belongs(&self, header: &CommitHeader, at: Position) -> bool {
        header.position == at
            && (self.superblock.session_covers(header.session, at)
                || cfg!(mutant = "recovery_takes_stale_commits"))
    }
}

enum Judged {
    Sound(Scanned),
    NeedsMore,
    Bad { started: bool, bytes: u64 },
}
