//! The one source of chance: a small generator whose seed is handed in, and the waits between attempts made of it.
//!
//! Used by the machines of this crate. Invariant: the same seed gives the same numbers. Not for secrets.

use std::time::Duration;

/// `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The generator of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number below `end`; 0 if `end` is.
    pub fn below(&mut self, end: u64) -> u64 {
        // The bias of at most end / 2^64 does not matter for waits and partitions.
        u64::try_from((u128::from(self.number()) * u128::from(end)) >> 64).unwrap_or(0)
    }
}

/// How long to wait before the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// About the first wait.
    pub first: Duration,
    /// About the longest wait.
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(20), max: Duration::from_secs(1) }
    }
}

impl Backoff {
    /// The wait after this many failed attempts (1 or more): doubling, then between a half and the whole of it.
    #[must_use]
    pub fn after(&self, attempts: u32, random: &mut Random) -> Duration {
        let doublings = attempts.saturating_sub(1).min(16);
        let whole = self.first.saturating_mul(1 << doublings).min(self.max);
        let half = whole / 2;
        half + Duration::from_nanos(random.below(u64::try_from(half.as_nanos()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let backoff = Backoff { first: Duration::from_millis(10), max: Duration::from_millis(100) };
        let mut random = Random::new(7);
        for (attempts, whole) in [(1, 10), (2, 20), (3, 40), (4, 80), (5, 100), (60, 100)] {
            let wait = backoff.after(attempts, &mut random);
            let whole = Duration::from_millis(whole);
            assert!(wait >= whole / 2 && wait <= whole, "{attempts}: {wait:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let (mut a, mut b) = (Random::new(1), Random::new(1));
        assert!((0..100).all(|_| a.number() == b.number()));
        assert!((0..1000).all(|_| a.below(3) < 3));
        assert_eq!(a.below(0), 0);
    }
}
