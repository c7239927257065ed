//! Merging: each line's changes become maps, one snapshot after the other.

use std::collections::BTreeMap;
use std::rc::Rc;

use block_core::{Device, Lba};

use super::lists::ListWriter;
use super::scribe::Kills;
use super::{CheckpointError, Making, first_tree};
use crate::catalog::{Contradiction, head_of};
use crate::layout::control::SnapshotKey;
use crate::layout::node::{DeadList, Stage};
use crate::layout::pointer::POINTERS;
use crate::layout::{Class, Epoch, LineId};
use crate::overlay::Change;
use crate::radix::{Merge, Tree};

/// Entries of the overlay that are looked at in one go.
const CHANGES: usize = 256;

const NO_SUCH_LINE: CheckpointError =
    CheckpointError::Contradiction(Contradiction("a line is not there"));

impl<D: Device + 'static> Making<D> {
    /// Makes the maps of everything that changed, and of every snapshot and
    /// clone that has none. The order of epochs makes a snapshot's map before
    /// those that begin as it.
    pub(super) async fn merge_lines(&mut self) -> Result<(), CheckpointError> {
        let changed = match &self.core.state.borrow().merging {
            Some(merging) => merging.lines(),
            None => Vec::new(),
        };
        let mut stages: Vec<SnapshotKey> = self
            .catalog
            .nodes()
            .filter(|(key, node)| {
                let is_head = key.epoch == Epoch::HEAD;
                node.stored.tree.is_none() || is_head && changed.binary_search(&key.line).is_ok()
            })
            .map(|(key, _)| key)
            .collect();
        // Heads come last.
        stages.sort_by_key(|key| (key.epoch, key.line));
        let handing: Vec<SnapshotKey> = self
            .catalog
            .nodes()
            .filter(|(_, node)| matches!(node.stored.stage, Stage::Merging { .. }))
            .map(|(key, _)| key)
            .collect();
        let mut lines: BTreeMap<LineId, (Tree, DeadList)> = BTreeMap::new();
        for key in stages {
            let (tree, list) = match lines.get(&key.line) {
                Some(line) => *line,
                None => {
                    let head = self.catalog.node(head_of(key.line)).ok_or(NO_SUCH_LINE)?;
                    let tree = first_tree(&self.catalog, key).ok_or(NO_SUCH_LINE)?;
                    (tree, head.stored.dead)
                }
            };
            let (tree, list) = self.merge_stage(key, tree, list).await?;
            self.keep(key, tree, list, &handing)?;
            lines.insert(key.line, (tree, DeadList::default()));
        }
        Ok(())
    }

    /// The map at the end of a stage: of a snapshot, or of the head.
    async fn merge_stage(
        &self,
        key: SnapshotKey,
        tree: Tree,
        list: DeadList,
    ) -> Result<(Tree, DeadList), CheckpointError> {
        let facts = &self.catalog.node(key).ok_or(NO_SUCH_LINE)?.facts;
        let after = facts.parent.map_or(Epoch(0), |parent| parent.epoch);
        let upto = key.epoch.min(Epoch::MAX);
        let birth = key.epoch.min(self.catalog.epoch());
        let changes = |from| {
            let state = self.core.state.borrow();
            let merging = state.merging.as_ref();
            merging.map_or((Vec::new(), None), |merging| {
                merging.changes(key.line, (after, upto), from, CHANGES)
            })
        };
        let (mut batch, mut next) = changes(Lba(0));
        if batch.is_empty() && next.is_none() {
            return Ok((tree, list));
        }
        let kills = Kills::new(&self.scribe, after);
        let killed = Rc::clone(&kills);
        let mut dead = ListWriter::new(&self.scribe, list, birth);
        let height = Tree::height_for(facts.blocks.0);
        let mut merge = Merge::new(
            Rc::clone(&self.core.pages),
            self.scribe.clone(),
            Class::Map,
            tree,
            birth,
            height,
            move |pointer, _| killed.kill(&pointer),
        )
        .await?;
        loop {
            let mut coming = batch.chunk_by(Change::is_beside).peekable();
            for page in batch.chunk_by(Change::is_beside) {
                while coming.next_if(|page| merge.expect(page[0].first().0)).is_some() {}
                for change in page {
                    match *change {
                        Change::Point(lba, pointer) => merge.put(lba.0, pointer).await?,
                        Change::Hole(range) => merge.clear(range.start.0..range.end().0).await?,
                    }
                }
            }
            dead.extend(kills.take_dead()).await?;
            let Some(from) = next else { break };
            (batch, next) = changes(from);
            turn::yield_now().await;
        }
        let tree = merge.finish().await?;
        dead.extend(kills.take_dead()).await?;
        Ok((tree, dead.finish().await?))
    }

    /// Notes what was made of a stage. `handing`: deletions that go on.
    fn keep(
        &mut self,
        key: SnapshotKey,
        tree: Tree,
        list: DeadList,
        handing: &[SnapshotKey],
    ) -> Result<(), CheckpointError> {
        let stored = self.catalog.change_stored(key).ok_or(NO_SUCH_LINE)?;
        (stored.tree, stored.dead) = (Some(tree), list);
        if key.epoch == Epoch::HEAD {
            return Ok(());
        }
        // What the snapshot has taken over from the head: its list, and what
        // an earlier deletion still hands on.
        let head = head_of(key.line);
        let stored = self.catalog.change_stored(head).ok_or(NO_SUCH_LINE)?;
        stored.dead = DeadList::default();
        let work_for_head = |from: SnapshotKey| match self.catalog.node(from)?.stored.stage {
            Stage::Merging { work, target } if target == Some(head) => Some((from, work)),
            _ => None,
        };
        let handed_on: Vec<(SnapshotKey, DeadList)> =
            handing.iter().copied().filter_map(work_for_head).collect();
        for (from, work) in handed_on {
            if let Some(stored) = self.catalog.change_stored(from) {
                stored.stage = Stage::Merging { work, target: Some(key) };
            }
        }
        Ok(())
    }
}

impl Change {
    /// Whether it begins under the same page of a map as another.
    fn is_beside(&self, other: &Self) -> bool {
        self.first().0 / POINTERS as u64 == other.first().0 / POINTERS as u64
    }

    /// The first block that it changes.
    fn first(&self) -> Lba {
        match self {
            Self::Point(lba, _) => *lba,
            Self::Hole(range) => range.start,
        }
    }
}
