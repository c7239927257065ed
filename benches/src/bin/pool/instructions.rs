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

/// What the names of the kernels, of their files or of who called a copy or a
/// fill for them contain.
const KERNELS: [&str; 6] = ["blake3", "aesni", "aes_hw", "ghash", "/ring-", "ring::aead"];

/// The same of what makes the requests and stands for the device.
const BENCH: [&str; 5] = ["benches/src/bin/pool", "/rand-", "/rand_core-", "'pool::", "'<pool::"];

/// Whose instructions they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Side {
    Pool,
    Kernel,
    Bench,
}

/// Functions that are listed of each row.
const LISTED: usize = 15;

/// Prints the table, and for each row where the instructions are.
pub(crate) fn run(only: Option<Row>) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut listings = Vec::new();
    println!("{:<36} {:>10} {:>10} {:>10}", "instructions a block", "pool", "kernels", "bench");
    for row in Row::ALL.into_iter().filter(|row| only.is_none_or(|only| only == *row)) {
        let functions = count(row, &directory.path().join("callgrind.out"))?;
        let sum = |side: Side| -> f64 {
            functions.iter().filter(|function| function.2 == side).map(|(count, ..)| count).sum()
        };
        let [pool, kernels, bench] = [Side::Pool, Side::Kernel, Side::Bench].map(sum);
        println!("{:<36} {pool:>10.0} {kernels:>10.0} {bench:>10.0}", row.name());
        listings.push((row, functions));
    }
    for (row, functions) in listings {
        println!("\n{}", row.name());
        let pool = functions.iter().filter(|function| function.2 == Side::Pool);
        for (count, name, _) in pool.take(LISTED) {
            println!("{count:>8.0}  {name}");
        }
    }
    Ok(())
}

/// What the bench does in callgrind.
pub(crate) fn work(row: Row) -> anyhow::Result<()> {
    Subject::new(row, BLOCKS)?.measure(BLOCKS)
}

/// Instructions a block of each function, the most first, and whose they are.
fn count(row: Row, out: &Path) -> anyhow::Result<Vec<(f64, String, Side)>> {
    let value = row.to_possible_value().context("every row has a name")?;
    let counted = Command::new("valgrind")
        .args(["--tool=callgrind", "--toggle-collect=*Subject::measure*"])
        // Copies and fills are whose who calls them.
        .arg("--separate-callers1=__mem*")
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
    let mut functions: HashMap<(String, Side), f64> = HashMap::new();
    for (count, name, side) in listing.lines().filter_map(function) {
        *functions.entry((name, side)).or_default() += count / BLOCKS as f64;
    }
    let mut functions: Vec<_> =
        functions.into_iter().map(|((name, side), count)| (count, name, side)).collect();
    functions.sort_by(|a, b| b.0.total_cmp(&a.0));
    Ok(functions)
}

/// A line such as `1,234 (5.6%)  file:name [object]`.
fn function(line: &str) -> Option<(f64, String, Side)> {
    let (count, rest) = line.trim_start().split_once(' ')?;
    let count: f64 = count.replace(',', "").parse().ok()?;
    let (_, place) = rest.split_once(')')?;
    let place = place.split(" [").next()?.trim();
    let (_, name) = place.split_once(':')?;
    let is_of = |parts: &[&str]| parts.iter().any(|part| place.contains(part));
    let side = match (is_of(&KERNELS), is_of(&BENCH)) {
        (true, _) => Side::Kernel,
        (false, true) => Side::Bench,
        (false, false) => Side::Pool,
    };
    Some((count, name.to_owned(), side))
}
