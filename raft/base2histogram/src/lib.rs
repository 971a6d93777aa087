//! The histograms that openraft keeps about itself, in the memory that they need.
//!
//! The published crate computes the tables of all sixteen of its scales when the first histogram is made: 22 MiB, which
//! stay for the life of the process, of which openraft reads 8 KiB. A small gateway would spend half its memory on them.
//! openraft cannot be told to leave the histograms out, so the workspace puts this crate in the published one's place
//! (`[patch.crates-io]`). It has the same names and meanings as far as openraft compiles against them, and computes a
//! bucket instead of looking it up. Delete it once the published crate makes its tables on demand.
//!
//! Buckets are those of the published crate's default scale: values below 4 have one each, and every power of two above
//! is cut into four, so that a bucket is at most a quarter as wide as its smallest value.

use std::fmt;
use std::marker::PhantomData;

/// Four buckets to each power of two.
const GROUP: usize = 4;
const GROUP_BITS: usize = 2;
/// Values below [`GROUP`], then one group for each of the 62 powers of two above.
const BUCKETS: usize = GROUP + GROUP * (64 - GROUP_BITS);

fn bucket_of(value: u64) -> usize {
    let Some(shift) = value.checked_ilog2().and_then(|log| (log as usize).checked_sub(GROUP_BITS)) else {
        return usize::try_from(value).unwrap_or(0);
    };
    // The two bits behind the highest one.
    let within = usize::try_from(value >> shift).unwrap_or(0) % GROUP;
    GROUP + shift * GROUP + within
}

/// The smallest value of a bucket.
fn smallest(bucket: usize) -> u64 {
    match bucket.checked_sub(GROUP) {
        None => bucket as u64,
        Some(above) => ((GROUP + above % GROUP) as u64) << (above / GROUP),
    }
}

/// Counts of values by size.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Box<[u64; BUCKETS]>,
    slots: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Histogram<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Histogram").field("total", &self.total()).finish_non_exhaustive()
    }
}

impl<T> Histogram<T> {
    pub fn new() -> Self {
        Self { counts: Box::new([0; BUCKETS]), slots: PhantomData }
    }

    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    pub fn record_n(&mut self, value: u64, count: u64) {
        let bucket = &mut self.counts[bucket_of(value)];
        *bucket = bucket.saturating_add(count);
    }

    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The smallest value of the bucket that holds the given share of all values; 0 if there are none.
    pub fn percentile(&self, share: f64) -> u64 {
        let total = self.total();
        let rank = ((total as f64 * share.clamp(0.0, 1.0)).ceil() as u64).clamp(1, total.max(1));
        let mut seen: u64 = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(*count);
            if seen >= rank {
                return smallest(bucket);
            }
        }
        0
    }

    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.1),
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

/// What is usually asked of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, p99_9, .. } = self;
        write!(f, "[samples: {samples}, P50: {p50}, P90: {p90}, P99: {p99}, P99.9: {p99_9}]")
    }
}

/// Named histograms, to be printed: a line each.
#[derive(Debug, Clone)]
pub struct AsciiChart<T = ()> {
    series: Vec<(String, Histogram<T>)>,
}

impl<T> Default for AsciiChart<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> AsciiChart<T> {
    pub fn new() -> Self {
        Self { series: Vec::new() }
    }

    #[must_use]
    pub fn add(mut self, name: &str, histogram: Histogram<T>) -> Self {
        self.series.push((name.to_owned(), histogram));
        self
    }

    pub fn compact(&self) -> &Self {
        self
    }

    pub fn detailed(&self) -> &Self {
        self
    }
}

impl<T> fmt::Display for AsciiChart<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, histogram) in &self.series {
            writeln!(f, "{name} {}", histogram.percentile_stats())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        for bucket in 0..BUCKETS {
            assert_eq!(bucket_of(smallest(bucket)), bucket);
            if bucket > 0 {
                assert_eq!(bucket_of(smallest(bucket) - 1), bucket - 1);
            }
        }
    }

    #[test]
    fn percentiles_are_within_a_quarter_of_the_truth() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile(0.5), 0);
        (1..=1000).for_each(|value| histogram.record(value));
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 1000);
        for (is, exact) in [(stats.p1, 10), (stats.p50, 500), (stats.p99, 990)] {
            assert!(is <= exact && exact - is <= exact / 4, "{is} for {exact}");
        }
    }

    #[test]
    fn a_chart_has_a_line_for_each_histogram() {
        let mut histogram = Histogram::<()>::new();
        histogram.record_n(5, 3);
        let chart = AsciiChart::new().add("append", histogram).add("apply", Histogram::new());
        assert_eq!(chart.detailed().to_string().lines().count(), 2);
        assert!(chart.compact().to_string().starts_with("append [samples: 3, P50: 5,"));
    }
}
