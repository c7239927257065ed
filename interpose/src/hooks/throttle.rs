//! The throttle: requests and bytes a second, with a burst, first come first
//! served.
//!
//! A request costs one token of the requests' bucket and a token of the bytes'
//! bucket for each byte that it moves; flushes and trims move none. Over any
//! span of time a volume gets at most what comes in at its rates, and the
//! burst.

use std::cell::{Cell, RefCell};
use std::num::NonZeroU64;
use std::rc::Rc;
use std::time::Duration;

use block_core::Time;
use block_core::unit::MAX_REQUEST_BYTES;
use tokio::sync::{Mutex, Notify};

use super::RequestFacts;
use super::bucket::Bucket;
use super::clock::TurnClock;

/// What was not used for so long may be used at once, unless something else
/// is set.
pub const DEFAULT_BURST: Duration = Duration::from_millis(100);

/// The longest burst.
pub const MAX_BURST: Duration = Duration::from_secs(3600);

/// The lowest rate of bytes: the largest request takes half a minute then, as
/// long as guests wait for a disk.
pub const MIN_BYTES: u64 = 4096;

/// Bytes of [`Limits::encode`].
pub const LIMITS_BYTES: usize = 24;

/// What a volume may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    iops: Option<NonZeroU64>,
    bytes: Option<NonZeroU64>,
    burst: Duration,
}

impl Limits {
    /// So many requests and so many bytes a second, and a burst of as much as
    /// comes in such a time, at least one request of the largest size. `None`
    /// when nothing is limited, when fewer than [`MIN_BYTES`] a second are
    /// allowed, or when the burst is above [`MAX_BURST`].
    #[must_use]
    pub fn new(
        iops: Option<NonZeroU64>,
        bytes: Option<NonZeroU64>,
        burst: Duration,
    ) -> Option<Self> {
        let limited = iops.is_some() || bytes.is_some();
        let enough = bytes.is_none_or(|bytes| bytes.get() >= MIN_BYTES);
        (limited && enough && burst <= MAX_BURST).then_some(Self { iops, bytes, burst })
    }

    /// Requests a second.
    #[must_use]
    pub const fn iops(&self) -> Option<NonZeroU64> {
        self.iops
    }

    /// Bytes a second.
    #[must_use]
    pub const fn bytes(&self) -> Option<NonZeroU64> {
        self.bytes
    }

    /// For how long unused rates add up.
    #[must_use]
    pub const fn burst(&self) -> Duration {
        self.burst
    }

    /// The limits as they are stored with a volume, little-endian; no limits
    /// are 24 zero bytes.
    ///
    /// ```text
    /// 0    requests a second, u64; 0 for any number
    /// 8    bytes a second, u64; 0 for any number
    /// 16   burst in nanoseconds, u64
    /// ```
    #[must_use]
    pub fn encode(limits: Option<Self>) -> [u8; LIMITS_BYTES] {
        let mut bytes = [0; LIMITS_BYTES];
        if let Some(Self { iops, bytes: rate, burst }) = limits {
            bytes[..8].copy_from_slice(&iops.map_or(0, NonZeroU64::get).to_le_bytes());
            bytes[8..16].copy_from_slice(&rate.map_or(0, NonZeroU64::get).to_le_bytes());
            bytes[16..].copy_from_slice(&(burst.as_nanos() as u64).to_le_bytes());
        }
        bytes
    }

    /// The limits that were stored; none where the bytes say none that can be.
    #[must_use]
    pub fn decode(bytes: &[u8; LIMITS_BYTES]) -> Option<Self> {
        let ([iops, rate, burst], []) = bytes.as_chunks::<8>() else { return None };
        let rate_of = |bytes: &[u8; 8]| NonZeroU64::new(u64::from_le_bytes(*bytes));
        let burst = Duration::from_nanos(u64::from_le_bytes(*burst));
        Self::new(rate_of(iops), rate_of(rate), burst)
    }
}

/// What a throttle has held back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttled {
    /// Requests that wait.
    pub waiting: u64,
    /// Requests that had to wait and have passed.
    pub delayed: u64,
    /// How long these have waited, one after the other.
    pub waited: Duration,
}

/// Holds a volume's requests back.
#[derive(Debug)]
pub struct Throttle {
    limits: Cell<Limits>,
    buckets: RefCell<Buckets>,
    /// Held by the request that is next; the others queue for it.
    door: Mutex<()>,
    /// The next request should look again.
    look: Rc<Notify>,
    lifted: Cell<bool>,
    held_back: Cell<Throttled>,
}

