//! `vrio nvme list`, `bind` and `unbind`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use nvme::pci::Address;
use nvme::pci::binding::{UIO, VFIO, bind, unbind};
use nvme::pci::sysfs::{Found, Sysfs};
use nvme::pci::usage::{Lists, names, uses};

use crate::table::{Side, table};

/// The kernel's trees: others in tests.
#[derive(Debug, Args)]
struct Trees {
    #[arg(long, hide = true, value_name = "FOLDER", default_value = "/sys")]
    sysfs: PathBuf,
    #[arg(long, hide = true, value_name = "FOLDER", default_value = "/proc")]
    proc: PathBuf,
    #[arg(long, hide = true, value_name = "FOLDER", default_value = "/dev")]
    dev: PathBuf,
}

impl Trees {
    fn sysfs(&self) -> Sysfs {
        Sysfs::at(&self.sysfs)
    }

    fn lists(&self) -> Lists {
        let (mounts, swaps) = (self.proc.join("self/mountinfo"), self.proc.join("swaps"));
        Lists { mounts, swaps, nodes: self.dev.clone() }
    }
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    trees: Trees,
}

#[derive(Debug, Args)]
pub(super) struct Bind {
    /// Which: 0000:01:00.0, as `list` shows it
    address: Address,
    /// Give it to uio_pci_generic, for machines without an IOMMU: whoever uses the device
    /// then can read and write all memory of this machine
    #[arg(long)]
    unsafe_no_iommu: bool,
    #[command(flatten)]
    trees: Trees,
}

#[derive(Debug, Args)]
pub(super) struct Unbind {
    /// Which: 0000:01:00.0, as `list` shows it
    address: Address,
    #[command(flatten)]
    trees: Trees,
}

impl List {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let (sysfs, lists) = (self.trees.sysfs(), self.trees.lists());
        let found = sysfs
            .controllers()
            .with_context(|| format!("cannot see PCI devices in {}", self.trees.sysfs.display()))?;
        if found.is_empty() {
            println!("this machine has no NVMe controller on PCI");
            return Ok(());
        }
        let rows: Vec<_> = found.iter().map(|found| row(&sysfs, &lists, found)).collect();
        let left = |head| (head, Side::Left);
        let heads = ["ADDRESS", "ID", "DRIVER", "GROUP", "DISKS", "USED FOR"].map(left);
        print!("{}", table(heads, &rows));
        Ok(())
    }
}

fn row(sysfs: &Sysfs, lists: &Lists, found: &Found) -> [String; 6] {
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let disks = names(sysfs, found.address).unwrap_or_default().join(" ");
    let used = match uses(sysfs, lists, found.address) {
        Ok(uses) => uses.join("; "),
        Err(error) => format!("cannot be seen: {error}"),
    };
    [
        found.address.to_string(),
        format!("{:04x}:{:04x}", found.ids.0, found.ids.1),
        or_none(found.driver.clone().unwrap_or_default()),
        or_none(found.group.map_or(String::new(), |group| group.to_string())),
        or_none(disks),
        or_none(used),
    ]
}

impl Bind {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let driver = if self.unsafe_no_iommu { UIO } else { VFIO };
        bind(&self.trees.sysfs(), &self.trees.lists(), self.address, driver)?;
        println!("{} has the driver {driver}; a server uses it as \"pci:{0}\"", self.address);
        Ok(())
    }
}

impl Unbind {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        unbind(&self.trees.sysfs(), self.address)?;
        println!("{} is the kernel's", self.address);
        Ok(())
    }
}
