//! Trees of pointers: from an index to what lies there.
//!
//! A page has 128 pointers; a page at level 1 points at *values* (level 0):
//! guests' blocks in a map, pages in the trees of seals and of the catalog. A
//! hole at any level is a hole everywhere below it. A page that was written
//! never changes: a [`Merge`] writes the pages of a path anew and leaves the
//! tree that it began with as it was.
//!
//! What a page says is checked where it is read (`Rules`): a pointer of the
//! wrong kind, or to a block that the device does not have, is damage.

use block_core::{BlockCount, Device, Pba};

use crate::layout::pointer::POINTERS;
use crate::layout::{Binding, Class, Kind, Pointer};
use crate::pages::{Damage, Pages, What};

mod ahead;
mod beside;
pub mod diff;
pub mod find;
pub mod merge;
pub mod walk;

#[cfg(test)]
mod tests;

pub use diff::{Diff, Difference};
pub use find::{find, find_cached, find_run, find_run_cached};
pub use merge::{Allocate, Merge, MergeError, TRIES};
pub use walk::{Item, Walk};

/// Bits of an index that a level decides: 128 pointers a page.
const BITS: u32 = POINTERS.trailing_zeros();

/// The highest tree: 2^42 indices, more than a volume has blocks.
pub const MAX_HEIGHT: u8 = 6;

const _: () = assert!(1 << BITS == POINTERS);
const _: () = assert!(1 << (BITS * MAX_HEIGHT as u32) >= crate::layout::record::MAX_VOLUME_BLOCKS);

/// A tree of some height: where it begins and how many indices it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    root: Pointer,
    height: u8,
}

impl Tree {
    /// The tree without an index.
    pub const EMPTY: Self = Self { root: Pointer::HOLE, height: 0 };

    /// The tree below a root, or `None` for a height that there is not.
    #[must_use]
    pub const fn new(root: Pointer, height: u8) -> Option<Self> {
        if height > MAX_HEIGHT || height == 0 && !root.is_hole() {
            return None;
        }
        Some(Self { root, height })
    }

    /// The pointer at its highest page, or a hole.
    #[must_use]
    pub const fn root(&self) -> Pointer {
        self.root
    }

    /// How many levels of pages; 0 when it is empty and has no index.
    #[must_use]
    pub const fn height(&self) -> u8 {
        self.height
    }

    /// How many indices it has: the first that it does not have.
    #[must_use]
    pub const fn capacity(&self) -> u64 {
        if self.height == 0 { 0 } else { span(self.height) }
    }

    /// The least height of a tree that has so many indices.
    ///
    /// # Panics
    /// When no tree has so many.
    #[must_use]
    pub const fn height_for(indices: u64) -> u8 {
        let mut height = 0;
        while indices > 0 && (height == 0 || span(height) < indices) {
            height += 1;
            assert!(height <= MAX_HEIGHT, "no tree has so many indices");
        }
        height
    }
}

/// How many indices a pointer at a level stands for.
const fn span(level: u8) -> u64 {
    1 << (BITS * level as u32)
}

/// The place of an index in the page at a level.
const fn slot(index: u64, level: u8) -> usize {
    (index >> (BITS * (level as u32 - 1))) as usize % POINTERS
}

/// The first index of the page at a level that has this one.
const fn first_index(index: u64, level: u8) -> u64 {
    index & !(span(level) - 1)
}

/// What the pages of a tree may say.
#[derive(Clone, Copy, Debug)]
struct Rules {
    class: Class,
    blocks: BlockCount,
}

impl Rules {
    fn new<D: Device>(pages: &Pages<D>, class: Class) -> Self {
        Self { class, blocks: pages.device().blocks() }
    }

    const fn binding(self, level: u8, pba: Pba) -> Binding {
        Binding::page(self.class, level, pba)
    }

    /// Whether a pointer may stand where what it points at has this level.
    fn admit(self, pointer: &Pointer, level: u8) -> bool {
        let kind = match pointer.kind {
            Kind::Hole => return true,
            Kind::Data => level == 0 && self.class == Class::Map,
            Kind::Page => level > 0 || self.class != Class::Map,
            Kind::Lost => self.class == Class::Map,
        };
        kind && pointer.pba.0 < self.blocks.0
    }

    /// The pointer at a place of the page that lies at `pba`.
    fn entry(self, page: &[u8], pba: Pba, level: u8, slot: usize) -> Result<Pointer, Damage> {
        Pointer::in_page(page, slot)
            .filter(|pointer| self.admit(pointer, level - 1))
            .ok_or(Damage { pba, class: self.class, what: What::Malformed })
    }

    fn root(self, tree: &Tree) -> Result<Pointer, Damage> {
        let pba = tree.root.pba;
        let what = What::Malformed;
        let good = tree.height == 0 || self.admit(&tree.root, tree.height);
        if good { Ok(tree.root) } else { Err(Damage { pba, class: self.class, what }) }
    }
}
