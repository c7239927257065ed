//! How requests are made: when, until when, where, and what the data must be.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

/// What to do while the device has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Wait {
    /// Look at the rings again and again; uses a whole core.
    Poll,
    /// Look again after letting others run; for pollers that share a core.
    Yield,
    /// Sleep until the device's interrupt, as an ordinary guest does.
    Sleep,
}

/// When a run stops making requests; whichever comes first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) time: Option<Duration>,
    /// Requests, flushes not counted.
    pub(crate) ios: Option<u64>,
    /// Bytes of requests, flushes not counted.
    pub(crate) bytes: Option<u64>,
}

/// How requests are made; every field has been checked where it was made.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    pub(crate) wait: Wait,
    pub(crate) limits: Limits,
    /// Requests per second, offered whether or not earlier ones have ended.
    pub(crate) rate: Option<f64>,
    /// A flush follows after so many answered writes.
    pub(crate) flush_every: Option<u64>,
    /// How long the device may answer nothing at all.
    pub(crate) patience: Option<Duration>,
}

/// The region and how its contents are made and checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    /// Where grain 0 lies on the device, in bytes.
    pub(crate) offset: u64,
    /// Bytes in a grain.
    pub(crate) grain: u32,
    pub(crate) seed: u64,
    pub(crate) check: Check,
}

/// What is known of the data read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Nothing; data is not looked at.
    Off,
    /// What this run itself wrote.
    OwnWrites,
    /// A verified run with the same seed wrote all of it before.
    EarlierRun,
}

/// What other threads see of a running loop, and how they end it.
#[derive(Default)]
pub(crate) struct Gauge {
    pub(crate) ios: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) reading_back: AtomicBool,
    pub(crate) device_is_gone: AtomicBool,
}
