//! The path allocates nothing per request. Alone in its process: it replaces
//! the allocator.

mod world;

use std::sync::mpsc::channel;

use allocations::{Counting, of_this_thread};
use world::front_end::*;
use world::{Idle, RUDE, SWIFT, World};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of the front's thread so far.
fn allocations(world: &World) -> u64 {
    let (sender, receiver) = channel();
    world.ask(move |_| {
        sender.send(of_this_thread()).expect("awaited");
    });
    receiver.recv().expect("the thread lives")
}

fn exercise(world: &World, features: u64) {
    let guest = Guest::new();
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(features);
    assert!(front_end.set_area(&front_end.area(1, SIZE)));
    front_end.share(&guest);
    let mut ring = Ring::new(&guest, 0);
    ring.start(&front_end);
    ring.enable(&front_end, true);
    let table = 0x18_0000;
    let round = |ring: &mut Ring<'_>| {
        // Small, large and cut, wrong, without data, in a table of their own.
        for (number, (kind, len)) in [
            (IN, 4096),
            (OUT, 4096),
            (IN, 700 << 10),
            (OUT, 700 << 10),
            (IN, 513),
            (4, 16),
            (8, 20),
        ]
        .into_iter()
        .enumerate()
        {
            let head = ring.prepare(number as u16, kind, 8, len);
            ring.offer(head);
        }
        guest.put(DATA + 0x8000, &bytes(&[0, 8, 16, 8]));
        ring.offer(ring.prepare(8, DISCARD, 0, 32));
        let header = guest.header(9, IN, 0);
        let chain =
            [(header, 16, NEXT, 1), (DATA, 4096, NEXT | WRITE, 2), (STATUS + 9, 1, WRITE, 0)];
        guest.put(table, &chain.into_iter().flat_map(entry).collect::<Vec<u8>>());
        ring.describe_entry(27, (table, 48, INDIRECT, 0));
        ring.offer(27);
        for _ in 0..9 {
            ring.wait_used();
        }
    };
    for _ in 0..10 {
        round(&mut ring);
    }
    let before = allocations(world);
    let between = allocations(world);
    for _ in 0..100 {
        round(&mut ring);
    }
    let after = allocations(world);
    assert_eq!(after - between, between - before, "900 requests allocate as much as none");
}

#[test]
fn a_request_allocates_nothing() {
    for manners in [SWIFT, RUDE] {
        for idle in [Idle::Yield, Idle::Sleep] {
            let world = World::new(1, 4096, manners, idle, |_| ());
            exercise(&world, VERSION_1 | PROTOCOL | FLUSH | INDIRECT_DESC);
            exercise(&world, VERSION_1 | PROTOCOL | FLUSH | INDIRECT_DESC | EVENT_IDX);
        }
    }
}
