//! What a person or a file brings to unlock a pool, and the key it becomes.

use std::hint::black_box;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use block_core::Chance;
use thiserror::Error;
use zeroize::Zeroizing;

use super::key::{Key, Salt, fresh_salt};

/// Fewest bytes of a key file.
pub const MIN_KEY_FILE_BYTES: usize = 32;

/// Most bytes of the name of a way or a domain.
pub const MAX_NAME_BYTES: usize = 32;

/// BLAKE3's context of key files; a context names one use in the world.
const KEY_FILE_CONTEXT: &str = "vRIO 2026 pool key file";

/// A passphrase or the content of a key file.
#[derive(Debug)]
pub struct Secret {
    kind: WayKind,
    bytes: Zeroizing<Vec<u8>>,
}

impl Secret {
    /// A passphrase, as its bytes are.
    #[must_use]
    pub const fn passphrase(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self { kind: WayKind::Passphrase, bytes }
    }

    /// The content of a key file.
    #[must_use]
    pub const fn key_file(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self { kind: WayKind::KeyFile, bytes }
    }

    /// Which of the two.
    #[must_use]
    pub const fn kind(&self) -> WayKind {
        self.kind
    }

    /// The key that this secret is with a salt: for a passphrase as slow as
    /// `cost` says.
    pub(super) fn key(&self, cost: Cost, salt: &Salt) -> Key {
        match self.kind {
            WayKind::Passphrase => slow_key(&self.bytes, cost, salt),
            // The wrap takes the salt in; a key file needs no slowness.
            WayKind::KeyFile => {
                let mut hash = blake3::Hasher::new_derive_key(KEY_FILE_CONTEXT);
                hash.update(&self.bytes);
                let mut key = Key::blank();
                hash.finalize_xof().fill(key.bytes_mut());
                key
            }
        }
    }
}

fn slow_key(passphrase: &[u8], cost: Cost, salt: &Salt) -> Key {
    let params = cost.params();
    let mut memory = vec![Block::new(); params.block_count()];
    let mut key = Key::blank();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into_with_memory(passphrase, salt, key.bytes_mut(), &mut memory)
        .expect("salt, output and memory have sizes that Argon2 takes");
    memory.fill(Block::new());
    black_box(&memory);
    key
}

/// How a pool is unlocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WayKind {
    /// By a passphrase, through Argon2id.
    Passphrase,
    /// By a file of at least [`MIN_KEY_FILE_BYTES`] that nobody can guess.
    KeyFile,
}

impl WayKind {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Passphrase => Self::KeyFile,
            Self::KeyFile => Self::Passphrase,
        }
    }
}

/// What one guess of a passphrase costs whoever makes it: Argon2id's
/// parameters, kept beside each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory, in KiB.
    memory: u32,
    /// Passes over the memory.
    passes: u32,
    /// Parts of the memory that could be filled side by side.
    lanes: u32,
}

impl Cost {
    /// As little as Argon2 allows: for simulations, whose secrets are none.
    pub const LEAST: Self = Self { memory: 8, passes: 1, lanes: 1 };

    /// 64 MiB, three passes (RFC 9106's second recommendation, with one lane,
    /// because one thread does it): about 0.15 s.
    pub const USUAL: Self = Self { memory: 64 * 1024, passes: 3, lanes: 1 };

    /// A cost within what a pool may ask of the machine that opens it: 1 GiB,
    /// 16 passes and 16 lanes. A damaged header must not take all memory.
    #[must_use]
    pub const fn new(memory_kib: u32, passes: u32, lanes: u32) -> Option<Self> {
        let fits = memory_kib <= 1024 * 1024 && passes <= 16 && lanes <= 16;
        if fits && lanes >= 1 && passes >= 1 && memory_kib >= 8 * lanes {
            Some(Self { memory: memory_kib, passes, lanes })
        } else {
            None
        }
    }

    /// Memory in KiB, passes and lanes.
    #[must_use]
    pub const fn parts(self) -> [u32; 3] {
        [self.memory, self.passes, self.lanes]
    }

    fn params(self) -> Params {
        Params::new(self.memory, self.passes, self.lanes, None).expect("checked when it was made")
    }
}

