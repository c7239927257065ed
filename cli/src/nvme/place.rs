//! Where a controller is, and its start.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use block_core::time::Clock;
use clap::Args;
use nvme::arena::Arena;
use nvme::pci::sysfs::Sysfs;
use nvme::pci::{self, PhysicalBus, VfioBus, physical_arena};
use nvme::vfio_user::VfioUserBus;
use nvme::{Bus, Controller};

/// Memory for a driver that asks a few questions, or measures.
const ARENA_BYTES: u64 = 16 << 20;

/// A controller that no other driver has.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Where it is: vfio-user:SOCKET, or pci:0000:01:00.0 when it is bound (see `bind`).
    /// It must have no other driver, and is reset
    address: Address,
    /// Use a PCI device without an IOMMU: it can read and write all memory of this machine
    #[arg(long)]
    unsafe_no_iommu: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    VfioUser(PathBuf),
    Pci(pci::Address),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let after = |kind| text.strip_prefix(kind).filter(|rest: &&str| !rest.is_empty());
        if let Some(socket) = after("vfio-user:") {
            return Ok(Self::VfioUser(socket.into()));
        }
        let Some(address) = after("pci:") else {
            return Err("write vfio-user:SOCKET or pci:0000:01:00.0".to_owned());
        };
        address.parse().map(Self::Pci).map_err(|error: pci::address::BadAddress| error.to_string())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VfioUser(socket) => write!(f, "vfio-user:{}", socket.display()),
            Self::Pci(address) => write!(f, "pci:{address}"),
        }
    }
}

impl Place {
    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Resets and starts the controller: it must be nobody else's.
    pub(super) fn start(&self) -> anyhow::Result<Controller> {
        let bus = self.bus()?;
        let clock = Clock::start();
        let named = || format!("the controller at '{}'", self.address);
        Controller::start(bus, Arc::new(move || clock.now())).with_context(named)
    }

    fn bus(&self) -> anyhow::Result<Arc<dyn Bus>> {
        Ok(match &self.address {
            Address::VfioUser(socket) => {
                let arena = Arena::in_memory(ARENA_BYTES).context("there is no memory to share")?;
                VfioUserBus::connect(socket, Arc::new(arena))?
            }
            Address::Pci(address) if self.unsafe_no_iommu => {
                let arena = Arc::new(physical_arena(ARENA_BYTES)?);
                PhysicalBus::open(&Sysfs::default(), *address, arena)?
            }
            Address::Pci(address) => {
                let arena = Arena::pinned(ARENA_BYTES).context("there is no memory to share")?;
                VfioBus::open(&Sysfs::default(), *address, Arc::new(arena))?
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["vfio-user:/run/nvme.sock", "pci:0000:01:00.0"] {
            assert_eq!(text.parse::<Address>().map(|it| it.to_string()), Ok(text.to_owned()));
        }
        for text in ["0000:01:00.0", "pci:", "vfio-user:", "pci:01", "/dev/nvme0"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
