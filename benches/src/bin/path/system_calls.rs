//! System calls of a request, as strace sees them.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::count::{requests, work_arguments};
use crate::row::Row;

/// System calls of a request.
pub(crate) struct Calls {
    pub(crate) each: f64,
    /// Of each name, in words.
    pub(crate) names: String,
}

/// Counts those between the two marks that the work makes.
pub(crate) fn count(row: Row, depth: u16) -> anyhow::Result<Calls> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("strace");
    let mut strace = Command::new("strace");
    strace.arg("-qq").arg("-o").arg(&log);
    strace.arg(std::env::current_exe()?).args(work_arguments(row, depth)?);
    let output =
        strace.output().context("strace cannot be started: install it (apt-get install strace)")?;
    if !output.status.success() {
        bail!("strace failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let log = std::fs::read_to_string(&log)?;
    let names = log.lines().filter_map(|line| line.split_once('(').map(|(name, _)| name));
    let mut parts = names.collect::<Vec<_>>();
    let marks: Vec<usize> = (0..parts.len()).filter(|&at| parts[at] == "getppid").collect();
    ensure!(marks.len() == 2, "the work made {} marks", marks.len());
    parts.truncate(marks[1]);
    let mut counts = BTreeMap::<&str, usize>::new();
    for name in parts.drain(marks[0] + 1..) {
        *counts.entry(name).or_default() += 1;
    }
    let each = counts.values().sum::<usize>() as f64 / requests(depth);
    let names =
        counts.iter().map(|(name, count)| format!("{:.3} {name}", *count as f64 / requests(depth)));
    Ok(Calls { each, names: names.collect::<Vec<_>>().join(", ") })
}
