//! Effects, one by one, onto the hands.
//!
//! Commits come before reads and extents of the same turn, which may name their bytes; what may leave memory leaves
//! last. Everything a task needs from memory is taken before the task starts.

use super::arena::Frozen;
use super::cold::ColdError;
use super::error::DiskError;
use super::segments::Hold;
use super::tail::Shared;
use super::{BLOCK_BYTES, Inner, ShardDisk, checkpoint};
use crate::net::{FetchReady, FetchReadyRow, PayloadSlice};
use crate::rt;
use corelog_core::journal::{Commit, DirectWrite, Packer, SegmentId};
use corelog_core::shard::{
    CheckpointWrite, Effects, ExtentWrite, Input, LookupPlan, LookupRow, Make, Prewrite, ReadPlan, ReadRow,
    SegmentRead, SegmentSeal, Shard, Source,
};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::TopicPartition;
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{Answer, ListOffsetsAnswer, ListedRow};
use std::future::Future;
use std::rc::Rc;
use std::time::Instant;

impl ShardDisk {
    /// Performs and drains everything but answers and notes, which are the pump's.
    pub fn perform(&self, effects: &mut Effects) {
        let inner = &self.inner;
        for commit in effects.commits.drain(..) {
            inner.commit(&commit);
        }
        for plan in effects.reads.drain(..) {
            inner.fetch(plan);
        }
        for plan in effects.lookups.drain(..) {
            inner.look_up(plan);
        }
        for extent in effects.extents.drain(..) {
            inner.extent(extent);
        }
        for seal in effects.seals.drain(..) {
            inner.seal(seal);
        }
        for plan in effects.compactions.drain(..) {
            inner.compact(plan);
        }
        if let Some(slot) = effects.checkpoint.take() {
            inner.checkpoint(slot);
        }
        for id in effects.removals.drain(..) {
            inner.cold.forget(id);
            inner.direct.forget(id);
            inner.segments.remove(id, inner.queues.background, &inner.gate);
        }
        for tp in effects.removed.drain(..) {
            inner.segments.remove_partition(tp, inner.queues.background, &inner.gate);
        }
        if let Some(part) = effects.prewrite.take() {
            inner.prewrite(part);
        }
        if let Some(below) = effects.release.take() {
            inner.tail.borrow_mut().release(below);
        }
    }
}

impl Inner {
    /// Runs a task in the background that the shard's end waits for.
    fn in_background<T: Future<Output = ()>>(self: &Rc<Self>, task: impl FnOnce(Rc<Self>) -> T + 'static) {
        self.in_queue(self.queues.background, task);
    }

    pub(super) fn in_queue<T: Future<Output = ()>>(
        self: &Rc<Self>,
        queue: rt::Queue,
        task: impl FnOnce(Rc<Self>) -> T + 'static,
    ) {
        let (inner, pass) = (Rc::clone(self), self.gate.enter());
        rt::spawn_in(queue, async move {
            task(inner).await;
            drop(pass);
        });
    }

    /// Removes, in the background, what an earlier start was to remove and a crash has kept or brought back.
    pub(super) fn sweep(self: &Rc<Self>, shard: &Shard, removed: Vec<TopicPartition>) {
        for tp in removed {
            self.segments.remove_partition(tp, self.queues.background, &self.gate);
        }
        let (files, newest_use) = (shard.files().collect::<Vec<_>>(), shard.newest_use());
        let sweeping = self.sweeping.enter();
        self.in_background(move |inner| async move {
            for (tp, kept) in files {
                inner.segments.sweep(tp, kept, newest_use).await;
            }
            drop(sweeping);
        });
    }

    fn commit(self: &Rc<Self>, commit: &Commit) {
        let at = commit.at;
        self.cold.commit_at(Instant::now());
        let packed = self.journal.pack(commit, &self.arena).freeze();
        let direct = (!commit.direct.is_empty()).then(|| self.pack_direct(commit));
        let shared = direct.as_ref().map(|(memory, _)| -> Shared { Rc::<Frozen>::clone(memory) });
        self.tail.borrow_mut().push(at, Rc::<Frozen>::clone(&packed), shared);
        if let Some(ahead) = self.arena.ahead() {
            self.in_background(|_| ahead.touch());
        }
        let (inner, pass) = (Rc::clone(self), self.gate.enter());
        rt::spawn(async move {
            let proven = match direct {
                Some((memory, writes)) => inner.write_direct(&memory, writes).await,
                None => true,
            };
            // The journal itself says what went wrong, once.
            let flushed = proven && inner.journal.write(at, packed, &inner.meters).await.is_ok();
            inner.meters.failures.add(u64::from(!flushed));
            let input = if flushed { Input::CommitFlushed { at } } else { Input::CommitFailed { at } };
            inner.results.completed(input);
            drop(pass);
        });
    }

