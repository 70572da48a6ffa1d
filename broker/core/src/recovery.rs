//! Recovery: from what the disk holds back to a shard, or to a refusal that says why.
//!
//! The newest good checkpoint slot gives the logs; the journal, scanned from where that slot needs it, gives the rest.
//! The hands read what [`Recovery::next_read`] asks for, feed it, and finish. Whether a bad commit is a torn tail (cut)
//! or corruption (the shard is read-only, nothing is cut) is decided in `journal::scan` and by nothing else.
//!
//! Invariants: what is handed over was checked byte by byte; a new session is recorded before anything is appended;
//! two bad slots are never taken for an empty log.

use crate::checkpoint::{self, PartitionImage, SlotError, SlotHeader};
use crate::journal::{
    EntryView, Position, RingRead, Scan, Scanned, SegmentUse, Session, Superblock, SuperblockError, Verdict,
    entries,
};
use crate::log::{Log, Place, ReplayFault};
use crate::shard::{CheckpointWrite, Recovering, Shard, ShardConfig};
use bytes::Bytes;
use corelog_wire::batch::{BatchHeader, Stamp};
use corelog_wire::ids::TopicPartition;
use std::collections::{BTreeMap, BTreeSet};

/// What a new shard's files hold.
#[derive(Debug)]
pub struct Format {
    /// The start of the journal file; the ring follows, preallocated.
    pub superblocks: Vec<u8>,
    /// The first checkpoint.
    pub checkpoint: CheckpointWrite,
}

/// What to write for a shard that never was: an unused journal and a checkpoint of nothing.
#[must_use]
pub fn format(config: &ShardConfig) -> Format {
    let superblock = Superblock::fresh(config.ring_bytes);
    let header = SlotHeader { generation: 0, ..SlotHeader::default() };
    let bytes = checkpoint::encode_slot(&header, 0, &[]);
    Format { superblocks: superblock.encode_both(), checkpoint: CheckpointWrite { slot: 0, bytes } }
}

/// Why a shard cannot start. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryFault {
    /// The journal's own description is unreadable.
    #[error("the journal's superblock: {0}")]
    Superblock(#[from] SuperblockError),
    /// The ring has another size than the configuration says, and it is in use.
    #[error(
        "the journal has {found} bytes, the configuration says {configured}; start with journal_bytes = {found}"
    )]
    OtherRingSize {
        /// What the file says.
        found: u64,
        /// What the configuration says.
        configured: u64,
    },
    /// Both slots are gone or bad.
    #[error("no checkpoint can be read (slot 0: {}, slot 1: {}); restore the files or set the shard's folder aside",
        describe(first.as_ref()), describe(second.as_ref()))]
    NoCheckpoint {
        /// Slot 0.
        first: Option<SlotError>,
        /// Slot 1.
        second: Option<SlotError>,
    },
    /// A slot was written by a newer broker.
    #[error("a checkpoint slot: {0}")]
    Newer(SlotError),
    /// Sound bytes contradict each other.
    #[error("partition {tp:?} at journal position {}: {fault}", position.get())]
    Contradiction {
        /// The partition.
        tp: TopicPartition,
        /// Where.
        position: Position,
        /// What.
        fault: ReplayFault,
    },
    /// A commit with sound checksums has an entry that makes no sense.
    #[error("journal position {}: an entry is malformed: {what}", position.get())]
    Entry {
        /// Where.
        position: Position,
        /// What.
        what: String,
    },
}

fn describe(error: Option<&SlotError>) -> String {
    error.map_or_else(|| "missing".to_owned(), ToString::to_string)
}

/// What recovery found, for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// How the journal ended.
    pub verdict: Verdict,
    /// Partitions that are there.
    pub partitions: usize,
    /// Records they hold.
    pub records: u64,
    /// Bytes of the batches they are in.
    pub bytes: u64,
    /// Batches taken from the journal that the checkpoint did not know.
    pub replayed_batches: u64,
    /// Their bytes.
    pub replayed_bytes: u64,
    /// Bytes of the journal that are in no segment yet.
    pub undestaged_bytes: u64,
    /// Whether the newest slot was bad and the older one was taken.
    pub older_slot: bool,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { partitions, records, bytes, replayed_batches, replayed_bytes, .. } = self;
        write!(
            f,
            "{partitions} partitions, {records} records, {bytes} bytes; {replayed_batches} batches \
             ({replayed_bytes} bytes) replayed from the journal"
        )?;
        if self.older_slot {
            write!(f, "; the newest checkpoint was unreadable, the one before was taken")?;
        }
        match self.verdict {
            Verdict::Clean { .. } => Ok(()),
            Verdict::Torn { end } => {
                write!(f, "; an unacknowledged write was torn and is cut at position {}", end.get())
            }
            Verdict::Corrupt { from, flushed_to } => write!(
                f,
                "; CORRUPT: the journal is damaged from position {} although it was flushed up to {}: read-only, nothing is cut",
                from.get(),
                flushed_to.get()
            ),
        }
    }
}

