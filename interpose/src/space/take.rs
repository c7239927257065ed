//! Taking blocks: from the region that is open, and opening the next one.

use block_core::{BlockCount, Device, Extent, Pba};
use thiserror::Error;

use super::Space;
use super::bits::Bits;
use super::directory::{count_at, free_in, locate, malformed};
use super::layout::{Entry, REGION_BLOCKS};
use super::ledger::{Ledger, Purpose, Run};
use crate::pages::Damage;

/// No block is free, or none whose counts can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the pool is full")]
pub struct Full;

impl<D: Device> Space<D> {
    /// At most `most` (at least 1) consecutive blocks, if the region that is
    /// open for this purpose has some.
    #[must_use]
    pub fn try_take(&self, purpose: Purpose, most: u32) -> Option<Extent> {
        let run = self.ledger.borrow_mut().take(purpose, cut(most))?;
        Some(self.extent(purpose, run))
    }

    /// At most `most` (at least 1) consecutive blocks: they are the caller's
    /// until a published sweep names them.
    ///
    /// # Errors
    /// When no block is free.
    pub async fn take(&self, purpose: Purpose, most: u32) -> Result<Extent, Full> {
        loop {
            if let Some(extent) = self.try_take(purpose, most) {
                return Ok(extent);
            }
            if self.ledger.borrow().allocatable() == 0 {
                return Err(Full);
            }
            self.open_region(purpose, Ledger::has_open).await;
            if let Some(extent) = self.try_take(purpose, most) {
                return Ok(extent);
            }
            // All that is left is open for the other purpose, or being opened.
            let borrowed = self.ledger.borrow_mut().borrow(purpose, cut(most));
            if let Some(run) = borrowed {
                return Ok(self.extent(purpose, run));
            }
            for opening in &self.opening {
                drop(opening.lock().await);
            }
        }
    }

    /// Opens regions before they are needed, for ever: a task beside those
    /// that take. Without it a take waits for each region's counts.
    pub async fn keep_ahead(&self) {
        loop {
            for purpose in Purpose::ALL {
                let enough = |ledger: &Ledger, purpose| !ledger.wants_ahead(purpose);
                self.open_region(purpose, enough).await;
            }
            self.low.notified().await;
        }
    }

    fn extent(&self, purpose: Purpose, run: Run) -> Extent {
        if self.ledger.borrow_mut().asks_ahead(purpose) {
            self.low.notify_one();
        }
        let start = Pba(self.region_start(run.region).0 + u64::from(run.place));
        Extent { start, count: BlockCount(run.count.into()) }
    }

    /// Opens the emptiest region, if there is one, unless there is `enough`.
    async fn open_region(&self, purpose: Purpose, enough: fn(&Ledger, Purpose) -> bool) {
        let _one_at_a_time = self.opening[purpose as usize].lock().await;
        if enough(&self.ledger.borrow(), purpose) {
            return;
        }
        let Some(region) = self.ledger.borrow_mut().choose(purpose) else { return };
        let chosen = Chosen { space: self, purpose };
        let zero = self.while_current(async || self.zero_counts(region).await).await;
        drop(chosen);
        let mut ledger = self.ledger.borrow_mut();
        match zero {
            Ok(zero) => ledger.opened(purpose, region, &zero),
            Err(damage) => {
                tracing::error!(%damage, "its blocks are not handed out");
                ledger.lose(region);
            }
        }
    }

    /// The blocks of a region whose durable count is 0.
    async fn zero_counts(&self, region: u32) -> Result<Bits, Damage> {
        let (root, page) = self.region(region);
        let blocks = root.segment.below(0, page);
        let Entry::Written { seal, home, free } = locate(&self.pages, &root, 0, page).await? else {
            return Ok(Bits::of(blocks, |_| true));
        };
        let binding = root.segment.binding(0, page, home);
        let counts = self.pages.load(&seal, binding).await?;
        if free_in(&counts, blocks) != Some(free) {
            return Err(malformed(&binding));
        }
        Ok(Bits::of(blocks, |place| count_at(&counts, place) == 0))
    }
}

/// A region that is being opened; given up, it can be chosen again.
struct Chosen<'a, D> {
    space: &'a Space<D>,
    purpose: Purpose,
}

impl<D> Drop for Chosen<'_, D> {
    fn drop(&mut self) {
        self.space.ledger.borrow_mut().not_opened(self.purpose);
    }
}

fn cut(most: u32) -> u16 {
    most.clamp(1, REGION_BLOCKS as u32) as u16
}
