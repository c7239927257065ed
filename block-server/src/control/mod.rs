//! The control socket: HTTP and JSON over a UNIX socket, in a thread of its
//! own, and metrics over TCP. It leaves errands with the workers; they never wait for it.

mod body;
mod checks;
mod hooks;
mod keys;
mod metrics;
mod peer;
mod pools;
mod refusal;
mod rights;
mod snapshots;
mod streams;
mod volumes;

use std::fs::{File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, StatusCode, Uri};
use link::{PublicKey, VolumeName};
use rustix::process::Gid;
use thiserror::Error;
use tokio::net::{UnixListener, UnixSocket};
use tokio::sync::{oneshot, watch};
use tracing::{error, info, warn};

use crate::api::WorkerInfo;
use crate::authorized::Authorized;
use crate::checks::Checks;
use crate::directory::{Directory, WorkerIndex};
use crate::errand::{Answer, Errand, Failed};
use crate::mailbox::Mailbox;
use crate::store::StoreError;
use crate::traces::Traces;
use body::BODY_BYTES;
use peer::Peer;
use refusal::{Outcome, Refusal};

/// How long requests that run may hold up the server's end.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 64;

/// What the control socket knows of the server.
#[derive(Debug)]
pub struct Office {
    /// The server's version.
    pub version: String,
    /// The workers, by index: what they are like and where errands go.
    pub workers: Vec<(WorkerInfo, Arc<Mailbox>)>,
    /// Which worker owns which device.
    pub devices: Vec<(String, WorkerIndex)>,
    /// Which worker has which volume.
    pub directory: Arc<Directory>,
    /// Where recordings go; to be finished when the workers have ended.
    pub traces: Arc<Traces>,
    /// When pools are checked, and what came of it.
    pub checks: Checks,
    /// What keys of fronts are good for.
    pub authorized: Arc<Authorized>,
    /// The server's own, the newest first.
    pub keys: Vec<PublicKey>,
    /// Whether fronts may do without keys.
    pub clear: bool,
    /// Where this thread's random numbers come from.
    pub draw: fn() -> u64,
    /// Seconds since 1970.
    pub wall: fn() -> u64,
}

/// Why there is no control socket.
#[derive(Debug, Error)]
pub enum ControlError {
    /// There is a server already.
    #[error(
        "another vrio server is running on {0}; stop that one, or give this one another `control` \
         socket"
    )]
    Running(PathBuf),
    /// Something else is there.
    #[error(
        "{0} exists and is not a socket; remove it, or give the server another `control` socket"
    )]
    NotASocket(PathBuf),
    /// It cannot be made.
    #[error(
        "the control socket {path} cannot be made: {error}; choose another `control` path or correct the folder's mode"
    )]
    Socket {
        /// Where.
        path: PathBuf,
        /// The kernel's reason.
        error: io::Error,
    },
    /// Metrics cannot be served there.
    #[error(
        "`metrics = \"{address}\"`: {error}; give it an address of this machine, and a port that is free"
    )]
    Metrics {
        /// Where.
        address: SocketAddr,
        /// The kernel's reason.
        error: io::Error,
    },
}

/// The control socket's thread. When it is dropped, requests that run are
/// answered, unless that takes long, and the socket is gone.
#[derive(Debug)]
pub struct Control {
    stop: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
    /// Held as long as the server lives.
    _lock: File,
}

impl Control {
    /// Serves `office` on a socket at `path` that only its owner may use, and
    /// whoever is in `group` to look; its metrics at an address too, to everybody.
    ///
    /// # Errors
    /// A sentence about the socket, or the address.
    pub fn start(
        path: &Path,
        group: Option<u32>,
        metrics: Option<SocketAddr>,
        office: Office,
    ) -> Result<Self, ControlError> {
        let failed = |error| ControlError::Socket { path: path.to_owned(), error };
        let lock = take_lock(path)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed)?;
        let (listener, metrics) = {
            let _inside = runtime.enter();
            let metrics = metrics.map(metrics::listen).transpose()?;
            (listen(path, group.map(Gid::from_raw)).map_err(failed)?, metrics)
        };
        let (stop, stopped) = watch::channel(());
        let serve = async move {
            let office = Arc::new(office);
            let (schedules, mut late) =
                (checks::keep_schedules(Arc::clone(&office)), stopped.clone());
            let metrics = metrics::serve(metrics, Arc::clone(&office));
            let router = router(office).into_make_service_with_connect_info::<Peer>();
            let ended = axum::serve(listener, router).with_graceful_shutdown(async move {
                let mut stopped = stopped;
                // Nothing is ever sent: it ends when the sender is dropped.
                while stopped.changed().await.is_ok() {}
            });
            let too_late = async {
                while late.changed().await.is_ok() {}
                tokio::time::sleep(LAST_WAIT).await;
            };
            tokio::select! {
                outcome = ended.into_future() => if let Err(error) = outcome {
                    error!("the control socket has failed: {error}");
                },
                () = schedules => {}
                () = metrics => {}
                () = too_late => warn!("the control socket ended with requests unanswered"),
            }
        };
        let thread = std::thread::Builder::new().name("vrio-control".to_owned());
        let thread = thread.spawn(move || runtime.block_on(serve)).map_err(failed)?;
        info!(socket = %path.display(), "control socket ready");
        let socket = path.to_owned();
        Ok(Self { stop: Some(stop), thread: Some(thread), socket, _lock: lock })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.stop.take());
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.socket);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the control socket's thread has panicked");
        }
    }
}

