//! The front's configuration, parsed into a form that is already valid.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use block_server::Size;
use link::wire::address::Address;
use link::{ClientSettings, PublicKey, VolumeName};
use serde::Deserialize;
use turn::Idle;

/// What a newcomer could write.
const EXAMPLE: &str = r#"    state = "/var/lib/vrio/front"
    server_key = "vrio-key-..."           # `vrio server list` prints it

    [[disk]]
    volume = "vm1"
    server = "udp://iohost:7700"
    socket = "/run/vrio/vm1.sock"
"#;

/// Most bytes that may be kept of each disk: memory for the list of them is
/// taken at the start.
const MOST_KEPT_BYTES: usize = 64 << 30;

/// The file, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    state: PathBuf,
    /// The server of disks that name none, and its key.
    server: Option<String>,
    server_key: Option<String>,
    #[serde(default)]
    clear: bool,
    key: Option<PathBuf>,
    #[serde(default)]
    idle: Idle,
    cpu: Option<usize>,
    connect_timeout_seconds: Option<u64>,
    least_timeout_us: Option<u64>,
    kept: Option<Size>,
    #[serde(default)]
    disk: Vec<RawDisk>,
}

/// A `[[disk]]`, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDisk {
    server: Option<String>,
    server_key: Option<String>,
    #[serde(default)]
    clear: bool,
    volume: String,
    socket: PathBuf,
    #[serde(default)]
    read_only: bool,
    logical_block_size: Option<u32>,
    serial: Option<String>,
    queues: Option<u16>,
    #[serde(default)]
    accept_loss: bool,
}

/// The configuration of `vrio front`.
#[derive(Debug)]
pub(super) struct FrontConfig {
    /// Where the front's identity is kept.
    pub(super) state: PathBuf,
    /// Where the front's key is; `None` is in its state directory.
    pub(super) key: Option<PathBuf>,
    pub(super) idle: Idle,
    pub(super) cpu: Option<usize>,
    /// How long to wait for servers at start; `None` is for ever.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) least_timeout: Duration,
    /// Bytes of unflushed changes that are kept for each disk.
    pub(super) kept_bytes: usize,
    pub(super) disks: Vec<Disk>,
}

/// One disk to serve.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) server: Address,
    /// The key that the server must have; `None` asks for sessions in the clear.
    pub(crate) server_key: Option<PublicKey>,
    pub(crate) volume: VolumeName,
    pub(crate) socket: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) logical_block_size: u32,
    pub(crate) serial: Option<String>,
    pub(crate) queues: Option<u16>,
    /// Whether a guest may go on although answered writes may be missing.
    pub(crate) accept_loss: bool,
}

impl FrontConfig {
    pub(super) fn read(file: &Path) -> anyhow::Result<Self> {
        let raw: RawConfig = crate::config::read(file, EXAMPLE)?;
        Self::check(raw).with_context(|| format!("{} is not a valid configuration", file.display()))
    }

    fn check(raw: RawConfig) -> anyhow::Result<Self> {
        if raw.disk.is_empty() {
            bail!("it names no disk; add one:\n\n{EXAMPLE}");
        }
        let (server, key) = (raw.server.as_deref(), raw.server_key.as_deref());
        let disks = raw.disk.into_iter().map(|disk| disk.check(server, key, raw.clear));
        let disks = disks.collect::<Result<Vec<_>, _>>()?;
        check_distinct(&disks)?;
        let connect = raw.connect_timeout_seconds.unwrap_or(10);
        let least =
            raw.least_timeout_us.map_or(ClientSettings::LEAST_TIMEOUT, Duration::from_micros);
        if least.is_zero() || least > Duration::from_millis(250) {
            bail!("least_timeout_us must be between 1 and 250000");
        }
        let default = ClientSettings::KEPT_BYTES;
        let kept_bytes = raw.kept.map_or(Some(default), |kept| usize::try_from(kept.0).ok());
        let kept_bytes = kept_bytes
            .filter(|kept| (ClientSettings::LEAST_KEPT_BYTES..=MOST_KEPT_BYTES).contains(kept))
            .context("kept must be between 1M and 64G: what is kept of each disk")?;
        Ok(Self {
            state: raw.state,
            key: raw.key,
            idle: raw.idle,
            cpu: raw.cpu,
            connect_timeout: (connect > 0).then(|| Duration::from_secs(connect)),
            least_timeout: least,
            kept_bytes,
            disks,
        })
    }
}

