//! Whatever crash comes, what was flushed is there.
//!
//! Each part runs its own seeds: random work, and a power cut at each
//! operation of the disk. `VRIO_SEEDS=N` runs N seeds in each part;
//! `VRIO_SEED=S` repeats one.

mod disk;
#[path = "crash/mod.rs"]
mod simulation;

use simulation::crashes::Run;
use simulation::world::Habits;

/// Seeds of each part: some 27,000 crash points, every third on a crowded pool.
const SEEDS: u64 = 7;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn run(seed: u64) -> u64 {
    let habits = Habits {
        most_blocks: [8, 24, 24, 48][seed as usize % 4],
        guests: 1 + seed as usize % 5,
        faulty: false,
        control: true,
    };
    let run = if seed % 3 == 2 { Run::crowded(seed) } else { Run::new(seed) };
    run.live(3, 80, habits);
    run.points()
}

fn part(number_of_part: u64) {
    let begun = std::time::Instant::now();
    let seeds = number("VRIO_SEEDS").unwrap_or(SEEDS);
    let points: u64 = (0..seeds).map(|seed| run(number_of_part * 1_000_000 + seed)).sum();
    println!("{points} crash points in {:?}", begun.elapsed());
    assert!(points >= seeds * 1000, "{points} crash points are too few");
}

#[test]
fn random_work_survives_a_crash_at_each_operation_1() {
    part(1);
}

#[test]
fn random_work_survives_a_crash_at_each_operation_2() {
    part(2);
}

#[test]
fn random_work_survives_a_crash_at_each_operation_3() {
    part(3);
}

#[test]
fn random_work_survives_a_crash_at_each_operation_4() {
    part(4);
}

/// Repeats one seed.
#[test]
fn one_seed() {
    if let Some(seed) = number("VRIO_SEED") {
        run(seed);
    }
}
