//! Where a wake-up gets lost: each of these was a guest that waited for ever.

mod world;

use std::os::fd::AsFd;
use std::path::PathBuf;
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

/// Disks whose rings run, so many each.
fn running<'a>(
    world: &World,
    guests: &'a [Guest],
    features: u64,
    queues: u32,
) -> (Vec<FrontEnd>, Vec<Ring<'a>>) {
    let mut rings = Vec::new();
    let start = |(guest, socket): (&'a Guest, &PathBuf)| {
        let front_end = FrontEnd::connect(socket);
        front_end.agree(features);
        front_end.share(guest);
        for index in 0..queues {
            let ring = Ring::new(guest, index);
            ring.start(&front_end);
            ring.enable(&front_end, true);
            rings.push(ring);
        }
        front_end
    };
    (guests.iter().zip(&world.sockets).map(start).collect(), rings)
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
    let (_front_ends, mut rings) = running(&world, &guests, ALL, QUEUES);
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

/// A ring that was quiet for long is not looked at in every turn. Its kick is news of
/// that ring, and nothing else is to be waited for.
#[test]
fn the_kick_of_a_quiet_ring_is_heard() {
    let world = World::new(1, 4096, SWIFT, Idle::SleepDeeply, |_| ());
    let guests = [Guest::new()];
    let (_front_ends, mut rings) = running(&world, &guests, ALL, 64);
    settle();
    for ring in rings.iter_mut().rev() {
        let begin = Instant::now();
        ring.offer(ring.prepare(0, IN, 0, 512));
        ring.wait_used();
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        // Quiet again.
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A front that goes to sleep tells guests to kick and looks at their rings once more.
/// When it finds something in one of them it has not looked at the others yet: it must
/// before it sleeps, for what those guests added before they knew they do not kick for.
#[test]
fn rings_that_are_filled_while_the_front_falls_asleep_are_all_seen() {
    let world = World::new(1, 4096, SWIFT, Idle::SleepDeeply, |_| ());
    let guests = [Guest::new()];
    let (_front_ends, mut rings) = running(&world, &guests, ALL | EVENT_IDX, 32);
    for round in 0..6000 {
        for ring in &mut rings {
            ring.offer_as_asked(ring.prepare(0, IN, 0, 512));
            // Now and then the front gets somewhere in between.
            (0..round % 50).for_each(|_| std::hint::spin_loop());
        }
        let begin = Instant::now();
        for ring in &mut rings {
            ring.wait_used();
            // Time flies: rings become quiet before their guests are told to kick.
            world.switches.ahead.fetch_add(2_000_000, Ordering::Relaxed);
        }
        assert!(begin.elapsed() < Duration::from_secs(1), "round {round}: {:?}", begin.elapsed());
    }
}
