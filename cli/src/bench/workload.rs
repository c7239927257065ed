//! What to ask the device for, and in which order: a pure function of the seed.

use super::random::{Permutation, SplitMix};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Discard,
    Zero,
    Flush,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Read, Self::Write, Self::Discard, Self::Zero, Self::Flush];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Discard => "discard",
            Self::Zero => "write zeroes",
            Self::Flush => "flush",
        }
    }

    /// Whether the request changes what the device holds.
    pub(crate) fn changes_data(self) -> bool {
        matches!(self, Self::Write | Self::Discard | Self::Zero)
    }
}

/// A run of grains of the region. A *grain* is the smallest request of the
/// run: every request starts on one and is made of whole ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// The first grain, counted from the region's start.
    pub(crate) first: u64,
    /// How many grains; 0 only for a flush.
    pub(crate) count: u32,
}

impl Span {
    pub(crate) const NONE: Self = Self { first: 0, count: 0 };

    pub(crate) fn overlaps(self, other: Self) -> bool {
        self.first < other.first + u64::from(other.count)
            && other.first < self.first + u64::from(self.count)
    }

    pub(crate) fn grains(self) -> std::ops::Range<u64> {
        self.first..self.first + u64::from(self.count)
    }
}

/// One request to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) kind: Kind,
    pub(crate) span: Span,
}

/// In which order offsets follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Sequential,
    Random,
}

/// The shape of a workload; every field has been checked where it was made.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) order: Order,
    /// Of all requests, how many per cent read.
    pub(crate) read_percent: u8,
    /// Of the requests that change data, how many per cent discard.
    pub(crate) discard_percent: u8,
    /// Of the requests that change data, how many per cent write zeroes.
    pub(crate) zero_percent: u8,
    /// Grains in the region, at least `largest`.
    pub(crate) grains: u64,
    /// Grains in the largest request, at least 1.
    pub(crate) largest: u32,
    pub(crate) seed: u64,
}

/// An endless row of requests.
///
/// Reads and changes each go over the region on their own. With one block size
/// a random pass takes every block exactly once before the next pass begins;
/// with several, offsets are drawn anew each time.
pub(crate) struct Workload {
    shape: Shape,
    chance: SplitMix,
    reads: Walk,
    changes: Walk,
}

impl Workload {
    pub(crate) fn new(shape: Shape) -> Self {
        assert!(shape.largest > 0 && shape.grains >= u64::from(shape.largest));
        let mut chance = SplitMix::new(shape.seed);
        let reads = Walk::new(&shape, chance.next());
        let changes = Walk::new(&shape, chance.next());
        Self { shape, chance, reads, changes }
    }

    pub(crate) fn next(&mut self) -> Op {
        let kind = self.kind();
        let walk = if kind == Kind::Read { &mut self.reads } else { &mut self.changes };
        Op { kind, span: walk.next(&self.shape) }
    }

    fn kind(&mut self) -> Kind {
        if self.chance.chance(self.shape.read_percent) {
            return Kind::Read;
        }
        let draw = self.chance.below(100) as u8;
        if draw < self.shape.discard_percent {
            Kind::Discard
        } else if draw < self.shape.discard_percent + self.shape.zero_percent {
            Kind::Zero
        } else {
            Kind::Write
        }
    }
}

/// One way over the region.
struct Walk {
    chance: SplitMix,
    place: u64,
    pass: Permutation,
}

impl Walk {
    fn new(shape: &Shape, seed: u64) -> Self {
        let mut chance = SplitMix::new(seed);
        let pass = Permutation::new(shape.grains, chance.next());
        Self { chance, place: 0, pass }
    }

    fn next(&mut self, shape: &Shape) -> Span {
        match shape.order {
            Order::Sequential => self.next_in_row(shape),
            Order::Random if shape.largest == 1 => self.next_of_pass(shape),
            Order::Random => {
                let count = 1 + self.chance.below(shape.largest.into()) as u32;
                Span { first: self.chance.below(shape.grains - u64::from(count) + 1), count }
            }
        }
    }

