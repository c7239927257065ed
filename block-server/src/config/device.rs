//! A device in the configuration, and how a pool on it is served.

use std::path::PathBuf;
use std::time::Duration;

use block_core::BlockCount;
use nvme::pci::Address;
use nvme::pci::address::BadAddress;
use nvme::soft::{BadFileIo, FileIo};
use serde::Deserialize;
use thiserror::Error;

use super::ConfigError;
use crate::catalog::Formatting;
use crate::directory::WorkerIndex;
use crate::layout::MIN_BLOCKS;
use crate::size::Size;
use crate::unlock::{BadUnlock, Unlock};

/// The least for a cache or the overlay: with less a checkpoint would begin
/// with every few hundred writes.
const MIN_MEMORY: Size = Size(4 << 20);

/// The most for each: more than any machine of today has to spare.
const MAX_MEMORY: Size = Size(1 << 40);

/// The least for the index.
const MIN_INDEX: Size = Size(64 << 10);

/// The most for an index whose size is not said: it covers 128 GiB of blocks.
const MAX_DEFAULT_INDEX: Size = Size(256 << 20);

/// The longest that a command may have no answer, in seconds.
const MOST_TIMEOUT: u64 = 3600;

/// A device with volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// What people call it.
    pub name: String,
    /// What it is.
    pub source: DeviceSource,
    /// Whether it may be formatted.
    pub formatting: Formatting,
    /// Who owns it.
    pub worker: WorkerIndex,
    /// What unlocks its pool, if it has one.
    pub unlock: Option<Unlock>,
    /// How its pool is served, if it has one.
    pub pool: PoolConfig,
    /// How long a command may have no answer before it is aborted.
    pub command_timeout: Duration,
}

/// How a pool is served: bounds on its memory, and what it does when it is
/// full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// For pages of maps and counts.
    pub page_cache: Size,
    /// For blocks that were read; 0 for none.
    pub read_cache: Size,
    /// For changes since the last checkpoint.
    pub overlay: Size,
    /// For the index of blocks that there are; by the device's size if left
    /// out.
    pub index: Option<Size>,
    /// What writes do when there is no room.
    pub full: Full,
}

/// What writes do when a pool has no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Full {
    /// They wait until there is.
    #[default]
    Wait,
    /// They fail.
    Fail,
}

impl Default for PoolConfig {
    fn default() -> Self {
        RawPool::default().into()
    }
}

