//! The clock: the only place of the broker's data path that asks what time it is.
//!
//! Called by the pump, which hands the answer to every step of a turn.

use corelog_core::time::{Instant, Now};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads the monotonic and the wall clock. Copies share their start, so their instants compare.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: std::time::Instant,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn new() -> Self {
        Self { start: std::time::Instant::now() }
    }

    /// Both clocks, read once.
    #[must_use]
    pub fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { instant: self.instant(), wall_ms: i64::try_from(wall.as_millis()).unwrap_or(i64::MAX) }
    }

    /// The monotonic clock alone.
    #[must_use]
    pub fn instant(&self) -> Instant {
        let nanos = self.start.elapsed().as_nanos();
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How long from now until `deadline`; zero if it passed.
    #[must_use]
    pub fn until(&self, deadline: Instant) -> Duration {
        deadline.since(self.instant())
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}
