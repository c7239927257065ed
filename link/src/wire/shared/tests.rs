use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use fuzz::Target;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;

/// A folder of its own for a socket; it goes with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vrio-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("wire")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn front(path: &Path) -> (Shared, SharedPeer) {
    let front = Shared::connect(vec![path.to_owned()]).expect("a front");
    let server = front.server(path).expect("its server");
    (front, server)
}

/// A server and a front that know each other, and how each names the other.
fn pair(path: &Path) -> ((Shared, SharedPeer), (Shared, SharedPeer)) {
    let mut server = Shared::listen(path, 0).expect("a server");
    let (mut front, to_server) = front(path);
    let to_front = meet(&mut front, to_server, &mut server);
    ((server, to_front), (front, to_server))
}

/// Sends as the link does, again and again, until the server hears.
fn meet(front: &mut Shared, to: SharedPeer, server: &mut Shared) -> SharedPeer {
    for _ in 0..1000 {
        front.send(&to, &[1; HEADER_BYTES], &[]);
        front.flush();
        server.has_frames();
        let mut heard = None;
        server.receive(&mut |from, _| heard = Some(*from)).expect("receive");
        if let Some(from) = heard {
            return from;
        }
        front.has_frames();
    }
    panic!("the server hears nothing");
}

fn received(wire: &mut Shared) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    wire.receive(&mut |_, frame| all.push(frame.to_vec())).expect("receive");
    all
}

#[test]
fn frames_arrive_as_they_were_and_what_has_no_room_is_lost() {
    let folder = Folder::new("frames");
    let ((mut server, to_front), (mut front, to_server)) = pair(&folder.socket());
    for round in 0..5_u8 {
        for size in [0, 1, 4096, 8192] {
            front.send(&to_server, &[round; HEADER_BYTES], &vec![round; size]);
            server.send(&to_front, &[!round; HEADER_BYTES], &vec![!round; size]);
        }
        assert!(received(&mut server).is_empty(), "not before the flush");
        front.flush();
        server.flush();
        let lengths = |frames: &[Vec<u8>]| frames.iter().map(Vec::len).collect::<Vec<_>>();
        let (there, here) = (received(&mut server), received(&mut front));
        assert_eq!(lengths(&there), [64, 65, 64 + 4096, 64 + 8192]);
        assert_eq!(lengths(&here), lengths(&there));
        assert!(there.iter().flatten().all(|&byte| byte == round));
        assert!(here.iter().flatten().all(|&byte| byte == !round));
    }
    for number in 0..700_u16 {
        let mut header = [0; HEADER_BYTES];
        header[..2].copy_from_slice(&number.to_le_bytes());
        front.send(&to_server, &header, &[]);
        front.flush();
    }
    let mut kept = Vec::new();
    for _ in 0..4 {
        kept.extend(received(&mut server));
    }
    let kept: Vec<u16> = kept.iter().map(|f| u16::from_le_bytes([f[0], f[1]])).collect();
    assert_eq!(kept, (0..512).collect::<Vec<u16>>());
    front.send(&to_server, &[7; HEADER_BYTES], &[]);
    front.flush();
    assert_eq!(received(&mut server), [[7; HEADER_BYTES]]);
}

/// Whom the owner did not let in cannot connect, and nobody takes a server's place.
#[test]
fn the_socket_is_its_owners() {
    let folder = Folder::new("mode");
    let path = folder.socket();
    let server = Shared::listen(&path, 0).expect("a server");
    let mode = std::fs::metadata(&path).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = Shared::listen(&path, 0).expect_err("taken");
    assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    let worker = Shared::listen(&path, 1).expect("another worker");
    assert!(folder.0.join("wire.1").exists());
    drop((server, worker));
    assert!(!path.exists());
    // A server that was killed leaves its socket behind; a file is no socket.
    let left = unix_socket().expect("a socket");
    bind(&left, &SocketAddrUnix::new(&path).expect("a name")).expect("bind");
    drop(left);
    Shared::listen(&path, 0).expect("the place is free");
    std::fs::write(&path, "precious").expect("write");
    assert!(Shared::listen(&path, 0).is_err());
    let left = std::fs::read_to_string(&path).expect("what is no socket is left alone");
    assert_eq!(left, "precious");
}

/// A front that ends gives the server its memory back; a server that ends is found
/// again by the same name when it is back.
#[test]
fn who_ends_is_noticed_and_who_comes_again_is_known() {
    let folder = Folder::new("ends");
    let ((mut server, _), (front, _)) = pair(&folder.socket());
    assert_eq!(server.connections.len(), 1);
    drop(front);
    assert!(!server.has_frames());
    assert_eq!(server.connections.len(), 0);
    let (mut front, to_server) = super::tests::front(&folder.socket());
    meet(&mut front, to_server, &mut server);
    drop(server);
    assert!(!front.has_frames());
    assert_eq!(front.connections.len(), 0);
    front.send(&to_server, &[0; HEADER_BYTES], &[]);
    front.flush();
    let mut server = Shared::listen(&folder.socket(), 0).expect("a server");
    meet(&mut front, to_server, &mut server);
}