/// The superblock that opens the new session.
#[derive(Debug)]
pub struct SuperblockWrite {
    /// Where in the journal file.
    pub file_offset: u64,
    /// One block.
    pub bytes: Vec<u8>,
}

/// A shard that may start.
#[derive(Debug)]
pub struct Recovered {
    /// The shard.
    pub shard: Shard,
    /// What was found.
    pub report: Report,
    /// Bytes that reads and extents may name by position: put them into memory first.
    pub kept: Vec<(Position, Bytes)>,
    /// Partitions that the journal says are gone: their folders may have come back after a power cut.
    pub removed: Vec<TopicPartition>,
    /// Write each and flush the journal after each, in order, before the shard is used: so no torn write takes both.
    /// Empty: the shard is read-only, write nothing.
    pub superblocks: Vec<SuperblockWrite>,
}

/// A recovery under way.
#[derive(Debug)]
pub struct Recovery {
    config: ShardConfig,
    superblock: Superblock,
    scan: Scan,
    header: SlotHeader,
    /// What each slot on disk needs of the journal.
    needed: [Position; 2],
    older_slot: bool,
    logs: BTreeMap<TopicPartition, Log>,
    /// Partitions that neither the slot knows nor a removal explains yet, with the first contradiction.
    orphans: BTreeMap<TopicPartition, (Position, ReplayFault)>,
    /// Partitions whose removal was replayed.
    removed: BTreeSet<TopicPartition>,
    next_use: SegmentUse,
    /// Commits with places in memory, oldest first.
    kept: Vec<(Position, Bytes, Vec<TopicPartition>)>,
    replayed_batches: u64,
    replayed_bytes: u64,
    fault: Option<RecoveryFault>,
}

impl Recovery {
    /// Begins with the first blocks of the journal file and the two slot files (`None`: there is no such file).
    ///
    /// # Errors
    /// See [`RecoveryFault`].
    pub fn new(
        config: ShardConfig,
        superblocks: &[u8],
        slots: &[Option<Vec<u8>>; 2],
    ) -> Result<Self, RecoveryFault> {
        let (superblock, _) = Superblock::parse_newest(superblocks)?;
        if superblock.ring_bytes() != config.ring_bytes {
            let (found, configured) = (superblock.ring_bytes(), config.ring_bytes);
            return Err(RecoveryFault::OtherRingSize { found, configured });
        }
        let NewestSlot { header, images, older_slot, needed } = newest_slot(slots)?;
        let mut logs = BTreeMap::new();
        let mut broken = None;
        for image in images {
            match image.restore() {
                Ok(log) => drop(logs.insert(log.tp(), log)),
                Err(error) => broken = Some(error),
            }
        }
        if let Some(error) = broken {
            return Err(RecoveryFault::NoCheckpoint { first: Some(error), second: None });
        }
        let scan = Scan::new(superblock.clone(), header.replay_from, header.flushed_to);
        Ok(Self {
            config,
            superblock,
            scan,
            header,
            needed,
            older_slot,
            logs,
            orphans: BTreeMap::new(),
            removed: BTreeSet::new(),
            next_use: header.next_use,
            kept: Vec::new(),
            replayed_batches: 0,
            replayed_bytes: 0,
            fault: None,
        })
    }

    /// What to read next from the ring; `None` when everything was asked for. Several reads may be under way; they are fed
    /// in order.
    #[must_use]
    pub fn next_read(&mut self) -> Option<RingRead> {
        if self.fault.is_some() { None } else { self.scan.next_read() }
    }

    /// Takes the bytes of [`Self::next_read`].
    pub fn feed(&mut self, bytes: &[u8]) {
        let scanned = self.scan.feed(bytes);
        self.replay_all(scanned);
    }

    /// Takes the next block of [`Self::next_read`] as one that the drive cannot read.
    pub fn feed_unreadable(&mut self) {
        let scanned = self.scan.feed_unreadable();
        self.replay_all(scanned);
    }

