//! `vrio`: the one binary. Each subcommand lives in a module of its name.

mod bench;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A remote block service for virtual machines.
#[derive(Parser)]
#[command(name = "vrio", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(Box<bench::BenchArgs>),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Bench(args) => bench::run(*args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vrio: {error:#}");
            ExitCode::FAILURE
        }
    }
}