fn rings(wire: &Shared, seconds: i64) -> bool {
    let descriptor = wire.descriptor().expect("an epoll");
    let mut asked = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
    poll(&mut asked, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).expect("poll") == 1
}

/// Bells cost a system call on each side: only who sleeps is rung, and once.
#[test]
fn only_who_announced_a_sleep_is_rung() {
    let folder = Folder::new("bells");
    let ((mut server, _), (mut front, to_server)) = pair(&folder.socket());
    let mut speak = || {
        front.send(&to_server, &[1; HEADER_BYTES], &[]);
        front.flush();
    };
    speak();
    assert!(!rings(&server, 0), "it is awake");
    server.announce_sleep();
    assert!(server.has_frames(), "a frame came before the announcement");
    server.retract_sleep();
    assert_eq!(received(&mut server).len(), 1);
    server.announce_sleep();
    assert!(!server.has_frames());
    assert!(!rings(&server, 0));
    speak();
    assert!(rings(&server, 5));
    server.retract_sleep();
    assert_eq!(received(&mut server).len(), 1);
    server.announce_sleep();
    assert!(!server.has_frames(), "the bell was taken");
    assert!(!rings(&server, 0));
}

/// A wake-up that is lost once hangs this test until its limit.
#[test]
fn two_threads_that_sleep_between_frames_lose_none() {
    const FRAMES: u32 = 5_000;
    let folder = Folder::new("sleep");
    let ((server, to_front), (front, to_server)) = pair(&folder.socket());
    let turn = |mut wire: Shared, to: SharedPeer, begins: bool| {
        let (mut heard, mut said) = (0, 0);
        let end = Instant::now() + Duration::from_secs(60);
        while heard < FRAMES || said < FRAMES {
            assert!(Instant::now() < end, "{heard} heard, {said} said");
            wire.receive(&mut |_, _| heard += 1).expect("receive");
            if said < FRAMES && said < heard + u32::from(begins) {
                wire.send(&to, &[0; HEADER_BYTES], &[]);
                wire.flush();
                said += 1;
                continue;
            }
            wire.announce_sleep();
            fence(Ordering::SeqCst);
            if heard < FRAMES && !wire.has_frames() {
                rings(&wire, 60);
            }
            wire.retract_sleep();
        }
        wire
    };
    let ends = std::thread::scope(|scope| {
        let other = scope.spawn(|| turn(server, to_front, false));
        (turn(front, to_server, true), other.join().expect("no panic"))
    });
    drop(ends);
}

/// A front that writes anything anywhere into what it shares: the server takes
/// frames of a frame's size or ends the connection, and serves another front.
#[test]
fn a_front_that_lies_in_shared_memory() {
    let folder = Folder::new("lies");
    let path = folder.socket();
    let mut server = Shared::listen(&path, 0).expect("a server");
    let server = std::cell::RefCell::new(&mut server);
    // Pairs of a place in the memory and a word: first the indices, then lengths.
    Target::new("a_front_that_lies_in_shared_memory")
        .with([0, 1, 0, 0, 0, 128, 1, 0, 0, 0])
        .with([0, 0, 2, 0, 0, 200, 0, 1, 0, 0])
        .with([132, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])
        .cases(100)
        .most_bytes(60)
        .run(|input| {
            let mut server = server.borrow_mut();
            let (mut liar, to) = front(&path);
            meet(&mut liar, to, &mut server);
            let mut seen = 0;
            for lie in input.chunks_exact(5) {
                let word = u32::from_le_bytes([lie[1], lie[2], lie[3], lie[4]]);
                // The words of the ring to the server, then its slots' lengths.
                let place = match lie[0] {
                    place @ ..192 => usize::from(place) * 4 % 512,
                    place => 4096 + usize::from(place - 192) * 8320,
                };
                if let Some((_, connection)) = liar.connections.first() {
                    let pages = connection.pages();
                    pages.word(place).store(word, Ordering::SeqCst);
                }
                let taken = server.receive(&mut |from, frame| {
                    assert!((HEADER_BYTES..=MAX_FRAME).contains(&frame.len()));
                    assert_eq!(from.port, 0);
                    seen += 1;
                });
                taken.expect("the wire is whole");
                let peer = server.connections.first().map(|(_, connection)| connection.peer);
                if let Some(peer) = peer {
                    server.send(&peer, &[3; HEADER_BYTES], &[]);
                    server.flush();
                }
            }
            let ended = server.connections.is_empty();
            drop(liar);
            let (mut honest, to) = front(&path);
            meet(&mut honest, to, &mut server);
            drop(honest);
            server.look();
            assert!(server.connections.is_empty());
            (ended, seen.min(3))
        });
}
