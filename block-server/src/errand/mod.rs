//! What other threads ask of a worker, and how it is done: one task each,
//! beside the slots.

mod keys;
mod pools;
mod snapshots;
mod streams;

use std::rc::Rc;

use block_core::Device;
use link::{FrontId, PublicKey, VolumeName};
use tokio::sync::oneshot;

use crate::api::{AttachmentInfo, DeviceInfo, HealthInfo, VolumeInfo};
use crate::catalog::CommitError;
use crate::hooked::{self, BadLimits, HookChange};
use crate::room::{Located, Room};
use crate::size::Size;
use crate::store::{Store, StoreError};
use crate::volume::Volume;

pub use keys::KeyErrand;
pub use pools::PoolErrand;
pub use snapshots::SnapshotErrand;
pub use streams::StreamErrand;

/// Where the outcome of an errand goes.
pub type Answer<T> = oneshot::Sender<Result<T, Failed>>;

/// Why an errand did not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// The volumes do not allow it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The worker has no such device.
    #[error("there is no device '{0}'; `vrio server` was configured without it")]
    NoDevice(String),
    /// The throttle cannot do that.
    #[error(transparent)]
    Limits(#[from] BadLimits),
}

/// Something that a worker is asked to do.
#[derive(Debug)]
pub enum Errand {
    /// Say what devices there are.
    Devices(Answer<Vec<DeviceInfo>>),
    /// Say what volumes there are.
    Volumes(Answer<Vec<VolumeInfo>>),
    /// Say what there is to say about a volume.
    Show {
        /// Which one.
        name: VolumeName,
        /// Where to.
        answer: Answer<VolumeInfo>,
    },
    /// Make a volume.
    Create {
        /// On which device.
        device: String,
        /// Its name.
        name: VolumeName,
        /// Its size.
        size: Size,
        /// Whether nobody may change it.
        read_only: bool,
        /// In a pool: with whose volumes it shares a key and blocks.
        domain: Option<String>,
        /// Where to.
        answer: Answer<VolumeInfo>,
    },
    /// Give a volume another size.
    Resize {
        /// Which one.
        name: VolumeName,
        /// Its new size.
        size: Size,
        /// Whether it may lose its end.
        shrink: bool,
        /// Where to.
        answer: Answer<VolumeInfo>,
    },
    /// Set what stands around a volume's requests.
    SetHooks {
        /// Which one.
        name: VolumeName,
        /// What changes.
        change: HookChange,
        /// Where to.
        answer: Answer<VolumeInfo>,
    },
    /// Delete a volume.
    Delete {
        /// Which one.
        name: VolumeName,
        /// Whether its snapshots go with it.
        snapshots: bool,
        /// Where to.
        answer: Answer<()>,
    },
    /// Take a volume away.
    Detach {
        /// Which one.
        name: VolumeName,
        /// From whom; from everybody if not said.
        front: Option<FrontId>,
        /// Whether also from those who have not given it back.
        force: bool,
        /// Where to.
        answer: Answer<VolumeInfo>,
    },
    /// End the sessions that this key has.
    EndSessions {
        /// Whose.
        key: PublicKey,
        /// Where to.
        answer: Answer<()>,
    },
    /// Something about snapshots.
    Snapshot(SnapshotErrand),
    /// Something about streams.
    Stream(StreamErrand),
    /// Something about pools.
    Pool(PoolErrand),
    /// Something about keys.
    Key(KeyErrand),
    /// End the worker's loop.
    Stop,
}

/// Does an errand and answers it. Whoever asked may be gone: then nobody
/// hears the answer.
pub async fn run<D: Device + 'static>(room: Rc<Room<D>>, errand: Errand) {
    match errand {
        Errand::Devices(answer) => {
            let _ = answer.send(Ok(room.devices()));
        }
        Errand::Volumes(answer) => {
            let _ = answer.send(Ok(room.volumes()));
        }
        Errand::Show { name, answer } => {
            let _ = answer.send(room.show(&name));
        }
        Errand::Create { device, name, size, read_only, domain, answer } => {
            let created = room.create(&device, name, size, read_only, domain.as_deref()).await;
            let _ = answer.send(created);
        }
        Errand::Resize { name, size, shrink, answer } => {
            let _ = answer.send(room.resize(&name, size, shrink).await);
        }
        Errand::SetHooks { name, change, answer } => {
            let _ = answer.send(room.set_hooks(&name, change).await);
        }
        Errand::Delete { name, snapshots, answer } => {
            let _ = answer.send(room.delete(&name, snapshots).await);
        }
        Errand::Detach { name, front, force, answer } => {
            let _ = answer.send(room.detach(&name, front, force).await);
        }
        Errand::EndSessions { key, answer } => {
            room.end_sessions(key);
            let _ = answer.send(Ok(()));
        }
        Errand::Snapshot(errand) => snapshots::run(&room, errand).await,
        Errand::Stream(errand) => streams::run(&room, errand).await,
        Errand::Pool(errand) => pools::run(&room, errand).await,
        Errand::Key(errand) => keys::run(&room, errand).await,
        Errand::Stop => {}
    }
}

