//! Blocks that are there at once: memory, or a file that is mapped. What a command asks
//! is done when the call returns.

use std::ops::Range;

use block_core::Memory;

use super::disorder::Chance;
use super::file::FileDisk;
use super::layers::{Image, Layers};
use super::namespace::whole_pages;
use super::ram::Ram;
use super::unflushed::Unflushed;
use crate::completion::Status;

/// What holds the bytes, and the cache in front of it.
#[derive(Debug)]
pub(super) struct InPlace {
    backing: Backing,
    cached: bool,
    unflushed: Option<Unflushed>,
}

#[derive(Debug)]
pub(super) enum Backing {
    Ram(Ram),
    Layers(Layers),
    File(FileDisk),
}

impl InPlace {
    pub(super) fn over(backing: Backing, unflushed: Option<Unflushed>) -> Self {
        Self { backing, cached: true, unflushed }
    }

    /// What memory that loses its content holds.
    pub(super) fn image(&self, bytes: usize) -> Option<Image> {
        let Backing::Layers(layers) = &self.backing else { return None };
        let page = |at| layers.content(at, crate::PAGE).first_chunk().copied();
        Some((0..bytes).step_by(crate::PAGE).filter_map(page).collect())
    }

    /// Whether writes may stay volatile until a flush.
    pub(super) fn set_cached(&mut self, cached: bool) {
        self.cached = cached;
    }

    #[inline]
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

    #[inline]
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
