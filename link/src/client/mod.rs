//! The front's end of the link: sessions with workers, and the volumes that
//! are attached through them.

mod greeting;
mod kept;
mod session;
mod slot;
mod voice;
mod volume;

use std::io;
use std::time::Duration;

use block_core::{BlockError, Time};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use crate::attach::{Access, FrontId, VolumeName};
use crate::frame::{Arrived, FrameError};
use crate::hello::SessionRefused;
use crate::path::{Guest, Part, Path, Refusal, Source, VolumeHandle};
use crate::security::{Contact, Security};
use crate::wire::{Peer, Wire};
use greeting::Caller;
use session::Session;
use voice::Voice;
use volume::Volume;
pub use volume::VolumeState;

/// How long a worker that a volume was sent to may be silent before the server
/// that was named for the volume is asked again: it may have fewer workers now.
const REDIRECT_PATIENCE: Duration = Duration::from_secs(3);

/// How long a volume then waits before it is asked for.
const HOME_PAUSE: Duration = Duration::from_secs(1);

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
    /// How many bytes of changes are kept for each volume until they are
    /// durable. When half of that is answered, the client flushes.
    pub kept_bytes: usize,
}

impl ClientSettings {
    /// The default for [`ClientSettings::least_timeout`].
    pub const LEAST_TIMEOUT: Duration = Duration::from_millis(1);

    /// The default for [`ClientSettings::kept_bytes`]: a flush for every 32 MiB
    /// that a guest writes without one of its own.
    pub const KEPT_BYTES: usize = 64 << 20;

    /// The least that [`ClientSettings::kept_bytes`] can be.
    pub const LEAST_KEPT_BYTES: usize = kept::LEAST_BYTES;
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
    kept_bytes: usize,
}

impl<W: Wire> Client<W> {
    /// A client without volumes.
    #[must_use]
    pub fn new(wire: W, settings: ClientSettings) -> Self {
        Self {
            wire,
            caller: Caller { front: settings.front, incarnation: settings.incarnation },
            least_timeout: settings.least_timeout,
            random: StdRng::seed_from_u64(settings.seed),
            sessions: Vec::new(),
            volumes: Vec::new(),
            kept_bytes: settings.kept_bytes,
        }
    }

