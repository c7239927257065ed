//! The whole server behind the link: a client, frames, a worker, the soft NVMe
//! controller, a file.

mod support;

use std::collections::VecDeque;
use std::time::Duration;

use block_core::{BlockError, Op, SectorRange, Time};
use block_server::{NvmeEngine, WorkerStation};
use link::wire::Wire;
use link::wire::memory::{End, Network, Port};
use link::{
    Access, Attached, Client, ClientSettings, Part, Path, Server, ServerSettings, Token,
    VolumeHandle, VolumeState,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use support::{VecGuest, create, file_worker, front, name};
use turn::Station;

const SERVER: Port = Port(1);
const SECTORS: u64 = 2048;

type SoftStation = WorkerStation<NvmeEngine, End>;

/// A server whose worker was started from the file, and a way to stop it hard.
fn serve(network: &Network, file: &std::path::Path, volume: Option<&str>) -> SoftStation {
    let (mut worker, mailbox) = file_worker(file);
    if let Some(volume) = volume {
        let turn = || {
            worker.run(Time::ZERO);
        };
        create(&mailbox, turn, volume, SECTORS * 512).expect("created");
    }
    let wire = network.end(SERVER);
    let settings = ServerSettings { sessions: 2, slots: 16, window: wire.window(), seed: 7 };
    WorkerStation::new(wire, Server::new(settings), worker)
}

struct Rig {
    network: Network,
    station: Option<SoftStation>,
    client: Client<End>,
    guest: VecGuest,
    now: Time,
}

impl Rig {
    fn turn(&mut self) {
        // A microsecond a turn: time-outs come when a server is away.
        self.now = self.now + Duration::from_micros(1);
        self.client.turn(self.now, &mut self.guest);
        self.network.deliver_all();
        if let Some(station) = &mut self.station {
            station.turn(self.now);
        }
        self.network.deliver_all();
    }

    fn wait_attached(&mut self, volume: VolumeHandle) -> Attached {
        for _ in 0..2_000_000 {
            self.turn();
            match self.client.state(volume) {
                VolumeState::Attached(attached) => return attached,
                VolumeState::Waiting => {}
                other => panic!("not attached: {other:?}"),
            }
        }
        panic!("no answer");
    }
}

/// Random requests at depth 12 against a model, with the server killed and
/// started again in between. A single guest's requests to the same sectors are
/// not sent at the same time, so the model knows what each read must bring.
#[test]
fn a_guest_over_the_link_reads_what_it_wrote_though_the_server_is_restarted() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("disk");
    let network = Network::new();
    let station = Some(serve(&network, &file, Some("vm")));
    let settings = ClientSettings {
        front: front(1),
        incarnation: 1,
        least_timeout: ClientSettings::LEAST_TIMEOUT,
        seed: 3,
        kept_bytes: ClientSettings::LEAST_KEPT_BYTES,
    };
    let client = Client::new(network.end(Port(2)), settings);
    let guest = VecGuest::default();
    let mut rig = Rig { network, station, client, guest, now: Time::ZERO };
    let volume = rig.client.attach(rig.now, SERVER, name("vm"), Access::Write).expect("memory");
    let first = rig.wait_attached(volume);
    assert_eq!(first.sectors, SECTORS);

    let mut random = StdRng::seed_from_u64(11);
    let mut model = vec![0u8; SECTORS as usize];
    let mut under_way: VecDeque<Part> = VecDeque::new();
    let (mut submitted, mut seen, mut restarted) = (0u64, 0, false);
    while seen < 3_000 {
        if submitted == 1_500 && under_way.is_empty() && !restarted {
            // Everything is answered: what a kill may cost is in the file.
            drop(rig.station.take());
            rig.station = Some(serve(&rig.network, &file, None));
            restarted = true;
        }
        let drain = submitted == 1_500 && !restarted;
        if submitted < 3_000 && under_way.len() < 12 && !drain {
            let count = [1, 3, 8, 40, 256][random.random_range(0..5)];
            let start = random.random_range(0..SECTORS - u64::from(count));
            let range = SectorRange::new(start, count).expect("a range");
            let apart = |other: &Part| {
                other.range.is_none_or(|other| {
                    other.end().div_ceil(8) * 8 <= start || range.end() <= other.start() / 8 * 8
                })
            };
            let op =
                [Op::Read, Op::Write, Op::WriteThrough, Op::WriteZeroes][random.random_range(0..4)];
            let part = Part { token: Token(submitted), volume, op, range: Some(range) };
            if under_way.iter().all(apart) {
                let fill = submitted as u8 | 1;
                rig.guest.data.push(vec![fill; range.bytes() as usize]);
                if rig.client.submit(rig.now, part, &mut rig.guest).is_ok() {
                    under_way.push_back(part);
                    submitted += 1;
                } else {
                    rig.guest.data.pop();
                }
            }
        }
        rig.turn();
        for (token, outcome) in std::mem::take(&mut rig.guest.ended) {
            assert_eq!(outcome, Ok(()), "part {token}");
            let at = under_way.iter().position(|part| part.token.0 == token as u64);
            let part = under_way.remove(at.expect("it was under way")).expect("it is there");
            let range = part.range.expect("no flushes here");
            let sectors = range.start() as usize..range.end() as usize;
            match part.op {
                Op::Read => {
                    let data = rig.guest.data[token].chunks_exact(512);
                    for (sector, bytes) in sectors.zip(data) {
                        let expected = model[sector];
                        assert!(bytes.iter().all(|&byte| byte == expected), "sector {sector}");
                    }
                }
                Op::WriteZeroes => model[sectors].fill(0),
                _ => model[sectors].fill(token as u8 | 1),
            }
            rig.guest.data[token] = Vec::new();
            seen += 1;
        }
    }
    let again = rig.wait_attached(volume);
    assert_eq!((again.volume_id, again.generation), (first.volume_id, first.generation));
    assert_ne!(again.verifier, first.verifier, "the server is another one");

    rig.client.detach(volume);
    while rig.client.state(volume) != VolumeState::Detached {
        rig.turn();
    }
    let part = Part { token: Token(0), volume, op: Op::Read, range: SectorRange::new(0, 1) };
    let refused = rig.client.submit(rig.now, part, &mut rig.guest);
    assert!(matches!(refused, Err(link::Refusal::Failed(BlockError::NotAttached))), "{refused:?}");
}
