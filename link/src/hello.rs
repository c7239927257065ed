//! The handshake's bodies: how a session begins.
//!
//! ```text
//! front                                   server
//!   Hello, padded to 8192, 4096, 1368, 1024 ->      nothing changes
//!         <- Welcome, padded alike: session, nonce
//!   Open: the nonce, the largest size heard  ->     ends the front's old session
//!         <- Opened, when the old one's last request has ended
//! ```
//!
//! A padded frame may not be fragmented, so the largest that comes back shows
//! the segment size that the path carries in both directions.
//!
//! These are the bodies in the clear. Where sessions are sealed, hello and
//! welcome carry a handshake (`introduction.rs`), the open and all that follows
//! is sealed, and the rest is as here.

use thiserror::Error;

use crate::attach::FrontId;
use crate::frame::{OLDEST_VERSION, VERSION, u16_at, u32_at, u64_at};
use crate::segment::Segmentation;

/// The option of a hello that asks for a sealed session.
pub(crate) const SEALED: u8 = 1;

/// The body of a hello:
/// `oldest u8 | newest u8 | channel u16 | 0 u8 | zero 3 | front 16 | incarnation
/// u64 | cookie u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The versions that the front speaks.
    pub versions: (u8, u8),
    /// Tells sessions of one front with one worker apart: it may reach the
    /// worker by two addresses.
    pub channel: u16,
    /// Who it is.
    pub front: FrontId,
    /// Rises each time the front starts.
    pub incarnation: u64,
    /// Tells this greeting from earlier ones.
    pub cookie: u64,
}

/// The body of a welcome:
/// `cookie u64 | nonce u64 | window u32 | slots u16 | credit u16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The hello's.
    pub cookie: u64,
    /// Echoed by the open, which shows that the front hears the server.
    pub nonce: u64,
    /// Bytes that the server's socket holds for all fronts together.
    pub window: u32,
    /// How many slots the session has, slot 0 for attach and detach included.
    pub slots: u16,
    /// How many writes may be under way before the server has granted them.
    pub credit: u16,
}

/// The body of an open: `nonce u64 | segment size u32 | zero u32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// The welcome's.
    pub nonce: u64,
    /// How both ends cut data.
    pub segments: Segmentation,
}

/// Why a server makes no session. The body: `code u8 | oldest u8 | newest u8 |
/// zero 5 | cookie u64`. It is not sealed, so it is only a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SessionRefused {
    /// No version in common.
    #[error(
        "the server speaks versions {oldest} to {newest} of the link, this front {OLDEST_VERSION} \
         to {VERSION}; install the same release on both"
    )]
    Version {
        /// The oldest that the server speaks.
        oldest: u8,
        /// The newest that the server speaks.
        newest: u8,
    },
    /// All sessions are taken.
    #[error("the server has no room for another front")]
    Full,
    /// A later start of this front has a session.
    #[error("a newer start of this front is connected; is its state directory used twice?")]
    Stale,
    /// The front's key is not authorized for anything.
    #[error(
        "the server does not know this front's key; authorize it there with \
         `vrio server authorize`"
    )]
    NotAuthorized,
    /// The front asked for a session in the clear, and the server gives none.
    #[error(
        "the server speaks only with fronts that it knows by their keys, and this front asks for \
         a session in the clear; give it the server's key"
    )]
    MustSeal,
    /// The front asked for a sealed session, and the server has no key.
    #[error(
        "the server has no key and speaks in the clear only; make one there with \
         `vrio key generate`"
    )]
    MustBeClear,
    /// The server has another key than the front expects.
    #[error(
        "the server has another key than this front knows: either it was changed there, or \
         somebody else answers in its place; ask whoever runs the server for its key"
    )]
    OtherKey,
}

impl Hello {
    pub(crate) const BYTES: usize = 40;

    /// The body, padded with zeroes to `size` bytes in `into`.
    pub(crate) fn encode(&self, into: &mut [u8]) {
        into.fill(0);
        into[0] = self.versions.0;
        into[1] = self.versions.1;
        into[2..4].copy_from_slice(&self.channel.to_le_bytes());
        into[8..24].copy_from_slice(&self.front.0);
        into[24..32].copy_from_slice(&self.incarnation.to_le_bytes());
        into[32..40].copy_from_slice(&self.cookie.to_le_bytes());
    }

    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let body: &[u8; Self::BYTES] = body.first_chunk()?;
        if body[4] != 0 {
            return None;
        }
        let front = FrontId(*body[8..].first_chunk()?);
        let (incarnation, cookie) = (u64_at(body, 24), u64_at(body, 32));
        let (versions, channel) = ((body[0], body[1]), u16_at(body, 2));
        Some(Self { versions, channel, front, incarnation, cookie })
    }
}

