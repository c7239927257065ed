//! `vrio nvme bench`: the driver alone, which is what everything above is compared with.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use block_core::device::{Device, Durability};
use block_core::{BlockError, Buffer, Pba};
use block_server::Size;
use clap::Args;
use hdrhistogram::Histogram;
use nvme::{Namespace, QueuePair};
use rand::Rng;

use super::place::Place;

/// A block of everything behind the front.
const BLOCK: u64 = 4096;
/// Longer than any controller may take for one request.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(flatten)]
    place: Place,
    /// Which namespace
    #[arg(long, value_name = "ID", default_value_t = 1)]
    namespace: u32,
    /// Size of each request: 4K to 128K, a multiple of 4K
    #[arg(long, value_name = "SIZE", default_value = "4K")]
    bs: Size,
    /// Requests under way at a time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=511))]
    depth: u16,
    /// For how long
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Write instead of read, and destroy what is on the namespace: ADDRESS is the
    /// device's once more, so that no slip of the hand does it
    #[arg(long, value_name = "ADDRESS")]
    overwrite: Option<String>,
}

type Request<'a> = Pin<Box<dyn Future<Output = (Buffer, Result<(), BlockError>)> + 'a>>;

struct Running<'a> {
    request: Request<'a>,
    begun: Instant,
}

#[derive(Debug)]
struct Measured {
    latency: Histogram<u64>,
    took: Duration,
}

impl Bench {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let writes = self.writes()?;
        let blocks = self.bs.0 / BLOCK;
        if !self.bs.0.is_multiple_of(BLOCK) || !(1..=32).contains(&blocks) {
            bail!("--bs {} is no multiple of 4K from 4K to 128K", self.bs);
        }
        let controller = self.place.start()?;
        let queue = controller.create_queue_pair(self.depth)?;
        let namespace = Namespace::new(Rc::clone(&queue), &controller.namespace(self.namespace)?);
        let places = namespace.blocks().0 / blocks;
        if places == 0 {
            bail!("namespace {} is smaller than a request of {}", self.namespace, self.bs);
        }
        let pool = controller.pool(usize::from(self.depth), self.bs.0 as usize);
        let pool = pool.context("there is no memory for so many requests; lower --depth")?;
        let begin = || -> Running<'_> {
            let at = Pba(rand::rng().random_range(0..places) * blocks);
            let buffer = pool.take().expect("one for each request under way");
            let whole = 0..blocks as usize;
            let request: Request<'_> = if writes {
                Box::pin(namespace.write(at, buffer, whole, Durability::Cached))
            } else {
                Box::pin(namespace.read(at, buffer, whole))
            };
            Running { request, begun: Instant::now() }
        };
        let before = queue.counters();
        let span = Duration::from_secs(self.seconds);
        let measured = measure(&queue, usize::from(self.depth), span, begin)?;
        let after = queue.counters();
        let requests = measured.latency.len().max(1) as f64;
        self.print(writes, &measured, (after.doorbells - before.doorbells) as f64 / requests);
        Ok(())
    }

    /// Whether it shall write: only if the device was named twice.
    fn writes(&self) -> anyhow::Result<bool> {
        let Some(again) = &self.overwrite else { return Ok(false) };
        let address = self.place.address().to_string();
        if *again != address {
            bail!("--overwrite names '{again}', and the device is '{address}': nothing was done");
        }
        Ok(true)
    }

    fn print(&self, writes: bool, measured: &Measured, doorbells: f64) {
        let Measured { latency, took } = measured;
        let rate = latency.len() as f64 / took.as_secs_f64();
        let what = if writes { "writes" } else { "reads" };
        println!(
            "random {what} of {} at depth {}, {:.1} s",
            self.bs,
            self.depth,
            took.as_secs_f64()
        );
        println!("rate              {rate:.0} a second");
        println!("throughput        {:.1} MiB/s", rate * self.bs.0 as f64 / f64::from(1 << 20));
        let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
        println!(
            "latency           p50 {:.1} us, p99 {:.1} us, p99.9 {:.1} us",
            at(0.5),
            at(0.99),
            at(0.999)
        );
        println!("doorbells         {doorbells:.3} a request");
    }
}

/// Keeps `depth` requests under way for a while, and waits for the last of them.
fn measure<'a>(
    queue: &QueuePair,
    depth: usize,
    span: Duration,
    begin: impl Fn() -> Running<'a>,
) -> anyhow::Result<Measured> {
    let mut latency = Histogram::<u64>::new_with_max(60_000_000_000, 3).expect("sound bounds");
    let mut context = TaskContext::from_waker(Waker::noop());
    let mut running: Vec<Running<'a>> = (0..depth).map(|_| begin()).collect();
    let (start, mut last) = (Instant::now(), Instant::now());
    while !running.is_empty() {
        let is_over = start.elapsed() >= span;
        let mut index = 0;
        while let Some(one) = running.get_mut(index) {
            let Poll::Ready((buffer, outcome)) = one.request.as_mut().poll(&mut context) else {
                index += 1;
                continue;
            };
            outcome.map_err(|error| anyhow::anyhow!("a request failed: {error}"))?;
            last = Instant::now();
            latency.saturating_record((last - one.begun).as_nanos() as u64);
            drop(buffer);
            if is_over {
                running.swap_remove(index);
            } else {
                *one = begin();
                index += 1;
            }
        }
        queue.ring();
        if queue.reap() == 0 && last.elapsed() > PATIENCE {
            bail!("the controller has not answered for {} s", PATIENCE.as_secs());
        }
    }
    Ok(Measured { latency, took: last - start })
}
