//! What can be compared, and what each needs to run.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::interrupt::Interrupt;
use crate::ours;
use crate::peer;
use crate::service::Service;

/// A block service under comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Subject {
    /// qemu-storage-daemon on the file itself: no network
    Qsd,
    /// qemu-storage-daemon, NBD over TCP, nbdkit: the best remote chain
    Nbdkit,
    /// qemu-storage-daemon, NBD over TCP, qemu-nbd
    QemuNbd,
    /// `vrio server` and `vrio front` over UDP
    Vrio,
    /// `vrio local`: both in one thread
    Local,
}

/// Where a subject is set up.
#[derive(Debug)]
pub(crate) struct Site {
    /// The vrio binary, with an absolute path.
    pub(crate) vrio: PathBuf,
    /// A folder of its own.
    pub(crate) folder: PathBuf,
    /// The core for all its processes.
    pub(crate) cpu: usize,
    /// Size of its disk, in bytes.
    pub(crate) disk_bytes: u64,
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

impl Subject {
    pub(crate) const DEFAULT: [Self; 4] = [Self::Qsd, Self::Nbdkit, Self::Vrio, Self::Local];

    /// The subjects that others are set in relation to.
    pub(crate) const BASELINES: [Self; 2] = [Self::Qsd, Self::Nbdkit];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Qsd => "qsd",
            Self::Nbdkit => "qsd over nbdkit",
            Self::QemuNbd => "qsd over qemu-nbd",
            Self::Vrio => "vrio",
            Self::Local => "vrio local",
        }
    }

    fn tools(self) -> &'static [Tool] {
        match self {
            Self::Qsd => &[SETPRIV, TASKSET, QEMU_STORAGE_DAEMON],
            Self::Nbdkit => &[SETPRIV, TASKSET, QEMU_STORAGE_DAEMON, NBDKIT],
            Self::QemuNbd => &[SETPRIV, TASKSET, QEMU_STORAGE_DAEMON, QEMU_NBD],
            Self::Vrio | Self::Local => &[SETPRIV, TASKSET],
        }
    }

    /// The programs that this machine lacks.
    pub(crate) fn missing_tools(self) -> Vec<Tool> {
        let absent = |tool: &&Tool| find_program(tool.program).is_none();
        self.tools().iter().filter(absent).copied().collect()
    }

    /// Starts everything; the service's socket then takes a client.
    pub(crate) fn start(self, site: &Site, interrupt: &Interrupt) -> anyhow::Result<Service> {
        match self {
            Self::Qsd => peer::storage_daemon(site, interrupt),
            Self::Nbdkit => peer::over_nbdkit(site, interrupt),
            Self::QemuNbd => peer::over_qemu_nbd(site, interrupt),
            Self::Vrio => ours::apart(site, interrupt),
            Self::Local => ours::fused(site, interrupt),
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
