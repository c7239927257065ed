//! A client, a server and a host that answers at once, and what is between
//! them frame by frame.

use std::collections::VecDeque;
use std::time::Duration;

use block_core::{BlockError, Buffer, Op, Pool, SECTOR_SIZE, SectorRange, Time};
use link::frame::Frame;
use link::wire::Wire;
use link::wire::memory::{Datagram, End, Network, Port};
use link::{
    Access, AttachReply, AttachRequest, Attached, Caller, Client, ClientSettings, FrontId, Guest,
    Host, Part, Path, PublicKey, Refused, Reply, Server, ServerSettings, SessionIndex, SlotRef,
    Source, Token, VolumeHandle, VolumeName, VolumeState, Work,
};

pub(crate) const CLIENT: Port = Port(1);
pub(crate) const SERVER: Port = Port(2);

/// A host that answers at once: reads are all sevens.
pub(crate) struct Sevens {
    pub(crate) pool: Pool,
    pub(crate) replies: VecDeque<(SlotRef, Reply)>,
    pub(crate) writes: usize,
    pub(crate) generation: u64,
    pub(crate) sectors: u64,
    pub(crate) news: bool,
    pub(crate) verifier: u64,
    /// How changes end that have no answer yet.
    pub(crate) fails: Option<BlockError>,
    pub(crate) flushes: usize,
    /// Where changes began, in the order in which they ran.
    pub(crate) changed: Vec<u64>,
    /// What attaches are answered, if not that they worked.
    pub(crate) refuses: Option<AttachReply>,
    /// Whether the front said, when it attached last, that it has had the volume.
    pub(crate) had: bool,
    /// The volume is attached in this server's session.
    pub(crate) holds: bool,
    pub(crate) detached: usize,
    /// What runs does not end.
    pub(crate) stalls: bool,
    /// The keys that may have sessions.
    pub(crate) known: Vec<PublicKey>,
}

impl Sevens {
    pub(crate) fn new() -> Self {
        Self {
            pool: Pool::private(8, 33 * 4096).expect("memory"),
            replies: VecDeque::new(),
            writes: 0,
            generation: 1,
            sectors: 1000,
            news: false,
            verifier: 1,
            fails: None,
            flushes: 0,
            changed: Vec::new(),
            refuses: None,
            had: false,
            holds: false,
            detached: 0,
            stalls: false,
            known: Vec::new(),
        }
    }
}

impl Host for Sevens {
    fn buffer(&mut self, _: usize, _: usize) -> Option<Buffer> {
        self.pool.take()
    }

    fn admits(&mut self, caller: &Caller) -> bool {
        caller.key.is_none_or(|key| self.known.contains(&key))
    }

    fn opened(&mut self, _: SessionIndex, _: Caller, _: u64, _: u16) {}

    fn start(&mut self, at: SlotRef, work: Work) {
        let mut reply = Reply::plain(Ok(()), 1);
        match work {
            Work::Attach(AttachRequest { name, had, .. }) => {
                self.had = had;
                self.holds = self.refuses.is_none();
                let attach = if name.as_str() == "missing" {
                    AttachReply::Refused(Refused::Unknown)
                } else if let Some(refused) = self.refuses {
                    refused
                } else {
                    AttachReply::Attached(Attached {
                        handle: VolumeHandle(3),
                        volume_id: [0; 16],
                        generation: self.generation,
                        verifier: self.verifier,
                        stored_verifier: self.verifier,
                        sectors: self.sectors,
                        read_only: false,
                    })
                };
                reply.attach = Some(Box::new(attach));
            }
            Work::Block { mut request, .. } => {
                reply.news = self.news;
                if let Some(buffer) = &mut request.buffer
                    && request.op == Op::Read
                {
                    buffer.fill(7);
                }
                self.writes += usize::from(request.op.carries_data());
                self.flushes += usize::from(request.op == Op::Flush);
                reply.word = self.verifier;
                if let Some(range) = request.range.filter(|_| request.op.changes()) {
                    self.changed.push(range.start());
                    reply.outcome = self.fails.map_or(Ok(()), Err);
                }
                reply.buffer = request.buffer;
            }
            Work::Detach(_) if std::mem::take(&mut self.holds) => self.detached += 1,
            Work::Detach(_) => reply.outcome = Err(BlockError::NotAttached),
        }
        self.replies.push_back((at, reply));
    }

    fn closing(&mut self, _session: SessionIndex) {}

    fn closed(&mut self, _: SessionIndex) {}
}

