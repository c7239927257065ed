//! The catalog's pages: which records lie on which, and writing those that
//! changed.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use block_core::{BLOCK_SIZE, Device};

use super::{CheckpointError, Making};
use crate::catalog::{Catalog, Facts, Node, Stored};
use crate::layout::control::{SnapshotKey, VolumeId};
use crate::layout::node::{NODE_BYTES, NODES, NodeRecord, VolumeRecord};
use crate::layout::superblock::Superblock;
use crate::layout::{Binding, Class, Pointer};
use crate::pages::{Damage, Pages, What};
use crate::radix::{self, Merge, Tree};

/// What the last checkpoint wrote of the catalog, and where.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shelves {
    pub(super) volumes: Tree,
    pub(super) nodes: Tree,
    volume_places: Places<VolumeId, Rc<VolumeRecord>>,
    node_places: Places<SnapshotKey, (Rc<Facts>, Rc<Stored>)>,
}

/// Numbered places for records.
#[derive(Clone, Debug)]
struct Places<K, V> {
    kept: BTreeMap<K, (u32, V)>,
    by_place: Vec<Option<K>>,
    free: BTreeSet<u32>,
}

impl<K, V> Default for Places<K, V> {
    fn default() -> Self {
        Self { kept: BTreeMap::new(), by_place: Vec::new(), free: BTreeSet::new() }
    }
}

impl<K: Ord + Copy, V> Places<K, V> {
    fn add(&mut self, key: K, value: V) -> u32 {
        let place = self.free.pop_first().unwrap_or(self.by_place.len() as u32);
        if place as usize == self.by_place.len() {
            self.by_place.push(None);
        }
        self.by_place[place as usize] = Some(key);
        self.kept.insert(key, (place, value));
        place
    }

    fn remove(&mut self, key: K) -> Option<u32> {
        let (place, _) = self.kept.remove(&key)?;
        self.by_place[place as usize] = None;
        self.free.insert(place);
        Some(place)
    }

    /// Puts a record at the place where it was found.
    fn restore(&mut self, place: u32, key: K, value: V) {
        while self.by_place.len() <= place as usize {
            self.free.insert(self.by_place.len() as u32);
            self.by_place.push(None);
        }
        self.free.remove(&place);
        self.by_place[place as usize] = Some(key);
        self.kept.insert(key, (place, value));
    }

    /// Makes it hold what `there` says; returns the places that changed.
    fn update<'a, T: 'a>(
        &mut self,
        there: impl Iterator<Item = (K, &'a T)>,
        same: impl Fn(&V, &T) -> bool,
        keep: impl Fn(&T) -> V,
    ) -> BTreeSet<u32> {
        let mut changed = BTreeSet::new();
        let there: BTreeMap<K, &T> = there.collect();
        let gone: Vec<K> =
            self.kept.keys().copied().filter(|key| !there.contains_key(key)).collect();
        changed.extend(gone.into_iter().filter_map(|key| self.remove(key)));
        for (key, value) in there {
            match self.kept.get_mut(&key) {
                Some((_, kept)) if same(kept, value) => {}
                Some((place, kept)) => {
                    *kept = keep(value);
                    changed.insert(*place);
                }
                None => {
                    changed.insert(self.add(key, keep(value)));
                }
            }
        }
        changed
    }
}

impl Shelves {
    /// The trees of the pages of volumes and of nodes.
    pub(crate) const fn trees(&self) -> [Tree; 2] {
        [self.volumes, self.nodes]
    }

    /// How many pages of volumes and of nodes there may be.
    pub(super) fn slots(&self) -> (u32, u32) {
        let nodes = self.node_places.by_place.len().div_ceil(NODES);
        (self.volume_places.by_place.len() as u32, nodes as u32)
    }

