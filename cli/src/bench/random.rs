//! Chance from a seed: the same seed gives the same run, in every version.

/// The SplitMix64 generator (Steele, Lea, Flood 2014): small, fast, and good
/// enough to choose offsets and to fill buffers. Not for secrets.
#[derive(Clone, Debug)]
pub(crate) struct SplitMix(u64);

impl SplitMix {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0. The bias of the multiplication
    /// is bound / 2^64, far below what a benchmark can see.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// True in `percent` of 100 draws.
    pub(crate) fn chance(&mut self, percent: u8) -> bool {
        self.below(100) < u64::from(percent)
    }
}

/// Spreads every input bit over all output bits; SplitMix64's finalizer.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A random order of the numbers below a bound that needs no table: a Feistel
/// network over the next even power of two, walked until it falls in range.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    bound: u64,
    half_bits: u32,
    keys: [u64; 4],
}

impl Permutation {
    /// An order of `0..bound`; `bound` is not 0.
    pub(crate) fn new(bound: u64, seed: u64) -> Self {
        assert!(bound > 0, "an order of no numbers");
        let bits = u64::BITS - (bound - 1).leading_zeros();
        let mut chance = SplitMix::new(seed);
        let keys = [(); 4].map(|()| chance.next());
        Self { bound, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// The number at `place` of the order; `place` is below the bound.
    pub(crate) fn at(&self, place: u64) -> u64 {
        assert!(place < self.bound, "a place beyond the order's end");
        let mut number = self.scramble(place);
        // The network is a bijection, so the walk leads back into range: after
        // fewer than four steps on average, its domain being at most four times the bound.
        while number >= self.bound {
            number = self.scramble(number);
        }
        number
    }

    fn scramble(&self, number: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (number >> self.half_bits, number & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A random pass that skipped a block would leave it unverified, and
        /// one that took a block twice would measure a cache.
        #[test]
        fn an_order_has_every_number_once(bound in 1u64..3000, seed: u64) {
            let order = Permutation::new(bound, seed);
            let mut numbers: Vec<u64> = (0..bound).map(|place| order.at(place)).collect();
            numbers.sort_unstable();
            prop_assert!(numbers.into_iter().eq(0..bound));
        }

        #[test]
        fn a_draw_stays_below_its_bound(bound in 1u64.., seed: u64) {
            let mut chance = SplitMix::new(seed);
            prop_assert!((0..100).all(|_| chance.below(bound) < bound));
        }
    }

    #[test]
    fn a_large_order_is_not_sequential() {
        let order = Permutation::new(1 << 28, 7);
        let neighbours =
            (0..1000).filter(|&place| order.at(place).abs_diff(order.at(place + 1)) < 16).count();
        assert!(neighbours < 3, "{neighbours} of 1000 steps go to a neighbour");
    }

    #[test]
    fn a_percentage_is_kept() {
        let mut chance = SplitMix::new(3);
        let hits = (0..100_000).filter(|_| chance.chance(70)).count();
        assert!((69_000..71_000).contains(&hits), "{hits} of 100000 at 70 %");
        assert!((0..1000).all(|_| chance.chance(100)));
        assert!((0..1000).all(|_| !chance.chance(0)));
    }
}
