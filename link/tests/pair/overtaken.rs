//! A busy front does not wait for time-outs.

use block_core::{BlockError, Op, SectorRange};
use link::frame::{Frame, Kind};
use link::{Guest, Part, Path, Source, Token, VolumeHandle};

use super::rig::{CLIENT, Pair};

/// A guest that counts what came back.
#[derive(Default)]
struct Ended(Vec<u64>);

impl Source for Ended {
    fn fetch(&mut self, _: Token, into: &mut [u8]) -> Result<(), BlockError> {
        into.fill(9);
        Ok(())
    }
}

impl Guest for Ended {
    fn place(&mut self, _: Token, _: usize, _: &[u8]) {}

    fn complete(&mut self, token: Token, outcome: Result<(), BlockError>) {
        assert_eq!(outcome, Ok(()));
        self.0.push(token.0);
    }
}

/// Requests one after the other, as many at a time as there are slots, in rounds
/// of no time. The frame that `loses` names is lost; what else was sent.
fn work(
    pair: &mut Pair,
    volume: VolumeHandle,
    op: Op,
    mut loses: impl FnMut(&Frame<'_>) -> bool,
) -> (Ended, Vec<(Kind, u16)>) {
    let (mut guest, mut next, mut sent) = (Ended::default(), 0, Vec::new());
    for _ in 0..6 {
        let part = |next| {
            let range = SectorRange::new(next * 8, 8);
            Part { token: Token(next), volume, op, range }
        };
        while pair.client.submit(pair.now, part(next), &mut guest).is_ok() {
            next += 1;
        }
        pair.client.turn(pair.now, &mut guest);
        pair.server_turn();
        let mut carry = |pair: &Pair| {
            for datagram in pair.sent() {
                let frame = Frame::parse(&datagram.bytes).expect("our own frame");
                if loses(&frame) {
                    continue;
                }
                if datagram.to != CLIENT {
                    sent.push((frame.kind, frame.header().attempt));
                }
                pair.network.deliver(datagram);
            }
        };
        carry(pair);
        pair.server_turn();
        carry(pair);
    }
    (guest, sent)
}

/// A frame of a read was lost, either way. The front took three round trips and
/// two questions to have it again, and a time-out when few were under way.
#[test]
fn a_read_that_others_have_overtaken_is_read_again_at_once() {
    for lost in [Kind::Request, Kind::Answer] {
        let (mut pair, volume) = Pair::attached();
        let mut first = None;
        let (guest, sent) = work(&mut pair, volume, Op::Read, |frame| {
            frame.kind == lost
                && *first.get_or_insert(frame.header().counter) == frame.header().counter
        });
        assert!(guest.0.contains(&0), "{lost:?}: it came though no time went by");
        let again = sent.iter().filter(|it| **it == (Kind::Request, 1)).count();
        assert_eq!(again, 1, "{lost:?}");
        assert!(sent.iter().all(|(kind, _)| *kind != Kind::Probe), "{lost:?}");
    }
}

/// A change is not sent again unasked: it may be large, and may have run.
#[test]
fn a_write_that_others_have_overtaken_is_asked_for() {
    let (mut pair, volume) = Pair::attached();
    let mut first = None;
    let (guest, sent) = work(&mut pair, volume, Op::Write, |frame| {
        let counter = frame.header().counter;
        frame.kind == Kind::Answer && *first.get_or_insert(counter) == counter
    });
    assert!(guest.0.contains(&0), "it came though no time went by");
    assert_eq!(sent.iter().filter(|(kind, _)| *kind == Kind::Probe).count(), 1);
    assert_eq!(pair.host.writes, sent.len() - 1, "each ran once");
}

/// A read overtaken by others was asked for again, and then its first answer came
/// after all, whole: it ends the read, and the second answer is none.
#[test]
fn an_answer_that_is_late_is_an_answer() {
    let (mut pair, volume) = Pair::attached();
    let mut late = None;
    let (guest, _) = work(&mut pair, volume, Op::Read, |frame| {
        let is_first = frame.kind == Kind::Answer && late.is_none();
        if is_first {
            late = Some(frame.header());
        }
        // What it is asked for again is lost.
        is_first || frame.header().attempt > 0
    });
    assert!(!guest.0.contains(&0));
    let payload = [7; 4096];
    let mut bytes = late.expect("lost").encode(Kind::Answer, &payload).to_vec();
    bytes.extend_from_slice(&payload);
    let datagram = link::wire::memory::Datagram { from: super::rig::SERVER, to: CLIENT, bytes };
    pair.network.deliver(datagram);
    let mut guest = Ended::default();
    pair.client.turn(pair.now, &mut guest);
    assert!(guest.0.contains(&0), "{:?}", guest.0);
}
