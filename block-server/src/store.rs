//! The volumes of one device: made, resized, deleted.

use std::cell::RefCell;
use std::rc::Rc;

use block_core::unit::{BLOCK_SIZE, BlockCount};
use block_core::{BlockError, Buffer, Chance, Device, Scratch};
use link::{FrontId, VolumeName};
use thiserror::Error;
use tracing::info;

use crate::attachments::Attachments;
use crate::catalog::{CommitError, Formatting, OpenError};
use crate::layout::{DeviceId, PLACES, VolumeId, VolumeRecord};
use crate::raw::Raw;
use crate::size::Size;
use crate::space::NoSpace;
use crate::volume::Volume;

/// Why a volume could not be changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The name is taken.
    #[error("there is a volume '{0}' already; choose another name or delete that one")]
    Exists(VolumeName),
    /// There is none of that name.
    #[error("there is no volume '{0}'; `vrio volume list` shows what there is")]
    Unknown(VolumeName),
    /// All places are taken.
    #[error("the device has {PLACES} volumes, which is all it can have; delete one")]
    TooMany,
    /// The size is no size for a volume.
    #[error("a volume's size is a multiple of {BLOCK_SIZE} bytes and not zero; {0} is not")]
    BadSize(u64),
    /// The space cannot be had.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// Somebody has it.
    #[error("volume '{name}' is attached by {who}; {remedy}")]
    Attached {
        /// Which volume.
        name: VolumeName,
        /// Who has it.
        who: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// It would lose its end.
    #[error(
        "volume '{name}' has {}, and shrinking it to {} cuts off what lies there; if that is wanted, \
         say so (`--shrink`)", Size(.from.bytes()), Size(.to.bytes())
    )]
    WouldShrink {
        /// Which volume.
        name: VolumeName,
        /// Its size.
        from: BlockCount,
        /// The size that was asked for.
        to: BlockCount,
    },
    /// The front does not have it.
    #[error("front {front} does not have volume '{name}'")]
    NotAttached {
        /// Which volume.
        name: VolumeName,
        /// Which front.
        front: FrontId,
    },
    /// The device failed under it.
    #[error("{0}; check the device")]
    Device(BlockError),
    /// The catalog could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// A device with volumes.
#[derive(Debug)]
pub struct Store<D> {
    device: Rc<D>,
    raw: Raw<D>,
    scratch: Rc<Scratch>,
    chance: Chance,
    volumes: RefCell<Vec<Rc<Volume<D>>>>,
    /// Names of volumes that are being made, or that may be there.
    reserved: RefCell<Vec<VolumeName>>,
}

impl<D: Device> Store<D> {
    /// Opens a device; see [`Raw::open`] for `desk` and `formatting`.
    ///
    /// # Errors
    /// A sentence about the device.
    pub async fn open(
        device: Rc<D>,
        desk: Buffer,
        scratch: Rc<Scratch>,
        formatting: Formatting,
        chance: Chance,
    ) -> Result<Self, OpenError> {
        let fresh = DeviceId(chance.id());
        let (raw, found) = Raw::open(Rc::clone(&device), desk, formatting, fresh).await?;
        let volume = |(place, record)| {
            Rc::new(Volume::raw(place, record, &device, &scratch, chance.number()))
        };
        let volumes = RefCell::new(found.into_iter().map(volume).collect());
        Ok(Self { device, raw, scratch, chance, volumes, reserved: RefCell::default() })
    }

