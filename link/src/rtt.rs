//! The round trip, without the time that the server held the request.

use std::time::Duration;

use block_core::Time;

/// The time-out before the first sample.
const INITIAL_TIMEOUT: Duration = Duration::from_millis(100);

/// The longest time-out that doubling leads to.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_millis(250);

/// Longer trips count as this: sums of them stay in range.
const LONGEST_TRIP: u64 = nanos(Duration::from_secs(3600));

/// The smoothed round trip and its variation, as in RFC 6298, in nanoseconds:
/// each answer is a sample, and a [`Duration`] divides by a thousand million.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoundTrip {
    /// Eight times the mean, so that an eighth of a sample counts; zero before the
    /// first.
    mean_eightfold: u64,
    /// Four times the variation, which is what a time-out adds to the mean.
    variation_fourfold: u64,
    least: u64,
    /// The time-out of what is asked for the first time.
    timeout: u64,
}

impl RoundTrip {
    /// No sample yet; time-outs are never below `least`.
    #[must_use]
    pub(crate) fn new(least: Duration) -> Self {
        Self {
            mean_eightfold: 0,
            variation_fourfold: 0,
            least: nanos(least),
            timeout: nanos(INITIAL_TIMEOUT),
        }
    }

    /// Takes a sample: what was sent at `sent` and `held` microseconds at the
    /// server is answered. Only of requests that were sent once.
    #[inline]
    pub(crate) fn sample(&mut self, sent: Time, now: Time, held: u32) {
        let trip = now.nanos().saturating_sub(sent.nanos());
        let trip = trip.saturating_sub(u64::from(held) * 1000).min(LONGEST_TRIP);
        if self.mean_eightfold == 0 {
            (self.mean_eightfold, self.variation_fourfold) = (trip * 8, trip * 2);
        } else {
            let error = (self.mean_eightfold / 8).abs_diff(trip);
            self.mean_eightfold = self.mean_eightfold - self.mean_eightfold / 8 + trip;
            self.variation_fourfold = self.variation_fourfold - self.variation_fourfold / 4 + error;
        }
        let timeout = self.mean_eightfold / 8 + self.variation_fourfold;
        self.timeout = timeout.max(self.least).min(nanos(MAX_TIMEOUT));
    }

    /// Until when to wait for an answer that is asked for now, for the
    /// `doublings + 1`st time.
    #[must_use]
    #[inline]
    pub(crate) fn deadline(&self, now: Time, doublings: u8) -> Time {
        let timeout = match doublings {
            0 => self.timeout,
            _ => (self.timeout << doublings.min(10)).min(nanos(MAX_TIMEOUT)),
        };
        Time::from_nanos(now.nanos().saturating_add(timeout))
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
        let sample = |trip: &mut RoundTrip, span: Duration| {
            let sent = Time::from_nanos(5);
            // What the server held is no part of the trip.
            trip.sample(sent, sent + span + Duration::from_micros(70), 70);
        };
        let timeout = |trip: &RoundTrip, doublings| {
            let now = Time::from_nanos(7);
            trip.deadline(now, doublings) - now
        };
        let mut trip = RoundTrip::new(Duration::from_millis(1));
        assert_eq!(timeout(&trip, 0), INITIAL_TIMEOUT);
        for _ in 0..100 {
            sample(&mut trip, Duration::from_micros(30));
        }
        assert_eq!(timeout(&trip, 0), Duration::from_millis(1), "the least");
        assert_eq!(timeout(&trip, 3), Duration::from_millis(8));
        assert_eq!(timeout(&trip, 200), MAX_TIMEOUT);
        for _ in 0..100 {
            sample(&mut trip, Duration::from_millis(20));
        }
        let settled = timeout(&trip, 0);
        assert!((Duration::from_millis(20)..Duration::from_millis(25)).contains(&settled));
        sample(&mut trip, Duration::from_secs(1 << 40));
        assert_eq!(timeout(&trip, 0), MAX_TIMEOUT);
    }
}
