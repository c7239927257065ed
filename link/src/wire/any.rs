//! The wire that an address names.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use thiserror::Error;

use crate::frame::HEADER_BYTES;
use crate::wire::address::{Address, as_v6};
use crate::wire::ethernet::{Ethernet, EthernetAddress, EthernetError, EthernetPeer};
use crate::wire::shared::{Shared, SharedPeer};
use crate::wire::udp::{Udp, UdpPeer};
use crate::wire::{Peer, Wire};

/// One wire, of the kind that was asked for.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // There is one of it.
pub enum AnyWire {
    /// UDP.
    Udp(Udp),
    /// Ethernet without IP.
    Ethernet(Ethernet),
    /// Memory of this machine.
    Shared(Shared),
}

/// A peer at the end of a wire of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnyPeer {
    /// Over UDP.
    Udp(UdpPeer),
    /// Over Ethernet.
    Ethernet(EthernetPeer),
    /// In memory.
    Shared(SharedPeer),
}

impl Peer for AnyPeer {
    fn with_port(self, port: u16) -> Self {
        match self {
            Self::Udp(peer) => Self::Udp(peer.with_port(port)),
            Self::Ethernet(peer) => Self::Ethernet(peer.with_port(port)),
            Self::Shared(peer) => Self::Shared(peer.with_port(port)),
        }
    }
}

/// Why there is no wire.
#[derive(Debug, Error)]
pub enum WireError {
    /// A server cannot listen there.
    #[error("cannot listen on {address}: {error}; is another server running?")]
    Listen {
        /// Where.
        address: Address,
        /// The kernel's reason.
        error: io::Error,
    },
    /// There is no socket to be had.
    #[error("cannot make a socket: {0}")]
    Socket(#[from] io::Error),
    /// No Ethernet.
    #[error(transparent)]
    Ethernet(#[from] EthernetError),
    /// Who listens is where the interface is.
    #[error("{0}: a server listens at the interface's own address; leave the hardware address out")]
    ListenElsewhere(Address),
    /// A front has one wire.
    #[error(
        "{one} and {other} cannot be reached by one front: all its servers are at udp://, or all \
         at mem://, or all at eth:// of one interface; write two configurations"
    )]
    Mixed {
        /// A server.
        one: Address,
        /// Another.
        other: Address,
    },
    /// Only one can be looked for.
    #[error("{one} and {other}: only one server of a front can do without a hardware address")]
    SoughtTwice {
        /// A server.
        one: Address,
        /// Another.
        other: Address,
    },
}

impl AnyWire {
    /// A server's wire.
    ///
    /// # Errors
    /// A sentence.
    pub fn listen(address: &Address) -> Result<Self, WireError> {
        let cannot = |error| WireError::Listen { address: address.clone(), error };
        match address {
            Address::Udp(at) => Udp::bind(*at).map(Self::Udp).map_err(cannot),
            Address::Memory(path, worker) => {
                Shared::listen(path, *worker).map(Self::Shared).map_err(cannot)
            }
            Address::Ethernet(EthernetAddress { mac: Some(_), .. }) => {
                Err(WireError::ListenElsewhere(address.clone()))
            }
            Address::Ethernet(at) => Ok(Self::Ethernet(Ethernet::listen(at.interface, at.port)?)),
        }
    }

    /// A front's wire to all these servers, of which there is at least one.
    ///
    /// # Errors
    /// A sentence.
    ///
    /// # Panics
    /// Without a server.
    pub fn connect(servers: &[&Address]) -> Result<Self, WireError> {
        let first = *servers.first().expect("a server");
        match first {
            Address::Udp(_) => {
                let mut v6 = false;
                for &server in servers {
                    let Address::Udp(at) = server else { return Err(mixed(first, server)) };
                    v6 |= at.is_ipv6();
                }
                // An IPv6 socket reaches IPv4 hosts too.
                let any: SocketAddr =
                    if v6 { ([0; 16], 0).into() } else { ([0, 0, 0, 0], 0).into() };
                Ok(Self::Udp(Udp::bind(any)?))
            }
            Address::Memory(..) => {
                let mut paths = Vec::new();
                for &server in servers {
                    let Address::Memory(path, _) = server else {
                        return Err(mixed(first, server));
                    };
                    paths.push(path.clone());
                }
                Ok(Self::Shared(Shared::connect(paths)?))
            }
            Address::Ethernet(EthernetAddress { interface, .. }) => {
                let sought = sought(first, servers)?;
                Ok(Self::Ethernet(Ethernet::connect(*interface, sought)?))
            }
        }
    }

    /// Who is at an address, by this wire.
    ///
    /// # Panics
    /// At an address of another kind of wire.
    #[must_use]
    pub fn peer(&self, address: &Address) -> AnyPeer {
        match (self, address) {
            (Self::Udp(udp), &Address::Udp(at)) => {
                let at = if udp.is_v6() { as_v6(at) } else { at };
                AnyPeer::Udp(at.into())
            }
            (Self::Ethernet(_), Address::Ethernet(at)) => {
                AnyPeer::Ethernet(EthernetPeer::new(at.mac, at.port))
            }
            (Self::Shared(shared), Address::Memory(path, _)) => {
                AnyPeer::Shared(shared.server(path).expect("`connect` was told of it"))
            }
            _ => unreachable!("`connect` takes addresses of one kind"),
        }
    }
}

