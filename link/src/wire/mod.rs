//! Wires: ways to move frames.

use std::fmt::Debug;
use std::hash::Hash;
use std::io;
use std::os::fd::BorrowedFd;

use crate::frame::HEADER_BYTES;

pub mod address;
pub mod any;
pub mod ethernet;
pub mod faults;
pub mod memory;
pub mod shared;
mod sys;
pub mod udp;

/// Moves frames between peers. They may be lost, doubled, reordered, delayed
/// and damaged on their way.
pub trait Wire {
    /// Where a frame comes from and goes to.
    type Peer: Peer;

    /// Hands a bounded burst of what has arrived to `take`, which opens sealed
    /// frames where they are; how many frames. The peer is lent: some are long, and
    /// there is one for each frame.
    ///
    /// # Errors
    /// Only when the wire is broken for good.
    fn receive(&mut self, take: &mut dyn FnMut(&Self::Peer, &mut [u8])) -> io::Result<usize>;

    /// Queues a frame; it leaves with the next [`Wire::flush`] at the latest.
    fn send(&mut self, to: &Self::Peer, header: &[u8; HEADER_BYTES], payload: &[u8]);

    /// Sends what is queued. What the wire has no room for is lost: the link
    /// repeats it.
    fn flush(&mut self);

    /// What to sleep on until frames come, if it can be slept on.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Bytes of frames that may arrive between two turns without loss.
    fn window(&self) -> u32;

    /// Asks the peers to ring when they send from now on: the owner is about to
    /// sleep. A wire whose descriptor rings unasked has nothing to do.
    fn announce_sleep(&mut self) {}

    /// Looks once more, after the announcement was made visible: whether frames
    /// have come that no descriptor will tell of.
    fn has_frames(&mut self) -> bool {
        false
    }

    /// Takes the announcement back: the owner looks by itself again.
    fn retract_sleep(&mut self) {}
}

/// A peer's address.
pub trait Peer: Copy + Eq + Hash + Debug {
    /// The same host, where another worker listens.
    #[must_use]
    fn with_port(self, port: u16) -> Self;
}
