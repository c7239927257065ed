//! `vrio local`: front and worker fused, in one thread of one process. No
//! link, no frames: what the paper compares with as Elvis.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use block_core::Time;
use block_core::time::Clock;
use block_front::Front;
use block_server::api::WorkerInfo;
use block_server::checks::Checks;
use block_server::config::{DeviceConfig, ServerConfig};
use block_server::control::{Control, Office};
use block_server::errand::Failed;
use block_server::store::StoreError;
use block_server::{
    Authorized, Directory, Errand, LocalPath, Mailbox, NvmeEngine, Size, Traces, WorkerIndex,
};
use clap::Args;
use link::wire::address::Address;
use link::{Access, AttachReply, AttachRequest, Path, VolumeHandle, VolumeName};
use tokio::sync::oneshot::error::TryRecvError;
use turn::{Loop, Poller, Station};

use crate::front::{Disk, Identity, Known, NoGuest, accept_losses, check_breach, disk_spec};
use crate::server::{DEFAULT_CONFIG, SLOTS, Seat, limits, start};
use crate::stop::Stop;

/// Serve volumes to QEMU on the same machine, without a link
///
/// Takes the server's configuration; its `listen` is not used. Volumes are
/// managed through the control socket, as those of a server. A volume must
/// exist before its disk can be served.
#[derive(Debug, Args)]
pub(crate) struct LocalArgs {
    /// The server's configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Open the pool on this device although it is older than the server remembers
    #[arg(long, value_name = "DEVICE")]
    accept_rollback: Vec<String>,
    /// Serve this volume on this socket; may be given several times
    #[arg(long = "disk", value_name = "VOLUME=SOCKET", value_parser = parse_disk)]
    disks: Vec<(VolumeName, PathBuf)>,
    /// Make a volume that does not exist, with this size
    #[arg(long, value_name = "SIZE")]
    create: Option<Size>,
    /// Let this volume's guest go on although writes may be missing; see `vrio front --help`
    #[arg(long, value_name = "VOLUME")]
    accept_loss: Vec<String>,
    /// Number of queues of each disk
    #[arg(long, value_name = "N")]
    queues: Option<u16>,
    /// Bytes in a logical block: 512, or 4096
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    logical_block_size: u32,
}

fn parse_disk(text: &str) -> Result<(VolumeName, PathBuf), String> {
    let (volume, socket) = text.split_once('=').ok_or("write VOLUME=SOCKET")?;
    let volume = VolumeName::new(volume).map_err(|error| error.to_string())?;
    Ok((volume, socket.into()))
}

