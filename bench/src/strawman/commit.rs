//! Group commit: what was received fills memory while earlier memory is written, one flush covers all that was written
//! before it began, and only then are its requests acknowledged.
//!
//! Called by `server`, which does what this file says. Invariants: a request is acknowledged only by [`Commit::flushed`],
//! and only if its write had completed before that flush began; positions in the file are given in the order in which
//! requests were complete. Knows no ring and no socket.

use super::block::{ALIGNMENT, Block};
use super::frames::PAYLOAD_BYTES_MAX;

/// Blocks of memory: what is received, written and waits for a write, all together.
const BLOCKS: usize = 24;

/// Who is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// Number of the connection.
    pub(super) connection: usize,
    /// What it called the request.
    pub(super) correlation: u64,
}

/// Memory with whole requests.
#[derive(Debug)]
struct Extent {
    block: Block,
    bytes: usize,
    requests: Vec<Request>,
}

/// A write that is to be started.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) block: Block,
    /// A multiple of the alignment, with zeros behind the last request.
    pub(super) bytes: usize,
    pub(super) position: u64,
    /// To be given to [`Commit::written`].
    pub(super) requests: Vec<Request>,
}

/// Where the next write goes, and what is in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lap {
    /// The next write's place.
    pub position: u64,
    /// Where the lap before ended.
    pub end_before: u64,
    /// Laps that have ended.
    pub laps: u64,
}

/// Length of a [`Lap`]'s bytes.
const LAP_BYTES: usize = 24;

impl Lap {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; LAP_BYTES] {
        let mut bytes = [0; LAP_BYTES];
        bytes[0..8].copy_from_slice(&self.position.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.end_before.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.laps.to_le_bytes());
        bytes
    }

    /// From its bytes; none if they are not of its length.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LAP_BYTES] = bytes.try_into().ok()?;
        let number =
            |at: usize| (0..8).rev().fold(0, |number, byte| number << 8 | u64::from(bytes[at + byte]));
        Some(Self { position: number(0), end_before: number(8), laps: number(16) })
    }
}

/// What waits for what.
#[derive(Debug)]
pub(super) struct Commit {
    file_bytes: u64,
    pool: Vec<Block>,
    /// Small requests are copied here.
    open: Option<Extent>,
    to_write: Vec<Write>,
    lap: Lap,
    /// Written, but not before the flush in flight began.
    written: Vec<Request>,
    /// What the flush in flight will make durable.
    flushing: Option<Vec<Request>>,
}

impl Commit {
    /// For a file of this length.
    pub(super) fn new(file_bytes: u64) -> Self {
        Self {
            file_bytes,
            pool: (0..BLOCKS).map(|_| Block::zeroed(PAYLOAD_BYTES_MAX as usize)).collect(),
            open: None,
            to_write: Vec::new(),
            lap: Lap::default(),
            written: Vec::new(),
            flushing: None,
        }
    }

    /// Memory for a large request; none while all is in use.
    pub(super) fn block(&mut self) -> Option<Block> {
        self.pool.pop()
    }

    /// Gives memory back.
    pub(super) fn free(&mut self, block: Block) {
        self.pool.push(block);
    }

    /// Copies a small request, who is answered once it is durable, if anybody; false while there is no memory.
    pub(super) fn small(&mut self, payload: &[u8], request: Option<Request>) -> bool {
        if self.open.as_ref().is_some_and(|open| open.bytes + payload.len() > open.block.len()) {
            self.seal();
        }
        if self.open.is_none() {
            let Some(block) = self.pool.pop() else { return false };
            self.open = Some(Extent { block, bytes: 0, requests: Vec::new() });
        }
        if let Some(open) = &mut self.open {
            open.block[open.bytes..open.bytes + payload.len()].copy_from_slice(payload);
            open.bytes += payload.len();
            open.requests.extend(request);
        }
        true
    }

    /// Takes a large request that was received in place; it is written without waiting for others.
    pub(super) fn large(&mut self, block: Block, bytes: usize, request: Option<Request>) {
        self.seal();
        self.place(Extent { block, bytes, requests: request.into_iter().collect() });
    }

    /// Closes the memory of small requests and gives it its place.
    fn seal(&mut self) {
        if let Some(open) = self.open.take() {
            self.place(open);
        }
    }

    fn place(&mut self, mut extent: Extent) {
        let bytes = extent.bytes.next_multiple_of(ALIGNMENT);
        extent.block[extent.bytes..bytes].fill(0);
        let mut lap = self.lap;
        if lap.position + bytes as u64 > self.file_bytes {
            lap = Lap { position: 0, end_before: lap.position, laps: lap.laps + 1 };
        }
        let Extent { block, requests, .. } = extent;
        self.to_write.push(Write { block, bytes, position: lap.position, requests });
        lap.position += bytes as u64;
        self.lap = lap;
    }

