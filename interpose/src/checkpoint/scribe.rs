//! What a checkpoint takes blocks from for its pages, and gives them up to.

use std::cell::RefCell;
use std::rc::Rc;

use block_core::{Device, Pba};

use super::CheckpointError;
use crate::core::Core;
use crate::layout::dead::Dead;
use crate::layout::{Binding, Class, Epoch, Kind, Pointer};
use crate::overlay::PageChange;
use crate::pages::PageBuf;
use crate::radix::Allocate;
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
            Kind::Hole => return,
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
