//! What carries a worker's commands to its devices and brings answers back.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use block_core::device::Ended;
use block_core::{Device, Pool, Time};
use nvme::arena::Arena;
use nvme::{
    Bus, Clock, Controller, HealthLog, Namespace, NamespaceInfo, News, Patience, QueuePair,
    SoftController, SoftNamespace, SoftOptions, Watch,
};
use turn::Idle;

/// How often devices are asked how they are, while they work.
const HEALTH_PERIOD: Duration = Duration::from_secs(60);

/// Most commands that a worker has under way on each queue pair: rings of 512 entries,
/// and what commands name their pages by is 2 MiB, which is there without an IOMMU too.
const QUEUE_DEPTH: u16 = 511;

/// The moving part below a worker's devices. A worker calls it from its turn;
/// the futures of its [`Device`]s end because of it.
pub trait Engine {
    /// What volumes are put on.
    type Device: Device + 'static;

    /// Takes a bounded burst of answers: wakes who waits for them, and adds those
    /// that nobody waits for ([`Device::begin`]) to `ended`. Returns how many
    /// there were.
    fn reap(&mut self, ended: &mut Vec<Ended>) -> usize;

    /// Announces everything that was submitted since the last call.
    fn ring(&mut self);

    /// Does a bounded part of the work of controllers that live in this
    /// thread. Returns how much was done.
    fn work(&mut self) -> usize;

    /// Whether answers are to come that nothing but looking will find.
    fn is_busy(&self) -> bool;

    /// When it must be asked again though nothing came in.
    fn deadline(&self) -> Option<Time> {
        None
    }

    /// The moment it is, if it can tell: within a turn, what a controller of
    /// this thread does takes time.
    fn now(&self) -> Option<Time> {
        None
    }

    /// Takes the next step about devices that are in trouble, and says what
    /// became of one. Asked until it says nothing, first thing in a turn: what a
    /// device that went down answers from then on is not to be believed.
    fn look(&mut self, now: Time) -> Option<Change<Self::Device>> {
        let _ = now;
        None
    }

    /// Buffers that all devices reach.
    ///
    /// # Errors
    /// When there is no memory for them.
    fn pool(&self, count: usize, buffer_bytes: usize) -> io::Result<Pool>;
}

/// What became of a device. It is named by its place among the devices that the
/// worker was given, which are the engine's, in its order.
#[derive(Debug)]
pub enum Change<D> {
    /// It is about to be reset, and why. It may lose what it had answered.
    Down {
        /// Which one.
        device: usize,
        /// What is wrong with it.
        why: String,
    },
    /// It works again.
    Up {
        /// Which one.
        device: usize,
        /// What it is now.
        made: D,
    },
    /// Some of its commands were not answered in time.
    Late {
        /// Which one.
        device: usize,
        /// How many.
        commands: u64,
    },
    /// How it is, by its own account.
    Health {
        /// Which one.
        device: usize,
        /// What it says.
        log: HealthLog,
    },
    /// It does not come back, and why.
    GivenUp {
        /// Which one.
        device: usize,
        /// What was tried last.
        why: String,
    },
}

/// NVMe controllers with a queue pair of each, and those controllers themselves
/// that are soft ones of this thread.
pub struct NvmeEngine {
    drives: Vec<Drive>,
    clock: Clock,
    idle: Idle,
    changes: VecDeque<Change<Namespace>>,
}

struct Drive {
    /// Declared first: what it is about to do to the others is dropped first.
    watch: Watch,
    queue: Rc<QueuePair>,
    controller: Controller,
    soft: Option<Arc<SoftController>>,
    /// The place of its first namespace among the engine's devices.
    first: usize,
    /// The only one of its namespaces that is served.
    only: Option<u32>,
}

/// Where a device of an engine is.
pub enum Attached {
    /// In this thread: a soft controller is made for it.
    Soft(SoftNamespace),
    /// Behind a bus: a namespace of the controller there. The bus has its memory from
    /// the engine's arena.
    Bus(Arc<dyn Bus>, u32),
}

impl NvmeEngine {
    /// Soft controllers, each over one of these namespaces, driven from this
    /// thread, and the namespaces as devices, in the same order. If one gets
    /// into trouble, the others do not notice.
    ///
    /// # Errors
    /// A sentence about the step of the bring-up that failed.
    pub fn soft(
        options: SoftOptions,
        namespaces: Vec<SoftNamespace>,
        clock: Clock,
    ) -> Result<(Self, Vec<Namespace>), nvme::StartError> {
        let attached = namespaces.into_iter().map(Attached::Soft).collect();
        Self::over(None, options, attached, clock, Idle::Spin).map_err(|(_, error)| error)
    }

