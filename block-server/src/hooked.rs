//! What stands around a volume's requests: set and shown.

use std::num::NonZeroU64;
use std::time::Duration;

use block_core::Device;
use interpose::hooks::throttle::{DEFAULT_BURST, MAX_BURST, MIN_BYTES};
use interpose::hooks::trace::{Header, Sink};
use interpose::hooks::{Hooks, Kind, Limits, Recorder};
use link::VolumeName;
use thiserror::Error;

use crate::api::{HooksInfo, KindInfo, LatencyInfo, RecordInfo, ThrottleInfo, VolumeInfo};
use crate::errand::{self, Failed};
use crate::layout::VolumeRecord;
use crate::room::{Located, Room};
use crate::size::Size;

/// Limits that a throttle cannot keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadLimits {
    /// No guest would wait for its requests.
    #[error(
        "a throttle lets at least {MIN_BYTES} bytes a second pass; say more, or `off` for any number"
    )]
    TooSlow,
    /// It adds up for too long.
    #[error("a throttle's burst is at most {} seconds", MAX_BURST.as_secs())]
    LongBurst,
    /// A burst of what is not limited.
    #[error(
        "the volume has no limits that a burst could go beyond; set `throttle.iops` or \
         `throttle.bytes`, too"
    )]
    OnlyBurst,
}

/// What changes around a volume; what is not said stays.
#[derive(Debug, Default)]
pub struct HookChange {
    /// Requests a second; 0 for any number.
    pub iops: Option<u64>,
    /// Bytes a second; 0 for any number.
    pub bytes: Option<u64>,
    /// For how long unused rates add up.
    pub burst: Option<Duration>,
    /// Whether requests are recorded.
    pub record: Option<RecordChange>,
}

/// A recording that begins or ends.
#[derive(Debug)]
pub enum RecordChange {
    /// There is none any more.
    Off,
    /// A new one.
    Begin {
        /// Where it goes.
        sink: Sink,
        /// When that was asked for, in seconds since 1970.
        asked: u64,
    },
}

impl HookChange {
    fn limits(&self, old: Option<Limits>) -> Result<Option<Limits>, BadLimits> {
        let Self { iops, bytes, burst, .. } = *self;
        let iops = iops.map_or(old.and_then(|old| old.iops()), NonZeroU64::new);
        let bytes = bytes.map_or(old.and_then(|old| old.bytes()), NonZeroU64::new);
        if bytes.is_some_and(|bytes| bytes.get() < MIN_BYTES) {
            return Err(BadLimits::TooSlow);
        }
        if burst.is_some_and(|burst| burst > MAX_BURST) {
            return Err(BadLimits::LongBurst);
        }
        if burst.is_some() && iops.is_none() && bytes.is_none() {
            return Err(BadLimits::OnlyBurst);
        }
        let burst = burst.unwrap_or(old.map_or(DEFAULT_BURST, |old| old.burst()));
        Ok(Limits::new(iops, bytes, burst))
    }
}

impl<D: Device + 'static> Room<D> {
    /// Changes what stands around a volume. Limits are stored with it; a
    /// recording ends with the server.
    pub(crate) async fn set_hooks(
        &self,
        name: &VolumeName,
        change: HookChange,
    ) -> Result<VolumeInfo, Failed> {
        let Located { device, store, volume } = self.existing(name)?;
        let guard = volume.change.lock().await;
        let old = store.existing(&volume)?;
        let before = limits(&old);
        let after = change.limits(before)?;
        if after != before {
            let commit =
                store.commit(&volume, VolumeRecord { settings: settings(after), ..old }).await;
            commit.map_err(crate::store::StoreError::from)?;
            volume.hooks.set_limits(after, self.now());
        }
        drop(guard);
        match change.record {
            None => {}
            Some(RecordChange::Off) => volume.hooks.stop_recording(),
            Some(RecordChange::Begin { sink, asked }) => {
                let record = volume.record();
                let (name, blocks) = (record.name.to_string(), volume.requests.blocks());
                let began = asked.saturating_mul(1_000_000_000);
                let header = Header { volume: record.id.0, name, blocks, began };
                volume.hooks.record(Recorder::new(header, sink, self.now()));
            }
        }
        Ok(errand::describe(device, &volume))
    }
}

