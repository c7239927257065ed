//! Thirty fronts and one worker that has few buffers: nobody starves, whoever
//! else is there.

use std::collections::BTreeMap;
use std::time::Duration;

use block_core::Op;
use link::frame::{Frame, Header, Kind};
use link::wire::Wire;
use link::wire::memory::{End, Network, Port};

use crate::world::{Load, SERVER, Setup, Speed, World};

const THIRTY: Setup = Setup { fronts: 30, buffers: 8, speed: Speed::InTurn, faults: None };

const MODEST: Load = Load { depth: 4, op: Op::Read, sectors: 8 };

/// The slowest of some fronts, and their mean.
fn slowest_and_mean(served: &[u64]) -> (u64, u64) {
    let mean = served.iter().sum::<u64>() / served.len() as u64;
    (*served.iter().min().expect("some"), mean)
}

/// Sixteen buffers for thirty fronts, each of which has sixteen requests under
/// way: whoever waits is served in turn.
#[test]
fn thirty_equal_fronts_are_served_alike() {
    for (op, sectors) in [(Op::Read, 8), (Op::Write, 8), (Op::Read, 256), (Op::Write, 256)] {
        let mut world = World::new(THIRTY, |_| Load { depth: 16, op, sectors });
        let served = world.served(Duration::from_millis(100), |_| {});
        let (slowest, mean) = slowest_and_mean(&served);
        println!("{op:?} of {sectors} sectors: slowest {slowest}, mean {mean}");
        assert!(mean > 10 && slowest * 2 >= mean, "{op:?} of {sectors} sectors: {served:?}");
    }
}

/// One front asks for all that its slots can ask for, in the largest requests;
/// the others are modest, and served alike.
#[test]
fn a_greedy_front_does_not_starve_modest_ones() {
    let greedy = Load { depth: 127, op: Op::Write, sectors: 256 };
    let mut world = World::new(THIRTY, |number| if number == 1 { greedy } else { MODEST });
    let served = world.served(Duration::from_millis(100), |_| {});
    let (slowest, mean) = slowest_and_mean(&served[1..]);
    println!("the greedy one {}, the others: slowest {slowest}, mean {mean}", served[0]);
    assert!(slowest * 2 >= mean && slowest > served[0], "{served:?}");
}

/// A front that says what it will write, sends a part of it and never the rest,
/// in all its slots, and again whenever the server has given up on it.
struct Unfinished {
    end: End,
    session: u32,
    number: u64,
    counter: u64,
    turns: usize,
    heard: BTreeMap<u8, usize>,
}

impl Unfinished {
    const PORT: Port = Port(99);

    fn new(network: &Network) -> Self {
        let end = network.end(Self::PORT);
        Self { end, session: 0, number: 0, counter: 0, turns: 0, heard: BTreeMap::new() }
    }

    fn say(&mut self, kind: Kind, header: Header, payload: &[u8]) {
        self.counter += 1;
        let header = Header { session: self.session, counter: self.counter, ..header };
        self.end.send(&SERVER, &header.encode(kind, payload), payload);
    }

    fn turn(&mut self) {
        self.turns += 1;
        let mut welcome = None;
        let heard = &mut self.heard;
        self.end
            .receive(&mut |_, bytes| {
                let frame = Frame::parse(bytes).expect("the server's own frame");
                *heard.entry(frame.kind as u8).or_default() += 1;
                if frame.kind == Kind::Welcome {
                    let nonce: [u8; 8] = frame.payload[8..16].try_into().expect("eight");
                    welcome = Some((frame.header().session, nonce));
                }
            })
            .expect("a memory wire");
        if let Some((session, nonce)) = welcome {
            self.session = session;
            let mut open = [0; 16];
            open[..8].copy_from_slice(&nonce);
            open[8..12].copy_from_slice(&1024_u32.to_le_bytes());
            self.say(Kind::Open, Header::default(), &open);
        } else if self.session == 0 {
            let mut hello = [0; 1024];
            (hello[0], hello[1], hello[8], hello[24]) = (1, 1, 0xee, 1);
            self.say(Kind::Hello, Header::default(), &hello);
        } else if self.turns.is_multiple_of(8) {
            self.begin_writes();
        }
    }

    /// A new write in each slot, which forgets the one before.
    fn begin_writes(&mut self) {
        for slot in 1..128 {
            self.number += 1;
            let header =
                Header { number: self.number, slot, count: 256, op: 2, ..Header::default() };
            self.say(Kind::Request, header, &[1; 1024]);
        }
    }
}

/// It holds what its share is, and no more: a front that never sends what it
/// has announced costs the others at most half of what they had.
#[test]
fn a_front_that_never_sends_what_it_announces_does_not_hold_what_others_need() {
    for load in [MODEST, Load { depth: 8, op: Op::Write, sectors: 256 }] {
        let alone = World::new(THIRTY, |_| load).served(Duration::from_millis(100), |_| {});
        let mut world = World::new(THIRTY, |_| load);
        let mut unfinished = Unfinished::new(&world.network);
        let served = world.served(Duration::from_millis(100), |_| unfinished.turn());
        assert!(unfinished.heard.contains_key(&(Kind::Missing as u8)), "it had buffers");
        let ((slowest, _), (_, mean)) = (slowest_and_mean(&served), slowest_and_mean(&alone));
        println!("alone: mean {mean}, beside the unfinished: slowest {slowest}");
        assert!(slowest * 4 >= mean, "{served:?} beside {alone:?}");
    }
}
