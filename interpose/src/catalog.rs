//! What volumes and snapshots there are: a tree of snapshots whose leaves are
//! heads.
//!
//! Facts change by records of the journal, one at a time, live and at
//! recovery alike. What a checkpoint makes (maps, dead lists, how far a
//! deletion is) is apart from them, so that both can go on at once: a
//! checkpoint works on the catalog as it was when it began, and the live one
//! adopts what came out.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use block_core::BlockCount;
use thiserror::Error;

use crate::layout::control::{Control, SnapshotKey, VolumeId};
use crate::layout::node::{DeadList, NodeRecord, Stage, VolumeRecord};
use crate::layout::{DomainId, Epoch, LineId};
use crate::radix::Tree;

/// A record that does not fit to what there is: the journal or the catalog is
/// damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Contradiction(pub &'static str);

/// A head or a snapshot.
#[derive(Clone, Debug)]
pub struct Node {
    /// What records said.
    pub facts: Rc<Facts>,
    /// What checkpoints made.
    pub stored: Rc<Stored>,
}

/// What records said about a head or a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whose history it is.
    pub volume: VolumeId,
    /// Whose key.
    pub domain: DomainId,
    /// The snapshot that it began as.
    pub parent: Option<SnapshotKey>,
    /// A snapshot's name.
    pub name: String,
    /// When it was taken; seconds since 1970.
    pub taken: u64,
    /// Whether a writer may have lost unflushed writes before.
    pub as_is: bool,
    /// The size.
    pub blocks: BlockCount,
    /// Nobody wants it any more.
    pub deleted: bool,
}

/// What checkpoints made of a head or a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its map. `None`: nothing was merged yet, and it is what it began as.
    pub tree: Option<Tree>,
    /// What its parent has and it has not.
    pub dead: DeadList,
    /// How far its deletion is.
    pub stage: Stage,
}

/// Volumes, heads and snapshots. A copy is cheap: it shares what is in it.
#[derive(Clone, Debug)]
pub struct Catalog {
    volumes: BTreeMap<VolumeId, Rc<VolumeRecord>>,
    nodes: BTreeMap<SnapshotKey, Node>,
    /// The snapshots that nobody deleted, so that the ten-thousandth is taken
    /// as fast as the first.
    names: BTreeMap<(VolumeId, Rc<str>), SnapshotKey>,
    epoch: Epoch,
    next_line: LineId,
    /// What [`Catalog::since`] said last: every change of a block asks, and most
    /// often of the same line.
    since: Cell<Option<(LineId, Epoch)>>,
    /// Rises whenever what volumes and lines are may have changed.
    version: u64,
    /// Records since the last checkpoint began.
    changes: u64,
}

/// The key of a line's head.
#[must_use]
pub const fn head_of(line: LineId) -> SnapshotKey {
    SnapshotKey { line, epoch: Epoch::HEAD }
}

impl Catalog {
    /// A pool's first catalog.
    #[must_use]
    pub fn new(epoch: Epoch, next_line: LineId) -> Self {
        let (volumes, nodes, names) = Default::default();
        Self {
            volumes,
            nodes,
            names,
            epoch,
            next_line,
            since: Cell::new(None),
            version: 0,
            changes: 0,
        }
    }

    /// Puts in what was stored.
    ///
    /// # Errors
    /// When it is there already, or is from the future.
    pub fn restore_node(&mut self, record: NodeRecord) -> Result<(), Contradiction> {
        self.facts_change();
        let key = record.key;
        if key.line >= self.next_line || (key.epoch >= self.epoch && key.epoch != Epoch::HEAD) {
            return Err(Contradiction("a snapshot is younger than the pool"));
        }
        let facts = Facts {
            volume: record.volume,
            domain: record.domain,
            parent: record.parent,
            name: record.name,
            taken: record.taken,
            as_is: record.as_is,
            blocks: record.blocks,
            deleted: record.stage != Stage::There,
        };
        let stage = if record.stage == Stage::Deleted { Stage::There } else { record.stage };
        let tree = match record.tree {
            None => None,
            Some((root, height)) => {
                Some(Tree::new(root, height).ok_or(Contradiction("a map has no such height"))?)
            }
        };
        let stored = Stored { tree, dead: record.dead, stage };
        if key.epoch != Epoch::HEAD && !facts.deleted {
            self.names.insert((facts.volume, facts.name.as_str().into()), key);
        }
        let node = Node { facts: Rc::new(facts), stored: Rc::new(stored) };
        match self.nodes.insert(key, node) {
            None => Ok(()),
            Some(_) => Err(Contradiction("a snapshot is there twice")),
        }
    }

