//! The wire over UDP: batched both ways, with segmentation and coalescing in
//! the kernel where it has them.
//!
//! Frames to one peer that have one size leave in one call. The socket never
//! fragments: a frame that is too large for the path is lost, which is how the
//! handshake finds the segment size.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use quinn_udp::{Transmit, UdpSocketState};
use rustix::net::sockopt;

use crate::frame::{HEADER_BYTES, MAX_FRAME};
use crate::wire::sys::datagrams::{self, Envelope};
use crate::wire::{Peer, Wire};

/// What one call to the kernel may carry: the largest IP packet.
const BATCH_BYTES: usize = 65_507;
const _: () = assert!(MAX_FRAME <= BATCH_BYTES);

/// Datagrams (each perhaps a coalesced burst) taken by one call.
const RECEIVE_DATAGRAMS: usize = 8;

/// Calls per turn: with coalescing up to 512 KiB each, so a turn is bounded
/// and no socket buffer's worth is left lying.
const RECEIVE_CALLS: usize = 4;

/// Where a datagram begins in its part of the receive buffer. Payloads then
/// lie 64 bytes or more past a page's start, away from the distance at which
/// this processor family copies slowly (1 to 31 bytes modulo 4096).
const RECEIVE_OFFSET: usize = 64;
const RECEIVE_STRIDE: usize = 68 * 1024;
const _: () = assert!(RECEIVE_OFFSET + 65_536 <= RECEIVE_STRIDE);

/// Bytes asked of the kernel for each direction of the socket.
const SOCKET_BUFFER: usize = 8 << 20;

/// One UDP socket.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    v6: bool,
    /// It is bound to no address: what it answers leaves from the one that was asked.
    any: bool,
    window: u32,
    received: Box<[u8]>,
    envelopes: [Envelope; RECEIVE_DATAGRAMS],
    batch: Batch,
    broken_sends: u64,
}

/// Frames of one size to one peer, end to end.
#[derive(Debug)]
struct Batch {
    room: Box<[u8]>,
    /// Bytes of the room that are filled.
    bytes: usize,
    to: Option<UdpPeer>,
    /// Bytes of each frame but the last, which may be shorter.
    frame: usize,
    frames: usize,
    /// How many more it takes. A shorter one is the last: the kernel cuts at equal
    /// distances.
    left: usize,
}

/// A host and port, and which of our own addresses it speaks to: what is sent
/// to it leaves from there, since a peer believes only the address it asked.
#[derive(Clone, Copy)]
pub struct UdpPeer {
    address: SocketAddr,
    local: Option<IpAddr>,
}

impl From<SocketAddr> for UdpPeer {
    fn from(address: SocketAddr) -> Self {
        Self { address, local: None }
    }
}

/// Whom it is, not how it is reached.
impl PartialEq for UdpPeer {
    fn eq(&self, other: &Self) -> bool {
        self.address == other.address
    }
}

impl Eq for UdpPeer {}

impl Hash for UdpPeer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address.hash(state);
    }
}

impl fmt::Debug for UdpPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

impl Peer for UdpPeer {
    fn with_port(mut self, port: u16) -> Self {
        self.address.set_port(port);
        self
    }
}

impl Udp {
    /// A socket bound to `address`; port 0 picks a free one.
    ///
    /// # Errors
    /// The kernel's: the address is in use or not this host's.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(address)?;
        let state = set_up(&socket)?;
        // The forced variant passes the system's limit but takes a privilege.
        if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER)?;
        }
        sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER)?;
        // The kernel counts its own overhead too, about as much as the data.
        let window = state.recv_buffer_size((&socket).into())? / 2;
        let local = socket.local_addr()?;
        Ok(Self {
            window: u32::try_from(window).unwrap_or(u32::MAX),
            received: vec![0; RECEIVE_DATAGRAMS * RECEIVE_STRIDE].into_boxed_slice(),
            envelopes: [Envelope::EMPTY; RECEIVE_DATAGRAMS],
            batch: Batch::new(),
            broken_sends: 0,
            v6: local.is_ipv6(),
            any: local.ip().is_unspecified(),
            socket,
            state,
        })
    }

    /// The address that the socket is bound to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Whether it is an IPv6 socket, which names IPv4 hosts in IPv6's way.
    pub(super) fn is_v6(&self) -> bool {
        self.v6
    }

    fn send_batch(&mut self) {
        let Some(to) = self.batch.to.take() else { return };
        let segment_size = (self.batch.frames > 1).then_some(self.batch.frame);
        let bytes = &self.batch.room[..self.batch.bytes];
        if let Err(error) = transmit(&self.socket, &self.state, to, bytes, segment_size) {
            if segment_size.is_some() && error.kind() != io::ErrorKind::WouldBlock {
                self.send_singly(to);
            } else {
                self.note_error(to, &error);
            }
        }
        self.batch.left = 0;
    }

    /// Sends the frames of a batch one by one: the kernel takes none of a batch
    /// in which some are too large for the path.
    fn send_singly(&mut self, to: UdpPeer) {
        let mut too_large = false;
        for start in (0..self.batch.bytes).step_by(self.batch.frame) {
            let end = self.batch.bytes.min(start + self.batch.frame);
            let frame = &self.batch.room[start..end];
            if let Err(error) = transmit(&self.socket, &self.state, to, frame, None) {
                too_large |= quinn_udp::is_msg_size_err(&error);
                self.note_error(to, &error);
            }
        }
        // It was the path's fault, not that of batches: they are used again.
        if too_large && let Ok(state) = set_up(&self.socket) {
            self.state = state;
        }
    }

    fn note_error(&mut self, to: UdpPeer, error: &io::Error) {
        // The probes for a larger segment size are meant to fail on some
        // paths; a full socket loses frames as a full switch would.
        if quinn_udp::is_msg_size_err(error) || error.kind() == io::ErrorKind::WouldBlock {
            return;
        }
        self.broken_sends += 1;
        if self.broken_sends.is_power_of_two() {
            let (to, times) = (to.address, self.broken_sends);
            tracing::warn!(%to, %error, times, "cannot send");
        }
    }
}

