//! What the pool costs: time beside its floor, bytes beside the guest's, and
//! how long opening and snapshots take when it is large.
//!
//! Each part answers one question. All run on a device in memory that completes
//! at once and forgets guests' blocks, so that what is measured is the pool.

mod amplification;
mod cost;
mod image;
mod instructions;
mod size;
mod sys;

use benches::pool::row::Row;
use clap::{Parser, Subcommand};

/// Measure the pool on a device that costs nothing
#[derive(Debug, Parser)]
#[command(name = "pool")]
struct Arguments {
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// What does a block cost, beside one copy, one hash and one seal of it?
    Cost {
        /// Rounds; the table says the median of their ratios
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// How many instructions does a block cost outside encryption and hashing?
    Instructions {
        /// One row only
        row: Option<Row>,
    },
    /// Make the requests of one row, to be watched from outside
    #[command(hide = true)]
    Work { row: Row },
    /// How many bytes go to the device for each that a guest writes?
    Amplification {
        /// The mapped size, in MiB
        #[arg(long, default_values_t = [256, 1024])]
        mapped: Vec<u64>,
    },
    /// What does a second copy of an image store, and a second clone read?
    Image {
        /// The image, of a file system for example
        file: std::path::PathBuf,
    },
    /// How long do opening and snapshots take, and how much memory, by size?
    Size {
        /// The device's size, in GiB
        #[arg(long, default_value_t = 64)]
        device: u64,
        /// Of it mapped: unique blocks, in GiB
        #[arg(long, default_value_t = 1)]
        mapped: u64,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().question {
        Question::Cost { rounds } => cost::run(rounds),
        Question::Instructions { row } => instructions::run(row),
        Question::Work { row } => instructions::work(row),
        Question::Amplification { mapped } => mapped.into_iter().try_for_each(amplification::run),
        Question::Image { file } => image::run(&file),
        Question::Size { device, mapped } => size::run(device, mapped),
    }
}
