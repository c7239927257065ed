//! Wires: ways to move frames.

use std::fmt::Debug;
use std::hash::Hash;
use std::io;
use std::os::fd::BorrowedFd;

use crate::frame::HEADER_BYTES;

pub mod faults;
pub mod memory;
pub mod udp;

/// Moves frames between peers. They may be lost, doubled, reordered, delayed
/// and damaged on their way.
pub trait Wire {
    /// Where a frame comes from and goes to.
    type Peer: Peer;

    /// Hands a bounded burst of what has arrived to `take`, which opens sealed
    /// frames where they are; how many frames.
    ///
    /// # Errors
    /// Only when the wire is broken for good.
    fn receive(&mut self, take: &mut dyn FnMut(Self::Peer, &mut [u8])) -> io::Result<usize>;

    /// Queues a frame; it leaves with the next [`Wire::flush`] at the latest.
    fn send(&mut self, to: Self::Peer, header: &[u8; HEADER_BYTES], payload: &[u8]);

    /// Sends what is queued. What the wire has no room for is lost: the link
    /// repeats it.
    fn flush(&mut self);

    /// What to sleep on until frames come, if it can be slept on.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Bytes of frames that may arrive between two turns without loss.
    fn window(&self) -> u32;
}

/// A peer's address.
pub trait Peer: Copy + Eq + Hash + Debug {
    /// The same host, where another worker listens.
    #[must_use]
    fn with_port(self, port: u16) -> Self;
}