/// A lock beside the socket says whether its server lives: a socket without
/// one was left behind by a server that was killed, and is replaced.
fn take_lock(path: &Path) -> Result<File, ControlError> {
    let failed = |error| ControlError::Socket { path: path.to_owned(), error };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let file = File::options().create(true).append(true).open(beside).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            return Err(ControlError::Running(path.to_owned()));
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(ControlError::NotASocket(path.to_owned()));
        }
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    Ok(file)
}

/// Nobody can connect before the socket listens, so its mode is never wider.
fn listen(path: &Path, group: Option<Gid>) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let mode = match group {
        Some(group) => {
            rustix::fs::chown(path, None, Some(group))?;
            0o660
        }
        None => 0o600,
    };
    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)
}

fn router(office: Arc<Office>) -> Router {
    Router::new()
        .merge(volumes::routes())
        .merge(hooks::routes())
        .merge(metrics::routes())
        .merge(snapshots::routes())
        .merge(streams::routes())
        .merge(pools::routes())
        .merge(checks::routes())
        .merge(keys::routes())
        .merge(rights::routes())
        .fallback(no_such_place)
        .method_not_allowed_fallback(no_such_method)
        .layer(axum::middleware::from_fn(peer::check))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(office)
}

type Shared = State<Arc<Office>>;

impl Office {
    /// Leaves an errand with a worker and waits for its answer.
    async fn ask<T>(
        &self,
        worker: WorkerIndex,
        errand: impl FnOnce(Answer<T>) -> Errand,
    ) -> Outcome<T> {
        let gone = || {
            let sentence = "the worker is stopping or has too much to do; try again";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, sentence)
        };
        let (_, mailbox) = self.workers.get(worker.0).ok_or_else(gone)?;
        let (answer, outcome) = oneshot::channel();
        mailbox.send(errand(answer));
        Ok(outcome.await.map_err(|_| gone())??)
    }

    /// Asks all workers, and puts their answers in a row.
    async fn ask_all<T>(&self, errand: impl Fn(Answer<Vec<T>>) -> Errand) -> Outcome<Vec<T>> {
        let mut all = Vec::new();
        for worker in 0..self.workers.len() {
            all.append(&mut self.ask(WorkerIndex(worker), &errand).await?);
        }
        Ok(all)
    }

    fn worker_of(&self, name: &VolumeName) -> Outcome<WorkerIndex> {
        let unknown = || Failed::from(StoreError::Unknown(name.clone())).into();
        self.directory.worker_of(name).ok_or_else(unknown)
    }

    /// The device that was named, or the only one.
    fn device(&self, named: Option<&str>) -> Outcome<(String, WorkerIndex)> {
        match (named, &self.devices[..]) {
            (None, [only]) => Ok(only.clone()),
            (None, several) => {
                let names: Vec<&str> = several.iter().map(|(name, _)| &name[..]).collect();
                let names = names.join(", ");
                let sentence = format!("the server has the devices {names}; say which one");
                Err(Refusal::new(StatusCode::BAD_REQUEST, sentence))
            }
            (Some(named), devices) => {
                let found = devices.iter().find(|(name, _)| name == named).cloned();
                found.ok_or_else(|| Failed::NoDevice(named.to_owned()).into())
            }
        }
    }
}

async fn no_such_place(uri: Uri) -> Refusal {
    let sentence = format!("there is nothing at {}; see `vrio volume --help`", uri.path());
    Refusal::new(StatusCode::NOT_FOUND, sentence)
}

async fn no_such_method(method: Method, uri: Uri) -> Refusal {
    let sentence = format!("{} does not know {method}", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, sentence)
}
