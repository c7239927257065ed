//! The worker's end of the link.
//!
//! [`Server`] is handed frames and replies and hands out frames; the worker
//! behind it is a [`Host`].

mod door;
mod gate;
mod greeting;
mod session;
mod slot;

use std::collections::VecDeque;
use std::time::Duration;

use block_core::Time;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::frame::{Arrived, FrameError, Header, Kind, MAX_PAYLOAD};
use crate::hello::{Hello, Open, SessionRefused, Welcome};
use crate::host::{Host, Reply, SessionIndex, SlotRef};
use crate::introduction::{Introduction, Reception, Retry};
use crate::security::{Caller, ServerSecurity};
use crate::segment::SEGMENT_SIZES;
use crate::wire::{Peer, Wire};
use door::Door;
use gate::Gate;
use greeting::Identity;
use session::{Granted, Session};

/// Frames sent in a turn, so that a turn is bounded.
const BURST: usize = 512;

/// Handshake answers that wait to be sent; more than that are dropped, and the
/// fronts ask again.
const MAX_NOTES: usize = 256;

/// Hints that a session is not known are given only while no more than so many
/// wait: those who have sessions come first.
const MAX_HINTS: usize = 64;

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
    /// A welcome to a session that is sealed.
    Reception(Reception, usize),
    Refuse(SessionRefused, u64),
    Retry(Retry),
    Opened(u32),
    UnknownSession(u32),
}

/// All sessions of one worker.
#[derive(Debug)]
pub struct Server<P> {
    settings: ServerSettings,
    identity: Identity,
    gate: Gate,
    sessions: Vec<Option<Session<P>>>,
    /// Whose frame came last: the next one is mostly of the same.
    last: usize,
    door: Door<P>,
    notes: VecDeque<(P, Note)>,
    /// Sessions with requests that wait for a buffer. They are served in turn.
    waiting: VecDeque<SessionIndex>,
    /// Slots with frames to send.
    queue: VecDeque<SlotRef>,
}

impl<P: Peer> Server<P> {
    /// A server without sessions that speaks in the clear.
    ///
    /// # Panics
    /// If the settings ask for fewer than 2 or more than 128 slots.
    #[must_use]
    pub fn new(settings: ServerSettings) -> Self {
        Self::secured(settings, ServerSecurity::clear())
    }

    /// A server that asks this of fronts.
    ///
    /// # Panics
    /// If the settings ask for fewer than 2 or more than 128 slots.
    #[must_use]
    pub fn secured(settings: ServerSettings, security: ServerSecurity) -> Self {
        assert!((2..=session::MAX_SLOTS).contains(&settings.slots), "2 to 128 slots");
        let slots = usize::from(settings.sessions) * usize::from(settings.slots);
        let mut entropy = StdRng::from_seed(security.entropy);
        Self {
            sessions: (0..settings.sessions).map(|_| None).collect(),
            last: 0,
            door: Door::new(StdRng::seed_from_u64(settings.seed)),
            gate: Gate::new(StdRng::from_rng(&mut entropy)),
            identity: Identity::new(security, entropy),
            notes: VecDeque::with_capacity(MAX_NOTES),
            waiting: VecDeque::with_capacity(usize::from(settings.sessions)),
            queue: VecDeque::with_capacity(slots),
            settings,
        }
    }

    /// From now on this is asked of fronts. Sessions that there are go on.
    pub fn secure(&mut self, security: ServerSecurity) {
        let entropy = StdRng::from_seed(security.entropy);
        self.identity = Identity::new(security, entropy);
    }

    /// Ends the sessions of some fronts, and what was offered to them.
    pub fn end_sessions(&mut self, of: impl Fn(&Caller) -> bool, host: &mut impl Host) {
        self.door.withdraw(&of);
        for index in 0..self.sessions.len() {
            let ends = |session: &Session<P>| !session.is_closing() && of(&session.caller());
            if self.sessions[index].as_ref().is_some_and(ends) {
                self.close(index, host);
            }
        }
    }

    /// Takes one frame, as it came from the wire; a sealed one is opened where
    /// it is.
    pub fn handle_frame(&mut self, now: Time, from: &P, bytes: &mut [u8], host: &mut impl Host) {
        match Arrived::parse(bytes) {
            Ok(arrived) => match arrived.kind() {
                Kind::Request | Kind::Probe | Kind::Bye => {
                    self.handle_session(now, from, arrived, host);
                }
                _ => self.handle_greeting(now, *from, arrived, host),
            },
            Err(error) => self.handle_foreign(*from, error, bytes),
        }
    }

