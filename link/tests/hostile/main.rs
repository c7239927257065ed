//! A peer that lies: its frames are those of a real one, bent. They may be
//! anything that somebody says who knows the protocol and all that it was
//! told; who is honest at the same end must not notice.

mod liar;
mod shelf;

use std::collections::BTreeMap;
use std::time::Duration;

use block_core::{BlockError, Op, SectorRange, Time};
use fuzz::{Metered, Script, Target};
use liar::Liar;
use link::wire::Wire;
use link::wire::memory::{End, Network, Port};
use link::{
    Access, Client, ClientSettings, FrontId, Guest, Part, Path, Server, ServerSettings, Source,
    Token, VolumeHandle, VolumeName, VolumeState,
};
use shelf::{SECTORS, Shelf};

#[global_allocator]
static ALLOCATOR: Metered = Metered;

/// What both ends, the wire between them and the check have on the heap. A
/// client's private copies and a server's buffers are not there.
const HEAP: usize = 12 << 20;

/// How long a turn takes. A peer may hold a request's buffer for a second.
const TURN: Duration = Duration::from_micros(500);

/// In so many turns an honest request ends, whatever others do.
const PATIENCE: usize = 20_000;

/// Where everybody is.
const FRONT: Port = Port(1);
const OTHER_FRONT: Port = Port(2);
const SERVER: Port = Port(10);
const OTHER_SERVER: Port = Port(20);

/// The guests of one client: what they want, and what has come of it.
#[derive(Default)]
struct Requests {
    data: BTreeMap<u64, Vec<u8>>,
    ended: BTreeMap<u64, Result<(), BlockError>>,
}

impl Source for Requests {
    fn fetch(&mut self, token: Token, into: &mut [u8]) -> Result<(), BlockError> {
        into.copy_from_slice(&self.data[&token.0]);
        Ok(())
    }
}

impl Guest for Requests {
    fn place(&mut self, token: Token, offset: usize, bytes: &[u8]) {
        assert!(!self.ended.contains_key(&token.0), "nothing is placed after the end");
        let data = self.data.get_mut(&token.0).expect("a request under way");
        data[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>) {
        assert!(self.data.contains_key(&token.0), "a request that there is");
        assert!(self.ended.insert(token.0, outcome).is_none(), "a request ends once");
    }
}

/// A front with one volume on each server that it knows.
struct Front {
    client: Client<End>,
    guest: Requests,
    last: u64,
}

impl Front {
    fn new(network: &Network, port: Port) -> Self {
        let settings = ClientSettings {
            front: FrontId([port.0 as u8; 16]),
            incarnation: 5,
            least_timeout: Duration::from_millis(1),
            seed: port.0.into(),
            kept_bytes: ClientSettings::LEAST_KEPT_BYTES,
        };
        let client = Client::new(network.end(port), settings);
        Self { client, guest: Requests::default(), last: 0 }
    }

    fn attach(&mut self, now: Time, server: Port, name: &str) -> VolumeHandle {
        let name = VolumeName::new(name).expect("a name");
        self.client.attach(now, server, name, Access::Write).expect("memory")
    }

    /// Asks; `None` when it must wait.
    fn ask(
        &mut self,
        now: Time,
        volume: VolumeHandle,
        op: Op,
        range: Option<SectorRange>,
        data: u8,
    ) -> Option<u64> {
        let token = self.last + 1;
        let bytes = range.map_or(0, |range| range.bytes() as usize);
        let holds = op == Op::Read || op.carries_data();
        self.guest.data.insert(token, if holds { vec![data; bytes] } else { Vec::new() });
        let part = Part { token: Token(token), volume, op, range };
        match self.client.submit(now, part, &mut self.guest) {
            Ok(()) => {
                self.last = token;
                Some(token)
            }
            Err(_) => {
                self.guest.data.remove(&token);
                None
            }
        }
    }

    /// Asks for something that the script chooses.
    fn ask_something(&mut self, now: Time, volume: VolumeHandle, script: &mut Script<'_>) {
        let op = [Op::Write, Op::Read, Op::WriteZeroes, Op::Flush][script.below(4)];
        let count = [1, 8, 24, 80, 256][script.below(5)];
        let start = script.below((SECTORS - u64::from(count)) as usize + 1) as u64;
        let range = SectorRange::new(start, count).filter(|_| op != Op::Flush);
        self.ask(now, volume, op, range, script.byte());
    }

    fn turn(&mut self, now: Time) {
        self.client.turn(now, &mut self.guest);
    }
}

/// A server and what is behind it.
struct Node {
    server: Server<Port>,
    wire: End,
    shelf: Shelf,
}

impl Node {
    fn new(network: &Network, port: Port) -> Self {
        let settings =
            ServerSettings { sessions: 4, slots: 8, window: 1 << 20, seed: port.0.into() };
        Self { server: Server::new(settings), wire: network.end(port), shelf: Shelf::new() }
    }

