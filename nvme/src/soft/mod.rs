//! The soft controller: the other side of the bus, in this process.
//!
//! It is a controller and no shortcut: an admin queue, identify, queues with
//! phase tags, doorbells that are one 32-bit store, PRP lists, a volatile
//! write cache, errors. It knows nothing of our driver and believes nothing it
//! is told: a malformed command gets the status that the specification asks
//! for and touches no memory.
//!
//! A worker drives it from its own turn ([`SoftController::work`]); in tests a
//! second thread does too ([`SoftController::spawn`]), which makes a missing
//! fence visible.

mod admin;
mod bus;
mod direct;
mod disorder;
mod engine;
mod events;
mod fault;
mod file;
mod identify;
mod in_place;
mod interrupts;
mod io;
mod later;
mod layers;
mod log;
mod namespace;
mod open;
mod prp;
mod queue;
mod ram;
mod registers;
mod shadow;
#[cfg(test)]
mod tests;
mod thread;
mod unflushed;
mod windows;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use block_core::Memory;

use crate::arena::Arena;
use crate::bus::Bus;
use crate::sys::HalfWords;
use bus::SoftBus;
use engine::Engine;
use interrupts::Interrupts;
use registers::Registers;
use windows::Registry;

pub use direct::NotDirect;
pub use disorder::Disorder;
pub use fault::Fault;
pub use layers::Image;
pub use namespace::SoftNamespace;
pub use open::{BadFileIo, FileIo, FileOptions, OpenError};
pub use thread::Runner;

/// What a soft controller is like.
#[derive(Clone, Debug)]
pub struct SoftOptions {
    /// Serial number, at most 20 ASCII characters.
    pub serial: String,
    /// Most I/O queue pairs.
    pub queues: u16,
    /// Most entries of a queue, at least 2.
    pub queue_entries: u16,
    /// Most bytes of one transfer: 4096 times a power of two, at least 8192.
    pub max_transfer: usize,
    /// Whether writes rest in a volatile cache until a flush. For a file that
    /// cache is the kernel's page cache: it survives the end of this process
    /// and is lost with the machine's power.
    pub write_cache: bool,
    /// Whether there is a Write Zeroes command.
    pub write_zeroes: bool,
    /// Whether there is a Dataset Management command.
    pub deallocate: bool,
    /// Whether doorbells can be shadowed in memory. It costs a driver of this process a
    /// fence and saves nothing; a controller whose doorbells another process has mapped
    /// never does.
    pub shadow_doorbells: bool,
    /// Reorders and delays completions.
    pub disorder: Option<Disorder>,
}

impl Default for SoftOptions {
    fn default() -> Self {
        Self {
            serial: "VRIO-SOFT".to_owned(),
            queues: 16,
            queue_entries: 1024,
            max_transfer: 1 << 20,
            write_cache: true,
            write_zeroes: true,
            deallocate: true,
            shadow_doorbells: false,
            disorder: None,
        }
    }
}

const fn vectors_of(options: &SoftOptions) -> u16 {
    options.queues + 1
}

/// A controller in this process. Share it with `Arc`: a bus to it holds one.
#[derive(Debug)]
pub struct SoftController {
    registers: Registers,
    registry: Arc<Registry>,
    engine: Mutex<Engine>,
    /// Those of a controller whose driver is in another process.
    interrupts: Option<Arc<Interrupts>>,
    /// Readable when a disk has something to say; none if there is a command of which no
    /// disk says that it has ended.
    bells: Vec<OwnedFd>,
}

impl SoftController {
    /// A controller over these namespaces, whose IDs are 1, 2 and so on.
    ///
    /// # Panics
    /// If the options contradict their own documentation.
    #[must_use]
    pub fn new(options: SoftOptions, namespaces: Vec<SoftNamespace>) -> Arc<Self> {
        Self::over(Arc::default(), options, namespaces, None, None)
    }

    /// Another controller of the same driver: each reaches the memory that was
    /// allocated on a bus to the other, at the same addresses.
    ///
    /// # Panics
    /// As [`SoftController::new`].
    #[must_use]
    pub fn beside(&self, options: SoftOptions, namespaces: Vec<SoftNamespace>) -> Arc<Self> {
        Self::over(Arc::clone(&self.registry), options, namespaces, None, None)
    }

    /// A controller whose driver has its memory from an arena, which other
    /// controllers reach too.
    ///
    /// # Panics
    /// As [`SoftController::new`].
    #[must_use]
    pub fn in_arena(
        arena: Arc<Arena>,
        options: SoftOptions,
        namespaces: Vec<SoftNamespace>,
    ) -> Arc<Self> {
        Self::over(Arc::new(Registry::over(arena)), options, namespaces, None, None)
    }

    /// A controller whose doorbells are in memory that another process maps too: two
    /// for each queue pair and the admin queue. Its queues interrupt if they are made so;
    /// what was raised is [to be taken](SoftController::take_interrupts).
    ///
    /// # Panics
    /// As [`SoftController::new`], or if the memory has no room for them.
    pub(crate) fn with_doorbells(
        options: SoftOptions,
        namespaces: Vec<SoftNamespace>,
        doorbells: Arc<Memory>,
    ) -> Arc<Self> {
        let count = doorbells.len() / 4;
        let options = SoftOptions { shadow_doorbells: false, ..options };
        let words = HalfWords::new(doorbells, 0, count);
        let interrupts = Arc::new(Interrupts::new(vectors_of(&options)));
        Self::over(Arc::default(), options, namespaces, words, Some(interrupts))
    }

