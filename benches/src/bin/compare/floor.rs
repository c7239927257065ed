//! The floor: the program `skeleton`, which has no protocol, over the same ways.

use std::net::UdpSocket;

use anyhow::Context;

use crate::cable::Cable;
use crate::interrupt::Interrupt;
use crate::process::Process;
use crate::service::{Door, Service};
use crate::subject::Site;

/// Front and server in one thread.
pub(crate) fn fused(site: &Site, interrupt: &Interrupt) -> anyhow::Result<Service> {
    let ring = site.folder.join("ring");
    let mut service = Service::at(Door::Ring(ring.clone()), None);
    let size = format!("--size={}", site.disk_bytes);
    let process = Process::start(&site.skeleton, &["fused", "ring", &size], &site.place(None))?;
    service.add(process, &ring, interrupt)?;
    Ok(service)
}

/// Both with UDP between them, over the loopback or a cable.
pub(crate) fn apart(
    site: &Site,
    interrupt: &Interrupt,
    cable: Option<Cable>,
) -> anyhow::Result<Service> {
    let [server, front] = addresses(cable.is_some())?;
    let (ring, sign) = (site.folder.join("ring"), site.folder.join("server.sign"));
    let mut service = Service::at(Door::Ring(ring.clone()), cable);
    let (listen, peer) = (format!("--listen={server}"), format!("--front={front}"));
    let size = format!("--size={}", site.disk_bytes);
    let arguments = ["server", &listen, &peer, "--sign=server.sign", &size];
    let place = site.place(service.namespace(0));
    service.add(Process::start(&site.skeleton, &arguments, &place)?, &sign, interrupt)?;
    let (listen, peer) = (format!("--listen={front}"), format!("--server={server}"));
    let arguments = ["front", "ring", &listen, &peer];
    let place = site.place(service.namespace(1));
    service.add(Process::start(&site.skeleton, &arguments, &place)?, &ring, interrupt)?;
    Ok(service)
}

/// Of the server and of the front: theirs on a cable, else such that nobody had a
/// moment ago.
fn addresses(cabled: bool) -> anyhow::Result<[String; 2]> {
    if cabled {
        return Ok(Cable::ADDRESSES.map(|host| format!("{host}:7700")));
    }
    let find = || -> std::io::Result<[String; 2]> {
        // Both at once, so that they differ.
        let sockets = [UdpSocket::bind(("127.0.0.1", 0))?, UdpSocket::bind(("127.0.0.1", 0))?];
        let [server, front] = sockets.map(|socket| socket.local_addr());
        Ok([server?.to_string(), front?.to_string()])
    };
    find().context("cannot find two free UDP ports")
}
