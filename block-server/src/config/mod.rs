//! What `vrio server` is told, parsed into something that is valid already.
//!
//! ```toml
//! listen = "udp://0.0.0.0:7700"       # or eth://IFACE, mem://PATH; worker n is at port 7700 + n
//! control = "/run/vrio/server.sock"
//! control_group = 27                  # its members may look; left out: nobody
//! state = "/var/lib/vrio"
//! workers = 1
//! cpus = [2]                          # pins the workers; may be left out
//! idle = "adaptive"                   # spin, yield, adaptive, interrupt
//! key = "/var/lib/vrio/server.key"    # made if it is not there
//! old_keys = []                       # by which fronts may still know the server
//! clear = false                       # true: fronts may do without keys and seals
//! metrics = "127.0.0.1:9464"          # for Prometheus; left out: on the control socket only
//!
//! [[device]]
//! name = "disk0"
//! path = "soft:/var/lib/vrio/disk0.img"   # or "vfio-user:SOCKET", "pci:0000:01:00.0"
//! size = "20G"                        # made, sparse, if it is not there
//! lba = 4096                          # or 512
//! io = "auto"                         # how the file is used: or "mapped", "direct"
//! namespace = 1                       # of a controller: not for "soft:"
//! unsafe_no_iommu = false             # true: a "pci:" device that reaches all memory
//! format = false                      # true: even if something else is on it
//! worker = 0
//! unlock = "key-file:/etc/vrio/disk0.key"   # for a pool; or "passphrase-file:FILE"
//!
//! [device.pool]                       # for a pool; all may be left out
//! page_cache = "64M"                  # map pages
//! read_cache = "64M"                  # blocks; 0 turns it off
//! overlay = "64M"                     # changes since the last checkpoint
//! index = "40M"                       # what blocks there are: 8 bytes for each
//! full = "wait"                       # or "fail"
//! ```

mod device;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use link::wire::address::{Address, AddressError};
use serde::Deserialize;
use thiserror::Error;
use turn::Idle;

use device::RawDevice;
pub use device::{DeviceConfig, DeviceProblem, DeviceSource, Full, PoolConfig};

/// The port that the first worker listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 7700;

/// Where the control socket is unless told otherwise.
pub const DEFAULT_CONTROL: &str = "/run/vrio/server.sock";

/// Where the server keeps what it must remember unless told otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/vrio";

/// Most workers: more cores than that poll nothing.
const MAX_WORKERS: usize = 64;

/// A server that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where the control socket is.
    pub control: PathBuf,
    /// Where the server keeps what it must remember.
    pub state: PathBuf,
    /// The group whose members may look at the server through the control socket.
    pub control_group: Option<u32>,
    /// Where everybody may read metrics by TCP, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Where the server's key is; `None` is in its state directory, made at the
    /// first start.
    pub key: Option<PathBuf>,
    /// Keys that the server had before.
    pub old_keys: Vec<PathBuf>,
    /// Whether fronts may speak in the clear, and have every volume then.
    pub clear: bool,
    /// At least one.
    pub workers: Vec<WorkerConfig>,
    /// At least one; each belongs to a worker.
    pub devices: Vec<DeviceConfig>,
}

/// A polling thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Where it listens for fronts.
    pub listen: Address,
    /// The core that it stays on.
    pub cpu: Option<usize>,
    /// What it does when there is nothing to do.
    pub idle: Idle,
}

