//! Volumes: who has them, and their requests, kind by kind.

use interpose::hooks::Kind;

use super::family::{Durations, Page};
use crate::api::{AccessInfo, KindInfo, VolumeInfo};

type Figure<T> = (&'static str, &'static str, fn(&T) -> f64);

const GAUGES: [Figure<VolumeInfo>; 4] = [
    ("vrio_volume_size_bytes", "Size of the volume.", |volume| volume.size.bytes() as f64),
    ("vrio_volume_requests_in_flight", "Requests that have arrived and not ended.", |volume| {
        volume.hooks.in_flight as f64
    }),
    ("vrio_volume_sessions", "Fronts that have the volume and a session now.", |volume| {
        volume.attachments.iter().filter(|front| front.connected).count() as f64
    }),
    ("vrio_volume_throttle_waiting", "Requests that wait for the volume's limits.", |volume| {
        volume.hooks.throttle.as_ref().map_or(0.0, |throttle| throttle.waiting as f64)
    }),
];

const REQUESTS: [Figure<KindInfo>; 3] = [
    ("vrio_volume_requests_total", "Requests that have ended.", |kind| kind.requests as f64),
    ("vrio_volume_bytes_total", "Bytes of their ranges.", |kind| kind.bytes as f64),
    ("vrio_volume_errors_total", "Requests that failed.", |kind| kind.errors as f64),
];

/// Upper ends of the buckets of latencies, in microseconds: what an operator tells apart,
/// from a device's best to a time-out.
const EDGES: [u64; 18] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 10_000_000,
];

pub(super) fn add(page: &mut Page, volumes: &[VolumeInfo]) {
    let labels: Vec<_> = volumes.iter().map(of).collect();
    let each = || labels.iter().map(|labels| &labels[..]).zip(volumes);
    for (name, help, figure) in GAUGES {
        page.gauge(name, help, each().map(|(labels, volume)| (labels, figure(volume))));
    }
    add_attachments(page, volumes);
    add_requests(page, volumes);
    let limited =
        || each().filter_map(|(labels, volume)| Some((labels, volume.hooks.throttle.as_ref()?)));
    let delayed = limited().map(|(labels, throttle)| (labels, throttle.delayed as f64));
    let help = "Requests that had to wait for the volume's limits.";
    page.counter("vrio_volume_throttled_requests_total", help, delayed);
    let waited = limited().map(|(labels, throttle)| (labels, throttle.waited_millis as f64 / 1e3));
    let help = "How long they have waited, one after the other.";
    page.counter("vrio_volume_throttle_wait_seconds_total", help, waited);
}

fn of(volume: &VolumeInfo) -> [(&str, &str); 2] {
    [("volume", &volume.name), ("device", &volume.device)]
}

fn add_attachments(page: &mut Page, volumes: &[VolumeInfo]) {
    let attached = volumes.iter().flat_map(|volume| {
        let [name, device] = of(volume);
        [("read", AccessInfo::Read), ("write", AccessInfo::Write)].map(|(text, access)| {
            let fronts = volume.attachments.iter().filter(|front| front.access == access);
            ([name, device, ("access", text)], fronts.count() as f64)
        })
    });
    let attached: Vec<_> = attached.collect();
    let samples = attached.iter().map(|(labels, value)| (&labels[..], *value));
    page.gauge("vrio_volume_attachments", "Fronts that have the volume.", samples);
}

/// A kind of which there was none yet counts 0: it shall not appear with its first error.
fn add_requests(page: &mut Page, volumes: &[VolumeInfo]) {
    let kinds = volumes.iter().flat_map(|volume| {
        let [name, device] = of(volume);
        Kind::ALL.map(|kind| {
            let seen = volume.hooks.kinds.iter().find(|seen| seen.kind == kind.name());
            ([name, device, ("kind", kind.name())], seen)
        })
    });
    let kinds: Vec<_> = kinds.collect();
    for (name, help, figure) in REQUESTS {
        let samples = kinds.iter().map(|(labels, seen)| (&labels[..], seen.map_or(0.0, figure)));
        page.counter(name, help, samples);
    }
    let name = "vrio_volume_request_duration_seconds";
    let help =
        "From the arrival at the server to the end; each is counted by up to a quarter longer.";
    page.histogram(name, help, kinds.iter().map(|(labels, seen)| (&labels[..], durations(*seen))));
}

fn durations(seen: Option<&KindInfo>) -> Durations {
    let none = Vec::new();
    let counted = seen.map_or(&none, |kind| &kind.buckets);
    let below = |micros: u64| counted.iter().filter(move |(highest, _)| *highest <= micros * 1000);
    Durations {
        count: seen.map_or(0, |kind| kind.requests),
        sum: seen.map_or(0.0, |kind| kind.latency.sum as f64 / 1e9),
        buckets: EDGES
            .map(|edge| (edge as f64 / 1e6, below(edge).map(|(_, count)| count).sum()))
            .to_vec(),
    }
}
