//! What may be handed out: how many blocks of each region, and which of the
//! regions that are open.
//!
//! A block is free here when its durable count is 0 and nobody has taken it.
//! So a region's number is that of its zero counts less that of its taken
//! blocks; this holds through every change here.

use super::bits::Bits;
use super::layout::REGION_BLOCKS;
use super::sweep::UNCHANGED;
use crate::shelf::{Shelf, Use};

/// What a block is taken for. Each fills regions of its own, so that guests'
/// blocks follow each other and pages do too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Guests' blocks.
    Data,
    /// Pages of the pool.
    Pages,
}

impl Purpose {
    pub(crate) const ALL: [Self; 2] = [Self::Data, Self::Pages];

    const fn other(self) -> Self {
        match self {
            Self::Data => Self::Pages,
            Self::Pages => Self::Data,
        }
    }
}

/// When so few blocks are left in an open region the next one is opened: what
/// a busy worker takes while a counts page is read, several times over.
const LOW: u16 = 256;

/// Regions that one choice looks at, at most, unless it finds nothing there:
/// 8 TiB, some tens of microseconds.
const CHOICE: usize = 1 << 20;

/// Regions whose largest number is found in one go.
const CHUNK: usize = 512;

/// Consecutive blocks of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) region: u32,
    pub(crate) place: u16,
    pub(crate) count: u16,
}

/// A region that is being filled.
struct Open {
    region: u32,
    left: Bits,
    /// None is left before.
    from: u16,
    count: u16,
}

#[derive(Default)]
struct Cursor {
    open: Option<Open>,
    ahead: Option<Open>,
    /// Its counts are being read.
    opening: Option<u32>,
    /// Somebody was told that the open region is running low.
    asked: bool,
}

impl Cursor {
    /// The region to take from; one that has nothing left gives way.
    fn current(&mut self) -> Option<&mut Open> {
        if self.open.as_ref().is_none_or(|open| open.count == 0) {
            self.open = self.ahead.take();
        }
        self.open.as_mut().filter(|open| open.count > 0)
    }

    fn regions(&self) -> impl Iterator<Item = u32> + '_ {
        let open = self.opens().filter(|open| open.count > 0).map(|open| open.region);
        open.chain(self.opening)
    }

    fn opens(&self) -> impl Iterator<Item = &Open> {
        self.open.iter().chain(&self.ahead)
    }
}

#[derive(Default)]
pub(crate) struct Ledger {
    free: Vec<u16>,
    allocatable: u64,
    /// By region.
    taken: Shelf<Bits>,
    taken_count: u64,
    cursors: [Cursor; 2],
    /// Where the next choice looks first.
    look: usize,
}

impl Ledger {
    /// Adds regions with so many free blocks each.
    pub(crate) fn add(&mut self, free: &[u16]) {
        self.free.extend_from_slice(free);
        self.allocatable += free.iter().copied().map(u64::from).sum::<u64>();
    }

    pub(crate) fn regions(&self) -> u32 {
        self.free.len() as u32
    }

    pub(crate) const fn allocatable(&self) -> u64 {
        self.allocatable
    }

    pub(crate) const fn taken_count(&self) -> u64 {
        self.taken_count
    }

    /// At most `most` consecutive blocks of the region that is open.
    pub(crate) fn take(&mut self, purpose: Purpose, most: u16) -> Option<Run> {
        let open = self.cursors[purpose as usize].current()?;
        let (place, count) = open.left.first_run(open.from, most)?;
        let run = Run { region: open.region, place, count };
        open.left.clear_run(place, count);
        open.from = place + count;
        open.count -= count;
        self.mark_taken(run);
        self.less(run.region, count);
        Some(run)
    }

    /// The same from what the other purpose has open.
    pub(crate) fn borrow(&mut self, purpose: Purpose, most: u16) -> Option<Run> {
        self.take(purpose.other(), most)
    }

    /// Marks a block that a crash left taken. Says whether it was not marked
    /// before.
    pub(crate) fn claim(&mut self, region: u32, place: u16) -> bool {
        if self.taken(region).get(place) {
            return false;
        }
        self.mark_taken(Run { region, place, count: 1 });
        self.less(region, 1);
        true
    }

    /// Frees what is taken of the run; its durable counts are 0.
    pub(crate) fn give_back(&mut self, run: Run) {
        let mut given = Bits::NONE;
        given.set_run(run.place, run.count);
        let given = given.common(&self.taken(run.region));
        let count = given.count();
        self.unmark(run.region, &given);
        self.more(run.region, count);
        let cursors = self.cursors.iter_mut();
        let opens = cursors.flat_map(|cursor| cursor.open.iter_mut().chain(&mut cursor.ahead));
        for open in opens.filter(|open| open.region == run.region && open.count > 0) {
            open.left = open.left.with(&given);
            open.from = open.from.min(run.place);
            open.count += count;
        }
    }

    /// What is taken of a region.
    pub(crate) fn taken(&self, region: u32) -> Bits {
        self.taken.get(region.into()).copied().unwrap_or_default()
    }

    /// Takes what becomes free with [`Ledger::release`], until its deallocation
    /// has ended.
    pub(crate) fn hold(&mut self, run: Run) {
        self.mark_taken(run);
    }

