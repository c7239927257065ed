//! How a front gets a session: hello, welcome, open, opened.

use std::time::Duration;

use block_core::Time;

use crate::attach::FrontId;
use crate::frame::{Frame, HEADER_BYTES, Header, Kind, MAX_PAYLOAD, OLDEST_VERSION, VERSION};
use crate::hello::{Hello, Open, SessionRefused, Welcome};
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
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    pub(super) session: u32,
    pub(super) welcome: Welcome,
    pub(super) segments: Segmentation,
}

/// One greeting, from the first hello to the answer to our open.
#[derive(Debug)]
pub(super) struct Greeting {
    channel: u16,
    cookie: u64,
    begun: Time,
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
    pub(super) fn handle_frame(&mut self, now: Time, frame: &Frame<'_>) -> Option<Offer> {
        match frame.kind {
            Kind::Welcome => {
                let welcome = Welcome::parse(frame.payload)?;
                let segments = Segmentation::new(frame.payload.len())?;
                self.consider(now, Offer { session: frame.header.session, welcome, segments });
                None
            }
            Kind::Refuse => {
                self.refuse(now, SessionRefused::parse(frame.payload)?);
                None
            }
            Kind::Opened => {
                let offer = self
                    .offer
                    .filter(|offer| self.opening && offer.session == frame.header.session)?;
                // The server has the last word on the segment size: it may
                // have opened the session by an earlier open of ours.
                let segments = Segmentation::new(frame.header.count as usize)?;
                Some(Offer { segments, ..offer })
            }
            // The server forgot its offer (it restarted, or was busy): again.
            Kind::UnknownSession if self.opening => {
                self.opening = false;
                self.offer = None;
                self.next = self.next.min(now + FIRST_PAUSE);
                None
            }
            _ => None,
        }
    }

    /// The server answered in a version that we do not speak.
    pub(super) fn handle_version(&mut self, now: Time, version: u8) {
        self.refuse(now, SessionRefused::Version { oldest: version, newest: version });
    }

    fn refuse(&mut self, now: Time, refused: SessionRefused) {
        self.refused = Some(refused);
        self.offer = None;
        self.opening = false;
        self.next = now + REFUSED_PAUSE;
    }

    fn consider(&mut self, now: Time, offer: Offer) {
        let larger = self.offer.is_none_or(|best| offer.segments.size() > best.segments.size());
        if self.opening || offer.welcome.cookie != self.cookie || !larger {
            return;
        }
        self.refused = None;
        if self.offer.is_none() {
            self.next = now + SETTLE;
        }
        if offer.segments.size() == SEGMENT_SIZES[0] {
            self.next = now;
        }
        self.offer = Some(offer);
    }

    /// Sends what is due; whether anything was.
    pub(super) fn transmit<W: Wire>(
        &mut self,
        now: Time,
        caller: Caller,
        wire: &mut W,
        to: W::Peer,
    ) -> bool {
        if now < self.next {
            return false;
        }
        match self.offer {
            None => self.send_hellos(caller, wire, to),
            Some(offer) => {
                self.opening = true;
                let open = Open { nonce: offer.welcome.nonce, segments: offer.segments }.encode();
                let header = Header { session: offer.session, ..Header::default() };
                wire.send(to, &header.encode(Kind::Open, &open), &open);
            }
        }
        self.next = now + self.pause;
        let most = if now - self.begun < EAGER { EAGER_PAUSE } else { LONGEST_PAUSE };
        self.pause = (self.pause * 2).min(most);
        true
    }

    fn send_hellos<W: Wire>(&self, caller: Caller, wire: &mut W, to: W::Peer) {
        let hello = Hello {
            versions: (OLDEST_VERSION, VERSION),
            channel: self.channel,
            front: caller.front,
            incarnation: caller.incarnation,
            cookie: self.cookie,
        };
        let mut padded = [0; MAX_PAYLOAD];
        for size in SEGMENT_SIZES {
            let body = &mut padded[..size];
            hello.encode(body);
            let header: [u8; HEADER_BYTES] = Header::default().encode(Kind::Hello, body);
            wire.send(to, &header, body);
            // By itself: one that is too large must not take another with it.
            wire.flush();
        }
    }
}
