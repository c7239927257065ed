//! The command line of `vrio bench`.

use std::path::PathBuf;

use super::bytes::{BlockSizes, Bytes};
use super::cpu::Watched;
use super::pace::Wait;

/// Measure a vhost-user block device as a guest would see it, without a guest.
///
/// One thread drives all queues. Reads change nothing on the device; every
/// other workload destroys what it holds and therefore needs --overwrite.
///
/// The exit code is 0 only when every request succeeded and, with --verify,
/// every block held what was written to it.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct BenchArgs {
    /// The device's vhost-user socket: of `vrio front`, `vrio local`, or any other
    #[arg(value_name = "SOCKET")]
    pub(crate) socket: PathBuf,

    /// What to do
    #[arg(long, value_enum, default_value_t = Access::Randread)]
    pub(crate) rw: Access,

    /// Share of reads in rw and randrw, in per cent
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) read_percent: Option<u8>,

    /// Size of a request: 512 to 1M, or a range such as 4k-1M in steps of its smaller end
    #[arg(long, value_name = "SIZE", default_value = "4k")]
    pub(crate) bs: BlockSizes,

    /// Requests in flight on each queue
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=341))]
    pub(crate) depth: u16,

    /// Queues, used in turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) queues: u16,

    /// What to do until the device answers
    #[arg(long, value_enum, default_value_t = Wait::Poll)]
    pub(crate) wait: Wait,

    /// Offer so many requests a second, whether or not earlier ones have ended;
    /// latency then counts from the moment a request was meant to start
    #[arg(long, value_name = "PER_SECOND")]
    pub(crate) rate: Option<f64>,

    /// Stop after so many seconds; 10 when no other end is given
    #[arg(long, value_name = "SECONDS")]
    pub(crate) seconds: Option<f64>,

    /// Stop after so many requests
    #[arg(long, value_name = "N")]
    pub(crate) ios: Option<u64>,

    /// Stop after so many bytes
    #[arg(long, value_name = "SIZE")]
    pub(crate) bytes: Option<Bytes>,

    /// Where the region to use begins on the device
    #[arg(long, value_name = "SIZE", default_value = "0")]
    pub(crate) offset: Bytes,

    /// Size of the region to use; up to the device's end when not given
    #[arg(long, value_name = "SIZE")]
    pub(crate) size: Option<Bytes>,

    /// Offsets and data follow from this number
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Run on this CPU alone, with all threads
    #[arg(long, value_name = "CPU")]
    pub(crate) pin: Option<usize>,

    /// Write blocks that name themselves, check every read, and read all written
    /// blocks back at the end; a read-only run checks what an earlier run with the
    /// same seed wrote
    #[arg(long)]
    pub(crate) verify: bool,

    /// Allow the workload to destroy the data in the region
    #[arg(long)]
    pub(crate) overwrite: bool,

    /// Flush after every N answered writes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) flush_every: Option<u64>,

    /// Have the device make every write durable before it answers
    #[arg(long, conflicts_with = "flush_every")]
    pub(crate) write_through: bool,

    /// Of the requests that change data, so many per cent discard
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) discard_percent: u8,

    /// Of the requests that change data, so many per cent write zeroes
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) zero_percent: u8,

    /// Tell the device a request's data in pieces of at most this size
    #[arg(long, value_name = "SIZE")]
    pub(crate) segment: Option<Bytes>,

    /// Do without notifications by index (VIRTIO_F_EVENT_IDX)
    #[arg(long)]
    pub(crate) no_event_idx: bool,

    /// Give up when the device answers nothing for so long; 0 waits for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) timeout: u64,

    /// Also report the CPU time of this process; may be repeated
    #[arg(long = "pid", value_name = "NAME=PID")]
    pub(crate) pids: Vec<Watched>,

    /// Print the report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Direction and order of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Access {
    /// Read, offsets in order.
    Read,
    /// Write, offsets in order.
    Write,
    /// Read, offsets in random order.
    Randread,
    /// Write, offsets in random order.
    Randwrite,
    /// Read and write, offsets in random order.
    Randrw,
    /// Read and write, offsets in order.
    Rw,
}

impl Access {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Randread => "randread",
            Self::Randwrite => "randwrite",
            Self::Randrw => "randrw",
            Self::Rw => "rw",
        }
    }

    pub(crate) fn is_mixed(self) -> bool {
        matches!(self, Self::Randrw | Self::Rw)
    }
}
