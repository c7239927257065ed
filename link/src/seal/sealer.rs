//! What goes: each frame is sealed under a counter that nothing else has.

use ring::aead::{Aad, LessSafeKey, Nonce};

use super::chain::Chain;
use crate::frame::{HEADER_BYTES, Header, Kind, MAX_PAYLOAD, SEALED_HEADER, TAG};

/// Frames that one key seals, and not one more: AES-GCM's forgeries become
/// likelier with each.
pub(super) const MOST_FRAMES_PER_KEY: u64 = 1 << 32;

/// Seals one direction of one session. It is the only one with its secrets, so
/// a counter that it has drawn is used by nobody else.
pub(super) struct Sealer {
    chain: Chain,
    key: LessSafeKey,
    phase: u64,
    next_counter: u64,
    /// Frames that the key has sealed, and may.
    sealed: u64,
    most: u64,
    room: Box<Room>,
}

/// Where a payload is sealed: the private copy that it comes from stays as it
/// is. Payloads lie 64 bytes past a page's start, as in receive buffers.
#[repr(align(4096))]
struct Room([u8; HEADER_BYTES + MAX_PAYLOAD]);

/// A number that was drawn, for one frame.
///
/// It is neither copied nor made elsewhere, and becoming a nonce uses it up.
struct Counter(u64);

impl Counter {
    const fn number(&self) -> u64 {
        self.0
    }

    fn into_nonce(self) -> Nonce {
        nonce(self.0)
    }
}

/// Four zero bytes, then the counter, the high byte first, as Noise has it.
pub(super) fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

impl Sealer {
    pub(super) fn new(chain: Chain) -> Self {
        Self {
            key: chain.key(),
            chain,
            phase: 0,
            next_counter: 1,
            sealed: 0,
            most: MOST_FRAMES_PER_KEY,
            room: Box::new(Room([0; HEADER_BYTES + MAX_PAYLOAD])),
        }
    }

    pub(super) const fn phase(&self) -> u64 {
        self.phase
    }

    /// How many frames the present key has sealed.
    pub(super) const fn sealed(&self) -> u64 {
        self.sealed
    }

    /// The next phase's key takes this one's place.
    pub(super) fn advance(&mut self) {
        self.chain = self.chain.next();
        self.key = self.chain.key();
        self.phase += 1;
        self.sealed = 0;
    }

    /// The frame, sealed, until the next one is. None when the key has sealed
    /// all that it may: the session has come to its end.
    pub(super) fn seal(
        &mut self,
        header: &Header,
        kind: Kind,
        payload: &[u8],
    ) -> Option<(&[u8; HEADER_BYTES], &[u8])> {
        if self.sealed >= self.most {
            return None;
        }
        let counter = Counter(self.next_counter);
        self.next_counter += 1;
        self.sealed += 1;
        let header = Header { counter: counter.number(), ..*header };
        let (head, rest) = self.room.0.split_first_chunk_mut::<HEADER_BYTES>()?;
        let text = rest.get_mut(..payload.len())?;
        header.write_sealed(kind, self.phase % 2 == 1, head);
        text.copy_from_slice(payload);
        let aad = Aad::from(&head[..SEALED_HEADER]);
        let tag = self.key.seal_in_place_separate_tag(counter.into_nonce(), aad, text).ok()?;
        head[TAG..].copy_from_slice(tag.as_ref());
        Some((head, text))
    }

    #[cfg(test)]
    pub(super) const fn allow(&mut self, frames: u64) {
        self.most = frames;
    }
}
