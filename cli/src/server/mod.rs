//! `vrio server`: the workers that poll the link and the devices, and the
//! control socket.

mod rights;
mod worker;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use anyhow::{Context, bail};
use block_core::time::Clock;
use block_server::api::WorkerInfo;
use block_server::checks::Checks;
use block_server::config::{ServerConfig, WorkerConfig};
use block_server::control::{Control, Office};
use block_server::{Authorized, Directory, Errand, Mailbox, Traces, WorkerIndex, WorkerStation};
use clap::Args;
use link::wire::Wire;
use link::wire::any::AnyWire;
use link::wire::faults::{Faults, Faulty};
use link::{PublicKey, SecretKey, Server, ServerSecurity, ServerSettings};
use turn::{Loop, Poller};

use crate::link_key;
use crate::stop::Stop;
use rights::RightsCommand;
pub(crate) use worker::{SESSIONS, SLOTS, Seat, limits, start};

/// Where the configuration is looked for.
pub(crate) const DEFAULT_CONFIG: &str = "/etc/vrio/server.toml";

/// The server's key, in its state directory.
const KEY: &str = "server.key";

/// What fronts' keys are good for, in the same place.
const RIGHTS: &str = "authorized";

/// Serve volumes to fronts: run this on the IOhost
///
/// Each worker is a thread that polls its port of the network and its NVMe queues. The
/// server runs until SIGTERM. Fronts know it by its key, and it serves those whose keys
/// are authorized; subcommands ask the one that runs.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct ServerArgs {
    #[command(subcommand)]
    rights: Option<RightsCommand>,
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Open the pool on this device although it is older than the server remembers
    #[arg(long, value_name = "DEVICE")]
    accept_rollback: Vec<String>,
    /// For tests: loses, reorders and doubles frames that are sent
    #[arg(long, value_name = "loss=P%,reorder=P%,duplicate=P%,seed=N", hide = true)]
    wire_faults: Option<Faults>,
}

/// Runs the server until it is told to stop.
pub(crate) fn run(args: &ServerArgs) -> anyhow::Result<()> {
    if let Some(command) = &args.rights {
        return rights::run(command);
    }
    let config = ServerConfig::read(&args.config)?;
    let stop = Stop::listen()?;
    let secrets = secrets(&config)?;
    let workers = Workers::start(&config, args, &secrets, &stop)?;
    let control = Control::start(
        &config.control,
        config.control_group,
        config.metrics,
        workers.office(&config),
    )?;
    if config.clear {
        tracing::warn!(
            "fronts may speak in the clear: whoever reaches this server may have every volume"
        );
    }
    for worker in &config.workers {
        tracing::info!(listen = %worker.listen, "ready");
    }
    stop.wait();
    tracing::info!("stopping");
    drop(control);
    workers.stop(&stop)
}

/// The server's keys, the newest first.
fn secrets(config: &ServerConfig) -> anyhow::Result<Vec<SecretKey>> {
    let newest = match &config.key {
        Some(file) => link_key::read_or_make(file)?,
        None => link_key::read_or_make(&config.state.join(KEY))?,
    };
    tracing::info!(key = %newest.public(), "fronts know this server by its key");
    let older = config.old_keys.iter().map(|file| link_key::read(file));
    std::iter::once(Ok(newest)).chain(older).collect()
}

/// The workers' threads.
struct Workers {
    directory: Arc<Directory>,
    traces: Arc<Traces>,
    authorized: Arc<Authorized>,
    keys: Vec<PublicKey>,
    threads: Vec<(JoinHandle<anyhow::Result<()>>, Arc<Mailbox>)>,
}

