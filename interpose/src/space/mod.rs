//! Counts, free space and the allocator.
//!
//! A count says for each block of the device how often pointers name it: 0 is
//! free, 1..=65,534 a guest's block, 65,535 a page of the pool or a fixed
//! place. The durable counts are those of the last published checkpoint:
//! [`Space::sweep`] writes the next ones beside them, [`Space::publish`] makes
//! them the durable ones when the superblock that names them is.
//!
//! A block is handed out when its durable count is 0 and nobody has it; it
//! then is *taken* until a sweep that names it is published. What is neither
//! durable nor taken again cannot be: a block that was killed before its
//! first checkpoint is named by that checkpoint, with no change.
//!
//! In memory are a u16 for each 2048 blocks (256 KiB for a TiB), and a bitmap
//! for each such region that has taken blocks. Everything else is read when it
//! is needed, through [`Pages`].

mod bits;
mod directory;
mod format;
pub mod layout;
mod ledger;
mod rewrite;
mod sweep;
mod take;
mod verify;
pub(crate) mod window;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::{BlockCount, Device, Extent, Pba};
use tokio::sync::{Mutex, Notify};

use crate::pages::{Damage, Pages};
use directory::{count_at, locate, locate_at_hand, malformed};
use layout::{ENTRIES, Entry, REGION_BLOCKS, SegmentRoot};
use ledger::{Ledger, Run};
use window::Window;

pub use format::{GrowError, Grown, format};
pub use ledger::Purpose;
pub use sweep::{Change, Published, SweepError, Swept};
pub use take::Full;
pub use verify::{Counts, Fault};

/// Regions that are released at once, a few microseconds.
const RELEASED: usize = 256;

/// Directory pages that are read at once when a pool is opened.
const OPEN_READS: usize = 32;

/// The counts of an open pool and what they leave free.
///
/// *Headroom.* A sweep holds at most 16 pages while it asks for more of them,
/// everything else none.
pub struct Space<D> {
    pages: Rc<Pages<D>>,
    places: RefCell<Vec<Place>>,
    /// Where the last one ends.
    total: Cell<BlockCount>,
    ledger: RefCell<Ledger>,
    /// How often counts were published: what was read before and is used after
    /// is of the past.
    published: Cell<u64>,
    /// For each purpose: one at a time opens a region.
    opening: [Mutex<()>; 2],
    low: Notify,
}

/// A segment among the pool's regions.
#[derive(Clone, Copy)]
struct Place {
    root: SegmentRoot,
    first_region: u32,
}

fn end_of(places: &[Place]) -> BlockCount {
    BlockCount(places.last().map_or(0, |last| last.root.segment.extent().end().0))
}

/// Where a region's segment is; the first one begins with region 0.
fn place_of(places: &[Place], region: u32) -> &Place {
    let place = places.iter().rev().find(|place| place.first_region <= region);
    place.expect("the first segment begins at region 0")
}

/// Where a block's count is.
#[derive(Clone, Copy)]
struct At {
    root: SegmentRoot,
    /// Among the pool's.
    region: u32,
    /// Among the segment's.
    page: u64,
    /// In the page.
    place: u16,
}

impl<D: Device> Space<D> {
    /// Opens the counts that a superblock names. The lowest level of the
    /// directory is read, 4 MiB for a TiB.
    ///
    /// What is damaged comes along: the blocks below it are not handed out,
    /// and a sweep that touches them fails.
    pub async fn open(pages: Rc<Pages<D>>, roots: Vec<SegmentRoot>) -> (Self, Vec<Damage>) {
        let mut damage = Vec::new();
        let mut ledger = Ledger::default();
        let mut places = Vec::new();
        for root in roots {
            places.push(Place { root, first_region: ledger.regions() });
            free_by_region(&pages, &root, |free| match free {
                Ok(free) => ledger.add(&free),
                Err((what, regions)) => {
                    damage.push(what);
                    ledger.add(&vec![0; regions]);
                }
            })
            .await;
        }
        let space = Self {
            pages,
            total: Cell::new(end_of(&places)),
            places: RefCell::new(places),
            ledger: RefCell::new(ledger),
            published: Cell::new(0),
            opening: Default::default(),
            low: Notify::new(),
        };
        (space, damage)
    }

