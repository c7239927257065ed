//! Where counts and their directory lie, and what an entry of the directory
//! says.
//!
//! A segment is a run of the device that got its counts at one time: the
//! whole device when the pool was made, and each piece that it grew by. The
//! counts of its blocks fill pages of 2048, one for each *region*; directory
//! pages of 128 entries stand above them, at least one level of them, until
//! one page covers the segment. Its entry is in the superblock.
//!
//! ```text
//! counts page       2048 x count u16; what lies past the segment's end: zero
//! directory page     128 x entry; past the segment's end: zero
//!
//! entry        0    tag, 16 bytes
//!              16   seq u32
//!              20   era u24
//!              23   home u8: 1 first, 2 second; 0 never written
//!              24   free u64: blocks below whose count is 0
//! ```
//!
//! 32 zero bytes are the entry of a page that was never written: all counts
//! below it are 0. Every page has two homes, written in turn, so that the
//! durable one is never overwritten:
//!
//! ```text
//! homes        first homes:   counts pages | level 1 | level 2 | .. | the top
//!              second homes:  the same again
//! ```
//!
//! In the superblock a segment has 64 bytes:
//!
//! ```text
//! 0    start u64 | blocks u64 | homes u64 | zero u64
//! 32   the entry of its top page
//! ```

use block_core::{BLOCK_SIZE, BlockCount, Extent, Pba};

use crate::layout::control::Malformed;
use crate::layout::pointer::MAX_BLOCKS;
use crate::layout::{Binding, Class, EraId, Seal};

/// Bytes of a count.
pub const COUNT_BYTES: usize = 2;

/// Blocks whose counts fill a page.
pub const REGION_BLOCKS: u64 = (BLOCK_SIZE / COUNT_BYTES) as u64;

/// The count of a page of the pool, and of a fixed place.
pub const PAGE_COUNT: u16 = u16::MAX;

/// Bytes of an entry of the directory.
pub const ENTRY_BYTES: usize = 32;

/// Entries of a directory page.
pub const ENTRIES: u64 = (BLOCK_SIZE / ENTRY_BYTES) as u64;

/// Bytes of a segment in the superblock.
pub const ROOT_BYTES: usize = 64;

/// Most segments of a pool.
pub const MAX_SEGMENTS: usize = 32;

/// Levels of directory above the counts of the largest pool.
pub const MAX_LEVELS: u8 = 4;

const _: () = assert!(REGION_BLOCKS == 2048 && ENTRIES == 128);
const _: () = assert!(REGION_BLOCKS * ENTRIES.pow(MAX_LEVELS as u32) >= MAX_BLOCKS);
const _: () = assert!(MAX_BLOCKS / REGION_BLOCKS <= u32::MAX as u64);
const _: () = assert!(ROOT_BYTES * MAX_SEGMENTS <= BLOCK_SIZE / 2);

/// Which of a page's two places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// Written the first time.
    First,
    /// Written after the first.
    Second,
}

/// What the directory says of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Entry {
    /// Never written: every block below has the count 0.
    #[default]
    Untouched,
    /// Written.
    Written {
        /// What opens it.
        seal: Seal,
        /// Where it is.
        home: Home,
        /// Blocks below whose count is 0.
        free: u64,
    },
}

impl Entry {
    /// How many of `below` blocks, all that lie below the page, have the
    /// count 0.
    #[must_use]
    pub const fn free(&self, below: u64) -> u64 {
        match self {
            Self::Untouched => below,
            Self::Written { free, .. } => *free,
        }
    }

    /// Where the page's next version goes.
    #[must_use]
    pub const fn next_home(&self) -> Home {
        match self {
            Self::Untouched | Self::Written { home: Home::Second, .. } => Home::First,
            Self::Written { home: Home::First, .. } => Home::Second,
        }
    }

