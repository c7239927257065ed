//! `vrio`: the one binary. Each subcommand lives in a module of its name.

mod bench;
mod config;
mod control;
mod front;
mod key;
mod link_key;
mod local;
mod moment;
mod nvme;
mod pool;
mod progress;
mod prompt;
mod replay;
mod server;
mod snapshot;
mod stop;
mod stream;
mod table;
mod thread;
mod volume;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// A remote block service for virtual machines.
///
/// `vrio server` runs on the IOhost, which has the NVMe devices; `vrio front`
/// on each VMhost, where it gives QEMU vhost-user-blk disks. VRIO_LOG sets what
/// is logged to stderr (error, warn, info, debug, trace).
#[derive(Parser)]
#[command(name = "vrio", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Server(server::ServerArgs),
    Front(front::FrontArgs),
    Local(local::LocalArgs),
    Volume(volume::VolumeArgs),
    Snapshot(snapshot::SnapshotArgs),
    Pool(pool::PoolArgs),
    Key(key::KeyArgs),
    Bench(Box<bench::BenchArgs>),
    Replay(replay::ReplayArgs),
    Nvme(nvme::NvmeArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging();
    let done = match cli.command {
        Command::Server(args) => server::run(&args),
        Command::Front(args) => front::run(&args),
        Command::Local(args) => local::run(&args),
        Command::Volume(args) => volume::run(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Pool(args) => pool::run(args),
        Command::Key(args) => key::run(args),
        Command::Bench(args) => bench::run(*args),
        Command::Replay(args) => replay::run(&args),
        Command::Nvme(args) => nvme::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vrio: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging() {
    let filter = EnvFilter::try_from_env("VRIO_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}
