//! Latencies and other samples, summed up the same way everywhere.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Percentiles of some samples, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    pub count: usize,
    pub p50_ms: f64,
    pub p90_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Summary {
    /// Exact percentiles (nearest rank) of samples in microseconds; of none, zeros.
    pub fn of_micros(samples: &mut [u32]) -> Self {
        samples.sort_unstable();
        let at = |permille| nearest_rank(samples, permille).map_or(0.0, |micros| f64::from(*micros) / 1000.0);
        Self { count: samples.len(), p50_ms: at(500), p90_ms: at(900), p99_ms: at(990), max_ms: at(1000) }
    }

    pub fn of(samples: &[Duration]) -> Self {
        Self::of_micros(&mut samples.iter().map(|sample| micros(*sample)).collect::<Vec<_>>())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, p50_ms, p90_ms, p99_ms, max_ms } = self;
        write!(f, "p50 {p50_ms:.2} ms, p90 {p90_ms:.2} ms, p99 {p99_ms:.2} ms, max {max_ms:.2} ms of {count}")
    }
}

/// Whole microseconds; what does not fit, 71 minutes, is the largest.
pub fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn nearest_rank<T>(sorted: &[T], permille: usize) -> Option<&T> {
    let rank = (sorted.len() * permille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut samples: Vec<u32> = (1..=100).rev().map(|n| n * 1000).collect();
        let summary = Summary::of_micros(&mut samples);
        assert_eq!((summary.p50_ms, summary.p90_ms, summary.p99_ms, summary.max_ms), (50.0, 90.0, 99.0, 100.0));
        assert_eq!(Summary::of_micros(&mut []), Summary::default());
        let one = Summary::of(&[Duration::from_millis(7)]);
        assert_eq!((one.p50_ms, one.p99_ms, one.max_ms, one.count), (7.0, 7.0, 7.0, 1));
    }
}
