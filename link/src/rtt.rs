//! The round trip, without the time that the server held the request.

use std::time::Duration;

/// The time-out before the first sample.
const INITIAL_TIMEOUT: Duration = Duration::from_millis(100);

/// The longest time-out that doubling leads to.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_millis(250);

/// Longer trips count as this: sums of them stay in range.
const LONGEST_TRIP: Duration = Duration::from_secs(3600);

/// The smoothed round trip and its variation, as in RFC 6298, in nanoseconds:
/// each answer is a sample, and a [`Duration`] divides by a thousand million.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundTrip {
    smoothed: Option<(u64, u64)>,
    least: u64,
}

impl RoundTrip {
    /// No sample yet; time-outs are never below `least`.
    #[must_use]
    pub(crate) fn new(least: Duration) -> Self {
        Self { smoothed: None, least: nanos(least) }
    }

    /// Takes a sample; only from requests that were sent once.
    pub(crate) fn sample(&mut self, trip: Duration) {
        let trip = nanos(trip).min(nanos(LONGEST_TRIP));
        self.smoothed = Some(match self.smoothed {
            None => (trip, trip / 2),
            Some((mean, variation)) => {
                let error = mean.abs_diff(trip);
                ((mean * 7 + trip) / 8, (variation * 3 + error) / 4)
            }
        });
    }

    /// How long to wait for an answer that is asked for the `doublings + 1`st
    /// time.
    #[must_use]
    pub(crate) fn timeout(&self, doublings: u8) -> Duration {
        let base = match self.smoothed {
            None => nanos(INITIAL_TIMEOUT),
            Some((mean, variation)) => (mean + variation * 4).max(self.least),
        };
        let doubled = base.saturating_mul(1 << doublings.min(10));
        Duration::from_nanos(doubled.min(nanos(MAX_TIMEOUT)))
    }
}

const fn nanos(span: Duration) -> u64 {
    span.as_secs().saturating_mul(1_000_000_000).saturating_add(span.subsec_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_the_samples_and_doubles_to_its_limit() {
        let mut trip = RoundTrip::new(Duration::from_millis(1));
        assert_eq!(trip.timeout(0), INITIAL_TIMEOUT);
        for _ in 0..100 {
            trip.sample(Duration::from_micros(30));
        }
        assert_eq!(trip.timeout(0), Duration::from_millis(1), "the least");
        assert_eq!(trip.timeout(3), Duration::from_millis(8));
        assert_eq!(trip.timeout(200), MAX_TIMEOUT);
        for _ in 0..100 {
            trip.sample(Duration::from_millis(20));
        }
        let settled = trip.timeout(0);
        assert!((Duration::from_millis(20)..Duration::from_millis(25)).contains(&settled));
    }
}
