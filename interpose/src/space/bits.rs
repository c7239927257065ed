//! A bit for each block of a region.

use super::layout::REGION_BLOCKS;

const WORDS: usize = REGION_BLOCKS as usize / 64;

/// Which blocks of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bits([u64; WORDS]);

impl Default for Bits {
    fn default() -> Self {
        Self::NONE
    }
}

impl Bits {
    pub(crate) const NONE: Self = Self([0; WORDS]);

    /// The bits that `is` says, of places below `blocks`.
    pub(crate) fn of(blocks: u64, is: impl Fn(u16) -> bool) -> Self {
        let mut bits = Self::NONE;
        (0..blocks as u16).filter(|&place| is(place)).for_each(|place| bits.set(place));
        bits
    }

    pub(crate) fn get(&self, place: u16) -> bool {
        self.0[usize::from(place / 64)] >> (place % 64) & 1 == 1
    }

    pub(crate) fn set(&mut self, place: u16) {
        self.0[usize::from(place / 64)] |= 1 << (place % 64);
    }

    pub(crate) fn clear(&mut self, place: u16) {
        self.0[usize::from(place / 64)] &= !(1 << (place % 64));
    }

    /// Sets a run; says how many were not set.
    #[inline]
    pub(crate) fn set_run(&mut self, place: u16, count: u16) -> u16 {
        if count == 1 {
            let is_new = !self.get(place);
            self.set(place);
            return u16::from(is_new);
        }
        let mut added = 0;
        for (word, mask) in masks(place, count) {
            added += (mask & !self.0[word]).count_ones() as u16;
            self.0[word] |= mask;
        }
        added
    }

    #[inline]
    pub(crate) fn clear_run(&mut self, place: u16, count: u16) {
        if count == 1 {
            return self.clear(place);
        }
        masks(place, count).for_each(|(word, mask)| self.0[word] &= !mask);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0 == [0; WORDS]
    }

    pub(crate) fn count(&self) -> u16 {
        self.0.iter().map(|word| word.count_ones() as u16).sum()
    }

    /// Those that `other` does not have.
    pub(crate) fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// These and those of `other`.
    pub(crate) fn with(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// Those that `other` has too.
    pub(crate) fn common(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    /// The first run, at most so long, when no bit below `from` is set: where
    /// it begins and its length.
    pub(crate) fn first_run(&self, from: u16, most: u16) -> Option<(u16, u16)> {
        let first = usize::from(from / 64);
        let word = first + self.0.get(first..)?.iter().position(|&word| word != 0)?;
        let start = word as u16 * 64 + self.0[word].trailing_zeros() as u16;
        if most == 1 {
            return Some((start, 1));
        }
        let mut length = 0;
        while length < most {
            let place = start + length;
            let Some(word) = self.0.get(usize::from(place / 64)) else { break };
            let ones = (!(word >> (place % 64))).trailing_zeros() as u16;
            length += ones;
            if ones == 0 || !(place + ones).is_multiple_of(64) {
                break;
            }
        }
        Some((start, length.min(most)))
    }
}

/// The words that a run touches, and its bits in each.
fn masks(place: u16, count: u16) -> impl Iterator<Item = (usize, u64)> {
    let end = place + count;
    (place / 64..end.div_ceil(64)).map(move |word| {
        let (low, high) = (place.saturating_sub(word * 64), end.saturating_sub(word * 64).min(64));
        (usize::from(word), u64::MAX >> (64 - high) & u64::MAX << low)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Runs begin and end anywhere, also where words meet and at the end.
        #[test]
        fn the_first_run_is_what_looking_at_every_bit_finds(
            start in 0u16..2048, length in 0u16..400, later in 0u16..2048, most in 1u16..500,
        ) {
            let end = (start + length).min(2048);
            let bits = Bits::of(2048, |place| (start..end).contains(&place) || place == later);
            let first = (0..2048).find(|&place| bits.get(place));
            let run = |first: u16| (first..2048).take_while(|&place| bits.get(place)).count() as u16;
            let expected = first.map(|first| (first, run(first).min(most)));
            prop_assert_eq!(bits.first_run(0, most), expected);
            prop_assert_eq!(bits.first_run(start.min(later), most), expected);
            prop_assert_eq!(Bits::NONE.first_run(2048, most), None);
            let mut runs = Bits::NONE;
            prop_assert_eq!(runs.set_run(start, end - start), end - start);
            prop_assert_eq!(runs.set_run(start, end - start), 0);
            prop_assert_eq!(runs.set_run(later, 1) == 0, (start..end).contains(&later));
            prop_assert_eq!(runs, bits);
            runs.clear_run(start, end - start);
            prop_assert_eq!(runs.get(later), !(start..end).contains(&later));
            prop_assert_eq!(bits.count(), (0..2048).filter(|&place| bits.get(place)).count() as u16);
        }
    }
}