    /// Devices wherever they are, in the same order. If one gets into trouble, the
    /// others do not notice. With an arena all of them have their memory from it. What
    /// the thread does when it is idle decides whether they interrupt.
    ///
    /// # Errors
    /// Which device it was, and a sentence about the step of its bring-up that failed.
    pub fn over(
        arena: Option<Arc<Arena>>,
        options: SoftOptions,
        attached: Vec<Attached>,
        clock: Clock,
        idle: Idle,
    ) -> Result<(Self, Vec<Namespace>), (usize, nvme::StartError)> {
        let mut engine = Self::empty(clock, idle);
        let mut devices = Vec::new();
        let mut soft_ones: Option<Arc<SoftController>> = None;
        let mut make = |namespaces| {
            let soft = match (&soft_ones, &arena) {
                (Some(other), _) => other.beside(options.clone(), namespaces),
                (None, Some(arena)) => {
                    SoftController::in_arena(Arc::clone(arena), options.clone(), namespaces)
                }
                (None, None) => SoftController::new(options.clone(), namespaces),
            };
            soft_ones = Some(Arc::clone(&soft));
            soft
        };
        let is_empty = attached.is_empty();
        for (device, attached) in attached.into_iter().enumerate() {
            let (bus, soft, only) = match attached {
                Attached::Soft(namespace) => {
                    let soft = make(vec![namespace]);
                    (soft.bus(), Some(soft), None)
                }
                Attached::Bus(bus, namespace) => (bus, None, Some(namespace)),
            };
            let clock = Arc::clone(&engine.clock);
            let added = Controller::start(bus, clock)
                .and_then(|controller| engine.add(controller, soft, devices.len(), only));
            devices.extend(added.map_err(|error| (device, error))?);
        }
        if is_empty {
            // Buffers are memory of a controller too.
            let soft = make(Vec::new());
            let controller = Controller::start(soft.bus(), Arc::clone(&engine.clock));
            let added =
                controller.and_then(|controller| engine.add(controller, Some(soft), 0, None));
            added.map_err(|error| (0, error))?;
        }
        Ok((engine, devices))
    }

    /// A queue pair on a controller that others drive, and its namespaces as
    /// devices.
    ///
    /// # Errors
    /// When the controller has no queue pair left.
    pub fn new(
        controller: Controller,
        clock: Clock,
    ) -> Result<(Self, Vec<Namespace>), nvme::StartError> {
        let mut engine = Self::empty(clock, Idle::Spin);
        let devices = engine.add(controller, None, 0, None)?;
        Ok((engine, devices))
    }

    fn empty(clock: Clock, idle: Idle) -> Self {
        Self { drives: Vec::new(), clock, idle, changes: VecDeque::new() }
    }

    /// Most memory that so many devices take for themselves, in bytes.
    #[must_use]
    pub fn dma_bytes(devices: usize) -> usize {
        // A soft controller serves the buffers if nothing else does.
        devices.max(1) * QueuePair::dma_bytes(QUEUE_DEPTH)
    }

    fn add(
        &mut self,
        controller: Controller,
        soft: Option<Arc<SoftController>>,
        first: usize,
        only: Option<u32>,
    ) -> Result<Vec<Namespace>, nvme::StartError> {
        if let Some(id) = only {
            controller.namespace(id)?;
        }
        let queue = match self.idle {
            Idle::Spin | Idle::Yield => controller.create_queue_pair(QUEUE_DEPTH)?,
            Idle::Adaptive | Idle::Interrupt => {
                controller.create_ringing_queue_pair(QUEUE_DEPTH)?
            }
        };
        if self.idle == Idle::Adaptive && queue.rings_bells() {
            controller.coalesce_interrupts()?;
        }
        let watch = Watch::new(&controller, Rc::clone(&queue), Patience::default());
        // One that does not say how it is serves as well.
        let health = controller.health_log().ok();
        let mut drive = Drive { watch, queue, controller, soft, first, only };
        drive.watch.read_health(HEALTH_PERIOD, (self.clock)());
        let devices: Vec<Namespace> = drive.devices().collect();
        let numbered = (first..first + devices.len()).zip(health.into_iter().cycle());
        self.changes.extend(numbered.map(|(device, log)| Change::Health { device, log }));
        self.drives.push(drive);
        Ok(devices)
    }

    /// How long the controller of a device may take, from now on.
    pub fn set_patience(&mut self, device: usize, patience: Patience) {
        if let Some(drive) = self.drives.iter_mut().rfind(|drive| drive.first <= device) {
            drive.watch = Watch::new(&drive.controller, Rc::clone(&drive.queue), patience);
            drive.watch.read_health(HEALTH_PERIOD, (self.clock)());
        }
    }