impl Workers {
    /// Starts all of them; they serve when this returns.
    fn start(
        config: &ServerConfig,
        args: &ServerArgs,
        secrets: &[SecretKey],
        stop: &Stop,
    ) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let mut workers = Self {
            directory: Arc::default(),
            traces: Arc::default(),
            authorized: Arc::new(Authorized::open(&config.state.join(RIGHTS))?),
            keys: secrets.iter().map(SecretKey::public).collect(),
            threads: Vec::new(),
        };
        for (index, settings) in config.workers.iter().enumerate() {
            let mailbox = Mailbox::new().context("cannot make a worker's mailbox")?;
            let seat = Seat {
                worker: WorkerIndex(index),
                devices: config.devices.clone(),
                directory: Arc::clone(&workers.directory),
                mailbox: Arc::clone(&mailbox),
                clock,
                idle: settings.idle,
                state: config.state.clone(),
                accept_rollback: args.accept_rollback.clone(),
            };
            let (settings, faults) = (settings.clone(), args.wire_faults);
            let security = ServerSecurity {
                secrets: secrets.to_vec(),
                clear_allowed: config.clear || settings.listen.is_memory(),
                entropy: rand::random(),
            };
            let authorized = Arc::clone(&workers.authorized);
            let ringer = stop.ringer()?;
            let (started, outcome) = mpsc::channel();
            let body = move || {
                // However the thread ends, the server hears of it.
                let _ringer = ringer;
                serve(&settings, faults, security, authorized, seat, &started)
            };
            let thread = std::thread::Builder::new().name(format!("vrio-worker-{index}"));
            let thread = thread.spawn(body).context("cannot start a worker's thread")?;
            workers.threads.push((thread, mailbox));
            if outcome.recv().is_err() {
                // It has ended, and says why when it is joined.
                workers.stop(stop)?;
                bail!("worker {index} ended while it started");
            }
        }
        Ok(workers)
    }

    fn office(&self, config: &ServerConfig) -> Office {
        let workers = config.workers.iter().zip(&self.threads).map(|(settings, (_, mailbox))| {
            let info = WorkerInfo {
                address: settings.listen.to_string(),
                cpu: settings.cpu,
                idle: settings.idle.to_string(),
            };
            (info, Arc::clone(mailbox))
        });
        Office {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            workers: workers.collect(),
            devices: config
                .devices
                .iter()
                .map(|device| (device.name.clone(), device.worker))
                .collect(),
            directory: Arc::clone(&self.directory),
            checks: Checks::open(config.state.join("checks.json")),
            authorized: Arc::clone(&self.authorized),
            keys: self.keys.clone(),
            clear: config.clear,
            draw: rand::random,
            wall: crate::moment::now,
            traces: Arc::clone(&self.traces),
        }
    }

    /// Stops all of them; an error if one had ended by itself.
    fn stop(self, stop: &Stop) -> anyhow::Result<()> {
        for (_, mailbox) in &self.threads {
            mailbox.send(Errand::Stop);
        }
        let mut outcome = Ok(());
        for (thread, _) in self.threads {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(error) => outcome = error,
                Err(_) => bail!("a worker has panicked; its message is above"),
            }
        }
        self.traces.finish();
        if outcome.is_ok() && !stop.is_asked() {
            bail!("a worker ended though nobody asked it to");
        }
        outcome
    }
}

/// A worker's thread, from its start to its end.
fn serve(
    settings: &WorkerConfig,
    faults: Option<Faults>,
    security: ServerSecurity,
    authorized: Arc<Authorized>,
    seat: Seat,
    started: &Sender<()>,
) -> anyhow::Result<()> {
    if let Some(cpu) = settings.cpu {
        crate::thread::pin(cpu)?;
    }
    let wire = Faulty::new(AnyWire::listen(&settings.listen)?, faults);
    let poller = Poller::new().context("cannot make an epoll")?;
    poller.registrar().add(seat.mailbox.bell()).context("cannot wait for errands")?;
    if let Some(socket) = wire.descriptor() {
        poller.registrar().add(socket).context("cannot wait for the link")?;
    }
    seat.directory.listens(seat.worker, settings.listen.port());
    let clock = seat.clock;
    let server = ServerSettings {
        sessions: SESSIONS,
        slots: SLOTS,
        window: wire.window(),
        seed: rand::random(),
    };
    let server = Server::secured(server, security);
    let mut worker = start(seat, limits())?;
    worker.obey(Rc::new(authorized));
    for bell in worker.engine().bells() {
        poller.registrar().add(bell).context("cannot wait for a device")?;
    }
    let mut station = WorkerStation::new(wire, server, worker);
    // Whoever started us may have given up waiting.
    let _ = started.send(());
    Loop::new(poller, settings.idle, clock).run(&mut station).context("a worker cannot wait")
}