    fn next_in_row(&mut self, shape: &Shape) -> Span {
        if self.place == shape.grains {
            self.place = 0;
        }
        let left = shape.grains - self.place;
        let drawn = 1 + self.chance.below(shape.largest.into());
        let span = Span { first: self.place, count: drawn.min(left) as u32 };
        self.place += u64::from(span.count);
        span
    }

    fn next_of_pass(&mut self, shape: &Shape) -> Span {
        if self.place == shape.grains {
            self.place = 0;
            self.pass = Permutation::new(shape.grains, self.chance.next());
        }
        let span = Span { first: self.pass.at(self.place), count: 1 };
        self.place += 1;
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(order: Order, grains: u64, largest: u32, seed: u64) -> Shape {
        let (read_percent, discard_percent, zero_percent) = (0, 0, 0);
        Shape { order, read_percent, discard_percent, zero_percent, grains, largest, seed }
    }

    proptest! {
        /// A request beyond the region would hit somebody else's data.
        #[test]
        fn no_request_leaves_the_region(
            random: bool, largest in 1u32..64, spare in 0u64..100, read_percent in 0u8..=100, seed: u64,
        ) {
            let order = if random { Order::Random } else { Order::Sequential };
            let grains = u64::from(largest) + spare;
            let mut workload =
                Workload::new(Shape { read_percent, ..shape(order, grains, largest, seed) });
            for _ in 0..300 {
                let span = workload.next().span;
                prop_assert!((1..=largest).contains(&span.count));
                prop_assert!(span.grains().end <= grains);
            }
        }

        #[test]
        fn every_pass_covers_the_region_once(
            random: bool, grains in 1u64..500, seed: u64,
        ) {
            let order = if random { Order::Random } else { Order::Sequential };
            let mut workload = Workload::new(shape(order, grains, 1, seed));
            for _ in 0..3 {
                let mut pass: Vec<u64> = (0..grains).map(|_| workload.next().span.first).collect();
                pass.sort_unstable();
                prop_assert!(pass.into_iter().eq(0..grains));
            }
        }

        #[test]
        fn sequential_requests_of_mixed_size_leave_no_gap(
            largest in 1u32..20, spare in 0u64..200, seed: u64,
        ) {
            let grains = u64::from(largest) + spare;
            let mut workload = Workload::new(shape(Order::Sequential, grains, largest, seed));
            let mut place = 0;
            for _ in 0..200 {
                let span = workload.next().span;
                prop_assert_eq!(span.first, place);
                place = span.grains().end % grains;
            }
        }

        /// Two systems can be compared only when they were asked the same.
        #[test]
        fn the_same_seed_asks_the_same(seed: u64) {
            let shape = Shape { read_percent: 40, discard_percent: 10, zero_percent: 10,
                ..shape(Order::Random, 4096, 16, seed) };
            let (mut one, mut two) = (Workload::new(shape.clone()), Workload::new(shape));
            prop_assert!((0..500).all(|_| one.next() == two.next()));
        }
    }

    #[test]
    fn kinds_come_in_the_shares_asked_for() {
        let mut workload = Workload::new(Shape {
            read_percent: 50,
            discard_percent: 20,
            zero_percent: 30,
            ..shape(Order::Random, 1000, 1, 9)
        });
        let mut counts = [0u32; 5];
        for _ in 0..100_000 {
            counts[workload.next().kind as usize] += 1;
        }
        for (count, share) in counts.into_iter().zip([50_000, 25_000, 10_000, 15_000, 0u32]) {
            assert!(count.abs_diff(share) < 1_000, "{count} instead of about {share}");
        }
    }

    #[test]
    fn a_read_only_shape_never_changes_data() {
        let mut workload = Workload::new(Shape {
            read_percent: 100,
            discard_percent: 50,
            zero_percent: 50,
            ..shape(Order::Random, 64, 4, 1)
        });
        assert!((0..10_000).all(|_| workload.next().kind == Kind::Read));
    }
}
