//! A front-end that lies: its messages are those of a real one, bent, and
//! between them its driver lies too. Alone in its process: it counts
//! descriptors.

mod world;

use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use fuzz::{Script, Target};
use vhost::vhost_user::message::FrontendReq;
use world::front_end::{
    ALL, DATA, FrontEnd, Guest, IN, MEMORY, NEXT, PATIENCE, Ring, SIZE, USER, WRITE, bytes, entry,
    send_raw, state,
};
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

/// A message: its number, body, and which descriptors come with it.
#[derive(Clone)]
struct Message {
    request: u32,
    flags: u32,
    body: Vec<u8>,
    fds: Vec<usize>,
}

/// The descriptors that a front-end can send.
const GUEST: usize = 0;
const KICK: usize = 1;
const CALL: usize = 2;
const AREA: usize = 5;
/// Also one end of a pipe, a device, and memory that is too short.
const ALL_FDS: usize = 7;

/// Acknowledged, as QEMU asks for it.
const ACKNOWLEDGED: u32 = 0b1001;

fn message(request: FrontendReq, body: Vec<u8>, fds: &[usize]) -> Message {
    let answered = matches!(
        request,
        FrontendReq::GET_FEATURES
            | FrontendReq::GET_PROTOCOL_FEATURES
            | FrontendReq::GET_CONFIG
            | FrontendReq::GET_VRING_BASE
    );
    let flags = if answered { 1 } else { ACKNOWLEDGED };
    Message { request: request.into(), flags, body, fds: fds.to_vec() }
}

/// What a front-end says that means well: all that starts a ring, and then what
/// is said while it runs.
fn good(ring: &Ring<'_>) -> Vec<Message> {
    let index = || bytes(&[ring.index.into()]);
    let region = bytes(&[0, 0, MEMORY as u64, USER, 0]);
    let config = |flags: u32| [&words([0, 8, flags])[..], &[0; 8]].concat();
    vec![
        message(FrontendReq::GET_FEATURES, vec![], &[]),
        message(FrontendReq::GET_PROTOCOL_FEATURES, vec![], &[]),
        message(FrontendReq::SET_FEATURES, bytes(&[ALL]), &[]),
        message(FrontendReq::SET_OWNER, vec![], &[]),
        message(FrontendReq::SET_MEM_TABLE, bytes(&[1, 0, MEMORY as u64, USER, 0]), &[GUEST]),
        message(FrontendReq::SET_INFLIGHT_FD, area(), &[AREA]),
        message(FrontendReq::SET_VRING_NUM, state(ring.index, SIZE.into()), &[]),
        message(FrontendReq::SET_VRING_BASE, state(ring.index, 0), &[]),
        message(FrontendReq::SET_VRING_ADDR, ring.addresses(), &[]),
        message(FrontendReq::SET_VRING_CALL, index(), &[CALL]),
        message(FrontendReq::SET_VRING_KICK, index(), &[KICK]),
        message(FrontendReq::SET_VRING_ENABLE, state(ring.index, 1), &[]),
        message(FrontendReq::GET_CONFIG, config(0), &[]),
        message(FrontendReq::REM_MEM_REG, region.clone(), &[]),
        message(FrontendReq::ADD_MEM_REG, region, &[GUEST]),
        message(FrontendReq::SET_VRING_ENABLE, state(ring.index, 0), &[]),
        message(FrontendReq::SET_VRING_ENABLE, state(ring.index, 1), &[]),
        message(FrontendReq::GET_VRING_BASE, state(ring.index, 0), &[]),
        message(FrontendReq::SET_VRING_KICK, index(), &[KICK]),
    ]
}

fn words<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Bytes of an in-flight area for one ring, and its description.
const AREA_BYTES: u64 = 64 * 33;

fn area() -> Vec<u8> {
    bytes(&[AREA_BYTES, 0, 1 | u64::from(SIZE) << 16])
}

/// What becomes of a message. A decision of zero lets it pass.
fn bent(mut message: Message, all: &[Message], script: &mut Script<'_>) -> Vec<Message> {
    match script.byte() {
        0..100 => {}
        100..115 => return Vec::new(),
        115..125 => return vec![message.clone(), message],
        125..145 => return vec![all[script.below(all.len())].clone(), message],
        145..160 => {
            let count = script.below(4);
            message.fds = (0..count).map(|_| script.below(ALL_FDS)).collect();
        }
        160..168 => message.request = script.below(45) as u32,
        168..174 => message.flags = script.byte().into(),
        174..182 => {
            let len = script.below(300);
            message.body.resize(len, 0);
        }
        _ => {
            for _ in 0..=script.below(2) {
                let number = script.number();
                let places = message.body.len() / 4;
                if places == 0 {
                    break;
                }
                let at = script.below(places) * 4;
                let old = message.body[at..at + 4].to_vec();
                let old = u32::from_ne_bytes(old.try_into().expect("four"));
                let near = script.below(2) == 0;
                let number = if near { u64::from(old).wrapping_add(number) } else { number };
                let places = message.body[at..].iter_mut();
                places.zip(number.to_ne_bytes()).for_each(|(to, from)| *to = from);
            }
        }
    }
    vec![message]
}

