//! One partition as its clients know it: which batch is at which offset, and what was visible when.
//!
//! Knowledge comes only from acknowledgements and reads; both are promises. Batches are recognised by a fingerprint of
//! everything after the stamp, so that a served batch is either exactly one that was sealed for this partition or
//! foreign. The stamp is parsed here from its bytes, not with the broker's code.

use super::{BatchId, Fate, Scene, Sent};
use bytes::Bytes;
use corelog_wire::error::ErrorCode;
use corelog_wire::ids::{Offset, TopicPartition};
use corelog_wire::keys::TagFilter;
use corelog_wire::message::{FetchedRow, ListedRow, ProducedRow};
use std::collections::BTreeMap;
use std::ops::Range;

/// How a reader goes on after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// There was something; the next offset, and how many batches were served.
    Advanced {
        /// The offset after the last record.
        next: u64,
        /// How many batches were served.
        batches: u64,
    },
    /// There was nothing.
    Nothing,
    /// The offset is not there any more; the log starts here.
    StartsAt(u64),
    /// The bytes are spoiled, and the reader was told or noticed.
    Damaged,
}

/// What must be readable of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readable {
    /// The log start may be up to here.
    pub start: u64,
    /// Everything below must be visible.
    pub end: u64,
}

#[derive(Clone, Copy, Debug)]
struct Placed {
    batch: BatchId,
    end: u64,
    epoch: u32,
    newest_ms: i64,
}

/// The batches of the run.
pub(super) struct Book<'a> {
    pub(super) batches: &'a mut Vec<Sent>,
    pub(super) by_fingerprint: &'a BTreeMap<(TopicPartition, u32, u32), BatchId>,
}

#[derive(Debug)]
pub(super) struct Partition {
    tp: TopicPartition,
    /// Acknowledged when in memory; a crash may take its end.
    pub(super) memory: bool,
    /// Its end was lost with an excuse, and what it knew of producers with it.
    pub(super) lost_tail: bool,
    placed: BTreeMap<u64, Placed>,
    /// The log start may be up to here: the broker said so.
    start_told: u64,
    /// The log start may not be below these from then on: a client was told so.
    starts_acknowledged: Vec<(u64, u64)>,
    /// Visible ends, by when they were known: acknowledged, read or named as the high watermark. Both rise.
    visible: Vec<(u64, u64)>,
    lanes: BTreeMap<(i64, i16), BTreeMap<i32, u64>>,
    /// Where readers were told that there is nothing they asked for.
    passed: Vec<(Range<u64>, TagFilter)>,
}

impl Partition {
    pub(super) const fn new(tp: TopicPartition, memory: bool) -> Self {
        Self {
            tp,
            memory,
            lost_tail: false,
            placed: BTreeMap::new(),
            start_told: 0,
            starts_acknowledged: Vec::new(),
            visible: Vec::new(),
            lanes: BTreeMap::new(),
            passed: Vec::new(),
        }
    }

    pub(super) fn acked(
        &mut self,
        id: BatchId,
        sent: &mut Sent,
        row: &ProducedRow,
        scene: &Scene,
    ) -> Result<(), String> {
        let base = row.base_offset.get();
        if let Some(known) = sent.base
            && known != base
            && sent.producer.is_some()
        {
            return Err(format!("P2: batch {id} is at {known} and was acknowledged at {base}"));
        }
        self.place(id, sent, base, None, scene.now)?;
        let end = base + u64::from(sent.records);
        if !self.memory && !row.durable {
            return Err(format!("batch {id} at {base} was acknowledged as not durable on a disk topic"));
        }
        self.now_visible(scene.now, end);
        Ok(())
    }

