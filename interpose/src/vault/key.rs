//! A key's bytes, and what is derived from and wrapped under them.
//!
//! Everything is derived with BLAKE3 in keyed mode from one input of 64 bytes,
//! a label that says what for and a salt:
//!
//! ```text
//! 0    label, padded with zeros to 32 bytes
//! 32   salt, 32 bytes; zeros where there is none
//! ```
//!
//! The first 32 bytes of the output are a key. A wrap takes the next 12 as its
//! nonce, so a wrap whose salt is fresh has a key and a nonce of its own.

use std::fmt;

use block_core::Chance;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroize;

/// Bytes of a key.
pub(crate) const KEY_BYTES: usize = 32;

/// Bytes of a salt.
pub(crate) const SALT_BYTES: usize = 32;

const NONCE_BYTES: usize = 12;
const LABEL_BYTES: usize = 32;

/// Bytes that are drawn at random so that what is derived is new.
pub(crate) type Salt = [u8; SALT_BYTES];

/// What is derived from a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// From a way's key: what wraps the pool key.
    WrapPool,
    /// From the pool key: what wraps a domain's key.
    WrapDomain,
    /// From the pool key: the key of the pool's own pages.
    Metadata,
    /// From the pool key: what authenticates the key area.
    Area,
    /// From a domain's key and an era's salt: what seals blocks.
    Seal,
    /// From a domain's key: what hashes its blocks.
    Hash,
    /// From the key of whoever may read a stream: what wraps the stream's key.
    WrapStream,
}

impl Purpose {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::WrapPool => b"vrio wrap pool key",
            Self::WrapDomain => b"vrio wrap domain key",
            Self::Metadata => b"vrio metadata key",
            Self::Area => b"vrio key area",
            Self::Seal => b"vrio seal",
            Self::Hash => b"vrio hash",
            Self::WrapStream => b"vrio wrap stream key",
        }
    }
}

/// 32 secret bytes, in one place in memory until they are overwritten when the
/// key is dropped.
pub struct Key(Box<[u8; KEY_BYTES]>);

impl Key {
    /// A key of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Self {
        let mut key = Self::blank();
        key.0.copy_from_slice(bytes);
        key
    }

    /// A key that nobody can guess.
    pub(crate) fn random(chance: &Chance) -> Self {
        let mut key = Self::blank();
        draw(chance, &mut key.0);
        key
    }

    /// A key of zeros, to be filled in place.
    pub(crate) fn blank() -> Self {
        Self(Box::new([0; KEY_BYTES]))
    }

    pub(crate) const fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    pub(crate) const fn bytes_mut(&mut self) -> &mut [u8; KEY_BYTES] {
        &mut self.0
    }

    /// The key that this one gives for a purpose and a salt.
    pub(crate) fn derive(&self, purpose: Purpose, salt: &Salt) -> Self {
        let mut key = Self::blank();
        self.expand(purpose, salt).fill(&mut key.0[..]);
        key
    }

    fn expand(&self, purpose: Purpose, salt: &Salt) -> blake3::OutputReader {
        let label = purpose.label();
        let mut input = [0; LABEL_BYTES + SALT_BYTES];
        input[..label.len()].copy_from_slice(label);
        input[LABEL_BYTES..].copy_from_slice(salt);
        blake3::Hasher::new_keyed(&self.0).update(&input).finalize_xof()
    }

    /// `key` sealed under this one. `salt` is fresh: it makes the nonce.
    pub(crate) fn wrap(&self, purpose: Purpose, salt: Salt, aad: &[u8], key: &Self) -> Wrapped {
        let (schedule, nonce) = self.wrapping(purpose, &salt);
        let mut sealed = *key.0;
        let tag = schedule
            .seal_in_place_separate_tag(nonce, Aad::from(aad), &mut sealed)
            .expect("32 bytes are not too many");
        Wrapped { salt, sealed, tag: tag.as_ref().try_into().expect("AES-GCM's tag has 16 bytes") }
    }

    /// What was wrapped, or `None` when that was not done with this key or
    /// these bytes beside it.
    pub(crate) fn unwrap(&self, purpose: Purpose, aad: &[u8], wrapped: &Wrapped) -> Option<Self> {
        let (schedule, nonce) = self.wrapping(purpose, &wrapped.salt);
        let mut key = Self::from_bytes(&wrapped.sealed);
        schedule
            .open_in_place_separate_tag(
                nonce,
                Aad::from(aad),
                wrapped.tag.into(),
                &mut key.0[..],
                0..,
            )
            .ok()?;
        Some(key)
    }

    fn wrapping(&self, purpose: Purpose, salt: &Salt) -> (LessSafeKey, Nonce) {
        let mut key = Self::blank();
        let mut nonce = [0; NONCE_BYTES];
        let mut output = self.expand(purpose, salt);
        output.fill(&mut key.0[..]);
        output.fill(&mut nonce);
        (key.schedule(), Nonce::assume_unique_for_key(nonce))
    }

    /// The key as AES-256-GCM uses it.
    pub(crate) fn schedule(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &self.0[..]).expect("a key has 32 bytes"))
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// A key sealed under another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrapped {
    /// Made for this wrap.
    pub(crate) salt: Salt,
    /// The sealed key.
    pub(crate) sealed: [u8; KEY_BYTES],
    /// AES-256-GCM's tag.
    pub(crate) tag: [u8; 16],
}

impl Wrapped {
    /// Where a key was.
    pub(crate) const NOTHING: Self =
        Self { salt: [0; SALT_BYTES], sealed: [0; KEY_BYTES], tag: [0; 16] };
}

/// A salt that was never used.
pub(crate) fn fresh_salt(chance: &Chance) -> Salt {
    let mut salt = [0; SALT_BYTES];
    draw(chance, &mut salt);
    salt
}

fn draw(chance: &Chance, to: &mut [u8; 32]) {
    for part in to.as_chunks_mut::<8>().0 {
        *part = chance.number().to_le_bytes();
    }
}