    /// The entry as its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut bytes = [0; ENTRY_BYTES];
        if let Self::Written { seal, home, free } = self {
            bytes[..16].copy_from_slice(&seal.tag);
            bytes[16..20].copy_from_slice(&seal.seq.to_le_bytes());
            bytes[20..23].copy_from_slice(&seal.era.0.to_le_bytes()[..3]);
            bytes[23] = match home {
                Home::First => 1,
                Home::Second => 2,
            };
            bytes[24..].copy_from_slice(&free.to_le_bytes());
        }
        bytes
    }

    /// The entry of a page with `below` blocks below it, or `None` when the
    /// bytes say what cannot be.
    #[must_use]
    pub fn decode(bytes: &[u8; ENTRY_BYTES], below: u64) -> Option<Self> {
        let home = match bytes[23] {
            0 => return (*bytes == [0; ENTRY_BYTES]).then_some(Self::Untouched),
            1 => Home::First,
            2 => Home::Second,
            _ => return None,
        };
        let free = u64_at(bytes, 24);
        if free > below {
            return None;
        }
        let mut tag = [0; 16];
        tag.copy_from_slice(&bytes[..16]);
        let seq = u32::from_le_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
        let era = EraId(u32::from_le_bytes([bytes[20], bytes[21], bytes[22], 0]));
        Some(Self::Written { seal: Seal { tag, seq, era }, home, free })
    }
}

/// A run of the device with counts of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    start: Pba,
    blocks: u64,
    homes: Pba,
    /// Worked out once: every look at a count needs it.
    shape: Shape,
}

impl Segment {
    /// The segment of these blocks whose homes begin at `homes`, or `None`
    /// when they do not fit into it with a block to spare.
    #[must_use]
    pub fn new(extent: Extent, homes: Pba) -> Option<Self> {
        let blocks = extent.count.0;
        let end = extent.start.checked_add(extent.count)?;
        if blocks == 0 || end.0 > MAX_BLOCKS || homes < extent.start {
            return None;
        }
        let after = homes.checked_add(homes_blocks(extent.count))?;
        let spare = blocks > homes_blocks(extent.count).0;
        let shape = Shape::of(blocks);
        (spare && after <= end).then_some(Self { start: extent.start, blocks, homes, shape })
    }

    /// All its blocks.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        Extent { start: self.start, count: BlockCount(self.blocks) }
    }

    /// The blocks that its counts and their directory lie on.
    #[must_use]
    pub const fn homes(&self) -> Extent {
        Extent { start: self.homes, count: BlockCount(2 * self.shape.set()) }
    }

    /// The level of its top page, at least 1.
    #[must_use]
    pub const fn levels(&self) -> u8 {
        self.shape.levels
    }

    /// How many pages a level has; level 0 is the counts, a page for each
    /// region.
    #[must_use]
    pub const fn pages(&self, level: u8) -> u64 {
        self.shape.at[level as usize + 1] - self.shape.at[level as usize]
    }

    /// How many blocks lie below a page; none for one past the end.
    #[must_use]
    pub const fn below(&self, level: u8, page: u64) -> u64 {
        let span = REGION_BLOCKS * ENTRIES.pow(level as u32);
        let left = self.blocks.saturating_sub(page.saturating_mul(span));
        if left < span { left } else { span }
    }

    /// The first block of a region.
    #[must_use]
    pub const fn region_start(&self, region: u64) -> Pba {
        Pba(self.start.0 + region * REGION_BLOCKS)
    }

    /// What the page is bound to in one of its homes.
    #[must_use]
    pub const fn binding(&self, level: u8, page: u64, home: Home) -> Binding {
        let mut at = self.homes.0 + self.shape.at[level as usize] + page;
        if matches!(home, Home::Second) {
            at += self.shape.set();
        }
        let class = if level == 0 { Class::Counts } else { Class::Directory };
        Binding::page(class, level, Pba(at))
    }
}

/// A segment and the entry of its top page: what a superblock says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentRoot {
    /// Which blocks.
    pub segment: Segment,
    /// What opens its top page.
    pub top: Entry,
}

