//! vRIO: server and front joined by UDP over the loopback, and both fused.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use anyhow::{Context, bail};

use crate::interrupt::Interrupt;
use crate::process::{Process, tied};
use crate::service::Service;
use crate::subject::Site;

const VOLUME: &str = "compared";

/// `vrio server` over a soft NVMe device, `vrio front` over UDP. They share a
/// core: each gives it to the other when it has nothing to do.
pub(crate) fn apart(site: &Site, interrupt: &Interrupt) -> anyhow::Result<Service> {
    let mut service = Service::at(site.folder.join("disk.sock"));
    let address = free_address()?;
    let listen = format!("clear = true\nlisten = \"udp://{address}\"\n");
    let config = write(site, "server.toml", &(listen + &server_settings(site, "yield")))?;
    let server = start(site, &["server", "--config", &config])?;
    service.add(server, &site.folder.join("control.sock"), interrupt)?;
    create_volume(site)?;

    let front = format!(
        "state = \"front\"\nserver = \"udp://{address}\"\nclear = true\nidle = \"yield\"\n\n\
         [[disk]]\nvolume = \"{VOLUME}\"\nsocket = \"disk.sock\"\nqueues = 1\n"
    );
    let config = write(site, "front.toml", &front)?;
    let front = start(site, &["front", "--config", &config])?;
    let socket = service.socket().to_owned();
    service.add(front, &socket, interrupt)?;
    Ok(service)
}

/// `vrio local`: one thread, which has the core to itself and spins.
pub(crate) fn fused(site: &Site, interrupt: &Interrupt) -> anyhow::Result<Service> {
    let mut service = Service::at(site.folder.join("disk.sock"));
    let config = write(site, "server.toml", &server_settings(site, "spin"))?;
    let disk = format!("--disk={VOLUME}=disk.sock");
    let create = format!("--create={}", size(site));
    let local = start(site, &["local", "--config", &config, &disk, &create, "--queues=1"])?;
    let socket = service.socket().to_owned();
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

fn start(site: &Site, arguments: &[&str]) -> anyhow::Result<Process> {
    Process::start(&site.vrio, arguments, site.cpu, &site.folder)
}

fn create_volume(site: &Site) -> anyhow::Result<()> {
    let output = tied(site.vrio.as_os_str())
        .args(["volume", "create", VOLUME, "--size", &size(site), "--control", "control.sock"])
        .current_dir(&site.folder)
        .output()
        .context("cannot run setpriv (Debian: util-linux)")?;
    if !output.status.success() {
        bail!("no volume was made: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn size(site: &Site) -> String {
    format!("{}M", site.disk_bytes >> 20)
}

fn write(site: &Site, name: &str, text: &str) -> anyhow::Result<String> {
    let file: &Path = &site.folder.join(name);
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(name.to_owned())
}

/// A UDP address that nobody had a moment ago.
fn free_address() -> anyhow::Result<String> {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).context("cannot find a free UDP port")?;
    Ok(socket.local_addr().context("cannot find a free UDP port")?.to_string())
}
