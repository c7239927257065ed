//! The handshake's bodies where sessions are sealed: what a hello and a welcome
//! carry then, and the token by which a server tells those who hear it from
//! those who only shout.

use ring::{digest, hmac};

use crate::attach::FrontId;
use crate::frame::{VERSION, u16_at, u32_at, u64_at};
use crate::hello::{SEALED, Welcome};
use crate::keys::PublicKey;
use crate::noise::{FIRST_BYTES, FIRST_PAYLOAD, SECOND_BYTES, SECOND_PAYLOAD};

/// Bytes of a mark and of a token.
pub(crate) const MARK_BYTES: usize = 16;

/// What a hello says in the open before its message; the prologue binds it.
pub(crate) const PREFACE_BYTES: usize = 16;

const MARK_AT: usize = PREFACE_BYTES + FIRST_BYTES;
const TOKEN_AT: usize = MARK_AT + MARK_BYTES;

const PROLOGUE_LABEL: &[u8; 9] = b"vRIO link";

/// The body of a sealed hello: `oldest u8 | newest u8 | channel u16 | 1 u8 |
/// zero 3 | cookie u64 | first message 120 | mark 16 | token 16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Introduction {
    /// The versions that the front speaks.
    pub(crate) versions: (u8, u8),
    /// As in a hello in the clear.
    pub(crate) channel: u16,
    /// Tells this greeting from earlier ones.
    pub(crate) cookie: u64,
    /// The handshake's first message.
    pub(crate) message: [u8; FIRST_BYTES],
    /// Shows for little work that the front knows the server's key, and which.
    pub(crate) mark: [u8; MARK_BYTES],
    /// What the server has sent to the front's address, or zeroes.
    pub(crate) token: [u8; MARK_BYTES],
}

/// What the first message hides: `front 16 | incarnation u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) front: FrontId,
    pub(crate) incarnation: u64,
}

/// The body of a sealed welcome: `cookie u64 | second message 72`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reception {
    pub(crate) cookie: u64,
    pub(crate) message: [u8; SECOND_BYTES],
}

/// The body of a retry: `cookie u64 | token 16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retry {
    pub(crate) cookie: u64,
    pub(crate) token: [u8; MARK_BYTES],
}

/// Makes and knows the marks for one server's key.
#[derive(Debug)]
pub(crate) struct Marker(hmac::Key);

impl Marker {
    pub(crate) fn new(server: &PublicKey) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"vrio mark");
        context.update(&server.0);
        Self(hmac::Key::new(hmac::HMAC_SHA256, context.finish().as_ref()))
    }

    fn mark(&self, preface: &[u8; PREFACE_BYTES], message: &[u8; FIRST_BYTES]) -> [u8; MARK_BYTES] {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(preface);
        context.update(message);
        shortened(&context.sign())
    }
}

/// The first bytes of a longer sum.
pub(crate) fn shortened(tag: &hmac::Tag) -> [u8; MARK_BYTES] {
    std::array::from_fn(|at| tag.as_ref()[at])
}

/// What is said in the open, as both ends mix it into their handshake.
pub(crate) fn prologue(
    preface: &[u8; PREFACE_BYTES],
) -> [u8; PROLOGUE_LABEL.len() + 1 + PREFACE_BYTES] {
    let mut bytes = [0; PROLOGUE_LABEL.len() + 1 + PREFACE_BYTES];
    let (label, rest) = bytes.split_at_mut(PROLOGUE_LABEL.len());
    label.copy_from_slice(PROLOGUE_LABEL);
    rest[0] = VERSION;
    rest[1..].copy_from_slice(preface);
    bytes
}

/// What a sealed hello says in the open.
pub(crate) fn preface(versions: (u8, u8), channel: u16, cookie: u64) -> [u8; PREFACE_BYTES] {
    let mut bytes = [0; PREFACE_BYTES];
    bytes[0] = versions.0;
    bytes[1] = versions.1;
    bytes[2..4].copy_from_slice(&channel.to_le_bytes());
    bytes[4] = SEALED;
    bytes[8..].copy_from_slice(&cookie.to_le_bytes());
    bytes
}

impl Introduction {
    pub(crate) const BYTES: usize = TOKEN_AT + MARK_BYTES;

    pub(crate) fn preface(&self) -> [u8; PREFACE_BYTES] {
        preface(self.versions, self.channel, self.cookie)
    }

    /// With the mark for a server.
    pub(crate) fn marked(mut self, marker: &Marker) -> Self {
        self.mark = marker.mark(&self.preface(), &self.message);
        self
    }

    /// Whether it is meant for the server of this mark.
    pub(crate) fn is_for(&self, marker: &Marker) -> bool {
        self.mark == marker.mark(&self.preface(), &self.message)
    }

