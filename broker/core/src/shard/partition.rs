//! One partition as its leader sees it: the log, its settings, who waits for what.
//!
//! Called only by `shard`. Invariant: parked acks and waiting fetches name requests that are parked on the shard or
//! gone; a gone one is skipped, never answered twice.

use super::effects::Note;
use super::input::RequestId;
use crate::group::GroupName;
use crate::journal::{ExtentEntry, Position};
use crate::limits::RETENTION_WAITS_LONG;
use crate::log::Log;
use crate::time::Instant;
use crate::topic::{Durability, FullPolicy, TopicConfig};
use corelog_wire::ids::{LeaderEpoch, Offset, TopicPartition};
use std::collections::{BTreeSet, VecDeque};

/// A row of a produce request that waits for its batch to be durable.
#[derive(Clone, Copy, Debug)]
pub(super) struct ParkedAck {
    /// Offset after the batch.
    pub end: Offset,
    /// Whether the answer says that it is flushed, whatever the topic's settings have become meanwhile.
    pub durable: bool,
    pub request: RequestId,
}

/// An extent on its way to its segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExtentUnderWay {
    pub entry: ExtentEntry,
    pub allocate_to: u64,
    /// The hands reported it flushed; its entry waits for a commit.
    pub flushed: bool,
}

/// One partition.
#[derive(Debug)]
pub(super) struct Partition {
    pub log: Log,
    /// `None` until the metadata knows the partition.
    pub config: Option<TopicConfig>,
    /// The epoch this broker leads in.
    pub epoch: Option<LeaderEpoch>,
    pub acks: VecDeque<ParkedAck>,
    pub waiting: BTreeSet<RequestId>,
    pub extent: Option<ExtentUnderWay>,
    /// Whether its last batches in a commit went to its segment alone.
    pub direct: bool,
    /// Its key in the shard's order of undestaged bytes.
    pub undestaged: Option<Position>,
    /// What was shown when the topic became one that waits for the disk: the high watermark does not move back.
    pub shown: Offset,
    /// Offset after the last record of a memory topic that was acknowledged before its commit was cut.
    pub promised: Offset,
    /// Where the log start is going; its entry waits for a commit.
    pub start_target: Offset,
    /// Before this, every protected group has read; none until the first word of it.
    pub read_up_to: Option<Offset>,
    /// Since when retention waits for a protected group to read, and whether that was said.
    pub waits: Option<(Instant, bool)>,
    /// A tombstone's entry waits for a commit.
    pub removing: bool,
}

impl Partition {
    pub(super) fn new(log: Log) -> Self {
        let start_target = log.log_start();
        Self {
            log,
            config: None,
            epoch: None,
            acks: VecDeque::new(),
            waiting: BTreeSet::new(),
            extent: None,
            direct: false,
            undestaged: None,
            shown: Offset::ZERO,
            promised: Offset::ZERO,
            start_target,
            read_up_to: None,
            waits: None,
            removing: false,
        }
    }

    pub(super) fn tp(&self) -> TopicPartition {
        self.log.tp()
    }

    /// Whether acknowledgements wait for the flush.
    pub(super) fn waits_for_disk(&self) -> bool {
        self.config.as_ref().is_none_or(|config| config.durability == Durability::Disk)
    }

    /// The high watermark: offset after the last record that consumers may see. With one replica it is the durable end; of
    /// a memory topic, the end of what has its place in a commit. It does not move back when a topic turns to disk.
    pub(super) fn high_watermark(&self) -> Offset {
        if self.waits_for_disk() && !cfg!(mutant = "leader_counts_memory") {
            return self.log.durable_end().max(self.shown);
        }
        self.log.tail.end().unwrap_or(self.log.durable_end()).max(self.log.durable_end())
    }

    /// Offset after the last record that may be acknowledged, as flushed or not.
    pub(super) fn acknowledgeable_end(&self, durable: bool) -> Offset {
        if durable && !cfg!(mutant = "leader_counts_memory") && !cfg!(mutant = "settings_decide_parked_acks")
        {
            return self.log.durable_end();
        }
        self.high_watermark().max(self.promised)
    }

    /// Whether records are acknowledged that nobody can see before their commit is cut.
    pub(super) fn has_promised_more(&self) -> bool {
        self.promised > self.high_watermark()
    }

    /// Takes new settings.
    pub(super) fn configure(&mut self, config: TopicConfig) {
        self.shown = self.high_watermark();
        if self.config.as_ref().is_none_or(|before| before.protect_groups != config.protect_groups)
            && !cfg!(mutant = "protection_keeps_the_word_of_former_groups")
        {
            (self.read_up_to, self.waits) = (None, None);
        }
        self.config = Some(config);
    }

    /// Takes how far these groups have read, if they are those that it protects.
    pub(super) fn take_read(&mut self, groups: &[GroupName], offset: Offset) {
        if self.config.as_ref().is_some_and(|config| {
            config.protect_groups == groups || cfg!(mutant = "protection_trusts_a_word_of_others")
        }) {
            self.read_up_to = Some(offset);
        }
    }

    /// Takes whether retention waits for a protected group; says so once when that goes on for long.
    pub(super) fn note_waiting(&mut self, waits: bool, now: Instant) -> Option<Note> {
        // Nothing is known of the groups before the first word of them.
        let Some(read_up_to) = self.read_up_to.filter(|_| waits) else {
            self.waits = None;
            return None;
        };
        let (since, said) = self.waits.get_or_insert((now, false));
        if *said || now < since.after(RETENTION_WAITS_LONG) {
            return None;
        }
        *said = true;
        let groups = self.config.as_ref()?.protect_groups.clone();
        Some(Note::RetentionWaits { tp: self.tp(), groups, read_up_to })
    }

    /// Whether retention waits until this group has read.
    pub(super) fn protects(&self, group: &GroupName) -> bool {
        self.config.as_ref().is_some_and(|config| config.protect_groups.contains(group))
    }

    /// From here on a protected group still has to read; the end of all offsets if nobody is protected.
    pub(super) fn unread_from(&self) -> Offset {
        let protects = self.config.as_ref().is_some_and(|config| !config.protect_groups.is_empty());
        if !protects || cfg!(mutant = "retention_takes_what_is_unread") {
            return Offset::new(u64::MAX);
        }
        self.read_up_to.unwrap_or(Offset::ZERO)
    }

    /// Whether retention may take what lies before this offset: nobody protected still has to read it.
    pub(super) fn may_expire(&self, end: Offset) -> bool {
        end <= self.unread_from()
    }

    /// Whether a full disk may take what lies before this offset.
    pub(super) fn may_give_way(&self, end: Offset) -> bool {
        match self.config.as_ref().map(|config| config.full_policy) {
            Some(FullPolicy::DropOldest) => true,
            Some(FullPolicy::ProtectUnread) => self.may_expire(end),
            Some(FullPolicy::BlockProducer) | None => false,
        }
    }

    /// Bytes that are in no segment yet.
    pub(super) fn undestaged_bytes(&self) -> u64 {
        let waiting = self.log.tail.from(self.log.destaged_end()).filter(|place| place.direct.is_none());
        waiting.map(|place| u64::from(place.bytes)).sum()
    }

    /// Whether an extent of it may be written now: something durable is in the journal alone, and no other way of writing its
    /// segment is under way.
    pub(super) fn can_destage(&self) -> bool {
        let log = &self.log;
        let next = log.tail.from(log.destaged_end()).next();
        self.extent.is_none()
            && !self.removing
            && log.destaged_end() < log.durable_end()
            && next.is_some_and(|place| place.direct.is_none())
    }
}