    /// What the thread waits for when it sleeps: readable, edge by edge, when a device
    /// has something to say.
    pub fn bells(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.drives.iter().flat_map(|drive| drive.controller.bells())
    }

    /// The soft controller of a device, for tests that throw its switches.
    #[must_use]
    pub fn soft_controller(&self, device: usize) -> Option<&Arc<SoftController>> {
        self.drives.iter().rfind(|drive| drive.first <= device)?.soft.as_ref()
    }
}

impl Drive {
    /// Its namespaces as they are now.
    fn devices(&self) -> impl Iterator<Item = Namespace> {
        let served = |info: &&NamespaceInfo| self.only.is_none_or(|id| info.id == id);
        self.controller
            .namespaces()
            .filter(served)
            .map(|info| Namespace::new(Rc::clone(&self.queue), info))
    }

    /// What rings a bell need not be looked for, unless it has rung already.
    fn is_busy(&self) -> bool {
        let waits = self.queue.in_flight() > 0;
        let looks = waits && !self.queue.rings_bells();
        looks || self.watch.is_busy() || waits && (self.queue.has_news() || self.has_soft_work())
    }

    /// Whether its controller, if that is of this thread, has to do more than wait.
    fn has_soft_work(&self) -> bool {
        self.soft.as_ref().is_some_and(|soft| soft.has_work())
    }

    /// Whether its controller is to do its part, if that is of this thread.
    fn is_used(&self) -> bool {
        self.queue.in_flight() > 0 || self.watch.is_busy()
    }

    /// Passes on what the watch has to say, for each of the namespaces.
    fn look(&mut self, now: Time, changes: &mut VecDeque<Change<Namespace>>) {
        let Some(news) = self.watch.look(now) else { return };
        let numbered = (self.first..).zip(self.devices());
        changes.extend(numbered.filter_map(|(device, made)| match &news {
            News::Down(trouble) => Some(Change::Down { device, why: trouble.to_string() }),
            News::Up(_) => Some(Change::Up { device, made }),
            News::Event(event, health) => {
                tracing::warn!(device, ?health, "the controller reports: {event}");
                None
            }
            News::Late(commands) => Some(Change::Late { device, commands: *commands as u64 }),
            News::Health(log) => Some(Change::Health { device, log: *log }),
            News::GivenUp(error) => Some(Change::GivenUp { device, why: error.to_string() }),
        }));
    }
}

impl Engine for NvmeEngine {
    type Device = Namespace;

    fn reap(&mut self, ended: &mut Vec<Ended>) -> usize {
        self.drives.iter().map(|drive| drive.queue.reap_into(ended)).sum()
    }

    fn ring(&mut self) {
        self.drives.iter().for_each(|drive| drive.queue.ring());
    }

    fn work(&mut self) -> usize {
        let used = self.drives.iter().filter(|drive| drive.is_used());
        used.filter_map(|drive| drive.soft.as_ref()).map(|soft| soft.work()).sum()
    }

    fn is_busy(&self) -> bool {
        self.drives.iter().any(Drive::is_busy)
    }

    fn deadline(&self) -> Option<Time> {
        let ringing = self.drives.iter().filter(|drive| drive.queue.rings_bells());
        ringing.filter_map(|drive| drive.watch.deadline()).min()
    }

    fn now(&self) -> Option<Time> {
        Some((self.clock)())
    }

    fn look(&mut self, now: Time) -> Option<Change<Namespace>> {
        if self.changes.is_empty() {
            self.drives.iter_mut().for_each(|drive| drive.look(now, &mut self.changes));
        }
        self.changes.pop_front()
    }

    fn pool(&self, count: usize, buffer_bytes: usize) -> io::Result<Pool> {
        // A soft controller must be told of memory, others reach the whole arena.
        let soft = self.drives.iter().find(|drive| drive.soft.is_some());
        let chosen = soft.or(self.drives.first()).ok_or(io::ErrorKind::NotFound)?;
        chosen.controller.pool(count, buffer_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device says of itself is known from the start, before there is any work.
    #[test]
    fn every_device_says_how_it_is_at_its_start() {
        let disk = || SoftNamespace::memory(1 << 20, nvme::LbaSize::B4096).expect("memory");
        let clock = block_core::time::Clock::start();
        let clock: Clock = Arc::new(move || clock.now());
        let made = NvmeEngine::soft(SoftOptions::default(), vec![disk(), disk()], clock);
        let (mut engine, devices) = made.expect("they start");
        assert_eq!(devices.len(), 2);
        for expected in 0..2 {
            let Some(Change::Health { device, log }) = engine.look(Time::ZERO) else {
                panic!("device {expected} does not say how it is");
            };
            assert_eq!((device, log.kelvin), (expected, 300));
        }
        assert!(engine.look(Time::ZERO).is_none());
    }
}
