//! The door: who may have a session. What a stranger says costs one place in
//! a short list, and only until somebody else asks.

use std::collections::VecDeque;

use rand::RngCore;
use rand::rngs::StdRng;

use crate::attach::FrontId;
use crate::hello::{Hello, Open};
use crate::segment::Segmentation;

/// Offers that wait for their open.
const MAX_OFFERS: usize = 256;

/// A session offered to a front and not yet opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer<P> {
    pub(super) peer: P,
    pub(super) front: FrontId,
    pub(super) incarnation: u64,
    pub(super) channel: u16,
    cookie: u64,
    pub(super) session: u32,
    pub(super) nonce: u64,
}

#[derive(Debug)]
pub(super) struct Door<P> {
    offers: VecDeque<Offer<P>>,
    random: StdRng,
}

impl<P: Copy + Eq> Door<P> {
    pub(super) fn new(random: StdRng) -> Self {
        Self { offers: VecDeque::with_capacity(MAX_OFFERS), random }
    }

    /// The offer for a hello: the same one for the same greeting, so that its
    /// differently padded copies all speak of one session.
    pub(super) fn offer(&mut self, peer: P, hello: &Hello) -> Offer<P> {
        let same = |offer: &&Offer<P>| {
            offer.peer == peer
                && offer.front == hello.front
                && offer.channel == hello.channel
                && offer.cookie == hello.cookie
        };
        if let Some(offer) = self.offers.iter().find(same) {
            return *offer;
        }
        self.offers.retain(|offer| (offer.front, offer.channel) != (hello.front, hello.channel));
        if self.offers.len() == MAX_OFFERS {
            self.offers.pop_front();
        }
        let offer = Offer {
            peer,
            front: hello.front,
            incarnation: hello.incarnation,
            channel: hello.channel,
            cookie: hello.cookie,
            // Zero is what a front without a session says.
            session: self.random.next_u32().max(1),
            nonce: self.random.next_u64(),
        };
        self.offers.push_back(offer);
        offer
    }

    /// The offer that an open takes up, once.
    pub(super) fn open(
        &mut self,
        peer: P,
        session: u32,
        open: &Open,
    ) -> Option<(Offer<P>, Segmentation)> {
        let place = self.offers.iter().position(|offer| {
            offer.peer == peer && offer.session == session && offer.nonce == open.nonce
        })?;
        Some((self.offers.remove(place)?, open.segments))
    }
}
