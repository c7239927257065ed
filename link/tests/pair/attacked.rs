//! Somebody in the middle of a sealed session does what they can: the session
//! goes on, each change runs once, and what does not come from the other end is
//! as if it had not come.

use std::time::Duration;

use block_core::Op;
use link::frame::{Frame, Header, KEY_PHASE, Kind};
use link::wire::memory::{Datagram, Port};
use link::{Access, Client, Path, VolumeHandle, VolumeName, VolumeState};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::rig::{CLIENT, OneRequest, Pair, SERVER, settings};
use crate::sealed::{A_WHILE, FRONT_KEY, SERVER_KEY, carry, contact, sealed_pair, secret, server};

/// Writes, and says whether that was done within a while.
fn writes(
    pair: &mut Pair,
    volume: VolumeHandle,
    between: impl FnMut(Datagram) -> Vec<Datagram>,
) -> bool {
    pair.submit(volume, Op::Write, 64);
    carry(pair, A_WHILE, between);
    pair.guest.outcome == Some(Ok(()))
}

/// Everything that was said in the session so far, once more.
fn say_again(pair: &Pair, frames: &[Datagram], bend: impl Fn(&mut Datagram)) {
    for frame in frames {
        let mut frame = frame.clone();
        bend(&mut frame);
        pair.network.deliver(frame);
    }
}

fn is_sealed(frame: &Datagram) -> bool {
    Frame::parse(&frame.bytes).is_err()
}

#[test]
fn a_captured_session_says_nothing_a_second_time() {
    let (mut pair, volume) = sealed_pair(1000);
    let mut captured = Vec::new();
    assert!(writes(&mut pair, volume, |frame| {
        captured.push(frame.clone());
        vec![frame]
    }));
    assert!(captured.len() > 4);
    let id = captured.iter().find(|frame| is_sealed(frame)).expect("some").bytes[4..8].to_vec();
    say_again(&pair, &captured, |_| ());
    assert!(writes(&mut pair, volume, |frame| vec![frame]));
    assert_eq!(pair.host.writes, 2, "in the same session");
    pair.server = server(&[SERVER_KEY], false, 2);
    let mut newer = Vec::new();
    pair.submit(volume, Op::Write, 64);
    carry(&mut pair, Duration::from_millis(300), |frame| {
        newer.push(frame.clone());
        vec![frame]
    });
    assert_eq!((pair.guest.outcome, pair.host.writes), (Some(Ok(())), 3));
    // Said again to the new session, also under its name.
    let last = newer.iter().rev().find(|frame| is_sealed(frame) && frame.to == SERVER);
    let name = last.expect("some").bytes[4..8].to_vec();
    assert_ne!(name, id);
    say_again(&pair, &captured, |_| ());
    say_again(&pair, &captured, |frame| frame.bytes[4..8].copy_from_slice(&name));
    carry(&mut pair, A_WHILE, |frame| vec![frame]);
    assert_eq!(pair.host.writes, 3, "in another session");
    assert!(writes(&mut pair, volume, |frame| vec![frame]));
    assert_eq!(pair.server.sessions(), 1);
}

#[test]
fn what_an_end_has_said_is_not_believed_by_itself() {
    let (mut pair, volume) = sealed_pair(1000);
    assert!(writes(&mut pair, volume, |frame| {
        let (from, to) = (frame.to, frame.from);
        vec![Datagram { from, to, ..frame.clone() }, frame]
    }));
    assert_eq!((pair.host.writes, pair.server.sessions()), (1, 1));
}

/// Bits are flipped, ends cut off, frames held back and their order changed, in
/// every second frame: what was asked for is done, once.
#[test]
fn frames_that_are_bent_cut_and_out_of_order_cost_time_only() {
    let (mut pair, volume) = sealed_pair(40);
    let mut random = StdRng::seed_from_u64(1);
    let mut held = Vec::new();
    for round in 1..40 {
        pair.submit(volume, Op::Write, 64);
        let mut turns = 0;
        while pair.guest.outcome.is_none() {
            carry(&mut pair, Duration::from_micros(50), |mut frame| {
                match random.random_range(0..8) {
                    0 => {
                        let bit = random.random_range(0..frame.bytes.len() * 8);
                        frame.bytes[bit / 8] ^= 1 << (bit % 8);
                    }
                    1 => frame.bytes.truncate(random.random_range(0..frame.bytes.len())),
                    2 => {
                        held.push(frame);
                        return vec![];
                    }
                    3 => {
                        held.push(frame);
                        held.shuffle(&mut random);
                        return std::mem::take(&mut held);
                    }
                    _ => {}
                }
                vec![frame]
            });
            turns += 1;
            assert!(turns < 200_000, "{round}: it never ends");
        }
        assert_eq!((pair.guest.outcome, pair.host.writes), (Some(Ok(())), round));
    }
}

/// Frames of a phase that is over are said again when nobody waits for them any
/// more, and when the phase's bit has come round.
#[test]
fn frames_of_old_phases_are_not_believed() {
    let (mut pair, volume) = sealed_pair(20);
    let (mut kept, mut phases) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        assert!(writes(&mut pair, volume, |frame| {
            if is_sealed(&frame) {
                phases.push(frame.bytes[39] & KEY_PHASE);
                kept.push(frame.clone());
            }
            vec![frame]
        }));
    }
    phases.dedup();
    assert!(phases.len() > 4, "keys have changed");
    let writes_before = pair.host.writes;
    pair.now = pair.now + Duration::from_secs(1);
    say_again(&pair, &kept, |_| ());
    // Counters that nobody has used, so that the window does not speak first.
    say_again(&pair, &kept, |frame| frame.bytes[12] = 1);
    carry(&mut pair, A_WHILE, |frame| vec![frame]);
    assert_eq!(pair.host.writes, writes_before);
    assert!(writes(&mut pair, volume, |frame| vec![frame]));
}

