//! Reads: what is visible, where its bytes are, and who waits for more.
//!
//! Nothing at or above the high watermark is ever planned. A fetch that finds less than it asked for is parked on its
//! partitions and woken by the high watermark or by its deadline, never polled. One with a filter passes over batches
//! that it does not ask for, once each: it moves on as it waits, and says how far it came. Time look-ups live here too.

use super::input::{Fetch, FetchRow, RequestId};
use super::partition::Partition;
use super::{Effects, LookupPlan, LookupRow, Parked, ReadPlan, ReadRow, SegmentRead, Shard, Source};
use crate::limits::{FETCH_BYTES_MAX, PARKED_FETCHES_MAX, REQUEST_DEADLINE_MAX, ROWS_MAX, SLICES_MAX};
use crate::log::{Place, Segment};
use crate::time::{Instant, Now};
use corelog_wire::error::ErrorCode;
use corelog_wire::frame::Kind;
use corelog_wire::ids::{LeaderEpoch, Offset, TopicPartition};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{Answer, At, ListOffsetsAnswer, ListOffsetsRow, ListedRow, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A fetch that waits for records.
#[derive(Debug)]
pub(super) struct ParkedFetch {
    fetch: Fetch,
    deadline: Instant,
}

/// Batches in memory that a fetch with a filter passes over before it answers with how far it came.
const PASSED_MAX: usize = 16_384;

/// How long a fetch that would not wait does so for the commit of what was acknowledged before it came, while as many are
/// under way as may be.
const PROMISE_WAIT_MAX: Duration = Duration::from_millis(100);

/// Whether a fetch can be answered now.
enum Readiness {
    /// There is enough, or an error to tell.
    Ready,
    /// There is less than asked for.
    Waiting,
}

impl Shard {
    pub(super) fn fetch(&mut self, now: Now, mut fetch: Fetch, out: &mut Effects) {
        if fetch.rows.len() > ROWS_MAX || self.fetches.len() >= PARKED_FETCHES_MAX {
            let refusal = Refusal::new(ErrorCode::Throttled, "too many fetches are waiting; try again");
            out.answers.push((fetch.request, Answer::Refused { kind: Kind::Fetch, refusal }));
            return;
        }
        if self.draining {
            self.keep_promises(fetch.rows.iter().map(|row| row.tp), out);
        } else if self.hurry_promises(fetch.rows.iter().map(|row| row.tp), out) && fetch.wait_max.is_zero() {
            (fetch.wait_max, fetch.bytes_min) = (PROMISE_WAIT_MAX, 0);
        }
        let must_answer = fetch.wait_max.is_zero() || self.draining;
        if must_answer || matches!(readiness(&self.partitions, &mut fetch), Readiness::Ready) {
            out.reads.push(self.plan(&fetch));
            return;
        }
        let deadline = now.instant.after(fetch.wait_max.min(REQUEST_DEADLINE_MAX));
        for row in &fetch.rows {
            if let Some(partition) = self.partitions.get_mut(&row.tp) {
                partition.waiting.insert(fetch.request);
            }
        }
        self.deadlines.insert((deadline, fetch.request, Parked::Fetch));
        self.fetches.insert(fetch.request, ParkedFetch { fetch, deadline });
    }

    /// A fetch must be answered with what there is.
    pub(super) fn fetch_due(&mut self, request: RequestId, out: &mut Effects) {
        if let Some(fetch) = self.unpark_fetch(request) {
            self.keep_promises(fetch.rows.iter().map(|row| row.tp), out);
            out.reads.push(self.plan(&fetch));
        }
    }

    /// What is visible of a partition changed: fetches that have enough now are answered.
    pub(super) fn wake_fetches(&mut self, tp: TopicPartition, out: &mut Effects) {
        let Some(partition) = self.partitions.get(&tp) else { return };
        if partition.waiting.is_empty() {
            return;
        }
        let ready: Vec<RequestId> = partition
            .waiting
            .iter()
            .copied()
            .filter(|request| {
                self.fetches.get_mut(request).is_none_or(|parked| {
                    matches!(readiness(&self.partitions, &mut parked.fetch), Readiness::Ready)
                })
            })
            .collect();
        for fetch in ready.into_iter().filter_map(|request| self.unpark_fetch(request)).collect::<Vec<_>>() {
            out.reads.push(self.plan(&fetch));
        }
    }

    /// Answers every parked fetch with what there is.
    pub(super) fn answer_all_fetches(&mut self, out: &mut Effects) {
        let parked: Vec<RequestId> = self.fetches.keys().copied().collect();
        for request in parked {
            self.fetch_due(request, out);
        }
    }

    pub(super) fn unpark_fetch(&mut self, request: RequestId) -> Option<Fetch> {
        let parked = self.fetches.remove(&request)?;
        self.deadlines.remove(&(parked.deadline, request, Parked::Fetch));
        for row in &parked.fetch.rows {
            if let Some(partition) = self.partitions.get_mut(&row.tp) {
                partition.waiting.remove(&request);
            }
        }
        Some(parked.fetch)
    }

    /// Answers a request for offsets; what only a segment knows is left to the hands.
    pub(super) fn list_offsets(&mut self, request: RequestId, rows: &[ListOffsetsRow], out: &mut Effects) {
        let rows = &rows[..rows.len().min(ROWS_MAX)];
        self.keep_promises(rows.iter().map(|row| row.tp), out);
        let rows: Vec<LookupRow> = rows.iter().map(|row| self.look_up(row)).collect();
        let known: Option<Vec<ListedRow>> = rows
            .iter()
            .map(|row| match row {
                LookupRow::Known(row) => Some(row.clone()),
                LookupRow::Scan { .. } => None,
            })
            .collect();
        match known {
            Some(rows) => out.answers.push((request, Answer::ListOffsets(ListOffsetsAnswer { rows }))),
            None => out.lookups.push(LookupPlan { request, rows }),
        }
    }

    fn plan(&self, fetch: &Fetch) -> ReadPlan {
        let mut left = u64::from(fetch.bytes_max.min(FETCH_BYTES_MAX));
        let mut any = false;
        let mut sight = Sight::of(&fetch.filter);
        let mut rows = Vec::with_capacity(fetch.rows.len());
        for row in &fetch.rows {
            let planned = match readable(&self.partitions, row) {
                Ok(partition) => {
                    let bytes_max = left.min(u64::from(row.bytes_max));
                    let (source, next) = if any && left == 0 {
                        (Source::Nothing, row.offset)
                    } else {
                        source(partition, row.offset, bytes_max, any, &mut sight)
                    };
                    let taken = planned_bytes(&source, bytes_max);
                    any |= taken > 0;
                    left = left.saturating_sub(taken);
                    let next_offset = (!fetch.filter.is_all()).then_some(next);
                    ReadRow { next_offset, ..read_row(partition, ErrorCode::None, source) }
                }
                Err(error) => match self.partitions.get(&row.tp) {
                    Some(partition) => read_row(partition, error, Source::Nothing),
                    None => missing_row(row.tp, error),
                },
            };
            rows.push(planned);
        }
        ReadPlan { request: fetch.request, rows, filter: fetch.filter.clone() }
    }

    fn look_up(&self, row: &ListOffsetsRow) -> LookupRow {
        let Some(partition) = self.partitions.get(&row.tp) else {
            return LookupRow::Known(listed(row.tp, ErrorCode::UnknownPartition, Offset::ZERO, -1, None));
        };
        let Some(epoch) = partition.epoch else {
            return LookupRow::Known(listed(row.tp, ErrorCode::NotLeader, Offset::ZERO, -1, None));
        };
        let known = |offset, timestamp_ms| {
            LookupRow::Known(listed(row.tp, ErrorCode::None, offset, timestamp_ms, Some(epoch)))
        };
        match row.at {
            At::Earliest => known(partition.log.log_start(), -1),
            At::Latest => known(partition.high_watermark(), -1),
            At::Timestamp(timestamp_ms) => {
                let (offset, found_ms) = in_memory_at(partition, timestamp_ms);
                let otherwise = listed(row.tp, ErrorCode::None, offset, found_ms, Some(epoch));
                let reads = segments_to_scan(partition, timestamp_ms);
                if reads.is_empty() {
                    LookupRow::Known(otherwise)
                } else {
                    LookupRow::Scan { reads, timestamp_ms, otherwise }
                }
            }
        }
    }
}

/// A filter, and how many more batches may be passed over.
struct Sight<'fetch> {
    filter: &'fetch TagFilter,
    left: usize,
}

