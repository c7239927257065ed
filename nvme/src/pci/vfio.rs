//! The bus to a PCI device behind an IOMMU: registers and doorbells are loads and
//! stores, interrupts are eventfds, memory is mapped once.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use block_core::DmaMemory;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use thiserror::Error;

use super::bar::Bar;
use super::binding::VFIO;
use super::command_register::set_master;
use super::group::Group;
use super::sysfs::{Found, NoController, Sysfs};
use super::{Address, Refused, refused, sys};
use crate::arena::Arena;
use crate::bus::Bus;
use crate::registers::{CSTS, GONE};

/// VFIO's numbers for regions and kinds of interrupts of PCI devices.
const BAR0: u32 = 0;
const CONFIGURATION: u32 = 7;
const MSI_X: u32 = 2;
const REMOVAL: u32 = 4;

/// Why a device cannot be used.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The sentences say it, the fields are their words.
pub enum OpenError {
    #[error(transparent)]
    NoController(#[from] NoController),
    #[error("{address} has {holder}, not vfio-pci; type 'vrio nvme bind {address}'")]
    Driver { address: Address, holder: String },
    #[error(
        "{0} is behind no IOMMU: turn it on in the firmware and for the kernel (intel_iommu=on or \
         amd_iommu=on); or, if you trust the device with all memory, see `unsafe_no_iommu`"
    )]
    NoIommu(Address),
    #[error("cannot open {path}: {error}; {remedy}")]
    Node { path: String, error: io::Error, remedy: &'static str },
    #[error(
        "{address} shares IOMMU group {group} with devices that are not free: {others}; give each \
         of them to vfio-pci or take it from its driver (echo ADDRESS > \
         /sys/bus/pci/devices/ADDRESS/driver/unbind)"
    )]
    NotViable { address: Address, group: u32, others: String },
    #[error(
        "cannot map {mib} MiB of memory for {address}: {error}; the limit on locked memory may be \
         too low (ulimit -l, LimitMEMLOCK=), or addresses beyond {iova:#x} are too high for the IOMMU"
    )]
    Memory { address: Address, mib: u64, iova: u64, error: io::Error },
    #[error(
        "{address} shares IOMMU group {group} with another device of this server, which another \
         worker has; give both the same `worker`"
    )]
    Elsewhere { address: Address, group: u32 },
    #[error(transparent)]
    Step(#[from] Refused),
}

/// A bus over VFIO.
///
/// The device reaches the arena and nothing else: the IOMMU sees to that. Dropping it
/// turns bus mastering off before the memory is unmapped.
pub struct VfioBus {
    device: Mutex<Option<Device>>,
    bar: Bar,
    bells: Bells,
    arena: Arc<Arena>,
}

/// What is written to when the device has something to say.
struct Bells {
    /// A completion, if there are interrupts.
    interrupt: Option<OwnedFd>,
    /// The kernel wants the device back: it was unplugged, or somebody unbinds it.
    removal: OwnedFd,
}

/// The open device. The order of fields is the one in which they are closed.
struct Device {
    file: File,
    configuration: u64,
    bar: u64,
    _group: Arc<Group>,
}

impl VfioBus {
    /// Opens the device, which vfio-pci must have, and maps the arena for it, which must
    /// be a [pinned](Arena::pinned) one. Several buses may have the same one, and must if
    /// their devices are in one IOMMU group.
    ///
    /// # Errors
    /// A sentence about what is in the way, and the way out.
    pub fn open(
        sysfs: &Sysfs,
        address: Address,
        arena: Arc<Arena>,
    ) -> Result<Arc<Self>, OpenError> {
        let group = ready(sysfs, address)?;
        let device = Device::open(address, Group::of(sysfs, address, group, &arena)?)?;
        let step = |step| refused(step, address);
        let info = sys::region(&device.file, BAR0).map_err(step("describe the registers of"))?;
        if !info.can_be_mapped() {
            return Err(step("map the registers of")(io::ErrorKind::Unsupported.into()).into());
        }
        let bells = Bells::connect(&device.file).map_err(step("pass on interrupts of"))?;
        device.set_master(true).map_err(step("enable bus mastering of"))?;
        let bar = Bar::map(&device.file, info.offset, info.size);
        let bar = bar.map_err(step("map the registers of"))?;
        Ok(Arc::new(Self { device: Mutex::new(Some(device)), bar, bells, arena }))
    }
}

