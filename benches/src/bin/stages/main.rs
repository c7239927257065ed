//! What each stage of a request's way costs: instructions, by callgrind, and allocations.
//! Times are `cargo bench`'s.

use allocations::Counting;
use anyhow::Context;
use benches::callgrind;
use benches::meter::Meter;
use benches::stage::Stage;
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Count what each stage of a request's way costs
#[derive(Debug, Parser)]
#[command(name = "stages")]
struct Arguments {
    /// Only stages whose names contain this
    only: Option<String>,
    #[command(subcommand)]
    work: Option<Work>,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Do one stage's rounds, to be watched from outside
    #[command(hide = true)]
    Work { name: String },
}

fn main() -> anyhow::Result<()> {
    let Arguments { only, work } = Arguments::parse();
    if let Some(Work::Work { name }) = work {
        println!("{}", Stage::named(&name)?.work()?);
        return Ok(());
    }
    println!("{:<34} {:>12} {:>12}", "stage, of 32 at a time", "instructions", "allocations");
    let is_meant = |stage: &&Stage| only.as_ref().is_none_or(|part| stage.name.contains(part));
    let stages: Vec<Stage> = Stage::ALL.iter().filter(is_meant).copied().collect();
    // Counts do not mind company.
    let at_once = std::thread::available_parallelism()?.get();
    for stages in stages.chunks(at_once) {
        let counts = std::thread::scope(|scope| {
            let counts: Vec<_> = stages.iter().map(|&it| scope.spawn(move || count(it))).collect();
            counts.into_iter().map(|it| it.join().expect("no panic")).collect::<Vec<_>>()
        });
        for (stage, counted) in stages.iter().zip(counts) {
            let (instructions, allocations) = counted?;
            println!("{:<34} {instructions:>12.0} {allocations:>12.2}", stage.name);
        }
    }
    Ok(())
}

/// Instructions and allocations of one operation.
fn count(stage: Stage) -> anyhow::Result<(f64, f64)> {
    let work = ["work", stage.name];
    let counted = callgrind::count(Meter::COUNTED, Some(Meter::BEGIN), &work)?;
    let allocations = counted.printed.trim().parse().context("the work says its allocations")?;
    Ok((counted.total()? / Stage::counted(), allocations))
}
