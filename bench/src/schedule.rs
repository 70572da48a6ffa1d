//! When requests are meant to be sent: decided before the run by rate, arrival and seed, and by nothing that the peer does.
//!
//! Called by `engine`. Invariant: times never decrease, none is skipped, and the same seed gives the same times.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How requests are spread over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrival {
    /// One every 1 / rate.
    Constant,
    /// Independent of each other: exponential gaps, as of many users.
    #[default]
    Poisson,
}

/// The intended times of a run, from its start.
#[derive(Clone, Debug)]
pub struct Schedule {
    per_second: f64,
    arrival: Arrival,
    random: Random,
    index: u64,
    at_s: f64,
}

impl Schedule {
    /// Times at this rate.
    #[must_use]
    pub fn new(per_second: f64, arrival: Arrival, seed: u64) -> Self {
        Self { per_second, arrival, random: Random::new(seed), index: 0, at_s: 0.0 }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "no run has 2^52 requests")]
        let at_s = match self.arrival {
            // From the index, so that rounding does not add up.
            Arrival::Constant => self.index as f64 / self.per_second,
            Arrival::Poisson => {
                self.at_s -= self.random.unit().ln() / self.per_second;
                self.at_s
            }
        };
        self.index += 1;
        Some(Duration::from_secs_f64(at_s))
    }
}

/// A small generator (`SplitMix64`), so that a seed means the same for ever.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub const fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number above 0, up to 1.
    pub fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
        let upper = ((self.bits() >> 11) + 1) as f64;
        upper / 9_007_199_254_740_992.0
    }

    /// Fills bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.bits().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_times_do_not_drift() {
        let times: Vec<Duration> = Schedule::new(3.0, Arrival::Constant, 0).take(3_000_001).collect();
        assert_eq!(times[0], Duration::ZERO);
        assert_eq!(times[3], Duration::from_secs(1));
        assert_eq!(times[3_000_000], Duration::from_secs(1_000_000));
    }

    #[test]
    fn poisson_times_have_the_rate_and_its_spread() {
        let count = 200_000;
        let times: Vec<Duration> = Schedule::new(1000.0, Arrival::Poisson, 7).take(count).collect();
        let total = times.last().unwrap().as_secs_f64();
        assert!((total - 200.0).abs() < 2.0, "{total}");
        let gaps: Vec<f64> =
            times.windows(2).map(|pair| pair[1].as_secs_f64() - pair[0].as_secs_f64()).collect();
        // Of exponential gaps, exp(-1) are longer than the mean and exp(-3) longer than three times it.
        let float = |count: usize| f64::from(u32::try_from(count).unwrap());
        let longer = |than: f64| float(gaps.iter().filter(|&&gap| gap > than).count()) / float(gaps.len());
        assert!((longer(0.001) - 0.368).abs() < 0.01, "{}", longer(0.001));
        assert!((longer(0.003) - 0.050).abs() < 0.005, "{}", longer(0.003));
    }

    #[test]
    fn a_seed_is_a_schedule() {
        let times = |seed| Schedule::new(10.0, Arrival::Poisson, seed).take(100).collect::<Vec<_>>();
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
        assert!(times(3).is_sorted());
    }
}
