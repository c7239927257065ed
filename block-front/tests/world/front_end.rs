//! A front-end and driver of our own, which can lie.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::FrontendReq;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT_DESC: u64 = 1 << 28;
pub const PROTOCOL: u64 = 1 << 30;
pub const FLUSH: u64 = 1 << 9;

/// What tests agree on that want nothing special.
pub const ALL: u64 = VERSION_1 | PROTOCOL | FLUSH | INDIRECT_DESC;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

/// The tests' guest: addresses from 0, seen by the front-end from here.
pub const USER: u64 = 0x7000_0000_0000;
pub const MEMORY: usize = 4 << 20;
pub const SIZE: u16 = 128;

/// Where data may lie, and headers and status bytes.
pub const DATA: u64 = 0x20_0000;
pub const HEADER: u64 = 0x10_0000;
pub const STATUS: u64 = 0x11_0000;

pub const PATIENCE: Duration = Duration::from_secs(5);

/// A connection.
pub struct FrontEnd {
    pub socket: UnixStream,
}

/// Bytes of numbers.
pub fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A ring's state: index and number.
pub fn state(index: u32, number: u32) -> Vec<u8> {
    bytes(&[u64::from(index) | u64::from(number) << 32])
}

impl FrontEnd {
    pub fn connect(socket: &Path) -> Self {
        let socket = UnixStream::connect(socket).expect("the disk listens");
        socket.set_read_timeout(Some(3 * PATIENCE)).expect("a time-out");
        Self { socket }
    }

    pub fn send(
        &self,
        request: FrontendReq,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let header: Vec<u8> = [u32::from(request), flags, body.len() as u32]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        send_raw(&self.socket, &[&header[..], body].concat(), fds)
    }

    pub fn answer(&self) -> io::Result<Vec<u8>> {
        let mut header = [0; 12];
        (&self.socket).read_exact(&mut header)?;
        let size = u32::from_ne_bytes(header[8..].try_into().expect("four"));
        let mut body = vec![0; size as usize];
        (&self.socket).read_exact(&mut body)?;
        Ok(body)
    }

    /// Asks for something that has an answer.
    pub fn ask(&self, request: FrontendReq, body: &[u8]) -> Vec<u8> {
        self.send(request, 1, body, &[]).expect("sent");
        self.answer().expect("answered")
    }

    /// Asks for an in-flight area; its description and its memory.
    pub fn area(&self, queues: u16, entries: u16) -> (Vec<u8>, OwnedFd) {
        let shape = bytes(&[0, 0, u64::from(queues) | u64::from(entries) << 16]);
        self.send(FrontendReq::GET_INFLIGHT_FD, 1, &shape, &[]).expect("sent");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut answer = [0; 36];
        let flags = RecvFlags::WAITALL | RecvFlags::CMSG_CLOEXEC;
        let received =
            recvmsg(&self.socket, &mut [IoSliceMut::new(&mut answer)], &mut ancillary, flags);
        assert_eq!(received.expect("answered").bytes, answer.len());
        let file = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        (answer[12..].to_vec(), file.expect("a descriptor"))
    }

    /// Hands over an in-flight area; whether that was done.
    pub fn set_area(&self, (body, file): &(Vec<u8>, OwnedFd)) -> bool {
        self.tell(FrontendReq::SET_INFLIGHT_FD, body, &[file.as_fd()])
    }

    pub fn number(&self, request: FrontendReq) -> u64 {
        u64::from_ne_bytes(self.ask(request, &[]).try_into().expect("a number"))
    }

    /// Says something and wants to know whether it was done.
    pub fn tell(&self, request: FrontendReq, body: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        self.send(request, 0b1001, body, fds).expect("sent");
        self.answer().expect("acknowledged") == bytes(&[0])
    }

