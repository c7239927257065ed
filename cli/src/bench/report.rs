//! The report: what was asked, what came out, as text or JSON.

use std::fmt::{self, Write};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::bytes::{BlockSizes, Bytes};
use super::cpu::Watched;
use super::pace::{Check, Wait};
use super::plan::{Fitted, Plan};
use super::tally::{STALL, Tally};
use super::workload::Kind;

/// Cores that a poller has on a quiet machine, nearly.
const WHOLE_CORE: f64 = 0.9;

/// Seconds below which scheduling noise says nothing.
const SHORT: f64 = 0.5;

/// Everything a run says; field names carry the units.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) asked: Asked,
    pub(crate) elapsed_seconds: f64,
    pub(crate) ios: u64,
    pub(crate) iops: f64,
    pub(crate) bytes: u64,
    pub(crate) bytes_per_second: f64,
    pub(crate) kinds: Vec<KindReport>,
    /// Times in which requests were under way and none was answered; none
    /// when all were short.
    pub(crate) stalls: Option<Stalls>,
    pub(crate) cpu: Vec<CpuReport>,
    /// What makes the figures doubtful.
    pub(crate) notes: Vec<String>,
    pub(crate) failures: u64,
    pub(crate) first_failures: Vec<String>,
    pub(crate) verify: Option<VerifyReport>,
}

/// The run in numbers that reproduce it.
#[derive(Debug, Serialize)]
pub(crate) struct Asked {
    pub(crate) socket: String,
    pub(crate) rw: &'static str,
    pub(crate) read_percent: u8,
    pub(crate) block_min_bytes: u32,
    pub(crate) block_max_bytes: u32,
    pub(crate) depth: usize,
    pub(crate) queues: usize,
    pub(crate) wait: &'static str,
    pub(crate) offset_bytes: u64,
    pub(crate) size_bytes: u64,
    pub(crate) seed: u64,
    pub(crate) offered_per_second: Option<f64>,
}

/// The answered requests of one kind.
#[derive(Debug, Serialize)]
pub(crate) struct KindReport {
    pub(crate) kind: &'static str,
    pub(crate) ios: u64,
    pub(crate) iops: f64,
    pub(crate) bytes: u64,
    pub(crate) bytes_per_second: f64,
    pub(crate) latency_ns: Latency,
}

/// Latency in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) min: u64,
    pub(crate) mean: f64,
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p99_9: u64,
    pub(crate) max: u64,
}

/// The times of at least [`STALL`] without an answer.
#[derive(Debug, Serialize)]
pub(crate) struct Stalls {
    pub(crate) count: u64,
    pub(crate) length_ns: Latency,
}

/// CPU time of one process during the measured part.
#[derive(Debug, Serialize)]
pub(crate) struct CpuReport {
    pub(crate) name: String,
    pub(crate) pid: u32,
    pub(crate) seconds: f64,
    pub(crate) seconds_per_million_ios: f64,
    /// Cores kept busy: CPU seconds per second.
    pub(crate) cores: f64,
}

/// What verification saw. Blocks have the run's smallest block size.
#[derive(Debug, Serialize)]
pub(crate) struct VerifyReport {
    pub(crate) checked_blocks: u64,
    pub(crate) unchecked_blocks: u64,
    pub(crate) read_back_blocks: u64,
    /// Blocks whose contents the run knew when it ended.
    pub(crate) known_blocks: u64,
    pub(crate) mismatched_sectors: u64,
    pub(crate) first_mismatches: Vec<String>,
}

/// What the run brought, for [`Report::new`].
pub(crate) struct Outcome {
    pub(crate) elapsed: Duration,
    pub(crate) measured: Tally,
    /// The read-back and the final flush.
    pub(crate) after: Tally,
    pub(crate) known_grains: u64,
    /// Of each process watched, the bench first; `None` when it ended meanwhile.
    pub(crate) cpu: Vec<(Watched, Option<Duration>)>,
}

impl Report {
    pub(crate) fn new(plan: &Plan, fitted: &Fitted, outcome: &Outcome) -> Self {
        let verify = fitted.region.check != Check::Off;
        Self::from_parts(Asked::new(plan, fitted), verify, outcome)
    }

