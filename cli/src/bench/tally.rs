//! What a run counts: latencies, failures, mismatches.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::driver::Status;
use super::pattern::Mismatch;
use super::workload::Kind;

/// How many failures and mismatches are told one by one; the rest is counted.
pub(crate) const TOLD: usize = 10;

/// Longest latency told apart, in nanoseconds: an hour.
const LONGEST: u64 = 3_600_000_000_000;

/// The shortest time without an answer that counts as a stall: well above what
/// a busy machine makes of a request.
pub(crate) const STALL: Duration = Duration::from_millis(20);

/// Everything counted in one run.
pub(crate) struct Tally {
    kinds: [PerKind; 5],
    /// Times of at least [`STALL`] in which requests were under way and none
    /// was answered, in nanoseconds.
    pub(crate) stalls: Histogram<u64>,
    pub(crate) failures: u64,
    pub(crate) first_failures: Vec<Failure>,
    /// Sectors that did not hold what they must.
    pub(crate) mismatches: u64,
    pub(crate) first_mismatches: Vec<Mismatch>,
    /// Grains read and compared.
    pub(crate) checked_grains: u64,
    /// Grains read whose contents this run could not know.
    pub(crate) unchecked_grains: u64,
}

/// The answered requests of one kind.
pub(crate) struct PerKind {
    /// In nanoseconds.
    pub(crate) latency: Histogram<u64>,
    pub(crate) bytes: u64,
}

/// A request that the device did not carry out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    /// In bytes from the device's start.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) len: u64,
    pub(crate) status: Status,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            kinds: Kind::ALL.map(|_| PerKind { latency: histogram(), bytes: 0 }),
            stalls: histogram(),
            failures: 0,
            first_failures: Vec::with_capacity(TOLD),
            mismatches: 0,
            first_mismatches: Vec::with_capacity(TOLD),
            checked_grains: 0,
            unchecked_grains: 0,
        }
    }

    pub(crate) fn kind(&self, kind: Kind) -> &PerKind {
        &self.kinds[kind as usize]
    }

    pub(crate) fn answered(&mut self, kind: Kind, latency: Duration, bytes: u64) {
        let per_kind = &mut self.kinds[kind as usize];
        per_kind.latency.saturating_record(latency.as_nanos().min(LONGEST.into()) as u64);
        per_kind.bytes += bytes;
    }

    /// An answer came after `silence` in which requests were under way.
    pub(crate) fn waited(&mut self, silence: Duration) {
        if silence >= STALL {
            self.stalls.saturating_record(silence.as_nanos().min(LONGEST.into()) as u64);
        }
    }

    pub(crate) fn fail(&mut self, failure: Failure) {
        self.failures += 1;
        if self.first_failures.len() < TOLD {
            self.first_failures.push(failure);
        }
    }

    pub(crate) fn mismatch(&mut self, mismatch: Mismatch) {
        self.mismatches += 1;
        if self.first_mismatches.len() < TOLD {
            self.first_mismatches.push(mismatch);
        }
    }

    /// Answered requests, flushes not counted.
    pub(crate) fn ios(&self) -> u64 {
        let flushes = self.kind(Kind::Flush).latency.len();
        self.kinds.iter().map(|kind| kind.latency.len()).sum::<u64>() - flushes
    }

    /// Bytes of answered requests.
    pub(crate) fn bytes(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.bytes).sum()
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3)
        .expect("1 to an hour at three digits is a valid range")
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, offset, len, status } = self;
        write!(f, "{} of {len} B at byte {offset}: {}", kind.name(), status.name())
    }
}
