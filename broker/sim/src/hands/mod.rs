//! The hands of one shard over the simulated disk, by the same rules as the broker's own.
//!
//! Called by `broker`: inputs are queued, [`Hands::turn`] steps the shard and performs what it wants, and
//! [`Hands::completed`] goes on when the disk reports. Rules kept here: bytes of a commit are packed at once and stay
//! in memory by position; a flush is issued only after every write it must cover completed; a new file is reported
//! only after its name and those of its folders are flushed; a failed flush is reported and never tried again; a file
//! that is being read keeps its bytes. The mutants of this room break one rule each.

mod boot;
mod compact;
mod jobs;
mod read;

pub use boot::{BootFault, Booted};
pub use read::Reply;

use crate::disk::{Class, Disk, DiskError, FileId, OpId};
use crate::shadow::Shadow;
use crate::trace::Trace;
use bytes::Bytes;
use compact::Compacting;
use corelog_core::journal::{Commit, Packer, Position, RING_DATA_START, SegmentId};
use corelog_core::segment;
use corelog_core::shard::{
    CheckpointWrite, DiskFailure, Effects, ExtentWrite, Input, Make, Note, Prewrite, SegmentSeal, Shard,
    Slice,
};
use corelog_core::time::Now;
use corelog_wire::batch::BatchHeader;
use corelog_wire::ids::TopicPartition;
use jobs::{Job, Stage, Target, Then};
use read::ReadJob;
use std::collections::{BTreeMap, VecDeque};

/// Room on the file system that segments leave for checkpoints.
pub const MARGIN_BYTES: u64 = 1 << 20;

/// What the hands work with for the length of one call.
pub struct Tools<'a> {
    /// The machine's disk.
    pub disk: &'a mut Disk,
    /// Where everything is recorded.
    pub trace: &'a mut Trace,
    /// The moment.
    pub now: u64,
}

/// The hands of one shard.
pub struct Hands {
    shard: Shard,
    packer: Packer,
    /// Folder of the shard's own files.
    folder: String,
    journal: FileId,
    ring_bytes: u64,
    /// Bytes of a read from a segment.
    chunk_bytes: u64,
    /// Commits in memory, by where they start: what the ring has of them, and what their segments have.
    tail: BTreeMap<Position, (Bytes, Bytes)>,
    effects: Effects,
    inbox: VecDeque<Input>,
    jobs: BTreeMap<u64, Job>,
    reads: BTreeMap<u64, ReadJob>,
    compacting: Option<Compacting>,
    ops: BTreeMap<OpId, u64>,
    jobs_begun: u64,
    replies: Vec<Reply>,
    notes: Vec<Note>,
    shadow: Shadow,
    extents_flushed: u64,
}

impl Hands {
    /// Queues an input for the next turn.
    pub fn tell(&mut self, input: Input) {
        self.inbox.push_back(input);
    }

