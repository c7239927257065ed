//! A disk's socket and the thread that stands at it.
//!
//! One front-end at a time: while it is there, a second one is turned away;
//! when it has gone and its last request has ended, the disk listens again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use thiserror::Error;

use crate::conversation::{Conversation, Place};
use crate::disk::DiskSpec;
use crate::inbox::{Inbox, InboxError};
use crate::mail::Mailbox;

/// How long an answer may wait for a front-end that does not read.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a front cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// Somebody listens there.
    #[error(
        "disk {disk}: socket {} is in use by another process; stop that, or give the disk \
         another socket", socket.display()
    )]
    Busy {
        /// The disk.
        disk: String,
        /// Its socket.
        socket: PathBuf,
    },
    /// Something that is no socket has its name.
    #[error("disk {disk}: {} exists and is no socket; move it away", socket.display())]
    NoSocket {
        /// The disk.
        disk: String,
        /// Its socket.
        socket: PathBuf,
    },
    /// The kernel does not make it.
    #[error(
        "disk {disk}: cannot listen on {}: {why}; check that its directory exists and is \
         writable and that the path is shorter than 108 bytes", socket.display()
    )]
    Listen {
        /// The disk.
        disk: String,
        /// Its socket.
        socket: PathBuf,
        /// What the kernel says.
        why: io::Error,
    },
    /// More queues than their numbers reach.
    #[error("the disks have more than 65535 queues together; give them fewer queues")]
    TooManyQueues,
    /// No descriptor or thread is left.
    #[error("the process cannot get what it needs: {0}; raise its limits (ulimit -n, -u)")]
    Process(#[source] io::Error),
}

/// What the worker tells the disk's thread.
#[derive(Debug)]
struct Shared {
    sectors: AtomicU64,
    resized: AtomicBool,
    quit: AtomicBool,
    wake: OwnedFd,
}

/// A disk's socket. Dropped, it ends the thread and removes the socket.
#[derive(Debug)]
pub(crate) struct Doorkeeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Doorkeeper {
    pub(crate) fn open(
        spec: Arc<DiskSpec>,
        disk: usize,
        first_queue: usize,
        mailbox: Arc<Mailbox>,
        epoll: Arc<OwnedFd>,
    ) -> Result<Self, StartError> {
        let listener = listen(&spec)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| StartError::Process(error.into()))?;
        let shared = Arc::new(Shared {
            sectors: AtomicU64::new(spec.sectors()),
            resized: AtomicBool::new(false),
            quit: AtomicBool::new(false),
            wake,
        });
        let path = spec.socket().to_owned();
        let writeback = AtomicBool::new(true);
        let served = (0..spec.queues()).map(|_| AtomicBool::new(false)).collect();
        let place = Place { spec, disk, first_queue, mailbox, epoll, writeback, served };
        let door = Door { place, listener, shared: Arc::clone(&shared) };
        let mut keeper = Self { shared, thread: None, path };
        let name = format!("front-{disk}");
        let thread = std::thread::Builder::new().name(name).spawn(move || door.keep());
        keeper.thread = Some(thread.map_err(StartError::Process)?);
        Ok(keeper)
    }

    /// The disk has another size.
    pub(crate) fn resized(&self, sectors: u64) {
        self.shared.sectors.store(sectors, Ordering::Relaxed);
        self.shared.resized.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        // A full counter wakes as well as a risen one.
        let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Doorkeeper {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // If it panicked, it said so itself.
            let _ = thread.join();
        }
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens on the disk's socket; a socket that nobody listens on any more is
/// replaced.
fn listen(spec: &DiskSpec) -> Result<UnixListener, StartError> {
    let socket = spec.socket();
    let disk = || spec.name().to_owned();
    let failed = |why| StartError::Listen { disk: disk(), socket: socket.to_owned(), why };
    match std::fs::symlink_metadata(socket) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(StartError::NoSocket { disk: disk(), socket: socket.to_owned() });
        }
        Ok(_) if is_served(socket) => {
            return Err(StartError::Busy { disk: disk(), socket: socket.to_owned() });
        }
        Ok(_) => std::fs::remove_file(socket).map_err(failed)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Whether anybody answers; only a refusal says that nobody does.
fn is_served(socket: &Path) -> bool {
    match UnixStream::connect(socket) {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::ConnectionRefused,
    }
}

/// The thread's side.
struct Door {
    place: Place,
    listener: UnixListener,
    shared: Arc<Shared>,
}

impl Door {
    /// Lets in one front-end after the other until told to quit.
    fn keep(self) {
        while let Some(()) = self.wait_for(None) {
            match self.listener.accept() {
                Ok((socket, _)) => self.receive(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Out of descriptors, most likely: not a reason to spin.
                    self.say(&format!("a connection cannot be accepted: {error}"));
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn receive(&self, socket: UnixStream) {
        let prepared = socket
            .set_nonblocking(false)
            .and_then(|()| socket.set_write_timeout(Some(SEND_TIMEOUT)));
        if let Err(error) = prepared {
            return self.say(&format!("a connection cannot be used: {error}"));
        }
        match Conversation::open(&self.place, socket) {
            Ok(mut conversation) => {
                tracing::info!(disk = self.place.spec.name(), "a front-end has connected");
                self.converse(&mut conversation);
                conversation.close();
                tracing::info!(disk = self.place.spec.name(), "the front-end has gone");
            }
            Err(refused) => self.say(&format!("a connection cannot be used: {refused}")),
        }
    }

    fn converse(&self, conversation: &mut Conversation<'_>) {
        let mut inbox = Inbox::default();
        // A front-end that talks without a pause never lets us wait.
        while !self.shared.quit.load(Ordering::Acquire) {
            if self.shared.resized.swap(false, Ordering::AcqRel) {
                conversation.announce_change();
            }
            let frame = match inbox.receive(conversation.socket().as_fd()) {
                Ok(Some(frame)) => frame,
                Ok(None) => match self.wait_for(Some(conversation.socket())) {
                    Some(()) => continue,
                    None => return,
                },
                Err(InboxError::Closed) => return,
                Err(error) => return self.say(&format!("the front-end is cut off: {error}")),
            };
            let sectors = self.shared.sectors.load(Ordering::Relaxed);
            if let Err(refused) = conversation.hear(frame, sectors) {
                return self.say(&format!("the front-end is cut off: {refused}"));
            }
        }
    }

    /// Waits until the front-end says something, or somebody knocks when there
    /// is none; `None` when it is time to quit.
    fn wait_for(&self, front_end: Option<&UnixStream>) -> Option<()> {
        while !self.shared.quit.load(Ordering::Acquire) {
            let mut fds = [
                PollFd::new(&self.shared.wake, PollFlags::IN),
                PollFd::new(&self.listener, PollFlags::IN),
                PollFd::from_borrowed_fd(
                    front_end.map_or(self.listener.as_fd(), AsFd::as_fd),
                    PollFlags::IN,
                ),
            ];
            // Interrupted: nothing has happened, the next look will tell.
            let _ = poll(&mut fds, None);
            let [woken, knocked, spoken] = fds.map(|fd| !fd.revents().is_empty());
            if woken {
                let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
            }
            if spoken || woken && front_end.is_some() {
                return Some(());
            }
            if knocked {
                self.turn_away();
            }
        }
        None
    }

    /// A disk has one front-end.
    fn turn_away(&self) {
        if self.listener.accept().is_ok() {
            self.say("a second front-end was turned away while the first is connected");
        }
    }

    fn say(&self, what: &str) {
        tracing::warn!(disk = self.place.spec.name(), "{what}");
    }
}
