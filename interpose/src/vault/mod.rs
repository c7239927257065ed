//! Keys: who unlocks the pool, what seals its blocks.
//!
//! ```text
//! passphrase --Argon2id--+
//!                        +--> wraps the pool key --+--> metadata key
//! key file -----BLAKE3---+                         |
//!                                                  +--> wraps each domain's key
//! metadata or domain key + an era's salt --> AES-256-GCM, nonce = seq
//! domain key --> hash key
//! ```
//!
//! A key seals at most 2^32 blocks, each under the next number, because its
//! era's salt was drawn by whoever uses it, on the device before its first use,
//! and is never taken up again: after a crash or in a copy of the pool there is
//! another salt, so another key. That is the whole argument why no key meets a
//! nonce twice.

pub mod area;
mod copies;
mod domains;
mod eras;
mod error;
mod key;
mod schedules;
mod secret;
pub mod stream;
#[cfg(test)]
mod tests;
mod unlock;
mod ways;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use block_core::Chance;
use ring::aead::{Aad, LessSafeKey, Nonce};
use tokio::sync::Mutex;

pub use domains::Domain;
pub use error::{KeyError, OpenError, UnlockError, VaultError};
pub use key::Key;
pub use secret::{Cost, MAX_NAME_BYTES, MIN_KEY_FILE_BYTES, NewWay, Secret, SecretError, WayKind};
pub use ways::WayInfo;

use crate::hash::HashKey;
use crate::layout::{DomainId, EraId, PoolId, Seal};
use copies::Area;
use domains::Domains;
use eras::Eras;
use key::Purpose;
use schedules::Schedules;

const NONCE_BYTES: usize = 12;

/// Seals that an era has when the next one should be begun: the writes of a
/// TiB, time enough for four writes to the device.
const EARLY: u64 = 1 << 28;

/// The keys of a pool that is open.
///
/// Sealing and opening are calls without I/O. What changes keys or eras
/// changes the key area on the device, one change at a time.
pub struct Vault {
    area: Area,
    chance: Chance,
    pool_key: Key,
    ways: RefCell<Vec<Option<area::Way>>>,
    domains: RefCell<Domains>,
    eras: RefCell<Eras>,
    schedules: RefCell<Schedules>,
    /// What seals, once an era has begun.
    current: Cell<Option<Current>>,
    /// Held while the key area changes.
    changing: Mutex<()>,
}

/// The era that seals, and the number of its next seal.
#[derive(Clone, Copy, Debug)]
struct Current {
    era: EraId,
    next: u64,
}

impl Vault {
    /// Which pool's keys these are.
    #[must_use]
    pub const fn pool_id(&self) -> PoolId {
        self.area.pool()
    }

    /// Seals `bytes` in place under a domain's key, bound to `aad`.
    ///
    /// # Errors
    /// No such domain, an erased one, or an era that has ended or not begun.
    pub fn seal(&self, domain: DomainId, aad: &[u8], bytes: &mut [u8]) -> Result<Seal, VaultError> {
        let current = self.current.get().ok_or(VaultError::NoEra)?;
        let mut schedules = self.schedules.borrow_mut();
        let key = self.schedule(&mut schedules, domain, current.era)?;
        let seq = self.number(current)?;
        let tag = key
            .seal_in_place_separate_tag(nonce(seq), Aad::from(aad), bytes)
            .expect("less than the 64 GiB that AES-GCM takes");
        let tag = tag.as_ref().try_into().expect("AES-GCM's tag has 16 bytes");
        Ok(Seal { tag, seq, era: current.era })
    }

    /// Takes the next number of an era: nobody else gets it.
    fn number(&self, current: Current) -> Result<u32, VaultError> {
        let seq = u32::try_from(current.next).map_err(|_| VaultError::EraEnded)?;
        self.current.set(Some(Current { next: current.next + 1, ..current }));
        Ok(seq)
    }

    /// Opens `bytes` in place. After an error they are of no use.
    ///
    /// # Errors
    /// Not what was sealed, or no key for it.
    pub fn open(
        &self,
        domain: DomainId,
        seal: &Seal,
        aad: &[u8],
        bytes: &mut [u8],
    ) -> Result<(), OpenError> {
        let mut schedules = self.schedules.borrow_mut();
        let key = self.schedule(&mut schedules, domain, seal.era)?;
        key.open_in_place_separate_tag(
            nonce(seal.seq),
            Aad::from(aad),
            seal.tag.into(),
            bytes,
            0..,
        )
        .map_err(|_| OpenError::Damaged)?;
        Ok(())
    }

    fn schedule<'a>(
        &self,
        schedules: &'a mut Schedules,
        domain: DomainId,
        era: EraId,
    ) -> Result<&'a LessSafeKey, NoKey> {
        schedules.find(domain, era, || {
            let eras = self.eras.borrow();
            let salt = eras.salt(era).ok_or(NoKey::UnknownEra)?;
            Ok(self.domains.borrow().key(domain, era)?.derive(Purpose::Seal, salt))
        })
    }

    /// What hashes a domain's blocks: another key after a rotation, so that
    /// what was sealed under the old one is not shared anew.
    ///
    /// # Errors
    /// No such domain, or an erased one.
    pub fn hash_key(&self, domain: DomainId) -> Result<Rc<HashKey>, VaultError> {
        Ok(self.domains.borrow().hash_key(domain)?)
    }

    /// Which era seals, if one has begun.
    #[must_use]
    pub fn era(&self) -> Option<EraId> {
        self.current.get().map(|current| current.era)
    }

    /// Whether [`Vault::begin_era`] should be called: before the first seal,
    /// and long before the last one of an era.
    #[must_use]
    pub fn needs_era(&self) -> bool {
        self.current.get().is_none_or(|current| current.next > (1 << 32) - EARLY)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({})", self.pool_id())
    }
}

/// Why there is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NoKey {
    UnknownEra,
    UnknownDomain,
    Erased,
}

impl From<NoKey> for VaultError {
    fn from(why: NoKey) -> Self {
        match why {
            // The current era is always known; without it nothing can be
            // sealed either.
            NoKey::UnknownEra => Self::NoEra,
            NoKey::UnknownDomain => Self::UnknownDomain,
            NoKey::Erased => Self::Erased,
        }
    }
}

impl From<NoKey> for OpenError {
    fn from(why: NoKey) -> Self {
        match why {
            NoKey::UnknownEra => Self::UnknownEra,
            NoKey::UnknownDomain => Self::UnknownDomain,
            NoKey::Erased => Self::Erased,
        }
    }
}

/// Eight zero bytes and the number of the seal, little-endian.
fn nonce(seq: u32) -> Nonce {
    let mut nonce = [0; NONCE_BYTES];
    nonce[8..].copy_from_slice(&seq.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}
