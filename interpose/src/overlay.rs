//! Everything that changed since a checkpoint, in memory: exactly what
//! replaying the journal gives.
//!
//! A whole-block write reads no page of a map: what it replaces there is found
//! when the overlay is merged. What it replaces *here* is known at once.

mod blocks;
mod places;
mod points;
mod ranges;

use std::collections::BTreeMap;
use std::ops::Range;

use block_core::{BlockCount, Lba, LbaRange, Pba};

use self::blocks::Blocks;
use self::points::{LEVELS, Points};
use self::ranges::Ranges;
use crate::layout::record::Hash;
use crate::layout::{Epoch, Kind, LineId, Pointer, Seal};
use crate::shelf::Use;

/// A hole of at most so many blocks is kept as one entry a block: they are
/// found with the pointers, at no cost.
const SMALL_HOLE: u64 = 8;

/// Bytes that a range of holes takes in its tree.
const RANGE_BYTES: usize = 40;

/// The changes since a checkpoint.
#[derive(Debug, Default)]
pub struct Overlay {
    points: Points,
    holes: BTreeMap<(LineId, Epoch), Ranges>,
    blocks: Blocks,
    ranges: usize,
    /// Pages of maps that holes make merging write.
    hole_pages: u64,
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

/// One change of a line, as merging takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A block is here.
    Point(Lba, Pointer),
    /// Blocks are not there any more.
    Hole(LbaRange),
}

impl Overlay {
    /// What the line had at `lba` at the end of `epoch`, as far as this
    /// overlay knows.
    #[must_use]
    pub fn find(&self, line: LineId, lba: Lba, epoch: Epoch) -> Known {
        let newest = self.points.find(line, lba, epoch);
        // A hole of a point's own epoch is older than it, or had removed it.
        let after = newest.map_or(Epoch(0), |pointer| Epoch(pointer.birth.0 + 1));
        if !self.holes.is_empty() && after <= epoch {
            let mut younger = self.holes.range((line, after)..=(line, epoch)).rev();
            if let Some((&(_, birth), _)) = younger.find(|(_, ranges)| ranges.contains(lba)) {
                return Known::Is(Pointer { birth, ..Pointer::HOLE });
            }
        }
        newest.map_or(Known::Nothing, |&pointer| Known::Is(pointer))
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
        self.stored(&pointer, hash);
        self.put((line, since), lba, pointer);
    }

    /// A block has the content of one that is there.
    pub fn share(&mut self, (line, since): (LineId, Epoch), lba: Lba, pointer: Pointer) {
        self.shared(&pointer);
        self.put((line, since), lba, pointer);
    }

    /// The first half of [`Overlay::store`]: what it makes of the block.
    pub(crate) fn stored(&mut self, pointer: &Pointer, hash: Hash) {
        let change = self.blocks.change(pointer.pba, Use::Coming);
        change.delta += 1;
        change.born = Some(Born { hash, seal: pointer.seal });
    }

    /// The first half of [`Overlay::share`]. A block that nothing referred to
    /// any more is not given up then.
    pub(crate) fn shared(&mut self, pointer: &Pointer) {
        let change = self.blocks.change(pointer.pba, Use::Coming);
        self.freed -= u64::from(change.delta == 0 && change.born.is_some());
        change.delta += 1;
    }

    /// The second half of both: where the block is. Those of different blocks
    /// of a line may change places with each other.
    pub(crate) fn put(&mut self, (line, since): (LineId, Epoch), lba: Lba, pointer: Pointer) {
        if let Some(old) = self.points.put((line, since), lba, pointer) {
            kill(&mut self.blocks, &mut self.freed, &old);
        }
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
        let (blocks, freed) = (&mut self.blocks, &mut self.freed);
        self.points.take((line, since), range, |old| kill(blocks, freed, old));
        // Both ends may cut pages; what lies between is dropped whole.
        self.hole_pages += 2 * u64::from(LEVELS);
        if since > Epoch(0) {
            self.cleared += range.count.0;
        }
        let ranges = self.holes.entry((line, epoch)).or_default();
        let before = ranges.len();
        ranges.insert(range);
        self.ranges = self.ranges + ranges.len() - before;
    }

    /// The front part of a range that has about `entries` entries, at most.
    #[must_use]
    pub fn slice(&self, line: LineId, range: LbaRange, entries: usize) -> LbaRange {
        self.points.slice(line, range, entries)
    }

