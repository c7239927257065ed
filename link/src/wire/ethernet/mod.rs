//! The wire over Ethernet itself: packet rings shared with the kernel, no IP.
//!
//! A server listens on a port of an interface, as a worker does on a UDP port. A
//! front may know only the interface: then it asks all of the network who listens
//! on the port, again each time that its frames stay without any answer, and speaks
//! to whoever says so first. Who that is in truth, the link's handshake finds out.

mod address;
pub mod packet;

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use thiserror::Error;

use self::packet::{Content, ETHER_TYPE, Endpoint, Mac};
use super::sys::interface;
use super::sys::packet_socket::{MAX_PACKET, PacketSocket, RECEIVE_SLOTS};
use crate::frame::{HEADER_BYTES, MAX_FRAME};
use crate::wire::{Peer, Wire};
pub use address::{EthernetAddress, EthernetAddressError, InterfaceName};

const _: () = assert!(packet::PREAMBLE_BYTES + MAX_FRAME <= MAX_PACKET);

/// Packets taken in one turn: half of the ring.
const RECEIVE_BURST: usize = RECEIVE_SLOTS / 2;

/// Bytes of frames that the ring holds for certain: a slot takes one frame,
/// however short; most of what comes in bursts has a block in it.
const WINDOW: u32 = (RECEIVE_SLOTS * 2048) as u32;

/// Ports from which fronts speak: the first that no other front of the interface
/// has.
const OWN_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// Bursts that a found server leaves without any answer before it is looked for
/// anew: it may have another interface now.
const PATIENCE: u32 = 64;

/// Turns without a packet after which a wire that never sleeps asks whether its
/// interface is still there.
const IDLE_TURNS: u32 = 1 << 20;

/// Who asked for us and is answered in one turn; the others ask again.
const SEEKERS: usize = 8;

/// Why there is no wire.
#[derive(Debug, Error)]
pub enum EthernetError {
    /// The interface is not there.
    #[error("there is no network interface {0}; `ip link` lists those there are")]
    NoInterface(InterfaceName),
    /// The kernel does not let this user.
    #[error(
        "speaking Ethernet on {0} takes the right CAP_NET_RAW; run as root, or give it with \
         `setcap cap_net_raw+ep` or AmbientCapabilities=CAP_NET_RAW"
    )]
    NotAllowed(InterfaceName),
    /// Another process of this host has the port.
    #[error("port {port} of {interface} is taken: is another server running?")]
    Taken {
        /// On which interface.
        interface: InterfaceName,
        /// Which port.
        port: u16,
    },
    /// It is not Ethernet (a tunnel, say).
    #[error("{0} is no Ethernet interface")]
    NoEthernet(InterfaceName),
    /// Anything else.
    #[error("cannot speak Ethernet on {interface}: {error}")]
    Kernel {
        /// On which interface.
        interface: InterfaceName,
        /// The kernel's reason.
        error: io::Error,
    },
}

/// A port of an Ethernet interface.
#[derive(Debug)]
pub struct Ethernet {
    interface: InterfaceName,
    index: NonZeroU32,
    us: Endpoint,
    socket: PacketSocket,
    /// Held while we live: nobody else on this host has our port.
    _claim: rustix::fd::OwnedFd,
    sought: Option<Sought>,
    /// Turns without a packet.
    idle_turns: u32,
    /// The interface was removed, and whether that was reported.
    gone: bool,
    reported: bool,
    broken_sends: u64,
}

/// The server whose interface is not known, or not for certain.
#[derive(Debug)]
struct Sought {
    port: u16,
    found: Option<Mac>,
    /// Frames wait to be sent to it.
    wanted: bool,
    /// Bursts that left since it was heard last.
    unanswered: u32,
    /// It was said that there are others.
    ambiguous: bool,
}

/// Where a server or a front is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EthernetPeer {
    /// Its interface; none means the server that is sought.
    mac: Option<Mac>,
    port: u16,
}

impl EthernetPeer {
    /// That port of that interface; without an interface, of whoever listens on
    /// the port that the wire seeks.
    #[must_use]
    pub const fn new(mac: Option<Mac>, port: u16) -> Self {
        Self { mac, port }
    }
}

impl Peer for EthernetPeer {
    fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }
}

impl Ethernet {
    /// A server's wire, on this port.
    ///
    /// # Errors
    /// [`EthernetError`].
    pub fn listen(interface: InterfaceName, port: u16) -> Result<Self, EthernetError> {
        Self::open(interface, Some(port), None)
    }

