//! The bench is a test: what was acknowledged must be in the log once, in order, at its offset.
//!
//! Producers keep a `Ledger` of what was acknowledged; after the run every record of every partition goes through a
//! `Checker`. Invariant: a record that is missing, there twice, out of order, at another offset than acknowledged or of
//! another run makes the run invalid. A record that was never acknowledged may be there or not.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::payload::Mark;

/// What one producer was told.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    records_per_batch: u64,
    /// For each partition, by batch.
    partitions: BTreeMap<u32, Vec<Told>>,
}

/// What a producer was told of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nothing, or no.
    Nothing,
    /// That it is there, by a peer that does not count its records.
    There,
    /// That its first record has this offset.
    At(u64),
}

impl Ledger {
    /// Nothing sent yet; all batches will have so many records.
    #[must_use]
    pub fn new(records_per_batch: u32) -> Self {
        Self { records_per_batch: records_per_batch.into(), partitions: BTreeMap::new() }
    }

    /// Notes that the next batch was sent to a partition; gives the sequence of its first record.
    pub fn sent(&mut self, partition: u32) -> u64 {
        let batches = self.partitions.entry(partition).or_default();
        batches.push(Told::Nothing);
        (batches.len() as u64 - 1) * self.records_per_batch
    }

    /// Notes where the batch whose first record has this sequence was acknowledged to be.
    pub fn acknowledged(&mut self, partition: u32, sequence: u64, base_offset: u64) {
        if let Some(batch) = self.batch_mut(partition, sequence) {
            *batch = Told::At(base_offset);
        }
    }

    /// Notes that the batch whose first record has this sequence was acknowledged, by a peer that does not say where.
    pub fn acknowledged_somewhere(&mut self, partition: u32, sequence: u64) {
        if let Some(batch) = self.batch_mut(partition, sequence) {
            *batch = Told::There;
        }
    }

    /// Records that were acknowledged, in all partitions.
    #[must_use]
    pub fn records_acknowledged(&self) -> u64 {
        let batches =
            self.partitions.values().flatten().filter(|&&told| told != Told::Nothing).count() as u64;
        batches * self.records_per_batch
    }

    /// Records that were sent to a partition.
    fn records_sent(&self, partition: u32) -> u64 {
        self.partitions.get(&partition).map_or(0, |batches| batches.len() as u64 * self.records_per_batch)
    }

    /// What was told of this record, with its own offset.
    fn told(&self, partition: u32, sequence: u64) -> Told {
        let batch = usize::try_from(sequence / self.records_per_batch).unwrap_or(usize::MAX);
        match self.partitions.get(&partition).and_then(|batches| batches.get(batch)) {
            None => Told::Nothing,
            Some(Told::At(base)) => Told::At(base + sequence % self.records_per_batch),
            Some(&told) => told,
        }
    }

    fn batch_mut(&mut self, partition: u32, sequence: u64) -> Option<&mut Told> {
        let batch = usize::try_from(sequence / self.records_per_batch).ok()?;
        self.partitions.get_mut(&partition)?.get_mut(batch)
    }
}

/// What the check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Records that were acknowledged.
    pub acknowledged: u64,
    /// Records that were read.
    pub read: u64,
    /// Acknowledged records that were not read although the log still begins before them.
    pub lost: u64,
    /// Records that were read twice.
    pub duplicated: u64,
    /// Records that came after a later one of the same producer and partition.
    pub disordered: u64,
    /// Records at another offset than acknowledged, or whose offsets have gaps.
    pub misplaced: u64,
    /// Records of another run, producer or partition, or without a mark.
    pub foreign: u64,
    /// Records that were read but not acknowledged: allowed.
    pub unacknowledged: u64,
    /// The first few faults, for a person.
    pub faults: Vec<String>,
}

impl Verdict {
    /// Whether the run may be reported.
    #[must_use]
    pub const fn is_valid(&self) -> bool {
        self.lost == 0
            && self.duplicated == 0
            && self.disordered == 0
            && self.misplaced == 0
            && self.foreign == 0
    }