    /// The batches of a commit that go to their segments, in memory as the files will have them.
    fn pack_direct(self: &Rc<Self>, commit: &Commit) -> (Rc<Frozen>, Vec<(DirectWrite, Hold)>) {
        let mut memory = self.arena.take(usize::try_from(commit.direct_bytes()).unwrap_or(usize::MAX));
        let mut rest = memory.bytes_mut();
        let mut writes = Vec::with_capacity(commit.direct.len());
        for write in &commit.direct {
            let bytes = usize::try_from(write.bytes).unwrap_or(usize::MAX).next_multiple_of(BLOCK_BYTES);
            let (own, after) = rest.split_at_mut(bytes);
            Packer::pack_direct(commit, write, own);
            rest = after;
            writes.push((write.clone(), self.hold(write.segment)));
        }
        (memory.freeze(), writes)
    }

    async fn write_direct(&self, memory: &Rc<Frozen>, writes: Vec<(DirectWrite, Hold)>) -> bool {
        let extents = writes.len() as u64;
        let written = self.direct.write(writes, memory).await;
        match &written {
            Ok(()) => {
                self.meters.extents.add(extents);
                self.meters.extent_bytes.add((**memory).as_ref().len() as u64);
            }
            Err(error) => self.failed("a stream's batches were not written", error),
        }
        written.is_ok()
    }

    fn prewrite(self: &Rc<Self>, part: Prewrite) {
        self.in_background(move |inner| async move {
            // A write to the journal failed: what the next commit would meet, the shard hears now.
            let written = inner.journal.prewrite(part).await.is_ok();
            inner.meters.failures.add(u64::from(!written));
            let input = if written {
                Input::Prewritten { ring_offset: part.ring_offset }
            } else {
                Input::PrewriteFailed
            };
            inner.results.completed(input);
        });
    }

    fn extent(self: &Rc<Self>, extent: ExtentWrite) {
        let slices: Option<Vec<PayloadSlice>> = {
            let tail = self.tail.borrow();
            extent.slices.iter().map(|slice| tail.slice(*slice)).collect()
        };
        // To write anything else in its place would be worse than to stop.
        let Some(slices) = slices else {
            unreachable!("an extent names bytes that are not in memory: {extent:?}")
        };
        if let Make::Of(old) = extent.make {
            self.cold.forget(old);
            self.direct.forget(old);
        }
        let hold = self.segments.hold(extent.segment, self.queues.background, &self.gate);
        self.in_background(move |inner| async move {
            let (segment, file_position) = (extent.segment, extent.file_position);
            let input = match inner.extents.write(&extent, slices, &hold).await {
                Ok(()) => {
                    inner.meters.extents.add(1);
                    inner.meters.extent_bytes.add(extent.bytes);
                    Input::ExtentFlushed { segment, file_position }
                }
                Err(error) => {
                    inner.failed("an extent was not written", &error);
                    Input::ExtentFailed { segment, file_position, cause: error.failure() }
                }
            };
            inner.results.completed(input);
        });
    }

    fn seal(self: &Rc<Self>, seal: SegmentSeal) {
        let hold = self.segments.hold(seal.segment, self.queues.background, &self.gate);
        self.in_background(move |inner| async move {
            let result = inner.segments.write_index(&hold, seal.index_file).await;
            if let Err(error) = &result {
                inner.failed("an index file was not written", error);
            }
            inner.results.completed(Input::Sealed { segment: seal.segment, written: result.is_ok() });
        });
    }

    fn checkpoint(self: &Rc<Self>, slot: CheckpointWrite) {
        self.in_background(move |inner| async move {
            let input = match checkpoint::write(&inner.folders.shard, &slot).await {
                Ok(()) => Input::CheckpointFlushed,
                Err(error) => {
                    inner.failed("a checkpoint was not written", &error);
                    Input::CheckpointFailed { cause: error.failure() }
                }
            };
            inner.results.completed(input);
        });
    }

    fn failed(&self, what: &'static str, error: &DiskError) {
        self.meters.failures.add(1);
        tracing::error!(%error, "{what}");
    }