/// What a volume's record says about its throttle: the settings are
/// [`Limits::encode`]'s bytes, or none.
pub(crate) fn limits(record: &VolumeRecord) -> Option<Limits> {
    Limits::decode(record.settings.first_chunk()?)
}

fn settings(limits: Option<Limits>) -> Vec<u8> {
    limits.map_or(Vec::new(), |limits| Limits::encode(Some(limits)).to_vec())
}

/// What stands around a volume, and what it saw.
pub(crate) fn describe(hooks: &Hooks) -> HooksInfo {
    let measured = hooks.measured();
    let throttled = hooks.throttled().unwrap_or_default();
    let throttle = hooks.limits().map(|limits| ThrottleInfo {
        iops: limits.iops().map(NonZeroU64::get),
        bytes: limits.bytes().map(|bytes| Size(bytes.get())),
        burst_millis: limits.burst().as_millis() as u64,
        waiting: throttled.waiting,
        delayed: throttled.delayed,
        waited_millis: throttled.waited.as_millis() as u64,
    });
    let record = hooks.recorded().map(|recorded| RecordInfo {
        requests: recorded.requests,
        dropped: recorded.dropped,
        failed: !recorded.open,
    });
    let seen = |kind: &Kind| measured.kind(*kind).latency.total() > 0;
    let info = |kind: Kind| {
        let per_kind = measured.kind(kind);
        let latency = &per_kind.latency;
        let nanos = |per_mille| latency.per_mille(per_mille).as_nanos() as u64;
        KindInfo {
            kind: kind.name().to_owned(),
            requests: latency.total(),
            bytes: per_kind.bytes,
            errors: per_kind.errors,
            latency: LatencyInfo {
                sum: latency.sum().as_nanos() as u64,
                p50: nanos(500),
                p99: nanos(990),
                p99_9: nanos(999),
                max: latency.longest().as_nanos() as u64,
            },
            buckets: latency.buckets().collect(),
        }
    };
    let kinds = Kind::ALL.into_iter().filter(seen).map(info).collect();
    HooksInfo { throttle, record, in_flight: measured.in_flight, kinds }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(iops: Option<u64>, bytes: Option<u64>, burst: Option<u64>) -> HookChange {
        HookChange { iops, bytes, burst: burst.map(Duration::from_millis), record: None }
    }

    /// `throttle.iops=off` must not lift the limit of bytes, and a burst that
    /// was set stays when a rate changes.
    #[test]
    fn what_is_not_said_stays() {
        let set = |old, asked: HookChange| asked.limits(old).expect("limits");
        let both = set(None, change(Some(500), Some(1 << 20), Some(2000)));
        let bytes = set(both, change(Some(0), None, None)).expect("a limit");
        assert_eq!((bytes.iops(), bytes.bytes()), (None, NonZeroU64::new(1 << 20)));
        assert_eq!(bytes.burst(), Duration::from_secs(2));
        assert_eq!(set(Some(bytes), change(None, Some(0), None)), None);
        assert_eq!(set(both, HookChange::default()), both);
        let usual = set(None, change(Some(1), None, None)).expect("a limit");
        assert_eq!(usual.burst(), DEFAULT_BURST);
    }

    #[test]
    fn what_no_throttle_keeps_is_refused() {
        let refused = |asked: HookChange| asked.limits(None).expect_err("refused");
        assert_eq!(refused(change(None, Some(4095), None)), BadLimits::TooSlow);
        assert_eq!(refused(change(Some(1), None, Some(3_600_001))), BadLimits::LongBurst);
        assert_eq!(refused(change(None, None, Some(1))), BadLimits::OnlyBurst);
    }
}
