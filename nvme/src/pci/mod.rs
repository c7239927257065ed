//! PCI devices, driven from this process: [`VfioBus`] behind an IOMMU, and without one
//! [`PhysicalBus`]. [`sysfs`] says what is there and who uses it, [`binding`] takes a
//! device from its driver and gives it back.

pub mod address;
pub mod binding;
pub mod sysfs;
pub mod usage;

mod bar;
mod physical;
mod sys;
mod vfio;

#[cfg(test)]
mod made;

pub use address::Address;
pub use physical::{PhysicalBus, PhysicalError, physical_arena};
pub use vfio::{OpenError, VfioBus};

/// PCI configuration space: the command register (PCI Local Bus 3.0, section 6.2.2).
const COMMAND: u64 = 4;
/// In it: memory space, bus master, no pin interrupt.
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const NO_PIN_INTERRUPT: u16 = 1 << 10;

/// Most of BAR 0 that is mapped: registers, and doorbells of 64 queue pairs at any
/// stride.
const MOST_BAR_BYTES: u64 = 1 << 20;
