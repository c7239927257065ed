//! Why volumes, snapshots and pools are not changed: sentences for people.

use block_core::BlockError;
use block_core::unit::{BLOCK_SIZE, BlockCount};
use link::{FrontId, VolumeName};
use thiserror::Error;

use crate::catalog::CommitError;
use crate::size::Size;
use crate::space::NoSpace;

/// Why a volume could not be changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The name is taken.
    #[error("there is a volume '{0}' already; choose another name or delete that one")]
    Exists(VolumeName),
    /// There is none of that name.
    #[error("there is no volume '{0}'; `vrio volume list` shows what there is")]
    Unknown(VolumeName),
    /// All places are taken.
    #[error("the device has {0} volumes, which is all it can have; delete one")]
    TooMany(usize),
    /// The size is no size for a volume.
    #[error("a volume's size is a multiple of {BLOCK_SIZE} bytes and not zero; {0} is not")]
    BadSize(u64),
    /// The space cannot be had.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// Somebody has it.
    #[error("volume '{name}' is attached by {who}; {remedy}")]
    Attached {
        /// Which volume.
        name: VolumeName,
        /// Who has it.
        who: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// It would lose its end.
    #[error(
        "volume '{name}' has {}, and shrinking it to {} cuts off what lies there; if that is wanted, \
         say so (`--shrink`)", Size(.from.bytes()), Size(.to.bytes())
    )]
    WouldShrink {
        /// Which volume.
        name: VolumeName,
        /// Its size.
        from: BlockCount,
        /// The size that was asked for.
        to: BlockCount,
    },
    /// The front does not have it.
    #[error("front {front} does not have volume '{name}'")]
    NotAttached {
        /// Which volume.
        name: VolumeName,
        /// Which front.
        front: FrontId,
    },
    /// The device is no pool.
    #[error(
        "that takes a pool, and device '{0}' is none; `vrio pool create` makes a device without \
         volumes one"
    )]
    NotAPool(String),
    /// The device is a pool that is not open.
    #[error("{0}")]
    Locked(String),
    /// The device is becoming a pool.
    #[error("the device is being made a pool; try again")]
    Changing,
    /// There are domains in pools only.
    #[error("device '{0}' is no pool, so its volumes have no domain; leave `--domain` out")]
    NoDomain(String),
    /// There are volumes on it.
    #[error(
        "device '{device}' has volumes ({volumes}); a pool is a device as a whole: delete them first"
    )]
    HasVolumes {
        /// Which device.
        device: String,
        /// Some of them.
        volumes: String,
    },
    /// It is one.
    #[error("device '{0}' is a pool already")]
    IsAPool(String),
    /// It is one that does not open.
    #[error(
        "there is a pool on device '{device}' that does not open: {why}; if nothing in it is needed \
         any more, say so (`--overwrite`)"
    )]
    Occupied {
        /// Which device.
        device: String,
        /// Why it does not open.
        why: String,
    },
    /// Nobody could open it again.
    #[error(
        "nothing is said about what unlocks a pool on device '{0}'; add `unlock = \"key-file:PATH\"` \
         or `unlock = \"passphrase-file:PATH\"` to it in the configuration and restart the server"
    )]
    NoSecret(String),
    /// Volumes of different pools.
    #[error(
        "'{one}' and '{other}' lie in different pools; snapshots of one moment are of volumes of one \
         pool"
    )]
    TwoPools {
        /// One.
        one: VolumeName,
        /// Another.
        other: VolumeName,
    },
    /// The volume has no such snapshot.
    #[error(
        "there is no snapshot {volume}@{name}; `vrio snapshot list {volume}` shows what there is"
    )]
    NoSnapshot {
        /// Which volume.
        volume: VolumeName,
        /// Which snapshot.
        name: VolumeName,
    },
    /// The snapshot's name is taken.
    #[error("there is a snapshot {volume}@{name} already; choose another name or delete that one")]
    SnapshotExists {
        /// Which volume.
        volume: VolumeName,
        /// Which name.
        name: VolumeName,
    },
    /// The volume has snapshots.
    #[error(
        "volume '{name}' has {count} snapshots, which go with it; delete them first, or say that they \
         are not needed (`--snapshots`)"
    )]
    HasSnapshots {
        /// Which volume.
        name: VolumeName,
        /// How many.
        count: usize,
    },
    /// Its writer may bring back what was lost.
    #[error(
        "the writer of '{name}', front {front}, has not come back since the server lost its memory, \
         and may bring writes that were answered and lost; wait for it, or take the volume as it is \
         (`--as-is`)"
    )]
    WriterAway {
        /// Which volume.
        name: VolumeName,
        /// Who.
        front: FrontId,
    },
    /// There is no such way to unlock the pool.
    #[error("nothing called '{0}' unlocks the pool; `vrio key list` shows what does")]
    NoWay(String),
    /// There is no such domain.
    #[error("there is no domain '{0}'; `vrio key list` shows what there is")]
    NoDomainNamed(String),
    /// No check has run.
    #[error(
        "the pool on device '{0}' has never been checked as a whole; `vrio pool check` does it"
    )]
    NoCheck(String),
    /// One check at a time.
    #[error("a check of device '{0}' is running; `vrio pool check --status` tells how far it is")]
    Checking(String),
    /// It has come in part only.
    #[error(
        "volume '{0}' is being imported; let `vrio snapshot import` go on with that, or give it up: \
         restore the volume's last snapshot, or delete the volume if it has none"
    )]
    Importing(VolumeName),
    /// An import does not go on where it was.
    #[error(
        "the import of '{0}' was cut off, or another one goes on with it; run `vrio snapshot import` \
         again: it goes on where that one was"
    )]
    LostImport(VolumeName),
    /// A stream goes on with another snapshot.
    #[error("snapshot {volume}@{name} is not the one that the stream began with; export it anew")]
    OtherSnapshot {
        /// Of which volume.
        volume: VolumeName,
        /// What it is called.
        name: VolumeName,
    },
    /// The pool says no.
    #[error("{0}")]
    Pool(String),
    /// The device failed under it.
    #[error("{0}; check the device")]
    Device(BlockError),
    /// The catalog could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}
