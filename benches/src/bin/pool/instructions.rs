//! How many instructions a block costs outside the kernels of encryption and
//! hashing: a count does not drift as times do.
//!
//! The bench runs itself in valgrind's callgrind, which counts while
//! [`Subject::measure`] runs.

use std::collections::HashMap;

use anyhow::Context;
use benches::callgrind;
use clap::ValueEnum;

use benches::pool::row::{Row, Subject};

/// Blocks that are counted: two checkpoints' worth.
const BLOCKS: u64 = 48 * 1024;

/// What the names of the kernels, of their files or of who called a copy or a
/// fill for them contain.
const KERNELS: [&str; 6] = ["blake3", "aesni", "aes_hw", "ghash", "/ring-", "ring::aead"];

/// The same of what makes the requests and stands for the device.
const BENCH: [&str; 5] = ["benches/src/pool", "/rand-", "/rand_core-", "'benches::", "'<benches::"];

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
    let mut listings = Vec::new();
    println!("{:<36} {:>10} {:>10} {:>10}", "instructions a block", "pool", "kernels", "bench");
    for row in Row::ALL.into_iter().filter(|row| only.is_none_or(|only| only == *row)) {
        let functions = count(row)?;
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
fn count(row: Row) -> anyhow::Result<Vec<(f64, String, Side)>> {
    let value = row.to_possible_value().context("every row has a name")?;
    let counted = callgrind::count("*Subject::measure*", None, &["work", value.get_name()])?;
    let mut functions: HashMap<(String, Side), f64> = HashMap::new();
    for (count, place) in counted.functions()? {
        if let Some((_, name)) = place.split_once(':') {
            let key = (name.to_owned(), side(&place));
            *functions.entry(key).or_default() += count / BLOCKS as f64;
        }
    }
    let mut functions: Vec<_> =
        functions.into_iter().map(|((name, side), count)| (count, name, side)).collect();
    functions.sort_by(|a, b| b.0.total_cmp(&a.0));
    Ok(functions)
}

fn side(place: &str) -> Side {
    let is_of = |parts: &[&str]| parts.iter().any(|part| place.contains(part));
    match (is_of(&KERNELS), is_of(&BENCH)) {
        (true, _) => Side::Kernel,
        (false, true) => Side::Bench,
        (false, false) => Side::Pool,
    }
}