    fn replay_all(&mut self, scanned: Vec<Scanned>) {
        for scanned in scanned {
            if self.fault.is_none()
                && let Err(fault) = self.replay(scanned)
            {
                self.fault = Some(fault);
            }
        }
    }

    /// The shard, once everything was fed.
    ///
    /// # Errors
    /// See [`RecoveryFault`].
    pub fn finish(mut self) -> Result<Recovered, RecoveryFault> {
        self.drop_needless();
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let (verdict, last_crc) = self.scan.finish();
        let (head, read_only) = match verdict {
            Verdict::Clean { end } | Verdict::Torn { end } => (end, false),
            Verdict::Corrupt { from, .. } => (from, true),
        };
        if read_only {
            // What explains these may lie beyond the damage: they are set aside, not served half.
            for tp in self.orphans.keys() {
                self.logs.remove(tp);
            }
        } else if let Some((tp, (position, fault))) = self.orphans.pop_first() {
            return Err(RecoveryFault::Contradiction { tp, position, fault });
        }
        let opened = (!read_only).then(|| self.superblock.with_new_session(head));
        let session =
            opened.as_ref().and_then(Superblock::newest).map_or(Session::default(), |start| start.session);
        let undestaged = |log: &Log| -> u64 {
            log.tail.from(log.destaged_end()).map(|place| u64::from(place.bytes)).sum()
        };
        let report = Report {
            verdict,
            partitions: self.logs.len(),
            records: self.logs.values().map(|log| log.end().get() - log.log_start().get()).sum(),
            bytes: self.logs.values().map(Log::bytes).sum(),
            replayed_batches: self.replayed_batches,
            replayed_bytes: self.replayed_bytes,
            undestaged_bytes: self.logs.values().map(undestaged).sum(),
            older_slot: self.older_slot,
        };
        let kept = self.kept.iter();
        let in_memory =
            kept.map(|(at, bytes, partitions)| (*at, bytes.len() as u64, partitions.clone())).collect();
        let shard = Shard::recovered(Recovering {
            config: self.config,
            session,
            head,
            last_crc,
            needed: self.needed,
            generation: self.header.generation,
            next_use: self.next_use,
            logs: self.logs.into_values().collect(),
            in_memory,
            read_only,
            written_in_full: self.header.written_in_full,
        });
        let superblocks = opened
            .iter()
            .flat_map(|opened| [opened.clone(), opened.next()])
            .map(|version| SuperblockWrite { file_offset: version.slot_offset(), bytes: version.encode() });
        let superblocks = superblocks.collect();
        let kept = self.kept.into_iter().map(|(at, bytes, _)| (at, bytes)).collect();
        let live = shard.partitions().collect::<BTreeSet<_>>();
        let removed = self.removed.difference(&live).copied().collect();
        Ok(Recovered { shard, report, kept, removed, superblocks })
    }

    fn replay(&mut self, scanned: Scanned) -> Result<(), RecoveryFault> {
        let at = scanned.header.position;
        let malformed = |what: String| RecoveryFault::Entry { position: at, what };
        let mut placed = BTreeSet::new();
        let views = entries(&scanned.header, &scanned.bytes).map_err(|error| malformed(error.to_string()))?;
        for view in views {
            self.replay_entry(at, view.map_err(|error| malformed(error.to_string()))?, &mut placed);
        }
        if !placed.is_empty() {
            self.kept.push((at, scanned.bytes, placed.into_iter().collect()));
        }
        Ok(())
    }

