//! The peers: QEMU's storage daemon on a file, and on NBD servers over TCP.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cable::Cable;
use crate::interrupt::Interrupt;
use crate::process::Process;
use crate::service::{Door, Service};
use crate::subject::Site;

/// A thread of its own for the disk: the daemon then polls for up to 32 us, and
/// serves depth 1 a tenth faster than from its main loop.
const THREAD: [&str; 2] = ["--object", "iothread,id=thread"];

/// The daemon on the file itself. io_uring makes it a third faster than its
/// default threads at depth 32, also on tmpfs; the faster one is the measure.
pub(crate) fn storage_daemon(site: &Site, interrupt: &Interrupt) -> anyhow::Result<Service> {
    let mut service = Service::at(door(site), None);
    let image = make_image(site)?;
    export(&mut service, site, interrupt, &format!("driver=file,filename={image},aio=io_uring"))?;
    Ok(service)
}

/// The daemon on an NBD connection to nbdkit, over the loopback or a cable.
pub(crate) fn over_nbdkit(
    site: &Site,
    interrupt: &Interrupt,
    cable: Option<Cable>,
) -> anyhow::Result<Service> {
    let host = if cable.is_some() { Cable::ADDRESSES[0] } else { "127.0.0.1" };
    let mut service = Service::at(door(site), cable);
    let (image, port, sign) = (make_image(site)?, free_port()?, site.folder.join("nbd.pid"));
    let flags = ["--foreground", "--ipaddr", host, "--port", &port.to_string(), "--pidfile"];
    let mut arguments: Vec<String> = flags.map(str::to_owned).to_vec();
    arguments.extend([sign.display().to_string(), "file".to_owned(), image]);
    let place = site.place(service.namespace(0));
    let server = Process::start(Path::new("nbdkit"), &arguments, &place)?;
    service.add(server, &sign, interrupt)?;
    export(&mut service, site, interrupt, &remote(host, port))?;
    Ok(service)
}

/// The daemon on an NBD connection to qemu-nbd.
pub(crate) fn over_qemu_nbd(site: &Site, interrupt: &Interrupt) -> anyhow::Result<Service> {
    let mut service = Service::at(door(site), None);
    let (image, port, sign) = (make_image(site)?, free_port()?, site.folder.join("nbd.pid"));
    let flags = ["--persistent", "--format=raw", "--aio=io_uring", "--bind=127.0.0.1"];
    let mut arguments: Vec<String> = flags.map(str::to_owned).to_vec();
    arguments.push(format!("--port={port}"));
    arguments.extend([format!("--pid-file={}", sign.display()), image]);
    let server = Process::start(Path::new("qemu-nbd"), &arguments, &site.place(None))?;
    service.add(server, &sign, interrupt)?;
    export(&mut service, site, interrupt, &remote("127.0.0.1", port))?;
    Ok(service)
}

/// Adds the daemon that exports the block node `node` on the service's socket.
fn export(
    service: &mut Service,
    site: &Site,
    interrupt: &Interrupt,
    node: &str,
) -> anyhow::Result<()> {
    let socket = socket(site);
    let mut arguments: Vec<String> = THREAD.map(str::to_owned).to_vec();
    arguments.extend(["--blockdev".to_owned(), format!("node-name=disk,{node}")]);
    arguments.extend([
        "--export".to_owned(),
        format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1,\
             iothread=thread,addr.type=unix,addr.path={}",
            socket.display()
        ),
    ]);
    let program = Path::new("qemu-storage-daemon");
    let daemon = Process::start(program, &arguments, &site.place(service.namespace(1)))?;
    service.add(daemon, &socket, interrupt)
}

fn remote(host: &str, port: u16) -> String {
    format!("driver=nbd,server.type=inet,server.host={host},server.port={port}")
}

fn socket(site: &Site) -> PathBuf {
    site.folder.join("disk.sock")
}

fn door(site: &Site) -> Door {
    Door::Socket(socket(site))
}

/// A sparse file of the disk's size; its name is plain enough for QEMU's options.
fn make_image(site: &Site) -> anyhow::Result<String> {
    let image = site.folder.join("disk.raw");
    File::create(&image)
        .and_then(|file| file.set_len(site.disk_bytes))
        .with_context(|| format!("cannot make {}", image.display()))?;
    Ok(image.display().to_string())
}

/// A TCP port that nobody had a moment ago.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot find a free TCP port")?;
    Ok(listener.local_addr().context("cannot find a free TCP port")?.port())
}
