//! The bus to a PCI device without an IOMMU: registers by sysfs, memory in huge pages
//! whose physical addresses the kernel tells. Nothing keeps such a device from any
//! memory of the machine.

use std::fs::{File, OpenOptions, write};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use block_core::{DmaMemory, Memory};
use thiserror::Error;

use super::bar::Bar;
use super::command_register::set_master;
use super::sysfs::{NoController, Sysfs};
use super::{Address, Refused, refused};
use crate::PAGE;
use crate::arena::{Arena, HUGE_PAGE};
use crate::bus::Bus;

/// An entry of `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst): the
/// page's frame, and whether it is there.
const FRAME: u64 = (1 << 55) - 1;
const PRESENT: u64 = 1 << 63;

/// Why a device without an IOMMU cannot be used.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The sentences say it, the fields are their words.
pub enum PhysicalError {
    #[error(transparent)]
    NoController(#[from] NoController),
    #[error("{address} has the driver {driver}; type 'vrio nvme bind --unsafe-no-iommu {address}'")]
    Driver { address: Address, driver: String },
    #[error(
        "without an IOMMU devices need {pages} free huge pages of 2 MiB ({error}); type 'sysctl \
         vm.nr_hugepages={pages}', or more if others use them too"
    )]
    HugePages { pages: u64, error: io::Error },
    #[error("the kernel hides physical addresses (/proc/self/pagemap) from this user; run as root")]
    Hidden,
    #[error(transparent)]
    Step(#[from] Refused),
}

/// What of a huge page is surely filled by pieces of up to an eighth of it, none of
/// which goes on in the next page.
const FILLED: u64 = HUGE_PAGE - HUGE_PAGE / 8;

/// Memory whose physical addresses are known, for pieces of `bytes` in all.
///
/// Huge pages come from the kernel in any order: no piece can be longer than 2 MiB, and
/// of those longer than 256 KiB some may find no page that is free as a whole.
///
/// # Errors
/// A sentence about what is missing.
pub fn physical_arena(bytes: u64) -> Result<Arena, PhysicalError> {
    let pages = bytes.div_ceil(FILLED);
    let missing = |error| PhysicalError::HugePages { pages, error };
    let arena = Arena::in_huge_pages(pages * HUGE_PAGE).map_err(missing)?;
    let file = arena.file().try_clone().map_err(missing)?;
    let memory = Memory::of_file(&file, 0, (pages * HUGE_PAGE) as usize).map_err(missing)?;
    let run = |page| {
        let at = page * HUGE_PAGE;
        Ok((at..at + HUGE_PAGE, address_of(&memory, page)?))
    };
    let runs = (0..pages).map(run).collect::<Result<_, PhysicalError>>()?;
    Ok(Arena::scattered(file, Arc::new(memory), runs))
}

/// The physical address of a huge page of the memory.
fn address_of(memory: &Memory, page: u64) -> Result<u64, PhysicalError> {
    let at = (page * HUGE_PAGE) as usize;
    // It is there when it has been touched.
    crate::sys::clear(memory, at, 1);
    let page = (memory.as_ptr().addr() + at) / PAGE;
    let mut entry = [0; 8];
    let pagemap = File::open("/proc/self/pagemap");
    let read = pagemap.and_then(|file| file.read_exact_at(&mut entry, page as u64 * 8));
    let entry = read.map_or(0, |()| u64::from_le_bytes(entry));
    match entry & FRAME {
        0 => Err(PhysicalError::Hidden),
        _ if entry & PRESENT == 0 => Err(PhysicalError::Hidden),
        frame => Ok(frame * PAGE as u64),
    }
}

/// A bus over sysfs.
pub struct PhysicalBus {
    bar: Bar,
    configuration: File,
    arena: Arc<Arena>,
}

impl PhysicalBus {
    /// Opens a device that the kernel does not drive. The arena is that of
    /// [`physical_arena`].
    ///
    /// # Errors
    /// A sentence about what is in the way.
    pub fn open(
        sysfs: &Sysfs,
        address: Address,
        arena: Arc<Arena>,
    ) -> Result<Arc<Self>, PhysicalError> {
        let found = sysfs.controller(address)?;
        let has_driver = found.driver.is_some();
        if let Some(driver) = found.driver.filter(|driver| driver != super::binding::UIO) {
            return Err(PhysicalError::Driver { address, driver });
        }
        let folder = sysfs.folder(address);
        let step = |step| refused(step, address);
        // A driver has enabled it, and the kernel lets nobody else.
        if !has_driver {
            write(folder.join("enable"), "1").map_err(step("enable"))?;
        }
        let open = |name| OpenOptions::new().read(true).write(true).open(folder.join(name));
        let configuration = open("config").map_err(step("open the configuration of"))?;
        let bar = open("resource0").map_err(step("open the registers of"))?;
        let size = bar.metadata().map_err(step("measure the registers of"))?.len();
        let bar = Bar::map(&bar, 0, size).map_err(step("map the registers of"))?;
        set_master(&configuration, 0, true).map_err(step("enable bus mastering of"))?;
        Ok(Arc::new(Self { bar, configuration, arena }))
    }
}

impl Drop for PhysicalBus {
    fn drop(&mut self) {
        self.cut_off();
    }
}

impl Bus for PhysicalBus {
    fn read32(&self, offset: u32) -> u32 {
        self.bar.load(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.bar.store(offset, value);
    }

    fn allocate(&self, bytes: usize) -> io::Result<DmaMemory> {
        self.arena.allocate(bytes)
    }

    fn cut_off(&self) {
        if let Err(error) = set_master(&self.configuration, 0, false) {
            tracing::error!("bus mastering of a device was not turned off: {error}");
        }
        self.bar.give_up();
    }

    fn relax(&self) {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_the_kernel_drives_is_left_alone() {
        use super::super::made::Made;
        let made = Made::new();
        made.device("0000:01:00.0", "0x010802", Some("nvme"), None);
        let arena = Arc::new(Arena::in_memory(1).expect("memory"));
        let address = "0000:01:00.0".parse().expect("an address");
        let error = PhysicalBus::open(&made.sysfs(), address, arena).err().expect("refused");
        assert!(error.to_string().contains("bind --unsafe-no-iommu 0000:01:00.0"), "{error}");
    }
}
