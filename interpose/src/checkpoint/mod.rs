//! A checkpoint: the overlay becomes maps, seals and counts on the device, and
//! the journal and what was freed can be used again.
//!
//! It works on a copy of the catalog, beside the path, which goes on with a
//! new overlay. Nothing that the last checkpoint refers to is overwritten
//! before the next superblock is durable, so a crash at any point finds the
//! one or the other.

mod deletions;
mod lists;
mod pins;
mod scribe;
mod seal_pages;
mod shelves;
mod stages;
mod superblocks;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::{BlockCount, BlockError, Device, Pba};
use thiserror::Error;
use tokio::sync::Notify;

use crate::catalog::{Catalog, Contradiction};
use crate::core::{Core, ReadOnly, count};
use crate::journal;
use crate::layout::control::SnapshotKey;
use crate::layout::superblock::Superblock;
use crate::overlay::{BlockChange, PageChange};
use crate::pages::{Damage, PagesError};
use crate::radix::{MergeError, Tree};
use crate::space::{Change, Full, SweepError, Swept};

pub(crate) use lists::pop_list;
pub(crate) use pins::{Pin, Pins};
pub(crate) use scribe::Scribe;
pub(crate) use shelves::Shelves;
pub use superblocks::Guard;
pub(crate) use superblocks::{
    NoSuperblock, format_superblocks, newest_superblock, repair_superblock, verify_superblock,
    write_superblock,
};

/// Entries of a dismantled overlay that one turn lets go of.
const DISMANTLED: usize = 256;

/// Shorter runs of freed blocks are not worth a command.
const LEAST_DEALLOCATED: BlockCount = BlockCount(64);

/// Changed blocks that are looked at in one go.
const CHANGED_BLOCKS: usize = 256;

