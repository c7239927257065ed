//! What carries a worker's commands to its devices and brings answers back.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use block_core::{Device, Pool, Time};
use nvme::{Clock, Controller, Namespace, QueuePair, SoftController, SoftNamespace, SoftOptions};

/// Most commands that a worker has under way on its queue pair.
const QUEUE_DEPTH: u16 = 512;

/// The moving part below a worker's devices. A worker calls it from its turn;
/// the futures of its [`Device`]s end because of it.
pub trait Engine {
    /// What volumes are put on.
    type Device: Device + 'static;

    /// Takes a bounded burst of answers and wakes who waits for them. Returns
    /// how many there were.
    fn reap(&mut self) -> usize;

    /// Announces everything that was submitted since the last call.
    fn ring(&mut self);

    /// Does a bounded part of the work of controllers that live in this
    /// thread. Returns how much was done.
    fn work(&mut self) -> usize;

    /// Whether answers are to come that nothing but looking will find.
    fn is_busy(&self) -> bool;

    /// The moment it is, if it can tell: within a turn, what a controller of
    /// this thread does takes time.
    fn now(&self) -> Option<Time> {
        None
    }

    /// Buffers that all devices reach.
    ///
    /// # Errors
    /// When there is no memory for them.
    fn pool(&self, count: usize, buffer_bytes: usize) -> io::Result<Pool>;
}

/// A queue pair of one NVMe controller, and the controller itself when it is
/// a soft one of this thread.
pub struct NvmeEngine {
    queue: Rc<QueuePair>,
    controller: Controller,
    soft: Option<Arc<SoftController>>,
    clock: Clock,
}

impl NvmeEngine {
    /// A soft controller over these namespaces, driven from this thread, and
    /// the namespaces as devices, in the same order.
    ///
    /// # Errors
    /// A sentence about the step of the bring-up that failed.
    pub fn soft(
        options: SoftOptions,
        namespaces: Vec<SoftNamespace>,
        clock: Clock,
    ) -> Result<(Self, Vec<Namespace>), nvme::StartError> {
        let soft = SoftController::new(options, namespaces);
        let controller = Controller::start(soft.bus(), Arc::clone(&clock))?;
        let (mut engine, devices) = Self::new(controller, clock)?;
        engine.soft = Some(soft);
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
        let queue = controller.create_queue_pair(QUEUE_DEPTH)?;
        let devices =
            controller.namespaces().map(|info| Namespace::new(Rc::clone(&queue), info)).collect();
        Ok((Self { queue, controller, soft: None, clock }, devices))
    }

    /// The controller.
    #[must_use]
    pub fn controller(&self) -> &Controller {
        &self.controller
    }
}

impl Engine for NvmeEngine {
    type Device = Namespace;

    fn reap(&mut self) -> usize {
        self.queue.reap()
    }

    fn ring(&mut self) {
        self.queue.ring();
    }

    fn work(&mut self) -> usize {
        self.soft.as_ref().map_or(0, |soft| soft.work())
    }

    fn is_busy(&self) -> bool {
        self.queue.in_flight() > 0
    }

    fn now(&self) -> Option<Time> {
        Some((self.clock)())
    }

    fn pool(&self, count: usize, buffer_bytes: usize) -> io::Result<Pool> {
        self.controller.pool(count, buffer_bytes)
    }
}