    fn from_parts(asked: Asked, verify: bool, outcome: &Outcome) -> Self {
        let Outcome { elapsed, measured, after, .. } = outcome;
        let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
        let both = [measured, after];
        let ios = measured.ios();
        Self {
            elapsed_seconds: elapsed.as_secs_f64(),
            ios,
            iops: ios as f64 / seconds,
            bytes: measured.bytes(),
            bytes_per_second: measured.bytes() as f64 / seconds,
            kinds: kinds(measured, seconds),
            stalls: (!measured.stalls.is_empty()).then(|| Stalls {
                count: measured.stalls.len(),
                length_ns: Latency::of(&measured.stalls),
            }),
            notes: notes(&asked, outcome, seconds),
            asked,
            cpu: cpu(outcome, ios, seconds),
            failures: both.iter().map(|tally| tally.failures).sum(),
            first_failures: told(both.iter().flat_map(|tally| &tally.first_failures)),
            verify: verify.then(|| VerifyReport {
                checked_blocks: measured.checked_grains,
                unchecked_blocks: measured.unchecked_grains,
                read_back_blocks: after.checked_grains,
                known_blocks: outcome.known_grains,
                mismatched_sectors: both.iter().map(|tally| tally.mismatches).sum(),
                first_mismatches: told(both.iter().flat_map(|tally| &tally.first_mismatches)),
            }),
        }
    }

    /// Why the run failed, in a sentence; `None` when all was well.
    pub(crate) fn complaint(&self) -> Option<String> {
        let mut complaints = Vec::new();
        if self.failures > 0 {
            complaints.push(format!("{} requests failed", self.failures));
        }
        if let Some(verify) = &self.verify {
            if verify.mismatched_sectors > 0 {
                complaints.push(format!("{} sectors hold wrong data", verify.mismatched_sectors));
            }
            if verify.read_back_blocks < verify.known_blocks {
                complaints.push(format!(
                    "only {} of {} written blocks could be read back",
                    verify.read_back_blocks, verify.known_blocks
                ));
            }
        }
        (!complaints.is_empty()).then(|| complaints.join(", "))
    }

    /// The report for people, ending in a newline.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let Asked { rw, read_percent, depth, queues, wait, size_bytes, offset_bytes, seed, .. } =
            &self.asked;
        let sizes = BlockSizes { min: self.asked.block_min_bytes, max: self.asked.block_max_bytes };
        let plural = if *queues == 1 { "queue" } else { "queues" };
        let size = Bytes(*size_bytes);
        let share = match read_percent {
            0 | 100 => String::new(),
            percent => format!(" with {percent} % reads"),
        };
        writeln!(
            out,
            "{rw}{share} of {sizes}, depth {depth} on {queues} {plural}, wait {wait}; \
             {size} at offset {offset_bytes} B, seed {seed}, {:.2} s",
            self.elapsed_seconds
        )?;
        if let Some(rate) = self.asked.offered_per_second {
            writeln!(out, "  offered       {:>10}", per_second(rate))?;
        }
        for kind in &self.kinds {
            kind.write(out)?;
        }
        if let Some(Stalls { count, length_ns }) = &self.stalls {
            let Latency { p50, p99, max, .. } = *length_ns;
            let [least, p50, p99, max] = [STALL.as_nanos() as u64, p50, p99, max].map(duration);
            writeln!(
                out,
                "  stalls        {count:>10} of at least {least} without an answer: p50 {p50}  \
                 p99 {p99}  max {max}"
            )?;
        }
        for cpu in &self.cpu {
            writeln!(
                out,
                "  CPU           {:>10.2} s per million I/Os  {:>6.2} cores  {} (pid {})",
                cpu.seconds_per_million_ios, cpu.cores, cpu.name, cpu.pid
            )?;
        }
        for note in &self.notes {
            writeln!(out, "  note          {note}")?;
        }
        if let Some(verify) = &self.verify {
            verify.write(out)?;
        }
        if self.failures > 0 {
            writeln!(out, "  failed        {:>10} requests; the first:", self.failures)?;
            self.first_failures.iter().try_for_each(|line| writeln!(out, "    {line}"))?;
        }
        Ok(())
    }
}

impl Asked {
    fn new(plan: &Plan, fitted: &Fitted) -> Self {
        let wait = match plan.pace.wait {
            Wait::Poll => "poll",
            Wait::Yield => "yield",
            Wait::Sleep => "sleep",
        };
        Self {
            socket: plan.socket.display().to_string(),
            rw: plan.rw.name(),
            read_percent: fitted.shape.read_percent,
            block_min_bytes: plan.sizes.min,
            block_max_bytes: plan.sizes.max,
            depth: plan.depth,
            queues: plan.queues,
            wait,
            offset_bytes: fitted.region.offset,
            size_bytes: fitted.shape.grains * u64::from(fitted.region.grain),
            seed: fitted.region.seed,
            offered_per_second: plan.pace.rate,
        }
    }
}

