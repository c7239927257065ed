//! Devices, and what they say of themselves.

use super::family::Page;
use crate::api::{DeviceInfo, HealthInfo};

type Figure<T> = (&'static str, &'static str, fn(&T) -> f64);

const GAUGES: [Figure<DeviceInfo>; 4] = [
    ("vrio_device_up", "1 if the device is served.", |device| {
        f64::from(u8::from(device.problem.is_none()))
    }),
    ("vrio_device_size_bytes", "Size of the device.", |device| device.size.bytes() as f64),
    ("vrio_device_free_bytes", "What no volume uses.", |device| device.free.bytes() as f64),
    ("vrio_device_volumes", "Volumes on the device.", |device| device.volumes as f64),
];

const COUNTERS: [Figure<DeviceInfo>; 2] = [
    ("vrio_device_resets_total", "Resets from which it came back.", |device| device.resets as f64),
    ("vrio_device_late_commands_total", "Commands not answered in time.", |device| {
        device.late_commands as f64
    }),
];

const HEALTH_GAUGES: [Figure<HealthInfo>; 3] = [
    ("vrio_device_temperature_celsius", "Composite temperature.", |log| f64::from(log.celsius)),
    ("vrio_device_available_spare_ratio", "Spare blocks left.", |log| {
        f64::from(log.spare_percent) / 100.0
    }),
    ("vrio_device_used_ratio", "Of the life that its maker expects; can exceed 1.", |log| {
        f64::from(log.used_percent) / 100.0
    }),
];

const HEALTH_COUNTERS: [Figure<HealthInfo>; 5] = [
    ("vrio_device_read_bytes_total", "Bytes read in the device's life.", |log| {
        log.bytes_read as f64
    }),
    ("vrio_device_written_bytes_total", "Bytes written in the device's life.", |log| {
        log.bytes_written as f64
    }),
    ("vrio_device_power_on_seconds_total", "Time with power, in whole hours.", |log| {
        log.power_on_hours as f64 * 3600.0
    }),
    ("vrio_device_unsafe_shutdowns_total", "Times that power went without a shutdown.", |log| {
        log.unsafe_shutdowns as f64
    }),
    ("vrio_device_media_errors_total", "Times that data was not as it was written.", |log| {
        log.media_errors as f64
    }),
];

/// The bits of the critical warning (NVMe Base 2.0, section 5.16.1.3).
const WARNINGS: [&str; 6] =
    ["spare", "temperature", "reliability", "read_only", "backup", "persistent_memory"];

pub(super) fn add(page: &mut Page, devices: &[DeviceInfo]) {
    let labels: Vec<_> = devices.iter().map(|device| [("device", &device.name[..])]).collect();
    let each = || labels.iter().map(|labels| &labels[..]).zip(devices);
    for (name, help, figure) in GAUGES {
        page.gauge(name, help, each().map(|(labels, device)| (labels, figure(device))));
    }
    for (name, help, figure) in COUNTERS {
        page.counter(name, help, each().map(|(labels, device)| (labels, figure(device))));
    }
    let healthy = || each().filter_map(|(labels, device)| Some((labels, device.health.as_ref()?)));
    for (name, help, figure) in HEALTH_GAUGES {
        page.gauge(name, help, healthy().map(|(labels, log)| (labels, figure(log))));
    }
    for (name, help, figure) in HEALTH_COUNTERS {
        page.counter(name, help, healthy().map(|(labels, log)| (labels, figure(log))));
    }
    add_warnings(page, devices);
}

fn add_warnings(page: &mut Page, devices: &[DeviceInfo]) {
    let warnings = devices.iter().flat_map(|device| {
        let critical = device.health.as_ref().map(|log| log.critical_warning);
        WARNINGS.iter().zip(0..).filter_map(move |(&warning, bit)| {
            let labels = [("device", &device.name[..]), ("warning", warning)];
            Some((labels, f64::from(critical? >> bit & 1)))
        })
    });
    let warnings: Vec<_> = warnings.collect();
    let samples = warnings.iter().map(|(labels, value)| (&labels[..], *value));
    page.gauge("vrio_device_critical_warning", "1 if the device warns of this.", samples);
}
