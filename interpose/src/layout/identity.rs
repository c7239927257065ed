//! What is counted and named in a pool.

use std::fmt;

/// Names a pool; random, made with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PoolId(pub [u8; 16]);

/// A stretch of the pool's history between two snapshots, of any volume: each
/// snapshot, or group of them, ends one. 30 bits in a [`Pointer`].
///
/// [`Pointer`]: super::Pointer
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl Epoch {
    /// Stands for the end of history in the key of a head.
    pub const HEAD: Self = Self(u32::MAX);

    /// The last one that a pointer can say.
    pub const MAX: Self = Self((1 << 30) - 1);
}

/// A salt's number: blocks sealed under one salt belong to one era. 24 bits in
/// a pointer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EraId(pub u32);

impl EraId {
    /// The last one that a pointer can say.
    pub const MAX: Self = Self((1 << 24) - 1);
}

/// Volumes that share a data key and may share blocks; one per tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub u32);

impl DomainId {
    /// The domain of the pool's own pages, under the metadata key.
    pub const METADATA: Self = Self(0);
}

/// A line of history: a head that is written to, and the snapshots that were
/// taken of it. A volume has one; restore and clone begin new ones. 24 bits in
/// a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineId(pub u32);

impl LineId {
    /// The last one that a record can say.
    pub const MAX: Self = Self((1 << 24) - 1);
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
