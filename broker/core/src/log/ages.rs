//! When which part of a log was appended: how old a record is, and how many bytes follow it, without reading it.
//!
//! Asked by whoever wants to know how far a consumer is behind. Keeps runs of batches; neighbours become one as they
//! grow old, so that a run spans a tenth of its age at most and a log of any length needs a few hundred. Kept in memory
//! only: what was appended before a start is known by its segments alone.
//!
//! Invariant: runs are contiguous and ascending. Refuses to know what is in a record.

use corelog_wire::ids::Offset;
use std::collections::VecDeque;

use super::Segments;

/// A run that is younger than this spans so many milliseconds at most.
const RUN_MS: i64 = 20;
/// An older one spans this share of its age at most: one in so many.
const RUN_SHARE: i64 = 10;
/// Neighbours are joined when there are more runs.
const RUNS_MAX: usize = 256;

/// Batches that were appended about the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    base: Offset,
    end: Offset,
    first_ms: i64,
    last_ms: i64,
    /// Bytes appended before it, since counting began.
    bytes_before: u64,
}

/// The runs of one log, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    runs: VecDeque<Run>,
    /// Bytes appended since counting began.
    bytes: u64,
}

/// What a consumer that goes on at some offset has not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    /// When the first of it was appended, in milliseconds since 1970.
    pub since_ms: i64,
    /// Bytes of its batches.
    pub bytes: u64,
}

impl Ages {
    /// A batch was appended.
    pub fn appended(&mut self, base: Offset, end: Offset, bytes: u32, append_ms: i64) {
        match self.runs.back_mut() {
            Some(run) if append_ms <= run.first_ms.saturating_add(RUN_MS) => {
                (run.end, run.last_ms) = (end, run.last_ms.max(append_ms));
            }
            _ => {
                if self.runs.len() >= RUNS_MAX {
                    self.join(append_ms);
                }
                let bytes_before = self.bytes;
                self.runs.push_back(Run { base, end, first_ms: append_ms, last_ms: append_ms, bytes_before });
            }
        }
        self.bytes += u64::from(bytes);
    }

    /// Makes one of neighbours that are old enough.
    fn join(&mut self, now_ms: i64) {
        let mut joined: VecDeque<Run> = VecDeque::with_capacity(RUNS_MAX);
        for run in self.runs.drain(..) {
            let fits = |last: &&mut Run| {
                let age = now_ms.saturating_sub(run.last_ms);
                run.last_ms.saturating_sub(last.first_ms) <= age / RUN_SHARE
            };
            match joined.back_mut().filter(fits) {
                Some(last) => (last.end, last.last_ms) = (run.end, run.last_ms.max(last.last_ms)),
                None => joined.push_back(run),
            }
        }
        self.runs = joined;
    }

    /// Everything below `log_start` is gone from the log.
    pub fn forget_below(&mut self, log_start: Offset) {
        while self.runs.front().is_some_and(|run| run.end <= log_start) {
            self.runs.pop_front();
        }
    }

    /// What of the log from `offset` on, which is in it, is unread.
    #[must_use]
    pub fn unread(&self, offset: Offset, segments: &Segments) -> Option<Unread> {
        let place = self.runs.partition_point(|run| run.end <= offset);
        let Some(run) = self.runs.get(place).filter(|run| run.base <= offset) else {
            return by_segments(offset, segments);
        };
        let after = self.runs.get(place + 1).map_or(self.bytes, |next| next.bytes_before);
        let read = Share::of(offset, run.base, run.end);
        Some(Unread {
            since_ms: run.first_ms + read.of_i64(run.last_ms - run.first_ms),
            bytes: self.bytes - run.bytes_before - read.of_u64(after - run.bytes_before),
        })
    }

    /// Bytes a second that were appended lately: since the run that began so long before now, or since counting began.
    #[must_use]
    pub fn bytes_per_second(&self, now_ms: i64, window_ms: i64) -> Option<u64> {
        let place = self.runs.partition_point(|run| run.first_ms < now_ms.saturating_sub(window_ms));
        let run = self.runs.get(place)?;
        let elapsed =
            u64::try_from(now_ms.saturating_sub(run.first_ms)).ok().filter(|elapsed| *elapsed > 0)?;
        Some((self.bytes - run.bytes_before).saturating_mul(1_000) / elapsed)
    }
}

