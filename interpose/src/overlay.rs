//! Everything that changed since a checkpoint, in memory: exactly what
//! replaying the journal gives.
//!
//! A whole-block write reads no page of a map: what it replaces there is found
//! when the overlay is merged. What it replaces *here* is known at once.

mod ranges;

use std::collections::BTreeMap;

use block_core::{BlockCount, Lba, LbaRange, Pba};

use self::ranges::Ranges;
use crate::layout::pointer::POINTERS;
use crate::layout::record::Hash;
use crate::layout::{Epoch, Kind, LineId, Pointer, Seal};

/// A hole of at most so many blocks is kept as one entry a block: they are
/// found with the pointers, at no cost.
const SMALL_HOLE: u64 = 8;

/// Levels of pages that map the largest volume.
const LEVELS: u64 = 6;

/// Bytes that an entry of the maps below takes, with the tree around it at the
/// fill that B-trees settle at (about 70 %).
const POINT_BYTES: usize = 80;
const BLOCK_BYTES: usize = 104;
const RANGE_BYTES: usize = 40;

/// The changes since a checkpoint.
#[derive(Debug, Default)]
pub struct Overlay {
    points: BTreeMap<u128, Pointer>,
    holes: BTreeMap<(LineId, Epoch), Ranges>,
    blocks: BTreeMap<u64, BlockChange>,
    pages: PagesTouched,
    ranges: usize,
    /// Blocks that were stored and are not referred to any more.
    freed: u64,
    /// Blocks that holes may take from a snapshot's successor.
    cleared: u64,
}

/// What became of a block of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockChange {
    /// References that came less those that went.
    pub delta: i32,
    /// What the tree of seals shall say of it, if it was stored here.
    pub born: Option<Born>,
    /// Whether it became, or was, a page of the pool.
    pub page: Option<PageChange>,
}

/// A data block that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Born {
    /// Its hash.
    pub hash: Hash,
    /// What opens it.
    pub seal: Seal,
}

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageChange {
    /// It is there.
    Taken,
    /// Nobody points at it any more.
    Gone,
}

/// What an overlay knows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing: ask what is below.
    Nothing,
    /// It is this; may be a hole.
    Is(Pointer),
}

/// Pages of maps that merging will have to write, by level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PagesTouched {
    leaves: u64,
    above: u64,
}

impl PagesTouched {
    /// Counts the pages that a change at `lba` makes merging write, beside
    /// those that the changes next to it do.
    fn touch(&mut self, lba: u64, before: Option<u64>, after: Option<u64>) {
        let mut span = 1;
        for level in 0..LEVELS {
            span *= POINTERS as u64;
            let shared = |other: Option<u64>| other.is_some_and(|other| other / span == lba / span);
            if shared(before) || shared(after) {
                break;
            }
            if level == 0 {
                self.leaves += 1;
            } else {
                self.above += 1;
            }
        }
    }
}

/// One change of a line, as merging takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A block is here.
    Point(Lba, Pointer),
    /// Blocks are not there any more.
    Hole(LbaRange),
}

const fn key(line: LineId, lba: Lba, epoch: Epoch) -> u128 {
    (line.0 as u128) << 70 | (lba.0 as u128) << 30 | epoch.0 as u128
}

const fn lba_of(key: u128) -> Lba {
    Lba((key >> 30) as u64 & ((1 << 40) - 1))
}

const fn epoch_of(key: u128) -> Epoch {
    Epoch(key as u32 & Epoch::MAX.0)
}

impl Overlay {
    /// What the line had at `lba` at the end of `epoch`, as far as this
    /// overlay knows.
    #[must_use]
    pub fn find(&self, line: LineId, lba: Lba, epoch: Epoch) -> Known {
        let newest = self
            .points
            .range(key(line, lba, Epoch(0))..=key(line, lba, epoch))
            .next_back()
            .map(|(&key, pointer)| (epoch_of(key), pointer));
        // A hole of a point's own epoch is older than it, or had removed it.
        let after = newest.map_or(Epoch(0), |(epoch, _)| Epoch(epoch.0 + 1));
        if !self.holes.is_empty() && after <= epoch {
            let mut younger = self.holes.range((line, after)..=(line, epoch)).rev();
            if let Some((&(_, birth), _)) = younger.find(|(_, ranges)| ranges.contains(lba)) {
                return Known::Is(Pointer { birth, ..Pointer::HOLE });
            }
        }
        newest.map_or(Known::Nothing, |(_, &pointer)| Known::Is(pointer))
    }

    /// A block was stored. What the line had there since its newest snapshot,
    /// of epoch `since`, is not referred to any more.
    pub fn store(
        &mut self,
        (line, since): (LineId, Epoch),
        lba: Lba,
        pointer: Pointer,
        hash: Hash,
    ) {
        let change = self.blocks.entry(pointer.pba.0).or_default();
        change.delta += 1;
        change.born = Some(Born { hash, seal: pointer.seal });
        self.put((line, since), lba, pointer);
    }

