//! Fronts, a server and a device in virtual time, and what is between them.

use std::collections::VecDeque;
use std::time::Duration;

use block_core::{BLOCK_SIZE, BlockError, Buffer, Op, Pool, SectorRange, Time};
use link::wire::Wire;
use link::wire::faults::{Faults, Faulty};
use link::wire::memory::{Datagram, End, Network, Port};
use link::{
    Access, AttachReply, Attached, Caller, Client, ClientSettings, FrontId, Guest, Host, Part,
    Path, Reply, Server, ServerSettings, SessionIndex, SlotRef, Source, Token, VolumeHandle,
    VolumeName, VolumeState, Work,
};

pub(crate) const SERVER: Port = Port(0);
/// How long a turn of everybody takes.
const TURN: Duration = Duration::from_micros(10);

/// How long a frame is on its way.
const DELAY: Duration = Duration::from_micros(20);

/// A device, and the buffers for it.
pub(crate) struct Device {
    now: Time,
    small: Pool,
    large: Pool,
    running: VecDeque<(Time, SlotRef, Work)>,
    speed: Speed,
    free_at: Time,
}

/// How long requests take.
#[derive(Clone, Copy)]
pub(crate) enum Speed {
    /// One is done after the other.
    InTurn,
    /// All are done at the same time, each in so long.
    AtOnce(Duration),
}

/// A world, but for what its fronts do.
#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) fronts: u16,
    /// Small ones, and as many large ones, for all fronts.
    pub(crate) buffers: usize,
    pub(crate) speed: Speed,
    /// On every wire.
    pub(crate) faults: Option<Faults>,
}

impl Device {
    fn new(buffers: usize, speed: Speed) -> Self {
        Self {
            speed,
            now: Time::ZERO,
            small: Pool::private(buffers, 2 * BLOCK_SIZE).expect("memory"),
            large: Pool::private(buffers, 33 * BLOCK_SIZE).expect("memory"),
            running: VecDeque::new(),
            free_at: Time::ZERO,
        }
    }

    fn next_ended(&mut self) -> Option<(SlotRef, Reply)> {
        self.running.front().filter(|(due, ..)| *due <= self.now)?;
        let (_, at, work) = self.running.pop_front()?;
        let reply = match work {
            Work::Block { request, .. } => {
                Reply { buffer: request.buffer, ..Reply::plain(Ok(()), 1) }
            }
            Work::Attach(_) => {
                let attached = Attached {
                    handle: VolumeHandle(0),
                    volume_id: [0; 16],
                    generation: 1,
                    verifier: 1,
                    stored_verifier: 1,
                    sectors: 1 << 20,
                    read_only: false,
                };
                let attach = Some(Box::new(AttachReply::Attached(attached)));
                Reply { attach, ..Reply::plain(Ok(()), 0) }
            }
            Work::Detach(_) => Reply::plain(Ok(()), 0),
        };
        Some((at, reply))
    }
}

impl Host for Device {
    /// The worker's rule.
    fn buffer(&mut self, bytes: usize, held: usize) -> Option<Buffer> {
        let share = |pool: &Pool| if held < pool.available() { pool.take() } else { None };
        let small = if bytes <= self.small.buffer_bytes() { share(&self.small) } else { None };
        small.or_else(|| share(&self.large))
    }

    fn opened(&mut self, _: SessionIndex, _: Caller, _: u64, _: u16) {}

    fn start(&mut self, at: SlotRef, work: Work) {
        let blocks = match &work {
            Work::Block { request, .. } => request.range.map_or(1, |range| range.count() / 8),
            Work::Attach(_) | Work::Detach(_) => 1,
        };
        let due = match self.speed {
            Speed::AtOnce(takes) => self.now + takes,
            Speed::InTurn => {
                let takes = Duration::from_micros(10) + Duration::from_micros(2) * blocks;
                self.free_at = self.free_at.max(self.now) + takes;
                self.free_at
            }
        };
        self.running.push_back((due, at, work));
    }

    fn closing(&mut self, _: SessionIndex) {}

    fn closed(&mut self, _: SessionIndex) {}
}

/// A guest that counts what came back.
#[derive(Default)]
pub(crate) struct Counter {
    pub(crate) ended: u64,
    /// When each request began that is under way.
    under_way: Vec<(Token, Time)>,
    now: Time,
    pub(crate) slowest: Duration,
}

impl Source for Counter {
    fn fetch(&mut self, _: Token, into: &mut [u8]) -> Result<(), BlockError> {
        into.fill(1);
        Ok(())
    }
}

