//! A client and a server over a link that loses, doubles, reorders, delays
//! and damages frames, in virtual time, from a seed.
//!
//! The oracle: each write runs once, each read returns exactly what the model
//! holds, and once the faults end everything ends.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use block_core::unit::{MAX_REQUEST_BYTES, SECTORS_PER_BLOCK};
use block_core::{BLOCK_SIZE, BlockError, Buffer, Op, Pool, SECTOR_SIZE, SectorRange, Time};
use link::wire::Wire;
use link::wire::memory::{Datagram, End, Network, Port};
use link::{
    Access, AttachReply, Attached, Client, ClientSettings, FrontId, Guest, Host, Part, Path,
    Refusal, Reply, Server, ServerSettings, SessionIndex, SlotRef, Token, VolumeHandle, VolumeName,
    VolumeState, Work,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const SECTORS: u64 = 4096;
const CLIENT: Port = Port(1);
const SERVER: Port = Port(2);
const HANDLE: VolumeHandle = VolumeHandle(11);

/// What the link does to frames, as chances in a thousand.
#[derive(Clone, Copy, Debug)]
struct Faults {
    loss: u32,
    double: u32,
    damage: u32,
    delay: u32,
    /// Frames larger than this never pass.
    mtu: usize,
    /// The server forgets everything but the disk so often.
    restarts: usize,
}

/// The disk behind the server, which takes its time.
struct Disk {
    data: Vec<u8>,
    small: Pool,
    large: Pool,
    running: Vec<(Time, SlotRef, Work)>,
    ran: BTreeMap<(u64, Vec<u8>), usize>,
    now: Time,
    random: StdRng,
}

impl Host for Disk {
    fn buffer(&mut self, bytes: usize, _: usize) -> Option<Buffer> {
        if bytes <= self.small.buffer_bytes() { self.small.take() } else { self.large.take() }
    }

    fn opened(&mut self, _: SessionIndex, _: FrontId, _: u64, _: u16) {}

    fn start(&mut self, at: SlotRef, work: Work) {
        let busy = self.running.iter().any(|(_, other, _)| *other == at);
        assert!(!busy, "a slot runs one request at a time");
        let due = self.now + Duration::from_micros(self.random.random_range(5..3000));
        self.running.push((due, at, work));
    }

    fn closing(&mut self, _session: SessionIndex) {}

    fn closed(&mut self, session: SessionIndex) {
        let left = self.running.iter().any(|(_, at, _)| at.session == session);
        assert!(!left, "a session is forgotten after its last request");
    }
}

impl Disk {
    fn run(&mut self, work: Work) -> Reply {
        let (volume, mut request) = match work {
            Work::Block { volume, request } => (volume, request),
            Work::Detach(_) => return Reply::plain(Ok(()), 0),
            Work::Attach(_) => {
                let attached = Attached {
                    handle: HANDLE,
                    volume_id: [1; 16],
                    generation: 1,
                    verifier: 1,
                    stored_verifier: 1,
                    sectors: SECTORS,
                    read_only: false,
                };
                let attach = Some(AttachReply::Attached(attached));
                return Reply { attach, ..Reply::plain(Ok(()), 0) };
            }
        };
        assert_eq!(volume, HANDLE);
        let Some(range) = request.range else { return Reply::plain(Ok(()), 77) };
        if range.end() > SECTORS {
            return Reply::plain(Err(BlockError::OutOfRange), 0);
        }
        let bytes = range.start() as usize * SECTOR_SIZE..range.end() as usize * SECTOR_SIZE;
        let offset = range.offset_in_block();
        match request.op {
            Op::Read => {
                let buffer = request.buffer.as_mut().expect("a read has a buffer");
                buffer[offset..offset + bytes.len()].copy_from_slice(&self.data[bytes]);
            }
            Op::Write | Op::WriteThrough => {
                let buffer = request.buffer.as_ref().expect("a write has a buffer");
                let data = &buffer[offset..offset + bytes.len()];
                *self.ran.entry((range.start(), data[..16].to_vec())).or_default() += 1;
                self.data[bytes].copy_from_slice(data);
            }
            _ => self.data[bytes].fill(0),
        }
        Reply { buffer: request.buffer, ..Reply::plain(Ok(()), 0) }
    }
}

/// One request of the guest, until it has completed.
struct Pending {
    op: Op,
    range: Option<SectorRange>,
    /// What a write writes, or what of a read has come.
    data: Vec<u8>,
    placed: Vec<bool>,
    outcome: Option<Result<(), BlockError>>,
}

#[derive(Default)]
struct GuestSide {
    pending: BTreeMap<u64, Pending>,
}

impl Guest for GuestSide {
    fn fetch(&mut self, token: Token, into: &mut [u8]) -> Result<(), BlockError> {
        into.copy_from_slice(&self.pending[&token.0].data);
        Ok(())
    }

    fn place(&mut self, token: Token, offset: usize, bytes: &[u8]) {
        let pending = self.pending.get_mut(&token.0).expect("a place for a live part");
        pending.data[offset..offset + bytes.len()].copy_from_slice(bytes);
        pending.placed[offset..offset + bytes.len()].fill(true);
    }

    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>) {
        let pending = self.pending.get_mut(&token.0).expect("a live part completes");
        assert!(pending.outcome.replace(outcome).is_none(), "completed twice");
    }
}

