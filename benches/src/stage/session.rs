//! One end of a session beside the other: parts become frames, frames requests, and back.

use std::collections::VecDeque;
use std::rc::Rc;

use anyhow::{Context, bail};
use block_core::{Buffer, Op, Pool, SectorRange};
use link::wire::Wire;
use link::wire::memory::Port;
use link::{
    Access, AttachReply, Attached, Caller, Client, ClientSettings, Contact, FrontId, Host, Part,
    Path, Reply, Sealed, SecretKey, Security, Server, ServerSecurity, ServerSettings, SessionIndex,
    SlotRef, Token, VolumeHandle, VolumeState, Work,
};

use super::pipe::{Pipe, pair};
use super::unseen::Unseen;
use super::{OPERATIONS, Round};
use crate::meter::Meter;
use crate::worker::{self, Ticks};

/// Sectors of the volume, and of a request.
const SECTORS: u64 = 1 << 20;
const REQUEST: u32 = 8;

/// Slots, and buffers of the host: twice what is under way.
const SLOTS: u16 = 2 * OPERATIONS as u16;

/// Bytes of writes that the client keeps: few, so that what is counted has some flushes in
/// it and what they let go.
const KEPT_BYTES: usize = 8 << 20;

/// Turns in which a burst must have ended: it takes one of each end, and where a flush
/// of what is kept comes between some more.
const MOST_TURNS: usize = 100;

/// Requests of one kind, in one kind of session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requests {
    op: Op,
    sealed: bool,
}

/// In the clear.
pub(super) const READ: Requests = Requests { op: Op::Read, sealed: false };
/// The same.
pub(super) const WRITE: Requests = Requests { op: Op::Write, sealed: false };

impl Requests {
    /// Under keys.
    pub(super) const fn sealed(self) -> Self {
        Self { sealed: true, ..self }
    }
}

/// Both ends, in one thread.
struct Ends {
    client: Client<Pipe>,
    guest: Unseen,
    volume: VolumeHandle,
    server: Server<Port>,
    wire: Pipe,
    host: AtOnce,
    ticks: Ticks,
    next: u64,
}

/// A host that answers each request as it comes.
struct AtOnce {
    pool: Pool,
    replies: VecDeque<(SlotRef, Reply)>,
}

impl Host for AtOnce {
    fn buffer(&mut self, _: usize, _: usize) -> Option<Buffer> {
        self.pool.take()
    }

    fn admits(&mut self, _: &Caller) -> bool {
        true
    }

    fn opened(&mut self, _: SessionIndex, _: Caller, _: u64, _: u16) {}

    fn start(&mut self, at: SlotRef, work: Work) {
        let mut reply = Reply::plain(Ok(()), 1);
        match work {
            Work::Attach(_) => reply.attach = Some(Box::new(AttachReply::Attached(ATTACHED))),
            Work::Block { request, .. } => reply.buffer = request.buffer,
            Work::Detach(_) => {}
        }
        self.replies.push_back((at, reply));
    }

    fn closing(&mut self, _: SessionIndex) {}

    fn closed(&mut self, _: SessionIndex) {}
}

const ATTACHED: Attached = Attached {
    handle: VolumeHandle(0),
    volume_id: [0; 16],
    generation: 0,
    verifier: 1,
    stored_verifier: 1,
    sectors: SECTORS,
    read_only: false,
};

