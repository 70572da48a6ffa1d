//! The batches of some segments, one after the other, body checksums held.

use super::{CompactError, Input, Want};
use crate::limits::BLOCK;
use crate::segment::{BatchScan, Next};
use crate::shard::{SegmentRead, SegmentStart};
use bytes::Bytes;
use corelog_wire::batch::{BodyCheck, CheckedBatch, StoredBatches};
use corelog_wire::ids::Offset;
use std::collections::VecDeque;
use std::ops::Range;

/// What a source gives.
#[derive(Debug)]
pub(super) enum Fed {
    Batch(CheckedBatch),
    /// It has to be fed first.
    Need(Want),
    End,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Source {
    left: VecDeque<Input>,
    from: Offset,
    walk: Option<Walk>,
}

/// A segment under way.
#[derive(Debug)]
struct Walk {
    input: Input,
    scan: BatchScan,
    next: Next,
    chunk: Bytes,
    /// Whole batches of the chunk.
    ranges: VecDeque<Range<usize>>,
    run: Option<StoredBatches>,
}

impl Source {
    /// The batches of neighbours that have offsets from `from` on.
    pub(super) fn new(inputs: Vec<Input>, from: Offset) -> Self {
        Self { left: inputs.into(), from, walk: None }
    }

    /// Gives nothing more.
    pub(super) fn stop(&mut self) {
        (self.left, self.walk) = (VecDeque::new(), None);
    }

    pub(super) fn next(&mut self) -> Result<Fed, CompactError> {
        loop {
            let Some(walk) = &mut self.walk else {
                let Some(input) = self.left.pop_front() else { return Ok(Fed::End) };
                self.walk = Some(Walk::new(input, self.from));
                continue;
            };
            let tp = walk.input.segment.tp;
            if let Some(run) = &mut walk.run {
                if let Some(batch) = run.next() {
                    let offset = walk.scan.next_offset();
                    return batch.map(Fed::Batch).map_err(|error| CompactError::Batch { offset, error });
                }
                walk.run = None;
            }
            if let Some(range) = walk.ranges.pop_front() {
                walk.run = Some(StoredBatches::new(walk.chunk.slice(range), tp, BodyCheck::Verify));
                continue;
            }
            match walk.next {
                Next::Done => self.walk = None,
                Next::Read { from, bytes } => {
                    let Input { segment, file_end, .. } = walk.input;
                    return Ok(Fed::Need(Want::Read { segment, from, bytes, file_end }));
                }
            }
        }
    }

    pub(super) fn feed(&mut self, chunk: Bytes, start: u64) -> Result<(), CompactError> {
        if let Some(walk) = &mut self.walk {
            let taken = walk.scan.take(&chunk, start)?;
            (walk.ranges, walk.next, walk.chunk) = (taken.ranges.into(), taken.next, chunk);
        }
        Ok(())
    }
}

impl Walk {
    fn new(input: Input, from: Offset) -> Self {
        let read = SegmentRead {
            segment: input.segment,
            start: SegmentStart::At(BLOCK),
            file_end: input.file_end,
            from: from.max(input.segment.base),
            until: input.end,
            bytes_max: u32::MAX,
        };
        Self {
            input,
            scan: BatchScan::new(&read, BLOCK),
            next: Next::Read { from: BLOCK, bytes: 1 },
            chunk: Bytes::new(),
            ranges: VecDeque::new(),
            run: None,
        }
    }
}
