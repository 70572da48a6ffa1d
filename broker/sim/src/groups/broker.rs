//! The broker's side: the real coordinator, a store that checks claims, and logs.

use super::plan::Plan;
use crate::rng::Rng;
use bytes::{Bytes, BytesMut};
use corelog_core::group::{
    self, AskId, Coordinator, CoordinatorSettings, GroupEffect, GroupInput, GroupName, GroupReply, PageId,
    Question, StoredGroup, Topics,
};
use corelog_core::time::{Instant, Now};
use corelog_wire::batch::{BatchFields, BatchLimits, CheckedBatch, STAMP_BYTES, Stamp};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Kind;
use corelog_wire::ids::{BrokerId, LeaderEpoch, Offset, ShardId, TopicId, TopicPartition};
use corelog_wire::message::{
    Answer, FetchAnswer, FetchRequest, FetchedRow, ListOffsetsAnswer, ListedRow, MetadataAnswer,
    MetadataBroker, MetadataPartition, MetadataRequest, MetadataTopic, Request,
};
use corelog_wire::records::RecordsBuilder;
use std::collections::BTreeMap;
use std::time::Duration;

/// Records of one log.
pub(super) const RECORDS_MAX: u64 = 60;

/// What the coordinator wants done.
pub(super) enum Wish {
    Read,
    Write(Box<Change>),
    Reply(AskId, Answer),
}

/// A change on its way to the store.
pub(super) struct Change {
    claim: u64,
    becomes: group::Change,
    pages: BTreeMap<PageId, BTreeMap<u32, group::Committed>>,
}

/// Committed offsets that changed.
pub(super) type Offsets = Vec<(TopicPartition, u64, Option<u64>)>;

#[derive(Default)]
struct Log {
    end: u64,
    batches: Vec<(u64, u64, Bytes)>,
}

pub(super) struct Broker {
    rng: Rng,
    coordinator: Coordinator,
    life: u64,
    /// What this life holds of the group.
    claim: u64,
    /// The claim that the store goes by.
    claimed: u64,
    stored: Option<StoredGroup>,
    kinds: BTreeMap<AskId, Kind>,
    topics: Topics,
    logs: BTreeMap<TopicPartition, Log>,
}

pub(super) fn name() -> GroupName {
    GroupName::new("readers").unwrap_or_else(|_| unreachable!("a legal name"))
}

fn settings() -> CoordinatorSettings {
    let hour = Duration::from_hours(1);
    CoordinatorSettings { offset_interval: Duration::from_millis(10), offsets_retention: hour }
}

fn moment(now_ms: u64) -> Now {
    let wall_ms = 1_700_000_000_000 + i64::try_from(now_ms).unwrap_or(0);
    Now { instant: Instant::from_nanos(now_ms * 1_000_000), wall_ms }
}

impl Broker {
    pub(super) fn new(plan: &Plan, rng: Rng) -> Self {
        let mut topics = Topics::new();
        for (number, &partitions) in (0_u8..).zip(&plan.topics) {
            topics.insert(format!("t{number}"), (TopicId::from_bytes([number + 1; 16]), partitions));
        }
        let mut broker = Self {
            rng,
            coordinator: Coordinator::new(topics.clone(), settings()),
            life: 1,
            claim: 0,
            claimed: 0,
            stored: None,
            kinds: BTreeMap::new(),
            topics,
            logs: BTreeMap::new(),
        };
        broker.open_logs();
        broker
    }

    fn open_logs(&mut self) {
        for (id, partitions) in self.topics.values() {
            for partition in 0..*partitions {
                self.logs.entry(TopicPartition::new(*id, partition)).or_default();
            }
        }
    }

    pub(super) fn life(&self) -> u64 {
        self.life
    }

    pub(super) fn partitions(&self) -> u64 {
        self.logs.len() as u64
    }

    pub(super) fn ends(&self) -> impl Iterator<Item = (TopicPartition, u64)> {
        self.logs.iter().map(|(tp, log)| (*tp, log.end))
    }

    pub(super) fn committed(&self, tp: TopicPartition) -> Option<u64> {
        let committed = self.stored.as_ref()?.offsets.get(&tp)?;
        Some(committed.offset.get())
    }

    /// Another coordinator takes over: it claims the group and reads it.
    pub(super) fn restart(&mut self, now: u64) -> Vec<Wish> {
        self.life += 1;
        self.kinds.clear();
        self.coordinator = Coordinator::new(self.topics.clone(), settings());
        self.load(now)
    }

    fn load(&mut self, now: u64) -> Vec<Wish> {
        self.claimed += 1;
        self.claim = self.claimed;
        let stored = self.stored.clone();
        self.step(now, GroupInput::Loaded { group: name(), stored })
    }