    /// Says something that must be done.
    pub fn order(&self, request: FrontendReq, body: &[u8], fds: &[BorrowedFd<'_>]) {
        assert!(self.tell(request, body, fds), "{request:?}");
    }

    /// Agrees on features; all that is offered of the protocol's.
    pub fn agree(&self, features: u64) {
        let offered = self.number(FrontendReq::GET_FEATURES);
        assert_eq!(features & !offered, 0);
        if features & PROTOCOL != 0 {
            let protocol = self.number(FrontendReq::GET_PROTOCOL_FEATURES);
            self.send(FrontendReq::SET_PROTOCOL_FEATURES, 1, &bytes(&[protocol]), &[])
                .expect("sent");
        }
        self.order(FrontendReq::SET_FEATURES, &bytes(&[features]), &[]);
    }

    pub fn share(&self, guest: &Guest) {
        let table = bytes(&[1, 0, MEMORY as u64, USER, 0]);
        self.order(FrontendReq::SET_MEM_TABLE, &table, &[guest.file.as_fd()]);
    }

    /// Waits until the disk has closed the connection.
    pub fn is_cut_off(&self) -> bool {
        let mut rest = Vec::new();
        (&self.socket).read_to_end(&mut rest).is_ok()
    }
}

/// A connection with memory, and ring 0 running.
pub fn ready<'a>(socket: &Path, guest: &'a Guest, features: u64) -> (FrontEnd, Ring<'a>) {
    let front_end = FrontEnd::connect(socket);
    front_end.agree(features);
    front_end.share(guest);
    let ring = Ring::new(guest, 0);
    ring.start(&front_end);
    ring.enable(&front_end, true);
    (front_end, ring)
}

/// Gives the front's threads time for what they should not do.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(60));
}

pub fn send_raw(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    assert_eq!(sent, bytes.len());
    Ok(())
}

/// A guest's memory.
pub struct Guest {
    pub file: File,
    map: MmapRegion<()>,
}

impl Guest {
    pub fn new() -> Self {
        let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(file.expect("a memfd"));
        file.set_len(MEMORY as u64).expect("grow");
        let again = file.try_clone().expect("clone");
        let map = MmapRegion::from_file(FileOffset::new(again, 0), MEMORY).expect("map");
        Self { file, map }
    }

    pub fn memory(&self) -> VolatileSlice<'_> {
        self.map.as_volatile_slice()
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory().write_slice(bytes, at as usize).expect("inside");
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory().read_slice(&mut bytes, at as usize).expect("inside");
        bytes
    }

    /// A block command's header at [`HEADER`] + 16 * `number`.
    pub fn header(&self, number: u64, kind: u32, sector: u64) -> u64 {
        let at = HEADER + 16 * number;
        self.put(at, &bytes(&[kind.into(), sector]));
        at
    }

    pub fn status(&self, number: u64) -> u8 {
        self.get(STATUS + number, 1)[0]
    }
}

/// A descriptor: address, length, flags, next.
pub type Entry = (u64, u32, u16, u16);

pub fn entry((at, len, flags, next): Entry) -> Vec<u8> {
    bytes(&[at, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48])
}

/// A ring, seen from the driver.
pub struct Ring<'a> {
    guest: &'a Guest,
    pub index: u32,
    pub kick: OwnedFd,
    pub call: OwnedFd,
    pub available: u16,
    pub used: u16,
}

impl<'a> Ring<'a> {
    pub fn new(guest: &'a Guest, index: u32) -> Self {
        let event = || eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("eventfd");
        Self { guest, index, kick: event(), call: event(), available: 0, used: 0 }
    }

    pub fn table(&self) -> u64 {
        0x1000 + u64::from(self.index) * 0x8000
    }

    fn available_at(&self) -> u64 {
        self.table() + 0x1000
    }

    fn used_at(&self) -> u64 {
        self.table() + 0x2000
    }

    /// Describes the ring to the disk without starting it.
    pub fn describe(&self, front_end: &FrontEnd) {
        front_end.order(FrontendReq::SET_VRING_NUM, &state(self.index, SIZE.into()), &[]);
        front_end.order(
            FrontendReq::SET_VRING_BASE,
            &state(self.index, self.available.into()),
            &[],
        );
        front_end.order(FrontendReq::SET_VRING_ADDR, &self.addresses(), &[]);
        let index = bytes(&[self.index.into()]);
        front_end.order(FrontendReq::SET_VRING_CALL, &index, &[self.call.as_fd()]);
    }

    pub fn addresses(&self) -> Vec<u8> {
        bytes(&[
            self.index.into(),
            USER + self.table(),
            USER + self.used_at(),
            USER + self.available_at(),
            0,
        ])
    }

