//! Whether a controller's disks are in use: then nobody may take it from the kernel.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Address;
use super::sysfs::{Sysfs, name_behind};

/// Where the kernel lists what is mounted and swapped to; arguments, as for
/// [`Sysfs`].
#[derive(Clone, Debug)]
pub struct Lists {
    /// `/proc/self/mountinfo`.
    pub mounts: PathBuf,
    /// `/proc/swaps`.
    pub swaps: PathBuf,
    /// `/dev`, with the disks' nodes.
    pub nodes: PathBuf,
}

impl Default for Lists {
    fn default() -> Self {
        let (mounts, swaps) = ("/proc/self/mountinfo".into(), "/proc/swaps".into());
        Self { mounts, swaps, nodes: "/dev".into() }
    }
}

/// What a disk is used for, as a part of a sentence: "nvme0n1p2 is mounted on /home".
pub type Use = String;

/// What the disks and partitions of a controller are used for. Nothing: it is free.
///
/// # Errors
/// The kernel's. Who cannot look must not take that for "free".
pub fn uses(sysfs: &Sysfs, lists: &Lists, address: Address) -> io::Result<Vec<Use>> {
    let disks = disks(sysfs, address)?;
    let mounts = fs::read_to_string(&lists.mounts)?;
    let swaps = match fs::read_to_string(&lists.swaps) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(), // No swap at all.
        outcome => outcome?,
    };
    let mut uses = Vec::new();
    for disk in &disks {
        let mounted = mounts.lines().filter_map(|line| mount_point(line, &disk.number));
        uses.extend(mounted.map(|place| format!("{} is mounted on {place}", disk.name)));
        let swapped = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        let is_swap = |path: &str| Path::new(path).file_name().is_some_and(|it| it == &*disk.name);
        if swapped.into_iter().any(is_swap) {
            uses.push(format!("{} is swap space", disk.name));
        }
        for holder in &disk.holders {
            uses.push(format!("{} is part of {holder} (RAID, LVM or device mapper)", disk.name));
        }
    }
    // btrfs names an invented device in its mounts; what the kernel has open it
    // lists nowhere else.
    for (label, member) in btrfs_members(sysfs) {
        if disks.iter().any(|disk| disk.name == member) {
            uses.push(format!("{member} is part of the btrfs file system {label}"));
        }
    }
    Ok(uses)
}

/// Opens every disk of a controller for this process alone: whoever has one, or a
/// partition of it, is found though no list names it (another mount namespace), and nobody begins to
/// use one as long as the files are open.
///
/// # Errors
/// Which one cannot be had, and the kernel's reason.
pub fn claim(
    sysfs: &Sysfs,
    lists: &Lists,
    address: Address,
) -> Result<Vec<File>, (String, io::Error)> {
    let disks = disks(sysfs, address).map_err(|error| (address.to_string(), error))?;
    let mut held = Vec::new();
    // A disk that is had alone has no partitions for others, this process included.
    for disk in disks.into_iter().filter(|disk| !disk.is_partition) {
        let exclusive = rustix::fs::OFlags::EXCL.bits() as i32;
        let file =
            File::options().read(true).custom_flags(exclusive).open(lists.nodes.join(&disk.name));
        match file {
            Ok(file) => held.push(file),
            // The paths of a disk with several have no nodes.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err((disk.name, error)),
        }
    }
    Ok(held)
}

/// The names of a controller's disks and partitions.
///
/// # Errors
/// The kernel's.
pub fn names(sysfs: &Sysfs, address: Address) -> io::Result<Vec<String>> {
    Ok(disks(sysfs, address)?.into_iter().map(|disk| disk.name).collect())
}

struct Disk {
    name: String,
    /// "259:0".
    number: String,
    holders: Vec<String>,
    is_partition: bool,
}

/// Every block device that lies below the controller, partitions and the hidden paths
/// of multipath devices included.
fn disks(sysfs: &Sysfs, address: Address) -> io::Result<Vec<Disk>> {
    let home = fs::canonicalize(sysfs.folder(address))?;
    let mut controllers = Vec::new();
    if let Ok(entries) = fs::read_dir(home.join("nvme")) {
        for entry in entries {
            controllers.push(entry?.file_name().to_string_lossy().into_owned());
        }
    }
    let mut disks = Vec::new();
    for entry in fs::read_dir(sysfs.root().join("class/block"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(place) = fs::canonicalize(entry.path()) else { continue };
        if !place.starts_with(&home) && !is_path_of(&place, &controllers) {
            continue;
        }
        let number = fs::read_to_string(place.join("dev")).unwrap_or_default();
        let mut holders = Vec::new();
        if let Ok(entries) = fs::read_dir(place.join("holders")) {
            for holder in entries {
                holders.push(holder?.file_name().to_string_lossy().into_owned());
            }
        }
        let is_partition = place.join("partition").exists();
        disks.push(Disk { name, number: number.trim().to_owned(), holders, is_partition });
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

/// With native multipath a disk hangs below its subsystem, which links to its
/// controllers.
fn is_path_of(place: &Path, controllers: &[String]) -> bool {
    let subsystem = place.ancestors().find(|folder| {
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.starts_with("nvme-subsys"))
    });
    let Some(subsystem) = subsystem else { return false };
    controllers.iter().any(|controller| name_behind(&subsystem.join(controller)).is_some())
}

/// The mount point of a line of mountinfo, if its device has this number (proc(5)).
fn mount_point<'a>(line: &'a str, number: &str) -> Option<&'a str> {
    let mut fields = line.split(' ');
    (!number.is_empty() && fields.nth(2)? == number).then(|| fields.nth(1))?
}