    /// Puts in what was stored.
    ///
    /// # Errors
    /// When it is there already.
    pub fn restore_volume(&mut self, record: VolumeRecord) -> Result<(), Contradiction> {
        self.facts_change();
        match self.volumes.insert(record.id, Rc::new(record)) {
            None => Ok(()),
            Some(_) => Err(Contradiction("a volume is there twice")),
        }
    }

    /// The epoch that writes belong to.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Changes when what volumes and lines are may have changed: until then
    /// who knows it need not look again.
    #[must_use]
    pub const fn version(&self) -> u64 {
        self.version
    }

    fn facts_change(&mut self) {
        self.since.set(None);
        self.version += 1;
    }

    /// The number of the next line.
    #[must_use]
    pub const fn next_line(&self) -> LineId {
        self.next_line
    }

    /// A volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<&Rc<VolumeRecord>> {
        self.volumes.get(&id)
    }

    /// The volume of that name.
    #[must_use]
    pub fn volume_named(&self, name: &str) -> Option<&Rc<VolumeRecord>> {
        self.volumes.values().find(|volume| volume.name == name)
    }

    /// All volumes.
    pub fn volumes(&self) -> impl Iterator<Item = &Rc<VolumeRecord>> {
        self.volumes.values()
    }

    /// A head or a snapshot.
    #[must_use]
    pub fn node(&self, key: SnapshotKey) -> Option<&Node> {
        self.nodes.get(&key)
    }

    /// All heads and snapshots: by line, and by age within it.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (SnapshotKey, &Node)> {
        self.nodes.iter().map(|(&key, node)| (key, node))
    }

    /// A volume's snapshots that nobody deleted, the oldest first.
    #[must_use]
    pub fn snapshots(&self, volume: VolumeId) -> Vec<(SnapshotKey, &Facts)> {
        let mut snapshots: Vec<(SnapshotKey, &Facts)> = self
            .nodes
            .iter()
            .filter(|(key, node)| {
                key.epoch != Epoch::HEAD && node.facts.volume == volume && !node.facts.deleted
            })
            .map(|(&key, node)| (key, &*node.facts))
            .collect();
        snapshots.sort_by_key(|(key, _)| key.epoch);
        snapshots
    }

    /// A volume's snapshot of that name.
    #[must_use]
    pub fn snapshot_named(&self, volume: VolumeId, name: &str) -> Option<SnapshotKey> {
        self.names.get(&(volume, name.into())).copied()
    }

    /// The last epoch of a line that a snapshot has: what is younger belongs
    /// to the head alone.
    #[must_use]
    pub fn since(&self, line: LineId) -> Epoch {
        if let Some((_, since)) = self.since.get().filter(|&(last, _)| last == line) {
            return since;
        }
        let parent = self.nodes.get(&head_of(line)).and_then(|head| head.facts.parent);
        let since = parent.map_or(Epoch(0), |parent| parent.epoch);
        self.since.set(Some((line, since)));
        since
    }

    /// The snapshot that the line began as.
    #[must_use]
    pub fn origin(&self, line: LineId) -> Option<SnapshotKey> {
        let oldest = self.nodes.range(SnapshotKey { line, epoch: Epoch(0) }..).next();
        let (_, node) = oldest.filter(|(key, _)| key.line == line)?;
        node.facts.parent
    }

    /// How many heads and snapshots begin as each snapshot.
    #[must_use]
    pub fn children(&self) -> BTreeMap<SnapshotKey, Vec<SnapshotKey>> {
        let mut children: BTreeMap<SnapshotKey, Vec<SnapshotKey>> = BTreeMap::new();
        for (&key, node) in &self.nodes {
            // Taken out of the chain already.
            if matches!(node.stored.stage, Stage::Merging { .. }) {
                continue;
            }
            if let Some(parent) = node.facts.parent {
                children.entry(parent).or_default().push(key);
            }
        }
        children
    }

    /// A checkpoint begins.
    pub fn begin_period(&mut self) {
        self.changes = 0;
    }

    /// Most pages that writing what changed since takes.
    #[must_use]
    pub const fn pages_to_write(&self) -> u64 {
        // A volume's own and that of its head; of a group, one node's each.
        3 * self.changes
    }

    /// Does what a record says.
    ///
    /// # Errors
    /// When it does not fit; then nothing was done.
    pub fn apply(&mut self, control: &Control) -> Result<(), Contradiction> {
        self.facts_change();
        self.changes += match control {
            Control::Snapshot { volumes, .. } => volumes.len() as u64,
            _ => 1,
        };
        match control {
            Control::Opened { .. } => Ok(()),
            Control::Create { line, id, domain, blocks, name, attributes } => {
                self.check_new(*line, *id)?;
                let tree = Some(Tree::EMPTY);
                self.add_head(*line, (*id, *domain, *blocks), None, tree);
                self.add_volume(*id, *domain, *blocks, *line, name, attributes);
                Ok(())
            }
            Control::Attributes { id, attributes } => {
                self.change_volume(*id)?.attributes.clone_from(attributes);
                Ok(())
            }
            Control::Resize { id, blocks, attributes } => {
                let volume = self.change_volume(*id)?;
                volume.blocks = *blocks;
                volume.attributes.clone_from(attributes);
                let head = head_of(volume.line);
                self.change_facts(head)?.blocks = *blocks;
                Ok(())
            }
            Control::Snapshot { epoch, taken, name, as_is, volumes } => {
                self.snapshot(*epoch, *taken, name, *as_is, volumes)
            }
            Control::Clone { of, line, id, name, attributes } => {
                self.check_new(*line, *id)?;
                let source = self.snapshot_facts(*of)?;
                let (domain, blocks) = (source.domain, source.blocks);
                self.add_head(*line, (*id, domain, blocks), Some(*of), None);
                self.add_volume(*id, domain, blocks, *line, name, attributes);
                Ok(())
            }
            Control::Restore { id, to, line, attributes } => {
                if *line < self.next_line || *line > LineId::MAX {
                    return Err(Contradiction("a line is there twice"));
                }
                let blocks = self.snapshot_facts(*to)?.blocks;
                let volume = self.change_volume(*id)?;
                let (old, domain) = (volume.line, volume.domain);
                (volume.line, volume.blocks) = (*line, blocks);
                volume.attributes.clone_from(attributes);
                self.add_head(*line, (*id, domain, blocks), Some(*to), None);
                self.change_facts(head_of(old))?.deleted = true;
                Ok(())
            }
            Control::DeleteSnapshot { snapshot } => {
                let facts = self.snapshot_facts(*snapshot)?;
                let name = (facts.volume, facts.name.as_str().into());
                self.names.remove(&name);
                self.change_facts(*snapshot)?.deleted = true;
                Ok(())
            }
            Control::DeleteVolume { id } => {
                let gone = self.volumes.remove(id).ok_or(NO_VOLUME)?;
                self.change_facts(head_of(gone.line))?.deleted = true;
                Ok(())
            }
        }
    }

    fn snapshot(
        &mut self,
        epoch: Epoch,
        taken: u64,
        name: &str,
        as_is: bool,
        volumes: &[VolumeId],
    ) -> Result<(), Contradiction> {
        if epoch != self.epoch || epoch >= Epoch::MAX {
            return Err(Contradiction("a snapshot of another epoch"));
        }
        let lines: Vec<LineId> = volumes
            .iter()
            .map(|id| self.volumes.get(id).map(|volume| volume.line).ok_or(NO_VOLUME))
            .collect::<Result<_, _>>()?;
        for line in lines {
            let head = self.change_facts(head_of(line))?;
            let key = SnapshotKey { line, epoch };
            let facts = Facts { name: name.to_owned(), taken, as_is, ..head.clone() };
            head.parent = Some(key);
            self.names.insert((facts.volume, name.into()), key);
            let stored = Stored { tree: None, dead: DeadList::default(), stage: Stage::There };
            self.nodes.insert(key, Node { facts: Rc::new(facts), stored: Rc::new(stored) });
        }
        self.epoch.0 += 1;
        Ok(())
    }

    fn check_new(&self, line: LineId, id: VolumeId) -> Result<(), Contradiction> {
        if line < self.next_line || line > LineId::MAX {
            return Err(Contradiction("a line is there twice"));
        }
        if self.volumes.contains_key(&id) {
            return Err(Contradiction("a volume is there twice"));
        }
        Ok(())
    }

    fn add_head(
        &mut self,
        line: LineId,
        (volume, domain, blocks): (VolumeId, DomainId, BlockCount),
        parent: Option<SnapshotKey>,
        tree: Option<Tree>,
    ) {
        let (name, taken) = (String::new(), 0);
        let facts =
            Facts { volume, domain, parent, name, taken, as_is: false, blocks, deleted: false };
        let stored = Stored { tree, dead: DeadList::default(), stage: Stage::There };
        self.nodes.insert(head_of(line), Node { facts: Rc::new(facts), stored: Rc::new(stored) });
        self.next_line = LineId(line.0 + 1);
    }

    fn add_volume(
        &mut self,
        id: VolumeId,
        domain: DomainId,
        blocks: BlockCount,
        line: LineId,
        name: &str,
        attributes: &[u8],
    ) {
        let (name, attributes) = (name.to_owned(), attributes.to_vec());
        let record = VolumeRecord { id, domain, blocks, line, name, attributes };
        self.volumes.insert(id, Rc::new(record));
    }

    fn change_volume(&mut self, id: VolumeId) -> Result<&mut VolumeRecord, Contradiction> {
        self.volumes.get_mut(&id).map(Rc::make_mut).ok_or(NO_VOLUME)
    }

    fn change_facts(&mut self, key: SnapshotKey) -> Result<&mut Facts, Contradiction> {
        self.nodes.get_mut(&key).map(|node| Rc::make_mut(&mut node.facts)).ok_or(NO_SNAPSHOT)
    }

    fn snapshot_facts(&self, key: SnapshotKey) -> Result<&Facts, Contradiction> {
        let node = self.nodes.get(&key).filter(|_| key.epoch != Epoch::HEAD);
        let facts = node.map(|node| &*node.facts).filter(|facts| !facts.deleted);
        facts.ok_or(NO_SNAPSHOT)
    }

    /// Changes what checkpoints make; only a checkpoint does.
    pub fn change_stored(&mut self, key: SnapshotKey) -> Option<&mut Stored> {
        self.nodes.get_mut(&key).map(|node| Rc::make_mut(&mut node.stored))
    }

    /// Takes a snapshot out of the chain: who began as it begins as its
    /// parent. The node itself stays, until [`Catalog::remove`].
    pub fn splice(&mut self, key: SnapshotKey) {
        self.facts_change();
        let parent = self.nodes.get(&key).and_then(|node| node.facts.parent);
        for node in self.nodes.values_mut() {
            if node.facts.parent == Some(key) {
                Rc::make_mut(&mut node.facts).parent = parent;
            }
        }
    }

    /// Forgets a head or a snapshot.
    pub fn remove(&mut self, key: SnapshotKey) {
        self.facts_change();
        self.nodes.remove(&key);
    }

    /// Takes over what a checkpoint made of an earlier copy: maps, lists and
    /// deletions, and what it took out or forgot.
    pub fn adopt(&mut self, made: &Self, spliced: &[SnapshotKey], removed: &[SnapshotKey]) {
        for (key, node) in &mut self.nodes {
            if let Some(made) = made.nodes.get(key) {
                node.stored = Rc::clone(&made.stored);
            }
        }
        spliced.iter().for_each(|&key| self.splice(key));
        removed.iter().for_each(|&key| self.remove(key));
    }
}

impl Node {
    /// What is stored about it.
    #[must_use]
    pub fn record(&self, key: SnapshotKey) -> NodeRecord {
        let Facts { volume, domain, parent, taken, as_is, blocks, deleted, .. } = *self.facts;
        let stage = match self.stored.stage {
            Stage::There if deleted => Stage::Deleted,
            stage => stage,
        };
        NodeRecord {
            key,
            parent,
            domain,
            volume,
            blocks,
            taken,
            as_is,
            tree: self.stored.tree.map(|tree| (tree.root(), tree.height())),
            dead: self.stored.dead,
            stage,
            name: self.facts.name.clone(),
        }
    }
}

const NO_VOLUME: Contradiction = Contradiction("a volume is not there");
const NO_SNAPSHOT: Contradiction = Contradiction("a snapshot is not there");