    pub fn start(&self, front_end: &FrontEnd) {
        self.describe(front_end);
        let index = bytes(&[self.index.into()]);
        front_end.order(FrontendReq::SET_VRING_KICK, &index, &[self.kick.as_fd()]);
    }

    pub fn enable(&self, front_end: &FrontEnd, on: bool) {
        front_end.order(FrontendReq::SET_VRING_ENABLE, &state(self.index, on.into()), &[]);
    }

    /// Stops the ring; the base that the disk answers.
    pub fn stop(&self, front_end: &FrontEnd) -> u32 {
        let answer = front_end.ask(FrontendReq::GET_VRING_BASE, &state(self.index, 0));
        u32::from_ne_bytes(answer[4..8].try_into().expect("four"))
    }

    pub fn describe_entry(&self, index: u16, it: Entry) {
        self.guest.put(self.table() + 16 * u64::from(index), &entry(it));
    }

    /// Makes a chain available and kicks.
    pub fn offer(&mut self, head: u16) {
        self.offer_silently(head);
        self.kick();
    }

    /// Kicks only if the disk asks for it, by its `avail_event` (2.7.10).
    pub fn offer_as_asked(&mut self, head: u16) {
        let asked_at = self.available;
        self.offer_silently(head);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let event = self.used_at() as usize + 4 + 8 * usize::from(SIZE);
        let event: u16 =
            self.guest.memory().load(event, std::sync::atomic::Ordering::SeqCst).expect("inside");
        if event == asked_at {
            self.kick();
        }
    }

    pub fn offer_silently(&mut self, head: u16) {
        let at = self.available_at() + 4 + 2 * u64::from(self.available % SIZE);
        self.guest.put(at, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    pub fn set_available_index(&self, index: u16) {
        let at = self.available_at() as usize + 2;
        self.guest.memory().store(index, at, std::sync::atomic::Ordering::SeqCst).expect("inside");
    }

    /// Flags of the available ring: 1 says that no call is wanted.
    pub fn set_flags(&self, flags: u16) {
        self.guest.put(self.available_at(), &flags.to_le_bytes());
    }

    pub fn set_used_event(&self, index: u16) {
        self.guest.put(self.available_at() + 4 + 2 * u64::from(SIZE), &index.to_le_bytes());
    }

    pub fn set_used_index(&self, index: u16) {
        self.guest.put(self.used_at() + 2, &index.to_le_bytes());
    }

    pub fn kick(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).expect("kicked");
    }

    pub fn used_index(&self) -> u16 {
        let at = self.used_at() as usize + 2;
        self.guest.memory().load(at, std::sync::atomic::Ordering::SeqCst).expect("inside")
    }

    /// The next used entry, if there is one: head and length.
    pub fn take_used(&mut self) -> Option<(u32, u32)> {
        if self.used_index() == self.used {
            return None;
        }
        let at = self.used_at() + 4 + 8 * u64::from(self.used % SIZE);
        self.used = self.used.wrapping_add(1);
        let entry = self.guest.get(at, 8);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("four"));
        Some((word(0), word(4)))
    }

    pub fn wait_used(&mut self) -> (u32, u32) {
        let begin = Instant::now();
        loop {
            if let Some(used) = self.take_used() {
                return used;
            }
            assert!(begin.elapsed() < PATIENCE, "nothing came back");
            std::thread::yield_now();
        }
    }

    /// How often the disk has called since the last look.
    pub fn calls(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.call, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// A transfer of `len` bytes at [`DATA`] in three descriptors from `3 *
    /// number` on; its status is `number`'s.
    pub fn prepare(&self, number: u16, kind: u32, sector: u64, len: u32) -> u16 {
        let (head, slot) = (3 * number, u64::from(number));
        let header = self.guest.header(slot, kind, sector);
        let write = if kind == OUT { 0 } else { WRITE };
        self.guest.put(STATUS + slot, &[0xff]);
        self.describe_entry(head, (header, 16, NEXT, head + 1));
        self.describe_entry(head + 1, (DATA + slot * 0x1000, len, NEXT | write, head + 2));
        self.describe_entry(head + 2, (STATUS + slot, 1, WRITE, 0));
        head
    }
}
