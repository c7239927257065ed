//! Datagrams, many in one call (recvmmsg(2)), and what the kernel tells of each.

use std::io::{self, IoSliceMut};
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Room for who sent it: the larger of `sockaddr_in` and `sockaddr_in6`.
const NAME_BYTES: usize = size_of::<libc::sockaddr_in6>();

/// Bytes before the data of a control message, which begins at a multiple of 8, as the
/// next message does (cmsg(3)).
const CONTROL_HEADER: usize = size_of::<libc::cmsghdr>();
const _: () = assert!(CONTROL_HEADER == 16);

/// Room for two control messages: how long the datagrams were that the kernel has
/// joined, and which of our addresses they were sent to.
const CONTROL_BYTES: usize =
    2 * CONTROL_HEADER + 8 + size_of::<libc::in6_pktinfo>().next_multiple_of(8);

/// What the kernel tells of a datagram, or of several that it has joined.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(in crate::wire) struct Envelope {
    control: [u8; CONTROL_BYTES],
    control_bytes: usize,
    name: [u8; NAME_BYTES],
    bytes: usize,
}

/// An [`Envelope`], read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::wire) struct Letter {
    /// Who sent it.
    pub(in crate::wire) from: SocketAddr,
    /// Which of our addresses it was sent to.
    pub(in crate::wire) to: Option<IpAddr>,
    /// Bytes of all datagrams together.
    pub(in crate::wire) bytes: usize,
    /// Bytes of each but the last, which may be shorter.
    pub(in crate::wire) each: usize,
}

/// Takes what has come to a socket that does not block, at most one datagram, or several
/// that the kernel has joined, for each place; how many places were filled.
///
/// # Errors
/// The kernel's. That nothing has come is none.
pub(in crate::wire) fn receive<const N: usize>(
    socket: BorrowedFd<'_>,
    places: &mut [IoSliceMut<'_>; N],
    envelopes: &mut [Envelope; N],
) -> io::Result<usize> {
    // SAFETY: it consists of integers and pointers, of which zeroes are valid values.
    let mut headers: [libc::mmsghdr; N] = unsafe { std::mem::zeroed() };
    let ways = places.iter_mut().zip(envelopes.iter_mut());
    for (libc::mmsghdr { msg_hdr: header, .. }, (place, envelope)) in headers.iter_mut().zip(ways) {
        header.msg_name = envelope.name.as_mut_ptr().cast();
        header.msg_namelen = NAME_BYTES as libc::socklen_t;
        header.msg_iov = ptr::from_mut(place).cast();
        header.msg_iovlen = 1;
        header.msg_control = envelope.control.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_BYTES;
    }
    // SAFETY: each header names a sender's place and a control area in an envelope, of
    // their lengths, and one slice of bytes, which has the layout of an `iovec`. All are
    // borrowed mutably until after the call, which keeps none of them. The kernel writes
    // bytes alone, of which every value is valid.
    let count = unsafe {
        libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), N as u32, 0, ptr::null_mut())
    };
    let Ok(count) = usize::try_from(count) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(0) } else { Err(error) };
    };
    for (header, envelope) in headers[..count].iter().zip(envelopes) {
        envelope.bytes = header.msg_len as usize;
        envelope.control_bytes = header.msg_hdr.msg_controllen.min(CONTROL_BYTES);
    }
    Ok(count)
}

impl Envelope {
    /// One that nothing was received with.
    pub(in crate::wire) const EMPTY: Self =
        Self { control: [0; CONTROL_BYTES], control_bytes: 0, name: [0; NAME_BYTES], bytes: 0 };

    /// What it says; `None` if its sender has no IP address.
    pub(in crate::wire) fn read(&self) -> Option<Letter> {
        let mut letter =
            Letter { from: self.sender()?, to: None, bytes: self.bytes, each: self.bytes };
        let mut rest = &self.control[..self.control_bytes];
        while let Some((message, after)) = split_control(rest) {
            match message {
                Control::Joined { each } => letter.each = each,
                Control::SentTo(address) => letter.to = Some(address),
                Control::Other => {}
            }
            rest = after;
        }
        Some(letter)
    }

    /// `sockaddr_in` or `sockaddr_in6` (ip(7), ipv6(7)).
    fn sender(&self) -> Option<SocketAddr> {
        let name = &self.name;
        let port = u16::from_be_bytes(part(name, 2)?);
        match i32::from(u16::from_ne_bytes(part(name, 0)?)) {
            libc::AF_INET => {
                let address = Ipv4Addr::from(part::<4>(name, 4)?);
                Some(SocketAddrV4::new(address, port).into())
            }
            libc::AF_INET6 => {
                let flow = u32::from_be_bytes(part(name, 4)?);
                let address = Ipv6Addr::from(part::<16>(name, 8)?);
                let scope = u32::from_ne_bytes(part(name, 24)?);
                Some(SocketAddrV6::new(address, port, flow, scope).into())
            }
            _ => None,
        }
    }
}

/// A control message.
enum Control {
    /// Datagrams were joined; each but the last has so many bytes.
    Joined {
        each: usize,
    },
    /// Which of our addresses they were sent to.
    SentTo(IpAddr),
    Other,
}

/// The first control message (`cmsghdr`), and what follows it.
fn split_control(messages: &[u8]) -> Option<(Control, &[u8])> {
    let length = usize::from_ne_bytes(part(messages, 0)?);
    let kind = (i32::from_ne_bytes(part(messages, 8)?), i32::from_ne_bytes(part(messages, 12)?));
    let data = messages.get(CONTROL_HEADER..length)?;
    let message = match kind {
        (libc::SOL_UDP, libc::UDP_GRO) => {
            let each = i32::from_ne_bytes(part(data, 0)?);
            Control::Joined { each: usize::try_from(each).ok()? }
        }
        // `in_pktinfo` has an interface and the address to answer from first.
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            Control::SentTo(Ipv4Addr::from(part::<4>(data, 8)?).into())
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            Control::SentTo(Ipv6Addr::from(part::<16>(data, 0)?).into())
        }
        _ => Control::Other,
    };
    let next = length.next_multiple_of(8).min(messages.len());
    Some((message, &messages[next..]))
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
