//! Whatever crash comes, what was flushed is there.
//!
//! `VRIO_SEEDS=N` runs N seeds in each part of the long run; `VRIO_SEED=S`
//! repeats one.

mod disk;
#[path = "crash/mod.rs"]
mod simulation;

use simulation::crashes::Run;
use simulation::world::Habits;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

const USUAL: Habits = Habits { most_blocks: 24, guests: 4, faulty: false, control: true };

/// Repeats one seed.
#[test]
fn one_seed() {
    let Some(seed) = number("VRIO_SEED") else { return };
    run(seed);
}

#[test]
fn random_work_survives_a_crash_at_each_operation() {
    let seeds = number("VRIO_SEEDS").unwrap_or(4);
    let begun = std::time::Instant::now();
    let points: u64 = (0..seeds).map(run).sum();
    println!("{points} crash points in {:?}", begun.elapsed());
}

fn run(seed: u64) -> u64 {
    let run = Run::new(seed);
    run.live(3, 80, USUAL);
    run.points()
}