fn btrfs_members(sysfs: &Sysfs) -> Vec<(String, String)> {
    let mut members = Vec::new();
    let Ok(entries) = fs::read_dir(sysfs.root().join("fs/btrfs")) else { return members };
    for entry in entries.flatten() {
        let label = entry.file_name().to_string_lossy().into_owned();
        let Ok(devices) = fs::read_dir(entry.path().join("devices")) else { continue };
        for device in devices.flatten() {
            members.push((label.clone(), device.file_name().to_string_lossy().into_owned()));
        }
    }
    members
}

#[cfg(test)]
mod tests {
    use super::super::made::Made;
    use super::*;

    const PLACE: &str = "0000:01:00.0";

    fn made() -> (Made, Lists) {
        let made = Made::new();
        made.device(PLACE, "0x010802", Some("nvme"), Some(7));
        made.disk(PLACE, "nvme0n1", "259:0");
        made.disk(PLACE, "nvme0n1p1", "259:1");
        made.file(&format!("bus/pci/devices/{PLACE}/nvme/nvme0/nvme0n1p1/partition"), "1\n");
        made.file("mounts", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
        made.file("swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n");
        let (mounts, swaps) = (made.path("mounts"), made.path("swaps"));
        let lists = Lists { mounts, swaps, nodes: made.path("dev") };
        (made, lists)
    }

    fn found(made: &Made, lists: &Lists) -> Vec<Use> {
        uses(&made.sysfs(), lists, PLACE.parse().expect("an address")).expect("it can be seen")
    }

    #[test]
    fn a_device_whose_disks_nobody_uses_is_free() {
        let (made, lists) = made();
        assert!(found(&made, &lists).is_empty());
        assert_eq!(names(&made.sysfs(), PLACE.parse().unwrap()).unwrap(), ["nvme0n1", "nvme0n1p1"]);
    }

    /// Taking the disk below a mounted file system, an array or the swap space away is
    /// the loss of somebody's data.
    #[test]
    fn every_kind_of_use_is_seen_also_of_a_partition() {
        let (made, lists) = made();
        made.file("mounts", "22 1 259:1 / /home/a\\040b rw - ext4 /dev/nvme0n1p1 rw\n");
        assert_eq!(found(&made, &lists), ["nvme0n1p1 is mounted on /home/a\\040b"]);
        made.file("mounts", "");
        made.file("swaps", "Filename Type\n/dev/nvme0n1 partition 1 0 -2\n");
        assert_eq!(found(&made, &lists), ["nvme0n1 is swap space"]);
        made.file("swaps", "Filename Type\n");
        made.link(
            &format!("bus/pci/devices/{PLACE}/nvme/nvme0/nvme0n1/holders/md0"),
            Path::new("/"),
        );
        assert_eq!(found(&made, &lists).len(), 1);
        assert!(found(&made, &lists)[0].starts_with("nvme0n1 is part of md0"));
        made.link("fs/btrfs/1234/devices/nvme0n1p1", Path::new("/"));
        assert!(found(&made, &lists)[1].contains("btrfs"));
    }

    /// With multipath the disk hangs below its subsystem, not below the device.
    #[test]
    fn a_disk_of_several_paths_is_seen() {
        let (made, lists) = made();
        made.file("devices/virtual/nvme-subsystem/nvme-subsys0/nvme1n1/dev", "259:5\n");
        let subsystem = "devices/virtual/nvme-subsystem/nvme-subsys0";
        made.link(
            &format!("{subsystem}/nvme0"),
            &made.path(&format!("bus/pci/devices/{PLACE}/nvme/nvme0")),
        );
        made.link("class/block/nvme1n1", &made.path(&format!("{subsystem}/nvme1n1")));
        made.file("mounts", "22 1 259:5 / /srv rw - ext4 /dev/nvme1n1 rw\n");
        assert_eq!(found(&made, &lists), ["nvme1n1 is mounted on /srv"]);
    }

    /// A disk may be used where no list of ours shows it: the kernel knows.
    #[test]
    fn a_disk_that_cannot_be_had_alone_is_named() {
        let (made, lists) = made();
        let address = PLACE.parse().expect("an address");
        let claimed = claim(&made.sysfs(), &lists, address).expect("no node, no use");
        assert!(claimed.is_empty());
        made.file("dev/nvme0n1", "");
        assert_eq!(claim(&made.sysfs(), &lists, address).expect("it is free").len(), 1);
        made.disk(PLACE, "nvme0n2", "259:7");
        made.link("dev/nvme0n2", Path::new("nvme0n2"));
        let (name, _) = claim(&made.sysfs(), &lists, address).expect_err("a circle");
        assert_eq!(name, "nvme0n2");
    }

    /// "I could not look" is not "nobody uses it".
    #[test]
    fn lists_that_cannot_be_read_are_an_error() {
        let (made, lists) = made();
        let address = PLACE.parse().expect("an address");
        let blind = Lists { mounts: made.path("nowhere"), ..lists };
        assert!(uses(&made.sysfs(), &blind, address).is_err());
    }
}
