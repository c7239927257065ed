//! What `vrio server` is told, parsed into something that is valid already.
//!
//! ```toml
//! listen = "udp://0.0.0.0:7700"       # worker n listens on port 7700 + n
//! control = "/run/vrio/server.sock"
//! state = "/var/lib/vrio"
//! workers = 1
//! cpus = [2]                          # pins the workers; may be left out
//! idle = "adaptive"                   # spin, yield, adaptive, interrupt
//!
//! [[device]]
//! name = "disk0"
//! path = "soft:/var/lib/vrio/disk0.img"
//! size = "20G"                        # made, sparse, if it is not there
//! lba = 4096                          # or 512
//! format = false                      # true: even if something else is on it
//! worker = 0
//! ```

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use turn::Idle;

use crate::catalog::Formatting;
use crate::directory::WorkerIndex;
use crate::layout::MIN_BLOCKS;
use crate::size::Size;

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
    /// At least one.
    pub workers: Vec<WorkerConfig>,
    /// At least one; each belongs to a worker.
    pub devices: Vec<DeviceConfig>,
}

/// A polling thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerConfig {
    /// Where it listens for fronts (UDP).
    pub listen: SocketAddr,
    /// The core that it stays on.
    pub cpu: Option<usize>,
    /// What it does when there is nothing to do.
    pub idle: Idle,
}

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
    },
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
    #[error(
        "`listen = \"{0}\"` is no address; write \"udp://ADDRESS:PORT\", as in \"udp://0.0.0.0:7700\""
    )]
    Listen(String),
    /// This version does not listen there.
    #[error("`listen = \"{0}\"`: this version listens on \"udp://\" only")]
    Wire(String),
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
    #[error("two devices use {0}; give each a file of its own")]
    FileTwice(PathBuf),
    /// A device is wrong.
    #[error("device '{name}': {problem}")]
    Device {
        /// Which one.
        name: String,
        /// Why.
        problem: DeviceProblem,
    },
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
    #[error("`path = \"{0}\"` is no device; write \"soft:FILE\"")]
    Path(String),
    /// Its logical blocks have another size.
    #[error("`lba = {0}` is neither 512 nor 4096")]
    Lba(u32),
    /// It is too small, or has a part of a block.
    #[error("`size` must be a multiple of 4096 bytes and at least {least}; {0} is not", least = Size(MIN_BLOCKS.bytes()))]
    Size(Size),
    /// Nobody owns it.
    #[error("`worker = {0}`: workers are counted from 0 and there are {1}")]
    Worker(usize, usize),
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
            let DeviceSource::Soft { path, .. } = &device.source;
            if !files.insert(path) {
                return Err(ConfigError::FileTwice(path.clone()));
            }
        }
        Ok(Self { control: raw.control, state: raw.state, workers, devices })
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawServer {
    #[serde(default = "default_listen")]
    listen: String,
    #[serde(default = "default_control")]
    control: PathBuf,
    #[serde(default = "default_state")]
    state: PathBuf,
    #[serde(default = "default_workers")]
    workers: usize,
    cpus: Option<Vec<usize>>,
    #[serde(default)]
    idle: Idle,
    #[serde(default)]
    device: Vec<RawDevice>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevice {
    name: String,
    path: String,
    size: Option<Size>,
    #[serde(default = "default_lba")]
    lba: u32,
    #[serde(default)]
    format: bool,
    worker: Option<usize>,
}

fn default_listen() -> String {
    format!("udp://{}", SocketAddrV4::new(std::net::Ipv4Addr::UNSPECIFIED, DEFAULT_PORT))
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

fn default_lba() -> u32 {
    4096
}

impl RawServer {
    fn workers(&self) -> Result<Vec<WorkerConfig>, ConfigError> {
        if !(1..=MAX_WORKERS).contains(&self.workers) {
            return Err(ConfigError::Workers(self.workers));
        }
        let (first, workers) = (self.listen()?, self.workers);
        if let Some(cpus) = self.cpus.as_ref().map(Vec::len).filter(|&cpus| cpus != workers) {
            return Err(ConfigError::Cpus { cpus, workers });
        }
        let worker = |number: usize| {
            // Port 0 means any: for each worker.
            let offset = if first.port() == 0 { 0 } else { number as u16 };
            let port = first.port().checked_add(offset);
            let port = port.ok_or(ConfigError::Ports { workers, first: first.port() })?;
            let mut listen = first;
            listen.set_port(port);
            let cpu = self.cpus.as_ref().map(|cpus| cpus[number]);
            Ok(WorkerConfig { listen, cpu, idle: self.idle })
        };
        (0..workers).map(worker).collect()
    }

    fn listen(&self) -> Result<SocketAddr, ConfigError> {
        let Some(address) = self.listen.strip_prefix("udp://") else {
            return Err(match self.listen.split_once("://") {
                Some(_) => ConfigError::Wire(self.listen.clone()),
                None => ConfigError::Listen(self.listen.clone()),
            });
        };
        address.parse().map_err(|_| ConfigError::Listen(self.listen.clone()))
    }
}

impl RawDevice {
    fn check(&self, number: usize, workers: usize) -> Result<DeviceConfig, ConfigError> {
        let wrong = |problem| ConfigError::Device { name: self.name.clone(), problem };
        link::VolumeName::new(&self.name).map_err(|_| wrong(DeviceProblem::Name))?;
        let path = self.path.strip_prefix("soft:").filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| wrong(DeviceProblem::Path(self.path.clone())))?;
        if !matches!(self.lba, 512 | 4096) {
            return Err(wrong(DeviceProblem::Lba(self.lba)));
        }
        if let Some(size) = self.size
            && (size.0 < MIN_BLOCKS.bytes() || !size.0.is_multiple_of(4096))
        {
            return Err(wrong(DeviceProblem::Size(size)));
        }
        let worker = self.worker.unwrap_or(number % workers);
        if worker >= workers {
            return Err(wrong(DeviceProblem::Worker(worker, workers)));
        }
        let formatting = if self.format { Formatting::IfForeign } else { Formatting::IfBlank };
        Ok(DeviceConfig {
            name: self.name.clone(),
            source: DeviceSource::Soft { path: path.into(), size: self.size, lba: self.lba },
            formatting,
            worker: WorkerIndex(worker),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: &str = "[[device]]\nname = \"d\"\npath = \"soft:/d.img\"\n";

    #[test]
    fn what_is_left_out_has_a_default() {
        let config = ServerConfig::parse(DEVICE).expect("valid");
        assert_eq!(config.control, PathBuf::from(DEFAULT_CONTROL));
        let worker = &config.workers[0];
        assert_eq!(worker.listen, "0.0.0.0:7700".parse().expect("an address"));
        assert_eq!((config.workers.len(), worker.cpu, worker.idle), (1, None, Idle::Adaptive));
        assert_eq!(config.devices[0].formatting, Formatting::IfBlank);
    }

    #[test]
    fn everything_can_be_said_and_devices_go_round_the_workers() {
        let text = "listen = \"udp://[::1]:9000\"\nworkers = 2\ncpus = [3, 1]\nidle = \"spin\"\n\
            control = \"/c\"\nstate = \"/s\"\n\
            [[device]]\nname = \"a\"\npath = \"soft:a\"\nsize = \"20G\"\nlba = 512\nformat = true\n\
            [[device]]\nname = \"b\"\npath = \"soft:b\"\n\
            [[device]]\nname = \"c\"\npath = \"soft:c\"\nworker = 1\n";
        let config = ServerConfig::parse(text).expect("valid");
        assert_eq!(config.workers[1].listen, "[::1]:9001".parse().expect("an address"));
        assert_eq!((config.workers[1].cpu, config.workers[1].idle), (Some(1), Idle::Spin));
        let owners: Vec<usize> = config.devices.iter().map(|device| device.worker.0).collect();
        assert_eq!(owners, [0, 1, 1]);
        let size = Some(Size(20 << 30));
        let source = DeviceSource::Soft { path: "a".into(), size, lba: 512 };
        assert_eq!(config.devices[0].source, source);
        assert_eq!(config.devices[0].formatting, Formatting::IfForeign);
    }

    /// Each is a mistake that somebody makes; the sentence must name it.
    #[test]
    fn a_mistake_is_named_in_one_sentence() {
        let with = |text: &str| format!("{text}\n{DEVICE}");
        for (text, named) in [
            (String::new(), "no device"),
            (with("port = 3"), "unknown field `port`"),
            (with("listen = \"0.0.0.0:7700\""), "udp://ADDRESS:PORT"),
            (with("listen = \"udp://nowhere\""), "udp://ADDRESS:PORT"),
            (with("listen = \"eth://eth0\""), "only"),
            (with("listen = \"udp://0.0.0.0:65535\"\nworkers = 2"), "lower port"),
            (with("workers = 0"), "1 to 64"),
            (with("cpus = [1, 2]"), "2 cores for 1 workers"),
            (with("idle = \"sleep\""), "sleep"),
            (format!("{DEVICE}{DEVICE}"), "two devices are called 'd'"),
            (format!("{DEVICE}{}", DEVICE.replace("\"d\"", "\"e\"")), "two devices use /d.img"),
            (DEVICE.replace("soft:/d.img", "/dev/nvme0"), "soft:FILE"),
            (DEVICE.replace("\"d\"", "\"a b\""), "'a b'"),
            (format!("{DEVICE}lba = 520"), "neither 512 nor 4096"),
            (format!("{DEVICE}size = \"8M\""), "at least 10M"),
            (format!("{DEVICE}size = \"11ham\""), "11ham"),
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
