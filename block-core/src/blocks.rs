//! The seam between what a guest asks of a volume and what holds its blocks.

use std::future::Future;

use crate::buffer::Buffer;
use crate::device::Durability;
use crate::error::BlockError;
use crate::unit::{BlockCount, LbaRange};

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

    /// Makes blocks read as zero. `unmap` allows their space to be given
    /// back.
    fn zero(&self, range: LbaRange, unmap: bool) -> impl Future<Output = Result<(), BlockError>>;

    /// The blocks are not needed. They may read as they did or as zero
    /// afterwards, and never as what another volume wrote.
    fn discard(&self, range: LbaRange) -> impl Future<Output = Result<(), BlockError>>;

    /// Makes every change that was answered durable.
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>>;
}
