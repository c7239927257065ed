//! The seam between what a guest asks of a volume and what holds its blocks.

use std::future::Future;
use std::rc::Rc;

use crate::buffer::Buffer;
use crate::device::{Durability, Tag, Transfer};
use crate::error::BlockError;
use crate::unit::{BlockCount, LbaRange};

/// What became of a write of blocks that had been completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completed {
    /// They are written.
    Written,
    /// What they were completed with is of the past: they have to be completed
    /// again.
    Outdated,
}

/// The whole blocks of one volume: extents of a device, or a volume of a pool.
/// [`Ordered`](crate::Ordered) makes of it what a guest talks to.
///
/// The caller has checked that every range lies in the volume, is not empty,
/// and that its blocks fit in the buffer from block `place` of it on. It lets
/// no two changes of the same block run at a time. Buffers move in and come
/// back with the outcome.
pub trait Blocks {
    /// The size.
    fn blocks(&self) -> BlockCount;

    /// Reads blocks of the volume into the buffer, from its block `place` on.
    fn read(
        &self,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
    ) -> impl Future<Output = (Buffer, Result<(), BlockError>)>;

    /// Writes blocks of the buffer, from its block `place` on. After an error
    /// each block of the volume is old or new. What the buffer holds
    /// afterwards is not defined: blocks may be sealed in place.
    fn write(
        &self,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> impl Future<Output = (Buffer, Result<(), BlockError>)>;

    /// Begins a read or a write of blocks that lie on the device as they are, as
    /// [`Device::begin`] does. By default none do.
    ///
    /// # Errors
    /// The buffer: this request takes a future, and nothing has been done.
    ///
    /// [`Device::begin`]: crate::Device::begin
    fn begin(
        &self,
        transfer: Transfer,
        range: LbaRange,
        buffer: Buffer,
        tag: Tag,
    ) -> Result<(), Buffer> {
        let _ = (transfer, range, tag);
        Err(buffer)
    }

    /// Rises when any block may have become another one without a change of
    /// the caller's: the volume was restored, or made smaller.
    fn version(&self) -> u64;

    /// As [`Blocks::write`], for blocks that were completed with what was read
    /// after [`Blocks::version`] was asked: nothing is written, and the buffer
    /// comes back as it was, if the version is another one when it would be.
    fn write_completed(
        &self,
        version: u64,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> impl Future<Output = (Buffer, Result<Completed, BlockError>)>;

    /// Makes blocks read as zero. `unmap` allows their space to be given
    /// back.
    fn zero(&self, range: LbaRange, unmap: bool) -> impl Future<Output = Result<(), BlockError>>;

    /// The blocks are not needed. They may read as they did or as zero
    /// afterwards, and never as what another volume wrote.
    fn discard(&self, range: LbaRange) -> impl Future<Output = Result<(), BlockError>>;

    /// Makes every change that was answered durable.
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>>;
}

/// A volume that several serve. The futures are those of the volume: one of
/// its own would be one more to poll and to drop for each request.
impl<B: Blocks> Blocks for Rc<B> {
    fn blocks(&self) -> BlockCount {
        (**self).blocks()
    }

    fn read(
        &self,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
    ) -> impl Future<Output = (Buffer, Result<(), BlockError>)> {
        (**self).read(range, buffer, place)
    }

    fn write(
        &self,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> impl Future<Output = (Buffer, Result<(), BlockError>)> {
        (**self).write(range, buffer, place, durability)
    }

    #[inline]
    fn begin(
        &self,
        transfer: Transfer,
        range: LbaRange,
        buffer: Buffer,
        tag: Tag,
    ) -> Result<(), Buffer> {
        (**self).begin(transfer, range, buffer, tag)
    }

    fn version(&self) -> u64 {
        (**self).version()
    }

    fn write_completed(
        &self,
        version: u64,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> impl Future<Output = (Buffer, Result<Completed, BlockError>)> {
        (**self).write_completed(version, range, buffer, place, durability)
    }

    fn zero(&self, range: LbaRange, unmap: bool) -> impl Future<Output = Result<(), BlockError>> {
        (**self).zero(range, unmap)
    }

    fn discard(&self, range: LbaRange) -> impl Future<Output = Result<(), BlockError>> {
        (**self).discard(range)
    }

    fn flush(&self) -> impl Future<Output = Result<(), BlockError>> {
        (**self).flush()
    }
}
