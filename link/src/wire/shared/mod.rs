//! The wire between processes of one machine: rings in memory that both map.
//!
//! The server listens on a UNIX socket, whose mode says who may connect. A front
//! that connects is given memory of its own with two rings. As long as nobody sleeps,
//! frames move without the kernel. Who sleeps is rung by a byte on the socket, which
//! also tells when the other process has ended.

mod connection;
mod ring;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, fence};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{FileType, Mode, chmod, stat, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with, sockopt,
};

use crate::frame::{HEADER_BYTES, MAX_FRAME};
use crate::wire::{Peer, Wire};
use connection::{Connection, Fate};

/// Connections of one worker; more fronts than it has sessions for.
const MOST_CONNECTIONS: usize = 128;

/// Turns between two looks at the sockets while there is no time to sleep.
const TURNS_PER_LOOK: u32 = 1024;

/// Bytes of frames that a ring holds for certain, most of which have a block in them.
const WINDOW: u32 = ring::SLOTS * 4096;

/// The listening socket among what is waited for; connections are counted from 1.
const LISTENER: u64 = 0;

/// All connections of a worker, or of a front.
#[derive(Debug)]
pub struct Shared {
    role: Role,
    connections: Vec<(u64, Connection)>,
    /// Connections that there ever were.
    known: u64,
    /// Waits for all sockets, and is what the owner sleeps on.
    epoll: OwnedFd,
    turns: u32,
    sleeping: bool,
    /// What was copied out of a slot.
    frame: Box<[u8; MAX_FRAME]>,
}

#[derive(Debug)]
enum Role {
    Server { listener: OwnedFd, path: PathBuf },
    Front { servers: Vec<PathBuf> },
}

/// To a front: one of its servers, and which worker. To a server: a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SharedPeer {
    whose: u64,
    port: u16,
}

impl Peer for SharedPeer {
    fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }
}

impl Shared {
    /// A worker's wire. The first worker's socket is at `path`, the others' at names
    /// made of it.
    ///
    /// # Errors
    /// The kernel's; [`io::ErrorKind::AddrInUse`] when somebody listens there.
    pub fn listen(path: &Path, port: u16) -> io::Result<Self> {
        let path = socket_of(path, port);
        let listener = unix_socket()?;
        let address = SocketAddrUnix::new(&path)?;
        match bind(&listener, &address) {
            Err(Errno::ADDRINUSE) if is_left_over(&path, &address)? => {
                unlink(&path)?;
                bind(&listener, &address)?;
            }
            bound => bound?,
        }
        // Before anybody can connect: the owner, and whom the owner lets in later.
        chmod(&path, Mode::RUSR | Mode::WUSR)?;
        listen(&listener, 128)?;
        let shared = Self::new(Role::Server { listener, path })?;
        if let Role::Server { listener, .. } = &shared.role {
            shared.watch(listener, LISTENER)?;
        }
        Ok(shared)
    }

    /// A front's wire to these servers.
    ///
    /// # Errors
    /// The kernel's, when the process has no descriptor left.
    pub fn connect(servers: Vec<PathBuf>) -> io::Result<Self> {
        Self::new(Role::Front { servers })
    }

    /// One of the servers that the wire was made for.
    #[must_use]
    pub fn server(&self, path: &Path) -> Option<SharedPeer> {
        let Role::Front { servers } = &self.role else { return None };
        let whose = servers.iter().position(|server| server == path)?;
        Some(SharedPeer { whose: whose as u64, port: 0 })
    }

    fn new(role: Role) -> io::Result<Self> {
        Ok(Self {
            role,
            connections: Vec::new(),
            known: 0,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            turns: 0,
            sleeping: false,
            frame: Box::new([0; MAX_FRAME]),
        })
    }

