//! The first two blocks of a journal file: what kind of ring follows, and which start of the shard may have written
//! where in it.
//!
//! Called by `recovery` (read, next session) and by `shard` (format, written in full). Each version of the superblock
//! has a generation; generation `g` lives in slot `g % 2`, so a torn write never takes the version before it. A new
//! session is in a flushed superblock before its first commit is written, so a commit whose session and position do
//! not agree with the table is a leftover, whatever its checksums say.
//!
//! Invariants: sessions rise strictly, their first positions too; at most [`SESSIONS_MAX`] are kept, the newest ones;
//! everything below the first position of the newest session was flushed before that session began. This room
//! refuses to know what is in the ring.

use super::{Position, Session};
use crate::limits::{BLOCK, SESSIONS_MAX};
use thiserror::Error;

/// Slots at the start of a journal file.
pub const SUPERBLOCK_SLOTS: u64 = 2;
/// Bytes of both slots, from the start of a journal file.
pub const SUPERBLOCK_BYTES: u64 = SUPERBLOCK_SLOTS * BLOCK;

const SLOT_BYTES: usize = 4096;
const MAGIC: [u8; 4] = *b"CLJS";
const VERSION: u8 = 1;
const FLAG_WRITTEN_IN_FULL: u8 = 1;
const CRC_SEED: u32 = 0x534A_4C43;

const VERSION_AT: usize = 4;
const FLAGS_AT: usize = 5;
const ZERO_AT: usize = 6;
const RING_BYTES_AT: usize = 8;
const GENERATION_AT: usize = 16;
const COUNT_AT: usize = 24;
const COUNT_ZERO_AT: usize = 28;
const TABLE_AT: usize = 32;
const ROW_BYTES: usize = 16;
const CRC_AT: usize = SLOT_BYTES - 4;

const _: () = assert!(SLOT_BYTES as u64 == BLOCK);
const _: () = assert!(TABLE_AT + SESSIONS_MAX * ROW_BYTES <= CRC_AT);
const _: () = assert!(SESSIONS_MAX <= u32::MAX as usize);

/// Why a journal's superblock cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SuperblockError {
    /// Fewer bytes than the two slots have.
    #[error("a journal file starts with {SUPERBLOCK_BYTES} bytes of superblock, here are {bytes}")]
    Short {
        /// What there was.
        bytes: u64,
    },
    /// A newer broker wrote it. It is left as it is.
    #[error("the journal has format {version}, this broker reads format {VERSION}: start a newer broker")]
    NewerVersion {
        /// The version that was found.
        version: u8,
    },
    /// Both slots are damaged.
    #[error("both superblocks of the journal are damaged (slot 0: {first}; slot 1: {second})")]
    BothBad {
        /// What is wrong with slot 0.
        first: SlotFault,
        /// What is wrong with slot 1.
        second: SlotFault,
    },
    /// Both slots are sound but do not belong to one journal.
    #[error("the superblocks of the journal contradict each other: {what}")]
    Contradiction {
        /// In what.
        what: &'static str,
    },
}

/// What is wrong with one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SlotFault {
    /// Not a superblock at all, for example never written.
    #[error("no superblock")]
    Magic,
    /// A torn or rotten superblock.
    #[error("wrong checksum")]
    Checksum,
    /// The checksum holds but a value may not be.
    #[error("{0}")]
    Field(&'static str),
}

/// One start of the shard and the position its first commit has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionStart {
    /// Which start.
    pub session: Session,
    /// Where its first commit goes. Everything below was flushed before.
    pub first: Position,
}

/// One version of a journal's superblock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    ring_bytes: u64,
    generation: u64,
    written_in_full: bool,
    /// Oldest first.
    sessions: Vec<SessionStart>,
}

impl Superblock {
    /// The superblock of a journal that never took a commit. `ring_bytes`: size of the ring, without the superblocks.
    #[must_use]
    pub const fn fresh(ring_bytes: u64) -> Self {
        Self { ring_bytes, generation: 0, written_in_full: false, sessions: Vec::new() }
    }

