//! The raw volumes of one device: made, resized, deleted.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::unit::{BLOCK_SIZE, BlockCount, Extent, Pba};
use block_core::{BlockError, Buffer, Chance, Device, Ordered, Scratch};
use link::{FrontId, VolumeName};
use thiserror::Error;
use tracing::info;

use crate::attachments::Attachments;
use crate::catalog::{Catalog, CommitError, Formatting, OpenError};
use crate::hold::Hold;
use crate::layout::{
    DATA_START, DeviceId, MAX_EXTENTS, PLACES, UNIT_BLOCKS, VolumeId, VolumeRecord,
};
use crate::size::Size;
use crate::space::{NoSpace, Space};
use crate::volume::{RawVolume, zero_extent};

/// Most blocks that one command deallocates: a bound on how long it keeps a
/// device from other work (16 MiB).
const DISCARD_BLOCKS: u64 = 4 * 1024;

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
    catalog: Catalog<D>,
    scratch: Rc<Scratch>,
    chance: Chance,
    space: RefCell<Space>,
    places: RefCell<Vec<Place<D>>>,
}

#[derive(Debug)]
enum Place<D> {
    Free,
    /// A volume of this name is being made.
    Reserved(VolumeName),
    Taken(Rc<Volume<D>>),
}

/// A volume that is there.
#[derive(Debug)]
pub struct Volume<D> {
    /// What serves its requests.
    pub requests: Ordered<RawVolume<D>>,
    place: usize,
    record: RefCell<VolumeRecord>,
    /// Held by whoever changes the record: one at a time, in order of arrival.
    pub(crate) change: tokio::sync::Mutex<()>,
    deleted: Cell<bool>,
    /// Whether this run of the server has its own order epoch.
    pub(crate) has_epoch: Cell<bool>,
    pub(crate) holds: RefCell<Vec<Rc<Hold>>>,
}

impl<D> Volume<D> {
    /// What is stored about it.
    #[must_use]
    pub fn record(&self) -> VolumeRecord {
        self.record.borrow().clone()
    }

    /// Whether a session of `front` holds it now.
    #[must_use]
    pub fn is_held_by(&self, front: FrontId) -> bool {
        let holds = self.holds.borrow();
        holds.iter().any(|hold| hold.front() == front && !hold.is_revoked())
    }

    /// Ends a session's hold without asking the front: the session is over.
    /// What is stored stays. While its requests run, whoever changes who has
    /// the volume finds it, to wait for them.
    pub fn forget(&self, hold: &Rc<Hold>) {
        hold.revoke();
        self.holds.borrow_mut().retain(|held| !(held.is_revoked() && held.is_idle()));
    }

    /// Takes holds away and waits for the last of their requests. The caller
    /// holds `change`.
    pub(crate) async fn revoke(&self, which: impl Fn(&Hold) -> bool) {
        let revoked: Vec<Rc<Hold>> =
            self.holds.borrow().iter().filter(|hold| which(hold)).cloned().collect();
        revoked.iter().for_each(|hold| hold.revoke());
        for hold in revoked {
            hold.drained().await;
            self.holds.borrow_mut().retain(|held| !Rc::ptr_eq(held, &hold));
        }
    }
}

