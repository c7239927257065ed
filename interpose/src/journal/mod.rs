//! The journal: what happened since the last checkpoint.
//!
//! [`Journal::append`] puts a record into the open block. A block that is full,
//! or that a flush asks for, is *closed*: sealed, chained to the one before by
//! its tag, and left for [`Journal::run`] to write. A flush is answered when
//! every block up to its own is written and the device was flushed once after
//! that; the *mark* is the last number of which this is known, and each block
//! carries the mark of its time.
//!
//! After a crash [`scan`] follows the chain of tags from the checkpoint on.
//! Where it breaks, the journal ends, unless some block's mark says that what
//! is missing was durable: that is damage. [`Reader`] hands out the records.

mod admission;
mod block;
mod flush;
mod read_ahead;
mod replay;
mod writer;

#[cfg(test)]
mod tests;

use block_core::BlockError;
use thiserror::Error;

use crate::vault::VaultError;

pub use admission::{Admitted, weight};
pub use block::{BODY_BYTES, HEADER_BYTES, Header, LEAST_RING_BLOCKS, Opened, Ring, Tag, Unproven};
pub use flush::TASKS;
pub use replay::{Chain, Reader, ReplayError, Start, Verdict, scan};
pub use writer::{BUFFERS, Journal, NoBuffers};

/// Between two blocks of the journal: what the next one is chained to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The number of the next block; the first of a pool is 1.
    pub next: u64,
    /// The tag of the block before it, zeroes before the first.
    pub previous: Tag,
}

/// Why a journal takes nothing any more: it has failed once, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum JournalError {
    /// A block could not be written.
    #[error("the journal could not be written: {0}")]
    Write(BlockError),
    /// The device could not make blocks durable.
    #[error("the journal could not be flushed: {0}")]
    Flush(BlockError),
    /// There was no key to seal a block with.
    #[error("a block of the journal could not be sealed: {0}")]
    Seal(VaultError),
    /// More was appended than was admitted, or a record larger than a block.
    #[error("the journal was given more than it has room for")]
    Room,
    /// The device lost writes that it had answered.
    #[error("the device lost what was written to the journal")]
    Lost,
}
