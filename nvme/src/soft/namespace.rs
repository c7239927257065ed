//! A namespace of the soft controller: logical blocks over memory or a file,
//! and the cache in front of them.

use std::io;
use std::ops::Range;

use block_core::Memory;

use super::disorder::Chance;
use super::file::{FileDisk, FileOptions, OpenError};
use super::layers::{Image, Layers};
use super::ram::Ram;
use super::unflushed::Unflushed;
use crate::completion::Status;
use crate::identify::LbaSize;

/// A namespace to give to a [`SoftController`](super::SoftController).
#[derive(Debug)]
pub struct SoftNamespace {
    lba_size: LbaSize,
    lba_count: u64,
    backing: Backing,
    cached: bool,
    unflushed: Option<Unflushed>,
}

#[derive(Debug)]
enum Backing {
    Ram(Ram),
    Layers(Layers),
    File(FileDisk),
}

impl SoftNamespace {
    /// `bytes` of memory (rounded down to 4096), taken when first written.
    ///
    /// # Errors
    /// The kernel's, when it has no address space to give.
    pub fn memory(bytes: u64, lba_size: LbaSize) -> io::Result<Self> {
        let bytes = bytes / crate::PAGE as u64 * crate::PAGE as u64;
        let ram = Ram::new(usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?)?;
        Ok(Self::over(Backing::Ram(ram), bytes, lba_size))
    }

    /// Memory of which a power cut takes what was not flushed. It remembers
    /// every content that a block had since the last flush: for simulations.
    /// It begins as the image, durable; `bytes` are rounded down to 4096.
    #[must_use]
    pub fn losing_memory(bytes: u64, lba_size: LbaSize, image: Image) -> Self {
        let bytes = bytes / crate::PAGE as u64 * crate::PAGE as u64;
        let layers = Layers::over(image, bytes as usize);
        let mut namespace = Self::over(Backing::Layers(layers), bytes, lba_size);
        namespace.unflushed = Some(Unflushed::new(lba_size));
        namespace
    }

    /// What a namespace that loses memory holds.
    pub(super) fn image(&self) -> Option<Image> {
        let Backing::Layers(layers) = &self.backing else { return None };
        let bytes = (self.lba_count << self.lba_size.bits()) as usize;
        let page = |at| layers.content(at, crate::PAGE).first_chunk().copied();
        Some((0..bytes).step_by(crate::PAGE).filter_map(page).collect())
    }

    /// A file: sparse, locked against other processes, its size rounded down
    /// to 4096 bytes. What was written is there at the next start.
    ///
    /// # Errors
    /// A sentence about the file and the way out.
    pub fn file(options: &FileOptions, lba_size: LbaSize) -> Result<Self, OpenError> {
        let disk = FileDisk::open(options)?;
        let bytes = disk.bytes();
        Ok(Self::over(Backing::File(disk), bytes, lba_size))
    }

    fn over(backing: Backing, bytes: u64, lba_size: LbaSize) -> Self {
        let lba_count = bytes >> lba_size.bits();
        Self { lba_size, lba_count, backing, cached: true, unflushed: None }
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
        self.cached = cached;
    }

    /// The bytes of logical blocks that exist.
    pub(super) fn bytes_of(&self, start: u64, count: u32) -> Result<Range<u64>, Status> {
        let end = start.checked_add(u64::from(count)).ok_or(Status::OUT_OF_RANGE)?;
        if end > self.lba_count {
            return Err(Status::OUT_OF_RANGE);
        }
        Ok(start << self.lba_size.bits()..end << self.lba_size.bits())
    }

    pub(super) fn read(
        &mut self,
        at: u64,
        to: &Memory,
        offset: usize,
        bytes: usize,
    ) -> Result<(), Status> {
        match &mut self.backing {
            Backing::Ram(ram) => ram.read(at as usize, to, offset, bytes),
            Backing::Layers(layers) => layers.read(at as usize, to, offset, bytes),
            Backing::File(file) => return file.read(at, to, offset, bytes),
        }
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        at: u64,
        from: &Memory,
        offset: usize,
        bytes: usize,
    ) -> Result<(), Status> {
        let range = at..at + bytes as u64;
        self.remember(&range);
        match &mut self.backing {
            Backing::Ram(ram) => ram.write(at as usize, from, offset, bytes),
            Backing::Layers(layers) => layers.write(at as usize, from, offset, bytes),
            Backing::File(file) => file.write(at, from, offset, bytes)?,
        }
        self.settle(range)
    }

    /// Makes the bytes zero. A file keeps space for them if `keep`; else it
    /// gives their space back where that is cheaper, as memory always does.
    pub(super) fn zero(&mut self, range: Range<u64>, keep: bool) -> Result<(), Status> {
        self.remember(&range);
        match &mut self.backing {
            Backing::Ram(ram) => ram.zero(range.start as usize..range.end as usize)?,
            Backing::Layers(layers) => layers.zero(range.start as usize..range.end as usize),
            Backing::File(file) => file.zero(range.clone(), keep)?,
        }
        self.settle(range)
    }

    /// Gives the space of whole pages back; they read as zero from now on.
    /// Blocks that share a page with others keep what they have.
    pub(super) fn deallocate(&mut self, range: Range<u64>) -> Result<(), Status> {
        let range = whole_pages(&range);
        if range.is_empty() {
            return Ok(());
        }
        self.remember(&range);
        match &mut self.backing {
            Backing::Ram(ram) => ram.give_back(range.start as usize..range.end as usize)?,
            Backing::Layers(layers) => layers.zero(range.start as usize..range.end as usize),
            Backing::File(file) => file.deallocate(range.clone())?,
        }
        self.settle(range)
    }

    /// Makes the bytes durable, whatever the cache does.
    pub(super) fn persist(&mut self, range: Range<u64>) -> Result<(), Status> {
        if let Some(unflushed) = &mut self.unflushed {
            unflushed.forget(&range);
        }
        match &mut self.backing {
            Backing::Ram(_) | Backing::Layers(_) => Ok(()),
            Backing::File(file) => file.persist(range),
        }
    }

    /// Makes everything durable.
    pub(super) fn flush(&mut self) -> Result<(), Status> {
        if let Some(unflushed) = &mut self.unflushed {
            unflushed.forget_all();
        }
        match &mut self.backing {
            Backing::Ram(_) | Backing::Layers(_) => Ok(()),
            Backing::File(file) => file.flush(),
        }
    }

    pub(super) fn power_cut(&mut self, chance: &mut Chance) {
        if let (Some(unflushed), Backing::Layers(it)) = (&mut self.unflushed, &mut self.backing) {
            unflushed.lose(it, chance);
        }
    }

    fn remember(&mut self, range: &Range<u64>) {
        if let (Some(unflushed), Backing::Layers(it)) = (&mut self.unflushed, &self.backing) {
            unflushed.remember(range, it);
        }
    }

    /// Without a cache every change is durable before it is answered.
    fn settle(&mut self, range: Range<u64>) -> Result<(), Status> {
        if self.cached { Ok(()) } else { self.persist(range) }
    }
}

/// The whole pages in a range of bytes.
pub(super) fn whole_pages(range: &Range<u64>) -> Range<u64> {
    let page = crate::PAGE as u64;
    let start = range.start.next_multiple_of(page);
    start..(range.end / page * page).max(start)
}
