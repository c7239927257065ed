//! The door: who may have a session. What a stranger says costs one place in
//! a short list, and only until somebody else asks.

use std::collections::VecDeque;

use block_core::Time;
use rand::RngCore;
use rand::rngs::StdRng;

use crate::frame::{Arrived, Frame};
use crate::hello::{Open, SessionRefused};
use crate::noise::SECOND_BYTES;
use crate::seal::Guard;
use crate::security::Caller;
use crate::segment::Segmentation;

/// Offers that wait for their open.
const MAX_OFFERS: usize = 256;

/// Refusals that are remembered, so that the copies of a hello are not read
/// again.
const MAX_REFUSALS: usize = 32;

/// What tells one greeting from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting<P> {
    pub(super) peer: P,
    pub(super) channel: u16,
    pub(super) cookie: u64,
    /// In the clear, who says so; else the mark of its message.
    pub(super) of: [u8; 16],
}

/// A session offered to a front and not yet opened.
#[derive(Debug)]
pub(super) struct Offer<P> {
    pub(super) greeting: Greeting<P>,
    pub(super) caller: Caller,
    pub(super) incarnation: u64,
    pub(super) session: u32,
    pub(super) nonce: u64,
    pub(super) guard: Guard,
    /// The handshake's second message, if the session is sealed.
    pub(super) answer: Option<[u8; SECOND_BYTES]>,
}

#[derive(Debug)]
pub(super) struct Door<P> {
    offers: VecDeque<Offer<P>>,
    refusals: VecDeque<(Greeting<P>, SessionRefused)>,
    random: StdRng,
}

impl<P: Copy + Eq> Door<P> {
    pub(super) fn new(random: StdRng) -> Self {
        Self {
            offers: VecDeque::with_capacity(MAX_OFFERS),
            refusals: VecDeque::with_capacity(MAX_REFUSALS),
            random,
        }
    }

    /// What a greeting was answered: the same for each of its differently
    /// padded copies, so that they all speak of one session.
    pub(super) fn answered(
        &self,
        greeting: &Greeting<P>,
    ) -> Option<Result<&Offer<P>, SessionRefused>> {
        if let Some(offer) = self.offers.iter().find(|offer| offer.greeting == *greeting) {
            return Some(Ok(offer));
        }
        let refused = self.refusals.iter().find(|(refused, _)| refused == greeting);
        refused.map(|(_, why)| Err(*why))
    }

    /// A number for a session. Zero is what a front without one says.
    pub(super) fn draw_session(&mut self) -> u32 {
        self.random.next_u32().max(1)
    }

    pub(super) fn draw_nonce(&mut self) -> u64 {
        self.random.next_u64()
    }

    /// Keeps an offer until its front takes it up. In the clear a front has one
    /// for each channel; where its key is known a copy of an old hello, which
    /// anybody can send, must not push out the one that it waits for.
    pub(super) fn offer(&mut self, offer: Offer<P>) {
        if offer.caller.key.is_none() {
            let (caller, channel) = (offer.caller, offer.greeting.channel);
            self.offers.retain(|old| (old.caller, old.greeting.channel) != (caller, channel));
        }
        if self.offers.len() == MAX_OFFERS {
            self.offers.pop_front();
        }
        self.offers.push_back(offer);
    }

    pub(super) fn refuse(&mut self, greeting: Greeting<P>, why: SessionRefused) {
        if self.refusals.len() == MAX_REFUSALS {
            self.refusals.pop_front();
        }
        self.refusals.push_back((greeting, why));
    }

    /// Forgets what was offered to some.
    pub(super) fn withdraw(&mut self, mut from: impl FnMut(&Caller) -> bool) {
        self.offers.retain(|offer| !from(&offer.caller));
        self.refusals.clear();
    }

    /// The offer that an open takes up, once. Only an open that the offer's
    /// front has made does.
    pub(super) fn open(
        &mut self,
        now: Time,
        peer: P,
        arrived: Arrived<'_>,
    ) -> Option<(Offer<P>, Segmentation)> {
        let session = arrived.session();
        let named = |offer: &Offer<P>| offer.greeting.peer == peer && offer.session == session;
        let place = self.offers.iter().position(named)?;
        let Frame { payload, .. } = self.offers[place].guard.open(now, arrived)?;
        let open = Open::parse(payload)?;
        if self.offers[place].nonce != open.nonce {
            return None;
        }
        Some((self.offers.remove(place)?, open.segments))
    }
}
