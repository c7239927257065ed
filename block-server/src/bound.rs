//! What a volume's blocks lie in, which a reset of the device takes away, and
//! something else takes its place.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::device::Durability;
use block_core::{BlockCount, BlockError, Blocks, Buffer, Completed, LbaRange};

/// Blocks, while there are some. Nothing is taken away or put in its place
/// while a request runs.
pub struct Bound<B> {
    now: RefCell<Option<Rc<B>>>,
    /// The last known size.
    blocks: Cell<BlockCount>,
}

impl<B: Blocks> Bound<B> {
    /// These blocks.
    #[must_use]
    pub fn new(blocks: Rc<B>) -> Self {
        let count = Cell::new(blocks.blocks());
        Self { now: RefCell::new(Some(blocks)), blocks: count }
    }

    /// The blocks, if there are some.
    #[must_use]
    pub fn get(&self) -> Option<Rc<B>> {
        self.now.borrow().clone()
    }

    /// Lets go of the blocks: their device is reset.
    pub fn release(&self) {
        self.blocks.set(self.blocks());
        *self.now.borrow_mut() = None;
    }

    /// Puts blocks in the place of those that were there.
    pub fn bind(&self, blocks: Rc<B>) {
        *self.now.borrow_mut() = Some(blocks);
    }
}

impl<B: Blocks> Blocks for Bound<B> {
    fn blocks(&self) -> BlockCount {
        self.now.borrow().as_ref().map_or(self.blocks.get(), |blocks| blocks.blocks())
    }

    async fn read(
        &self,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
    ) -> (Buffer, Result<(), BlockError>) {
        match self.get() {
            Some(blocks) => blocks.read(range, buffer, place).await,
            None => (buffer, Err(BlockError::Lost)),
        }
    }

    async fn write(
        &self,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        match self.get() {
            Some(blocks) => blocks.write(range, buffer, place, durability).await,
            None => (buffer, Err(BlockError::Lost)),
        }
    }

    fn version(&self) -> u64 {
        self.now.borrow().as_ref().map_or(0, |blocks| blocks.version())
    }

    async fn write_completed(
        &self,
        version: u64,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> (Buffer, Result<Completed, BlockError>) {
        match self.get() {
            Some(blocks) => blocks.write_completed(version, range, buffer, place, durability).await,
            None => (buffer, Err(BlockError::Lost)),
        }
    }

    async fn zero(&self, range: LbaRange, unmap: bool) -> Result<(), BlockError> {
        match self.get() {
            Some(blocks) => blocks.zero(range, unmap).await,
            None => Err(BlockError::Lost),
        }
    }

    async fn discard(&self, range: LbaRange) -> Result<(), BlockError> {
        match self.get() {
            Some(blocks) => blocks.discard(range).await,
            None => Err(BlockError::Lost),
        }
    }

    async fn flush(&self) -> Result<(), BlockError> {
        match self.get() {
            Some(blocks) => blocks.flush().await,
            None => Err(BlockError::Lost),
        }
    }
}
