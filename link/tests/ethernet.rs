//! The wire over Ethernet, on cables that the tests lay: pairs of interfaces in a
//! network namespace of the test's own thread.

mod network;

use std::time::{Duration, Instant};

use link::frame::HEADER_BYTES;
use link::wire::Wire;
use link::wire::ethernet::{Ethernet, EthernetAddress, EthernetError, EthernetPeer, InterfaceName};
use network::{enter_network, ip, lay_cable};

fn interface(name: &str) -> InterfaceName {
    name.parse::<EthernetAddress>().expect("a name").interface
}

fn listen(name: &str, port: u16) -> Ethernet {
    Ethernet::listen(interface(name), port).unwrap_or_else(|error| panic!("{error}"))
}

fn connect(name: &str, sought: Option<u16>) -> Ethernet {
    Ethernet::connect(interface(name), sought).unwrap_or_else(|error| panic!("{error}"))
}

fn peer_of(wire: &Ethernet) -> EthernetPeer {
    EthernetPeer::new(Some(wire.endpoint().mac), wire.endpoint().port)
}

fn send(wire: &mut Ethernet, to: EthernetPeer, mark: u8, size: usize) {
    wire.send(&to, &[mark; HEADER_BYTES], &vec![mark; size]);
}

/// Turns `wire` until so many frames came, or for a while.
fn receive(wire: &mut Ethernet, frames: usize) -> Vec<(EthernetPeer, Vec<u8>)> {
    let mut all = Vec::new();
    let end = Instant::now() + Duration::from_secs(5);
    while all.len() < frames && Instant::now() < end {
        wire.receive(&mut |from, frame| all.push((*from, frame.to_vec()))).expect("receive");
    }
    all
}

