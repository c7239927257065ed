//! Pointers by line, block and epoch, those under one page of a map together.
//!
//! A change looks for the block's page in a tree, and finds beside it what the
//! change replaces and whether merging has to write that page anyway. A change
//! that is alone under its page takes no memory outside of the tree.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use block_core::{BlockCount, Lba, LbaRange};
use smallvec::SmallVec;

use crate::layout::pointer::POINTERS;
use crate::layout::{Epoch, LineId, Pointer};

/// Bits of a block's number that say where in its page its pointer is.
const PLACE_BITS: u32 = POINTERS.trailing_zeros();

/// Bits of the number of a page, within its line.
const PAGE_BITS: u32 = 40 - PLACE_BITS;

const _: () = assert!(1 << (PAGE_BITS + PLACE_BITS) == crate::layout::record::MAX_VOLUME_BLOCKS);

/// Levels of pages that map the largest volume, the leaves among them.
pub(super) const LEVELS: u32 = 6;

/// Bytes that a page's changes take beside them: the key, the length, and what
/// the tree leaves empty (about a third).
const PAGE_BYTES: usize = 40;

/// Bytes of a change, with what a list that grows leaves empty.
const POINT_BYTES: usize = 64;

/// Bytes of a page above the leaves.
const ABOVE_BYTES: usize = 24;

/// A pointer, and its place in its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    place: u8,
    pointer: Pointer,
}

impl Point {
    /// What the points of a page are sorted by.
    const fn key(&self) -> (u8, Epoch) {
        (self.place, self.pointer.birth)
    }
}

type Page = SmallVec<[Point; 1]>;

/// The pointers, and the pages that merging them writes.
#[derive(Debug, Default)]
pub(super) struct Points {
    pages: BTreeMap<u64, Page>,
    len: usize,
    /// Pages above the leaves, and when something under them changed last.
    above: BTreeMap<u64, Epoch>,
    to_write: u64,
    /// When each line got pointers: merging does not look for those of a
    /// snapshot before which nothing was written.
    epochs: BTreeSet<(LineId, Epoch)>,
    /// What was put last; most often the next one is like it.
    last: Option<(LineId, Epoch)>,
}

/// The number of the page of a block, in all lines.
const fn page_of(line: LineId, lba: Lba) -> u64 {
    (line.0 as u64) << PAGE_BITS | lba.0 >> PLACE_BITS
}

const fn place_of(lba: Lba) -> u8 {
    lba.0 as u8 & (POINTERS as u8 - 1)
}

const fn line_of(page: u64) -> LineId {
    LineId((page >> PAGE_BITS) as u32)
}

const fn lba_of(page: u64, place: u8) -> Lba {
    Lba((page & ((1 << PAGE_BITS) - 1)) << PLACE_BITS | place as u64)
}

impl Points {
    /// The newest pointer of a block that is not younger than `epoch`.
    pub(super) fn find(&self, line: LineId, lba: Lba, epoch: Epoch) -> Option<&Pointer> {
        let page = self.pages.get(&page_of(line, lba))?;
        let upto = page.partition_point(|point| point.key() <= (place_of(lba), epoch));
        let newest = &page[upto.checked_sub(1)?];
        (newest.place == place_of(lba)).then_some(&newest.pointer)
    }

    /// Puts a pointer in the place of what the line had there since its newest
    /// snapshot, of epoch `since`; returns that.
    pub(super) fn put(
        &mut self,
        (line, since): (LineId, Epoch),
        lba: Lba,
        pointer: Pointer,
    ) -> Option<Pointer> {
        let put = Some((line, pointer.birth));
        if self.last != put {
            self.epochs.extend(put);
            self.last = put;
        }
        let place = place_of(lba);
        let point = Point { place, pointer };
        let page = match self.pages.entry(page_of(line, lba)) {
            Entry::Occupied(page) => page.into_mut(),
            Entry::Vacant(page) => page.insert(SmallVec::new()),
        };
        let upto = page.partition_point(|point| point.key() <= (place, Epoch::MAX));
        let is_of_stage = |point: &Point| point.pointer.birth > since;
        let newest = upto.checked_sub(1).map(|newest| &mut page[newest]);
        if let Some(newest) = newest.filter(|newest| newest.place == place && is_of_stage(newest)) {
            // No snapshot has what is replaced.
            return Some(std::mem::replace(newest, point).pointer);
        }
        let is_first = !page.iter().any(is_of_stage);
        page.insert(upto, point);
        self.len += 1;
        if is_first {
            self.to_write += 1;
            self.touch_above(line, since, lba, pointer.birth);
        }
        None
    }

