//! A front-end that sends noise. Alone in its process: it counts descriptors.

mod world;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vhost::vhost_user::message::FrontendReq;
use world::front_end::{FrontEnd, Guest, send_raw};
use world::{Idle, SWIFT, World};

/// How many descriptors the process has, when the number rests: the disk
/// closes its side of a connection a little later than we do ours.
fn open_descriptors() -> usize {
    let count = || std::fs::read_dir("/proc/self/fd").expect("procfs").count();
    let mut seen = count();
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_millis(200) {
        std::thread::sleep(Duration::from_millis(5));
        let now = count();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    seen
}

/// One thing that is sent: bytes, and which descriptors.
type Piece = (Vec<u8>, Vec<usize>);

fn noise() -> impl Strategy<Value = Piece> {
    (vec(any::<u8>(), 1..200), vec(0usize..4, 0..4))
}

/// A message with a valid header and whatever behind it.
fn message() -> impl Strategy<Value = Piece> {
    let word = prop_oneof![
        0u64..4,
        Just(4096),
        Just(4 << 20),
        Just(u64::MAX),
        0x7000_0000_0000u64..0x7000_0000_4000,
        any::<u64>(),
    ];
    let body = vec(word, 0..12);
    let flags = prop_oneof![Just(1u32), Just(9u32)];
    (1u32..45, flags, body, 0usize..8, vec(0usize..4, 0..3), any::<bool>()).prop_map(
        |(request, flags, words, cut, fds, short)| {
            let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            if short {
                body.truncate(body.len().saturating_sub(cut));
            }
            let header = [request, flags, body.len() as u32];
            let header: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
            ([header, body].concat(), fds)
        },
    )
}

fn serves(world: &World) {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        let front_end = FrontEnd::connect(&world.sockets[0]);
        // Turned away as long as the last one is being seen off.
        if front_end.send(FrontendReq::GET_FEATURES, 1, &[], &[]).is_ok()
            && front_end.answer().is_ok_and(|answer| answer.len() == 8)
        {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the disk does not listen any more");
}

/// Whatever comes: no panic, no hang, no descriptor kept.
#[test]
fn noise_neither_stops_the_disk_nor_leaves_descriptors_behind() {
    let world = World::new(1, 4096, SWIFT, Idle::Sleep, |_| ());
    let guest = Guest::new();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).expect("eventfd");
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let null: OwnedFd = File::open("/dev/null").expect("a device").into();
    let fds = [guest.file.as_fd(), event.as_fd(), reader.as_fd(), null.as_fd()];
    serves(&world);
    let before = open_descriptors();

    let session = vec(prop_oneof![1 => noise(), 8 => message()], 1..20);
    let mut runner =
        TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&session, |pieces| {
        let socket = UnixStream::connect(&world.sockets[0]).expect("the disk listens");
        for (bytes, which) in pieces {
            let which: Vec<BorrowedFd<'_>> = which.iter().map(|&fd| fds[fd]).collect();
            if send_raw(&socket, &bytes, &which).is_err() {
                break; // cut off
            }
        }
        drop(socket);
        serves(&world);
        Ok(())
    });
    outcome.expect("the disk lives");

    assert_eq!(open_descriptors(), before);
}
