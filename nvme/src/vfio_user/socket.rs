//! Whole messages, and descriptors with them, over a stream socket.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::wire::{HEADER_BYTES, Header, MAX_MESSAGE};

/// Descriptors that a message may bring. More are closed by the kernel.
const MAX_DESCRIPTORS: usize = 8;

/// A message that has come.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// Sends a message, descriptors with its first byte.
pub(super) fn send(
    mut stream: &UnixStream,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if descriptors.is_empty() {
        return stream.write_all(message);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(stream, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    stream.write_all(&message[sent..])
}

/// The next message, or nothing at the end of the stream. A stream timeout, or a
/// message whose size cannot be, is an error: what follows has no beginning.
pub(super) fn receive(mut stream: &UnixStream) -> io::Result<Option<Message>> {
    let mut start = [0; HEADER_BYTES];
    let mut have = 0;
    let mut descriptors = Vec::new();
    while have < HEADER_BYTES {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut room = [IoSliceMut::new(&mut start[have..])];
        let came = recvmsg(stream, &mut room, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                descriptors.extend(more);
            }
        }
        match came.bytes {
            0 if have == 0 => return Ok(None),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => have += bytes,
        }
    }
    let header = Header::parse(&start).ok_or(io::ErrorKind::InvalidData)?;
    let bytes = header.bytes as usize;
    if !(HEADER_BYTES..=MAX_MESSAGE).contains(&bytes) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut payload = vec![0; bytes - HEADER_BYTES];
    stream.read_exact(&mut payload)?;
    Ok(Some(Message { header, payload, descriptors }))
}
