//! The catalog on a device: opened, put right, changed one record at a time.

use std::cell::RefCell;
use std::rc::Rc;

use block_core::device::Durability;
use block_core::unit::{BLOCK_SIZE, BlockCount, Pba};
use block_core::{BlockError, Buffer, Device};
use thiserror::Error;
use tracing::{info, warn};

use crate::layout::{
    COPY_BLOCKS, Copy, DeviceId, Found, MIN_BLOCKS, Record, Superblock, VolumeRecord,
};
use crate::size::Size;

/// Bytes of the buffer that a catalog works with; larger ones are fine.
pub const DESK_BYTES: usize = 32 * BLOCK_SIZE;

/// Which devices may be formatted when they are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Formatting {
    /// One that begins with zeroes.
    IfBlank,
    /// Also one that holds something that is not ours; it is lost.
    IfForeign,
    /// None: it held volumes before it was reset.
    Never,
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// There is no room for the catalog and one volume.
    #[error(
        "the device has {}, and at least {} are needed; use a larger one", Size(.0.bytes()),
        Size(MIN_BLOCKS.bytes())
    )]
    TooSmall(BlockCount),
    /// It holds something else.
    #[error(
        "the device is not blank and not formatted for vRIO; if nothing on it is needed any more, \
         set `format = true` for it in the configuration"
    )]
    NotFormatted,
    /// It held volumes until it was reset.
    #[error(
        "the device held volumes before it was reset and holds none now; nothing is written to it"
    )]
    Emptied,
    /// A later version wrote it.
    #[error("the device was formatted by a later version of vRIO (format {0}); use that version")]
    Newer(u16),
    /// Both superblocks are unreadable.
    #[error(
        "both superblocks of the device are damaged; restore the device from a backup, or zero its \
         first {} to begin anew", Size(crate::layout::DATA_START.0 * BLOCK_SIZE as u64)
    )]
    Damaged,
    /// Something else has been written to the first block.
    #[error(
        "something else was written over the start of the device, which held vRIO volumes; what is \
         left is not touched: restore the device from a backup"
    )]
    Overwritten,
    /// The device has lost its end.
    #[error(
        "the device had {} when it was formatted and has {} now; give it its old size back",
        Size(.then.bytes()), Size(.now.bytes())
    )]
    Shrunk {
        /// When it was formatted.
        then: BlockCount,
        /// Now.
        now: BlockCount,
    },
    /// Both copies of a volume's record are unreadable.
    #[error(
        "both copies of volume record {0} are damaged, so the device cannot be used safely; restore \
         it from a backup"
    )]
    RecordLost(usize),
    /// Records contradict each other.
    #[error(
        "the records of the device's volumes contradict each other ({0}), so it cannot be used \
         safely; restore it from a backup"
    )]
    Contradiction(String),
    /// The device does not work.
    #[error("{what}: {why}; check the device")]
    Device {
        /// What was tried.
        what: &'static str,
        /// What it answered.
        why: BlockError,
    },
}

/// Why a record was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommitError {
    /// It is as it was.
    #[error("the catalog could not be written ({0}); nothing was changed")]
    Unchanged(BlockError),
    /// It may be changed after a restart.
    #[error(
        "the catalog could not be written ({0}), nor put back; the volume stays as it is until the \
         server is restarted, and may be changed then"
    )]
    Unknown(BlockError),
}

/// A device's catalog.
#[derive(Debug)]
pub struct Catalog<D> {
    device: Rc<D>,
    id: DeviceId,
    /// The buffer with which one record at a time is written.
    desk: tokio::sync::Mutex<Option<Buffer>>,
    places: RefCell<Vec<Place>>,
}

#[derive(Clone, Debug)]
struct Place {
    /// What is stored.
    record: Record,
    /// Copy B may be older, or nothing: it must be written before copy A is
    /// written again.
    lagging: bool,
    /// Nobody knows what copy A is.
    unknown: bool,
}

