//! Sets of blocks, as ranges that never touch each other.

use std::collections::BTreeMap;

use block_core::{BlockCount, Lba, LbaRange};

/// A set of blocks of one line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    /// Start -> end.
    ranges: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds a range; it may overlap what is there.
    pub(super) fn insert(&mut self, range: LbaRange) {
        let (mut start, mut end) = (range.start.0, range.end().0);
        // Every range that overlaps or touches, from the last one that begins
        // before the end.
        while let Some((&other, &upto)) = self.ranges.range(..=end).next_back() {
            if upto < start {
                break;
            }
            start = start.min(other);
            end = end.max(upto);
            self.ranges.remove(&other);
        }
        self.ranges.insert(start, end);
    }

    /// Whether the block is in the set.
    #[must_use]
    pub(super) fn contains(&self, lba: Lba) -> bool {
        self.ranges.range(..=lba.0).next_back().is_some_and(|(_, &end)| lba.0 < end)
    }

    /// How many ranges there are.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The parts of the set that lie in a window, in order.
    pub(super) fn within(&self, window: LbaRange) -> impl Iterator<Item = LbaRange> + '_ {
        let (from, until) = (window.start.0, window.end().0);
        let before = self.ranges.range(..from).next_back();
        let rest = self.ranges.range(from..until);
        before.into_iter().chain(rest).filter_map(move |(&start, &end)| {
            let (start, end) = (start.max(from), end.min(until));
            let count = BlockCount(end.checked_sub(start).filter(|&count| count > 0)?);
            Some(LbaRange { start: Lba(start), count })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The model is a flag for each block.
        #[test]
        fn a_set_of_ranges_is_a_set_of_blocks(
            inserts in prop::collection::vec((0..60u64, 1..12u64), 0..20),
            (from, span) in (0..60u64, 1..40u64),
        ) {
            let range = |start, count| LbaRange { start: Lba(start), count: BlockCount(count) };
            let mut ranges = Ranges::default();
            let mut flags = [false; 120];
            for (start, count) in inserts {
                ranges.insert(range(start, count));
                flags[start as usize..(start + count) as usize].fill(true);
            }
            for (lba, flag) in flags.iter().enumerate() {
                prop_assert_eq!(ranges.contains(Lba(lba as u64)), *flag);
            }
            let starts = (0..120).filter(|&at| flags[at] && (at == 0 || !flags[at - 1])).count();
            prop_assert_eq!(ranges.len(), starts);
            let mut seen = [false; 120];
            for part in ranges.within(range(from, span)) {
                prop_assert!(part.start.0 >= from && part.end().0 <= from + span);
                seen[part.start.0 as usize..part.end().0 as usize].fill(true);
            }
            for at in from..from + span {
                prop_assert_eq!(seen[at as usize], flags[at as usize]);
            }
        }
    }
}
