//! What goes on beside requests: new eras in time, and the dedup index after a
//! restart.

use std::rc::Rc;

use block_core::{Device, Pba};

use crate::core::Core;
use crate::layout::{Binding, Class, seals};
use crate::radix::{Item, Walk};

/// Pages of seals that are read before checkpoints may free what is being
/// read.
const PAGES_AT_A_TIME: usize = 64;

impl<D: Device + 'static> Core<D> {
    /// Begins eras in time, for ever.
    pub(crate) async fn keep_eras(self: Rc<Self>) {
        loop {
            if self.frozen_by.get().is_some() {
                return;
            }
            if self.vault.needs_era()
                && let Err(why) = self.vault.begin_era().await
            {
                tracing::error!(pool = %self.id, "a new era cannot begin: {why}");
                return;
            }
            self.work.notified().await;
        }
    }

    /// Tells the dedup index what was stored before the pool was opened.
    pub(crate) async fn fill_index(self: Rc<Self>) {
        if self.index.capacity() == 0 {
            return;
        }
        let mut from = Some(0);
        while let Some(page) = from {
            from = self.index_some(page).await;
            turn::yield_now().await;
        }
        tracing::debug!(pool = %self.id, entries = self.index.len(), "the dedup index is full");
    }

    async fn index_some(&self, from: u64) -> Option<u64> {
        let _reading = self.readers.enter();
        let tree = self.state.borrow().seals;
        let mut walk = Walk::new(Rc::clone(&self.pages), Class::Seals, tree, from, None);
        let mut read = 0;
        while let Some(item) = walk.next().await {
            let Item::Value { index, pointer } = item else { continue };
            let binding = Binding::page(Class::Seals, 0, pointer.pba);
            if let Ok(page) = self.pages.load_once(&pointer.seal, binding).await {
                for place in 0..seals::ENTRIES {
                    if let Some((hash, _)) = seals::entry(&page, place as usize) {
                        self.index.insert(&hash, Pba(index * seals::ENTRIES + place));
                    }
                }
            }
            turn::yield_now().await;
            read += 1;
            if read == PAGES_AT_A_TIME {
                return Some(index + 1);
            }
        }
        None
    }
}
