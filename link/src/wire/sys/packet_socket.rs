//! A packet socket with one ring for each direction (`TPACKET_V2`), which the
//! kernel and this process share: a packet is taken and given by its slot's
//! status word, and one system call sends all that are queued.

use std::io;
use std::mem::size_of;
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

/// What the kernel takes at a time; a slot does not cross its end.
const BLOCK_BYTES: usize = 64 * 1024;

/// Slots in a block: each holds the kernel's header, the largest frame and what
/// Ethernet and the wire put before it.
const SLOTS_PER_BLOCK: usize = 7;

/// Bytes from one slot to the next: a multiple of the kernel's alignment.
const SLOT_BYTES: usize = BLOCK_BYTES / SLOTS_PER_BLOCK / 16 * 16;

/// Most bytes of a packet in a slot, with its Ethernet header. The kernel's own
/// header, a socket address and the alignment of the network header stay below
/// 128 bytes.
pub(in crate::wire) const MAX_PACKET: usize = SLOT_BYTES - 128;

/// Slots of the ring of received packets: between two turns so many may arrive.
pub(in crate::wire) const RECEIVE_SLOTS: usize = 147 * SLOTS_PER_BLOCK;

/// Slots of the ring of packets to send: a burst. A fuller turn sends twice.
const SEND_SLOTS: usize = 74 * SLOTS_PER_BLOCK;

const RECEIVE_BYTES: usize = RECEIVE_SLOTS / SLOTS_PER_BLOCK * BLOCK_BYTES;
const MAPPED_BYTES: usize = RECEIVE_BYTES + SEND_SLOTS / SLOTS_PER_BLOCK * BLOCK_BYTES;

/// Where the data of a packet to send begins in its slot.
const SEND_OFFSET: usize = size_of::<libc::tpacket2_hdr>();
const _: () = assert!(SEND_OFFSET == 32 && SEND_OFFSET + MAX_PACKET <= SLOT_BYTES);

/// The word by which a slot changes its owner, at its start.
const STATUS_BYTES: usize = size_of::<u32>();

/// A packet socket on one interface.
#[derive(Debug)]
pub(in crate::wire) struct PacketSocket {
    socket: OwnedFd,
    rings: Rings,
    /// The slot that the kernel fills next, and the one that we fill next.
    next_received: usize,
    next_sent: usize,
    queued: bool,
}

/// A packet in its slot, which goes back to the kernel when this is dropped.
#[derive(Debug)]
pub(in crate::wire) struct Received<'a> {
    bytes: &'a mut [u8],
    /// The tag of a virtual network, which the kernel has cut out.
    pub(in crate::wire) vlan: Option<u16>,
    status: &'a AtomicU32,
}

impl Received<'_> {
    /// From its Ethernet header on; only the first part of one that was larger
    /// than a slot.
    pub(in crate::wire) fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// The same, to be opened in place.
    pub(in crate::wire) fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        // Release: what was read of the slot was read before it is filled again.
        self.status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

