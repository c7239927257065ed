//! How often which latency was seen, in a fixed array.

use std::time::Duration;

/// Buckets for each doubling: an upper bound is at most a quarter too high.
const PER_OCTAVE: usize = 4;

/// The last bucket begins at 2^39 nanoseconds and three quarters, about
/// fifteen minutes, and has everything above, too.
const BUCKETS: usize = 39 * PER_OCTAVE;

/// Latencies counted on a logarithmic scale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    total: u64,
    sum: u64,
    longest: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], total: 0, sum: 0, longest: 0 }
    }
}

impl Histogram {
    /// Counts one latency.
    #[inline]
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
        self.sum = self.sum.saturating_add(nanos);
        self.longest = self.longest.max(nanos);
    }

    /// How many were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// All latencies, one after the other.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// The longest one, exactly.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_nanos(self.longest)
    }

    /// What so many of a thousand did not exceed, to a quarter; zero while
    /// nothing was counted.
    #[must_use]
    pub fn per_mille(&self, per_mille: u64) -> Duration {
        let wanted = (u128::from(self.total) * u128::from(per_mille)).div_ceil(1000);
        let mut seen = 0;
        for (nanos, count) in self.buckets() {
            seen += u128::from(count);
            if seen >= wanted {
                return Duration::from_nanos(nanos.min(self.longest));
            }
        }
        Duration::ZERO
    }

    /// The buckets that are not empty: the highest latency in nanoseconds that
    /// belongs there, and how many do.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let numbered = self.counts.iter().enumerate().filter(|&(_, &count)| count > 0);
        numbered.map(|(bucket, &count)| (highest(bucket), count))
    }
}

#[inline]
fn bucket(nanos: u64) -> usize {
    if nanos < PER_OCTAVE as u64 {
        return nanos as usize;
    }
    let octave = nanos.ilog2() as usize;
    let quarter = (nanos >> (octave - 2)) as usize % PER_OCTAVE;
    ((octave - 1) * PER_OCTAVE + quarter).min(BUCKETS - 1)
}

fn highest(bucket: usize) -> u64 {
    if bucket == BUCKETS - 1 {
        return u64::MAX;
    }
    lowest(bucket + 1) - 1
}

fn lowest(bucket: usize) -> u64 {
    if bucket < PER_OCTAVE {
        return bucket as u64;
    }
    let (octave, quarter) = (bucket / PER_OCTAVE + 1, bucket % PER_OCTAVE);
    ((PER_OCTAVE + quarter) as u64) << (octave - 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_buckets_leave_no_gap() {
        for at in 1..BUCKETS {
            assert_eq!(bucket(lowest(at)), at);
            assert_eq!(bucket(lowest(at) - 1), at - 1);
        }
        assert_eq!(lowest(BUCKETS - 1), 7 << 37);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    proptest! {
        /// A volume's p99 is read off the buckets: it must never be below the
        /// true one, nor more than a quarter above it.
        #[test]
        fn a_percentile_is_right_to_a_quarter(
            nanos in prop::collection::vec(0u64..1 << 40, 1..200),
            per_mille in 1u64..=1000,
        ) {
            let mut histogram = Histogram::default();
            for &each in &nanos {
                histogram.record(Duration::from_nanos(each));
            }
            let mut sorted = nanos;
            sorted.sort_unstable();
            let place = (sorted.len() as u64 * per_mille).div_ceil(1000) as usize - 1;
            let exact = sorted[place];
            let told = histogram.per_mille(per_mille).as_nanos() as u64;
            let last = exact >= lowest(BUCKETS - 1);
            prop_assert!(told >= exact, "{} below {}", told, exact);
            prop_assert!(told <= exact + exact / 4 || last, "{} for {}", told, exact);
            prop_assert_eq!(histogram.longest().as_nanos() as u64, *sorted.last().expect("one"));
            prop_assert_eq!(histogram.sum().as_nanos() as u64, sorted.iter().sum::<u64>());
        }
    }
}