/// Somebody who can send under the server's address says that it has forgotten
/// the session, refuses it, or says goodbye. A front that hears the server does
/// not believe that.
#[test]
fn what_is_said_in_the_open_does_not_end_a_session() {
    let (mut pair, volume) = sealed_pair(1000);
    assert!(writes(&mut pair, volume, |frame| {
        let session = u32::from_le_bytes([0, 1, 2, 3].map(|at| frame.bytes[4 + at]));
        let header = Header { session, counter: 1 << 40, ..Header::default() };
        let mut all = vec![frame.clone()];
        for kind in [Kind::UnknownSession, Kind::Bye, Kind::Refuse, Kind::Answer] {
            for (from, to) in [(SERVER, CLIENT), (CLIENT, SERVER)] {
                let bytes = header.encode(kind, &[]).to_vec();
                all.push(Datagram { from, to, bytes });
            }
        }
        all
    }));
    assert_eq!((pair.server.sessions(), pair.host.writes), (1, 1));
    let mut hellos = 0;
    assert!(writes(&mut pair, volume, |frame| {
        hellos += usize::from(!is_sealed(&frame));
        vec![frame]
    }));
    assert_eq!(hellos, 0, "it is still the first session");
}

/// Somebody says a front's old hellos again, from many addresses. The front's
/// session goes on, and when it needs another one it gets it meanwhile.
#[test]
fn old_hellos_said_again_take_nothing_from_the_front() {
    let (mut pair, volume, hellos) = captured_hellos();
    let flood = |pair: &Pair| {
        for (from, hello) in (1000..1200).map(Port).zip(hellos.iter().cycle()) {
            pair.network.deliver(Datagram { from, ..hello.clone() });
        }
    };
    flood(&pair);
    assert!(writes(&mut pair, volume, |frame| vec![frame]));
    assert_eq!(pair.server.sessions(), 1);
    pair.server = server(&[SERVER_KEY], false, 2);
    pair.submit(volume, Op::Write, 8);
    for _ in 0..40 {
        flood(&pair);
        carry(&mut pair, Duration::from_millis(10), |frame| vec![frame]);
    }
    assert_eq!((pair.guest.outcome, pair.server.sessions()), (Some(Ok(())), 1));
}

fn captured_hellos() -> (Pair, VolumeHandle, Vec<Datagram>) {
    let mut pair = Pair::new();
    pair.server = server(&[SERVER_KEY], false, 1);
    pair.host.known = vec![secret(FRONT_KEY).public()];
    let volume = crate::sealed::ask(&mut pair, contact(FRONT_KEY, SERVER_KEY, 1000));
    let mut hellos = Vec::new();
    carry(&mut pair, A_WHILE, |frame| {
        if Frame::parse(&frame.bytes).is_ok_and(|frame| frame.kind == Kind::Hello) {
            hellos.push(frame.clone());
        }
        vec![frame]
    });
    assert!(matches!(pair.client.state(volume), VolumeState::Attached(_)));
    (pair, volume, hellos)
}

/// Two hundred strangers that know the server's key begin a handshake each: the
/// first are read, the others get tokens for little work. A front that comes
/// meanwhile brings its token, and is served.
#[test]
fn a_flood_of_hellos_is_answered_with_tokens() {
    let mut pair = Pair::new();
    pair.server = server(&[SERVER_KEY], false, 1);
    pair.host.known = vec![secret(FRONT_KEY).public()];
    let mut nobody = OneRequest::default();
    let name = || VolumeName::new("disk").expect("a name");
    let mut strangers: Vec<_> = (0..200_u16)
        .map(|number| {
            let wire = pair.network.end(Port(100 + number));
            let mut client = Client::new(wire, settings(77, u64::from(number)));
            let asks = contact(50 + (number % 100) as u8, SERVER_KEY, 9);
            client.attach(pair.now, asks, name(), Access::Read).expect("memory");
            client
        })
        .collect();
    strangers.iter_mut().for_each(|stranger| {
        stranger.turn(pair.now, &mut nobody);
    });
    let (mut refused, mut tokens) = (0, 0);
    let mut count = |frame: &Datagram| match Frame::parse(&frame.bytes).map(|frame| frame.kind) {
        Ok(Kind::Refuse) => refused += 1,
        Ok(Kind::Retry) => tokens += 1,
        _ => {}
    };
    // The strangers' hellos, of which each comes in four sizes; and they say them
    // again without the tokens that they were given.
    let hellos = pair.sent();
    let volume = crate::sealed::ask(&mut pair, contact(FRONT_KEY, SERVER_KEY, 9));
    for hello in hellos.iter().cycle().take(4000).collect::<Vec<_>>().chunks(40) {
        hello.iter().for_each(|hello| pair.network.deliver((*hello).clone()));
        carry(&mut pair, Duration::from_micros(50), |frame| {
            count(&frame);
            if frame.from == SERVER && frame.to != CLIENT { vec![] } else { vec![frame] }
        });
    }
    carry(&mut pair, A_WHILE, |frame| vec![frame]);
    assert!(matches!(pair.client.state(volume), VolumeState::Attached(_)));
    assert_eq!(pair.server.sessions(), 1);
    assert!(tokens > 1000, "{tokens} tokens, {refused} refused");
    // Each stranger that was read is refused for all four sizes of each hello.
    assert!(refused <= 40 * 4 * 5, "{tokens} tokens, {refused} refused");
}