    /// A batch is known to be at an offset: does that agree with everything known before?
    fn place(
        &mut self,
        id: BatchId,
        sent: &mut Sent,
        base: u64,
        epoch: Option<u32>,
        now: u64,
    ) -> Result<(), String> {
        let tp = self.tp;
        let end = base + u64::from(sent.records);
        if let Some(known) = self.placed.get_mut(&base)
            && known.batch == id
        {
            match epoch {
                Some(epoch) if known.epoch != u32::MAX && known.epoch != epoch => {
                    return Err(format!("{tp}: batch {id} at {base} changed its epoch"));
                }
                Some(epoch) => known.epoch = epoch,
                None => {}
            }
            return Ok(());
        }
        if let Some((other, placed)) = self.placed.range(..end).next_back()
            && placed.end > base
        {
            return Err(format!(
                "O1: {tp} offset {base} is batch {id} (records {}), but {other}..{} is batch {}, at {now}",
                sent.records, placed.end, placed.batch
            ));
        }
        if sent.fate == Fate::Refused {
            return Err(format!("D6: {tp}: batch {id} was refused for good and is at {base}"));
        }
        // What is known now only may have been passed over before.
        if self
            .passed
            .iter()
            .any(|(passed, filter)| passed.contains(&base) && filter.asks_for(sent.tag_bloom))
        {
            return Err(format!("{tp}: batch {id} at {base} was asked for and passed over"));
        }
        sent.copies += 1;
        if sent.copies > sent.copies_max {
            return Err(format!("O2: {tp}: batch {id} is at {base} and at {:?}", sent.base));
        }
        // Another copy of the same batch is judged by its first sending.
        if let Some(before) = self.visible_before(sent.invoked)
            && base < before
        {
            return Err(format!(
                "O4: {tp}: batch {id} got {base}, though {before} was visible before it was sent"
            ));
        }
        sent.base = Some(base);
        let (epoch, newest_ms) = (epoch.unwrap_or(u32::MAX), sent.max_timestamp_ms);
        self.placed.insert(base, Placed { batch: id, end, epoch, newest_ms });
        self.in_sequence(id, sent, base)
    }

    /// O3: for one producer and epoch, sequence order is offset order.
    fn in_sequence(&mut self, id: BatchId, sent: &Sent, base: u64) -> Result<(), String> {
        let Some(producer) = sent.producer else { return Ok(()) };
        let lane = self.lanes.entry(producer).or_default();
        let before = lane.range(..sent.sequence).next_back();
        let after = lane.range(sent.sequence..).next();
        if before.is_some_and(|(_, at)| *at >= base) || after.is_some_and(|(_, at)| *at <= base) {
            return Err(format!(
                "O3: {}: batch {id} of producer {producer:?} with sequence {} is at {base}, between {before:?} and {after:?}",
                self.tp, sent.sequence
            ));
        }
        lane.insert(sent.sequence, base);
        Ok(())
    }

    pub(super) fn fetched(
        &mut self,
        book: Book<'_>,
        asked: (u64, &TagFilter),
        row: &FetchedRow,
        bytes: &Bytes,
        scene: &Scene,
    ) -> Result<Read, String> {
        let (tp, (from, filter)) = (self.tp, asked);
        let (start, end, visible_end) = (row.log_start.get(), row.log_end.get(), row.high_watermark.get());
        match row.error {
            ErrorCode::None => {}
            ErrorCode::OffsetOutOfRange => return self.out_of_range(from, row, scene),
            ErrorCode::CorruptBatch if scene.segments_damaged || scene.quarantined => {
                return Ok(Read::Damaged);
            }
            ErrorCode::CorruptBatch => {
                return Err(format!(
                    "{tp}: offset {from} is called corrupt ({}), but nothing was spoiled",
                    row.message
                ));
            }
            _ => return Ok(Read::Nothing),
        }
        if start > visible_end || visible_end > end {
            return Err(format!("{tp}: log start {start}, high watermark {visible_end}, log end {end}"));
        }
        self.marks(start, visible_end, scene)?;
        if row.next_offset.is_some() == filter.is_all() {
            return Err(format!("{tp}: {filter:?} was asked for, and {:?} answered", row.next_offset));
        }
        let passed = row.next_offset.map_or(from, Offset::get);
        if passed > visible_end.max(from) {
            return Err(format!("O6: {tp}: passed over {from}..{passed}, though {visible_end} is the end"));
        }
        if bytes.is_empty() && passed > from {
            self.pass_over(book.batches, from..passed, filter, scene)?;
            self.now_visible(scene.now, visible_end);
            return Ok(Read::Advanced { next: passed, batches: 0 });
        }
        if bytes.is_empty() {
            if from < visible_end && !scene.quarantined && !scene.may_be_empty {
                return Err(format!("poll-skip: {tp}: nothing at {from}, though {visible_end} is visible"));
            }
            self.now_visible(scene.now, visible_end);
            return Ok(Read::Nothing);
        }
        let read = self.served(book, asked, (passed, visible_end), bytes, scene)?;
        self.now_visible(scene.now, visible_end);
        Ok(read)
    }

