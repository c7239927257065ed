//! How many instructions a block costs outside the kernels of encryption and
//! hashing: a count does not drift as times do.
//!
//! The bench runs itself in valgrind's callgrind, which counts while
//! [`Subject::measure`] runs.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::row::{Row, Subject};

/// Blocks that are counted: two checkpoints' worth.
const BLOCKS: u64 = 48 * 1024;

/// What the names of the kernels, or of their files, contain.
const KERNELS: [&str; 5] = ["blake3", "aesni", "aes_hw", "ghash", "/ring-"];

/// Functions that are listed of each row.
const LISTED: usize = 15;

/// Prints the table, and for each row where the instructions are.
pub(crate) fn run(only: Option<Row>) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut listings = Vec::new();
    println!("{:<36} {:>12} {:>12}", "instructions a block", "pool", "kernels");
    for row in Row::ALL.into_iter().filter(|row| only.is_none_or(|only| only == *row)) {
        let functions = count(row, &directory.path().join("callgrind.out"))?;
        let (kernels, pool): (Vec<_>, Vec<_>) =
            functions.into_iter().partition(|(.., is_kernel)| *is_kernel);
        let sum =
            |functions: &[(f64, String, bool)]| functions.iter().map(|(count, ..)| count).sum();
        let (pool_sum, kernel_sum): (f64, f64) = (sum(&pool), sum(&kernels));
        println!("{:<36} {pool_sum:>12.0} {kernel_sum:>12.0}", row.name());
        listings.push((row, pool));
    }
    for (row, functions) in listings {
        println!("\n{}", row.name());
        for (count, name, _) in functions.iter().take(LISTED) {
            println!("{count:>8.0}  {name}");
        }
    }
    Ok(())
}

/// What the bench does in callgrind.
pub(crate) fn work(row: Row) -> anyhow::Result<()> {
    Subject::new(row, BLOCKS / 8)?.measure(BLOCKS)
}

/// Instructions a block of each function, the most first, and whether it is a
/// kernel.
fn count(row: Row, out: &Path) -> anyhow::Result<Vec<(f64, String, bool)>> {
    let value = row.to_possible_value().context("every row has a name")?;
    let counted = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*Subject::measure*"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["work", value.get_name()])
        .output()
        .context("valgrind cannot be started: install it (apt-get install valgrind)")?;
    if !counted.status.success() {
        bail!("callgrind failed: {}", String::from_utf8_lossy(&counted.stderr));
    }
    let listing = Command::new("callgrind_annotate")
        .args(["--auto=no", "--threshold=100"])
        .arg(out)
        .output()?;
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    // A function has a line for each file that was inlined into it.
    let mut functions: HashMap<(String, bool), f64> = HashMap::new();
    for (count, name, is_kernel) in listing.lines().filter_map(function) {
        *functions.entry((name, is_kernel)).or_default() += count / BLOCKS as f64;
    }
    let mut functions: Vec<_> =
        functions.into_iter().map(|((name, is_kernel), count)| (count, name, is_kernel)).collect();
    functions.sort_by(|a, b| b.0.total_cmp(&a.0));
    Ok(functions)
}

/// A line such as `1,234 (5.6%)  file:name [object]`.
fn function(line: &str) -> Option<(f64, String, bool)> {
    let (count, rest) = line.trim_start().split_once(' ')?;
    let count: f64 = count.replace(',', "").parse().ok()?;
    let (_, place) = rest.split_once(')')?;
    let place = place.split(" [").next()?.trim();
    let (_, name) = place.split_once(':')?;
    Some((count, name.to_owned(), KERNELS.iter().any(|kernel| place.contains(kernel))))
}