/// Why a configuration is none.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {path} cannot be read: {error}; correct the path or its mode")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// The kernel's reason.
        error: std::io::Error,
    },
    /// It is not TOML, or has a key that means nothing here.
    #[error("the configuration is wrong, {0}")]
    Toml(String),
    /// The address is none.
    #[error("`listen`: {0}")]
    Listen(#[from] AddressError),
    /// Metrics cannot be there.
    #[error("`metrics = \"{0}\"` is no address and port; write 127.0.0.1:9464, or [::1]:9464")]
    Metrics(String),
    /// The workers' ports do not fit behind the first one.
    #[error(
        "{workers} workers need the ports from {first} on, and there are not so many; use a lower port"
    )]
    Ports {
        /// How many workers.
        workers: usize,
        /// The first one's port.
        first: u16,
    },
    /// There is no such number of workers.
    #[error("`workers = {0}` is not a number from 1 to {MAX_WORKERS}")]
    Workers(usize),
    /// The cores do not match the workers.
    #[error("`cpus` names {cpus} cores for {workers} workers; name one for each, or leave it out")]
    Cpus {
        /// How many cores.
        cpus: usize,
        /// How many workers.
        workers: usize,
    },
    /// There is nowhere to put volumes.
    #[error("no device is configured; add a [[device]] with `name`, `path` and `size`")]
    NoDevice,
    /// A name is taken.
    #[error("two devices are called '{0}'; give each a name of its own")]
    DeviceTwice(String),
    /// A file is taken.
    #[error("two devices use {0}; give each a file, socket or PCI device of its own")]
    FileTwice(PathBuf),
    /// Memory by physical addresses suits no other bus.
    #[error(
        "device '{open}' has `unsafe_no_iommu` and '{other}' has not: no worker can have both; give \
         them to different workers (`worker = N`)"
    )]
    Mixed {
        /// The one without an IOMMU.
        open: String,
        /// The other.
        other: String,
    },
    /// A device is wrong.
    #[error("device '{name}': {problem}")]
    Device {
        /// Which one.
        name: String,
        /// Why.
        problem: DeviceProblem,
    },
}

/// What is wrong with a text as TOML, and where, in one line.
#[must_use]
pub fn explain_toml(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', ", ");
    let Some(span) = error.span() else { return message };
    let before = &text.as_bytes()[..span.start.min(text.len())];
    let number = before.iter().filter(|&&byte| byte == b'\n').count();
    match text.lines().nth(number).map(str::trim) {
        Some(line) if !line.is_empty() => format!("line {}: `{line}`: {message}", number + 1),
        _ => format!("line {}: {message}", number + 1),
    }
}

impl ServerConfig {
    /// The configuration in a file.
    ///
    /// # Errors
    /// One sentence about the first thing that is wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        Self::parse(&text)
    }

    /// The configuration in a text.
    ///
    /// # Errors
    /// One sentence about the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let raw: RawServer =
            toml::from_str(text).map_err(|error| ConfigError::Toml(explain_toml(text, &error)))?;
        let workers = raw.workers()?;
        let metrics = raw.metrics()?;
        let devices: Vec<DeviceConfig> = raw
            .device
            .iter()
            .enumerate()
            .map(|(number, device)| device.check(number, workers.len()))
            .collect::<Result<_, _>>()?;
        if devices.is_empty() {
            return Err(ConfigError::NoDevice);
        }
        let (mut names, mut files) = (BTreeSet::new(), BTreeSet::new());
        for device in &devices {
            if !names.insert(&device.name) {
                return Err(ConfigError::DeviceTwice(device.name.clone()));
            }
            let place = device.source.place();
            if !files.insert(place.clone()) {
                return Err(ConfigError::FileTwice(place));
            }
        }
        for device in &devices {
            let is_open = |source: &DeviceSource| matches!(source, DeviceSource::Pci { no_iommu, .. } if *no_iommu);
            let clashes = |other: &&DeviceConfig| {
                let is_soft = matches!(other.source, DeviceSource::Soft { .. });
                other.worker == device.worker && !is_soft && !is_open(&other.source)
            };
            if is_open(&device.source)
                && let Some(other) = devices.iter().find(clashes)
            {
                let (open, other) = (device.name.clone(), other.name.clone());
                return Err(ConfigError::Mixed { open, other });
            }
        }
        let RawServer { control, control_group, state, key, old_keys, clear, .. } = raw;
        Ok(Self { control, control_group, metrics, state, key, old_keys, clear, workers, devices })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    #[serde(default = "default_listen")]
    listen: String,
    #[serde(default = "default_control")]
    control: PathBuf,
    control_group: Option<u32>,
    metrics: Option<String>,
    #[serde(default = "default_state")]
    state: PathBuf,
    key: Option<PathBuf>,
    #[serde(default)]
    old_keys: Vec<PathBuf>,
    #[serde(default)]
    clear: bool,
    #[serde(default = "default_workers")]
    workers: usize,
    cpus: Option<Vec<usize>>,
    #[serde(default)]
    idle: Idle,
    #[serde(default)]
    device: Vec<RawDevice>,
}

