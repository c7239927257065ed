//! A front and a server that know each other's keys.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use benches::worker::{self, BLOCKS, Ticks};
use block_core::unit::{SECTORS_PER_BLOCK, SectorRange};
use block_core::{BlockError, Op};
use block_server::authority::Authority;
use block_server::{NvmeEngine, Worker, WorkerStation};
use link::security::FRAMES_PER_KEY;
use link::wire::memory::{Datagram, End, Network, Port};
use link::{
    Access, Caller, Client, ClientSettings, Contact, Guest, Part, Path, Refusal, Refused, Sealed,
    SecretKey, Security, Server, ServerSecurity, ServerSettings, Source, Token, VolumeHandle,
    VolumeName, VolumeState,
};
use turn::Station;

const SERVER: Port = Port(1);
const FRONT: Port = Port(2);

/// Whoever has shown a key may have everything.
struct AnyKey;

impl Authority for AnyKey {
    fn admits(&self, caller: &Caller) -> bool {
        caller.key.is_some()
    }

    fn may_attach(&self, _: &Caller, _: &VolumeName, _: Access) -> Result<(), Refused> {
        Ok(())
    }
}

/// Both, and what is between them.
pub(crate) struct Pair {
    pub(crate) ticks: Ticks,
    network: Network,
    server_key: SecretKey,
    front_key: Rc<SecretKey>,
    station: WorkerStation<NvmeEngine, End>,
    client: Option<(Client<End>, VolumeHandle)>,
    guest: OneAtATime,
}

/// A guest that waits for its one request.
#[derive(Default)]
struct OneAtATime {
    ended: Option<Result<(), BlockError>>,
}

impl Source for OneAtATime {
    fn fetch(&mut self, _: Token, _: &mut [u8]) -> Result<(), BlockError> {
        Ok(())
    }
}

impl Guest for OneAtATime {
    fn place(&mut self, _: Token, _: usize, _: &[u8]) {}

    fn complete(&mut self, _: Token, outcome: Result<(), BlockError>) {
        self.ended = Some(outcome);
    }
}

/// A server with this key, and the worker behind it.
fn server(key: &SecretKey, ticks: &Ticks) -> anyhow::Result<(Server<Port>, Worker<NvmeEngine>)> {
    let settings = ServerSettings { sessions: 4, slots: 128, window: 4 << 20, seed: 1 };
    let (secrets, entropy) = (vec![key.clone()], rand::random());
    let security = ServerSecurity { secrets, clear_allowed: false, entropy };
    let mut worker = worker::start(ticks)?;
    worker.obey(Rc::new(AnyKey));
    Ok((Server::secured(settings, security), worker))
}

impl Pair {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let (ticks, network) = (Ticks::default(), Network::new());
        let server_key = SecretKey::generate(&mut rand::rng());
        let (server, worker) = server(&server_key, &ticks)?;
        Ok(Self {
            station: WorkerStation::new(network.end(SERVER), server, worker),
            front_key: Rc::new(SecretKey::generate(&mut rand::rng())),
            server_key,
            client: None,
            guest: OneAtATime::default(),
            ticks,
            network,
        })
    }

    /// The front's next start, which asks for the volume.
    fn begin(&mut self, start: u64, frames_per_key: u64) -> anyhow::Result<()> {
        let settings = ClientSettings {
            front: self.front_key.public().front(),
            incarnation: start,
            least_timeout: ClientSettings::LEAST_TIMEOUT,
            seed: start,
            kept_bytes: ClientSettings::LEAST_KEPT_BYTES,
        };
        let mut client = Client::new(self.network.end(FRONT), settings);
        let sealed =
            Sealed::new(Rc::clone(&self.front_key), self.server_key.public(), rand::random());
        let security = Security::Sealed(Sealed { frames_per_key, ..sealed });
        let server = Contact { peer: SERVER, security };
        let volume = client.attach(self.ticks.now(), server, worker::volume()?, Access::Write)?;
        self.client = Some((client, volume));
        Ok(())
    }

    /// The front's next start: it has the volume when this returns.
    pub(crate) fn connect(&mut self, start: u64, frames_per_key: u64) -> anyhow::Result<()> {
        self.begin(start, frames_per_key)?;
        loop {
            self.turn();
            let (client, volume) = self.client.as_mut().context("just made")?;
            match client.state(*volume) {
                VolumeState::Waiting => {}
                VolumeState::Attached(_) => {
                    client.settle(*volume);
                    return Ok(());
                }
                other => bail!("not attached: {other:?}"),
            }
        }
    }

    fn turn(&mut self) {
        if let Some((client, _)) = &mut self.client {
            client.turn(self.ticks.pass(), &mut self.guest);
        }
        self.network.deliver_all();
        self.station.turn(self.ticks.pass());
        self.network.deliver_all();
    }

    /// Reads a block, from the request to its answer.
    pub(crate) fn read(&mut self, request: u64) -> anyhow::Result<()> {
        self.guest.ended = None;
        self.submit(request)?;
        loop {
            self.turn();
            match self.guest.ended {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) => bail!("a read failed: {error}"),
                None => {}
            }
        }
    }

    fn submit(&mut self, request: u64) -> anyhow::Result<()> {
        let first = request % BLOCKS * SECTORS_PER_BLOCK;
        let range = SectorRange::new(first, SECTORS_PER_BLOCK as u32);
        let range = Some(range.context("within the volume")?);
        loop {
            let (client, volume) = self.client.as_mut().context("connected")?;
            let part = Part { token: Token(1), volume: *volume, op: Op::Read, range };
            match client.submit(self.ticks.now(), part, &mut self.guest) {
                Ok(()) => return Ok(()),
                // The volume's start is not over.
                Err(Refusal::Busy) => self.turn(),
                Err(Refusal::Failed(error)) => bail!("a read was not taken: {error}"),
            }
        }
    }

    /// What the front says next, and does not arrive: a read, or how it begins a
    /// session.
    pub(crate) fn overhear(&mut self, first_words: bool) -> anyhow::Result<Vec<Datagram>> {
        if first_words {
            self.begin(u64::MAX / 2, FRAMES_PER_KEY)?;
        } else {
            self.submit(0)?;
        }
        let (client, _) = self.client.as_mut().context("connected")?;
        client.turn(self.ticks.pass(), &mut self.guest);
        Ok(std::iter::from_fn(|| self.network.take()).collect())
    }

    /// Lets the server take these frames, which come as they are.
    pub(crate) fn deliver(&mut self, frames: Vec<Datagram>) -> Duration {
        frames.into_iter().for_each(|frame| self.network.deliver(frame));
        let begun = Instant::now();
        self.station.turn(self.ticks.now());
        let span = begun.elapsed();
        while self.network.take().is_some() {}
        span
    }
}
