//! Front and server, as their programs put them together, without threads of
//! their own.

use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use block_core::Time;
use block_front::{DiskOptions, Front};
use block_server::catalog::Formatting;
use block_server::{
    Chance, Directory, Errand, Limits, LocalPath, Mailbox, NvmeEngine, Owned, Place, Size, Worker,
    WorkerIndex, WorkerStation,
};
use link::wire::Wire;
use link::wire::udp::{Udp, UdpPeer};
use link::{
    Access, AttachReply, AttachRequest, Attached, Client, ClientSettings, FrontId, Path, Server,
    ServerSettings, VolumeHandle, VolumeName, VolumeState,
};
use nvme::{LbaSize, SoftNamespace, SoftOptions};
use tokio::sync::oneshot;
use turn::Station;

/// Blocks of the volume; with the catalog it fits the device.
pub(crate) const BLOCKS: u64 = 8192;
const DEVICE_BYTES: u64 = 64 << 20;

/// Requests under way at most, and one slot to attach.
const PARTS: u16 = 127;

const FRONT: FrontId = FrontId([7; 16]);

/// Moments go by as turns do: nothing that is counted depends on the machine.
#[derive(Clone, Default)]
struct Ticks(Arc<AtomicU64>);

impl Ticks {
    fn now(&self) -> Time {
        Time::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn pass(&self) -> Time {
        let tick = Duration::from_micros(2).as_nanos() as u64;
        Time::from_nanos(self.0.fetch_add(tick, Ordering::Relaxed) + tick)
    }
}

/// All of ours: a front with one disk, and what serves it.
pub(crate) struct Subject {
    front: Front,
    served: Served,
    ticks: Ticks,
}

#[allow(clippy::large_enum_variant)] // there is one
enum Served {
    Fused(LocalPath<NvmeEngine>),
    Apart(Client<Udp>, WorkerStation<NvmeEngine, Udp>),
}

impl Subject {
    /// A front that listens at `socket`.
    pub(crate) fn fused(socket: &FilePath) -> anyhow::Result<Self> {
        let ticks = Ticks::default();
        let mut path = LocalPath::over_nvme(worker(&ticks)?, FRONT, 1, PARTS);
        match path.attach(AttachRequest::new(name()?, Access::Write)) {
            AttachReply::Attached(attached) => {
                let front = front(socket, attached.handle, &attached)?;
                Ok(Self { front, served: Served::Fused(path), ticks })
            }
            other => bail!("not attached: {other:?}"),
        }
    }

    /// The same with a server behind a socket.
    pub(crate) fn apart(socket: &FilePath) -> anyhow::Result<Self> {
        let ticks = Ticks::default();
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        let wire = Udp::bind(any)?;
        let address = wire.local_address()?;
        let settings =
            ServerSettings { sessions: 4, slots: PARTS + 1, window: wire.window(), seed: 1 };
        let mut station = WorkerStation::new(wire, Server::new(settings), worker(&ticks)?);
        let settings = ClientSettings {
            front: FRONT,
            incarnation: 1,
            least_timeout: ClientSettings::LEAST_TIMEOUT,
            seed: 2,
            kept_bytes: ClientSettings::KEPT_BYTES,
        };
        let mut client = Client::new(Udp::bind(any)?, settings);
        let volume = client.attach(ticks.now(), UdpPeer::from(address), name()?, Access::Write)?;
        let attached = loop {
            client.turn(ticks.pass(), &mut NoGuest);
            station.turn(ticks.pass());
            match client.state(volume) {
                VolumeState::Waiting => {}
                VolumeState::Attached(attached) => break attached,
                other => bail!("not attached: {other:?}"),
            }
        };
        client.settle(volume);
        let front = front(socket, volume, &attached)?;
        Ok(Self { front, served: Served::Apart(client, station), ticks })
    }

    /// The front's turn; fused, also the worker's.
    pub(crate) fn turn_front(&mut self) {
        let now = self.ticks.pass();
        match &mut self.served {
            Served::Fused(path) => self.front.turn(now, path),
            Served::Apart(client, _) => self.front.turn(now, client),
        };
    }

    /// The server's turn, if it has one.
    pub(crate) fn turn_server(&mut self) {
        if let Served::Apart(_, station) = &mut self.served {
            station.turn(self.ticks.pass());
        }
    }
}

fn name() -> anyhow::Result<VolumeName> {
    VolumeName::new("disk").context("a name")
}

fn front(socket: &FilePath, volume: VolumeHandle, attached: &Attached) -> anyhow::Result<Front> {
    let options = DiskOptions::new("disk", socket, volume, attached.sectors);
    Ok(Front::new(vec![options.check()?])?)
}

/// A worker with one raw volume on a device in memory.
fn worker(ticks: &Ticks) -> anyhow::Result<Worker<NvmeEngine>> {
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
        name: name()?,
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

/// Nobody, while the volume is attached.
struct NoGuest;

impl link::Guest for NoGuest {
    fn fetch(&mut self, _: link::Token, _: &mut [u8]) -> Result<(), block_core::BlockError> {
        Ok(())
    }

    fn place(&mut self, _: link::Token, _: usize, _: &[u8]) {}

    fn complete(&mut self, _: link::Token, _: Result<(), block_core::BlockError>) {}
}