impl PacketSocket {
    /// A socket that hears nothing before [`PacketSocket::bind`], and then only
    /// packets whose two bytes after the EtherType are `to`.
    ///
    /// # Errors
    /// The kernel's: this process may not make packet sockets, or there is no
    /// memory for the rings.
    pub(in crate::wire) fn new(to: [u8; 2]) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointer is passed.
        let socket = checked(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
        // SAFETY: the kernel has just given this descriptor to us alone.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        hear_only(&socket, to)?;
        set(&socket, libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as libc::c_int))?;
        // A packet that the interface does not take is lost, as in a switch, and
        // not kept at the head of the ring.
        set(&socket, libc::PACKET_LOSS, &1_i32)?;
        // Straight to the driver. Older kernels have no such option: slower.
        let _ = set(&socket, libc::PACKET_QDISC_BYPASS, &1_i32);
        set(&socket, libc::PACKET_RX_RING, &ring(RECEIVE_SLOTS))?;
        set(&socket, libc::PACKET_TX_RING, &ring(SEND_SLOTS))?;
        let rings = Rings::map(&socket)?;
        Ok(Self { socket, rings, next_received: 0, next_sent: 0, queued: false })
    }

    /// Hears and speaks packets of this EtherType on this interface from now on;
    /// its hardware address.
    ///
    /// # Errors
    /// The kernel's: the interface is not there any more, or is no Ethernet.
    pub(in crate::wire) fn bind(&self, index: NonZeroU32, kind: u16) -> io::Result<[u8; 6]> {
        let mut address = link_layer(index, kind);
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let pointer = ptr::from_mut(&mut address).cast::<libc::sockaddr>();
        // SAFETY: the address is valid for its length during the call.
        checked(unsafe { libc::bind(self.socket.as_raw_fd(), pointer, length) })?;
        // SAFETY: the kernel writes at most `length` bytes to the address.
        checked(unsafe { libc::getsockname(self.socket.as_raw_fd(), pointer, &raw mut length) })?;
        if address.sll_halen != 6 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let [a, b, c, d, e, f, ..] = address.sll_addr;
        Ok([a, b, c, d, e, f])
    }

    /// The oldest packet that has arrived.
    pub(in crate::wire) fn receive(&mut self) -> Option<Received<'_>> {
        let slot = self.rings.received(self.next_received);
        // Acquire: the packet is read after the status that announces it.
        let status = slot.status().load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        self.next_received = (self.next_received + 1) % RECEIVE_SLOTS;
        let header = slot.header();
        let start = usize::from(header.tp_mac).saturating_sub(STATUS_BYTES);
        let end = start.saturating_add(header.tp_snaplen as usize);
        Some(Received {
            bytes: slot.packet().get_mut(start..end).unwrap_or_default(),
            vlan: (status & libc::TP_STATUS_VLAN_VALID != 0).then_some(header.tp_vlan_tci),
            status: slot.status(),
        })
    }

    /// Queues a packet made of parts; whether there was room.
    pub(in crate::wire) fn send(&mut self, parts: &[&[u8]]) -> bool {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let free = |socket: &Self| {
            let status = socket.rings.to_send(socket.next_sent).status().load(Ordering::Acquire);
            status == libc::TP_STATUS_AVAILABLE || status == libc::TP_STATUS_WRONG_FORMAT
        };
        if length > MAX_PACKET || !free(self) && (self.flush().is_err() || !free(self)) {
            return false;
        }
        self.rings.to_send_mut(self.next_sent).fill(parts, length);
        self.next_sent = (self.next_sent + 1) % SEND_SLOTS;
        self.queued = true;
        true
    }

    /// Lets the kernel send what is queued.
    ///
    /// # Errors
    /// The kernel's: the interface is down or gone. What is queued stays so.
    pub(in crate::wire) fn flush(&mut self) -> io::Result<()> {
        if !self.queued {
            return Ok(());
        }
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: nothing is passed: the kernel takes the packets from the ring.
        let sent =
            unsafe { libc::sendto(self.socket.as_raw_fd(), ptr::null(), 0, flags, ptr::null(), 0) };
        if sent < 0 {
            let error = io::Error::last_os_error();
            // The driver or the socket's memory is full: with the next flush.
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR) => Ok(()),
                _ => Err(error),
            };
        }
        self.queued = false;
        Ok(())
    }

    /// What became of the interface since this was asked last, if anything.
    pub(in crate::wire) fn take_error(&self) -> Option<io::Error> {
        let asked = rustix::net::sockopt::socket_error(&self.socket);
        asked.map_or_else(|error| Some(error.into()), |state| state.err().map(io::Error::from))
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn checked(outcome: libc::c_int) -> io::Result<libc::c_int> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome) }
}

/// Sets an option of packet sockets.
fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    set_at(socket, libc::SOL_PACKET, option, value)
}

fn set_at<T>(
    socket: &OwnedFd,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let value = ptr::from_ref(value).cast();
    // SAFETY: the value is valid for its length during the call.
    checked(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value, length) })?;
    Ok(())
}

const fn ring(slots: usize) -> libc::tpacket_req {
    libc::tpacket_req {
        tp_block_size: BLOCK_BYTES as u32,
        tp_block_nr: (slots / SLOTS_PER_BLOCK) as u32,
        tp_frame_size: SLOT_BYTES as u32,
        tp_frame_nr: slots as u32,
    }
}

