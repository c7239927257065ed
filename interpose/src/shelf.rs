//! Things by number, in order, that stay where they are in memory.
//!
//! A tree knows the order and where each one lies, so it is small and what it
//! moves when it grows is small. Most often the next one that is asked for is
//! the last one that was: it is not searched for. Two are remembered, because
//! what comes new and what goes take turns, each in its own order.

use std::collections::BTreeMap;
use std::ops::RangeBounds;

/// Things that one piece of memory holds: growing copies none of them.
const CHUNK: usize = 64;

/// Remembered when nothing is: no number is so large.
const NOTHING: (u64, u32) = (u64::MAX, 0);

/// What a thing is worked at for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    /// Something comes.
    Coming,
    /// Something goes.
    Going,
}

/// Things by number. A thing that is worked at and not there is made.
#[derive(Debug)]
pub(crate) struct Shelf<T> {
    places: BTreeMap<u64, u32>,
    chunks: Vec<Vec<T>>,
    unused: Vec<u32>,
    /// The number that was worked at last for each use, and its place.
    last: [(u64, u32); 2],
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { places: BTreeMap::new(), chunks: Vec::new(), unused: Vec::new(), last: [NOTHING; 2] }
    }
}

impl<T: Default> Shelf<T> {
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn get(&self, number: u64) -> Option<&T> {
        let place = self.remembered(number).or_else(|| self.places.get(&number).copied())?;
        Some(self.at(place))
    }

    /// The thing, made if need be. The next one for the same use is likely the
    /// same.
    pub(crate) fn work_at(&mut self, number: u64, usage: Use) -> &mut T {
        let (last, place) = self.last[usage as usize];
        if last == number {
            return self.at_mut(place);
        }
        let place = self.place_of(number);
        self.last[usage as usize] = (number, place);
        self.at_mut(place)
    }

    pub(crate) fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let place = self.remembered(number).or_else(|| self.places.get(&number).copied())?;
        Some(self.at_mut(place))
    }

    pub(crate) fn remove(&mut self, number: u64) {
        if let Some(place) = self.places.remove(&number) {
            *self.at_mut(place) = T::default();
            self.unused.push(place);
            self.last = [NOTHING; 2];
        }
    }

    /// Those of some numbers, in order.
    pub(crate) fn range(&self, numbers: impl RangeBounds<u64>) -> impl Iterator<Item = (u64, &T)> {
        self.places.range(numbers).map(|(&number, &place)| (number, self.at(place)))
    }

    /// The same, to be changed.
    pub(crate) fn change_range(
        &mut self,
        numbers: impl RangeBounds<u64>,
        mut change: impl FnMut(u64, &mut T),
    ) {
        for (&number, &place) in self.places.range(numbers) {
            let place = place as usize;
            change(number, &mut self.chunks[place / CHUNK][place % CHUNK]);
        }
    }

    /// Lets go of one thing, whichever; whether there was one. The others are
    /// not found any more.
    pub(crate) fn drop_some(&mut self) -> bool {
        self.last = [NOTHING; 2];
        self.places.pop_first();
        while let Some(chunk) = self.chunks.last_mut() {
            if chunk.pop().is_some() {
                return true;
            }
            self.chunks.pop();
        }
        !self.places.is_empty()
    }

    fn remembered(&self, number: u64) -> Option<u32> {
        let last = self.last.iter().find(|(last, _)| *last == number);
        last.map(|&(_, place)| place)
    }

    fn place_of(&mut self, number: u64) -> u32 {
        let (chunks, unused) = (&mut self.chunks, &mut self.unused);
        *self.places.entry(number).or_insert_with(|| unused.pop().unwrap_or_else(|| add(chunks)))
    }

    fn at(&self, place: u32) -> &T {
        &self.chunks[place as usize / CHUNK][place as usize % CHUNK]
    }

    fn at_mut(&mut self, place: u32) -> &mut T {
        &mut self.chunks[place as usize / CHUNK][place as usize % CHUNK]
    }
}

/// The place of a new thing.
fn add<T: Default>(chunks: &mut Vec<Vec<T>>) -> u32 {
    if chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
        chunks.push(Vec::with_capacity(CHUNK));
    }
    let before = (chunks.len() - 1) * CHUNK;
    let chunk = chunks.last_mut().expect("one was added");
    chunk.push(T::default());
    (before + chunk.len() - 1) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The model is a sorted map. What was remembered must not outlive its
        /// removal, and a place that is used again must be empty.
        #[test]
        fn a_shelf_is_a_sorted_map(
            steps in prop::collection::vec((0u64..200, 0u8..8), 0..600),
        ) {
            let (mut shelf, mut model) = (Shelf::<u64>::default(), BTreeMap::<u64, u64>::new());
            for (number, step) in steps {
                match step {
                    0..4 => {
                        *shelf.work_at(number, Use::Coming) += 1;
                        *model.entry(number).or_default() += 1;
                    }
                    4..6 => {
                        *shelf.work_at(number, Use::Going) += 10;
                        *model.entry(number).or_default() += 10;
                    }
                    6 => {
                        shelf.remove(number);
                        model.remove(&number);
                    }
                    _ => {
                        shelf.change_range(number..number + 9, |number, thing| *thing += number);
                        let range = model.range_mut(number..number + 9);
                        range.for_each(|(number, thing)| *thing += number);
                    }
                }
                prop_assert_eq!(shelf.get(number), model.get(&number));
            }
            prop_assert_eq!(shelf.len(), model.len());
            let all: Vec<_> = shelf.range(..).map(|(number, &thing)| (number, thing)).collect();
            prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
            let mut drops = 0;
            while shelf.drop_some() {
                drops += 1;
                prop_assert!(drops <= 200);
            }
        }
    }
}