    pub(super) fn read(&mut self, life: u64, now: u64) -> Vec<Wish> {
        if life == self.life { self.load(now) } else { Vec::new() }
    }

    pub(super) fn written(&mut self, life: u64, done: bool, now: u64) -> Vec<Wish> {
        if life == self.life {
            self.step(now, GroupInput::Stored { group: name(), done })
        } else {
            Vec::new()
        }
    }

    pub(super) fn tick(&mut self, now: u64) -> Vec<Wish> {
        if self.coordinator.next_tick().is_some_and(|due| due <= moment(now).instant) {
            return self.step(now, GroupInput::Tick);
        }
        Vec::new()
    }

    pub(super) fn grow(&mut self, now: u64) -> Vec<Wish> {
        let names: Vec<String> = self.topics.keys().cloned().collect();
        let place = self.rng.below(names.len() as u64) as usize;
        if let Some((_, partitions)) = self.topics.get_mut(&names[place]) {
            *partitions += 1;
        }
        self.open_logs();
        self.step(now, GroupInput::Topics(self.topics.clone()))
    }

    pub(super) fn ask(&mut self, ask_id: AskId, request: Request, now: u64) -> Vec<Wish> {
        let kind = request.kind();
        match Question::of(request) {
            Ok(Question { group, ask }) => {
                self.kinds.insert(ask_id, kind);
                self.step(now, GroupInput::Ask { ask_id, group, ask })
            }
            Err(refusal) => vec![Wish::Reply(ask_id, Answer::Refused { kind, refusal })],
        }
    }

    fn step(&mut self, now: u64, input: GroupInput) -> Vec<Wish> {
        let mut effects = Vec::new();
        self.coordinator.step(moment(now), input, &mut effects);
        if let Some((membership, _)) = self.coordinator.group(&name()) {
            assert_eq!(membership.broken_invariant(), None);
        }
        effects.into_iter().filter_map(|effect| self.wish(effect)).collect()
    }

    fn wish(&mut self, effect: GroupEffect) -> Option<Wish> {
        Some(match effect {
            GroupEffect::Load { .. } => Wish::Read,
            // No shard removes records here.
            GroupEffect::WentBack { .. } => return None,
            GroupEffect::Store { change, pages, .. } => {
                Wish::Write(Box::new(Change { claim: self.claim, becomes: change, pages }))
            }
            GroupEffect::Reply { ask_id, reply } => {
                let kind = self.kinds.remove(&ask_id)?;
                Wish::Reply(ask_id, self.words(kind, reply))
            }
        })
    }

    fn words(&self, kind: Kind, reply: GroupReply) -> Answer {
        let answer = group::answer(kind, reply, self.coordinator.topics(), u64::MAX);
        // As it is read at the other end.
        Answer::decode(kind, &answer.encode()).unwrap_or(answer)
    }

    /// The store takes a change if its claim still holds. Gives what it did to offsets.
    pub(super) fn apply(&mut self, change: Change, lucky: bool) -> (bool, Option<Offsets>) {
        if !lucky || change.claim != self.claimed {
            return (false, None);
        }
        let mut stored = self.stored.take().unwrap_or_default();
        let mut offsets = Vec::new();
        for (page, rows) in change.pages {
            let before: BTreeMap<TopicPartition, u64> = stored
                .offsets
                .iter()
                .filter(|(tp, _)| PageId::of(**tp) == page)
                .map(|(tp, committed)| (*tp, committed.offset.get()))
                .collect();
            stored.offsets.retain(|tp, _| PageId::of(*tp) != page);
            for (partition, committed) in rows {
                let tp = TopicPartition::new(page.topic, partition);
                let was = before.get(&tp).copied();
                if was != Some(committed.offset.get()) {
                    offsets.push((tp, committed.offset.get(), was));
                }
                stored.offsets.insert(tp, committed);
            }
        }
        match change.becomes {
            group::Change::Keep => self.stored = Some(stored),
            group::Change::Put(membership) => self.stored = Some(StoredGroup { membership, ..stored }),
            group::Change::Delete => {}
        }
        (true, Some(offsets))
    }

    /// Records come, to some partitions more than to others.
    pub(super) fn append(&mut self) {
        let tps: Vec<TopicPartition> = self.logs.keys().copied().collect();
        for _ in 0..=tps.len() / 40 {
            let tp = self.rng.pick(&tps);
            let records = 1 + self.rng.below(3);
            let Some(log) = self.logs.get_mut(&tp).filter(|log| log.end < RECORDS_MAX) else { continue };
            let bytes = stored_batch(tp, log.end, records);
            log.batches.push((log.end, log.end + records, bytes));
            log.end += records;
        }
    }

