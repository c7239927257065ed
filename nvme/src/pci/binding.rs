//! Taking a device from its driver, and giving it back: `driver_override`, then
//! `unbind`, then `drivers_probe` (Documentation/ABI/testing/sysfs-bus-pci).

use std::fs;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::Address;
use super::sysfs::{NoController, Sysfs};
use super::usage::{Lists, claim, uses};

/// The driver that lets a process have a device.
pub const VFIO: &str = "vfio-pci";
/// Its kin without an IOMMU.
pub const UIO: &str = "uio_pci_generic";

/// Why a device was not bound.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The sentences say it, the fields are their words.
pub enum BindError {
    #[error(transparent)]
    NoController(#[from] NoController),
    #[error("{address} is in use: {}; end that first", uses.join(", "))]
    InUse { address: Address, uses: Vec<String> },
    #[error("cannot see whether {address} is in use ({error}), so it stays with its driver")]
    Unseen { address: Address, error: io::Error },
    #[error(
        "{address} is in use: {disk} cannot be opened for this process alone ({error}); end \
         whoever has it"
    )]
    Taken { address: Address, disk: String, error: io::Error },
    #[error(
        "{address} is behind no IOMMU; start the kernel with 'intel_iommu=on' or 'amd_iommu=on' (and \
         the firmware with VT-d or AMD-Vi), or type 'vrio nvme bind --unsafe-no-iommu {address}'"
    )]
    NoIommu { address: Address },
    #[error("the driver {driver} is not there; type 'modprobe {driver}'")]
    NoDriver { driver: String },
    #[error("cannot write '{text}' to {path}: {error}; only root may")]
    Write { path: PathBuf, text: String, error: io::Error },
    #[error("{address} did not go to {driver}: it has {now}; the kernel's log (dmesg) says why")]
    NotTaken { address: Address, driver: String, now: String },
}

/// Gives a controller that nobody uses to a driver for processes ([`VFIO`], [`UIO`]).
/// Already there: nothing is done.
///
/// # Errors
/// A sentence; the device is then where it was, or has no driver.
pub fn bind(sysfs: &Sysfs, lists: &Lists, address: Address, driver: &str) -> Result<(), BindError> {
    let found = sysfs.controller(address)?;
    if found.driver.as_deref() == Some(driver) {
        return Ok(());
    }
    if driver == VFIO && found.group.is_none() {
        return Err(BindError::NoIommu { address });
    }
    let used = uses(sysfs, lists, address);
    let used = used.map_err(|error| BindError::Unseen { address, error })?;
    if !used.is_empty() {
        return Err(BindError::InUse { address, uses: used });
    }
    let claimed = claim(sysfs, lists, address);
    let _claimed = claimed.map_err(|(disk, error)| BindError::Taken { address, disk, error })?;
    if !sysfs.root().join("bus/pci/drivers").join(driver).exists() {
        return Err(BindError::NoDriver { driver: driver.to_owned() });
    }
    move_to(sysfs, address, driver, driver)
}

/// Gives a device back to the driver that the kernel would choose.
///
/// # Errors
/// A sentence.
pub fn unbind(sysfs: &Sysfs, address: Address) -> Result<(), BindError> {
    let driver = sysfs.controller(address)?.driver;
    if driver.is_some_and(|driver| driver != VFIO && driver != UIO) {
        return Ok(()); // It was never taken.
    }
    move_to(sysfs, address, "", "nvme")
}

fn move_to(sysfs: &Sysfs, address: Address, wanted: &str, expected: &str) -> Result<(), BindError> {
    let folder = sysfs.folder(address);
    // An empty line takes the wish back; an empty write is none.
    write(folder.join("driver_override"), &format!("{wanted}\n"))?;
    if folder.join("driver").exists() {
        write(folder.join("driver/unbind"), &address.to_string())?;
    }
    write(sysfs.root().join("bus/pci/drivers_probe"), &address.to_string())?;
    let now = sysfs.controller(address)?.driver;
    if now.as_deref() == Some(expected) {
        return Ok(());
    }
    let now = now.map_or("no driver".to_owned(), |driver| format!("the driver {driver}"));
    Err(BindError::NotTaken { address, driver: expected.to_owned(), now })
}

