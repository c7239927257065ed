//! Runs simulations of the whole system.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use sim::run::{Failure, Stage};
use sim::story::Listener;
use tracing_subscriber::EnvFilter;

/// Runs guests, fronts, the network and the server in one thread, in virtual
/// time, from a seed, with faults.
#[derive(Debug, Parser)]
struct Args {
    /// The seed to run; with --runs, the first one
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// How many seeds to run, on all cores, until one fails
    #[arg(long, default_value_t = 1)]
    runs: u64,

    /// Tell what happens, and with RUST_LOG also what the system logs
    #[arg(long)]
    trace: bool,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let begun = Instant::now();
    let failure = if args.runs == 1 { one(&args)? } else { many(&args)? };
    Ok(match failure {
        None => {
            println!(
                "{} runs from seed {}: nothing wrong, in {:.1?}",
                args.runs,
                args.seed,
                begun.elapsed()
            );
            ExitCode::SUCCESS
        }
        Some(Failure { seed, what }) => {
            println!("seed {seed}: {what}");
            println!("cargo run -p sim -- --seed {seed} --trace");
            ExitCode::FAILURE
        }
    })
}

fn one(args: &Args) -> Result<Option<Failure>> {
    let mut listener: Option<Listener> = None;
    if args.trace {
        // What the system logs, between what happens to it.
        let filter = EnvFilter::from_default_env();
        let log = tracing_subscriber::fmt().with_env_filter(filter).without_time();
        log.with_writer(std::io::stdout).init();
        listener = Some(Box::new(|line| println!("{line}")));
    }
    Ok(match Stage::new()?.run(args.seed, listener) {
        Ok(summary) => {
            println!("{summary:?}");
            None
        }
        Err(failure) => Some(failure),
    })
}

fn many(args: &Args) -> Result<Option<Failure>> {
    let stage = Stage::new()?;
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let found: Mutex<Option<Failure>> = Mutex::new(None);
    let cores = std::thread::available_parallelism()?.get();
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= args.runs {
                        return;
                    }
                    if let Err(failure) = stage.run(args.seed + number, None) {
                        stop.store(true, Ordering::Relaxed);
                        *found.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
                    }
                }
            });
        }
    });
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}
