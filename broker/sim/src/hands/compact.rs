//! Rounds of compaction over the simulated disk.
//!
//! One operation at a time: what is read is read as the disk gives it, and a file is told of only after it, its index file
//! and their names were flushed, whatever of that a power cut would take.

use super::jobs::{Stage, Target, Then};
use super::{Hands, MARGIN_BYTES, Tools};
use crate::disk::{Class, DiskError, FileId, OpId};
use bytes::Bytes;
use corelog_core::compact::{Codec, Plan, Round, Want};
use corelog_core::journal::{CompactedEntry, SegmentId};
use corelog_core::segment;
use corelog_core::shard::Input;
use corelog_wire::batch::Compression;
use std::collections::BTreeMap;

/// Nothing is compressed here.
struct Plain;

impl Codec for Plain {
    fn decompress(&self, compression: Compression, body: Bytes) -> Result<Bytes, String> {
        if compression == Compression::None { Ok(body) } else { Err("a codec".to_owned()) }
    }

    fn compress(&self, compression: Compression, records: &[u8]) -> Result<Bytes, String> {
        self.decompress(compression, Bytes::copy_from_slice(records))
    }
}

/// A round under way.
pub(super) struct Compacting {
    round: Round,
    inputs: BTreeMap<SegmentId, FileId>,
    /// A read under way, and where it begins.
    read: Option<(OpId, u64)>,
    /// The file under construction is made.
    output: Option<FileId>,
    /// What is told of it when it is durable.
    done: Option<CompactedEntry>,
}

impl Hands {
    pub(super) fn begin_compaction(&mut self, plan: Plan, tools: &mut Tools<'_>) {
        tools.trace.event("compact", &[plan.inputs.len() as u64, plan.clean_end.get()]);
        let mut inputs = BTreeMap::new();
        for input in &plan.inputs {
            // One that is not there fails when it is read.
            if let Some(file) = Self::open_segment(input.segment, tools.disk) {
                tools.disk.hold(file);
                inputs.insert(input.segment, file);
            }
        }
        let round = Round::new(plan);
        self.compacting = Some(Compacting { round, inputs, read: None, output: None, done: None });
        self.go_on_compacting(tools);
    }

    /// Whether this is an operation of the round's.
    pub(super) fn is_compaction_read(&self, op: OpId) -> bool {
        self.compacting.as_ref().is_some_and(|job| job.read.is_some_and(|(read, _)| read == op))
    }

    pub(super) fn compaction_read(&mut self, result: Result<Bytes, DiskError>, tools: &mut Tools<'_>) {
        let Some(job) = &mut self.compacting else { return };
        let Some((_, start)) = job.read.take() else { return };
        match result.map_err(|_| ()).and_then(|chunk| job.round.feed(chunk, start).map_err(|_| ())) {
            Ok(()) => self.go_on_compacting(tools),
            Err(()) => self.end_compaction(false, tools),
        }
    }

    /// A write, or what comes at the end of a file, is done.
    pub(super) fn compaction_stage_over(&mut self, failed: bool, tools: &mut Tools<'_>) {
        let Some(job) = &mut self.compacting else { return };
        if failed {
            return self.end_compaction(false, tools);
        }
        if let Some(done) = job.done.take() {
            job.output = None;
            self.tell(Input::Compacted(done));
        }
        self.go_on_compacting(tools);
    }

    fn go_on_compacting(&mut self, tools: &mut Tools<'_>) {
        loop {
            let Some(job) = &mut self.compacting else { return };
            match job.round.advance(&Plain) {
                Ok(Want::Turn) => {}
                Ok(Want::Read { segment, from, bytes, file_end }) => {
                    let Some(file) = job.inputs.get(&segment).copied() else {
                        return self.end_compaction(false, tools);
                    };
                    let start = from / segment::BLOCK * segment::BLOCK;
                    let end = (from + bytes.max(self.chunk_bytes)).min(file_end.max(from + bytes));
                    let op = tools.disk.read(
                        tools.now,
                        file,
                        start,
                        (end - start).next_multiple_of(segment::BLOCK),
                    );
                    job.read = Some((op, start));
                    self.ops.insert(op, u64::MAX);
                    return;
                }
                Ok(Want::Write { segment, file_position, bytes }) => {
                    return self.write_compacted(segment, file_position, bytes, tools);
                }
                Ok(Want::Finish { done, index_file }) => {
                    return self.finish_compacted(done, index_file, tools);
                }
                Ok(Want::Done) => return self.end_compaction(true, tools),
                Err(_) => return self.end_compaction(false, tools),
            }
        }
    }

    fn write_compacted(
        &mut self,
        segment: SegmentId,
        file_position: u64,
        bytes: Vec<u8>,
        tools: &mut Tools<'_>,
    ) {
        let path = format!("topics/{}/{}", segment::folder_name(segment.tp), segment::file_name(segment));
        let Some(job) = &mut self.compacting else { return };
        let file = job.output.unwrap_or_else(|| {
            assert!(tools.disk.open(&path).is_none(), "{path} was left by an earlier start");
            tools.disk.create(&path, Some(Class::Segment))
        });
        job.output = Some(file);
        let size = file_position + bytes.len() as u64;
        if tools.disk.allocate_leaving(file, size, MARGIN_BYTES).is_err() {
            return self.end_compaction(false, tools);
        }
        let write = Stage::Write(vec![(file, file_position, Bytes::from(bytes))]);
        self.begin(Then::Compaction, [write], tools);
    }

    fn finish_compacted(&mut self, done: CompactedEntry, index_file: Vec<u8>, tools: &mut Tools<'_>) {
        let folder = format!("topics/{}", segment::folder_name(done.segment.tp));
        let path = format!("{folder}/{}", segment::index_file_name(done.segment));
        let Some(job) = &mut self.compacting else { return };
        let Some(file) = job.output else { return self.end_compaction(false, tools) };
        job.done = Some(done);
        let index = tools.disk.create(&path, Some(Class::Index));
        if tools.disk.allocate_leaving(index, index_file.len() as u64, MARGIN_BYTES).is_err() {
            return self.end_compaction(false, tools);
        }
        let mut targets = vec![Target::File(file), Target::File(index), Target::Folder(folder)];
        if cfg!(mutant = "compaction_not_flushed") {
            targets.clear();
        }
        let mut stages = vec![Stage::Write(vec![(index, 0, Bytes::from(index_file))])];
        stages.extend((!targets.is_empty()).then_some(Stage::Flush(targets)));
        self.begin(Then::Compaction, stages, tools);
    }

    fn end_compaction(&mut self, done: bool, tools: &mut Tools<'_>) {
        let Some(job) = self.compacting.take() else { return };
        for file in job.inputs.into_values() {
            tools.disk.let_go(file);
        }
        tools.trace.event("compacted", &[u64::from(done)]);
        self.tell(Input::CompactionOver { tp: job.round.tp(), done });
    }
}