impl Default for Cost {
    fn default() -> Self {
        Self::USUAL
    }
}

/// Why there is no way of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SecretError {
    /// A passphrase of no bytes.
    #[error("the passphrase is empty: give one")]
    Empty,
    /// A key file that could be guessed.
    #[error(
        "the key file has {bytes} bytes: it needs at least {MIN_KEY_FILE_BYTES} random ones \
         (`head -c 32 /dev/urandom > FILE` makes one)"
    )]
    Short {
        /// How many it has.
        bytes: usize,
    },
    /// A name that does not fit.
    #[error("a name has 1 to {MAX_NAME_BYTES} bytes: choose another")]
    Name,
}

/// A way to unlock a pool that is not in its key area yet.
///
/// Making one of a passphrase takes as long as its [`Cost`] says and needs
/// neither pool nor device: a server does it on another thread than the one
/// that serves blocks.
#[derive(Debug)]
pub struct NewWay {
    pub(super) name: String,
    pub(super) kind: WayKind,
    pub(super) cost: Option<Cost>,
    pub(super) salt: Salt,
    pub(super) key: Key,
}

impl NewWay {
    /// A way called `name` for whoever has the secret. `cost` counts for a
    /// passphrase only.
    ///
    /// # Errors
    /// An empty passphrase, a short key file, or a name that does not fit.
    pub fn new(
        name: &str,
        secret: &Secret,
        cost: Cost,
        chance: &Chance,
    ) -> Result<Self, SecretError> {
        let bytes = secret.bytes.len();
        match secret.kind {
            WayKind::Passphrase if bytes == 0 => return Err(SecretError::Empty),
            WayKind::KeyFile if bytes < MIN_KEY_FILE_BYTES => {
                return Err(SecretError::Short { bytes });
            }
            WayKind::Passphrase | WayKind::KeyFile => {}
        }
        if !fits(name) {
            return Err(SecretError::Name);
        }
        let salt = fresh_salt(chance);
        let key = secret.key(cost, &salt);
        let cost = (secret.kind == WayKind::Passphrase).then_some(cost);
        Ok(Self { name: name.to_owned(), kind: secret.kind, cost, salt, key })
    }
}

/// Whether a name can be written down.
pub(super) const fn fits(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(key: &Key) -> String {
        key.bytes().map(|byte| format!("{byte:02x}")).concat()
    }

    /// A pool must open with its secret in every later version.
    #[test]
    fn secrets_become_these_keys() {
        let passphrase = Secret::passphrase(b"correct horse".to_vec().into());
        assert_eq!(
            hex(&passphrase.key(Cost::LEAST, &[1; 32])),
            "3994be021d1825b7f3ba7d96aa2d9e67bf822eee4872fa7f8bb981ed9464cb50"
        );
        let cost = Cost::new(64, 2, 2).expect("small");
        assert_eq!(
            hex(&passphrase.key(cost, &[1; 32])),
            "a86a459d4271754a088eb5f51ba5acbd5f0a0b401831f7f42fe20a9ee63a8d0c"
        );
        let file = Secret::key_file(vec![5; 40].into());
        assert_eq!(
            hex(&file.key(Cost::LEAST, &[1; 32])),
            "a57a3eb4862cfa8502079cf549dca0a4436436ed8bfac7a0797a7477264ce3b5"
        );
    }

    /// The header is read before anything can be verified: what it asks for
    /// is bounded.
    #[test]
    fn a_header_cannot_ask_for_all_memory() {
        assert_eq!(Cost::new(u32::MAX, 3, 1), None);
        assert_eq!(Cost::new(64, u32::MAX, 1), None);
        assert_eq!(Cost::new(64, 1, u32::MAX), None);
        assert_eq!(Cost::new(64, 0, 1), None);
        assert_eq!(Cost::new(64, 1, 0), None);
        assert_eq!(Cost::new(7, 1, 1), None);
        let [memory, passes, lanes] = Cost::USUAL.parts();
        assert_eq!(Cost::new(memory, passes, lanes), Some(Cost::USUAL));
    }
}
