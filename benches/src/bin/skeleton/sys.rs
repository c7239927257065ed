//! The unsafe part: memory that two processes share, and options of a socket for which
//! no crate has a safe way.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::AtomicU32;

use block_core::Memory;

/// A mapped file of which another process has a mapping too.
#[derive(Debug)]
pub(crate) struct Shared(Memory);

impl Shared {
    pub(crate) fn new(memory: Memory) -> Self {
        Self(memory)
    }

    /// The word at a byte that is a multiple of four.
    pub(crate) fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= self.0.len());
        // SAFETY: the word is aligned and lies inside of the mapping, which the borrow
        // keeps mapped; both processes touch words only through this function.
        unsafe { AtomicU32::from_ptr(self.0.as_ptr().add(at).cast()) }
    }

    /// Bytes that nobody changes while they are borrowed: those of a slot that this
    /// side has been given by an ordered word, and has not given back.
    pub(crate) fn bytes(&self, at: usize, len: usize) -> &[u8] {
        assert!(at + len <= self.0.len());
        // SAFETY: the bytes lie inside of the mapping, which the borrow keeps mapped.
        // By the ring's order a slot has one user at a time, whose process has one
        // thread, and that one fills no slot while it has lent it.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(at), len) }
    }

    /// Copies bytes into a slot that is this side's.
    pub(crate) fn copy_in(&self, at: usize, from: &[u8]) {
        assert!(at + from.len() <= self.0.len());
        // SAFETY: as in `bytes`; `from` is no part of the mapping, of which this side
        // lends out slots that it sends, never while it fills one.
        unsafe {
            std::ptr::copy_nonoverlapping(from.as_ptr(), self.0.as_ptr().add(at), from.len());
        }
    }

    /// Sets bytes before anybody else has the mapping.
    pub(crate) fn fill(&self, at: usize, len: usize, value: u8) {
        assert!(at + len <= self.0.len());
        // SAFETY: as in `copy_in`.
        unsafe { std::ptr::write_bytes(self.0.as_ptr().add(at), value, len) }
    }
}

/// Has the kernel cut what is sent into datagrams of this size (udp(7), UDP_SEGMENT).
pub(crate) fn cut_at(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    set(socket, libc::UDP_SEGMENT, bytes as libc::c_int)
}

/// Has the kernel join datagrams of one size that it receives (udp(7), UDP_GRO).
pub(crate) fn join(socket: &impl AsFd) -> io::Result<()> {
    set(socket, libc::UDP_GRO, 1)
}

fn set(socket: &impl AsFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads an int from an address that is valid during the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_UDP,
            option,
            (&raw const value).cast(),
            size,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
