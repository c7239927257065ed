//! What a sealed block is bound to: it opens at its own place, as what it is,
//! and nowhere else.

use block_core::Pba;

use super::identity::{DomainId, PoolId};

/// Bytes of a binding, the associated data of a seal.
pub const BINDING_BYTES: usize = 32;

/// What a sealed block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// A guest's block.
    Data = 1,
    /// A page of a line's map.
    Map = 2,
    /// A page of the tree of seals, or of the pointers above it.
    Seals = 3,
    /// A page of the catalog, or of the pointers above it.
    Catalog = 4,
    /// A page of a dead list.
    Dead = 5,
    /// A page of counts.
    Counts = 6,
    /// A page of the directory of counts.
    Directory = 7,
    /// A block of the journal.
    Journal = 8,
    /// A superblock.
    Superblock = 9,
}

/// Where a sealed block lies and what it is: the associated data of its seal.
///
/// ```text
/// 0    pool id, 16 bytes
/// 16   domain u32
/// 20   class u8 | level u8 | zero u16
/// 24   pba u64
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Whose key seals it.
    pub domain: DomainId,
    /// What it is.
    pub class: Class,
    /// How far above the leaves of its tree; a value (a guest's block, a page
    /// of seals or of the catalog) has 0, the page that points at it 1.
    pub level: u8,
    /// Where it lies.
    pub pba: Pba,
}

impl Binding {
    /// A page of the pool itself.
    #[must_use]
    pub const fn page(class: Class, level: u8, pba: Pba) -> Self {
        Self { domain: DomainId::METADATA, class, level, pba }
    }

    /// A guest's block.
    #[must_use]
    pub const fn data(domain: DomainId, pba: Pba) -> Self {
        Self { domain, class: Class::Data, level: 0, pba }
    }

    /// The associated data.
    #[must_use]
    pub fn encode(&self, pool: &PoolId) -> [u8; BINDING_BYTES] {
        let mut bytes = [0; BINDING_BYTES];
        bytes[..16].copy_from_slice(&pool.0);
        bytes[16..20].copy_from_slice(&self.domain.0.to_le_bytes());
        bytes[20] = self.class as u8;
        bytes[21] = self.level;
        bytes[24..].copy_from_slice(&self.pba.0.to_le_bytes());
        bytes
    }
}