    /// A front's wire, on a free port. With `sought` it looks for who listens
    /// there, which then is the peer without an interface.
    ///
    /// # Errors
    /// [`EthernetError`].
    pub fn connect(interface: InterfaceName, sought: Option<u16>) -> Result<Self, EthernetError> {
        Self::open(interface, None, sought)
    }

    fn open(
        interface: InterfaceName,
        port: Option<u16>,
        sought: Option<u16>,
    ) -> Result<Self, EthernetError> {
        let kernel = |error| EthernetError::Kernel { interface, error };
        let index = interface::index_of(interface.as_str());
        let index = index.ok_or(EthernetError::NoInterface(interface))?;
        let claimed = match port {
            Some(port) => claim(index, port).map(|claimed| claimed.map(|fd| (fd, port))),
            None => claim_any(index),
        };
        let taken = || EthernetError::Taken { interface, port: port.unwrap_or(0) };
        let (claim, port) = claimed.map_err(kernel)?.ok_or_else(taken)?;
        let socket = PacketSocket::new(port.to_le_bytes()).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => EthernetError::NotAllowed(interface),
            _ => kernel(error),
        })?;
        let mac = socket.bind(index, ETHER_TYPE).map_err(|error| match error.kind() {
            io::ErrorKind::Unsupported => EthernetError::NoEthernet(interface),
            _ => kernel(error),
        })?;
        // The loopback's address is all zeroes.
        let mac = Mac::new(mac).ok_or(EthernetError::NoEthernet(interface))?;
        let sought = sought.map(|port| Sought {
            port,
            found: None,
            wanted: false,
            unanswered: 0,
            ambiguous: false,
        });
        Ok(Self {
            interface,
            index,
            us: Endpoint { mac, port },
            socket,
            _claim: claim,
            sought,
            idle_turns: 0,
            gone: false,
            reported: false,
            broken_sends: 0,
        })
    }

    /// The interface's address and our port.
    #[must_use]
    pub fn endpoint(&self) -> Endpoint {
        self.us
    }

    fn send_packet(&mut self, parts: &[&[u8]]) {
        // What there is no room for is lost, as in a switch.
        let _ = self.socket.send(parts);
    }

    fn answer(&mut self, seekers: &[Endpoint]) {
        for &seeker in seekers {
            self.send_packet(&[&packet::here(self.us, seeker)]);
        }
        if !seekers.is_empty() {
            self.flush();
        }
    }

    /// The interface has had an error, or the wire has been idle for long: is it
    /// still the one that we are bound to?
    fn look_after_interface(&mut self) {
        self.idle_turns = 0;
        if self.socket.take_error().is_some() && !self.is_there() {
            self.gone = true;
        }
    }

    fn is_there(&self) -> bool {
        interface::index_of(self.interface.as_str()) == Some(self.index)
    }

    /// An interface of our name may have come in the place of one that is gone.
    fn come_back(&mut self) {
        let Some(index) = interface::index_of(self.interface.as_str()) else { return };
        let bound = self.socket.bind(index, ETHER_TYPE).ok().and_then(Mac::new);
        if let Some(mac) = bound {
            tracing::info!(interface = %self.interface, "the interface is back");
            (self.index, self.us.mac) = (index, mac);
            (self.gone, self.reported) = (false, false);
        }
    }

    fn note_error(&mut self, error: &io::Error) {
        if error.raw_os_error() == Some(libc::ENXIO) {
            self.gone = !self.is_there();
        }
        self.broken_sends += 1;
        if self.broken_sends.is_power_of_two() {
            let (interface, times) = (self.interface, self.broken_sends);
            tracing::warn!(%interface, %error, times, "cannot send");
        }
    }
}

impl Sought {
    /// A server says that it listens.
    fn hear(&mut self, interface: InterfaceName, from: Endpoint) {
        match self.found {
            Some(found) if found == from.mac => self.unanswered = 0,
            Some(found) if self.unanswered < PATIENCE => {
                if !self.ambiguous {
                    tracing::warn!(
                        "two servers listen on port {} of the network at {interface}: {found} and \
                         {}; this front has the first. Name one: eth://{interface}:{}/{found}",
                        self.port,
                        from.mac,
                        self.port
                    );
                }
                self.ambiguous = true;
            }
            _ => {
                tracing::info!(%interface, server = %from.mac, "found a server");
                self.found = Some(from.mac);
                self.unanswered = 0;
            }
        }
    }

