//! The front: vhost-user-blk devices for QEMU, served over a [`link::Path`].
//!
//! QEMU connects to a disk's UNIX socket and hands over the guest's memory
//! and rings. From then on one thread, which turns the [`Front`], takes
//! requests out of the rings and puts answers in; the disk's own thread
//! handles the messages. The guest and its memory are hostile: every length,
//! index and address is checked where it comes in, and a guest that lies
//! loses its own disk only.
//!
//! ```no_run
//! # use block_front::{DiskOptions, Front};
//! # fn serve(mut path: impl link::Path, volume: link::VolumeHandle) -> Result<(), Box<dyn std::error::Error>> {
//! # fn sleep_on(_: std::os::fd::BorrowedFd<'_>, _: Option<block_core::Time>) {}
//! let disk = DiskOptions::new("vda", "/run/vrio/vda.sock", volume, 1 << 21).check()?;
//! let mut front = Front::new(vec![disk])?;
//! let clock = block_core::time::Clock::start();
//! loop {
//!     if front.turn(clock.now(), &mut path) {
//!         continue;
//!     }
//!     front.announce_sleep();
//!     std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
//!     if !front.has_work() {
//!         sleep_on(front.wait_fd(), front.deadline().into_iter().chain(path.deadline()).min());
//!     }
//!     front.retract_sleep();
//! }
//! # }
//! ```

mod chain;
mod command;
mod config_space;
mod conversation;
pub mod disk;
mod disks;
mod front;
mod guest_memory;
mod in_flight;
mod inbox;
mod mail;
mod message;
mod parts;
mod peer;
mod prepare;
mod queue;
mod ring;
mod socket;
mod sys;

pub use disk::{Breach, DiskOptions, DiskSpec, SpecError};
pub use front::Front;
pub use socket::StartError;