impl Guest for Counter {
    fn place(&mut self, _: Token, _: usize, _: &[u8]) {}

    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>) {
        assert_eq!(outcome, Ok(()));
        self.ended += 1;
        let place = self.under_way.iter().position(|(other, _)| *other == token);
        let (_, begun) = self.under_way.swap_remove(place.expect("it was under way"));
        self.slowest = self.slowest.max(self.now - begun);
    }
}

/// What a front asks for, again and again.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) depth: usize,
    pub(crate) op: Op,
    pub(crate) sectors: u32,
}

pub(crate) struct Front {
    client: Client<Faulty<End>>,
    volume: VolumeHandle,
    pub(crate) guest: Counter,
    load: Load,
    next: u64,
}

impl Front {
    fn new(network: &Network, number: u16, load: Load, faults: Option<Faults>) -> Self {
        let settings = ClientSettings {
            front: FrontId([number as u8; 16]),
            incarnation: 1,
            least_timeout: ClientSettings::LEAST_TIMEOUT,
            seed: number.into(),
            kept_bytes: ClientSettings::KEPT_BYTES,
        };
        let wire = Faulty::new(network.end(Port(number)), faults);
        let mut client = Client::new(wire, settings);
        let name = VolumeName::new("disk").expect("a name");
        let volume = client.attach(Time::ZERO, SERVER, name, Access::Write).expect("memory");
        Self { client, volume, guest: Counter::default(), load, next: 0 }
    }

    fn turn(&mut self, now: Time) {
        let Load { depth, op, sectors } = self.load;
        let attached = matches!(self.client.state(self.volume), VolumeState::Attached(_));
        self.guest.now = now;
        while attached && self.guest.under_way.len() < depth {
            let start = self.next % 1000 * u64::from(sectors);
            let range = SectorRange::new(start, sectors);
            let part = Part { token: Token(self.next), volume: self.volume, op, range };
            if self.client.submit(now, part, &mut self.guest).is_err() {
                break;
            }
            self.next += 1;
            self.guest.under_way.push((part.token, now));
        }
        self.client.turn(now, &mut self.guest);
    }
}

pub(crate) struct World {
    now: Time,
    pub(crate) network: Network,
    on_the_way: VecDeque<(Time, Datagram)>,
    server: Server<Port>,
    wire: Faulty<End>,
    device: Device,
    pub(crate) fronts: Vec<Front>,
}

impl World {
    pub(crate) fn new(setup: Setup, load: impl Fn(u16) -> Load) -> Self {
        let Setup { fronts, buffers, speed, faults } = setup;
        let network = Network::new();
        let settings = ServerSettings { sessions: 40, slots: 128, window: 1 << 20, seed: 1 };
        Self {
            now: Time::ZERO,
            server: Server::new(settings),
            wire: Faulty::new(network.end(SERVER), faults),
            on_the_way: VecDeque::new(),
            device: Device::new(buffers, speed),
            fronts: (1..=fronts)
                .map(|number| Front::new(&network, number, load(number), faults))
                .collect(),
            network,
        }
    }

    fn turn(&mut self) {
        self.carry();
        let Self { now, server, wire, device, fronts, .. } = self;
        fronts.iter_mut().for_each(|front| front.turn(*now));
        device.now = *now;
        wire.receive(&mut |from, bytes| server.handle_frame(*now, from, bytes, device))
            .expect("a memory wire");
        while let Some((at, reply)) = device.next_ended() {
            server.handle_reply(*now, at, reply, device);
        }
        server.serve_waiting(*now, device);
        while server.transmit(wire) {}
        *now = *now + TURN;
    }

    fn carry(&mut self) {
        while let Some(datagram) = self.network.take() {
            self.on_the_way.push_back((self.now + DELAY, datagram));
        }
        // All take the same time, so they arrive in order.
        while let Some((due, _)) = self.on_the_way.front()
            && *due <= self.now
            && let Some((_, datagram)) = self.on_the_way.pop_front()
        {
            self.network.deliver(datagram);
        }
    }

    /// What each front was served in so long a time, after a start.
    pub(crate) fn served(&mut self, time: Duration, mut beside: impl FnMut(&mut Self)) -> Vec<u64> {
        let mut turns = |world: &mut Self, time: Duration| {
            let end = world.now + time;
            while world.now < end {
                beside(world);
                world.turn();
            }
        };
        turns(self, Duration::from_millis(40));
        let before: Vec<u64> = self.fronts.iter().map(|front| front.guest.ended).collect();
        turns(self, time);
        self.fronts.iter().zip(before).map(|(front, before)| front.guest.ended - before).collect()
    }
}