fn write(path: PathBuf, text: &str) -> Result<(), BindError> {
    let outcome = fs::write(&path, text);
    outcome.map_err(|error| BindError::Write { path, text: text.trim().to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::super::made::Made;
    use super::*;

    const PLACE: &str = "0000:01:00.0";

    fn address() -> Address {
        PLACE.parse().expect("an address")
    }

    fn lists(made: &Made) -> Lists {
        made.file("mounts", "");
        made.file("swaps", "Filename\n");
        let (mounts, swaps) = (made.path("mounts"), made.path("swaps"));
        Lists { mounts, swaps, nodes: made.path("dev") }
    }

    #[test]
    fn a_used_device_is_left_alone() {
        let made = Made::new();
        made.device(PLACE, "0x010802", Some("nvme"), Some(1));
        made.disk(PLACE, "nvme0n1", "259:0");
        made.driver(VFIO);
        let lists = lists(&made);
        made.file("mounts", "22 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n");
        let refused = bind(&made.sysfs(), &lists, address(), VFIO).expect_err("it is mounted");
        assert!(refused.to_string().contains("nvme0n1 is mounted on /srv"), "{refused}");
        let folder = format!("bus/pci/devices/{PLACE}");
        assert_eq!(made.read(&format!("{folder}/driver_override")), "(null)\n");
        assert_eq!(made.read(&format!("{folder}/driver/unbind")), "");
    }

    /// Else vfio-pci would decline, and the kernel's driver have lost it already.
    #[test]
    fn a_device_without_an_iommu_stays_with_its_driver() {
        let made = Made::new();
        made.device(PLACE, "0x010802", Some("nvme"), None);
        made.driver(VFIO);
        let refused = bind(&made.sysfs(), &lists(&made), address(), VFIO).expect_err("no group");
        assert!(refused.to_string().contains("bind --unsafe-no-iommu 0000:01:00.0"), "{refused}");
        assert_eq!(made.read(&format!("bus/pci/devices/{PLACE}/driver/unbind")), "");
    }

    /// A made tree moves no device: what is written is seen, and that it did not help is
    /// said.
    #[test]
    fn the_steps_are_written_and_their_failure_is_named() {
        let made = Made::new();
        made.device(PLACE, "0x010802", Some("nvme"), Some(1));
        let lists = lists(&made);
        let missing = bind(&made.sysfs(), &lists, address(), VFIO).expect_err("no such driver");
        assert!(missing.to_string().contains("modprobe vfio-pci"), "{missing}");
        made.driver(VFIO);
        let stays = bind(&made.sysfs(), &lists, address(), VFIO).expect_err("nobody moves it");
        assert!(stays.to_string().contains("it has the driver nvme"), "{stays}");
        let folder = format!("bus/pci/devices/{PLACE}");
        assert_eq!(made.read(&format!("{folder}/driver_override")), "vfio-pci\n");
        assert_eq!(made.read(&format!("{folder}/driver/unbind")), PLACE);
        assert_eq!(made.read("bus/pci/drivers_probe"), PLACE);
    }

    #[test]
    fn a_device_goes_back_only_if_it_was_taken() {
        let made = Made::new();
        made.device(PLACE, "0x010802", Some("nvme"), Some(1));
        unbind(&made.sysfs(), address()).expect("nothing to do");
        assert_eq!(made.read("bus/pci/drivers_probe"), "");
        made.device("0000:02:00.0", "0x010802", Some(VFIO), Some(2));
        let other = "0000:02:00.0".parse().expect("an address");
        let stays = unbind(&made.sysfs(), other).expect_err("nobody moves it");
        assert!(stays.to_string().contains("did not go to nvme"), "{stays}");
        assert_eq!(made.read("bus/pci/devices/0000:02:00.0/driver_override"), "\n");
        let none = unbind(&made.sysfs(), "0000:03:00.0".parse().unwrap()).expect_err("not there");
        assert!(none.to_string().contains("vrio nvme list"), "{none}");
    }
}