    /// All blocks of the pool.
    #[must_use]
    pub fn total(&self) -> BlockCount {
        self.total.get()
    }

    /// Blocks that can be handed out.
    #[must_use]
    pub fn allocatable(&self) -> BlockCount {
        BlockCount(self.ledger.borrow().allocatable())
    }

    /// Blocks that were handed out and that no published checkpoint names.
    #[must_use]
    pub fn taken(&self) -> BlockCount {
        BlockCount(self.ledger.borrow().taken_count())
    }

    /// What the superblock of the last published checkpoint says.
    #[must_use]
    pub fn roots(&self) -> Vec<SegmentRoot> {
        self.places.borrow().iter().map(|place| place.root).collect()
    }

    /// The durable count of a block, if it is at hand.
    #[must_use]
    pub fn durable_count(&self, pba: Pba) -> Option<u16> {
        let at = self.find(pba)?;
        let Entry::Written { seal, home, .. } = locate_at_hand(&self.pages, &at.root, 0, at.page)?
        else {
            return Some(0);
        };
        let binding = at.root.segment.binding(0, at.page, home);
        self.pages.peek(&seal, &binding, |page| count_at(page, at.place))
    }

    /// The durable count of a block, read if need be. A block that the pool
    /// does not have is counted as a page: nothing can be done with it.
    ///
    /// # Errors
    /// When its page cannot be had.
    pub async fn load_count(&self, pba: Pba) -> Result<u16, Damage> {
        self.while_current(async || {
            let Some(at) = self.find(pba) else { return Ok(layout::PAGE_COUNT) };
            let entry = locate(&self.pages, &at.root, 0, at.page).await?;
            let Entry::Written { seal, home, .. } = entry else { return Ok(0) };
            let binding = at.root.segment.binding(0, at.page, home);
            Ok(count_at(&self.pages.load(&seal, binding).await?, at.place))
        })
        .await
    }

    /// Replays that a block was handed out since the checkpoint that was
    /// opened, before anything is taken. Says whether that can be: the block
    /// is the pool's and was not claimed before. That its count was 0 is seen
    /// when a sweep names it.
    #[must_use]
    pub fn claim(&self, pba: Pba) -> bool {
        self.find(pba).is_some_and(|at| self.ledger.borrow_mut().claim(at.region, at.place))
    }

    /// What was taken is free again at once: it was certainly never written
    /// nor recorded, or [`Space::release`] returned it and its deallocation
    /// has ended.
    pub fn give_back(&self, extent: Extent) {
        self.runs(extent).for_each(|run| self.ledger.borrow_mut().give_back(run));
    }

    /// A write to what was taken failed: nobody gets it until the pool is
    /// opened again.
    pub fn set_aside(&self, extent: Extent) {
        // Nothing will name it, so it stays taken.
        tracing::warn!(start = extent.start.0, blocks = extent.count.0, "blocks are set aside");
    }

    /// The superblock with the roots of `swept` is durable, and every read
    /// that was begun before has ended: the counts that were swept are the
    /// durable ones, from this moment. What they leave free is handed out when
    /// it was released.
    ///
    /// # Panics
    /// When another sweep was published since this one began: its counts would
    /// be lost.
    pub fn publish(&self, swept: Swept) -> Published {
        let Swept { roots, grown, after, zeroes, mut settled, freed, kept, .. } = swept;
        assert_eq!(after, self.published.get(), "sweeps are published one by one");
        self.published.set(after + 1);
        for (place, root) in self.places.borrow_mut().iter_mut().zip(&roots) {
            place.root = *root;
        }
        // Before any region is opened by the new counts.
        let freed = freed.into_runs();
        let kept = kept.into_iter().map(|pba| Extent { start: pba, count: BlockCount(1) });
        for run in freed.iter().copied().chain(kept).flat_map(|extent| self.runs(extent)) {
            self.ledger.borrow_mut().hold(run);
            if let Ok(at) = settled.binary_search_by_key(&run.region, |(region, _)| *region) {
                settled[at].1.clear_run(run.place, run.count);
            }
        }
        for Grown { root, free } in &grown {
            let mut ledger = self.ledger.borrow_mut();
            self.places.borrow_mut().push(Place { root: *root, first_region: ledger.regions() });
            ledger.add(free);
            self.total.set(end_of(&self.places.borrow()));
        }
        Published { zeroes, settled, freed }
    }