impl<D: Device> Catalog<D> {
    /// Opens the catalog of a device; formats the device as `fresh` where that
    /// is allowed. `desk` has at least [`DESK_BYTES`].
    ///
    /// # Errors
    /// A sentence about the device.
    pub async fn open(
        device: Rc<D>,
        desk: Buffer,
        formatting: Formatting,
        fresh: DeviceId,
    ) -> Result<Self, OpenError> {
        assert!(desk.len() >= DESK_BYTES);
        if device.blocks() < MIN_BLOCKS {
            return Err(OpenError::TooSmall(device.blocks()));
        }
        let mut opening = Opening { device: &*device, desk: Some(desk) };
        let superblock = match opening.decide(formatting).await? {
            Decision::Use(superblock) => superblock,
            Decision::Format if formatting == Formatting::Never => return Err(OpenError::Emptied),
            Decision::Format => opening.format(fresh).await?,
        };
        let (then, now) = (superblock.blocks, device.blocks());
        if now < then {
            return Err(OpenError::Shrunk { then, now });
        }
        let records = opening.read_records(&superblock).await?;
        let places = records
            .into_iter()
            .map(|record| Place { record, lagging: false, unknown: false })
            .collect();
        let desk = tokio::sync::Mutex::new(opening.desk);
        Ok(Self { device, id: superblock.device, desk, places: RefCell::new(places) })
    }

    /// Which formatting of which device this is.
    #[must_use]
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// How many volumes there can be.
    #[must_use]
    pub fn places(&self) -> usize {
        self.places.borrow().len()
    }

    /// Every volume and its place.
    #[must_use]
    pub fn volumes(&self) -> Vec<(usize, VolumeRecord)> {
        let places = self.places.borrow();
        let volumes = places.iter().enumerate();
        volumes.filter_map(|(at, place)| Some((at, place.record.volume.clone()?))).collect()
    }

    /// Stores what `place` holds from now on. When this returns, it survives
    /// a power cut. Records of different places do not wait for what else
    /// happens to their volumes; two changes of one place must not overlap.
    ///
    /// # Errors
    /// When the device refuses the write, which says what is stored instead.
    pub async fn commit(
        &self,
        place: usize,
        volume: Option<VolumeRecord>,
    ) -> Result<(), CommitError> {
        let mut desk = self.desk.lock().await;
        let Place { record: old, lagging, unknown } = self.places.borrow()[place].clone();
        if unknown {
            return Err(CommitError::Unknown(BlockError::Medium));
        }
        if lagging {
            self.put(&mut desk, Copy::B, place, &old).await.map_err(CommitError::Unchanged)?;
            self.places.borrow_mut()[place].lagging = false;
        }
        let new = Record { sequence: old.sequence + 1, volume };
        if let Err(error) = self.put(&mut desk, Copy::A, place, &new).await {
            return Err(match self.put(&mut desk, Copy::A, place, &old).await {
                Ok(()) => CommitError::Unchanged(error),
                Err(_) => {
                    self.places.borrow_mut()[place].unknown = true;
                    CommitError::Unknown(error)
                }
            });
        }
        let second = self.put(&mut desk, Copy::B, place, &new).await;
        if let Err(error) = second {
            warn!(place, "the second copy of a volume record could not be written: {error}");
        }
        self.places.borrow_mut()[place] =
            Place { record: new, lagging: second.is_err(), unknown: false };
        Ok(())
    }

    async fn put(
        &self,
        desk: &mut Option<Buffer>,
        copy: Copy,
        place: usize,
        record: &Record,
    ) -> Result<(), BlockError> {
        let mut buffer = desk.take().ok_or(BlockError::Medium)?;
        record.encode(self.id, place, block_at(&mut buffer, 0));
        let at = copy.record(place);
        let (buffer, outcome) = self.device.write(at, buffer, 0..1, Durability::Through).await;
        *desk = Some(buffer);
        outcome
    }
}

