//! What can be compared, and what each needs to run.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::cable::Cable;
use crate::floor;
use crate::interrupt::Interrupt;
use crate::ours::{self, Setting, Way};
use crate::peer;
use crate::process::Place;
use crate::service::Service;

/// A block service under comparison, or the floor of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Subject {
    /// No protocol at all, in one thread: the floor without a network
    Skeleton,
    /// No protocol at all, over UDP: the floor with one
    SkeletonUdp,
    /// The same over a cable with real frames
    SkeletonFrames,
    /// qemu-storage-daemon on the file itself: no network
    Qsd,
    /// qemu-storage-daemon, NBD over TCP, nbdkit: the best remote chain
    Nbdkit,
    /// The same over a cable with real frames
    NbdkitFrames,
    /// qemu-storage-daemon, NBD over TCP, qemu-nbd
    QemuNbd,
    /// `vrio server` and `vrio front` over UDP, in the clear
    Vrio,
    /// The same, both going to sleep when there is nothing to do
    VrioAdaptive,
    /// `vrio local`: both in one thread
    Local,
    /// The same, going to sleep when there is nothing to do
    LocalAdaptive,
    /// Over UDP, sealed
    Sealed,
    /// Over UDP, in the clear; a volume of a pool, sealed and deduplicated there
    Pool,
    /// Through memory of one machine
    Memory,
    /// Over UDP on a cable with real frames
    Frames,
    /// Over Ethernet on the same kind of cable
    Ethernet,
}

/// Where a subject is set up.
#[derive(Debug)]
pub(crate) struct Site {
    /// The vrio binary, with an absolute path.
    pub(crate) vrio: PathBuf,
    /// That of the floor.
    pub(crate) skeleton: PathBuf,
    /// A folder of its own.
    pub(crate) folder: PathBuf,
    /// The core for all its processes.
    pub(crate) cpu: usize,
    /// Size of its disk, in bytes.
    pub(crate) disk_bytes: u64,
}

impl Site {
    /// Where its processes run.
    pub(crate) fn place(&self, namespace: Option<String>) -> Place<'_> {
        Place { cpu: self.cpu, folder: &self.folder, namespace }
    }
}

/// A program that a subject is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    /// The Debian package that has it.
    pub(crate) package: &'static str,
}

const QEMU_STORAGE_DAEMON: Tool = Tool { program: "qemu-storage-daemon", package: "qemu-utils" };
const QEMU_NBD: Tool = Tool { program: "qemu-nbd", package: "qemu-utils" };
const NBDKIT: Tool = Tool { program: "nbdkit", package: "nbdkit" };
const TASKSET: Tool = Tool { program: "taskset", package: "util-linux" };
const SETPRIV: Tool = Tool { program: "setpriv", package: "util-linux" };
const IP: Tool = Tool { program: "ip", package: "iproute2" };

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Skeleton => "floor",
            Self::SkeletonUdp => "floor, UDP",
            Self::SkeletonFrames => "floor, frames",
            Self::Qsd => "qsd",
            Self::Nbdkit => "qsd over nbdkit",
            Self::NbdkitFrames => "nbdkit, frames",
            Self::QemuNbd => "qsd over qemu-nbd",
            Self::Vrio => "vrio",
            Self::VrioAdaptive => "vrio, adaptive",
            Self::Local => "vrio local",
            Self::LocalAdaptive => "local, adaptive",
            Self::Sealed => "vrio, sealed",
            Self::Pool => "vrio, pool",
            Self::Memory => "vrio, memory",
            Self::Frames => "vrio, frames",
            Self::Ethernet => "vrio, Ethernet",
        }
    }

    /// Whether it has a cable of its own, between two network namespaces.
    fn is_cabled(self) -> bool {
        matches!(self, Self::SkeletonFrames | Self::NbdkitFrames | Self::Frames | Self::Ethernet)
    }

    /// Whether equal blocks are stored once: it is asked to store blocks that differ.
    pub(crate) fn stores_once(self) -> bool {
        self == Self::Pool
    }

    /// What its files take, in disks.
    pub(crate) fn room(self) -> u64 {
        match self {
            // Its memory is its own, and as large.
            Self::Pool => 2,
            _ => 1,
        }
    }

    fn tools(self) -> Vec<Tool> {
        let mut tools = vec![SETPRIV, TASKSET];
        tools.extend(self.is_cabled().then_some(IP));
        match self {
            Self::Qsd => tools.push(QEMU_STORAGE_DAEMON),
            Self::Nbdkit | Self::NbdkitFrames => tools.extend([QEMU_STORAGE_DAEMON, NBDKIT]),
            Self::QemuNbd => tools.extend([QEMU_STORAGE_DAEMON, QEMU_NBD]),
            _ => {}
        }
        tools
    }

    /// Why this machine cannot run it: programs that it lacks, rights that we lack.
    pub(crate) fn obstacle(self) -> Option<String> {
        let absent = |tool: &Tool| find_program(tool.program).is_none();
        let missing: Vec<String> =
            self.tools().into_iter().filter(absent).map(|tool| tool.to_string()).collect();
        if !missing.is_empty() {
            return Some(format!("there is no {}", missing.join(", no ")));
        }
        let may = !self.is_cabled() || rustix::process::geteuid().is_root();
        (!may).then(|| "network namespaces take root".to_owned())
    }

    /// Starts everything; the service's door then takes a client.
    pub(crate) fn start(self, site: &Site, interrupt: &Interrupt) -> anyhow::Result<Service> {
        match self {
            Self::Skeleton => floor::fused(site, interrupt),
            Self::SkeletonUdp => floor::apart(site, interrupt, None),
            Self::SkeletonFrames => floor::apart(site, interrupt, Some(Cable::lay("floor")?)),
            Self::Qsd => peer::storage_daemon(site, interrupt),
            Self::Nbdkit => peer::over_nbdkit(site, interrupt, None),
            Self::NbdkitFrames => peer::over_nbdkit(site, interrupt, Some(Cable::lay("nbd")?)),
            Self::QemuNbd => peer::over_qemu_nbd(site, interrupt),
            Self::Vrio => ours::apart(site, interrupt, Way::udp()?, Setting::RAW),
            Self::VrioAdaptive => ours::apart(site, interrupt, Way::udp()?, Setting::ADAPTIVE),
            Self::Local => ours::fused(site, interrupt, "spin"),
            Self::LocalAdaptive => ours::fused(site, interrupt, "adaptive"),
            Self::Sealed => ours::apart(site, interrupt, Way::udp()?, Setting::SEALED),
            Self::Pool => ours::apart(site, interrupt, Way::udp()?, Setting::POOL),
            Self::Memory => ours::apart(site, interrupt, Way::memory(), Setting::RAW),
            Self::Frames => {
                ours::apart(site, interrupt, Way::udp_on(Cable::lay("udp")?), Setting::RAW)
            }
            Self::Ethernet => {
                ours::apart(site, interrupt, Way::ethernet_on(Cable::lay("eth")?), Setting::RAW)
            }
        }
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} (Debian: apt-get install {})", self.program, self.package)
    }
}

/// The file that a shell would run; some users have no `sbin` in their path.
fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let file = |folder: &Path| Some(folder.join(program)).filter(|file| file.is_file());
    std::env::split_paths(&path).find_map(|folder| file(&folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let absent = Tool { program: "no-such-program", package: "no-such-package" };
        assert_eq!(find_program(absent.program), None);
        assert!(find_program("sh").is_some_and(|file| file.is_absolute()));
        let sentence = absent.to_string();
        assert!(sentence.contains("no-such-program") && sentence.contains("no-such-package"));
    }
}
