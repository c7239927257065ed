//! The seam between volumes and whatever stores their blocks.

use std::future::Future;
use std::ops::Range;

use crate::buffer::Buffer;
use crate::error::BlockError;
use crate::request::Op;
use crate::unit::{BlockCount, Extent, Pba};

/// When a write may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When the device has taken it; a flush makes it durable.
    Cached,
    /// When it is durable (NVMe: Force Unit Access).
    Through,
}

/// Names a request to whoever began it ([`Device::begin`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub u32);

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// From the device.
    Read,
    /// To the device.
    Write(Durability),
}

impl Transfer {
    /// What an operation is for a device, if it moves data.
    #[must_use]
    pub const fn of(op: Op) -> Option<Self> {
        match op {
            Op::Read => Some(Self::Read),
            Op::Write => Some(Self::Write(Durability::Cached)),
            Op::WriteThrough => Some(Self::Write(Durability::Through)),
            _ => None,
        }
    }
}

/// What a request that was begun has come to.
#[derive(Debug)]
pub struct Ended {
    /// Which one.
    pub tag: Tag,
    /// Its buffer.
    pub buffer: Buffer,
    /// Whether it worked.
    pub outcome: Result<(), Failure>,
}

/// Why a request that was begun did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// As [`Device::read`] or [`Device::write`] would have ended.
    Error(BlockError),
    /// The device gave it up unasked, and may do it when it is asked again.
    GivenUp,
}

/// Blocks that can be read and written: an NVMe namespace, or a simulated
/// disk. Buffers move in and come back with the outcome; dropping a future
/// gives the command up, not the buffer, which stays with the device until it
/// has let go of it.
///
/// A device that may have lost answered writes that were not flushed, because
/// its controller was reset and it has a volatile cache, fails every write and
/// flush from then on with [`BlockError::Lost`]: no flush may say that they are
/// durable. Whoever goes on makes another `Device` of it and begins with what
/// is there.
///
/// `blocks` counts in the buffer: `1..3` is bytes 4096 to 12,288 of it. It is
/// not empty and lies within the buffer; the caller has checked that the
/// blocks exist on the device too.
pub trait Device {
    /// How many blocks there are.
    fn blocks(&self) -> BlockCount;

    /// Whether answered writes can be lost until [`Device::flush`].
    fn has_volatile_cache(&self) -> bool;

    /// Reads `blocks.len()` blocks from `at` into those places of the buffer.
    fn read(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
    ) -> impl Future<Output = (Buffer, Result<(), BlockError>)>;

    /// Writes those blocks of the buffer to `at`. After an error each block on
    /// the device is old or new.
    fn write(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
        durability: Durability,
    ) -> impl Future<Output = (Buffer, Result<(), BlockError>)>;

    /// Begins what [`Device::read`] and [`Device::write`] do, without a future: most
    /// requests need one command and find nothing in their way. The buffer is the
    /// device's until whatever moves the device hands it back as an [`Ended`].
    ///
    /// # Errors
    /// The buffer: this request takes a future, and nothing has been done. So does every
    /// request to a device that knows no other way, the usual one.
    fn begin(
        &self,
        transfer: Transfer,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
        tag: Tag,
    ) -> Result<(), Buffer> {
        let _ = (transfer, at, blocks, tag);
        Err(buffer)
    }

    /// Makes every write that has completed durable.
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>>;

    /// Makes the blocks read as zero. `unmap` allows the device to give their
    /// space back.
    fn write_zeroes(
        &self,
        extent: Extent,
        unmap: bool,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Tells the device that the blocks are not needed. What they read as
    /// afterwards is not defined; a device that cannot do it does nothing.
    fn deallocate(&self, extent: Extent) -> impl Future<Output = Result<(), BlockError>>;
}