/// A device whose catalog is being opened.
struct Opening<'a, D> {
    device: &'a D,
    desk: Option<Buffer>,
}

enum Decision {
    Use(Superblock),
    Format,
}

impl<D: Device> Opening<'_, D> {
    /// Whether the device is ours, and with which of two superblocks.
    ///
    /// A formatting writes A as "formatting", B likewise, the records, A as
    /// "ready", B as "ready": so what is damaged without a second copy that
    /// was ever ready has never held a volume.
    async fn decide(&mut self, formatting: Formatting) -> Result<Decision, OpenError> {
        let (a, b) = (self.find(Copy::A).await, self.find(Copy::B).await);
        match (a, b) {
            (Found::Newer(version), _) | (_, Found::Newer(version)) => {
                Err(OpenError::Newer(version))
            }
            (Found::Valid(a), Found::Valid(b)) if a.device != b.device && b.ready => {
                Err(OpenError::Damaged)
            }
            (Found::Valid(a), b) if a.ready => {
                if b != Found::Valid(a) {
                    self.put_superblock(Copy::B, a).await?;
                }
                Ok(Decision::Use(a))
            }
            (Found::Valid(_), Found::Valid(b)) if b.ready => Err(OpenError::Damaged),
            (Found::Valid(_), _) => Ok(Decision::Format),
            (Found::Foreign, Found::Valid(b)) if b.ready => Err(OpenError::Overwritten),
            (_, Found::Valid(b)) if b.ready => {
                self.put_superblock(Copy::A, b).await?;
                Ok(Decision::Use(b))
            }
            // A formatting writes A, durably, before B: somebody else has had
            // the device since.
            (Found::Foreign | Found::Blank, Found::Valid(_))
                if formatting == Formatting::IfBlank && !self.is_blank().await? =>
            {
                Err(OpenError::NotFormatted)
            }
            (_, Found::Valid(_)) => Ok(Decision::Format),
            (Found::Blank, Found::Blank) if self.is_blank().await? => Ok(Decision::Format),
            (_, Found::Damaged) => Err(OpenError::Damaged),
            _ if formatting == Formatting::IfForeign => Ok(Decision::Format),
            (Found::Damaged, _) => Err(OpenError::Damaged),
            _ => Err(OpenError::NotFormatted),
        }
    }

    async fn find(&mut self, copy: Copy) -> Found {
        match self.read(copy.superblock(), 1).await {
            Ok(desk) => Superblock::parse(block_at(desk, 0)),
            Err(_) => Found::Damaged,
        }
    }

    /// Whether the first blocks are zero: file systems and partition tables
    /// begin there.
    async fn is_blank(&mut self) -> Result<bool, OpenError> {
        let blocks = DESK_BYTES / BLOCK_SIZE;
        let read = self.read(Pba(0), blocks).await;
        let desk =
            read.map_err(|why| OpenError::Device { what: "reading its first block", why })?;
        Ok(desk[..DESK_BYTES].iter().all(|&byte| byte == 0))
    }

    async fn format(&mut self, device: DeviceId) -> Result<Superblock, OpenError> {
        let blocks = self.device.blocks();
        info!(size = %Size(blocks.bytes()), "formatting the device for volumes");
        let begun = Superblock::begin(device, blocks);
        self.put_superblock(Copy::A, begun).await?;
        self.put_superblock(Copy::B, begun).await?;
        let failed = |why| OpenError::Device { what: "formatting it", why };
        let free = Record { sequence: 1, volume: None };
        let burst = DESK_BYTES / BLOCK_SIZE;
        for copy in [Copy::A, Copy::B] {
            for first in (0..begun.places).step_by(burst) {
                let places = first..begun.places.min(first + burst);
                let desk = self.desk.as_mut().expect("the desk is back after each command");
                for place in places.clone() {
                    free.encode(device, place, block_at(desk, place - first));
                }
                self.write(copy.record(first), places.len()).await.map_err(failed)?;
            }
        }
        let ready = Superblock { ready: true, ..begun };
        self.put_superblock(Copy::A, ready).await?;
        self.put_superblock(Copy::B, ready).await?;
        Ok(ready)
    }

    /// The newer valid copy of each record; where the other one differs it is
    /// written again, so that at rest both are equal.
    async fn read_records(&mut self, superblock: &Superblock) -> Result<Vec<Record>, OpenError> {
        let &Superblock { device, places, .. } = superblock;
        let mut records = Vec::with_capacity(places);
        let a = self.read_copy(Copy::A, superblock).await;
        let b = self.read_copy(Copy::B, superblock).await;
        for (place, pair) in a.into_iter().zip(b).enumerate() {
            let (record, behind) = match pair {
                (None, None) => return Err(OpenError::RecordLost(place)),
                (Some(a), Some(b)) if a.sequence == b.sequence => (a, None),
                (Some(a), Some(b)) if a.sequence < b.sequence => (b, Some(Copy::A)),
                (Some(a), _) => (a, Some(Copy::B)),
                (None, Some(b)) => (b, Some(Copy::A)),
            };
            if let Some(copy) = behind {
                let desk = self.desk.as_mut().expect("the desk is back after each command");
                record.encode(device, place, block_at(desk, 0));
                let written = self.write(copy.record(place), 1).await;
                written
                    .map_err(|why| OpenError::Device { what: "putting its catalog right", why })?;
            }
            records.push(record);
        }
        Ok(records)
    }

    async fn read_copy(&mut self, copy: Copy, superblock: &Superblock) -> Vec<Option<Record>> {
        let &Superblock { device, places: all, .. } = superblock;
        let burst = DESK_BYTES / BLOCK_SIZE;
        let mut records = Vec::with_capacity(all);
        for first in (0..all).step_by(burst) {
            let places = first..all.min(first + burst);
            match self.read(copy.record(first), places.len()).await {
                Ok(desk) => records.extend(
                    places.map(|place| Record::parse(block_at(desk, place - first), device, place)),
                ),
                Err(_) => {
                    // One bad block must not cost the records around it.
                    for place in places {
                        let one = self.read(copy.record(place), 1).await;
                        records.push(
                            one.ok()
                                .and_then(|desk| Record::parse(block_at(desk, 0), device, place)),
                        );
                    }
                }
            }
        }
        records
    }

    async fn put_superblock(
        &mut self,
        copy: Copy,
        superblock: Superblock,
    ) -> Result<(), OpenError> {
        let desk = self.desk.as_mut().expect("the desk is back after each command");
        superblock.encode(block_at(desk, 0));
        let written = self.write(copy.superblock(), 1).await;
        written.map_err(|why| OpenError::Device { what: "writing its superblock", why })
    }

    async fn read(&mut self, at: Pba, blocks: usize) -> Result<&mut Buffer, BlockError> {
        let desk = self.desk.take().ok_or(BlockError::Medium)?;
        let (desk, outcome) = self.device.read(at, desk, 0..blocks).await;
        let desk = self.desk.insert(desk);
        outcome.map(|()| desk)
    }

    async fn write(&mut self, at: Pba, blocks: usize) -> Result<(), BlockError> {
        let desk = self.desk.take().ok_or(BlockError::Medium)?;
        let (desk, outcome) = self.device.write(at, desk, 0..blocks, Durability::Through).await;
        self.desk = Some(desk);
        outcome
    }
}

const _: () = assert!(COPY_BLOCKS > (DESK_BYTES / BLOCK_SIZE) as u64);

/// A block of the buffer, as the array that the layout reads and writes.
fn block_at(buffer: &mut Buffer, place: usize) -> &mut [u8; BLOCK_SIZE] {
    let block = buffer[place * BLOCK_SIZE..].first_chunk_mut();
    block.expect("the desk holds a whole burst of blocks")
}
