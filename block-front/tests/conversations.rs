//! What a front-end may rely on, and what it may not bring about: cut-offs,
//! settings that outlive it, memory that changes under its rings.

mod world;

use std::time::Duration;

use block_core::Op;
use vhost::vhost_user::message::FrontendReq as Req;
use world::front_end::*;
use world::{Idle, SWIFT, World};

fn one_disk() -> World {
    World::new(1, 4096, SWIFT, Idle::Sleep, |_| ())
}

fn write_cache(front_end: &FrontEnd) -> u8 {
    let body: Vec<u8> = [32u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    front_end.ask(Req::GET_CONFIG, &[&body[..], &[0]].concat())[12]
}

/// QEMU reads the next answer from a front that has refused its last message
/// and hung up. While anybody kept the socket open, it waited for ever.
#[test]
fn a_front_end_that_is_cut_off_sees_the_end_of_the_stream() {
    let world = one_disk();
    let guest = Guest::new();
    let (front_end, _ring) = ready(&world.sockets[0], &guest, ALL);
    front_end.socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a time-out");
    front_end.send(Req::SET_VRING_NUM, 1, &state(0, 100), &[]).expect("sent");
    assert!(front_end.is_cut_off());
    ready(&world.sockets[0], &Guest::new(), ALL);
}

/// A guest that has turned its write cache off does not flush. QEMU does not
/// repeat the setting when it connects again, so the disk keeps it.
#[test]
fn a_write_cache_that_was_turned_off_stays_off_when_qemu_comes_back() {
    let world = one_disk();
    for (round, op) in [Op::Write, Op::WriteThrough].into_iter().enumerate() {
        let guest = Guest::new();
        let (front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
        *world.switches.log.lock().expect("log") = Some(Vec::new());
        assert_eq!(write_cache(&front_end), [1, 0][round]);
        ring.offer(ring.prepare(0, OUT, 8, 512));
        ring.wait_used();
        assert_eq!(world.switches.log.lock().expect("log").take(), Some(vec![(op, 8, 1)]));
        let off: Vec<u8> = [32u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        front_end.order(Req::SET_CONFIG, &[&off[..], &[0]].concat(), &[]);
    }
}
