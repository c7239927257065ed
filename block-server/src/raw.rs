//! A device of raw volumes: which blocks each one has, and the catalog that
//! says so.

use std::cell::RefCell;
use std::rc::Rc;

use block_core::unit::{BlockCount, Extent, Pba};
use block_core::{BlockError, Buffer, Device};
use link::VolumeName;

use crate::catalog::{Catalog, CommitError, Formatting, OpenError};
use crate::extents::zero_extent;
use crate::layout::{DATA_START, DeviceId, MAX_EXTENTS, UNIT_BLOCKS, VolumeRecord};
use crate::space::Space;
use crate::store::StoreError;

/// Most blocks that one command deallocates: a bound on how long it keeps a
/// device from other work (16 MiB).
const DISCARD_BLOCKS: u64 = 4 * 1024;

/// Where raw volumes are kept.
#[derive(Debug)]
pub struct Raw<D> {
    device: Rc<D>,
    catalog: Catalog<D>,
    space: RefCell<Space>,
    /// Which places of the catalog are taken.
    places: RefCell<Vec<bool>>,
}

impl<D: Device> Raw<D> {
    /// Opens a device; see [`Catalog::open`] for `desk` and `formatting`.
    /// Also returns its volumes and their places.
    ///
    /// # Errors
    /// A sentence about the device.
    pub async fn open(
        device: Rc<D>,
        desk: Buffer,
        formatting: Formatting,
        fresh: DeviceId,
    ) -> Result<(Self, Vec<(usize, VolumeRecord)>), OpenError> {
        let catalog = Catalog::open(Rc::clone(&device), desk, formatting, fresh).await?;
        let mut space = Space::new(DATA_START, Pba(device.blocks().0));
        let mut places = vec![false; catalog.places()];
        let mut names: Vec<VolumeName> = Vec::new();
        let volumes = catalog.volumes();
        for (at, record) in &volumes {
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
            places[*at] = true;
        }
        let (space, places) = (RefCell::new(space), RefCell::new(places));
        Ok((Self { device, catalog, space, places }, volumes))
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

    /// Gives a new volume a place and space that reads as zero, and stores it.
    ///
    /// # Errors
    /// A [`StoreError`]; then there is no such volume, unless it is
    /// [`CommitError::Unknown`].
    pub async fn create(&self, record: VolumeRecord) -> Result<(usize, VolumeRecord), StoreError> {
        let place = self.reserve()?;
        let taken = self.space.borrow_mut().take(record.blocks, None, MAX_EXTENTS);
        let extents = taken.inspect_err(|_| self.release(place))?;
        if let Err(error) = self.make_zero(&extents).await {
            self.give(&extents);
            self.release(place);
            return Err(StoreError::Device(error));
        }
        let record = VolumeRecord { extents, ..record };
        if let Err(error) = self.catalog.commit(place, Some(record.clone())).await {
            if matches!(error, CommitError::Unchanged(_)) {
                self.give(&record.extents);
                self.release(place);
            }
            return Err(error.into());
        }
        Ok((place, record))
    }

    /// Stores what `place` holds from now on.
    ///
    /// # Errors
    /// See [`Catalog::commit`].
    pub async fn commit(&self, place: usize, record: VolumeRecord) -> Result<(), CommitError> {
        self.catalog.commit(place, Some(record)).await
    }

    /// Stores a volume with more blocks, of which the new ones read as zero.
    ///
    /// # Errors
    /// A [`StoreError`]; then the volume is as it was.
    pub async fn grow(
        &self,
        place: usize,
        old: VolumeRecord,
        to: BlockCount,
    ) -> Result<VolumeRecord, StoreError> {
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
        if let Err(error) = self.commit(place, record.clone()).await {
            if matches!(error, CommitError::Unchanged(_)) {
                self.give(&new);
            }
            return Err(error.into());
        }
        Ok(record)
    }

    /// Stores a volume with fewer blocks, and which space it gives up. Nobody
    /// writes to it meanwhile.
    ///
    /// # Errors
    /// A [`StoreError`]; then the volume is as it was.
    pub async fn shrink(
        &self,
        place: usize,
        old: VolumeRecord,
        to: BlockCount,
    ) -> Result<(VolumeRecord, Vec<Extent>), StoreError> {
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
        let record = VolumeRecord { blocks: to, extents, ..old };
        self.commit(place, record.clone()).await?;
        Ok((record, gone))
    }

    /// Stores that a place is free.
    ///
    /// # Errors
    /// See [`Catalog::commit`].
    pub async fn delete(&self, place: usize) -> Result<(), CommitError> {
        self.catalog.commit(place, None).await?;
        self.release(place);
        Ok(())
    }

    /// Lets the device have space back that no record names any more, and
    /// then others.
    pub async fn discard(&self, extents: &[Extent]) {
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

    fn reserve(&self) -> Result<usize, StoreError> {
        let mut places = self.places.borrow_mut();
        let free =
            places.iter().position(|taken| !taken).ok_or(StoreError::TooMany(places.len()))?;
        places[free] = true;
        Ok(free)
    }

    fn release(&self, place: usize) {
        self.places.borrow_mut()[place] = false;
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
}