impl PoolConfig {
    /// The memory of the index on a device of this size: as was said, else 8
    /// bytes for each block, up to 256 MiB.
    #[must_use]
    pub fn index_for(&self, device: BlockCount) -> Size {
        let all = Size(device.0.saturating_mul(8).next_multiple_of(4096));
        self.index.unwrap_or(all.clamp(MIN_INDEX, MAX_DEFAULT_INDEX))
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSource {
    /// A soft NVMe namespace over a file.
    Soft {
        /// Which file.
        path: PathBuf,
        /// Its size if it must be made.
        size: Option<Size>,
        /// The namespace's logical blocks, in bytes: 512 or 4096.
        lba: u32,
        /// How the file's bytes are moved.
        io: FileIo,
    },
    /// A namespace of a controller in another process.
    VfioUser {
        /// The socket that it is reached through.
        socket: PathBuf,
        /// The namespace's ID.
        namespace: u32,
    },
    /// A namespace of a PCI device.
    Pci {
        /// Where it is.
        address: Address,
        /// The namespace's ID.
        namespace: u32,
        /// It is used without an IOMMU: it reaches all memory of the machine.
        no_iommu: bool,
    },
}

impl DeviceSource {
    /// The file, socket or address.
    #[must_use]
    pub fn place(&self) -> PathBuf {
        match self {
            Self::Soft { path, .. } => path.clone(),
            Self::VfioUser { socket, .. } => socket.clone(),
            Self::Pci { address, .. } => address.to_string().into(),
        }
    }
}

/// Why a device cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DeviceProblem {
    /// Its name is none.
    #[error(
        "its name may have 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
    )]
    Name,
    /// Its path is of no kind that this version knows.
    #[error(
        "`path = \"{0}\"` is no device; write \"soft:FILE\", \"vfio-user:SOCKET\" or \"pci:0000:01:00.0\""
    )]
    Path(String),
    /// A PCI address that is none.
    #[error("`path = \"pci:..\"`: {0}")]
    Address(#[from] BadAddress),
    /// Something is said that the other kind of device has.
    #[error("`{key}` means nothing for a device at \"{kind}:\"; leave it out")]
    Foreign {
        /// What is said.
        key: &'static str,
        /// Of which kind the device is.
        kind: &'static str,
    },
    /// No namespace has this ID.
    #[error("`namespace = {0}` is no namespace; they are counted from 1")]
    Namespace(u32),
    /// Its logical blocks have another size.
    #[error("`lba = {0}` is neither 512 nor 4096")]
    Lba(u32),
    /// Its bytes cannot be moved so.
    #[error("`io`: {0}")]
    Io(#[from] BadFileIo),
    /// It is too small, or has a part of a block.
    #[error("`size` must be a multiple of 4096 bytes and at least {least}; {0} is not", least = Size(MIN_BLOCKS.bytes()))]
    Size(Size),
    /// A limit that every command exceeds, or that no one reaches.
    #[error("`command_timeout_seconds` must be from 1 to {MOST_TIMEOUT}; {0} is not")]
    Timeout(u64),
    /// Nobody can say what unlocks it.
    #[error(transparent)]
    Unlock(#[from] BadUnlock),
    /// A memory bound that does not work.
    #[error("`{key}` in [device.pool] must be from {least} to {most}; {found} is not")]
    Memory {
        /// Which one.
        key: &'static str,
        /// What was said.
        found: Size,
        /// The least that works.
        least: Size,
        /// The most that makes sense.
        most: Size,
    },
    /// Nobody owns it.
    #[error("`worker = {0}`: workers are counted from 0 and there are {1}")]
    Worker(usize, usize),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDevice {
    pub(super) name: String,
    path: String,
    size: Option<Size>,
    lba: Option<u32>,
    io: Option<String>,
    namespace: Option<u32>,
    #[serde(default)]
    unsafe_no_iommu: bool,
    #[serde(default)]
    format: bool,
    worker: Option<usize>,
    unlock: Option<String>,
    #[serde(default = "default_timeout")]
    command_timeout_seconds: u64,
    #[serde(default)]
    pool: RawPool,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPool {
    page_cache: Size,
    read_cache: Size,
    overlay: Size,
    index: Option<Size>,
    full: Full,
}

impl Default for RawPool {
    fn default() -> Self {
        let (cache, overlay) = (Size(64 << 20), Size(64 << 20));
        Self { page_cache: cache, read_cache: cache, overlay, index: None, full: Full::Wait }
    }
}

impl From<RawPool> for PoolConfig {
    fn from(raw: RawPool) -> Self {
        let RawPool { page_cache, read_cache, overlay, index, full } = raw;
        Self { page_cache, read_cache, overlay, index, full }
    }
}

impl RawPool {
    fn check(self) -> Result<PoolConfig, DeviceProblem> {
        let index = self.index.unwrap_or(MIN_INDEX);
        for (key, found, least) in [
            ("page_cache", self.page_cache, MIN_MEMORY),
            ("read_cache", self.read_cache, Size(0)),
            ("overlay", self.overlay, MIN_MEMORY),
            ("index", index, MIN_INDEX),
        ] {
            if !(least..=MAX_MEMORY).contains(&found) {
                return Err(DeviceProblem::Memory { key, found, least, most: MAX_MEMORY });
            }
        }
        Ok(self.into())
    }
}

/// Logical blocks of a soft device whose size is not said.
const DEFAULT_LBA: u32 = 4096;

/// Linux waits as long (`nvme_core.io_timeout`): a flush of a large cache may
/// need it.
fn default_timeout() -> u64 {
    30
}

impl RawDevice {
    pub(super) fn check(&self, number: usize, workers: usize) -> Result<DeviceConfig, ConfigError> {
        let wrong = |problem| ConfigError::Device { name: self.name.clone(), problem };
        link::VolumeName::new(&self.name).map_err(|_| wrong(DeviceProblem::Name))?;
        let source = self.source().map_err(wrong)?;
        if !(1..=MOST_TIMEOUT).contains(&self.command_timeout_seconds) {
            return Err(wrong(DeviceProblem::Timeout(self.command_timeout_seconds)));
        }
        let worker = self.worker.unwrap_or(number % workers);
        if worker >= workers {
            return Err(wrong(DeviceProblem::Worker(worker, workers)));
        }
        let unlock = self.unlock.as_deref().map(str::parse).transpose();
        let unlock = unlock.map_err(|bad: BadUnlock| wrong(bad.into()))?;
        let pool = self.pool.check().map_err(wrong)?;
        let formatting = if self.format { Formatting::IfForeign } else { Formatting::IfBlank };
        Ok(DeviceConfig {
            name: self.name.clone(),
            source,
            formatting,
            worker: WorkerIndex(worker),
            unlock,
            pool,
            command_timeout: Duration::from_secs(self.command_timeout_seconds),
        })
    }

    fn source(&self) -> Result<DeviceSource, DeviceProblem> {
        let after = |kind| self.path.strip_prefix(kind).filter(|rest| !rest.is_empty());
        let foreign = |key, kind| Err(DeviceProblem::Foreign { key, kind });
        if self.unsafe_no_iommu && !self.path.starts_with("pci:") {
            let is_far = self.path.starts_with("vfio-user:");
            return foreign("unsafe_no_iommu", if is_far { "vfio-user" } else { "soft" });
        }
        if let Some(path) = after("soft:") {
            let lba = self.lba.unwrap_or(DEFAULT_LBA);
            if self.namespace.is_some() {
                return foreign("namespace", "soft");
            }
            if !matches!(lba, 512 | 4096) {
                return Err(DeviceProblem::Lba(lba));
            }
            if let Some(size) = self.size
                && (size.0 < MIN_BLOCKS.bytes() || !size.0.is_multiple_of(4096))
            {
                return Err(DeviceProblem::Size(size));
            }
            let io = self.io.as_deref().map_or(Ok(FileIo::Auto), str::parse)?;
            return Ok(DeviceSource::Soft { path: path.into(), size: self.size, lba, io });
        }
        let (kind, place) = match (after("vfio-user:"), after("pci:")) {
            (Some(socket), _) => ("vfio-user", socket),
            (None, Some(address)) => ("pci", address),
            (None, None) => return Err(DeviceProblem::Path(self.path.clone())),
        };
        let namespace = match (self.size, self.lba, self.namespace.unwrap_or(1)) {
            (Some(_), ..) => return foreign("size", kind),
            (_, Some(_), _) => return foreign("lba", kind),
            _ if self.io.is_some() => return foreign("io", kind),
            (.., namespace @ (0 | u32::MAX)) => return Err(DeviceProblem::Namespace(namespace)),
            (.., namespace) => namespace,
        };
        if kind == "vfio-user" {
            return Ok(DeviceSource::VfioUser { socket: place.into(), namespace });
        }
        let (address, no_iommu) = (place.parse()?, self.unsafe_no_iommu);
        Ok(DeviceSource::Pci { address, namespace, no_iommu })
    }
}