    fn fault(&mut self, fault: impl FnOnce() -> String) {
        if self.faults.len() < 8 {
            self.faults.push(fault());
        }
    }

    /// One line for a table.
    #[must_use]
    pub fn line(&self) -> String {
        if self.is_valid() {
            return format!("all {} acknowledged records read once, in order", self.acknowledged);
        }
        format!("INVALID: {}", self.counts())
    }

    /// What was found to be wrong.
    #[must_use]
    pub fn counts(&self) -> String {
        format!(
            "{} lost, {} twice, {} out of order, {} misplaced, {} foreign of {} acknowledged; {}",
            self.lost,
            self.duplicated,
            self.disordered,
            self.misplaced,
            self.foreign,
            self.acknowledged,
            self.faults.join("; ")
        )
    }
}

/// What was read of one producer in one partition.
#[derive(Clone, Debug, Default)]
struct Seen {
    /// Sequence of the next record, if all is well.
    next: u64,
    /// Sequences below `next` that were not read: first to end (exclusive).
    missing: BTreeMap<u64, u64>,
    /// Sequence of the first record that was read; what is before it had been deleted with the log's start.
    first: Option<u64>,
}

/// Reads partitions one after the other.
#[derive(Debug)]
pub struct Checker<'a> {
    run: u64,
    ledgers: &'a [Ledger],
    verdict: Verdict,
    partition: u32,
    read_of_partition: u64,
    offset_next: u64,
    /// The log does not begin at 0: retention took records, so the first ones may be missing.
    shortened: bool,
    seen: Vec<Seen>,
}

impl<'a> Checker<'a> {
    /// Checks a run's partitions; ledgers are by producer number.
    #[must_use]
    pub fn new(run: u64, ledgers: &'a [Ledger]) -> Self {
        let acknowledged = ledgers.iter().map(Ledger::records_acknowledged).sum();
        Self {
            run,
            ledgers,
            verdict: Verdict { acknowledged, ..Verdict::default() },
            partition: 0,
            read_of_partition: 0,
            offset_next: 0,
            shortened: false,
            seen: Vec::new(),
        }
    }

    /// Begins a partition whose log starts at this offset; the same one anew if retention took its begin meanwhile.
    pub fn begin(&mut self, partition: u32, log_start: u64) {
        if partition == self.partition {
            self.verdict.read -= self.read_of_partition;
        }
        self.read_of_partition = 0;
        self.partition = partition;
        self.offset_next = log_start;
        self.shortened = log_start > 0;
        self.seen = vec![Seen::default(); self.ledgers.len()];
    }

    /// Takes the next record of the partition.
    pub fn record(&mut self, offset: u64, value: Option<&[u8]>) {
        self.verdict.read += 1;
        self.read_of_partition += 1;
        let (partition, expected) = (self.partition, self.offset_next);
        if offset != expected {
            self.verdict.misplaced += 1;
            self.verdict.fault(|| format!("partition {partition}: offset {offset} where {expected} follows"));
        }
        self.offset_next = offset + 1;
        let mark = value.and_then(Mark::decode);
        let Some(mark) = mark.filter(|mark| mark.run == self.run && mark.partition == partition) else {
            self.verdict.foreign += 1;
            self.verdict
                .fault(|| format!("partition {partition}: the record at {offset} is not of this run"));
            return;
        };
        let producer = mark.producer as usize;
        let sent = self.ledgers.get(producer).map_or(0, |ledger| ledger.records_sent(partition));
        if mark.sequence >= sent {
            self.verdict.foreign += 1;
            self.verdict
                .fault(|| format!("partition {partition}: the record at {offset} was never sent: {mark:?}"));
            return;
        }
        match self.ledgers[producer].told(partition, mark.sequence) {
            Told::Nothing => self.verdict.unacknowledged += 1,
            Told::At(acknowledged) if acknowledged != offset => {
                self.verdict.misplaced += 1;
                self.verdict.fault(|| {
                    format!("partition {partition}: a record acknowledged at {acknowledged} is at {offset}")
                });
            }
            Told::There | Told::At(_) => {}
        }
        self.order(&mark, offset);
    }

