//! Snapshots: taken, restored, cloned, deleted.

use block_core::{BlockCount, BlockError, Buffer, Device, LbaRange};

use super::volumes::check_attributes;
use super::{Pool, PoolError, check_name};
use crate::layout::control::{Control, MAX_GROUP, SnapshotKey, VolumeId};
use crate::layout::node::Stage;
use crate::layout::{DomainId, Epoch};

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// Which one.
    pub key: SnapshotKey,
    /// Its name.
    pub name: String,
    /// The volume.
    pub volume: VolumeId,
    /// When it was taken; seconds since 1970.
    pub taken: u64,
    /// Whether a writer may have lost unflushed writes before.
    pub as_is: bool,
    /// The volume's size then.
    pub blocks: BlockCount,
    /// Whose key.
    pub domain: DomainId,
    /// How many volumes and snapshots begin as it.
    pub children: usize,
}

/// What a restore has made of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Its size.
    pub blocks: BlockCount,
}

impl<D: Device + 'static> Pool<D> {
    /// Takes snapshots of volumes, all of the same moment. Nothing waits for
    /// it. Durable when this returns.
    ///
    /// # Errors
    /// A [`PoolError`]; then there is none.
    pub async fn snapshot(
        &self,
        volumes: &[VolumeId],
        name: &str,
        as_is: bool,
    ) -> Result<Epoch, PoolError> {
        let _changing = self.changing.lock().await;
        check_name(name)?;
        let mut distinct = volumes.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() != volumes.len() || !(1..=MAX_GROUP).contains(&volumes.len()) {
            return Err(PoolError::BadGroup);
        }
        for &id in volumes {
            self.record(id)?;
            if self.find_snapshot(id, name).is_ok() {
                return Err(PoolError::Exists { what: "snapshot", name: name.to_owned() });
            }
        }
        let epoch = self.core.state.borrow().catalog.epoch();
        if epoch >= Epoch::MAX {
            return Err(PoolError::TooMany("snapshots"));
        }
        let (taken, name, volumes) = ((self.core.wall)(), name.to_owned(), volumes.to_vec());
        self.commit(Control::Snapshot { epoch, taken, name, as_is, volumes }).await?;
        Ok(epoch)
    }

    /// A volume's snapshots, the oldest first.
    #[must_use]
    pub fn snapshots(&self, volume: VolumeId) -> Vec<SnapshotStatus> {
        let state = self.core.state.borrow();
        let children = state.catalog.children();
        let snapshots = state.catalog.snapshots(volume).into_iter();
        snapshots
            .map(|(key, facts)| SnapshotStatus {
                key,
                name: facts.name.clone(),
                volume,
                taken: facts.taken,
                as_is: facts.as_is,
                blocks: facts.blocks,
                domain: facts.domain,
                children: children.get(&key).map_or(0, Vec::len),
            })
            .collect()
    }

    /// The snapshot of that name.
    ///
    /// # Errors
    /// [`PoolError::Unknown`].
    pub fn find_snapshot(&self, volume: VolumeId, name: &str) -> Result<SnapshotKey, PoolError> {
        let state = self.core.state.borrow();
        let unknown = || PoolError::Unknown { what: "snapshot", name: name.to_owned() };
        state.catalog.snapshot_named(volume, name).ok_or_else(unknown)
    }

    /// Makes a volume that begins as a snapshot.
    ///
    /// # Errors
    /// A [`PoolError`]; then there is no such volume.
    pub async fn clone_snapshot(
        &self,
        of: SnapshotKey,
        name: &str,
        attributes: Vec<u8>,
    ) -> Result<VolumeId, PoolError> {
        let _changing = self.changing.lock().await;
        self.check_new_volume(name)?;
        check_attributes(&attributes)?;
        self.check_snapshot(of)?;
        let (id, line, name) = (self.new_id(), self.next_line()?, name.to_owned());
        self.commit(Control::Clone { of, line, id, name, attributes }).await?;
        Ok(id)
    }

    /// Makes a volume what a snapshot of it is. Later snapshots stay. Changes
    /// that are under way end first; others wait.
    ///
    /// # Errors
    /// A [`PoolError`]; then the volume is as it was.
    pub async fn restore(
        &self,
        id: VolumeId,
        to: SnapshotKey,
        attributes: Vec<u8>,
    ) -> Result<Restored, PoolError> {
        let _changing = self.changing.lock().await;
        self.record(id)?;
        check_attributes(&attributes)?;
        let blocks = self.check_snapshot(to)?;
        let line = self.next_line()?;
        let _drained = self.in_use(id).drain().await;
        self.commit(Control::Restore { id, to, line, attributes }).await?;
        self.core.checkpoints.want();
        Ok(Restored { blocks })
    }

    /// Deletes a snapshot. Its space comes back in the background.
    ///
    /// # Errors
    /// A [`PoolError`]; then it is still there.
    pub async fn delete_snapshot(&self, snapshot: SnapshotKey) -> Result<(), PoolError> {
        let _changing = self.changing.lock().await;
        self.check_snapshot(snapshot)?;
        self.commit(Control::DeleteSnapshot { snapshot }).await?;
        self.core.checkpoints.want();
        Ok(())
    }

    /// Deleted snapshots that are kept, unseen, because more than one go on
    /// from them: their space comes back when one is left.
    #[must_use]
    pub fn kept_for_clones(&self) -> usize {
        let state = self.core.state.borrow();
        let children = state.catalog.children();
        let kept = state.catalog.nodes().filter(|(key, node)| {
            node.facts.deleted && children.get(key).is_some_and(|children| children.len() > 1)
        });
        kept.count()
    }

    /// Deletions that are not done: how many, and how many pointers are known
    /// to be left. A snapshot that more than one go on from is not among them:
    /// it is kept, unseen, until one is left.
    #[must_use]
    pub fn deletions(&self) -> (usize, u64) {
        let state = self.core.state.borrow();
        let children = state.catalog.children();
        let is_kept =
            |key: &SnapshotKey| children.get(key).is_some_and(|children| children.len() > 1);
        let left = state.catalog.nodes().filter_map(|(key, node)| match node.stored.stage {
            Stage::Merging { work, .. } => Some(work.entries),
            Stage::Walking { .. } => Some(0),
            Stage::There | Stage::Deleted => (node.facts.deleted && !is_kept(&key)).then_some(0),
        });
        left.fold((0, 0), |(count, entries), more| (count + 1, entries + more))
    }

    /// Reads blocks of a snapshot into the buffer from its block `place` on.
    /// At most [`block_core::unit::MAX_REQUEST_BLOCKS`] of them.
    pub async fn read_snapshot(
        &self,
        snapshot: SnapshotKey,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
    ) -> (Buffer, Result<(), BlockError>) {
        let domain = {
            let state = self.core.state.borrow();
            let node = state.catalog.node(snapshot).filter(|node| !node.facts.deleted);
            node.filter(|node| range.end().0 <= node.facts.blocks.0).map(|node| node.facts.domain)
        };
        match domain {
            Some(domain) => self.core.read(snapshot, domain, range, buffer, place).await,
            None => (buffer, Err(BlockError::OutOfRange)),
        }
    }

    pub(super) fn check_snapshot(&self, key: SnapshotKey) -> Result<BlockCount, PoolError> {
        let state = self.core.state.borrow();
        let node = state.catalog.node(key).filter(|_| key.epoch != Epoch::HEAD);
        let there = node.filter(|node| !node.facts.deleted);
        let unknown = || PoolError::Unknown { what: "snapshot", name: format!("{key:?}") };
        there.map(|node| node.facts.blocks).ok_or_else(unknown)
    }
}
