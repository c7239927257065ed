//! The floor of the path: what two cores do when a request carries its data and
//! nothing else. A client, a ring in shared memory, a front, UDP with segmentation in
//! the kernel, a server, copies of 4 KiB; no protocol, no virtio, no NVMe, no errors.
//!
//! `compare` runs it beside all else. Nobody serves a guest with it.

mod bench;
mod front;
mod fused;
mod message;
mod report;
mod ring;
mod server;
mod socket;
mod store;
mod sys;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The bare skeleton of the path, as a floor to measure against
#[derive(Debug, Parser)]
#[command(name = "skeleton", version)]
struct Arguments {
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Serve the ring from memory, in one thread that spins
    Fused {
        /// The file of the ring; it is made
        ring: PathBuf,
        /// Size of the store
        #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
        size: usize,
    },
    /// Take requests from the ring and send them to the server
    Front {
        /// The file of the ring; it is made
        ring: PathBuf,
        /// Where it is
        #[arg(long)]
        listen: SocketAddr,
        /// Where the server is
        #[arg(long)]
        server: SocketAddr,
    },
    /// Answer the front from memory
    Server {
        /// Where it is
        #[arg(long)]
        listen: SocketAddr,
        /// Where the front is
        #[arg(long)]
        front: SocketAddr,
        /// Made when it is ready
        #[arg(long)]
        sign: PathBuf,
        /// Size of the store
        #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
        size: usize,
    },
    /// Ask for blocks through the ring, and report as `vrio bench --json` does
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().part {
        Part::Fused { ring, size } => fused::serve(&ring, size),
        Part::Front { ring, listen, server } => front::serve(&ring, listen, server),
        Part::Server { listen, front, sign, size } => server::serve(listen, front, &sign, size),
        Part::Bench(options) => bench::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("skeleton: {error:#}");
            ExitCode::FAILURE
        }
    }
}