/// Batches both ways, and which of our addresses was asked.
fn set_up(socket: &UdpSocket) -> io::Result<UdpSocketState> {
    let state = UdpSocketState::new(socket.into())?;
    // It asks for each datagram's type of service, which nobody here reads. What an
    // older kernel cannot be asked for it does not tell either.
    let _ = sockopt::set_ip_recvtos(socket, false);
    let _ = sockopt::set_ipv6_recvtclass(socket, false);
    Ok(state)
}

fn transmit(
    socket: &UdpSocket,
    state: &UdpSocketState,
    to: UdpPeer,
    contents: &[u8],
    segment_size: Option<usize>,
) -> io::Result<()> {
    let UdpPeer { address: destination, local: src_ip } = to;
    let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip };
    state.try_send(socket.into(), &transmit)
}

impl Batch {
    fn new() -> Self {
        let room = vec![0; BATCH_BYTES].into_boxed_slice();
        Self { room, bytes: 0, to: None, frame: 0, frames: 0, left: 0 }
    }

    /// Begins anew, with frames of so many bytes, and so many at `most`.
    fn begin(&mut self, to: UdpPeer, frame: usize, most: usize) {
        let left = most.min(BATCH_BYTES / frame);
        (self.bytes, self.to, self.frame, self.frames, self.left) = (0, Some(to), frame, 0, left);
    }

    fn takes(&self, to: &UdpPeer, frame: usize) -> bool {
        self.left > 0 && frame <= self.frame && self.to.as_ref() == Some(to)
    }

    fn push(&mut self, header: &[u8; HEADER_BYTES], payload: &[u8]) {
        let frame = HEADER_BYTES + payload.len();
        let (head, rest) = self.room[self.bytes..][..frame].split_at_mut(HEADER_BYTES);
        head.copy_from_slice(header);
        rest.copy_from_slice(payload);
        self.bytes += frame;
        self.frames += 1;
        self.left = if frame < self.frame { 0 } else { self.left - 1 };
    }
}

impl Wire for Udp {
    type Peer = UdpPeer;

