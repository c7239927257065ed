//! How the frames of a session are known to be its own: by a checksum, which
//! anybody can make, or by seals, which only its two ends can.

mod chain;
mod opener;
mod sealer;
mod window;

use std::fmt;

use block_core::Time;

use crate::frame::{Arrived, Frame, HEADER_BYTES, Header, Kind};
use crate::noise::Secrets;
use crate::wire::Wire;
use chain::Chain;
use opener::Opener;
use sealer::Sealer;

/// One end of a session's guard.
#[derive(Debug)]
pub(crate) enum Guard {
    /// Frames carry CRC32C. What it counts are the frames sent.
    Clear(u64),
    /// Frames are sealed.
    Sealed(Box<Seals>),
}

/// Both directions, as one end has them.
///
/// The front decides when keys change, and the server follows when it sees the
/// front's first frame of the new phase. The front goes on to another phase only
/// when it has seen the server follow: so neither is ever further ahead of what
/// the other knows than one phase, however many frames are lost.
pub(crate) struct Seals {
    sealer: Sealer,
    opener: Opener,
    role: Role,
}

enum Role {
    /// Changes keys after so many frames of one direction.
    Front {
        frames_per_key: u64,
    },
    Server,
}

impl Guard {
    pub(crate) const CLEAR: Self = Self::Clear(0);

    /// The front's end.
    pub(crate) fn front(secrets: Secrets, frames_per_key: u64) -> Self {
        let (sends, receives) = (Chain::new(secrets.to_server), Chain::new(secrets.to_front));
        Self::new(sends, &receives, Role::Front { frames_per_key })
    }

    /// The server's end.
    pub(crate) fn server(secrets: Secrets) -> Self {
        let (sends, receives) = (Chain::new(secrets.to_front), Chain::new(secrets.to_server));
        Self::new(sends, &receives, Role::Server)
    }

    fn new(sends: Chain, receives: &Chain, role: Role) -> Self {
        let (sealer, opener) = (Sealer::new(sends), Opener::new(receives));
        Self::Sealed(Box::new(Seals { sealer, opener, role }))
    }

    pub(crate) const fn is_sealed(&self) -> bool {
        matches!(self, Self::Sealed(_))
    }

    /// Sends a frame under the next counter. A key that is used up sends
    /// nothing, and the session dies of silence.
    #[inline(always)] // So that the header is put together where it is sent from.
    pub(crate) fn send<W: Wire>(
        &mut self,
        wire: &mut W,
        to: &W::Peer,
        header: &Header,
        kind: Kind,
        payload: &[u8],
    ) {
        match self {
            Self::Clear(sent) => {
                *sent += 1;
                let mut head = [0; HEADER_BYTES];
                Header { counter: *sent, ..*header }.write(kind, payload, &mut head);
                wire.send(to, &head, payload);
            }
            Self::Sealed(seals) => seals.send(wire, to, *header, kind, payload),
        }
    }

    /// The frame, if it is one of this session.
    #[inline]
    pub(crate) fn open<'a>(&mut self, now: Time, mut arrived: Arrived<'a>) -> Option<Frame<'a>> {
        match self {
            Self::Clear(_) => arrived.in_the_clear(),
            Self::Sealed(seals) => {
                seals.opener.open(now, arrived.lend())?;
                seals.follow();
                Some(arrived.opened())
            }
        }
    }
}

impl Seals {
    fn send<W: Wire>(
        &mut self,
        wire: &mut W,
        to: &W::Peer,
        header: Header,
        kind: Kind,
        payload: &[u8],
    ) {
        if let Role::Front { frames_per_key } = self.role
            && self.sealer.phase() == self.opener.phase()
            && self.sealer.sealed().max(self.opener.passed()) >= frames_per_key
        {
            self.sealer.advance();
        }
        if let Some((header, payload)) = self.sealer.seal(&header, kind, payload) {
            wire.send(to, header, payload);
        }
    }

    fn follow(&mut self) {
        if let Role::Server = self.role
            && self.opener.phase() > self.sealer.phase()
        {
            self.sealer.advance();
        }
    }
}

impl fmt::Debug for Seals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seals").field("phase", &self.sealer.phase()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
