//! From a disk to a shard that may be used: the first format, and recovery on every start.

use super::{Hands, Tools};
use crate::disk::{Class, Disk, DiskError, OpId};
use crate::shadow::Shadow;
use bytes::Bytes;
use corelog_core::journal::{RING_DATA_START, SegmentId};
use corelog_core::recovery::{Recovery, Report, format};
use corelog_core::segment::{folder_name, parse_file_name};
use corelog_core::shard::{COMPACTED_USES, Effects, Shard, ShardConfig};
use corelog_wire::ids::TopicPartition;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Why a shard could not start.
#[derive(Debug)]
pub enum BootFault {
    /// Recovery refused, or a file it needs is not there.
    Refused(String),
    /// The new session could not be recorded.
    Disk(DiskError),
}

/// A shard on its way up: recovered, not yet to be used.
pub struct Booted {
    hands: Hands,
    /// What recovery found.
    pub report: Report,
    /// Still to be written and flushed, one after the other.
    superblocks: VecDeque<(u64, Bytes)>,
    /// Files to be removed once what recovery read is flushed.
    swept: Vec<String>,
    waiting: BTreeSet<OpId>,
    flushing: bool,
}

impl Hands {
    /// Lays a shard out on an empty disk. Not part of the weather: the layout counts only once it is complete.
    pub fn format(config: &ShardConfig, tools: &mut Tools<'_>) {
        let folder = folder_of(config);
        let layout = format(config);
        tools.disk.create(&folder, None);
        let journal = tools.disk.create(&format!("{folder}/journal"), Some(Class::Journal));
        let slot = format!("{folder}/checkpoint-{}", layout.checkpoint.slot);
        let slot = tools.disk.create(&slot, Some(Class::Checkpoint));
        for (file, bytes, size) in [
            (journal, layout.superblocks, RING_DATA_START + config.ring_bytes),
            (slot, layout.checkpoint.bytes.clone(), layout.checkpoint.bytes.len() as u64),
        ] {
            let room = tools.disk.allocate(file, size);
            assert_eq!(room, Ok(()), "a disk too small to begin with");
            let write = tools.disk.write(tools.now, file, 0, Bytes::from(bytes));
            tools.disk.complete(write, tools.trace);
            let flush = tools.disk.flush(tools.now, file);
            tools.disk.complete(flush, tools.trace);
        }
        for path in ["", &folder] {
            let flush = tools.disk.flush_folder(tools.now, path);
            tools.disk.complete(flush, tools.trace);
        }
    }

    /// Reads what is on the disk and recovers the shard from it. The new session is being recorded when this returns.
    ///
    /// # Errors
    /// See [`BootFault`].
    pub fn boot(
        config: ShardConfig,
        chunk_bytes: u64,
        shadow: Shadow,
        tools: &mut Tools<'_>,
    ) -> Result<Booted, (BootFault, Shadow)> {
        let folder = folder_of(&config);
        let Some(journal) = tools.disk.open(&format!("{folder}/journal")) else {
            return Err((BootFault::Refused("the journal file is gone".to_owned()), shadow));
        };
        let slot_files = [0, 1].map(|slot| tools.disk.open(&format!("{folder}/checkpoint-{slot}")));
        let slots = slot_files.map(|file| Some(tools.disk.peek(file?, 0, u64::MAX / 2)));
        let superblocks = tools.disk.peek(journal, 0, RING_DATA_START);
        let mut recovery = match Recovery::new(config, &superblocks, &slots) {
            Ok(recovery) => recovery,
            Err(fault) => return Err((BootFault::Refused(fault.to_string()), shadow)),
        };
        while let Some(read) = recovery.next_read() {
            let bytes = tools.disk.peek(journal, RING_DATA_START + read.ring_offset, read.bytes);
            recovery.feed(&bytes);
        }
        let recovered = match recovery.finish() {
            Ok(recovered) => recovered,
            Err(fault) => return Err((BootFault::Refused(fault.to_string()), shadow)),
        };
        tools.trace.say(format_args!("recovered: {}", recovered.report));
        let read_only = recovered.shard.snapshot().read_only;
        let swept =
            if read_only { Vec::new() } else { to_sweep(&recovered.shard, &recovered.removed, tools.disk) };
        let hands = Self {
            packer: recovered.shard.packer(),
            shard: recovered.shard,
            folder,
            journal,
            ring_bytes: config.ring_bytes,
            chunk_bytes,
            tail: recovered.kept.into_iter().map(|(at, bytes)| (at, (bytes, Bytes::new()))).collect(),
            effects: Effects::default(),
            inbox: VecDeque::new(),
            jobs: BTreeMap::new(),
            reads: BTreeMap::new(),
            compacting: None,
            ops: BTreeMap::new(),
            jobs_begun: 0,
            replies: Vec::new(),
            notes: Vec::new(),
            shadow,
            extents_flushed: 0,
        };
        let superblocks = recovered.superblocks.into_iter();
        let mut booted = Booted {
            hands,
            report: recovered.report,
            superblocks: superblocks.map(|write| (write.file_offset, Bytes::from(write.bytes))).collect(),
            swept,
            waiting: BTreeSet::new(),
            flushing: true,
        };
        // What recovery read may be in the drive's cache only: the superblock says that it is flushed, so it has to be
        // before the superblock is. The slots likewise: the next checkpoint overwrites one and counts on the other.
        if !cfg!(mutant = "session_before_flush") && !booted.superblocks.is_empty() {
            let slots = slot_files.into_iter().flatten();
            booted.waiting = slots.chain([journal]).map(|file| tools.disk.flush(tools.now, file)).collect();
            booted.waiting.insert(tools.disk.flush_folder(tools.now, &booted.hands.folder));
        }
        if booted.waiting.is_empty() {
            booted.go_on(tools);
        }
        Ok(booted)
    }
}

