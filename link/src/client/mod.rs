//! The front's end of the link: sessions with workers, and the volumes that
//! are attached through them.

mod greeting;
mod session;
mod slot;

use std::io;
use std::time::Duration;

use block_core::unit::MAX_REQUEST_BYTES;
use block_core::{BLOCK_SIZE, BlockError, Pool, Time};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use crate::attach::{Access, AttachReply, Attached, FrontId, Refused, VolumeName};
use crate::frame::{Frame, FrameError, Header, Kind};
use crate::hello::SessionRefused;
use crate::path::{Guest, Part, Path, Refusal, VolumeHandle};
use crate::wire::{Peer, Wire};
use greeting::Caller;
use session::Session;

/// Private copies of writes that a client keeps at most; also bounds the
/// memory: each takes up to 128 KiB, touched only when used.
const PRIVATE_COPIES: usize = 256;

/// A buffer for a private copy. The odd page keeps the copies of small writes
/// from all falling into the same sets of the processor's caches.
const COPY_BYTES: usize = MAX_REQUEST_BYTES + BLOCK_SIZE;

/// How a client introduces itself and how patient it is.
#[derive(Clone, Copy, Debug)]
pub struct ClientSettings {
    /// Who this front is.
    pub front: FrontId,
    /// Rises each time the front starts.
    pub incarnation: u64,
    /// The shortest wait before an answer is asked for again.
    pub least_timeout: Duration,
    /// Randomness for cookies.
    pub seed: u64,
}

impl ClientSettings {
    /// The default for [`ClientSettings::least_timeout`].
    pub const LEAST_TIMEOUT: Duration = Duration::from_millis(1);
}

/// Where a volume stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// No answer yet, or the session was lost.
    Waiting,
    /// Served.
    Attached(Attached),
    /// The server said no.
    Refused(Refused),
    /// It is another volume than the one that was attached before the session
    /// was lost: restored, imported or detached by force. Serving it would mix
    /// the guest's memory of one with the data of the other.
    Changed,
    /// Being given back.
    Detaching,
    /// Given back.
    Detached,
}

#[derive(Debug)]
struct Volume {
    name: VolumeName,
    access: Access,
    session: usize,
    state: VolumeState,
    /// The server has said that it is not what it was.
    has_news: bool,
    /// What was attached last, to compare with after a reconnect.
    known: Option<Attached>,
    /// Slots that its parts have.
    in_use: usize,
}

/// All sessions of one front, over one wire.
#[derive(Debug)]
pub struct Client<W: Wire> {
    wire: W,
    caller: Caller,
    least_timeout: Duration,
    random: StdRng,
    sessions: Vec<Session<W::Peer>>,
    volumes: Vec<Volume>,
    copies: Pool,
}

impl<W: Wire> Client<W> {
    /// A client without volumes.
    ///
    /// # Errors
    /// The kernel's, when it has no memory for private copies.
    pub fn new(wire: W, settings: ClientSettings) -> io::Result<Self> {
        Ok(Self {
            wire,
            caller: Caller { front: settings.front, incarnation: settings.incarnation },
            least_timeout: settings.least_timeout,
            random: StdRng::seed_from_u64(settings.seed),
            sessions: Vec::new(),
            volumes: Vec::new(),
            copies: Pool::private(PRIVATE_COPIES, COPY_BYTES)?,
        })
    }

    /// Asks the server at `server` for a volume. [`Client::state`] tells how
    /// that goes; it is asked for until it is attached or refused.
    ///
    /// # Panics
    /// After 65,535 volumes.
    pub fn attach(
        &mut self,
        now: Time,
        server: W::Peer,
        name: VolumeName,
        access: Access,
    ) -> VolumeHandle {
        let session = self.session_with(now, server);
        let handle = u16::try_from(self.volumes.len()).expect("fewer than 65,536 volumes");
        let state = VolumeState::Waiting;
        let (has_news, known, in_use) = (false, None, 0);
        self.volumes.push(Volume { name, access, session, state, has_news, known, in_use });
        VolumeHandle(handle)
    }

    fn session_with(&mut self, now: Time, peer: W::Peer) -> usize {
        if let Some(known) = self.sessions.iter().position(|session| session.peer() == peer) {
            return known;
        }
        let cookie = self.random.next_u64();
        let window = self.wire.window();
        let index = self.sessions.len();
        self.sessions.push(Session::new(index, now, peer, cookie, window, self.least_timeout));
        index
    }

    /// Where a volume stands.
    #[must_use]
    pub fn state(&self, volume: VolumeHandle) -> VolumeState {
        self.volumes[usize::from(volume.0)].state
    }

    /// Why the server of a volume gives no session, if it said so.
    #[must_use]
    pub fn session_refused(&self, volume: VolumeHandle) -> Option<SessionRefused> {
        self.sessions[self.volumes[usize::from(volume.0)].session].refused()
    }

