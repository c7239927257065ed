//! What a checkpoint takes blocks from for its pages, and gives them up to.

use std::cell::RefCell;
use std::rc::Rc;

use block_core::{Device, Pba};

use super::{CheckpointError, verify_superblock};
use crate::core::{Core, count};
use crate::layout::dead::Dead;
use crate::layout::fixed::Copy;
use crate::layout::{Binding, Class, Epoch, Kind, Pointer};
use crate::overlay::PageChange;
use crate::pages::{Damage, PageBuf};
use crate::radix::{Allocate, TRIES};
use crate::space::{Full, Purpose};

/// Takes blocks for pages and gives pointers up, on behalf of a checkpoint.
pub(crate) struct Scribe<D> {
    pub(super) core: Rc<Core<D>>,
}

impl<D> Clone for Scribe<D> {
    fn clone(&self) -> Self {
        Self { core: Rc::clone(&self.core) }
    }
}

impl<D: Device> Allocate for Scribe<D> {
    type Error = Full;

    async fn take_page(&self) -> Result<Pba, Full> {
        let pba = self.core.space.take(Purpose::Pages, 1).await?.start;
        if let Some(merging) = &mut self.core.state.borrow_mut().merging {
            merging.page(pba, PageChange::Taken);
        }
        let left = &self.core.room.merging;
        left.set(left.get().saturating_sub(1));
        Ok(pba)
    }

    async fn goes_on_without(&self, damage: &Damage) -> bool {
        let core = &self.core;
        // Without its catalog or its counts there is no pool.
        if !matches!(damage.class, Class::Map | Class::Seals | Class::Dead) {
            return false;
        }
        // A device that reads nothing at all may read everything tomorrow.
        let generation = core.state.borrow().generation;
        if verify_superblock(core, generation, Copy::A).await.is_some()
            && verify_superblock(core, generation, Copy::B).await.is_some()
        {
            return false;
        }
        count(&core.tally.damaged, 1);
        tracing::error!(pool = %core.id, %damage, "it is written anew without what it had");
        true
    }
}

impl<D: Device + 'static> Scribe<D> {
    pub(super) fn new(core: &Rc<Core<D>>) -> Self {
        Self { core: Rc::clone(core) }
    }

    /// A pointer is not there any more, and no snapshot has it.
    pub(super) fn free(&self, pba: Pba, is_page: bool) {
        if let Some(merging) = &mut self.core.state.borrow_mut().merging {
            if is_page {
                merging.page(pba, PageChange::Gone);
            } else {
                merging.unrefer(pba);
            }
        }
    }

    /// Reads what may fail for a moment; nothing when the checkpoint goes on
    /// without it.
    pub(super) async fn try_to<T>(
        &self,
        read: impl AsyncFn() -> Result<T, Damage>,
    ) -> Result<Option<T>, CheckpointError> {
        let mut tries = 1;
        loop {
            match read().await {
                Ok(read) => return Ok(Some(read)),
                Err(damage) if tries == TRIES => {
                    let goes_on = self.goes_on_without(&damage).await;
                    return if goes_on { Ok(None) } else { Err(damage.into()) };
                }
                Err(_) => tries += 1,
            }
            turn::yield_now().await;
        }
    }

    /// Writes a page that is the value of a tree, or of a list, and says where
    /// it is.
    pub(super) async fn write(
        &self,
        class: Class,
        birth: Epoch,
        page: PageBuf,
    ) -> Result<Pointer, CheckpointError> {
        let pba = self.take_page().await?;
        let seal = self.core.pages.write(Binding::page(class, 0, pba), page, true).await?;
        Ok(Pointer { seal, pba, birth, kind: Kind::Page })
    }
}

/// Where the pointers go that a merge replaces: they are freed, or some
/// snapshot still has them.
pub(super) struct Kills<D> {
    scribe: Scribe<D>,
    /// What was born at most in this epoch, a snapshot has.
    bound: Epoch,
    dead: RefCell<Vec<Dead>>,
}

impl<D: Device + 'static> Kills<D> {
    pub(super) fn new(scribe: &Scribe<D>, bound: Epoch) -> Rc<Self> {
        Rc::new(Self { scribe: scribe.clone(), bound, dead: RefCell::default() })
    }

    /// A pointer was replaced.
    pub(super) fn kill(&self, pointer: &Pointer) {
        let is_page = match pointer.kind {
            Kind::Hole | Kind::Lost => return,
            Kind::Data => false,
            Kind::Page => true,
        };
        if pointer.birth > self.bound {
            self.scribe.free(pointer.pba, is_page);
        } else {
            let (pba, birth) = (pointer.pba, pointer.birth);
            self.dead.borrow_mut().push(Dead { pba, birth, is_page });
        }
    }

    /// What a snapshot still has, of all that was killed since the last call.
    pub(super) fn take_dead(&self) -> Vec<Dead> {
        self.dead.take()
    }
}