impl<'fetch> Sight<'fetch> {
    const fn of(filter: &'fetch TagFilter) -> Self {
        Self { filter, left: PASSED_MAX }
    }

    /// Whether a batch is asked for; none if no more may be passed over.
    fn asks_for(&mut self, place: &Place) -> Option<bool> {
        let asked = self.filter.asks_for(place.tag_bloom);
        if !asked {
            self.left = self.left.checked_sub(1)?;
        }
        Some(asked)
    }
}

/// Whether a fetch can be answered now. Its rows move past batches that are not asked for.
fn readiness(partitions: &BTreeMap<TopicPartition, Partition>, fetch: &mut Fetch) -> Readiness {
    let promised = |row: &FetchRow| partitions.get(&row.tp).is_some_and(Partition::has_promised_more);
    if fetch.rows.iter().any(promised) {
        return Readiness::Waiting;
    }
    let mut bytes = 0u64;
    let mut sight = Sight::of(&fetch.filter);
    for row in &mut fetch.rows {
        let Ok(partition) = readable(partitions, row) else { return Readiness::Ready };
        let visible_end = partition.high_watermark();
        if row.offset >= visible_end {
            continue;
        }
        if partition.log.tail.start().is_none_or(|start| row.offset < start) {
            return Readiness::Ready;
        }
        let mut found = false;
        for place in partition.log.tail.from(row.offset) {
            if place.end > visible_end {
                break;
            }
            match sight.asks_for(place) {
                None => return Readiness::Ready,
                Some(false) if found && !cfg!(mutant = "fetch_moves_past_a_match") => {}
                Some(false) => row.offset = place.end,
                Some(true) => {
                    found = true;
                    bytes += u64::from(place.bytes);
                    if bytes >= u64::from(fetch.bytes_min) {
                        return Readiness::Ready;
                    }
                }
            }
        }
    }
    if fetch.bytes_min == 0 { Readiness::Ready } else { Readiness::Waiting }
}

