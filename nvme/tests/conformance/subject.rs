//! The controllers of the suite, and a driver on one.
//!
//! Each has namespace 1 of 256 blocks of 4096 bytes, namespace 2 of 2048 of 512, no
//! third; transfers of at most 128 KiB; three I/O queue pairs.

use std::any::Any;
use std::future::Future;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use block_core::time::Clock as RealClock;
use block_core::{Buffer, Pool};
use nvme::arena::Arena;
use nvme::command::Command;
use nvme::completion::Status;
use nvme::pci::sysfs::Sysfs;
use nvme::pci::{self, PhysicalBus, VfioBus, physical_arena};
use nvme::soft::{Disorder, FileIo, FileOptions};
use nvme::vfio_user::{Exported, VfioUserBus};
use nvme::{
    Bus, Controller, LbaSize, Namespace, QueuePair, SoftController, SoftNamespace, SoftOptions,
    StartError,
};

use tempfile::TempDir;

use crate::direct_folder::direct_folder;
use crate::qtest::Qemu;

/// Bytes of each namespace.
pub(crate) const NAMESPACE_BYTES: u64 = 1 << 20;
/// Most bytes of one transfer.
pub(crate) const MAX_TRANSFER: usize = 128 << 10;
/// I/O queue pairs.
pub(crate) const QUEUES: u16 = 3;
/// The serial number of all of them.
pub(crate) const SERIAL: &str = "CONFORM";

/// Names the socket of one more controller, set up as above.
const FOREIGN: &str = "VRIO_VFIO_USER";

/// Names a PCI device that vfio-pci has, and one that no driver has, set up as above.
/// Then nothing else is tested: that is another machine's work.
const BEHIND_IOMMU: &str = "VRIO_PCI";
const WITHOUT_IOMMU: &str = "VRIO_PCI_NO_IOMMU";

/// Memory for the driver of a controller in another process.
const ARENA_BYTES: u64 = 64 << 20;

/// Longer than any case waits for one outcome.
const PATIENCE: Duration = Duration::from_secs(20);

/// A controller to be tested.
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) bus: Arc<dyn Bus>,
    /// One whose switches a case may throw.
    pub(crate) soft: Option<Arc<SoftController>>,
    /// The driver's thread does the controller's work.
    driven_here: bool,
    /// What must live as long as it.
    _life: Box<dyn Any>,
}

pub(crate) fn all() -> Vec<Subject> {
    let devices: Vec<Subject> = [behind_iommu(), without_iommu()].into_iter().flatten().collect();
    if !devices.is_empty() {
        return devices;
    }
    let mut all = vec![soft_here(), soft_in_disorder(), soft_beside(), soft_over_vfio_user()];
    all.extend([direct_here(), direct_in_disorder(), direct_beside()].into_iter().flatten());
    match Qemu::start(NAMESPACE_BYTES, MAX_TRANSFER, QUEUES, SERIAL) {
        Ok(qemu) => all.push(Subject {
            name: "QEMU",
            bus: qemu.bus(),
            soft: None,
            driven_here: false,
            _life: Box::new(qemu),
        }),
        Err(missing) => {
            println!("SKIPPED on QEMU's controller: {missing}");
            eprintln!("SKIPPED on QEMU's controller: {missing}");
        }
    }
    if let Some(socket) = std::env::var_os(FOREIGN) {
        let (name, soft, life) = ("foreign", None, Box::new(()));
        let bus = over_vfio_user(Path::new(&socket));
        all.push(Subject { name, bus, soft, driven_here: false, _life: life });
    }
    all
}

fn address(variable: &str) -> Option<pci::Address> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{variable}: {error}")))
}

fn behind_iommu() -> Option<Subject> {
    let address = address(BEHIND_IOMMU)?;
    let arena = Arc::new(Arena::pinned(ARENA_BYTES).expect("memory"));
    let bus = VfioBus::open(&Sysfs::default(), address, arena);
    let bus = bus.unwrap_or_else(|error| panic!("{error}"));
    let (soft, life) = (None, Box::new(()));
    Some(Subject { name: "VFIO", bus, soft, driven_here: false, _life: life })
}