/// No two disks may share a socket or, from one server, a volume.
pub(crate) fn check_distinct(disks: &[Disk]) -> anyhow::Result<()> {
    for (place, disk) in disks.iter().enumerate() {
        for other in &disks[..place] {
            if other.socket == disk.socket {
                bail!("two disks have the socket {}", disk.socket.display());
            }
            if other.volume == disk.volume && other.server == disk.server {
                bail!("two disks have the volume {}", disk.volume);
            }
        }
    }
    Ok(())
}

impl RawDisk {
    fn check(self, server: Option<&str>, key: Option<&str>, clear: bool) -> anyhow::Result<Disk> {
        let Some(server) = self.server.as_deref().or(server) else {
            bail!("disk {} names no server, and there is none for all disks", self.volume);
        };
        let server = crate::config::server_address(server)?;
        let key = self.server_key.as_deref().or(key.filter(|_| !self.clear));
        let clear = self.clear || (clear && self.server_key.is_none());
        // Nobody is between two processes that share memory.
        let clear = clear || (server.is_memory() && key.is_none());
        let server_key = server_key(&self.volume, key, clear)?;
        Ok(Disk {
            server,
            server_key,
            volume: VolumeName::new(&self.volume)?,
            socket: self.socket,
            read_only: self.read_only,
            logical_block_size: self.logical_block_size.unwrap_or(512),
            serial: self.serial,
            queues: self.queues,
            accept_loss: self.accept_loss,
        })
    }
}

/// The key that a disk's server must have; `None` if it is said that there is to
/// be none.
fn server_key(volume: &str, key: Option<&str>, clear: bool) -> anyhow::Result<Option<PublicKey>> {
    match key {
        Some(_) if clear => {
            bail!("disk {volume} has a server_key and clear = true; take out one of them")
        }
        Some(key) => Ok(Some(key.parse().with_context(|| format!("server_key = \"{key}\""))?)),
        None if clear => Ok(None),
        None => bail!(
            "disk {volume} has no server_key; `vrio server list` on the server prints it \
             (clear = true does without, where the server allows it and everybody on the network \
             is trusted)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<FrontConfig, String> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        FrontConfig::check(raw).map_err(|error| format!("{error:#}"))
    }

    const DISK: &str = "[[disk]]\nvolume = 'a'\nserver = 'udp://127.0.0.1:7700'\n\
                        socket = '/run/a.sock'\nclear = true\n";

    #[test]
    fn the_example_is_valid() {
        let key = PublicKey([7; 32]);
        let example = EXAMPLE.replace("iohost", "127.0.0.1");
        let example = example.replace("vrio-key-...", &key.to_string());
        let config = check(&example).expect("valid");
        assert_eq!(config.disks.len(), 1);
        assert_eq!(config.disks[0].server_key, Some(key));
        assert_eq!(config.disks[0].logical_block_size, 512);
        assert_eq!(config.connect_timeout, Some(Duration::from_secs(10)));
        assert_eq!(config.kept_bytes, 64 << 20);
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("state = '/s'", "names no disk"),
            (&format!("state = '/s'\nspeed = 3\n{DISK}"), "speed"),
            (&format!("state = '/s'\n{}", DISK.replace("clear = true", "")), "no server_key"),
            (&format!("state = '/s'\n{DISK}server_key = 'vrio-key-a'"), "take out one"),
            (
                &format!(
                    "state = '/s'\nserver_key = 'vrio-key-a'\n{}",
                    DISK.replace("true", "false")
                ),
                "56 letters",
            ),
            (&format!("state = '/s'\n{DISK}{DISK}"), "two disks have the socket /run/a.sock"),
            (&format!("state = '/s'\n{}", DISK.replace("udp", "tcp")), "udp://HOST:PORT"),
            (&format!("state = '/s'\n{}", DISK.replace("'a'", "'a b'")), "not a volume name"),
            (&format!("state = '/s'\nidle = 'lazy'\n{DISK}"), "lazy"),
            (&format!("state = '/s'\nkept = '64K'\n{DISK}"), "kept must be between 1M"),
            (DISK, "state"),
        ];
        for (text, named) in cases {
            let sentence = check(text).expect_err("refused");
            assert!(sentence.contains(named), "{sentence:?} should name {named:?}");
        }
    }
}