#[derive(Debug)]
struct Buckets {
    requests: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Throttle {
    /// A throttle whose burst is there from the start.
    #[must_use]
    pub fn new(limits: Limits, now: Time) -> Self {
        let mut buckets = Buckets { requests: None, bytes: None };
        buckets.reset(limits, now);
        Self {
            limits: Cell::new(limits),
            buckets: RefCell::new(buckets),
            door: Mutex::new(()),
            look: Rc::default(),
            lifted: Cell::new(false),
            held_back: Cell::default(),
        }
    }

    /// What the volume may do.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits.get()
    }

    /// What it has held back.
    #[must_use]
    pub fn throttled(&self) -> Throttled {
        self.held_back.get()
    }

    pub(super) fn set_limits(&self, limits: Limits, now: Time) {
        self.limits.set(limits);
        self.buckets.borrow_mut().reset(limits, now);
        self.look.notify_one();
    }

    /// Lets everybody pass from now on, those that wait first.
    pub(super) fn lift(&self) {
        self.lifted.set(true);
        self.look.notify_one();
    }

    /// Lets the request pass if none waits and it need not either.
    pub(super) fn try_admit(&self, facts: RequestFacts, clock: &TurnClock) -> bool {
        self.door.try_lock().is_ok() && self.take(facts.bytes(), clock.now()).is_none()
    }

    /// Waits until all that came before have passed, and the request may.
    pub(super) async fn admit(&self, facts: RequestFacts, clock: &TurnClock) {
        let bytes = facts.bytes();
        let at_once = self.door.try_lock();
        if at_once.is_ok() && self.take(bytes, clock.now()).is_none() {
            return;
        }
        let waiting = Waiting::begin(&self.held_back);
        let begin = clock.now();
        let _turn = match at_once {
            Ok(turn) => turn,
            Err(_) => self.door.lock().await,
        };
        while let Some(wait) = self.take(bytes, clock.now()) {
            let _ringing = clock.ring(clock.now() + wait, &self.look);
            self.look.notified().await;
        }
        waiting.passed(clock.now() - begin);
    }

    /// Takes what a request costs, or says how long until that can be.
    fn take(&self, bytes: u64, now: Time) -> Option<Duration> {
        if self.lifted.get() {
            return None;
        }
        self.buckets.borrow_mut().take(bytes, now)
    }
}

impl Buckets {
    fn reset(&mut self, limits: Limits, now: Time) {
        let Limits { iops, bytes, burst } = limits;
        let reset = |bucket: &mut Option<Bucket>, rate: Option<NonZeroU64>, least| match rate {
            None => *bucket = None,
            Some(rate) => match bucket {
                Some(bucket) => bucket.reset(rate, burst, least, now),
                None => *bucket = Some(Bucket::new(rate, burst, least, now)),
            },
        };
        reset(&mut self.requests, iops, 1);
        reset(&mut self.bytes, bytes, MAX_REQUEST_BYTES as u64);
    }

    fn take(&mut self, bytes: u64, now: Time) -> Option<Duration> {
        let mut wait = Duration::ZERO;
        let costs = [(&mut self.requests, 1), (&mut self.bytes, bytes)];
        for (bucket, cost) in costs {
            if let Some(bucket) = bucket {
                bucket.fill(now);
                wait = wait.max(bucket.wait_for(cost));
            }
        }
        if wait > Duration::ZERO {
            return Some(wait);
        }
        for (bucket, cost) in [(&mut self.requests, 1), (&mut self.bytes, bytes)] {
            if let Some(bucket) = bucket {
                bucket.take(cost);
            }
        }
        None
    }
}

/// Counts a request among those that wait, for as long as it does.
struct Waiting<'a>(&'a Cell<Throttled>);

impl<'a> Waiting<'a> {
    fn begin(counts: &'a Cell<Throttled>) -> Self {
        let before = counts.get();
        counts.set(Throttled { waiting: before.waiting + 1, ..before });
        Self(counts)
    }

    fn passed(self, waited: Duration) {
        let Throttled { waiting, delayed, waited: before } = self.0.get();
        let waited = before.saturating_add(waited);
        self.0.set(Throttled { waiting, delayed: delayed + 1, waited });
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let before = self.0.get();
        self.0.set(Throttled { waiting: before.waiting - 1, ..before });
    }
}

#[cfg(test)]
#[path = "throttle_tests.rs"]
mod tests;
