//! Work on the disk that takes several steps: writes, then flushes, then a word to the shard.
//!
//! A stage starts only when every operation of the one before has completed. Invariant: once an operation of a job
//! failed, no later stage of it starts and the shard hears of the failure.

use super::{Hands, Tools};
use crate::disk::{DiskError, FileId};
use bytes::Bytes;
use corelog_core::journal::{Position, SegmentId};
use std::collections::VecDeque;

/// What to tell the shard when a job is done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Then {
    Commit(Position),
    Extent(SegmentId, u64),
    Seal(SegmentId),
    Checkpoint,
    Prewrite(u64),
    Compaction,
}

impl Then {
    /// For the trace.
    pub(super) fn number(self) -> u64 {
        match self {
            Self::Commit(at) => at.get(),
            Self::Extent(_, file_position) => file_position + 1,
            Self::Seal(segment) => u64::from(segment.segment_use.0) + 2,
            Self::Checkpoint => 3,
            Self::Prewrite(ring_offset) => ring_offset + 4,
            Self::Compaction => 5,
        }
    }
}

/// What to flush.
#[derive(Clone, Debug)]
pub(super) enum Target {
    File(FileId),
    Folder(String),
}

/// Operations that may go on at once.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    Write(Vec<(FileId, u64, Bytes)>),
    Flush(Vec<Target>),
}

/// Stages, one after the other.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) then: Then,
    stages: VecDeque<Stage>,
    flushing: Vec<Target>,
    waiting: usize,
    failed: Option<DiskError>,
}

impl Hands {
    pub(super) fn begin(
        &mut self,
        then: Then,
        stages: impl IntoIterator<Item = Stage>,
        tools: &mut Tools<'_>,
    ) {
        self.jobs_begun += 1;
        let id = self.jobs_begun;
        let stages = stages.into_iter().collect();
        self.jobs.insert(id, Job { then, stages, flushing: Vec::new(), waiting: 0, failed: None });
        self.next_stage(id, tools);
        if cfg!(mutant = "flush_beside_write") {
            // The flush does not wait for the write it is to cover.
            self.next_stage(id, tools);
        }
    }

    pub(super) fn job_completed(&mut self, id: u64, result: Result<(), DiskError>, tools: &mut Tools<'_>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.waiting -= 1;
        if let Err(error) = result {
            job.failed = Some(error);
        }
        if job.waiting > 0 {
            return;
        }
        if cfg!(mutant = "flush_retried") && job.failed.is_some() && !job.flushing.is_empty() {
            job.failed = None;
            let again = Stage::Flush(std::mem::take(&mut job.flushing));
            job.stages.push_front(again);
        }
        if let Some(error) = job.failed {
            let then = job.then;
            self.jobs.remove(&id);
            self.finish(then, Err(error), tools);
        } else if job.stages.is_empty() {
            let then = job.then;
            self.jobs.remove(&id);
            self.finish(then, Ok(()), tools);
        } else {
            self.next_stage(id, tools);
        }
    }

    fn next_stage(&mut self, id: u64, tools: &mut Tools<'_>) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Some(stage) = job.stages.pop_front() else { return };
        let ops: Vec<_> = match stage {
            Stage::Write(writes) => {
                let issue = |(file, offset, bytes)| tools.disk.write(tools.now, file, offset, bytes);
                writes.into_iter().map(issue).collect()
            }
            Stage::Flush(targets) => {
                job.flushing.clone_from(&targets);
                let issue = |target| match target {
                    Target::File(file) => tools.disk.flush(tools.now, file),
                    Target::Folder(path) => tools.disk.flush_folder(tools.now, &path),
                };
                targets.into_iter().map(issue).collect()
            }
        };
        job.waiting += ops.len();
        for op in ops {
            self.ops.insert(op, id);
        }
    }
}
