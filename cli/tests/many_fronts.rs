//! Thirty fronts on one worker, over UDP: how evenly they are served, and what
//! memory that takes. `--no-capture` shows the figures; `VRIO_FRONTS_SECONDS=20`
//! looks longer.

mod stand;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use block_core::time::Clock;
use block_core::{BlockError, Op, SectorRange};
use link::wire::Wire;
use link::wire::udp::{Udp, UdpPeer};
use link::{
    Access, Client, ClientSettings, FrontId, Guest, Part, Path, Source, Token, VolumeHandle,
    VolumeName, VolumeState,
};
use stand::Stand;

const FRONTS: u8 = 30;
const DEPTH: usize = 8;

/// Sectors of each volume.
const SECTORS: u64 = (4 << 20) / 512;

/// What the server may grow by once all fronts work: 50 MiB of buffers were made
/// at its start, but are resident only when they have been used.
const GROWTH_KIB: u64 = 64 << 10;

/// A guest that counts what came back.
#[derive(Default)]
struct Counter {
    ended: u64,
    under_way: usize,
}

impl Source for Counter {
    fn fetch(&mut self, _: Token, into: &mut [u8]) -> Result<(), BlockError> {
        into.fill(1);
        Ok(())
    }
}

impl Guest for Counter {
    fn place(&mut self, _: Token, _: usize, _: &[u8]) {}

    fn complete(&mut self, _: Token, outcome: Result<(), BlockError>) {
        assert_eq!(outcome, Ok(()));
        self.ended += 1;
        self.under_way -= 1;
    }
}

struct Front {
    client: Client<Udp>,
    volume: VolumeHandle,
    guest: Counter,
    next: u64,
}

impl Front {
    fn new(clock: Clock, number: u8, server: UdpPeer) -> Self {
        let wire = Udp::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a socket");
        assert!(wire.window() > 0);
        let settings = ClientSettings {
            front: FrontId([number; 16]),
            incarnation: 1,
            least_timeout: ClientSettings::LEAST_TIMEOUT,
            seed: number.into(),
            // Not so few that the fronts measure the device's flushes.
            kept_bytes: 8 << 20,
        };
        let mut client = Client::new(wire, settings);
        let name = VolumeName::new(&format!("v{number}")).expect("a name");
        let volume = client.attach(clock.now(), server, name, Access::Write).expect("memory");
        client.settle(volume);
        Self { client, volume, guest: Counter::default(), next: u64::from(number) }
    }

    /// Half reads, half writes; every eighth has 64 KiB, all others 4.
    fn turn(&mut self, clock: Clock) {
        let now = clock.now();
        let attached = matches!(self.client.state(self.volume), VolumeState::Attached(_));
        while attached && self.guest.under_way < DEPTH {
            let sectors = if self.next.is_multiple_of(8) { 128 } else { 8 };
            let start = self.next * 7919 * 8 % (SECTORS - 128);
            let op = if (self.next / 8).is_multiple_of(2) { Op::Read } else { Op::Write };
            let range = SectorRange::new(start, sectors);
            let part = Part { token: Token(self.next), volume: self.volume, op, range };
            if self.client.submit(now, part, &mut self.guest).is_err() {
                break;
            }
            self.next += 1;
            self.guest.under_way += 1;
        }
        self.client.turn(now, &mut self.guest);
    }
}

/// Turns all fronts for so long.
fn work(fronts: &mut [Front], clock: Clock, time: Duration) -> Vec<u64> {
    let before: Vec<u64> = fronts.iter().map(|front| front.guest.ended).collect();
    let end = Instant::now() + time;
    while Instant::now() < end {
        fronts.iter_mut().for_each(|front| front.turn(clock));
    }
    fronts.iter().zip(before).map(|(front, before)| front.guest.ended - before).collect()
}

fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Everybody is served, and once all fronts are there and have used what there
/// is, the server's memory stays what it is.
#[test]
fn thirty_fronts_on_one_worker_take_bounded_memory() {
    let mut stand = Stand::start(u64::from(FRONTS) * 8);
    (1..=FRONTS).for_each(|number| stand.create(&format!("v{number}"), "4M"));
    let server: SocketAddr =
        stand.server_address().trim_start_matches("udp://").parse().expect("an address");
    let clock = Clock::start();
    let mut fronts: Vec<Front> =
        (1..=FRONTS).map(|number| Front::new(clock, number, server.into())).collect();
    let begin = Instant::now();
    while fronts.iter().any(|front| front.guest.ended < 100) {
        fronts.iter_mut().for_each(|front| front.turn(clock));
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", stand.logs());
    }
    let before = resident_kib(stand.server().id());
    let seconds: Option<f64> =
        std::env::var("VRIO_FRONTS_SECONDS").ok().and_then(|text| text.parse().ok());
    let served = work(&mut fronts, clock, Duration::from_secs_f64(seconds.unwrap_or(0.5)));
    let after = resident_kib(stand.server().id());
    let mean = served.iter().sum::<u64>() as f64 / served.len() as f64;
    let slowest = *served.iter().min().expect("some");
    println!(
        "{FRONTS} fronts: {slowest} requests of the slowest, {mean:.0} of the mean ({:.2}); the \
         server has {after} KiB resident, {before} KiB at the start",
        slowest as f64 / mean
    );
    assert!(slowest > 0, "{served:?}");
    assert!(after < before + GROWTH_KIB, "{before} KiB, then {after} KiB");
}
