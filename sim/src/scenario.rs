//! What a seed makes of the world, and of what happens in it.

use std::time::Duration;

use block_core::BlockCount;

use crate::dice::Dice;
use crate::drive::DriveKind;
use crate::fabric::FrameFaults;
use crate::guest::Habits;
use crate::iohost::{POOL_BLOCKS, RAW_OVERHEAD, RAW_UNIT, Room, Trouble, WorkerKind};
use crate::trust::Trust;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server's process is killed, and started again later.
    KillServer(Duration),
    /// The IOhost loses its power, and has it again later.
    LosePower(Duration),
    /// A front is killed, and started again later. Its guests live.
    KillFront(usize, Duration),
    /// A front is told to end: it gives its volumes back, and is started again
    /// later. Its guests live.
    StopFront(usize, Duration),
    /// A VMhost fails with its guests, which start anew later.
    FailVmHost(usize, Duration),
    /// A VMhost is thought dead, and its guests start anew with another front;
    /// later the first one goes on.
    Haunt(usize, Duration),
    /// The same, and the guests start anew on another VMhost, which can have the
    /// volumes because somebody detaches them by force.
    Move(usize, Duration),
    /// A front hears and says nothing.
    CutOffFront(usize, Duration),
    /// A worker hears and says nothing.
    CutOffWorker(usize, Duration),
    /// A worker's device answers nothing.
    Stall(usize, Duration),
    /// A worker's device is in trouble.
    Trouble(usize, Trouble),
    /// Resets cost a worker's device what it has not flushed, from now on.
    LoseCaches(usize),
    /// Another front wants a front's first volume.
    Intrude(usize),
    /// The network is worse, or better, from now on.
    Frames(FrameFaults),
    /// Larger frames do not pass for a while.
    Mtu(usize, Duration),
}

/// A VMhost's disk: its worker, and what its guest does.
#[derive(Clone, Copy, Debug)]
pub struct DiskKind {
    /// The worker that has its volume.
    pub worker: usize,
    /// The worker that the front asks for it.
    pub asked: usize,
    /// The volume's size.
    pub blocks: BlockCount,
    /// What the guest does.
    pub habits: Habits,
}

/// A world, and what happens in it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The workers of the IOhost's server.
    pub workers: Vec<WorkerKind>,
    /// What they make room for.
    pub room: Room,
    /// The disks of each VMhost.
    pub hosts: Vec<Vec<DiskKind>>,
    /// Whether sessions are sealed.
    pub trust: Trust,
    /// How large frames pass at first.
    pub mtu: usize,
    /// What happens, the earliest first, from when the world was made.
    pub plan: Vec<(Duration, Fault)>,
    /// Whether the power fails at the end, and not only the server's process.
    pub ends_dark: bool,
}

impl Scenario {
    /// The world of a seed.
    #[must_use]
    pub fn of(dice: &mut Dice) -> Self {
        let crowd = dice.happens(30);
        let fronts = if crowd { 30 } else { dice.pick(&[1, 1, 2, 3]) };
        let worker_count = if dice.happens(300) { 2 } else { 1 };
        let hosts: Vec<Vec<DiskKind>> = (0..fronts)
            .map(|_| {
                let disks = if crowd { 1 } else { dice.pick(&[1, 1, 2]) };
                (0..disks).map(|_| disk(crowd, worker_count, dice)).collect()
            })
            .collect();
        let workers = (0..worker_count)
            .map(|worker| {
                let here = hosts.iter().flatten().filter(|disk| disk.worker == worker).count();
                worker_kind(here as u64, dice)
            })
            .collect();
        let room = Room {
            // A front that was moved away from may stay as long as it likes.
            sessions: fronts as u16 + 2 + MOST_FAULTS as u16,
            slots: dice.pick(&[3, 8, 16, 32]),
            small_buffers: dice.pick(&[2, 8, 32]),
            large_buffers: dice.pick(&[2, 4, 16]),
        };
        let mtu = dice.pick(&[9000, 9000, 4200, 1500, 1280]);
        let trust = match dice.happens(500) {
            true => Trust::Sealed(dice.within(20..=400)),
            false => Trust::Clear,
        };
        let plan = plan(fronts, worker_count, trust, dice);
        Self { workers, room, hosts, trust, mtu, plan, ends_dark: dice.happens(500) }
    }
}

