//! The volumes of one device: made, resized, deleted. The device holds raw
//! volumes, or is a pool as a whole.

mod error;
mod pools;
mod resets;
mod snapshots;
mod streams;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::unit::{BLOCK_SIZE, BlockCount};
use block_core::{Device, Time};
use interpose::layout::provenance::Provenance;
use link::VolumeName;
use nvme::HealthLog;
use tracing::{error, info};

use crate::attachments::Attachments;
use crate::attributes::Attributes;
use crate::catalog::{CommitError, OpenError};
use crate::config::PoolConfig;
use crate::layout::{DeviceId, VolumeId, VolumeRecord};
use crate::pooled::{Opening, Pooled};
use crate::raw::Raw;
use crate::remembered::Rollback;
use crate::room::Life;
use crate::size::Size;
use crate::unlock::Unlock;
use crate::volume::{Backing, Volume};
pub use error::StoreError;
use resets::Resets;
pub use snapshots::DIFF_RANGES;
pub use streams::{Arriving, BeginImport, Transfers};

/// The domain of volumes that name none.
pub const DEFAULT_DOMAIN: &str = "default";

/// What a store works with.
pub struct Means<D> {
    /// What people call the device.
    pub name: String,
    /// The device, as it is since its last reset.
    pub device: RefCell<Rc<D>>,
    /// For requests that change a part of a block and bring no buffer.
    pub scratch: Rc<block_core::Scratch>,
    /// Where identities come from.
    pub chance: block_core::Chance,
    /// Seconds since 1970.
    pub wall: fn() -> u64,
    /// Buffers of one block: one to look for a pool, and all that one needs
    /// if something unlocks it.
    pub pages: block_core::Pool,
    /// Buffers in which a catalog is worked on, of [`DESK_BYTES`] or more; one
    /// is free for this device.
    ///
    /// [`DESK_BYTES`]: crate::catalog::DESK_BYTES
    pub desks: block_core::Pool,
    /// What streams go through.
    pub transfers: Transfers,
    /// What unlocks a pool.
    pub unlock: Option<Unlock>,
    /// How a pool is served.
    pub pool: PoolConfig,
    /// What is done about a pool that was set back.
    pub rollback: Rollback,
}

impl<D> Means<D> {
    /// The device, as it is since its last reset.
    #[must_use]
    pub fn device(&self) -> Rc<D> {
        Rc::clone(&self.device.borrow())
    }
}

/// A device with volumes.
pub struct Store<D> {
    means: Means<D>,
    resets: Resets<D>,
    /// What the device has last said about itself.
    health: Cell<Option<HealthLog>>,
    /// Commands that it did not answer in time.
    late: Cell<u64>,
    keeper: RefCell<Keeper<D>>,
    volumes: RefCell<Vec<Rc<Volume<D>>>>,
    /// Names of volumes that are being made, or that may be there.
    reserved: RefCell<Vec<VolumeName>>,
}

/// Where the records of volumes are kept.
enum Keeper<D> {
    /// In a catalog beside them.
    Raw(Rc<Raw<D>>),
    /// In the pool that they lie in.
    Pool(Rc<Pooled<D>>),
    /// In a pool that is not open, and why.
    Locked(String),
    /// Nowhere: a pool was to be made, and why there is none.
    Unmade(String),
    /// The device is being made a pool.
    Changing,
    /// Nowhere: the device is being reset or was given up, as this says.
    Down(String),
}

impl<D> Clone for Keeper<D> {
    fn clone(&self) -> Self {
        match self {
            Self::Raw(raw) => Self::Raw(Rc::clone(raw)),
            Self::Pool(pool) => Self::Pool(Rc::clone(pool)),
            Self::Locked(why) => Self::Locked(why.clone()),
            Self::Unmade(why) => Self::Unmade(why.clone()),
            Self::Changing => Self::Changing,
            Self::Down(why) => Self::Down(why.clone()),
        }
    }
}