    fn over(
        registry: Arc<Registry>,
        options: SoftOptions,
        namespaces: Vec<SoftNamespace>,
        doorbells: Option<HalfWords>,
        interrupts: Option<Arc<Interrupts>>,
    ) -> Arc<Self> {
        assert!(options.queue_entries >= 2 && options.queues >= 1);
        let pages = options.max_transfer / crate::PAGE;
        assert!(
            pages >= 2
                && pages.is_power_of_two()
                && options.max_transfer.is_multiple_of(crate::PAGE)
        );
        let engine = Engine::new(options.clone(), namespaces, interrupts.clone());
        let bells = engine.bells();
        let registers = Registers::new(options.queues, options.queue_entries, doorbells);
        if engine.has_direct {
            registers.take_long();
        }
        Arc::new(Self { registers, registry, engine: Mutex::new(engine), interrupts, bells })
    }

    /// A bus for a driver whose thread also drives the controller: waiting for
    /// an answer does the controller's work.
    #[must_use]
    pub fn bus(self: &Arc<Self>) -> Arc<dyn Bus> {
        self.engine().reach_memory(true);
        Arc::new(SoftBus::driven_here(Arc::clone(self)))
    }

    /// A bus for a driver while another thread drives the controller.
    #[must_use]
    pub fn distant_bus(self: &Arc<Self>) -> Arc<dyn Bus> {
        self.engine().reach_memory(true);
        Arc::new(SoftBus::driven_elsewhere(Arc::clone(self)))
    }

    /// Looks at every doorbell and does a bounded amount of work. Returns how
    /// many commands were fetched or completed: as long as commands are under
    /// way, zero does not mean that nothing is left to do. While another
    /// thread is in here there is nothing to do for this one.
    pub fn work(&self) -> usize {
        match self.engine.try_lock() {
            Ok(mut engine) => engine.work(&self.registers, &self.registry),
            Err(TryLockError::WouldBlock) => 0,
            Err(TryLockError::Poisoned(poisoned)) => {
                poisoned.into_inner().work(&self.registers, &self.registry)
            }
        }
    }

    /// Whether [`SoftController::work`] would find anything that no [bell](Bus::bells)
    /// rings for any more: whoever drives the controller does not sleep then.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.engine().has_work(&self.registers)
    }

    /// Drives the controller on a thread of its own until the runner is
    /// dropped.
    #[must_use]
    pub fn spawn(self: &Arc<Self>) -> Runner {
        Runner::start(Arc::clone(self))
    }

    /// Throws a switch: something goes wrong from now on.
    pub fn inject(&self, fault: Fault) {
        self.engine().inject(fault, &self.registers);
    }

    /// The power fails and comes back. Commands under way end in nothing or,
    /// as the seed wills, had been executed; of what was not flushed, each
    /// logical block keeps any of the contents it has had since. Namespaces
    /// over files lose nothing here: their cache belongs to the kernel.
    pub fn power_cut(&self, seed: u64) {
        self.engine().power_cut(seed, &self.registers);
    }

    /// What a namespace (the first is 1) holds that loses memory; `None` for
    /// one of another kind.
    #[must_use]
    pub fn image(&self, namespace: u32) -> Option<Image> {
        let engine = self.engine();
        let index = usize::try_from(namespace).ok()?.checked_sub(1)?;
        engine.namespaces.get(index)?.image()
    }

    /// The host's process dies: what drove the controller is gone, and it is
    /// stopped. Commands under way end in nothing or, as the seed wills, had
    /// been executed; the cache loses nothing.
    pub fn host_died(&self, seed: u64) {
        self.engine().host_died(seed, &self.registers);
    }

    /// How many vectors it has: one for the admin queue, and one for each I/O queue pair.
    pub(crate) fn vectors(&self) -> u16 {
        vectors_of(&self.engine().options)
    }

    /// The vectors that were raised since the last call, each once.
    pub(crate) fn take_interrupts(&self) -> impl Iterator<Item = u16> {
        self.interrupts.iter().flat_map(|interrupts| interrupts.take())
    }

    /// The driver of another process reads a register.
    pub(crate) fn read_register(&self, offset: u32) -> u32 {
        self.registers.read(offset)
    }

    /// The driver of another process writes to a register or a doorbell.
    pub(crate) fn write_register(&self, offset: u32, value: u32) {
        self.registers.write(offset, value);
    }

    /// Opens memory of another process to the controller, at addresses where there
    /// is none.
    pub(crate) fn open_memory(&self, iova: u64, memory: &Arc<Memory>) {
        self.registry.insert(iova, memory);
    }

    /// Closes what was opened at this address. What the thread that drives the
    /// controller begins after this does not reach it, and what the kernel had to do with
    /// it has ended.
    pub(crate) fn close_memory(&self, iova: u64) {
        self.registry.remove(iova);
        self.finish();
    }

    /// Waits until the kernel has no command of it.
    pub(crate) fn finish(&self) {
        self.engine().finish();
    }

    /// From when this returns it touches no memory of a driver, until there is
    /// a new bus to it. It waits for what the kernel has.
    fn cut_off(&self) {
        self.engine().reach_memory(false);
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
