//! The worker's end of the link.
//!
//! [`Server`] is handed frames and replies and hands out frames; the worker
//! behind it is a [`Host`].

mod door;
mod session;
mod slot;

use std::collections::VecDeque;
use std::time::Duration;

use block_core::Time;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::attach::FrontId;
use crate::frame::{Frame, FrameError, Header, Kind, MAX_PAYLOAD, OLDEST_VERSION, VERSION};
use crate::hello::{Hello, Open, SessionRefused, Welcome};
use crate::host::{Host, Reply, SessionIndex, SlotRef};
use crate::segment::{SEGMENT_SIZES, Segmentation};
use crate::wire::Wire;
use door::Door;
use session::{Granted, Session};

/// Frames sent in a turn, so that a turn is bounded.
const BURST: usize = 512;

/// Handshake answers that wait to be sent; more than that are dropped, and the
/// fronts ask again.
const MAX_NOTES: usize = 256;

/// The limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// Sessions at most.
    pub sessions: u16,
    /// Slots of each session, slot 0 for attach and detach included.
    pub slots: u16,
    /// Bytes that the wire takes in between two turns.
    pub window: u32,
    /// Randomness for session ids and nonces.
    pub seed: u64,
}

/// How long a request may lack data before its buffer is given to others, when
/// others wait.
const DATA_PATIENCE: Duration = Duration::from_secs(1);

/// How long a front must have been silent before its session is ended, when
/// another front finds no room. One that lives connects again.
const SILENCE: Duration = Duration::from_secs(60);

/// A short frame outside of any slot.
#[derive(Debug)]
enum Note {
    Welcome(Welcome, u32, usize),
    Refuse(SessionRefused),
    Opened(u32, Segmentation),
    UnknownSession(u32),
}

/// All sessions of one worker.
#[derive(Debug)]
pub struct Server<P> {
    settings: ServerSettings,
    sessions: Vec<Option<Session<P>>>,
    door: Door<P>,
    notes: VecDeque<(P, Note)>,
    /// Sessions with requests that wait for a buffer. They are served in turn.
    waiting: VecDeque<SessionIndex>,
    /// Slots with frames to send.
    queue: VecDeque<SlotRef>,
}

impl<P: Copy + Eq + std::fmt::Debug> Server<P> {
    /// A server without sessions.
    ///
    /// # Panics
    /// If the settings ask for fewer than 2 or more than 128 slots.
    #[must_use]
    pub fn new(settings: ServerSettings) -> Self {
        assert!((2..=session::MAX_SLOTS).contains(&settings.slots), "2 to 128 slots");
        let slots = usize::from(settings.sessions) * usize::from(settings.slots);
        Self {
            sessions: (0..settings.sessions).map(|_| None).collect(),
            door: Door::new(StdRng::seed_from_u64(settings.seed)),
            notes: VecDeque::with_capacity(MAX_NOTES),
            waiting: VecDeque::with_capacity(usize::from(settings.sessions)),
            queue: VecDeque::with_capacity(slots),
            settings,
        }
    }

    /// Takes one frame, as it came from the wire.
    pub fn handle_frame(&mut self, now: Time, from: P, bytes: &[u8], host: &mut impl Host) {
        let frame = match Frame::parse(bytes) {
            Ok(frame) => frame,
            // Whoever says hello in another version gets to know ours; the
            // answer is shorter than the question.
            Err(FrameError::Version(_)) if bytes[3] == Kind::Hello as u8 => {
                return self.refuse_version(from);
            }
            Err(_) => return,
        };
        match frame.kind {
            Kind::Hello => self.handle_hello(now, from, &frame, host),
            Kind::Open => self.handle_open(now, from, &frame, host),
            Kind::Request | Kind::Probe | Kind::Bye => self.handle_session(now, from, &frame, host),
            // What servers say is not said to them.
            _ => {}
        }
    }

