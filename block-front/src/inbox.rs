//! Framing of the vhost-user socket: whole messages out of a stream of bytes
//! and descriptors, from a peer that may send anything or nothing.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use thiserror::Error;
use vhost::vhost_user::message::{MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};

/// Bytes of a message's header: request, flags, size (vhost-user, "Message
/// specification"), each in the machine's order.
pub(crate) const HEADER_BYTES: usize = 12;

/// Version in the low bits of the flags.
const VERSION_MASK: u32 = 0b11;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// A message as it came in; only its size has been checked.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) request: u32,
    pub(crate) need_reply: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// Why the stream cannot be read on.
#[derive(Debug, Error)]
pub(crate) enum InboxError {
    #[error("it closed the connection")]
    Closed,
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("it speaks another version of vhost-user (flags {0:#x})")]
    Version(u32),
    #[error("it sent a message of {0} bytes")]
    Size(u32),
    #[error("it sent more descriptors than a message can have")]
    Descriptors,
}

/// The message that is coming in.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Inbox {
    /// Takes what has come without waiting; a message when it is whole. Never
    /// reads past a message: descriptors belong to the bytes they came with.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Frame>, InboxError> {
        loop {
            let wanted = match self.header()? {
                Some((_, _, size)) if self.bytes.len() == HEADER_BYTES + size => {
                    return self.take();
                }
                Some((_, _, size)) => HEADER_BYTES + size,
                None => HEADER_BYTES,
            };
            if !self.fill(socket, wanted)? {
                return Ok(None);
            }
        }
    }

    /// Request, flags and body size, when they are there.
    fn header(&self) -> Result<Option<(u32, u32, usize)>, InboxError> {
        let (words, _) = self.bytes.as_chunks::<4>();
        let &[request, flags, size, ..] = words else { return Ok(None) };
        let [request, flags, size] = [request, flags, size].map(u32::from_ne_bytes);
        if flags & VERSION_MASK != VERSION || flags & REPLY != 0 {
            return Err(InboxError::Version(flags));
        }
        if size as usize > MAX_MSG_SIZE {
            return Err(InboxError::Size(size));
        }
        Ok(Some((request, flags, size as usize)))
    }

    fn take(&mut self) -> Result<Option<Frame>, InboxError> {
        let Some((request, flags, _)) = self.header()? else { return Ok(None) };
        let body = self.bytes.split_off(HEADER_BYTES);
        self.bytes.clear();
        let fds = std::mem::take(&mut self.fds);
        Ok(Some(Frame { request, need_reply: flags & NEED_REPLY != 0, body, fds }))
    }

    /// Reads up to `wanted` bytes of the message; false when nothing is there.
    fn fill(&mut self, socket: BorrowedFd<'_>, wanted: usize) -> Result<bool, InboxError> {
        let have = self.bytes.len();
        self.bytes.resize(wanted, 0);
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received =
            recvmsg(socket, &mut [IoSliceMut::new(&mut self.bytes[have..])], &mut ancillary, flags);
        let count = received.as_ref().map_or(0, |message| message.bytes);
        self.bytes.truncate(have + count);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        let message = match received {
            Ok(message) => message,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(error) => return Err(InboxError::Io(error.into())),
        };
        if message.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > MAX_ATTACHED_FD_ENTRIES {
            return Err(InboxError::Descriptors);
        }
        if message.bytes == 0 { Err(InboxError::Closed) } else { Ok(true) }
    }
}