impl SegmentRoot {
    /// The root as its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ROOT_BYTES] {
        let mut bytes = [0; ROOT_BYTES];
        bytes[..8].copy_from_slice(&self.segment.start.0.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.segment.blocks.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.segment.homes.0.to_le_bytes());
        bytes[32..].copy_from_slice(&self.top.encode());
        bytes
    }

    /// The root that these bytes are.
    ///
    /// # Errors
    /// When they say what cannot be.
    pub fn decode(bytes: &[u8; ROOT_BYTES]) -> Result<Self, Malformed> {
        let start = Pba(u64_at(bytes, 0));
        let extent = Extent { start, count: BlockCount(u64_at(bytes, 8)) };
        let segment = Segment::new(extent, Pba(u64_at(bytes, 16))).ok_or(Malformed)?;
        let mut top = [0; ENTRY_BYTES];
        top.copy_from_slice(&bytes[32..]);
        let top = Entry::decode(&top, segment.blocks).ok_or(Malformed)?;
        if u64_at(bytes, 24) == 0 { Ok(Self { segment, top }) } else { Err(Malformed) }
    }

    /// All roots of a pool: they follow each other from block 0 without a
    /// gap.
    ///
    /// # Errors
    /// When they do not, or when there is none or too many.
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, Malformed> {
        let (roots, rest) = bytes.as_chunks::<ROOT_BYTES>();
        let count = roots.len();
        if !rest.is_empty() || count == 0 || count > MAX_SEGMENTS {
            return Err(Malformed);
        }
        let mut end = Pba(0);
        let next = |bytes| {
            let root = Self::decode(bytes)?;
            let follows = root.segment.start == end;
            end = root.segment.extent().end();
            if follows { Ok(root) } else { Err(Malformed) }
        };
        roots.iter().map(next).collect()
    }
}

/// How many blocks the homes of a segment take.
#[must_use]
pub const fn homes_blocks(segment: BlockCount) -> BlockCount {
    BlockCount(2 * Shape::of(segment.0).set())
}

/// The pages of a set of homes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    levels: u8,
    /// Where each level begins in the set; after the top level, where the set
    /// ends.
    at: [u64; MAX_LEVELS as usize + 2],
}

impl Shape {
    const fn of(blocks: u64) -> Self {
        let mut at = [0; MAX_LEVELS as usize + 2];
        let mut pages = blocks.div_ceil(REGION_BLOCKS);
        let mut level = 0;
        at[1] = pages;
        while level == 0 || (pages > 1 && level < MAX_LEVELS as usize) {
            pages = pages.div_ceil(ENTRIES);
            level += 1;
            at[level + 1] = at[level] + pages;
        }
        Self { levels: level as u8, at }
    }