impl Booted {
    fn go_on(&mut self, tools: &mut Tools<'_>) {
        for path in self.swept.drain(..) {
            tools.trace.say(format_args!("swept {path}"));
            tools.disk.remove(&path);
        }
        if let Some((offset, bytes)) = self.superblocks.pop_front() {
            self.waiting.insert(tools.disk.write(tools.now, self.hands.journal, offset, bytes));
            self.flushing = false;
        }
    }

    /// Whether the shard may be used.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The hands, once ready.
    #[must_use]
    pub fn into_hands(self) -> Hands {
        self.hands
    }

    /// What was committed before, when the start is given up.
    #[must_use]
    pub fn into_shadow(self) -> Shadow {
        self.hands.into_shadow()
    }

    /// What recovery left of it.
    #[must_use]
    pub const fn hands(&self) -> &Hands {
        &self.hands
    }

    /// What was committed before, to be told what recovery kept.
    pub const fn shadow_mut(&mut self) -> &mut Shadow {
        &mut self.hands.shadow
    }

    /// An operation is done, if it is this shard's.
    ///
    /// # Errors
    /// The new session could not be recorded; the shard must not be used.
    pub fn completed(
        &mut self,
        op: OpId,
        result: &Result<Bytes, DiskError>,
        tools: &mut Tools<'_>,
    ) -> Result<(), BootFault> {
        if !self.waiting.remove(&op) {
            return Ok(());
        }
        if let Err(error) = result {
            return Err(BootFault::Disk(*error));
        }
        if !self.waiting.is_empty() {
            return Ok(());
        }
        if self.flushing {
            self.go_on(tools);
        } else {
            self.waiting.insert(tools.disk.flush(tools.now, self.hands.journal));
            self.flushing = true;
        }
        Ok(())
    }
}

/// What an earlier start was to remove and a crash has kept or brought back.
fn to_sweep(shard: &Shard, removed: &[TopicPartition], disk: &Disk) -> Vec<String> {
    let mut swept = Vec::new();
    for tp in removed {
        let folder = format!("topics/{}", folder_name(*tp));
        swept.extend(disk.list(&folder));
        swept.push(folder);
    }
    for (tp, kept) in shard.files() {
        for path in disk.list(&format!("topics/{}", folder_name(tp))) {
            let name = path.rsplit('/').next().unwrap_or_default();
            if let Some((base, segment_use)) = parse_file_name(name)
                && (segment_use <= shard.newest_use() || segment_use >= COMPACTED_USES)
                && !kept.contains(&SegmentId { tp, base, segment_use })
            {
                swept.push(path);
            }
        }
    }
    swept
}

fn folder_of(config: &ShardConfig) -> String {
    format!("shard-{}", config.shard.get())
}