    fn receive(&mut self, take: &mut dyn FnMut(&UdpPeer, &mut [u8])) -> io::Result<usize> {
        let mut frames = 0;
        for _ in 0..RECEIVE_CALLS {
            let mut parts = self.received.chunks_exact_mut(RECEIVE_STRIDE);
            let mut places: [IoSliceMut<'_>; RECEIVE_DATAGRAMS] = std::array::from_fn(|_| {
                IoSliceMut::new(parts.next().map_or(&mut [], |part| &mut part[RECEIVE_OFFSET..]))
            });
            let socket = self.socket.as_fd();
            let count = match datagrams::receive(socket, &mut places, &mut self.envelopes) {
                Ok(count) => count,
                Err(error) => match error.kind() {
                    // A peer's "port unreachable" comes back here; it will be back
                    // or not, and a timer of the session finds out.
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::Interrupted => continue,
                    _ => return Err(error),
                },
            };
            let parts = self.received.chunks_exact_mut(RECEIVE_STRIDE);
            for (envelope, part) in self.envelopes[..count].iter().zip(parts) {
                let Some(letter) = envelope.read() else { continue };
                let from = UdpPeer { address: letter.from, local: letter.to.filter(|_| self.any) };
                let burst = &mut part[RECEIVE_OFFSET..][..letter.bytes];
                for frame in burst.chunks_mut(letter.each.max(1)) {
                    take(&from, frame);
                    frames += 1;
                }
            }
            if count < RECEIVE_DATAGRAMS {
                break;
            }
        }
        Ok(frames)
    }

    fn send(&mut self, to: &UdpPeer, header: &[u8; HEADER_BYTES], payload: &[u8]) {
        let frame = HEADER_BYTES + payload.len();
        if !self.batch.takes(to, frame) {
            self.send_batch();
            self.batch.begin(*to, frame, self.state.max_gso_segments());
        }
        self.batch.push(header, payload);
    }

    fn flush(&mut self) {
        self.send_batch();
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn window(&self) -> u32 {
        self.window
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    fn pair() -> (Udp, Udp) {
        (bind(Ipv4Addr::LOCALHOST), bind(Ipv4Addr::LOCALHOST))
    }

    fn bind(address: impl Into<IpAddr>) -> Udp {
        Udp::bind(SocketAddr::new(address.into(), 0)).expect("a socket")
    }

    fn receive(wire: &mut Udp, frames: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        while all.len() < frames && std::time::Instant::now() < end {
            wire.receive(&mut |_, frame| all.push(frame.to_vec())).expect("receive");
        }
        all
    }

    /// Bursts are joined on the way out and may be joined on the way in; each
    /// frame must come out as it went in, also where sizes change.
    #[test]
    fn frames_of_changing_sizes_keep_their_borders() {
        keep_their_borders(bind(Ipv4Addr::LOCALHOST), bind(Ipv4Addr::LOCALHOST));
        keep_their_borders(bind(Ipv6Addr::LOCALHOST), bind(Ipv6Addr::LOCALHOST));
    }

    fn keep_their_borders(mut here: Udp, mut there: Udp) {
        let to = UdpPeer::from(there.local_address().expect("address"));
        let sizes = [4096, 4096, 4096, 100, 4096, 0, 0, 0, 8192, 8192, 512, 1368, 1368, 8192];
        for (mark, size) in (0..).zip(sizes) {
            here.send(&to, &[mark; HEADER_BYTES], &vec![mark; size]);
        }
        here.flush();
        let frames = receive(&mut there, sizes.len());
        assert_eq!(frames.len(), sizes.len());
        for ((mark, size), frame) in (0..).zip(sizes).zip(&frames) {
            assert_eq!(frame.len(), HEADER_BYTES + size);
            assert!(frame.iter().all(|&byte| byte == mark));
        }
    }

    #[test]
    fn a_batch_larger_than_a_packet_is_cut_not_lost() {
        let (mut here, mut there) = pair();
        let to = UdpPeer::from(there.local_address().expect("address"));
        for mark in 0..100 {
            here.send(&to, &[mark; HEADER_BYTES], &[mark; 4096]);
        }
        here.flush();
        let marks: Vec<u8> = receive(&mut there, 100).iter().map(|frame| frame[0]).collect();
        assert_eq!(marks, (0..100).collect::<Vec<u8>>());
    }

    /// A server that listens on all addresses was asked at one of them: the
    /// answer must come from that one, or the front does not believe it.
    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        let any = || bind(Ipv4Addr::UNSPECIFIED);
        answers_from(any(), any(), Ipv4Addr::new(127, 0, 0, 77).into());
        let any = || bind(Ipv6Addr::UNSPECIFIED);
        answers_from(any(), any(), Ipv6Addr::LOCALHOST.into());
        // An IPv4 host in IPv6's way.
        answers_from(any(), any(), Ipv4Addr::new(127, 0, 0, 77).to_ipv6_mapped().into());
    }

    fn answers_from(mut server: Udp, mut front: Udp, address: IpAddr) {
        let port = server.local_address().expect("address").port();
        let asked: UdpPeer = SocketAddr::new(address, port).into();
        front.send(&asked, &[1; HEADER_BYTES], &[]);
        front.flush();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(5);
        let mut answered = None;
        while answered.is_none() && std::time::Instant::now() < end {
            let mut asking = Vec::new();
            server.receive(&mut |from, _| asking.push(*from)).expect("receive");
            for from in asking {
                server.send(&from, &[2; HEADER_BYTES], &[]);
                server.flush();
            }
            front.receive(&mut |from, _| answered = Some(*from)).expect("receive");
        }
        assert_eq!(answered, Some(asked));
    }

    #[test]
    fn a_peer_that_is_not_there_breaks_nothing() {
        let (mut here, there) = pair();
        let to = UdpPeer::from(there.local_address().expect("address"));
        drop(there);
        for _ in 0..3 {
            here.send(&to, &[0; HEADER_BYTES], &[]);
            here.flush();
            std::thread::sleep(std::time::Duration::from_millis(5));
            here.receive(&mut |_, _| {}).expect("still usable");
        }
    }
}