fn without_iommu() -> Option<Subject> {
    let address = address(WITHOUT_IOMMU)?;
    let arena = physical_arena(ARENA_BYTES).unwrap_or_else(|error| panic!("{error}"));
    let bus = PhysicalBus::open(&Sysfs::default(), address, Arc::new(arena));
    let bus = bus.unwrap_or_else(|error| panic!("{error}"));
    let (soft, life) = (None, Box::new(()));
    Some(Subject { name: "no IOMMU", bus, soft, driven_here: false, _life: life })
}

fn options() -> SoftOptions {
    SoftOptions {
        serial: SERIAL.to_owned(),
        queues: QUEUES,
        max_transfer: MAX_TRANSFER,
        ..SoftOptions::default()
    }
}

fn soft(options: SoftOptions) -> Arc<SoftController> {
    let memory = |size| SoftNamespace::memory(NAMESPACE_BYTES, size).expect("memory");
    SoftController::new(options, vec![memory(LbaSize::B4096), memory(LbaSize::B512)])
}

pub(crate) fn soft_here() -> Subject {
    let soft = soft(SoftOptions { shadow_doorbells: true, ..options() });
    let (bus, life) = (soft.bus(), Box::new(()));
    Subject { name: "soft", bus, soft: Some(soft), driven_here: true, _life: life }
}

fn soft_in_disorder() -> Subject {
    let disorder = Some(Disorder { seed: 7, held: 24, delay: 2 });
    let soft = soft(SoftOptions { disorder, ..options() });
    let (bus, life) = (soft.bus(), Box::new(()));
    Subject { name: "disordered", bus, soft: Some(soft), driven_here: true, _life: life }
}

/// Two files whose bytes go straight between storage and driver, if there is a file
/// system for that.
fn direct(name: &str, options: SoftOptions) -> Option<(Arc<SoftController>, TempDir)> {
    let folder = direct_folder(name)?;
    let disk = |name: &str, lba_size| {
        let (path, create) = (folder.path().join(name), Some(NAMESPACE_BYTES));
        let options = FileOptions { path, create, io: FileIo::Direct };
        SoftNamespace::file(&options, lba_size).expect("a namespace")
    };
    let disks = vec![disk("large", LbaSize::B4096), disk("small", LbaSize::B512)];
    Some((SoftController::new(options, disks), folder))
}

fn direct_here() -> Option<Subject> {
    let name = "direct";
    let (soft, folder) = direct(name, options())?;
    let (bus, life) = (soft.bus(), Box::new(folder));
    Some(Subject { name, bus, soft: Some(soft), driven_here: true, _life: life })
}

fn direct_in_disorder() -> Option<Subject> {
    let disorder = Some(Disorder { seed: 9, held: 24, delay: 2 });
    let name = "direct, disordered";
    let (soft, folder) = direct(name, SoftOptions { disorder, ..options() })?;
    let (bus, life) = (soft.bus(), Box::new(folder));
    Some(Subject { name, bus, soft: Some(soft), driven_here: true, _life: life })
}

fn direct_beside() -> Option<Subject> {
    let name = "direct, second thread";
    let (soft, folder) = direct(name, options())?;
    let (bus, life) = (soft.distant_bus(), Box::new((soft.spawn(), folder)));
    Some(Subject { name, bus, soft: Some(soft), driven_here: false, _life: life })
}

/// On a second thread: in one a missing fence is invisible.
fn soft_beside() -> Subject {
    let soft = soft(SoftOptions { shadow_doorbells: true, ..options() });
    let (bus, life) = (soft.distant_bus(), Box::new(soft.spawn()));
    Subject { name: "second thread", bus, soft: Some(soft), driven_here: false, _life: life }
}