impl<D: Device + 'static> Room<D> {
    fn devices(&self) -> Vec<DeviceInfo> {
        let device = |(name, store): &(String, Store<D>)| DeviceInfo {
            name: name.clone(),
            worker: self.worker.0,
            size: Size(store.blocks().bytes()),
            free: Size(store.free().bytes()),
            volumes: store.volumes().len(),
            is_pool: store.is_pool(),
            problem: store.problem(),
            resets: store.resets(),
            late_commands: store.late_commands(),
            health: store.health().map(|log| HealthInfo::from(&log)),
        };
        self.stores.iter().map(device).collect()
    }

    fn volumes(&self) -> Vec<VolumeInfo> {
        let each = self.stores.iter().flat_map(|(device, store)| {
            store.volumes().into_iter().map(move |volume| describe(device, &volume))
        });
        each.collect()
    }

    fn show(&self, name: &VolumeName) -> Result<VolumeInfo, Failed> {
        let Located { device, volume, .. } = self.existing(name)?;
        Ok(describe(device, &volume))
    }

    async fn create(
        &self,
        device: &str,
        name: VolumeName,
        size: Size,
        read_only: bool,
        domain: Option<&str>,
    ) -> Result<VolumeInfo, Failed> {
        let store = self.store(device)?;
        let made = store.create(name.clone(), size, read_only, domain);
        Ok(describe(device, &*self.under_name(&name, made).await?))
    }

    /// Makes a volume whose name no other device's volume has.
    async fn under_name(
        &self,
        name: &VolumeName,
        make: impl Future<Output = Result<Rc<Volume<D>>, StoreError>>,
    ) -> Result<Rc<Volume<D>>, StoreError> {
        if !self.directory.claim(name, self.worker) {
            return Err(StoreError::Exists(name.clone()));
        }
        let made = make.await;
        // It may be there after a restart: then the name is its.
        if made.is_err() && !matches!(made, Err(StoreError::Commit(CommitError::Unknown(_)))) {
            self.directory.release(name);
        }
        made
    }

    async fn resize(
        &self,
        name: &VolumeName,
        size: Size,
        shrink: bool,
    ) -> Result<VolumeInfo, Failed> {
        let Located { device, store, .. } = self.existing(name)?;
        let volume = store.resize(name, size, shrink).await?;
        Ok(describe(device, &volume))
    }

    async fn delete(&self, name: &VolumeName, snapshots: bool) -> Result<(), Failed> {
        let Located { store, .. } = self.existing(name)?;
        store.delete(name, snapshots).await?;
        self.directory.release(name);
        Ok(())
    }

    async fn detach(
        &self,
        name: &VolumeName,
        front: Option<FrontId>,
        force: bool,
    ) -> Result<VolumeInfo, Failed> {
        let Located { device, store, volume } = self.existing(name)?;
        if force {
            let volume = store.force_detach(name, front).await?;
            return Ok(describe(device, &volume));
        }
        let record = volume.record();
        let has_it = front.is_none_or(|front| record.attachments.has(front));
        if has_it {
            record.check_detached(
                "stop that front; if it will not come back, use `--force`: what it has not flushed \
                 is lost then",
            )?;
        }
        Ok(describe(device, &volume))
    }

    pub(crate) fn existing(&self, name: &VolumeName) -> Result<Located<'_, D>, Failed> {
        self.find(name).ok_or_else(|| StoreError::Unknown(name.clone()).into())
    }
}

pub(crate) fn describe<D: Device>(device: &str, volume: &Volume<D>) -> VolumeInfo {
    let record = volume.record();
    let attachments = record.attachments.iter().map(|(access, attachment)| {
        let hold = volume.hold_of(attachment.front);
        AttachmentInfo {
            front: attachment.front.to_string(),
            access: access.into(),
            connected: hold.is_some(),
            key: hold.and_then(|hold| hold.key()).map(|key| key.to_string()),
        }
    });
    VolumeInfo {
        name: record.name.to_string(),
        // Printed as a front's identity is: both are UUIDs.
        id: FrontId(record.id.0).to_string(),
        device: device.to_owned(),
        size: Size(record.blocks.bytes()),
        read_only: record.read_only,
        generation: record.generation,
        extents: record.extents.len(),
        domain: volume.domain(),
        importing: record.provenance.coming.is_some(),
        attachments: attachments.collect(),
        hooks: hooked::describe(&volume.hooks),
    }
}
