//! vfio-user: a PCI device in another process, over a UNIX socket (libvfio-user's
//! protocol 0.1, the one of QEMU and SPDK). [`VfioUserBus`] is the driver's side,
//! [`Exported`] serves a soft controller to any driver.

mod client;
mod configuration;
mod export;
mod msix;
mod session;
mod socket;
mod wire;

#[cfg(test)]
mod tests;

pub use client::{ConnectError, VfioUserBus};
pub use export::Exported;

/// The region with the registers, and the one with the PCI configuration.
const BAR0: u32 = 0;
const CONFIGURATION: u32 = 7;
/// Regions and kinds of interrupts of every PCI device.
const REGIONS: u32 = 9;
const INTERRUPT_KINDS: u32 = 5;
/// The kind of interrupts that there is.
const MSIX: u32 = 2;