/// In another process, but for the process: a thread that knows the driver only by a
/// socket and the memory that comes through it.
fn soft_over_vfio_user() -> Subject {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nvme");
    let memory = |size| SoftNamespace::memory(NAMESPACE_BYTES, size).expect("memory");
    let disks = vec![memory(LbaSize::B4096), memory(LbaSize::B512)];
    let exported = Exported::bind(&path, options(), disks).expect("a socket");
    let soft = Some(Arc::clone(exported.soft()));
    let (bell, ringer) = UnixStream::pair().expect("a pair");
    let over = Arc::<AtomicBool>::default();
    let seen = Arc::clone(&over);
    let thread = std::thread::spawn(move || {
        exported.serve(&|| seen.load(Ordering::Relaxed), bell.as_fd()).expect("it serves");
    });
    let life = Box::new(Serving { over, ringer, thread: Some(thread), _folder: folder });
    let bus = over_vfio_user(&path);
    Subject { name: "vfio-user", bus, soft, driven_here: false, _life: life }
}

fn over_vfio_user(socket: &Path) -> Arc<dyn Bus> {
    let arena = Arc::new(Arena::in_memory(ARENA_BYTES).expect("memory"));
    VfioUserBus::connect(socket, arena).expect("the controller")
}

/// The thread behind a socket.
struct Serving {
    over: Arc<AtomicBool>,
    ringer: UnixStream,
    thread: Option<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.ringer.write(&[0]);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A driver, started anew, with one queue pair.
pub(crate) struct Rig<'a> {
    pub(crate) subject: &'a Subject,
    /// Dropped before the controller, which it waits for.
    pub(crate) queue: Rc<QueuePair>,
    pub(crate) controller: Controller,
}

impl<'a> Rig<'a> {
    pub(crate) fn new(subject: &'a Subject) -> Self {
        let clock = RealClock::start();
        let clock: nvme::Clock = Arc::new(move || clock.now());
        let controller =
            Controller::start(Arc::clone(&subject.bus), clock).expect("the controller starts");
        let queue = controller.create_queue_pair(63).expect("a queue pair");
        Self { subject, queue, controller }
    }

    pub(crate) fn namespace(&self, id: u32) -> Namespace {
        self.namespace_on(&self.queue, id)
    }

    pub(crate) fn namespace_on(&self, queue: &Rc<QueuePair>, id: u32) -> Namespace {
        let info = self.controller.namespace(id).expect("the namespace");
        Namespace::new(Rc::clone(queue), &info)
    }

    pub(crate) fn pool(&self, count: usize, bytes: usize) -> Pool {
        self.controller.pool(count, bytes).expect("memory")
    }

    /// One round of a worker's loop.
    pub(crate) fn turn(&self) {
        self.turn_on(&self.queue);
    }

    pub(crate) fn turn_on(&self, queue: &QueuePair) {
        queue.ring();
        if let (true, Some(soft)) = (self.subject.driven_here, &self.subject.soft) {
            soft.work();
        }
        if queue.reap() == 0 && !self.subject.driven_here {
            std::thread::yield_now();
        }
    }

    /// Whether its controller, if this thread drives it, has to do more than wait.
    pub(crate) fn has_soft_work(&self) -> bool {
        let soft = self.subject.soft.as_ref().filter(|_| self.subject.driven_here);
        soft.is_some_and(|soft| soft.has_work())
    }

    /// The admin command is refused with one of these.
    #[track_caller]
    pub(crate) fn refused(&self, command: Command, statuses: &[Status]) {
        match self.controller.execute(command) {
            Err(StartError::Refused { status, .. }) => {
                assert!(statuses.contains(&status.kind()), "{command:x?}: {status}");
            }
            outcome => panic!("{command:x?}: {outcome:?}"),
        }
    }

    pub(crate) fn run<F: Future>(&self, future: F) -> F::Output {
        self.run_on(&self.queue, future)
    }

    pub(crate) fn run_on<F: Future>(&self, queue: &QueuePair, future: F) -> F::Output {
        let mut future = pin!(future);
        let start = Instant::now();
        loop {
            if let Poll::Ready(output) = poll(future.as_mut()) {
                return output;
            }
            self.turn_on(queue);
            assert!(start.elapsed() < PATIENCE, "no outcome");
        }
    }
}

/// Polls once; nobody is woken, the caller polls again.
pub(crate) fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

pub(crate) fn filled(pool: &Pool, byte: u8) -> Buffer {
    let mut buffer = pool.take().expect("a free buffer");
    buffer.fill(byte);
    buffer
}