/// Most things that go wrong in a world, beside its network.
const MOST_FAULTS: usize = 4;

fn disk(crowd: bool, workers: usize, dice: &mut Dice) -> DiskKind {
    let blocks = dice.pick(&[1, 4, 8, 40]);
    let requests = if crowd { 4 } else { dice.within(8..=40) as usize };
    DiskKind {
        worker: dice.below(workers),
        asked: dice.below(workers),
        blocks: BlockCount(blocks),
        habits: Habits {
            requests,
            depth: dice.pick(&[1, 4, 12]),
            sectors: blocks * 8,
            copies: dice.pick(&[0, 0, 200, 900]),
            large: dice.pick(&[0, 50, 400]),
        },
    }
}

fn worker_kind(disks: u64, dice: &mut Dice) -> WorkerKind {
    let pooled = dice.happens(400);
    let blocks = if pooled { POOL_BLOCKS } else { RAW_OVERHEAD + disks.max(1) * RAW_UNIT };
    let drive = DriveKind {
        bytes: blocks * 4096,
        small_lbas: dice.happens(300),
        held: dice.pick(&[1, 4, 64]),
        delay: dice.pick(&[0, 1, 4, 20]),
    };
    WorkerKind { drive, pooled }
}

/// What goes wrong, and when. Half of the worlds have a clean network, some
/// have nothing that goes wrong.
fn plan(fronts: usize, workers: usize, trust: Trust, dice: &mut Dice) -> Vec<(Duration, Fault)> {
    let mut plan = Vec::new();
    if dice.happens(500) {
        plan.push((Duration::ZERO, Fault::Frames(frame_faults(trust, dice))));
    }
    for _ in 0..dice.pick(&[0, 1, 1, 2, MOST_FAULTS]) {
        let at = dice.span(Duration::from_micros(20)..=Duration::from_millis(40));
        let pause = dice.span(Duration::from_micros(50)..=Duration::from_secs(2));
        let (front, worker) = (dice.below(fronts), dice.below(workers));
        plan.push((
            at,
            match dice.below(19) {
                0 | 1 => Fault::KillServer(pause),
                2 | 3 => Fault::LosePower(pause),
                4 => Fault::KillFront(front, pause),
                5 => Fault::FailVmHost(front, pause),
                6 => Fault::CutOffFront(front, pause),
                7 => Fault::CutOffWorker(worker, pause),
                8 => Fault::Stall(worker, pause),
                9 => Fault::Intrude(front),
                10 | 11 => Fault::Haunt(front, pause),
                12 | 13 => Fault::Trouble(worker, Trouble::StuckFast(1 + dice.below(3) as u32)),
                14 => Fault::Trouble(worker, Trouble::Stuck(1 + dice.below(3) as u32)),
                15 => Fault::Trouble(worker, Trouble::Fatal),
                16 => Fault::StopFront(front, pause),
                17 => Fault::Move(front, pause),
                _ => Fault::Mtu(dice.pick(&[4200, 1500, 1280]), pause),
            },
        ));
    }
    for worker in 0..workers {
        if dice.happens(500) {
            plan.push((Duration::ZERO, Fault::LoseCaches(worker)));
        }
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

fn frame_faults(trust: Trust, dice: &mut Dice) -> FrameFaults {
    FrameFaults {
        loss: dice.pick(&[0, 5, 30, 120]),
        double: dice.pick(&[0, 10, 60]),
        damage: dice.pick(&[0, 10, 40]),
        late: dice.pick(&[0, 20, 300]),
        replay: dice.pick(&[0, 0, 20, 100]),
        // In the clear whoever is in the middle can do what they like.
        attack: match trust {
            Trust::Clear => 0,
            Trust::Sealed(_) => dice.pick(&[0, 20, 100]),
        },
    }
}
