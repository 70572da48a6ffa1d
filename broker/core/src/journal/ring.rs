//! The journal as the shard decides it: what waits, what goes into the next commit, what is proven.
//!
//! Called only by `shard`. Two queues. Control entries (extents, removals) go first, since they are what frees the ring.
//! Batches and log starts keep the order among them in which they came, so that a replay meets a log start with the
//! same batches before it; they are queued only while the ring has room for them beside a reserve for control entries.
//! Room is counted from what the two checkpoint slots need, never from what is merely destaged.
//!
//! Invariants: `flushed_to <= head`; a proof is handed out once, in order of position, only when every commit before
//! it is flushed; the ring never holds more than its size between the oldest needed position and the head.

use super::cut::{CutBuilder, DirectPlan, take_ordered, take_while_fits};
use super::{COMMIT_HEADER_BYTES, Commit, Entry, Position, SegmentUse, Session, layout};
use crate::limits::{BLOCK, COMMIT_BYTES_MAX, COMMITS_IN_FLIGHT_MAX, JOURNAL_RESERVE_SHARE, MIB};
use crate::log::batch_end;
use crate::shard::Prewrite;
use corelog_wire::ids::{Offset, TopicPartition};
use std::collections::{BTreeMap, VecDeque};

/// The ring grows into its file by chunks of this size.
const PREWRITE_BYTES: u64 = MIB;

/// What a flushed commit proves.
#[derive(Debug, Default)]
pub struct Proof {
    /// Where the commit starts.
    pub at: Position,
    /// Where it ends.
    pub end: Position,
    /// Log ends that are durable now.
    pub batches: Vec<(TopicPartition, Offset)>,
    /// Control entries that are durable now.
    pub control: Vec<Entry>,
}

/// Where a batch was put.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// The partition.
    pub tp: TopicPartition,
    /// Its base offset.
    pub base: Offset,
    /// Where its stamp starts.
    pub position: Position,
    /// Of a direct batch: where it is in its segment, and in the memory of the commit's direct writes.
    pub direct: Option<PlacedDirect>,
}

/// Where a direct batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedDirect {
    /// In the file of its segment.
    pub file_position: u64,
    /// In the memory of the direct writes of its commit.
    pub in_memory: u32,
}

#[derive(Debug)]
struct InFlight {
    flushed: bool,
    /// What its header says of the commits before it.
    says_flushed_to: Position,
    proof: Proof,
}

/// The decisions about one shard's journal.
#[derive(Debug)]
pub struct Ring {
    bytes: u64,
    session: Session,
    head: Position,
    flushed_to: Position,
    /// Flushed commits below this are marked as such by a flushed commit's header.
    marked_to: Position,
    /// End of the last commit that holds entries.
    data_end: Position,
    /// What each checkpoint slot needs: everything from here on.
    needed: [Position; 2],
    control: VecDeque<Entry>,
    /// Batches and log starts, in the order they came.
    ordered: VecDeque<Entry>,
    pending_bytes: u64,
    /// Somebody waits for something of that.
    urgent: bool,
    in_flight: VecDeque<InFlight>,
    prewrite: Option<PrewriteState>,
    written_in_full: bool,
    failed: bool,
}

#[derive(Debug)]
struct PrewriteState {
    /// The ring from here to its end has been written.
    written_from: u64,
    in_flight: bool,
}

/// A commit and where it puts its batches.
#[derive(Debug)]
pub struct Cut {
    /// What to write.
    pub commit: Commit,
    /// In the order of the commit.
    pub placed: Vec<Placed>,
}

impl Ring {
    /// A journal that goes on at `head` in a session of its own. `needed` is what the checkpoint slots need;
    /// `prewrite` says that the ring is to be written in full, since it was not yet.
    #[must_use]
    pub fn new(bytes: u64, session: Session, head: Position, needed: [Position; 2], prewrite: bool) -> Self {
        let wanted = prewrite && head.get() < bytes;
        let prewrite = wanted.then_some(PrewriteState { written_from: bytes, in_flight: false });
        Self {
            bytes,
            session,
            head,
            flushed_to: head,
            marked_to: head,
            data_end: Position::default(),
            needed,
            control: VecDeque::new(),
            ordered: VecDeque::new(),
            pending_bytes: 0,
            urgent: false,
            in_flight: VecDeque::new(),
            prewrite,
            written_in_full: !wanted,
            failed: false,
        }
    }

