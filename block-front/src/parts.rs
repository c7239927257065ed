//! A guest's request of any size, cut into the parts that a path takes.

use block_core::unit::MAX_REQUEST_BYTES;
use block_core::{SECTOR_SIZE, SectorRange};

/// Sectors in a request's first part: as many as fit, up to where a block
/// begins, so that no block belongs to two parts.
fn sectors_of_first(range: SectorRange) -> u32 {
    ((MAX_REQUEST_BYTES - range.offset_in_block()) / SECTOR_SIZE) as u32
}

/// How many parts a request is cut into.
pub(crate) fn parts_of(range: SectorRange) -> u32 {
    if range.count() <= sectors_of_first(range) {
        return 1;
    }
    let rest = range.count().saturating_sub(sectors_of_first(range));
    1 + rest.div_ceil(block_core::unit::MAX_REQUEST_SECTORS)
}

/// A part of a request, and the bytes of data before it.
#[inline(never)] // Few requests have more than one part.
pub(crate) fn part_of(range: SectorRange, part: u32) -> (SectorRange, u64) {
    const WHOLE: u32 = block_core::unit::MAX_REQUEST_SECTORS;
    let first = sectors_of_first(range);
    if part == 0 && range.count() <= first {
        return (range, 0);
    }
    let (before, most) = match part {
        0 => (0, first),
        _ => (first + (part - 1) * WHOLE, WHOLE),
    };
    let count = range.count().saturating_sub(before).min(most);
    let cut = SectorRange::new(range.start() + u64::from(before), count);
    (cut.expect("a part lies within its request"), u64::from(before) * SECTOR_SIZE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A request that is cut must come out whole: a gap is a read that
        /// returns old memory, an overlap a block written by two parts.
        #[test]
        fn the_parts_of_a_request_follow_each_other_without_sharing_a_block(
            start in 0u64..1 << 50,
            count in 1u32..1 << 23,
        ) {
            let range = SectorRange::new(start, count).expect("fits");
            let mut next = start;
            let parts = parts_of(range);
            for part in 0..parts {
                let (cut, offset) = part_of(range, part);
                prop_assert_eq!(cut.start(), next);
                prop_assert_eq!(offset, (next - start) * SECTOR_SIZE as u64);
                prop_assert!(cut.bytes() <= MAX_REQUEST_BYTES as u64);
                next = cut.end();
                prop_assert!(part + 1 == parts || next.is_multiple_of(8));
            }
            prop_assert_eq!(next, range.end());
            prop_assert!(u16::try_from(parts - 1).is_ok(), "a part's number fits its token");
        }
    }
}
