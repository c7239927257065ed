//! The link allocates nothing per request: a client and a server over real
//! UDP sockets, counted.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

use allocations::{Counting, of_all_threads};
use block_core::time::Clock;
use block_core::{BlockError, Buffer, Op, Pool, SectorRange};
use link::wire::Wire;
use link::wire::udp::{Udp, UdpPeer};
use link::{
    Access, AttachReply, Attached, Caller, Client, ClientSettings, Contact, FrontId, Guest, Host,
    Part, Path, Reply, Sealed, SecretKey, Security, Server, ServerSecurity, ServerSettings,
    SessionIndex, SlotRef, Source, Token, VolumeHandle, VolumeName, VolumeState, Work,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Instant {
    pool: Pool,
    replies: VecDeque<(SlotRef, Reply)>,
}

impl Host for Instant {
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
            Work::Attach(_) => {
                reply.attach = Some(Box::new(AttachReply::Attached(Attached {
                    handle: VolumeHandle(0),
                    volume_id: [0; 16],
                    generation: 0,
                    verifier: 1,
                    stored_verifier: 1,
                    sectors: 1 << 20,
                    read_only: false,
                })));
            }
            Work::Block { request, .. } => reply.buffer = request.buffer,
            Work::Detach(_) => {}
        }
        self.replies.push_back((at, reply));
    }

    fn closing(&mut self, _session: SessionIndex) {}

    fn closed(&mut self, _: SessionIndex) {}
}

#[derive(Default)]
struct Counter {
    completed: u64,
    placed: u64,
}

impl Source for Counter {
    fn fetch(&mut self, _: Token, into: &mut [u8]) -> Result<(), BlockError> {
        into.fill(1);
        Ok(())
    }
}

impl Guest for Counter {
    fn place(&mut self, _: Token, _: usize, bytes: &[u8]) {
        self.placed += bytes.len() as u64;
    }

    fn complete(&mut self, _: Token, outcome: Result<(), BlockError>) {
        assert_eq!(outcome, Ok(()));
        self.completed += 1;
    }
}

/// In the clear, and sealed, while keys change a hundred times.
#[test]
fn a_request_over_udp_allocates_nothing() {
    serves(Security::Clear, ServerSecurity::clear());
    let (front, server) = (SecretKey::from_bytes(&[1; 32]), SecretKey::from_bytes(&[2; 32]));
    let mut sealed = Sealed::new(Rc::new(front), server.public(), [3; 32]);
    sealed.frames_per_key = 500;
    let secrets = vec![server];
    let security = ServerSecurity { secrets, clear_allowed: false, entropy: [4; 32] };
    serves(Security::Sealed(sealed), security);
}

fn serves(asked: Security, security: ServerSecurity) {
    let loopback: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    let mut server_wire = Udp::bind(loopback).expect("a socket");
    let to = server_wire.local_address().expect("an address");
    let settings = ServerSettings { sessions: 4, slots: 64, window: 1 << 20, seed: 1 };
    let mut server = Server::secured(settings, security);
    let mut host = Instant {
        pool: Pool::private(64, 33 * 4096).expect("memory"),
        replies: VecDeque::with_capacity(64),
    };
    let settings = ClientSettings {
        front: FrontId([1; 16]),
        incarnation: 1,
        least_timeout: ClientSettings::LEAST_TIMEOUT,
        seed: 1,
        kept_bytes: ClientSettings::LEAST_KEPT_BYTES,
    };
    let wire = Udp::bind(loopback).expect("a socket");
    let mut client = Client::new(wire, settings);
    let clock = Clock::start();
    let name = VolumeName::new("disk").expect("a name");
    let is_sealed = matches!(asked, Security::Sealed(_));
    let contact = Contact { peer: UdpPeer::from(to), security: asked };
    let volume = client.attach(clock.now(), contact, name, Access::Write).expect("memory");

    let mut guest = Counter::default();
    let mut submitted = 0;
    let mut run = |requests: u64| {
        let until = submitted + requests;
        let before = of_all_threads();
        while guest.completed < until {
            let now = clock.now();
            while submitted < until && matches!(client.state(volume), VolumeState::Attached(_)) {
                let ops = [Op::Read, Op::Write, Op::Write, Op::Flush];
                let sectors = [8, 8, 256, 8][submitted as usize % 4];
                let range = SectorRange::new(submitted * 8 % 100_000, sectors);
                let (op, token) = (ops[submitted as usize % 4], Token(submitted));
                if client.submit(now, Part { token, volume, op, range }, &mut guest).is_err() {
                    break;
                }
                submitted += 1;
            }
            client.turn(now, &mut guest);
            server_wire
                .receive(&mut |from, bytes| server.handle_frame(now, from, bytes, &mut host))
                .expect("receive");
            while let Some((at, reply)) = host.replies.pop_front() {
                server.handle_reply(now, at, reply, &mut host);
            }
            server.serve_waiting(now, &mut host);
            server.transmit(&mut server_wire);
        }
        of_all_threads() - before
    };
    run(2000);
    let begun = clock.now();
    assert_eq!(run(10_000), 0, "allocations in 10,000 requests, sealed: {is_sealed}");
    eprintln!("10,000 requests, sealed: {is_sealed}: {:?}", clock.now() - begun);
    assert!(guest.placed > 0);
}
