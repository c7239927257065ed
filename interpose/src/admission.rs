//! Who may change something: there is room for it in the pool, in memory and
//! in the journal, also for what merging it will write.

use std::cell::Cell;

use block_core::{BlockError, Device};
use tokio::sync::Notify;

use crate::core::{Core, State};
use crate::layout::pointer::POINTERS;
use crate::layout::{dead, seals};
use crate::overlay::Overlay;
use crate::settings::WhenFull;

/// Blocks that are kept for what gives room back: deleting, trimming,
/// checkpoints.
const LEAST_RESERVE: u64 = 256;

/// Blocks that a write that is on its way may need beside its own: a page of
/// its map, and one above.
const PAGES_PER_BLOCK: u64 = 2;

/// Pages that any checkpoint may write: paths of the trees of seals and of the
/// catalog, a page for each dead list that is begun.
const CHECKPOINT_PAGES: u64 = 32;

/// Used space, in percent, from which on there is a warning.
const WARNINGS: [u64; 3] = [95, 90, 80];

/// Room that was promised, and who waits for some.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Blocks that requests on their way may take.
    promised: Cell<u64>,
    /// Pages that the checkpoint being made will still take.
    pub(crate) merging: Cell<u64>,
    /// There may be more room, or never any again.
    pub(crate) changed: Notify,
    /// Writes wait, or fail, for want of room.
    full: Cell<bool>,
    /// The block of the journal in which it was last seen whether a checkpoint
    /// is due.
    paced: Cell<u64>,
    warned: Cell<u64>,
}

/// How long the requests of a volume wait for room: until somebody takes the
/// volume away.
#[derive(Debug, Default)]
pub(crate) struct Patience(Cell<u64>);

/// The patience of one request.
struct Waiting<'a> {
    patience: &'a Patience,
    since: u64,
}

impl Patience {
    /// What waits, waits no longer.
    pub(crate) fn end(&self) {
        self.0.set(self.0.get() + 1);
    }

    fn begin(&self) -> Waiting<'_> {
        Waiting { patience: self, since: self.0.get() }
    }
}

impl Waiting<'_> {
    fn has_ended(&self) -> bool {
        self.patience.0.get() != self.since
    }
}

/// Room for one request; given back when dropped: what the request took is
/// seen elsewhere then.
#[must_use]
pub(crate) struct Promise<'a> {
    _blocks: Promised<'a>,
    _journal: crate::journal::Admitted<'a>,
}

/// Blocks that are spoken for.
struct Promised<'a> {
    room: &'a Room,
    blocks: u64,
}

impl<'a> Promised<'a> {
    fn new(room: &'a Room, blocks: u64) -> Self {
        room.promised.set(room.promised.get() + blocks);
        Self { room, blocks }
    }
}

impl Drop for Promised<'_> {
    fn drop(&mut self) {
        self.room.promised.set(self.room.promised.get() - self.blocks);
    }
}

impl Overlay {
    /// Most pages that merging this writes.
    pub(crate) fn pages_to_write(&self) -> u64 {
        // Blocks are handed out in order, so their seals fill pages, but for
        // those at both ends of a run.
        let seal_pages = self.changed_blocks() / (seals::ENTRIES / 2) + 4;
        let above = seal_pages / POINTERS as u64 + 4;
        let dead_pages = self.dead() / dead::ENTRIES as u64 + 2;
        self.map_pages() + seal_pages + above + dead_pages
    }
}

impl State {
    fn overlay_bytes(&self) -> usize {
        self.active.bytes() + self.merging.as_ref().map_or(0, Overlay::bytes)
    }
}

