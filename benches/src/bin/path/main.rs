//! What a request costs on its way: instructions, system calls, allocations.
//!
//! Guest, front and server are one thread, turned one after the other, so each
//! turn moves a whole burst and the counts are the same in every run. Times are
//! `compare`'s business.

mod count;
mod instructions;
mod row;
mod subject;
mod system_calls;

use allocations::Counting;
use clap::{Parser, Subcommand};

use count::Side;
use instructions::Counted;
use row::Row;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Count what a 4 KiB request costs between the guest's ring and the device
#[derive(Debug, Parser)]
#[command(name = "path")]
struct Arguments {
    /// One row only
    #[arg(long)]
    row: Option<Row>,
    /// Requests that are under way at once
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=32))]
    depth: u16,
    /// Functions that are listed of each side, the dearest first
    #[arg(long, default_value_t = 0)]
    functions: usize,
    #[command(subcommand)]
    work: Option<Work>,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Make one row's requests, to be watched from outside
    #[command(hide = true)]
    Work { row: Row, depth: u16 },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(Work::Work { row, depth }) = arguments.work {
        return count::work(row, depth).map(|_| ());
    }
    let Arguments { row, depth, functions, .. } = arguments;
    println!("a 4 KiB request of {depth}, a raw volume, a namespace in memory\n");
    println!(
        "{:<12} {:>7} {:>7} {:>7} {:>10} {:>11} {:>7} {:>12}",
        "instructions",
        "front",
        "server",
        "both",
        "checksums",
        "controller",
        "copies",
        "system calls"
    );
    let rows = Row::ALL.into_iter().filter(|one| row.is_none_or(|only| only == *one));
    let mut details = Vec::new();
    for row in rows {
        let allocations = count::work(row, depth)?;
        let calls = system_calls::count(row, depth)?;
        let sides =
            row.sides().iter().map(|&side| Ok((side, instructions::count(row, depth, side)?)));
        let sides = sides.collect::<anyhow::Result<Vec<(Side, Counted)>>>()?;
        let sum = |of: fn(&Counted) -> f64| sides.iter().map(|(_, side)| of(side)).sum::<f64>();
        let ours = |wanted| {
            sides.iter().filter(|(side, _)| *side == wanted).fold(0.0, |sum, (_, it)| sum + it.ours)
        };
        println!(
            "{:<12} {:>7.0} {:>7.0} {:>7.0} {:>10.0} {:>11.0} {:>7} {:>12.3}",
            row.name(),
            ours(Side::Front),
            ours(Side::Server),
            sum(|side| side.ours),
            sum(|side| side.checksums),
            sum(|side| side.controller),
            sides.iter().map(|(_, side)| side.copied_by.len()).sum::<usize>(),
            calls.each,
        );
        details.push((row, allocations, calls.names, sides));
    }
    for (row, allocations, calls, sides) in details {
        println!("\n{}: {calls}; {allocations} allocations", row.name());
        for (side, counted) in sides {
            for copier in counted.copied_by {
                println!("    {side:?} copies data in {copier}");
            }
            for (count, name) in counted.functions.into_iter().take(functions) {
                println!("    {side:?} {count:>6.0}  {name}");
            }
        }
    }
    Ok(())
}