struct World {
    seed: u64,
    now: Time,
    random: StdRng,
    network: Network,
    on_the_way: Vec<(Time, Datagram)>,
    faults: Option<Faults>,
    client: Client<End>,
    server: Server<Port>,
    server_wire: End,
    disk: Disk,
    guest: GuestSide,
    model: Vec<u8>,
    next_token: u64,
}

const SETTINGS: ServerSettings =
    ServerSettings { sessions: 4, slots: 12, window: 1 << 20, seed: 5 };

impl World {
    fn new(seed: u64, faults: Faults) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let network = Network::new();
        let settings = ClientSettings {
            front: FrontId([9; 16]),
            incarnation: 1,
            least_timeout: ClientSettings::LEAST_TIMEOUT,
            seed,
        };
        let disk = Disk {
            data: vec![0; SECTORS as usize * SECTOR_SIZE],
            small: Pool::private(4, 3 * BLOCK_SIZE).expect("memory"),
            large: Pool::private(2, MAX_REQUEST_BYTES + BLOCK_SIZE).expect("memory"),
            running: Vec::new(),
            ran: BTreeMap::new(),
            now: Time::ZERO,
            random: StdRng::seed_from_u64(random.random()),
        };
        Self {
            seed,
            now: Time::ZERO,
            on_the_way: Vec::new(),
            faults: Some(faults),
            client: Client::new(network.end(CLIENT), settings),
            server: Server::new(ServerSettings { seed, ..SETTINGS }),
            server_wire: network.end(SERVER),
            disk,
            guest: GuestSide::default(),
            model: vec![0; SECTORS as usize * SECTOR_SIZE],
            next_token: 0,
            network,
            random,
        }
    }

    fn chance(&mut self, of_thousand: u32) -> bool {
        self.random.random_range(0..1000) < of_thousand
    }

    /// Takes what was sent and decides what becomes of it.
    fn carry(&mut self) {
        while let Some(mut datagram) = self.network.take() {
            let mut delay = Duration::from_micros(10);
            if let Some(faults) = self.faults {
                if datagram.bytes.len() > faults.mtu || self.chance(faults.loss) {
                    continue;
                }
                if self.chance(faults.double) {
                    let late = Duration::from_micros(self.random.random_range(0..5000));
                    self.on_the_way.push((self.now + late, datagram.clone()));
                }
                if self.chance(faults.damage) {
                    let at = self.random.random_range(0..datagram.bytes.len());
                    datagram.bytes[at] ^= 1 << self.random.random_range(0..8);
                }
                if self.chance(faults.delay) {
                    delay = Duration::from_micros(self.random.random_range(0..4000));
                }
            }
            self.on_the_way.push((self.now + delay, datagram));
        }
        let now = self.now;
        let (due, later) = self.on_the_way.drain(..).partition(|(time, _)| *time <= now);
        self.on_the_way = later;
        let due: Vec<(Time, Datagram)> = due;
        due.into_iter().for_each(|(_, datagram)| self.network.deliver(datagram));
    }

    fn turn(&mut self) {
        self.carry();
        self.disk.now = self.now;
        let (server, disk, now) = (&mut self.server, &mut self.disk, self.now);
        let mut frames = Vec::new();
        let take = &mut |from: Port, bytes: &[u8]| frames.push((from, bytes.to_vec()));
        self.server_wire.receive(take).expect("a memory wire");
        for (from, bytes) in frames {
            server.handle_frame(now, from, &bytes, disk);
        }
        while let Some(place) = disk.running.iter().position(|(due, ..)| *due <= now) {
            let (_, at, work) = disk.running.swap_remove(place);
            let reply = disk.run(work);
            server.handle_reply(now, at, reply, disk);
        }
        server.serve_waiting(now, disk);
        server.transmit(&mut self.server_wire);
        self.client.turn(now, &mut self.guest);
        self.check_completed();
    }

    fn step(&mut self) {
        self.turn();
        let next = [
            self.on_the_way.iter().map(|(time, _)| *time).min(),
            self.disk.running.iter().map(|(time, ..)| *time).min(),
            self.client.deadline(),
        ];
        let next = next.into_iter().flatten().min().unwrap_or(self.now);
        self.now = next.max(self.now + Duration::from_micros(3));
    }

    fn check_completed(&mut self) {
        let ended: Vec<u64> = self
            .guest
            .pending
            .iter()
            .filter(|(_, pending)| pending.outcome.is_some())
            .map(|(token, _)| *token)
            .collect();
        for token in ended {
            let pending = self.guest.pending.remove(&token).expect("listed above");
            let seed = self.seed;
            assert_eq!(pending.outcome, Some(Ok(())), "seed {seed}");
            let Some(range) = pending.range else { continue };
            let bytes = range.start() as usize * SECTOR_SIZE..range.end() as usize * SECTOR_SIZE;
            match pending.op {
                Op::Read => {
                    assert!(pending.placed.iter().all(|&placed| placed), "seed {seed}");
                    assert!(pending.data == self.model[bytes], "seed {seed}: {range:?}");
                }
                Op::Write | Op::WriteThrough => self.model[bytes].copy_from_slice(&pending.data),
                _ => self.model[bytes].fill(0),
            }
        }
    }

    /// A request that overlaps no change under way, so that its outcome is
    /// exactly known.
    fn submit_something(&mut self, volume: VolumeHandle) {
        let ops = [
            Op::Read,
            Op::Read,
            Op::Read,
            Op::Write,
            Op::Write,
            Op::WriteThrough,
            Op::Flush,
            Op::WriteZeroes,
        ];
        let op = *ops.choose(&mut self.random).expect("not empty");
        let most = *[8, 8, 16, 64, 256].choose(&mut self.random).expect("not empty");
        let count = self.random.random_range(1..=most);
        let mut start = self.random.random_range(0..SECTORS - u64::from(count));
        if self.chance(700) {
            start -= start % SECTORS_PER_BLOCK;
        }
        let range = SectorRange::new(start, count).expect("small");
        let clashes = |pending: &Pending| {
            pending.range.is_some_and(|other| {
                let apart = other.end() <= range.start() || range.end() <= other.start();
                !apart && (op.changes() || pending.op.changes())
            })
        };
        if self.guest.pending.values().any(clashes) {
            return;
        }
        let token = self.next_token;
        self.next_token += 1;
        let bytes = range.bytes() as usize;
        let mut data = vec![0; bytes];
        if op.carries_data() {
            self.random.fill(&mut data[..]);
        }
        let range = (op != Op::Flush).then_some(range);
        let pending = Pending { op, range, data, placed: vec![false; bytes], outcome: None };
        self.guest.pending.insert(token, pending);
        let part = Part { token: Token(token), volume, op, range };
        match self.client.submit(self.now, part, &mut self.guest) {
            Ok(()) => {}
            Err(Refusal::Busy) => {
                self.guest.pending.remove(&token);
            }
            Err(Refusal::Failed(error)) => panic!("seed {}: {error}", self.seed),
        }
    }

    /// The server's process dies and comes back; its disk stays.
    fn restart_server(&mut self) {
        self.disk.running.clear();
        self.disk.ran.clear();
        self.server = Server::new(ServerSettings { seed: self.random.random(), ..SETTINGS });
        self.server_wire = self.network.end(SERVER);
    }

    fn run(&mut self, requests: u64) {
        let name = VolumeName::new("disk").expect("a name");
        let volume = self.client.attach(self.now, SERVER, name, Access::Write).expect("memory");
        let restarts = self.faults.map_or(0, |faults| faults.restarts);
        let mut restart_at: Vec<u64> =
            (0..restarts).map(|_| self.random.random_range(0..requests)).collect();
        while self.next_token < requests {
            let token = self.next_token;
            if restart_at.extract_if(.., |at| *at <= token).count() > 0 {
                self.restart_server();
            }
            if matches!(self.client.state(volume), VolumeState::Attached(_)) {
                for _ in 0..self.random.random_range(0..6) {
                    self.submit_something(volume);
                }
            }
            self.step();
            let late = Time::ZERO + Duration::from_secs(600);
            assert!(self.now < late, "seed {}: stuck at {token}", self.seed);
        }
        self.faults = None;
        let end = self.now + Duration::from_secs(5);
        while !self.guest.pending.is_empty() {
            self.step();
            assert!(self.now < end, "seed {}: {} never end", self.seed, self.guest.pending.len());
        }
        assert!(self.disk.data == self.model, "seed {}", self.seed);
        if restarts == 0 {
            let twice = self.disk.ran.values().filter(|&&times| times != 1).count();
            assert_eq!(twice, 0, "seed {}: writes that ran more than once", self.seed);
        }
    }
}

