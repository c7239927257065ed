//! The kept set: a volume's changes from the moment their data was fetched
//! until a flush has made them durable, in bounded memory.
//!
//! Answered changes stand in the order in which they were answered. A change
//! is not sent while one that it overlaps has no answer, so for changes that
//! overlap this is also the order of their order numbers.

use std::collections::VecDeque;
use std::io;

use block_core::{BLOCK_SIZE, Buffer, Op, Pool, SectorRange};

use super::volume::overlap;

/// The sizes of private copies, in blocks, the last one for the largest
/// request. The odd block keeps copies from all falling into the same sets of
/// the processor's caches.
const COPY_BLOCKS: [usize; 4] = [1, 5, 17, 33];

/// What a change without data takes of the bound: it has a place in the list.
const PLACE_BYTES: usize = BLOCK_SIZE;

/// The least bound that leaves room for a few of the largest requests.
pub(super) const LEAST_BYTES: usize = 1 << 20;

/// A change that was answered and not flushed.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) op: Op,
    pub(super) range: SectorRange,
    /// What it writes; away while it is being sent again.
    pub(super) data: Option<Buffer>,
    /// What it takes of the bound.
    cost: usize,
}

/// All changes of one volume that were answered before some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u64);

impl Mark {
    /// Before the first change.
    pub(super) const START: Self = Self(0);
}

/// The changes of one volume that are not known to be durable.
#[derive(Debug)]
pub(super) struct KeptSet {
    /// Private copies, by size. Each volume has its own: one whose server is
    /// away, or whose guest never flushes, must not keep those that others
    /// need.
    copies: Vec<Pool>,
    /// Bytes of copies and places at most, of those in use, and of those that
    /// belong to answered changes.
    bound: usize,
    used: usize,
    answered: usize,
    entries: VecDeque<Kept>,
    /// How many answered changes have left it since the beginning.
    gone: u64,
}

impl KeptSet {
    /// Room for `bound` bytes, made now.
    pub(super) fn new(bound: usize) -> io::Result<Self> {
        let bound = bound.max(LEAST_BYTES);
        let pool = |blocks: usize| {
            let bytes = blocks * BLOCK_SIZE;
            Pool::private(bound / bytes, bytes)
        };
        let copies = COPY_BLOCKS.map(pool).into_iter().collect::<io::Result<_>>()?;
        let entries = VecDeque::with_capacity(bound / PLACE_BYTES);
        Ok(Self { copies, bound, entries, ..Self::none() })
    }

    /// For a volume that is only read.
    pub(super) const fn none() -> Self {
        Self {
            copies: Vec::new(),
            bound: 0,
            used: 0,
            answered: 0,
            entries: VecDeque::new(),
            gone: 0,
        }
    }

    /// Room for a change that carries `bytes` of data: the buffer for its
    /// copy, if it carries any. `None` when it has to wait.
    pub(super) fn admit(&mut self, bytes: usize) -> Option<Option<Buffer>> {
        let mut copy = None;
        if bytes > 0 {
            let fits = |pool: &&Pool| pool.buffer_bytes() >= bytes;
            let pool = self.copies.iter().find(fits)?;
            if self.used + pool.buffer_bytes() > self.bound {
                return None;
            }
            copy = Some(pool.take()?);
        } else if self.used + PLACE_BYTES > self.bound {
            return None;
        }
        self.used += cost(copy.as_ref());
        Some(copy)
    }

    /// Gives back the room of a change that need not be kept.
    pub(super) fn release(&mut self, copy: Option<Buffer>) {
        self.used -= cost(copy.as_ref());
    }

    /// Whether something is kept of a range.
    pub(super) fn has_some_of(&self, range: SectorRange) -> bool {
        self.entries.iter().any(|kept| overlap(kept.range, range))
    }

    /// A change was answered with success. One that was written through is
    /// durable, and need not be kept.
    pub(super) fn answered(&mut self, op: Op, range: SectorRange, data: Option<Buffer>) {
        if op.writes_through() {
            return self.release(data);
        }
        let cost = cost(data.as_ref());
        self.answered += cost;
        self.entries.push_back(Kept { op, range, data, cost });
    }

    /// What a flush that is sent now makes durable.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.gone + self.entries.len() as u64)
    }

    /// What was answered before `mark` is durable.
    pub(super) fn flushed(&mut self, mark: Mark) {
        while self.gone < mark.0
            && let Some(kept) = self.entries.pop_front()
        {
            self.gone += 1;
            self.used -= kept.cost;
            self.answered -= kept.cost;
        }
    }

    /// Forgets everything that was answered.
    pub(super) fn clear(&mut self) {
        self.flushed(self.mark());
    }

    /// Whether so much is kept that a flush is due.
    pub(super) const fn is_half_full(&self) -> bool {
        self.answered > 0 && self.answered * 2 >= self.bound
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The `index`th of the answered changes, the oldest first.
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Kept> {
        self.entries.get_mut(index)
    }

    /// What the `index`th is.
    pub(super) fn get(&self, index: usize) -> Option<&Kept> {
        self.entries.get(index)
    }
}

fn cost(copy: Option<&Buffer>) -> usize {
    copy.map_or(PLACE_BYTES, |copy| copy.len())
}

const _: () = assert!(
    COPY_BLOCKS[3] * BLOCK_SIZE >= block_core::unit::MAX_REQUEST_BYTES
        && LEAST_BYTES >= 2 * COPY_BLOCKS[3] * BLOCK_SIZE
);

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64) -> SectorRange {
        SectorRange::new(start, 8).expect("a range")
    }

    fn write(set: &mut KeptSet, start: u64) {
        let copy = set.admit(4096).expect("room");
        set.answered(Op::Write, range(start), copy);
    }

    /// A flush promises what was answered before it was sent, and not one
    /// change more: what was answered while it ran may be in a cache.
    #[test]
    fn a_flush_releases_what_was_answered_before_it_was_sent() {
        let mut set = KeptSet::new(LEAST_BYTES).expect("memory");
        write(&mut set, 0);
        let first = set.mark();
        write(&mut set, 8);
        let second = set.mark();
        write(&mut set, 16);
        set.flushed(second);
        set.flushed(first);
        let left: Vec<u64> = set.entries.iter().map(|kept| kept.range.start()).collect();
        assert_eq!(left, [16]);
        assert_eq!((set.used, set.answered), (4096, 4096));
    }

    /// The bound counts what copies take, not what they carry, and everything
    /// that was taken comes back.
    #[test]
    fn the_bound_holds_and_room_comes_back() {
        let mut set = KeptSet::new(LEAST_BYTES).expect("memory");
        for bytes in [512, 4096, 5000, 64 << 10, 128 << 10, 0] {
            let mut copies = Vec::new();
            while let Some(copy) = set.admit(bytes) {
                assert!(copy.as_ref().is_none_or(|copy| copy.len() >= bytes));
                copies.push(copy);
            }
            assert!(set.used <= LEAST_BYTES && copies.len() >= 7, "{bytes}");
            for (at, copy) in copies.into_iter().enumerate() {
                match at % 2 {
                    0 => set.release(copy),
                    _ => set.answered(Op::Write, range(at as u64), copy),
                }
            }
            assert!(!set.is_empty());
            set.clear();
            assert_eq!((set.used, set.answered, set.len()), (0, 0, 0));
        }
    }
}
