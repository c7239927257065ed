//! Snapshots of a pool's volumes, and what the fronts that have the volumes
//! have to do with them.

use std::rc::Rc;

use block_core::{Device, Lba, LbaRange};
use interpose::layout::provenance::Provenance;
use link::{Access, VolumeName};
use tracing::info;

use super::{Keeper, Store, StoreError};
use crate::api::SnapshotInfo;
use crate::attachments::Attachments;
use crate::attributes::Attributes;
use crate::layout::VolumeRecord;
use crate::pooled::{PoolBlocks, Pooled, SnapshotFound};
use crate::size::Size;
use crate::volume::{Backing, Volume};

/// Most ranges of a difference that are told at a time.
pub const DIFF_RANGES: usize = 64 * 1024;

/// A pool, and one of its volumes in it.
pub(super) type InPool<D> = (Rc<Pooled<D>>, Rc<PoolBlocks<D>>);

impl<D: Device + 'static> Store<D> {
    /// Takes snapshots of these volumes at one moment.
    ///
    /// # Errors
    /// A [`StoreError`]; then there is none.
    pub async fn take_snapshots(
        &self,
        volumes: &[Rc<Volume<D>>],
        name: &VolumeName,
        as_is: bool,
    ) -> Result<(), StoreError> {
        let pool = self.pool()?;
        let mut members = Vec::with_capacity(volumes.len());
        let mut stale = false;
        for volume in volumes {
            let (_, blocks) = self.in_pool(volume)?;
            let record = self.existing(volume)?;
            record.check_whole()?;
            if let Some(front) = away(volume, &record) {
                if !as_is {
                    return Err(StoreError::WriterAway { name: record.name, front });
                }
                stale = true;
            }
            if pool.snapshot(&blocks, name).is_some() {
                let name = name.clone();
                return Err(StoreError::SnapshotExists { volume: record.name, name });
            }
            members.push(blocks);
        }
        pool.take_snapshots(&members, name, stale).await?;
        info!(%name, volumes = volumes.len(), "snapshot taken");
        Ok(())
    }

    /// The snapshots of a volume, the oldest first.
    ///
    /// # Errors
    /// When the volume lies in no pool.
    pub fn snapshots(&self, volume: &Volume<D>) -> Result<Vec<SnapshotInfo>, StoreError> {
        let (pool, blocks) = self.in_pool(volume)?;
        let of = volume.record().name;
        let describe = |found: SnapshotFound| SnapshotInfo {
            volume: of.to_string(),
            name: found.name,
            taken: found.taken,
            size: Size(found.blocks.bytes()),
            as_is: found.as_is,
            branches: found.branches,
        };
        Ok(pool.snapshots(&blocks).into_iter().map(describe).collect())
    }

    /// Makes a volume that begins as a snapshot.
    ///
    /// # Errors
    /// A [`StoreError`]; then there is no such volume.
    pub async fn clone_snapshot(
        &self,
        volume: &Volume<D>,
        snapshot: &VolumeName,
        to: &VolumeName,
        read_only: bool,
    ) -> Result<Rc<Volume<D>>, StoreError> {
        let (pool, blocks) = self.in_pool(volume)?;
        let found = self.found(&pool, &blocks, volume, snapshot)?;
        self.reserve(to)?;
        let cloned = pool.clone_snapshot(&found, to, Attributes::fresh(read_only)).await;
        let verifier = self.means.chance.number();
        let made = cloned.map(|found| Volume::pooled(found, &self.means.scratch, verifier));
        let made = self.add(to, made)?;
        info!(name = %to, "volume cloned");
        Ok(made)
    }

    /// Makes a volume what a snapshot is. Whoever has it loses it, if that was
    /// asked for: nobody must go on as if nothing had happened.
    ///
    /// # Errors
    /// A [`StoreError`]; then the volume is as it was.
    pub async fn restore(
        &self,
        volume: &Volume<D>,
        snapshot: &VolumeName,
        force: bool,
    ) -> Result<(), StoreError> {
        let (pool, blocks) = self.in_pool(volume)?;
        volume.interrupt_import();
        let _change = volume.change.lock().await;
        let old = self.existing(volume)?;
        let found = self.found(&pool, &blocks, volume, snapshot)?;
        if !force {
            old.check_detached(
                "stop that front before the volume is restored; if it will not come back, use \
                 `--force`: what it has not flushed is lost then",
            )?;
        }
        volume.revoke(|_| true).await;
        let generation = old.generation + 1;
        // An import that had not come to its end is given up.
        let provenance = Provenance { coming: None, ..old.provenance };
        let record = VolumeRecord { attachments: Attachments::None, generation, provenance, ..old };
        pool.restore(&blocks, &found, &Attributes::of(&record)).await?;
        info!(name = %record.name, %snapshot, "volume restored");
        volume.follow(VolumeRecord { blocks: volume.requests.blocks(), ..record });
        volume.imported_to.set(None);
        Ok(())
    }

    /// Deletes a snapshot. Its space comes back in the background.
    ///
    /// # Errors
    /// A [`StoreError`]; then it is still there.
    pub async fn delete_snapshot(
        &self,
        volume: &Volume<D>,
        snapshot: &VolumeName,
    ) -> Result<(), StoreError> {
        let (pool, blocks) = self.in_pool(volume)?;
        let found = self.found(&pool, &blocks, volume, snapshot)?;
        pool.delete_snapshot(&found).await?;
        info!(volume = %volume.record().name, %snapshot, "snapshot deleted");
        Ok(())
    }

    /// What differs between a snapshot and a later one, or the volume as it
    /// is: at most so many ranges from `start` on, and where to go on.
    ///
    /// # Errors
    /// A [`StoreError`].
    pub async fn diff(
        &self,
        volume: &Volume<D>,
        from: &VolumeName,
        to: Option<&VolumeName>,
        start: Lba,
        most: usize,
    ) -> Result<(Vec<LbaRange>, Option<Lba>), StoreError> {
        let (pool, blocks) = self.in_pool(volume)?;
        let from = self.found(&pool, &blocks, volume, from)?;
        let to = to.map(|to| self.found(&pool, &blocks, volume, to)).transpose()?;
        pool.diff(&blocks, &from, to.as_ref(), start, most).await
    }

    pub(super) fn in_pool(&self, volume: &Volume<D>) -> Result<InPool<D>, StoreError> {
        match (volume.requests.below(), self.keeper()) {
            (Backing::Pool(blocks), Keeper::Pool(pool)) => {
                Ok((pool, blocks.get().ok_or(StoreError::Changing)?))
            }
            (Backing::Pool(_), _) => Err(self.not_now()),
            _ => Err(StoreError::NotAPool(self.means.name.clone())),
        }
    }

    pub(super) fn found(
        &self,
        pool: &Pooled<D>,
        blocks: &PoolBlocks<D>,
        volume: &Volume<D>,
        name: &VolumeName,
    ) -> Result<SnapshotFound, StoreError> {
        pool.snapshot(blocks, name).ok_or_else(|| {
            let (volume, name) = (volume.record().name, name.clone());
            StoreError::NoSnapshot { volume, name }
        })
    }
}

/// The writer of a volume that has not come back since answered writes may
/// have been lost.
fn away<D: Device>(volume: &Volume<D>, record: &VolumeRecord) -> Option<link::FrontId> {
    let mut writers = record.attachments.iter().filter(|(access, _)| *access == Access::Write);
    let (_, writer) = writers.next()?;
    let is_back = writer.verifier == volume.requests.verifier();
    (!is_back).then_some(writer.front)
}
