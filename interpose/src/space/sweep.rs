//! The next checkpoint's counts: all changes since the last one, in one pass
//! over the pages that they touch.

use std::iter::Peekable;

use block_core::{BlockCount, Device, Extent, Pba};
use thiserror::Error;

use super::Space;
use super::bits::Bits;
use super::format::Grown;
use super::layout::{MAX_SEGMENTS, REGION_BLOCKS, SegmentRoot};
use super::rewrite::{Rewritten, UsageChange, rewrite};
use crate::layout::superblock::Usage;
use crate::pages::{Damage, PagesError};

/// What a checkpoint does to a block's count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// So many more pointers name a guest's block. 0 for a taken one that
    /// nothing names, guest's block or page: it is free again.
    Delta(i32),
    /// It is a page of the pool: 0 becomes 65,535.
    Page,
    /// It was a page of the pool: 65,535 becomes 0.
    Gone,
}

/// Why there are no next counts. The durable ones stay what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SweepError {
    /// A page of counts, or of their directory.
    #[error(transparent)]
    Damage(#[from] Damage),
    /// A page could not be written.
    #[error(transparent)]
    Unwritten(#[from] PagesError),
    /// What should be counted contradicts what is: a page elsewhere, or the
    /// counts, are wrong.
    #[error(
        "block {} has the count {count} and is {}taken: {change:?} cannot be",
        pba.0,
        if *taken { "" } else { "not " }
    )]
    Impossible {
        /// Which block.
        pba: Pba,
        /// Its durable count.
        count: u16,
        /// Whether it was handed out since.
        taken: bool,
        /// What should be done to it.
        change: Change,
    },
    /// The pool has no such block.
    #[error("the pool has no block {}", pba.0)]
    Outside {
        /// Which block.
        pba: Pba,
    },
}

/// The next counts, written and not yet durable: their roots go into the
/// superblock, then [`Space::publish`].
#[must_use]
pub struct Swept {
    pub(super) roots: Vec<SegmentRoot>,
    pub(super) grown: Vec<Grown>,
    /// The publication that it follows.
    pub(super) after: u64,
    /// How many of each region's counts are 0, or [`UNCHANGED`].
    pub(super) zeroes: Vec<u16>,
    /// Of each region: what was taken and is named.
    pub(super) settled: Vec<(u32, Bits)>,
    pub(super) freed: Freed,
    /// Their count is 0, and somebody refers to them meanwhile.
    pub(super) kept: Vec<Pba>,
    usage: UsageChange,
}

/// A region whose counts a sweep leaves alone.
pub(super) const UNCHANGED: u16 = u16::MAX;

/// The durable counts, whose free blocks are not handed out yet:
/// [`Space::release`].
#[must_use]
pub struct Published {
    pub(super) zeroes: Vec<u16>,
    pub(super) settled: Vec<(u32, Bits)>,
    pub(super) freed: Vec<Extent>,
}

impl Swept {
    /// What the superblock says of the counts.
    #[must_use]
    pub fn roots(&self) -> Vec<SegmentRoot> {
        let grown = self.grown.iter().map(|grown| grown.root);
        self.roots.iter().copied().chain(grown).collect()
    }

    /// What blocks are used for, given what they were before.
    #[must_use]
    pub fn usage(&self, before: Usage) -> Usage {
        let UsageChange { data, references, pages } = self.usage;
        Usage {
            data: before.data.saturating_add_signed(data),
            references: before.references.saturating_add_signed(references),
            pages: before.pages.saturating_add_signed(pages),
        }
    }

    /// How many blocks become free; those among them that were taken and died
    /// before they were durable are counted too.
    #[must_use]
    pub const fn freed(&self) -> BlockCount {
        BlockCount(self.freed.blocks)
    }

    /// Adds what the pool has grown by.
    ///
    /// # Panics
    /// When it does not follow what there is.
    pub fn grow(&mut self, grown: Grown) {
        let roots = self.roots();
        let end = roots.last().map(|last| last.segment.extent().end());
        assert_eq!(end, Some(grown.root.segment.extent().start), "segments follow each other");
        assert!(roots.len() < MAX_SEGMENTS, "a pool has at most {MAX_SEGMENTS} segments");
        self.grown.push(grown);
    }
}

