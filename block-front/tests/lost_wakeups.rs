//! Where a wake-up gets lost: each of these was a guest that waited for ever.

mod world;

use std::os::fd::AsFd;

use vhost::vhost_user::message::FrontendReq as Req;
use world::front_end::*;
use world::{Idle, SWIFT, World};

/// QEMU masks an interrupt by giving the ring another call descriptor. A call
/// that went to the old one is made up for, but only once the worker calls the
/// new one: the guest that looked at its ring before saw nothing, and with
/// event indices it is not called again for what was published in between.
#[test]
fn a_lost_call_is_made_up_for_after_the_worker_has_the_new_descriptor() {
    let world = World::new(1, 4096, SWIFT, Idle::Sleep, |_| ());
    let guest = Guest::new();
    let (front_end, _ring) = ready(&world.sockets[0], &guest, ALL | EVENT_IDX);
    let new = Ring::new(&guest, 0);
    let held = world.hold();
    front_end.order(Req::SET_VRING_CALL, &bytes(&[0]), &[new.call.as_fd()]);
    assert_eq!(new.calls(), 0, "the worker still calls the old one");
    drop(held);
    settle();
    assert_eq!(new.calls(), 1);
}