/// The device's group, if it can be opened at all.
fn ready(sysfs: &Sysfs, address: Address) -> Result<u32, OpenError> {
    let Found { driver, group, .. } = sysfs.controller(address)?;
    if driver.as_deref() != Some(VFIO) {
        let holder = driver.map_or("no driver".to_owned(), |name| format!("the driver {name}"));
        return Err(OpenError::Driver { address, holder });
    }
    group.ok_or(OpenError::NoIommu(address))
}

impl Device {
    fn open(address: Address, group: Arc<Group>) -> Result<Self, OpenError> {
        let step = |step| refused(step, address);
        let file = group.device(address).map_err(step("open"))?;
        let configuration = sys::region(&file, CONFIGURATION);
        let configuration = configuration.map_err(step("show the configuration of"))?.offset;
        let bar = sys::region(&file, BAR0).map_err(step("describe the registers of"))?.offset;
        Ok(Self { file, configuration, bar, _group: group })
    }

    fn set_master(&self, is_master: bool) -> io::Result<()> {
        set_master(&self.file, self.configuration, is_master)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A device that is gone takes no command; then nothing of it reaches memory.
        if let Err(error) = self.set_master(false) {
            tracing::debug!("bus mastering was not turned off: {error}");
        }
    }
}

impl Bells {
    fn connect(device: &File) -> io::Result<Self> {
        let bell = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let (interrupt, removal) = (bell()?, bell()?);
        // Old kernels do not announce a removal: then the registers say it.
        if sys::interrupts(device, REMOVAL).unwrap_or(0) > 0 {
            sys::connect_interrupt(device, REMOVAL, removal.as_fd())?;
        }
        if sys::interrupts(device, MSI_X)? == 0 {
            tracing::warn!("the device has no MSI-X interrupts, so it is polled all the time");
            return Ok(Self { interrupt: None, removal });
        }
        sys::connect_interrupt(device, MSI_X, interrupt.as_fd())?;
        Ok(Self { interrupt: Some(interrupt), removal })
    }
}

impl Bus for VfioBus {
    fn read32(&self, offset: u32) -> u32 {
        if offset == CSTS && self.is_revoked() { GONE } else { self.bar.load(offset) }
    }

    fn write32(&self, offset: u32, value: u32) {
        self.bar.store(offset, value);
    }

    fn allocate(&self, bytes: usize) -> io::Result<DmaMemory> {
        self.arena.allocate(bytes)
    }

    fn cut_off(&self) {
        self.bar.give_up();
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The mapping holds the device, too; the kernel waits for both to go.
        if let Err(error) = self.bar.replace(None) {
            tracing::error!("the registers of a device that was given up stay mapped: {error}");
        }
        drop(device);
    }

    fn relax(&self) {
        std::thread::yield_now();
    }

    fn has_interrupts(&self) -> bool {
        self.bells.interrupt.is_some()
    }

    fn bells(&self) -> Vec<BorrowedFd<'_>> {
        let interrupt = self.bells.interrupt.as_ref().map(AsFd::as_fd);
        [Some(self.bells.removal.as_fd()), interrupt].into_iter().flatten().collect()
    }

    fn announces_removal(&self) -> bool {
        true
    }

    fn is_revoked(&self) -> bool {
        let mut asked = [PollFd::new(&self.bells.removal, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut asked, Some(&now)), Ok(1))
    }

    fn revive(&self) -> io::Result<bool> {
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(device) = device.as_ref() else { return Ok(false) };
        device.set_master(false)?;
        sys::reset(&device.file)?;
        device.set_master(true)?;
        self.bar.replace(Some((&device.file, device.bar)))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::made::Made;
    use super::*;

    const PLACE: &str = "0000:01:00.0";

    fn refused(made: &Made) -> String {
        let arena = Arc::new(Arena::pinned(1).expect("memory"));
        let address = PLACE.parse().expect("an address");
        match VfioBus::open(&made.sysfs(), address, arena) {
            Ok(_) => panic!("there is no such device"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_in_the_way_is_named_with_the_way_out() {
        assert!(refused(&Made::new()).contains("vrio nvme list"));
        let made = Made::new();
        made.device(PLACE, "0x010802", Some("nvme"), Some(4));
        assert!(refused(&made).contains("the driver nvme, not vfio-pci; type 'vrio nvme bind"));
        let made = Made::new();
        made.device(PLACE, "0x010802", Some(VFIO), None);
        assert!(refused(&made).contains("intel_iommu=on"));
        let made = Made::new();
        made.device(PLACE, "0x030000", Some(VFIO), Some(4));
        assert!(refused(&made).contains("no NVMe controller"));
    }
}
