//! Instructions of a request, as callgrind counts them.

use std::collections::HashMap;
use std::process::Command;

use anyhow::{Context, bail};

use crate::count::{Side, requests, work_command};
use crate::row::Row;

/// What one side's turns cost a request.
pub(crate) struct Counted {
    /// Instructions, but for what follows.
    pub(crate) ours: f64,
    /// Those of the frames' checksums.
    pub(crate) checksums: f64,
    /// Those of the soft controller, which a device would do by itself.
    pub(crate) controller: f64,
    /// Who copies a request's data: a copy each.
    pub(crate) copied_by: Vec<String>,
    /// The functions that are ours, the dearest first.
    pub(crate) functions: Vec<(f64, String)>,
}

/// What the names of the checksum's functions contain.
const CHECKSUMS: [&str; 2] = ["block-core/src/crc", "block_core::crc"];

/// What the names of the soft controller's functions contain, or of who called a
/// copy for it.
const CONTROLLER: [&str; 2] = ["nvme/src/soft", "nvme::soft"];

/// Instructions of the fastest copy of a block, 32 bytes a load and a store: whoever
/// has a copy made for so many a request copies its data.
const COPY: f64 = 256.0;

/// Counts one side's turns.
pub(crate) fn count(row: Row, depth: u16, side: Side) -> anyhow::Result<Counted> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind.out");
    let turns = match side {
        Side::Front => "*counted_front*",
        Side::Server => "*counted_server*",
    };
    let mut valgrind = Command::new("valgrind");
    // Else a thread that polls keeps the one whom it waits for from running.
    valgrind.arg("--fair-sched=try");
    valgrind.arg("--tool=callgrind").arg(format!("--toggle-collect={turns}"));
    // Copies are whose who calls them.
    valgrind.arg("--separate-callers1=__mem*");
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    work_command(&mut valgrind, row, depth)?;
    let output = valgrind
        .output()
        .context("valgrind cannot be started: install it (apt-get install valgrind)")?;
    if !output.status.success() {
        bail!("callgrind failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let listing = Command::new("callgrind_annotate")
        .args(["--auto=no", "--threshold=100"])
        .arg(&out)
        .output()?;
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    Ok(sum_up(&listing, requests(depth)))
}

fn sum_up(listing: &str, requests: f64) -> Counted {
    // A function has a line for each file that was inlined into it.
    let mut functions = HashMap::<String, f64>::new();
    let (mut checksums, mut controller) = (0.0, 0.0);
    for (count, place) in listing.lines().filter_map(function) {
        let count = count / requests;
        let is_of = |parts: &[&str]| parts.iter().any(|part| place.contains(part));
        if is_of(&CHECKSUMS) {
            checksums += count;
        } else if is_of(&CONTROLLER) {
            controller += count;
        } else if let Some((_, name)) = place.split_once(':') {
            *functions.entry(name.to_owned()).or_default() += count;
        }
    }
    let is_copy = |name: &str, count: f64| name.starts_with("__memcpy") && count > COPY;
    let copied_by = functions
        .iter()
        .filter(|(name, count)| is_copy(name.as_str(), **count))
        .map(|(name, _)| name.clone());
    let copied_by: Vec<String> = copied_by.map(|name| name.split('\'').skip(1).collect()).collect();
    functions.retain(|name, count| !is_copy(name, *count));
    let ours = functions.values().sum();
    let mut functions: Vec<(f64, String)> =
        functions.into_iter().map(|(name, count)| (count, name)).collect();
    functions.sort_by(|a, b| b.0.total_cmp(&a.0));
    Counted { ours, checksums, controller, copied_by, functions }
}

/// The count and place of a line such as `1,234 (5.6%)  file:name [object]`.
fn function(line: &str) -> Option<(f64, &str)> {
    let (count, rest) = line.trim_start().split_once(' ')?;
    let count: f64 = count.replace(',', "").parse().ok()?;
    let (_, place) = rest.split_once(')')?;
    let place = place.split(" [").next()?.trim();
    // The first line is the sum.
    place.contains(':').then_some((count, place))
}
