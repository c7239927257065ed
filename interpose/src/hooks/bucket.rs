//! A token bucket that never rounds.
//!
//! What it holds is counted in billionths of a token, so that a nanosecond
//! brings `rate` of them, whatever the rate.

use std::num::NonZeroU64;
use std::time::Duration;

use block_core::Time;

const PARTS: u128 = 1_000_000_000;

/// Tokens that come at a rate and are taken by requests; full at the start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    rate: NonZeroU64,
    capacity: u128,
    level: u128,
    filled: Time,
}

impl Bucket {
    /// A full bucket that gets `rate` tokens a second and holds what comes in
    /// `burst`, at least `least` tokens.
    pub(super) fn new(rate: NonZeroU64, burst: Duration, least: u64, now: Time) -> Self {
        let capacity = capacity(rate, burst, least);
        Self { rate, capacity, level: capacity, filled: now }
    }

    /// Another rate from now on. What it holds stays, as far as there is room.
    pub(super) fn reset(&mut self, rate: NonZeroU64, burst: Duration, least: u64, now: Time) {
        self.fill(now);
        self.rate = rate;
        self.capacity = capacity(rate, burst, least);
        self.level = self.level.min(self.capacity);
    }

    /// Puts in what has come since the last time.
    pub(super) fn fill(&mut self, now: Time) {
        let came = (now - self.filled).as_nanos().saturating_mul(self.rate.get().into());
        self.level = self.level.saturating_add(came).min(self.capacity);
        self.filled = self.filled.max(now);
    }

    /// How long until it holds so many tokens; more than it has room for are
    /// there when it is full.
    pub(super) fn wait_for(&self, tokens: u64) -> Duration {
        let wanted = (u128::from(tokens) * PARTS).min(self.capacity);
        let missing = wanted.saturating_sub(self.level);
        let nanos = missing.div_ceil(u128::from(self.rate.get()));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Takes tokens out, all there are if there are fewer.
    pub(super) fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(u128::from(tokens) * PARTS);
    }
}

fn capacity(rate: NonZeroU64, burst: Duration, least: u64) -> u128 {
    let burst = u128::from(rate.get()) * burst.as_nanos();
    burst.max(u128::from(least) * PARTS)
}
