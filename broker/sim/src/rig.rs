//! One shard on one disk, moved by hand: for scenarios in which every step is chosen.
//!
//! Where `sim` draws what happens, a test decides it here: which disk operation completes next, when the power goes.
//! No clients, no network, no checker; a test states what must hold.

use crate::disk::{CutStyle, Disk, OpId, Weather};
use crate::hands::{Hands, Reply, Tools};
use crate::rng::Rng;
use crate::shadow::Shadow;
use crate::trace::Trace;
use crate::world::{MILLIS, SECONDS};
use bytes::Bytes;
use corelog_core::journal::Position;
use corelog_core::recovery::Report;
use corelog_core::shard::{Fetch, FetchRow, Input, Note, Produce, ProduceRow, RequestId, ShardConfig};
use corelog_core::time::{Instant, Now};
use corelog_core::topic::{TopicConfig, TopicOverrides};
use corelog_wire::batch::{BatchFields, BatchLimits, BodyCheck, CheckedBatch, StoredBatches};
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{
    LeaderEpoch, Offset, ProducerEpoch, ProducerId, Sequence, ShardId, TopicId, TopicPartition,
};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{Acks, Answer, ProducedRow};
use corelog_wire::records::RecordsBuilder;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Wall clock at the start.
const WALL_START_MS: i64 = 1_767_225_600_000;

/// One shard, its hands and its disk.
pub struct Rig {
    /// The disk, to be looked at and mistreated.
    pub disk: Disk,
    /// Settings of every partition.
    pub topic: TopicConfig,
    config: ShardConfig,
    trace: Trace,
    now: u64,
    ops: BTreeSet<(u64, OpId)>,
    hands: Option<Hands>,
    shadow: Shadow,
    epoch: u32,
    partitions: Vec<TopicPartition>,
    requests: u64,
    replies: BTreeMap<RequestId, Reply>,
    notes: Vec<Note>,
}

impl Rig {
    /// A formatted shard with a ring of this size and `partitions` partitions, started.
    #[must_use]
    pub fn new(seed: u64, ring_bytes: u64, partitions: u32) -> Self {
        let none = TopicOverrides::default();
        let mut topic = TopicConfig::resolve(&none, &none, 1);
        topic.segment_bytes = 64 << 10;
        topic.retention_ms = None;
        let config = ShardConfig {
            shard: ShardId::new(0),
            ring_bytes,
            tail_cache_bytes: 0,
            disk_bytes_max: 64 << 20,
            recycled_bytes_max: 8 << 20,
            prewrite: false,
        };
        let id = TopicId::from_bytes([7; 16]);
        let mut rig = Self {
            disk: Disk::new(Rng::new(seed), 4096, 256 << 20, Weather::default()),
            topic,
            config,
            trace: Trace::new(false),
            now: 0,
            ops: BTreeSet::new(),
            hands: None,
            shadow: Shadow::new(ring_bytes),
            epoch: 0,
            partitions: (0..partitions).map(|partition| TopicPartition::new(id, partition)).collect(),
            requests: 0,
            replies: BTreeMap::new(),
            notes: Vec::new(),
        };
        Hands::format(&config, &mut Tools { disk: &mut rig.disk, trace: &mut rig.trace, now: 0 });
        rig.disk.take_scheduled();
        let report = rig.boot();
        assert_eq!(report.partitions, 0, "a new shard is empty");
        rig
    }

    /// The shard's disk budget from its next start on.
    pub fn set_budget(&mut self, bytes: u64) {
        self.config.disk_bytes_max = bytes;
    }

    /// A partition.
    #[must_use]
    pub fn tp(&self, partition: usize) -> TopicPartition {
        self.partitions[partition]
    }

    /// The running hands.
    #[must_use]
    pub fn hands(&self) -> &Hands {
        let Some(hands) = &self.hands else { panic!("the shard is not running") };
        hands
    }

    /// Starts the shard to its end; every partition is led in a new epoch.
    pub fn boot(&mut self) -> Report {
        match self.boot_steps(usize::MAX) {
            Some(report) => report,
            None => panic!("the start does not come to an end"),
        }
    }

    /// Starts the shard and completes at most `steps` disk operations of it. `None`: it is not ready then, and down.
    pub fn boot_steps(&mut self, steps: usize) -> Option<Report> {
        let shadow = std::mem::replace(&mut self.shadow, Shadow::new(self.config.ring_bytes));
        let mut tools = Tools { disk: &mut self.disk, trace: &mut self.trace, now: self.now };
        let booted = Hands::boot(self.config, 16 << 10, shadow, &mut tools);
        let mut booted = match booted {
            Ok(booted) => booted,
            Err((fault, _)) => panic!("the shard refuses to start: {fault:?}"),
        };
        let snapshot = booted.hands().shard().snapshot();
        if !snapshot.read_only {
            booted.shadow_mut().cut(Position::new(snapshot.journal_head));
        }
        for _ in 0..steps {
            if booted.is_ready() {
                break;
            }
            let Some((op, result)) = self.next_completion() else { break };
            let mut tools = Tools { disk: &mut self.disk, trace: &mut self.trace, now: self.now };
            let done = booted.completed(op, &result, &mut tools);
            assert!(done.is_ok(), "the start fails");
        }
        if !booted.is_ready() {
            self.shadow = booted.into_shadow();
            return None;
        }
        let report = booted.report;
        let mut hands = booted.into_hands();
        hands.session_started();
        self.hands = Some(hands);
        self.epoch += 1;
        self.lead();
        Some(report)
    }

