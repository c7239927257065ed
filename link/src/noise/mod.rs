//! The handshake: `Noise_IK_25519_AESGCM_BLAKE2s`, and what its library takes.
//!
//! The front knows the server's key beforehand; its own key goes hidden in the
//! first message. What both ends have said in the open before (the prologue)
//! must be the same at both, or the messages do not open.

mod primitives;

use std::fmt;

use snow::{Builder, Error, HandshakeState};
use zeroize::{Zeroize, Zeroizing};

use crate::keys::{KEY_BYTES, PublicKey, SecretKey};
use primitives::Primitives;

const PATTERN: &str = "Noise_IK_25519_AESGCM_BLAKE2s";

/// Bytes of an AES-256-GCM tag.
pub(crate) const TAG_BYTES: usize = 16;

/// What the front hides in its first message.
pub(crate) const FIRST_PAYLOAD: usize = 24;

/// The first message: a key of this session, the front's key and the payload,
/// both sealed.
pub(crate) const FIRST_BYTES: usize = KEY_BYTES + KEY_BYTES + TAG_BYTES + FIRST_PAYLOAD + TAG_BYTES;

/// What the server hides in its answer.
pub(crate) const SECOND_PAYLOAD: usize = 24;

/// The answer: a key of this session and the payload, sealed.
pub(crate) const SECOND_BYTES: usize = KEY_BYTES + SECOND_PAYLOAD + TAG_BYTES;

/// One secret for each direction, which both ends have and nobody else.
pub(crate) struct Secrets {
    pub(crate) to_server: Zeroizing<[u8; KEY_BYTES]>,
    pub(crate) to_front: Zeroizing<[u8; KEY_BYTES]>,
}

/// The front's side, which waits for the answer.
pub(crate) struct Initiator(HandshakeState);

/// The server's side, which has read the first message.
pub(crate) struct Responder(HandshakeState);

impl Initiator {
    /// Begins a handshake with the server of this key; the first message too.
    /// `seed` is used for nothing else.
    pub(crate) fn begin(
        secret: &SecretKey,
        server: &PublicKey,
        seed: [u8; 32],
        prologue: &[u8],
        payload: &[u8; FIRST_PAYLOAD],
    ) -> Result<(Self, [u8; FIRST_BYTES]), Error> {
        let mut state =
            builder(secret, seed, prologue)?.remote_public_key(&server.0)?.build_initiator()?;
        let mut message = [0; FIRST_BYTES];
        state.write_message(payload, &mut message)?;
        Ok((Self(state), message))
    }

    /// Reads the answer; `None` if it is not one to this handshake, which then
    /// still waits.
    pub(crate) fn finish(
        &mut self,
        answer: &[u8; SECOND_BYTES],
    ) -> Option<([u8; SECOND_PAYLOAD], Secrets)> {
        let mut payload = [0; SECOND_PAYLOAD];
        if self.0.is_handshake_finished() {
            return None;
        }
        self.0.read_message(answer, &mut payload).ok()?;
        Some((payload, split(&mut self.0)))
    }
}

impl Responder {
    /// Reads a first message; who has sent it, and what it hides. Neither the
    /// message nor the prologue can be of anybody else; but it may be a copy.
    pub(crate) fn read(
        secret: &SecretKey,
        seed: [u8; 32],
        prologue: &[u8],
        message: &[u8; FIRST_BYTES],
    ) -> Option<(Self, PublicKey, [u8; FIRST_PAYLOAD])> {
        let mut state = builder(secret, seed, prologue).ok()?.build_responder().ok()?;
        let mut payload = [0; FIRST_PAYLOAD];
        state.read_message(message, &mut payload).ok()?;
        let key = PublicKey(state.get_remote_static()?.try_into().ok()?);
        Some((Self(state), key, payload))
    }

    /// Answers it.
    pub(crate) fn answer(
        mut self,
        payload: &[u8; SECOND_PAYLOAD],
    ) -> Option<([u8; SECOND_BYTES], Secrets)> {
        let mut message = [0; SECOND_BYTES];
        self.0.write_message(payload, &mut message).ok()?;
        Some((message, split(&mut self.0)))
    }
}

fn builder<'a>(
    secret: &'a SecretKey,
    seed: [u8; 32],
    prologue: &'a [u8],
) -> Result<Builder<'a>, Error> {
    Builder::with_resolver(PATTERN.parse()?, Box::new(Primitives::new(seed)))
        .local_private_key(secret.bytes())?
        .prologue(prologue)
}

fn split(state: &mut HandshakeState) -> Secrets {
    let (mut to_server, mut to_front) = state.dangerously_get_raw_split();
    let secrets =
        Secrets { to_server: Zeroizing::new(to_server), to_front: Zeroizing::new(to_front) };
    to_server.zeroize();
    to_front.zeroize();
    secrets
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Initiator")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_bytes(&[byte; KEY_BYTES])
    }

    #[test]
    fn both_ends_come_to_the_same_secrets_and_know_each_other() {
        let (front, server) = (key(1), key(2));
        let (mut asking, first) =
            Initiator::begin(&front, &server.public(), [3; 32], b"open", &[4; FIRST_PAYLOAD])
                .expect("valid");
        let (answering, who, payload) =
            Responder::read(&server, [5; 32], b"open", &first).expect("it is for us");
        assert_eq!((who, payload), (front.public(), [4; FIRST_PAYLOAD]));
        let (second, theirs) = answering.answer(&[6; SECOND_PAYLOAD]).expect("one answer");
        let (payload, ours) = asking.finish(&second).expect("it is for us");
        assert_eq!(payload, [6; SECOND_PAYLOAD]);
        assert_eq!(ours.to_server, theirs.to_server);
        assert_eq!(ours.to_front, theirs.to_front);
        assert_ne!(ours.to_server, ours.to_front);
        assert!(asking.finish(&second).is_none(), "once");
    }

    /// Whoever bends a message, or what was said in the open before it, is not
    /// understood; and an answer that is bent does not end the handshake.
    #[test]
    fn nothing_bent_opens() {
        let (front, server) = (key(1), key(2));
        let (mut asking, first) =
            Initiator::begin(&front, &server.public(), [3; 32], b"open", &[4; FIRST_PAYLOAD])
                .expect("valid");
        assert!(Responder::read(&key(7), [5; 32], b"open", &first).is_none(), "another server");
        assert!(Responder::read(&server, [5; 32], b"Open", &first).is_none(), "the prologue");
        for at in (0..FIRST_BYTES).step_by(5) {
            let mut bent = first;
            bent[at] ^= 1;
            assert!(Responder::read(&server, [5; 32], b"open", &bent).is_none(), "{at}");
        }
        let (answering, ..) = Responder::read(&server, [5; 32], b"open", &first).expect("ours");
        let (second, _) = answering.answer(&[6; SECOND_PAYLOAD]).expect("one answer");
        for at in (0..SECOND_BYTES).step_by(5) {
            let mut bent = second;
            bent[at] ^= 1;
            assert!(asking.finish(&bent).is_none(), "{at}");
        }
        assert!(asking.finish(&second).is_some());
    }
}