    /// Whether the volume's server answers.
    #[must_use]
    pub fn is_connected(&self, volume: VolumeHandle) -> bool {
        self.sessions[self.volumes[usize::from(volume.0)].session].is_live()
    }

    /// Whether some volume has another size since this was asked last.
    #[must_use]
    pub fn take_resized(&mut self) -> bool {
        let resized = |session: &mut Session<W::Peer>| session.take_resized();
        // All of them are asked: each forgets.
        self.sessions.iter_mut().map(resized).fold(false, |any, one| any | one)
    }

    /// Gives a volume back; [`VolumeState::Detached`] follows.
    pub fn detach(&mut self, volume: VolumeHandle) {
        let volume = &mut self.volumes[usize::from(volume.0)];
        volume.state = match volume.state {
            VolumeState::Attached(_) => VolumeState::Detaching,
            VolumeState::Detaching => VolumeState::Detaching,
            _ => VolumeState::Detached,
        };
    }

    /// Tells the servers that no more will come.
    pub fn close(&mut self) {
        for session in &mut self.sessions {
            session.close(&mut self.wire);
        }
        self.wire.flush();
    }

    /// The wire, to sleep on.
    #[must_use]
    pub fn wire(&self) -> &W {
        &self.wire
    }

    /// The slots whose requests are under way, for an idle loop.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.sessions.iter().map(Session::outstanding).sum()
    }

    fn receive(&mut self, now: Time, guest: &mut impl Guest) -> usize {
        let Self { wire, sessions, volumes, .. } = self;
        let received = wire.receive(&mut |from, bytes| {
            let Some(session) = sessions.iter_mut().find(|session| session.peer() == from) else {
                return;
            };
            match Frame::parse(bytes) {
                Ok(frame) => session.handle_frame(now, &frame, volumes, guest),
                Err(FrameError::Version(version)) => session.handle_version(now, version),
                Err(_) => {}
            }
        });
        received.unwrap_or_else(|error| {
            tracing::error!(%error, "the link's socket is broken");
            0
        })
    }

    /// Sends volumes that live at another worker there.
    fn follow_redirects(&mut self, now: Time) {
        for index in 0..self.volumes.len() {
            let session = self.volumes[index].session;
            if let Some(port) = self.sessions[session].take_redirect(index) {
                let peer = self.sessions[session].peer().with_port(port);
                self.volumes[index].session = self.session_with(now, peer);
            }
        }
    }
}

impl<W: Wire> Path for Client<W> {
    fn submit(&mut self, _: Time, part: Part, guest: &mut impl Guest) -> Result<(), Refusal> {
        let index = usize::from(part.volume.0);
        let Some(volume) = self.volumes.get(index) else {
            return Err(Refusal::Failed(BlockError::NotAttached));
        };
        match volume.state {
            VolumeState::Attached(_) => {}
            VolumeState::Waiting => return Err(Refusal::Busy),
            _ => return Err(Refusal::Failed(BlockError::NotAttached)),
        }
        let session = &mut self.sessions[volume.session];
        session.submit(part, &mut self.volumes, &self.copies, guest)
    }

    fn turn(&mut self, now: Time, guest: &mut impl Guest) -> bool {
        let received = self.receive(now, guest);
        if received > 0 {
            self.follow_redirects(now);
        }
        let mut sent = false;
        for session in &mut self.sessions {
            session.handle_timeout(now);
            session.attach_next(&mut self.volumes, &self.copies);
            sent |= session.transmit(now, self.caller, &self.volumes, &mut self.wire);
        }
        if sent {
            self.wire.flush();
        }
        sent || received > 0
    }

    fn deadline(&self) -> Option<Time> {
        self.sessions.iter().filter_map(Session::deadline).min()
    }

    fn abandon(&mut self, volume: VolumeHandle, guest: &mut impl Guest) {
        let session = self.volumes[usize::from(volume.0)].session;
        let error = BlockError::Unreachable;
        self.sessions[session].fail_parts(usize::from(volume.0), error, &mut self.volumes, guest);
    }
}

/// A frame that a closing end sends.
fn bye(session: u32, counter: u64) -> [u8; crate::frame::HEADER_BYTES] {
    Header { session, counter, ..Header::default() }.encode(Kind::Bye, &[])
}

/// What an attach answer means for a volume that may have been attached
/// before.
fn judge(known: Option<Attached>, reply: &AttachReply) -> VolumeState {
    match *reply {
        AttachReply::Attached(now) => match known {
            Some(then) if then.volume_id != now.volume_id || then.generation != now.generation => {
                VolumeState::Changed
            }
            _ => VolumeState::Attached(now),
        },
        AttachReply::Refused(refused) => VolumeState::Refused(refused),
        AttachReply::Elsewhere { .. } => VolumeState::Waiting,
    }
}
