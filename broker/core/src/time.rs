//! Time as the decisions see it: a value handed in with every input, never read from a clock.
//!
//! The hands hand in real clocks, the simulator hands in virtual ones.

use std::time::Duration;

/// A point on the monotonic clock, in nanoseconds since a start that has no meaning of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The point `nanos` nanoseconds after the start of the clock.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the start of the clock.
    #[must_use]
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// The point `wait` later; the end of time if that cannot be expressed.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it is still to come.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What a step may know of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic: for deadlines and intervals.
    pub instant: Instant,
    /// Milliseconds since the Unix epoch: for append timestamps and retention only. May jump.
    pub wall_ms: i64,
}