/// Runs front and worker until told to stop.
pub(crate) fn run(args: &LocalArgs) -> anyhow::Result<()> {
    let config = ServerConfig::read(&args.config)?;
    let [settings] = &config.workers[..] else {
        bail!("front and worker share one thread here: the configuration must say `workers = 1`");
    };
    let mut disks = args.disks()?;
    accept_losses(&mut disks, &args.accept_loss)?;
    let stop = Stop::listen()?;
    if let Some(cpu) = settings.cpu {
        crate::thread::pin(cpu)?;
    }
    let state = config.state.join("local");
    let identity = Identity::open(&state)?;
    let known = Known::open(&state)?;
    let clock = Clock::start();
    let directory = Arc::<Directory>::default();
    let mailbox = Mailbox::new().context("cannot make a mailbox")?;
    let seat = Seat {
        worker: WorkerIndex(0),
        devices: config.devices.clone(),
        directory: Arc::clone(&directory),
        mailbox: Arc::clone(&mailbox),
        clock,
        idle: settings.idle,
        state: config.state.clone(),
        accept_rollback: args.accept_rollback.clone(),
    };
    let Identity { front, incarnation, .. } = identity;
    let worker = start(seat, limits())?;
    let mut path = LocalPath::over_nvme(worker, front, incarnation, SLOTS - 1);
    if let Some(size) = args.create {
        create_missing(&mut path, &mailbox, &config.devices, &disks, size)?;
    }
    let info = WorkerInfo {
        address: "local".to_owned(),
        cpu: settings.cpu,
        idle: settings.idle.to_string(),
    };
    let traces = Arc::<Traces>::default();
    let office = Office {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        workers: vec![(info, Arc::clone(&mailbox))],
        devices: config.devices.iter().map(|device| (device.name.clone(), device.worker)).collect(),
        directory,
        checks: Checks::open(config.state.join("checks.json")),
        // Nobody comes over a link.
        authorized: Arc::new(Authorized::open(&config.state.join("authorized"))?),
        keys: Vec::new(),
        clear: false,
        draw: rand::random,
        wall: crate::moment::now,
        traces: Arc::clone(&traces),
    };
    let control = Control::start(&config.control, config.control_group, config.metrics, office)?;
    let poller = Poller::new().context("cannot make an epoll")?;
    poller.registrar().add(stop.bell()).context("cannot wait for signals")?;
    poller.registrar().add(mailbox.bell()).context("cannot wait for errands")?;
    for bell in path.worker().engine().bells() {
        poller.registrar().add(bell).context("cannot wait for a device")?;
    }
    let turns = Loop::new(poller, settings.idle, clock);
    let mut station =
        LocalStation { front: None, path, known, disks: Vec::new(), stop: &stop, until: None };
    let served = serve(&mut station, &turns, disks);
    station.give_back();
    drop(control);
    // Recordings end with the worker, and with what it was asked and has not done.
    drop((station, mailbox));
    traces.finish();
    served
}

impl LocalArgs {
    fn disks(&self) -> anyhow::Result<Vec<Disk>> {
        if self.disks.is_empty() {
            bail!("no disk to serve; name one with --disk VOLUME=SOCKET");
        }
        let disk = |(volume, socket): &(VolumeName, PathBuf)| Disk {
            // Nobody is called: front and worker are one.
            server: Address::Udp(([127, 0, 0, 1], 0).into()),
            server_key: None,
            volume: volume.clone(),
            socket: socket.clone(),
            read_only: false,
            logical_block_size: self.logical_block_size,
            serial: None,
            queues: self.queues,
            accept_loss: false,
        };
        let disks: Vec<Disk> = self.disks.iter().map(disk).collect();
        crate::front::check_distinct(&disks)?;
        Ok(disks)
    }
}

