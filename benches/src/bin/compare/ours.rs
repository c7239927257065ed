//! vRIO: server and front joined by a wire, and both fused.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::UdpSocket;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::cable::Cable;
use crate::interrupt::Interrupt;
use crate::process::{Process, tied};
use crate::service::{Door, Service};
use crate::subject::Site;

const VOLUME: &str = "compared";

/// How front and server reach each other.
#[derive(Debug)]
pub(crate) struct Way {
    /// Where the server listens, and where the front looks for it.
    addresses: [String; 2],
    cable: Option<Cable>,
}

impl Way {
    /// UDP over the loopback, at a port that nobody had a moment ago.
    pub(crate) fn udp() -> anyhow::Result<Self> {
        let socket = UdpSocket::bind(("127.0.0.1", 0)).context("cannot find a free UDP port")?;
        let address = socket.local_addr().context("cannot find a free UDP port")?;
        Ok(Self::at(format!("udp://{address}"), None))
    }

    /// UDP over a cable.
    pub(crate) fn udp_on(cable: Cable) -> Self {
        Self::at(format!("udp://{}:7700", Cable::ADDRESSES[0]), Some(cable))
    }

    /// Ethernet over a cable.
    pub(crate) fn ethernet_on(cable: Cable) -> Self {
        Self::at(format!("eth://{}", Cable::INTERFACE), Some(cable))
    }

    /// Memory of this machine; the name is relative, as all of a subject's are.
    pub(crate) fn memory() -> Self {
        Self::at("mem://wire".to_owned(), None)
    }

    fn at(address: String, cable: Option<Cable>) -> Self {
        Self { addresses: [address.clone(), address], cable }
    }
}

/// What both ends are told, and what the device is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    idle: &'static str,
    sealed: bool,
    pool: bool,
}

impl Setting {
    /// A raw volume, frames in the clear. Both ends share a core: each gives it to the
    /// other when it has nothing to do.
    pub(crate) const RAW: Self = Self { idle: "yield", sealed: false, pool: false };
    /// The same, and both sleep.
    pub(crate) const ADAPTIVE: Self = Self { idle: "adaptive", ..Self::RAW };
    /// Sealed frames.
    pub(crate) const SEALED: Self = Self { sealed: true, ..Self::RAW };
    /// A volume of a pool.
    pub(crate) const POOL: Self = Self { pool: true, ..Self::RAW };
}

/// `vrio server` over a soft NVMe device, and `vrio front`.
pub(crate) fn apart(
    site: &Site,
    interrupt: &Interrupt,
    way: Way,
    setting: Setting,
) -> anyhow::Result<Service> {
    let Way { addresses: [listen, server], cable } = way;
    let mut service = Service::at(Door::Socket(site.folder.join("disk.sock")), cable);
    let Setting { idle, sealed, pool } = setting;
    let mut text = format!("clear = {}\nlisten = \"{listen}\"\n", !sealed);
    text += &server_settings(site, idle);
    if pool {
        make_key(&site.folder.join("pool.key"))?;
        text += "unlock = \"key-file:pool.key\"\n";
    }
    let config = write(site, "server.toml", &text)?;
    let process = start(site, &["server", "--config", &config], service.namespace(0))?;
    service.add(process, &site.folder.join("control.sock"), interrupt)?;
    let size = size(site);
    if pool {
        control(site, &["pool", "create", "soft"])?;
        control(site, &["volume", "create", VOLUME, "--size", &size, "--domain", "compared"])?;
    } else {
        control(site, &["volume", "create", VOLUME, "--size", &size])?;
    }

    let trust = if sealed { keys(site)? } else { "clear = true\n".to_owned() };
    let front = format!(
        "state = \"front\"\nserver = \"{server}\"\n{trust}idle = \"{idle}\"\n\n\
         [[disk]]\nvolume = \"{VOLUME}\"\nsocket = \"disk.sock\"\nqueues = 1\n"
    );
    let config = write(site, "front.toml", &front)?;
    let process = start(site, &["front", "--config", &config], service.namespace(1))?;
    service.add(process, &site.folder.join("disk.sock"), interrupt)?;
    Ok(service)
}

/// `vrio local`: one thread, which has the core to itself.
pub(crate) fn fused(site: &Site, interrupt: &Interrupt, idle: &str) -> anyhow::Result<Service> {
    let socket = site.folder.join("disk.sock");
    let mut service = Service::at(Door::Socket(socket.clone()), None);
    let config = write(site, "server.toml", &server_settings(site, idle))?;
    let disk = format!("--disk={VOLUME}=disk.sock");
    let create = format!("--create={}", size(site));
    let local = start(site, &["local", "--config", &config, &disk, &create, "--queues=1"], None)?;
    service.add(local, &socket, interrupt)?;
    Ok(service)
}

/// Paths are relative: every process starts in the subject's own folder.
fn server_settings(site: &Site, idle: &str) -> String {
    // Room for the volume and for what the device keeps about it.
    let device_mib = 2 * (site.disk_bytes >> 20);
    format!(
        "control = \"control.sock\"\nstate = \"server\"\nidle = \"{idle}\"\n\n\
         [[device]]\nname = \"soft\"\npath = \"soft:device.img\"\nsize = \"{device_mib}M\"\n"
    )
}

fn start(site: &Site, arguments: &[&str], namespace: Option<String>) -> anyhow::Result<Process> {
    Process::start(&site.vrio, arguments, &site.place(namespace))
}

/// The front's key and the server's, which know each other from now on: the front's
/// lines about it.
fn keys(site: &Site) -> anyhow::Result<String> {
    let key = vrio(site, &["key", "generate", "front.key"])?;
    control(site, &["server", "authorize", key.trim(), "--volumes", VOLUME])?;
    let list = control(site, &["server", "list", "--json"])?;
    let list: Value = serde_json::from_str(&list).context("`vrio server list` is strange")?;
    let server = list["server_keys"][0].as_str().context("the server has no key")?;
    Ok(format!("server_key = \"{server}\"\nkey = \"front.key\"\n"))
}

fn make_key(file: &Path) -> anyhow::Result<()> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    // It keeps nobody out of anything.
    made.and_then(|mut made| made.write_all(&[7; 32]))
        .with_context(|| format!("cannot make {}", file.display()))
}

/// Runs `vrio` on the server; what it prints.
fn control(site: &Site, words: &[&str]) -> anyhow::Result<String> {
    vrio(site, &[words, &["--control", "control.sock"]].concat())
}

fn vrio(site: &Site, words: &[&str]) -> anyhow::Result<String> {
    let output = tied(site.vrio.as_os_str())
        .args(words)
        .current_dir(&site.folder)
        .output()
        .context("cannot run setpriv (Debian: util-linux)")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`vrio {}` failed: {}", words.join(" "), complaint.trim());
    }
    String::from_utf8(output.stdout).context("`vrio` prints no text")
}

fn size(site: &Site) -> String {
    format!("{}M", site.disk_bytes >> 20)
}

fn write(site: &Site, name: &str, text: &str) -> anyhow::Result<String> {
    let file: &Path = &site.folder.join(name);
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(name.to_owned())
}
