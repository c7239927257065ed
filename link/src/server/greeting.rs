//! Hellos are answered. Until an open has come nothing changes but the door's
//! short list, and that only by somebody whom the host admits.

use block_core::Time;
use rand::RngCore;
use rand::rngs::StdRng;

use super::door::{Greeting, Offer};
use super::gate::Verdict;
use super::{Note, SILENCE, Server, earlier};
use crate::frame::{Frame, OLDEST_VERSION, VERSION};
use crate::hello::{Hello, SessionRefused, Welcome};
use crate::host::Host;
use crate::introduction::{Card, Introduction, Marker, Reception, Retry, encode_offer, prologue};
use crate::keys::SecretKey;
use crate::noise::Responder;
use crate::seal::Guard;
use crate::security::{Caller, ServerSecurity};
use crate::segment::SEGMENT_SIZES;
use crate::wire::Peer;

/// What a server knows of itself.
#[derive(Debug)]
pub(super) struct Identity {
    keys: Vec<(SecretKey, Marker)>,
    clear_allowed: bool,
    entropy: StdRng,
}

impl Identity {
    /// With the randomness that the security brought, seeded.
    pub(super) fn new(security: ServerSecurity, entropy: StdRng) -> Self {
        let with_marker = |secret: SecretKey| {
            let marker = Marker::new(&secret.public());
            (secret, marker)
        };
        Self {
            keys: security.secrets.into_iter().map(with_marker).collect(),
            clear_allowed: security.clear_allowed,
            entropy,
        }
    }

    fn seed(&mut self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.entropy.fill_bytes(&mut seed);
        seed
    }
}

impl<P: Peer> Server<P> {
    pub(super) fn handle_hello(
        &mut self,
        now: Time,
        from: P,
        frame: &Frame<'_>,
        host: &mut impl Host,
    ) {
        // Only padded hellos are answered: an answer is never longer than what
        // asked for it, so nobody can aim it at others.
        let size = frame.payload.len();
        if !SEGMENT_SIZES.contains(&size) {
            return;
        }
        if let Some(said) = Introduction::parse(frame.payload) {
            if self.speaks(from, said.versions) {
                self.handle_introduction(now, from, &said, size, host);
            }
        } else if let Some(hello) = Hello::parse(frame.payload)
            && self.speaks(from, hello.versions)
        {
            self.handle_clear_hello(now, from, &hello, size, host);
        }
    }

    fn speaks(&mut self, from: P, (oldest, newest): (u8, u8)) -> bool {
        let speaks = oldest <= VERSION && newest >= OLDEST_VERSION;
        if !speaks {
            self.refuse_version(from);
        }
        speaks
    }

    pub(super) fn refuse_version(&mut self, to: P) {
        let refused = SessionRefused::Version { oldest: OLDEST_VERSION, newest: VERSION };
        self.note(to, Note::Refuse(refused, 0));
    }

    fn handle_clear_hello(
        &mut self,
        now: Time,
        from: P,
        hello: &Hello,
        size: usize,
        host: &mut impl Host,
    ) {
        let Hello { channel, front, incarnation, cookie, .. } = *hello;
        if !self.identity.clear_allowed {
            return self.note(from, Note::Refuse(SessionRefused::MustSeal, cookie));
        }
        let caller = Caller { front, key: None };
        if let Err(why) = self.judge(now, &caller, incarnation, host) {
            return self.note(from, Note::Refuse(why, cookie));
        }
        let greeting = Greeting { peer: from, channel, cookie, of: front.0 };
        if self.door.answered(&greeting).is_none() {
            let (session, nonce) = (self.door.draw_session(), self.door.draw_nonce());
            let (guard, answer) = (Guard::CLEAR, None);
            self.door.offer(Offer { greeting, caller, incarnation, session, nonce, guard, answer });
        }
        self.answer(&greeting, size);
    }

    fn handle_introduction(
        &mut self,
        now: Time,
        from: P,
        said: &Introduction,
        size: usize,
        host: &mut impl Host,
    ) {
        let Introduction { channel, cookie, mark, .. } = *said;
        let greeting = Greeting { peer: from, channel, cookie, of: mark };
        if self.door.answered(&greeting).is_some() {
            return self.answer(&greeting, size);
        }
        let key = self.identity.keys.iter().position(|(_, marker)| said.is_for(marker));
        let Some(key) = key else {
            let is_clear = self.identity.keys.is_empty();
            let why = if is_clear { SessionRefused::MustBeClear } else { SessionRefused::OtherKey };
            return self.note(from, Note::Refuse(why, cookie));
        };
        match self.gate.judge(now, from, &said.token) {
            Verdict::Serve => {}
            Verdict::Retry(token) => return self.note(from, Note::Retry(Retry { cookie, token })),
            Verdict::Ignore => return,
        }
        let seed = self.identity.seed();
        let prologue = prologue(&said.preface());
        let read = Responder::read(&self.identity.keys[key].0, seed, &prologue, &said.message);
        let Some((responder, key, payload)) = read else { return };
        let Card { front, incarnation } = Card::parse(&payload);
        let caller = Caller { front, key: Some(key) };
        if let Err(why) = self.judge(now, &caller, incarnation, host) {
            self.door.refuse(greeting, why);
            return self.answer(&greeting, size);
        }
        let (session, nonce) = (self.door.draw_session(), self.door.draw_nonce());
        let offer = encode_offer(session, &self.welcome(cookie, nonce));
        let Some((answer, secrets)) = responder.answer(&offer) else { return };
        let (guard, answer) = (Guard::server(secrets), Some(answer));
        self.door.offer(Offer { greeting, caller, incarnation, session, nonce, guard, answer });
        self.answer(&greeting, size);
    }

    /// Whether a front may have a session.
    fn judge(
        &self,
        now: Time,
        caller: &Caller,
        incarnation: u64,
        host: &mut impl Host,
    ) -> Result<(), SessionRefused> {
        if !host.admits(caller) {
            return Err(SessionRefused::NotAuthorized);
        }
        let newest = self.live_sessions_of(caller).map(|(_, live)| live.incarnation()).max();
        match newest {
            Some(newest) if newest > incarnation => Err(SessionRefused::Stale),
            None if !self.has_room(now) => Err(SessionRefused::Full),
            _ => Ok(()),
        }
    }

    /// Whether there is a place for a session, or one whose front has long been
    /// silent.
    fn has_room(&self, now: Time) -> bool {
        let then = earlier(now, SILENCE);
        self.sessions.iter().any(|session| match session {
            None => true,
            Some(session) => then.is_some_and(|then| session.is_forsaken(then)),
        })
    }

    /// Says what the door knows about a greeting.
    fn answer(&mut self, greeting: &Greeting<P>, size: usize) {
        let cookie = greeting.cookie;
        let note = match self.door.answered(greeting) {
            None => return,
            Some(Err(why)) => Note::Refuse(why, cookie),
            Some(Ok(offer)) => match offer.answer {
                Some(message) => Note::Reception(Reception { cookie, message }, size),
                None => Note::Welcome(self.welcome(cookie, offer.nonce), offer.session, size),
            },
        };
        self.note(greeting.peer, note);
    }

    fn welcome(&self, cookie: u64, nonce: u64) -> Welcome {
        let super::ServerSettings { window, slots, .. } = self.settings;
        Welcome { cookie, nonce, window, slots, credit: slots }
    }
}
