//! What implementers of vhost-user-blk fall into, each with its story.

mod world;

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use block_core::Op;
use vhost::vhost_user::message::FrontendReq as Req;
use world::front_end::*;
use world::{Idle, SWIFT, World};

const SECTORS: u64 = 4096;

fn one_disk() -> World {
    World::new(1, SECTORS, SWIFT, Idle::Sleep, |_| ())
}

/// Rings start disabled only if SET_FEATURES carries bit 30.
#[test]
fn rings_start_disabled_only_with_protocol_features() {
    let world = one_disk();
    let guest = Guest::new();
    for (features, starts) in [(ALL & !PROTOCOL, true), (ALL, false)] {
        let front_end = FrontEnd::connect(&world.sockets[0]);
        // The acknowledgement that the tests ask for needs no feature.
        front_end.agree(features);
        front_end.share(&guest);
        let mut ring = Ring::new(&guest, 0);
        ring.set_used_index(0);
        ring.set_available_index(0);
        ring.start(&front_end);
        ring.offer(ring.prepare(0, IN, 0, 512));
        settle();
        assert_eq!(ring.take_used().is_some(), starts, "{features:#x}");
        if !starts {
            ring.enable(&front_end, true);
            assert_eq!(ring.wait_used().0, 0);
            ring.enable(&front_end, false);
            ring.offer(ring.prepare(1, IN, 0, 512));
            settle();
            assert_eq!(ring.take_used(), None, "a ring that is disabled again is left alone");
        }
        drop(front_end);
    }
}

/// What was made available before the ring started gets no kick: QEMU resumed
/// a guest whose requests were already there.
#[test]
fn a_ring_is_looked_at_once_before_any_kick() {
    let world = one_disk();
    let guest = Guest::new();
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(ALL);
    front_end.share(&guest);
    let mut ring = Ring::new(&guest, 0);
    ring.offer_silently(ring.prepare(0, IN, 0, 512));
    // The base is what the disk had taken: nothing.
    ring.available = 0;
    ring.start(&front_end);
    ring.enable(&front_end, true);
    assert_eq!(ring.wait_used().0, 0);
}

/// SET_VRING_BASE gives the available index; the used index is in memory, and
/// is another one when requests ended out of order or the ring was resumed.
#[test]
fn the_base_is_the_available_index_and_the_used_index_is_in_memory() {
    let world = one_disk();
    let guest = Guest::new();
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(ALL);
    front_end.share(&guest);
    let mut ring = Ring::new(&guest, 0);
    (ring.available, ring.used) = (u16::MAX - 1, 7);
    ring.set_available_index(ring.available);
    ring.set_used_index(7);
    ring.start(&front_end);
    ring.enable(&front_end, true);
    for number in 0..4 {
        ring.offer(ring.prepare(number, IN, 0, 512));
        assert_eq!(ring.wait_used(), (3 * u32::from(number), 513));
    }
    assert_eq!(ring.used_index(), 11);
    assert_eq!(ring.stop(&front_end), 2, "four after 65534");
    ring.offer(ring.prepare(0, IN, 0, 512));
    settle();
    assert_eq!(ring.take_used(), None, "a stopped ring is left alone");
    ring.available = 2;
    ring.start(&front_end);
    assert_eq!(ring.wait_used().0, 0, "and goes on where it stopped");
}

/// A request of an old memory table ends in the old mapping, though the
/// front-end has replaced it.
#[test]
fn an_old_mapping_lives_until_its_requests_have_ended() {
    let world = one_disk();
    let (old, new) = (Guest::new(), Guest::new());
    let (front_end, mut ring) = ready(&world.sockets[0], &old, ALL);
    old.put(DATA, &[7; 512]);
    ring.offer(ring.prepare(0, OUT, 0, 512));
    ring.wait_used();
    world.switches.stalled.store(true, Ordering::Relaxed);
    ring.offer(ring.prepare(1, IN, 0, 512));
    settle();
    // Rings are in the table as well: they move to the new memory.
    new.put(ring.table(), &old.get(ring.table(), 0x3000));
    front_end.share(&new);
    world.switches.stalled.store(false, Ordering::Relaxed);
    let mut moved = Ring::new(&new, 0);
    (moved.available, moved.used) = (ring.available, ring.used);
    assert_eq!(moved.wait_used().0, 3);
    assert_eq!(old.get(DATA + 0x1000, 512), [7; 512], "the data came to where it was asked to");
    assert_eq!(new.get(DATA + 0x1000, 512), [0; 512]);
    // And back and forth, with nothing under way.
    for _ in 0..600 {
        front_end.share(&old);
        front_end.share(&new);
    }
    moved.kick = ring.kick;
    moved.offer(moved.prepare(2, IN, 0, 512));
    assert_eq!(moved.wait_used().0, 6);
    assert_eq!(new.get(DATA + 0x2000, 512), [7; 512]);
}

