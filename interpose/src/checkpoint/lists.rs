//! Dead lists: chains of pages, the newest first.

use std::rc::Rc;

use block_core::Device;

use super::{CheckpointError, Scribe};
use crate::layout::dead::{self, Dead};
use crate::layout::node::DeadList;
use crate::layout::{Binding, Class, Epoch, Kind, Pointer};
use crate::pages::{Damage, Pages, What};

/// Puts entries on a list.
pub(super) struct ListWriter<D> {
    scribe: Scribe<D>,
    list: DeadList,
    birth: Epoch,
    pending: Vec<Dead>,
    /// Entries have been put, so the newest page was looked at.
    opened: bool,
}

impl<D: Device + 'static> ListWriter<D> {
    pub(super) fn new(scribe: &Scribe<D>, list: DeadList, birth: Epoch) -> Self {
        Self { scribe: scribe.clone(), list, birth, pending: Vec::new(), opened: false }
    }

    pub(super) async fn extend(&mut self, entries: Vec<Dead>) -> Result<(), CheckpointError> {
        if entries.is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut self.opened, true) {
            self.open().await?;
        }
        self.list.entries += entries.len() as u64;
        self.pending.extend(entries);
        while self.pending.len() >= dead::ENTRIES {
            self.write_page().await?;
        }
        Ok(())
    }

    /// A newest page that is not full is written anew, with more on it.
    async fn open(&mut self) -> Result<(), CheckpointError> {
        if self.list.newest.is_hole() {
            return Ok(());
        }
        let newest = self.list.newest;
        let pages = &self.scribe.core.pages;
        let read = async || {
            let mut entries = Vec::new();
            let older = read_page(pages, &newest, &mut entries).await?;
            Ok((entries, older))
        };
        // Behind one that is damaged the list goes on.
        let Some((entries, older)) = self.scribe.try_to(read).await? else { return Ok(()) };
        if entries.len() < dead::ENTRIES {
            self.scribe.free(self.list.newest.pba, true);
            self.list.newest = older;
            self.pending = entries;
        }
        Ok(())
    }

    async fn write_page(&mut self) -> Result<(), CheckpointError> {
        let entries = self.pending.len().min(dead::ENTRIES);
        let mut page = self.scribe.core.pages.blank().await;
        dead::encode(&mut page, &self.list.newest, &self.pending[..entries]);
        self.pending.drain(..entries);
        self.list.newest = self.scribe.write(Class::Dead, self.birth, page).await?;
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<DeadList, CheckpointError> {
        if !self.pending.is_empty() {
            self.write_page().await?;
        }
        Ok(self.list)
    }
}

impl<D: Device + 'static> Scribe<D> {
    /// The newest page of a list that is being freed, and the list without it:
    /// behind a page that cannot be had there is none. What was on it stays
    /// counted.
    pub(super) async fn pop(
        &self,
        list: &DeadList,
    ) -> Result<Option<(Vec<Dead>, DeadList)>, CheckpointError> {
        let popped = self.try_to(async || pop_list(&self.core.pages, list).await).await?;
        Ok(popped.unwrap_or_else(|| Some((Vec::new(), DeadList::default()))))
    }
}

/// The newest page of a list: its entries, and the list without it. `None`
/// when the list is empty.
pub(crate) async fn pop_list<D: Device>(
    pages: &Rc<Pages<D>>,
    list: &DeadList,
) -> Result<Option<(Vec<Dead>, DeadList)>, Damage> {
    if list.newest.is_hole() {
        return Ok(None);
    }
    let mut entries = Vec::with_capacity(dead::ENTRIES);
    let newest = read_page(pages, &list.newest, &mut entries).await?;
    // The numbers fall with each page, so that a chain has an end.
    let left = list.entries.checked_sub(entries.len() as u64);
    let entries_left = left.filter(|&left| (left == 0) == newest.is_hole());
    let Some(entries_left) = entries_left else { return Err(malformed(&list.newest)) };
    Ok(Some((entries, DeadList { newest, entries: entries_left })))
}

async fn read_page<D: Device>(
    pages: &Rc<Pages<D>>,
    at: &Pointer,
    entries: &mut Vec<Dead>,
) -> Result<Pointer, Damage> {
    if at.kind != Kind::Page {
        return Err(malformed(at));
    }
    let page = pages.load_once(&at.seal, Binding::page(Class::Dead, 0, at.pba)).await?;
    dead::decode(&page, entries).map_err(|_| malformed(at))
}

fn malformed(at: &Pointer) -> Damage {
    Damage { pba: at.pba, class: Class::Dead, what: What::Malformed }
}