fn default_listen() -> String {
    format!("udp://{}:{DEFAULT_PORT}", Ipv4Addr::UNSPECIFIED)
}

fn default_control() -> PathBuf {
    DEFAULT_CONTROL.into()
}

fn default_state() -> PathBuf {
    DEFAULT_STATE.into()
}

fn default_workers() -> usize {
    1
}

impl RawServer {
    fn metrics(&self) -> Result<Option<SocketAddr>, ConfigError> {
        let parse = |text: &String| text.parse().map_err(|_| ConfigError::Metrics(text.clone()));
        self.metrics.as_ref().map(parse).transpose()
    }

    fn workers(&self) -> Result<Vec<WorkerConfig>, ConfigError> {
        if !(1..=MAX_WORKERS).contains(&self.workers) {
            return Err(ConfigError::Workers(self.workers));
        }
        let (first, workers) = (self.listen.parse::<Address>()?, self.workers);
        if let Some(cpus) = self.cpus.as_ref().map(Vec::len).filter(|&cpus| cpus != workers) {
            return Err(ConfigError::Cpus { cpus, workers });
        }
        let worker = |number: usize| {
            let listen = first.clone().of_worker(number as u16);
            let listen = listen.ok_or(ConfigError::Ports { workers, first: first.port() })?;
            let cpu = self.cpus.as_ref().map(|cpus| cpus[number]);
            Ok(WorkerConfig { listen, cpu, idle: self.idle })
        };
        (0..workers).map(worker).collect()
    }
}

#[cfg(test)]
mod tests {
    use nvme::soft::FileIo;

    use super::*;
    use crate::catalog::Formatting;
    use crate::size::Size;

