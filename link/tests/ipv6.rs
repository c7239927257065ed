//! UDP over IPv6, and over both at once.

mod network;

use std::process::Command;
use std::time::{Duration, Instant};

use link::frame::HEADER_BYTES;
use link::wire::Wire;
use link::wire::address::Address;
use link::wire::any::{AnyPeer, AnyWire};
use network::{enter_network, ip, lay_cable};

fn address(text: &str) -> Address {
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

fn listen(text: &str) -> AnyWire {
    AnyWire::listen(&address(text)).unwrap_or_else(|error| panic!("{error}"))
}

fn connect(servers: &[&str]) -> AnyWire {
    let servers: Vec<Address> = servers.iter().map(|server| address(server)).collect();
    let servers: Vec<&Address> = servers.iter().collect();
    AnyWire::connect(&servers).unwrap_or_else(|error| panic!("{error}"))
}

/// Who a frame came from, and the frame.
fn receive(wire: &mut AnyWire) -> (AnyPeer, Vec<u8>) {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let mut heard = None;
        wire.receive(&mut |from, frame| heard = Some((*from, frame.to_vec()))).expect("receive");
        if let Some(heard) = heard {
            return heard;
        }
    }
    panic!("nothing comes");
}

/// Asks and is answered: by whom it asked, as it named it.
fn ask(front: &mut AnyWire, server: &mut AnyWire, at: &str) {
    let asked = front.peer(&address(at));
    front.send(&asked, &[1; HEADER_BYTES], &[1; 4096]);
    front.flush();
    let (from, frame) = receive(server);
    assert_eq!(frame, [1; HEADER_BYTES + 4096]);
    server.send(&from, &[2; HEADER_BYTES], &[2; 8192]);
    server.flush();
    assert_eq!(receive(front), (asked, vec![2; HEADER_BYTES + 8192]));
}

/// Waits until the kernel hears what is sent to the interface's addresses: a new one is
/// looked at by a thread of the kernel first.
fn await_addresses(interface: &str) {
    let show = ["-6", "address", "show", "dev", interface, "tentative"];
    loop {
        let shown = Command::new("ip").args(show).output().expect("ip");
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        if shown.stdout.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server at `[::]` hears both. Its answers leave from the address that was asked,
/// or a front does not believe them, and a front with servers of both kinds has one
/// socket for them.
#[test]
fn one_socket_speaks_both() {
    if !enter_network(&[]) {
        return;
    }
    ip("link set lo up");
    ip("address add 2001:db8::1/128 dev lo");
    ip("address add 2001:db8::2/128 dev lo");
    await_addresses("lo");
    let mut server = listen("udp://[::]:7700");
    let all = ["udp://127.0.0.77:7700", "udp://[::1]:7700", "udp://[2001:db8::2]:7700"];
    let mut front = connect(&all);
    for one in all {
        ask(&mut front, &mut server, one);
        ask(&mut connect(&[one]), &mut server, one);
    }
}

/// On a network without any configuration there are link-local addresses. They mean
/// something only together with an interface.
#[test]
fn link_local_addresses_have_their_interface() {
    if !enter_network(&[]) {
        return;
    }
    lay_cable("e");
    for (end, other) in [("e0", "a"), ("e1", "b")] {
        ip(&format!("address add fe80::{other}/64 dev {end} nodad"));
    }
    let mut server = listen("udp://[fe80::a%e0]:7700");
    let at = "udp://[fe80::a%e1]:7700";
    ask(&mut connect(&[at]), &mut server, at);
}