/// A guest with one request.
#[derive(Default)]
pub(crate) struct OneRequest {
    pub(crate) placed: Vec<u8>,
    pub(crate) outcome: Option<Result<(), BlockError>>,
}

impl Source for OneRequest {
    fn fetch(&mut self, _: Token, into: &mut [u8]) -> Result<(), BlockError> {
        into.fill(9);
        Ok(())
    }
}

impl Guest for OneRequest {
    fn place(&mut self, _: Token, offset: usize, bytes: &[u8]) {
        self.placed[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn complete(&mut self, _: Token, outcome: Result<(), BlockError>) {
        assert!(self.outcome.replace(outcome).is_none(), "completed twice");
    }
}

/// A front, at one of its starts.
pub(crate) fn settings(front: u8, incarnation: u64) -> ClientSettings {
    ClientSettings {
        front: FrontId([front; 16]),
        incarnation,
        least_timeout: Duration::from_millis(1),
        seed: incarnation,
        kept_bytes: ClientSettings::LEAST_KEPT_BYTES,
    }
}

pub(crate) fn turn_server(now: Time, server: &mut Server<Port>, wire: &mut End, host: &mut Sevens) {
    wire.receive(&mut |from, bytes| server.handle_frame(now, from, bytes, host))
        .expect("a memory wire");
    while !host.stalls
        && let Some((at, reply)) = host.replies.pop_front()
    {
        server.handle_reply(now, at, reply, host);
    }
    server.serve_waiting(now, host);
    server.transmit(wire);
}

pub(crate) struct Pair {
    pub(crate) now: Time,
    pub(crate) network: Network,
    pub(crate) client: Client<End>,
    pub(crate) server: Server<Port>,
    pub(crate) server_wire: End,
    pub(crate) host: Sevens,
    pub(crate) guest: OneRequest,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let network = Network::new();
        Self {
            now: Time::ZERO,
            client: Client::new(network.end(CLIENT), settings(1, 5)),
            server: Self::server(1),
            server_wire: network.end(SERVER),
            host: Sevens::new(),
            guest: OneRequest::default(),
            network,
        }
    }

    pub(crate) fn server(seed: u64) -> Server<Port> {
        Server::new(ServerSettings { sessions: 4, slots: 8, window: 1 << 20, seed })
    }

    pub(crate) fn client_turn(&mut self) {
        self.client.turn(self.now, &mut self.guest);
    }

    pub(crate) fn server_turn(&mut self) {
        turn_server(self.now, &mut self.server, &mut self.server_wire, &mut self.host);
    }

    /// The server's process dies and comes back; its sessions are gone.
    pub(crate) fn restart_server(&mut self) {
        self.server = Self::server(2);
        self.host.holds = false;
    }

    pub(crate) fn sent(&self) -> Vec<Datagram> {
        std::iter::from_fn(|| self.network.take()).collect()
    }

    /// Carries everything for `time`, but what `drops` picks.
    pub(crate) fn run(&mut self, time: Duration, mut drops: impl FnMut(&Frame<'_>) -> bool) {
        let end = self.now + time;
        while self.now < end {
            self.client_turn();
            self.server_turn();
            for datagram in self.sent() {
                let frame = Frame::parse(&datagram.bytes).expect("our own frame");
                if !drops(&frame) {
                    self.network.deliver(datagram);
                }
            }
            self.now = self.now + Duration::from_micros(50);
        }
    }

    pub(crate) fn attach(&mut self, name: &str) -> VolumeHandle {
        let name = VolumeName::new(name).expect("a name");
        self.client.attach(self.now, SERVER, name, Access::Write).expect("memory")
    }

    pub(crate) fn attached() -> (Self, VolumeHandle) {
        let mut pair = Self::new();
        let volume = pair.attach("disk");
        pair.run(Duration::from_millis(50), |_| false);
        assert!(matches!(pair.client.state(volume), VolumeState::Attached(_)));
        (pair, volume)
    }

    pub(crate) fn submit(&mut self, volume: VolumeHandle, op: Op, sectors: u32) {
        self.submit_at(volume, op, 8, sectors);
    }

    pub(crate) fn submit_at(&mut self, volume: VolumeHandle, op: Op, start: u64, sectors: u32) {
        self.guest.placed = vec![0; sectors as usize * SECTOR_SIZE];
        self.guest.outcome = None;
        let part = Part { token: Token(0), volume, op, range: SectorRange::new(start, sectors) };
        self.client.submit(self.now, part, &mut self.guest).expect("taken");
    }
}
