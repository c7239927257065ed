use std::io;
use std::os::fd::BorrowedFd;

use super::*;
use crate::frame::{HEADER_BYTES, KEY_PHASE};
use crate::wire::memory::Port;
use zeroize::Zeroizing;

/// A wire that keeps what is sent.
#[derive(Default)]
struct Kept(Vec<Vec<u8>>);

impl Wire for Kept {
    type Peer = Port;

    fn receive(&mut self, _: &mut dyn FnMut(&Port, &mut [u8])) -> io::Result<usize> {
        Ok(0)
    }

    fn send(&mut self, _: &Port, header: &[u8; HEADER_BYTES], payload: &[u8]) {
        self.0.push([header, payload].concat());
    }

    fn flush(&mut self) {}

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn window(&self) -> u32 {
        0
    }
}

fn pair(frames_per_key: u64) -> (Guard, Guard) {
    let secrets = |one, two| Secrets {
        to_server: Zeroizing::new([one; 32]),
        to_front: Zeroizing::new([two; 32]),
    };
    (Guard::front(secrets(1, 2), frames_per_key), Guard::server(secrets(1, 2)))
}

/// The next frame of an end.
fn sent(guard: &mut Guard, payload: &[u8]) -> Vec<u8> {
    let mut wire = Kept::default();
    guard.send(
        &mut wire,
        &Port(1),
        &Header { number: 7, ..Header::default() },
        Kind::Probe,
        payload,
    );
    wire.0.pop().expect("it was sent")
}

/// What another end makes of it.
fn heard(guard: &mut Guard, now: Time, frame: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = frame.to_vec();
    let arrived = Arrived::parse(&mut bytes).ok()?;
    guard.open(now, arrived).map(|frame| frame.payload.to_vec())
}

const NOW: Time = Time::ZERO;

#[test]
fn a_frame_is_read_by_its_receiver_once_and_by_nobody_else() {
    let (mut front, mut server) = pair(1000);
    let frame = sent(&mut front, b"the guest's data");
    assert!(!frame.windows(5).any(|bytes| bytes == b"guest"), "it cannot be read on its way");
    assert_eq!(heard(&mut front, NOW, &frame), None, "reflected");
    assert_eq!(heard(&mut server, NOW, &frame).as_deref(), Some(&b"the guest's data"[..]));
    assert_eq!(heard(&mut server, NOW, &frame), None, "replayed");
    let (mut other, _) = pair(1000);
    assert_eq!(heard(&mut other, NOW, &sent(&mut server, &[])), Some(vec![]), "the same secrets");
    let secrets = Secrets { to_server: Zeroizing::new([3; 32]), to_front: Zeroizing::new([4; 32]) };
    assert_eq!(heard(&mut Guard::server(secrets), NOW, &frame), None, "another session's");
}

/// A bit of header, tag or payload that was changed on the way, or bytes that
/// were cut off: nothing of it is believed, and the frame itself still is.
#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let (mut front, mut server) = pair(1000);
    let frame = sent(&mut front, &[0x5a; 40]);
    for bit in 0..frame.len() * 8 {
        let mut bent = frame.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(heard(&mut server, NOW, &bent), None, "bit {bit}");
    }
    for len in 0..frame.len() {
        assert_eq!(heard(&mut server, NOW, &frame[..len]), None, "{len} bytes");
    }
    assert!(heard(&mut server, NOW, &frame).is_some());
}

#[test]
fn the_clear_and_the_sealed_are_never_mixed() {
    let (mut front, mut server) = pair(1000);
    let mut plain = Guard::CLEAR;
    let (sealed, clear) = (sent(&mut front, b"x"), sent(&mut plain, b"x"));
    assert_eq!(heard(&mut server, NOW, &clear), None);
    assert_eq!(heard(&mut plain, NOW, &sealed), None);
    assert_eq!(heard(&mut plain, NOW, &clear).as_deref(), Some(&b"x"[..]));
}

/// Frames overtake each other by up to the window, and all are believed; an
/// older one is not even opened.
#[test]
fn what_is_late_is_believed_within_the_window() {
    let (mut front, mut server) = pair(1 << 20);
    let frames: Vec<_> = (0..5000_u64).map(|_| sent(&mut front, &[])).collect();
    assert!(heard(&mut server, NOW, &frames[4999]).is_some());
    let believed = (0..4999).filter(|at| heard(&mut server, NOW, &frames[*at]).is_some());
    assert_eq!(believed.count() as u64, window::WINDOW_FRAMES - 1);
}

/// Keys change, the server follows, and late frames of the phase before are
/// believed for three of the longest round trips.
#[test]
fn keys_change_and_the_old_ones_end() {
    let (mut front, mut server) = pair(3);
    let mut frames: Vec<_> = (0..3).map(|_| sent(&mut front, b"a")).collect();
    assert!(heard(&mut server, NOW, &frames[0]).is_some());
    let reply = sent(&mut server, &[]);
    assert!(heard(&mut front, NOW, &reply).is_some());
    let next = sent(&mut front, b"b");
    assert_eq!((frames[2][39] & KEY_PHASE, next[39] & KEY_PHASE), (0, 1));
    assert!(heard(&mut server, NOW, &next).is_some());
    assert_eq!(sent(&mut server, &[])[39] & KEY_PHASE, 1, "the server follows");
    assert!(heard(&mut server, NOW, &frames[1]).is_some(), "late, and still good");
    let too_late = NOW + opener::OLD_PHASE + std::time::Duration::from_nanos(1);
    assert!(heard(&mut server, too_late, &frames.remove(2)).is_none(), "too late");
    assert!(heard(&mut server, too_late, &sent(&mut front, b"c")).is_some());
}

/// The front never goes two phases ahead: a server that heard nothing of one
/// would understand nothing any more. However much is lost, both find each
/// other again.
#[test]
fn loss_never_parts_the_phases() {
    let (mut front, mut server) = pair(5);
    for round in 0..200_u64 {
        // Long losses in one direction, in the other, in both, then none.
        let (lost_there, lost_back) = (round % 4 == 0 || round % 4 == 2, round % 4 > 0);
        for step in 0..23 {
            let frame = sent(&mut front, &[]);
            if step == 22 || !lost_there {
                assert!(heard(&mut server, NOW, &frame).is_some(), "{round} {step}");
            }
            let frame = sent(&mut server, &[]);
            if step == 22 || !lost_back {
                assert!(heard(&mut front, NOW, &frame).is_some(), "{round} {step}");
            }
        }
    }
    let Guard::Sealed(seals) = front else { panic!("it is sealed") };
    assert!(seals.sealer.phase() > 100);
}

/// What the server sends makes keys change too.
#[test]
fn a_front_that_only_listens_changes_keys() {
    let (mut front, mut server) = pair(50);
    for _ in 0..400 {
        let frame = sent(&mut server, &[]);
        assert!(heard(&mut front, NOW, &frame).is_some());
    }
    assert_eq!(sent(&mut front, &[])[39] & KEY_PHASE, 1);
}

/// A key that has sealed all that it may seals nothing more, though the session
/// dies of it.
#[test]
fn a_key_that_is_used_up_seals_nothing() {
    let (mut front, _) = pair(1 << 40);
    let Guard::Sealed(seals) = &mut front else { panic!("it is sealed") };
    seals.sealer.allow(2);
    let mut wire = Kept::default();
    for _ in 0..4 {
        front.send(&mut wire, &Port(1), &Header::default(), Kind::Probe, &[]);
    }
    assert_eq!(wire.0.len(), 2);
}
