//! Keys that follow each other: from a secret come a key and the next secret,
//! and nothing of what was before.

use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk};
use zeroize::Zeroizing;

use crate::keys::KEY_BYTES;

const KEY_LABEL: &[u8] = b"vrio link key";
const NEXT_LABEL: &[u8] = b"vrio link next";

/// The secret of one phase of one direction.
pub(super) struct Chain(Zeroizing<[u8; KEY_BYTES]>);

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

impl Chain {
    /// The first one of a direction.
    pub(super) const fn new(secret: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self(secret)
    }

    /// The key of this phase.
    pub(super) fn key(&self) -> LessSafeKey {
        let key = self.expand(KEY_LABEL);
        LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).expect("32 bytes are a key"))
    }

    /// The phase after this one.
    pub(super) fn next(&self) -> Self {
        Self(self.expand(NEXT_LABEL))
    }

    fn expand(&self, label: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
        let mut out = Zeroizing::new([0; KEY_BYTES]);
        Prk::new_less_safe(HKDF_SHA256, &*self.0)
            .expand(&[label], Length)
            .and_then(|made| made.fill(&mut *out))
            .expect("32 bytes are not too many");
        out
    }
}
