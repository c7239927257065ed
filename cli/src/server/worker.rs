//! What a worker is made of: its devices, and the soft controllers among them.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use block_core::time::Clock;
use block_server::config::{DeviceConfig, DeviceSource};
use block_server::remembered::Rollback;
use block_server::{
    Attached, Chance, Directory, Limits, Mailbox, NvmeEngine, Owned, Place, Worker, WorkerIndex,
    dma_bytes,
};
use nvme::arena::Arena;
use nvme::pci::sysfs::Sysfs;
use nvme::pci::{PhysicalBus, VfioBus, physical_arena};
use nvme::soft::FileOptions;
use nvme::vfio_user::VfioUserBus;
use nvme::{Bus, LbaSize, Patience, SoftNamespace, SoftOptions};
use turn::Idle;

/// Fronts that one worker serves at most.
pub(crate) const SESSIONS: u16 = 64;

/// Slots of each session: more requests at a time than a soft device answers
/// faster, and one for attach and detach.
pub(crate) const SLOTS: u16 = 128;

/// Memory that a worker can share with devices in other processes: address space,
/// taken as it is touched. Its buffers have a tenth of it.
const ARENA_BYTES: u64 = 64 << 30;

/// Where a worker sits: what it owns and what it shares.
pub(crate) struct Seat {
    pub(crate) worker: WorkerIndex,
    /// All devices of the server; the worker takes its own.
    pub(crate) devices: Vec<DeviceConfig>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) clock: Clock,
    pub(crate) idle: Idle,
    /// Where the server keeps what it must remember.
    pub(crate) state: PathBuf,
    /// Devices whose pools may be older than the server remembers.
    pub(crate) accept_rollback: Vec<String>,
}

/// Room for every session to use all its slots.
pub(crate) fn limits() -> Limits {
    Limits {
        sessions: usize::from(SESSIONS),
        slots: usize::from(SESSIONS) * usize::from(SLOTS),
        ..Limits::default()
    }
}

/// Opens the worker's devices, in its own thread.
pub(crate) fn start(seat: Seat, limits: Limits) -> anyhow::Result<Worker<NvmeEngine>> {
    let mine: Vec<DeviceConfig> =
        seat.devices.into_iter().filter(|device| device.worker == seat.worker).collect();
    let arena = arena(&mine, &limits)?.map(Arc::new);
    let attached = mine.iter().map(|device| open(device, arena.as_ref()));
    let attached = attached.collect::<anyhow::Result<Vec<Attached>>>()?;
    let clock = seat.clock;
    let clock: nvme::Clock = Arc::new(move || clock.now());
    let (mut engine, devices) =
        NvmeEngine::over(arena, SoftOptions::default(), attached, clock, seat.idle).map_err(
            |(device, error)| {
                let name = mine.get(device).map_or("of nobody", |device| &device.name);
                anyhow::Error::new(error).context(format!("device '{name}' does not start"))
            },
        )?;
    for (device, config) in mine.iter().enumerate() {
        let patience = Patience { command: config.command_timeout, ..Patience::default() };
        engine.set_patience(device, patience);
    }
    let (state, accepted) = (seat.state, seat.accept_rollback);
    let rollback = |name: &str| {
        let file = state.join("pools").join(name);
        if accepted.iter().any(|one| one == name) {
            Rollback::Accepted(file)
        } else {
            Rollback::Refused(file)
        }
    };
    let owned = mine.into_iter().zip(devices).map(|(config, device)| Owned {
        rollback: rollback(&config.name),
        name: config.name,
        device,
        formatting: config.formatting,
        unlock: config.unlock,
        pool: config.pool,
    });
    let place = Place {
        worker: seat.worker,
        directory: seat.directory,
        mailbox: seat.mailbox,
        chance: Chance::new(rand::random),
        wall: crate::moment::now,
    };
    Ok(Worker::over_nvme(engine, owned.collect(), place, limits)?)
}

/// The memory that a worker's devices reach, if they do not live in its thread.
fn arena(mine: &[DeviceConfig], limits: &Limits) -> anyhow::Result<Option<Arena>> {
    let bytes = dma_bytes(limits, mine) as u64;
    let has = |kind: fn(&DeviceSource) -> bool| mine.iter().any(|device| kind(&device.source));
    let arena = if has(|source| matches!(source, DeviceSource::Pci { no_iommu: true, .. })) {
        tracing::warn!("a device without an IOMMU reaches all memory of this machine");
        physical_arena(bytes)?
    } else if has(|source| matches!(source, DeviceSource::Pci { .. })) {
        let mib = bytes >> 20;
        Arena::pinned(bytes).with_context(|| format!("there are no {mib} MiB of DMA memory"))?
    } else if has(|source| matches!(source, DeviceSource::VfioUser { .. })) {
        Arena::in_memory(ARENA_BYTES).context("there is no memory to share with devices")?
    } else {
        return Ok(None);
    };
    Ok(Some(arena))
}

fn open(device: &DeviceConfig, arena: Option<&Arc<Arena>>) -> anyhow::Result<Attached> {
    let named = || format!("device '{}'", device.name);
    match &device.source {
        DeviceSource::Soft { path, size, lba, io } => {
            let create = size.map(block_server::Size::bytes);
            let options = FileOptions { path: path.clone(), create, io: *io };
            let lba = if *lba == 512 { LbaSize::B512 } else { LbaSize::B4096 };
            Ok(Attached::Soft(SoftNamespace::file(&options, lba).with_context(named)?))
        }
        DeviceSource::VfioUser { socket, namespace } => {
            let arena = arena.with_context(named)?;
            let bus = VfioUserBus::connect(socket, Arc::clone(arena)).with_context(named)?;
            Ok(Attached::Bus(bus, *namespace))
        }
        DeviceSource::Pci { address, namespace, no_iommu } => {
            let arena = Arc::clone(arena.with_context(named)?);
            let bus: Arc<dyn Bus> = if *no_iommu {
                PhysicalBus::open(&Sysfs::default(), *address, arena).with_context(named)?
            } else {
                VfioBus::open(&Sysfs::default(), *address, arena).with_context(named)?
            };
            Ok(Attached::Bus(bus, *namespace))
        }
    }
}
