//! Small hands in memory: every effect is performed at once and in full, or held back by name.

use super::*;

/// A disk and a memory without faults.
#[expect(clippy::struct_excessive_bools, reason = "each holds back one thing")]
pub(super) struct Hands {
    pub(super) config: ShardConfig,
    pub(super) shard: Shard,
    pub(super) packer: Packer,
    pub(super) now: Now,
    pub(super) ring: Vec<u8>,
    pub(super) superblocks: Vec<u8>,
    pub(super) slots: [Option<Vec<u8>>; 2],
    pub(super) files: BTreeMap<SegmentId, Vec<u8>>,
    pub(super) memory: BTreeMap<Position, (Bytes, Bytes)>,
    pub(super) answers: BTreeMap<RequestId, Answer>,
    pub(super) reads: BTreeMap<RequestId, Vec<(ErrorCode, Bytes, Option<Offset>)>>,
    pub(super) notes: Vec<Note>,
    pub(super) requests: u64,
    /// Flushes are held back, to be given by [`Hands::flush`].
    pub(super) hold_flushes: bool,
    pub(super) held: Vec<Position>,
    /// Extents are held back, to be given by [`Hands::finish_extents`].
    pub(super) hold_extents: bool,
    pub(super) held_extents: Vec<Input>,
    /// The file system takes nothing more.
    pub(super) disk_full: bool,
    /// Index files can be written; nothing reads them here.
    pub(super) can_seal: bool,
    pub(super) removed: Vec<TopicPartition>,
    /// Files that were used again.
    pub(super) recycled: usize,
    /// Bytes that went past the journal.
    pub(super) direct_bytes: u64,
}

impl Hands {
    pub(super) fn new(config: ShardConfig) -> Self {
        let format = format(&config);
        let ring = vec![0; usize::try_from(config.ring_bytes).unwrap()];
        let slots = [Some(format.checkpoint.bytes), None];
        Self::recover(config, ring, format.superblocks, slots, BTreeMap::new())
    }