    /// What needs no coordinator: the answer, its payload, and how long it is held.
    pub(super) fn answer(&self, request: &Request) -> Option<(Answer, Bytes, u64)> {
        let at_once = |answer| Some((answer, Bytes::new(), 0));
        match request {
            Request::Metadata(request) => at_once(Answer::Metadata(self.metadata(request))),
            Request::ListOffsets(request) => {
                let row = |row: &corelog_wire::message::ListOffsetsRow| ListedRow {
                    tp: row.tp,
                    error: ErrorCode::None,
                    offset: Offset::ZERO,
                    timestamp_ms: -1,
                    leader_epoch: LeaderEpoch::new(1),
                };
                at_once(Answer::ListOffsets(ListOffsetsAnswer {
                    rows: request.rows.iter().map(row).collect(),
                }))
            }
            Request::Fetch(request) => {
                let (answer, payload) = self.fetch(request);
                let wait = if payload.is_empty() { u64::from(request.max_wait_ms).min(100) } else { 0 };
                Some((Answer::Fetch(answer), payload, wait))
            }
            _ => None,
        }
    }

    fn metadata(&self, request: &MetadataRequest) -> MetadataAnswer {
        let names = request.topics.clone().unwrap_or_default();
        let partition = |partition| MetadataPartition {
            partition,
            leader: Some(BrokerId::new(1)),
            leader_epoch: LeaderEpoch::new(1),
            shard: ShardId::new(0),
            replicas: vec![BrokerId::new(1)],
            in_sync_replicas: vec![BrokerId::new(1)],
        };
        let topic = |name: String| match self.topics.get(&name) {
            Some((id, partitions)) => MetadataTopic {
                error: ErrorCode::None,
                name,
                id: *id,
                partitions: (0..*partitions).map(partition).collect(),
            },
            None => MetadataTopic {
                error: ErrorCode::UnknownTopic,
                name,
                id: TopicId::from_bytes([0; 16]),
                partitions: Vec::new(),
            },
        };
        MetadataAnswer {
            brokers: vec![MetadataBroker { id: BrokerId::new(1), address: "b:1".to_owned() }],
            topics: names.into_iter().map(topic).collect(),
            revision: 1,
        }
    }

    fn fetch(&self, request: &FetchRequest) -> (FetchAnswer, Bytes) {
        let mut payload = BytesMut::new();
        let row = |row: &corelog_wire::message::FetchRow| {
            let first = payload.len();
            let log = self.logs.get(&row.tp);
            let end = log.map_or(0, |log| log.end);
            // Few at a time, so that a member is often in the middle of a log.
            let wanted =
                log.into_iter().flat_map(|log| &log.batches).filter(|batch| batch.1 > row.offset.get());
            wanted.take(4).for_each(|batch| payload.extend_from_slice(&batch.2));
            FetchedRow {
                tp: row.tp,
                error: if log.is_some() { ErrorCode::None } else { ErrorCode::UnknownPartition },
                message: String::new(),
                high_watermark: Offset::new(end),
                log_start: Offset::ZERO,
                log_end: Offset::new(end),
                leader_epoch: LeaderEpoch::new(1),
                first_byte: if payload.len() == first { 0 } else { first as u32 },
                bytes: (payload.len() - first) as u32,
                next_offset: None,
            }
        };
        let rows = request.rows.iter().map(row).collect();
        (FetchAnswer { throttle_ms: 0, rows }, payload.freeze())
    }
}

/// A batch as a leader has stored it.
fn stored_batch(tp: TopicPartition, base: u64, records: u64) -> Bytes {
    let mut builder = RecordsBuilder::with_capacity(64);
    for record in 0..records {
        let value = (base + record).to_le_bytes();
        let pushed = builder.push(record as u32, 0, None, Some(&value), &[]);
        pushed.unwrap_or_else(|error| unreachable!("a small record: {error}"));
    }
    let sealed = builder.into_batch(&BatchFields::plain(1, 0), tp);
    let limits = BatchLimits { batch_bytes_max: 1 << 20 };
    let batch = CheckedBatch::check(sealed.to_vec().into(), tp, &limits);
    let batch = batch.unwrap_or_else(|error| unreachable!("a batch of our own: {error}"));
    let stamp =
        Stamp { base_offset: Offset::new(base), append_timestamp_ms: 7, leader_epoch: LeaderEpoch::new(1) };
    let mut stamped = BytesMut::from(&stamp.encode(batch.header().header_crc)[..]);
    stamped.extend_from_slice(&batch.bytes()[STAMP_BYTES..]);
    stamped.freeze()
}