/// QEMU's default queue count is the number of virtual CPUs, and it does not
/// start with a device that has fewer.
#[test]
fn there_are_queues_for_64_cpus() {
    let world = one_disk();
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(ALL);
    assert_eq!(front_end.number(Req::GET_QUEUE_NUM), 64);
    assert_eq!(front_end.number(Req::GET_MAX_MEM_SLOTS), 32);
    assert!(!front_end.tell(Req::SET_VRING_NUM, &state(64, 128), &[]));
    assert!(!front_end.tell(Req::SET_VRING_NUM, &state(0, 100), &[]), "no power of two");
    assert!(!front_end.tell(Req::SET_VRING_NUM, &state(0, 2048), &[]), "too large");
    assert!(front_end.tell(Req::SET_VRING_NUM, &state(63, 128), &[]));
}

fn config(front_end: &FrontEnd, offset: u32, size: u32) -> Vec<u8> {
    let mut body: Vec<u8> = [offset, size, 0].iter().flat_map(|w| w.to_ne_bytes()).collect();
    body.resize(12 + size as usize, 0);
    front_end.ask(Req::GET_CONFIG, &body)
}

fn set_config(front_end: &FrontEnd, offset: u32, bytes: &[u8]) -> bool {
    let head = [offset, bytes.len() as u32, 0];
    let mut body: Vec<u8> = head.iter().flat_map(|w| w.to_ne_bytes()).collect();
    body.extend_from_slice(bytes);
    front_end.tell(Req::SET_CONFIG, &body, &[])
}

/// QEMU takes an answer of another length as a broken device, also when its
/// configuration structure is newer, and longer, than ours.
#[test]
fn a_configuration_answer_has_the_length_that_was_asked_for() {
    let world = one_disk();
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(ALL);
    for (offset, size) in [(0, 60), (0, 96), (0, 1), (24, 8), (0, 256), (255, 1)] {
        let answer = config(&front_end, offset, size);
        assert_eq!(answer.len(), 12 + size as usize);
        assert_eq!(answer[4..8], size.to_ne_bytes());
    }
    assert_eq!(config(&front_end, 0, 8)[12..], SECTORS.to_le_bytes());
    assert_eq!(config(&front_end, 12, 4)[12..], 126u32.to_le_bytes());
    // An empty answer says that there is no such configuration.
    for (offset, size) in [(0, 257), (256, 1), (u32::MAX, 1)] {
        assert!(config(&front_end, offset, size).is_empty(), "{offset} {size}");
    }
}

