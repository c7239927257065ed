//! How many bytes go to the device for each byte that a guest overwrites.

use block_core::{BLOCK_SIZE, BlockCount, Blocks};
use interpose::Settings;
use rand::Rng;

use benches::pool::device::Forgetful;
use benches::pool::machine::{Machine, make};

/// Writes between two flushes.
const FLUSH_EVERY: u64 = 32;

/// Checkpoints that are waited for before measuring, and measured.
const WARM_UP: u64 = 2;
const MEASURED: u64 = 4;

/// Prints predicted and measured bytes for a mapped size.
pub(crate) fn run(mapped_mib: u64) -> anyhow::Result<()> {
    let mapped = mapped_mib * 256;
    // A little less than 80 % full.
    let device = Forgetful::new(BlockCount((mapped * 4 / 3).max(16 * 1024) + 16 * 1024));
    let journal = BlockCount((mapped / 400).max(64));
    make(&device, Some(journal))?;
    let mut machine = Machine::open(&device, Settings::default(), true)?;
    let (id, volume) = machine.volume("amplification", mapped)?;
    let mut buffer = machine.buffer()?;
    for at in (0..mapped).step_by(32) {
        machine.make_unique(&mut buffer, 32);
        buffer = machine.write(&volume, at, 32, buffer)?;
    }
    for (what, snapshot) in [("overwrites", false), ("overwrites after a snapshot", true)] {
        if snapshot {
            let pool = std::rc::Rc::clone(&machine.pool);
            machine.run(pool.snapshot(&[id], "before", false))??;
        }
        let checkpoints = |machine: &Machine| machine.pool.figures().since.checkpoints;
        let mut written = 0;
        let (mut begun, mut from) = (checkpoints(&machine), None);
        loop {
            let done = checkpoints(&machine);
            match from {
                None if done >= begun + WARM_UP || snapshot => {
                    begun = done;
                    from = Some((written, device.counts()));
                }
                Some((before, counts)) if done >= begun + MEASURED => {
                    let guest = (written - before) * BLOCK_SIZE as u64;
                    let bytes = device.counts().bytes_written - counts.bytes_written;
                    let ratio = bytes as f64 / guest as f64;
                    let per_checkpoint = (written - before) as f64 / MEASURED as f64;
                    println!(
                        "{mapped_mib} MiB mapped, journal {} blocks, {what}: {ratio:.3} bytes per \
                         byte (predicted {:.3}), {per_checkpoint:.0} writes a checkpoint, {} free \
                         of {} blocks",
                        journal.0,
                        predicted(mapped, per_checkpoint),
                        machine.pool.figures().free.0,
                        machine.pool.figures().total.0
                    );
                    break;
                }
                _ => {}
            }
            for _ in 0..FLUSH_EVERY {
                let at = machine.random.random_range(0..mapped);
                machine.make_unique(&mut buffer, 1);
                buffer = machine.write(&volume, at, 1, buffer)?;
                written += 1;
            }
            machine.run(volume.flush())??;
        }
    }
    Ok(())
}

/// The blocks themselves; a journal block for each flush; of the pages of maps
/// and counts those that random writes touch; seals page by page.
fn predicted(mapped: u64, writes: f64) -> f64 {
    let touched = |pages: f64| pages * (1.0 - (-writes / pages).exp());
    let leaves = touched(mapped as f64 / 128.0);
    let counts = touched(mapped as f64 / 2048.0 * 4.0 / 3.0);
    let pages = leaves * (1.0 + 1.0 / 128.0) + counts + writes / 102.0;
    1.0 + 1.0 / FLUSH_EVERY as f64 + pages / writes
}
