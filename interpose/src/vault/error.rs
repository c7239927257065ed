//! What can go wrong with keys: small errors on the path, sentences elsewhere.

use block_core::BlockError;
use thiserror::Error;

use super::area;
use super::secret::{SecretError, WayKind};

/// Why nothing can be sealed or hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VaultError {
    /// A domain that does not exist.
    #[error("there is no such domain")]
    UnknownDomain,
    /// A domain whose keys are gone.
    #[error("the domain is erased")]
    Erased,
    /// No era has begun since the pool was opened.
    #[error("no era has begun")]
    NoEra,
    /// All 2^32 numbers of the era are used.
    #[error("the era has ended")]
    EraEnded,
}

/// Why a sealed block does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// It is not what was sealed, or not there, or not as that.
    #[error("it is damaged")]
    Damaged,
    /// Its domain, or the domain's key of that time, is erased.
    #[error("its key is erased")]
    Erased,
    /// No salt is known for its era.
    #[error("its era is unknown")]
    UnknownEra,
    /// A domain that does not exist.
    #[error("its domain is unknown")]
    UnknownDomain,
}

/// Why keys cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The device failed; the key area is as it was or as it should be.
    #[error("the key area cannot be written: {0}; try again")]
    Device(#[from] BlockError),
    /// A name or secret that is none.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Another one has the name.
    #[error("the name is taken: choose another")]
    NameTaken,
    /// Nothing of that name or number.
    #[error("there is none of that name")]
    NotThere,
    /// The domain's keys are gone.
    #[error("the domain is erased: make another one")]
    Erased,
    /// The key that the domain seals with.
    #[error("the domain seals with this key: rotate it first")]
    InUse,
    /// The pool could not be unlocked any more.
    #[error("this is the last way to unlock the pool: add another one first")]
    LastWay,
    /// All places of ways are taken.
    #[error(
        "the pool has {} ways to unlock it, and no room for more: remove one first",
        area::WAYS
    )]
    NoRoomForWays,
    /// All places of keys are taken.
    #[error(
        "the pool has {} keys of domains, and no room for more: forget old ones that no snapshot \
         needs",
        area::DOMAIN_KEYS
    )]
    NoRoomForKeys,
    /// All places of eras are taken by eras that have blocks.
    #[error(
        "the pool has {} eras, and no room for more: copy its volumes to a new pool",
        area::ERAS
    )]
    NoRoomForEras,
}

/// Why a pool cannot be made or unlocked. Each is a sentence that the name of
/// the device goes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnlockError {
    /// The device has no header.
    #[error("there is no pool on it; `vrio pool create` makes one")]
    NotAPool,
    /// One copy of the header is empty, the other is not whole.
    #[error(
        "making a pool on it was interrupted, or both copies of its header are damaged; if it \
         never held data, make the pool again"
    )]
    Unfinished,
    /// A header that this program does not know.
    #[error(
        "its pool was made by a newer version of vRIO (format {found}; this one reads up to \
         {}): use that version",
        area::VERSION
    )]
    Newer {
        /// Which format.
        found: u16,
    },
    /// Nothing can be unlocked without the header.
    #[error("both copies of its pool's header are damaged: restore the device from a copy")]
    HeaderDamaged,
    /// Some keys are gone.
    #[error(
        "both copies of block {index} of its key area ({what}) are damaged: restore the device \
         from a copy"
    )]
    KeysDamaged {
        /// Which block.
        index: u16,
        /// What it holds.
        what: &'static str,
    },
    /// A secret that unlocks nothing here.
    #[error("{} does not open its pool ({ways} tried)", secret(*kind))]
    WrongSecret {
        /// What was tried.
        kind: WayKind,
        /// On how many ways.
        ways: usize,
    },
    /// No way of the secret's kind.
    #[error("its pool is not opened by {}: use {}", secret(*kind), secret(kind.other()))]
    NoSuchWay {
        /// What was tried.
        kind: WayKind,
    },
    /// There are no blocks for a key area.
    #[error("it has {blocks} blocks of 4 KiB; a pool needs at least {}", least_blocks())]
    TooSmall {
        /// How many it has.
        blocks: u64,
    },
    /// The device failed.
    #[error("its key area cannot be written: {0}")]
    Device(#[from] BlockError),
}

const fn secret(kind: WayKind) -> &'static str {
    match kind {
        WayKind::Passphrase => "the passphrase",
        WayKind::KeyFile => "the key file",
    }
}

const fn least_blocks() -> u64 {
    crate::layout::fixed::MIN_DEVICE_BLOCKS.0
}
