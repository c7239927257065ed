//! What is asked about streams: one bounded step each.

use block_core::{Device, Lba};
use interpose::layout::stream::{About, Manifest};
use interpose::pool::Exported;
use link::VolumeName;

use super::{Answer, Failed};
use crate::room::{Located, Room};
use crate::store::{Arriving, BeginImport, StoreError};

/// Something about streams that a worker is asked to do.
#[derive(Debug)]
pub enum StreamErrand {
    /// Say what a stream would say of itself.
    Manifest {
        /// Of which volume.
        volume: VolumeName,
        /// Which snapshot.
        name: VolumeName,
        /// Only what it has other than this one.
        base: Option<VolumeName>,
        /// Where to.
        answer: Answer<Manifest>,
    },
    /// Read what a stream holds.
    Export {
        /// Of which volume.
        volume: VolumeName,
        /// Which snapshot.
        name: VolumeName,
        /// Only what it has other than this one.
        base: Option<VolumeName>,
        /// What they were when the stream began.
        about: About,
        /// From which block on.
        from: Lba,
        /// Where to.
        answer: Answer<Exported>,
    },
    /// Begin to import a stream, or go on with it.
    Begin {
        /// On which device, if the volume is to be made.
        device: Option<String>,
        /// What comes.
        import: BeginImport,
        /// Where to: up to which block it has come.
        answer: Answer<Lba>,
    },
    /// Write what comes next.
    Put {
        /// Into which volume.
        volume: VolumeName,
        /// What comes.
        step: Arriving,
        /// Where to: up to which block it has come then.
        answer: Answer<Lba>,
    },
    /// All has come.
    End {
        /// Into which volume.
        volume: VolumeName,
        /// Of which stream.
        about: About,
        /// What the snapshot is called.
        name: VolumeName,
        /// Whether a writer may have lost writes before it was taken.
        as_is: bool,
        /// Where to.
        answer: Answer<()>,
    },
}

pub(super) async fn run<D: Device + 'static>(room: &Room<D>, errand: StreamErrand) {
    match errand {
        StreamErrand::Manifest { volume, name, base, answer } => {
            let _ = answer.send(room.manifest(&volume, &name, base.as_ref()).await);
        }
        StreamErrand::Export { volume, name, base, about, from, answer } => {
            let _ = answer.send(room.export(&volume, &name, base.as_ref(), &about, from).await);
        }
        StreamErrand::Begin { device, import, answer } => {
            let _ = answer.send(room.begin_import(device.as_deref(), &import).await);
        }
        StreamErrand::Put { volume, step, answer } => {
            let _ = answer.send(room.put(&volume, &step).await);
        }
        StreamErrand::End { volume, about, name, as_is, answer } => {
            let _ = answer.send(room.end_import(&volume, &about, &name, as_is).await);
        }
    }
}

impl<D: Device + 'static> Room<D> {
    async fn manifest(
        &self,
        volume: &VolumeName,
        name: &VolumeName,
        base: Option<&VolumeName>,
    ) -> Result<Manifest, Failed> {
        let Located { store, volume, .. } = self.existing(volume)?;
        Ok(store.manifest(&volume, name, base).await?)
    }

    async fn export(
        &self,
        volume: &VolumeName,
        name: &VolumeName,
        base: Option<&VolumeName>,
        about: &About,
        from: Lba,
    ) -> Result<Exported, Failed> {
        let Located { store, volume, .. } = self.existing(volume)?;
        Ok(store.export(&volume, name, base, about, from).await?)
    }

    async fn begin_import(
        &self,
        device: Option<&str>,
        import: &BeginImport,
    ) -> Result<Lba, Failed> {
        if let Some(Located { device: on, store, volume }) = self.find(&import.volume) {
            if device.is_some_and(|device| device != on) {
                return Err(StoreError::Exists(import.volume.clone()).into());
            }
            return Ok(store.begin_import(&volume, import).await?);
        }
        let unknown = || StoreError::Unknown(import.volume.clone());
        let store = self.store(device.ok_or_else(unknown)?)?;
        self.under_name(&import.volume, store.create_for_import(import)).await?;
        Ok(Lba(0))
    }

    async fn put(&self, volume: &VolumeName, step: &Arriving) -> Result<Lba, Failed> {
        let Located { store, volume, .. } = self.existing(volume)?;
        Ok(store.put(&volume, step).await?)
    }

    async fn end_import(
        &self,
        volume: &VolumeName,
        about: &About,
        name: &VolumeName,
        as_is: bool,
    ) -> Result<(), Failed> {
        let Located { store, volume, .. } = self.existing(volume)?;
        Ok(store.end_import(&volume, about, name, as_is).await?)
    }
}
