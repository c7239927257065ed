//! Volumes: made, resized, deleted.

use std::rc::Rc;

use block_core::{BlockCount, Device, Lba, LbaRange};

use super::{Pool, PoolError, check_name};
use crate::layout::control::{Control, MAX_ATTRIBUTES, VolumeId};
use crate::layout::node::VolumeRecord;
use crate::layout::record::MAX_VOLUME_BLOCKS;
use crate::layout::{DomainId, LineId};
use crate::volume::Volume;

/// A volume of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Its identity.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// Its size.
    pub blocks: BlockCount,
    /// Whose key.
    pub domain: DomainId,
    /// The domain's name.
    pub domain_name: String,
    /// What the server keeps with it.
    pub attributes: Vec<u8>,
    /// How many snapshots it has.
    pub snapshots: usize,
}

impl<D: Device + 'static> Pool<D> {
    /// All volumes, by name.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeStatus> {
        let records: Vec<Rc<VolumeRecord>> = {
            let state = self.core.state.borrow();
            state.catalog.volumes().cloned().collect()
        };
        let mut volumes: Vec<VolumeStatus> =
            records.iter().map(|record| self.status(record)).collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        volumes
    }

    /// What there is to know of a volume.
    #[must_use]
    pub fn volume_status(&self, id: VolumeId) -> Option<VolumeStatus> {
        let record = self.core.state.borrow().catalog.volume(id).cloned()?;
        Some(self.status(&record))
    }

    fn status(&self, record: &VolumeRecord) -> VolumeStatus {
        let snapshots = self.core.state.borrow().catalog.snapshots(record.id).len();
        VolumeStatus {
            id: record.id,
            name: record.name.clone(),
            blocks: record.blocks,
            domain: record.domain,
            domain_name: self.domain_name(record.domain),
            attributes: record.attributes.clone(),
            snapshots,
        }
    }

    /// The volume of that name, to be served.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<Rc<Volume<D>>> {
        let id = self.core.state.borrow().catalog.volume_named(name)?.id;
        Some(self.in_use(id))
    }

    /// The one that everybody shares who uses it.
    pub(super) fn in_use(&self, id: VolumeId) -> Rc<Volume<D>> {
        let mut in_use = self.in_use.borrow_mut();
        if let Some(volume) = in_use.get(&id).and_then(std::rc::Weak::upgrade) {
            return volume;
        }
        let volume = Rc::new(Volume::new(&self.core, id));
        in_use.insert(id, Rc::downgrade(&volume));
        in_use.retain(|_, volume| volume.strong_count() > 0);
        volume
    }

    /// Makes a volume that reads as zero. `domain` is made if it is not there.
    ///
    /// # Errors
    /// A [`PoolError`]; then there is no such volume.
    pub async fn create_volume(
        &self,
        name: &str,
        blocks: BlockCount,
        domain: &str,
        attributes: Vec<u8>,
    ) -> Result<VolumeId, PoolError> {
        let _changing = self.changing.lock().await;
        self.check_new_volume(name)?;
        check_size(blocks)?;
        check_attributes(&attributes)?;
        let domain = self.domain(domain).await?;
        let (id, line) = (self.new_id(), self.next_line()?);
        let name = name.to_owned();
        self.commit(Control::Create { line, id, domain, blocks, name, attributes }).await?;
        Ok(id)
    }

    /// Replaces what the server keeps with a volume; durable when this
    /// returns.
    ///
    /// # Errors
    /// A [`PoolError`]; then it is as it was, or the pool takes no changes any
    /// more.
    pub async fn set_attributes(&self, id: VolumeId, attributes: Vec<u8>) -> Result<(), PoolError> {
        let _changing = self.changing.lock().await;
        self.record(id)?;
        check_attributes(&attributes)?;
        self.commit(Control::Attributes { id, attributes }).await
    }

    /// Gives a volume another size. What it grows by reads as zero; what it
    /// loses is freed.
    ///
    /// # Errors
    /// A [`PoolError`]; then the volume is as it was, but may have lost what
    /// lies behind a smaller size.
    pub async fn resize_volume(
        &self,
        id: VolumeId,
        blocks: BlockCount,
        attributes: Vec<u8>,
    ) -> Result<(), PoolError> {
        let _changing = self.changing.lock().await;
        let old = self.record(id)?.blocks;
        check_size(blocks)?;
        check_attributes(&attributes)?;
        let volume = self.in_use(id);
        let _drained = volume.drain().await;
        if blocks < old {
            let range = LbaRange { start: Lba(blocks.0), count: BlockCount(old.0 - blocks.0) };
            volume.clear_drained(range).await?;
        }
        self.commit(Control::Resize { id, blocks, attributes }).await
    }

    /// Deletes a volume that has no snapshots. Its space comes back in the
    /// background.
    ///
    /// # Errors
    /// A [`PoolError`]; then it is still there.
    pub async fn delete_volume(&self, id: VolumeId) -> Result<(), PoolError> {
        let _changing = self.changing.lock().await;
        let record = self.record(id)?;
        let snapshots = self.core.state.borrow().catalog.snapshots(id).len();
        if snapshots > 0 {
            return Err(PoolError::HasSnapshots { name: record.name.clone(), snapshots });
        }
        let _drained = self.in_use(id).drain().await;
        self.commit(Control::DeleteVolume { id }).await?;
        self.core.checkpoints.want();
        Ok(())
    }

    pub(super) fn record(&self, id: VolumeId) -> Result<Rc<VolumeRecord>, PoolError> {
        let found = self.core.state.borrow().catalog.volume(id).cloned();
        found.ok_or_else(|| PoolError::Unknown { what: "volume", name: hexadecimal(id) })
    }

    pub(super) fn check_new_volume(&self, name: &str) -> Result<(), PoolError> {
        check_name(name)?;
        match self.core.state.borrow().catalog.volume_named(name) {
            Some(_) => Err(PoolError::Exists { what: "volume", name: name.to_owned() }),
            None => Ok(()),
        }
    }

    pub(super) fn new_id(&self) -> VolumeId {
        VolumeId(self.core.chance.id())
    }

    pub(super) fn next_line(&self) -> Result<LineId, PoolError> {
        let line = self.core.state.borrow().catalog.next_line();
        if line <= LineId::MAX { Ok(line) } else { Err(PoolError::TooMany("volumes and clones")) }
    }
}

fn check_size(blocks: BlockCount) -> Result<(), PoolError> {
    match blocks.0 {
        1..=MAX_VOLUME_BLOCKS => Ok(()),
        _ => Err(PoolError::BadSize(blocks)),
    }
}

pub(super) fn check_attributes(attributes: &[u8]) -> Result<(), PoolError> {
    if attributes.len() <= MAX_ATTRIBUTES { Ok(()) } else { Err(PoolError::Attributes) }
}

fn hexadecimal(id: VolumeId) -> String {
    id.0.iter().map(|byte| format!("{byte:02x}")).collect()
}
