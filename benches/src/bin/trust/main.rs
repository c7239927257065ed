//! What it costs to be sure who speaks: handshakes, strangers, new keys.
//!
//! Front and server are one thread and exchange frames through memory, so that
//! times are those of the link's own work. They stand beside each other in one
//! run; machines differ.

mod pair;
mod strangers;

use std::time::{Duration, Instant};

use anyhow::Context;

use pair::Pair;

/// Handshakes that are timed.
const HANDSHAKES: u32 = 300;

/// Requests that are timed, one at a time.
const REQUESTS: usize = 200_000;

/// Frames under one key, for keys that change all the time.
const FEW_FRAMES: u64 = 1000;

fn main() -> anyhow::Result<()> {
    handshakes()?;
    new_keys()?;
    strangers::print()
}

/// From the first hello until the volume is attached, both ends together.
fn handshakes() -> anyhow::Result<()> {
    let mut pair = Pair::new()?;
    let mut spans = Vec::new();
    for start in 1..=HANDSHAKES {
        pair.ticks.skip(Duration::from_secs(1));
        let begun = Instant::now();
        pair.connect(u64::from(start), link::security::FRAMES_PER_KEY)?;
        spans.push(begun.elapsed());
    }
    spans.sort();
    println!("a sealed session and a volume, both ends in one thread, {HANDSHAKES} times:");
    println!("    median {:?}, longest {:?}", spans[spans.len() / 2], spans[spans.len() - 1]);
    Ok(())
}

/// Reads of 4 KiB one at a time, under one key and under ever new ones.
fn new_keys() -> anyhow::Result<()> {
    println!("{REQUESTS} reads of 4 KiB, one at a time:");
    for (what, frames) in
        [("one key", link::security::FRAMES_PER_KEY), ("a new key every 1000 frames", FEW_FRAMES)]
    {
        let mut pair = Pair::new()?;
        pair.connect(1, frames)?;
        let mut spans = Vec::with_capacity(REQUESTS);
        for request in 0..REQUESTS {
            let begun = Instant::now();
            pair.read(request as u64)?;
            spans.push(begun.elapsed());
        }
        spans.sort();
        let at = |share: f64| spans[((spans.len() - 1) as f64 * share) as usize];
        let most = spans.last().context("some")?;
        println!(
            "    {what:28} p50 {:?}, p99 {:?}, p99.9 {:?}, most {most:?}",
            at(0.5),
            at(0.99),
            at(0.999)
        );
    }
    Ok(())
}
