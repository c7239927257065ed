//! A guest, a client, a bad link, a server and a disk, in virtual time, from a
//! seed; and what the guest may expect.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use block_core::unit::SECTORS_PER_BLOCK;
use block_core::{BlockError, Op, SECTOR_SIZE, SectorRange, Time};
use link::wire::Wire;
use link::wire::memory::{Datagram, End, Network, Port};
use link::{
    Access, Client, ClientSettings, Contact, FrontId, Guest, Part, Path, Refusal, Sealed,
    SecretKey, Security, Server, ServerSecurity, ServerSettings, Source, Token, VolumeHandle,
    VolumeName, VolumeState,
};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::disk::{Disk, SECTORS, changed};

pub(crate) const CLIENT: Port = Port(1);
pub(crate) const SERVER: Port = Port(2);

const SETTINGS: ServerSettings =
    ServerSettings { sessions: 4, slots: 12, window: 1 << 20, seed: 5 };

/// What goes wrong; the link's faults as chances in a thousand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) loss: u32,
    pub(crate) double: u32,
    pub(crate) damage: u32,
    pub(crate) delay: u32,
    /// Frames larger than this never pass.
    pub(crate) mtu: usize,
    /// How often the host of the server dies, with what was in its cache.
    pub(crate) kills: usize,
    /// How often the device loses its cache while the server lives.
    pub(crate) resets: usize,
    pub(crate) narrows: Option<Narrowing>,
}

/// The path becomes narrower under a session, and stays so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Narrowing {
    /// The request before which it does.
    pub(crate) at: u64,
    pub(crate) mtu: usize,
    /// Towards which end; both, if none.
    pub(crate) to: Option<Port>,
}

impl Faults {
    fn carries(&self, token: u64, datagram: &Datagram) -> bool {
        let bytes = datagram.bytes.len();
        let narrow = self.narrows.filter(|narrow| token >= narrow.at);
        let narrow = narrow.filter(|narrow| narrow.to.is_none_or(|to| to == datagram.to));
        bytes <= self.mtu && narrow.is_none_or(|narrow| bytes <= narrow.mtu)
    }
}

/// Who wrote a sector: the token of the change, zero for zeroes.
type Writer = u64;

/// One request of the guest, until it has completed.
struct Pending {
    op: Op,
    range: Option<SectorRange>,
    /// What a write writes, or what of a read has come.
    data: Vec<u8>,
    placed: Vec<bool>,
    /// Of a read: what each sector may hold.
    candidates: Vec<Vec<Writer>>,
    /// Of a flush: what each sector holds, if no change of it is under way.
    promised: Vec<Option<Writer>>,
    outcome: Option<Result<(), BlockError>>,
}

impl Pending {
    fn sectors(&self) -> std::ops::Range<u64> {
        self.range.map_or(0..0, |range| range.start()..range.end())
    }

    fn changed(&self) -> std::ops::Range<u64> {
        let range = self.range.filter(|_| self.op.changes());
        range.map_or(0..0, |range| changed(self.op, range))
    }
}

#[derive(Default)]
pub(crate) struct GuestSide {
    pending: BTreeMap<u64, Pending>,
}

impl Source for GuestSide {
    fn fetch(&mut self, token: Token, into: &mut [u8]) -> Result<(), BlockError> {
        into.copy_from_slice(&self.pending[&token.0].data);
        Ok(())
    }
}