impl<D: Device> Space<D> {
    /// Writes the durable counts with these changes, which ascend by block and
    /// name each once, beside the durable ones. Every block that was taken and
    /// is not the caller's any more is named.
    ///
    /// A block whose count becomes 0 and that `is_kept` knows is referred to
    /// by what comes after these changes: it stays taken.
    ///
    /// Runs of freed blocks at least `least_run` long are kept for
    /// [`Space::release`] to return, up to some number.
    ///
    /// # Errors
    /// When a page cannot be read or written, or a change cannot be. Nothing
    /// that is durable was touched.
    ///
    /// # Panics
    /// When the changes do not ascend.
    pub async fn sweep(
        &self,
        changes: impl IntoIterator<Item = (Pba, Change)>,
        least_run: Option<BlockCount>,
        is_kept: &dyn Fn(Pba) -> bool,
    ) -> Result<Swept, SweepError> {
        let roots = self.roots();
        let regions = self.ledger.borrow().regions();
        let mut swept = Swept {
            roots: Vec::new(),
            grown: Vec::new(),
            after: self.published.get(),
            zeroes: vec![UNCHANGED; regions as usize],
            settled: Vec::new(),
            freed: Freed::new(least_run),
            kept: Vec::new(),
            usage: UsageChange::default(),
        };
        let taken = |region| self.ledger.borrow().taken(region);
        let settled = &mut swept.settled;
        let groups = Groups::new(&roots, changes.into_iter(), taken).inspect(|group| {
            if let Ok(group) = group
                && let Some(bits) = group.settled()
            {
                settled.push((group.region, bits));
            }
        });
        let rewritten = |page: &Rewritten| {
            if let Some(zeroes) = page.zeroes {
                swept.zeroes[page.region as usize] = zeroes;
            }
            page.freed.iter().for_each(|&extent| swept.freed.add(extent));
            swept.kept.extend(&page.kept);
            swept.usage.add(page.usage);
        };
        swept.roots = rewrite(&self.pages, &roots, groups, is_kept, rewritten).await?;
        Ok(swept)
    }
}

/// A change of one count of a page.
#[derive(Clone, Copy)]
pub(super) struct Step {
    pub(super) place: u16,
    pub(super) taken: bool,
    pub(super) change: Change,
}

/// All changes of one page of counts.
pub(super) struct Group {
    pub(super) segment: usize,
    /// Among the pool's.
    pub(super) region: u32,
    /// Among the segment's.
    pub(super) page: u64,
    pub(super) steps: Vec<Step>,
}

impl Group {
    fn settled(&self) -> Option<Bits> {
        let mut bits = Bits::NONE;
        self.steps.iter().filter(|step| step.taken).for_each(|step| bits.set(step.place));
        (!bits.is_empty()).then_some(bits)
    }
}

/// Changes, page by page.
pub(super) struct Groups<'a, I: Iterator, T> {
    roots: &'a [SegmentRoot],
    changes: Peekable<I>,
    taken: T,
    segment: usize,
    first_region: u32,
    next: Pba,
}

impl<'a, I, T> Groups<'a, I, T>
where
    I: Iterator<Item = (Pba, Change)>,
    T: Fn(u32) -> Bits,
{
    pub(super) fn new(roots: &'a [SegmentRoot], changes: I, taken: T) -> Self {
        let changes = changes.peekable();
        Self { roots, changes, taken, segment: 0, first_region: 0, next: Pba(0) }
    }
}

impl<I, T> Iterator for Groups<'_, I, T>
where
    I: Iterator<Item = (Pba, Change)>,
    T: Fn(u32) -> Bits,
{
    type Item = Result<Group, SweepError>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.changes.peek()?.0;
        while self.roots.get(self.segment).is_some_and(|root| root.segment.extent().end() <= first)
        {
            self.first_region += self.roots[self.segment].segment.pages(0) as u32;
            self.segment += 1;
        }
        let Some(root) = self.roots.get(self.segment) else {
            return Some(Err(SweepError::Outside { pba: first }));
        };
        let page = (first.0 - root.segment.extent().start.0) / REGION_BLOCKS;
        let (start, region) = (root.segment.region_start(page), self.first_region + page as u32);
        let end = Pba(start.0 + root.segment.below(0, page));
        let taken = (self.taken)(region);
        let mut steps = Vec::new();
        while let Some((pba, change)) = self.changes.next_if(|(pba, _)| *pba < end) {
            assert!(self.next <= pba, "changes ascend");
            self.next = Pba(pba.0 + 1);
            let place = (pba.0 - start.0) as u16;
            steps.push(Step { place, taken: taken.get(place), change });
        }
        Some(Ok(Group { segment: self.segment, region, page, steps }))
    }
}

/// Most runs that are kept to be deallocated: a few pages of memory.
const MAX_FREED_RUNS: usize = 1024;

/// Blocks that become free, in runs.
pub(super) struct Freed {
    least: Option<BlockCount>,
    blocks: u64,
    run: Option<Extent>,
    runs: Vec<Extent>,
}

impl Freed {
    fn new(least: Option<BlockCount>) -> Self {
        Self { least, blocks: 0, run: None, runs: Vec::new() }
    }

    fn add(&mut self, extent: Extent) {
        self.blocks += extent.count.0;
        match &mut self.run {
            Some(run) if run.end() == extent.start => run.count.0 += extent.count.0,
            _ => {
                self.end_run();
                self.run = Some(extent);
            }
        }
    }

    fn end_run(&mut self) {
        let Some(run) = self.run.take() else { return };
        let long = self.least.is_some_and(|least| run.count >= least);
        if long && self.runs.len() < MAX_FREED_RUNS {
            self.runs.push(run);
        }
    }

    pub(super) fn into_runs(mut self) -> Vec<Extent> {
        self.end_run();
        self.runs
    }
}
