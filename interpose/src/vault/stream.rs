//! The keys of streams: each part has one of its own, wrapped in its header for
//! a passphrase or a key file.

use std::fmt;

use block_core::Chance;
use ring::aead::{Aad, LessSafeKey, Nonce};
use thiserror::Error;

use super::key::{Key, Purpose, Wrapped, fresh_salt};
use super::secret::{Cost, NewWay, Secret};
use super::{NONCE_BYTES, WayKind};
use crate::layout::stream::{HEADER_BYTES, HeaderError, MAX_BODY, PLAIN_BYTES, Plain, TAG_BYTES};

/// Why a part cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StreamKeyError {
    /// Its header is none.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// It was sealed for a secret of the other kind.
    #[error("this stream is not opened by a {}: use the {}", word(*tried), word(tried.other()))]
    OtherKind {
        /// What was tried.
        tried: WayKind,
    },
    /// Another secret, or a header that was changed.
    #[error("the {} does not open this stream", word(*tried))]
    WrongSecret {
        /// What was tried.
        tried: WayKind,
    },
}

const fn word(kind: WayKind) -> &'static str {
    match kind {
        WayKind::Passphrase => "passphrase",
        WayKind::KeyFile => "key file",
    }
}

/// Seals or opens the frames of one part, one after the other.
pub struct StreamKey {
    key: LessSafeKey,
    next: u64,
}

impl fmt::Debug for StreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamKey(frame {})", self.next)
    }
}

impl StreamKey {
    /// A new key for a part, and the part's header, for whoever has the secret
    /// of the way. The way's name is of no account.
    #[must_use]
    pub fn create(way: &NewWay, chance: &Chance) -> (Self, [u8; HEADER_BYTES]) {
        let plain = Plain { cost: way.cost.map(Cost::parts), salt: way.salt };
        let plain = plain.encode();
        let key = Key::random(chance);
        let wrapped = way.key.wrap(Purpose::WrapStream, fresh_salt(chance), &plain, &key);
        let mut header = [0; HEADER_BYTES];
        header[..64].copy_from_slice(&plain);
        header[64..96].copy_from_slice(&wrapped.salt);
        header[96..128].copy_from_slice(&wrapped.sealed);
        header[128..].copy_from_slice(&wrapped.tag);
        (Self { key: key.schedule(), next: 0 }, header)
    }

    /// The key of the part with this header. For a passphrase it takes as long
    /// as the header says, within [`Cost::new`]: a server does it on another
    /// thread than the one that serves blocks.
    ///
    /// # Errors
    /// A [`StreamKeyError`].
    pub fn unlock(header: &[u8; HEADER_BYTES], secret: &Secret) -> Result<Self, StreamKeyError> {
        let (bytes, rest) = header.split_first_chunk::<PLAIN_BYTES>().expect("64 of 144 bytes");
        let plain = Plain::decode(bytes)?;
        let tried = secret.kind();
        let cost = match (plain.cost, tried) {
            (None, WayKind::KeyFile) => Cost::LEAST,
            (Some([memory, passes, lanes]), WayKind::Passphrase) => {
                Cost::new(memory, passes, lanes).ok_or(HeaderError::Damaged)?
            }
            _ => return Err(StreamKeyError::OtherKind { tried }),
        };
        let array = |at: usize| -> [u8; 32] {
            let mut array = [0; 32];
            array.copy_from_slice(&rest[at..at + 32]);
            array
        };
        let mut tag = [0; 16];
        tag.copy_from_slice(&rest[64..]);
        let wrapped = Wrapped { salt: array(0), sealed: array(32), tag };
        let wrong = StreamKeyError::WrongSecret { tried };
        let way = secret.key(cost, &plain.salt);
        let key = way.unwrap(Purpose::WrapStream, bytes, &wrapped).ok_or(wrong)?;
        Ok(Self { key: key.schedule(), next: 0 })
    }