    const fn set(&self) -> u64 {
        self.at[self.levels as usize + 1]
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(start: u64, blocks: u64, homes: u64) -> Option<Segment> {
        Segment::new(Extent { start: Pba(start), count: BlockCount(blocks) }, Pba(homes))
    }

    /// The bytes of one root, written by hand: what is on disks must be read
    /// by every later version.
    #[test]
    fn a_root_has_these_bytes() {
        let seal = Seal { tag: *b"0123456789abcdef", seq: 0x0403_0201, era: EraId(0x07_0605) };
        let top = Entry::Written { seal, home: Home::Second, free: 0x0102 };
        let root = SegmentRoot { segment: segment(0x4000, 0x2_0000, 0x5001).expect("fits"), top };
        let expected = *b"\x00\x40\0\0\0\0\0\0\x00\x00\x02\0\0\0\0\0\x01\x50\0\0\0\0\0\0\
            \0\0\0\0\0\0\0\0\
            0123456789abcdef\x01\x02\x03\x04\x05\x06\x07\x02\x02\x01\0\0\0\0\0\0";
        assert_eq!(root.encode(), expected);
        assert_eq!(SegmentRoot::decode(&expected), Ok(root));
        assert_eq!(Entry::Untouched.encode(), [0; ENTRY_BYTES]);
    }

    /// Where pages of a 1 TiB segment lie, worked out by hand.
    #[test]
    fn a_tebibyte_has_these_homes() {
        let segment = segment(0, 1 << 28, 9216).expect("fits");
        assert_eq!(segment.levels(), 3);
        assert_eq!([0, 1, 2, 3].map(|level| segment.pages(level)), [131_072, 1024, 8, 1]);
        let set = 131_072 + 1024 + 8 + 1;
        assert_eq!(segment.homes().count.0, 2 * set);
        let at = |level, page, home| segment.binding(level, page, home).pba.0;
        assert_eq!(at(0, 5, Home::First), 9216 + 5);
        assert_eq!(at(1, 5, Home::First), 9216 + 131_072 + 5);
        assert_eq!(at(3, 0, Home::Second), 9216 + set + set - 1);
        assert_eq!(segment.binding(0, 0, Home::First).class, Class::Counts);
        assert_eq!(segment.binding(2, 1, Home::First).level, 2);
    }

    #[test]
    fn segments_follow_each_other_without_a_gap() {
        let root = |start, blocks| SegmentRoot {
            segment: segment(start, blocks, start).expect("fits"),
            top: Entry::Untouched,
        };
        let bytes = |roots: &[SegmentRoot]| roots.iter().flat_map(SegmentRoot::encode).collect();
        let whole: Vec<u8> = bytes(&[root(0, 3000), root(3000, 100)]);
        assert_eq!(SegmentRoot::decode_all(&whole).map(|roots| roots.len()), Ok(2));
        let gap: Vec<u8> = bytes(&[root(0, 3000), root(3001, 100)]);
        assert_eq!(SegmentRoot::decode_all(&gap), Err(Malformed));
        assert_eq!(SegmentRoot::decode_all(&[]), Err(Malformed));
        assert_eq!(SegmentRoot::decode_all(&whole[..70]), Err(Malformed));
    }

    #[test]
    fn homes_must_fit_and_leave_a_block() {
        assert_eq!(homes_blocks(BlockCount(2048)).0, 4);
        assert!(segment(10, 4, 10).is_none());
        assert!(segment(10, 5, 10).is_some());
        assert!(segment(10, 5, 9).is_none());
        assert!(segment(10, 5, 12).is_none());
        assert!(segment(0, 0, 0).is_none());
        assert!(segment(MAX_BLOCKS - 10, 11, MAX_BLOCKS - 10).is_none());
        assert!(segment(u64::MAX, u64::MAX, u64::MAX).is_none());
    }

    proptest! {
        /// No two pages share a home, and none lies outside.
        #[test]
        fn homes_are_apart(blocks in 5u64..900_000) {
            let segment = segment(77, blocks, 77).expect("fits");
            let mut seen = std::collections::BTreeSet::new();
            for level in 0..=segment.levels() {
                for page in 0..segment.pages(level) {
                    prop_assert!(segment.below(level, page) > 0);
                    for home in [Home::First, Home::Second] {
                        prop_assert!(seen.insert(segment.binding(level, page, home).pba));
                    }
                }
                prop_assert_eq!(segment.below(level, segment.pages(level)), 0);
            }
            prop_assert_eq!(seen.len() as u64, segment.homes().count.0);
            prop_assert_eq!(seen.first(), Some(&segment.homes().start));
            prop_assert_eq!(seen.last().map(|last| last.0 + 1), Some(segment.homes().end().0));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes: [u8; ENTRY_BYTES], home in 0u8..4) {
            let mut bytes = bytes;
            bytes[23] = home;
            bytes[30..].fill(0);
            if let Some(entry) = Entry::decode(&bytes, 1 << 40) {
                prop_assert_eq!(entry.encode(), bytes);
            }
        }

        #[test]
        fn no_root_is_too_strange(bytes: [u8; ROOT_BYTES]) {
            let _ = SegmentRoot::decode(&bytes);
            let _ = SegmentRoot::decode_all(&bytes);
        }
    }
}