/// The partition of a row, if it may be read from the offset asked.
fn readable<'shard>(
    partitions: &'shard BTreeMap<TopicPartition, Partition>,
    row: &FetchRow,
) -> Result<&'shard Partition, ErrorCode> {
    let partition = partitions.get(&row.tp).ok_or(ErrorCode::UnknownPartition)?;
    let epoch = partition.epoch.ok_or(ErrorCode::NotLeader)?;
    match row.leader_epoch {
        Some(asked) if asked < epoch => return Err(ErrorCode::FencedEpoch),
        Some(asked) if asked > epoch => return Err(ErrorCode::NotLeader),
        _ => {}
    }
    if row.offset < partition.log.log_start() || row.offset > partition.log.end() {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    // Only damage to the journal takes what was durable out of memory before it was in a segment.
    if (partition.log.held_end()..partition.log.durable_end()).contains(&row.offset) {
        return Err(ErrorCode::CorruptBatch);
    }
    Ok(partition)
}

/// Where the bytes from `offset` on are, and where to go on behind them. `later` rows may stay empty rather than exceed
/// `bytes_max`.
fn source(
    partition: &Partition,
    offset: Offset,
    bytes_max: u64,
    later: bool,
    sight: &mut Sight<'_>,
) -> (Source, Offset) {
    let visible_end = partition.high_watermark();
    if offset >= visible_end {
        return (Source::Nothing, offset);
    }
    if partition.log.tail.start().is_some_and(|start| start <= offset) {
        let mut slices = Vec::new();
        let (mut bytes, mut next) = (0, offset);
        for place in partition.log.tail.from(offset).take_while(|place| place.end <= visible_end) {
            match sight.asks_for(place) {
                None => break,
                Some(false) => {}
                Some(true) => {
                    bytes += u64::from(place.bytes);
                    let fits = bytes <= bytes_max || (slices.is_empty() && !later);
                    if !fits || slices.len() >= SLICES_MAX {
                        break;
                    }
                    slices.push(place.slice());
                }
            }
            next = place.end;
        }
        return (Source::Tail(slices), next);
    }
    let source = partition.log.segments.holding(offset).map_or(Source::Nothing, |segment| {
        let until = segment.proven_end.min(visible_end);
        Source::Segment(segment_read(partition, segment, offset, until, bytes_max))
    });
    (source, offset)
}