    /// A block has the content of one that is there.
    pub fn share(&mut self, (line, since): (LineId, Epoch), lba: Lba, pointer: Pointer) {
        self.blocks.entry(pointer.pba.0).or_default().delta += 1;
        self.put((line, since), lba, pointer);
    }

    /// Blocks are not there any more, from `epoch` on. At most so many entries
    /// should lie in the range that taking them out is no pause: see
    /// [`Overlay::slice`].
    pub fn clear(&mut self, (line, since): (LineId, Epoch), range: LbaRange, epoch: Epoch) {
        if range.count.0 <= SMALL_HOLE {
            for lba in (range.start.0..range.end().0).map(Lba) {
                self.put((line, since), lba, Pointer { birth: epoch, ..Pointer::HOLE });
            }
            return;
        }
        let within = key(line, range.start, Epoch(0))..key(line, range.end(), Epoch(0));
        let hidden: Vec<u128> = self
            .points
            .range(within)
            .map(|(&key, _)| key)
            .filter(|&key| epoch_of(key) > since)
            .collect();
        for key in hidden {
            if let Some(old) = self.points.remove(&key) {
                self.kill(&old);
            }
        }
        // Both ends may cut pages; what lies between is dropped whole.
        self.pages.leaves += 2;
        self.pages.above += 2 * (LEVELS - 1);
        if since > Epoch(0) {
            self.cleared += range.count.0;
        }
        let ranges = self.holes.entry((line, epoch)).or_default();
        let before = ranges.len();
        ranges.insert(range);
        self.ranges = self.ranges + ranges.len() - before;
    }

    /// The front part of a range that has at most `entries` entries.
    #[must_use]
    pub fn slice(&self, line: LineId, range: LbaRange, entries: usize) -> LbaRange {
        let within = key(line, range.start, Epoch(0))..key(line, range.end(), Epoch(0));
        let Some((&past, _)) = self.points.range(within).nth(entries) else { return range };
        let count = (lba_of(past).0 - range.start.0).max(1);
        LbaRange { start: range.start, count: BlockCount(count) }
    }

    /// References to a block went with a tree that was merged.
    pub fn unrefer(&mut self, pba: Pba) {
        self.blocks.entry(pba.0).or_default().delta -= 1;
    }

    /// A page was taken, or is gone. One that was taken here and is gone was
    /// never there.
    pub fn page(&mut self, pba: Pba, change: PageChange) {
        let page = &mut self.blocks.entry(pba.0).or_default().page;
        let was_taken = *page == Some(PageChange::Taken);
        *page = if was_taken && change == PageChange::Gone { None } else { Some(change) };
    }

    /// What became of a block.
    #[must_use]
    pub fn block(&self, pba: Pba) -> Option<&BlockChange> {
        self.blocks.get(&pba.0)
    }

    fn put(&mut self, (line, since): (LineId, Epoch), lba: Lba, pointer: Pointer) {
        let newest = key(line, lba, Epoch::MAX);
        let before = self.points.range_mut(..=newest).next_back();
        let (place, stage) = (newest >> 30, |key: u128| epoch_of(key) > since);
        match before {
            // No snapshot has what is replaced.
            Some((&old, entry)) if old >> 30 == place && stage(old) => {
                let gone = *entry;
                if epoch_of(old) == pointer.birth {
                    *entry = pointer;
                } else {
                    self.points.remove(&old);
                    self.points.insert(key(line, lba, pointer.birth), pointer);
                }
                self.kill(&gone);
            }
            before => {
                let before = before.map(|(&key, _)| key);
                let after = self.points.range(newest + 1..).next().map(|(&key, _)| key);
                let neighbour = |key: &u128| key >> 70 == u128::from(line.0) && stage(*key);
                let near = |key: Option<u128>| key.filter(neighbour).map(|key| lba_of(key).0);
                self.pages.touch(lba.0, near(before), near(after));
                self.points.insert(key(line, lba, pointer.birth), pointer);
            }
        }
    }

    fn kill(&mut self, old: &Pointer) {
        if old.kind == Kind::Data {
            let change = self.blocks.entry(old.pba.0).or_default();
            change.delta -= 1;
            self.freed += u64::from(change.delta == 0 && change.born.is_some());
        }
    }

    /// Most pages of maps that merging it writes.
    #[must_use]
    pub fn map_pages(&self) -> u64 {
        self.pages.leaves + self.pages.above
    }

    /// Most pointers that merging it puts on dead lists.
    #[must_use]
    pub fn dead(&self) -> u64 {
        self.points.len() as u64 + self.cleared
    }