    /// Which formatting of which device this is.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.raw.id()
    }

    /// What the device has for volumes that nobody uses.
    #[must_use]
    pub fn free(&self) -> BlockCount {
        self.raw.free()
    }

    /// The device's size.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        self.device.blocks()
    }

    /// All volumes.
    #[must_use]
    pub fn volumes(&self) -> Vec<Rc<Volume<D>>> {
        self.volumes.borrow().clone()
    }

    /// Whether that volume is one of these.
    #[must_use]
    pub fn has(&self, volume: &Rc<Volume<D>>) -> bool {
        self.volumes.borrow().iter().any(|here| Rc::ptr_eq(here, volume))
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// [`StoreError::Unknown`].
    pub fn volume(&self, name: &VolumeName) -> Result<Rc<Volume<D>>, StoreError> {
        let volumes = self.volumes.borrow();
        let found = volumes.iter().find(|volume| volume.is_called(name)).cloned();
        found.ok_or_else(|| StoreError::Unknown(name.clone()))
    }

    /// Makes a volume that reads as zero.
    ///
    /// # Errors
    /// A [`StoreError`]; then there is no such volume.
    pub async fn create(
        &self,
        name: VolumeName,
        size: Size,
        read_only: bool,
    ) -> Result<Rc<Volume<D>>, StoreError> {
        let blocks = whole_blocks(size)?;
        self.reserve(&name)?;
        let record = VolumeRecord {
            id: VolumeId(self.chance.id()),
            name: name.clone(),
            blocks,
            read_only,
            generation: 1,
            order_epoch: 0,
            extents: Vec::new(),
            attachments: Attachments::None,
        };
        let made = self.raw.create(record).await;
        // One that may be there after a restart keeps its name until then.
        if !matches!(made, Err(StoreError::Commit(CommitError::Unknown(_)))) {
            self.reserved.borrow_mut().retain(|reserved| *reserved != name);
        }
        let (place, record) = made?;
        info!(%name, %size, "volume created");
        let verifier = self.chance.number();
        let volume = Rc::new(Volume::raw(place, record, &self.device, &self.scratch, verifier));
        self.volumes.borrow_mut().push(Rc::clone(&volume));
        Ok(volume)
    }

    /// Gives a volume another size. What it grows by reads as zero. It shrinks
    /// only when that was asked for and nobody has it.
    ///
    /// # Errors
    /// A [`StoreError`]; then the volume is as it was.
    pub async fn resize(
        &self,
        name: &VolumeName,
        size: Size,
        shrink: bool,
    ) -> Result<Rc<Volume<D>>, StoreError> {
        let to = whole_blocks(size)?;
        let volume = self.volume(name)?;
        let _change = volume.change.lock().await;
        let old = self.existing(&volume)?;
        if to < old.blocks {
            if !shrink {
                let (name, from) = (name.clone(), old.blocks);
                return Err(StoreError::WouldShrink { name, from, to });
            }
            old.check_detached("detach it before it is made smaller")?;
            volume.revoke(|_| true).await;
            let (record, gone) = self.raw.shrink(volume.place, old, to).await?;
            volume.follow(record);
            self.raw.discard(&gone).await;
        } else if to > old.blocks {
            volume.follow(self.raw.grow(volume.place, old, to).await?);
        }
        Ok(Rc::clone(&volume))
    }

    /// Deletes a volume that nobody has.
    ///
    /// # Errors
    /// A [`StoreError`]; then the volume is still there.
    pub async fn delete(&self, name: &VolumeName) -> Result<(), StoreError> {
        let volume = self.volume(name)?;
        let _change = volume.change.lock().await;
        let record = self.existing(&volume)?;
        let remedy = "stop that front, or detach it by force, before the volume is deleted";
        record.check_detached(remedy)?;
        volume.revoke(|_| true).await;
        self.raw.delete(volume.place).await?;
        volume.mark_deleted();
        self.volumes.borrow_mut().retain(|here| !Rc::ptr_eq(here, &volume));
        info!(%name, "volume deleted");
        self.raw.discard(&record.extents).await;
        Ok(())
    }

    /// What is stored about a volume, if it is still there.
    pub(crate) fn existing(&self, volume: &Volume<D>) -> Result<VolumeRecord, StoreError> {
        let record = volume.record();
        if volume.is_deleted() { Err(StoreError::Unknown(record.name)) } else { Ok(record) }
    }

    /// Stores a volume's changed record and serves accordingly.
    pub(crate) async fn commit(
        &self,
        volume: &Volume<D>,
        record: VolumeRecord,
    ) -> Result<(), CommitError> {
        self.raw.commit(volume.place, record.clone()).await?;
        volume.follow(record);
        Ok(())
    }

    fn reserve(&self, name: &VolumeName) -> Result<(), StoreError> {
        let mut reserved = self.reserved.borrow_mut();
        if reserved.contains(name) || self.volume(name).is_ok() {
            return Err(StoreError::Exists(name.clone()));
        }
        reserved.push(name.clone());
        Ok(())
    }
}

fn whole_blocks(size: Size) -> Result<BlockCount, StoreError> {
    if size.0 == 0 || !size.0.is_multiple_of(BLOCK_SIZE as u64) {
        return Err(StoreError::BadSize(size.0));
    }
    Ok(BlockCount::in_bytes(size.0))
}