    /// Reads the catalog that a superblock names.
    pub(crate) async fn read<D: Device>(
        pages: &Rc<Pages<D>>,
        superblock: &Superblock,
    ) -> Result<(Self, Catalog), CheckpointError> {
        let mut catalog = Catalog::new(superblock.epoch, superblock.next_line);
        let mut shelves =
            Self { volumes: superblock.volumes, nodes: superblock.nodes, ..Self::default() };
        for place in 0..superblock.slots.0 {
            let Some((page, at)) = read(pages, &superblock.volumes, place).await? else { continue };
            let record = VolumeRecord::decode(&page).map_err(|_| malformed(&at))?;
            if let Some(record) = record {
                let id = record.id;
                catalog.restore_volume(record)?;
                if let Some(volume) = catalog.volume(id) {
                    shelves.volume_places.restore(place, id, Rc::clone(volume));
                }
            }
        }
        for index in 0..superblock.slots.1 {
            let Some((page, at)) = read(pages, &superblock.nodes, index).await? else { continue };
            for (number, bytes) in page.as_chunks::<NODE_BYTES>().0.iter().enumerate() {
                let record = NodeRecord::decode(bytes).map_err(|_| malformed(&at))?;
                let Some(record) = record else { continue };
                let (key, place) = (record.key, index * NODES as u32 + number as u32);
                catalog.restore_node(record)?;
                if let Some(Node { facts, stored }) = catalog.node(key) {
                    let kept = (Rc::clone(facts), Rc::clone(stored));
                    shelves.node_places.restore(place, key, kept);
                }
            }
        }
        Ok((shelves, catalog))
    }
}

impl<D: Device + 'static> Making<D> {
    /// Writes the pages of the catalog in which something changed.
    pub(super) async fn shelve(&self) -> Result<Shelves, CheckpointError> {
        let mut shelves = self.core.checkpoints.shelves.borrow().clone();
        let volumes = shelves.volume_places.update(
            self.catalog.volumes().map(|volume| (volume.id, volume)),
            Rc::ptr_eq,
            Rc::clone,
        );
        let nodes = shelves.node_places.update(
            self.catalog.nodes(),
            |(facts, stored), node| {
                Rc::ptr_eq(facts, &node.facts) && Rc::ptr_eq(stored, &node.stored)
            },
            |node| (Rc::clone(&node.facts), Rc::clone(&node.stored)),
        );
        let node_pages: BTreeSet<u32> = nodes.iter().map(|place| place / NODES as u32).collect();
        let by_place = &shelves.volume_places.by_place;
        let fill = |index: u32, page: &mut [u8]| {
            let id = by_place.get(index as usize).copied().flatten();
            if let Some(volume) = id.and_then(|id| self.catalog.volume(id)) {
                volume.encode(page);
            }
        };
        shelves.volumes = self.write_pages(shelves.volumes, &volumes, fill).await?;
        let by_place = &shelves.node_places.by_place;
        let fill = |index: u32, page: &mut [u8]| {
            let first = index as usize * NODES;
            for (number, bytes) in page.as_chunks_mut::<NODE_BYTES>().0.iter_mut().enumerate() {
                let key = by_place.get(first + number).copied().flatten();
                if let Some((key, node)) = key.and_then(|key| Some((key, self.catalog.node(key)?)))
                {
                    *bytes = node.record(key).encode();
                }
            }
        };
        shelves.nodes = self.write_pages(shelves.nodes, &node_pages, fill).await?;
        Ok(shelves)
    }

    async fn write_pages(
        &self,
        tree: Tree,
        changed: &BTreeSet<u32>,
        fill: impl Fn(u32, &mut [u8]),
    ) -> Result<Tree, CheckpointError> {
        let Some(&last) = changed.last() else { return Ok(tree) };
        let birth = self.catalog.epoch();
        let scribe = self.scribe.clone();
        let mut merge = Merge::new(
            Rc::clone(&self.core.pages),
            self.scribe.clone(),
            Class::Catalog,
            tree,
            birth,
            Tree::height_for(u64::from(last) + 1),
            move |pointer, _| {
                if !pointer.is_hole() {
                    scribe.free(pointer.pba, true);
                }
            },
        )
        .await?;
        for &index in changed {
            let mut page = self.core.pages.blank().await;
            fill(index, &mut page);
            let pointer = match page.iter().all(|byte| *byte == 0) {
                true => Pointer::HOLE,
                false => self.scribe.write(Class::Catalog, birth, page).await?,
            };
            merge.put(u64::from(index), pointer).await?;
        }
        Ok(merge.finish().await?)
    }
}

async fn read<D: Device>(
    pages: &Rc<Pages<D>>,
    tree: &Tree,
    index: u32,
) -> Result<Option<(Vec<u8>, Pointer)>, Damage> {
    let at = radix::find(pages, Class::Catalog, tree, u64::from(index)).await?;
    if at.is_hole() {
        return Ok(None);
    }
    let page = pages.load_once(&at.seal, Binding::page(Class::Catalog, 0, at.pba)).await?;
    Ok(Some((page[..BLOCK_SIZE].to_vec(), at)))
}

fn malformed(at: &Pointer) -> Damage {
    Damage { pba: at.pba, class: Class::Catalog, what: What::Malformed }
}