    #[cold]
    fn handle_greeting(&mut self, now: Time, from: P, arrived: Arrived<'_>, host: &mut impl Host) {
        match arrived.kind() {
            Kind::Hello => {
                if let Some(frame) = arrived.in_the_clear() {
                    self.handle_hello(now, from, &frame, host);
                }
            }
            Kind::Open => self.handle_open(now, from, arrived, host),
            // What servers say is not said to them.
            _ => {}
        }
    }

    /// Whoever says hello in another version gets to know ours; the answer is
    /// shorter than the question.
    #[cold]
    fn handle_foreign(&mut self, from: P, error: FrameError, bytes: &[u8]) {
        let is_hello = bytes.get(3) == Some(&(Kind::Hello as u8));
        if is_hello && matches!(error, FrameError::Version(_)) {
            self.refuse_version(from);
        }
    }

    fn note(&mut self, to: P, note: Note) {
        let most = if matches!(note, Note::UnknownSession(_)) { MAX_HINTS } else { MAX_NOTES };
        if self.notes.len() < most {
            self.notes.push_back((to, note));
        }
    }

    fn live_sessions_of(&self, caller: &Caller) -> impl Iterator<Item = (usize, &Session<P>)> {
        self.sessions.iter().enumerate().filter_map(move |(index, session)| {
            let session = session.as_ref()?;
            (session.caller() == *caller && !session.is_closing()).then_some((index, session))
        })
    }

    /// If there is no place for a session, one whose front has long been silent
    /// is ended.
    fn make_room(&mut self, now: Time, host: &mut impl Host) {
        if self.sessions.iter().any(Option::is_none) {
            return;
        }
        let Some(then) = earlier(now, SILENCE) else { return };
        let forsaken = self
            .sessions
            .iter()
            .position(|session| session.as_ref().is_some_and(|session| session.is_forsaken(then)));
        if let Some(index) = forsaken {
            self.close(index, host);
        }
    }

    /// The front has heard us: its old session ends, and when the last request
    /// of that has ended, the new one is said to be open.
    fn handle_open(&mut self, now: Time, from: P, arrived: Arrived<'_>, host: &mut impl Host) {
        let id = arrived.session();
        let index = match self.find(id, &from) {
            // It did not hear that.
            Some(session) => {
                let said = session.open(now, arrived).and_then(|frame| Open::parse(frame.payload));
                if said.is_none() {
                    return;
                }
                session.index()
            }
            None => match self.admit(now, from, arrived, host) {
                Some(index) => index,
                None => return self.note(from, Note::UnknownSession(id)),
            },
        };
        let Some(session) = &self.sessions[index] else { return };
        if !self.is_ending(&session.caller()) {
            self.note(from, Note::Opened(id));
        }
    }

    /// Whether requests of a session that the front has given up still run.
    fn is_ending(&self, caller: &Caller) -> bool {
        let mut sessions = self.sessions.iter().flatten();
        sessions.any(|session| session.caller() == *caller && session.is_closing())
    }

    /// The front's last request of an old session has ended: its new one is
    /// said to be open at once, not when the front asks again.
    fn announce(&mut self, caller: &Caller) {
        if self.is_ending(caller) {
            return;
        }
        let opened: Vec<(P, Note)> = self
            .live_sessions_of(caller)
            .filter(|(_, session)| session.is_fresh())
            .map(|(_, session)| (session.peer(), Note::Opened(session.id())))
            .collect();
        opened.into_iter().for_each(|(peer, note)| self.note(peer, note));
    }

    /// The session that an open begins.
    fn admit(
        &mut self,
        now: Time,
        from: P,
        arrived: Arrived<'_>,
        host: &mut impl Host,
    ) -> Option<usize> {
        let (offer, segments) = self.door.open(now, from, arrived)?;
        // An earlier start of the front is over with all its sessions; the same
        // start has one for each way that it reaches us.
        let replaced = |session: &Session<P>| {
            session.channel() == offer.greeting.channel || session.incarnation() < offer.incarnation
        };
        let old: Vec<usize> = self
            .live_sessions_of(&offer.caller)
            .filter(|(_, session)| replaced(session))
            .map(|(old, _)| old)
            .collect();
        old.into_iter().for_each(|old| self.close(old, host));
        self.make_room(now, host);
        let place = self.sessions.iter().position(Option::is_none)?;
        let index = SessionIndex(place as u16);
        let slots = self.settings.slots;
        host.opened(index, offer.caller, offer.incarnation, slots);
        tracing::info!(front = %offer.caller, peer = ?from, segment = segments.size(), "session");
        self.sessions[place] = Some(Session::new(now, index, offer, segments, slots));
        Some(place)
    }

