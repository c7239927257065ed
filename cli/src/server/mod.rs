//! `vrio server`: the workers that poll the link and the devices, and the
//! control socket.

mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use anyhow::{Context, bail};
use block_core::time::Clock;
use block_server::api::WorkerInfo;
use block_server::checks::Checks;
use block_server::config::{ServerConfig, WorkerConfig};
use block_server::control::{Control, Office};
use block_server::{Directory, Errand, Mailbox, Traces, WorkerIndex, WorkerStation};
use clap::Args;
use link::wire::Wire;
use link::wire::any::AnyWire;
use link::wire::faults::{Faults, Faulty};
use link::{Server, ServerSettings};
use turn::{Loop, Poller};

use crate::stop::Stop;
pub(crate) use worker::{SESSIONS, SLOTS, Seat, limits, start};

/// Where the configuration is looked for.
pub(crate) const DEFAULT_CONFIG: &str = "/etc/vrio/server.toml";

/// Serve volumes to fronts: run this on the IOhost
///
/// Each worker is a thread that polls its port of the network and its NVMe queues. The
/// server runs until SIGTERM.
#[derive(Debug, Args)]
pub(crate) struct ServerArgs {
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
    let config = ServerConfig::read(&args.config)?;
    let stop = Stop::listen()?;
    let workers = Workers::start(&config, args, &stop)?;
    let control = Control::start(&config.control, workers.office(&config))?;
    for worker in &config.workers {
        tracing::info!(listen = %worker.listen, "ready");
    }
    stop.wait();
    tracing::info!("stopping");
    drop(control);
    workers.stop(&stop)
}

/// The workers' threads.
struct Workers {
    directory: Arc<Directory>,
    traces: Arc<Traces>,
    threads: Vec<(JoinHandle<anyhow::Result<()>>, Arc<Mailbox>)>,
}

impl Workers {
    /// Starts all of them; they serve when this returns.
    fn start(config: &ServerConfig, args: &ServerArgs, stop: &Stop) -> anyhow::Result<Self> {
        let clock = Clock::start();
        let mut workers =
            Self { directory: Arc::default(), traces: Arc::default(), threads: Vec::new() };
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
            let ringer = stop.ringer()?;
            let (started, outcome) = mpsc::channel();
            let body = move || {
                // However the thread ends, the server hears of it.
                let _ringer = ringer;
                serve(&settings, faults, seat, &started)
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
    let server = Server::new(ServerSettings {
        sessions: SESSIONS,
        slots: SLOTS,
        window: wire.window(),
        seed: rand::random(),
    });
    let worker = start(seat, limits())?;
    for bell in worker.engine().bells() {
        poller.registrar().add(bell).context("cannot wait for a device")?;
    }
    let mut station = WorkerStation::new(wire, server, worker);
    // Whoever started us may have given up waiting.
    let _ = started.send(());
    Loop::new(poller, settings.idle, clock).run(&mut station).context("a worker cannot wait")
}