    fn replay_entry(&mut self, at: Position, view: EntryView, placed: &mut BTreeSet<TopicPartition>) {
        match view {
            EntryView::Batch { tp, segment_use, at_in_commit, header, stamp, .. } => {
                let position = at.plus(u64::from(at_in_commit));
                let place = place(&header, &stamp, segment_use, position);
                if let Some(log) =
                    self.replay_batch(at, tp, &place, |log, place| log.replay(&header, &stamp, *place))
                    && log.tail.end() == Some(place.end)
                {
                    placed.insert(tp);
                }
            }
            EntryView::Direct { tp, segment_use, file_position, header, stamp } => {
                let place = place(&header, &stamp, segment_use, at);
                self.replay_batch(at, tp, &place, |log, place| {
                    log.replay_direct(&header, &stamp, place, file_position)
                });
            }
            EntryView::Extent(extent) => {
                let tp = extent.segment.tp;
                let Some(log) = self.logs.get_mut(&tp) else { return };
                if let Err(fault) = log.destaged(&extent) {
                    self.orphans.entry(tp).or_insert((at, fault));
                }
            }
            EntryView::Compacted(compacted) => {
                let tp = compacted.segment.tp;
                let Some(log) = self.logs.get_mut(&tp) else { return };
                if let Err(fault) = log.compacted(&compacted) {
                    self.orphans.entry(tp).or_insert((at, fault));
                }
            }
            EntryView::LogStart { tp, log_start } => {
                let Some(log) = self.logs.get_mut(&tp) else { return };
                if log_start > log.end() {
                    let fault = ReplayFault::StartBeyondEnd { log_start, end: log.end() };
                    self.orphans.entry(tp).or_insert((at, fault));
                } else {
                    log.advance_start(log_start);
                }
            }
            EntryView::Removed { tp } => {
                self.logs.remove(&tp);
                self.orphans.remove(&tp);
                self.removed.insert(tp);
            }
        }
    }

    /// Takes a batch to its log, which it gives unless the two contradict each other.
    fn replay_batch(
        &mut self,
        at: Position,
        tp: TopicPartition,
        place: &Place,
        replay: impl FnOnce(&mut Log, &Place) -> Result<(), ReplayFault>,
    ) -> Option<&Log> {
        self.next_use = self.next_use.max(place.segment_use);
        let log = self.logs.entry(tp).or_insert_with(|| Log::new(tp));
        let known_end = log.end();
        if let Err(fault) = replay(log, place) {
            // The rest of a partition that a later entry removes.
            self.orphans.entry(tp).or_insert((at, fault));
            return None;
        }
        if log.end() > known_end {
            self.replayed_batches += 1;
            self.replayed_bytes += u64::from(place.bytes);
        }
        Some(log)
    }

    /// Lets go of commits whose batches all reached segments later in the journal.
    fn drop_needless(&mut self) {
        let logs = &self.logs;
        let first_needed = logs.values().filter_map(Log::first_undestaged).min();
        let kept_from = first_needed.map_or(self.kept.len(), |needed| {
            self.kept.partition_point(|(at, bytes, _)| at.plus(bytes.len() as u64) <= needed)
        });
        self.kept.drain(..kept_from);
        let below = self.kept.first().map(|(at, _, _)| *at);
        for log in self.logs.values_mut() {
            match below {
                Some(below) => log.tail.release_below(below),
                None => log.tail.clear(),
            }
        }
    }
}

/// Where a batch of the journal lies.
fn place(header: &BatchHeader, stamp: &Stamp, segment_use: SegmentUse, position: Position) -> Place {
    Place {
        base: stamp.base_offset,
        end: crate::log::batch_end(header, stamp.base_offset),
        position,
        direct: None,
        bytes: header.batch_bytes,
        segment_use,
        max_timestamp_ms: header.max_timestamp_ms,
        tag_bloom: header.tag_bloom,
    }
}

/// The newest slot that can be read.
struct NewestSlot {
    header: SlotHeader,
    images: Vec<PartitionImage>,
    /// Whether the other one could not be read: it may have been newer.
    older_slot: bool,
    needed: [Position; 2],
}

fn newest_slot(slots: &[Option<Vec<u8>>; 2]) -> Result<NewestSlot, RecoveryFault> {
    let read = |slot: &Option<Vec<u8>>| slot.as_deref().map(checkpoint::decode_slot).transpose();
    let (first, second) = (read(&slots[0]), read(&slots[1]));
    for result in [&first, &second] {
        if let Err(error @ SlotError::NewerVersion(_)) = result {
            return Err(RecoveryFault::Newer(error.clone()));
        }
    }
    let older_slot = first.is_err() || second.is_err();
    match (first, second) {
        (Ok(Some(first)), Ok(Some(second))) => {
            let needed = [first.0.replay_from, second.0.replay_from];
            let (header, images) = if first.0.generation > second.0.generation { first } else { second };
            Ok(NewestSlot { header, images, older_slot, needed })
        }
        (Ok(Some((header, images))), _) | (_, Ok(Some((header, images)))) => {
            Ok(NewestSlot { header, images, older_slot, needed: [header.replay_from; 2] })
        }
        (first, second) => Err(RecoveryFault::NoCheckpoint { first: first.err(), second: second.err() }),
    }
}
