//! Which runs of a device belong to nobody.

use std::collections::BTreeMap;

use block_core::unit::{BlockCount, Extent, Pba};
use thiserror::Error;

use crate::layout::UNIT_BLOCKS;
use crate::size::Size;

/// Why space could not be given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoSpace {
    /// There is less than was asked for.
    #[error(
        "the device has {} free and {} were asked; delete a volume or ask for less",
        Size(.free.bytes()), Size(.asked.bytes())
    )]
    Short {
        /// What there is.
        free: BlockCount,
        /// What was asked, in whole units.
        asked: BlockCount,
    },
    /// There is enough, in too many pieces.
    #[error(
        "the device has {} free, but {} of it are in more than {pieces} pieces, and a volume has \
         at most {} extents; delete a volume or ask for less",
        Size(.free.bytes()), Size(.asked.bytes()), crate::layout::MAX_EXTENTS
    )]
    Fragmented {
        /// What there is.
        free: BlockCount,
        /// What was asked, in whole units.
        asked: BlockCount,
        /// How many pieces the volume may still get.
        pieces: usize,
    },
}

/// The free runs of a device's data area, in whole units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// First block -> blocks; runs never touch each other.
    free: BTreeMap<u64, u64>,
}

impl Space {
    /// The area from `start` (a whole unit) to the last whole unit before
    /// `end`, all free.
    #[must_use]
    pub fn new(start: Pba, end: Pba) -> Self {
        let count = end.0.saturating_sub(start.0) / UNIT_BLOCKS * UNIT_BLOCKS;
        let free = if count == 0 { BTreeMap::new() } else { BTreeMap::from([(start.0, count)]) };
        Self { free }
    }

    /// Takes a run out that is in use, or says that it is not free.
    #[must_use]
    pub fn claim(&mut self, extent: Extent) -> bool {
        let Some((&start, &count)) = self.free.range(..=extent.start.0).next_back() else {
            return false;
        };
        let whole = extent.start.0.is_multiple_of(UNIT_BLOCKS)
            && extent.count.0.is_multiple_of(UNIT_BLOCKS)
            && extent.count.0 > 0;
        let Some(end) = extent.start.0.checked_add(extent.count.0) else { return false };
        if !whole || end > start + count {
            return false;
        }
        self.cut(start, count, extent);
        true
    }

    /// How much is free.
    #[must_use]
    pub fn free(&self) -> BlockCount {
        BlockCount(self.free.values().sum())
    }

    /// Room for `blocks`, rounded up to whole units, in at most `pieces` runs.
    /// The first of them continues `after` when it can: a grown volume then
    /// has no extent more than before.
    ///
    /// # Errors
    /// [`NoSpace`]; nothing was taken then.
    pub fn take(
        &mut self,
        blocks: BlockCount,
        after: Option<Extent>,
        pieces: usize,
    ) -> Result<Vec<Extent>, NoSpace> {
        let asked = BlockCount(blocks.0.div_ceil(UNIT_BLOCKS).saturating_mul(UNIT_BLOCKS));
        let free = self.free();
        if asked > free {
            return Err(NoSpace::Short { free, asked });
        }
        let mut taken = Vec::new();
        let mut missing = asked.0;
        // A continuation merges with the extent before it: it costs no piece.
        let mut pieces_left = pieces;
        if let Some(next) = after.and_then(|extent| self.free.get_key_value(&extent.end().0)) {
            let (&start, &count) = next;
            missing -= self.take_from(start, count.min(missing), &mut taken);
            pieces_left += 1;
        }
        while missing > 0 && taken.len() < pieces_left {
            let Some((start, count)) = self.best_run(missing) else { break };
            missing -= self.take_from(start, count.min(missing), &mut taken);
        }
        if missing > 0 {
            for extent in taken {
                self.give(extent);
            }
            return Err(NoSpace::Fragmented { free, asked, pieces });
        }
        Ok(taken)
    }

    /// The smallest run that holds `blocks`, else the largest one: as few
    /// pieces as there can be.
    fn best_run(&self, blocks: u64) -> Option<(u64, u64)> {
        let runs = || self.free.iter().map(|(&start, &count)| (start, count));
        let fitting = runs().filter(|&(_, count)| count >= blocks).min_by_key(|&(_, count)| count);
        fitting.or_else(|| runs().max_by_key(|&(_, count)| count))
    }

    fn take_from(&mut self, start: u64, count: u64, taken: &mut Vec<Extent>) -> u64 {
        let extent = Extent { start: Pba(start), count: BlockCount(count) };
        if let Some(&run) = self.free.get(&start) {
            self.cut(start, run, extent);
            taken.push(extent);
        }
        count
    }

