//! The counts of blocks that have none: a new pool's, and what a pool grows
//! by.

use block_core::{BlockCount, Device, Extent, Pba};
use thiserror::Error;

use super::Space;
use super::bits::Bits;
use super::layout::{Entry, MAX_SEGMENTS, REGION_BLOCKS, Segment, SegmentRoot};
use super::rewrite::{Rewritten, rewrite};
use super::sweep::{Change, Groups, SweepError};
use crate::pages::Pages;

/// Writes the first counts of a new pool: its own homes and `fixed`, which
/// share no block, are taken for ever. Only pages that say so are written.
///
/// # Errors
/// When a page cannot be written, or a fixed place lies on another or outside
/// of the segment.
pub async fn format<D: Device>(
    pages: &Pages<D>,
    segment: Segment,
    fixed: &[Extent],
) -> Result<SegmentRoot, SweepError> {
    mark(pages, segment, fixed, |_| ()).await
}

/// What a pool grows by, with its counts written: [`super::Swept::grow`].
pub struct Grown {
    pub(super) root: SegmentRoot,
    /// Free blocks of each region.
    pub(super) free: Vec<u16>,
}

/// Why a pool does not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GrowError {
    /// It grew too often.
    #[error("the pool has grown {} times already, which is as often as it can", MAX_SEGMENTS - 1)]
    TooOften,
    /// There would be nothing left beside the new counts.
    #[error("{by} more are too few, or more than a pool can have")]
    Size {
        /// How much it should grow.
        by: BlockCount,
    },
    /// The new counts could not be written.
    #[error(transparent)]
    Unwritten(#[from] SweepError),
}

impl<D: Device> Space<D> {
    /// Writes the counts of what lies between the pool's end and `to`, which
    /// the device has. The pool has the blocks when a sweep to which this was
    /// added is published; until then the pool does not grow once more.
    ///
    /// # Errors
    /// When the pool cannot grow so; it stays what it is.
    pub async fn grow(&self, to: BlockCount) -> Result<Grown, GrowError> {
        let start = Pba(self.total().0);
        let by = BlockCount(to.0.saturating_sub(start.0));
        if self.places.borrow().len() >= MAX_SEGMENTS {
            return Err(GrowError::TooOften);
        }
        let segment =
            Segment::new(Extent { start, count: by }, start).ok_or(GrowError::Size { by })?;
        let regions = 0..segment.pages(0);
        let mut free: Vec<u16> = regions.map(|page| segment.below(0, page) as u16).collect();
        let marked = |page: &Rewritten| {
            free[page.region as usize] = page.zeroes.unwrap_or_default();
        };
        let root = mark(&self.pages, segment, &[], marked).await?;
        Ok(Grown { root, free })
    }
}

async fn mark<D: Device>(
    pages: &Pages<D>,
    segment: Segment,
    fixed: &[Extent],
    each: impl FnMut(&Rewritten),
) -> Result<SegmentRoot, SweepError> {
    let mut fixed: Vec<Extent> = fixed.iter().copied().chain([segment.homes()]).collect();
    fixed.sort_by_key(|extent| extent.start);
    if let Some(pair) = fixed.windows(2).find(|pair| pair[0].overlaps(pair[1])) {
        let (pba, change) = (pair[1].start, Change::Page);
        let count = super::layout::PAGE_COUNT;
        return Err(SweepError::Impossible { pba, count, taken: true, change });
    }
    let blocks = fixed.iter().flat_map(|extent| extent.start.0..extent.end().0);
    let changes = blocks.map(|pba| (Pba(pba), Change::Page));
    let root = [SegmentRoot { segment, top: Entry::Untouched }];
    let groups = Groups::new(&root, changes, |_| Bits::of(REGION_BLOCKS, |_| true));
    let roots = rewrite(pages, &root, groups, &|_| false, each).await?;
    Ok(roots[0])
}
