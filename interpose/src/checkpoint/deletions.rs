//! Deleting heads and snapshots, a bounded part in each checkpoint.

use std::rc::Rc;

use block_core::{Device, Lba};

use super::lists::ListWriter;
use super::{CheckpointError, Making};
use crate::layout::control::SnapshotKey;
use crate::layout::node::{DeadList, Stage};
use crate::layout::{Class, Epoch};
use crate::pages::What;
use crate::radix::{Item, Walk};

/// Pointers that one checkpoint deals with: what of them is handed on takes
/// less than a third of the reserve.
const BUDGET: u64 = 32 * 1024;

/// Deletions that one checkpoint begins: each looks at all snapshots.
const BEGINNINGS: usize = 64;

impl<D: Device + 'static> Making<D> {
    /// Begins what can begin and goes on with what has; says whether there is
    /// more to do.
    pub(super) async fn delete_some(&mut self) -> Result<bool, CheckpointError> {
        let (mut budget, mut beginnings) = (BUDGET, BEGINNINGS);
        loop {
            while beginnings > 0 && self.begin_deletion() {
                beginnings -= 1;
            }
            let Some((key, stage)) = self.next_deletion() else { return Ok(beginnings == 0) };
            if budget == 0 {
                return Ok(true);
            }
            match stage {
                Stage::Merging { work, target: Some(target) } => {
                    self.merge_some(key, work, target, &mut budget).await?;
                }
                Stage::Walking { cursor } => self.walk_some(key, cursor, &mut budget).await?,
                Stage::There | Stage::Deleted | Stage::Merging { target: None, .. } => {
                    self.remove(key);
                }
            }
        }
    }

    fn next_deletion(&self) -> Option<(SnapshotKey, Stage)> {
        let mut stages = self.catalog.nodes().map(|(key, node)| (key, node.stored.stage));
        stages.find(|(_, stage)| matches!(stage, Stage::Merging { .. } | Stage::Walking { .. }))
    }

    /// Begins one deletion, if one can: at a leaf its tree is walked; a
    /// snapshot with one successor is taken out between it and what came
    /// before. With more successors it stays, unseen, until one is left.
    fn begin_deletion(&mut self) -> bool {
        let children = self.catalog.children();
        let target_of_another = |key: SnapshotKey| {
            self.catalog.nodes().any(|(_, node)| {
                matches!(node.stored.stage, Stage::Merging { target, .. } if target == Some(key))
            })
        };
        let begun = self.catalog.nodes().find_map(|(key, node)| {
            let waits = node.facts.deleted && node.stored.stage == Stage::There;
            if !waits || target_of_another(key) {
                return None;
            }
            match children.get(&key).map_or(&[][..], Vec::as_slice) {
                [] => Some((key, None)),
                &[child] => {
                    let stored = &self.catalog.node(child)?.stored;
                    (stored.stage == Stage::There).then_some((key, Some((child, stored.dead))))
                }
                _ => None,
            }
        });
        let Some((key, successor)) = begun else { return false };
        match successor {
            None => self.set_stage(key, Stage::Walking { cursor: Lba(0) }),
            Some((child, work)) => {
                let own = self.set_list(key, DeadList::default());
                self.set_list(child, own);
                self.set_stage(key, Stage::Merging { work, target: Some(child) });
                self.catalog.splice(key);
                self.spliced.push(key);
            }
        }
        true
    }

    /// What the successor does not have is freed if it was born after what
    /// comes before, else handed on.
    async fn merge_some(
        &mut self,
        key: SnapshotKey,
        mut work: DeadList,
        target: SnapshotKey,
        budget: &mut u64,
    ) -> Result<(), CheckpointError> {
        let Some(node) = self.catalog.node(target) else {
            self.remove(key);
            return Ok(());
        };
        let bound = node.facts.parent.map_or(Epoch(0), |parent| parent.epoch);
        let birth = self.catalog.epoch();
        let mut kept = ListWriter::new(&self.scribe, node.stored.dead, birth);
        while *budget > 0 {
            let Some((entries, rest)) = self.scribe.pop(&work).await? else { break };
            *budget = budget.saturating_sub(entries.len() as u64);
            self.scribe.free(work.newest.pba, true);
            let (gone, needed): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|entry| entry.birth > bound);
            gone.iter().for_each(|entry| self.scribe.free(entry.pba, entry.is_page));
            kept.extend(needed).await?;
            work = rest;
            turn::yield_now().await;
        }
        let list = kept.finish().await?;
        self.set_list(target, list);
        if work.newest.is_hole() {
            self.remove(key);
        } else {
            self.set_stage(key, Stage::Merging { work, target: Some(target) });
        }
        Ok(())
    }

    /// Nothing begins at it: what was born after what comes before is freed.
    async fn walk_some(
        &mut self,
        key: SnapshotKey,
        cursor: Lba,
        budget: &mut u64,
    ) -> Result<(), CheckpointError> {
        let Some(node) = self.catalog.node(key) else { return Ok(()) };
        let (tree, list) = (node.stored.tree.unwrap_or_default(), node.stored.dead);
        let bound = node.facts.parent.map(|parent| parent.epoch);
        let pages = Rc::clone(&self.core.pages);
        let mut walk = Walk::new(pages, Class::Map, tree, cursor.0, bound);
        loop {
            if *budget == 0
                && let Some(cursor) = walk.cursor()
            {
                self.set_stage(key, Stage::Walking { cursor: Lba(cursor) });
                return Ok(());
            }
            let Some(item) = walk.next().await else { break };
            *budget = budget.saturating_sub(1);
            match item {
                Item::Value { pointer, .. } => self.scribe.free(pointer.pba, false),
                Item::Page { pointer, .. } => self.scribe.free(pointer.pba, true),
                Item::Damaged { damage, .. } if damage.what == What::GivenUp => {}
                // What lies below is lost; it stays counted, and `check` says
                // so.
                Item::Damaged { damage, .. } => {
                    tracing::error!(pool = %self.core.id, %damage, "a part of a map is not freed");
                }
            }
        }
        self.drop_list(key, tree.capacity(), list, budget).await
    }

    /// What comes before still has what is on the list.
    async fn drop_list(
        &mut self,
        key: SnapshotKey,
        end: u64,
        mut list: DeadList,
        budget: &mut u64,
    ) -> Result<(), CheckpointError> {
        while let Some((entries, rest)) = self.scribe.pop(&list).await? {
            self.scribe.free(list.newest.pba, true);
            list = rest;
            *budget = budget.saturating_sub(entries.len() as u64);
            if *budget == 0 && !list.newest.is_hole() {
                self.set_list(key, list);
                self.set_stage(key, Stage::Walking { cursor: Lba(end) });
                return Ok(());
            }
        }
        self.remove(key);
        Ok(())
    }

    fn set_stage(&mut self, key: SnapshotKey, stage: Stage) {
        if let Some(stored) = self.catalog.change_stored(key) {
            stored.stage = stage;
        }
    }

    /// Gives a node another dead list, and says which one it had.
    fn set_list(&mut self, key: SnapshotKey, list: DeadList) -> DeadList {
        let stored = self.catalog.change_stored(key);
        stored.map(|stored| std::mem::replace(&mut stored.dead, list)).unwrap_or_default()
    }

    fn remove(&mut self, key: SnapshotKey) {
        self.catalog.remove(key);
        self.removed.push(key);
    }
}