    /// Whether it is time to ask: nobody is known, or who is known is silent.
    fn is_due(&mut self) -> bool {
        if !std::mem::take(&mut self.wanted) {
            return false;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        self.found.is_none() || self.unanswered >= PATIENCE && self.unanswered.is_multiple_of(8)
    }
}

/// Takes a port of an interface for this process, in its network namespace; none
/// when another has it. The kernel knows no ports of ours, so a name of a socket
/// that nothing is sent to stands for each.
fn claim(index: NonZeroU32, port: u16) -> io::Result<Option<rustix::fd::OwnedFd>> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let name = format!("vrio/eth/{index}/{port}");
    match bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?) {
        Ok(()) => Ok(Some(socket)),
        Err(rustix::io::Errno::ADDRINUSE) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn claim_any(index: NonZeroU32) -> io::Result<Option<(rustix::fd::OwnedFd, u16)>> {
    for port in OWN_PORTS {
        if let Some(claimed) = claim(index, port)? {
            return Ok(Some((claimed, port)));
        }
    }
    Ok(None)
}

impl Wire for Ethernet {
    type Peer = EthernetPeer;

    /// An error when the interface was removed: a server is started anew for
    /// another one, a front goes on when one of that name is there again. An
    /// interface that is merely down is waited for.
    fn receive(&mut self, take: &mut dyn FnMut(&EthernetPeer, &mut [u8])) -> io::Result<usize> {
        if self.gone && !std::mem::replace(&mut self.reported, true) {
            let gone = format!("the network interface {} was removed", self.interface);
            return Err(io::Error::new(io::ErrorKind::NotConnected, gone));
        }
        let (mut packets, mut frames) = (0, 0);
        let (mut seekers, mut asked) = ([self.us; SEEKERS], 0);
        let found = self.sought.as_ref().and_then(|sought| sought.found);
        let mut heard = false;
        while packets < RECEIVE_BURST {
            let Some(mut received) = self.socket.receive() else { break };
            packets += 1;
            let Ok((from, content)) = packet::parse(received.bytes(), received.vlan, self.us)
            else {
                continue;
            };
            match content {
                Content::Frame(length) => {
                    let frame = &mut received.bytes_mut()[packet::PREAMBLE_BYTES..][..length];
                    let is_sought = Some(from.mac) == found;
                    heard |= is_sought;
                    let mac = Some(from.mac).filter(|_| !is_sought);
                    take(&EthernetPeer::new(mac, from.port), frame);
                    frames += 1;
                }
                Content::Seek if asked < SEEKERS => {
                    seekers[asked] = from;
                    asked += 1;
                }
                Content::Seek => {}
                Content::Here => {
                    if let Some(sought) = self.sought.as_mut().filter(|s| s.port == from.port) {
                        sought.hear(self.interface, from);
                    }
                }
            }
        }
        self.answer(&seekers[..asked]);
        if let Some(sought) = self.sought.as_mut().filter(|_| heard) {
            sought.unanswered = 0;
        }
        if packets == 0 {
            self.idle_turns += 1;
            if self.idle_turns >= IDLE_TURNS {
                self.look_after_interface();
            }
        }
        Ok(frames)
    }

    fn send(&mut self, to: &EthernetPeer, header: &[u8; HEADER_BYTES], payload: &[u8]) {
        let mac = match (to.mac, &mut self.sought) {
            (Some(mac), _) => mac,
            (None, Some(sought)) => {
                sought.wanted = true;
                // Until it is found, frames are lost; the link repeats them.
                let Some(found) = sought.found else { return };
                found
            }
            (None, None) => return,
        };
        let to = Endpoint { mac, port: to.port };
        let length = HEADER_BYTES + payload.len();
        let preamble = packet::preamble_of_frame(self.us, to, length);
        self.send_packet(&[&preamble, header, payload]);
    }

    fn flush(&mut self) {
        if self.gone {
            self.come_back();
        }
        if let Some(sought) = &mut self.sought
            && sought.is_due()
        {
            let seek = packet::seek(self.us, sought.port);
            self.send_packet(&[&seek]);
        }
        if let Err(error) = self.socket.flush() {
            self.note_error(&error);
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn window(&self) -> u32 {
        WINDOW
    }

    /// The socket rings unasked; but what became of its interface it says only
    /// when it is asked, and would then wake us for it again and again.
    fn announce_sleep(&mut self) {
        self.look_after_interface();
    }
}
