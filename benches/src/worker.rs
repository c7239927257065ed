//! A worker with one raw volume, on a device in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use block_core::Time;
use block_server::catalog::Formatting;
use block_server::{
    Chance, Directory, Errand, Limits, Mailbox, NvmeEngine, Owned, Place, Size, Worker, WorkerIndex,
};
use link::VolumeName;
use nvme::{LbaSize, SoftNamespace, SoftOptions};
use tokio::sync::oneshot;

/// Blocks of the volume; with the catalog it fits the device.
pub const BLOCKS: u64 = 8192;
const DEVICE_BYTES: u64 = 64 << 20;

/// Moments go by as turns do: nothing that is counted depends on the machine.
#[derive(Clone, Default)]
pub struct Ticks(Arc<AtomicU64>);

impl Ticks {
    /// The moment that it is.
    #[must_use]
    pub fn now(&self) -> Time {
        Time::from_nanos(self.0.load(Ordering::Relaxed))
    }

    /// The next one, two microseconds later.
    #[must_use]
    pub fn pass(&self) -> Time {
        self.skip(Duration::from_micros(2))
    }

    /// A later one.
    pub fn skip(&self, span: Duration) -> Time {
        let span = span.as_nanos() as u64;
        Time::from_nanos(self.0.fetch_add(span, Ordering::Relaxed) + span)
    }
}

/// What the volume is called.
///
/// # Errors
/// None: it is a name.
pub fn volume() -> anyhow::Result<VolumeName> {
    VolumeName::new("disk").context("a name")
}

/// Starts it, and makes the volume.
///
/// # Errors
/// The kernel's, when it has no memory to give.
pub fn start(ticks: &Ticks) -> anyhow::Result<Worker<NvmeEngine>> {
    let namespace = SoftNamespace::memory(DEVICE_BYTES, LbaSize::B4096)?;
    let clock = ticks.clone();
    let clock: nvme::Clock = Arc::new(move || clock.now());
    let (engine, devices) = NvmeEngine::soft(SoftOptions::default(), vec![namespace], clock)?;
    let mailbox = Mailbox::new()?;
    let drawn = AtomicU64::new(1);
    let place = Place {
        worker: WorkerIndex(0),
        directory: Arc::<Directory>::default(),
        mailbox: Arc::clone(&mailbox),
        chance: Chance::new(move || {
            drawn.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        }),
        wall: || 1_800_000_000,
    };
    let owned = devices.into_iter().map(|it| Owned::raw("soft", it, Formatting::IfBlank));
    let limits = Limits { sessions: 4, slots: 512, ..Limits::default() };
    let mut worker = Worker::over_nvme(engine, owned.collect(), place, limits)?;
    let (answer, mut made) = oneshot::channel();
    mailbox.send(Errand::Create {
        device: "soft".to_owned(),
        name: volume()?,
        size: Size(BLOCKS * 4096),
        read_only: false,
        domain: None,
        answer,
    });
    loop {
        worker.turn(ticks.pass());
        if let Ok(made) = made.try_recv() {
            made.map_err(|failed| anyhow::anyhow!("{failed}"))?;
            return Ok(worker);
        }
    }
}
