//! How a front gets a session: hello, welcome, open, opened.

use std::time::Duration;

use block_core::Time;

use super::voice::{Asking, Voice};
use crate::attach::FrontId;
use crate::frame::{
    Arrived, Frame, HEADER_BYTES, Header, Kind, MAX_PAYLOAD, OLDEST_VERSION, VERSION,
};
use crate::hello::{Hello, Open, SessionRefused, Welcome};
use crate::introduction::{Reception, Retry};
use crate::seal::Guard;
use crate::segment::{SEGMENT_SIZES, Segmentation};
use crate::wire::Wire;

/// How long after the first welcome a larger one is waited for.
const SETTLE: Duration = Duration::from_millis(2);

/// Time between two hellos: at first, and at most after doubling; for the first
/// seconds of a silence, in which a server that was started anew comes back, and
/// then.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const EAGER_PAUSE: Duration = Duration::from_millis(40);
const EAGER: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Time between two hellos to a server that refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Who greets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) front: FrontId,
    pub(super) incarnation: u64,
}

/// A session that the server offers.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) session: u32,
    pub(super) welcome: Welcome,
    pub(super) segments: Segmentation,
    pub(super) guard: Guard,
}

/// One greeting, from the first hello to the answer to our open.
#[derive(Debug)]
pub(super) struct Greeting {
    channel: u16,
    cookie: u64,
    begun: Time,
    /// The handshake, where the session shall be sealed and a hello was sent.
    asking: Option<Box<Asking>>,
    offer: Option<Offer>,
    opening: bool,
    next: Time,
    pause: Duration,
    refused: Option<SessionRefused>,
}

impl Greeting {
    pub(super) fn new(now: Time, channel: u16, cookie: u64) -> Self {
        Self {
            channel,
            cookie,
            begun: now,
            asking: None,
            offer: None,
            opening: false,
            next: now,
            pause: FIRST_PAUSE,
            refused: None,
        }
    }

    /// When the front began to ask.
    pub(super) const fn begun(&self) -> Time {
        self.begun
    }

    pub(super) const fn deadline(&self) -> Time {
        self.next
    }

    pub(super) const fn refused(&self) -> Option<SessionRefused> {
        self.refused
    }

    /// Takes an answer; a session when it is the last one.
    pub(super) fn handle_frame(&mut self, now: Time, arrived: Arrived<'_>) -> Option<Offer> {
        match arrived.kind() {
            Kind::Opened => {
                let offer = self.offer.as_mut().filter(|_| self.opening)?;
                if offer.session != arrived.session() {
                    return None;
                }
                let header = offer.guard.open(now, arrived)?.header();
                // The server has the last word on the segment size: it may
                // have opened the session by an earlier open of ours.
                offer.segments = Segmentation::new(header.count as usize)?;
                self.offer.take()
            }
            _ => {
                self.handle_answer(now, &arrived.in_the_clear()?);
                None
            }
        }
    }

    /// What the server says before there is a session. Nothing of it is sealed;
    /// but a welcome to a sealed session carries what nobody else can make.
    fn handle_answer(&mut self, now: Time, frame: &Frame<'_>) -> Option<()> {
        match frame.kind {
            Kind::Welcome => {
                let segments = Segmentation::new(frame.payload.len())?;
                match &mut self.asking {
                    None => {
                        let welcome = Welcome::parse(frame.payload)?;
                        let (session, guard) = (frame.header().session, Guard::CLEAR);
                        self.consider(now, Offer { session, welcome, segments, guard });
                    }
                    Some(asking) => {
                        let reception = Reception::parse(frame.payload)?;
                        if reception.cookie != self.cookie || self.opening {
                            return None;
                        }
                        match (&mut self.offer, asking.read(&reception)?) {
                            (_, Some((session, welcome, guard))) => {
                                self.consider(now, Offer { session, welcome, segments, guard });
                            }
                            (Some(offer), None) if segments.size() > offer.segments.size() => {
                                offer.segments = segments;
                                self.hurry(now);
                            }
                            _ => {}
                        }
                    }
                }
            }
            Kind::Refuse => {
                let (refused, cookie) = SessionRefused::parse(frame.payload)?;
                if cookie.is_none_or(|cookie| cookie == self.cookie) {
                    self.refuse(now, refused);
                }
            }
            Kind::Retry => {
                let retry = Retry::parse(frame.payload)?;
                let asking = self.asking.as_mut()?;
                if retry.cookie == self.cookie && self.offer.is_none() && asking.retry(&retry) {
                    self.next = now;
                }
            }
            // The server forgot its offer (it restarted, or was busy): again.
            Kind::UnknownSession
                if self.opening
                    && self
                        .offer
                        .as_ref()
                        .is_some_and(|offer| offer.session == frame.header().session) =>
            {
                self.begin_anew();
                self.next = self.next.min(now + FIRST_PAUSE);
            }
            _ => {}
        }
        Some(())
    }