    fn watch(&self, socket: &OwnedFd, key: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::RDHUP;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(key), flags)?)
    }

    /// Looks at the sockets: who comes, who goes, who rings.
    fn look(&mut self) {
        self.turns = 0;
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [none; 64];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let Ok(count) = epoll::wait(&self.epoll, &mut events[..], Some(&now)) else { return };
        for event in &events[..count] {
            match event.data.u64() {
                LISTENER => self.admit(),
                key => self.hear(key),
            }
        }
    }

    fn admit(&mut self) {
        let Role::Server { listener, path } = &self.role else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let mut arrived = Vec::new();
        while let Ok(socket) = accept_with(listener, flags) {
            arrived.push(socket);
        }
        let path = path.display().to_string();
        for socket in arrived {
            let who = sockopt::socket_peercred(&socket).ok();
            let (pid, uid) =
                who.map_or((0, 0), |who| (who.pid.as_raw_nonzero().get(), who.uid.as_raw()));
            let peer = SharedPeer { whose: self.known + 1, port: 0 };
            let full = self.connections.len() >= MOST_CONNECTIONS;
            let greeted = if full {
                Err(io::ErrorKind::QuotaExceeded.into())
            } else {
                Connection::greet(peer, socket)
            };
            match greeted.and_then(|connection| self.join(connection)) {
                Ok(()) => tracing::info!(socket = path, pid, uid, "a front has connected"),
                Err(error) => tracing::warn!(socket = path, pid, uid, %error, "a front is refused"),
            }
        }
    }

    fn join(&mut self, connection: Connection) -> io::Result<()> {
        self.known += 1;
        self.watch(connection.socket(), self.known)?;
        if self.sleeping {
            connection.announce_sleep();
        }
        self.connections.push((self.known, connection));
        Ok(())
    }

    /// Takes what a connection's socket says.
    fn hear(&mut self, key: u64) {
        let Some(place) = self.connections.iter().position(|(other, _)| *other == key) else {
            return;
        };
        let connection = &mut self.connections[place].1;
        match connection.listen() {
            Fate::Lives if self.sleeping => connection.announce_sleep(),
            Fate::Lives => {}
            Fate::Ended => self.forget(place, "the other process has ended"),
            Fate::Foreign => self.forget(place, "it speaks another version of mem://"),
        }
    }

    /// Ends a connection: its memory goes with it.
    fn forget(&mut self, place: usize, why: &str) {
        let (_, connection) = self.connections.swap_remove(place);
        tracing::info!(peer = ?connection.peer, why, "a connection in memory is over");
    }

    /// The connection with a peer; a front makes it.
    fn connection(&mut self, peer: SharedPeer) -> Option<usize> {
        let known = |(_, connection): &(u64, Connection)| connection.peer == peer;
        if let Some(place) = self.connections.iter().position(known) {
            return Some(place);
        }
        let Role::Front { servers } = &self.role else { return None };
        let path = socket_of(servers.get(usize::try_from(peer.whose).ok()?)?, peer.port);
        // Nobody listens there yet, or any more: the link asks again.
        let socket = unix_socket().ok()?;
        connect(&socket, &SocketAddrUnix::new(&path).ok()?).ok()?;
        self.join(Connection::expect(peer, socket)).ok()?;
        Some(self.connections.len() - 1)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Role::Server { path, .. } = &self.role {
            // Nobody has taken its place while we listened. If it is gone already,
            // somebody wanted it so.
            let _ = unlink(path);
        }
    }
}

/// Whether what is in the way is the socket of a server that was killed. Nobody can
/// connect to other files either: those are somebody's.
fn is_left_over(path: &Path, address: &SocketAddrUnix) -> io::Result<bool> {
    let is_socket = FileType::from_raw_mode(stat(path)?.st_mode).is_socket();
    Ok(is_socket && connect(unix_socket()?, address) == Err(Errno::CONNREFUSED))
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Where the worker with that number listens.
fn socket_of(path: &Path, worker: u16) -> PathBuf {
    if worker == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned().into_vec();
    name.extend(format!(".{worker}").into_bytes());
    PathBuf::from(std::ffi::OsString::from_vec(name))
}

impl Wire for Shared {
    type Peer = SharedPeer;

    fn receive(&mut self, take: &mut dyn FnMut(&SharedPeer, &mut [u8])) -> io::Result<usize> {
        self.turns += 1;
        if self.turns >= TURNS_PER_LOOK {
            self.look();
        }
        let (mut frames, mut liar) = (0, None);
        for (place, (_, connection)) in self.connections.iter_mut().enumerate() {
            match connection.receive(&mut self.frame, take) {
                Ok(count) => frames += count,
                Err(_) => liar = Some(place),
            }
        }
        if let Some(place) = liar {
            self.forget(place, "what it wrote there cannot be");
        }
        Ok(frames)
    }

    fn send(&mut self, &to: &SharedPeer, header: &[u8; HEADER_BYTES], payload: &[u8]) {
        let Some(place) = self.connection(to) else { return };
        if self.connections[place].1.send(header, payload).is_err() {
            self.forget(place, "what it wrote there cannot be");
        }
    }

    fn flush(&mut self) {
        self.connections.iter_mut().for_each(|(_, connection)| connection.flush());
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.epoll.as_fd())
    }

    fn window(&self) -> u32 {
        WINDOW
    }

    fn announce_sleep(&mut self) {
        self.sleeping = true;
        self.connections.iter().for_each(|(_, connection)| connection.announce_sleep());
    }

    fn has_frames(&mut self) -> bool {
        // Bells of earlier sleeps are taken, or there would be no room for new ones.
        self.look();
        // Who has come just now was announced the sleep just now.
        fence(Ordering::SeqCst);
        self.connections.iter().any(|(_, connection)| connection.has_frames())
    }

    fn retract_sleep(&mut self) {
        self.sleeping = false;
        self.connections.iter().for_each(|(_, connection)| connection.retract_sleep());
    }
}

#[cfg(test)]
mod tests;
