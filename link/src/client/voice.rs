//! How a front speaks with one server, and what it asks it for where they speak
//! behind seals.

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use super::greeting::Caller;
use crate::hello::Welcome;
use crate::introduction::{
    Card, Introduction, MARK_BYTES, Marker, Reception, Retry, parse_offer, preface, prologue,
};
use crate::noise::{Initiator, SECOND_BYTES};
use crate::seal::Guard;
use crate::security::{Sealed, Security};

/// How often one greeting is begun once more with a token that the server sent.
/// One is enough; but the server may have a new secret by then, or a stranger
/// may have said it.
const MOST_RETRIES: u8 = 4;

/// How a front speaks with one server.
#[derive(Debug)]
pub(super) enum Voice {
    Clear,
    Sealed { sealed: Box<Sealed>, marker: Box<Marker>, random: Box<StdRng> },
}

/// A handshake that waits for its answer, or has it.
#[derive(Debug)]
pub(super) struct Asking {
    initiator: Initiator,
    said: Introduction,
    answer: Option<[u8; SECOND_BYTES]>,
    frames_per_key: u64,
    retries: u8,
}

impl Voice {
    /// `channel` tells this front's sessions apart: none of them may draw what
    /// another one has drawn.
    pub(super) fn new(security: Security, channel: u16) -> Self {
        match security {
            Security::Clear => Self::Clear,
            Security::Sealed(sealed) => {
                let mut seed = sealed.entropy;
                seed[..2].iter_mut().zip(channel.to_le_bytes()).for_each(|(one, two)| *one ^= two);
                Self::Sealed {
                    marker: Box::new(Marker::new(&sealed.server)),
                    random: Box::new(StdRng::from_seed(seed)),
                    sealed: Box::new(sealed),
                }
            }
        }
    }

    /// Whether both speak with the same server in the same way.
    pub(super) fn is(&self, security: &Security) -> bool {
        match (self, security) {
            (Self::Clear, Security::Clear) => true,
            (Self::Sealed { sealed, .. }, Security::Sealed(other)) => {
                sealed.server == other.server && sealed.secret.public() == other.secret.public()
            }
            _ => false,
        }
    }

    /// The same way of speaking, to another of the server's workers.
    pub(super) fn security(&self) -> Security {
        match self {
            Self::Clear => Security::Clear,
            Self::Sealed { sealed, .. } => Security::Sealed((**sealed).clone()),
        }
    }

    /// Begins a handshake; none in the clear.
    pub(super) fn ask(
        &mut self,
        versions: (u8, u8),
        channel: u16,
        cookie: u64,
        caller: Caller,
    ) -> Option<Asking> {
        let Self::Sealed { sealed, marker, random } = self else { return None };
        let mut seed = [0; 32];
        random.fill_bytes(&mut seed);
        let prologue = prologue(&preface(versions, channel, cookie));
        let card = Card { front: caller.front, incarnation: caller.incarnation }.encode();
        let (initiator, message) =
            Initiator::begin(&sealed.secret, &sealed.server, seed, &prologue, &card)
                .expect("a handshake takes any key but a point of small order");
        let mark = [0; MARK_BYTES];
        let said = Introduction { versions, channel, cookie, message, mark, token: mark };
        Some(Asking {
            initiator,
            said: said.marked(marker),
            answer: None,
            frames_per_key: sealed.frames_per_key,
            retries: 0,
        })
    }
}

impl Asking {
    /// The hello.
    pub(super) fn encode(&self, into: &mut [u8]) {
        self.said.encode(into);
    }

    /// Takes a token; whether the hello is to be said again with it.
    pub(super) fn retry(&mut self, retry: &Retry) -> bool {
        let takes = self.retries < MOST_RETRIES && retry.token != self.said.token;
        if takes {
            self.said.token = retry.token;
            self.retries += 1;
        }
        takes
    }

    /// Reads a welcome: `None` if it is not the server's, `Some(None)` if it is a
    /// copy of the one that was read.
    pub(super) fn read(&mut self, reception: &Reception) -> Option<Option<(u32, Welcome, Guard)>> {
        if let Some(answer) = &self.answer {
            return (*answer == reception.message).then_some(None);
        }
        let (offer, secrets) = self.initiator.finish(&reception.message)?;
        self.answer = Some(reception.message);
        let (session, welcome) = parse_offer(&offer, reception.cookie);
        Some(Some((session, welcome, Guard::front(secrets, self.frames_per_key))))
    }
}
