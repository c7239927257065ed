//! A device that costs nothing: it completes at once, keeps what the pool
//! reads back, forgets the rest, and counts.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use block_core::device::Durability;
use block_core::unit::{BLOCK_SIZE, BlockCount, Extent, Pba};
use block_core::{BlockError, Buffer, Device};

use super::Counts;
use super::medium::Block;

/// The device; its clones are the same device.
#[derive(Clone)]
pub struct NullDisk {
    inner: Rc<Inner>,
}

struct Inner {
    blocks: BlockCount,
    forgets: Box<dyn Fn(Pba) -> bool>,
    kept: RefCell<HashMap<u64, Box<Block>>>,
    counts: Cell<Counts>,
}

impl NullDisk {
    /// A device of `blocks` zeroes that forgets what is written where
    /// `forgets` says so. A forgotten block reads as zero.
    pub fn new(blocks: BlockCount, forgets: impl Fn(Pba) -> bool + 'static) -> Self {
        let (kept, counts) = (RefCell::default(), Cell::default());
        Self { inner: Rc::new(Inner { blocks, forgets: Box::new(forgets), kept, counts }) }
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.inner.counts.get()
    }

    /// Blocks that are kept: each takes 4 KiB of memory.
    pub fn kept(&self) -> usize {
        self.inner.kept.borrow().len()
    }

    /// Puts a block there without counting it, as a builder of large pools
    /// does.
    pub fn place(&self, at: Pba, block: &Block) {
        self.inner.kept.borrow_mut().insert(at.0, Box::new(*block));
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        let mut counts = self.inner.counts.get();
        change(&mut counts);
        self.inner.counts.set(counts);
    }
}

impl Device for NullDisk {
    fn blocks(&self) -> BlockCount {
        self.inner.blocks
    }

    fn has_volatile_cache(&self) -> bool {
        true
    }

    async fn read(
        &self,
        at: Pba,
        mut buffer: Buffer,
        blocks: Range<usize>,
    ) -> (Buffer, Result<(), BlockError>) {
        self.count(|counts| {
            counts.reads += 1;
            counts.blocks_read += blocks.len() as u64;
        });
        let kept = self.inner.kept.borrow();
        for (pba, place) in (at.0..).zip(blocks) {
            let room = &mut buffer[place * BLOCK_SIZE..(place + 1) * BLOCK_SIZE];
            match kept.get(&pba) {
                Some(block) => room.copy_from_slice(&block[..]),
                None => room.fill(0),
            }
        }
        (buffer, Ok(()))
    }

    async fn write(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
        _: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        self.count(|counts| {
            counts.writes += 1;
            counts.blocks_written += blocks.len() as u64;
        });
        for (pba, place) in (at.0..).zip(blocks) {
            if (self.inner.forgets)(Pba(pba)) {
                continue;
            }
            let bytes = &buffer[place * BLOCK_SIZE..(place + 1) * BLOCK_SIZE];
            let mut kept = self.inner.kept.borrow_mut();
            let room = kept.entry(pba).or_insert_with(|| Box::new([0; BLOCK_SIZE]));
            room.copy_from_slice(bytes);
        }
        (buffer, Ok(()))
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.count(|counts| counts.flushes += 1);
        Ok(())
    }

    async fn write_zeroes(&self, extent: Extent, _: bool) -> Result<(), BlockError> {
        self.count(|counts| counts.zeroings += 1);
        self.drop_range(extent);
        Ok(())
    }

    async fn deallocate(&self, extent: Extent) -> Result<(), BlockError> {
        self.count(|counts| counts.deallocations += 1);
        self.drop_range(extent);
        Ok(())
    }
}

impl NullDisk {
    fn drop_range(&self, extent: Extent) {
        let mut kept = self.inner.kept.borrow_mut();
        (extent.start.0..extent.end().0).for_each(|at| drop(kept.remove(&at)));
    }
}
