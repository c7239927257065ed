//! A read or write of blocks: one command, or as many as the controller's limits ask for.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use block_core::device::Tag;
use block_core::unit::BLOCK_SIZE;
use block_core::{BlockCount, BlockError, Buffer, Extent, Pba};

use crate::command::{FORCE_UNIT_ACCESS, Order, io};
use crate::namespace::{Namespace, TRIES};
use crate::queue_pair::{Ask, QueuePair, Submission};
use crate::table::{Data, Ending};

/// What is done with the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    opcode: u8,
    /// Of dword 12.
    flags: u32,
}

impl Kind {
    pub(crate) const READ: Self = Self { opcode: io::READ, flags: 0 };
    pub(crate) const WRITE: Self = Self { opcode: io::WRITE, flags: 0 };
    /// Answered when it is durable.
    pub(crate) const WRITE_THROUGH: Self = Self { opcode: io::WRITE, flags: FORCE_UNIT_ACCESS };
}

/// One command's share of a request.
struct Part<'a> {
    namespace: &'a Namespace,
    kind: Kind,
    /// Where it begins on the device, and in the buffer as the device finds it.
    at: Pba,
    iova: u64,
    /// Blocks.
    count: usize,
    buffer: Option<Buffer>,
    /// The request is, as a whole.
    refused: Option<BlockError>,
}

impl<'a> Ask<'a> for Part<'a> {
    #[inline]
    fn queue(&self) -> &'a QueuePair {
        self.namespace.queue()
    }

    #[inline]
    fn check(&self) -> Result<(), BlockError> {
        self.refused.map_or(Ok(()), Err)?;
        self.judge(Ok(()))
    }

    #[inline]
    fn order(&self) -> (Order, Data) {
        let Self { namespace, kind, at, iova, count, .. } = *self;
        let command = namespace.blocks_command(kind.opcode, at.0, count as u64, kind.flags);
        (Order::of(&command), Data::Blocks { iova, bytes: count * BLOCK_SIZE })
    }

    fn take_buffer(&mut self) -> Option<Buffer> {
        self.buffer.take()
    }
}

impl Part<'_> {
    /// What an outcome is worth: a write's is nothing when the device may have lost others.
    #[inline]
    fn judge(&self, outcome: Result<(), BlockError>) -> Result<(), BlockError> {
        let is_read = self.kind.opcode == io::READ;
        if is_read { outcome } else { self.namespace.unless_lost(outcome) }
    }
}

/// See [`Namespace::transfer`]. Written by hand, and not as an async function of other
/// such functions: each of these is a state of its own, which is looked at and moved for
/// every request.
pub(crate) struct Transfer<'a> {
    part: Submission<'a, Part<'a>>,
    /// Blocks of that part and those that follow it.
    left: usize,
}

impl Namespace {
    /// Reads or writes those blocks of the buffer. Parts run one after the other, since
    /// the one buffer goes with each.
    #[inline]
    pub(crate) fn transfer(
        &self,
        kind: Kind,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
    ) -> Transfer<'_> {
        let all = blocks.end.saturating_sub(blocks.start);
        let is_inside = all > 0 && blocks.end <= buffer.len() / BLOCK_SIZE;
        let extent = Extent { start: at, count: BlockCount(all as u64) };
        let checked = if is_inside { self.check(extent) } else { Err(BlockError::Malformed) };
        let count = all.min(self.transfer_blocks.get());
        let iova = after(buffer.iova(), blocks.start);
        let (buffer, refused) = (Some(buffer), checked.err());
        let part = Part { namespace: self, kind, at, iova, count, buffer, refused };
        Transfer { part: Submission::new(part, TRIES), left: all }
    }

    /// Reads or writes those blocks of the buffer by one command that nobody waits for. If
    /// that is not the way, or must not be done, the buffer comes back.
    #[inline]
    pub(crate) fn begin_transfer(
        &self,
        kind: Kind,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
        tag: Tag,
    ) -> Result<(), Buffer> {
        let count = blocks.end.saturating_sub(blocks.start);
        let extent = Extent { start: at, count: BlockCount(count as u64) };
        let is_one = count > 0 && count <= self.transfer_blocks.get();
        let is_inside = blocks.end <= buffer.len() / BLOCK_SIZE && self.check(extent).is_ok();
        let is_read = kind.opcode == io::READ;
        if !is_one || !is_inside || !(is_read || self.unless_lost(Ok(())).is_ok()) {
            return Err(buffer);
        }
        let command = self.blocks_command(kind.opcode, at.0, count as u64, kind.flags);
        let iova = after(buffer.iova(), blocks.start);
        let data = Data::Blocks { iova, bytes: count * BLOCK_SIZE };
        self.queue().begin(Order::of(&command), data, buffer, tag)
    }
}

/// So many blocks after an address; of a request that is refused it may be anything.
const fn after(iova: u64, blocks: usize) -> u64 {
    iova.wrapping_add((blocks as u64).wrapping_mul(BLOCK_SIZE as u64))
}

const RETURNED: &str = "a request has its buffer until it has ended";

impl Transfer<'_> {
    /// The last part has ended.
    #[inline]
    fn end(&mut self, outcome: Result<(), BlockError>) -> Poll<<Self as Future>::Output> {
        Poll::Ready((self.part.take_buffer().expect(RETURNED), outcome))
    }

    /// A part has failed, or another one follows.
    #[cold]
    fn go_on(
        &mut self,
        ending: Ending,
        context: &mut Context<'_>,
    ) -> Poll<<Self as Future>::Output> {
        let outcome = self.part.asked().judge(ending.outcome());
        if outcome.is_err() || self.left == self.part.asked().count {
            return self.end(outcome);
        }
        let buffer = self.part.take_buffer();
        let Part { namespace, kind, at, iova, count, .. } = *self.part.asked();
        let (at, iova) = (Pba(at.0 + count as u64), after(iova, count));
        self.left -= count;
        let count = self.left.min(namespace.transfer_blocks.get());
        let part = Part { namespace, kind, at, iova, count, buffer, refused: None };
        self.part = Submission::new(part, TRIES);
        Pin::new(self).poll(context)
    }
}

impl Future for Transfer<'_> {
    type Output = (Buffer, Result<(), BlockError>);

    // Always: a call of its own is a fifth of what a request takes.
    #[inline(always)]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.left == this.part.asked().count
            && this.part.asked().judge(Ok(())).is_ok()
            && this.part.is_done()
        {
            return this.end(Ok(()));
        }
        match Pin::new(&mut this.part).poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(ending) => this.go_on(ending, context),
        }
    }
}