    /// Lets what a published sweep left free be handed out, before the next
    /// sweep begins.
    ///
    /// Returns the runs that became free and are long enough to be
    /// deallocated: they stay taken until they are given back.
    pub async fn release(&self, published: Published) -> Vec<Extent> {
        let Published { zeroes, settled, freed } = published;
        let mut settled = settled.iter().peekable();
        for (number, chunk) in zeroes.chunks(RELEASED).enumerate() {
            let first = (number * RELEASED) as u32;
            let end = first + chunk.len() as u32;
            let settled = std::iter::from_fn(|| settled.next_if(|(region, _)| *region < end));
            if self.ledger.borrow_mut().release(first, chunk, settled) {
                turn::yield_now().await;
            }
        }
        freed
    }

    fn find(&self, pba: Pba) -> Option<At> {
        let places = self.places.borrow();
        let within = |place: &&Place| pba < place.root.segment.extent().end();
        let Place { root, first_region } = *places.iter().find(within)?;
        let offset = pba.0.checked_sub(root.segment.extent().start.0)?;
        let page = offset / REGION_BLOCKS;
        let region = first_region + page as u32;
        Some(At { root, region, page, place: (offset % REGION_BLOCKS) as u16 })
    }

    /// The segment that a region of the pool belongs to, and its number there.
    fn region(&self, region: u32) -> (SegmentRoot, u64) {
        let places = self.places.borrow();
        let place = place_of(&places, region);
        (place.root, u64::from(region - place.first_region))
    }

    fn region_start(&self, region: u32) -> Pba {
        let places = self.places.borrow();
        let place = place_of(&places, region);
        place.root.segment.region_start(u64::from(region - place.first_region))
    }

    /// An extent, region by region; what the pool does not have is left out.
    fn runs(&self, extent: Extent) -> impl Iterator<Item = Run> + '_ {
        let mut start = extent.start;
        std::iter::from_fn(move || {
            let left = extent.end().0.checked_sub(start.0).filter(|&left| left > 0)?;
            let At { root, region, page, place } = self.find(start)?;
            let count = left.min(root.segment.below(0, page) - u64::from(place));
            start.0 += count;
            Some(Run { region, place, count: count as u16 })
        })
    }

    /// Reads until what was read is still durable: a page that was replaced
    /// meanwhile may be overwritten already, and its numbers are old.
    async fn while_current<T>(
        &self,
        read: impl AsyncFn() -> Result<T, Damage>,
    ) -> Result<T, Damage> {
        loop {
            let published = self.published.get();
            let outcome = read().await;
            if published == self.published.get() {
                return outcome;
            }
        }
    }
}

/// The free blocks of each region, read from the lowest level of a segment's
/// directory; for what is damaged, how many regions it covers.
async fn free_by_region<D: Device>(
    pages: &Pages<D>,
    root: &SegmentRoot,
    mut each: impl FnMut(Result<Vec<u16>, (Damage, usize)>),
) {
    let mut window = Window::new(OPEN_READS);
    let mut page = 0;
    loop {
        while window.has_room() && page < root.segment.pages(1) {
            window.push(free_below(pages, root, page));
            page += 1;
        }
        let Some(free) = window.next().await else { return };
        each(free);
    }
}

async fn free_below<D: Device>(
    pages: &Pages<D>,
    root: &SegmentRoot,
    page: u64,
) -> Result<Vec<u16>, (Damage, usize)> {
    let regions = root.segment.below(1, page).div_ceil(REGION_BLOCKS);
    let first = page * ENTRIES;
    let below = |child| root.segment.below(0, child);
    let read = async {
        let entry = locate(pages, root, 1, page).await?;
        let Entry::Written { seal, home, free } = entry else {
            return Ok((first..first + regions).map(|child| below(child) as u16).collect());
        };
        let binding = root.segment.binding(1, page, home);
        let bytes = pages.load(&seal, binding).await?;
        let entries = directory::entries(root, 1, page, &bytes, free).ok_or(malformed(&binding))?;
        Ok(entries.take(regions as usize).map(|(entry, below)| entry.free(below) as u16).collect())
    };
    read.await.map_err(|damage| (damage, regions as usize))
}
