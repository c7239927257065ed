//! What a check looks at: the maps of one checkpoint, and whom they belong to.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use block_core::{BlockCount, Device, Lba, LbaRange, Pba};

use super::report::Touched;
use crate::catalog::{Catalog, head_of};
use crate::core::Core;
use crate::layout::control::SnapshotKey;
use crate::layout::pointer::POINTERS;
use crate::layout::{Binding, Class, DomainId, Epoch, Pointer};
use crate::radix::Tree;

/// Volumes and snapshots at one moment. Those of which no checkpoint has made
/// a map are what they began as, and are left out.
pub(super) struct View {
    catalog: Catalog,
}

/// A map to be walked.
#[derive(Clone, Copy)]
pub(super) struct Map {
    pub(super) tree: Tree,
    /// What was not born after it is the parent's.
    pub(super) bound: Epoch,
    pub(super) domain: DomainId,
}

impl View {
    pub(super) const fn new(catalog: Catalog) -> Self {
        Self { catalog }
    }

    pub(super) const fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// All that have a map.
    pub(super) fn keys(&self) -> Vec<SnapshotKey> {
        let with_map = self.catalog.nodes().filter(|(_, node)| node.stored.tree.is_some());
        with_map.map(|(key, _)| key).collect()
    }

    pub(super) fn map(&self, key: SnapshotKey) -> Option<Map> {
        map_of(&self.catalog, key)
    }

    /// The epoch of the snapshot that the map began as.
    pub(super) fn bound(&self, key: SnapshotKey) -> Epoch {
        parent_of(&self.catalog, key).map_or(Epoch(0), |parent| parent.epoch)
    }

    /// Who has exactly what `key` has at an index, as long as a pointer at
    /// `level` leads to that block: itself, and all that began as it and have
    /// not replaced it.
    pub(super) async fn touched<D: Device>(
        &self,
        core: &Core<D>,
        key: SnapshotKey,
        indices: Range<u64>,
        (level, pba): (u8, Pba),
    ) -> Vec<Touched> {
        let mut children: BTreeMap<SnapshotKey, Vec<SnapshotKey>> = BTreeMap::new();
        for key in self.keys() {
            if let Some(parent) = parent_of(&self.catalog, key) {
                children.entry(parent).or_default().push(key);
            }
        }
        let (mut touched, mut open) = (Vec::new(), vec![key]);
        while let Some(at) = open.pop() {
            let Some(map) = self.map(at) else { continue };
            if at != key && !leads_to(core, &map.tree, indices.start, level, pba).await {
                continue;
            }
            touched.extend(self.describe(at, &indices));
            open.extend(children.get(&at).into_iter().flatten());
            turn::yield_now().await;
        }
        touched
    }

    /// The part of a volume or a snapshot that somebody wants.
    pub(super) fn describe(&self, key: SnapshotKey, indices: &Range<u64>) -> Vec<Touched> {
        let Some(node) = self.catalog.node(key).filter(|node| !node.facts.deleted) else {
            return Vec::new();
        };
        let facts = &node.facts;
        let range = |blocks: BlockCount| {
            let end = indices.end.min(blocks.0);
            let count = BlockCount(end.saturating_sub(indices.start));
            (count.0 > 0).then_some(LbaRange { start: Lba(indices.start), count })
        };
        let volume = facts.volume;
        let name = self.catalog.volume(volume).map(|volume| volume.name.clone());
        let name = name.unwrap_or_default();
        let of = |key, name, snapshot, range| Touched { key, volume, name, snapshot, range };
        let mut all = Vec::new();
        if key.epoch != Epoch::HEAD {
            let snapshot = Some(facts.name.clone());
            all.extend(range(facts.blocks).map(|range| of(key, name, snapshot, range)));
            return all;
        }
        all.extend(range(facts.blocks).map(|range| of(key, name.clone(), None, range)));
        // Snapshots that no checkpoint has made a map for are what the head was.
        let mut parent = facts.parent;
        while let Some(key) = parent
            && let Some(node) = self.catalog.node(key)
            && node.stored.tree.is_none()
            && key.line == head_of(key.line).line
        {
            let snapshot = Some(node.facts.name.clone());
            let part = range(node.facts.blocks).filter(|_| !node.facts.deleted);
            all.extend(part.map(|range| of(key, name.clone(), snapshot, range)));
            parent = node.facts.parent.filter(|older| older.epoch < key.epoch);
        }
        all
    }
}

/// The map of a head or a snapshot.
pub(super) fn map_of(catalog: &Catalog, key: SnapshotKey) -> Option<Map> {
    let node = catalog.node(key)?;
    let (tree, domain) = (node.stored.tree?, node.facts.domain);
    let bound = parent_of(catalog, key).map_or(Epoch(0), |parent| parent.epoch);
    Some(Map { tree, bound, domain })
}

/// The snapshot that the map of another began as.
fn parent_of(catalog: &Catalog, key: SnapshotKey) -> Option<SnapshotKey> {
    let mut parent = catalog.node(key)?.facts.parent;
    while let Some(key) = parent
        && let Some(node) = catalog.node(key)
        && node.stored.tree.is_none()
    {
        // Each is older, so there is an end whatever the catalog says.
        parent = node.facts.parent.filter(|older| older.epoch < key.epoch);
    }
    parent
}

/// Whether the pointer of a tree for an index and a level names a block.
async fn leads_to<D: Device>(core: &Core<D>, tree: &Tree, index: u64, level: u8, pba: Pba) -> bool {
    let bits = POINTERS.trailing_zeros();
    let (mut at, mut height) = (tree.root(), tree.height());
    if index >= tree.capacity() {
        return false;
    }
    while height > level && !at.is_an_end() {
        let binding = Binding::page(Class::Map, height, at.pba);
        let Ok(page) = core.pages.load_once(&at.seal, binding).await else { return false };
        let slot = (index >> (bits * u32::from(height - 1))) as usize % POINTERS;
        let Some(below) = Pointer::in_page(&page, slot) else { return false };
        (at, height) = (below, height - 1);
    }
    (height == level || at.is_lost()) && !at.is_hole() && at.pba == pba
}

/// The newest checkpoint's maps, now.
pub(super) fn current<D: Device>(core: &Rc<Core<D>>) -> View {
    View::new(core.state.borrow().catalog.clone())
}