fn mixed(one: &Address, other: &Address) -> WireError {
    WireError::Mixed { one: one.clone(), other: other.clone() }
}

/// The port of the server that is to be found, if one is.
fn sought(first: &Address, servers: &[&Address]) -> Result<Option<u16>, WireError> {
    let mut sought: Option<&Address> = None;
    for &server in servers {
        match (first, server) {
            (Address::Ethernet(one), Address::Ethernet(other))
                if one.interface == other.interface =>
            {
                if other.mac.is_none() {
                    let known = *sought.get_or_insert(server);
                    if known != server {
                        let (one, other) = (known.clone(), server.clone());
                        return Err(WireError::SoughtTwice { one, other });
                    }
                }
            }
            _ => return Err(mixed(first, server)),
        }
    }
    Ok(sought.map(Address::port))
}

impl Wire for AnyWire {
    type Peer = AnyPeer;

    fn receive(&mut self, take: &mut dyn FnMut(&AnyPeer, &mut [u8])) -> io::Result<usize> {
        match self {
            Self::Udp(udp) => udp.receive(&mut |from, frame| take(&AnyPeer::Udp(*from), frame)),
            Self::Ethernet(ethernet) => {
                ethernet.receive(&mut |from, frame| take(&AnyPeer::Ethernet(*from), frame))
            }
            Self::Shared(shared) => {
                shared.receive(&mut |from, frame| take(&AnyPeer::Shared(*from), frame))
            }
        }
    }

    fn send(&mut self, to: &AnyPeer, header: &[u8; HEADER_BYTES], payload: &[u8]) {
        match (self, to) {
            (Self::Udp(udp), AnyPeer::Udp(to)) => udp.send(to, header, payload),
            (Self::Ethernet(ethernet), AnyPeer::Ethernet(to)) => ethernet.send(to, header, payload),
            (Self::Shared(shared), AnyPeer::Shared(to)) => shared.send(to, header, payload),
            _ => debug_assert!(false, "a peer of another wire"),
        }
    }

    fn flush(&mut self) {
        match self {
            Self::Udp(udp) => udp.flush(),
            Self::Ethernet(ethernet) => ethernet.flush(),
            Self::Shared(shared) => shared.flush(),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Udp(udp) => udp.descriptor(),
            Self::Ethernet(ethernet) => ethernet.descriptor(),
            Self::Shared(shared) => shared.descriptor(),
        }
    }

    fn window(&self) -> u32 {
        match self {
            Self::Udp(udp) => udp.window(),
            Self::Ethernet(ethernet) => ethernet.window(),
            Self::Shared(shared) => shared.window(),
        }
    }

    fn announce_sleep(&mut self) {
        match self {
            Self::Udp(udp) => udp.announce_sleep(),
            Self::Ethernet(ethernet) => ethernet.announce_sleep(),
            Self::Shared(shared) => shared.announce_sleep(),
        }
    }

    fn has_frames(&mut self) -> bool {
        match self {
            Self::Udp(udp) => udp.has_frames(),
            Self::Ethernet(ethernet) => ethernet.has_frames(),
            Self::Shared(shared) => shared.has_frames(),
        }
    }

    fn retract_sleep(&mut self) {
        match self {
            Self::Udp(udp) => udp.retract_sleep(),
            Self::Ethernet(ethernet) => ethernet.retract_sleep(),
            Self::Shared(shared) => shared.retract_sleep(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(servers: &[&str]) -> Result<AnyWire, String> {
        let servers: Vec<Address> =
            servers.iter().map(|server| server.parse().expect("an address")).collect();
        let servers: Vec<&Address> = servers.iter().collect();
        AnyWire::connect(&servers).map_err(|error| error.to_string())
    }

    #[test]
    fn servers_that_one_wire_does_not_reach_are_refused_with_their_names() {
        let mac = "02:00:00:00:00:01";
        for (servers, named) in [
            (["udp://10.0.0.1:7700", "eth://lo"], "udp://10.0.0.1:7700 and eth://lo:7700 cannot"),
            (["mem://a", "udp://10.0.0.1:7700"], "mem://a and udp://10.0.0.1:7700 cannot"),
            (["eth://a", "eth://b"], "eth://a:7700 and eth://b:7700 cannot"),
            (["eth://a:1", "eth://a:2"], "only one server"),
            (["eth://no-such-one", &format!("eth://no-such-one/{mac}")], "no network interface"),
        ] {
            let sentence = connect(&servers).expect_err("refused");
            assert!(sentence.contains(named), "{sentence}");
        }
        let elsewhere = format!("eth://lo/{mac}").parse().expect("an address");
        let sentence = AnyWire::listen(&elsewhere).expect_err("refused").to_string();
        assert!(sentence.contains("leave the hardware address out"), "{sentence}");
    }
}