    /// The next frame, with a body of at most [`MAX_BODY`] bytes.
    ///
    /// # Panics
    /// When the body is longer.
    #[must_use]
    pub fn seal(&mut self, body: &[u8]) -> Vec<u8> {
        assert!(body.len() <= MAX_BODY, "a frame's body is bounded");
        let length = (body.len() as u32).to_le_bytes();
        let mut frame = Vec::with_capacity(length.len() + body.len() + TAG_BYTES);
        frame.extend_from_slice(&length);
        frame.extend_from_slice(body);
        let nonce = self.number();
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(length), &mut frame[4..])
            .expect("less than the 64 GiB that AES-GCM takes");
        frame.extend_from_slice(tag.as_ref());
        frame
    }

    /// Opens the next frame: a body and its tag, without the length. Returns
    /// the body, or nothing when it is not what was sealed.
    pub fn open<'a>(&mut self, frame: &'a mut [u8]) -> Option<&'a [u8]> {
        let body = frame.len().checked_sub(TAG_BYTES)?;
        let length = (body as u32).to_le_bytes();
        let nonce = self.number();
        let opened = self.key.open_in_place(nonce, Aad::from(length), frame);
        opened.ok().map(|body| &*body)
    }

    /// Each number is used once: the key is this part's alone.
    fn number(&mut self) -> Nonce {
        let mut nonce = [0; NONCE_BYTES];
        nonce[4..].copy_from_slice(&self.next.to_le_bytes());
        self.next += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn chance() -> Chance {
        let drawn = Cell::new(0);
        Chance::new(move || drawn.replace(drawn.get() + 1))
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn made(secret: &Secret) -> (StreamKey, [u8; HEADER_BYTES]) {
        let way = NewWay::new("stream", secret, Cost::LEAST, &chance()).expect("a way");
        StreamKey::create(&way, &chance())
    }

    /// What is in archives must be read by every later version.
    #[test]
    fn a_header_and_a_frame_have_these_bytes() {
        let (mut key, header) = made(&Secret::key_file(vec![3; 32].into()));
        let known = [hex(&header[64..]), hex(&key.seal(b"body"))];
        assert_eq!(known, [KNOWN_WRAP, KNOWN_FRAME]);
    }

    const KNOWN_WRAP: &str = "0400000000000000050000000000000006000000000000000700000000000000\
        23f0c2d03da4d75b78908acb541d3923f31af9fb6a0efbd63ae718ec5fa0d0f4\
        3efe084952ec216f14a8d2735897ca8f";
    const KNOWN_FRAME: &str = "040000005c5e8105b32ef670246c6335f82a1534e51680bd";

    #[test]
    fn only_the_secret_opens_it_and_only_unchanged() {
        let secret = || Secret::passphrase(b"correct".to_vec().into());
        let (mut key, header) = made(&secret());
        let frames = [key.seal(b"one"), key.seal(b"two")];
        let open = |header: &[u8; HEADER_BYTES]| StreamKey::unlock(header, &secret());
        let mut opened = open(&header).expect("opens");
        assert_eq!(opened.open(&mut frames[0].clone()[4..]), Some(&b"one"[..]));
        assert_eq!(opened.open(&mut frames[1].clone()[4..]), Some(&b"two"[..]));
        // Not again, not in another order, not shorter.
        assert_eq!(open(&header).expect("opens").open(&mut frames[1].clone()[4..]), None);
        assert_eq!(open(&header).expect("opens").open(&mut frames[0].clone()[4..22]), None);
        let other = Secret::passphrase(b"wrong".to_vec().into());
        let tried = WayKind::Passphrase;
        assert_eq!(
            StreamKey::unlock(&header, &other).err(),
            Some(StreamKeyError::WrongSecret { tried })
        );
        let file = Secret::key_file(vec![3; 32].into());
        assert!(matches!(
            StreamKey::unlock(&header, &file),
            Err(StreamKeyError::OtherKind { tried: WayKind::KeyFile })
        ));
        for at in 0..HEADER_BYTES {
            // The salt and the cost change the key, the rest what it is bound to.
            if (16..28).contains(&at) {
                continue;
            }
            let mut broken = header;
            broken[at] ^= 1;
            assert!(open(&broken).is_err(), "byte {at}");
        }
    }
}
