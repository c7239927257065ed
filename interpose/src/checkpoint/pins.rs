//! Blocks that checkpoints have freed and that somebody still looks at: a
//! check of the whole pool, which takes longer than a checkpoint may wait.
//!
//! While there is a pin, what a checkpoint frees stays taken. Pins give way:
//! when too much is held, or when writes would wait for it, all of them are
//! broken, and who has one begins again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::{Device, Extent};

use super::LEAST_DEALLOCATED;
use crate::core::Core;

/// Runs of blocks that are held at most: 2 MiB of memory.
const MOST_RUNS: usize = 128 * 1024;

/// Runs that are given back in one go.
const AT_A_TIME: usize = 64;

/// What is held back, and for how many.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    holders: Cell<usize>,
    /// How often pins were broken.
    broken: Cell<u64>,
    held: RefCell<Vec<Extent>>,
    blocks: Cell<u64>,
}

/// The right to look at everything that a checkpoint names which began after
/// this was made, until it is broken or dropped.
pub(crate) struct Pin<D: Device + 'static> {
    core: Rc<Core<D>>,
    broken: u64,
}

impl Pins {
    /// Whether what is freed has to be held.
    pub(super) fn is_pinned(&self) -> bool {
        self.holders.get() > 0
    }

    /// Breaks all pins; says whether there was one, or something held.
    pub(crate) fn break_all(&self) -> bool {
        if self.holders.replace(0) > 0 {
            self.broken.set(self.broken.get() + 1);
            return true;
        }
        !self.held.borrow().is_empty()
    }

    fn hold(&self, freed: Vec<Extent>, most_blocks: u64) {
        let more: u64 = freed.iter().map(|extent| extent.count.0).sum();
        self.blocks.set(self.blocks.get() + more);
        let mut held = self.held.borrow_mut();
        held.extend(freed);
        let too_much = held.len() > MOST_RUNS || self.blocks.get() > most_blocks;
        drop(held);
        if too_much {
            self.break_all();
        }
    }

    fn next(&self) -> Option<Extent> {
        if self.is_pinned() {
            return None;
        }
        let extent = self.held.borrow_mut().pop()?;
        self.blocks.set(self.blocks.get() - extent.count.0);
        Some(extent)
    }
}

impl<D: Device + 'static> Core<D> {
    /// From the next checkpoint on, what is freed stays as it is.
    pub(crate) fn pin(self: &Rc<Self>) -> Pin<D> {
        let pins = &self.checkpoints.pins;
        pins.holders.set(pins.holders.get() + 1);
        Pin { core: Rc::clone(self), broken: pins.broken.get() }
    }

    /// What a checkpoint freed is deallocated and handed out again, now or
    /// when nobody looks at it any more.
    pub(super) async fn give_up(&self, freed: Vec<Extent>) {
        self.checkpoints.pins.hold(freed, self.space.allocatable().0 / 4);
        self.give_back_unpinned().await;
    }

    /// Gives back what is held for nobody.
    pub(super) async fn give_back_unpinned(&self) {
        let mut given = 0;
        while let Some(extent) = self.checkpoints.pins.next() {
            if extent.count >= LEAST_DEALLOCATED {
                // Advice to the device: what it thinks of it changes nothing.
                let _ = self.device.deallocate(extent).await;
            }
            self.space.give_back(extent);
            given += 1;
            if given % AT_A_TIME == 0 {
                turn::yield_now().await;
            }
        }
        if given > 0 {
            self.room.changed.notify_waiters();
        }
    }
}

impl<D: Device + 'static> Pin<D> {
    /// Whether what was freed may be something else by now.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken != self.core.checkpoints.pins.broken.get()
    }
}

impl<D: Device + 'static> Drop for Pin<D> {
    fn drop(&mut self) {
        if !self.is_broken() {
            let pins = &self.core.checkpoints.pins;
            pins.holders.set(pins.holders.get() - 1);
            self.core.checkpoints.wake.notify_one();
        }
    }
}
