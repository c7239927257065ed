//! The report, in the words of `vrio bench --json`, as far as `compare` reads them.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    iops: f64,
    kinds: [Kind; 1],
    /// The client first, then those it was told to watch.
    cpu: Vec<Cpu>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Kind {
    kind: &'static str,
    latency_ns: Latency,
}

#[derive(Debug, Serialize)]
struct Latency {
    p50: u32,
    p99: u32,
}

#[derive(Debug, Serialize)]
struct Cpu {
    seconds_per_million_ios: f64,
}

impl Report {
    pub(crate) fn new(
        write: bool,
        mut latencies: Vec<u32>,
        elapsed: Duration,
        used: &[Duration],
    ) -> anyhow::Result<Self> {
        latencies.sort_unstable();
        let count = latencies.len();
        let at = |share: usize| latencies.get(count * share / 100).copied();
        let latency = at(50).zip(at(99)).context("no request has ended")?;
        let latency_ns = Latency { p50: latency.0, p99: latency.1 };
        let each = |used: &Duration| Cpu {
            seconds_per_million_ios: used.as_secs_f64() * 1e6 / count as f64,
        };
        Ok(Self {
            iops: count as f64 / elapsed.as_secs_f64(),
            kinds: [Kind { kind: if write { "write" } else { "read" }, latency_ns }],
            cpu: used.iter().map(each).collect(),
            notes: Vec::new(),
        })
    }
}

/// CPU time of a process of one thread; nothing of one that has ended.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    let nanos = text.split(' ').next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_and_cpu_is_of_each_request() {
        let latencies = (1..=200).rev().collect();
        let used = [Duration::from_millis(2), Duration::from_millis(1)];
        let report = Report::new(true, latencies, Duration::from_secs(2), &used).expect("some");
        assert_eq!((report.iops, report.kinds[0].kind), (100.0, "write"));
        assert_eq!((report.kinds[0].latency_ns.p50, report.kinds[0].latency_ns.p99), (101, 199));
        assert_eq!(report.cpu[0].seconds_per_million_ios, 10.0);
        assert!(Report::new(true, Vec::new(), Duration::from_secs(1), &used).is_err());
    }
}
