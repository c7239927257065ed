//! A UDP socket between two that know each other. Messages leave in bursts that the
//! kernel cuts; received bursts may be joined.

use std::io::{self, IoSlice};
use std::net::{SocketAddr, UdpSocket};

use anyhow::Context;
use rustix::net::{SendAncillaryBuffer, SendFlags, sockopt};

use crate::message::{FULL, HEADER, read};
use crate::ring::Request;
use crate::sys;

/// Bytes asked of the kernel for each direction.
const SOCKET_BUFFER: usize = 8 << 20;

/// The largest packet, which is also what a burst may carry.
const BURST: usize = 65_507;

/// Where a burst begins in its buffer, which begins at a page: away from the distance
/// at which some processors copy slowly (1 to 31 bytes modulo 4096).
const OFFSET: usize = 64;

/// Messages with a block that one burst carries.
pub(crate) const FULL_BURST: usize = BURST / FULL;

/// Messages without a block that one burst carries: the kernel cuts no burst into more
/// than 64.
pub(crate) const BARE_BURST: usize = 32;

const _: () = assert!(FULL_BURST == 15 && BARE_BURST * HEADER < BURST);

/// A socket and what it received last.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UdpSocket,
    cut: usize,
    received: Vec<u8>,
    start: usize,
}

impl Socket {
    pub(crate) fn connect(here: SocketAddr, there: SocketAddr) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind(here).with_context(|| format!("cannot listen at {here}"))?;
        socket.connect(there).with_context(|| format!("cannot reach {there}"))?;
        socket.set_nonblocking(true)?;
        // The forced ones pass the system's limits, and take a privilege.
        if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER)?;
        }
        sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER)?;
        sys::join(&socket).context("this kernel does not join datagrams")?;
        let received = vec![0; 2 * 4096 + BURST];
        let start = received.as_ptr().align_offset(4096) + OFFSET;
        Ok(Self { socket, cut: 0, received, start })
    }

    /// Sends messages of `size` bytes that lie end to end in `parts`.
    pub(crate) fn send(&mut self, parts: &[IoSlice<'_>], size: usize) -> anyhow::Result<()> {
        if self.cut != size {
            sys::cut_at(&self.socket, size).context("this kernel cuts no bursts")?;
            self.cut = size;
        }
        loop {
            let mut none = SendAncillaryBuffer::default();
            match rustix::net::sendmsg(&self.socket, parts, &mut none, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                // A full socket, and what a peer has not opened yet.
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => {}
                Err(rustix::io::Errno::CONNREFUSED) => {}
                Err(error) => return Err(error).context("cannot send"),
            }
        }
    }

    /// Takes the next burst and shows its messages; false when there is none. `carries`
    /// says which of them have a block; all of a burst are alike.
    pub(crate) fn receive(
        &mut self,
        carries: fn(Request) -> bool,
        mut take: impl FnMut(Request, &[u8]),
    ) -> anyhow::Result<bool> {
        let buffer = &mut self.received[self.start..][..BURST];
        let length = match self.socket.recv(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(false),
            Err(error) => return Err(error).context("cannot receive"),
        };
        let Some(first) = read(&buffer[..length]) else { return Ok(true) };
        let size = if carries(first) { FULL } else { HEADER };
        for message in buffer[..length].chunks_exact(size) {
            if let Some(request) = read(message) {
                take(request, &message[HEADER..]);
            }
        }
        Ok(true)
    }
}
