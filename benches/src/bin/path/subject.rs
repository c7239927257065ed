//! Front and server, as their programs put them together, without threads of
//! their own.

use std::net::SocketAddr;
use std::path::Path as FilePath;

use anyhow::bail;
pub(crate) use benches::worker::BLOCKS;
use benches::worker::{self, Ticks};
use block_front::{DiskOptions, Front};
use block_server::{LocalPath, NvmeEngine, WorkerStation};
use link::wire::Wire;
use link::wire::udp::{Udp, UdpPeer};
use link::{
    Access, AttachReply, AttachRequest, Attached, Client, ClientSettings, FrontId, Path, Server,
    ServerSettings, VolumeHandle, VolumeState,
};
use turn::Station;

/// Requests under way at most, and one slot to attach.
const PARTS: u16 = 127;

const FRONT: FrontId = FrontId([7; 16]);

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
        let mut path = LocalPath::over_nvme(worker::start(&ticks)?, FRONT, 1, PARTS);
        match path.attach(AttachRequest::new(worker::volume()?, Access::Write)) {
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
        let mut station = WorkerStation::new(wire, Server::new(settings), worker::start(&ticks)?);
        let settings = ClientSettings {
            front: FRONT,
            incarnation: 1,
            least_timeout: ClientSettings::LEAST_TIMEOUT,
            seed: 2,
            kept_bytes: ClientSettings::KEPT_BYTES,
        };
        let mut client = Client::new(Udp::bind(any)?, settings);
        let volume =
            client.attach(ticks.now(), UdpPeer::from(address), worker::volume()?, Access::Write)?;
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

fn front(socket: &FilePath, volume: VolumeHandle, attached: &Attached) -> anyhow::Result<Front> {
    let options = DiskOptions::new("disk", socket, volume, attached.sectors);
    Ok(Front::new(vec![options.check()?])?)
}

/// Nobody, while the volume is attached.
struct NoGuest;

impl link::Guest for NoGuest {
    fn place(&mut self, _: link::Token, _: usize, _: &[u8]) {}

    fn complete(&mut self, _: link::Token, _: Result<(), block_core::BlockError>) {}
}
