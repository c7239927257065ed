//! Instructions, as valgrind's callgrind counts them: the same in every run.
//!
//! A bench runs itself once more in callgrind, which collects while some function runs.
//! Valgrind has no AVX-512: code that looks for it takes another way there.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use tempfile::TempDir;

/// What was counted in one run of this program.
#[derive(Debug)]
pub struct Counted {
    /// What the program printed.
    pub printed: String,
    out: PathBuf,
    /// Holds `out`.
    _folder: TempDir,
}

/// Runs this program with these arguments and counts while a function runs whose name is
/// as `during` says; `*` there stands for anything. What was counted before a function
/// with the other name began is forgotten.
///
/// # Errors
/// There is no valgrind, or the program fails.
pub fn count(
    during: &str,
    forget_before: Option<&str>,
    arguments: &[impl AsRef<str>],
) -> anyhow::Result<Counted> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind.out");
    let mut valgrind = Command::new("valgrind");
    // Else a thread that polls keeps the one whom it waits for from running.
    valgrind.arg("--fair-sched=try");
    valgrind.arg("--tool=callgrind").arg(format!("--toggle-collect={during}"));
    valgrind.args(forget_before.map(|name| format!("--zero-before={name}")));
    // Copies and fills are whose who calls them.
    valgrind.arg("--separate-callers1=__mem*");
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    valgrind.arg(std::env::current_exe()?).args(arguments.iter().map(AsRef::as_ref));
    let output = valgrind
        .output()
        .context("valgrind cannot be started: install it (apt-get install valgrind)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "callgrind failed: {said}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(Counted { printed, out, _folder: folder })
}

impl Counted {
    /// All instructions.
    ///
    /// # Errors
    /// Callgrind wrote something else than a profile, or counted nothing.
    pub fn total(&self) -> anyhow::Result<f64> {
        let profile = std::fs::read_to_string(&self.out).context("callgrind's profile")?;
        total(&profile).context("callgrind has counted nothing: has the function another name?")
    }

    /// The instructions of each function and its place, such as `file:name`. A function
    /// has one for each file that was inlined into it.
    ///
    /// # Errors
    /// The profile cannot be read.
    pub fn functions(&self) -> anyhow::Result<Vec<(f64, String)>> {
        let listing = Command::new("callgrind_annotate")
            .args(["--auto=no", "--threshold=100"])
            .arg(&self.out)
            .output()
            .context("callgrind_annotate cannot be started: it comes with valgrind")?;
        let listing = String::from_utf8_lossy(&listing.stdout);
        let functions = listing.lines().filter_map(function);
        Ok(functions.map(|(count, place)| (count, place.to_owned())).collect())
    }
}

/// The sum in a profile.
fn total(profile: &str) -> Option<f64> {
    let total = profile.lines().find_map(|line| line.strip_prefix("totals: "))?;
    total.trim().parse().ok().filter(|total| *total > 0.0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_no_function() {
        let line = "1,234,567 (12.3%)  link/src/frame.rs:link::frame::Header::encode [path]";
        let place = "link/src/frame.rs:link::frame::Header::encode";
        assert_eq!(function(line), Some((1_234_567.0, place)));
        assert_eq!(function("9,000,000 (100.0%)  PROGRAM TOTALS"), None);
        assert_eq!(function("Profile data file 'callgrind.out' (creator: callgrind)"), None);
    }

    /// Else a stage whose function was renamed would seem to cost nothing.
    #[test]
    fn nothing_counted_is_not_taken_for_nothing_done() {
        assert_eq!(total("events: Ir\ntotals: 4711\n"), Some(4711.0));
        assert_eq!(total("events: Ir\ntotals: 0\n"), None);
        assert_eq!(total("events: Ir\n"), None);
    }
}