/// Makes the volumes that do not exist, on the first device.
fn create_missing(
    path: &mut LocalPath<NvmeEngine>,
    mailbox: &Mailbox,
    devices: &[DeviceConfig],
    disks: &[Disk],
    size: Size,
) -> anyhow::Result<()> {
    let Some(device) = devices.first() else { bail!("the configuration names no device") };
    for disk in disks {
        let (answer, mut outcome) = tokio::sync::oneshot::channel();
        let (name, device) = (disk.volume.clone(), device.name.clone());
        mailbox.send(Errand::Create { device, name, size, read_only: false, domain: None, answer });
        let created = loop {
            path.turn(Time::ZERO, &mut NoGuest);
            match outcome.try_recv() {
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Closed) => bail!("the worker did not make {}", disk.volume),
                Ok(created) => break created,
            }
        };
        match created {
            Ok(_) => tracing::info!(volume = %disk.volume, %size, "created"),
            Err(Failed::Store(StoreError::Exists(_))) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Attaches the volumes and turns front and worker until told to stop.
fn serve(station: &mut LocalStation<'_>, turns: &Loop, disks: Vec<Disk>) -> anyhow::Result<()> {
    let mut specs = Vec::with_capacity(disks.len());
    for disk in disks {
        let attached = match station.path.attach(attach_request(&disk)) {
            AttachReply::Attached(attached) => attached,
            AttachReply::Refused(refused) => bail!("volume {}: {refused}", disk.volume),
            AttachReply::Elsewhere { .. } => bail!("volume {} has another worker", disk.volume),
        };
        let breach = check_breach(&disk, station.known.breach(&disk, &attached));
        specs.push(disk_spec(&disk, attached.handle, &attached, breach)?);
        station.disks.push((disk, attached.handle));
        if breach.is_none() {
            station.answer_for(specs.len() - 1)?;
        }
    }
    let front = Front::new(specs)?;
    turns.poller().registrar().add(front.wait_fd()).context("cannot wait for guests")?;
    for (disk, _) in &station.disks {
        tracing::info!(volume = %disk.volume, socket = %disk.socket.display(), "ready");
    }
    station.front = Some(front);
    turns.run(station).context("the thread cannot wait for work")
}

fn attach_request(disk: &Disk) -> AttachRequest {
    let access = if disk.read_only { Access::Read } else { Access::Write };
    AttachRequest::new(disk.volume.clone(), access)
}

/// How long a stopping front waits for what guests have under way.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(10);

/// Front and worker, turned together.
struct LocalStation<'a> {
    /// Once the volumes are attached.
    front: Option<Front>,
    path: LocalPath<NvmeEngine>,
    /// Which lives of the volumes guests have seen.
    known: Known,
    disks: Vec<(Disk, VolumeHandle)>,
    stop: &'a Stop,
    /// Until when requests under way are waited for, and whether that is over.
    until: Option<(Time, bool)>,
}

impl LocalStation<'_> {
    /// From now on the disk's guest may go on with what its volume is now.
    fn answer_for(&mut self, disk: usize) -> anyhow::Result<()> {
        let (disk, _) = &self.disks[disk];
        match self.path.settle(attach_request(disk)) {
            AttachReply::Attached(attached) => self.known.learn(disk, &attached),
            _ => Ok(()),
        }
    }

    fn tell_sizes(&mut self) {
        let Some(front) = &mut self.front else { return };
        for (number, (disk, _)) in self.disks.iter().enumerate() {
            if let AttachReply::Attached(attached) = self.path.attach(attach_request(disk)) {
                front.resized(number, attached.sectors);
            }
        }
    }

    fn give_back(&mut self) {
        self.front = None;
        for (_, volume) in self.disks.drain(..) {
            if let Err(error) = self.path.detach(volume) {
                tracing::warn!("a volume stays attached to this front: {error}");
            }
        }
    }
}

impl Station for LocalStation<'_> {
    fn turn(&mut self, now: Time) -> bool {
        let Some(front) = &mut self.front else { return false };
        match &mut self.until {
            None if self.stop.is_asked() => {
                tracing::info!("told to stop: finishing what is under way");
                front.quiesce();
                self.until = Some((now + DRAIN, false));
            }
            None => {}
            Some((until, over)) => *over = now >= *until,
        }
        let moved = front.turn(now, &mut self.path);
        while let Some(disk) = self.front.as_mut().and_then(Front::take_begun) {
            if let Err(error) = self.answer_for(disk) {
                // The next start refuses a guest that could go on: nothing worse.
                tracing::error!("{error:#}");
            }
        }
        if self.path.take_news() {
            self.tell_sizes();
        }
        moved
    }

    fn announce_sleep(&mut self) {
        self.front.iter_mut().for_each(Front::announce_sleep);
    }

    fn has_work(&mut self) -> bool {
        self.path.has_work() || self.front.iter_mut().any(Front::has_work)
    }

    fn retract_sleep(&mut self) {
        self.front.iter_mut().for_each(Front::retract_sleep);
    }

    fn deadline(&self) -> Option<Time> {
        let ours = self.front.iter().filter_map(Front::deadline);
        ours.chain(self.until.map(|(until, _)| until)).chain(self.path.deadline()).min()
    }

    fn is_stopped(&self) -> bool {
        self.until.is_some_and(|(_, over)| over || self.front.iter().all(Front::is_quiet))
    }
}
