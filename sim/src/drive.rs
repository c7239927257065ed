//! A device of the IOhost: a soft NVMe controller over memory that outlives
//! the server's process, and what a worker has to it.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use block_core::device::Ended;
use block_core::{Pool, Time};
use block_server::engine::Change;
use block_server::{Engine, NvmeEngine};
use nvme::soft::{Disorder, Image};
use nvme::{Controller, LbaSize, Namespace, Patience, SoftController, SoftNamespace, SoftOptions};

use crate::dice::Dice;

/// The time, for those who can only be told by a function that threads share.
#[derive(Clone, Debug, Default)]
pub struct VirtualClock(Arc<AtomicU64>);

impl VirtualClock {
    /// Sets the time.
    pub fn set(&self, now: Time) {
        self.0.store(now.nanos(), Ordering::Relaxed);
    }

    fn shared(&self) -> nvme::Clock {
        let nanos = Arc::clone(&self.0);
        Arc::new(move || Time::from_nanos(nanos.load(Ordering::Relaxed)))
    }
}

/// What a device is like.
#[derive(Clone, Copy, Debug)]
pub struct DriveKind {
    /// Its size.
    pub bytes: u64,
    /// Whether its logical blocks have 512 bytes, and are torn there.
    pub small_lbas: bool,
    /// Most commands that it holds back at a time.
    pub held: usize,
    /// The larger, the longer it holds them back.
    pub delay: u32,
}

/// A device, as it stands in the IOhost.
#[derive(Debug)]
pub struct Drive {
    soft: Arc<SoftController>,
    /// Until when it answers nothing.
    stalled: Rc<Cell<Time>>,
    now: Rc<Cell<Time>>,
    /// It has gone down, and nobody has heard of it.
    went_down: Rc<Cell<bool>>,
}

/// How long a device may take, in a world that lasts for seconds.
const PATIENCE: Patience = Patience {
    command: Duration::from_millis(20),
    abort: Duration::from_millis(2),
    resets: 5,
    pause: Duration::from_millis(10),
};

impl Drive {
    /// A device that holds what the image says.
    #[must_use]
    pub fn new(kind: DriveKind, image: &Image, dice: &mut Dice) -> Self {
        let lba = if kind.small_lbas { LbaSize::B512 } else { LbaSize::B4096 };
        let namespace = SoftNamespace::losing_memory(kind.bytes, lba, image.clone());
        let disorder = Disorder { seed: dice.number(), held: kind.held, delay: kind.delay };
        let options = SoftOptions { disorder: Some(disorder), ..SoftOptions::default() };
        let soft = SoftController::new(options, vec![namespace]);
        let (stalled, now, went_down) = Default::default();
        Self { soft, stalled, now, went_down }
    }

    /// What it holds.
    #[must_use]
    pub fn image(&self) -> Image {
        self.soft.image(1).unwrap_or_default()
    }

    /// Starts the controller for a worker.
    ///
    /// # Errors
    /// The step of the bring-up that failed.
    pub fn start(
        &self,
        clock: &VirtualClock,
    ) -> Result<(DriveEngine, Namespace), nvme::StartError> {
        // Whoever starts waits for it, and no time passes then.
        self.stalled.set(Time::ZERO);
        let controller = Controller::start(self.soft.bus(), clock.shared())?;
        let (mut nvme, mut devices) = NvmeEngine::new(controller, clock.shared())?;
        nvme.set_patience(0, PATIENCE);
        let (soft, stalled) = (Arc::clone(&self.soft), Rc::clone(&self.stalled));
        let (now, went_down) = (Rc::clone(&self.now), Rc::clone(&self.went_down));
        Ok((DriveEngine { nvme, soft, stalled, now, went_down }, devices.remove(0)))
    }

    /// The time of the turn that comes.
    pub fn tick(&self, now: Time) {
        self.now.set(now);
    }

    /// Answers nothing until then.
    pub fn stall(&self, until: Time) {
        self.stalled.set(until);
    }

    /// Something goes wrong with its controller.
    pub fn inject(&self, fault: nvme::soft::Fault) {
        self.soft.inject(fault);
    }

    /// Whether it went down to be reset; says so once.
    #[must_use]
    pub fn take_down(&self) -> bool {
        self.went_down.take()
    }

    /// The process that drove it is about to die.
    pub fn host_dies(&self, seed: u64) {
        self.soft.host_died(seed);
    }

    /// Its power fails and comes back.
    pub fn lose_power(&self, seed: u64) {
        self.soft.power_cut(seed);
    }
}

/// What a worker has to a device.
pub struct DriveEngine {
    nvme: NvmeEngine,
    soft: Arc<SoftController>,
    stalled: Rc<Cell<Time>>,
    now: Rc<Cell<Time>>,
    went_down: Rc<Cell<bool>>,
}

impl Engine for DriveEngine {
    type Device = Namespace;

    fn reap(&mut self, ended: &mut Vec<Ended>) -> usize {
        self.nvme.reap(ended)
    }

    fn ring(&mut self) {
        self.nvme.ring();
    }

    fn work(&mut self) -> usize {
        if self.now.get() < self.stalled.get() { 0 } else { self.soft.work() }
    }

    fn is_busy(&self) -> bool {
        self.nvme.is_busy()
    }

    fn look(&mut self, now: Time) -> Option<Change<Namespace>> {
        let change = self.nvme.look(now);
        if let Some(Change::Down { .. }) = change {
            self.went_down.set(true);
        }
        change
    }

    fn pool(&self, count: usize, buffer_bytes: usize) -> io::Result<Pool> {
        self.nvme.pool(count, buffer_bytes)
    }
}