    /// Reads both slots (the first [`SUPERBLOCK_BYTES`] of the file) and gives the newest sound one with its slot.
    ///
    /// One damaged slot is tolerated. The caller must not take that for a proof that nothing was lost: if the damaged
    /// slot was the newest, the table lacks its session, and [`Superblock::lacks`] tells on the first commit of it.
    ///
    /// # Errors
    /// See [`SuperblockError`]. A newer version in either slot refuses both.
    pub fn parse_newest(bytes: &[u8]) -> Result<(Self, u64), SuperblockError> {
        let (Some(first), Some(second)) = (
            bytes.first_chunk::<SLOT_BYTES>(),
            bytes.get(SLOT_BYTES..).and_then(<[u8]>::first_chunk::<SLOT_BYTES>),
        ) else {
            return Err(SuperblockError::Short { bytes: bytes.len() as u64 });
        };
        match (parse_slot(first, 0), parse_slot(second, 1)) {
            (Err(Slot::Newer(version)), _) | (_, Err(Slot::Newer(version))) => {
                Err(SuperblockError::NewerVersion { version })
            }
            (Ok(first), Ok(second)) => Self::newer(first, second),
            (Ok(first), Err(Slot::Bad(_))) => Ok((first, 0)),
            (Err(Slot::Bad(_)), Ok(second)) => Ok((second, 1)),
            (Err(Slot::Bad(first)), Err(Slot::Bad(second))) => {
                Err(SuperblockError::BothBad { first, second })
            }
        }
    }

    fn newer(first: Self, second: Self) -> Result<(Self, u64), SuperblockError> {
        if first.ring_bytes != second.ring_bytes {
            return Err(SuperblockError::Contradiction { what: "the size of the ring" });
        }
        Ok(if first.generation > second.generation { (first, 0) } else { (second, 1) })
    }

