//! Capturing a checkpoint: partitions are imaged in slices, the slot is written when everything they know is durable.
//!
//! A checkpoint is due when the head moved an eighth of the ring since the last one, when the ring has no room and a
//! newer checkpoint would make some, and at a clean stop.

use super::{CheckpointWrite, DiskFailure, Effects, Shard};
use crate::checkpoint::{PartitionImage, SlotHeader, encode_slot};
use crate::journal::Position;
use crate::limits::{CHECKPOINT_SHARE, CHECKPOINT_SLICE, CHECKPOINT_SLICE_BYTES};
use crate::time::Now;
use corelog_wire::ids::{Offset, TopicPartition};
use std::ops::Bound;

/// A checkpoint under way.
#[derive(Debug)]
pub(super) struct Capture {
    replay_from: Position,
    /// Where the head was when it began.
    began_at: Position,
    body: Vec<u8>,
    partitions: u32,
    /// Partitions up to this one are captured.
    last: Option<TopicPartition>,
    complete: bool,
    /// Captured log ends that are not durable yet.
    ahead: Vec<(TopicPartition, Offset)>,
    /// Being written: which slot.
    writing: Option<u8>,
}

impl Shard {
    /// Whether some of a checkpoint is still to be captured, which waits for nothing but its turn.
    pub(super) fn is_capturing(&self) -> bool {
        !self.poisoned && self.capture.as_ref().is_some_and(|capture| !capture.complete)
    }

    /// Begins, goes on with or hands over a checkpoint.
    pub(super) fn checkpoint(&mut self, out: &mut Effects) {
        if self.poisoned || self.checkpoint_waits {
            return;
        }
        if self.capture.is_none() && self.checkpoint_due() {
            self.capture = Some(Capture {
                replay_from: self.oldest_undestaged().min(self.ring.flushed_to()),
                began_at: self.ring.head(),
                body: Vec::new(),
                partitions: 0,
                last: None,
                complete: false,
                ahead: Vec::new(),
                writing: None,
            });
        }
        let Some(mut capture) = self.capture.take() else { return };
        if !capture.complete {
            self.capture_slice(&mut capture);
        }
        if capture.complete && capture.writing.is_none() {
            self.write_if_durable(&mut capture, out);
        }
        self.capture = Some(capture);
    }

    pub(super) fn checkpoint_flushed(&mut self, out: &mut Effects) {
        let Some(capture) = self.capture.take() else { return };
        let Some(slot) = capture.writing else {
            self.capture = Some(capture);
            return;
        };
        self.ring.slot_written(slot, capture.replay_from);
        self.captured_at = capture.began_at;
        self.checkpoints += 1;
        self.finish_draining(out);
    }

    /// A slot that found no room is tried again later, the same one: the other still holds what the next start needs.
    pub(super) fn checkpoint_failed(&mut self, now: Now, cause: DiskFailure, out: &mut Effects) {
        match cause {
            DiskFailure::Fault => self.poison("a checkpoint could not be written", out),
            DiskFailure::NoSpace | DiskFailure::Busy => {
                if self.capture.take().is_some_and(|capture| capture.writing.is_some()) {
                    self.generation -= 1;
                }
                self.checkpoint_waits = true;
                self.pause(now, cause == DiskFailure::NoSpace, out);
                self.finish_draining(out);
            }
        }
    }

    /// Whether a clean stop left nothing for the next start to replay beyond what is in the journal anyway.
    pub(super) fn is_checkpointed(&self) -> bool {
        self.capture.is_none() && self.captured_at >= self.ring.flushed_to()
    }

    fn checkpoint_due(&self) -> bool {
        let since_last = self.ring.head().since(self.captured_at);
        let quiet_stop = self.draining && self.ring.is_quiet() && self.extents.is_empty();
        let replay_from = self.oldest_undestaged().min(self.ring.flushed_to());
        since_last > self.ring.bytes() / CHECKPOINT_SHARE
            || ((self.ring.is_out_of_room() || !self.stalled.is_empty())
                && replay_from > self.ring.needed_from())
            || (quiet_stop && since_last > 0)
    }

    fn capture_slice(&self, capture: &mut Capture) {
        let from = capture.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut slice = self.partitions.range((from, Bound::Unbounded));
        let body_bytes_max = capture.body.len() + CHECKPOINT_SLICE_BYTES;
        for _ in 0..CHECKPOINT_SLICE {
            if capture.body.len() > body_bytes_max {
                return;
            }
            let Some((tp, partition)) = slice.next() else {
                capture.complete = true;
                return;
            };
            capture.last = Some(*tp);
            let log = &partition.log;
            if PartitionImage::capture(log).encode_into(&mut capture.body).is_err() {
                continue;
            }
            capture.partitions += 1;
            if log.end() > log.durable_end() {
                capture.ahead.push((*tp, log.end()));
            }
        }
    }

    /// A slot may not know more than the journal keeps: wait until every captured end is durable.
    fn write_if_durable(&mut self, capture: &mut Capture, out: &mut Effects) {
        let partitions = &self.partitions;
        capture.ahead.retain(|(tp, end)| partitions.get(tp).is_some_and(|p| p.log.durable_end() < *end));
        if !capture.ahead.is_empty() && !cfg!(mutant = "checkpoint_before_its_journal") {
            return;
        }
        self.generation += 1;
        let slot = u8::from(self.generation % 2 == 1);
        let header = SlotHeader {
            generation: self.generation,
            replay_from: capture.replay_from,
            flushed_to: self.ring.flushed_to(),
            next_use: self.next_use,
            written_in_full: self.ring.is_written_in_full(),
        };
        let bytes = encode_slot(&header, capture.partitions, &std::mem::take(&mut capture.body));
        capture.writing = Some(slot);
        out.checkpoint = Some(CheckpointWrite { slot, bytes });
    }
}