/// By what the segments know: a segment's records are taken to be spread evenly over its time.
fn by_segments(offset: Offset, segments: &Segments) -> Option<Unread> {
    let segment = segments.holding(offset).filter(|segment| offset < segment.end)?;
    let later: u64 = segments.iter().filter(|later| later.base > segment.base).map(|later| later.bytes).sum();
    let read = Share::of(offset, segment.base, segment.end);
    let span = segment.last_append_ms.saturating_sub(segment.opened_ms).max(0);
    Some(Unread {
        since_ms: segment.opened_ms.saturating_add(read.of_i64(span)),
        bytes: later + segment.bytes - read.of_u64(segment.bytes),
    })
}

/// A part of a whole.
#[derive(Clone, Copy)]
struct Share {
    part: u64,
    whole: u64,
}

impl Share {
    /// How much of `base..end` lies below `offset`, which is within.
    fn of(offset: Offset, base: Offset, end: Offset) -> Self {
        Self { part: offset.get() - base.get(), whole: (end.get() - base.get()).max(1) }
    }

    fn of_u64(self, amount: u64) -> u64 {
        let part = u128::from(amount) * u128::from(self.part) / u128::from(self.whole);
        u64::try_from(part).unwrap_or(amount)
    }

    fn of_i64(self, amount: i64) -> i64 {
        i64::try_from(self.of_u64(u64::try_from(amount).unwrap_or(0))).unwrap_or(amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appends a batch of ten records of 100 bytes each at each of these times.
    fn ages(times_ms: impl IntoIterator<Item = i64>) -> (Ages, Vec<i64>) {
        let (mut ages, mut truth) = (Ages::default(), Vec::new());
        for (number, time) in (0_u64..).zip(times_ms) {
            ages.appended(Offset::new(10 * number), Offset::new(10 * number + 10), 1_000, time);
            truth.push(time);
        }
        (ages, truth)
    }

    /// Holds every batch's age and bytes against the truth, a tenth or 50 ms allowed.
    fn check(ages: &Ages, truth: &[i64], now_ms: i64) {
        for (number, time) in truth.iter().enumerate() {
            let number = u64::try_from(number).unwrap();
            let unread = ages.unread(Offset::new(10 * number), &Segments::default()).unwrap();
            let (is, seems) = (now_ms - time, now_ms - unread.since_ms);
            assert!((is - seems).abs() <= (is / 10).max(50), "batch {number}: {seems} ms, in truth {is} ms");
            let bytes = 1_000 * (truth.len() as u64 - number);
            assert!(
                unread.bytes.abs_diff(bytes) <= bytes / 5 + 5_000,
                "batch {number}: {} bytes, not {bytes}",
                unread.bytes
            );
        }
    }

    #[test]
    fn ages_are_known_to_a_tenth_however_long_the_log() {
        let (ages, truth) = ages((0..200_000).map(|number| number * 25));
        assert!(ages.runs.len() <= RUNS_MAX, "{} runs", ages.runs.len());
        check(&ages, &truth, 200_000 * 25);
    }

    #[test]
    fn pauses_belong_to_no_batch() {
        let times = (0..2_000_i64).map(|number| number * 30 + number / 100 * 60_000);
        let (ages, truth) = ages(times);
        for later in [0, 1_000, 1_000_000] {
            check(&ages, &truth, truth.last().unwrap() + later);
        }
    }

    #[test]
    fn a_wall_clock_that_jumps_back_breaks_nothing() {
        let (ages, _) = ages([1_000, 5_000, 2_000, 2_500, 9_000]);
        for offset in 0..50 {
            assert!(ages.unread(Offset::new(offset), &Segments::default()).is_some());
        }
        assert!(ages.bytes_per_second(9_100, 60_000).is_some());
    }

    #[test]
    fn what_is_gone_or_not_there_is_not_known() {
        let (mut ages, _) = ages((0..100).map(|number| number * 1_000));
        ages.forget_below(Offset::new(500));
        assert_eq!(ages.unread(Offset::new(499), &Segments::default()), None);
        assert_eq!(ages.unread(Offset::new(1_000), &Segments::default()), None);
        let unread = ages.unread(Offset::new(505), &Segments::default()).unwrap();
        assert_eq!((unread.since_ms, unread.bytes), (50_000, 49_500));
        assert_eq!(ages.bytes_per_second(100_000, 10_000), Some(1_000));
    }
}
