//! Bugs that were found once, each with its story.

use std::time::Duration;

use block_core::BlockCount;
use sim::dice::Dice;
use sim::drive::DriveKind;
use sim::guest::Habits;
use sim::iohost::{POOL_BLOCKS, Room, WorkerKind};
use sim::run::Stage;
use sim::scenario::{DiskKind, Fault, Scenario};

/// A disk of a guest that does this often something.
fn disk(requests: usize) -> DiskKind {
    let habits = Habits { requests, depth: 4, sectors: 64, copies: 0, large: 0 };
    DiskKind { worker: 0, asked: 0, blocks: BlockCount(8), habits }
}

fn on_a_pool(hosts: Vec<Vec<DiskKind>>, plan: Vec<(Duration, Fault)>) -> Scenario {
    let drive = DriveKind { bytes: POOL_BLOCKS * 4096, small_lbas: false, held: 8, delay: 1 };
    let sessions = hosts.len() as u16 + 2;
    Scenario {
        workers: vec![WorkerKind { drive, pooled: true }],
        room: Room { sessions, slots: 8, small_buffers: 16, large_buffers: 4 },
        hosts,
        mtu: 9000,
        plan,
        ends_dark: false,
    }
}

fn runs(seed: u64, scenario: Scenario) {
    let stage = Stage::new().expect("a key file");
    if let Err(failure) = stage.run_scenario(seed, scenario, Dice::new(seed), None) {
        panic!("seed {seed}: {}", failure.what);
    }
}

/// Forty fronts attach disks of a pool and do nothing with them. Each volume
/// that was made and each attachment is a record in the pool's journal, and only
/// writes asked for a checkpoint: the journal was full, and detaching waited for
/// ever. Where the server was killed then, it did not start again: opening the
/// pool waited for room too, which nobody makes before it is open.
#[test]
fn fronts_come_and_go_on_a_pool_to_which_nobody_writes() {
    let kill = (Duration::from_millis(3), Fault::KillServer(Duration::from_millis(1)));
    let hosts = || vec![vec![disk(0)]; 40];
    runs(1, on_a_pool(hosts(), vec![kill]));
    runs(2, on_a_pool(hosts(), Vec::new()));
}
