//! `vrio front`: gives QEMU vhost-user-blk disks and ships their requests to
//! the IOhosts.

mod attaching;
mod config;
mod identity;
mod station;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use block_core::time::Clock;
use block_front::{DiskSpec, Front};
use clap::Args;
use link::wire::udp::Udp;
use link::{Client, ClientSettings, VolumeHandle};
use turn::{Loop, Poller};

use crate::stop::Stop;
pub(crate) use attaching::NoGuest;
use config::FrontConfig;
pub(crate) use config::{Disk, check_distinct};
pub(crate) use identity::Identity;
use station::FrontStation;

/// Where the configuration is looked for.
const DEFAULT_CONFIG: &str = "/etc/vrio/front.toml";

/// Serve disks to QEMU on this machine; their blocks live on IOhosts
///
/// Each disk of the configuration becomes a vhost-user-blk socket. The front
/// runs until SIGTERM; then it finishes what guests have under way and gives
/// the volumes back.
#[derive(Debug, Args)]
pub(crate) struct FrontArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
}

/// Runs the front until it is told to stop.
pub(crate) fn run(args: &FrontArgs) -> anyhow::Result<()> {
    let config = FrontConfig::read(&args.config)?;
    let stop = Stop::listen()?;
    if let Some(cpu) = config.cpu {
        crate::thread::pin(cpu)?;
    }
    let identity = Identity::open(&config.state)?;
    let clock = Clock::start();
    let poller = Poller::new().context("cannot make an epoll")?;
    let wire = bind(&config.disks)?;
    poller.registrar().add(stop.bell()).context("cannot wait for signals")?;
    if let Some(socket) = link::wire::Wire::descriptor(&wire) {
        poller.registrar().add(socket).context("cannot wait for the link")?;
    }
    let settings = ClientSettings {
        front: identity.front,
        incarnation: identity.incarnation,
        least_timeout: config.least_timeout,
        seed: rand::random(),
    };
    let client = Client::new(wire, settings);

    let turns = Loop::new(poller, config.idle, clock);
    let patience = config.connect_timeout;
    let (client, specs) = attaching::attach(&turns, clock, client, &config.disks, patience, &stop)?;
    let volumes: Vec<VolumeHandle> = specs.iter().map(DiskSpec::volume).collect();
    let mut client = client;
    volumes.iter().for_each(|&volume| client.settle(volume));
    let (mut client, served) = serve(&turns, client, specs, &config, &stop);
    attaching::give_back(&turns, &mut client, &volumes)?;
    tracing::info!("stopped");
    served
}

/// Serves the disks until the front is told to stop.
fn serve(
    turns: &Loop,
    client: Client<Udp>,
    specs: Vec<DiskSpec>,
    config: &FrontConfig,
    stop: &Stop,
) -> (Client<Udp>, anyhow::Result<()>) {
    let front = match Front::new(specs) {
        Ok(front) => front,
        Err(error) => return (client, Err(error.into())),
    };
    if let Err(error) = turns.poller().registrar().add(front.wait_fd()) {
        return (client, Err(error).context("cannot wait for guests"));
    }
    for disk in &config.disks {
        tracing::info!(volume = %disk.volume, socket = %disk.socket.display(), "ready");
    }
    let mut station = FrontStation::new(front, client, stop);
    let outcome = turns.run(&mut station).context("the front cannot wait for work");
    (station.into_client(), outcome)
}

/// One socket for all servers.
fn bind(disks: &[Disk]) -> anyhow::Result<Udp> {
    let v6 = disks.iter().filter(|disk| disk.server.is_ipv6()).count();
    if v6 != 0 && v6 != disks.len() {
        bail!("all servers must have IPv4 addresses or all IPv6: write two configurations");
    }
    let any: SocketAddr = if v6 == 0 { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    Udp::bind(any).context("cannot make a UDP socket")
}

/// What a disk's volume turned out to be.
pub(crate) fn disk_spec(
    disk: &Disk,
    volume: link::VolumeHandle,
    attached: &link::Attached,
) -> anyhow::Result<DiskSpec> {
    let name = disk.volume.as_str();
    let mut options = block_front::DiskOptions::new(name, &disk.socket, volume, attached.sectors);
    options.read_only = attached.read_only || disk.read_only;
    options.logical_block_size = disk.logical_block_size;
    if let Some(serial) = &disk.serial {
        options.serial.clone_from(serial);
    }
    if let Some(queues) = disk.queues {
        options.queues = queues;
    }
    Ok(options.check()?)
}