impl<D: Device + 'static> Store<D> {
    /// Opens a device: a pool, if there is one on it, else as
    /// [`Raw::open`] says, to which `formatting` goes. A pool that
    /// does not open is kept as it is, and says why. The lives are the pool's
    /// background, to be begun.
    ///
    /// # Errors
    /// A sentence about the device.
    pub async fn open(
        means: Means<D>,
        formatting: crate::catalog::Formatting,
    ) -> Result<(Self, Vec<Life>), OpenError> {
        let (mut volumes, mut lives) = (Vec::new(), Vec::new());
        let resets = Resets::new(&means);
        let opening = Pooled::open(&means).await;
        let keeper = match opening {
            Opening::Open(pool) => {
                lives = pool.lives();
                for found in pool.volumes() {
                    let volume = Volume::pooled(found, &means.scratch, means.chance.number());
                    volumes.push(Rc::new(volume));
                }
                Keeper::Pool(Rc::new(pool))
            }
            Opening::Locked(why) => {
                error!(device = %means.name, "the pool is not served: {why}");
                Keeper::Locked(why)
            }
            Opening::NoPool => {
                let (device, fresh) = (means.device(), DeviceId(means.chance.id()));
                let desk = means.desks.take().expect("one is free for each device");
                let (raw, found) = Raw::open(Rc::clone(&device), desk, formatting, fresh).await?;
                for (place, record) in found {
                    let verifier = means.chance.number();
                    let volume = Volume::raw(place, record, &device, &means.scratch, verifier);
                    volumes.push(Rc::new(volume));
                }
                Keeper::Raw(Rc::new(raw))
            }
        };
        let volumes = RefCell::new(volumes);
        let (keeper, reserved) = (RefCell::new(keeper), RefCell::default());
        let (health, late) = (Cell::new(None), Cell::new(0));
        Ok((Self { means, resets, health, late, keeper, volumes, reserved }, lives))
    }

    /// So many commands more were not answered in time.
    pub fn note_late(&self, commands: u64) {
        self.late.set(self.late.get() + commands);
    }

    /// How many commands were not answered in time.
    #[must_use]
    pub fn late_commands(&self) -> u64 {
        self.late.get()
    }

    /// The device has said how it is.
    pub fn note_health(&self, log: HealthLog) {
        self.health.set(Some(log));
    }

    /// What the device has last said about itself.
    #[must_use]
    pub fn health(&self) -> Option<HealthLog> {
        self.health.get()
    }

    /// What the device has for volumes that nobody uses.
    #[must_use]
    pub fn free(&self) -> BlockCount {
        match self.keeper() {
            Keeper::Raw(raw) => raw.free(),
            Keeper::Pool(pool) => pool.free(),
            Keeper::Locked(_) | Keeper::Unmade(_) | Keeper::Changing | Keeper::Down(_) => {
                BlockCount(0)
            }
        }
    }

    /// The device's size.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        self.means.device().blocks()
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
        domain: Option<&str>,
    ) -> Result<Rc<Volume<D>>, StoreError> {
        let blocks = whole_blocks(size)?;
        let keeper = self.keeper();
        let verifier = self.means.chance.number();
        self.reserve(&name)?;
        let made = async {
            match keeper {
                Keeper::Raw(_) if domain.is_some() => {
                    Err(StoreError::NoDomain(self.means.name.clone()))
                }
                Keeper::Raw(raw) => {
                    let record = VolumeRecord {
                        id: VolumeId(self.means.chance.id()),
                        name: name.clone(),
                        blocks,
                        read_only,
                        generation: 1,
                        order_epoch: 0,
                        extents: Vec::new(),
                        attachments: Attachments::None,
                        settings: Vec::new(),
                        provenance: Provenance::default(),
                    };
                    let (place, record) = raw.create(record).await?;
                    let (device, scratch) = (self.means.device(), &self.means.scratch);
                    Ok(Volume::raw(place, record, &device, scratch, verifier))
                }
                Keeper::Pool(pool) => {
                    let attributes = Attributes::fresh(read_only);
                    let domain = domain.unwrap_or(DEFAULT_DOMAIN);
                    let found = pool.create(&name, blocks, domain, attributes).await?;
                    Ok(Volume::pooled(found, &self.means.scratch, verifier))
                }
                Keeper::Locked(why) | Keeper::Unmade(why) | Keeper::Down(why) => {
                    Err(StoreError::Locked(why))
                }
                Keeper::Changing => Err(StoreError::Changing),
            }
        };
        let volume = self.add(&name, made.await)?;
        info!(%name, %size, "volume created");
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
        old.check_whole()?;
        let shrinks = to < old.blocks;
        if shrinks {
            if !shrink {
                let (name, from) = (name.clone(), old.blocks);
                return Err(StoreError::WouldShrink { name, from, to });
            }
            old.check_detached("detach it before it is made smaller")?;
            volume.revoke(|_| true).await;
        } else if to == old.blocks {
            return Ok(Rc::clone(&volume));
        }
        match (volume.requests.below(), self.keeper()) {
            (Backing::Raw { place, .. }, Keeper::Raw(raw)) if shrinks => {
                let (record, gone) = raw.shrink(*place, old, to).await?;
                volume.follow(record);
                raw.discard(&gone).await;
            }
            (Backing::Raw { place, .. }, Keeper::Raw(raw)) => {
                volume.follow(raw.grow(*place, old, to).await?);
            }
            (Backing::Pool(blocks), Keeper::Pool(pool)) => {
                let blocks = blocks.get().ok_or(StoreError::Changing)?;
                pool.resize(&blocks, to, &Attributes::of(&old)).await?;
                volume.follow(VolumeRecord { blocks: to, ..old });
            }
            _ => return Err(self.not_now()),
        }
        Ok(Rc::clone(&volume))
    }

    /// Deletes a volume that nobody has; with its snapshots only if that was
    /// asked for.
    ///
    /// # Errors
    /// A [`StoreError`]; then the volume is still there.
    pub async fn delete(&self, name: &VolumeName, snapshots: bool) -> Result<(), StoreError> {
        let volume = self.volume(name)?;
        volume.interrupt_import();
        let _change = volume.change.lock().await;
        let record = self.existing(&volume)?;
        let remedy = "stop that front, or detach it by force, before the volume is deleted";
        record.check_detached(remedy)?;
        let mut gone = None;
        match (volume.requests.below(), self.keeper()) {
            (Backing::Raw { place, .. }, Keeper::Raw(raw)) => {
                volume.revoke(|_| true).await;
                raw.delete(*place).await?;
                gone = Some(raw);
            }
            (Backing::Pool(blocks), Keeper::Pool(pool)) => {
                let blocks = &*blocks.get().ok_or(StoreError::Changing)?;
                let found = pool.snapshots(blocks);
                if !found.is_empty() && !snapshots {
                    let (name, count) = (name.clone(), found.len());
                    return Err(StoreError::HasSnapshots { name, count });
                }
                volume.revoke(|_| true).await;
                pool.delete(blocks).await?;
            }
            _ => return Err(self.not_now()),
        }
        volume.mark_deleted();
        self.volumes.borrow_mut().retain(|here| !Rc::ptr_eq(here, &volume));
        info!(%name, "volume deleted");
        if let Some(raw) = gone {
            raw.discard(&record.extents).await;
        }
        Ok(())
    }

    /// What is stored about a volume, if it is still there.
    pub(crate) fn existing(&self, volume: &Volume<D>) -> Result<VolumeRecord, StoreError> {
        let record = volume.record();
        if volume.is_deleted() { Err(StoreError::Unknown(record.name)) } else { Ok(record) }
    }

    /// Stores a volume's changed record, except for its size and place, and
    /// serves accordingly.
    pub(crate) async fn commit(
        &self,
        volume: &Volume<D>,
        record: VolumeRecord,
    ) -> Result<(), CommitError> {
        match (volume.requests.below(), self.keeper()) {
            (Backing::Raw { place, .. }, Keeper::Raw(raw)) => {
                raw.commit(*place, record.clone()).await?;
            }
            (Backing::Pool(blocks), Keeper::Pool(pool)) => {
                let lost = CommitError::Unchanged(block_core::BlockError::Lost);
                let blocks = blocks.get().ok_or(lost)?;
                pool.commit(&blocks, &Attributes::of(&record)).await?;
            }
            // Its device is being reset, or was given up.
            _ => return Err(CommitError::Unchanged(block_core::BlockError::Lost)),
        }
        volume.follow(record);
        Ok(())
    }

    /// A turn begins.
    pub fn tick(&self, now: Time) {
        if let Keeper::Pool(pool) = &*self.keeper.borrow() {
            pool.tick(now);
        }
    }

    /// When a turn is wanted although nothing has come.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        match &*self.keeper.borrow() {
            Keeper::Pool(pool) => pool.deadline(),
            Keeper::Raw(_)
            | Keeper::Locked(_)
            | Keeper::Unmade(_)
            | Keeper::Changing
            | Keeper::Down(_) => None,
        }
    }

    fn keeper(&self) -> Keeper<D> {
        self.keeper.borrow().clone()
    }

    /// Takes a name for a volume that is about to be made.
    fn reserve(&self, name: &VolumeName) -> Result<(), StoreError> {
        let mut reserved = self.reserved.borrow_mut();
        if reserved.contains(name) || self.volume(name).is_ok() {
            return Err(StoreError::Exists(name.clone()));
        }
        reserved.push(name.clone());
        Ok(())
    }

    /// Takes a volume in that was made under a reserved name.
    fn add(
        &self,
        name: &VolumeName,
        made: Result<Volume<D>, StoreError>,
    ) -> Result<Rc<Volume<D>>, StoreError> {
        // One that may be there after a restart keeps its name until then.
        if !matches!(made, Err(StoreError::Commit(CommitError::Unknown(_)))) {
            self.reserved.borrow_mut().retain(|reserved| reserved != name);
        }
        let volume = Rc::new(made?);
        self.volumes.borrow_mut().push(Rc::clone(&volume));
        Ok(volume)
    }
}

fn whole_blocks(size: Size) -> Result<BlockCount, StoreError> {
    if size.0 == 0 || !size.0.is_multiple_of(BLOCK_SIZE as u64) {
        return Err(StoreError::BadSize(size.0));
    }
    Ok(BlockCount::in_bytes(size.0))
}
