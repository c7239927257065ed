//! A front that ends with requests under way, and the next one, which finds
//! them in the front-end's in-flight area.

mod world;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use block_core::Op;
use block_front::{Breach, DiskOptions};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::FrontendReq as Req;
use world::front_end::*;
use world::{Idle, SWIFT, World};

type Area = (Vec<u8>, OwnedFd);

fn one_disk() -> World {
    World::new(1, 4096, SWIFT, Idle::Sleep, |_| ())
}

/// Connects as QEMU does after a disconnection: the area as it was, the ring
/// from where the used index is.
fn resume<'a>(
    world: &World,
    guest: &'a Guest,
    area: &Area,
    old: &Ring<'_>,
) -> (FrontEnd, Ring<'a>) {
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(ALL);
    assert!(front_end.set_area(area));
    front_end.share(guest);
    let mut ring = Ring::new(guest, 0);
    ring.available = ring.used_index();
    ring.start(&front_end);
    (ring.available, ring.used) = (old.available, old.used);
    ring.enable(&front_end, true);
    (front_end, ring)
}

/// A connection with an area, and ring 0 running.
fn begin<'a>(world: &World, guest: &'a Guest) -> (FrontEnd, Ring<'a>, Area) {
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(ALL);
    let area = front_end.area(1, SIZE);
    let ring = Ring::new(guest, 0);
    let (front_end, ring) = {
        drop(front_end);
        resume(world, guest, &area, &ring)
    };
    (front_end, ring, area)
}

/// The first front answers some requests and ends with others under way. QEMU
/// does not know how far it had come: the second one must, or a request is
/// lost, or one that was answered is served again.
#[test]
fn the_next_front_serves_what_the_last_one_left_in_its_order() {
    let guest = Guest::new();
    let first = one_disk();
    let (front_end, mut ring, area) = begin(&first, &guest);
    for number in [4, 1] {
        ring.offer(ring.prepare(number, OUT, u64::from(number), 512));
        ring.wait_used();
    }
    first.switches.stalled.store(true, Ordering::Relaxed);
    *first.switches.log.lock().expect("log") = Some(Vec::new());
    for number in [7, 2, 5] {
        ring.offer(ring.prepare(number, OUT, u64::from(number), 512));
    }
    while first.switches.log.lock().expect("log").as_ref().expect("kept").len() < 3 {
        std::thread::yield_now();
    }
    drop(first);
    drop(front_end);
    // The guest goes on meanwhile.
    ring.offer(ring.prepare(3, OUT, 3, 512));

    let second = one_disk();
    *second.switches.log.lock().expect("log") = Some(Vec::new());
    let (_front_end, mut ring) = resume(&second, &guest, &area, &ring);
    let mut heads: Vec<u32> = (0..4).map(|_| ring.wait_used().0).collect();
    heads.sort_unstable();
    assert_eq!(heads, [6, 9, 15, 21]);
    settle();
    assert_eq!(ring.take_used(), None);
    let log = second.switches.log.lock().expect("log").take().expect("kept");
    assert_eq!(log, [7, 2, 5, 3].map(|sector| (Op::Write, sector, 1)));
    for number in [7, 2, 5, 3] {
        assert_eq!(guest.status(number), 0);
    }
}

/// QEMU stops a guest for a moment: its rings end and begin again in the same
/// front, with the same area.
#[test]
fn a_ring_that_was_stopped_goes_on_where_it_was() {
    let guest = Guest::new();
    let world = one_disk();
    let (front_end, mut ring, area) = begin(&world, &guest);
    for _ in 0..3 {
        ring.offer(ring.prepare(0, OUT, 0, 512));
        ring.wait_used();
        assert_eq!(ring.stop(&front_end), u32::from(ring.available));
        assert!(front_end.set_area(&area));
        ring.start(&front_end);
    }
    ring.offer(ring.prepare(0, OUT, 0, 512));
    ring.wait_used();
    assert!(!front_end.set_area(&area), "not under a ring that runs");
}

/// The area is the front-end's to change. A front that cannot believe it says
/// so, and serves others.
#[test]
fn areas_that_lie_cut_off_their_own_disk() {
    let guest = Guest::new();
    let world = one_disk();
    let (front_end, ring, area) = begin(&world, &guest);
    assert!(ring.stop(&front_end) == 0);
    let memory = vm_memory::MmapRegion::<()>::from_file(
        vm_memory::FileOffset::new(area.1.try_clone().expect("clone").into(), 0),
        4096,
    );
    let memory = memory.expect("map");
    let lie = |at: usize, byte: u8| {
        use vm_memory::{Bytes, VolatileMemory};
        let window = memory.as_volatile_slice();
        let truth: u8 = window.read_obj(at).expect("inside");
        window.write_obj(byte, at).expect("inside");
        assert!(front_end.set_area(&area));
        ring.describe(&front_end);
        let index = bytes(&[0]);
        let started = front_end.tell(Req::SET_VRING_KICK, &index, &[ring.kick.as_fd()]);
        window.write_obj(truth, at).expect("inside");
        !started
    };
    for (at, byte) in [(8, 2), (10, 7), (14, 1), (15, 0x80), (16, 1), (16, 9)] {
        assert!(lie(at, byte), "byte {at} is {byte}");
    }
    // One that was cut down, and one that is too small.
    let file = memfd_create("short", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, 100).expect("set");
    assert!(!front_end.set_area(&(area.0.clone(), file)));
    assert!(!front_end.tell(Req::SET_INFLIGHT_FD, &area.0, &[]));
    ring.start(&front_end);
}

/// The server has lost what an earlier front had answered: a guest that goes
/// on would find older data than it was told of. One that starts anew would
/// not, and from then on the front answers for what it answers itself.
#[test]
fn after_a_loss_only_a_guest_that_starts_anew_is_served() {
    let guest = Guest::new();
    let (ring, area) = {
        let first = one_disk();
        let (_front_end, mut ring, area) = begin(&first, &guest);
        ring.offer(ring.prepare(0, OUT, 0, 512));
        ring.wait_used();
        (ring, area)
    };
    let breach = |disk: &mut DiskOptions| disk.breach = Some(Breach::LostWrites);
    let second = World::new(1, 4096, SWIFT, Idle::Sleep, breach);
    let begun = || {
        let (sender, receiver) = std::sync::mpsc::channel();
        second.ask(move |front| sender.send(front.take_begun()).expect("awaited"));
        receiver.recv().expect("the thread lives")
    };
    for with_area in [true, false] {
        let front_end = FrontEnd::connect(&second.sockets[0]);
        front_end.agree(ALL);
        assert!(!with_area || front_end.set_area(&area));
        front_end.share(&guest);
        ring.describe(&front_end);
        let index = bytes(&[0]);
        assert!(!front_end.tell(Req::SET_VRING_KICK, &index, &[ring.kick.as_fd()]));
    }
    assert_eq!(begun(), None);

    let guest = Guest::new();
    let (front_end, mut ring, area) = begin(&second, &guest);
    assert_eq!(begun(), None, "nothing was asked for yet");
    ring.offer(ring.prepare(0, OUT, 0, 512));
    ring.wait_used();
    assert_eq!(begun(), Some(0));
    assert_eq!(begun(), None);
    drop(front_end);
    let (_front_end, mut ring) = resume(&second, &guest, &area, &ring);
    ring.offer(ring.prepare(0, OUT, 0, 512));
    ring.wait_used();
}