/// SET_CONFIG is only `wce`. With `wce` 0, or without FLUSH, the guest does
/// not flush and every answered write must be durable.
#[test]
fn without_a_write_cache_writes_go_through() {
    let world = one_disk();
    let guest = Guest::new();
    let ops = || world.switches.log.lock().expect("log").replace(Vec::new()).expect("kept");
    let (front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    *world.switches.log.lock().expect("log") = Some(Vec::new());
    for (wce, op) in [(None, Op::Write), (Some(0), Op::WriteThrough), (Some(1), Op::Write)] {
        if let Some(wce) = wce {
            assert!(set_config(&front_end, 32, &[wce]));
            assert_eq!(config(&front_end, 32, 1)[12], wce);
        }
        ring.offer(ring.prepare(0, OUT, 8, 512));
        ring.wait_used();
        assert_eq!(ops(), [(op, 8, 1)]);
    }
    for (offset, bytes) in [(32, &[2][..]), (31, &[0]), (32, &[0, 0]), (0, &[0; 8]), (32, &[])] {
        assert!(!set_config(&front_end, offset, bytes));
    }
    assert_eq!(config(&front_end, 0, 8)[12..], SECTORS.to_le_bytes());

    drop(front_end);
    let (_front_end, mut ring) = {
        guest.put(ring.table(), &[0; 0x3000]);
        ready(&world.sockets[0], &guest, ALL & !FLUSH)
    };
    ring.offer(ring.prepare(0, OUT, 8, 512));
    ring.wait_used();
    assert_eq!(ops(), [(Op::WriteThrough, 8, 1)]);
}

/// Chains are byte streams: header and status in pieces, data beside them.
#[test]
fn a_header_may_be_split_and_the_status_is_the_last_writable_byte() {
    let world = one_disk();
    let guest = Guest::new();
    let (_front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    // 5 bytes of header, then 11 with 512 bytes of data behind them.
    let header = guest.header(0, OUT, 3);
    let bytes = guest.get(header, 16);
    guest.put(DATA, &bytes[..5]);
    guest.put(DATA + 0x100, &[&bytes[5..], &[9; 512][..]].concat());
    guest.put(STATUS, &[0xff]);
    ring.describe_entry(0, (DATA, 5, NEXT, 1));
    ring.describe_entry(1, (DATA + 0x100, 523, NEXT, 2));
    ring.describe_entry(2, (STATUS, 1, WRITE, 0));
    ring.offer(0);
    assert_eq!(ring.wait_used(), (0, 1));
    assert_eq!(guest.status(0), 0);
    // Read it back: 512 bytes and the status in one descriptor, cut in two.
    let header = guest.header(0, IN, 3);
    ring.describe_entry(0, (header, 16, NEXT, 1));
    ring.describe_entry(1, (DATA + 0x1000, 100, NEXT | WRITE, 2));
    ring.describe_entry(2, (DATA + 0x2000, 413, WRITE, 0));
    ring.offer(0);
    assert_eq!(ring.wait_used(), (0, 513));
    assert_eq!(guest.get(DATA + 0x1000, 100), [9; 100]);
    assert_eq!(guest.get(DATA + 0x2000, 413), [&[9; 412][..], &[0]].concat());
}

/// A chain that lies but has a status byte gets an error, and the disk lives.
#[test]
fn chains_that_lie_are_answered_with_an_error() {
    let world = one_disk();
    let guest = Guest::new();
    let (_front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    let header = guest.header(0, IN, 0);
    let far = guest.header(1, IN, u64::MAX / 512 + 1);
    let end = guest.header(2, IN, SECTORS);
    let table = 0x18_0000;
    let good_table: Vec<u8> =
        [(header, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)]
            .into_iter()
            .flat_map(entry)
            .collect();
    guest.put(table, &good_table);
    // Nested: the table's second entry is a table.
    let nested: Vec<u8> =
        [(header, 16, NEXT, 1), (table, 48, INDIRECT | NEXT, 2), (STATUS, 1, WRITE, 0)]
            .into_iter()
            .flat_map(entry)
            .collect();
    guest.put(table + 0x1000, &nested);
    let status: Entry = (STATUS, 1, WRITE, 0);
    let lies: [(&str, [Entry; 4]); 13] = [
        ("length off 512", [(header, 16, NEXT, 1), (DATA, 513, NEXT | WRITE, 2), status, status]),
        ("no data", [(header, 16, NEXT, 2), status, status, status]),
        ("short header", [(header, 15, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), status, status]),
        ("sector overflow", [(far, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), status, status]),
        ("past the end", [(end, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 2), status, status]),
        ("loop", [(header, 16, NEXT, 1), (STATUS, 1, NEXT | WRITE, 1), status, status]),
        ("next outside", [(header, 16, NEXT, 1), (STATUS, 1, NEXT | WRITE, SIZE), status, status]),
        ("no memory", [(header, 16, NEXT, 1), (1 << 40, 512, NEXT | WRITE, 2), status, status]),
        ("wraps", [(header, 16, NEXT, 1), (u64::MAX, 512, NEXT | WRITE, 2), status, status]),
        ("empty", [(header, 16, NEXT, 1), (DATA, 0, NEXT | WRITE, 2), status, status]),
        ("read after write", [(STATUS, 1, NEXT | WRITE, 1), (header, 16, 0, 0), status, status]),
        ("INDIRECT with NEXT", [(table, 48, INDIRECT | NEXT, 1), status, status, status]),
        ("nested", [(table + 0x1000, 48, INDIRECT, 0), status, status, status]),
    ];
    for (lie, chain) in lies {
        guest.put(STATUS, &[0xff]);
        for (index, entry) in chain.into_iter().enumerate() {
            ring.describe_entry(index as u16, entry);
        }
        ring.offer(0);
        assert_eq!(ring.wait_used().0, 0, "{lie}");
        assert_eq!(guest.status(0), 1, "{lie}");
    }
    // The same table without a lie.
    guest.put(STATUS, &[0xff]);
    ring.describe_entry(0, (table, 48, INDIRECT, 0));
    ring.offer(0);
    assert_eq!(ring.wait_used(), (0, 513));
    assert_eq!(guest.status(0), 0);
}

/// Where there is no place for an error, the disk is dropped; the others do
/// not notice, and it comes back for the next front-end.
#[test]
fn a_disk_whose_guest_cannot_be_answered_is_dropped_and_the_others_live() {
    let world = World::new(2, SECTORS, SWIFT, Idle::Sleep, |_| ());
    let others_guest = Guest::new();
    let other = FrontEnd::connect(&world.sockets[1]);
    other.agree(ALL);
    other.share(&others_guest);
    let mut others_ring = Ring::new(&others_guest, 0);
    others_ring.start(&other);
    others_ring.enable(&other, true);

    let no_status = |_: &Guest, ring: &mut Ring<'_>| {
        ring.describe_entry(0, (HEADER, 16, 0, 0));
        ring.offer(0);
    };
    let bad_head = |_: &Guest, ring: &mut Ring<'_>| ring.offer(SIZE);
    let overrun = |_: &Guest, ring: &mut Ring<'_>| {
        // One was taken, so that this is one more than there can be.
        ring.set_available_index(SIZE + 2);
        ring.kick();
    };
    let truncated = |guest: &Guest, ring: &mut Ring<'_>| {
        guest.file.set_len(0).expect("cut");
        ring.kick();
    };
    let truncated_data = |guest: &Guest, ring: &mut Ring<'_>| {
        let head = ring.prepare(0, IN, 0, 512);
        guest.file.set_len(DATA).expect("cut");
        ring.offer(head);
    };
    type Lie<'a> = &'a dyn Fn(&Guest, &mut Ring<'_>);
    let lies: [Lie<'_>; 5] = [&no_status, &bad_head, &overrun, &truncated, &truncated_data];
    for (number, lie) in lies.iter().enumerate() {
        let guest = Guest::new();
        let (front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
        ring.offer(ring.prepare(0, IN, 0, 512));
        ring.wait_used();
        lie(&guest, &mut ring);
        assert!(front_end.is_cut_off(), "lie {number}");
        others_ring.offer(others_ring.prepare(0, IN, 0, 512));
        others_ring.wait_used();
        assert_eq!(others_guest.status(0), 0);
        drop(front_end);
    }
}

/// The last writer's disk is listened on again after its front-end went, and
/// a second one is turned away while the first is there.
#[test]
fn one_front_end_at_a_time_and_another_after_it() {
    let world = one_disk();
    for _ in 0..3 {
        let guest = Guest::new();
        let (front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
        let second = FrontEnd::connect(&world.sockets[0]);
        assert!(second.is_cut_off());
        ring.offer(ring.prepare(0, IN, 0, 512));
        ring.wait_used();
        drop(front_end);
    }
}

/// Discard takes several ranges; a bit that nobody knows is unsupported, and
/// nothing is swept when any range is wrong.
#[test]
fn ranges_are_swept_one_by_one_or_not_at_all() {
    let world = one_disk();
    let guest = Guest::new();
    let (_front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    let mut sweep = |kind: u32, ranges: &[(u64, u32, u32)]| {
        *world.switches.log.lock().expect("log") = Some(Vec::new());
        let list: Vec<u8> = ranges
            .iter()
            .flat_map(|&(at, count, flags)| bytes(&[at, u64::from(count) | u64::from(flags) << 32]))
            .collect();
        let head = ring.prepare(0, OUT, 0, list.len() as u32);
        guest.header(0, kind, 0);
        guest.put(DATA, &list);
        ring.offer(head);
        assert_eq!(ring.wait_used(), (0, 1));
        let log = world.switches.log.lock().expect("log").take().expect("kept");
        (guest.status(0), log)
    };
    let swept = sweep(DISCARD, &[(1, 9, 0), (100, 0, 0), (4090, 6, 0)]);
    assert_eq!(swept, (0, vec![(Op::Discard, 1, 9), (Op::Discard, 4090, 6)]));
    let swept = sweep(WRITE_ZEROES, &[(1, 9, 1), (50, 1, 0)]);
    assert_eq!(swept, (0, vec![(Op::WriteZeroesUnmap, 1, 9), (Op::WriteZeroes, 50, 1)]));
    assert_eq!(sweep(DISCARD, &[(0, 8, 0), (8, 8, 1)]), (2, vec![]));
    assert_eq!(sweep(WRITE_ZEROES, &[(0, 8, 0), (8, 8, 2)]), (2, vec![]));
    assert_eq!(sweep(DISCARD, &[(0, 8, 0), (4090, 7, 0)]), (1, vec![]));
    assert_eq!(sweep(DISCARD, &[(0, 0, 0)]), (0, vec![]));
    assert_eq!(sweep(DISCARD, &[(0, 8, 0); 32]).1.len(), 32);
    assert_eq!(sweep(DISCARD, &[(0, 8, 0); 33]), (1, vec![]));
    assert_eq!(sweep(77, &[(0, 8, 0)]), (2, vec![]));
}

/// GET_ID is at most 20 bytes, without a NUL if it has 20.
#[test]
fn the_serial_number_is_twenty_bytes() {
    let world = World::new(1, SECTORS, SWIFT, Idle::Sleep, |options| {
        options.serial = "12345678901234567890".into();
    });
    let guest = Guest::new();
    let (_front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    for (room, answer) in
        [(20, &b"12345678901234567890\0"[..]), (4, b"1234\0"), (21, b"12345678901234567890\0")]
    {
        guest.put(DATA, &[0; 32]);
        ring.offer(ring.prepare(0, GET_ID, 0, room));
        assert_eq!(ring.wait_used(), (0, room + 1));
        assert_eq!((guest.get(DATA, answer.len()), guest.status(0)), (answer.to_vec(), 0));
    }
}

/// `virtio-queue` calls without looking at NO_INTERRUPT: a client that polls
/// then pays a call per burst.
#[test]
fn a_driver_that_wants_no_call_gets_none() {
    let world = one_disk();
    let guest = Guest::new();
    let (_front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    ring.offer(ring.prepare(0, IN, 0, 512));
    ring.wait_used();
    settle();
    assert_eq!(ring.calls(), 1);
    ring.set_flags(1);
    for _ in 0..5 {
        ring.offer(ring.prepare(0, IN, 0, 512));
        ring.wait_used();
    }
    settle();
    assert_eq!(ring.calls(), 0);
    ring.set_flags(0);
    ring.offer(ring.prepare(0, IN, 0, 512));
    ring.wait_used();
    settle();
    assert_eq!(ring.calls(), 1);
}

/// With event indices a call comes when the index that was named is passed,
/// and a burst costs one.
#[test]
fn calls_come_when_the_named_index_is_passed() {
    let world = one_disk();
    let guest = Guest::new();
    let (_front_end, mut ring) = ready(&world.sockets[0], &guest, ALL | EVENT_IDX);
    ring.set_used_event(u16::MAX);
    ring.offer(ring.prepare(0, IN, 0, 512));
    ring.wait_used();
    settle();
    ring.calls();
    // Behind us: no call. The tenth from here: one call for the burst.
    ring.set_used_event(0);
    ring.offer(ring.prepare(0, IN, 0, 512));
    ring.wait_used();
    settle();
    assert_eq!(ring.calls(), 0);
    ring.set_used_event(11);
    for number in 0..10 {
        let head = ring.prepare(number, IN, 0, 512);
        ring.offer_silently(head);
    }
    ring.kick();
    for _ in 0..10 {
        ring.wait_used();
    }
    settle();
    assert_eq!(ring.calls(), 1);
}

/// Stopping a ring waits for its requests, which end, and answers then.
#[test]
fn a_ring_that_stops_waits_for_its_requests() {
    let world = one_disk();
    let guest = Guest::new();
    let (front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    world.switches.stalled.store(true, Ordering::Relaxed);
    for number in 0..8 {
        ring.offer(ring.prepare(number, IN, 0, 512));
    }
    settle();
    front_end.send(Req::GET_VRING_BASE, 1, &state(0, 0), &[]).expect("sent");
    settle();
    // What comes now is for whoever starts the ring again.
    ring.offer(ring.prepare(8, IN, 0, 512));
    settle();
    assert_eq!(ring.take_used(), None);
    world.switches.stalled.store(false, Ordering::Relaxed);
    assert_eq!(front_end.answer().expect("answered"), state(0, 8));
    for number in 0..8 {
        assert!(ring.take_used().is_some(), "all are back when the answer is");
        assert_eq!(guest.status(number), 0);
    }
}

/// With the server away a guest can still be shut down: after ten seconds
/// what is left fails, and the other rings wait no ten seconds more.
#[test]
fn a_ring_that_stops_fails_what_the_server_does_not_answer_in_ten_seconds() {
    let world = one_disk();
    let guest = Guest::new();
    let (front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    let mut second = Ring::new(&guest, 1);
    second.start(&front_end);
    second.enable(&front_end, true);
    world.switches.stalled.store(true, Ordering::Relaxed);
    // More than the path takes: the last stay in the ring or half offered.
    for number in 0..30 {
        ring.offer_silently(ring.prepare(number, IN, 0, 128 << 10));
        ring.offer_silently(ring.prepare(number, IN, 0, 128 << 10));
        ring.offer_silently(ring.prepare(number, IN, 0, 128 << 10));
    }
    ring.kick();
    settle();
    front_end.send(Req::GET_VRING_BASE, 1, &state(0, 0), &[]).expect("sent");
    settle();
    world.switches.ahead.store(9_000_000_000, Ordering::Relaxed);
    settle();
    assert_eq!(ring.take_used(), None, "nine seconds are not ten");
    world.switches.ahead.store(10_500_000_000, Ordering::Relaxed);
    let base = front_end.answer().expect("answered")[4];
    assert!(base >= 64, "what the path had taken has ended");
    for _ in 0..base {
        assert!(ring.take_used().is_some());
    }
    assert_eq!(guest.status(0), 1);
    // The second ring has requests too, and stops at once.
    second.offer(second.prepare(0, IN, 0, 512));
    settle();
    let begin = Instant::now();
    assert_eq!(second.stop(&front_end), 1);
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(second.wait_used().0, 0);
    // The server is back, and so is the disk.
    world.switches.stalled.store(false, Ordering::Relaxed);
    second.start(&front_end);
    second.offer(second.prepare(0, IN, 0, 512));
    second.wait_used();
    assert_eq!(guest.status(0), 0);
}

/// QEMU was killed with requests under way: they end before the next QEMU is
/// let in, whose writes they could otherwise overtake.
#[test]
fn a_front_end_that_goes_is_followed_after_its_requests_have_ended() {
    let world = one_disk();
    let guest = Guest::new();
    let (front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    world.switches.stalled.store(true, Ordering::Relaxed);
    guest.put(DATA, &[3; 512]);
    ring.offer(ring.prepare(0, OUT, 0, 512));
    settle();
    drop(front_end);
    let next = FrontEnd::connect(&world.sockets[0]);
    next.send(Req::GET_FEATURES, 1, &[], &[]).expect("sent");
    next.socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
    assert!(next.answer().is_err(), "nobody listens yet");
    next.socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    world.switches.stalled.store(false, Ordering::Relaxed);
    assert_eq!(next.answer().expect("answered").len(), 8);
    drop(next);
    assert_eq!(world.end()[0][..512], [3; 512]);
}

/// The guest hears of a resize over the back channel and reads the new size.
#[test]
fn a_resized_volume_is_announced() {
    let world = one_disk();
    let guest = Guest::new();
    let (front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    front_end.order(Req::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
    ours.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    world.ask(|front| front.resized(0, 1000));
    let mut notice = [0; 12];
    std::io::Read::read_exact(&mut &ours, &mut notice).expect("a notice");
    assert_eq!(notice.map(u32::from), [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "CONFIG_CHANGE_MSG");
    assert_eq!(config(&front_end, 0, 8)[12..], 1000u64.to_le_bytes());
    for (sector, status) in [(999, 0), (1000, 1)] {
        ring.offer(ring.prepare(0, IN, sector, 512));
        ring.wait_used();
        assert_eq!(guest.status(0), status);
    }
}

/// A medium error reaches the guest as an error of that request alone, also
/// when the request was cut into parts.
#[test]
fn an_error_of_a_part_is_an_error_of_the_request() {
    let world = one_disk();
    let guest = Guest::new();
    let (_front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    for (failing, status) in [(false, 0), (true, 1), (false, 0)] {
        world.switches.failing.store(failing, Ordering::Relaxed);
        for sectors in [1, 1000] {
            ring.offer(ring.prepare(0, IN, 1, sectors * 512));
            assert_eq!(ring.wait_used(), (0, sectors * 512 + 1));
            assert_eq!(guest.status(0), status);
        }
    }
}

/// Without share=on QEMU has no descriptors to send, or sends those of a file
/// that the guest's writes never reach. The ring would be zeroes for ever.
#[test]
fn memory_that_is_not_shared_is_refused() {
    let world = one_disk();
    let guest = Guest::new();
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(ALL);
    let region = [0, MEMORY as u64, USER, 0];
    let table = [&[1][..], &region].concat();
    let single = [&[0][..], &region].concat();
    assert!(!front_end.tell(Req::SET_MEM_TABLE, &bytes(&table), &[]));
    assert!(!front_end.tell(Req::ADD_MEM_REG, &bytes(&single), &[]));
    let private = world::sys::map_privately(&guest.file, MEMORY);
    for user in [private.as_ptr().addr() as u64, private.as_ptr().addr() as u64 + 4096] {
        let region = bytes(&[0, 0, MEMORY as u64 - 4096, user, 0]);
        assert!(!front_end.tell(Req::ADD_MEM_REG, &region, &[guest.file.as_fd()]));
    }
    // A region that the file does not have.
    let long = bytes(&[0, 0, MEMORY as u64 + 1, USER, 0]);
    assert!(!front_end.tell(Req::ADD_MEM_REG, &long, &[guest.file.as_fd()]));
    front_end.order(Req::ADD_MEM_REG, &bytes(&single), &[guest.file.as_fd()]);
    assert!(!front_end.tell(Req::ADD_MEM_REG, &bytes(&single), &[guest.file.as_fd()]), "twice");
    front_end.order(Req::REM_MEM_REG, &bytes(&single), &[]);
    assert!(!front_end.tell(Req::REM_MEM_REG, &bytes(&single), &[]), "it has gone");
}

/// QEMU cuts memory anew while the device runs: it removes a region and then
/// adds a larger one in its place. Requests go on in between.
#[test]
fn requests_do_not_fall_into_the_gap_between_remove_and_add() {
    let world = one_disk();
    let guest = Guest::new();
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(ALL);
    let small = bytes(&[0, 0, MEMORY as u64 / 2 + 0x10_0000, USER, 0]);
    let large = bytes(&[0, 0, MEMORY as u64, USER, 0]);
    front_end.order(Req::ADD_MEM_REG, &small, &[guest.file.as_fd()]);
    let mut ring = Ring::new(&guest, 0);
    ring.start(&front_end);
    ring.enable(&front_end, true);
    let mut request = |sector| {
        guest.put(STATUS, &[0xff]);
        ring.offer(ring.prepare(0, IN, sector, 512));
        ring.wait_used();
        assert_eq!(guest.status(0), 0);
    };
    for (old, new) in [(&small, &large), (&large, &small)] {
        request(0);
        front_end.order(Req::REM_MEM_REG, old, &[]);
        request(1);
        assert!(!front_end.tell(Req::REM_MEM_REG, old, &[]), "it has gone for the front-end");
        front_end.order(Req::ADD_MEM_REG, new, &[guest.file.as_fd()]);
        request(2);
    }
    front_end.order(Req::REM_MEM_REG, &small, &[]);
    request(3);
    ring.stop(&front_end);
    // Now it has gone altogether.
    let index = bytes(&[0]);
    assert!(!front_end.tell(Req::SET_VRING_KICK, &index, &[ring.kick.as_fd()]));
}

/// What cannot be started is refused and leaves the rest as it was.
#[test]
fn a_ring_starts_only_when_all_of_it_is_there() {
    let world = one_disk();
    let guest = Guest::new();
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(ALL);
    let mut ring = Ring::new(&guest, 0);
    let index = bytes(&[0]);
    let kick = |fds: &[_]| front_end.tell(Req::SET_VRING_KICK, &index, fds);
    assert!(!kick(&[ring.kick.as_fd()]), "no size, no addresses");
    ring.describe(&front_end);
    assert!(!kick(&[ring.kick.as_fd()]), "no memory");
    front_end.share(&guest);
    assert!(!kick(&[]), "no descriptor");
    assert!(!front_end.tell(Req::SET_VRING_KICK, &bytes(&[0x100]), &[]), "polling");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    assert!(!kick(&[reader.as_fd()]), "no eventfd");
    assert!(!front_end.tell(Req::SET_VRING_CALL, &index, &[writer.as_fd()]), "no eventfd");
    for (place, offset) in [(1, 8), (2, 2), (3, 1), (1, MEMORY as u64), (2, MEMORY as u64 - 0x2000)]
    {
        let mut words = [0, USER + 0x1000, USER + 0x3000, USER + 0x2000, 0];
        words[place] += offset;
        front_end.order(Req::SET_VRING_ADDR, &bytes(&words), &[]);
        assert!(!kick(&[ring.kick.as_fd()]), "part {place} moved by {offset:#x}");
    }
    ring.start(&front_end);
    ring.enable(&front_end, true);
    assert!(!front_end.tell(Req::SET_VRING_NUM, &state(0, 64), &[]), "it runs");
    assert!(!front_end.tell(Req::SET_VRING_BASE, &state(0, 0), &[]), "it runs");
    front_end.order(Req::SET_VRING_ADDR, &ring.addresses(), &[]);
    assert!(!front_end.tell(Req::SET_FEATURES, &bytes(&[1 << 34]), &[]), "packed rings");
    // MSI-X masking: QEMU changes the call descriptor of a running ring.
    let new = Ring::new(&guest, 0);
    front_end.order(Req::SET_VRING_CALL, &index, &[new.call.as_fd()]);
    settle();
    assert_eq!(new.calls(), 1, "a call that went to the old one is made up for");
    ring.offer(ring.prepare(0, IN, 0, 512));
    ring.wait_used();
    settle();
    assert_eq!((ring.calls(), new.calls()), (0, 1));
    front_end.order(Req::SET_VRING_CALL, &bytes(&[0x100]), &[]);
    ring.offer(ring.prepare(0, IN, 0, 512));
    ring.wait_used();
    // And the kick descriptor.
    front_end.order(Req::SET_VRING_KICK, &index, &[new.kick.as_fd()]);
    ring.offer_silently(ring.prepare(0, IN, 0, 512));
    new.kick();
    ring.wait_used();
}

/// Two fronts on one socket: the second must not take it away.
#[test]
fn a_busy_socket_is_refused_and_a_dead_one_replaced() {
    use block_front::{DiskOptions, Front};
    let world = one_disk();
    let again = |socket: &std::path::Path| {
        let disk = DiskOptions::new("again", socket, link::VolumeHandle(0), 8);
        Front::new(vec![disk.check().expect("valid")])
    };
    let sentence = again(&world.sockets[0]).expect_err("busy").to_string();
    assert!(sentence.contains("in use by another process"), "{sentence}");
    let directory = tempfile::tempdir().expect("a directory");
    let dead = directory.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("bound"));
    drop(again(&dead).expect("replaced"));
    let file = directory.path().join("file");
    std::fs::write(&file, "precious").expect("written");
    let sentence = again(&file).expect_err("a file").to_string();
    assert!(sentence.contains("is no socket"), "{sentence}");
    let nowhere = directory.path().join("nowhere/a.sock");
    let sentence = again(&nowhere).expect_err("no directory").to_string();
    assert!(sentence.contains("check that its directory exists"), "{sentence}");
}