/// Asks again, as the link does, until the other end hears.
fn ask_until_heard(front: &mut Ethernet, to: EthernetPeer, server: &mut Ethernet) -> EthernetPeer {
    for _ in 0..1000 {
        send(front, to, 1, 100);
        front.flush();
        let mut heard = None;
        server.receive(&mut |from, _| heard = Some(*from)).expect("receive");
        if let Some(from) = heard {
            return from;
        }
        front.receive(&mut |_, _| {}).expect("receive");
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the server hears nothing");
}

/// Bursts larger than the ring of packets to send, of sizes from a bare header to
/// the largest frame: each comes out as it went in.
#[test]
fn frames_of_all_sizes_arrive_as_they_were() {
    if !enter_network(&["e"]) {
        return;
    }
    let (mut server, mut front) = (listen("e0", 7700), connect("e1", None));
    let sizes: Vec<usize> = [0, 1, 512, 1368, 4096, 8192].into_iter().cycle().take(700).collect();
    let to = peer_of(&server);
    for (number, &size) in sizes.iter().enumerate() {
        send(&mut front, to, number as u8, size);
    }
    front.flush();
    let frames = receive(&mut server, sizes.len());
    assert_eq!(frames.len(), sizes.len());
    for (number, (size, (from, frame))) in sizes.iter().zip(&frames).enumerate() {
        assert_eq!((*from, frame.len()), (peer_of(&front), HEADER_BYTES + size));
        assert!(frame.iter().all(|&byte| byte == number as u8));
    }
    send(&mut server, frames[0].0, 9, 8192);
    server.flush();
    assert_eq!(receive(&mut front, 1), [(to, vec![9; HEADER_BYTES + 8192])]);
}

/// The handshake finds the segment size by what does not pass.
#[test]
fn a_frame_larger_than_the_network_takes_is_lost_and_no_other() {
    if !enter_network(&["e"]) {
        return;
    }
    let (mut server, mut front) = (listen("e0", 7700), connect("e1", None));
    ip("link set e1 mtu 1500");
    for (mark, size) in [(1, 8192), (2, 4096), (3, 1368), (4, 8192), (5, 100)] {
        send(&mut front, peer_of(&server), mark, size);
    }
    front.flush();
    let marks: Vec<u8> = receive(&mut server, 2).iter().map(|(_, frame)| frame[0]).collect();
    assert_eq!(marks, [3, 5]);
}

/// Workers of one server share an interface: each gets what is its own. A port
/// that is taken says so.
#[test]
fn ports_tell_workers_of_an_interface_apart() {
    if !enter_network(&["e"]) {
        return;
    }
    let (mut one, mut two) = (listen("e0", 7700), listen("e0", 7701));
    let taken = Ethernet::listen(interface("e0"), 7701).expect_err("taken");
    assert!(taken.to_string().contains("port 7701 of e0 is taken"), "{taken}");
    let (mut front, other) = (connect("e1", None), connect("e1", None));
    assert_ne!(front.endpoint().port, other.endpoint().port);
    let to = peer_of(&two);
    send(&mut front, to, 2, 10);
    send(&mut front, peer_of(&one), 1, 10);
    front.flush();
    assert_eq!(receive(&mut one, 1)[0].1[0], 1);
    assert_eq!(receive(&mut two, 1)[0].1[0], 2);
    drop(two);
    listen("e0", 7701);
    let none = Ethernet::listen(interface("nothing"), 1).expect_err("no interface");
    assert!(matches!(none, EthernetError::NoInterface(_)), "{none}");
}

/// A front that knows only the interface finds the server, knows its answers as
/// the sought server's, and follows it to its other workers.
#[test]
fn a_server_is_found_by_its_port() {
    if !enter_network(&["e"]) {
        return;
    }
    let (mut server, mut front) = (listen("e0", 7700), connect("e1", Some(7700)));
    let sought = EthernetPeer::new(None, 7700);
    let from = ask_until_heard(&mut front, sought, &mut server);
    assert_eq!(from, peer_of(&front));
    send(&mut server, from, 7, 10);
    server.flush();
    assert_eq!(receive(&mut front, 1)[0].0, sought);
    let mut worker = listen("e0", 7705);
    let worker_sought = link::wire::Peer::with_port(sought, 7705);
    send(&mut front, worker_sought, 8, 10);
    front.flush();
    assert_eq!(receive(&mut worker, 1)[0].1[0], 8);
    send(&mut worker, from, 9, 10);
    worker.flush();
    assert_eq!(receive(&mut front, 1)[0].0, worker_sought);
}

/// A server that answers nobody any more may have another interface now; one that
/// answers is not left for another that says it were here too.
#[test]
fn only_a_silent_server_is_looked_for_anew() {
    if !enter_network(&["a", "b"]) {
        return;
    }
    // One network: the front's cable and the second server's end at a bridge.
    ip("link add bridge mtu 9000 type bridge");
    for end in ["a1", "b1"] {
        ip(&format!("link set {end} master bridge"));
    }
    ip("link set bridge up");
    let (mut first, mut front) = (listen("a0", 7700), connect("bridge", Some(7700)));
    let sought = EthernetPeer::new(None, 7700);
    let from = ask_until_heard(&mut front, sought, &mut first);
    let mut second = listen("b0", 7700);
    for _ in 0..200 {
        send(&mut front, sought, 1, 10);
        front.flush();
        send(&mut first, from, 2, 10);
        first.flush();
        assert_eq!(receive(&mut front, 1)[0].0, sought);
    }
    second.receive(&mut |_, _| panic!("not its own")).expect("receive");
    drop(first);
    ask_until_heard(&mut front, sought, &mut second);
}

/// The cable is pulled and put back; the interface is removed and made again.
#[test]
fn a_network_that_comes_back_is_used_again() {
    if !enter_network(&["e"]) {
        return;
    }
    let (mut server, mut front) = (listen("e0", 7700), connect("e1", Some(7700)));
    let sought = EthernetPeer::new(None, 7700);
    ask_until_heard(&mut front, sought, &mut server);
    ip("link set e0 down");
    for _ in 0..3 {
        send(&mut front, sought, 1, 10);
        front.flush();
        server.announce_sleep();
        assert_eq!(server.receive(&mut |_, _| {}).expect("not broken"), 0);
    }
    ip("link set e0 up");
    ask_until_heard(&mut front, sought, &mut server);
    ip("link del e0");
    server.announce_sleep();
    let gone = server.receive(&mut |_, _| {}).expect_err("removed");
    assert!(gone.to_string().contains("e0 was removed"), "{gone}");
    drop(server);
    send(&mut front, sought, 1, 10);
    front.flush();
    front.announce_sleep();
    let _ = front.receive(&mut |_, _| {});
    lay_cable("e");
    let mut server = listen("e0", 7700);
    ask_until_heard(&mut front, sought, &mut server);
}

/// A worker that sleeps is rung by what arrives, and by nothing else.
#[test]
fn what_arrives_ends_a_sleep() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    if !enter_network(&["e"]) {
        return;
    }
    let (server, mut front) = (listen("e0", 7700), connect("e1", None));
    let rings = |seconds| {
        let descriptor = server.descriptor().expect("a socket");
        let mut asked = [PollFd::from_borrowed_fd(descriptor, PollFlags::IN)];
        let limit = Timespec { tv_sec: seconds, tv_nsec: 10_000_000 };
        poll(&mut asked, Some(&limit)).expect("poll") == 1
    };
    assert!(!rings(0));
    let mut elsewhere = peer_of(&server);
    elsewhere = link::wire::Peer::with_port(elsewhere, 7701);
    send(&mut front, elsewhere, 1, 10);
    front.flush();
    assert!(!rings(0), "another worker's frame is no news");
    send(&mut front, peer_of(&server), 1, 10);
    front.flush();
    assert!(rings(5));
}
