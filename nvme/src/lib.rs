//! NVMe, both sides: a driver that knows registers and DMA memory only, and a
//! soft controller over memory or a file.
//!
//! A [`Bus`] stands between them, so that the driver cannot tell the soft
//! controller from a PCI device. The modules stand in the order in which a
//! block request meets them: a [`Namespace`] cuts it into commands, a
//! [`QueuePair`] keeps each command and its buffer until the controller has
//! answered.
//!
//! A worker's turn drives both sides:
//!
//! ```
//! use std::future::Future;
//! use std::sync::Arc;
//! use std::task::{Context, Waker};
//!
//! use block_core::{Device, Pba, time::Clock};
//! use nvme::{Controller, LbaSize, Namespace, SoftController, SoftNamespace, SoftOptions};
//!
//! let disk = SoftNamespace::memory(1 << 20, LbaSize::B4096)?;
//! let soft = SoftController::new(SoftOptions::default(), vec![disk]);
//! let clock = Clock::start();
//! let controller = Controller::start(soft.bus(), Arc::new(move || clock.now()))?;
//! let queue = controller.create_queue_pair(32)?;
//! let namespace = Namespace::new(queue.clone(), &controller.namespace(1)?);
//! let pool = controller.pool(1, 4096)?;
//!
//! let mut read = Box::pin(namespace.read(Pba(0), pool.take().expect("free"), 0..1));
//! let mut context = Context::from_waker(Waker::noop());
//! while read.as_mut().poll(&mut context).is_pending() {
//!     queue.ring();
//!     soft.work();
//!     queue.reap();
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod namespace;
pub mod pass;
mod transfer;

pub mod queue_pair;
mod table;

mod ring;
mod shadow;

pub mod command;
pub mod completion;

pub mod watch;

mod admin;
pub mod controller;
mod pieces;
mod port;

pub mod event;
pub mod health;
pub mod identify;
pub mod registers;

pub mod arena;
pub mod bus;
pub mod pci;
pub mod soft;
pub mod vfio_user;

mod sys;

#[cfg(test)]
mod lying;
/// What tests of every kind share names the crate as they all do.
#[cfg(test)]
extern crate self as nvme;

pub use bus::Bus;
pub use controller::{Clock, Controller, Health, StartError};
pub use event::Event;
pub use health::HealthLog;
pub use identify::{LbaSize, NamespaceInfo};
pub use namespace::Namespace;
pub use queue_pair::{Counters, QueuePair};
pub use soft::{SoftController, SoftNamespace, SoftOptions};
pub use watch::{News, Patience, Watch};

/// Bytes in a memory page of the controller (CC.MPS is 0).
pub(crate) const PAGE: usize = 1 << registers::PAGE_BITS;

const _: () = assert!(PAGE == block_core::BLOCK_SIZE);
