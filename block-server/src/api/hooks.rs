//! What stands around a volume's requests, set and shown.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::size::Size;

/// `PATCH /volumes/NAME/hooks`; the answer is a [`VolumeInfo`](super::VolumeInfo). What is left
/// out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetHooks {
    /// Requests a second; 0 for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<u64>,
    /// Bytes a second; 0 for any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Size>,
    /// For how long unused rates add up, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_millis: Option<u64>,
    /// Whether requests are recorded, and where to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<SetRecord>,
}

/// A recording that begins or ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetRecord {
    /// There is none any more.
    Off,
    /// A new one, into this file of the server's machine, which must not exist.
    File(PathBuf),
}

/// What stands around a volume's requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HooksInfo {
    /// Its limits, if there are any.
    pub throttle: Option<ThrottleInfo>,
    /// Its recording, if there is one.
    pub record: Option<RecordInfo>,
    /// Requests that have arrived and not ended.
    pub in_flight: u64,
    /// What was asked for since the server's start, kind by kind.
    pub kinds: Vec<KindInfo>,
}

/// A volume's limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThrottleInfo {
    /// Requests a second.
    pub iops: Option<u64>,
    /// Bytes a second.
    pub bytes: Option<Size>,
    /// For how long unused rates add up, in milliseconds.
    pub burst_millis: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// Requests that had to wait.
    pub delayed: u64,
    /// How long these have waited, one after the other, in milliseconds.
    pub waited_millis: u64,
}

/// A volume's recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordInfo {
    /// Requests in it.
    pub requests: u64,
    /// Requests that are missing because the file was too slow.
    pub dropped: u64,
    /// Whether its file failed.
    pub failed: bool,
}

/// A volume's requests of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindInfo {
    /// read, write, flush, discard or zero.
    pub kind: String,
    /// Requests that have ended.
    pub requests: u64,
    /// Bytes of their ranges.
    pub bytes: u64,
    /// How many of them failed.
    pub errors: u64,
    /// Latencies in nanoseconds, from the arrival at the server to the end;
    /// percentiles to a quarter.
    pub latency: LatencyInfo,
    /// The highest latency of a bucket in nanoseconds, and how many requests
    /// are in it; empty ones are left out.
    pub buckets: Vec<(u64, u64)>,
}

/// Latencies in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyInfo {
    /// All of them, one after the other.
    pub sum: u64,
    /// Half of the requests were not slower.
    pub p50: u64,
    /// 99 of a hundred were not slower.
    pub p99: u64,
    /// 999 of a thousand were not slower.
    pub p99_9: u64,
    /// The slowest.
    pub max: u64,
}
