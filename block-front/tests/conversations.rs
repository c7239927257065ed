//! What a front-end may rely on, and what it may not bring about: cut-offs,
//! settings that outlive it, memory that changes under its rings.

mod world;

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Duration;

use block_core::Op;
use rustix::net::{SendFlags, send};
use vhost::vhost_user::message::FrontendReq as Req;
use world::front_end::*;
use world::{Idle, Manners, SWIFT, World};

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

/// QEMU lets the guest use new memory, and takes old memory away, when the
/// table is acknowledged: requests must be looked up in it by then.
#[test]
fn a_memory_table_is_acknowledged_when_the_worker_uses_it() {
    let world = one_disk();
    let guest = Guest::new();
    let (front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    let table = bytes(&[1, 0, MEMORY as u64, USER, 0]);
    let more = bytes(&[0, 1 << 30, 4096, 1 << 40, 0]);
    let messages =
        [(Req::SET_MEM_TABLE, &table), (Req::ADD_MEM_REG, &more), (Req::REM_MEM_REG, &more)];
    for (request, body) in messages {
        let held = world.hold();
        let file = [guest.file.as_fd()];
        let fds = if request == Req::REM_MEM_REG { &file[..0] } else { &file };
        front_end.send(request, 0b1001, body, fds).expect("sent");
        front_end.socket.set_nonblocking(true).expect("set");
        settle();
        assert!(front_end.answer().is_err(), "{request:?}: the worker cannot know yet");
        front_end.socket.set_nonblocking(false).expect("set");
        drop(held);
        assert_eq!(front_end.answer().expect("answered"), bytes(&[0]));
    }
    ring.offer(ring.prepare(0, IN, 0, 512));
    ring.wait_used();
}

/// A front that ends takes no more mail: a conversation that waits for the
/// worker to take a table must not keep it from ending.
#[test]
fn a_front_ends_while_a_memory_table_waits_for_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("disk.sock");
    let disk = block_front::DiskOptions::new("disk", &socket, link::VolumeHandle(0), 8);
    // It is never turned.
    let front = block_front::Front::new(vec![disk.check().expect("valid")]).expect("a front");
    let guest = Guest::new();
    let (front_end, _ring) = ready(&socket, &guest, ALL);
    let table = bytes(&[1, 0, MEMORY as u64, USER, 0]);
    front_end.send(Req::SET_MEM_TABLE, 0b1001, &table, &[guest.file.as_fd()]).expect("sent");
    settle();
    let (ended, end) = channel();
    std::thread::spawn(move || {
        drop(front);
        ended.send(()).expect("somebody waits");
    });
    end.recv_timeout(PATIENCE).expect("the front ends");
    assert!(front_end.is_cut_off());
}

/// QEMU removes a region before it adds the larger one that takes its place,
/// also where no ring lies: the guest's data is there all the same.
#[test]
fn data_in_a_region_that_was_removed_is_found_until_another_takes_its_place() {
    let world = one_disk();
    let guest = Guest::new();
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(ALL);
    let rings = bytes(&[0, 0, DATA, USER, 0]);
    let half = bytes(&[0, DATA, MEMORY as u64 - DATA - 4096, USER + DATA, DATA]);
    let data = bytes(&[0, DATA, MEMORY as u64 - DATA, USER + DATA, DATA]);
    for region in [&rings, &half] {
        front_end.order(Req::ADD_MEM_REG, region, &[guest.file.as_fd()]);
    }
    let mut ring = Ring::new(&guest, 0);
    ring.start(&front_end);
    ring.enable(&front_end, true);
    let status = |ring: &mut Ring<'_>| {
        ring.offer(ring.prepare(0, IN, 0, 512));
        ring.wait_used();
        guest.status(0)
    };
    for (old, new) in [(&half, &data), (&data, &half)] {
        front_end.order(Req::REM_MEM_REG, old, &[]);
        assert_eq!(status(&mut ring), 0);
        front_end.order(Req::ADD_MEM_REG, new, &[guest.file.as_fd()]);
        assert_eq!(status(&mut ring), 0);
    }
    // What comes and goes elsewhere does not fill the table.
    for number in 0..100 {
        let other = bytes(&[0, (1 << 40) + number * 4096, 4096, (1 << 41) + number * 4096, 0]);
        front_end.order(Req::ADD_MEM_REG, &other, &[guest.file.as_fd()]);
        front_end.order(Req::REM_MEM_REG, &other, &[]);
    }
    front_end.order(Req::REM_MEM_REG, &half, &[]);
    assert_eq!(status(&mut ring), 0);
    ring.stop(&front_end);
    ring.start(&front_end);
    assert_eq!(status(&mut ring), 1, "with no ring running it has gone");
}