impl<D: Device> Core<D> {
    /// Waits until so many blocks may be written, or until the caller's
    /// patience ends.
    pub(crate) async fn admit(
        &self,
        blocks: u64,
        patience: &Patience,
    ) -> Result<Promise<'_>, BlockError> {
        let (room, reserve) = (blocks * (1 + PAGES_PER_BLOCK), self.reserve());
        if !self.finds_room(room + reserve) {
            self.wait_for_room(room, reserve, patience).await?;
        }
        self.promise(blocks, room).await
    }

    /// Waits until something may be cleared: that may use the reserve, but not
    /// what a checkpoint needs to give the room back.
    pub(crate) async fn admit_clearing(
        &self,
        patience: &Patience,
    ) -> Result<Promise<'_>, BlockError> {
        self.wait_for_room(0, self.reserve() / 4, patience).await?;
        self.promise(1, 0).await
    }

    async fn promise(&self, records: u64, blocks: u64) -> Result<Promise<'_>, BlockError> {
        let _blocks = Promised::new(&self.room, blocks);
        let admitted = match self.journal.try_admit(records as usize) {
            Some(admitted) => Ok(admitted),
            None => self.journal.admit(records as usize).await,
        };
        let _journal = admitted.map_err(|_| {
            self.freeze_with_journal();
            BlockError::ReadOnly
        })?;
        self.check_writable()?;
        Ok(Promise { _blocks, _journal })
    }

    /// What is kept for giving room back.
    pub(crate) fn reserve(&self) -> u64 {
        LEAST_RESERVE.max(self.space.total().0 / 512)
    }

    /// Blocks that are free and not spoken for, less those that merging takes.
    pub(crate) fn available(&self) -> u64 {
        self.available_in(&self.state.borrow())
    }

    fn available_in(&self, state: &State) -> u64 {
        let spoken = self.room.promised.get()
            + self.room.merging.get()
            + state.active.pages_to_write()
            + state.catalog.pages_to_write()
            + CHECKPOINT_PAGES;
        self.space.allocatable().0.saturating_sub(spoken)
    }

    /// About how much memory changes take.
    pub(crate) fn overlay_bytes(&self) -> usize {
        self.state.borrow().overlay_bytes()
    }

    /// Whether so many blocks are available now, and memory for changes.
    fn finds_room(&self, blocks: u64) -> bool {
        let state = self.state.borrow();
        let found =
            state.overlay_bytes() < self.settings.overlay && self.available_in(&state) >= blocks;
        self.room.full.set(self.room.full.get() && !found);
        found
    }

    /// Waits while the pool or the memory for changes is full.
    async fn wait_for_room(
        &self,
        blocks: u64,
        reserve: u64,
        patience: &Patience,
    ) -> Result<(), BlockError> {
        let patience = patience.begin();
        loop {
            self.check_writable()?;
            if patience.has_ended() {
                return Err(BlockError::NotAttached);
            }
            if self.finds_room(blocks + reserve) {
                return Ok(());
            }
            let wanted = self.checkpoints.request();
            while self.checkpoints.completed() < wanted && self.frozen_by.get().is_none() {
                self.checkpoints.done.notified().await;
            }
            self.check_writable()?;
            if self.available() >= blocks + reserve {
                continue;
            }
            if self.checkpoints.frees_more() || self.checkpoints.pins.break_all() {
                continue;
            }
            self.tell_full();
            if self.settings.full == WhenFull::Fail {
                return Err(BlockError::NoSpace);
            }
            self.room.changed.notified().await;
        }
    }

    fn tell_full(&self) {
        if !self.room.full.replace(true) {
            let what = match self.settings.full {
                WhenFull::Wait => "wait",
                WhenFull::Fail => "fail",
            };
            tracing::error!(
                pool = %self.id,
                "the pool is full, so writes {what}: delete snapshots or volumes, trim, or grow it"
            );
        }
    }

    /// Whether writes wait, or fail, for want of room.
    pub(crate) fn is_full(&self) -> bool {
        self.room.full.get()
    }

    /// Says once when the pool gets fuller than 80, 90 and 95 percent.
    pub(crate) fn warn_of_space(&self) {
        let (total, free) = (self.space.total().0, self.available());
        let used = (total - free.min(total)) * 100 / total.max(1);
        let level = WARNINGS.into_iter().find(|level| used >= *level).unwrap_or(0);
        if level > self.room.warned.replace(level) {
            tracing::warn!(pool = %self.id, "the pool is {used} % full");
        }
    }

    /// As [`Core::pace`], once in each block of the journal: a write by itself
    /// changes little.
    pub(crate) fn pace_now_and_then(&self) {
        let block = self.journal.position().next;
        if self.room.paced.replace(block) != block {
            self.pace();
        }
    }

    /// Asks for a checkpoint when the changes since the last one began fill half
    /// of the journal or of the memory for changes, or would free half as many
    /// blocks as are free. What a checkpoint that is being made has does not
    /// count: else they would follow each other without a pause, each with few
    /// changes for the pages it writes.
    pub(crate) fn pace(&self) {
        let state = self.state.borrow();
        let due = self.journal.used_by_period() * 2 >= self.journal.ring()
            || state.active.bytes() * 2 >= self.settings.overlay
            || state.active.freed() * 2 > self.space.allocatable().0;
        drop(state);
        if due {
            self.checkpoints.want();
        }
    }
}
