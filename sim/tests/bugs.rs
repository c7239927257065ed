//! Bugs that were found once, each with its story.

use std::time::Duration;

use block_core::BlockCount;
use sim::dice::Dice;
use sim::drive::DriveKind;
use sim::guest::Habits;
use sim::iohost::{POOL_BLOCKS, RAW_OVERHEAD, RAW_UNIT, Room, WorkerKind};
use sim::run::Stage;
use sim::scenario::{DiskKind, Fault, Scenario};
use sim::trust::Trust;

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
        trust: Trust::Clear,
        mtu: 9000,
        plan,
        ends_dark: false,
    }
}

/// A device of raw volumes, served to one VMhost.
fn on_a_raw_device(disks: Vec<DiskKind>, plan: Vec<(Duration, Fault)>) -> Scenario {
    let bytes = (RAW_OVERHEAD + disks.len() as u64 * RAW_UNIT) * 4096;
    let drive = DriveKind { bytes, small_lbas: false, held: 8, delay: 1 };
    let pooled = on_a_pool(vec![disks], plan);
    Scenario { workers: vec![WorkerKind { drive, pooled: false }], ..pooled }
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
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

/// A VMhost was thought dead, and its guest ran elsewhere, with a later start of
/// the front, which then gave the volume back. The server was started anew, and
/// nothing in the volume's record spoke of anybody. The first front went on, was
/// let in, and sent again what it had kept, over what the guest had written and
/// flushed since.
#[test]
fn a_front_that_goes_on_when_a_later_start_has_given_the_volume_back_is_not_let_in() {
    let plan = vec![
        (millis(5), Fault::Haunt(0, millis(60))),
        (millis(20), Fault::StopFront(0, millis(100))),
        (millis(40), Fault::KillServer(millis(1))),
    ];
    for seed in 0..8 {
        runs(seed, on_a_raw_device(vec![disk(30)], plan.clone()));
    }
}

/// A front was killed, and the server with what it had not flushed. The next
/// front was told to end before it served, and gave the volume back. Nobody told
/// the one after it that answered writes are missing, and the guest, which had
/// lived through all of it, went on.
#[test]
fn a_front_that_ends_before_it_serves_leaves_word_of_what_is_missing() {
    for seed in 0..8 {
        let late = Duration::from_micros(8020 + 20 * seed);
        let plan = vec![
            (millis(5), Fault::KillFront(0, millis(3))),
            (millis(6), Fault::KillServer(millis(1))),
            (late, Fault::StopFront(0, millis(1))),
        ];
        runs(seed, on_a_pool(vec![vec![disk(30)]], plan));
    }
}

/// A VMhost was thought dead, and went on while somebody took its volume away by force.
/// The server had been killed just before, so its front sent again what it had kept, the
/// oldest first, and was cut off in the middle: of two writes to a sector the earlier had
/// run again, and the later not yet. That is what a cache loses, and the next front is
/// told; the oracle held the device to what it had had before.
#[test]
fn a_front_that_loses_its_volume_while_it_sends_again_may_leave_an_earlier_write() {
    let plan = vec![
        (millis(5), Fault::Move(0, Duration::from_micros(500))),
        (Duration::from_micros(9500), Fault::KillServer(Duration::from_micros(100))),
    ];
    let mut disk = disk(60);
    disk.habits.depth = 12;
    for seed in 0..40 {
        runs(seed, on_a_raw_device(vec![disk], plan.clone()));
    }
}
