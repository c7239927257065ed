//! Units as types: sectors, blocks and the places they are counted in.
//!
//! A value of one of these types has been checked where it was made. Below
//! that place nobody checks it again.

use std::fmt;

/// Bytes in a sector, the unit of virtio-blk (virtio 1.2, section 5.2.4).
pub const SECTOR_SIZE: usize = 512;

/// Bytes in a block, the unit of everything behind the front.
pub const BLOCK_SIZE: usize = 4096;

/// Sectors in a block.
pub const SECTORS_PER_BLOCK: u64 = (BLOCK_SIZE / SECTOR_SIZE) as u64;

/// Most bytes that one request carries over the link; a front cuts larger
/// guest requests.
pub const MAX_REQUEST_BYTES: usize = 128 * 1024;

/// Most sectors that one data request spans.
pub const MAX_REQUEST_SECTORS: u32 = (MAX_REQUEST_BYTES / SECTOR_SIZE) as u32;

/// Most blocks that one data request touches: one more than its size says,
/// because it may start and end inside a block.
pub const MAX_REQUEST_BLOCKS: usize = MAX_REQUEST_BYTES / BLOCK_SIZE + 1;

const _: () = assert!(BLOCK_SIZE.is_multiple_of(SECTOR_SIZE));
const _: () = assert!(MAX_REQUEST_BYTES.is_multiple_of(BLOCK_SIZE));

/// A block's number in a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

/// A block's number on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pba(pub u64);

/// How many blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockCount(pub u64);

impl BlockCount {
    /// The whole blocks in `bytes`; what is left over is not counted.
    #[must_use]
    pub const fn in_bytes(bytes: u64) -> Self {
        Self(bytes / BLOCK_SIZE as u64)
    }

    /// The size in bytes; saturates, which no real device reaches.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(BLOCK_SIZE as u64)
    }

    /// The size in sectors; saturates, which no real device reaches.
    #[must_use]
    pub const fn sectors(self) -> u64 {
        self.0.saturating_mul(SECTORS_PER_BLOCK)
    }
}

impl fmt::Display for BlockCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks", self.0)
    }
}

impl Pba {
    /// The block `count` further on, or `None` past the number space.
    #[must_use]
    pub const fn checked_add(self, count: BlockCount) -> Option<Self> {
        match self.0.checked_add(count.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

/// A run of blocks on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The first block.
    pub start: Pba,
    /// How many blocks follow each other.
    pub count: BlockCount,
}

impl Extent {
    /// The block after the last one.
    #[must_use]
    pub const fn end(self) -> Pba {
        Pba(self.start.0.saturating_add(self.count.0))
    }

    /// Whether both runs share a block.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 < other.end().0 && other.start.0 < self.end().0
    }
}

/// A run of blocks in a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LbaRange {
    /// The first block.
    pub start: Lba,
    /// How many blocks follow each other.
    pub count: BlockCount,
}

impl LbaRange {
    /// The block after the last one.
    #[must_use]
    pub const fn end(self) -> Lba {
        Lba(self.start.0.saturating_add(self.count.0))
    }

    /// Whether the run holds no block.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.count.0 == 0
    }

    /// Whether both runs share a block.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.0 < other.end().0 && other.start.0 < self.end().0
    }
}

/// A run of sectors in a volume: at least one, and its end is a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SectorRange {
    start: u64,
    count: u32,
}

impl SectorRange {
    /// The run of `count` sectors from `start`, or `None` when it is empty or
    /// its last byte has no 64-bit address.
    #[must_use]
    pub const fn new(start: u64, count: u32) -> Option<Self> {
        if count == 0 {
            return None;
        }
        let Some(end) = start.checked_add(count as u64) else { return None };
        if end > u64::MAX / SECTOR_SIZE as u64 {
            return None;
        }
        Some(Self { start, count })
    }

    /// The first sector.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// How many sectors, at least one.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.count
    }

    /// The sector after the last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start + self.count as u64
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.count as u64 * SECTOR_SIZE as u64
    }

    /// Where the first sector lies in its block, in bytes. A request's data
    /// begins at this place of its buffer, so that whole blocks of the volume
    /// are whole pages of the buffer.
    #[must_use]
    pub const fn offset_in_block(self) -> usize {
        (self.start % SECTORS_PER_BLOCK) as usize * SECTOR_SIZE
    }

    /// Every block that the run touches, also partly.
    #[must_use]
    pub const fn blocks_touched(self) -> LbaRange {
        let first = self.start / SECTORS_PER_BLOCK;
        let end = self.end().div_ceil(SECTORS_PER_BLOCK);
        LbaRange { start: Lba(first), count: BlockCount(end - first) }
    }

    /// The blocks that the run covers from end to end; may be none.
    #[must_use]
    pub const fn blocks_covered(self) -> LbaRange {
        let first = self.start.div_ceil(SECTORS_PER_BLOCK);
        let end = self.end() / SECTORS_PER_BLOCK;
        LbaRange { start: Lba(first), count: BlockCount(end.saturating_sub(first)) }
    }

    /// Whether the run is made of whole blocks.
    #[must_use]
    pub const fn is_block_aligned(self) -> bool {
        self.start.is_multiple_of(SECTORS_PER_BLOCK)
            && (self.count as u64).is_multiple_of(SECTORS_PER_BLOCK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_sectors_knows_the_blocks_it_touches_and_covers() {
        let run = SectorRange::new(7, 10).expect("fits");
        assert_eq!(run.blocks_touched(), LbaRange { start: Lba(0), count: BlockCount(3) });
        assert_eq!(run.blocks_covered(), LbaRange { start: Lba(1), count: BlockCount(1) });
        assert_eq!(run.offset_in_block(), 7 * SECTOR_SIZE);
        assert!(!run.is_block_aligned());
    }

    #[test]
    fn a_run_inside_one_block_covers_none() {
        let run = SectorRange::new(9, 2).expect("fits");
        assert_eq!(run.blocks_touched().count, BlockCount(1));
        assert!(run.blocks_covered().is_empty());
    }

    #[test]
    fn a_run_that_wraps_or_is_empty_cannot_be_made() {
        assert_eq!(SectorRange::new(5, 0), None);
        assert_eq!(SectorRange::new(u64::MAX, 1), None);
        assert_eq!(SectorRange::new(u64::MAX / 512, 1), None);
        assert!(SectorRange::new(u64::MAX / 512 - 1, 1).is_some());
    }

    #[test]
    fn the_largest_request_touches_one_block_more_than_its_size() {
        let run = SectorRange::new(1, MAX_REQUEST_SECTORS).expect("fits");
        assert_eq!(run.blocks_touched().count.0 as usize, MAX_REQUEST_BLOCKS);
    }
}
