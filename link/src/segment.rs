//! How a request's data is cut into segments, one frame each.
//!
//! All segments of a session have one size. Sizes below a block cut each block
//! by itself, so that no segment holds bytes of two blocks unless it holds
//! both whole.

use std::ops::Range;

use block_core::BLOCK_SIZE;
use block_core::unit::MAX_REQUEST_BYTES;

/// Segment sizes in bytes, the largest first: two blocks and one block for
/// jumbo frames, then what Ethernet's 1500 and IPv6's least 1280 bytes leave
/// after IP, UDP and frame headers.
pub const SEGMENT_SIZES: [usize; 4] = [8192, 4096, 1368, 1024];

const MAX_SEGMENTS: usize = MAX_REQUEST_BYTES / BLOCK_SIZE * BLOCK_SIZE.div_ceil(1024);
const _: () = assert!(MAX_SEGMENTS <= u128::BITS as usize);

/// The mask that names every block of a request, the usual one.
pub const ALL_BLOCKS: u32 = u32::MAX;
const _: () = assert!(MAX_REQUEST_BYTES / BLOCK_SIZE == u32::BITS as usize);

/// A session's way to cut data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    size: usize,
}

/// A set of a request's segments: bit `i` is segment `i`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentSet(pub u128);

impl Segmentation {
    /// What every path carries.
    pub const SMALLEST: Self = Self { size: SEGMENT_SIZES[SEGMENT_SIZES.len() - 1] };

    /// The segmentation of one of [`SEGMENT_SIZES`].
    #[must_use]
    pub fn new(size: usize) -> Option<Self> {
        SEGMENT_SIZES.contains(&size).then_some(Self { size })
    }

    /// The size in bytes.
    #[must_use]
    pub const fn size(self) -> usize {
        self.size
    }

    const fn per_block(self) -> usize {
        BLOCK_SIZE.div_ceil(self.size)
    }

    /// Whether `bytes` of data are one segment, as most requests are: then
    /// nothing need be divided.
    const fn is_one(self, bytes: usize) -> bool {
        bytes != 0 && bytes <= self.size && bytes <= BLOCK_SIZE
    }

    /// All segments of `bytes` of data, at most [`MAX_REQUEST_BYTES`].
    #[must_use]
    #[inline]
    pub fn all(self, bytes: usize) -> SegmentSet {
        if self.is_one(bytes) {
            return SegmentSet(1);
        }
        SegmentSet::first(self.count(bytes))
    }

    /// The segments that hold the first `unscheduled` bytes of `bytes`.
    #[must_use]
    pub fn within(self, bytes: usize, unscheduled: usize) -> SegmentSet {
        SegmentSet::first(self.count(bytes.min(unscheduled)))
    }

    fn count(self, bytes: usize) -> usize {
        debug_assert!(bytes <= MAX_REQUEST_BYTES);
        if self.size >= BLOCK_SIZE {
            return bytes.div_ceil(self.size);
        }
        let rest = bytes % BLOCK_SIZE;
        bytes / BLOCK_SIZE * self.per_block() + rest.div_ceil(self.size)
    }

    /// The bytes of segment `index` in data of `bytes`; empty past its end.
    #[must_use]
    #[inline]
    pub fn range(self, index: usize, bytes: usize) -> Range<usize> {
        if index == 0 && self.is_one(bytes) {
            return 0..bytes;
        }
        let (start, limit) = if self.size >= BLOCK_SIZE {
            (index * self.size, bytes)
        } else {
            let block = index / self.per_block() * BLOCK_SIZE;
            (block + index % self.per_block() * self.size, bytes.min(block + BLOCK_SIZE))
        };
        start.min(limit)..(start + self.size).min(limit)
    }

    /// Which segment of `bytes` of data a payload of `len` bytes at `offset`
    /// is, if it is exactly one.
    #[must_use]
    #[inline]
    pub fn index(self, offset: usize, len: usize, bytes: usize) -> Option<usize> {
        if self.is_one(bytes) {
            return (offset == 0 && len == bytes).then_some(0);
        }
        if offset >= bytes {
            return None;
        }
        let index = if self.size >= BLOCK_SIZE {
            offset / self.size
        } else {
            offset / BLOCK_SIZE * self.per_block() + offset % BLOCK_SIZE / self.size
        };
        (self.range(index, bytes) == (offset..offset + len)).then_some(index)
    }