/// The driver does something. A decision of zero is a good read.
fn drive(ring: &mut Ring<'_>, guest: &Guest, script: &mut Script<'_>) {
    let number = script.below(8) as u16;
    let head = ring.prepare(number, IN, script.below(64) as u64, 512);
    match script.byte() {
        0..120 => {}
        120..180 => {
            let flags = script.below(8) as u16;
            let it = (script.number(), script.number() as u32, flags, script.byte().into());
            guest.put(ring.table() + 16 * u64::from(head + number % 3), &entry(it));
        }
        180..200 => ring.describe_entry(head + 1, (DATA, u32::MAX, NEXT | WRITE, head)),
        200..220 => ring.set_available_index(script.number() as u16),
        220..240 => ring.set_used_index(script.number() as u16),
        _ => guest.put(script.number() % (MEMORY as u64 - 8), &script.number().to_ne_bytes()),
    }
    ring.offer(head);
}

/// Whether there is an answer, with nothing else in the way: the disk turns
/// front-ends away as long as the last one is being seen off.
fn connect(world: &World) -> FrontEnd {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        let front_end = FrontEnd::connect(&world.sockets[0]);
        if front_end.send(FrontendReq::GET_FEATURES, 1, &[], &[]).is_ok()
            && front_end.answer().is_ok_and(|answer| answer.len() == 8)
        {
            return front_end;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the disk does not listen any more");
}

/// A good front-end comes, and its guest reads.
fn serves(world: &World, guest: &Guest) {
    let front_end = connect(world);
    front_end.agree(ALL);
    front_end.share(guest);
    guest.put(0, &[0; 0x4000]);
    let mut ring = Ring::new(guest, 0);
    ring.start(&front_end);
    ring.enable(&front_end, true);
    let head = ring.prepare(0, IN, 0, 512);
    guest.put(DATA, &[0xee; 512]);
    ring.offer(head);
    assert_eq!(ring.wait_used(), (head.into(), 513));
    assert_eq!((guest.status(0), guest.get(DATA, 512)), (0, vec![0; 512]));
}

fn memory(name: &str, bytes: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
    rustix::fs::ftruncate(&file, bytes).expect("grow");
    file
}

/// Whatever comes: no panic, no hang, no descriptor kept, and the front-end
/// that comes next is served.
#[test]
fn a_front_end_that_lies_harms_only_itself() {
    let world = World::new(1, 4096, SWIFT, Idle::Sleep, |_| ());
    let (guest, other) = (Guest::new(), Guest::new());
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let null: OwnedFd = File::open("/dev/null").expect("a device").into();
    let short = memory("short", 0x3000);
    serves(&world, &other);
    let before = open_descriptors();
    // A driver that offers something between the messages.
    let works: Vec<u8> = (0..19u8).flat_map(|n| [0, u8::from(n > 10), n, n, 0, 0]).collect();
    Target::new("a_front_end_that_lies_harms_only_itself").with(works).cases(700).run(|input| {
        let mut script = Script::new(input);
        guest.put(0, &[0; 0x4000]);
        let mut ring = Ring::new(&guest, 0);
        let area = memory("in-flight", AREA_BYTES);
        let [kick, call] = [&ring.kick, &ring.call].map(|fd| fd.try_clone().expect("clone"));
        let own = [guest.file.as_fd(), kick.as_fd(), call.as_fd()];
        let strange = [reader.as_fd(), null.as_fd(), area.as_fd(), short.as_fd()];
        let fds = [&own[..], &strange].concat();
        let all = good(&ring);
        let messages: Vec<Vec<Message>> =
            all.iter().map(|one| bent(one.clone(), &all, &mut script)).collect();
        let connection = connect(&world);
        for message in messages.iter().flatten() {
            if !say(&connection.socket, message, &fds) {
                break; // cut off
            }
            if script.below(2) == 1 {
                drive(&mut ring, &guest, &mut script);
            }
        }
        if script.below(4) == 1 {
            let noise = script.bytes(64);
            // It may have been cut off.
            let _ = noise.is_empty() || send_raw(&connection.socket, noise, &[]).is_ok();
        }
        let heard = hear(connection.socket);
        if input.is_empty() {
            assert_eq!(heard, all.iter().map(|one| (one.request, false)).collect::<Vec<_>>());
        }
        serves(&world, &other);
        heard
    });
    assert_eq!(open_descriptors(), before);
}

fn say(socket: &UnixStream, message: &Message, fds: &[BorrowedFd<'_>]) -> bool {
    let header = words([message.request, message.flags, message.body.len() as u32]);
    let fds: Vec<BorrowedFd<'_>> = message.fds.iter().map(|&fd| fds[fd]).collect();
    send_raw(socket, &[&header[..], &message.body].concat(), &fds).is_ok()
}

/// What the disk has said: the kinds of its answers, and the refusals.
fn hear(socket: UnixStream) -> Vec<(u32, bool)> {
    // It may have been cut off.
    let _ = socket.shutdown(Shutdown::Write);
    let mut heard = Vec::new();
    let (mut header, mut body) = ([0; 12], [0; 4096]);
    while (&socket).read_exact(&mut header).is_ok() {
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four"));
        let body = &mut body[..word(8) as usize];
        if (&socket).read_exact(body).is_err() {
            break;
        }
        // An acknowledgement is a number, and 1 is a refusal.
        heard.push((word(0), body[..] == 1u64.to_ne_bytes()));
    }
    heard
}
