//! The client: random blocks, so many at once, polled for.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::report::{Report, cpu_time};
use crate::ring::{ENTRIES, Request, Ring};

/// Without an answer for so long one was lost: nobody repeats it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Every latency is kept, so no run is longer, in seconds.
const LONGEST: f64 = 60.0;

/// Requests between two looks at the clock's end while all goes well.
const LOOK: u32 = 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The file of the ring
    ring: PathBuf,
    /// Write, where reads are the rule
    #[arg(long)]
    write: bool,
    /// Requests under way at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=128))]
    depth: u32,
    /// How long
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Blocks to choose from
    #[arg(long, default_value_t = 1 << 18, value_parser = clap::value_parser!(u32).range(1..))]
    blocks: u32,
    /// Which blocks follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The core that it polls
    #[arg(long)]
    pin: Option<usize>,
    /// Processes whose CPU time is reported
    #[arg(long = "pid")]
    pids: Vec<u32>,
}

/// Runs and prints a report.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!((0.0..=LONGEST).contains(&options.seconds), "--seconds is at most {LONGEST}");
    if let Some(core) = options.pin {
        let mut set = CpuSet::new();
        ensure!(core < CpuSet::MAX_CPU, "there is no core {core}");
        set.set(core);
        sched_setaffinity(None, &set).with_context(|| format!("cannot run on core {core}"))?;
    }
    let ring = Ring::open(&options.ring)?;
    let mut load = Load::new(&ring, options);
    let own = std::process::id();
    let watched: Vec<u32> = std::iter::once(own).chain(options.pids.iter().copied()).collect();
    let before: Vec<Duration> = watched.iter().map(|&pid| cpu_time(pid)).collect();
    let start = Instant::now();
    load.run(start + Duration::from_secs_f64(options.seconds))?;
    let elapsed = start.elapsed();
    let used = watched.iter().zip(before).map(|(&pid, before)| cpu_time(pid) - before);
    let used: Vec<Duration> = used.collect();
    load.drain()?;
    let report = Report::new(options.write, load.latencies, elapsed, &used)?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// The requests that are under way, and how long the others took.
struct Load<'a> {
    ring: &'a Ring,
    write: bool,
    blocks: u32,
    chance: u64,
    head: u32,
    seen: u32,
    /// Slots that are free.
    free: Vec<u32>,
    /// When each slot's request began.
    begun: [Instant; ENTRIES as usize],
    /// Of each request that ended, in nanoseconds.
    latencies: Vec<u32>,
}

impl<'a> Load<'a> {
    fn new(ring: &'a Ring, options: &Options) -> Self {
        // Room for what the fastest does; touched, so that no page is new.
        let mut latencies = vec![1; (options.seconds * 3e6) as usize + 1];
        latencies.clear();
        Self {
            ring,
            write: options.write,
            blocks: options.blocks,
            chance: options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            // An earlier client has left it so.
            head: ring.head(),
            seen: ring.tail(),
            free: (0..options.depth).collect(),
            begun: [Instant::now(); ENTRIES as usize],
            latencies,
        }
    }

    fn run(&mut self, end: Instant) -> anyhow::Result<()> {
        ensure!(self.head == self.seen, "another client uses this ring");
        loop {
            self.offer();
            let now = self.take()?;
            if now >= end {
                return Ok(());
            }
        }
    }

    /// Submits a request for each free slot.
    fn offer(&mut self) {
        while let Some(slot) = self.free.pop() {
            self.chance ^= self.chance << 13;
            self.chance ^= self.chance >> 7;
            self.chance ^= self.chance << 17;
            let block = (self.chance % u64::from(self.blocks)) as u32;
            self.ring.put(self.head, Request { slot, block, write: self.write });
            self.begun[slot as usize] = Instant::now();
            self.head = self.head.wrapping_add(1);
        }
        self.ring.submit(self.head);
    }

    /// Waits for answers and takes them; when that was.
    fn take(&mut self) -> anyhow::Result<Instant> {
        let mut tail = self.ring.tail();
        let mut looks = 0_u32;
        while tail == self.seen {
            std::hint::spin_loop();
            looks = looks.wrapping_add(1);
            let last = || self.begun.iter().max().copied();
            if looks.is_multiple_of(LOOK) && last().is_some_and(|last| last.elapsed() > PATIENCE) {
                bail!("a request was lost, and nothing here asks for it again");
            }
            tail = self.ring.tail();
        }
        let now = Instant::now();
        while self.seen != tail {
            let slot = self.ring.completed(self.seen);
            let nanos = now.duration_since(self.begun[slot as usize]).as_nanos();
            self.latencies.push(u32::try_from(nanos).unwrap_or(u32::MAX));
            self.free.push(slot);
            self.seen = self.seen.wrapping_add(1);
        }
        Ok(now)
    }

    /// Leaves the ring empty; these are not counted.
    fn drain(&mut self) -> anyhow::Result<()> {
        let counted = self.latencies.len();
        while self.seen != self.head {
            self.take()?;
        }
        self.latencies.truncate(counted);
        Ok(())
    }
}
