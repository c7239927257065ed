//! The IOhost: devices, and a server process whose workers come and go.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use block_core::{BlockCount, Time};
use block_server::catalog::Formatting;
use block_server::config::PoolConfig;
use block_server::errand::PoolErrand;
use block_server::remembered::Rollback;
use block_server::unlock::Unlock;
use block_server::{
    Directory, Errand, Limits, Mailbox, Owned, Place, Size, Worker, WorkerIndex, WorkerStation,
};
use link::wire::memory::{End, Port};
use link::{ServerSettings, VolumeName};
use nvme::soft::{Fault, Image};
use tokio::sync::oneshot;
use turn::Station;

use crate::dice::Dice;
use crate::drive::{Drive, DriveEngine, DriveKind, VirtualClock};
use crate::fabric::Fabric;
use crate::trust::{OwnKeys, Trust};

/// The port of the first worker.
const FIRST_PORT: u16 = 1000;

/// How long a turn takes while a world is made.
const TURN: Duration = Duration::from_micros(20);

/// Turns in which an errand must be done while a world is made.
const ERRAND_TURNS: usize = 200_000;

/// What the server calls requests that change a volume.
const CHANGES: [&str; 3] = ["write", "discard", "zero"];

/// A worker and its device.
#[derive(Clone, Copy, Debug)]
pub struct WorkerKind {
    /// The device.
    pub drive: DriveKind,
    /// Whether it is a pool.
    pub pooled: bool,
}

/// What goes wrong with a device's controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// So many commands are not answered until they are aborted.
    Stuck(u32),
    /// So many commands are not answered, until it is reset.
    StuckFast(u32),
    /// It reports a fatal status.
    Fatal,
}

/// How much the workers make room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Sessions of each worker.
    pub sessions: u16,
    /// Slots of each session.
    pub slots: u16,
    /// Buffers for small requests.
    pub small_buffers: usize,
    /// Buffers for large requests.
    pub large_buffers: usize,
}

struct Seat {
    kind: WorkerKind,
    drive: Drive,
    mailbox: Option<Arc<Mailbox>>,
    station: Option<WorkerStation<DriveEngine, End>>,
}

/// The IOhost.
pub struct IoHost {
    clock: VirtualClock,
    key: PathBuf,
    room: Room,
    trust: Trust,
    seats: Vec<Seat>,
    dice: Dice,
}

impl IoHost {
    /// Devices for these workers, and no server.
    #[must_use]
    pub fn new(
        kinds: &[WorkerKind],
        room: Room,
        trust: Trust,
        furniture: &Furniture,
        mut dice: Dice,
    ) -> Self {
        let key = furniture.key.clone();
        let seats = kinds.iter().map(|&kind| {
            let image = if kind.pooled { &furniture.pool } else { &furniture.raw };
            let drive = Drive::new(kind.drive, image, &mut dice);
            Seat { kind, drive, mailbox: None, station: None }
        });
        let seats = seats.collect();
        Self { clock: VirtualClock::default(), key, room, trust, seats, dice }
    }

    /// Where a worker listens.
    #[must_use]
    pub fn port(worker: usize) -> Port {
        Port(FIRST_PORT + worker as u16)
    }