fn segment_read(
    partition: &Partition,
    segment: &Segment,
    from: Offset,
    until: Offset,
    bytes_max: u64,
) -> SegmentRead {
    SegmentRead {
        segment: segment.id(partition.tp()),
        start: segment.start_for(from),
        file_end: segment.file_end,
        from,
        until,
        bytes_max: u32::try_from(bytes_max).unwrap_or(u32::MAX),
    }
}

/// An upper bound of what a source sends, to share the request's bytes among its rows.
fn planned_bytes(source: &Source, bytes_max: u64) -> u64 {
    match source {
        Source::Nothing => 0,
        Source::Tail(slices) => slices.iter().map(|slice| u64::from(slice.bytes)).sum(),
        Source::Segment(read) => (read.file_end).min(bytes_max),
    }
}

/// The first visible batch in memory with records at or after a time, else the high watermark.
fn in_memory_at(partition: &Partition, timestamp_ms: i64) -> (Offset, i64) {
    let visible_end = partition.high_watermark();
    let Some(start) = partition.log.tail.start() else { return (visible_end, -1) };
    partition
        .log
        .tail
        .from(start.max(partition.log.log_start()))
        .take_while(|place| place.end <= visible_end)
        .find(|place| place.max_timestamp_ms >= timestamp_ms)
        .map_or((visible_end, -1), |place| (place.base, place.max_timestamp_ms))
}

/// The oldest segment that holds such a record outside memory. What a segment knows of its times includes records below
/// the log start, so the one that lost some may have none left: then the next one is named too.
fn segments_to_scan(partition: &Partition, timestamp_ms: i64) -> Vec<SegmentRead> {
    let log = &partition.log;
    let in_memory = log.tail.start().unwrap_or(log.end());
    let mut reads = Vec::new();
    for segment in log.segments.iter().filter(|segment| segment.max_timestamp_ms >= timestamp_ms) {
        let from = segment.base.max(log.log_start());
        let until = segment.proven_end.min(partition.high_watermark());
        if from >= in_memory {
            break;
        }
        if from < until {
            reads.push(segment_read(partition, segment, from, until, u64::from(u32::MAX)));
        }
        if segment.base >= log.log_start() {
            break;
        }
    }
    reads
}

fn read_row(partition: &Partition, error: ErrorCode, source: Source) -> ReadRow {
    ReadRow {
        tp: partition.tp(),
        error,
        high_watermark: partition.high_watermark(),
        log_start: partition.log.log_start(),
        log_end: partition.log.end(),
        leader_epoch: partition.epoch.unwrap_or(LeaderEpoch::new(0)),
        next_offset: None,
        source,
    }
}

fn missing_row(tp: TopicPartition, error: ErrorCode) -> ReadRow {
    ReadRow {
        tp,
        error,
        high_watermark: Offset::ZERO,
        log_start: Offset::ZERO,
        log_end: Offset::ZERO,
        leader_epoch: LeaderEpoch::new(0),
        next_offset: None,
        source: Source::Nothing,
    }
}

fn listed(
    tp: TopicPartition,
    error: ErrorCode,
    offset: Offset,
    timestamp_ms: i64,
    epoch: Option<LeaderEpoch>,
) -> ListedRow {
    ListedRow { tp, error, offset, timestamp_ms, leader_epoch: epoch.unwrap_or(LeaderEpoch::new(0)) }
}

/// The requests that wait on a partition that goes away.
pub(super) fn take_waiting_of(shard: &mut Shard, tp: TopicPartition) -> BTreeSet<RequestId> {
    shard.partitions.get_mut(&tp).map(|partition| std::mem::take(&mut partition.waiting)).unwrap_or_default()
}