    /// Counts the pages above a leaf, up to one that is written anyway.
    fn touch_above(&mut self, line: LineId, since: Epoch, lba: Lba, epoch: Epoch) {
        for level in 1..LEVELS {
            let page = page_of(line, Lba(lba.0 >> (level * PLACE_BITS)));
            let newest = self.above.entry(u64::from(level) << 60 | page).or_default();
            if std::mem::replace(newest, epoch) > since {
                return;
            }
            self.to_write += 1;
        }
    }

    /// The front part of a range that has few enough entries to be gone
    /// through in one go: those of a page more than `entries`, at most.
    pub(super) fn slice(&self, line: LineId, range: LbaRange, entries: usize) -> LbaRange {
        let mut seen = 0;
        let last = Lba(range.end().0.saturating_sub(1));
        for (&page, points) in self.pages.range(page_of(line, range.start)..=page_of(line, last)) {
            if seen >= entries && lba_of(page, 0) > range.start {
                let count = BlockCount(lba_of(page, 0).0 - range.start.0);
                return LbaRange { start: range.start, count };
            }
            seen += points.len();
        }
        range
    }

    /// Takes out the pointers in a range that are younger than `since`.
    pub(super) fn take(
        &mut self,
        (line, since): (LineId, Epoch),
        range: LbaRange,
        mut taken: impl FnMut(&Pointer),
    ) {
        let last = Lba(range.end().0.saturating_sub(1));
        let pages = page_of(line, range.start)..=page_of(line, last);
        let mut emptied: SmallVec<[u64; 8]> = SmallVec::new();
        for (&number, page) in self.pages.range_mut(pages) {
            let before = page.len();
            page.retain(|point| {
                let lba = lba_of(number, point.place);
                let is_taken =
                    range.start <= lba && lba < range.end() && point.pointer.birth > since;
                if is_taken {
                    taken(&point.pointer);
                }
                !is_taken
            });
            self.len -= before - page.len();
            if page.is_empty() {
                emptied.push(number);
            }
        }
        for page in emptied {
            self.pages.remove(&page);
        }
    }

    /// The pointers of a line from a block on, in order of block and epoch.
    pub(super) fn of_line(
        &self,
        line: LineId,
        from: Lba,
    ) -> impl Iterator<Item = (Lba, &Pointer)> + '_ {
        let pages = page_of(line, from)..page_of(LineId(line.0 + 1), Lba(0));
        self.pages.range(pages).flat_map(move |(&page, points)| {
            let points =
                points.iter().map(move |point| (lba_of(page, point.place), &point.pointer));
            points.skip_while(move |(lba, _)| *lba < from)
        })
    }

    /// Whether the line may have pointers of epochs after `after` and up to
    /// `upto`.
    pub(super) fn has_some(&self, line: LineId, (after, upto): (Epoch, Epoch)) -> bool {
        let epochs = (line, Epoch(after.0 + 1))..=(line, upto);
        after < upto && self.epochs.range(epochs).next().is_some()
    }

    /// Lines that have pointers, in order.
    pub(super) fn lines(&self) -> Vec<LineId> {
        let mut lines = Vec::new();
        let mut from = 0;
        while let Some((&page, _)) = self.pages.range(from..).next() {
            let line = line_of(page);
            lines.push(line);
            from = page_of(LineId(line.0 + 1), Lba(0));
        }
        lines
    }

    /// How many pointers there are.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Most pages of maps that merging writes.
    pub(super) const fn pages_to_write(&self) -> u64 {
        self.to_write
    }

    /// About how much memory they take.
    pub(super) fn bytes(&self) -> usize {
        self.pages.len() * PAGE_BYTES + self.len * POINT_BYTES + self.above.len() * ABOVE_BYTES
    }

    /// Lets go of a page's; whether there was one.
    pub(super) fn drop_some(&mut self) -> bool {
        self.above.pop_first();
        self.pages.pop_first().is_some()
    }
}