    fn lead(&mut self) {
        for tp in self.partitions.clone() {
            let (epoch, config) = (LeaderEpoch::new(self.epoch), self.topic.clone());
            self.tell(Input::Lead { tp, epoch, config });
        }
        self.turn();
    }

    /// Gives every partition the settings of `topic`.
    pub fn configure(&mut self) {
        for tp in self.partitions.clone() {
            let config = self.topic.clone();
            self.tell(Input::Configure { tp, config });
        }
        self.turn();
    }

    /// Queues an input.
    pub fn tell(&mut self, input: Input) {
        if let Some(hands) = &mut self.hands {
            hands.tell(input);
        }
    }

    /// Runs the pump until it has no inputs.
    pub fn turn(&mut self) {
        let now = Now {
            instant: Instant::from_nanos(self.now),
            wall_ms: WALL_START_MS + (self.now / MILLIS).cast_signed(),
        };
        let Some(hands) = &mut self.hands else { return };
        loop {
            let mut tools = Tools { disk: &mut self.disk, trace: &mut self.trace, now: self.now };
            hands.turn(now, 16, &mut tools);
            if !hands.has_inputs() {
                break;
            }
        }
        for reply in hands.take_replies() {
            self.replies.insert(reply.request, reply);
        }
        self.notes.extend(hands.take_notes());
        assert_eq!(hands.shard().broken_invariant(), None);
    }

    /// Operations under way, in the order in which they were issued.
    pub fn under_way(&mut self) -> Vec<OpId> {
        self.gather();
        let mut ops: Vec<OpId> = self.ops.iter().map(|(_, op)| *op).collect();
        ops.sort_unstable();
        ops
    }

    fn gather(&mut self) {
        for (op, at) in self.disk.take_scheduled() {
            self.ops.insert((at, op));
        }
    }

    fn next_completion(&mut self) -> Option<(OpId, Result<Bytes, crate::disk::DiskError>)> {
        self.gather();
        while let Some((at, op)) = self.ops.pop_first() {
            self.now = self.now.max(at);
            if let Some(result) = self.disk.complete(op, &mut self.trace) {
                return Some((op, result));
            }
        }
        None
    }

    /// Completes this operation now, whatever its turn; the shard hears of it at the next turn.
    pub fn complete(&mut self, op: OpId) {
        self.gather();
        self.ops.retain(|(_, other)| *other != op);
        let result = self.disk.complete(op, &mut self.trace);
        let mut tools = Tools { disk: &mut self.disk, trace: &mut self.trace, now: self.now };
        if let (Some(hands), Some(result)) = (&mut self.hands, result) {
            hands.completed(op, result, &mut tools);
        }
    }

    /// Completes the operation that is due next; the shard hears of it at the next turn. `false`: nothing is under way.
    pub fn complete_next(&mut self) -> bool {
        let Some((op, result)) = self.next_completion() else { return false };
        let mut tools = Tools { disk: &mut self.disk, trace: &mut self.trace, now: self.now };
        if let Some(hands) = &mut self.hands {
            hands.completed(op, result, &mut tools);
        }
        true
    }

    /// Goes on until nothing is under way.
    pub fn settle(&mut self) {
        self.turn();
        while self.complete_next() {
            self.turn();
        }
    }

    /// Lets virtual time pass, with everything that falls due.
    pub fn wait(&mut self, nanos: u64) {
        let end = self.now + nanos;
        self.settle();
        while self.now < end {
            let due = self.hands.as_ref().and_then(|hands| hands.shard().next_deadline());
            self.now = due.map_or(end, corelog_core::time::Instant::nanos).clamp(self.now + 1, end);
            self.tell(Input::Tick);
            self.settle();
        }
    }

    /// A sealed batch of an idempotent producer with one record.
    #[must_use]
    pub fn batch(&self, partition: usize, producer: i64, sequence: i32, value_bytes: usize) -> Bytes {
        let mut builder = RecordsBuilder::with_capacity(value_bytes + 64);
        let mut value = vec![0; value_bytes];
        Rng::new(producer.cast_unsigned() << 32 | u64::from(sequence.cast_unsigned())).fill(&mut value);
        let pushed = builder.push(0, 0, None, Some(&value), &[]);
        assert_eq!(pushed, Ok(()), "a record that cannot be written");
        let mut fields = BatchFields::plain(1, WALL_START_MS + (self.now / MILLIS).cast_signed());
        fields.producer_id = ProducerId::new(producer);
        fields.producer_epoch = ProducerEpoch::new(0);
        fields.base_sequence = Sequence::new(sequence);
        builder.into_batch(&fields, self.tp(partition))
    }