    /// The bytes of one slot, to be written at [`Superblock::slot_offset`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; SLOT_BYTES];
        put(&mut out, 0, &MAGIC);
        put(&mut out, VERSION_AT, &[VERSION, if self.written_in_full { FLAG_WRITTEN_IN_FULL } else { 0 }]);
        put(&mut out, RING_BYTES_AT, &self.ring_bytes.to_le_bytes());
        put(&mut out, GENERATION_AT, &self.generation.to_le_bytes());
        let mut count = 0_u32;
        for (row, start) in self.sessions.iter().take(SESSIONS_MAX).enumerate() {
            let at = TABLE_AT + row * ROW_BYTES;
            put(&mut out, at, &start.session.0.to_le_bytes());
            put(&mut out, at + 8, &start.first.get().to_le_bytes());
            count += 1;
        }
        put(&mut out, COUNT_AT, &count.to_le_bytes());
        let crc = crc(&out[..CRC_AT]);
        put(&mut out, CRC_AT, &crc.to_le_bytes());
        out
    }

    /// Both slots of a new journal, for the start of its file: this version, and the next one with the same content.
    #[must_use]
    pub fn encode_both(&self) -> Vec<u8> {
        let next = self.next();
        let mut out = vec![0; 2 * SLOT_BYTES];
        for version in [self, &next] {
            let at = if version.slot() == 0 { 0 } else { SLOT_BYTES };
            put(&mut out, at, &version.encode());
        }
        out
    }

    /// The next version, with one more session whose commits start at `first`; forgets the oldest beyond
    /// [`SESSIONS_MAX`]. A session that has `first` as its own first position never had a commit that stands: the new
    /// one takes its row.
    ///
    /// # Panics
    /// If `first` lies below the first position of the newest session: everything below that is flushed, so going
    /// back would drop what was acknowledged.
    #[must_use]
    pub fn with_new_session(&self, first: Position) -> Self {
        assert!(
            first >= self.flushed_to(),
            "a session may not start below what an earlier one found flushed"
        );
        let mut next = self.next();
        let session = Session(self.newest().map_or(1, |newest| newest.session.0 + 1));
        if next.newest().is_some_and(|newest| newest.first == first) {
            next.sessions.pop();
        }
        next.sessions.push(SessionStart { session, first });
        let beyond = next.sessions.len().saturating_sub(SESSIONS_MAX);
        next.sessions.drain(..beyond);
        next
    }

    /// The next version, which says that every block of the ring was written once.
    #[must_use]
    pub fn with_written_in_full(&self) -> Self {
        Self { written_in_full: true, ..self.next() }
    }

    /// The same content as the next version. Written to the other slot, it leaves no single slot whose loss takes a
    /// session.
    #[must_use]
    pub fn next(&self) -> Self {
        Self { generation: self.generation + 1, ..self.clone() }
    }

    /// Where in the journal file this version belongs.
    #[must_use]
    pub const fn slot_offset(&self) -> u64 {
        self.slot() * BLOCK
    }

    /// Where in the journal file the version after this one belongs.
    #[must_use]
    pub const fn next_slot_offset(&self) -> u64 {
        (1 - self.slot()) * BLOCK
    }

    const fn slot(&self) -> u64 {
        self.generation % SUPERBLOCK_SLOTS
    }

    /// Size of the ring, without the superblocks.
    #[must_use]
    pub const fn ring_bytes(&self) -> u64 {
        self.ring_bytes
    }

    /// How many versions there were before.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether every block of the ring was written once, so that a flush changes no file-system metadata.
    #[must_use]
    pub const fn written_in_full(&self) -> bool {
        self.written_in_full
    }

    /// The sessions that are remembered, oldest first.
    #[must_use]
    pub fn sessions(&self) -> &[SessionStart] {
        &self.sessions
    }

    /// The newest session; none if the journal never had one.
    #[must_use]
    pub fn newest(&self) -> Option<SessionStart> {
        self.sessions.last().copied()
    }

    /// Whether no session ever began, so that nothing can be in the ring.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Everything below was flushed before the newest session began: a bad commit below it is corruption.
    #[must_use]
    pub fn flushed_to(&self) -> Position {
        self.newest().map_or(Position::default(), |newest| newest.first)
    }

    /// Whether `session` may have written a commit that stands at `position`: it had begun there, and the next one
    /// had not. Of sessions older than the table it is only known that they ended where the table begins.
    #[must_use]
    pub fn session_covers(&self, session: Session, position: Position) -> bool {
        let Some(oldest) = self.sessions.first() else { return false };
        if session < oldest.session {
            return position < oldest.first;
        }
        let Ok(row) = self.sessions.binary_search_by_key(&session, |start| start.session) else {
            return false;
        };
        let end = self.sessions.get(row + 1).map(|next| next.first);
        self.sessions[row].first <= position && end.is_none_or(|end| position < end)
    }

    /// Whether the first commit of `session` may stand at `position`. Where sessions older than the table began is not
    /// known any more.
    #[must_use]
    pub fn may_begin(&self, session: Session, position: Position) -> bool {
        self.sessions.first().is_some_and(|oldest| session < oldest.session)
            || self.sessions.contains(&SessionStart { session, first: position })
    }

    /// Whether a commit of `session` proves that a newer superblock than this one was flushed and lost since. Its
    /// commits must not be taken for leftovers.
    #[must_use]
    pub fn lacks(&self, session: Session) -> bool {
        self.newest().is_none_or(|newest| session > newest.session)
    }
}

enum Slot {
    Newer(u8),
    Bad(SlotFault),
}