    /// The segments that hold a byte of the blocks in `mask` (bit `i`: bytes
    /// `4096 i` to `4096 (i + 1)` of the data).
    #[must_use]
    #[inline]
    pub fn of_blocks(self, mask: u32, bytes: usize) -> SegmentSet {
        if mask == ALL_BLOCKS { self.all(bytes) } else { self.of_some_blocks(mask, bytes) }
    }

    #[cold]
    fn of_some_blocks(self, mask: u32, bytes: usize) -> SegmentSet {
        let touches = |index: &usize| {
            let range = self.range(*index, bytes);
            (range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE))
                .any(|block| mask & (1 << block) != 0)
        };
        SegmentSet((0..self.count(bytes)).filter(touches).fold(0, |set, index| set | 1 << index))
    }

    /// The blocks of which `set` holds a segment.
    #[must_use]
    pub fn blocks(self, set: SegmentSet, bytes: usize) -> u32 {
        set.iter().map(|index| self.range(index, bytes)).fold(0, |mask, range| {
            (range.start / BLOCK_SIZE..range.end.div_ceil(BLOCK_SIZE))
                .fold(mask, |mask, block| mask | 1 << block)
        })
    }
}

impl SegmentSet {
    /// No segment.
    pub const EMPTY: Self = Self(0);

    fn first(count: usize) -> Self {
        Self(u128::MAX.checked_shr((u128::BITS as usize - count) as u32).unwrap_or(0))
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether segment `index` is in it.
    #[must_use]
    pub const fn contains(self, index: usize) -> bool {
        self.0 >> index & 1 == 1
    }

    /// Adds segment `index`.
    pub const fn insert(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    /// Takes the lowest segment out.
    pub const fn pop(&mut self) -> Option<usize> {
        if self.0 == 0 {
            return None;
        }
        let index = self.0.trailing_zeros() as usize;
        self.0 &= self.0 - 1;
        Some(index)
    }

    /// What is in this set and not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// What is in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The segments, ascending.
    pub fn iter(mut self) -> impl Iterator<Item = usize> {
        std::iter::from_fn(move || self.pop())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The segments of any data cover each byte once, and each is found
        /// again by its place.
        #[test]
        fn segments_cover_the_data_once(size in prop::sample::select(&SEGMENT_SIZES[..]),
                                        sectors in 1..=MAX_REQUEST_BYTES / 512) {
            let cut = Segmentation::new(size).expect("a known size");
            let bytes = sectors * 512;
            let all = cut.all(bytes);
            let mut next = 0;
            for index in all.iter() {
                let range = cut.range(index, bytes);
                prop_assert_eq!(range.start, next);
                prop_assert!(range.len() <= size && !range.is_empty());
                prop_assert_eq!(cut.index(range.start, range.len(), bytes), Some(index));
                prop_assert_eq!(cut.index(range.start, range.len() - 1, bytes), None);
                next = range.end;
            }
            prop_assert_eq!(next, bytes);
            prop_assert_eq!(cut.index(bytes, 512, bytes), None);
            prop_assert!(cut.range(all.len(), bytes).is_empty());
        }

        /// A small segment never straddles a block.
        #[test]
        fn small_segments_stay_inside_a_block(size in prop::sample::select(&SEGMENT_SIZES[1..]),
                                              index in 0..32usize) {
            let cut = Segmentation::new(size).expect("a known size");
            let range = cut.range(index, MAX_REQUEST_BYTES);
            prop_assert_eq!(range.start / BLOCK_SIZE, (range.end - 1) / BLOCK_SIZE);
        }

        #[test]
        fn blocks_and_segments_name_each_other(size in prop::sample::select(&SEGMENT_SIZES[..]),
                                               sectors in 1..=MAX_REQUEST_BYTES / 512,
                                               mask in any::<u32>()) {
            let cut = Segmentation::new(size).expect("a known size");
            let bytes = sectors * 512;
            let present = u32::MAX >> (32 - bytes.div_ceil(BLOCK_SIZE));
            let set = cut.of_blocks(mask, bytes);
            prop_assert_eq!(cut.blocks(set, bytes) & mask, mask & present);
            if size <= BLOCK_SIZE {
                prop_assert_eq!(cut.blocks(set, bytes), mask & present);
            }
        }
    }
}