    /// The writes to be started now. Small requests go with the next flush, so while one is in flight they gather.
    pub(super) fn writes(&mut self) -> Vec<Write> {
        if self.flushing.is_none() {
            self.seal();
        }
        std::mem::take(&mut self.to_write)
    }

    /// A write has completed.
    pub(super) fn written(&mut self, block: Block, requests: Vec<Request>) {
        self.free(block);
        self.written.extend(requests);
    }

    /// Whether a flush is to be started now.
    pub(super) fn flush(&mut self) -> bool {
        let due = self.flushing.is_none() && !self.written.is_empty();
        if due {
            self.flushing = Some(std::mem::take(&mut self.written));
        }
        due
    }

    /// The flush has completed: these are durable.
    pub(super) fn flushed(&mut self) -> Vec<Request> {
        self.flushing.take().unwrap_or_default()
    }

    /// Where the writes are.
    pub(super) const fn lap(&self) -> Lap {
        self.lap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(correlation: u64) -> Request {
        Request { connection: 0, correlation }
    }

    fn complete(commit: &mut Commit, writes: Vec<Write>) {
        for write in writes {
            commit.written(write.block, write.requests);
        }
    }

    #[test]
    fn small_requests_gather_while_a_flush_is_in_flight() {
        let mut commit = Commit::new(1 << 30);
        assert!(commit.small(&[1; 100], Some(request(0))));
        let writes = commit.writes();
        assert_eq!((writes.len(), writes[0].bytes, writes[0].position), (1, ALIGNMENT, 0));
        assert!(writes[0].block[100..ALIGNMENT].iter().all(|&byte| byte == 0));
        assert!(!commit.flush(), "nothing is written yet");
        complete(&mut commit, writes);
        assert!(commit.flush());
        for correlation in 1..4 {
            assert!(commit.small(&[2; 3000], Some(request(correlation))));
            assert!(commit.writes().is_empty());
        }
        assert_eq!(commit.flushed(), [request(0)]);
        let writes = commit.writes();
        assert_eq!((writes.len(), writes[0].bytes, writes[0].position), (1, 12_288, 4096));
        complete(&mut commit, writes);
        assert!(commit.flush());
        assert_eq!(commit.flushed(), [request(1), request(2), request(3)]);
    }

    #[test]
    fn nobody_waits_for_what_was_acknowledged_in_memory() {
        let mut commit = Commit::new(1 << 30);
        assert!(commit.small(&[1; 100], None));
        let writes = commit.writes();
        assert_eq!(writes.len(), 1);
        complete(&mut commit, writes);
        assert!(!commit.flush());
    }

    #[test]
    fn a_write_that_completes_during_a_flush_waits_for_the_next() {
        let mut commit = Commit::new(1 << 30);
        for correlation in 0..2 {
            let block = commit.block().unwrap();
            commit.large(block, 100_000, Some(request(correlation)));
        }
        let mut writes = commit.writes();
        assert_eq!(writes.iter().map(|write| write.position).collect::<Vec<_>>(), [0, 102_400]);
        let second = writes.pop().unwrap();
        complete(&mut commit, writes);
        assert!(commit.flush());
        complete(&mut commit, vec![second]);
        assert!(!commit.flush());
        assert_eq!(commit.flushed(), [request(0)]);
        assert!(commit.flush());
        assert_eq!(commit.flushed(), [request(1)]);
    }

    #[test]
    fn the_file_is_written_round_and_round() {
        let mut commit = Commit::new(10 * ALIGNMENT as u64);
        let mut positions = Vec::new();
        for correlation in 0..4 {
            let block = commit.block().unwrap();
            commit.large(block, 4 * ALIGNMENT, Some(request(correlation)));
            let writes = commit.writes();
            positions.push(writes[0].position / ALIGNMENT as u64);
            complete(&mut commit, writes);
        }
        assert_eq!(positions, [0, 4, 0, 4]);
        let block = ALIGNMENT as u64;
        assert_eq!(commit.lap(), Lap { position: 8 * block, end_before: 8 * block, laps: 1 });
    }

    #[test]
    fn memory_is_bounded() {
        let mut commit = Commit::new(1 << 40);
        let blocks: Vec<Block> = std::iter::from_fn(|| commit.block()).collect();
        assert_eq!(blocks.len(), BLOCKS);
        assert!(!commit.small(&[0; 10], Some(request(0))));
        commit.free(Block::zeroed(PAYLOAD_BYTES_MAX as usize));
        assert!(commit.small(&[0; 10], Some(request(0))));
    }
}