fn parse_slot(bytes: &[u8; SLOT_BYTES], slot: u64) -> Result<Superblock, Slot> {
    let bad = |what| Err(Slot::Bad(SlotFault::Field(what)));
    if bytes[..VERSION_AT] != MAGIC {
        return Err(Slot::Bad(SlotFault::Magic));
    }
    if u32::from_le_bytes(field(bytes, CRC_AT)) != crc(&bytes[..CRC_AT]) {
        return Err(Slot::Bad(SlotFault::Checksum));
    }
    if bytes[VERSION_AT] > VERSION {
        return Err(Slot::Newer(bytes[VERSION_AT]));
    }
    if bytes[VERSION_AT] != VERSION {
        return bad("a version that never was");
    }
    if bytes[FLAGS_AT] & !FLAG_WRITTEN_IN_FULL != 0 {
        return bad("unknown flags");
    }
    let superblock = Superblock {
        ring_bytes: u64::from_le_bytes(field(bytes, RING_BYTES_AT)),
        generation: u64::from_le_bytes(field(bytes, GENERATION_AT)),
        written_in_full: bytes[FLAGS_AT] & FLAG_WRITTEN_IN_FULL != 0,
        sessions: Vec::new(),
    };
    if superblock.ring_bytes == 0 || !superblock.ring_bytes.is_multiple_of(BLOCK) {
        return bad("a ring that is not a number of blocks");
    }
    if superblock.generation > u64::MAX / 2 {
        return bad("a generation beyond all bounds");
    }
    if superblock.slot() != slot {
        return bad("a generation of the other slot");
    }
    let count = u32::from_le_bytes(field(bytes, COUNT_AT)) as usize;
    if count > SESSIONS_MAX {
        return bad("more sessions than there may be");
    }
    let table_end = TABLE_AT + count * ROW_BYTES;
    let zeros = [&bytes[ZERO_AT..RING_BYTES_AT], &bytes[COUNT_ZERO_AT..TABLE_AT], &bytes[table_end..CRC_AT]];
    if zeros.iter().any(|range| range.iter().any(|&byte| byte != 0)) {
        return bad("something where zeros belong");
    }
    parse_sessions(&bytes[TABLE_AT..table_end])
        .map(|sessions| Superblock { sessions, ..superblock })
        .ok_or(Slot::Bad(SlotFault::Field("sessions that do not rise")))
}

fn parse_sessions(table: &[u8]) -> Option<Vec<SessionStart>> {
    let sessions: Vec<_> = table
        .chunks_exact(ROW_BYTES)
        .map(|row| SessionStart {
            session: Session(u64::from_le_bytes(field(row, 0))),
            first: Position::new(u64::from_le_bytes(field(row, 8))),
        })
        .collect();
    let rise =
        sessions.windows(2).all(|pair| pair[0].session < pair[1].session && pair[0].first < pair[1].first);
    let possible = sessions.iter().all(|start| {
        (1..=u64::MAX / 2).contains(&start.session.0)
            && start.first.get().is_multiple_of(BLOCK)
            && start.first.get() <= u64::MAX / 2
    });
    (rise && possible).then_some(sessions)
}

/// crc32 of `bytes`, started from a seed that is not zero, so that no run of zeros has the checksum zero.
fn crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(CRC_SEED);
    hasher.update(bytes);
    hasher.finalize()
}

