//! One end of a connection: a socket by which the other end is greeted, rung and
//! known to live, and the memory that both share.
//!
//! ```text
//!    0  head of the ring to the server u32    |  128  its tail, and 132 sleeping
//!  256  head of the ring to the front u32     |  384  its tail, and 388 sleeping
//! 4096  512 slots to the server, then 512 to the front, of 8320 bytes each:
//!       length u32, zero up to 64, a frame
//! ```
//!
//! The server makes the memory, and sends it with `vRIOmem1`, the number of slots
//! and the bytes of one (u32 each) to whoever connects. A ring of the bell is a
//! byte.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};

use super::SharedPeer;
use super::ring::{Lie, Reader, SLOTS, Slot, Words, Writer};
use crate::frame::{HEADER_BYTES, MAX_FRAME};
use crate::wire::sys::shared_pages::SharedPages;

/// Where the slots begin; what is before is the rings' words, each on lines of its
/// own: two of a processor's lines, since they are fetched in pairs.
const SLOTS_AT: usize = 4096;
const WORDS_AT: [usize; 2] = [0, 256];
const TAIL: usize = 128;
const SLEEPING: usize = 132;

/// Where a frame begins in its slot, behind its length.
const FRAME_AT: usize = 64;
const SLOT_BYTES: usize = (FRAME_AT + MAX_FRAME).next_multiple_of(64);
const RING_BYTES: usize = SLOTS as usize * SLOT_BYTES;
const PAGES_BYTES: usize = SLOTS_AT + 2 * RING_BYTES;
const _: () = assert!(SLOT_BYTES == 8320 && PAGES_BYTES.is_multiple_of(4096));

/// Frames taken of one connection in a turn.
const BURST: u32 = SLOTS / 2;

/// What the server says with the memory.
const GREETING: [u8; 16] = greeting();

const fn greeting() -> [u8; 16] {
    let (slots, bytes) = (SLOTS.to_le_bytes(), (SLOT_BYTES as u32).to_le_bytes());
    let mut all = *b"vRIOmem1\0\0\0\0\0\0\0\0";
    let mut at = 0;
    while at < 4 {
        (all[8 + at], all[12 + at]) = (slots[at], bytes[at]);
        at += 1;
    }
    all
}

/// The two directions, as they lie in the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    ToServer = 0,
    ToFront = 1,
}

/// What has become of the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Lives,
    Ended,
    /// It speaks another version, or what it passed is no such memory.
    Foreign,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: SharedPeer,
    socket: OwnedFd,
    /// None at a front that was not greeted yet.
    shared: Option<Shared>,
}

/// The memory, and our sides of its rings.
#[derive(Debug)]
struct Shared {
    pages: SharedPages,
    incoming: Direction,
    reader: Reader,
    writer: Writer,
}

