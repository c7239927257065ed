//! Where a wake-up gets lost: each of these was a guest that waited for ever.

mod world;

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::FrontendReq as Req;
use world::front_end::*;
use world::{Idle, Manners, SWIFT, World};

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

/// A machine has hundreds of rings, most of them quiet. A ring whose request
/// found no room in the path looks quiet as well: it is offered as soon as
/// there is room, for nothing else would end the sleep.
#[test]
fn a_request_that_waits_for_room_is_not_taken_for_quiet() {
    const DISKS: usize = 4;
    const QUEUES: u32 = 64;
    let one_at_a_time = Manners { slots: 1, ..SWIFT };
    let world = World::new(DISKS, 4096, one_at_a_time, Idle::SleepDeeply, |_| ());
    let guests: Vec<_> = (0..DISKS).map(|_| Guest::new()).collect();
    let mut front_ends = Vec::new();
    let mut rings = Vec::new();
    for (guest, socket) in guests.iter().zip(&world.sockets) {
        let front_end = FrontEnd::connect(socket);
        front_end.agree(ALL);
        front_end.share(guest);
        for index in 0..QUEUES {
            let ring = Ring::new(guest, index);
            ring.start(&front_end);
            ring.enable(&front_end, true);
            rings.push(ring);
        }
        front_ends.push(front_end);
    }
    let (first, second) = rings.split_at_mut(1);
    for _ in 0..4 {
        world.switches.stalled.store(true, Ordering::Relaxed);
        first[0].offer(first[0].prepare(0, IN, 0, 512));
        settle();
        second[0].offer(second[0].prepare(1, IN, 0, 512));
        settle();
        world.switches.stalled.store(false, Ordering::Relaxed);
        let begin = Instant::now();
        // As an answer from the network would.
        first[0].kick();
        first[0].wait_used();
        second[0].wait_used();
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    }
}