    fn note(&mut self, to: P, note: Note) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push_back((to, note));
        }
    }

    fn refuse_version(&mut self, to: P) {
        let refused = SessionRefused::Version { oldest: OLDEST_VERSION, newest: VERSION };
        self.note(to, Note::Refuse(refused));
    }

    fn handle_hello(&mut self, now: Time, from: P, frame: &Frame<'_>, host: &mut impl Host) {
        // Only padded hellos are answered: an answer is never longer than what
        // asked for it, so nobody can aim it at others.
        let Some(hello) = Hello::parse(frame.payload) else { return };
        if !SEGMENT_SIZES.contains(&frame.payload.len()) {
            return;
        }
        if hello.versions.0 > VERSION || hello.versions.1 < OLDEST_VERSION {
            return self.refuse_version(from);
        }
        let newest = self.live_sessions_of(hello.front).map(|(_, live)| live.incarnation()).max();
        if newest.is_some_and(|newest| newest > hello.incarnation) {
            return self.note(from, Note::Refuse(SessionRefused::Stale));
        }
        if newest.is_none() && !self.make_room(now, host) {
            return self.note(from, Note::Refuse(SessionRefused::Full));
        }
        let offer = self.door.offer(from, &hello);
        let welcome = Welcome {
            cookie: hello.cookie,
            nonce: offer.nonce,
            window: self.settings.window,
            slots: self.settings.slots,
            credit: self.settings.slots,
        };
        self.note(from, Note::Welcome(welcome, offer.session, frame.payload.len()));
    }

    fn live_sessions_of(&self, front: FrontId) -> impl Iterator<Item = (usize, &Session<P>)> {
        self.sessions.iter().enumerate().filter_map(move |(index, session)| {
            let session = session.as_ref()?;
            (session.front() == front && !session.is_closing()).then_some((index, session))
        })
    }

    /// Whether there is a place for a session; one whose front has long been
    /// silent is ended for it.
    fn make_room(&mut self, now: Time, host: &mut impl Host) -> bool {
        if self.sessions.iter().any(Option::is_none) {
            return true;
        }
        let Some(then) = earlier(now, SILENCE) else { return false };
        let forsaken = self
            .sessions
            .iter()
            .position(|session| session.as_ref().is_some_and(|session| session.is_forsaken(then)));
        if let Some(index) = forsaken {
            self.close(index, host);
        }
        self.sessions.iter().any(Option::is_none)
    }

    /// The front has heard us: its old session ends, and when the last request
    /// of that has ended, the new one is said to be open.
    fn handle_open(&mut self, now: Time, from: P, frame: &Frame<'_>, host: &mut impl Host) {
        let Some(open) = Open::parse(frame.payload) else { return };
        let id = frame.header.session;
        if self.find(id, from).is_none() && !self.admit(now, from, id, &open, host) {
            return self.note(from, Note::UnknownSession(id));
        }
        let Some(index) = self.find(id, from) else { return };
        let Some(session) = &self.sessions[index] else { return };
        let (front, segments) = (session.front(), session.segments());
        if !self.is_ending(front) {
            self.note(from, Note::Opened(id, segments));
        }
    }

    /// Whether requests of a session that the front has given up still run.
    fn is_ending(&self, front: FrontId) -> bool {
        let mut sessions = self.sessions.iter().flatten();
        sessions.any(|session| session.front() == front && session.is_closing())
    }

    /// The front's last request of an old session has ended: its new one is
    /// said to be open at once, not when the front asks again.
    fn announce(&mut self, front: FrontId) {
        if self.is_ending(front) {
            return;
        }
        let opened: Vec<(P, Note)> = self
            .live_sessions_of(front)
            .filter(|(_, session)| session.is_fresh())
            .map(|(_, session)| (session.peer(), Note::Opened(session.id(), session.segments())))
            .collect();
        opened.into_iter().for_each(|(peer, note)| self.note(peer, note));
    }

    fn admit(&mut self, now: Time, from: P, id: u32, open: &Open, host: &mut impl Host) -> bool {
        let Some((offer, segments)) = self.door.open(from, id, open) else { return false };
        // An earlier start of the front is over with all its sessions; the same
        // start has one for each way that it reaches us.
        let replaced = |session: &Session<P>| {
            session.channel() == offer.channel || session.incarnation() < offer.incarnation
        };
        let old: Vec<usize> = self
            .live_sessions_of(offer.front)
            .filter(|(_, session)| replaced(session))
            .map(|(old, _)| old)
            .collect();
        old.into_iter().for_each(|old| self.close(old, host));
        let Some(place) = self.sessions.iter().position(Option::is_none) else { return false };
        let index = SessionIndex(place as u16);
        host.opened(index, offer.front, offer.incarnation, self.settings.slots);
        tracing::info!(front = %offer.front, peer = ?from, segment = segments.size(), "session");
        let slots = self.settings.slots;
        self.sessions[place] = Some(Session::new(now, index, offer, segments, slots));
        true
    }

    fn find(&self, id: u32, peer: P) -> Option<usize> {
        self.sessions.iter().position(|session| {
            session.as_ref().is_some_and(|session| session.is(id, peer) && !session.is_closing())
        })
    }

    fn handle_session(&mut self, now: Time, from: P, frame: &Frame<'_>, host: &mut impl Host) {
        let Some(index) = self.find(frame.header.session, from) else {
            return self.note(from, Note::UnknownSession(frame.header.session));
        };
        let Some(session) = &mut self.sessions[index] else { return };
        session.hear(now);
        match frame.kind {
            Kind::Request => {
                let mut queues =
                    session::Queues { waiting: &mut self.waiting, send: &mut self.queue };
                session.handle_request(now, frame, &mut queues, host);
            }
            Kind::Probe => session.handle_probe(frame, &mut self.queue),
            _ => self.close(index, host),
        }
    }

    /// Ends a session. Its half-received requests are dropped at once, what
    /// waits is not begun; what runs ends first.
    fn close(&mut self, index: usize, host: &mut impl Host) {
        let Some(session) = &mut self.sessions[index] else { return };
        session.close();
        host.closing(SessionIndex(index as u16));
        self.forget_if_ended(index, host);
    }

    fn forget_if_ended(&mut self, index: usize, host: &mut impl Host) {
        let ended = |session: &mut Session<P>| session.is_closing() && session.running() == 0;
        if let Some(session) = self.sessions[index].take_if(ended) {
            let me = SessionIndex(index as u16);
            self.waiting.retain(|session| *session != me);
            self.queue.retain(|slot| slot.session != me);
            host.closed(me);
            self.announce(session.front());
        }
    }

    /// Takes the reply to something that [`Host::start`] was given.
    pub fn handle_reply(&mut self, now: Time, at: SlotRef, reply: Reply, host: &mut impl Host) {
        let index = usize::from(at.session.0);
        let Some(session) = &mut self.sessions[index] else { return };
        session.handle_reply(now, at.slot, reply, &mut self.queue);
        self.forget_if_ended(index, host);
    }

    /// Gives buffers that have become free to the requests that wait for one:
    /// to one session after the other, and in each to the oldest first.
    pub fn serve_waiting(&mut self, now: Time, host: &mut impl Host) {
        let mut refused = 0;
        while refused < self.waiting.len() || (refused > 0 && self.reclaim(now)) {
            if refused == self.waiting.len() {
                refused = 0;
            }
            let Some(index) = self.waiting.pop_front() else { return };
            let Some(session) = &mut self.sessions[usize::from(index.0)] else { continue };
            match session.grant(now, &mut self.queue, host) {
                Granted::NoneWaits => {}
                Granted::Yes => {
                    refused = 0;
                    self.waiting.push_back(index);
                }
                Granted::No => {
                    refused += 1;
                    self.waiting.push_back(index);
                }
            }
        }
    }

    /// Takes buffers back from requests that stopped half-way: their front may
    /// be gone, and others wait. Fronts that wait ask every 250 ms, so this is
    /// tried again without a timer.
    fn reclaim(&mut self, now: Time) -> bool {
        let Some(then) = earlier(now, DATA_PATIENCE) else { return false };
        let sessions = self.sessions.iter_mut().flatten();
        // All of them: the fewer rounds the better.
        sessions.map(|session| session.reclaim(then)).fold(false, |any, one| any | one)
    }

    /// Sends what is due, a bounded burst of it; whether anything was.
    pub fn transmit<W: Wire<Peer = P>>(&mut self, wire: &mut W) -> bool {
        let mut frames = self.notes.len();
        while let Some((to, note)) = self.notes.pop_front() {
            send_note(wire, to, &note);
        }
        while frames < BURST {
            let Some(at) = self.queue.pop_front() else { break };
            let Some(session) = &mut self.sessions[usize::from(at.session.0)] else { continue };
            frames += session.transmit(at.slot, wire);
        }
        if frames > 0 {
            wire.flush();
        }
        frames > 0
    }

    /// Whether frames wait to be sent.
    #[must_use]
    pub fn has_frames(&self) -> bool {
        !self.queue.is_empty() || !self.notes.is_empty()
    }

    /// How many sessions there are.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.iter().flatten().count()
    }
}