impl<D: Device> Store<D> {
    /// Opens a device; see [`Catalog::open`] for `desk` and `formatting`.
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
        let catalog = Catalog::open(Rc::clone(&device), desk, formatting, fresh).await?;
        let mut space = Space::new(DATA_START, Pba(device.blocks().0));
        let mut places: Vec<Place<D>> = (0..PLACES).map(|_| Place::Free).collect();
        let mut names: Vec<VolumeName> = Vec::new();
        for (at, record) in catalog.volumes() {
            if let Some(extent) = record.extents.iter().find(|&&extent| !space.claim(extent)) {
                return Err(OpenError::Contradiction(format!(
                    "blocks {}..{} of volume '{}' lie outside of the device or in another volume",
                    extent.start.0,
                    extent.end().0,
                    record.name
                )));
            }
            if names.contains(&record.name) {
                return Err(OpenError::Contradiction(format!("two are called '{}'", record.name)));
            }
            names.push(record.name.clone());
            let volume = Volume::new(at, record, &device, &scratch, chance.number());
            places[at] = Place::Taken(Rc::new(volume));
        }
        let (space, places) = (RefCell::new(space), RefCell::new(places));
        Ok(Self { device, catalog, scratch, chance, space, places })
    }

    /// Which formatting of which device this is.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.catalog.id()
    }

    /// What the device has for volumes that nobody uses.
    #[must_use]
    pub fn free(&self) -> BlockCount {
        self.space.borrow().free()
    }

    /// The device's size.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        self.device.blocks()
    }

    /// All volumes.
    #[must_use]
    pub fn volumes(&self) -> Vec<Rc<Volume<D>>> {
        let places = self.places.borrow();
        let taken = places.iter().filter_map(|place| match place {
            Place::Taken(volume) => Some(Rc::clone(volume)),
            Place::Free | Place::Reserved(_) => None,
        });
        taken.collect()
    }

    /// Whether that volume is one of these.
    #[must_use]
    pub fn has(&self, volume: &Rc<Volume<D>>) -> bool {
        let places = self.places.borrow();
        matches!(&places[volume.place], Place::Taken(taken) if Rc::ptr_eq(taken, volume))
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// [`StoreError::Unknown`].
    pub fn volume(&self, name: &VolumeName) -> Result<Rc<Volume<D>>, StoreError> {
        let found = self.volumes().into_iter().find(|volume| volume.record.borrow().name == *name);
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
        let place = self.reserve(&name)?;
        let taken = self.space.borrow_mut().take(blocks, None, MAX_EXTENTS);
        let extents = taken.inspect_err(|_| self.release(place))?;
        if let Err(error) = self.make_zero(&extents).await {
            self.give(&extents);
            self.release(place);
            return Err(StoreError::Device(error));
        }
        let record = VolumeRecord {
            id: VolumeId(self.chance.id()),
            name,
            blocks,
            read_only,
            generation: 1,
            order_epoch: 0,
            extents,
            attachments: Attachments::None,
        };
        if let Err(error) = self.catalog.commit(place, Some(record.clone())).await {
            if matches!(error, CommitError::Unchanged(_)) {
                self.give(&record.extents);
                self.release(place);
            }
            return Err(error.into());
        }
        info!(name = %record.name, size = %size, "volume created");
        let verifier = self.chance.number();
        let volume = Rc::new(Volume::new(place, record, &self.device, &self.scratch, verifier));
        self.places.borrow_mut()[place] = Place::Taken(Rc::clone(&volume));
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
            self.shrink(&volume, old, to).await?;
        } else if to > old.blocks {
            self.grow(&volume, old, to).await?;
        }
        Ok(Rc::clone(&volume))
    }

    async fn grow(
        &self,
        volume: &Volume<D>,
        old: VolumeRecord,
        to: BlockCount,
    ) -> Result<(), StoreError> {
        let room: u64 = old.extents.iter().map(|extent| extent.count.0).sum();
        let missing = BlockCount(to.0.saturating_sub(room));
        let pieces = MAX_EXTENTS - old.extents.len();
        let new = match missing.0 {
            0 => Vec::new(),
            _ => self.space.borrow_mut().take(missing, old.extents.last().copied(), pieces)?,
        };
        // Behind the volume's old end its last unit may hold what it held
        // before it shrank.
        let rest = old.extents.last().map(|last| {
            let count = BlockCount(room - old.blocks.0);
            Extent { start: Pba(last.end().0 - count.0), count }
        });
        let fresh: Vec<Extent> =
            rest.into_iter().filter(|rest| rest.count.0 > 0).chain(new.iter().copied()).collect();
        if let Err(error) = self.make_zero(&fresh).await {
            self.give(&new);
            return Err(StoreError::Device(error));
        }
        let mut extents = old.extents.clone();
        for &extent in &new {
            match extents.last_mut() {
                Some(last) if last.end() == extent.start => last.count.0 += extent.count.0,
                _ => extents.push(extent),
            }
        }
        let record = VolumeRecord { blocks: to, extents, ..old };
        if let Err(error) = self.commit(volume, record).await {
            if matches!(error, CommitError::Unchanged(_)) {
                self.give(&new);
            }
            return Err(error.into());
        }
        Ok(())
    }

    async fn shrink(
        &self,
        volume: &Volume<D>,
        old: VolumeRecord,
        to: BlockCount,
    ) -> Result<(), StoreError> {
        let remedy = "detach it before it is made smaller";
        old.check_detached(remedy)?;
        volume.revoke(|_| true).await;
        let mut keep = to.0.div_ceil(UNIT_BLOCKS) * UNIT_BLOCKS;
        let (mut extents, mut gone) = (Vec::new(), Vec::new());
        for &extent in &old.extents {
            let kept = extent.count.0.min(keep);
            keep -= kept;
            if kept > 0 {
                extents.push(Extent { start: extent.start, count: BlockCount(kept) });
            }
            if kept < extent.count.0 {
                let start = Pba(extent.start.0 + kept);
                gone.push(Extent { start, count: BlockCount(extent.count.0 - kept) });
            }
        }
        self.commit(volume, VolumeRecord { blocks: to, extents, ..old }).await?;
        self.discard(&gone).await;
        Ok(())
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
        self.catalog.commit(volume.place, None).await?;
        volume.deleted.set(true);
        self.places.borrow_mut()[volume.place] = Place::Free;
        info!(%name, "volume deleted");
        self.discard(&record.extents).await;
        Ok(())
    }

    /// What is stored about a volume, if it is still there.
    pub(crate) fn existing(&self, volume: &Volume<D>) -> Result<VolumeRecord, StoreError> {
        let record = volume.record();
        if volume.deleted.get() { Err(StoreError::Unknown(record.name)) } else { Ok(record) }
    }

    /// Stores a volume's changed record and serves accordingly.
    pub(crate) async fn commit(
        &self,
        volume: &Volume<D>,
        record: VolumeRecord,
    ) -> Result<(), CommitError> {
        self.catalog.commit(volume.place, Some(record.clone())).await?;
        if record.blocks != volume.requests.blocks() {
            volume.requests.below().remap(record.blocks, &record.extents);
        }
        *volume.record.borrow_mut() = record;
        Ok(())
    }

    fn reserve(&self, name: &VolumeName) -> Result<usize, StoreError> {
        let mut places = self.places.borrow_mut();
        let taken = places.iter().any(|place| match place {
            Place::Free => false,
            Place::Reserved(other) => other == name,
            Place::Taken(volume) => volume.record.borrow().name == *name,
        });
        if taken {
            return Err(StoreError::Exists(name.clone()));
        }
        let free = places.iter().position(|place| matches!(place, Place::Free));
        let free = free.ok_or(StoreError::TooMany)?;
        places[free] = Place::Reserved(name.clone());
        Ok(free)
    }

    fn release(&self, place: usize) {
        self.places.borrow_mut()[place] = Place::Free;
    }

    fn give(&self, extents: &[Extent]) {
        let mut space = self.space.borrow_mut();
        extents.iter().for_each(|&extent| space.give(extent));
    }

    /// Makes space zero, durably, before a record names it: whatever was there
    /// belonged to others.
    async fn make_zero(&self, extents: &[Extent]) -> Result<(), BlockError> {
        for &extent in extents {
            zero_extent(&*self.device, extent, true).await?;
        }
        self.device.flush().await
    }

    /// Lets the device have space back that no record names any more, and
    /// then others.
    async fn discard(&self, extents: &[Extent]) {
        for &extent in extents {
            let mut at = extent.start;
            while at.0 < extent.end().0 {
                let count = BlockCount(DISCARD_BLOCKS.min(extent.end().0 - at.0));
                // Advice: a device that does not take it loses only room.
                let _ = self.device.deallocate(Extent { start: at, count }).await;
                at.0 += count.0;
            }
        }
        self.give(extents);
    }
}

impl<D: Device> Volume<D> {
    fn new(
        place: usize,
        record: VolumeRecord,
        device: &Rc<D>,
        scratch: &Rc<Scratch>,
        verifier: u64,
    ) -> Self {
        let raw = RawVolume::new(Rc::clone(device), record.blocks, &record.extents);
        let scratch = Rc::clone(scratch);
        Self {
            requests: Ordered::new(raw, scratch, verifier),
            place,
            record: RefCell::new(record),
            change: tokio::sync::Mutex::new(()),
            deleted: Cell::new(false),
            has_epoch: Cell::new(false),
            holds: RefCell::new(Vec::new()),
        }
    }
}

fn whole_blocks(size: Size) -> Result<BlockCount, StoreError> {
    if size.0 == 0 || !size.0.is_multiple_of(BLOCK_SIZE as u64) {
        return Err(StoreError::BadSize(size.0));
    }
    Ok(BlockCount::in_bytes(size.0))
}
