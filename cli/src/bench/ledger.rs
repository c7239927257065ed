//! What every grain of the region must hold, as far as this run knows.

use super::pattern::Expected;
use super::workload::Span;

/// Most grains that a ledger keeps; at 4 bytes each this is 1 GiB of memory.
pub(crate) const MOST_GRAINS: u64 = 1 << 28;

const UNKNOWN: u32 = 0;
const ZEROES: u32 = u32::MAX;

/// The last answered change of every grain. A grain never changed, discarded,
/// or under a change that is not answered or failed, is unknown.
pub(crate) struct Ledger {
    grains: Vec<u32>,
    last_generation: u32,
}

impl Ledger {
    pub(crate) fn new(grains: u64) -> Self {
        assert!(grains <= MOST_GRAINS);
        Self { grains: vec![UNKNOWN; grains as usize], last_generation: UNKNOWN }
    }

    /// A number for the next write; numbers differ for 2^32 - 2 writes.
    pub(crate) fn next_generation(&mut self) -> u32 {
        self.last_generation = match self.last_generation + 1 {
            ZEROES => UNKNOWN + 1,
            generation => generation,
        };
        self.last_generation
    }

    /// Forgets the span: a change of it is on its way, failed, or discarded it.
    pub(crate) fn forget(&mut self, span: Span) {
        self.set(span, UNKNOWN);
    }

    /// The write of this generation was answered.
    pub(crate) fn written(&mut self, span: Span, generation: u32) {
        self.set(span, generation);
    }

    /// A request to write zeroes was answered.
    pub(crate) fn zeroed(&mut self, span: Span) {
        self.set(span, ZEROES);
    }

    /// What the grain must hold; `None` when anything is right.
    pub(crate) fn expected(&self, grain: u64) -> Option<Expected> {
        match self.grains[grain as usize] {
            UNKNOWN => None,
            ZEROES => Some(Expected::Zeroes),
            generation => Some(Expected::Generation(generation)),
        }
    }

    /// How many grains are known.
    pub(crate) fn known(&self) -> u64 {
        self.grains.iter().filter(|&&grain| grain != UNKNOWN).count() as u64
    }

    /// The next known grains at or after `from`: from the first known one up
    /// to the last known one within `most` grains. `None` at the end.
    pub(crate) fn next_known(&self, from: u64, most: u32) -> Option<Span> {
        let rest = self.grains.get(from as usize..)?;
        let skip = rest.iter().position(|&grain| grain != UNKNOWN)?;
        let window = &rest[skip..rest.len().min(skip + most as usize)];
        let last = window.iter().rposition(|&grain| grain != UNKNOWN)?;
        Some(Span { first: from + skip as u64, count: last as u32 + 1 })
    }

    fn set(&mut self, span: Span, value: u32) {
        let grains = span.grains();
        self.grains[grains.start as usize..grains.end as usize].fill(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_grain_is_unknown_until_its_write_is_answered() {
        let mut ledger = Ledger::new(8);
        let span = Span { first: 2, count: 3 };
        let generation = ledger.next_generation();
        assert_eq!(ledger.expected(2), None);
        ledger.written(span, generation);
        assert_eq!(ledger.expected(4), Some(Expected::Generation(generation)));
        assert_eq!(ledger.expected(5), None);
        ledger.zeroed(Span { first: 4, count: 1 });
        assert_eq!(ledger.expected(4), Some(Expected::Zeroes));
        ledger.forget(span);
        assert_eq!(ledger.known(), 0);
    }

    #[test]
    fn generations_never_take_a_reserved_value() {
        let mut ledger = Ledger::new(1);
        ledger.last_generation = ZEROES - 2;
        assert_eq!(ledger.next_generation(), ZEROES - 1);
        assert_eq!(ledger.next_generation(), 1);
    }

    proptest! {
        /// A read-back that left out one written grain would pass over a lost write.
        #[test]
        fn the_read_back_visits_every_known_grain_once(
            known in proptest::collection::vec(any::<bool>(), 1..200), most in 1u32..20,
        ) {
            let mut ledger = Ledger::new(known.len() as u64);
            for (grain, _) in known.iter().enumerate().filter(|(_, known)| **known) {
                ledger.written(Span { first: grain as u64, count: 1 }, 1);
            }
            let (mut visited, mut from) = (vec![false; known.len()], 0);
            while let Some(span) = ledger.next_known(from, most) {
                prop_assert!(span.first >= from && (1..=most).contains(&span.count));
                for grain in span.grains() {
                    visited[grain as usize] = known[grain as usize];
                }
                from = span.grains().end;
            }
            prop_assert_eq!(visited, known);
        }
    }
}