/// The moment `span` before `now`, if there was one.
fn earlier(now: Time, span: Duration) -> Option<Time> {
    let nanos = u64::try_from(span.as_nanos()).ok()?;
    now.nanos().checked_sub(nanos).map(Time::from_nanos)
}

fn send_note<W: Wire>(wire: &mut W, to: W::Peer, note: &Note) {
    let mut padded = [0; MAX_PAYLOAD];
    let header = |session| Header { session, ..Header::default() };
    match note {
        Note::Welcome(welcome, session, size) => {
            let body = &mut padded[..*size];
            welcome.encode(body);
            wire.send(to, &header(*session).encode(Kind::Welcome, body), body);
            // By itself: one that is too large must not take another with it.
            wire.flush();
        }
        Note::Refuse(refused) => {
            let body = refused.encode();
            wire.send(to, &header(0).encode(Kind::Refuse, &body), &body);
        }
        Note::Opened(session, segments) => {
            let header = Header { count: segments.size() as u32, ..header(*session) };
            wire.send(to, &header.encode(Kind::Opened, &[]), &[]);
        }
        Note::UnknownSession(session) => {
            wire.send(to, &header(*session).encode(Kind::UnknownSession, &[]), &[]);
        }
    }
}

const _: () = assert!(Hello::BYTES <= SEGMENT_SIZES[SEGMENT_SIZES.len() - 1]);
const _: () = assert!(Welcome::BYTES <= SEGMENT_SIZES[SEGMENT_SIZES.len() - 1]);
