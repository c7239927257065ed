//! A read or write of blocks: one command, or as many as the controller's limits ask for.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll};

use block_core::unit::BLOCK_SIZE;
use block_core::{BlockCount, BlockError, Buffer, Extent, Pba};

use crate::command::{Command, FORCE_UNIT_ACCESS, io};
use crate::namespace::{Namespace, TRIES};
use crate::queue_pair::Submission;
use crate::table::Data;

/// What is done with the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    /// Answered when it is durable.
    WriteThrough,
}

impl Kind {
    const fn opcode(self) -> u8 {
        match self {
            Self::Read => io::READ,
            Self::Write | Self::WriteThrough => io::WRITE,
        }
    }

    const fn flags(self) -> u32 {
        match self {
            Self::Read | Self::Write => 0,
            Self::WriteThrough => FORCE_UNIT_ACCESS,
        }
    }
}

/// See [`Namespace::transfer`]. Written by hand, and not as an async function of other
/// such functions: each of these is a state of its own, which is looked at and moved for
/// every request.
pub(crate) struct Transfer<'a> {
    namespace: &'a Namespace,
    kind: Kind,
    /// What the request itself is refused for: said when it is polled.
    refused: Option<BlockError>,
    has_begun: bool,
    part: Submission<'a>,
    /// What follows that part, on the device and in the buffer.
    next: Pba,
    rest: Range<usize>,
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
        let count = blocks.end.saturating_sub(blocks.start);
        let extent = Extent { start: at, count: BlockCount(count as u64) };
        let is_inside = count > 0 && blocks.end <= buffer.len() / BLOCK_SIZE;
        let refused =
            if is_inside { self.check(extent).err() } else { Some(BlockError::Malformed) };
        let (mut next, mut rest) = (at, blocks);
        let part = match refused {
            None => self.part(kind, buffer, &mut next, &mut rest),
            Some(_) => self.queue().submit(Command::new(0, 0), Data::Nothing, Some(buffer), 0),
        };
        Transfer { namespace: self, kind, refused, has_begun: false, part, next, rest }
    }

    /// The next command: as much of the rest as one may have.
    #[inline]
    fn part(
        &self,
        kind: Kind,
        buffer: Buffer,
        next: &mut Pba,
        rest: &mut Range<usize>,
    ) -> Submission<'_> {
        let count = rest.len().min(self.transfer_blocks);
        let command = self.blocks_command(kind.opcode(), next.0, count as u64, kind.flags());
        let data = Data::Blocks { offset: rest.start * BLOCK_SIZE, bytes: count * BLOCK_SIZE };
        next.0 += count as u64;
        rest.start += count;
        self.queue().submit(command, data, Some(buffer), TRIES)
    }
}

impl Transfer<'_> {
    /// What an outcome is worth: a write's is nothing when the device may have lost others.
    #[inline]
    fn judge(&self, outcome: Result<(), BlockError>) -> Result<(), BlockError> {
        if self.kind == Kind::Read { outcome } else { self.namespace.unless_lost(outcome) }
    }
}

impl Future for Transfer<'_> {
    type Output = (Buffer, Result<(), BlockError>);

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        const RETURNED: &str = "a command gives back the buffer that it was given";
        let this = self.get_mut();
        if !this.has_begun {
            if let Err(error) = this.judge(this.refused.map_or(Ok(()), Err)) {
                return Poll::Ready((this.part.withdraw().expect(RETURNED), Err(error)));
            }
            this.has_begun = true;
        }
        loop {
            let Poll::Ready((buffer, ending)) = Pin::new(&mut this.part).poll(context) else {
                return Poll::Pending;
            };
            let buffer = buffer.expect(RETURNED);
            let outcome = this.judge(ending.outcome());
            if outcome.is_err() || this.rest.is_empty() {
                return Poll::Ready((buffer, outcome));
            }
            this.part = this.namespace.part(this.kind, buffer, &mut this.next, &mut this.rest);
        }
    }
}
