//! What is served: memory, all of which is there before the first request.

use crate::message::BLOCK;

#[derive(Debug)]
pub(crate) struct Store {
    bytes: Vec<u8>,
    /// Where the first block begins: at a page, as everywhere else on the path.
    start: usize,
    blocks: usize,
}

impl Store {
    /// At least one block.
    pub(crate) fn new(size: usize) -> Self {
        let blocks = (size / BLOCK).max(1);
        // Not zero: zeroes would be one page that is everywhere.
        let bytes = vec![7_u8; (blocks + 1) * BLOCK];
        Self { start: bytes.as_ptr().align_offset(BLOCK), bytes, blocks }
    }

    pub(crate) fn block(&self, number: u32) -> &[u8] {
        &self.bytes[self.at(number)..][..BLOCK]
    }

    pub(crate) fn block_mut(&mut self, number: u32) -> &mut [u8] {
        let at = self.at(number);
        &mut self.bytes[at..][..BLOCK]
    }

    fn at(&self, number: u32) -> usize {
        self.start + number as usize % self.blocks * BLOCK
    }
}