impl KindReport {
    fn write(&self, out: &mut String) -> fmt::Result {
        write!(out, "  {:<13} {:>10} I/Os  {:>14}", self.kind, self.ios, per_second(self.iops))?;
        if self.bytes > 0 {
            write!(out, "  {:>8.1} MiB/s", self.bytes_per_second / f64::from(1 << 20))?;
        }
        let Latency { min, mean, p50, p90, p99, p99_9, max } = self.latency_ns;
        writeln!(out)?;
        write!(out, "    latency")?;
        for (name, nanos) in [
            ("min", min),
            ("mean", mean as u64),
            ("p50", p50),
            ("p90", p90),
            ("p99", p99),
            ("p99.9", p99_9),
            ("max", max),
        ] {
            write!(out, "  {name} {}", duration(nanos))?;
        }
        writeln!(out)
    }
}

impl VerifyReport {
    fn write(&self, out: &mut String) -> fmt::Result {
        let verdict = if self.mismatched_sectors == 0 { "all as written" } else { "WRONG DATA" };
        writeln!(
            out,
            "  verify        {:>10} blocks checked while running, {} read back: {verdict}",
            self.checked_blocks, self.read_back_blocks
        )?;
        if self.unchecked_blocks > 0 {
            writeln!(
                out,
                "                {:>10} blocks read before this run had written them, not checked",
                self.unchecked_blocks
            )?;
        }
        if self.mismatched_sectors > 0 {
            writeln!(
                out,
                "  mismatched    {:>10} sectors of 512 B; the first:",
                self.mismatched_sectors
            )?;
            self.first_mismatches.iter().try_for_each(|line| writeln!(out, "    {line}"))?;
        }
        Ok(())
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            min: histogram.min(),
            mean: histogram.mean(),
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

fn kinds(tally: &Tally, seconds: f64) -> Vec<KindReport> {
    let answered = |kind: &Kind| !tally.kind(*kind).latency.is_empty();
    let report = |kind: Kind| {
        let per_kind = tally.kind(kind);
        let ios = per_kind.latency.len();
        KindReport {
            kind: kind.name(),
            ios,
            iops: ios as f64 / seconds,
            bytes: per_kind.bytes,
            bytes_per_second: per_kind.bytes as f64 / seconds,
            latency_ns: Latency::of(&per_kind.latency),
        }
    };
    Kind::ALL.into_iter().filter(answered).map(report).collect()
}

fn cpu(outcome: &Outcome, ios: u64, seconds: f64) -> Vec<CpuReport> {
    let report = |(watched, time): &(Watched, Option<Duration>)| {
        let used = time.as_ref()?.as_secs_f64();
        Some(CpuReport {
            name: watched.name.clone(),
            pid: watched.pid,
            seconds: used,
            seconds_per_million_ios: used * 1e6 / ios.max(1) as f64,
            cores: used / seconds,
        })
    };
    outcome.cpu.iter().filter_map(report).collect()
}

fn notes(asked: &Asked, outcome: &Outcome, seconds: f64) -> Vec<String> {
    let mut notes = Vec::new();
    for (watched, _) in outcome.cpu.iter().filter(|(_, time)| time.is_none()) {
        notes.push(format!("{} (pid {}) ended during the run", watched.name, watched.pid));
    }
    if let [(_, Some(own)), ..] = &outcome.cpu[..] {
        let cores = own.as_secs_f64() / seconds;
        if asked.wait == "poll" && cores < WHOLE_CORE && seconds > SHORT {
            notes.push(format!(
                "this polling client had {cores:.2} of a core: the machine was busy, \
                 and a quiet one gives better figures"
            ));
        }
    }
    notes
}

fn told<T: ToString>(lines: impl Iterator<Item = T>) -> Vec<String> {
    lines.take(super::tally::TOLD).map(|line| line.to_string()).collect()
}

fn per_second(rate: f64) -> String {
    match rate {
        rate if rate >= 1e6 => format!("{:.3} M IOPS", rate / 1e6),
        rate if rate >= 1e3 => format!("{:.1} k IOPS", rate / 1e3),
        rate => format!("{rate:.1} IOPS"),
    }
}

pub(crate) fn duration(nanos: u64) -> String {
    match nanos {
        0..10_000 => format!("{:.2} us", nanos as f64 / 1e3),
        10_000..10_000_000 => format!("{:.1} us", nanos as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", nanos as f64 / 1e6),
        _ => format!("{:.1} s", nanos as f64 / 1e9),
    }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