    /// References to a block went with a tree that was merged.
    pub fn unrefer(&mut self, pba: Pba) {
        unrefer(&mut self.blocks, &mut self.freed, pba);
    }

    /// A page was taken, or is gone. One that was taken here and is gone was
    /// never there.
    pub fn page(&mut self, pba: Pba, change: PageChange) {
        let page = &mut self.blocks.change(pba, Use::Going).page;
        let was_taken = *page == Some(PageChange::Taken);
        *page = if was_taken && change == PageChange::Gone { None } else { Some(change) };
    }

    /// What became of a block.
    #[must_use]
    pub fn block(&self, pba: Pba) -> Option<&BlockChange> {
        self.blocks.get(pba)
    }

    /// Most pages of maps that merging it writes.
    #[must_use]
    pub fn map_pages(&self) -> u64 {
        self.points.pages_to_write() + self.hole_pages
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
        self.points.bytes() + self.blocks.bytes() + self.ranges * RANGE_BYTES
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.points.len() == 0 && self.holes.is_empty() && self.blocks.len() == 0
    }

    /// Lines that have changes, in order.
    #[must_use]
    pub fn lines(&self) -> Vec<LineId> {
        let mut lines = self.points.lines();
        lines.extend(self.holes.keys().map(|&(line, _)| line));
        lines.sort_unstable();
        lines.dedup();
        lines
    }

    /// Whether the line may have changes of a stage: of ten thousand snapshots
    /// that follow each other most have none, and do not look at those of the
    /// others.
    fn has_some(&self, line: LineId, (after, upto): (Epoch, Epoch)) -> bool {
        let holes = (line, Epoch(after.0 + 1))..=(line, upto);
        self.points.has_some(line, (after, upto))
            || after < upto && self.holes.range(holes).next().is_some()
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
        if !self.has_some(line, (after, upto)) {
            return (Vec::new(), None);
        }
        if self.holes.is_empty() {
            return self.points.some_of_line(line, (after, upto), from, most, Change::Point);
        }
        let as_pair = |lba, pointer| (lba, pointer);
        let (mut points, next) = self.points.some_of_line(line, (after, upto), from, most, as_pair);
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
        points.retain(|&(lba, pointer)| {
            !holes.iter().any(|(hole, range)| *hole > pointer.birth && range.has(lba))
        });
        let mut ranges = Ranges::default();
        holes.iter().for_each(|&(_, range)| ranges.insert(range));
        let mut changes = Vec::with_capacity(points.len() + 2 * ranges.len());
        let mut points = points.into_iter().peekable();
        for range in ranges.within(window) {
            while let Some((lba, pointer)) = points.next_if(|&(lba, _)| lba < range.start) {
                changes.push(Change::Point(lba, pointer));
            }
            // The range less the points in it.
            let mut start = range.start;
            while let Some((lba, pointer)) = points.next_if(|&(lba, _)| lba < range.end()) {
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
        changes.extend(points.map(|(lba, pointer)| Change::Point(lba, pointer)));
        (changes, next)
    }

    /// Looks at the changed blocks of a range, in order, or at about `most` of
    /// them, and at some beside the range's ends. Says where to go on, if there
    /// are more, in the range or after it.
    pub fn look_at_blocks(
        &self,
        range: Range<Pba>,
        most: usize,
        look: impl FnMut(Pba, &BlockChange),
    ) -> Option<Pba> {
        self.blocks.look(range, most, look)
    }

    /// Lets go of the memory of some pages and groups of blocks; true when
    /// nothing is left.
    pub fn dismantle(&mut self, steps: usize) -> bool {
        for _ in 0..steps {
            let gone = (self.points.drop_some(), self.blocks.drop_some());
            if gone == (false, false) {
                self.holes.clear();
                return true;
            }
        }
        false
    }
}

/// What a pointer referred to is referred to once less.
fn kill(blocks: &mut Blocks, freed: &mut u64, old: &Pointer) {
    if old.kind == Kind::Data {
        unrefer(blocks, freed, old.pba);
    }
}

fn unrefer(blocks: &mut Blocks, freed: &mut u64, pba: Pba) {
    let change = blocks.change(pba, Use::Going);
    change.delta -= 1;
    *freed += u64::from(change.delta == 0 && change.born.is_some());
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