    /// Largest commit this ring takes.
    #[must_use]
    pub fn commit_bytes_max(&self) -> u64 {
        COMMIT_BYTES_MAX.min(self.bytes / 5 / BLOCK * BLOCK)
    }

    /// Largest batch this ring takes, alone in a commit.
    #[must_use]
    pub fn batch_bytes_max(&self) -> u64 {
        self.commit_bytes_max() - COMMIT_HEADER_BYTES - layout::ENTRY_HEADER_BYTES
    }

    /// Size of the ring.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the next commit starts.
    #[must_use]
    pub fn head(&self) -> Position {
        self.head
    }

    /// Everything below is flushed.
    #[must_use]
    pub fn flushed_to(&self) -> Position {
        self.flushed_to
    }

    /// The oldest position a checkpoint slot needs.
    #[must_use]
    pub fn needed_from(&self) -> Position {
        if cfg!(mutant = "ring_ignores_older_slot") {
            return self.needed[0].max(self.needed[1]);
        }
        self.needed[0].min(self.needed[1])
    }

    /// Bytes of entries that wait for a commit.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Whether nothing waits and nothing is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.control.is_empty() && self.ordered.is_empty() && self.in_flight.is_empty()
    }

    /// Whether the device failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// A checkpoint slot is on disk and needs everything from `from` on.
    pub fn slot_written(&mut self, slot: u8, from: Position) {
        self.needed[usize::from(slot & 1)] = from;
    }

    /// Whether batches of `bytes` may be queued: the ring has room for them beside everything that is queued already, and
    /// keeps its reserve. What was queued never has to wait for a checkpoint, so a checkpoint may wait for it.
    #[must_use]
    pub fn admits(&self, bytes: u64) -> bool {
        let queued = self.pending_bytes + bytes;
        let commits = queued / self.commit_bytes_max() + 2;
        let framed = queued + commits * (COMMIT_HEADER_BYTES + BLOCK);
        framed + self.bytes / JOURNAL_RESERVE_SHARE <= self.room()
    }

    /// Whether a log start may be queued: it may use the first half of the reserve, since it is what empties a full disk.
    #[must_use]
    pub fn admits_log_start(&self) -> bool {
        self.pending_bytes + 4 * BLOCK + self.bytes / JOURNAL_RESERVE_SHARE / 2 <= self.room()
    }

    /// Whether a control entry waits that has no room in the ring.
    #[must_use]
    pub fn is_out_of_room(&self) -> bool {
        let needs = |entry: &Entry| COMMIT_HEADER_BYTES + layout::entry_bytes(entry) + BLOCK;
        self.control.front().is_some_and(|entry| needs(entry) > self.room())
    }

    /// Queues an entry. Batches and log starts wait behind control entries.
    pub fn push(&mut self, entry: Entry) {
        self.urgent = true;
        self.push_lazily(entry);
    }

    /// Queues an entry that nobody waits for.
    pub fn push_lazily(&mut self, entry: Entry) {
        self.pending_bytes += layout::entry_bytes(&entry);
        match entry {
            Entry::Batch { .. } | Entry::LogStart { .. } => self.ordered.push_back(entry),
            Entry::Extent(_) | Entry::Compacted(_) | Entry::Removed { .. } => self.control.push_back(entry),
            Entry::Direct { .. } => unreachable!("a batch becomes direct when its commit is cut"),
        }
    }

    /// Somebody waits for everything that is queued.
    pub fn hurry(&mut self) {
        self.urgent |= self.pending_bytes > 0;
    }

    /// Whether somebody waits for something that is queued.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Takes back the batches and log starts of a partition that wait for a commit.
    pub fn withdraw(&mut self, partition: TopicPartition) {
        let pending_bytes = &mut self.pending_bytes;
        self.ordered.retain(|entry| match entry {
            Entry::Batch { tp, .. } | Entry::LogStart { tp, .. } if *tp == partition => {
                *pending_bytes -= layout::entry_bytes(entry);
                false
            }
            _ => true,
        });
    }

    /// Whether a commit may start: what would be decided for one may be decided now.
    #[must_use]
    pub fn may_cut(&self) -> bool {
        !self.failed && self.in_flight.len() < COMMITS_IN_FLIGHT_MAX
    }

    /// Bytes of the batches that wait for a commit, by partition and segment.
    #[must_use]
    pub fn waiting_by_segment(&self) -> BTreeMap<(TopicPartition, SegmentUse), u64> {
        let mut waiting = BTreeMap::new();
        for entry in &self.ordered {
            if let Entry::Batch { tp, segment_use, batch, .. } = entry {
                *waiting.entry((*tp, *segment_use)).or_default() += batch.bytes().len() as u64;
            }
        }
        waiting
    }

    /// Whether extents have room for their entries beside all that waits: a checkpoint that waits for batches need not come
    /// first.
    #[must_use]
    pub fn is_roomy(&self) -> bool {
        self.room() > self.pending_bytes + self.bytes / JOURNAL_RESERVE_SHARE / 2
    }

    /// Cuts the next commit, if there is something to commit, a commit may start, and the ring has room.
    pub fn cut(&mut self, plan: &mut DirectPlan) -> Option<Cut> {
        if self.in_flight.len() >= COMMITS_IN_FLIGHT_MAX {
            return None;
        }
        self.cut_more(plan)
    }

    /// The same, however many are under way already: what is queued has room in the ring, and that is the bound. Nothing goes
    /// to a segment alone.
    pub fn cut_beyond_the_bound(&mut self) -> Option<Cut> {
        self.cut_more(&mut DirectPlan::default())
    }

    fn cut_more(&mut self, plan: &mut DirectPlan) -> Option<Cut> {
        if self.failed {
            return None;
        }
        if self.control.is_empty() && self.ordered.is_empty() {
            return None;
        }
        let mut builder = CutBuilder::new(self.commit_bytes_max().min(self.room()));
        take_while_fits(&mut self.control, &mut builder);
        take_ordered(&mut self.ordered, &mut builder, plan);
        if builder.entries.is_empty() {
            return None;
        }
        self.urgent &= !(self.control.is_empty() && self.ordered.is_empty());
        Some(self.commit(builder))
    }

    /// Cuts an empty commit that marks everything flushed as flushed, if that is not marked yet and nothing is
    /// under way.
    pub fn cut_mark(&mut self) -> Option<Commit> {
        self.wants_mark().then(|| self.commit(CutBuilder::new(BLOCK)).commit)
    }

    /// Whether the last commit with entries is flushed but no commit says so. Marks keep out of the second half of the
    /// reserve: what frees the ring needs it more.
    #[must_use]
    pub fn wants_mark(&self) -> bool {
        let has_room = self.room() >= self.bytes / JOURNAL_RESERVE_SHARE / 2 + BLOCK;
        !self.failed && self.is_quiet() && self.marked_to < self.data_end && has_room
    }

    /// The write and flush of the commit at `at` are done. Gives what is proven now, in order.
    pub fn flushed(&mut self, at: Position) -> Vec<Proof> {
        let mut proofs = Vec::new();
        if self.failed {
            return proofs;
        }
        let Some(index) = self.in_flight.iter().position(|flight| flight.proof.at == at) else {
            return proofs;
        };
        self.in_flight[index].flushed = true;
        if cfg!(mutant = "ack_max_not_prefix") {
            for flight in self.in_flight.iter_mut().take(index) {
                flight.flushed = true;
            }
        }
        while self.in_flight.front().is_some_and(|flight| flight.flushed) {
            let Some(flight) = self.in_flight.pop_front() else { break };
            self.marked_to = self.marked_to.max(flight.says_flushed_to);
            self.flushed_to = flight.proof.end;
            proofs.push(flight.proof);
        }
        proofs
    }

    /// A write or flush failed: nothing is proven any more. Gives back nothing; what waits stays unacknowledged.
    pub fn fail(&mut self) {
        self.failed = true;
        self.in_flight.clear();
        self.control.clear();
        self.ordered.clear();
        self.pending_bytes = 0;
    }

    /// The next chunk of the ring to write for the first time, from its end down towards the head, never near it.
    pub fn next_prewrite(&mut self) -> Option<Prewrite> {
        let margin = 2 * self.commit_bytes_max() + PREWRITE_BYTES;
        let state = self.prewrite.as_mut()?;
        if state.in_flight {
            return None;
        }
        let chunk = PREWRITE_BYTES.min(state.written_from);
        let ring_offset = state.written_from - chunk;
        if self.failed || self.head.get() + margin > ring_offset || chunk == 0 {
            // What is left below is written by the commits to come.
            self.prewrite = None;
            self.written_in_full = !self.failed;
            return None;
        }
        state.in_flight = true;
        Some(Prewrite { ring_offset, bytes: chunk })
    }

    /// Whether every block of the ring was written once, or will be by the commits of the first lap.
    #[must_use]
    pub fn is_written_in_full(&self) -> bool {
        self.written_in_full
    }

    /// A chunk has been written.
    pub fn prewritten(&mut self, ring_offset: u64) {
        if let Some(state) = self.prewrite.as_mut() {
            state.written_from = ring_offset;
            state.in_flight = false;
        }
    }

    /// What contradicts this room's invariants, if anything does.
    #[must_use]
    pub fn broken_invariant(&self) -> Option<&'static str> {
        if self.flushed_to > self.head {
            return Some("the journal is flushed beyond its head");
        }
        if self.head.since(self.needed_from()) > self.bytes {
            return Some("the journal overwrote what a checkpoint slot needs");
        }
        None
    }

    /// Bytes that commits may take before the ring is full.
    fn room(&self) -> u64 {
        let used = self.head.since(self.needed_from());
        let mut free = self.bytes.saturating_sub(used);
        if let Some(state) = &self.prewrite
            && state.in_flight
        {
            // The chunk being written for the first time lies just below `written_from`.
            let chunk_start = state.written_from.saturating_sub(PREWRITE_BYTES);
            free = free.min(chunk_start.saturating_sub(self.head.get()));
        }
        free
    }

    fn commit(&mut self, builder: CutBuilder) -> Cut {
        let bytes = builder.bytes.next_multiple_of(BLOCK);
        let at = self.head;
        let end = at.plus(bytes);
        let mut proof = Proof { at, end, ..Proof::default() };
        let mut placed = Vec::new();
        let mut position = at.plus(COMMIT_HEADER_BYTES);
        for entry in &builder.entries {
            let (stamp_at, direct) = match entry {
                Entry::Direct { tp, segment_use, file_position, .. } => {
                    let in_memory = builder.in_memory(*tp, *segment_use, *file_position);
                    let direct = PlacedDirect { file_position: *file_position, in_memory };
                    (layout::DIRECT_STAMP_AT, Some(direct))
                }
                _ => (layout::ENTRY_HEADER_BYTES, None),
            };
            match entry {
                Entry::Batch { tp, stamp, batch, .. } | Entry::Direct { tp, stamp, batch, .. } => {
                    let (tp, base, position) = (*tp, stamp.base_offset, position.plus(stamp_at));
                    placed.push(Placed { tp, base, position, direct });
                    let log_end = batch_end(batch.header(), base);
                    match proof.batches.last_mut() {
                        Some((last, end)) if *last == tp => *end = log_end,
                        _ => proof.batches.push((tp, log_end)),
                    }
                }
                Entry::Extent(_) | Entry::Compacted(_) | Entry::LogStart { .. } | Entry::Removed { .. } => {
                    proof.control.push(entry.clone());
                }
            }
            position = position.plus(layout::entry_bytes(entry));
        }
        self.pending_bytes -= builder.taken;
        let commit = Commit {
            at,
            bytes,
            session: self.session,
            flushed_to: self.flushed_to,
            entries: builder.entries,
            direct: builder.direct,
        };
        if !commit.entries.is_empty() {
            self.data_end = end;
        }
        self.head = end;
        self.in_flight.push_back(InFlight { flushed: false, says_flushed_to: self.flushed_to, proof });
        Cut { commit, placed }
    }
}