    /// Every batch of an answer, in order, whole, unchanged and visible.
    fn served(
        &mut self,
        book: Book<'_>,
        (from, filter): (u64, &TagFilter),
        (passed, visible_end): (u64, u64),
        bytes: &Bytes,
        scene: &Scene,
    ) -> Result<Read, String> {
        let tp = self.tp;
        let mut rest = &bytes[..];
        let (mut next, mut batches) = (from, 0);
        while !rest.is_empty() {
            let length = if rest.len() < 96 { 0 } else { u32_at(rest, 24) as usize };
            if length < 96 || length > rest.len() {
                if scene.segments_damaged {
                    return Ok(if batches > 0 { Read::Advanced { next, batches } } else { Read::Damaged });
                }
                return Err(format!("O8: {tp}: a cut batch after {next}"));
            }
            let (batch, after) = rest.split_at(length);
            let (first, second) = fingerprint(batch);
            let Some(&id) = book.by_fingerprint.get(&(tp, first, second)) else {
                if scene.segments_damaged {
                    return Ok(if batches > 0 { Read::Advanced { next, batches } } else { Read::Damaged });
                }
                return Err(format!("O9: {tp}: at {next} are bytes that nobody produced for this partition"));
            };
            let base = u64_at(batch, 0);
            let sent = &mut book.batches[id as usize];
            let end = base + u64::from(sent.records);
            if u32_at(batch, 20) != stamp_crc(batch) {
                return Err(format!("{tp}: batch {id} at {base} has a broken stamp"));
            }
            let first = batches == 0 && base <= from && from < end;
            if !filter.asks_for(sent.tag_bloom) {
                return Err(format!("{tp}: batch {id} at {base} was served, but not asked for"));
            }
            if !filter.is_all() && base > next {
                self.pass_over(book.batches, next..base, filter, scene)?;
            } else if !first && (batches == 0 || base != next) {
                return Err(format!("O5: {tp}: asked for {next}, got batch {id} at {base}..{end}"));
            }
            if end > visible_end {
                return Err(format!("O6: {tp}: batch {id} at {base} was served above {visible_end}"));
            }
            self.place(id, &mut book.batches[id as usize], base, Some(u32_at(batch, 16)), scene.now)?;
            (next, batches, rest) = (end, batches + 1, after);
        }
        if !filter.is_all() && passed < next {
            return Err(format!("{tp}: batches up to {next} were served, but only {passed} was passed"));
        }
        if passed > next {
            self.pass_over(book.batches, next..passed, filter, scene)?;
            next = passed;
        }
        Ok(Read::Advanced { next, batches })
    }

    /// A reader was told that nothing he asked for is at these offsets.
    fn pass_over(
        &mut self,
        batches: &[Sent],
        offsets: Range<u64>,
        filter: &TagFilter,
        scene: &Scene,
    ) -> Result<(), String> {
        if scene.quarantined || scene.segments_damaged {
            return Ok(());
        }
        let known = self.placed.range(offsets.clone()).map(|(_, placed)| placed.batch);
        if let Some(id) = known.into_iter().find(|id| filter.asks_for(batches[*id as usize].tag_bloom)) {
            return Err(format!("{}: {offsets:?} were passed over, but batch {id} was asked for", self.tp));
        }
        self.passed.push((offsets, filter.clone()));
        Ok(())
    }

    fn out_of_range(&mut self, from: u64, row: &FetchedRow, scene: &Scene) -> Result<Read, String> {
        let start = row.log_start.get();
        let must_be_there = self.visible_before(scene.invoked).unwrap_or(0);
        if from >= start && from <= must_be_there && !scene.quarantined {
            return Err(format!(
                "lost-write: {}: {from} is out of range ({start}..{}), but {must_be_there} was visible",
                self.tp,
                row.log_end.get()
            ));
        }
        self.marks(start, row.high_watermark.get(), scene)?;
        Ok(Read::StartsAt(start))
    }

    /// Log start and high watermark of an answer against what was known before its request.
    fn marks(&mut self, start: u64, visible_end: u64, scene: &Scene) -> Result<(), String> {
        let tp = self.tp;
        if start > self.start_told && !scene.quarantined {
            return Err(format!(
                "D7: {tp} starts at {start}, but was only told to start at {}",
                self.start_told
            ));
        }
        let acknowledged = known_before(&self.starts_acknowledged, scene.invoked).unwrap_or(0);
        if start < acknowledged && !scene.quarantined {
            return Err(format!(
                "{tp} starts at {start}, though {acknowledged} was acknowledged as its start"
            ));
        }
        let before = self.visible_before(scene.invoked).unwrap_or(0);
        if visible_end < before && !scene.quarantined {
            return Err(format!("lost-write: {tp}: the high watermark fell from {before} to {visible_end}"));
        }
        Ok(())
    }