    /// Takes `extent` out of the free run at `start`, which contains it.
    fn cut(&mut self, start: u64, count: u64, extent: Extent) {
        self.free.remove(&start);
        let (before, after) = (extent.start.0 - start, start + count - extent.end().0);
        if before > 0 {
            self.free.insert(start, before);
        }
        if after > 0 {
            self.free.insert(extent.end().0, after);
        }
    }

    /// Takes a run back.
    pub fn give(&mut self, extent: Extent) {
        let (mut start, mut count) = (extent.start.0, extent.count.0);
        if let Some((&before, &blocks)) = self.free.range(..start).next_back()
            && before + blocks == start
        {
            self.free.remove(&before);
            start = before;
            count += blocks;
        }
        if let Some(blocks) = self.free.remove(&(start + count)) {
            count += blocks;
        }
        self.free.insert(start, count);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Pba = Pba(UNIT_BLOCKS);

    fn space(units: u64) -> Space {
        Space::new(START, Pba(START.0 + units * UNIT_BLOCKS + 17))
    }

    fn units(count: u64) -> BlockCount {
        BlockCount(count * UNIT_BLOCKS)
    }

    #[test]
    fn what_is_too_much_and_what_is_too_scattered_are_told_apart_with_figures() {
        let mut space = space(10);
        let short = space.take(units(11), None, 64).expect_err("too much");
        assert_eq!(
            short.to_string(),
            "the device has 10M free and 11M were asked; delete a volume or ask for less"
        );
        let all: Vec<Extent> =
            (0..10).map(|_| space.take(BlockCount(1), None, 1).expect("room")[0]).collect();
        all.iter().step_by(2).for_each(|&extent| space.give(extent));
        assert_eq!(space.free(), units(5));
        let before = space.clone();
        let scattered = space.take(units(3), None, 2).expect_err("three pieces");
        assert_eq!(scattered, NoSpace::Fragmented { free: units(5), asked: units(3), pieces: 2 });
        assert_eq!(space, before, "a refusal takes nothing");
        assert_eq!(space.take(units(3), None, 3).expect("three pieces").len(), 3);
    }

    #[test]
    fn growing_goes_on_where_the_volume_ends_and_costs_no_extent() {
        let mut space = space(10);
        let first = space.take(units(3), None, 64).expect("room")[0];
        let more = space.take(units(2), Some(first), 0).expect("the neighbour is free");
        assert_eq!(more, [Extent { start: first.end(), count: units(2) }]);
    }

    #[test]
    fn a_run_outside_of_the_area_or_taken_twice_cannot_be_claimed() {
        let mut space = space(4);
        let run = |start, count| Extent { start: Pba(start), count };
        assert!(!space.claim(run(0, units(1))));
        assert!(!space.claim(run(START.0, units(5))));
        assert!(!space.claim(run(START.0, BlockCount(1))));
        assert!(!space.claim(run(START.0, BlockCount(u64::MAX / 256 * 256))));
        assert!(space.claim(run(START.0 + UNIT_BLOCKS, units(2))));
        assert!(!space.claim(run(START.0 + UNIT_BLOCKS, units(1))));
        assert_eq!(space.free(), units(2));
    }

    proptest! {
        /// The model is a flag for each unit.
        #[test]
        fn no_block_is_given_twice_and_none_is_lost(
            steps in prop::collection::vec((0..2u8, 1..12u64, 1..8usize), 1..80)
        ) {
            const UNITS: u64 = 40;
            let mut space = space(UNITS);
            let mut used = [false; UNITS as usize];
            let mut held: Vec<Vec<Extent>> = Vec::new();
            for (step, count, pieces) in steps {
                if step == 0 && !held.is_empty() {
                    for extent in held.remove(count as usize % held.len()) {
                        each_unit(extent, |unit| used[unit] = false);
                        space.give(extent);
                    }
                } else if let Ok(taken) = space.take(units(count), None, pieces) {
                    prop_assert!(taken.len() <= pieces);
                    prop_assert_eq!(taken.iter().map(|extent| extent.count.0).sum::<u64>(), units(count).0);
                    for &extent in &taken {
                        each_unit(extent, |unit| {
                            assert!(!used[unit]);
                            used[unit] = true;
                        });
                    }
                    held.push(taken);
                }
                let free = used.iter().filter(|used| !**used).count() as u64;
                prop_assert_eq!(space.free(), units(free));
            }
        }
    }

    fn each_unit(extent: Extent, mut each: impl FnMut(usize)) {
        let first = (extent.start.0 - START.0) / UNIT_BLOCKS;
        for unit in first..first + extent.count.0 / UNIT_BLOCKS {
            each(unit as usize);
        }
    }
}
