//! One commit as it is cut: which of what waits goes into it, and which batches go past it into their segments.
//!
//! Called only by `ring`, with the room it has. Invariants: entries keep their order, but for partitions that are held; what
//! does not fit stays queued, in its place. Knows nothing of positions, flushes or the ring's room.

use super::{COMMIT_HEADER_BYTES, DirectWrite, Entry, SegmentId, SegmentUse, layout};
use crate::limits::{BLOCK, DIRECT_BYTES_MAX};
use corelog_wire::ids::TopicPartition;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Which batches of the next commit go to their segments alone, and which wait.
#[derive(Debug, Default)]
pub struct DirectPlan {
    /// The files that take batches.
    pub files: BTreeMap<(TopicPartition, SegmentUse), DirectFile>,
    /// Partitions of which nothing is committed yet.
    pub held: BTreeSet<TopicPartition>,
}

/// A file that takes batches.
#[derive(Clone, Copy, Debug)]
pub struct DirectFile {
    /// Its segment.
    pub segment: SegmentId,
    /// Where the next batch goes.
    pub next: u64,
    /// What its blocks were written up to.
    pub until: u64,
}

/// Entries on their way into one commit.
pub(super) struct CutBuilder {
    pub bytes: u64,
    pub bytes_max: u64,
    /// What the entries were counted with while they waited.
    pub taken: u64,
    pub entries: Vec<Entry>,
    pub direct: Vec<DirectWrite>,
}

impl CutBuilder {
    pub(super) fn new(bytes_max: u64) -> Self {
        let (entries, direct) = (Vec::new(), Vec::new());
        Self { bytes: COMMIT_HEADER_BYTES, bytes_max, taken: 0, entries, direct }
    }

    /// Whether an entry that takes so many bytes fits.
    const fn fits(&self, bytes: u64) -> bool {
        (self.bytes + bytes).next_multiple_of(BLOCK) <= self.bytes_max
    }

    fn take(&mut self, entry: Entry, taken: u64) {
        self.bytes += layout::entry_bytes(&entry);
        self.taken += taken;
        self.entries.push(entry);
    }

    /// Bytes of the batches that go to segments alone.
    fn direct_bytes(&self) -> u64 {
        self.direct.iter().map(|write| write.bytes).sum()
    }

    /// Where a batch is in the memory of the direct writes, of which each begins a block.
    pub(super) fn in_memory(&self, tp: TopicPartition, segment_use: SegmentUse, file_position: u64) -> u32 {
        let mut from = 0;
        for write in &self.direct {
            if (write.segment.tp, write.segment.segment_use) == (tp, segment_use) {
                from += file_position - write.file_position;
                break;
            }
            from += write.bytes.next_multiple_of(BLOCK);
        }
        u32::try_from(from).unwrap_or(u32::MAX)
    }
}

pub(super) fn take_while_fits(queue: &mut VecDeque<Entry>, builder: &mut CutBuilder) {
    while let Some(bytes) = queue.front().map(layout::entry_bytes).filter(|bytes| builder.fits(*bytes)) {
        let Some(entry) = queue.pop_front() else { return };
        builder.take(entry, bytes);
    }
}

/// Takes batches and log starts in their order, but for those of partitions that wait: they keep their places.
pub(super) fn take_ordered(queue: &mut VecDeque<Entry>, builder: &mut CutBuilder, plan: &mut DirectPlan) {
    if plan.held.is_empty() && plan.files.is_empty() {
        take_while_fits(queue, builder);
        return;
    }
    let mut kept = VecDeque::new();
    while let Some(entry) = queue.pop_front() {
        let (Entry::Batch { tp, .. } | Entry::LogStart { tp, .. }) = &entry else {
            unreachable!("only batches and log starts are in order")
        };
        if plan.held.contains(tp) {
            kept.push_back(entry);
            continue;
        }
        if is_too_much(&entry, builder, plan) {
            kept.push_back(entry);
            break;
        }
        let taken = layout::entry_bytes(&entry);
        let entry = direct(entry, builder, plan);
        if !builder.fits(layout::entry_bytes(&entry)) {
            kept.push_back(undirect(entry, builder));
            break;
        }
        builder.take(entry, taken);
    }
    while let Some(entry) = kept.pop_back() {
        queue.push_front(entry);
    }
}

/// Whether a batch that goes to its segment has to wait for the next commit.
fn is_too_much(entry: &Entry, builder: &CutBuilder, plan: &DirectPlan) -> bool {
    let Entry::Batch { tp, segment_use, batch, .. } = entry else { return false };
    let direct = builder.direct_bytes();
    plan.files.contains_key(&(*tp, *segment_use))
        && direct > 0
        && direct + batch.bytes().len() as u64 > DIRECT_BYTES_MAX
}

/// The entry as the plan wants it.
fn direct(entry: Entry, builder: &mut CutBuilder, plan: &mut DirectPlan) -> Entry {
    let Entry::Batch { tp, segment_use, stamp, batch } = entry else { return entry };
    let bytes = batch.bytes().len() as u64;
    let Some(file) = plan.files.get_mut(&(tp, segment_use)) else {
        return Entry::Batch { tp, segment_use, stamp, batch };
    };
    if file.next + bytes.next_multiple_of(BLOCK) > file.until {
        // What follows in this partition goes through the ring behind this one.
        plan.files.retain(|(other, _), _| *other != tp);
        return Entry::Batch { tp, segment_use, stamp, batch };
    }
    let file_position = file.next;
    file.next += bytes;
    let segment = file.segment;
    match builder.direct.iter_mut().find(|write| write.segment == segment) {
        Some(write) => write.bytes += bytes,
        None => builder.direct.push(DirectWrite { segment, file_position, bytes }),
    }
    Entry::Direct { tp, segment_use, stamp, batch, file_position }
}

/// Takes back what did not fit the commit.
fn undirect(entry: Entry, builder: &mut CutBuilder) -> Entry {
    let Entry::Direct { tp, segment_use, stamp, batch, .. } = entry else { return entry };
    if let Some(write) = builder
        .direct
        .iter_mut()
        .find(|write| (write.segment.tp, write.segment.segment_use) == (tp, segment_use))
    {
        write.bytes -= batch.bytes().len() as u64;
    }
    builder.direct.retain(|write| write.bytes > 0);
    Entry::Batch { tp, segment_use, stamp, batch }
}
