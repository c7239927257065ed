//! What a replay says at its end.

use std::fmt::{self, Write};
use std::time::Duration;

use serde::Serialize;

use super::ReplayArgs;
use super::load::Loaded;
use crate::bench::report::duration;
use crate::bench::tally::Tally;
use crate::bench::workload::Kind;

/// What was made, and how long it took, then and now.
#[derive(Serialize)]
pub(super) struct Report {
    volume: String,
    trace: String,
    socket: String,
    /// `null` without waiting.
    speed: Option<f64>,
    recorded_seconds: f64,
    replayed_seconds: f64,
    kinds: Vec<KindReport>,
    left_out: LeftOutReport,
    failures: u64,
    first_failures: Vec<String>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct LeftOutReport {
    changes: u64,
    failed: u64,
    gaps: u64,
}

#[derive(Serialize)]
struct KindReport {
    kind: &'static str,
    recorded: Figures,
    replayed: Figures,
}

/// Latencies in nanoseconds.
#[derive(Serialize)]
struct Figures {
    requests: u64,
    bytes: u64,
    mean: f64,
    p50: u64,
    p99: u64,
    p99_9: u64,
    max: u64,
}

impl Report {
    pub(super) fn new(
        args: &ReplayArgs,
        loaded: &Loaded,
        elapsed: Duration,
        replayed: &Tally,
    ) -> Self {
        let any = |kind: &Kind| {
            !loaded.recorded.kind(*kind).latency.is_empty()
                || !replayed.kind(*kind).latency.is_empty()
        };
        let report = |kind: Kind| KindReport {
            kind: kind.name(),
            recorded: Figures::of(&loaded.recorded, kind),
            replayed: Figures::of(replayed, kind),
        };
        let left_out = loaded.left_out;
        Self {
            volume: loaded.name.clone(),
            trace: args.trace.display().to_string(),
            socket: args.socket.display().to_string(),
            speed: args.speed.0,
            recorded_seconds: loaded.took.as_secs_f64(),
            replayed_seconds: elapsed.as_secs_f64(),
            kinds: Kind::ALL.into_iter().filter(any).map(report).collect(),
            left_out: LeftOutReport {
                changes: left_out.changes,
                failed: left_out.failed,
                gaps: left_out.gaps,
            },
            failures: replayed.failures,
            first_failures: replayed.first_failures.iter().map(ToString::to_string).collect(),
            notes: notes(loaded),
        }
    }

    /// The report as people read it.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("a string takes everything");
        out
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let speed = self.speed.map_or("max".to_owned(), |speed| speed.to_string());
        writeln!(
            out,
            "replay of volume {} at speed {speed}: {:.2} s, recorded {:.2} s",
            self.volume, self.replayed_seconds, self.recorded_seconds
        )?;
        writeln!(
            out,
            "  {:<22} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
            "", "requests", "mean", "p50", "p99", "p99.9", "max"
        )?;
        for KindReport { kind, recorded, replayed } in &self.kinds {
            recorded.write(out, kind, "recorded")?;
            replayed.write(out, "", "replayed")?;
        }
        for note in &self.notes {
            writeln!(out, "  note          {note}")?;
        }
        if self.failures > 0 {
            writeln!(out, "  failed        {:>10} requests; the first:", self.failures)?;
            self.first_failures.iter().try_for_each(|line| writeln!(out, "    {line}"))?;
        }
        Ok(())
    }
}

impl Figures {
    fn of(tally: &Tally, kind: Kind) -> Self {
        let per_kind = tally.kind(kind);
        let latency = &per_kind.latency;
        Self {
            requests: latency.len(),
            bytes: per_kind.bytes,
            mean: latency.mean(),
            p50: latency.value_at_quantile(0.5),
            p99: latency.value_at_quantile(0.99),
            p99_9: latency.value_at_quantile(0.999),
            max: latency.max(),
        }
    }

    fn write(&self, out: &mut String, kind: &str, when: &str) -> fmt::Result {
        let Self { requests, mean, p50, p99, p99_9, max, .. } = *self;
        write!(out, "  {kind:<13} {when} {requests:>10}")?;
        for nanos in [mean as u64, p50, p99, p99_9, max] {
            write!(out, " {:>10}", duration(nanos))?;
        }
        writeln!(out)
    }
}

fn notes(loaded: &Loaded) -> Vec<String> {
    let left_out = loaded.left_out;
    let counted = [
        (left_out.changes, "requests would change data and were not made (see --write-data)"),
        (left_out.failed, "requests had failed and were not made"),
        (left_out.gaps, "requests are missing in the trace: its file was too slow"),
    ];
    let mut notes: Vec<String> = counted
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if loaded.without_flush {
        notes.push("flushes were not made: the device has none".to_owned());
    }
    notes
}
