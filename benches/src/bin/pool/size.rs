//! How long opening and snapshots take when the pool is large, and how much
//! memory it has.

use std::time::{Duration, Instant};

use block_core::{BlockCount, Blocks, Lba, LbaRange};
use interpose::Settings;
use rand::Rng;
use rustix::time::{ClockId, clock_gettime};

use crate::sys::heap_in_use;
use benches::pool::device::Forgetful;
use benches::pool::machine::{Machine, make};

const BLOCKS_PER_GIB: u64 = 256 * 1024;

/// Snapshots that are taken.
const SNAPSHOTS: usize = 10_000;

/// Checkpoints during which the journal's fill is watched.
const CHECKPOINTS: u64 = 3;

/// Prints the times.
pub(crate) fn run(device_gib: u64, mapped_gib: u64) -> anyhow::Result<()> {
    let mapped = mapped_gib * BLOCKS_PER_GIB;
    let device = Forgetful::new(BlockCount(device_gib * BLOCKS_PER_GIB));
    make(&device, None)?;
    let settings = Settings { read_cache: 0, ..Settings::default() };
    heap_of_pool("empty", &device, settings)?;
    {
        let mut machine = Machine::open(&device, settings, true)?;
        let (_, volume) = machine.volume("large", mapped)?;
        let mut buffer = machine.buffer()?;
        let start = Instant::now();
        for at in (0..mapped).step_by(32) {
            machine.make_unique(&mut buffer, 32);
            buffer = machine.write(&volume, at, 32, buffer)?;
        }
        machine.run(volume.flush())??;
        let pool = std::rc::Rc::clone(&machine.pool);
        machine.run(pool.checkpoint())??;
        println!("{mapped_gib} GiB of {device_gib} GiB written in {:.1?}", start.elapsed());
    }
    heap_of_pool("written", &device, settings)?;
    {
        // Filling the index anew in the background would be measured as well.
        let mut machine = Machine::open(&device, Settings { index: 0, ..settings }, true)?;
        snapshots(&mut machine)?;
        fill_journal(&mut machine, mapped)?;
    }
    let (start, cpu) = (Instant::now(), cpu_time());
    let mut machine = Machine::open(&device, settings, false)?;
    let opened = start.elapsed();
    let volume = machine.pool.volume("large");
    let volume = volume.ok_or_else(|| anyhow::anyhow!("the volume is gone"))?;
    // Data is not kept, so a block does not open: looking for it is what a
    // first read costs.
    let range = LbaRange { start: Lba(mapped / 2), count: BlockCount(1) };
    let buffer = machine.buffer()?;
    let _ = machine.run(volume.read(range, buffer, 0))?;
    let (first_read, cpu) = (start.elapsed(), cpu_time() - cpu);
    println!("opened in {opened:.2?}, first read after {first_read:.2?} ({cpu:.2?} of CPU)");
    println!("{:?}", machine.pool.figures());
    Ok(())
}

/// Prints what a pool that was just opened has taken from the heap: all but the
/// buffers of its pages and the index, whose sizes are settings.
fn heap_of_pool(which: &str, device: &Forgetful, settings: Settings) -> anyhow::Result<()> {
    let machine = Machine::open(device, settings, true)?;
    let open = heap_in_use();
    drop(machine);
    let kib = open.saturating_sub(heap_in_use()) / 1024;
    println!("heap of the open pool, {which}: {kib} KiB");
    Ok(())
}

/// The CPU time of this thread: a machine that others use as well hardly
/// changes it.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Random overwrites until the journal is as full as it got while a few
/// checkpoints were made.
fn fill_journal(machine: &mut Machine, mapped: u64) -> anyhow::Result<()> {
    let volume = machine.pool.volume("large");
    let volume = volume.ok_or_else(|| anyhow::anyhow!("the volume is gone"))?;
    let until = machine.pool.figures().since.checkpoints + CHECKPOINTS;
    let (mut most, mut used) = (0, 0);
    let mut buffer = machine.buffer()?;
    while machine.pool.figures().since.checkpoints < until || used < most * 95 / 100 {
        for _ in 0..32 {
            let at = machine.random.random_range(0..mapped);
            machine.make_unique(&mut buffer, 1);
            buffer = machine.write(&volume, at, 1, buffer)?;
        }
        machine.run(volume.flush())??;
        used = machine.pool.figures().journal.1;
        most = most.max(used);
    }
    let ring = machine.pool.figures().journal.0;
    println!("the journal holds {used} of {ring} blocks when the server is killed");
    Ok(())
}

fn snapshots(machine: &mut Machine) -> anyhow::Result<()> {
    let pool = std::rc::Rc::clone(&machine.pool);
    let id = pool.volumes()[0].id;
    let mut times: Vec<Duration> = Vec::with_capacity(SNAPSHOTS);
    for number in 0..SNAPSHOTS {
        let name = format!("s{number}");
        let group = [id];
        let start = Instant::now();
        machine.run(pool.snapshot(&group, &name, false))??;
        times.push(start.elapsed());
    }
    let median = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort();
        times[times.len() / 2]
    };
    println!(
        "snapshots: the first hundred {:.1?} each, the last hundred of {SNAPSHOTS} {:.1?} (median, \
         flush included)",
        median(&times[..100]),
        median(&times[SNAPSHOTS - 100..])
    );
    Ok(())
}