    /// How many workers there are when the server runs.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.seats.len()
    }

    /// Whether the server runs.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.seats.iter().all(|seat| seat.station.is_some())
    }

    /// Starts the server's process. It takes no time.
    ///
    /// # Errors
    /// A sentence about the device that a worker does not start with.
    pub fn start(&mut self, now: Time, fabric: &Fabric) -> Result<()> {
        self.clock.set(now);
        let directory = Arc::new(Directory::default());
        let Self { clock, key, room, trust, seats, dice } = self;
        for (worker, seat) in seats.iter_mut().enumerate() {
            let mailbox = Mailbox::new()?;
            seat.drive.tick(now);
            let (engine, device) = seat.drive.start(clock)?;
            let place = Place {
                worker: WorkerIndex(worker),
                directory: Arc::clone(&directory),
                mailbox: Arc::clone(&mailbox),
                chance: dice.chance(),
                wall: || 0,
            };
            let owned = owned(worker, device, seat.kind.pooled, key);
            let mut running = Worker::start(engine, vec![owned], place, limits(*room))?;
            running.draw_order(dice.chance());
            running.obey(Rc::new(OwnKeys(*trust)));
            let port = Self::port(worker);
            directory.listens(WorkerIndex(worker), port.0);
            let wire = fabric.end(port);
            let settings = ServerSettings {
                sessions: room.sessions,
                slots: room.slots,
                window: 1 << 20,
                seed: dice.number(),
            };
            seat.station = Some(WorkerStation::new(wire, trust.server(settings, dice), running));
            seat.mailbox = Some(mailbox);
        }
        Ok(())
    }

    /// The server's process is killed. Its devices have what it had given
    /// them.
    pub fn kill(&mut self) {
        for seat in &mut self.seats {
            seat.drive.host_dies(self.dice.number());
            seat.station = None;
            seat.mailbox = None;
        }
    }

    /// The power fails: the process ends, and of what the devices had not made
    /// durable any part is lost.
    pub fn lose_power(&mut self) {
        for seat in &mut self.seats {
            seat.drive.lose_power(self.dice.number());
            seat.station = None;
            seat.mailbox = None;
        }
    }

    /// A worker's device answers nothing until then.
    pub fn stall(&mut self, worker: usize, until: Time) {
        self.seats[worker].drive.stall(until);
    }

    /// Something goes wrong with a worker's device.
    pub fn trouble(&mut self, worker: usize, trouble: Trouble) {
        let drive = &self.seats[worker].drive;
        match trouble {
            Trouble::Stuck(count) => drive.inject(Fault::Stick { count }),
            Trouble::StuckFast(count) => drive.inject(Fault::StickFast { count }),
            Trouble::Fatal => drive.inject(Fault::Fatal),
        }
    }

    /// From now on a reset costs a worker's device what it has not flushed.
    pub fn lose_caches(&mut self, worker: usize) {
        let seed = self.dice.number();
        self.seats[worker].drive.inject(Fault::LossyReset { seed });
    }

    /// Whether a worker's device went down to be reset; says so once.
    #[must_use]
    pub fn take_down(&self, worker: usize) -> bool {
        self.seats[worker].drive.take_down()
    }

    /// Turns a worker; whether anything moved. `None` if there is none.
    pub fn turn(&mut self, now: Time, worker: usize) -> Option<bool> {
        self.clock.set(now);
        let seat = &mut self.seats[worker];
        seat.drive.tick(now);
        Some(seat.station.as_mut()?.turn(now))
    }

    /// Whether a worker must be turned again at once, and when it must be
    /// anyway.
    pub fn wants(&mut self, worker: usize) -> (bool, Option<Time>) {
        match &mut self.seats[worker].station {
            Some(station) => (station.has_work(), station.deadline()),
            None => (false, None),
        }
    }

    /// Makes the volumes of a new world; when it is done.
    ///
    /// # Errors
    /// A sentence about what does not work.
    pub fn furnish(
        &mut self,
        now: Time,
        volumes: &[(VolumeName, usize, BlockCount)],
    ) -> Result<Time> {
        let mut now = now;
        for (name, worker, blocks) in volumes {
            self.errand(&mut now, *worker, |answer| Errand::Create {
                device: device(*worker),
                name: name.clone(),
                size: Size(blocks.bytes()),
                read_only: false,
                domain: None,
                answer,
            })
            .context("making a volume")?;
        }
        Ok(now)
    }

    /// How many changes of a volume the server has carried out since it was
    /// started; takes a little time.
    ///
    /// # Errors
    /// A sentence about what does not work.
    pub fn changes(&mut self, now: &mut Time, worker: usize, volume: &VolumeName) -> Result<u64> {
        let name = volume.clone();
        let shown = self.errand(now, worker, |answer| Errand::Show { name, answer })?;
        let kinds = shown.hooks.kinds.iter().filter(|kind| CHANGES.contains(&kind.kind.as_str()));
        Ok(kinds.map(|kind| kind.requests).sum())
    }

    /// Detaches a volume by force, whoever has it; takes a little time.
    ///
    /// # Errors
    /// A sentence about what does not work.
    pub fn take_away(&mut self, now: &mut Time, worker: usize, volume: &VolumeName) -> Result<()> {
        let name = volume.clone();
        let errand = |answer| Errand::Detach { name, front: None, force: true, answer };
        self.errand(now, worker, errand).map(drop)
    }

    fn errand<T>(
        &mut self,
        now: &mut Time,
        worker: usize,
        errand: impl FnOnce(block_server::errand::Answer<T>) -> Errand,
    ) -> Result<T> {
        let (answer, mut outcome) = oneshot::channel();
        let mailbox = self.seats[worker].mailbox.as_ref().context("the server runs")?;
        mailbox.send(errand(answer));
        for _ in 0..ERRAND_TURNS {
            self.turn(*now, worker);
            *now = *now + TURN;
            if let Ok(outcome) = outcome.try_recv() {
                return Ok(outcome?);
            }
        }
        Err(anyhow!("an errand is never done"))
    }
}