    pub(super) fn recover(
        config: ShardConfig,
        ring: Vec<u8>,
        mut superblocks: Vec<u8>,
        slots: [Option<Vec<u8>>; 2],
        files: BTreeMap<SegmentId, Vec<u8>>,
    ) -> Self {
        let mut recovery = Recovery::new(config, &superblocks, &slots).unwrap();
        while let Some(read) = recovery.next_read() {
            let from = usize::try_from(read.ring_offset).unwrap();
            recovery.feed(&ring[from..from + usize::try_from(read.bytes).unwrap()]);
        }
        let Recovered { shard, kept, superblocks: writes, .. } = recovery.finish().unwrap();
        for write in writes {
            let at = usize::try_from(write.file_offset).unwrap();
            superblocks[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
        }
        let packer = shard.packer();
        Self {
            config,
            shard,
            packer,
            now: Now { instant: Instant::from_nanos(1), wall_ms: 1_000_000 },
            ring,
            superblocks,
            slots,
            files,
            memory: kept.into_iter().map(|(at, bytes)| (at, (bytes, Bytes::new()))).collect(),
            answers: BTreeMap::new(),
            reads: BTreeMap::new(),
            notes: Vec::new(),
            requests: 0,
            hold_flushes: false,
            held: Vec::new(),
            hold_extents: false,
            held_extents: Vec::new(),
            disk_full: false,
            can_seal: false,
            removed: Vec::new(),
            recycled: 0,
            direct_bytes: 0,
        }
    }

    /// A kill: memory is gone, what was written stays.
    pub(super) fn restart(self) -> Self {
        let epoch_before = self.shard.partitions.values().filter_map(|p| p.epoch).max();
        let configs: Vec<_> = self.shard.partitions.iter().map(|(tp, p)| (*tp, p.config.clone())).collect();
        let mut next = Self::recover(self.config, self.ring, self.superblocks, self.slots, self.files);
        let epoch = LeaderEpoch::new(epoch_before.map_or(1, |epoch| epoch.get() + 1));
        for (tp, config) in configs {
            next.step(Input::Lead { tp, epoch, config: config.unwrap_or_else(|| settings(|_| ())) });
        }
        next
    }

    pub(super) fn lead(&mut self, partition: u32, config: TopicConfig) {
        self.step(Input::Lead { tp: tp(partition), epoch: LeaderEpoch::new(1), config });
    }

    pub(super) fn step(&mut self, input: Input) {
        let mut out = Effects::default();
        self.shard.step(self.now, input, &mut out);
        self.shard.step(self.now, Input::Turn, &mut out);
        let mut completions = self.perform(out);
        while let Some(completion) = completions.pop() {
            let mut out = Effects::default();
            self.shard.step(self.now, completion, &mut out);
            self.shard.step(self.now, Input::Turn, &mut out);
            completions.extend(self.perform(out));
        }
        assert_eq!(self.shard.broken_invariant(), None);
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now.instant = self.now.instant.after(time);
        self.now.wall_ms += i64::try_from(time.as_millis()).unwrap();
        self.step(Input::Tick);
    }

    pub(super) fn flush(&mut self) {
        for at in std::mem::take(&mut self.held) {
            self.step(Input::CommitFlushed { at });
        }
    }

    pub(super) fn finish_extents(&mut self) {
        for done in std::mem::take(&mut self.held_extents) {
            self.step(done);
        }
    }

    pub(super) fn perform(&mut self, out: Effects) -> Vec<Input> {
        let mut done = Vec::new();
        for commit in out.commits {
            let mut bytes = vec![0xAA; usize::try_from(commit.bytes).unwrap()];
            self.packer.pack(&commit, &mut bytes);
            for (index, byte) in bytes.iter().enumerate() {
                let at = commit.at.plus(index as u64).in_ring(self.config.ring_bytes);
                self.ring[usize::try_from(at).unwrap()] = *byte;
            }
            let mut payload = Vec::new();
            for write in &commit.direct {
                let mut packed = vec![0xAA; usize::try_from(write.bytes).unwrap().next_multiple_of(4096)];
                Packer::pack_direct(&commit, write, &mut packed);
                let file =
                    self.files.get_mut(&write.segment).expect("a direct write into a file that is there");
                let at = usize::try_from(write.file_position).unwrap();
                file[at..at + packed.len()].copy_from_slice(&packed);
                payload.extend_from_slice(&packed);
                self.direct_bytes += write.bytes;
            }
            self.memory.insert(commit.at, (Bytes::from(bytes), Bytes::from(payload)));
            if self.hold_flushes {
                self.held.push(commit.at);
            } else {
                done.push(Input::CommitFlushed { at: commit.at });
            }
        }
        for extent in out.extents {
            let (segment, file_position) = (extent.segment, extent.file_position);
            if self.disk_full {
                done.push(Input::ExtentFailed { segment, file_position, cause: DiskFailure::NoSpace });
                continue;
            }
            let mut bytes = Vec::new();
            for slice in &extent.slices {
                bytes.extend_from_slice(&self.slice(*slice));
            }
            assert_eq!(bytes.len() as u64, extent.bytes);
            bytes.resize(bytes.len().next_multiple_of(4096), 0);
            if let Make::Of(old) = extent.make {
                let file = self.files.remove(&old).expect("a file that waits is there");
                assert!(self.files.insert(segment, file).is_none(), "a new segment has a file");
                self.recycled += 1;
            }
            let file = self.files.entry(extent.segment).or_default();
            let at = usize::try_from(extent.file_position).unwrap();
            assert!(extent.allocate_to >= (at + bytes.len()) as u64);
            file.resize(file.len().max(usize::try_from(extent.allocate_to).unwrap()), 0);
            file[at..at + bytes.len()].copy_from_slice(&bytes);
            let to = if self.hold_extents { &mut self.held_extents } else { &mut done };
            to.push(Input::ExtentFlushed { segment, file_position });
        }
        for seal in out.seals {
            done.push(Input::Sealed { segment: seal.segment, written: self.can_seal });
        }
        if out.checkpoint.is_some() && self.disk_full {
            done.push(Input::CheckpointFailed { cause: DiskFailure::NoSpace });
        } else if let Some(write) = out.checkpoint {
            self.slots[usize::from(write.slot)] = Some(write.bytes);
            done.push(Input::CheckpointFlushed);
        }
        for plan in out.reads {
            let rows = plan.rows.iter().map(|row| (row.error, self.read(row), row.next_offset)).collect();
            self.reads.insert(plan.request, rows);
        }
        for segment in out.removals {
            assert!(self.files.remove(&segment).is_some(), "a file that is not there was removed");
        }
        for tp in out.removed {
            assert!(!self.files.keys().any(|segment| segment.tp == tp), "the folder of {tp} is not empty");
            self.removed.push(tp);
        }
        if let Some(below) = out.release {
            self.memory = self.memory.split_off(&below);
        }
        self.answers.extend(out.answers);
        self.notes.extend(out.notes);
        done
    }

    pub(super) fn slice(&self, slice: Slice) -> Bytes {
        let (at, (ring, payload)) =
            self.memory.range(..=slice.position).next_back().expect("the bytes are in memory");
        let (memory, from) = match slice.direct {
            Some(from) => (payload, from as usize),
            None => (ring, usize::try_from(slice.position.since(*at)).unwrap()),
        };
        memory.slice(from..from + slice.bytes as usize)
    }

    pub(super) fn read(&self, row: &ReadRow) -> Bytes {
        match &row.source {
            Source::Nothing => Bytes::new(),
            Source::Tail(slices) => slices.iter().flat_map(|slice| self.slice(*slice)).collect(),
            Source::Segment(read) => self.read_segment(read),
        }
    }

    pub(super) fn read_segment(&self, read: &SegmentRead) -> Bytes {
        let file = &self.files[&read.segment];
        let start = match read.start {
            SegmentStart::At(at) => at,
            SegmentStart::ByIndexFile => BLOCK,
        };
        let mut scan = BatchScan::new(read, start);
        let (mut at, mut wanted, mut bytes) = (start, BLOCK, Vec::new());
        loop {
            let from = usize::try_from(at).unwrap();
            let to = usize::try_from((at + wanted).min(read.file_end)).unwrap();
            let taken = scan.take(&file[from..to], at).unwrap();
            for range in taken.ranges {
                bytes.extend_from_slice(&file[from + range.start..from + range.end]);
            }
            match taken.next {
                Next::Done => return Bytes::from(bytes),
                Next::Read { from, bytes } => (at, wanted) = (from, bytes.max(BLOCK)),
            }
        }
    }

    pub(super) fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    pub(super) fn produce(&mut self, partition: u32, batch: Bytes) -> RequestId {
        let request = self.request();
        let checked =
            CheckedBatch::check(batch, tp(partition), &BatchLimits { batch_bytes_max: 8 << 20 }).unwrap();
        let rows = vec![ProduceRow { tp: tp(partition), batch: Ok(checked) }];
        let deadline = Duration::from_secs(10);
        self.step(Input::Produce(Produce { request, acks: Acks::All, deadline, rows }));
        request
    }

    pub(super) fn produced(&self, request: RequestId) -> Option<(ErrorCode, u64)> {
        match self.answers.get(&request)? {
            Answer::Produce(answer) => Some((answer.rows[0].error, answer.rows[0].base_offset.get())),
            other => panic!("not an answer to a produce: {other:?}"),
        }
    }

    pub(super) fn fetch(&mut self, partition: u32, offset: u64, wait_ms: u64) -> RequestId {
        self.fetch_of(&[], partition, offset, wait_ms)
    }

    /// Only batches with one of these tags.
    pub(super) fn fetch_of(&mut self, tags: &[&str], partition: u32, offset: u64, wait_ms: u64) -> RequestId {
        let request = self.request();
        self.step(Input::Fetch(Fetch {
            request,
            wait_max: Duration::from_millis(wait_ms),
            bytes_min: 1,
            bytes_max: 1 << 20,
            rows: vec![FetchRow {
                tp: tp(partition),
                offset: Offset::new(offset),
                bytes_max: 1 << 20,
                leader_epoch: None,
            }],
            filter: TagFilter::of(tags).unwrap(),
        }));
        request
    }

    /// Asks for the end of a partition.
    pub(super) fn ask_end(&mut self, partition: u32) -> RequestId {
        let request = self.request();
        let rows = vec![ListOffsetsRow { tp: tp(partition), at: At::Latest }];
        self.step(Input::ListOffsets { request, rows });
        request
    }

    /// The end that was asked for, if it is known.
    pub(super) fn end(&self, request: RequestId) -> Option<u64> {
        self.answers.get(&request).map(|answer| match answer {
            Answer::ListOffsets(answer) => answer.rows[0].offset.get(),
            other => panic!("{other:?}"),
        })
    }

    /// Every batch of a partition: base offset and the value of its first record.
    pub(super) fn read_all(&mut self, partition: u32) -> Vec<(u64, Bytes)> {
        // So that what is acknowledged shows.
        self.ask_end(partition);
        let snapshot = self.shard.describe(tp(partition)).unwrap();
        let (mut offset, mut all) = (snapshot.log_start.get(), Vec::new());
        while offset < snapshot.high_watermark.get() {
            let request = self.fetch(partition, offset, 0);
            let rows = self.reads.remove(&request).unwrap();
            assert_eq!(rows[0].0, ErrorCode::None);
            let mut run = rows[0].1.clone();
            assert!(!run.is_empty(), "nothing to read at {offset} of {snapshot:?}");
            while !run.is_empty() {
                let bytes = u32::from_le_bytes(run[24..28].try_into().unwrap()) as usize;
                let batch = CheckedBatch::check_stored(run.split_to(bytes), tp(partition), BodyCheck::Verify)
                    .unwrap();
                let base = batch.stamp().unwrap().base_offset.get();
                offset = base + u64::from(batch.header().last_offset_delta) + 1;
                all.push((base, value_of(&batch)));
            }
        }
        all
    }
}
