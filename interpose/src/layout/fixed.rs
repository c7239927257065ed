//! The places on a device that never move.
//!
//! ```text
//! block 0, 1           superblocks, copy A: of even and of odd generations
//! block 2..1024        key area, copy A
//! block 1024..8192     the journal, if it fits; else heap
//! block 8192, 8193     superblocks, copy B
//! block 8194..9216     key area, copy B
//! block 9216..         the journal, if it did not fit above; the homes of
//!                      counts and directory; the heap
//! ```
//!
//! All of these blocks have the count of a page, so that nothing is ever put
//! on them.

use block_core::{BlockCount, Extent, Pba};

/// Bytes between copies A and B: 32 MiB, so that what damages one place of a
/// device rarely reaches the other.
pub const COPY_DISTANCE: u64 = 8192;

/// Where each copy's key area begins, after the copy's own start.
pub const KEY_AREA_START: u64 = 2;

/// Blocks of a key area.
pub const KEY_AREA_BLOCKS: u64 = 1022;

/// Blocks of a copy: two superblocks and the key area.
pub const COPY_BLOCKS: u64 = KEY_AREA_START + KEY_AREA_BLOCKS;

/// The smallest device that a pool is made on: 64 MiB.
pub const MIN_DEVICE_BLOCKS: BlockCount = BlockCount(16 * 1024);

/// One of the two places where the same thing is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Written first.
    A,
    /// Written when A is durable.
    B,
}

impl Copy {
    /// Both, in the order in which they are written.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    const fn start(self) -> u64 {
        match self {
            Self::A => 0,
            Self::B => COPY_DISTANCE,
        }
    }
}

/// Where the superblock of a generation lies.
#[must_use]
pub const fn superblock(generation: u64, copy: Copy) -> Pba {
    Pba(copy.start() + generation % 2)
}

/// Where block `index` of the key area lies; `index` is below
/// [`KEY_AREA_BLOCKS`].
#[must_use]
pub const fn key_area(index: u64, copy: Copy) -> Pba {
    debug_assert!(index < KEY_AREA_BLOCKS);
    Pba(copy.start() + KEY_AREA_START + index)
}

/// Where a journal of so many blocks lies, and the first block after all that
/// is fixed.
#[must_use]
pub const fn journal(blocks: BlockCount) -> (Extent, Pba) {
    let after = COPY_DISTANCE + COPY_BLOCKS;
    if blocks.0 <= COPY_DISTANCE - COPY_BLOCKS {
        (Extent { start: Pba(COPY_BLOCKS), count: blocks }, Pba(after))
    } else {
        (Extent { start: Pba(after), count: blocks }, Pba(after + blocks.0))
    }
}