    /// Sends a batch; the shard has taken it when this returns.
    pub fn produce(&mut self, partition: usize, batch: &Bytes) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        let tp = self.tp(partition);
        let limits = BatchLimits { batch_bytes_max: corelog_core::limits::BATCH_BYTES_MAX };
        let checked = CheckedBatch::check(batch.clone(), tp, &limits);
        let rows = vec![ProduceRow { tp, batch: checked.map_err(|error| (error.code(), error.to_string())) }];
        let deadline = Duration::from_secs(30);
        self.tell(Input::Produce(Produce { request, acks: Acks::All, deadline, rows }));
        self.turn();
        request
    }

    /// What became of a batch, if that is known.
    pub fn produced(&mut self, request: RequestId) -> Option<ProducedRow> {
        match &self.replies.get(&request)?.answer {
            Answer::Produce(answer) => answer.rows.first().cloned(),
            other => panic!("a produce request got {other:?}"),
        }
    }

    /// Sends a batch and goes on until nothing is under way. Gives its offset.
    ///
    /// # Errors
    /// The broker's refusal.
    pub fn append(
        &mut self,
        partition: usize,
        producer: i64,
        sequence: i32,
        bytes: usize,
    ) -> Result<u64, ErrorCode> {
        let batch = self.batch(partition, producer, sequence, bytes);
        let request = self.produce(partition, &batch);
        self.settle();
        let Some(row) = self.produced(request) else { return Err(ErrorCode::Deadline) };
        if row.error == ErrorCode::None { Ok(row.base_offset.get()) } else { Err(row.error) }
    }

    /// Reads a partition from `from` to its end: the base offset of each batch, all of one record.
    ///
    /// # Errors
    /// The first error.
    pub fn read(&mut self, partition: usize, from: u64) -> Result<Vec<u64>, ErrorCode> {
        let batches = self.read_batches(partition, from)?;
        let base = |batch: &CheckedBatch| batch.stamp().map_or(0, |stamp| stamp.base_offset.get());
        assert!(batches.iter().all(|batch| batch.header().last_offset_delta == 0), "batches of one record");
        Ok(batches.iter().map(base).collect())
    }

    /// Reads a partition from `from` to its end; no offset is missing.
    ///
    /// # Errors
    /// The first error.
    pub fn read_batches(&mut self, partition: usize, from: u64) -> Result<Vec<CheckedBatch>, ErrorCode> {
        let tp = self.tp(partition);
        let (mut next, mut batches) = (from, Vec::new());
        loop {
            self.requests += 1;
            let request = RequestId(self.requests);
            let row = FetchRow { tp, offset: Offset::new(next), bytes_max: 1 << 20, leader_epoch: None };
            let (wait_max, bytes_max) = (Duration::ZERO, 1 << 20);
            let (rows, filter) = (vec![row], TagFilter::ALL);
            self.tell(Input::Fetch(Fetch { request, wait_max, bytes_min: 1, bytes_max, rows, filter }));
            self.turn();
            while !self.replies.contains_key(&request) {
                assert!(self.complete_next(), "a fetch without an answer");
                self.turn();
            }
            let Some(reply) = self.replies.remove(&request) else { return Ok(batches) };
            let Answer::Fetch(answer) = &reply.answer else { panic!("a fetch got {:?}", reply.answer) };
            if answer.rows[0].error != ErrorCode::None {
                return Err(answer.rows[0].error);
            }
            if reply.payload.is_empty() {
                return Ok(batches);
            }
            for batch in StoredBatches::new(reply.payload, tp, BodyCheck::Verify) {
                let batch = match batch {
                    Ok(batch) => batch,
                    Err(error) => panic!("a batch behind {next}: {error}"),
                };
                let base = batch.stamp().map_or(0, |stamp| stamp.base_offset.get());
                assert!(base == next || batches.is_empty() && base < next, "a gap: {base} after {next}");
                next = base + u64::from(batch.header().last_offset_delta) + 1;
                batches.push(batch);
            }
        }
    }

    /// Lets virtual time pass at once: what is under way stays so.
    pub fn jump(&mut self, nanos: u64) {
        self.now += nanos;
        self.tell(Input::Tick);
        self.turn();
    }

    /// Wall clock, in milliseconds since 1970.
    #[must_use]
    pub const fn wall_ms(&self) -> i64 {
        WALL_START_MS + (self.now / MILLIS).cast_signed()
    }

    /// What the shard wanted an operator to read so far.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// The process is killed.
    pub fn kill(&mut self) {
        self.disk.kill();
        self.died();
    }

    /// The power goes.
    pub fn cut(&mut self, style: CutStyle) {
        self.disk.cut(style);
        self.died();
    }

    fn died(&mut self) {
        self.gather();
        self.ops.clear();
        self.replies.clear();
        if let Some(hands) = self.hands.take() {
            self.shadow = hands.into_shadow();
        }
        self.now += SECONDS;
    }
}
