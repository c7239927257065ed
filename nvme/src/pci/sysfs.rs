//! What the kernel knows of PCI devices (`/sys/bus/pci`). The root is an argument, so
//! that a made tree serves as well.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Address;

/// An NVMe controller's class (PCI Code and ID Assignment 1.11, section 1.9).
const NVME_CLASS: u32 = 0x01_08_02;
/// The class of bridges, without what kind of bridge it is.
const BRIDGES: u32 = 0x06;

/// The kernel's view of its devices.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

/// A controller that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Where.
    pub address: Address,
    /// Maker and model, as numbers: nobody knows the name before a driver asks.
    pub ids: (u16, u16),
    /// Who has it.
    pub driver: Option<String>,
    /// Its IOMMU group, if an IOMMU is on.
    pub group: Option<u32>,
}

/// Why there is no controller at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)] // The sentences say it.
pub enum NoController {
    #[error("there is no PCI device {0}; `vrio nvme list` shows the controllers there are")]
    Missing(Address),
    #[error("the PCI device {0} is no NVMe controller")]
    OtherKind(Address),
}

/// One device of an IOMMU group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where.
    pub address: String,
    /// Who has it.
    pub driver: Option<String>,
    /// Whether it is a bridge.
    pub is_bridge: bool,
}

impl Default for Sysfs {
    /// The running kernel's.
    fn default() -> Self {
        Self::at(Path::new("/sys"))
    }
}

impl Sysfs {
    /// The tree below `root`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Where `/sys` is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The device's folder.
    #[must_use]
    pub fn folder(&self, address: Address) -> PathBuf {
        self.root.join("bus/pci/devices").join(address.to_string())
    }

    /// All NVMe controllers, by address.
    ///
    /// # Errors
    /// The kernel's, when there is no such tree.
    pub fn controllers(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.join("bus/pci/devices"))? {
            let name = entry?.file_name();
            let address = name.to_str().and_then(|name| name.parse().ok());
            let Some(address) = address else { continue };
            // A device may leave between two looks.
            found.extend(self.controller(address).ok());
        }
        found.sort_by_key(|found| found.address);
        Ok(found)
    }

    /// The controller at an address.
    ///
    /// # Errors
    /// A sentence: nothing is there, or another kind of device.
    pub fn controller(&self, address: Address) -> Result<Found, NoController> {
        let missing = |_| NoController::Missing(address);
        let folder = self.folder(address);
        if number(&folder.join("class")).map_err(missing)? != NVME_CLASS {
            return Err(NoController::OtherKind(address));
        }
        let id = |name| number(&folder.join(name)).map(|number| number as u16).map_err(missing);
        let group = name_behind(&folder.join("iommu_group")).and_then(|name| name.parse().ok());
        let ids = (id("vendor")?, id("device")?);
        Ok(Found { address, ids, driver: name_behind(&folder.join("driver")), group })
    }

    /// The devices of an IOMMU group, which can only be used together.
    ///
    /// # Errors
    /// The kernel's.
    pub fn members(&self, group: u32) -> io::Result<Vec<Member>> {
        let folder = self.root.join("kernel/iommu_groups").join(group.to_string()).join("devices");
        let mut members = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            members.push(Member {
                address: entry.file_name().to_string_lossy().into_owned(),
                driver: name_behind(&entry.path().join("driver")),
                is_bridge: number(&entry.path().join("class")).is_ok_and(|it| it >> 16 == BRIDGES),
            });
        }
        members.sort_by(|a, b| a.address.cmp(&b.address));
        Ok(members)
    }
}

impl Member {
    /// Whether its driver keeps the group from being used: those of bridges do not, nor
    /// does a device without a driver.
    #[must_use]
    pub fn is_in_the_way(&self) -> bool {
        let harmless = ["vfio-pci", "pci-stub"];
        !self.is_bridge && self.driver.as_deref().is_some_and(|driver| !harmless.contains(&driver))
    }
}

/// "0x010802" in a file.
fn number(file: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(file)?;
    let digits = text.trim().trim_start_matches("0x");
    u32::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The last part of where a link leads.
pub(super) fn name_behind(link: &Path) -> Option<String> {
    Some(fs::read_link(link).ok()?.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::made::Made;
    use super::NoController;

    #[test]
    fn controllers_are_found_among_other_devices() {
        let made = Made::new();
        made.device("0000:01:00.0", "0x010802", Some("nvme"), Some(7));
        made.device("0000:00:1f.2", "0x010601", Some("ahci"), Some(3));
        made.device("0000:00:03.0", "0x010802", None, None);
        let found = made.sysfs().controllers().expect("a tree");
        let seen: Vec<_> = found
            .iter()
            .map(|it| (it.address.to_string(), it.driver.as_deref(), it.group))
            .collect();
        let expected = [
            ("0000:00:03.0".to_owned(), None, None),
            ("0000:01:00.0".to_owned(), Some("nvme"), Some(7)),
        ];
        assert_eq!(seen, expected);
        assert_eq!(found[0].ids, (0x1b36, 0x0010));
        let address = "0000:00:1f.2".parse().expect("an address");
        assert_eq!(made.sysfs().controller(address), Err(NoController::OtherKind(address)));
        let address = "0000:00:1f.3".parse().expect("an address");
        assert_eq!(made.sysfs().controller(address), Err(NoController::Missing(address)));
    }

    #[test]
    fn a_group_names_who_is_in_the_way() {
        let made = Made::new();
        made.device("0000:01:00.0", "0x010802", Some("vfio-pci"), Some(7));
        made.device("0000:01:00.1", "0x0c0330", Some("xhci_hcd"), Some(7));
        made.device("0000:00:01.0", "0x060400", Some("shpchp"), Some(7));
        made.device("0000:01:01.0", "0x010802", None, Some(7));
        let members = made.sysfs().members(7).expect("a group");
        assert_eq!(members.len(), 4);
        let blocking: Vec<_> = members.iter().filter(|it| it.is_in_the_way()).collect();
        assert_eq!(blocking.len(), 1);
        assert_eq!(blocking[0].address, "0000:01:00.1");
    }
}
