//! What a second copy of an image stores, and what a second clone of it reads
//! from the device.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

use anyhow::Context;
use block_core::{BLOCK_SIZE, BlockCount, Blocks, Lba, LbaRange};
use interpose::{Settings, Volume};

use benches::pool::device::Forgetful;
use benches::pool::machine::{Machine, make};

/// Blocks of a request: 128 KiB.
const LARGE: u64 = 32;

/// Prints the shares.
pub(crate) fn run(image: &Path) -> anyhow::Result<()> {
    let bytes = std::fs::metadata(image).with_context(|| image.display().to_string())?.len();
    let blocks = bytes.div_ceil(BLOCK_SIZE as u64);
    let device = Forgetful::new(BlockCount(2 * blocks + 64 * 1024));
    device.keep_blocks(true);
    make(&device, None)?;
    let settings = Settings { read_cache: blocks as usize * BLOCK_SIZE * 2, ..Settings::default() };
    let mut machine = Machine::open(&device, settings, true)?;
    let pool = Rc::clone(&machine.pool);
    let mut first = None;
    for name in ["first", "second"] {
        let free = pool.figures().free.0;
        let (id, volume) = machine.volume(name, blocks)?;
        let stored = write(&mut machine, &volume, image)?;
        machine.run(pool.checkpoint())??;
        let took = free - pool.figures().free.0;
        println!(
            "{name} copy: {stored} blocks of {blocks} are not zero; {took} were taken, {:.2} %",
            100.0 * took as f64 / stored as f64
        );
        first.get_or_insert(id);
    }
    let first = first.context("a volume was made")?;
    machine.run(pool.snapshot(&[first], "image", false))??;
    let snapshot = pool.find_snapshot(first, "image")?;
    for name in ["one", "two"] {
        machine.run(pool.clone_snapshot(snapshot, name, Vec::new()))??;
        let volume = pool.volume(name).context("the clone is there")?;
        let before = pool.figures().since;
        read(&mut machine, &volume, blocks)?;
        let since = pool.figures().since;
        let (read, cached) = (since.read - before.read, since.cached - before.cached);
        println!("clone {name}: {read} blocks read, {cached} of them from the cache");
    }
    Ok(())
}

/// Writes the image; says how many of its blocks are not zero.
fn write(machine: &mut Machine, volume: &Volume<Forgetful>, image: &Path) -> anyhow::Result<u64> {
    let mut file = File::open(image)?;
    let mut buffer = machine.buffer()?;
    let (mut at, mut stored) = (0, 0);
    loop {
        let request = &mut buffer[..LARGE as usize * BLOCK_SIZE];
        request.fill(0);
        let mut filled = 0;
        while filled < request.len() {
            match file.read(&mut request[filled..])? {
                0 => break,
                more => filled += more,
            }
        }
        let blocks = filled.div_ceil(BLOCK_SIZE);
        if blocks == 0 {
            break;
        }
        let whole = request[..blocks * BLOCK_SIZE].chunks_exact(BLOCK_SIZE);
        stored += whole.filter(|block| block.iter().any(|&byte| byte != 0)).count() as u64;
        buffer = machine.write(volume, at, blocks as u64, buffer)?;
        at += blocks as u64;
    }
    machine.run(volume.flush())??;
    Ok(stored)
}

fn read(machine: &mut Machine, volume: &Volume<Forgetful>, blocks: u64) -> anyhow::Result<()> {
    let mut buffer = machine.buffer()?;
    for at in (0..blocks).step_by(LARGE as usize) {
        let count = BlockCount(LARGE.min(blocks - at));
        let range = LbaRange { start: Lba(at), count };
        let outcome;
        (buffer, outcome) = machine.run(volume.read(range, buffer, 0))?;
        outcome?;
    }
    Ok(())
}