    /// What a sweep named in the regions from `first` on is not taken any more,
    /// and so many of each region's durable counts are 0, if it changed them.
    /// Says whether there was anything to do.
    pub(crate) fn release<'a>(
        &mut self,
        first: u32,
        zeroes: &[u16],
        settled: impl Iterator<Item = &'a (u32, Bits)>,
    ) -> bool {
        let mut work = false;
        for (region, bits) in settled {
            self.settle(*region, bits);
            work = true;
        }
        for (region, &zeroes) in (first..).zip(zeroes) {
            if zeroes != UNCHANGED {
                let taken = self.taken.get(region.into()).map_or(0, Bits::count);
                self.set_free(region, zeroes.saturating_sub(taken));
                work = true;
            }
        }
        work
    }

    fn settle(&mut self, region: u32, bits: &Bits) {
        let settled = self.taken(region).common(bits);
        self.unmark(region, &settled);
        // Right where no count changed: what is settled died.
        self.more(region, settled.count());
    }

    /// Whether the purpose needs another region soon.
    pub(crate) fn wants_ahead(&self, purpose: Purpose) -> bool {
        let cursor = &self.cursors[purpose as usize];
        let low = cursor.open.as_ref().is_none_or(|open| open.count < LOW);
        low && cursor.ahead.is_none() && cursor.opening.is_none()
    }

    /// The same, once for each region that is filled: in a full pool there is
    /// none to be had, and looking for it takes long.
    pub(crate) fn asks_ahead(&mut self, purpose: Purpose) -> bool {
        let asks = !self.cursors[purpose as usize].asked && self.wants_ahead(purpose);
        self.cursors[purpose as usize].asked |= asks;
        asks
    }

    pub(crate) fn has_open(&self, purpose: Purpose) -> bool {
        self.cursors[purpose as usize].opens().any(|open| open.count > 0)
    }

    /// The emptiest region that nobody fills, the first among equals.
    pub(crate) fn choose(&mut self, purpose: Purpose) -> Option<u32> {
        let windows = self.free.len().div_ceil(CHOICE);
        let first = self.look;
        let region = (0..windows).find_map(|number| {
            let window = (first + number) % windows;
            self.look = (window + 1) % windows;
            self.emptiest(window * CHOICE..((window + 1) * CHOICE).min(self.free.len()))
        })?;
        self.cursors[purpose as usize].opening = Some(region);
        Some(region)
    }

    fn emptiest(&self, window: std::ops::Range<usize>) -> Option<u32> {
        let busy = |region: usize| {
            self.cursors.iter().flat_map(Cursor::regions).any(|other| other as usize == region)
        };
        let mut best = (0, None);
        for (number, chunk) in self.free[window.clone()].chunks(CHUNK).enumerate() {
            if chunk.iter().fold(0, |most, &free| most.max(free)) <= best.0 {
                continue;
            }
            for (place, &free) in chunk.iter().enumerate() {
                let region = window.start + number * CHUNK + place;
                if free > best.0 && !busy(region) {
                    best = (free, Some(region as u32));
                }
            }
            if u64::from(best.0) == REGION_BLOCKS {
                break;
            }
        }
        best.1
    }

    /// The counts of the region that was chosen: which of them are 0.
    pub(crate) fn opened(&mut self, purpose: Purpose, region: u32, zero: &Bits) {
        let left = zero.without(&self.taken(region));
        let count = left.count();
        self.set_free(region, count);
        let cursor = &mut self.cursors[purpose as usize];
        cursor.opening = None;
        cursor.asked = false;
        let open = Some(Open { region, left, from: 0, count }).filter(|open| open.count > 0);
        if cursor.current().is_none() {
            cursor.open = open;
        } else {
            cursor.ahead = open;
        }
    }

    /// The region that was chosen cannot be opened after all.
    pub(crate) fn not_opened(&mut self, purpose: Purpose) {
        self.cursors[purpose as usize].opening = None;
    }

    /// Its counts cannot be read: nothing of it can be handed out.
    pub(crate) fn lose(&mut self, region: u32) {
        self.set_free(region, 0);
    }

    fn mark_taken(&mut self, run: Run) {
        let taken = self.taken.work_at(run.region.into(), Use::Coming);
        self.taken_count += u64::from(taken.set_run(run.place, run.count));
    }

    /// These, which are taken, are not any more.
    fn unmark(&mut self, region: u32, bits: &Bits) {
        let Some(taken) = self.taken.get_mut(region.into()) else { return };
        *taken = taken.without(bits);
        if taken.is_empty() {
            self.taken.remove(region.into());
        }
        self.taken_count -= u64::from(bits.count());
    }

    fn more(&mut self, region: u32, count: u16) {
        let free = self.free[region as usize].saturating_add(count);
        self.set_free(region, free.min(REGION_BLOCKS as u16));
    }

    fn less(&mut self, region: u32, count: u16) {
        self.set_free(region, self.free[region as usize].saturating_sub(count));
    }

    fn set_free(&mut self, region: u32, count: u16) {
        let free = &mut self.free[region as usize];
        self.allocatable = self.allocatable - u64::from(*free) + u64::from(count);
        *free = count;
    }
}