impl Ends {
    fn new(sealed: bool) -> anyhow::Result<Self> {
        let (front, server) = (Port(1), Port(2));
        let [front_wire, wire] = pair([front, server]);
        let (asked, security) = if sealed { keys() } else { Default::default() };
        let security = security.unwrap_or_else(ServerSecurity::clear);
        let settings = ServerSettings { sessions: 1, slots: SLOTS, window: wire.window(), seed: 1 };
        let ticks = Ticks::default();
        let mut client = Client::new(
            front_wire,
            ClientSettings {
                front: FrontId([1; 16]),
                incarnation: 1,
                least_timeout: ClientSettings::LEAST_TIMEOUT,
                seed: 1,
                kept_bytes: KEPT_BYTES,
            },
        );
        let contact = Contact { peer: server, security: asked };
        let volume = client.attach(ticks.now(), contact, worker::volume()?, Access::Write)?;
        let mut ends = Self {
            client,
            guest: Unseen::default(),
            volume,
            server: Server::secured(settings, security),
            wire,
            host: AtOnce {
                pool: Pool::private(usize::from(SLOTS), 2 * 4096)?,
                replies: VecDeque::with_capacity(usize::from(SLOTS)),
            },
            ticks,
            next: 0,
        };
        for _ in 0..MOST_TURNS {
            ends.turn_client();
            ends.turn_server();
            if let VolumeState::Attached(_) = ends.client.state(volume) {
                ends.client.settle(volume);
                return Ok(ends);
            }
        }
        bail!("not attached: {:?}", ends.client.state(volume))
    }

    fn submit(&mut self, op: Op) -> anyhow::Result<()> {
        for _ in 0..OPERATIONS {
            self.next += 1;
            let range = SectorRange::new(self.next * 8 % SECTORS, REQUEST);
            let part = Part { token: Token(self.next), volume: self.volume, op, range };
            let taken = self.client.submit(self.ticks.now(), part, &mut self.guest);
            taken.ok().context("a part was not taken")?;
        }
        Ok(())
    }

    fn turn_client(&mut self) {
        self.client.turn(self.ticks.pass(), &mut self.guest);
    }

    /// As a worker's turn does it.
    fn turn_server(&mut self) {
        let now = self.ticks.pass();
        let Self { server, wire, host, .. } = self;
        let received = wire.receive(&mut |from, bytes| server.handle_frame(now, from, bytes, host));
        debug_assert!(received.is_ok(), "this wire does not break");
        while let Some((at, reply)) = host.replies.pop_front() {
            server.handle_reply(now, at, reply, host);
        }
        server.serve_waiting(now, host);
        server.transmit(wire);
    }
}

/// What both ends know of each other, the same in each run.
fn keys() -> (Security, Option<ServerSecurity>) {
    let [front, server] = [[1; 32], [2; 32]].map(|bytes| SecretKey::from_bytes(&bytes));
    let asked = Security::Sealed(Sealed::new(Rc::new(front), server.public(), [3; 32]));
    let security = ServerSecurity { secrets: vec![server], clear_allowed: false, entropy: [4; 32] };
    (asked, Some(security))
}

/// The front's end: parts are taken and sent, and ended by what comes.
pub(super) fn client(requests: Requests) -> anyhow::Result<Round> {
    let mut ends = Ends::new(requests.sealed)?;
    Ok(Box::new(move |meter: &mut Meter| {
        ends.guest.begin();
        meter.measure(|| {
            ends.submit(requests.op)?;
            ends.turn_client();
            anyhow::Ok(())
        })?;
        for _ in 0..MOST_TURNS {
            ends.turn_server();
            meter.measure(|| ends.turn_client());
            if ends.guest.is_over()? {
                return Ok(());
            }
        }
        bail!("requests have not ended in {MOST_TURNS} turns")
    }))
}

/// The server's end: frames become requests, and replies frames.
pub(super) fn server(requests: Requests) -> anyhow::Result<Round> {
    let mut ends = Ends::new(requests.sealed)?;
    Ok(Box::new(move |meter: &mut Meter| {
        ends.guest.begin();
        ends.submit(requests.op)?;
        ends.turn_client();
        for _ in 0..MOST_TURNS {
            meter.measure(|| ends.turn_server());
            ends.turn_client();
            if ends.guest.is_over()? {
                return Ok(());
            }
        }
        bail!("requests have not ended in {MOST_TURNS} turns")
    }))
}