/// What every world begins with. To make it takes longer than most worlds last.
#[derive(Debug)]
pub struct Furniture {
    key: PathBuf,
    raw: Image,
    pool: Image,
}

impl Furniture {
    /// A device formatted for raw volumes, and one that is a pool, which the
    /// key file `key` unlocks.
    ///
    /// # Errors
    /// A sentence about what does not work.
    pub fn make(key: PathBuf) -> Result<Self> {
        let blank = Self { key, raw: Image::default(), pool: Image::default() };
        Ok(Self { raw: blank.formatted(false)?, pool: blank.formatted(true)?, ..blank })
    }

    fn formatted(&self, pooled: bool) -> Result<Image> {
        let blocks = if pooled { POOL_BLOCKS } else { RAW_OVERHEAD + RAW_UNIT };
        let drive = DriveKind { bytes: blocks * 4096, small_lbas: false, held: 64, delay: 0 };
        let room = Room { sessions: 1, slots: 2, small_buffers: 2, large_buffers: 2 };
        let kind = WorkerKind { drive, pooled };
        let mut host = IoHost::new(&[kind], room, Trust::Clear, self, Dice::new(0));
        host.start(Time::ZERO, &Fabric::new(0, Dice::new(0)))?;
        if pooled {
            let mut now = Time::ZERO;
            host.errand(&mut now, 0, |answer| {
                Errand::Pool(PoolErrand::Create {
                    device: device(0),
                    journal: Some(Size(JOURNAL_BYTES)),
                    overwrite: false,
                    answer,
                })
            })
            .context("making a pool")?;
        }
        host.kill();
        Ok(host.seats[0].drive.image())
    }
}

/// Blocks of a device with raw volumes that are not for volumes.
pub const RAW_OVERHEAD: u64 = 2304;

/// The least for a raw volume.
pub const RAW_UNIT: u64 = 256;

/// The least for a pool.
pub const POOL_BLOCKS: u64 = 16 * 1024;

/// The journal of a pool: small, so that checkpoints come often.
const JOURNAL_BYTES: u64 = 64 * 4096;

fn device(worker: usize) -> String {
    format!("disk{worker}")
}

fn owned(
    worker: usize,
    namespace: nvme::Namespace,
    pooled: bool,
    key: &std::path::Path,
) -> Owned<nvme::Namespace> {
    let pool = PoolConfig {
        page_cache: Size(1 << 20),
        read_cache: Size(256 << 10),
        overlay: Size(4 << 20),
        index: Some(Size(64 << 10)),
        ..PoolConfig::default()
    };
    Owned {
        name: device(worker),
        device: namespace,
        formatting: Formatting::IfBlank,
        unlock: pooled.then(|| Unlock::KeyFile(key.to_owned())),
        pool,
        rollback: Rollback::Unnoticed,
    }
}

fn limits(room: Room) -> Limits {
    Limits {
        sessions: usize::from(room.sessions),
        slots: usize::from(room.sessions) * usize::from(room.slots),
        small_buffers: room.small_buffers,
        large_buffers: room.large_buffers,
    }
}