    /// Another greeting, with a handshake of its own.
    fn begin_anew(&mut self) {
        self.opening = false;
        self.offer = None;
        if self.asking.take().is_some() {
            self.cookie = self.cookie.wrapping_add(1 << 32);
        }
    }

    /// The server answered in a version that we do not speak.
    pub(super) fn handle_version(&mut self, now: Time, version: u8) {
        self.refuse(now, SessionRefused::Version { oldest: version, newest: version });
    }

    fn refuse(&mut self, now: Time, refused: SessionRefused) {
        self.refused = Some(refused);
        self.begin_anew();
        self.next = now + REFUSED_PAUSE;
    }

    fn consider(&mut self, now: Time, offer: Offer) {
        let larger = |best: &Offer| offer.segments.size() > best.segments.size();
        let larger = self.offer.as_ref().is_none_or(larger);
        if self.opening || offer.welcome.cookie != self.cookie || !larger {
            return;
        }
        self.refused = None;
        if self.offer.is_none() {
            self.next = now + SETTLE;
        }
        self.offer = Some(offer);
        self.hurry(now);
    }

    /// Nothing larger can come.
    fn hurry(&mut self, now: Time) {
        let is_largest = |offer: &Offer| offer.segments.size() == SEGMENT_SIZES[0];
        if self.offer.as_ref().is_some_and(is_largest) {
            self.next = now;
        }
    }

    /// Sends what is due; whether anything was.
    pub(super) fn transmit<W: Wire>(
        &mut self,
        now: Time,
        caller: Caller,
        voice: &mut Voice,
        wire: &mut W,
        to: W::Peer,
    ) -> bool {
        if now < self.next {
            return false;
        }
        match &mut self.offer {
            None => self.send_hellos(caller, voice, wire, to),
            Some(offer) => {
                self.opening = true;
                let open = Open { nonce: offer.welcome.nonce, segments: offer.segments }.encode();
                let header = Header { session: offer.session, ..Header::default() };
                offer.guard.send(wire, &to, &header, Kind::Open, &open);
            }
        }
        self.next = now + self.pause;
        let most = if now - self.begun < EAGER { EAGER_PAUSE } else { LONGEST_PAUSE };
        self.pause = (self.pause * 2).min(most);
        true
    }

    fn send_hellos<W: Wire>(
        &mut self,
        caller: Caller,
        voice: &mut Voice,
        wire: &mut W,
        to: W::Peer,
    ) {
        let versions = (OLDEST_VERSION, VERSION);
        let (channel, cookie) = (self.channel, self.cookie);
        let Caller { front, incarnation } = caller;
        if self.asking.is_none() {
            self.asking = voice.ask(versions, channel, cookie, caller).map(Box::new);
        }
        let hello = Hello { versions, channel, front, incarnation, cookie };
        let mut padded = [0; MAX_PAYLOAD];
        for size in SEGMENT_SIZES {
            let body = &mut padded[..size];
            match &self.asking {
                Some(asking) => asking.encode(body),
                None => hello.encode(body),
            }
            let header: [u8; HEADER_BYTES] = Header::default().encode(Kind::Hello, body);
            wire.send(&to, &header, body);
            // By itself: one that is too large must not take another with it.
            wire.flush();
        }
    }
}
