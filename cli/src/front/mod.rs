//! `vrio front`: gives QEMU vhost-user-blk disks and ships their requests to
//! the IOhosts.

mod attaching;
mod config;
mod identity;
mod known;
mod settling;
mod station;
mod voice;

use std::path::PathBuf;

use anyhow::{Context, bail};
use block_core::time::Clock;
use block_front::{Breach, DiskSpec, Front};
use clap::Args;
use link::wire::any::AnyWire;
use link::wire::faults::{Faults, Faulty};
use link::{Client, ClientSettings};
use turn::{Loop, Poller};

use crate::stop::Stop;
pub(crate) use attaching::NoGuest;
use config::FrontConfig;
pub(crate) use config::{Disk, check_distinct};
pub(crate) use identity::Identity;
pub(crate) use known::Known;
use station::FrontStation;
use voice::Voice;

/// Where the configuration is looked for.
const DEFAULT_CONFIG: &str = "/etc/vrio/front.toml";

/// Serve disks to QEMU on this machine; their blocks live on IOhosts
///
/// Each disk of the configuration becomes a vhost-user-blk socket. The front
/// runs until SIGTERM; then it finishes what guests have under way and gives
/// the volumes back. It may also be killed: a guest whose QEMU connects again
/// (-chardev socket,..,reconnect=1) waits for the next start and goes on.
#[derive(Debug, Args)]
pub(crate) struct FrontArgs {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Let this volume's guest go on although writes may be missing
    ///
    /// When a server has lost writes that an earlier start of this front had
    /// answered and the guest had not flushed, or the volume was restored
    /// meanwhile, a guest that goes on is stopped, and the log says so. This
    /// lets it go on; may be given several times.
    #[arg(long, value_name = "VOLUME")]
    accept_loss: Vec<String>,
    /// For tests: loses, reorders and doubles frames that are sent
    #[arg(long, value_name = "loss=P%,reorder=P%,duplicate=P%,seed=N", hide = true)]
    wire_faults: Option<Faults>,
}

/// How a front reaches its servers.
type FrontWire = Faulty<AnyWire>;

/// Runs the front until it is told to stop.
pub(crate) fn run(args: &FrontArgs) -> anyhow::Result<()> {
    let mut config = FrontConfig::read(&args.config)?;
    accept_losses(&mut config.disks, &args.accept_loss)?;
    let stop = Stop::listen()?;
    if let Some(cpu) = config.cpu {
        crate::thread::pin(cpu)?;
    }
    let identity = Identity::open(&config.state)?;
    let voice = Voice::find(&config)?;
    let mut known = Known::open(&config.state)?;
    let clock = Clock::start();
    let poller = Poller::new().context("cannot make an epoll")?;
    let servers: Vec<_> = config.disks.iter().map(|disk| &disk.server).collect();
    let wire = Faulty::new(AnyWire::connect(&servers)?, args.wire_faults);
    poller.registrar().add(stop.bell()).context("cannot wait for signals")?;
    if let Some(socket) = link::wire::Wire::descriptor(&wire) {
        poller.registrar().add(socket).context("cannot wait for the link")?;
    }
    let settings = ClientSettings {
        front: voice.front().unwrap_or(identity.front),
        incarnation: identity.incarnation,
        least_timeout: config.least_timeout,
        seed: rand::random(),
        kept_bytes: config.kept_bytes,
    };
    let client = Client::new(wire, settings);

    let turns = Loop::new(poller, config.idle, clock);
    let patience = config.connect_timeout;
    let (mut client, volumes) =
        attaching::attach(&turns, clock, client, &voice, &config.disks, patience, &stop)?;
    let specs = match settling::settle(&mut client, &mut known, &config.disks, &volumes) {
        Ok(specs) => specs,
        Err(error) => {
            attaching::give_back(&turns, &mut client, &volumes)?;
            return Err(error);
        }
    };
    let (mut client, served) = serve(&turns, client, specs, known, &config, &stop);
    attaching::give_back(&turns, &mut client, &volumes)?;
    tracing::info!("stopped");
    served
}

/// Serves the disks until the front is told to stop.
fn serve(
    turns: &Loop,
    client: Client<FrontWire>,
    specs: Vec<DiskSpec>,
    known: Known,
    config: &FrontConfig,
    stop: &Stop,
) -> (Client<FrontWire>, anyhow::Result<()>) {
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
    let mut station = FrontStation::new(front, client, known, &config.disks, stop);
    let outcome = turns.run(&mut station).context("the front cannot wait for work");
    (station.into_client(), outcome)
}

/// Marks the disks whose volumes are named.
pub(crate) fn accept_losses(disks: &mut [Disk], volumes: &[String]) -> anyhow::Result<()> {
    for volume in volumes {
        let mut found = disks.iter_mut().filter(|disk| disk.volume.as_str() == volume).peekable();
        if found.peek().is_none() {
            bail!("--accept-loss {volume}: no disk has that volume");
        }
        found.for_each(|disk| disk.accept_loss = true);
    }
    Ok(())
}

/// What came between a volume and its guest, and is not accepted. The log
/// tells of both.
pub(crate) fn check_breach(disk: &Disk, found: Option<Breach>) -> Option<Breach> {
    let volume = &disk.volume;
    let what = match found? {
        Breach::LostWrites => "writes that were answered and not flushed may be missing",
        Breach::OtherVolume => {
            "it was restored, made anew, detached by force, or given back with writes missing"
        }
    };
    if disk.accept_loss {
        tracing::warn!(%volume, "since its last front: {what}; that is accepted");
        return None;
    }
    tracing::warn!(
        %volume,
        "since its last front: {what}; only a guest that starts anew is served \
         (or use --accept-loss {volume})"
    );
    found
}

/// What a disk's volume turned out to be.
pub(crate) fn disk_spec(
    disk: &Disk,
    volume: link::VolumeHandle,
    attached: &link::Attached,
    breach: Option<Breach>,
) -> anyhow::Result<DiskSpec> {
    let name = disk.volume.as_str();
    let mut options = block_front::DiskOptions::new(name, &disk.socket, volume, attached.sectors);
    options.read_only = attached.read_only || disk.read_only;
    options.logical_block_size = disk.logical_block_size;
    options.breach = breach;
    if let Some(serial) = &disk.serial {
        options.serial.clone_from(serial);
    }
    if let Some(queues) = disk.queues {
        options.queues = queues;
    }
    Ok(options.check()?)
}
