//! What is asked about snapshots.

use block_core::{Device, Lba, LbaRange};
use link::VolumeName;

use super::{Answer, Failed, describe};
use crate::api::{SnapshotInfo, VolumeInfo};
use crate::room::{Located, Room};
use crate::store::{DIFF_RANGES, StoreError};

/// Something about snapshots that a worker is asked to do.
#[derive(Debug)]
pub enum SnapshotErrand {
    /// Take snapshots of one moment.
    Take {
        /// Of which volumes; at least one.
        volumes: Vec<VolumeName>,
        /// What they are called.
        name: VolumeName,
        /// Whether a writer may have lost writes.
        as_is: bool,
        /// Where to.
        answer: Answer<Vec<SnapshotInfo>>,
    },
    /// Say what snapshots a volume has.
    List {
        /// Which one.
        volume: VolumeName,
        /// Where to.
        answer: Answer<Vec<SnapshotInfo>>,
    },
    /// Say what there is to say about a snapshot.
    Show {
        /// Of which volume.
        volume: VolumeName,
        /// Which one.
        name: VolumeName,
        /// Where to.
        answer: Answer<SnapshotInfo>,
    },
    /// Make a volume that begins as a snapshot.
    Clone {
        /// Of which volume.
        volume: VolumeName,
        /// Which one.
        name: VolumeName,
        /// The new volume's name.
        to: VolumeName,
        /// Whether nobody may change it.
        read_only: bool,
        /// Where to.
        answer: Answer<VolumeInfo>,
    },
    /// Make a volume what a snapshot is.
    Restore {
        /// Which volume.
        volume: VolumeName,
        /// Which snapshot.
        name: VolumeName,
        /// Whether also when a front has it.
        force: bool,
        /// Where to.
        answer: Answer<VolumeInfo>,
    },
    /// Delete a snapshot.
    Delete {
        /// Of which volume.
        volume: VolumeName,
        /// Which one.
        name: VolumeName,
        /// Where to.
        answer: Answer<()>,
    },
    /// Say what differs.
    Diff {
        /// In which volume.
        volume: VolumeName,
        /// Since which snapshot.
        from: VolumeName,
        /// Up to which one; up to what it is if not said.
        to: Option<VolumeName>,
        /// From which block on.
        start: Lba,
        /// Where to: a bounded number of ranges, and where the next one is.
        answer: Answer<(Vec<LbaRange>, Option<Lba>)>,
    },
}

pub(super) async fn run<D: Device + 'static>(room: &Room<D>, errand: SnapshotErrand) {
    match errand {
        SnapshotErrand::Take { volumes, name, as_is, answer } => {
            let _ = answer.send(room.take_snapshots(&volumes, &name, as_is).await);
        }
        SnapshotErrand::List { volume, answer } => {
            let _ = answer.send(room.snapshots(&volume));
        }
        SnapshotErrand::Show { volume, name, answer } => {
            let _ = answer.send(room.snapshot(&volume, &name));
        }
        SnapshotErrand::Clone { volume, name, to, read_only, answer } => {
            let _ = answer.send(room.clone_snapshot(&volume, &name, to, read_only).await);
        }
        SnapshotErrand::Restore { volume, name, force, answer } => {
            let _ = answer.send(room.restore(&volume, &name, force).await);
        }
        SnapshotErrand::Delete { volume, name, answer } => {
            let _ = answer.send(room.delete_snapshot(&volume, &name).await);
        }
        SnapshotErrand::Diff { volume, from, to, start, answer } => {
            let _ = answer.send(room.diff(&volume, &from, to.as_ref(), start).await);
        }
    }
}

impl<D: Device + 'static> Room<D> {
    async fn take_snapshots(
        &self,
        volumes: &[VolumeName],
        name: &VolumeName,
        as_is: bool,
    ) -> Result<Vec<SnapshotInfo>, Failed> {
        let mut located = Vec::with_capacity(volumes.len());
        for volume in volumes {
            located.push(self.existing(volume)?);
        }
        let Some(first) = located.first() else { return Ok(Vec::new()) };
        if let Some(other) = located.iter().find(|other| other.device != first.device) {
            let (one, other) = (first.volume.record().name, other.volume.record().name);
            return Err(StoreError::TwoPools { one, other }.into());
        }
        let store = first.store;
        let members: Vec<_> = located.iter().map(|one| one.volume.clone()).collect();
        store.take_snapshots(&members, name, as_is).await?;
        volumes.iter().map(|volume| self.snapshot(volume, name)).collect()
    }

    fn snapshots(&self, volume: &VolumeName) -> Result<Vec<SnapshotInfo>, Failed> {
        let Located { store, volume, .. } = self.existing(volume)?;
        Ok(store.snapshots(&volume)?)
    }

    fn snapshot(&self, volume: &VolumeName, name: &VolumeName) -> Result<SnapshotInfo, Failed> {
        let found = self.snapshots(volume)?.into_iter().find(|one| one.name == name.as_str());
        let unknown = || StoreError::NoSnapshot { volume: volume.clone(), name: name.clone() };
        Ok(found.ok_or_else(unknown)?)
    }

    async fn clone_snapshot(
        &self,
        volume: &VolumeName,
        name: &VolumeName,
        to: VolumeName,
        read_only: bool,
    ) -> Result<VolumeInfo, Failed> {
        let Located { device, store, volume } = self.existing(volume)?;
        let made = self.under_name(&to, store.clone_snapshot(&volume, name, &to, read_only)).await;
        Ok(describe(device, &*made?))
    }

    async fn restore(
        &self,
        volume: &VolumeName,
        name: &VolumeName,
        force: bool,
    ) -> Result<VolumeInfo, Failed> {
        let Located { device, store, volume } = self.existing(volume)?;
        store.restore(&volume, name, force).await?;
        Ok(describe(device, &volume))
    }

    async fn delete_snapshot(&self, volume: &VolumeName, name: &VolumeName) -> Result<(), Failed> {
        let Located { store, volume, .. } = self.existing(volume)?;
        Ok(store.delete_snapshot(&volume, name).await?)
    }

    async fn diff(
        &self,
        volume: &VolumeName,
        from: &VolumeName,
        to: Option<&VolumeName>,
        start: Lba,
    ) -> Result<(Vec<LbaRange>, Option<Lba>), Failed> {
        let Located { store, volume, .. } = self.existing(volume)?;
        Ok(store.diff(&volume, from, to, start, DIFF_RANGES).await?)
    }
}