    fn order(&mut self, mark: &Mark, offset: u64) {
        let partition = self.partition;
        let seen = &mut self.seen[mark.producer as usize];
        let sequence = mark.sequence;
        seen.first.get_or_insert(sequence);
        if sequence >= seen.next {
            if sequence > seen.next {
                seen.missing.insert(seen.next, sequence);
            }
            seen.next = sequence + 1;
            return;
        }
        let range = seen.missing.range(..=sequence).next_back().map(|(&first, &end)| (first, end));
        match range {
            Some((first, end)) if sequence < end => {
                seen.missing.remove(&first);
                if first < sequence {
                    seen.missing.insert(first, sequence);
                }
                if sequence + 1 < end {
                    seen.missing.insert(sequence + 1, end);
                }
                self.verdict.disordered += 1;
                self.verdict.fault(|| format!("partition {partition}: {mark:?} comes late, at {offset}"));
            }
            _ => {
                self.verdict.duplicated += 1;
                self.verdict.fault(|| format!("partition {partition}: {mark:?} again, at {offset}"));
            }
        }
    }

    /// Ends a partition: what was acknowledged and not read is lost, unless the log's start has moved past it.
    pub fn end(&mut self) {
        let partition = self.partition;
        for (producer, (seen, ledger)) in self.seen.iter_mut().zip(self.ledgers).enumerate() {
            let sent = ledger.records_sent(partition);
            if seen.next < sent {
                seen.missing.insert(seen.next, sent);
            }
            for (&first, &end) in &seen.missing {
                let deleted = |sequence| self.shortened && seen.first.is_none_or(|first| sequence < first);
                let lost: Vec<u64> = (first..end)
                    .filter(|&sequence| {
                        ledger.told(partition, sequence) != Told::Nothing && !deleted(sequence)
                    })
                    .collect();
                self.verdict.lost += lost.len() as u64;
                if let (Some(first), Some(last)) = (lost.first(), lost.last()) {
                    self.verdict.fault(|| {
                        format!("partition {partition}: producer {producer}'s {first} to {last} are not in the log")
                    });
                }
            }
        }
        self.seen.clear();
    }

    /// What was found.
    #[must_use]
    pub fn finish(self) -> Verdict {
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: u64 = 42;

    fn value(producer: u32, partition: u32, sequence: u64) -> Vec<u8> {
        Mark { run: RUN, producer, partition, sequence, intended_ns: 0 }.encode().to_vec()
    }

    /// One producer, one partition, four batches of two; the last is not acknowledged.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(2);
        for batch in 0..4 {
            let sequence = ledger.sent(0);
            if batch < 3 {
                ledger.acknowledged(0, sequence, sequence);
            }
        }
        ledger
    }

    /// Reads these sequences, in this order, from offset `start`.
    fn check(start: u64, sequences: &[u64]) -> Verdict {
        let ledgers = [ledger()];
        let mut checker = Checker::new(RUN, &ledgers);
        checker.begin(0, start);
        for (offset, &sequence) in (start..).zip(sequences) {
            checker.record(offset, Some(&value(0, 0, sequence)));
        }
        checker.end();
        checker.finish()
    }