    pub(crate) fn encode(&self, into: &mut [u8]) {
        into.fill(0);
        into[..PREFACE_BYTES].copy_from_slice(&self.preface());
        into[PREFACE_BYTES..MARK_AT].copy_from_slice(&self.message);
        into[MARK_AT..TOKEN_AT].copy_from_slice(&self.mark);
        into[TOKEN_AT..Self::BYTES].copy_from_slice(&self.token);
    }

    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let body: &[u8; Self::BYTES] = body.first_chunk()?;
        if body[4..8] != [SEALED, 0, 0, 0] {
            return None;
        }
        Some(Self {
            versions: (body[0], body[1]),
            channel: u16_at(body, 2),
            cookie: u64_at(body, 8),
            message: *body[PREFACE_BYTES..].first_chunk()?,
            mark: *body[MARK_AT..].first_chunk()?,
            token: *body[TOKEN_AT..].first_chunk()?,
        })
    }
}

impl Card {
    pub(crate) fn encode(&self) -> [u8; FIRST_PAYLOAD] {
        let mut bytes = [0; FIRST_PAYLOAD];
        bytes[..16].copy_from_slice(&self.front.0);
        bytes[16..].copy_from_slice(&self.incarnation.to_le_bytes());
        bytes
    }

    pub(crate) fn parse(bytes: &[u8; FIRST_PAYLOAD]) -> Self {
        let front = FrontId(std::array::from_fn(|at| bytes[at]));
        Self { front, incarnation: u64_at(bytes, 16) }
    }
}

impl Reception {
    pub(crate) const BYTES: usize = 8 + SECOND_BYTES;

    pub(crate) fn encode(&self, into: &mut [u8]) {
        into.fill(0);
        into[..8].copy_from_slice(&self.cookie.to_le_bytes());
        into[8..Self::BYTES].copy_from_slice(&self.message);
    }

    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let body: &[u8; Self::BYTES] = body.first_chunk()?;
        Some(Self { cookie: u64_at(body, 0), message: *body[8..].first_chunk()? })
    }
}

/// What the second message hides: `session u32 | window u32 | nonce u64 | slots
/// u16 | credit u16 | zero 4`.
pub(crate) fn encode_offer(session: u32, welcome: &Welcome) -> [u8; SECOND_PAYLOAD] {
    let mut bytes = [0; SECOND_PAYLOAD];
    bytes[0..4].copy_from_slice(&session.to_le_bytes());
    bytes[4..8].copy_from_slice(&welcome.window.to_le_bytes());
    bytes[8..16].copy_from_slice(&welcome.nonce.to_le_bytes());
    bytes[16..18].copy_from_slice(&welcome.slots.to_le_bytes());
    bytes[18..20].copy_from_slice(&welcome.credit.to_le_bytes());
    bytes
}

/// The session and its welcome.
pub(crate) fn parse_offer(bytes: &[u8; SECOND_PAYLOAD], cookie: u64) -> (u32, Welcome) {
    let welcome = Welcome {
        cookie,
        nonce: u64_at(bytes, 8),
        window: u32_at(bytes, 4),
        slots: u16_at(bytes, 16),
        credit: u16_at(bytes, 18),
    };
    (u32_at(bytes, 0), welcome)
}

impl Retry {
    pub(crate) const BYTES: usize = 8 + MARK_BYTES;

    pub(crate) fn encode(&self) -> [u8; Self::BYTES] {
        let mut body = [0; Self::BYTES];
        body[..8].copy_from_slice(&self.cookie.to_le_bytes());
        body[8..].copy_from_slice(&self.token);
        body
    }

    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let body: &[u8; Self::BYTES] = body.first_chunk()?;
        Some(Self { cookie: u64_at(body, 0), token: *body[8..].first_chunk()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_survive_the_wire() {
        let marker = Marker::new(&PublicKey([1; 32]));
        let hello = Introduction {
            versions: (1, 2),
            channel: 513,
            cookie: 1 << 60,
            message: std::array::from_fn(|at| at as u8),
            mark: [0; MARK_BYTES],
            token: [7; MARK_BYTES],
        }
        .marked(&marker);
        let mut bytes = [0xff; 1024];
        hello.encode(&mut bytes);
        assert_eq!(Introduction::parse(&bytes), Some(hello));
        assert!(hello.is_for(&marker));
        assert!(!hello.is_for(&Marker::new(&PublicKey([2; 32]))));
        assert!(!Introduction { cookie: 5, ..hello }.is_for(&marker), "the mark covers it all");
        bytes[4] = 0;
        assert_eq!(Introduction::parse(&bytes), None, "it is in the clear");

        let who = Card { front: FrontId([3; 16]), incarnation: 4 };
        assert_eq!(Card::parse(&who.encode()), who);
        let answer = Reception { cookie: 5, message: [6; SECOND_BYTES] };
        answer.encode(&mut bytes);
        assert_eq!(Reception::parse(&bytes), Some(answer));
        let welcome = Welcome { cookie: 5, nonce: 6, window: 7, slots: 8, credit: 9 };
        assert_eq!(parse_offer(&encode_offer(10, &welcome), 5), (10, welcome));
        let retry = Retry { cookie: 5, token: [6; MARK_BYTES] };
        assert_eq!(Retry::parse(&retry.encode()), Some(retry));
    }
}
