//! The IOMMU group of a device: what the kernel opens once, for all devices that the
//! IOMMU cannot tell apart.

use std::fs::{File, OpenOptions};
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::sysfs::Sysfs;
use super::vfio::OpenError;
use super::{Address, refused, sys};
use crate::arena::Arena;

/// A group in a container of its own, with the arena mapped for its devices. Each device
/// has a share; when the last one goes the memory is unmapped.
pub(super) struct Group {
    number: u32,
    file: File,
    container: File,
    arena: Arc<Arena>,
}

/// The groups that this process has: the kernel gives each to it once.
static OPENED: Mutex<Vec<Weak<Group>>> = Mutex::new(Vec::new());

impl Group {
    /// The group, opened now or for another of its devices.
    ///
    /// # Errors
    /// A sentence about what is in the way: it is not there, devices of it are not free,
    /// or another device of it is had with another arena, that is, by another worker.
    pub(super) fn of(
        sysfs: &Sysfs,
        address: Address,
        number: u32,
        arena: &Arc<Arena>,
    ) -> Result<Arc<Self>, OpenError> {
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|group| group.strong_count() > 0);
        let mut living = opened.iter().filter_map(Weak::upgrade);
        if let Some(group) = living.find(|group| group.number == number) {
            return if Arc::ptr_eq(&group.arena, arena) {
                Ok(group)
            } else {
                Err(OpenError::Elsewhere { address, group: number })
            };
        }
        let group = Arc::new(Self::open(sysfs, address, number, arena)?);
        opened.push(Arc::downgrade(&group));
        Ok(group)
    }

    fn open(
        sysfs: &Sysfs,
        address: Address,
        number: u32,
        arena: &Arc<Arena>,
    ) -> Result<Self, OpenError> {
        let step = |step| refused(step, address);
        let container = node("/dev/vfio/vfio")?;
        if !sys::has_iommu(&container).map_err(step("say what VFIO can do for"))? {
            return Err(OpenError::NoIommu(address));
        }
        let file = node(&format!("/dev/vfio/{number}"))?;
        if !sys::is_viable(&file).map_err(step("look at the IOMMU group of"))? {
            return Err(not_viable(sysfs, address, number));
        }
        sys::join(&file, &container).map_err(step("turn the IOMMU on for"))?;
        let memory =
            arena.memory().expect("a pinned arena: another one is a mistake in the caller");
        let (iova, mib) = (arena.iova(), memory.len() as u64 >> 20);
        let failed = |error| OpenError::Memory { address, mib, iova, error };
        sys::map(&container, memory, iova).map_err(failed)?;
        Ok(Self { number, file, container, arena: Arc::clone(arena) })
    }

    /// Opens a device of the group; the kernel resets its function.
    pub(super) fn device(&self, address: Address) -> io::Result<File> {
        sys::device(&self.file, &address.to_string())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let range = self.arena.range();
        if let Err(error) = sys::unmap(&self.container, self.arena.iova(), range.end - range.start)
        {
            tracing::warn!("memory stays mapped for a device until the process ends: {error}");
        }
    }
}

fn node(path: &str) -> Result<File, OpenError> {
    let outcome = OpenOptions::new().read(true).write(true).open(path);
    outcome.map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound => "type 'modprobe vfio-pci'",
            io::ErrorKind::PermissionDenied => "run as root, or give this user the file",
            io::ErrorKind::ResourceBusy => {
                "another process has a device of this IOMMU group, and all of them must be one's"
            }
            _ => "the kernel's log (dmesg) may say more",
        };
        OpenError::Node { path: path.to_owned(), error, remedy }
    })
}

fn not_viable(sysfs: &Sysfs, address: Address, group: u32) -> OpenError {
    let members = sysfs.members(group).unwrap_or_default();
    let others = members.iter().filter(|member| member.is_in_the_way()).map(|member| {
        let driver = member.driver.as_deref().unwrap_or("no driver");
        format!("{} (has {driver})", member.address)
    });
    let others = others.collect::<Vec<_>>().join(", ");
    OpenError::NotViable { address, group, others }
}

#[cfg(test)]
mod tests {
    use super::super::binding::VFIO;
    use super::super::made::Made;
    use super::*;

    const PLACE: &str = "0000:01:00.0";

    #[test]
    fn a_group_that_is_not_free_names_the_other_device_and_its_driver() {
        let made = Made::new();
        made.device(PLACE, "0x010802", Some(VFIO), Some(4));
        made.device("0000:01:00.1", "0x0c0330", Some("xhci_hcd"), Some(4));
        made.device("0000:00:1e.0", "0x060401", Some("shpchp"), Some(4));
        let address = PLACE.parse().expect("an address");
        let said = not_viable(&made.sysfs(), address, 4).to_string();
        assert!(said.contains("group 4") && said.contains("0000:01:00.1 (has xhci_hcd)"), "{said}");
        assert!(said.contains("driver/unbind") && !said.contains("shpchp"), "{said}");
    }
}
