//! A volume of a pool, as requests see it.

use std::cell::Cell;
use std::rc::{Rc, Weak};

use block_core::device::Durability;
use block_core::{BlockCount, BlockError, Blocks, Buffer, Completed, Device, LbaRange};
use tokio::sync::Notify;

use crate::admission::Patience;
use crate::catalog::head_of;
use crate::core::{Core, Head};
use crate::layout::control::VolumeId;
use crate::write::MOST;

/// A volume of an open pool. Its head may change under it: restoring drains
/// what runs and lets the rest wait.
pub struct Volume<D> {
    core: Rc<Core<D>>,
    id: VolumeId,
    patience: Patience,
    gate: Gate,
    /// Where changes go, and by which version of the catalog.
    head: Cell<Option<(u64, Head)>>,
}

/// Counts the changes under way, and holds new ones back.
#[derive(Default)]
struct Gate {
    running: Cell<usize>,
    closed: Cell<bool>,
    /// How often it was opened again.
    opened: Cell<u64>,
    changed: Notify,
}

/// A change under way.
struct Running<'a>(&'a Gate);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        if self.0.closed.get() {
            self.0.changed.notify_waiters();
        }
    }
}

impl Gate {
    async fn enter(&self) -> Running<'_> {
        if self.closed.get() {
            self.wait().await;
        }
        self.running.set(self.running.get() + 1);
        Running(self)
    }

    /// Waits until it is open.
    async fn wait(&self) {
        while self.closed.get() {
            self.changed.notified().await;
        }
    }
}

/// A volume that nobody changes; opened again when dropped.
pub(crate) struct Drained<D> {
    volume: Rc<Volume<D>>,
}

impl<D> Drop for Drained<D> {
    fn drop(&mut self) {
        self.volume.gate.closed.set(false);
        self.volume.gate.opened.set(self.volume.gate.opened.get() + 1);
        self.volume.gate.changed.notify_waiters();
    }
}

impl<D: Device + 'static> Volume<D> {
    pub(crate) fn new(core: &Rc<Core<D>>, id: VolumeId) -> Self {
        let (patience, gate) = (Patience::default(), Gate::default());
        Self { core: Rc::clone(core), id, patience, gate, head: Cell::new(None) }
    }

    /// Its identity.
    #[must_use]
    pub const fn id(&self) -> VolumeId {
        self.id
    }

    /// Ends the wait of requests for which there is no room, with
    /// [`BlockError::NotAttached`]: the volume is taken away from who sent
    /// them.
    pub fn give_up_waiting(&self) {
        self.patience.end();
        self.core.room.changed.notify_waiters();
    }

    /// Makes blocks read as zero while nobody else changes the volume.
    pub(crate) async fn clear_drained(&self, range: LbaRange) -> Result<(), BlockError> {
        let mut left = range;
        while left.count.0 > 0 {
            let _room = self.core.admit_clearing(&self.patience).await?;
            left = self.core.clear_some(self.id, left)?;
            turn::yield_now().await;
        }
        Ok(())
    }

    /// Holds changes back, and waits for the last one under way.
    pub(crate) async fn drain(self: &Rc<Self>) -> Drained<D> {
        self.gate.wait().await;
        self.gate.closed.set(true);
        let drained = Drained { volume: Rc::clone(self) };
        while self.gate.running.get() > 0 {
            self.gate.changed.notified().await;
        }
        drained
    }
}

impl<D: Device + 'static> Volume<D> {
    /// Where changes go now. Nearly always that is where the last one went.
    fn head(&self) -> Option<Head> {
        let version = self.core.state.borrow().catalog.version();
        if let Some((_, head)) = self.head.get().filter(|&(seen, _)| seen == version) {
            return Some(head);
        }
        let head = self.core.head(self.id)?;
        self.head.set(Some((version, head)));
        Some(head)
    }

    /// The same, if the volume has a range: it may have become smaller while
    /// the change waited.
    fn head_with(&self, range: LbaRange) -> Option<Head> {
        self.head().filter(|head| range.end().0 <= head.blocks.0)
    }

    /// Writes, if the volume is still of that version when its turn has come.
    async fn write_if(
        &self,
        version: Option<u64>,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> (Buffer, Result<Completed, BlockError>) {
        // In this order: who drains the volume does not wait for room.
        let _room = match self.core.admit(range.count.0, &self.patience).await {
            Ok(room) => room,
            Err(error) => return (buffer, Err(error)),
        };
        let _running = self.gate.enter().await;
        let Some(head) = self.head_with(range) else {
            return (buffer, Err(BlockError::OutOfRange));
        };
        if version.is_some_and(|version| version != self.version()) {
            return (buffer, Ok(Completed::Outdated));
        }
        let (buffer, outcome) = if range.count.0 == 1 {
            self.core.write::<1>(head, range, buffer, place, durability).await
        } else {
            self.core.write::<MOST>(head, range, buffer, place, durability).await
        };
        (buffer, outcome.map(|()| Completed::Written))
    }
}

impl<D: Device + 'static> Blocks for Volume<D> {
    fn blocks(&self) -> BlockCount {
        let state = self.core.state.borrow();
        state.catalog.volume(self.id).map_or(BlockCount(0), |volume| volume.blocks)
    }

    async fn read(
        &self,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
    ) -> (Buffer, Result<(), BlockError>) {
        let found = {
            let state = self.core.state.borrow();
            state.catalog.volume(self.id).map(|volume| (volume.line, volume.domain))
        };
        let Some((line, domain)) = found else {
            return (buffer, Err(BlockError::NotAttached));
        };
        self.core.read(head_of(line), domain, range, buffer, place).await
    }

    async fn write(
        &self,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        let (buffer, written) = self.write_if(None, range, buffer, place, durability).await;
        (buffer, written.map(drop))
    }

    fn version(&self) -> u64 {
        self.gate.opened.get()
    }

    async fn write_completed(
        &self,
        version: u64,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> (Buffer, Result<Completed, BlockError>) {
        self.write_if(Some(version), range, buffer, place, durability).await
    }

    async fn zero(&self, range: LbaRange, _unmap: bool) -> Result<(), BlockError> {
        let mut left = range;
        while left.count.0 > 0 {
            let _room = self.core.admit_clearing(&self.patience).await?;
            let _running = self.gate.enter().await;
            if self.head_with(left).is_none() {
                return Err(BlockError::OutOfRange);
            }
            left = self.core.clear_some(self.id, left)?;
            turn::yield_now().await;
        }
        Ok(())
    }

    async fn discard(&self, range: LbaRange) -> Result<(), BlockError> {
        self.zero(range, true).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.core.flush().await
    }
}

/// The volumes of a pool that somebody uses.
pub(crate) type InUse<D> = Weak<Volume<D>>;