/// Lets the kernel drop what is not to this port: each worker of a server has a
/// socket, and none should get what is the others'.
fn hear_only(socket: &OwnedFd, to: [u8; 2]) -> io::Result<()> {
    const TO: u32 = 14;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, TO),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, u32::from(u16::from_be_bytes(to))),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    set_at(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn link_layer(index: NonZeroU32, kind: u16) -> libc::sockaddr_ll {
    // SAFETY: plain data, for which all zeroes is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = kind.to_be();
    address.sll_ifindex = index.get().cast_signed();
    address
}

/// The memory of both rings.
#[derive(Debug)]
struct Rings {
    start: NonNull<u8>,
}

// SAFETY: the mapping belongs to this value alone; nothing in it belongs to a
// thread.
unsafe impl Send for Rings {}

impl Rings {
    fn map(socket: &OwnedFd) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let fd = socket.as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(ptr::null_mut(), MAPPED_BYTES, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start })
    }

    fn received(&self, slot: usize) -> Slot<'_> {
        debug_assert!(slot < RECEIVE_SLOTS);
        self.slot(slot / SLOTS_PER_BLOCK * BLOCK_BYTES + slot % SLOTS_PER_BLOCK * SLOT_BYTES)
    }

    fn to_send(&self, slot: usize) -> Slot<'_> {
        debug_assert!(slot < SEND_SLOTS);
        let offset = slot / SLOTS_PER_BLOCK * BLOCK_BYTES + slot % SLOTS_PER_BLOCK * SLOT_BYTES;
        self.slot(RECEIVE_BYTES + offset)
    }

    fn to_send_mut(&mut self, slot: usize) -> SlotMut<'_> {
        SlotMut(self.to_send(slot))
    }

    fn slot(&self, offset: usize) -> Slot<'_> {
        assert!(offset + SLOT_BYTES <= MAPPED_BYTES);
        // SAFETY: the slot lies inside of the mapping, as was just checked.
        Slot { start: unsafe { self.start.add(offset) }, rings: self }
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, unmapped only here; what points into it borrows
        // from this value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), MAPPED_BYTES) };
    }
}

/// `SLOT_BYTES` of a ring, at an address that is a multiple of 16.
#[derive(Clone, Copy)]
struct Slot<'a> {
    start: NonNull<u8>,
    #[allow(dead_code)] // Keeps the mapping alive.
    rings: &'a Rings,
}

impl<'a> Slot<'a> {
    /// The word by which the slot changes its owner.
    fn status(self) -> &'a AtomicU32 {
        // SAFETY: aligned, inside of the mapping, and as long alive; both sides
        // access it by atomic operations only.
        unsafe { self.start.cast::<AtomicU32>().as_ref() }
    }

    /// What the kernel says of the packet in it.
    fn header(self) -> libc::tpacket2_hdr {
        // SAFETY: aligned and inside of the mapping; plain integers. The kernel
        // does not write to a slot whose status says that it is ours.
        unsafe { self.start.cast::<libc::tpacket2_hdr>().read() }
    }

    /// What is behind the status: the kernel's header and the packet. Called once
    /// for each packet, by `receive`.
    fn packet(self) -> &'a mut [u8] {
        // SAFETY: inside of the mapping, and apart from the status word, so that
        // nothing aliases it. The slot is ours from the status that `receive` has
        // seen until the drop of the `Received` that has the only reference to these
        // bytes (`receive` borrows the socket for as long): until then the kernel
        // does not touch it, and nobody else does.
        unsafe {
            let start = self.start.add(STATUS_BYTES).as_ptr();
            std::slice::from_raw_parts_mut(start, SLOT_BYTES - STATUS_BYTES)
        }
    }
}

/// A slot that is free to be filled.
struct SlotMut<'a>(Slot<'a>);

impl SlotMut<'_> {
    /// Puts a packet in and hands it to the kernel. The parts are `length` bytes.
    fn fill(self, parts: &[&[u8]], length: usize) {
        assert!(length <= MAX_PACKET);
        let mut offset = SEND_OFFSET;
        for part in parts {
            // SAFETY: the sum of the parts ends inside of the slot, as was checked
            // and as `send` has added up; the slot is ours until its status says
            // otherwise, and the parts are other memory.
            unsafe {
                let to = self.0.start.add(offset).as_ptr();
                ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
            }
            offset += part.len();
        }
        debug_assert_eq!(offset, SEND_OFFSET + length);
        // SAFETY: aligned and inside of the slot, which is ours.
        unsafe {
            let header = self.0.start.cast::<libc::tpacket2_hdr>().as_ptr();
            (&raw mut (*header).tp_len).write(length as u32);
        }
        // Release: the packet is there before the kernel is told so.
        self.0.status().store(libc::TP_STATUS_SEND_REQUEST, Ordering::Release);
    }
}
