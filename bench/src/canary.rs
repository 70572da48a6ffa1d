//! The canary: how late timers fire and how long a flush takes, with no broker at work. When it falls silent between two
//! runs, the machine was not its own, and neither run is worth much.
//!
//! Called by `stage` once, for what is usual here, and by `run` before and after each run.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::limits::WriteFlush;
use crate::measure::nanoseconds;
use crate::pin::{self, ThreadPlace};

/// Timers that are looked at.
const TIMERS: usize = 100;
/// When each is due.
const TIMER: Duration = Duration::from_millis(1);
/// How much more than usual is a disturbance.
const USUAL_TIMES_MAX: u64 = 3;
/// Lateness of timers that is nothing, whatever is usual.
const LATE_NS_FREE: u64 = 300_000;

/// What it sang.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Canary {
    /// Lateness of a millisecond's timer on the generator's processor: nine of ten were earlier.
    pub timer_late_p90_ns: u64,
    /// Write and flush of 4 KiB, if the device is measured.
    pub flush_p50_ns: Option<u64>,
}

impl Canary {
    /// Looks at timers now, and takes the flushes that were measured just before.
    ///
    /// # Errors
    /// [`Error::System`] if the place cannot be taken.
    pub fn sing(generator: ThreadPlace, flush: Option<&WriteFlush>) -> Result<Self> {
        let late = std::thread::scope(|scope| {
            let timers = scope.spawn(|| {
                generator.take()?;
                pin::sharp_timers()?;
                Ok(timers())
            });
            timers.join().unwrap_or_else(|_| Err(Error::Setup("the canary's thread ended".to_owned())))
        })?;
        Ok(Self { timer_late_p90_ns: late, flush_p50_ns: flush.and_then(|flush| flush.p50_ns) })
    }

    /// What is unusual, against a quiet minute.
    #[must_use]
    pub fn alarm(&self, usual: &Self) -> Option<String> {
        let late = usual.timer_late_p90_ns.max(LATE_NS_FREE / USUAL_TIMES_MAX) * USUAL_TIMES_MAX;
        if self.timer_late_p90_ns > late {
            return Some(format!("timers were {} us late", self.timer_late_p90_ns / 1000));
        }
        let (flush, usual) = (self.flush_p50_ns?, usual.flush_p50_ns?);
        (flush > usual * USUAL_TIMES_MAX)
            .then(|| format!("a flush took {} us, {} us at first", flush / 1000, usual / 1000))
    }
}

/// The lateness that nine of ten timers kept within.
fn timers() -> u64 {
    let mut late: Vec<u64> = (0..TIMERS)
        .map(|_| {
            let began = Instant::now();
            std::thread::sleep(TIMER);
            nanoseconds(began.elapsed().saturating_sub(TIMER))
        })
        .collect();
    late.sort_unstable();
    late[TIMERS * 9 / 10]
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Canary = Canary { timer_late_p90_ns: 20_000, flush_p50_ns: Some(100_000) };

    #[test]
    fn a_canary_is_silent_only_when_much_is_amiss() {
        assert_eq!(QUIET.alarm(&QUIET), None);
        assert_eq!(Canary { timer_late_p90_ns: 299_000, ..QUIET }.alarm(&QUIET), None);
        assert!(Canary { timer_late_p90_ns: 301_000, ..QUIET }.alarm(&QUIET).is_some());
        assert!(Canary { flush_p50_ns: Some(300_001), ..QUIET }.alarm(&QUIET).is_some());
        assert_eq!(Canary { flush_p50_ns: None, ..QUIET }.alarm(&QUIET), None);
        let loud = Canary { timer_late_p90_ns: 1_000_000, ..QUIET };
        assert_eq!(Canary { timer_late_p90_ns: 2_900_000, ..QUIET }.alarm(&loud), None);
    }

    #[test]
    fn timers_are_seen_to_be_late() {
        let canary = Canary::sing(ThreadPlace::default(), None).unwrap();
        assert!(canary.timer_late_p90_ns > 0 && canary.flush_p50_ns.is_none());
    }
}
