//! Pointers by line, block and epoch, those under one page of a map together.
//!
//! A change looks for the block's page, and finds beside it what the change
//! replaces and whether merging has to write that page anyway. What a snapshot
//! has and its successor replaced, which is seldom looked at, is kept apart.

use std::collections::{BTreeMap, BTreeSet};

use block_core::{BlockCount, Lba, LbaRange};
use smallvec::SmallVec;

use super::places::Places;
use crate::layout::pointer::POINTERS;
use crate::layout::{Epoch, LineId, Pointer};
use crate::shelf::{Shelf, Use};

/// Bits of the number of a page, within its line.
const PAGE_BITS: u32 = 40 - Places::BITS;

const _: () = assert!(1 << Places::BITS == POINTERS);
const _: () = assert!(1 << (PAGE_BITS + Places::BITS) == crate::layout::record::MAX_VOLUME_BLOCKS);

/// Levels of pages that map the largest volume, the leaves among them.
pub(super) const LEVELS: u32 = 6;

/// Bytes that a page takes beside its pointers: its number and what the tree
/// leaves empty (about a third), its places, the length.
const PAGE_BYTES: usize = 70;

/// Bytes of a pointer, with what a list that grows leaves empty.
const POINT_BYTES: usize = 56;

/// Bytes of a page above the leaves.
const ABOVE_BYTES: usize = 24;

/// The youngest pointers under a page.
#[derive(Debug, Default)]
struct Page {
    places: Places,
    pointers: SmallVec<[Pointer; 1]>,
    /// The epoch of the last change.
    changed: Epoch,
}

/// The pointers, and the pages that merging them writes.
#[derive(Debug, Default)]
pub(super) struct Points {
    pages: Shelf<Page>,
    /// Pointers that are not the youngest of their block: by page, place and
    /// epoch.
    older: BTreeMap<(u64, u8, Epoch), Pointer>,
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
    (line.0 as u64) << PAGE_BITS | Places::group_of(lba.0)
}

const fn line_of(page: u64) -> LineId {
    LineId((page >> PAGE_BITS) as u32)
}

const fn lba_of(page: u64, place: u8) -> Lba {
    Lba(Places::number(page & ((1 << PAGE_BITS) - 1), place))
}

impl Points {
    /// The newest pointer of a block that is not younger than `epoch`.
    pub(super) fn find(&self, line: LineId, lba: Lba, epoch: Epoch) -> Option<&Pointer> {
        let (number, place) = (page_of(line, lba), Places::place_of(lba.0));
        let page = self.pages.get(number)?;
        let youngest = &page.pointers[page.places.find(place, page.pointers.len()).ok()?];
        if youngest.birth <= epoch {
            return Some(youngest);
        }
        let older = (number, place, Epoch(0))..=(number, place, epoch);
        self.older.range(older).next_back().map(|(_, pointer)| pointer)
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
        let (number, place) = (page_of(line, lba), Places::place_of(lba.0));
        let page = self.pages.work_at(number, Use::Coming);
        let is_first = std::mem::replace(&mut page.changed, pointer.birth) <= since;
        let replaced = match page.places.find(place, page.pointers.len()) {
            Ok(at) => Some(std::mem::replace(&mut page.pointers[at], pointer)),
            Err(at) => {
                page.places.add(place);
                page.pointers.insert(at, pointer);
                None
            }
        };
        if is_first {
            self.to_write += 1;
            self.touch_above(line, since, lba, pointer.birth);
        }
        // No snapshot has what is younger than the newest one.
        if let Some(gone) = replaced.filter(|replaced| replaced.birth > since) {
            return Some(gone);
        }
        if let Some(kept) = replaced {
            self.older.insert((number, place, kept.birth), kept);
        }
        self.len += 1;
        None
    }

    /// Counts the pages above a leaf, up to one that is written anyway.
    fn touch_above(&mut self, line: LineId, since: Epoch, lba: Lba, epoch: Epoch) {
        for level in 1..LEVELS {
            let page = page_of(line, Lba(lba.0 >> (level * Places::BITS)));
            let newest = self.above.entry(u64::from(level) << 60 | page).or_default();
            if std::mem::replace(newest, epoch) > since {
                return;
            }
            self.to_write += 1;
        }
    }

    /// The front part of a range whose pointers can be taken in one go: about
    /// `entries` of them.
    pub(super) fn slice(&self, line: LineId, range: LbaRange, entries: usize) -> LbaRange {
        let mut seen = 0;
        let last = Lba(range.end().0.saturating_sub(1));
        for (number, page) in self.pages.range(page_of(line, range.start)..=page_of(line, last)) {
            if seen >= entries && lba_of(number, 0) > range.start {
                let count = BlockCount(lba_of(number, 0).0 - range.start.0);
                return LbaRange { start: range.start, count };
            }
            seen += page.pointers.len();
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
        let (older, len) = (&mut self.older, &mut self.len);
        self.pages.change_range(pages, |number, page| {
            for place in page.places.iter() {
                let lba = lba_of(number, place);
                let Ok(at) = page.places.find(place, page.pointers.len()) else { continue };
                let is_outside = lba < range.start || lba >= range.end();
                if is_outside || page.pointers[at].birth <= since {
                    continue;
                }
                taken(&page.pointers[at]);
                *len -= 1;
                let kept = (number, place, Epoch(0))..=(number, place, Epoch::MAX);
                match older.range(kept).next_back().map(|(&key, _)| key) {
                    Some(key) => page.pointers[at] = older.remove(&key).unwrap_or_default(),
                    None => {
                        page.pointers.remove(at);
                        page.places.remove(place);
                    }
                }
            }
            if page.pointers.is_empty() {
                emptied.push(number);
            }
        });
        for page in emptied {
            self.pages.remove(page);
        }
    }

    /// The pointers of a line of some epochs, after one and up to another, from
    /// a block on, in order of block and epoch, each `as_one` thing. Looks at
    /// about `most` blocks; also says where to go on.
    pub(super) fn some_of_line<T>(
        &self,
        line: LineId,
        (after, upto): (Epoch, Epoch),
        from: Lba,
        most: usize,
        as_one: impl Fn(Lba, Pointer) -> T,
    ) -> (Vec<T>, Option<Lba>) {
        let is_asked_for = |pointer: &Pointer| pointer.birth > after && pointer.birth <= upto;
        let (mut found, mut looked) = (Vec::with_capacity(most), 0);
        let pages = page_of(line, from)..page_of(LineId(line.0 + 1), Lba(0));
        for (number, page) in self.pages.range(pages) {
            for (place, youngest) in page.places.iter().zip(&page.pointers) {
                let lba = lba_of(number, place);
                if lba < from {
                    continue;
                }
                if looked >= most {
                    return (found, Some(lba));
                }
                looked += 1;
                if !self.older.is_empty() {
                    let older = (number, place, Epoch(0))..=(number, place, Epoch::MAX);
                    let older = self.older.range(older).map(|(_, pointer)| pointer);
                    let older = older.filter(|older| is_asked_for(older));
                    found.extend(older.map(|&older| as_one(lba, older)));
                }
                if is_asked_for(youngest) {
                    found.push(as_one(lba, *youngest));
                }
            }
        }
        (found, None)
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
        while let Some((page, _)) = self.pages.range(from..).next() {
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

    /// Lets go of a page; whether there was one.
    pub(super) fn drop_some(&mut self) -> bool {
        self.above.pop_first();
        self.older.pop_first();
        self.pages.drop_some() || !self.older.is_empty()
    }
}
