//! A namespace of the soft controller: logical blocks over memory or a file,
//! and the cache in front of them.

use std::io;
use std::ops::Range;

use super::direct::DirectDisk;
use super::disorder::Chance;
use super::file::FileDisk;
use super::in_place::{Backing, InPlace};
use super::layers::{Image, Layers};
use super::open::{FileIo, FileOptions, OpenError, OpenFile};
use super::ram::Ram;
use super::unflushed::Unflushed;
use crate::completion::Status;
use crate::identify::LbaSize;

/// A namespace to give to a [`SoftController`](super::SoftController).
#[derive(Debug)]
pub struct SoftNamespace {
    lba_size: LbaSize,
    lba_count: u64,
    pub(super) disk: Disk,
}

/// What holds a namespace's bytes.
#[derive(Debug)]
pub(super) enum Disk {
    /// It does what it is asked at once.
    InPlace(InPlace),
    /// It begins, and says later how it ended.
    Direct(Box<DirectDisk>),
}

impl SoftNamespace {
    /// `bytes` of memory (rounded down to 4096), taken when first written.
    ///
    /// # Errors
    /// The kernel's, when it has no address space to give.
    pub fn memory(bytes: u64, lba_size: LbaSize) -> io::Result<Self> {
        let bytes = bytes / crate::PAGE as u64 * crate::PAGE as u64;
        let ram = Ram::new(usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?)?;
        let disk = Disk::InPlace(InPlace::over(Backing::Ram(ram), None));
        Ok(Self::over(disk, bytes, lba_size))
    }

    /// Memory of which a power cut takes what was not flushed. It remembers
    /// every content that a block had since the last flush: for simulations.
    /// It begins as the image, durable; `bytes` are rounded down to 4096.
    #[must_use]
    pub fn losing_memory(bytes: u64, lba_size: LbaSize, image: Image) -> Self {
        let bytes = bytes / crate::PAGE as u64 * crate::PAGE as u64;
        let layers = Layers::over(image, bytes as usize);
        let unflushed = Some(Unflushed::new(lba_size));
        let disk = Disk::InPlace(InPlace::over(Backing::Layers(layers), unflushed));
        Self::over(disk, bytes, lba_size)
    }

    /// What a namespace that loses memory holds.
    pub(super) fn image(&self) -> Option<Image> {
        let bytes = (self.lba_count << self.lba_size.bits()) as usize;
        match &self.disk {
            Disk::InPlace(disk) => disk.image(bytes),
            Disk::Direct(_) => None,
        }
    }

    /// A file: sparse, locked against other processes, its size rounded down
    /// to 4096 bytes. What was written is there at the next start.
    ///
    /// # Errors
    /// A sentence about the file and the way out.
    pub fn file(options: &FileOptions, lba_size: LbaSize) -> Result<Self, OpenError> {
        let mut open = OpenFile::open(options)?;
        let bytes = open.bytes;
        if options.io != FileIo::Mapped {
            match DirectDisk::over(open, lba_size) {
                Ok(disk) => return Ok(Self::over(Disk::Direct(Box::new(disk)), bytes, lba_size)),
                Err((it, why)) if options.io == FileIo::Auto => {
                    tracing::info!(path = %it.path.display(), "the file is mapped: {why}");
                    open = it;
                }
                Err((it, why)) => return Err(OpenError::Direct { path: it.path, why }),
            }
        }
        let backing = Backing::File(FileDisk::map(open)?);
        Ok(Self::over(Disk::InPlace(InPlace::over(backing, None)), bytes, lba_size))
    }

    fn over(disk: Disk, bytes: u64, lba_size: LbaSize) -> Self {
        let lba_count = bytes >> lba_size.bits();
        Self { lba_size, lba_count, disk }
    }

    /// Whether commands go straight between a file and the driver's memory, as
    /// [`FileOptions::io`] says.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        matches!(self.disk, Disk::Direct(_))
    }

    /// The disk, if it says later how a command ended.
    pub(super) fn direct(&mut self) -> Option<&mut DirectDisk> {
        match &mut self.disk {
            Disk::InPlace(_) => None,
            Disk::Direct(disk) => Some(disk),
        }
    }

    pub(super) fn lba_size(&self) -> LbaSize {
        self.lba_size
    }

    pub(super) fn lba_count(&self) -> u64 {
        self.lba_count
    }

    /// Forgets its end.
    pub(super) fn shrink(&mut self, blocks: u64) {
        self.lba_count = self.lba_count.min(blocks);
    }

    /// Whether writes may stay volatile until a flush.
    pub(super) fn set_cached(&mut self, cached: bool) {
        match &mut self.disk {
            Disk::InPlace(disk) => disk.set_cached(cached),
            Disk::Direct(disk) => disk.set_cached(cached),
        }
    }

    /// The bytes of logical blocks that exist.
    pub(super) fn bytes_of(&self, start: u64, count: u32) -> Result<Range<u64>, Status> {
        let end = start.checked_add(u64::from(count)).ok_or(Status::OUT_OF_RANGE)?;
        if end > self.lba_count {
            return Err(Status::OUT_OF_RANGE);
        }
        Ok(start << self.lba_size.bits()..end << self.lba_size.bits())
    }

    /// Makes everything durable whose command has ended, and waits for it.
    pub(super) fn flush(&mut self) -> Result<(), Status> {
        match &mut self.disk {
            Disk::InPlace(disk) => disk.flush(),
            Disk::Direct(disk) => disk.flush_now(),
        }
    }

    pub(super) fn power_cut(&mut self, chance: &mut Chance) {
        match &mut self.disk {
            Disk::InPlace(disk) => disk.power_cut(chance),
            // What it lost the kernel has.
            Disk::Direct(_) => {}
        }
    }
}

/// The whole pages in a range of bytes.
pub(super) fn whole_pages(range: &Range<u64>) -> Range<u64> {
    let page = crate::PAGE as u64;
    let start = range.start.next_multiple_of(page);
    start..(range.end / page * page).max(start)
}
