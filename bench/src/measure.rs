//! Latencies: three histograms for each request, and percentiles that say no more than their samples do.
//!
//! Called by `engine` (recording) and `report`. Invariants: histograms are merged, never averaged; a percentile is given
//! only if at least 100 samples lie beyond it.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Samples that must lie beyond a percentile that is claimed.
pub const SAMPLES_BEYOND_MIN: u64 = 100;

/// A percentile as a fraction, so that the samples beyond it can be counted exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Percentile {
    below: u64,
    of: u64,
}

impl Percentile {
    /// Half of the samples.
    pub const P50: Self = Self { below: 1, of: 2 };
    /// 90%.
    pub const P90: Self = Self { below: 9, of: 10 };
    /// 99%.
    pub const P99: Self = Self { below: 99, of: 100 };
    /// 99.9%.
    pub const P99_9: Self = Self { below: 999, of: 1000 };
    /// 99.99%.
    pub const P99_99: Self = Self { below: 9999, of: 10_000 };

    /// The value in nanoseconds, if enough samples lie beyond it.
    #[must_use]
    pub fn of(self, histogram: &Histogram<u64>) -> Option<u64> {
        let beyond = u128::from(histogram.len()) * u128::from(self.of - self.below) / u128::from(self.of);
        #[expect(clippy::cast_precision_loss, reason = "both are small")]
        let quantile = self.below as f64 / self.of as f64;
        (beyond >= u128::from(SAMPLES_BEYOND_MIN)).then(|| histogram.value_at_quantile(quantile))
    }
}

/// The latencies of one kind of request, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// From the intended time to the answer: what a user feels.
    pub response: Histogram<u64>,
    /// From the actual send to the answer: what the peer took.
    pub service: Histogram<u64>,
    /// From the intended time to the actual send: the generator's own share.
    pub send_delay: Histogram<u64>,
}

/// A histogram of latencies: 1 microsecond to 2 minutes, three digits.
///
/// # Panics
/// Never: the bounds are constants that the library takes.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "constant bounds")]
    Histogram::new_with_bounds(1_000, 120_000_000_000, 3)
        .expect("bounds and digits are within the library's range")
}

impl Default for Latencies {
    fn default() -> Self {
        Self { response: histogram(), service: histogram(), send_delay: histogram() }
    }
}

impl Latencies {
    /// Records an answered request; all times are from the run's start.
    pub fn record(&mut self, intended: Duration, sent: Duration, answered: Duration) {
        self.response.saturating_record(nanoseconds(answered.saturating_sub(intended)));
        self.service.saturating_record(nanoseconds(answered.saturating_sub(sent)));
        self.send_delay.saturating_record(nanoseconds(sent.saturating_sub(intended)));
    }

    /// Adds another run's samples.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.response, &other.response),
            (&mut self.service, &other.service),
            (&mut self.send_delay, &other.send_delay),
        ] {
            // Cannot fail: all have the same bounds.
            _ = mine.add(theirs);
        }
    }

    /// Whether the generator was so late that its own delay is more than a tenth of the response's p99.
    #[must_use]
    pub fn generator_limited(&self) -> bool {
        // Not claimed, only compared: any number of samples will do.
        let p99 = |histogram: &Histogram<u64>| histogram.value_at_quantile(0.99);
        // The histogram's lowest value: a delay below it is none.
        p99(&self.send_delay) > 2_000 && p99(&self.send_delay) * 10 > p99(&self.response)
    }
}

/// What is said of a histogram, in nanoseconds; a percentile that is not claimed is absent.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// How many samples.
    pub samples: u64,
    /// Percentiles.
    pub p50: Option<u64>,
    /// 90%.
    pub p90: Option<u64>,
    /// 99%.
    pub p99: Option<u64>,
    /// 99.9%.
    pub p99_9: Option<u64>,
    /// 99.99%.
    pub p99_99: Option<u64>,
    /// The largest.
    pub max: u64,
    /// Mean.
    pub mean: f64,
    /// Every recorded value and its count, from which any percentile of any merge can be had.
    pub buckets: Vec<(u64, u64)>,
}

impl Summary {
    /// Of this histogram.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            samples: histogram.len(),
            p50: Percentile::P50.of(histogram),
            p90: Percentile::P90.of(histogram),
            p99: Percentile::P99.of(histogram),
            p99_9: Percentile::P99_9.of(histogram),
            p99_99: Percentile::P99_99.of(histogram),
            max: histogram.max(),
            mean: histogram.mean(),
            buckets: histogram
                .iter_recorded()
                .map(|step| (step.value_iterated_to(), step.count_at_value()))
                .collect(),
        }
    }
}

/// Nanoseconds of a duration; the largest number for one of centuries.
#[must_use]
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(samples: u64) -> Histogram<u64> {
        let mut histogram = histogram();
        histogram.record_n(5_000, samples).unwrap();
        histogram
    }

    #[test]
    fn a_percentile_needs_a_hundred_samples_beyond() {
        assert_eq!(Percentile::P50.of(&of(199)), None);
        assert!(Percentile::P50.of(&of(200)).is_some());
        assert_eq!(Percentile::P99.of(&of(9_999)), None);
        assert!(Percentile::P99.of(&of(10_000)).is_some());
        assert_eq!(Percentile::P99_99.of(&of(999_999)), None);
        assert!(Percentile::P99_99.of(&of(1_000_000)).is_some());
        assert_eq!(Percentile::P50.of(&of(0)), None);
    }

    #[test]
    fn percentiles_are_those_of_the_merged_samples() {
        let (mut fast, mut slow) = (Latencies::default(), Latencies::default());
        let ms = Duration::from_millis;
        for _ in 0..99_000 {
            fast.record(ms(0), ms(0), ms(1));
        }
        for _ in 0..11_000 {
            slow.record(ms(0), ms(0), ms(100));
        }
        fast.merge(&slow);
        let summary = Summary::of(&fast.response);
        assert_eq!(summary.samples, 110_000);
        // A tenth of all samples is slow: the mean of the two p99 would be 50 ms.
        assert!((990_000..1_010_000).contains(&summary.p50.unwrap()));
        assert!((99_000_000..101_000_000).contains(&summary.p99.unwrap()));
        assert_eq!(summary.buckets.iter().map(|(_, count)| count).sum::<u64>(), 110_000);
    }

    #[test]
    fn a_late_send_counts_against_the_response_and_not_the_service() {
        let mut latencies = Latencies::default();
        let ms = Duration::from_millis;
        latencies.record(ms(10), ms(50), ms(52));
        let near = |histogram: &Histogram<u64>, wanted: u64| histogram.max().abs_diff(wanted) <= wanted / 500;
        assert!(near(&latencies.response, 42_000_000));
        assert!(near(&latencies.service, 2_000_000));
        assert!(near(&latencies.send_delay, 40_000_000));
        assert!(latencies.generator_limited());
    }

    #[test]
    fn a_punctual_generator_is_not_the_limit() {
        let mut latencies = Latencies::default();
        let us = Duration::from_micros;
        latencies.record(us(100), us(103), us(300));
        assert!(!latencies.generator_limited());
    }
}