impl Connection {
    /// A server's end.
    pub(super) fn greet(peer: SharedPeer, socket: OwnedFd) -> io::Result<Self> {
        let (file, pages) = SharedPages::make(PAGES_BYTES)?;
        let files = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&files));
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&socket, &[IoSlice::new(&GREETING)], &mut ancillary, flags)?;
        let shared = Some(Shared::new(pages, Direction::ToServer));
        Ok(Self { peer, socket, shared })
    }

    /// A front's end, which waits for the greeting.
    pub(super) fn expect(peer: SharedPeer, socket: OwnedFd) -> Self {
        Self { peer, socket, shared: None }
    }

    /// Takes what the other end has said on the socket: bells, and the greeting.
    pub(super) fn listen(&mut self) -> Fate {
        loop {
            let mut said = [0; GREETING.len()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let parts = &mut [IoSliceMut::new(&mut said)];
            match recvmsg(&self.socket, parts, &mut ancillary, flags) {
                Err(Errno::AGAIN | Errno::INTR) => return Fate::Lives,
                Err(_) => return Fate::Ended,
                Ok(message) if message.bytes == 0 => return Fate::Ended,
                Ok(_) if self.shared.is_some() => {}
                Ok(message) => {
                    let file = ancillary.drain().find_map(|passed| match passed {
                        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
                        _ => None,
                    });
                    let greeted = said == GREETING && message.bytes == GREETING.len();
                    let pages = file.filter(|_| greeted).map(File::from);
                    let pages = pages.and_then(|f| SharedPages::of_peer(&f, PAGES_BYTES).ok());
                    let Some(pages) = pages else { return Fate::Foreign };
                    self.shared = Some(Shared::new(pages, Direction::ToFront));
                }
            }
        }
    }

    /// Hands what has come to `take`; how many frames.
    pub(super) fn receive(
        &mut self,
        frame: &mut [u8; MAX_FRAME],
        take: &mut dyn FnMut(&SharedPeer, &mut [u8]),
    ) -> Result<usize, Lie> {
        let Some(shared) = &mut self.shared else { return Ok(0) };
        let slots = shared.reader.filled(shared.words(shared.incoming), BURST)?;
        let mut frames = 0;
        for slot in slots {
            let length = shared.copy(slot, frame)?;
            take(&self.peer, &mut frame[..length]);
            frames += 1;
        }
        if frames > 0 {
            let words = words(&shared.pages, shared.incoming);
            shared.reader.give_back(words, frames);
        }
        Ok(frames as usize)
    }

    /// Puts a frame into the ring; lost when that is full, or before the greeting.
    pub(super) fn send(&mut self, header: &[u8; HEADER_BYTES], payload: &[u8]) -> Result<(), Lie> {
        let Some(shared) = &mut self.shared else { return Ok(()) };
        let outgoing = shared.outgoing();
        let words = words(&shared.pages, outgoing);
        let Some(slot) = shared.writer.next(words)? else { return Ok(()) };
        let at = place(outgoing, slot);
        let length = (HEADER_BYTES + payload.len()) as u32;
        shared.pages.write(at, &length.to_le_bytes());
        shared.pages.write(at + FRAME_AT, header);
        shared.pages.write(at + FRAME_AT + HEADER_BYTES, payload);
        Ok(())
    }

    /// Shows the other end what was sent, and wakes it if it sleeps.
    pub(super) fn flush(&mut self) {
        let Some(shared) = &mut self.shared else { return };
        let words = words(&shared.pages, shared.outgoing());
        if shared.writer.publish(words) {
            // Full: then there is a bell in it that was not heard yet.
            let _ = send(&self.socket, b"!", SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
    }

    pub(super) fn announce_sleep(&self) {
        if let Some(shared) = &self.shared {
            shared.reader.announce(shared.words(shared.incoming));
        }
    }

    pub(super) fn retract_sleep(&self) {
        if let Some(shared) = &self.shared {
            shared.reader.retract(shared.words(shared.incoming));
        }
    }

    /// Whether something has come; also a lie, which the next turn deals with.
    pub(super) fn has_frames(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| {
            let filled = shared.reader.filled(shared.words(shared.incoming), 1);
            filled.map_or(true, |mut slots| slots.next().is_some())
        })
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The memory as the other end has it, to lie in it.
    #[cfg(test)]
    pub(super) fn pages(&self) -> &SharedPages {
        &self.shared.as_ref().expect("greeted").pages
    }
}

impl Shared {
    fn new(pages: SharedPages, incoming: Direction) -> Self {
        Self { pages, incoming, reader: Reader::default(), writer: Writer::default() }
    }

    fn outgoing(&self) -> Direction {
        match self.incoming {
            Direction::ToServer => Direction::ToFront,
            Direction::ToFront => Direction::ToServer,
        }
    }

    fn words(&self, direction: Direction) -> Words<'_> {
        words(&self.pages, direction)
    }

    /// Copies the frame in a slot; its length, which is a frame's.
    fn copy(&self, slot: Slot, frame: &mut [u8; MAX_FRAME]) -> Result<usize, Lie> {
        let at = place(self.incoming, slot);
        let mut length = [0; 4];
        self.pages.read(at, &mut length);
        let length = u32::from_le_bytes(length) as usize;
        if !(HEADER_BYTES..=MAX_FRAME).contains(&length) {
            return Err(Lie);
        }
        self.pages.read(at + FRAME_AT, &mut frame[..length]);
        Ok(length)
    }
}

fn words(pages: &SharedPages, direction: Direction) -> Words<'_> {
    let at = WORDS_AT[direction as usize];
    Words { head: pages.word(at), tail: pages.word(at + TAIL), sleeping: pages.word(at + SLEEPING) }
}

/// Where a slot begins.
const fn place(direction: Direction, slot: Slot) -> usize {
    SLOTS_AT + direction as usize * RING_BYTES + slot.index() * SLOT_BYTES
}
