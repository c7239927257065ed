//! Everything that a run leaves to chance, from its seed.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use block_core::Chance;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngCore, SeedableRng};

/// Numbers that follow from a seed.
#[derive(Debug)]
pub struct Dice(StdRng);

impl Dice {
    /// Dice whose throws follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Dice of their own for one part of the world, so that what happens there
    /// does not change the throws elsewhere.
    pub fn split(&mut self) -> Self {
        Self::new(self.number())
    }

    /// The same as the seam that production code knows.
    pub fn chance(&mut self) -> Chance {
        let dice = RefCell::new(self.split());
        Chance::new(move || dice.borrow_mut().number())
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number of the range.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        self.0.random_range(range)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit)
    }

    /// Whether what happens `of_thousand` times in a thousand happens now.
    pub fn happens(&mut self, of_thousand: u32) -> bool {
        of_thousand > 0 && self.0.random_range(0..1000) < of_thousand
    }

    /// One of them; there is one.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        *all.choose(&mut self.0).expect("something to choose from")
    }

    /// Any order.
    pub fn shuffle<T>(&mut self, all: &mut [T]) {
        all.shuffle(&mut self.0);
    }

    /// A span of time; short ones are as likely as long ones are rare.
    pub fn span(&mut self, range: RangeInclusive<Duration>) -> Duration {
        let (least, most) = (range.start().as_nanos() as f64, range.end().as_nanos() as f64);
        let power = self.0.random_range(0.0..=1.0);
        let nanos = (least.max(1.0)) * (most / least.max(1.0)).powf(power);
        Duration::from_nanos(nanos as u64)
    }
}

/// Dice that several throw.
pub type SharedDice = Rc<RefCell<Dice>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lie_in_their_range_and_are_mostly_short() {
        let mut dice = Dice::new(1);
        let range = Duration::from_micros(10)..=Duration::from_millis(10);
        let spans: Vec<Duration> = (0..1000).map(|_| dice.span(range.clone())).collect();
        assert!(spans.iter().all(|span| range.contains(span)));
        let short = spans.iter().filter(|span| **span < Duration::from_micros(330)).count();
        assert!((350..650).contains(&short), "{short}");
    }
}