/// The `N` bytes at `at`; zeros beyond the end.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u64 = 64 * BLOCK;

    fn at(blocks: u64) -> Position {
        Position::new(blocks * BLOCK)
    }

    /// Both slots as they are after these versions were written one after the other.
    fn file(versions: &[&Superblock]) -> Vec<u8> {
        let mut file = vec![0; 2 * SLOT_BYTES];
        for version in versions {
            put(&mut file, usize::try_from(version.slot_offset()).unwrap(), &version.encode());
        }
        file
    }

    #[test]
    fn golden_bytes() {
        let superblock = Superblock {
            ring_bytes: 0x0001_0000,
            generation: 0x0102_0304_0506_0708,
            written_in_full: true,
            sessions: vec![
                SessionStart { session: Session(7), first: Position::new(0x2000) },
                SessionStart { session: Session(9), first: Position::new(0x5000) },
            ],
        };
        let bytes = superblock.encode();
        assert_eq!(bytes.len(), 4096);
        let mut head = Vec::new();
        head.extend_from_slice(b"CLJS\x01\x01\0\0");
        head.extend_from_slice(b"\x00\x00\x01\0\0\0\0\0");
        head.extend_from_slice(b"\x08\x07\x06\x05\x04\x03\x02\x01");
        head.extend_from_slice(b"\x02\0\0\0\0\0\0\0");
        head.extend_from_slice(b"\x07\0\0\0\0\0\0\0\x00\x20\0\0\0\0\0\0");
        head.extend_from_slice(b"\x09\0\0\0\0\0\0\0\x00\x50\0\0\0\0\0\0");
        assert_eq!(bytes[..64], head);
        assert!(bytes[64..4092].iter().all(|&byte| byte == 0));
        assert_eq!(bytes[4092..], GOLDEN_CRC);
        assert_eq!(Superblock::parse_newest(&file(&[&superblock])), Ok((superblock, 0)));
    }

    /// Computed with another implementation of crc32 (zlib's, started from the seed).
    const GOLDEN_CRC: [u8; 4] = [0xfc, 0xe1, 0x6f, 0xdc];

    #[test]
    fn a_new_journal_reads_back_and_takes_sessions_in_alternate_slots() {
        let fresh = Superblock::fresh(RING);
        let file = fresh.encode_both();
        let (read, slot) = Superblock::parse_newest(&file).unwrap();
        assert_eq!((read.generation(), slot), (1, 1));
        assert!(read.is_unused());
        let first = read.with_new_session(at(0));
        assert_eq!((read.next_slot_offset(), first.slot_offset()), (0, 0));
        let mut file = file;
        put(&mut file, 0, &first.encode());
        let (read, slot) = Superblock::parse_newest(&file).unwrap();
        assert_eq!((&read, slot), (&first, 0));
        assert_eq!(read.newest(), Some(SessionStart { session: Session(1), first: at(0) }));
        assert!(!read.written_in_full());
        assert!(read.with_written_in_full().written_in_full());
        assert_eq!(read.next_slot_offset(), BLOCK);
    }

    #[test]
    fn a_torn_write_leaves_the_version_before() {
        let old = Superblock::fresh(RING).with_new_session(at(0));
        let new = old.with_new_session(at(9));
        let whole = file(&[&old, &new]);
        let before = file(&[&old]);
        let slot = usize::try_from(new.slot_offset()).unwrap();
        for cut in 0..SLOT_BYTES {
            let mut torn = before.clone();
            torn[slot..slot + cut].copy_from_slice(&whole[slot..slot + cut]);
            assert_eq!(Superblock::parse_newest(&torn), Ok((old.clone(), 1)), "cut at {cut}");
        }
        assert_eq!(Superblock::parse_newest(&whole), Ok((new, 0)));
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let only = Superblock::fresh(RING).with_new_session(at(0)).with_new_session(at(3));
        let sound = file(&[&only]);
        for byte in 0..SLOT_BYTES {
            for flip in [0x01, 0x80, 0xff] {
                let mut bytes = sound.clone();
                bytes[byte] ^= flip;
                let read = Superblock::parse_newest(&bytes);
                assert!(matches!(read, Err(SuperblockError::BothBad { .. })), "byte {byte}: {read:?}");
            }
        }
    }

    #[test]
    fn nothing_is_taken_for_a_superblock() {
        assert_eq!(Superblock::parse_newest(&[0; 100]), Err(SuperblockError::Short { bytes: 100 }));
        let zeros = Superblock::parse_newest(&[0; 2 * SLOT_BYTES]);
        assert_eq!(
            zeros,
            Err(SuperblockError::BothBad { first: SlotFault::Magic, second: SlotFault::Magic })
        );
    }

    #[test]
    fn a_newer_version_is_refused_even_beside_a_sound_slot() {
        let old = Superblock::fresh(RING);
        let mut newer = old.next().encode();
        newer[VERSION_AT] = 2;
        reseal(&mut newer);
        let mut bytes = file(&[&old]);
        bytes[SLOT_BYTES..].copy_from_slice(&newer);
        assert_eq!(Superblock::parse_newest(&bytes), Err(SuperblockError::NewerVersion { version: 2 }));
    }

    #[test]
    fn sound_checksums_do_not_excuse_impossible_values() {
        let superblock = Superblock::fresh(RING).with_new_session(at(0)).with_new_session(at(3));
        let faults: &[(usize, &[u8])] = &[
            (VERSION_AT, &[0]),
            (FLAGS_AT, &[2]),
            (ZERO_AT, &[1]),
            (RING_BYTES_AT, &[0; 8]),
            (RING_BYTES_AT, &[1]),
            (GENERATION_AT, &[3]),
            (GENERATION_AT + 7, &[0xff]),
            (COUNT_AT, &[129]),
            (COUNT_AT, &[1]),
            (COUNT_ZERO_AT, &[1]),
            (TABLE_AT, &[0]),
            (TABLE_AT, &[2]),
            (TABLE_AT + 8, &[1]),
            (TABLE_AT + 9, &[0x30]),
            (TABLE_AT + ROW_BYTES + 15, &[0xff]),
            (CRC_AT - 1, &[1]),
        ];
        for (at, value) in faults {
            let mut slot = superblock.encode();
            put(&mut slot, *at, value);
            reseal(&mut slot);
            let mut bytes = vec![0; 2 * SLOT_BYTES];
            put(&mut bytes, usize::try_from(superblock.slot_offset()).unwrap(), &slot);
            let read = Superblock::parse_newest(&bytes);
            let Err(SuperblockError::BothBad { first: SlotFault::Field(_), .. }) = read else {
                panic!("{value:?} at {at}: {read:?}")
            };
        }
    }

    #[test]
    fn slots_of_two_journals_are_refused() {
        let one = Superblock::fresh(RING);
        let other = Superblock::fresh(2 * RING).next();
        assert!(matches!(
            Superblock::parse_newest(&file(&[&one, &other])),
            Err(SuperblockError::Contradiction { .. })
        ));
        // Versions between may be missing: a write that was lost without a word is no reason to refuse a newer one.
        let later = one.next().next().next();
        assert_eq!(Superblock::parse_newest(&file(&[&one, &later])), Ok((later, 1)));
    }

    #[test]
    fn a_session_covers_what_it_may_have_written() {
        let superblock = Superblock::fresh(RING)
            .with_new_session(at(0))
            .with_new_session(at(4))
            .with_new_session(at(4))
            .with_new_session(at(9));
        let expect = |session, covered: &[u64]| {
            for block in 0..20 {
                let covers = superblock.session_covers(Session(session), at(block));
                assert_eq!(covers, covered.contains(&block), "session {session}, block {block}");
            }
        };
        expect(0, &[]);
        expect(1, &[0, 1, 2, 3]);
        // Session 2 began where session 3 began: nothing of it stands.
        expect(2, &[]);
        expect(3, &[4, 5, 6, 7, 8]);
        expect(4, &(9..20).collect::<Vec<_>>());
        expect(5, &[]);
        assert!(superblock.lacks(Session(5)));
        assert!(!superblock.lacks(Session(4)));
        assert_eq!(superblock.flushed_to(), at(9));
        assert!(!Superblock::fresh(RING).session_covers(Session(1), at(0)));
        assert!(Superblock::fresh(RING).lacks(Session(1)));
    }

    #[test]
    fn the_oldest_sessions_are_forgotten() {
        let mut superblock = Superblock::fresh(RING);
        for start in 0..SESSIONS_MAX as u64 + 10 {
            superblock = superblock.with_new_session(at(start));
        }
        assert_eq!(superblock.sessions().len(), SESSIONS_MAX);
        assert_eq!(superblock.sessions()[0], SessionStart { session: Session(11), first: at(10) });
        // Forgotten ones count below the table, and only there.
        assert!(superblock.session_covers(Session(3), at(2)));
        assert!(superblock.session_covers(Session(3), at(9)));
        assert!(!superblock.session_covers(Session(3), at(10)));
        let (read, _) = Superblock::parse_newest(&file(&[&superblock])).unwrap();
        assert_eq!(read, superblock);
    }

    #[test]
    fn a_session_that_appended_nothing_leaves_its_row() {
        let mut superblock = Superblock::fresh(RING).with_new_session(at(0)).with_new_session(at(5));
        for _ in 0..1_000 {
            superblock = superblock.with_new_session(at(5));
        }
        assert_eq!(superblock.sessions().len(), 2);
        assert_eq!(superblock.newest(), Some(SessionStart { session: Session(1_002), first: at(5) }));
    }

    #[test]
    #[should_panic(expected = "may not start below")]
    fn a_session_never_starts_below_what_was_flushed() {
        let _ = Superblock::fresh(RING).with_new_session(at(5)).with_new_session(at(4));
    }

    fn reseal(slot: &mut [u8]) {
        let crc = crc(&slot[..CRC_AT]);
        put(slot, CRC_AT, &crc.to_le_bytes());
    }
}