    pub(super) fn listed(&mut self, time: Option<i64>, row: &ListedRow, scene: &Scene) -> Result<(), String> {
        let tp = self.tp;
        let offset = row.offset.get();
        match row.error {
            ErrorCode::None => {}
            ErrorCode::CorruptBatch if !scene.segments_damaged && !scene.quarantined => {
                return Err(format!("{tp}: a look-up met corruption, but nothing was spoiled"));
            }
            _ => return Ok(()),
        }
        if scene.quarantined || scene.segments_damaged {
            return Ok(());
        }
        let Some(time) = time else {
            let before = self.visible_before(scene.invoked).unwrap_or(0);
            if offset < before {
                return Err(format!("{tp}: the latest offset is {offset}, but {before} was visible"));
            }
            self.now_visible(scene.now, offset);
            return Ok(());
        };
        // Known batches that were visible before the request, at or above every log start it may have met.
        let visible_end = self.visible_before(scene.invoked).unwrap_or(0);
        for (base, placed) in self.placed.range(self.start_told..) {
            if placed.end > offset.min(visible_end) {
                break;
            }
            if placed.newest_ms >= time {
                return Err(format!(
                    "{tp}: the first record of {time} is in the batch at {base}, not at {offset}"
                ));
            }
        }
        if row.timestamp_ms >= 0 && row.timestamp_ms < time {
            return Err(format!("{tp}: asked for {time}, got {offset} of {}", row.timestamp_ms));
        }
        Ok(())
    }

    pub(super) fn start_moved(&mut self, to: u64) {
        self.start_told = self.start_told.max(to);
    }

    pub(super) fn start_acknowledged(&mut self, now: u64, to: u64) {
        note(&mut self.starts_acknowledged, now, to);
    }

    /// Nothing from `end` on is promised any more.
    pub(super) fn forget_from(&mut self, end: u64, batches: &mut [Sent]) {
        let gone = self.placed.split_off(&end);
        for placed in gone.values() {
            let sent = &mut batches[placed.batch as usize];
            sent.base = None;
            sent.copies = sent.copies.saturating_sub(1);
        }
        for lane in self.lanes.values_mut() {
            lane.retain(|_, at| *at < end);
        }
        self.lost_tail = true;
        self.passed.retain(|(passed, _)| passed.end <= end);
        self.visible.retain(|(_, visible)| *visible <= end);
        self.start_told = self.start_told.min(end);
        self.starts_acknowledged.retain(|(_, start)| *start <= end);
    }

    pub(super) fn readable(&self) -> Readable {
        Readable { start: self.start_told, end: self.visible.last().map_or(0, |(_, end)| *end) }
    }

    pub(super) fn next_known(&self, from: u64) -> Option<u64> {
        self.placed.range(from + 1..).next().map(|(base, _)| *base)
    }

    pub(super) fn at(&self, base: u64) -> Option<BatchId> {
        self.placed.get(&base).map(|placed| placed.batch)
    }

    fn visible_before(&self, moment: u64) -> Option<u64> {
        known_before(&self.visible, moment)
    }

    fn now_visible(&mut self, now: u64, end: u64) {
        note(&mut self.visible, now, end);
    }
}

/// The last value of a rising series that was known before `moment`.
fn known_before(series: &[(u64, u64)], moment: u64) -> Option<u64> {
    let known = series.partition_point(|(at, _)| *at < moment);
    known.checked_sub(1).map(|last| series[last].1)
}

/// Adds to a rising series what is known from `now` on.
fn note(series: &mut Vec<(u64, u64)>, now: u64, value: u64) {
    match series.last_mut() {
        Some((_, last)) if *last >= value => {}
        Some((at, last)) if *at == now => *last = value,
        _ => series.push((now, value)),
    }
}

/// Everything after the stamp in two words: a checksum over it all, and the batch's own over its header.
pub(super) fn fingerprint(batch: &[u8]) -> (u32, u32) {
    (crc32fast::hash(&batch[24..]), u32_at(batch, 88))
}

fn stamp_crc(batch: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&batch[..20]);
    hasher.update(&batch[88..92]);
    hasher.finalize()
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}