    /// Answers a fetch: at once if all of it is in memory, else when the rest was read.
    fn fetch(self: &Rc<Self>, plan: ReadPlan) {
        let mut cold = Vec::new();
        let mut rows = Vec::with_capacity(plan.rows.len());
        for row in plan.rows {
            if let Source::Segment(read) = &row.source {
                cold.push((rows.len(), *read, self.hold(read.segment)));
            }
            rows.push(self.row(row));
        }
        let mut ready = FetchReady { request: plan.request, rows };
        if cold.is_empty() {
            self.results.fetched(ready);
            return;
        }
        self.in_queue(self.queues.cold, move |inner| async move {
            for (index, read, hold) in cold {
                inner.read(&mut ready.rows[index], read, &plan.filter, &hold).await;
            }
            inner.results.fetched(ready);
        });
    }

    pub(super) fn hold(self: &Rc<Self>, segment: SegmentId) -> Hold {
        self.segments.hold(segment, self.queues.background, &self.gate)
    }

    /// A row with what of it is in memory.
    fn row(&self, row: ReadRow) -> FetchReadyRow {
        let mut ready = FetchReadyRow {
            tp: row.tp,
            error: row.error,
            message: String::new(),
            high_watermark: row.high_watermark,
            log_start: row.log_start,
            log_end: row.log_end,
            leader_epoch: row.leader_epoch,
            next_offset: row.next_offset,
            slices: Vec::new(),
        };
        if let Source::Tail(slices) = row.source {
            let tail = self.tail.borrow();
            let Some(found) = slices.into_iter().map(|slice| tail.slice(slice)).collect() else {
                unreachable!("a fetch names bytes that are not in memory: {}", row.tp);
            };
            ready.slices = found;
            self.meters.tail_reads.add(1);
            self.meters.tail_read_bytes.add(ready.slices.iter().map(|slice| slice.len() as u64).sum());
        }
        ready
    }

    async fn read(&self, row: &mut FetchReadyRow, read: SegmentRead, filter: &TagFilter, hold: &Hold) {
        match self.cold.read(read, filter, hold, &self.meters).await {
            Ok((slices, next)) => {
                row.slices = slices;
                row.next_offset = (!filter.is_all()).then_some(next);
            }
            Err(error) => {
                row.next_offset = None;
                self.unreadable(read, &error);
                row.error = code_of(&error);
                row.message = format!("offset {}: {error}", read.from);
            }
        }
    }

    fn unreadable(&self, read: SegmentRead, error: &ColdError) {
        self.meters.failures.add(1);
        tracing::error!(segment = ?read.segment, offset = read.from.get(), %error, "a segment cannot be read");
    }

    fn look_up(self: &Rc<Self>, plan: LookupPlan) {
        let rows: Vec<_> = plan
            .rows
            .into_iter()
            .map(|row| match row {
                LookupRow::Known(row) => (row, 0, Vec::new()),
                LookupRow::Scan { reads, timestamp_ms, otherwise } => {
                    let held = reads.into_iter().map(|read| (read, self.hold(read.segment)));
                    (otherwise, timestamp_ms, held.collect())
                }
            })
            .collect();
        self.in_queue(self.queues.cold, move |inner| async move {
            let mut answer = ListOffsetsAnswer { rows: Vec::with_capacity(rows.len()) };
            for (mut row, timestamp_ms, reads) in rows {
                for (read, hold) in reads {
                    if inner.find_time(&mut row, read, timestamp_ms, &hold).await {
                        break;
                    }
                }
                answer.rows.push(row);
            }
            inner.results.answered(plan.request, Answer::ListOffsets(answer));
        });
    }

    /// Whether the search is over: found, or the segment cannot be read.
    async fn find_time(
        &self,
        row: &mut ListedRow,
        read: SegmentRead,
        timestamp_ms: i64,
        hold: &Hold,
    ) -> bool {
        match self.cold.find_time(&read, timestamp_ms, hold, &self.meters).await {
            Ok(Some((offset, timestamp_ms))) => (row.offset, row.timestamp_ms) = (offset, timestamp_ms),
            Ok(None) => return false,
            Err(error) => {
                self.unreadable(read, &error);
                row.error = code_of(&error);
            }
        }
        true
    }
}

/// What a reader is told of a segment that could not be read.
fn code_of(error: &ColdError) -> ErrorCode {
    match error {
        ColdError::Disk(error) if error.is_out_of_descriptors() => ErrorCode::Throttled,
        ColdError::Disk(_) | ColdError::Segment(_) => ErrorCode::CorruptBatch,
    }
}
