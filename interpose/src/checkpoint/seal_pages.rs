//! The tree of seals: what opens each data block that was stored, and its
//! hash.

use std::rc::Rc;

use block_core::{Device, Pba};

use super::{ChangedBlocks, CheckpointError, Making};
use crate::layout::{Binding, Class, seals};
use crate::overlay::BlockChange;
use crate::pages::PageBuf;
use crate::radix::{Merge, Tree};

impl<D: Device + 'static> Making<D> {
    /// Writes the pages of seals in which something is new.
    pub(super) async fn write_seals(&self) -> Result<Tree, CheckpointError> {
        let tree = self.core.state.borrow().seals;
        let still_there = |pba, change: &BlockChange| {
            change.born.filter(|_| change.delta > 0 || self.is_shared_anew(pba))
        };
        let mut born = ChangedBlocks::new(&self.core, still_there).peekable();
        if born.peek().is_none() {
            return Ok(tree);
        }
        let birth = self.catalog.epoch();
        let scribe = self.scribe.clone();
        let pages = self.core.space.total().0.div_ceil(seals::ENTRIES);
        let mut merge = Merge::new(
            Rc::clone(&self.core.pages),
            self.scribe.clone(),
            Class::Seals,
            tree,
            birth,
            Tree::height_for(pages),
            move |pointer, _| {
                if !pointer.is_hole() {
                    scribe.free(pointer.pba, true);
                }
            },
        )
        .await?;
        while let Some((pba, _)) = born.peek() {
            let (index, _) = seals::place_of(*pba);
            let old = merge.value(index).await?;
            let mut page = self.page_of(&old).await?;
            while let Some((pba, born)) = born.next_if(|(pba, _)| seals::place_of(*pba).0 == index)
            {
                seals::set_entry(&mut page, seals::place_of(pba).1, &born.hash, &born.seal);
            }
            let pointer = self.scribe.write(Class::Seals, birth, page).await?;
            merge.put(index, pointer).await?;
        }
        Ok(merge.finish().await?)
    }

    async fn page_of(&self, old: &crate::layout::Pointer) -> Result<PageBuf, CheckpointError> {
        let pages = &self.core.pages;
        if old.is_hole() {
            return Ok(pages.blank().await);
        }
        let binding = Binding::page(Class::Seals, 0, old.pba);
        let read = async || pages.load_once(&old.seal, binding).await;
        match self.scribe.try_to(read).await? {
            Some(page) => Ok(pages.own(page).await),
            // Blocks without a seal are not shared any more, and no less read.
            None => Ok(pages.blank().await),
        }
    }

    /// A block that this period had stored and given up again may have been
    /// shared in between: then somebody of the next period refers to it.
    fn is_shared_anew(&self, pba: Pba) -> bool {
        let state = self.core.state.borrow();
        state.active.block(pba).is_some_and(|change| change.delta > 0)
    }
}