impl Guest for GuestSide {
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

pub(crate) struct World {
    seed: u64,
    now: Time,
    random: StdRng,
    pub(crate) network: Network,
    on_the_way: Vec<(Time, Datagram)>,
    faults: Option<Faults>,
    client: Client<End>,
    server: Server<Port>,
    server_wire: End,
    disk: Disk,
    guest: GuestSide,
    /// What a read that is sent now must find, but for changes under way.
    model: Vec<Writer>,
    /// The last change that was sent to each sector.
    touched: Vec<Writer>,
    next_token: u64,
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let network = Network::new();
        let disk = Disk::new(random.random());
        Self {
            seed,
            now: Time::ZERO,
            on_the_way: Vec::new(),
            faults: Some(faults),
            client: Client::new(network.end(CLIENT), settings(1, seed)),
            server: server(seed, random.random(), random.random()),
            server_wire: network.end(SERVER),
            disk,
            guest: GuestSide::default(),
            model: vec![0; SECTORS as usize],
            touched: vec![0; SECTORS as usize],
            next_token: 1,
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
                if !faults.carries(self.next_token, &datagram) || self.chance(faults.loss) {
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
        let take = &mut |from: &Port, bytes: &mut [u8]| frames.push((*from, bytes.to_vec()));
        self.server_wire.receive(take).expect("a memory wire");
        for (from, mut bytes) in frames {
            server.handle_frame(now, &from, &mut bytes, disk);
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
        let ended = |(token, pending): (&u64, &Pending)| pending.outcome.map(|_| *token);
        let ended: Vec<u64> = self.guest.pending.iter().filter_map(ended).collect();
        for token in ended {
            let pending = self.guest.pending.remove(&token).expect("listed above");
            assert_eq!(pending.outcome, Some(Ok(())), "seed {}", self.seed);
            match pending.op {
                Op::Read => self.check_read(&pending),
                Op::Flush => self.check_durable(token, &pending),
                op => {
                    let writer = if op.carries_data() { token } else { 0 };
                    pending.changed().for_each(|at| self.model[at as usize] = writer);
                }
            }
        }
    }

    /// Each sector holds what was there, or what was being written to it. What
    /// was seen once stays.
    fn check_read(&mut self, read: &Pending) {
        let seed = self.seed;
        assert!(read.placed.iter().all(|&placed| placed), "seed {seed}");
        let sectors = read.sectors().zip(read.data.chunks_exact(SECTOR_SIZE));
        for ((at, content), candidates) in sectors.zip(&read.candidates) {
            let seen = writer_of(content);
            assert!(
                candidates.contains(&seen),
                "seed {seed}: sector {at} holds {seen}, not one of {candidates:?}"
            );
            let still_runs = self.guest.pending.get(&seen).is_some_and(|it| it.op.changes());
            if still_runs {
                self.model[at as usize] = seen;
            }
        }
    }

    /// What was answered before the flush was sent is on the medium, if it has
    /// not been changed since.
    fn check_durable(&self, token: u64, flush: &Pending) {
        for (at, content) in self.disk.durable.iter().enumerate() {
            let promised = flush.promised[at].filter(|_| self.touched[at] < token);
            let Some(promised) = promised else { continue };
            let (is, seed) = (writer_of(content), self.seed);
            assert_eq!(is, promised, "seed {seed}: flushed sector {at}");
        }
    }

    /// Sends a request; the model only knows what reads may bring when no two
    /// changes of a sector run, which the client sees to.
    fn submit_something(&mut self, volume: VolumeHandle) {
        let ops = [
            (Op::Read, 30),
            (Op::Write, 40),
            (Op::WriteThrough, 6),
            (Op::Flush, 2),
            (Op::WriteZeroes, 4),
            (Op::WriteZeroesUnmap, 4),
            (Op::WriteZeroesThrough, 4),
            (Op::Discard, 4),
        ];
        let op = ops.choose_weighted(&mut self.random, |(_, weight)| *weight).expect("some").0;
        let most = *[8, 8, 16, 64, 256].choose(&mut self.random).expect("not empty");
        let count = self.random.random_range(1..=most);
        // A few blocks are used more than all others.
        let end = if self.chance(400) { 264 } else { SECTORS };
        let mut start = self.random.random_range(0..end.saturating_sub(u64::from(count)).max(1));
        if self.chance(700) {
            start -= start % SECTORS_PER_BLOCK;
        }
        let range = SectorRange::new(start, count).expect("small");
        let token = self.next_token;
        let sectors = range.count() as usize;
        let mut data = vec![0; sectors * SECTOR_SIZE];
        if op.carries_data() {
            for sector in data.chunks_exact_mut(8) {
                sector.copy_from_slice(&token.to_le_bytes());
            }
        }
        let range = (op != Op::Flush).then_some(range);
        let placed = vec![false; data.len()];
        let (candidates, promised) = (Vec::new(), Vec::new());
        let mut pending = Pending { op, range, data, placed, candidates, promised, outcome: None };
        if op == Op::Read {
            pending.candidates = pending.sectors().map(|at| self.expected(at)).collect();
        }
        if op == Op::Flush {
            pending.promised = self.model.iter().map(|writer| Some(*writer)).collect();
            for other in self.guest.pending.values() {
                other.changed().for_each(|at| pending.promised[at as usize] = None);
            }
        }
        self.next_token += 1;
        let changed = pending.changed();
        let clash = pending.op.changes()
            && self.guest.pending.values().any(|other| {
                let (one, other) = (other.changed(), &changed);
                // A discard of less than a block changes nothing.
                one.start.max(other.start) < one.end.min(other.end)
            });
        self.guest.pending.insert(token, pending);
        let part = Part { token: Token(token), volume, op, range };
        match self.client.submit(self.now, part, &mut self.guest) {
            Ok(()) => {
                assert!(!clash, "seed {}: a change of what is being changed", self.seed);
                let writer = if op.carries_data() { token } else { 0 };
                for at in changed {
                    self.touched[at as usize] = token;
                    self.tell_reads(at, writer);
                }
            }
            Err(Refusal::Busy) => {
                self.guest.pending.remove(&token);
            }
            Err(Refusal::Failed(error)) => panic!("seed {}: {error}", self.seed),
        }
    }

    /// What a read that is sent now may find in a sector.
    fn expected(&self, at: u64) -> Vec<Writer> {
        let running = self.guest.pending.iter().filter(|(_, it)| it.changed().contains(&at));
        let running = running.map(|(token, it)| if it.op.carries_data() { *token } else { 0 });
        running.chain([self.model[at as usize]]).collect()
    }

    fn tell_reads(&mut self, at: u64, writer: Writer) {
        for read in self.guest.pending.values_mut().filter(|it| it.op == Op::Read) {
            let sectors = read.sectors();
            if sectors.contains(&at) {
                read.candidates[(at - sectors.start) as usize].push(writer);
            }
        }
    }

    /// The server's process dies with what its host had cached, and comes
    /// back.
    fn kill_server(&mut self) {
        self.disk.kill();
        let (seed, entropy) = (self.random.random(), self.random.random());
        self.server = server(self.seed, seed, entropy);
        self.server_wire = self.network.end(SERVER);
    }

    /// The front is killed when its guest has nothing under way, starts again
    /// and serves: what it had answered before is on the medium then.
    pub(crate) fn restart_front(&mut self) {
        let name = || VolumeName::new("disk").expect("a name");
        let volume = self
            .client
            .attach(self.now, contact(self.seed, 1), name(), Access::Write)
            .expect("memory");
        while self.next_token < 300 {
            if matches!(self.client.state(volume), VolumeState::Attached(_)) {
                self.submit_something(volume);
            }
            self.step();
        }
        while !self.guest.pending.is_empty() {
            self.step();
        }
        assert!(writers(&self.disk.durable) != self.model, "something is not flushed");
        self.client = Client::new(self.network.end(CLIENT), settings(2, self.seed));
        let volume = self
            .client
            .attach(self.now, contact(self.seed, 2), name(), Access::Write)
            .expect("memory");
        while !matches!(self.client.state(volume), VolumeState::Attached(_)) {
            self.step();
        }
        assert!(writers(&self.disk.durable) == self.model, "the next front does not keep it");
    }

    /// When something happens so many times, by the number of requests.
    fn moments(&mut self, times: usize, requests: u64) -> Vec<u64> {
        (0..times).map(|_| self.random.random_range(1..requests)).collect()
    }

    pub(crate) fn run(&mut self, requests: u64) {
        let name = VolumeName::new("disk").expect("a name");
        let volume = self
            .client
            .attach(self.now, contact(self.seed, 1), name, Access::Write)
            .expect("memory");
        self.client.settle(volume);
        let (kills, resets) = self.faults.map_or((0, 0), |faults| (faults.kills, faults.resets));
        let narrows = self.faults.is_some_and(|faults| faults.narrows.is_some());
        let mut kill_at = self.moments(kills, requests);
        let mut reset_at = self.moments(resets, requests);
        while self.next_token < requests {
            let token = self.next_token;
            if kill_at.extract_if(.., |at| *at <= token).count() > 0 {
                self.kill_server();
            }
            if reset_at.extract_if(.., |at| *at <= token).count() > 0 {
                self.disk.lose_cache();
            }
            if matches!(self.client.state(volume), VolumeState::Attached(_)) {
                for _ in 0..self.random.random_range(0..6) {
                    self.submit_something(volume);
                }
            }
            self.step();
            // While a volume gets on its feet it is killed again.
            if self.disk.has_lost() && kills > 0 && self.chance(2) {
                self.kill_server();
            }
            let late = Time::ZERO + Duration::from_secs(600);
            assert!(self.now < late, "seed {}: stuck at {token}", self.seed);
        }
        self.finish(volume);
        // In a new session what had no answer runs once more.
        if kills + resets == 0 && !narrows {
            let twice = self.disk.ran.values().filter(|&&times| times != 1).count();
            assert_eq!(twice, 0, "seed {}: writes that ran more than once", self.seed);
        }
    }

    /// The faults end, but the path stays as narrow as it is; so does
    /// everything that is under way, and the volume is given back: then all
    /// that was answered is on the medium.
    fn finish(&mut self, volume: VolumeHandle) {
        self.faults =
            self.faults.map(|Faults { mtu, narrows, .. }| Faults { mtu, narrows, ..crate::CLEAN });
        let end = self.now + Duration::from_secs(20);
        while !self.guest.pending.is_empty() || !self.disk.is_settled() {
            // An idle front has not heard that its server died.
            if self.guest.pending.is_empty() && self.disk.has_lost() {
                self.submit_something(volume);
            }
            self.step();
            assert!(self.now < end, "seed {}: {} never end", self.seed, self.guest.pending.len());
        }
        assert!(
            writers(&self.disk.data) == self.model,
            "seed {}: something else is on the disk",
            self.seed
        );
        self.client.detach(volume);
        while self.client.state(volume) != VolumeState::Detached {
            self.step();
            assert!(self.now < end, "seed {}: it is never given back", self.seed);
        }
        assert!(
            writers(&self.disk.durable) == self.model,
            "seed {}: it was not durable",
            self.seed
        );
    }
}

/// Every second world's sessions are sealed, and change keys all the time.
const fn is_sealed(world: u64) -> bool {
    world % 2 == 1
}

fn server_key() -> SecretKey {
    SecretKey::from_bytes(&[2; 32])
}

fn server(world: u64, seed: u64, entropy: [u8; 32]) -> Server<Port> {
    let settings = ServerSettings { seed, ..SETTINGS };
    if is_sealed(world) {
        let secrets = vec![server_key()];
        Server::secured(settings, ServerSecurity { secrets, clear_allowed: false, entropy })
    } else {
        Server::new(settings)
    }
}

/// How a front's `incarnation`th start asks the server.
fn contact(world: u64, incarnation: u64) -> Contact<Port> {
    let secret = Rc::new(SecretKey::from_bytes(&[1; 32]));
    let mut entropy = [incarnation as u8; 32];
    entropy[..8].copy_from_slice(&world.to_le_bytes());
    let mut sealed = Sealed::new(secret, server_key().public(), entropy);
    sealed.frames_per_key = 50 + world % 300;
    let security = if is_sealed(world) { Security::Sealed(sealed) } else { Security::Clear };
    Contact { peer: SERVER, security }
}

fn settings(incarnation: u64, seed: u64) -> ClientSettings {
    ClientSettings {
        front: FrontId([9; 16]),
        incarnation,
        least_timeout: ClientSettings::LEAST_TIMEOUT,
        seed,
        kept_bytes: ClientSettings::LEAST_KEPT_BYTES,
    }
}

fn writers(disk: &[[u8; SECTOR_SIZE]]) -> Vec<Writer> {
    disk.iter().map(|content| writer_of(content)).collect()
}

/// Who wrote what a sector holds, which is whole.
fn writer_of(content: &[u8]) -> Writer {
    let words = content.as_chunks::<8>().0;
    assert!(words.iter().all(|word| *word == words[0]), "a torn sector");
    u64::from_le_bytes(words[0])
}
