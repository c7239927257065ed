//! A device that completes at once, keeps the pool's own pages, and forgets
//! guests' blocks: a terabyte of them fits into no machine.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use block_core::device::Durability;
use block_core::{
    BLOCK_SIZE, BlockCount, BlockError, Buffer, Device, DmaMemory, Extent, Pba, Pool,
};

/// Where the memory of requests begins for the device: what comes from there
/// is a guest's.
const REQUESTS_AT: u64 = 1 << 40;

type Block = [u8; BLOCK_SIZE];

/// What was written and flushed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Bytes that were written.
    pub bytes_written: u64,
    /// Flushes, also those that had nothing to do.
    pub flushes: u64,
}

/// The device; a clone is the same one.
#[derive(Clone, Debug, Default)]
pub struct Forgetful {
    blocks: BlockCount,
    pages: Rc<RefCell<HashMap<u64, Box<Block>>>>,
    counts: Rc<Cell<Counts>>,
    keeps_blocks: Rc<Cell<bool>>,
}

impl Forgetful {
    /// A device of so many blocks, all zero.
    #[must_use]
    pub fn new(blocks: BlockCount) -> Self {
        Self { blocks, ..Self::default() }
    }

    /// Whether guests' blocks are kept as well.
    pub fn keep_blocks(&self, keep: bool) {
        self.keeps_blocks.set(keep);
    }

    /// What was written and flushed so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts.get()
    }

    /// Buffers whose content is a guest's.
    ///
    /// # Errors
    /// The kernel has no memory to give.
    pub fn request_buffers(count: usize, bytes: usize) -> std::io::Result<Pool> {
        let memory = DmaMemory::private(count * bytes)?;
        Ok(Pool::new(DmaMemory::new(memory.memory().clone(), REQUESTS_AT), bytes))
    }
}

impl Device for Forgetful {
    fn blocks(&self) -> BlockCount {
        self.blocks
    }

    /// Data past the journal's mark is not looked for: it is not kept.
    fn has_volatile_cache(&self) -> bool {
        false
    }

    async fn read(
        &self,
        at: Pba,
        mut buffer: Buffer,
        places: Range<usize>,
    ) -> (Buffer, Result<(), BlockError>) {
        let pages = self.pages.borrow();
        for (pba, place) in (at.0..).zip(places) {
            let into = &mut buffer[place * BLOCK_SIZE..(place + 1) * BLOCK_SIZE];
            match pages.get(&pba) {
                Some(page) => into.copy_from_slice(&page[..]),
                None => into.fill(0),
            }
        }
        (buffer, Ok(()))
    }

    async fn write(
        &self,
        at: Pba,
        buffer: Buffer,
        places: Range<usize>,
        _: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        let mut counts = self.counts.get();
        counts.bytes_written += (places.len() * BLOCK_SIZE) as u64;
        self.counts.set(counts);
        if buffer.iova() < REQUESTS_AT || self.keeps_blocks.get() {
            let mut pages = self.pages.borrow_mut();
            for (pba, place) in (at.0..).zip(places) {
                let (blocks, _) = buffer.as_chunks::<BLOCK_SIZE>();
                pages.insert(pba, Box::new(blocks[place]));
            }
        }
        (buffer, Ok(()))
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let mut counts = self.counts.get();
        counts.flushes += 1;
        self.counts.set(counts);
        Ok(())
    }

    async fn write_zeroes(&self, extent: Extent, _: bool) -> Result<(), BlockError> {
        let mut pages = self.pages.borrow_mut();
        (extent.start.0..extent.end().0).for_each(|pba| drop(pages.remove(&pba)));
        Ok(())
    }

    async fn deallocate(&self, _: Extent) -> Result<(), BlockError> {
        Ok(())
    }
}