    fn turn(&mut self, now: Time) {
        let Self { server, wire, shelf } = self;
        wire.receive(&mut |from, bytes| server.handle_frame(now, from, bytes, shelf))
            .expect("a memory wire");
        while let Some((at, reply)) = shelf.finish() {
            server.handle_reply(now, at, reply, shelf);
        }
        server.serve_waiting(now, shelf);
        server.transmit(wire);
    }
}

/// What an honest guest does all the time: it writes, and reads what it wrote.
struct Honest {
    volume: VolumeHandle,
    round: u8,
    waits_for: Option<u64>,
    turns: usize,
}

impl Honest {
    const fn new(volume: VolumeHandle) -> Self {
        Self { volume, round: 0, waits_for: None, turns: 0 }
    }

    /// Goes on. What it writes is larger than what is sent unasked.
    fn turn(&mut self, now: Time, front: &mut Front) {
        self.turns += 1;
        assert!(self.turns < PATIENCE, "an honest request never ends");
        let range = SectorRange::new(u64::from(self.round / 2 % 4) * 40, 40);
        let content = self.round / 2 + 1;
        if let Some(token) = self.waits_for {
            let Some(outcome) = front.guest.ended.get(&token) else { return };
            assert_eq!(*outcome, Ok(()), "an honest request fails");
            if self.round % 2 == 1 {
                let data = &front.guest.data[&token];
                assert!(data.iter().all(|&byte| byte == content), "an honest guest reads rubbish");
            }
            (self.waits_for, self.round, self.turns) = (None, self.round + 1, 0);
            return self.turn(now, front);
        }
        let op = if self.round.is_multiple_of(2) { Op::Write } else { Op::Read };
        self.waits_for = front.ask(now, self.volume, op, range, content);
    }
}

fn input_that_asks() -> Vec<u8> {
    // Each turn: one request, of another kind and size.
    (0..40u8).flat_map(|turn| [2, turn, turn / 4, turn, 0, turn, 0, 0, 0, 0]).collect()
}

/// A front that lies to a server. The server keeps its promises to the worker
/// behind it, and serves the other front as if nobody lied.
#[test]
fn a_server_bears_a_front_that_lies() {
    Target::new("a_server_bears_a_front_that_lies")
        .with(input_that_asks())
        .cases(2500)
        .may_allocate(HEAP)
        .run(|input| {
            let mut script = Script::new(input);
            let network = Network::new();
            let mut now = Time::ZERO;
            let mut node = Node::new(&network, SERVER);
            let mut front = Front::new(&network, FRONT);
            let mut hostile = Front::new(&network, OTHER_FRONT);
            let mut honest = Honest::new(front.attach(now, SERVER, "a"));
            let volume = hostile.attach(now, SERVER, "b");
            let mut liar = Liar::default();
            while honest.round < 4 || !script.is_over() {
                honest.turn(now, &mut front);
                for _ in 0..script.below(4) {
                    hostile.ask_something(now, volume, &mut script);
                }
                front.turn(now);
                hostile.turn(now);
                node.turn(now);
                while let Some(frame) = network.take() {
                    if frame.from == OTHER_FRONT {
                        liar.send(&network, frame, &mut script);
                    } else {
                        network.deliver(frame);
                    }
                }
                now = now + TURN;
            }
            assert!(node.server.sessions() <= 4);
            (node.shelf.ran.min(40), node.server.sessions(), hostile.guest.ended.len())
        });
}

/// A server that lies to a front. The front's requests to it end once, inside
/// of their guest's memory; those to another server are served as if nobody
/// lied.
#[test]
fn a_front_bears_a_server_that_lies() {
    Target::new("a_front_bears_a_server_that_lies")
        .with(input_that_asks())
        .cases(2500)
        .may_allocate(HEAP)
        .run(|input| {
            let mut script = Script::new(input);
            let network = Network::new();
            let mut now = Time::ZERO;
            let mut node = Node::new(&network, SERVER);
            let mut hostile = Node::new(&network, OTHER_SERVER);
            let mut front = Front::new(&network, FRONT);
            let mut honest = Honest::new(front.attach(now, SERVER, "a"));
            let volume = front.attach(now, OTHER_SERVER, "b");
            let mut liar = Liar::default();
            while honest.round < 4 || !script.is_over() {
                honest.turn(now, &mut front);
                for _ in 0..script.below(4) {
                    front.ask_something(now, volume, &mut script);
                }
                front.turn(now);
                node.turn(now);
                hostile.turn(now);
                while let Some(frame) = network.take() {
                    if frame.from == OTHER_SERVER {
                        liar.send(&network, frame, &mut script);
                    } else {
                        network.deliver(frame);
                    }
                }
                now = now + TURN;
            }
            front.client.abandon(volume, &mut front.guest);
            let ended = |token: &u64| front.guest.ended.contains_key(token);
            let waits = |token: &u64| !ended(token) && honest.waits_for != Some(*token);
            assert_eq!(front.guest.data.keys().find(|token| waits(token)), None, "given up");
            let failed = front.guest.ended.values().filter(|end| end.is_err()).count();
            let state = match front.client.state(volume) {
                VolumeState::Attached(_) => 0,
                VolumeState::Waiting => 1,
                _ => 2,
            };
            (state, failed, front.last.min(40))
        });
}
