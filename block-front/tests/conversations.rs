//! What a front-end may rely on, and what it may not bring about: cut-offs,
//! settings that outlive it, memory that changes under its rings.

mod world;

use std::time::Duration;

use vhost::vhost_user::message::FrontendReq as Req;
use world::front_end::*;
use world::{Idle, SWIFT, World};

fn one_disk() -> World {
    World::new(1, 4096, SWIFT, Idle::Sleep, |_| ())
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