/// A front-end that does not read its back channel must not stop the disk's
/// conversation, and with it the end of the front.
#[test]
fn a_back_channel_that_nobody_reads_is_given_up() {
    let world = one_disk();
    let guest = Guest::new();
    let (front_end, _ring) = ready(&world.sockets[0], &guest, ALL);
    let (_ours, theirs) = UnixStream::pair().expect("a pair");
    for room in [4096, 1] {
        while send(&theirs, &vec![0; room], SendFlags::DONTWAIT).is_ok() {}
    }
    front_end.order(Req::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]);
    world.ask(|front| front.resized(0, 1000));
    settle();
    front_end.socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a time-out");
    assert_eq!(write_cache(&front_end), 1);
}

/// A front-end that talks without a pause must not keep the front from ending.
#[test]
fn a_front_ends_while_a_front_end_talks() {
    let world = one_disk();
    let socket = UnixStream::connect(&world.sockets[0]).expect("the disk listens");
    let question = [u32::from(Req::GET_FEATURES), 1, 0];
    let question: Vec<u8> = question.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let talk = question.repeat(10_000);
    let answers = socket.try_clone().expect("clone");
    std::thread::spawn(move || while (&socket).write_all(&talk).is_ok() {});
    std::thread::spawn(move || std::io::copy(&mut &answers, &mut std::io::sink()));
    settle();
    let (ended, end) = channel();
    std::thread::spawn(move || {
        world.end();
        ended.send(()).expect("somebody waits");
    });
    end.recv_timeout(PATIENCE).expect("the front ends");
}

/// Files without contents cost a front-end nothing, and address space is what
/// all disks share.
#[test]
fn a_disk_maps_no_more_than_its_budget() {
    let world = one_disk();
    let file = rustix::fs::memfd_create("huge", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&file, 32 << 40).expect("grow");
    let front_end = FrontEnd::connect(&world.sockets[0]);
    front_end.agree(ALL);
    let region = |at: u64, len: u64| bytes(&[0, at << 40, len << 40, at << 40, 0]);
    let add = |at, len| front_end.tell(Req::ADD_MEM_REG, &region(at, len), &[file.as_fd()]);
    assert!(!add(0, 17));
    assert!(add(0, 9));
    assert!(!add(20, 9));
    assert!(add(20, 7));
    let two = bytes(&[2, 0, 9 << 40, 0, 0, 20 << 40, 9 << 40, 20 << 40, 0]);
    assert!(!front_end.tell(Req::SET_MEM_TABLE, &two, &[file.as_fd(), file.as_fd()]));
    front_end.order(Req::REM_MEM_REG, &region(0, 9), &[]);
    assert!(add(40, 9), "what is unmapped counts no more");
}

/// Each request under way keeps the table it began under, and the table its
/// mappings. A front-end that changes tables while the server is away gets no
/// further than a bound, and on again when the requests have ended.
#[test]
fn tables_that_requests_hold_are_bounded() {
    let world = World::new(1, 4096, Manners { slots: 100, ..SWIFT }, Idle::Sleep, |_| ());
    let guest = Guest::new();
    let (front_end, mut ring) = ready(&world.sockets[0], &guest, ALL);
    world.switches.stalled.store(true, Ordering::Relaxed);
    let head = ring.prepare(0, IN, 0, 512);
    let table = bytes(&[1, 0, MEMORY as u64, USER, 0]);
    let share = || front_end.tell(Req::SET_MEM_TABLE, &table, &[guest.file.as_fd()]);
    let mut changes = 0;
    loop {
        *world.switches.log.lock().expect("log") = Some(Vec::new());
        ring.offer(head);
        while world.switches.log.lock().expect("log").as_ref().expect("kept").is_empty() {
            std::thread::yield_now();
        }
        if !share() {
            break;
        }
        changes += 1;
        assert!(changes <= 80, "no bound");
    }
    assert!(changes >= 32, "{changes}");
    world.switches.stalled.store(false, Ordering::Relaxed);
    for _ in 0..=changes {
        ring.wait_used();
    }
    for _ in 0..100 {
        assert!(share(), "nothing is held any more");
    }
}