    /// Blocks of the device that changed.
    #[must_use]
    pub fn changed_blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Blocks that were stored and are not referred to any more: a checkpoint
    /// frees them.
    #[must_use]
    pub fn freed(&self) -> u64 {
        self.freed
    }

    /// About how much memory it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.points.len() * POINT_BYTES
            + self.blocks.len() * BLOCK_BYTES
            + self.ranges * RANGE_BYTES
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points.is_empty() && self.holes.is_empty() && self.blocks.is_empty()
    }

    /// Lines that have changes, in order.
    #[must_use]
    pub fn lines(&self) -> Vec<LineId> {
        let mut lines = Vec::new();
        let mut from = 0;
        while let Some((&key, _)) = self.points.range(from..).next() {
            let line = LineId((key >> 70) as u32);
            lines.push(line);
            from = (u128::from(line.0) + 1) << 70;
        }
        lines.extend(self.holes.keys().map(|&(line, _)| line));
        lines.sort_unstable();
        lines.dedup();
        lines
    }

    /// The line's changes of one stage, that is between two snapshots of it:
    /// those whose epoch is after `after` and at most `upto`, in order of
    /// `Lba`, from `from` on. Looks at about `most` entries; also says where to
    /// go on.
    #[must_use]
    pub fn changes(
        &self,
        line: LineId,
        (after, upto): (Epoch, Epoch),
        from: Lba,
        most: usize,
    ) -> (Vec<Change>, Option<Lba>) {
        let end = key(LineId(line.0 + 1), Lba(0), Epoch(0));
        let mut next = None;
        let mut points: Vec<(Lba, Epoch, Pointer)> = Vec::new();
        let entries = self.points.range(key(line, from, Epoch(0))..end);
        for (looked, (&key, &pointer)) in entries.enumerate() {
            let (lba, epoch) = (lba_of(key), epoch_of(key));
            if looked >= most && points.last().is_none_or(|&(last, _, _)| last != lba) {
                next = Some(lba);
                break;
            }
            if epoch > after && epoch <= upto {
                points.push((lba, epoch, pointer));
            }
        }
        let until = next.unwrap_or(Lba(1 << 40));
        let window = LbaRange { start: from, count: BlockCount(until.0 - from.0) };
        let holes: Vec<(Epoch, LbaRange)> = self
            .holes
            .range((line, Epoch(after.0 + 1))..=(line, upto))
            .flat_map(|(&(_, epoch), ranges)| {
                ranges.within(window).map(move |range| (epoch, range))
            })
            .collect();
        // A younger hole hides an older point; holes themselves may overlap.
        points.retain(|&(lba, epoch, _)| {
            !holes.iter().any(|(hole, range)| *hole > epoch && range.has(lba))
        });
        let mut ranges = Ranges::default();
        holes.iter().for_each(|&(_, range)| ranges.insert(range));
        let mut changes = Vec::with_capacity(points.len() + 2 * ranges.len());
        let mut points = points.into_iter().peekable();
        for range in ranges.within(window) {
            while let Some((lba, _, pointer)) = points.next_if(|&(lba, _, _)| lba < range.start) {
                changes.push(Change::Point(lba, pointer));
            }
            // The range less the points in it.
            let mut start = range.start;
            while let Some((lba, _, pointer)) = points.next_if(|&(lba, _, _)| lba < range.end()) {
                if lba > start {
                    let count = BlockCount(lba.0 - start.0);
                    changes.push(Change::Hole(LbaRange { start, count }));
                }
                changes.push(Change::Point(lba, pointer));
                start = Lba(lba.0 + 1);
            }
            if start < range.end() {
                let count = BlockCount(range.end().0 - start.0);
                changes.push(Change::Hole(LbaRange { start, count }));
            }
        }
        changes.extend(points.map(|(lba, _, pointer)| Change::Point(lba, pointer)));
        (changes, next)
    }

    /// The changed blocks from `from` on, in order, at most `most` of them.
    pub fn blocks_from(
        &self,
        from: Pba,
        most: usize,
    ) -> impl Iterator<Item = (Pba, BlockChange)> + '_ {
        self.blocks.range(from.0..).take(most).map(|(&pba, &change)| (Pba(pba), change))
    }

    /// Lets go of some of the memory; true when nothing is left.
    pub fn dismantle(&mut self, entries: usize) -> bool {
        for _ in 0..entries {
            let gone = (self.points.pop_first().is_some(), self.blocks.pop_first().is_some());
            if gone == (false, false) {
                self.holes.clear();
                return true;
            }
        }
        false
    }
}

/// Whether a block lies in a range.
trait Has {
    fn has(&self, lba: Lba) -> bool;
}

impl Has for LbaRange {
    fn has(&self, lba: Lba) -> bool {
        self.start <= lba && lba < self.end()
    }
}

#[cfg(test)]
mod tests;
