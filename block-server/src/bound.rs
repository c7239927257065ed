//! What a volume's blocks lie in, which a reset of the device takes away, and
//! something else takes its place.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::device::{Tag, Transfer};
use block_core::{BlockCount, Blocks, Buffer, LbaRange};

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

    /// [`Blocks::begin`], unless there are no blocks.
    ///
    /// # Errors
    /// The buffer.
    #[inline]
    pub fn begin(
        &self,
        transfer: Transfer,
        range: LbaRange,
        buffer: Buffer,
        tag: Tag,
    ) -> Result<(), Buffer> {
        match &*self.now.borrow() {
            Some(blocks) => blocks.begin(transfer, range, buffer, tag),
            None => Err(buffer),
        }
    }

    /// Lets go of the blocks: their device is reset.
    pub fn release(&self) {
        self.blocks.set(self.size());
        *self.now.borrow_mut() = None;
    }

    /// Puts blocks in the place of those that were there.
    pub fn bind(&self, blocks: Rc<B>) {
        *self.now.borrow_mut() = Some(blocks);
    }

    /// The size, also while there are no blocks.
    #[must_use]
    #[inline]
    pub fn size(&self) -> BlockCount {
        self.now.borrow().as_ref().map_or(self.blocks.get(), |blocks| blocks.blocks())
    }

    /// [`Blocks::version`], zero while there are no blocks.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.now.borrow().as_ref().map_or(0, |blocks| blocks.version())
    }
}