/// Why a checkpoint was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum CheckpointError {
    #[error(transparent)]
    Damage(#[from] Damage),
    #[error(transparent)]
    Unwritten(#[from] PagesError),
    #[error("there is no room for its pages")]
    Full(#[from] Full),
    #[error(transparent)]
    Counts(#[from] SweepError),
    #[error("the device could not flush or write: {0}")]
    Device(#[from] BlockError),
    #[error("the catalog contradicts itself: {0}")]
    Contradiction(#[from] Contradiction),
    #[error("no more seals can be made")]
    Unsealed,
    #[error("an earlier step failed")]
    Over,
}

impl From<MergeError<Full>> for CheckpointError {
    fn from(error: MergeError<Full>) -> Self {
        match error {
            MergeError::Damaged(damage) => Self::Damage(damage),
            MergeError::Unwritten(error) => Self::Unwritten(error),
            MergeError::Unallocated(full) => Self::Full(full),
            MergeError::Impossible => {
                Self::Contradiction(Contradiction("a change is of a block that no map has"))
            }
            MergeError::Over => Self::Over,
        }
    }
}

/// Where checkpoints are asked for and waited for.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    /// How many have begun.
    begun: Cell<u64>,
    completed: Cell<u64>,
    wanted: Cell<bool>,
    /// A deletion goes on: the next checkpoint frees more.
    deleting: Cell<bool>,
    wake: Notify,
    /// One is done.
    pub(crate) done: Notify,
    /// Blocks that the device grew to.
    pub(crate) grow: Cell<Option<BlockCount>>,
    pub(crate) shelves: RefCell<Shelves>,
    pub(crate) pins: Pins,
    /// The maps are the newest checkpoint's, and the counts those of the one
    /// before.
    pub(crate) publishing: Cell<bool>,
}

impl Desk {
    /// Asks for one.
    pub(crate) fn want(&self) {
        if !self.wanted.replace(true) {
            self.wake.notify_one();
        }
    }

    /// Asks for one that has everything that was done so far: it is done when
    /// [`Desk::completed`] is at least the number returned.
    pub(crate) fn request(&self) -> u64 {
        self.want();
        self.begun.get() + 1
    }

    /// How many are done.
    pub(crate) fn completed(&self) -> u64 {
        self.completed.get()
    }

    /// Whether the next one will free more than this one did.
    pub(crate) fn frees_more(&self) -> bool {
        self.deleting.get()
    }
}

/// What a checkpoint has made so far.
struct Making<D> {
    core: Rc<Core<D>>,
    scribe: Scribe<D>,
    /// The catalog as it was when the checkpoint began.
    catalog: Catalog,
    /// Snapshots that were taken out of the chain.
    spliced: Vec<SnapshotKey>,
    /// Heads and snapshots that are gone.
    removed: Vec<SnapshotKey>,
}

impl<D: Device + 'static> Core<D> {
    /// Makes checkpoints when they are wanted, for ever.
    pub(crate) async fn make_checkpoints(self: Rc<Self>) {
        loop {
            while !self.checkpoints.wanted.get() {
                self.give_back_unpinned().await;
                self.checkpoints.wake.notified().await;
            }
            if self.frozen_by.get().is_some() {
                return;
            }
            if let Err(why) = self.checkpoint().await {
                tracing::error!(pool = %self.id, "a checkpoint failed: {why}");
                // A lost cache is why, whatever step came upon it.
                let _ = self.heed(self.device.flush().await);
                self.freeze(ReadOnly::Checkpoint);
            }
            self.checkpoints.done.notify_waiters();
            self.room.changed.notify_waiters();
        }
    }

    /// Waits until everything that was done so far is in a checkpoint.
    pub(crate) async fn wait_for_checkpoint(&self) -> Result<(), BlockError> {
        let wanted = self.checkpoints.request();
        while self.checkpoints.completed() < wanted {
            self.check_writable()?;
            self.checkpoints.done.notified().await;
        }
        Ok(())
    }

    async fn checkpoint(self: &Rc<Self>) -> Result<(), CheckpointError> {
        let desk = &self.checkpoints;
        desk.wanted.set(false);
        desk.begun.set(desk.begun.get() + 1);
        let (catalog, from) = self.begin_checkpoint();
        let mut making = Making {
            core: Rc::clone(self),
            scribe: Scribe::new(self),
            catalog,
            spliced: Vec::new(),
            removed: Vec::new(),
        };
        making.merge_lines().await?;
        let more = making.delete_some().await?;
        let seals = making.write_seals().await?;
        let shelved = making.shelve().await?;
        let changes = ChangedBlocks::new(self, |_, change| Some(change.into()));
        // A block that nobody refers to any more may have been shared again
        // meanwhile. From here on it cannot: its count is 0 for all who ask.
        let is_kept = |pba| {
            let state = self.state.borrow();
            state.active.block(pba).is_some_and(|change| change.delta > 0)
        };
        let least = if desk.pins.is_pinned() { BlockCount(1) } else { LEAST_DEALLOCATED };
        let mut swept = self.space.sweep(changes, Some(least), &is_kept).await?;
        let mut blocks = self.space.total();
        // Taken here, once: who asks later is heard by the next checkpoint.
        if let Some(wanted) = desk.grow.take()
            && making.grow(&mut swept, wanted).await
        {
            blocks = wanted;
        }
        let usage = swept.usage(self.state.borrow().usage);
        let superblock = Superblock {
            blocks,
            journal: self.journal_extent,
            from: from.next,
            previous: from.previous,
            mark: self.journal.mark(),
            epoch: making.catalog.epoch(),
            next_line: making.catalog.next_line(),
            volumes: shelved.volumes,
            nodes: shelved.nodes,
            seals,
            slots: shelved.slots(),
            usage,
            segments: swept.roots(),
        };
        let generation = self.state.borrow().generation + 1;
        write_superblock(self, generation, &superblock).await?;
        self.adopt(making, generation, superblock, shelved);
        self.journal.release(from.next);
        self.readers.drain().await;
        self.publish(swept).await;
        desk.deleting.set(more);
        desk.completed.set(desk.begun.get());
        count(&self.tally.checkpoints, 1);
        if more {
            desk.want();
        }
        self.warn_of_space();
        Ok(())
    }

    /// Ends a period: from here on changes go to a new overlay and to blocks
    /// of the journal from the returned position on.
    fn begin_checkpoint(&self) -> (Catalog, journal::Position) {
        let from = self.journal.freeze();
        let mut state = self.state.borrow_mut();
        let overlay = std::mem::take(&mut state.active);
        self.room.merging.set(overlay.pages_to_write());
        state.merging = Some(overlay);
        state.catalog.begin_period();
        (state.catalog.clone(), from)
    }

    /// From here on reads go to what the checkpoint made.
    fn adopt(&self, making: Making<D>, generation: u64, made: Superblock, shelved: Shelves) {
        self.checkpoints.publishing.set(true);
        let mut state = self.state.borrow_mut();
        state.catalog.adopt(&making.catalog, &making.spliced, &making.removed);
        state.seals = made.seals;
        state.usage = made.usage;
        state.generation = generation;
        self.checkpoints.shelves.replace(shelved);
    }

    /// No read looks at the old checkpoint any more: what it had alone is
    /// free.
    async fn publish(&self, swept: Swept) {
        let published = self.space.publish(swept);
        self.checkpoints.publishing.set(false);
        let mut merged = self.state.borrow_mut().merging.take().unwrap_or_default();
        let freed = self.space.release(published).await;
        self.room.merging.set(0);
        self.room.changed.notify_waiters();
        while !merged.dismantle(DISMANTLED) {
            turn::yield_now().await;
        }
        self.give_up(freed).await;
    }
}

impl<D: Device + 'static> Making<D> {
    /// Says whether it worked.
    async fn grow(&self, swept: &mut Swept, blocks: BlockCount) -> bool {
        match self.core.space.grow(blocks).await {
            Ok(grown) => swept.grow(grown),
            Err(why) => {
                tracing::error!(pool = %self.core.id, "the pool does not grow: {why}");
                return false;
            }
        }
        true
    }
}

/// What is wanted of the blocks that changed, in order, a few at a time:
/// requests and the checkpoint itself look at the overlay in between.
struct ChangedBlocks<'a, D, T, W> {
    core: &'a Core<D>,
    wanted: W,
    next: Option<Pba>,
    batch: std::vec::IntoIter<(Pba, T)>,
}

impl<'a, D, T, W: Fn(Pba, &BlockChange) -> Option<T>> ChangedBlocks<'a, D, T, W> {
    fn new(core: &'a Core<D>, wanted: W) -> Self {
        Self { core, wanted, next: Some(Pba(0)), batch: Vec::new().into_iter() }
    }
}

impl<D, T, W: Fn(Pba, &BlockChange) -> Option<T>> Iterator for ChangedBlocks<'_, D, T, W> {
    type Item = (Pba, T);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(next) = self.batch.next() {
                return Some(next);
            }
            let from = self.next.take()?;
            let state = self.core.state.borrow();
            let mut batch = Vec::with_capacity(CHANGED_BLOCKS);
            let look = |pba: Pba, change: &BlockChange| {
                if let Some(wanted) = (self.wanted)(pba, change) {
                    batch.push((pba, wanted));
                }
            };
            let rest = from..Pba(u64::MAX);
            self.next = state.merging.as_ref()?.look_at_blocks(rest, CHANGED_BLOCKS, look);
            self.batch = batch.into_iter();
        }
    }
}

impl From<&BlockChange> for Change {
    fn from(change: &BlockChange) -> Self {
        match change.page {
            Some(PageChange::Taken) => Self::Page,
            Some(PageChange::Gone) => Self::Gone,
            None => Self::Delta(change.delta),
        }
    }
}

/// The map that a head or a snapshot begins with.
fn first_tree(catalog: &Catalog, key: SnapshotKey) -> Option<Tree> {
    let head = catalog.node(crate::catalog::head_of(key.line))?;
    head.stored.tree.or_else(|| catalog.node(catalog.origin(key.line)?)?.stored.tree)
}
