//! A read or write of blocks: one command, or as many as the controller's limits ask for.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use block_core::unit::BLOCK_SIZE;
use block_core::{BlockCount, BlockError, Buffer, Extent, Pba};

use crate::command::{FORCE_UNIT_ACCESS, Order, io};
use crate::namespace::{Namespace, TRIES};
use crate::queue_pair::{Ask, Submission};
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
#[derive(Clone, Copy)]
struct Part<'a> {
    namespace: &'a Namespace,
    kind: Kind,
    /// Where it begins on the device, and which blocks of the buffer it is about.
    at: Pba,
    first: usize,
    count: usize,
}

impl Ask for Part<'_> {
    #[inline]
    fn order(&self) -> (Order, Data) {
        let Self { namespace, kind, at, first, count } = *self;
        let command = namespace.blocks_command(kind.opcode, at.0, count as u64, kind.flags);
        let data = Data::Blocks { offset: first * BLOCK_SIZE, bytes: count * BLOCK_SIZE };
        (Order::of(&command), data)
    }
}

/// See [`Namespace::transfer`]. Written by hand, and not as an async function of other
/// such functions: each of these is a state of its own, which is looked at and moved for
/// every request.
pub(crate) struct Transfer<'a> {
    part: Submission<'a, Part<'a>>,
    /// Blocks that follow that part.
    rest: usize,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    /// The request itself is; it is said when it is polled.
    Refused(BlockError),
    UnderWay,
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
        let stage = match if is_inside { self.check(extent) } else { Err(BlockError::Malformed) } {
            Ok(()) => Stage::New,
            Err(error) => Stage::Refused(error),
        };
        let count = all.min(self.transfer_blocks);
        let part = Part { namespace: self, kind, at, first: blocks.start, count };
        Transfer { part: self.queue().ask(part, Some(buffer), TRIES), rest: all - count, stage }
    }
}

const RETURNED: &str = "a command gives back the buffer that it was given";

impl Transfer<'_> {
    /// Refuses what cannot be done, with its buffer.
    #[inline]
    fn begin(&mut self) -> Option<(Buffer, BlockError)> {
        let outcome = match self.stage {
            Stage::Refused(error) => Err(error),
            Stage::New | Stage::UnderWay => self.judge(Ok(())),
        };
        self.stage = Stage::UnderWay;
        let error = outcome.err()?;
        Some((self.part.withdraw().expect(RETURNED), error))
    }

    /// What an outcome is worth: a write's is nothing when the device may have lost others.
    #[inline]
    fn judge(&self, outcome: Result<(), BlockError>) -> Result<(), BlockError> {
        let Part { namespace, kind, .. } = self.part.asked();
        if kind.opcode == io::READ { outcome } else { namespace.unless_lost(outcome) }
    }

    /// The next part of a long one, with the buffer of the last.
    #[cold]
    fn go_on(&mut self, buffer: Buffer) {
        let last = *self.part.asked();
        let count = self.rest.min(last.namespace.transfer_blocks);
        let at = Pba(last.at.0 + last.count as u64);
        let part = Part { at, first: last.first + last.count, count, ..last };
        self.rest -= count;
        self.part = last.namespace.queue().ask(part, Some(buffer), TRIES);
    }
}

impl Future for Transfer<'_> {
    type Output = (Buffer, Result<(), BlockError>);

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if this.stage != Stage::UnderWay
            && let Some((buffer, error)) = this.begin()
        {
            return Poll::Ready((buffer, Err(error)));
        }
        loop {
            let Poll::Ready((buffer, ending)) = Pin::new(&mut this.part).poll(context) else {
                return Poll::Pending;
            };
            let buffer = buffer.expect(RETURNED);
            let outcome = if ending == Ending::DONE { Ok(()) } else { ending.outcome() };
            let outcome = this.judge(outcome);
            if outcome.is_err() || this.rest == 0 {
                return Poll::Ready((buffer, outcome));
            }
            this.go_on(buffer);
        }
    }
}