fn seeds() -> u64 {
    std::env::var("VRIO_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000)
}

fn faults_of(seed: u64) -> Faults {
    let mut random = StdRng::seed_from_u64(!seed);
    let mut up_to = |most: u32| random.random_range(0..=most);
    let (loss, double, damage, delay) = (up_to(120), up_to(60), up_to(40), up_to(300));
    let mtu = [9000, 4200, 1500, 1280][seed as usize % 4];
    Faults { loss, double, damage, delay, mtu, restarts: 0 }
}

#[test]
fn a_thousand_bad_links_lose_nothing_and_repeat_nothing() {
    for seed in 0..seeds() {
        World::new(seed, faults_of(seed)).run(120);
    }
}

/// The server forgets its sessions, again and again; the front connects anew
/// and starts over what was not answered.
#[test]
fn a_server_that_restarts_is_a_pause() {
    for seed in 0..seeds() / 4 {
        let faults = Faults { restarts: 1 + seed as usize % 4, ..faults_of(seed) };
        World::new(seed, faults).run(120);
    }
}

#[test]
fn a_clean_link_needs_no_repeats() {
    let clean = Faults { loss: 0, double: 0, damage: 0, delay: 0, mtu: 9000, restarts: 0 };
    let mut world = World::new(1, clean);
    world.run(500);
}

/// Frames that no honest front sends: the server drops them, and the session
/// next door goes on.
#[test]
fn random_frames_disturb_nobody() {
    let clean = Faults { loss: 0, double: 0, damage: 0, delay: 0, mtu: 9000, restarts: 0 };
    let mut world = World::new(3, clean);
    let noise = Rc::new(RefCell::new(StdRng::seed_from_u64(4)));
    let mut stranger = world.network.end(Port(3));
    let kinds = [1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20];
    for _ in 0..5000 {
        let mut random = noise.borrow_mut();
        let mut payload = vec![0; *[0, 16, 40, 80, 1024, 4096].choose(&mut *random).expect("one")];
        random.fill(&mut payload[..]);
        let header = link::frame::Header {
            session: random.random_range(0..4),
            counter: random.random(),
            number: random.random_range(0..3),
            slot: random.random_range(0..200),
            attempt: random.random(),
            offset: random.random(),
            count: random.random(),
            volume: random.random(),
            op: random.random_range(0..70),
            word: random.random(),
            news: random.random(),
        };
        let mut bytes = header.encode(link::frame::Kind::Request, &payload);
        bytes[3] = *kinds.choose(&mut *random).expect("one");
        let mut crc = crc32c::crc32c(&bytes[..48]);
        crc = crc32c::crc32c_append(crc, &payload);
        bytes[48..52].copy_from_slice(&crc.to_le_bytes());
        let to = if random.random() { SERVER } else { CLIENT };
        stranger.send(to, &bytes, &payload);
    }
    world.run(200);
}