    /// Whether inputs wait.
    #[must_use]
    pub fn has_inputs(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// The decisions, to look at.
    #[must_use]
    pub const fn shard(&self) -> &Shard {
        &self.shard
    }

    /// What was committed and proven, as these hands saw it.
    #[must_use]
    pub const fn shadow(&self) -> &Shadow {
        &self.shadow
    }

    /// Gives up the shadow: the process ends, the memory of what it did is the simulator's.
    #[must_use]
    pub fn into_shadow(self) -> Shadow {
        self.shadow
    }

    /// The session is on the disk: everything that recovery kept is flushed.
    pub fn session_started(&mut self) {
        let first = Position::new(self.shard.snapshot().journal_head);
        if !self.shard.snapshot().read_only {
            self.shadow.session_started(first);
        }
    }

    /// Extents that were written and flushed since the start; the shard may not have heard of the last ones.
    #[must_use]
    pub const fn extents_flushed(&self) -> u64 {
        self.extents_flushed
    }

    /// The journal file.
    #[must_use]
    pub const fn journal(&self) -> FileId {
        self.journal
    }

    /// Answers that are ready to be sent.
    pub fn take_replies(&mut self) -> Vec<Reply> {
        std::mem::take(&mut self.replies)
    }

    /// What the shard wants an operator to read.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// One turn of the pump: at most `inputs_max` inputs, then the cut, then the effects.
    pub fn turn(&mut self, now: Now, inputs_max: usize, tools: &mut Tools<'_>) {
        for _ in 0..inputs_max {
            let Some(input) = self.inbox.pop_front() else { break };
            record_input(&input, tools.trace);
            self.shard.step(now, input, &mut self.effects);
        }
        self.shard.step(now, Input::Turn, &mut self.effects);
        self.perform(tools);
    }

    fn perform(&mut self, tools: &mut Tools<'_>) {
        let mut effects = std::mem::take(&mut self.effects);
        for commit in effects.commits.drain(..) {
            self.write_commit(&commit, tools);
        }
        for (request, answer) in effects.answers.drain(..) {
            self.reply(Reply { request, answer, payload: Bytes::new() }, tools);
        }
        for plan in effects.reads.drain(..) {
            self.begin_fetch(plan, tools);
        }
        for plan in effects.lookups.drain(..) {
            self.begin_lookup(plan, tools);
        }
        for extent in effects.extents.drain(..) {
            self.write_extent(&extent, tools);
        }
        for seal in effects.seals.drain(..) {
            self.write_index(&seal, tools);
        }
        for plan in effects.compactions.drain(..) {
            self.begin_compaction(plan, tools);
        }
        if let Some(checkpoint) = effects.checkpoint.take() {
            self.write_checkpoint(&checkpoint, tools);
        }
        if let Some(prewrite) = effects.prewrite.take() {
            self.prewrite(prewrite, tools);
        }
        for segment in effects.removals.drain(..) {
            tools.trace.event("remove", &[segment.base.get(), u64::from(segment.segment_use.0)]);
            let folder = format!("topics/{}", segment::folder_name(segment.tp));
            tools.disk.remove(&format!("{folder}/{}", segment::file_name(segment)));
            tools.disk.remove(&format!("{folder}/{}", segment::index_file_name(segment)));
            self.shadow.file_removed(segment);
        }
        for tp in effects.removed.drain(..) {
            let written = |job: &Job| matches!(job.then, Then::Extent(segment, _) if segment.tp == tp);
            assert!(
                !self.jobs.values().any(written),
                "the folder of {tp} goes while an extent is written in it"
            );
            tools.disk.remove(&format!("topics/{}", segment::folder_name(tp)));
        }
        if let Some(position) = effects.release.take() {
            self.tail.retain(|at, (bytes, _)| at.plus(bytes.len() as u64) > position);
        }
        self.notes.append(&mut effects.notes);
        self.effects = effects;
    }

    fn write_commit(&mut self, commit: &Commit, tools: &mut Tools<'_>) {
        let mut packed = vec![0xaa; commit.bytes as usize];
        self.packer.pack(commit, &mut packed);
        let packed = Bytes::from(packed);
        let crc = u64::from(crc32fast::hash(&packed));
        tools.trace.event("commit", &[commit.at.get(), commit.bytes, commit.flushed_to.get(), crc]);
        if cfg!(mutant = "buffer_reused") {
            self.scribble_commits(&packed, tools);
        }
        let (direct, payload) = self.pack_direct(commit, tools);
        self.shadow.committed(commit, &packed);
        self.tail.insert(commit.at, (packed.clone(), payload));
        let start = commit.at.in_ring(self.ring_bytes);
        let first = packed.len().min((self.ring_bytes - start) as usize);
        let mut writes = vec![(self.journal, RING_DATA_START + start, packed.slice(..first))];
        if first < packed.len() {
            writes.push((self.journal, RING_DATA_START, packed.slice(first..)));
        }
        let ring = [Stage::Write(writes), Stage::Flush(vec![Target::File(self.journal)])];
        self.begin(Then::Commit(commit.at), direct.into_iter().chain(ring), tools);
    }

    /// What of a commit goes to segments, to be done before it is written, and all of it in memory.
    fn pack_direct(&mut self, commit: &Commit, tools: &mut Tools<'_>) -> (Vec<Stage>, Bytes) {
        let (mut payload, mut writes, mut files) = (Vec::new(), Vec::new(), Vec::new());
        for write in &commit.direct {
            tools.trace.event("direct", &[write.file_position, write.bytes]);
            let mut bytes = vec![0xaa; write.bytes.next_multiple_of(segment::BLOCK) as usize];
            Packer::pack_direct(commit, write, &mut bytes);
            let Some(file) = Self::open_segment(write.segment, tools.disk) else {
                panic!("a direct write into a file that is not there: {write:?}")
            };
            payload.extend_from_slice(&bytes);
            writes.push((file, write.file_position, Bytes::from(bytes)));
            files.push(Target::File(file));
        }
        let mut stages =
            if writes.is_empty() { Vec::new() } else { vec![Stage::Write(writes), Stage::Flush(files)] };
        if cfg!(mutant = "direct_not_flushed") {
            stages.truncate(1);
        }
        (stages, Bytes::from(payload))
    }

    fn scribble_commits(&mut self, with: &Bytes, tools: &mut Tools<'_>) {
        for (op, job) in &self.ops {
            if self.jobs.get(job).is_some_and(|job| matches!(job.then, Then::Commit(_))) {
                tools.disk.scribble(*op, with);
            }
        }
    }

    fn write_extent(&mut self, extent: &ExtentWrite, tools: &mut Tools<'_>) {
        tools
            .trace
            .event("extent", &[extent.file_position, extent.bytes, u64::from(extent.make != Make::Nothing)]);
        tools.trace.say(format_args!("  {:?} {} slices", extent.segment, extent.slices.len()));
        let mut bytes = Vec::with_capacity(extent.bytes.next_multiple_of(segment::BLOCK) as usize);
        for slice in &extent.slices {
            bytes.extend_from_slice(&self.bytes_of(*slice));
        }
        assert_eq!(bytes.len() as u64, extent.bytes, "an extent that is not the sum of its slices");
        bytes.resize(bytes.len().next_multiple_of(segment::BLOCK as usize), 0);
        let then = Then::Extent(extent.segment, extent.file_position);
        let (file, mut folders) = self.segment_file(extent, tools);
        if let Err(error) = tools.disk.allocate_leaving(file, extent.allocate_to, MARGIN_BYTES) {
            self.finish(then, Err(error), tools);
            return;
        }
        self.shadow.extent_written(extent);
        let mut writes = vec![(file, extent.file_position, Bytes::from(bytes))];
        if extent.make != Make::Nothing {
            writes.insert(0, (file, 0, Bytes::from(segment::first_block(extent.segment))));
        }
        folders.insert(0, Target::File(file));
        self.begin(then, [Stage::Write(writes), Stage::Flush(folders)], tools);
    }

    /// The file of a segment, and the folders whose flush makes its name durable. All folders up to the top are
    /// flushed for a new file: a folder that is there may have been made a moment ago, and not durably.
    fn segment_file(&mut self, extent: &ExtentWrite, tools: &mut Tools<'_>) -> (FileId, Vec<Target>) {
        let topic = format!("topics/{}", extent.segment.tp.topic);
        let folder = format!("topics/{}", segment::folder_name(extent.segment.tp));
        let path = format!("{folder}/{}", segment::file_name(extent.segment));
        let folders = ["topics", &topic, &folder];
        for folder in folders {
            if !tools.disk.has_folder(folder) {
                tools.disk.create(folder, None);
            }
        }
        if let Make::Of(old) = extent.make {
            self.recycle(old, &path, tools);
        }
        let file = tools.disk.open(&path).unwrap_or_else(|| tools.disk.create(&path, Some(Class::Segment)));
        let flush = extent.make != Make::Nothing && !cfg!(mutant = "no_folder_flush");
        let targets = ["", "topics", &topic, &folder].map(|folder| Target::Folder(folder.to_owned()));
        (file, if flush { targets.into() } else { Vec::new() })
    }

    /// Gives the file of a segment that left the log another name, unless somebody reads it.
    fn recycle(&mut self, old: SegmentId, path: &str, tools: &mut Tools<'_>) {
        let folder = format!("topics/{}", segment::folder_name(old.tp));
        let name = format!("{folder}/{}", segment::file_name(old));
        let Some(file) = tools.disk.open(&name) else { return };
        let held = tools.disk.is_held(file);
        tools.trace.event("recycle", &[old.base.get(), u64::from(old.segment_use.0), u64::from(held)]);
        if held {
            tools.disk.remove(&name);
        } else {
            tools.disk.rename(&name, path);
        }
        tools.disk.remove(&format!("{folder}/{}", segment::index_file_name(old)));
        self.shadow.file_removed(old);
    }

    fn write_index(&mut self, seal: &SegmentSeal, tools: &mut Tools<'_>) {
        let folder = format!("topics/{}", segment::folder_name(seal.segment.tp));
        let path = format!("{folder}/{}", segment::index_file_name(seal.segment));
        let file = tools.disk.open(&path).unwrap_or_else(|| tools.disk.create(&path, Some(Class::Index)));
        let then = Then::Seal(seal.segment);
        if let Err(error) = tools.disk.allocate_leaving(file, seal.index_file.len() as u64, MARGIN_BYTES) {
            tools.disk.remove(&path);
            self.finish(then, Err(error), tools);
            return;
        }
        let bytes = Bytes::from(seal.index_file.clone());
        let targets = vec![Target::File(file), Target::Folder(folder)];
        self.begin(then, [Stage::Write(vec![(file, 0, bytes)]), Stage::Flush(targets)], tools);
    }

    fn write_checkpoint(&mut self, checkpoint: &CheckpointWrite, tools: &mut Tools<'_>) {
        tools.trace.event("checkpoint", &[u64::from(checkpoint.slot), checkpoint.bytes.len() as u64]);
        let path = format!("{}/checkpoint-{}", self.folder, checkpoint.slot);
        let file =
            tools.disk.open(&path).unwrap_or_else(|| tools.disk.create(&path, Some(Class::Checkpoint)));
        if let Err(error) = tools.disk.allocate(file, checkpoint.bytes.len() as u64) {
            self.finish(Then::Checkpoint, Err(error), tools);
            return;
        }
        let targets = vec![Target::File(file), Target::Folder(self.folder.clone())];
        let writes = vec![(file, 0, Bytes::from(checkpoint.bytes.clone()))];
        self.begin(Then::Checkpoint, [Stage::Write(writes), Stage::Flush(targets)], tools);
    }

    fn prewrite(&mut self, chunk: Prewrite, tools: &mut Tools<'_>) {
        let zeros = Bytes::from(vec![0; chunk.bytes as usize]);
        let writes = vec![(self.journal, RING_DATA_START + chunk.ring_offset, zeros)];
        let stages = [Stage::Write(writes), Stage::Flush(vec![Target::File(self.journal)])];
        self.begin(Then::Prewrite(chunk.ring_offset), stages, tools);
    }

    /// Bytes in memory, by the position they have in the journal.
    fn bytes_of(&self, slice: Slice) -> Bytes {
        let found = self.tail.range(..=slice.position).next_back();
        let bytes = found.and_then(|(at, (ring, payload))| {
            let (bytes, from) = match slice.direct {
                Some(from) => (payload, from as usize),
                None => (ring, slice.position.since(*at) as usize),
            };
            let to = from + slice.bytes as usize;
            (to <= bytes.len()).then(|| bytes.slice(from..to))
        });
        let Some(bytes) = bytes else {
            panic!("the shard names bytes at {} that were released", slice.position.get())
        };
        bytes
    }

    /// A job is done: what the shard hears of it.
    fn finish(&mut self, then: Then, result: Result<(), DiskError>, tools: &mut Tools<'_>) {
        let failed = result.is_err();
        let input = match then {
            Then::Commit(at) if failed => {
                self.shadow.commit_failed(at);
                Input::CommitFailed { at }
            }
            Then::Commit(at) => Input::CommitFlushed { at },
            Then::Extent(segment, file_position) => match result {
                Ok(()) => {
                    self.extents_flushed += 1;
                    Input::ExtentFlushed { segment, file_position }
                }
                Err(error) => Input::ExtentFailed { segment, file_position, cause: failure(error) },
            },
            Then::Seal(segment) => Input::Sealed { segment, written: !failed },
            Then::Checkpoint => match result {
                Ok(()) => Input::CheckpointFlushed,
                Err(error) => Input::CheckpointFailed { cause: failure(error) },
            },
            Then::Compaction => return self.compaction_stage_over(failed, tools),
            Then::Prewrite(_) if failed => Input::PrewriteFailed,
            Then::Prewrite(ring_offset) => Input::Prewritten { ring_offset },
        };
        tools.trace.event("finished", &[then.number(), u64::from(failed)]);
        self.inbox.push_back(input);
    }

    fn reply(&mut self, reply: Reply, tools: &mut Tools<'_>) {
        reply.record(tools.trace);
        self.replies.push(reply);
    }

    /// An operation of these hands is done.
    pub fn completed(&mut self, op: OpId, result: Result<Bytes, DiskError>, tools: &mut Tools<'_>) {
        let Some(id) = self.ops.remove(&op) else { return };
        if self.is_compaction_read(op) {
            return self.compaction_read(result, tools);
        }
        if self.reads.contains_key(&id) {
            self.read_completed(id, result, tools);
        } else {
            self.job_completed(id, result.map(|_| ()), tools);
        }
    }

    /// Whether this operation was issued by these hands.
    #[must_use]
    pub fn owns(&self, op: OpId) -> bool {
        self.ops.contains_key(&op)
    }

    /// The file of a segment, open.
    #[must_use]
    pub fn open_segment(segment: SegmentId, disk: &Disk) -> Option<FileId> {
        let folder = segment::folder_name(segment.tp);
        disk.open(&format!("topics/{folder}/{}", segment::file_name(segment)))
    }
}

/// What an error of the disk means for the shard.
const fn failure(error: DiskError) -> DiskFailure {
    match error {
        DiskError::NoSpace => DiskFailure::NoSpace,
        DiskError::Io => DiskFailure::Fault,
    }
}

/// Folds an input into the trace.
fn record_input(input: &Input, trace: &mut Trace) {
    if trace.printing() {
        match input {
            Input::Produce(request) => {
                for row in &request.rows {
                    let header = row.batch.as_ref().map(|batch| *batch.header());
                    trace.say(format_args!(
                        "  row of {} {}",
                        request.request.0,
                        describe(row.tp, header.ok())
                    ));
                }
            }
            _ => trace.say(format_args!("  input {}", brief(&format!("{input:?}")))),
        }
    }
    let (kind, number): (&'static str, u64) = match input {
        Input::Lead { epoch, .. } => ("lead", u64::from(epoch.get())),
        Input::Configure { .. } => ("configure", 0),
        Input::GroupsRead(words) => ("groups read", words.len() as u64),
        Input::Remove { tp } => ("remove", u64::from(tp.partition)),
        Input::Produce(request) => ("produce", request.request.0),
        Input::Fetch(request) => ("fetch", request.request.0),
        Input::ListOffsets { request, .. } => ("list", request.0),
        Input::DeleteRecords { request, .. } => ("delete", request.0),
        Input::Forget { request } => ("forget", request.0),
        Input::CommitFlushed { at } => ("flushed", at.get()),
        Input::CommitFailed { at } => ("failed", at.get()),
        Input::ExtentFlushed { file_position, .. } => ("extent flushed", *file_position),
        Input::ExtentFailed { file_position, .. } => ("extent failed", *file_position),
        Input::PrewriteFailed => ("prewrite failed", 0),
        Input::Sealed { written, .. } => ("sealed", u64::from(*written)),
        Input::Compacted(entry) => ("compacted", entry.end.get()),
        Input::CompactionOver { done, .. } => ("compaction over", u64::from(*done)),
        Input::CheckpointFlushed => ("checkpoint flushed", 0),
        Input::CheckpointFailed { .. } => ("checkpoint failed", 0),
        Input::Prewritten { ring_offset } => ("prewritten", *ring_offset),
        Input::Turn => ("turn", 0),
        Input::Tick => ("tick", 0),
        Input::Drain => ("drain", 0),
    };
    trace.event(kind, &[number]);
}

fn describe(tp: TopicPartition, header: Option<BatchHeader>) -> String {
    let Some(header) = header else { return format!("{tp}: refused at the door") };
    format!(
        "{tp}: producer {} epoch {} sequence {} records {} bytes {}",
        header.producer_id,
        header.producer_epoch,
        header.base_sequence,
        header.record_count,
        header.batch_bytes
    )
}

/// The beginning of a long line.
fn brief(line: &str) -> &str {
    let end = (0..=line.len().min(300)).rev().find(|&end| line.is_char_boundary(end));
    &line[..end.unwrap_or(0)]
}