    /// Asks a server for a volume, in the clear if only its address is given.
    /// [`Client::state`] tells how
    /// that goes; it is asked for until it is attached or refused.
    ///
    /// # Errors
    /// The kernel's, when it has no memory for the volume's private copies; or
    /// the server is already spoken with in another way.
    ///
    /// # Panics
    /// After 65,535 volumes.
    pub fn attach(
        &mut self,
        now: Time,
        server: impl Into<Contact<W::Peer>>,
        name: VolumeName,
        access: Access,
    ) -> io::Result<VolumeHandle> {
        let slots = usize::from(session::MAX_SLOTS);
        let Contact { peer, security } = server.into();
        let others =
            |session: &Session<W::Peer>| session.peer() == peer && !session.voice().is(&security);
        if self.sessions.iter().any(others) {
            let why = "one server is spoken with in one way: sealed by the same keys, or clear";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let session = self.session_with(now, peer, &security);
        let handle = u16::try_from(self.volumes.len()).expect("fewer than 65,536 volumes");
        self.volumes.push(Volume::new(session, name, access, slots, self.kept_bytes)?);
        Ok(VolumeHandle(handle))
    }

    fn session_with(&mut self, now: Time, peer: W::Peer, security: &Security) -> usize {
        let same =
            |session: &Session<W::Peer>| session.peer() == peer && session.voice().is(security);
        if let Some(known) = self.sessions.iter().position(same) {
            return known;
        }
        let cookie = self.random.next_u64();
        let window = self.wire.window();
        let index = self.sessions.len();
        let voice = Voice::new(security.clone(), index as u16);
        let session = Session::new(index, now, peer, voice, cookie, window, self.least_timeout);
        self.sessions.push(session);
        index
    }

    /// Where a volume stands.
    #[must_use]
    pub fn state(&self, volume: VolumeHandle) -> VolumeState {
        self.volumes[usize::from(volume.0)].state()
    }

    /// Says that what an earlier start of this front had answered and the
    /// volume may have lost
    /// ([`stored_verifier`](crate::Attached::stored_verifier)) is not missed: the
    /// guest starts anew, or somebody has accepted the loss. From then on the
    /// client answers for the volume itself.
    pub fn settle(&mut self, volume: VolumeHandle) {
        self.volumes[usize::from(volume.0)].settles = true;
    }

    /// Why the server of a volume gives no session, if it said so.
    #[must_use]
    pub fn session_refused(&self, volume: VolumeHandle) -> Option<SessionRefused> {
        self.sessions[self.volumes[usize::from(volume.0)].session].refused()
    }

    /// Whether some volume has another size since this was asked last.
    #[must_use]
    pub fn take_resized(&mut self) -> bool {
        let resized = |session: &mut Session<W::Peer>| session.take_resized();
        // All of them are asked: each forgets.
        self.sessions.iter_mut().map(resized).fold(false, |any, one| any | one)
    }

    /// Gives a volume back; [`VolumeState::Detached`] follows when the server
    /// has confirmed it. Whatever the server may think that this front has, it
    /// is told: a volume whose session was lost is attached once more for that.
    pub fn detach(&mut self, volume: VolumeHandle) {
        let volume = &mut self.volumes[usize::from(volume.0)];
        match volume.state {
            VolumeState::Waiting | VolumeState::Attached(_) if volume.asked => {
                volume.leaving = true;
            }
            _ => volume.state = VolumeState::Detached,
        }
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

    /// The wire, to tell it of a sleep.
    pub fn wire_mut(&mut self) -> &mut W {
        &mut self.wire
    }

    fn receive(&mut self, now: Time, guest: &mut impl Guest) -> usize {
        let Self { wire, sessions, volumes, .. } = self;
        let received = wire.receive(&mut |from, bytes| {
            let Some(session) = sessions.iter_mut().find(|session| session.is_with(from)) else {
                return;
            };
            match Arrived::parse(bytes) {
                Ok(arrived) => session.handle_frame(now, arrived, volumes, guest),
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
                let security = self.sessions[session].voice().security();
                let to = self.session_with(now, peer, &security);
                self.move_volume(index, to);
            }
        }
    }

    /// Asks the server that was named for a volume again, when the worker that
    /// it was sent to is silent.
    fn go_home(&mut self, now: Time) {
        for index in 0..self.volumes.len() {
            let Volume { session, home, .. } = self.volumes[index];
            let silent = self.sessions[session].greeting_since();
            if session != home && silent.is_some_and(|since| now - since > REDIRECT_PATIENCE) {
                self.move_volume(index, home);
                self.volumes[index].retry_at = Some(now + HOME_PAUSE);
            }
        }
    }

    fn move_volume(&mut self, index: usize, to: usize) {
        let from = self.volumes[index].session;
        if from != to {
            self.sessions[from].park(index, &mut self.volumes);
            self.volumes[index].session = to;
        }
    }
}

impl<W: Wire> Path for Client<W> {
    fn submit(&mut self, _: Time, part: Part, source: &mut impl Source) -> Result<(), Refusal> {
        let index = usize::from(part.volume.0);
        let Some(volume) = self.volumes.get(index) else {
            return Err(Refusal::Failed(BlockError::NotAttached));
        };
        if volume.leaving || !volume.is_serving() {
            return Err(volume.refusal());
        }
        let session = &mut self.sessions[volume.session];
        session.submit(part, &mut self.volumes, source)
    }

    /// Sends, then receives: what is asked for again because of what came leaves
    /// with the guest's next requests, not in a packet of its own.
    /// What answers the first request in a while is left to the next turn.
    fn turn(&mut self, now: Time, guest: &mut impl Guest) -> bool {
        let awaited = self.sessions.iter().any(Session::awaits_answers);
        let mut sent = false;
        for session in &mut self.sessions {
            sent |= session.transmit(now, self.caller, &self.volumes, &mut self.wire);
        }
        if sent {
            self.wire.flush();
            // Whoever answers has had no time to, and may need this core.
            if !awaited {
                return true;
            }
        }
        let received = self.receive(now, guest);
        if received > 0 {
            self.follow_redirects(now);
        }
        if self.sessions.iter().any(|session| session.greeting_since().is_some()) {
            self.go_home(now);
        }
        for index in 0..self.volumes.len() {
            let session = self.volumes[index].session;
            self.sessions[session].recover(now, index, &mut self.volumes);
        }
        for session in &mut self.sessions {
            session.handle_timeout(now, &self.volumes);
            session.attach_next(now, &mut self.volumes);
        }
        sent || received > 0 || self.sessions.iter().any(Session::has_frames)
    }

    fn deadline(&self) -> Option<Time> {
        let deadlines = self.sessions.iter().map(|session| session.deadline(&self.volumes));
        deadlines.flatten().min()
    }

    fn abandon(&mut self, volume: VolumeHandle, guest: &mut impl Guest) {
        let error = BlockError::Unreachable;
        let session = self.volumes[usize::from(volume.0)].session;
        self.sessions[session].fail_parts(usize::from(volume.0), error, &mut self.volumes, guest);
    }
}
