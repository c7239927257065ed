//! A guest whose memory is not looked at: to copy it is the front's work.

use anyhow::ensure;
use block_core::BlockError;
use link::{Guest, Source, Token};

use super::OPERATIONS;

/// It counts what has ended of a burst.
#[derive(Default)]
pub(super) struct Unseen {
    ended: usize,
    failed: Option<BlockError>,
}

impl Unseen {
    /// Nothing of the next burst has ended.
    pub(super) fn begin(&mut self) {
        self.ended = 0;
    }

    /// Whether all of the burst has ended.
    pub(super) fn is_over(&self) -> anyhow::Result<bool> {
        ensure!(self.failed.is_none(), "a request failed: {:?}", self.failed);
        Ok(self.ended == OPERATIONS)
    }
}

impl Source for Unseen {
    fn fetch(&mut self, _: Token, _: &mut [u8]) -> Result<(), BlockError> {
        Ok(())
    }
}

impl Guest for Unseen {
    fn place(&mut self, _: Token, _: usize, _: &[u8]) {}

    fn complete(&mut self, _: Token, outcome: Result<(), BlockError>) {
        self.ended += 1;
        self.failed = self.failed.or(outcome.err());
    }
}
