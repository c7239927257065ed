//! Which of 128 numbers that follow each other are there: where each of them is
//! in a list is counted, not searched for. A search would touch as many lines of
//! a list that is in no cache as it has steps.

/// Some of the places of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Places([u64; 2]);

impl Places {
    /// Bits of a number that say where in its group it is.
    pub(super) const BITS: u32 = 7;

    pub(super) const fn group_of(number: u64) -> u64 {
        number >> Self::BITS
    }

    pub(super) const fn place_of(number: u64) -> u8 {
        number as u8 & ((1 << Self::BITS) - 1)
    }

    pub(super) const fn number(group: u64, place: u8) -> u64 {
        group << Self::BITS | place as u64
    }

    /// Where in the list, which has so many, a place is, or would be.
    pub(super) fn find(&self, place: u8, len: usize) -> Result<usize, usize> {
        // What is filled in order is filled at the end.
        let [low, high] = self.0;
        let rest = if place < 64 { low >> place | high } else { high >> (place - 64) };
        if rest == 0 {
            return Err(len);
        }
        let (word, bit) = (usize::from(place / 64), 1 << (place % 64));
        let before = self.0[word] & (bit - 1);
        let first = if word == 1 { self.0[0].count_ones() } else { 0 };
        let at = (first + before.count_ones()) as usize;
        if self.0[word] & bit == 0 { Err(at) } else { Ok(at) }
    }

    pub(super) fn add(&mut self, place: u8) {
        self.0[usize::from(place / 64)] |= 1 << (place % 64);
    }

    pub(super) fn remove(&mut self, place: u8) {
        self.0[usize::from(place / 64)] &= !(1 << (place % 64));
    }

    /// In order.
    pub(super) const fn iter(&self) -> Iter {
        let [now, then] = self.0;
        Iter { now, base: 0, then }
    }
}

/// Places in order; what is left of them.
#[derive(Clone, Debug)]
pub(super) struct Iter {
    /// Of the word that goes on.
    now: u64,
    base: u8,
    /// The word after it.
    then: u64,
}

impl Iterator for Iter {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        if self.now == 0 {
            if self.then == 0 {
                return None;
            }
            *self = Self { now: self.then, base: 64, then: 0 };
        }
        let place = self.base + self.now.trailing_zeros() as u8;
        self.now &= self.now - 1;
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The model is a sorted set; 63, 64 and 127 are where words end.
        #[test]
        fn a_place_is_where_a_sorted_list_has_it(
            changes in prop::collection::vec((0u8..128, any::<bool>()), 0..200),
        ) {
            let (mut places, mut model) = (Places::default(), BTreeSet::new());
            for (place, there) in changes {
                if there {
                    places.add(place);
                    model.insert(place);
                } else {
                    places.remove(place);
                    model.remove(&place);
                }
            }
            let list: Vec<u8> = model.into_iter().collect();
            prop_assert_eq!(places.iter().collect::<Vec<_>>(), list.clone());
            for place in 0..128 {
                prop_assert_eq!(places.find(place, list.len()), list.binary_search(&place));
            }
        }
    }
}