    #[test]
    fn a_whole_log_is_valid_with_or_without_what_was_not_acknowledged() {
        let verdict = check(0, &[0, 1, 2, 3, 4, 5]);
        assert!(verdict.is_valid(), "{verdict:?}");
        assert_eq!((verdict.acknowledged, verdict.read, verdict.unacknowledged), (6, 6, 0));
        let verdict = check(0, &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert!(verdict.is_valid(), "{verdict:?}");
        assert_eq!((verdict.read, verdict.unacknowledged), (8, 2));
    }

    #[test]
    fn a_loss_at_the_end_is_found() {
        let verdict = check(0, &[0, 1, 2, 3]);
        assert_eq!((verdict.lost, verdict.duplicated, verdict.disordered), (2, 0, 0));
        assert!(!verdict.is_valid());
        assert_eq!(check(0, &[]).lost, 6);
    }

    #[test]
    fn a_loss_in_the_middle_is_found_and_so_is_the_wrong_offset_behind_it() {
        let verdict = check(0, &[0, 1, 4, 5]);
        assert_eq!((verdict.lost, verdict.misplaced), (2, 2));
    }

    #[test]
    fn a_duplicate_is_found() {
        let verdict = check(0, &[0, 1, 2, 3, 4, 5, 4]);
        assert_eq!((verdict.duplicated, verdict.lost, verdict.disordered), (1, 0, 0));
        assert!(!verdict.is_valid());
    }

    #[test]
    fn disorder_is_found_and_is_not_taken_for_a_loss() {
        let verdict = check(0, &[0, 1, 4, 5, 2, 3]);
        assert_eq!((verdict.disordered, verdict.lost, verdict.duplicated), (2, 0, 0));
        assert!(!verdict.is_valid());
    }

    #[test]
    fn a_gap_in_the_offsets_is_found() {
        let ledgers = [ledger()];
        let mut checker = Checker::new(RUN, &ledgers);
        checker.begin(0, 0);
        checker.record(1, Some(&value(0, 0, 0)));
        checker.end();
        let verdict = checker.finish();
        assert!(verdict.misplaced >= 1 && !verdict.is_valid());
    }

    #[test]
    fn a_peer_that_does_not_say_where_is_held_to_what_it_said_is_there() {
        let mut ledger = Ledger::new(2);
        for _ in 0..3 {
            let sequence = ledger.sent(0);
            ledger.acknowledged_somewhere(0, sequence);
        }
        let ledgers = [ledger];
        let check = |sequences: &[u64]| {
            let mut checker = Checker::new(RUN, &ledgers);
            checker.begin(0, 0);
            for (offset, &sequence) in (0..).zip(sequences) {
                checker.record(offset, Some(&value(0, 0, sequence)));
            }
            checker.end();
            checker.finish()
        };
        let whole = check(&[0, 1, 2, 3, 4, 5]);
        assert!(whole.is_valid(), "{whole:?}");
        assert_eq!((whole.acknowledged, whole.unacknowledged), (6, 0));
        let short = check(&[0, 1, 4, 5]);
        assert_eq!((short.lost, short.misplaced), (2, 0));
    }

    #[test]
    fn records_of_others_are_found() {
        let ledgers = [ledger()];
        for foreign in [
            Some(vec![1, 2, 3]),
            None,
            Some(value(0, 1, 0)),
            Some(value(9, 0, 0)),
            Some(value(0, 0, 8)),
            Some(Mark { run: 1, producer: 0, partition: 0, sequence: 0, intended_ns: 0 }.encode().to_vec()),
        ] {
            let mut checker = Checker::new(RUN, &ledgers);
            checker.begin(0, 0);
            checker.record(0, foreign.as_deref());
            assert_eq!(checker.finish().foreign, 1, "{foreign:?}");
        }
    }

    #[test]
    fn what_retention_took_is_not_lost_but_what_is_missing_behind_it_is() {
        let verdict = check(2, &[2, 3, 4, 5]);
        assert!(verdict.is_valid(), "{verdict:?}");
        let verdict = check(2, &[2, 3]);
        assert_eq!(verdict.lost, 2);
    }

    #[test]
    fn producers_and_partitions_are_apart() {
        let mut ledgers = [Ledger::new(1), Ledger::new(1)];
        let mut offsets = [0, 0];
        for _ in 0..3 {
            for (partition, offset) in (0..).zip(&mut offsets) {
                for ledger in &mut ledgers {
                    let sequence = ledger.sent(partition);
                    ledger.acknowledged(partition, sequence, *offset);
                    *offset += 1;
                }
            }
        }
        let mut checker = Checker::new(RUN, &ledgers);
        for partition in 0..2 {
            checker.begin(partition, 0);
            for offset in 0..6 {
                let producer = u32::try_from(offset % 2).unwrap();
                checker.record(offset, Some(&value(producer, partition, offset / 2)));
            }
            checker.end();
        }
        let verdict = checker.finish();
        assert!(verdict.is_valid(), "{verdict:?}");
        assert_eq!((verdict.acknowledged, verdict.read), (12, 12));
    }
}