impl Welcome {
    pub(crate) const BYTES: usize = 24;

    pub(crate) fn encode(&self, into: &mut [u8]) {
        into.fill(0);
        into[0..8].copy_from_slice(&self.cookie.to_le_bytes());
        into[8..16].copy_from_slice(&self.nonce.to_le_bytes());
        into[16..20].copy_from_slice(&self.window.to_le_bytes());
        into[20..22].copy_from_slice(&self.slots.to_le_bytes());
        into[22..24].copy_from_slice(&self.credit.to_le_bytes());
    }

    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let body: &[u8; Self::BYTES] = body.first_chunk()?;
        Some(Self {
            cookie: u64_at(body, 0),
            nonce: u64_at(body, 8),
            window: u32_at(body, 16),
            slots: u16_at(body, 20),
            credit: u16_at(body, 22),
        })
    }
}

impl Open {
    pub(crate) const BYTES: usize = 16;

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut body = [0; Self::BYTES];
        body[0..8].copy_from_slice(&self.nonce.to_le_bytes());
        body[8..12].copy_from_slice(&(self.segments.size() as u32).to_le_bytes());
        body
    }

    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let body: &[u8; Self::BYTES] = body.first_chunk()?;
        let segments = Segmentation::new(u32_at(body, 8) as usize)?;
        Some(Self { nonce: u64_at(body, 0), segments })
    }
}

impl SessionRefused {
    pub(crate) const BYTES: usize = 16;

    /// The body, for a hello with that cookie.
    pub(crate) fn encode(self, cookie: u64) -> [u8; Self::BYTES] {
        let mut body = [0; Self::BYTES];
        body[..3].copy_from_slice(&self.code());
        body[8..].copy_from_slice(&cookie.to_le_bytes());
        body
    }

    const fn code(self) -> [u8; 3] {
        match self {
            Self::Version { oldest, newest } => [1, oldest, newest],
            Self::Full => [2, 0, 0],
            Self::Stale => [3, 0, 0],
            Self::NotAuthorized => [4, 0, 0],
            Self::MustSeal => [5, 0, 0],
            Self::MustBeClear => [6, 0, 0],
            Self::OtherKey => [7, 0, 0],
        }
    }

    /// The refusal, and the cookie of the hello that it is about; none where
    /// the server could not read it.
    pub(crate) fn parse(body: &[u8]) -> Option<(Self, Option<u64>)> {
        let body: &[u8; Self::BYTES] = body.first_chunk()?;
        let refused = Self::of_code([body[0], body[1], body[2]])?;
        let is_read = !matches!(refused, Self::Version { .. });
        Some((refused, is_read.then(|| u64_at(body, 8))))
    }

    const fn of_code(code: [u8; 3]) -> Option<Self> {
        match code {
            [1, oldest, newest] => Some(Self::Version { oldest, newest }),
            [2, ..] => Some(Self::Full),
            [3, ..] => Some(Self::Stale),
            [4, ..] => Some(Self::NotAuthorized),
            [5, ..] => Some(Self::MustSeal),
            [6, ..] => Some(Self::MustBeClear),
            [7, ..] => Some(Self::OtherKey),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_survive_the_wire() {
        let hello = Hello {
            versions: (1, 2),
            channel: 513,
            front: FrontId([3; 16]),
            incarnation: 4,
            cookie: 1 << 60,
        };
        let mut bytes = [0xff; 1024];
        hello.encode(&mut bytes);
        assert_eq!(Hello::parse(&bytes), Some(hello));
        assert_eq!(Hello::parse(&bytes[..39]), None);

        let welcome = Welcome { cookie: 5, nonce: 6, window: 7, slots: 8, credit: 9 };
        welcome.encode(&mut bytes);
        assert_eq!(Welcome::parse(&bytes), Some(welcome));

        let open = Open { nonce: 10, segments: Segmentation::new(1368).expect("known") };
        assert_eq!(Open::parse(&open.encode()), Some(open));
        let mut odd = open.encode();
        odd[8] = 1;
        assert_eq!(Open::parse(&odd), None, "only known segment sizes");

        for refused in [
            SessionRefused::Version { oldest: 3, newest: 4 },
            SessionRefused::Full,
            SessionRefused::Stale,
            SessionRefused::NotAuthorized,
            SessionRefused::MustSeal,
            SessionRefused::MustBeClear,
            SessionRefused::OtherKey,
        ] {
            let (again, cookie) = SessionRefused::parse(&refused.encode(5)).expect("a refusal");
            assert_eq!(again, refused);
            assert_eq!(cookie.is_none(), matches!(refused, SessionRefused::Version { .. }));
        }
    }
}