    const DEVICE: &str = "[[device]]\nname = \"d\"\npath = \"soft:/d.img\"\n";

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = ServerConfig::parse(DEVICE).expect("valid");
        assert_eq!(config.control, PathBuf::from(DEFAULT_CONTROL));
        let worker = &config.workers[0];
        assert_eq!(worker.listen, "udp://0.0.0.0:7700".parse().expect("an address"));
        assert_eq!((config.workers.len(), worker.cpu, worker.idle), (1, None, Idle::Adaptive));
        assert_eq!(config.devices[0].formatting, Formatting::IfBlank);
    }

    #[test]
    fn everything_can_be_said_and_devices_go_round_the_workers() {
        let text = "listen = \"udp://[::1]:9000\"\nworkers = 2\ncpus = [3, 1]\nidle = \"spin\"\n\
            control = \"/c\"\nstate = \"/s\"\nmetrics = \"[::1]:9464\"\n\
            [[device]]\nname = \"a\"\npath = \"soft:a\"\nsize = \"20G\"\nlba = 512\nformat = true\n\
            io = \"direct\"\n[[device]]\nname = \"b\"\npath = \"soft:b\"\n\
            [[device]]\nname = \"c\"\npath = \"vfio-user:c\"\nworker = 1\nnamespace = 3\n\
            [[device]]\nname = \"p\"\npath = \"pci:0000:01:00.0\"\nunsafe_no_iommu = true\n\
            worker = 0\n";
        let config = ServerConfig::parse(text).expect("valid");
        assert_eq!(config.workers[1].listen, "udp://[::1]:9001".parse().expect("an address"));
        assert_eq!((config.workers[1].cpu, config.workers[1].idle), (Some(1), Idle::Spin));
        assert_eq!(config.metrics, Some("[::1]:9464".parse().expect("an address")));
        let owners: Vec<usize> = config.devices.iter().map(|device| device.worker.0).collect();
        assert_eq!(owners, [0, 1, 1, 0]);
        let size = Some(Size(20 << 30));
        let source = DeviceSource::Soft { path: "a".into(), size, lba: 512, io: FileIo::Direct };
        assert_eq!(config.devices[0].source, source);
        assert_eq!(config.devices[0].formatting, Formatting::IfForeign);
        let source = DeviceSource::VfioUser { socket: "c".into(), namespace: 3 };
        assert_eq!(config.devices[2].source, source);
        let address = "0000:01:00.0".parse().expect("an address");
        let source = DeviceSource::Pci { address, namespace: 1, no_iommu: true };
        assert_eq!(config.devices[3].source, source);
    }

    /// Each is a mistake that somebody makes; the sentence must name it.
    #[test]
    fn a_mistake_is_named_in_one_sentence() {
        let with = |text: &str| format!("{text}\n{DEVICE}");
        let pci = |text: &str| format!("{}{text}", DEVICE.replace("soft:/d.img", "pci:01:00.0"));
        let far = |text: &str| format!("{}{text}", DEVICE.replace("soft:/d.img", "vfio-user:/s"));
        for (text, named) in [
            (String::new(), "no device"),
            (with("port = 3"), "unknown field `port`"),
            (with("listen = \"0.0.0.0:7700\""), "udp://HOST:PORT"),
            (with("listen = \"udp://nowhere\""), "udp://HOST:PORT"),
            (with("listen = \"tcp://0.0.0.0:7700\""), "eth://IFACE"),
            (with("listen = \"eth://eth0:65535\"\nworkers = 2"), "lower port"),
            (with("listen = \"udp://0.0.0.0:65535\"\nworkers = 2"), "lower port"),
            (with("workers = 0"), "1 to 64"),
            (with("cpus = [1, 2]"), "2 cores for 1 workers"),
            (with("idle = \"sleep\""), "sleep"),
            (with("metrics = \"9464\""), "`metrics = \"9464\"` is no address and port"),
            (with("metrics = \"localhost:9464\""), "write 127.0.0.1:9464"),
            (format!("{DEVICE}{DEVICE}"), "two devices are called 'd'"),
            (format!("{DEVICE}{}", DEVICE.replace("\"d\"", "\"e\"")), "two devices use /d.img"),
            (DEVICE.replace("soft:/d.img", "/dev/nvme0"), "soft:FILE"),
            (DEVICE.replace("\"d\"", "\"a b\""), "'a b'"),
            (format!("{DEVICE}lba = 520"), "neither 512 nor 4096"),
            (format!("{DEVICE}io = \"fast\""), "`io`: \"fast\" is no way to a file"),
            (far("io = \"mapped\""), "`io` means nothing"),
            (format!("{DEVICE}size = \"8M\""), "at least 10M"),
            (format!("{DEVICE}size = \"11ham\""), "11ham"),
            (format!("{DEVICE}namespace = 1"), "`namespace` means nothing"),
            (DEVICE.replace("soft:/d.img", "vfio-user:"), "vfio-user:SOCKET"),
            (far("lba = 512"), "`lba` means nothing"),
            (far("size = \"1G\""), "`size` means nothing"),
            (far("namespace = 0"), "counted from 1"),
            (format!("{DEVICE}unsafe_no_iommu = true"), "`unsafe_no_iommu` means nothing"),
            (DEVICE.replace("soft:/d.img", "pci:01:00"), "0000:01:00.0"),
            (pci("size = \"1G\""), "`size` means nothing for a device at \"pci:\""),
            (
                format!("{}{}", pci("unsafe_no_iommu = true\n"), far("").replace("\"d\"", "\"e\"")),
                "no worker can have both",
            ),
            (format!("{DEVICE}worker = 1"), "counted from 0"),
            (format!("{DEVICE}sise = 1"), "unknown field `sise`"),
        ] {
            let error = ServerConfig::parse(&text).expect_err(&text).to_string();
            assert!(error.contains(named), "{text:?} gives {error:?}");
        }
        let missing = ServerConfig::read(Path::new("/nonexistent.toml")).expect_err("missing");
        assert!(missing.to_string().contains("/nonexistent.toml"));
    }
}
