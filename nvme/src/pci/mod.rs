//! PCI devices, driven from this process: [`VfioBus`] behind an IOMMU, and without one
//! [`PhysicalBus`]. [`sysfs`] says what is there and who uses it, [`binding`] takes a
//! device from its driver and gives it back.

pub mod address;
pub mod binding;
pub mod sysfs;
pub mod usage;

mod bar;
mod command_register;
mod group;
mod physical;
mod sys;
mod vfio;

#[cfg(test)]
mod made;

use std::io;

use thiserror::Error;

pub use address::Address;
pub use physical::{PhysicalBus, PhysicalError, physical_arena};
pub use vfio::{OpenError, VfioBus};

/// A step that the kernel did not take.
#[derive(Debug, Error)]
#[error("cannot {step} {address}: {error}{}", if error.kind() == io::ErrorKind::PermissionDenied {
    "; only root may"
} else {
    ""
})]
pub struct Refused {
    step: &'static str,
    address: Address,
    error: io::Error,
}

/// Names the step that an error of the kernel's ended.
fn refused(step: &'static str, address: Address) -> impl Fn(io::Error) -> Refused {
    move |error| Refused { step, address, error }
}

/// Most of BAR 0 that is mapped: registers, and doorbells of 64 queue pairs at any
/// stride.
const MOST_BAR_BYTES: u64 = 1 << 20;