    #[inline]
    fn find(&mut self, id: u32, peer: &P) -> Option<&mut Session<P>> {
        self.sessions.iter_mut().flatten().find(|session| session.is(id, peer))
    }

    #[inline]
    fn handle_session(&mut self, now: Time, from: &P, arrived: Arrived<'_>, host: &mut impl Host) {
        let id = arrived.session();
        let last = self.sessions.get(self.last).and_then(Option::as_ref);
        if !last.is_some_and(|session| session.is(id, from)) {
            let Some(session) = self.find(id, from) else {
                return self.note(*from, Note::UnknownSession(id));
            };
            self.last = session.index();
        }
        let Some(session) = &mut self.sessions[self.last] else { return };
        let Some(frame) = session.open(now, arrived) else { return };
        match frame.kind {
            Kind::Request => {
                let mut queues =
                    session::Queues { waiting: &mut self.waiting, send: &mut self.queue };
                session.handle_request(now, frame, &mut queues, host);
            }
            Kind::Probe => session.handle_probe(frame, &mut self.queue),
            _ => {
                let index = session.index();
                self.close(index, host);
            }
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

    #[cold]
    fn forget_if_ended(&mut self, index: usize, host: &mut impl Host) {
        if let Some(session) = self.sessions[index].take_if(|session| session.has_ended()) {
            let me = SessionIndex(index as u16);
            self.waiting.retain(|session| *session != me);
            self.queue.retain(|slot| slot.session != me);
            host.closed(me);
            self.announce(&session.caller());
        }
    }

    /// Takes the reply to something that [`Host::start`] was given.
    pub fn handle_reply(&mut self, now: Time, at: SlotRef, reply: Reply, host: &mut impl Host) {
        let index = usize::from(at.session.0);
        let Some(session) = &mut self.sessions[index] else { return };
        if session.handle_reply(now, at.slot, reply, &mut self.queue) {
            self.forget_if_ended(index, host);
        }
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
            self.send_note(wire, to, &note);
        }
        self.gate.end_turn();
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

    #[cold]
    fn send_note<W: Wire<Peer = P>>(&mut self, wire: &mut W, to: P, note: &Note) {
        match note {
            Note::Welcome(welcome, session, size) => {
                let header = Header { session: *session, ..Header::default() };
                send_padded(wire, to, &header, *size, |body| welcome.encode(body));
            }
            Note::Reception(reception, size) => {
                send_padded(wire, to, &Header::default(), *size, |body| reception.encode(body));
            }
            Note::Refuse(refused, cookie) => {
                let body = refused.encode(*cookie);
                wire.send(&to, &Header::default().encode(Kind::Refuse, &body), &body);
            }
            Note::Retry(retry) => {
                let body = retry.encode();
                wire.send(&to, &Header::default().encode(Kind::Retry, &body), &body);
            }
            Note::Opened(id) => {
                if let Some(session) = self.find(*id, &to) {
                    session.say_opened(wire);
                }
            }
            Note::UnknownSession(session) => {
                let header = Header { session: *session, ..Header::default() };
                wire.send(&to, &header.encode(Kind::UnknownSession, &[]), &[]);
            }
        }
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

fn send_padded<W: Wire>(
    wire: &mut W,
    to: W::Peer,
    header: &Header,
    size: usize,
    encode: impl FnOnce(&mut [u8]),
) {
    let mut padded = [0; MAX_PAYLOAD];
    let body = &mut padded[..size];
    encode(body);
    wire.send(&to, &header.encode(Kind::Welcome, body), body);
    // By itself: one that is too large must not take another with it.
    wire.flush();
}

const _: () = assert!(Introduction::BYTES <= SEGMENT_SIZES[SEGMENT_SIZES.len() - 1]);
const _: () = assert!(Reception::BYTES <= SEGMENT_SIZES[SEGMENT_SIZES.len() - 1]);
const _: () = assert!(Hello::BYTES <= SEGMENT_SIZES[SEGMENT_SIZES.len() - 1]);
const _: () = assert!(Welcome::BYTES <= SEGMENT_SIZES[SEGMENT_SIZES.len() - 1]);
