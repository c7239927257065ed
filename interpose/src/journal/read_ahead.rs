//! Reading the ring in order, with large reads under way ahead.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

use block_core::{BLOCK_SIZE, BlockError, Buffer, Device, Pool};

use super::Ring;

/// Reads under way at a time.
const AHEAD: usize = 16;

type Read<'a> = Pin<Box<dyn Future<Output = (Buffer, Result<(), BlockError>)> + 'a>>;

enum State<'a> {
    UnderWay(Read<'a>),
    Ended(Buffer, Result<(), BlockError>),
    Taken,
}

/// A read of blocks that follow each other on the device.
struct Piece<'a> {
    first: u64,
    count: usize,
    state: State<'a>,
}

impl Piece<'_> {
    fn poll(&mut self, context: &mut Context<'_>) {
        if let State::UnderWay(read) = &mut self.state
            && let Poll::Ready((buffer, outcome)) = read.as_mut().poll(context)
        {
            self.state = State::Ended(buffer, outcome);
        }
    }
}

/// Blocks that were read, the number of the first one first. A block that the
/// device could not read is not among the readable ones.
pub(super) struct Blocks {
    pub(super) first: u64,
    pub(super) count: usize,
    buffer: Buffer,
    unreadable: Option<Vec<bool>>,
}

impl Blocks {
    /// The block at a place of these, if the device could read it.
    pub(super) fn get(&mut self, index: usize) -> Option<&mut [u8]> {
        let readable = self.unreadable.as_ref().is_none_or(|bad| !bad[index]);
        readable.then(|| &mut self.buffer[index * BLOCK_SIZE..(index + 1) * BLOCK_SIZE])
    }
}

/// Reads blocks of a ring by number.
pub(super) struct ReadAhead<'a, D> {
    device: &'a D,
    buffers: &'a Pool,
    ring: &'a Ring,
    next: u64,
    end: u64,
    under_way: VecDeque<Piece<'a>>,
}

impl<'a, D: Device> ReadAhead<'a, D> {
    /// Reads blocks `first..end`, at most one lap of the ring, into as many
    /// of the buffers as there are, up to 16.
    pub(super) fn new(
        device: &'a D,
        buffers: &'a Pool,
        ring: &'a Ring,
        first: u64,
        end: u64,
    ) -> Self {
        let under_way = VecDeque::with_capacity(AHEAD);
        Self { device, buffers, ring, next: first, end, under_way }
    }

    /// The next blocks; `None` at the end, or when there is not one buffer.
    pub(super) async fn next(&mut self) -> Option<Blocks> {
        while self.under_way.len() < AHEAD && self.begin_read() {}
        let mut piece = poll_fn(|context| self.poll_first(context)).await?;
        let State::Ended(buffer, outcome) = std::mem::replace(&mut piece.state, State::Taken)
        else {
            return None;
        };
        let blocks = Blocks { first: piece.first, count: piece.count, buffer, unreadable: None };
        if outcome.is_ok() { Some(blocks) } else { Some(self.read_one_by_one(blocks).await) }
    }

    fn begin_read(&mut self) -> bool {
        if self.next >= self.end {
            return false;
        }
        let Some(buffer) = self.buffers.take() else { return false };
        let to_ring_end = self.ring.blocks() - self.next % self.ring.blocks();
        let most = (buffer.len() / BLOCK_SIZE) as u64;
        let count = most.min(to_ring_end).min(self.end - self.next) as usize;
        let read = self.device.read(self.ring.place(self.next), buffer, 0..count);
        let state = State::UnderWay(Box::pin(read));
        self.under_way.push_back(Piece { first: self.next, count, state });
        self.next += count as u64;
        true
    }

    fn poll_first(&mut self, context: &mut Context<'_>) -> Poll<Option<Piece<'a>>> {
        self.under_way.iter_mut().for_each(|piece| piece.poll(context));
        match self.under_way.front() {
            None => Poll::Ready(None),
            Some(Piece { state: State::UnderWay(_), .. }) => Poll::Pending,
            Some(_) => Poll::Ready(self.under_way.pop_front()),
        }
    }

    /// Finds which blocks of a failed read cannot be read.
    async fn read_one_by_one(&self, mut blocks: Blocks) -> Blocks {
        let mut bad = vec![false; blocks.count];
        for (index, bad) in bad.iter_mut().enumerate() {
            let place = self.ring.place(blocks.first + index as u64);
            let read = self.device.read(place, blocks.buffer, index..index + 1);
            let (buffer, outcome) = read.await;
            blocks.buffer = buffer;
            *bad = outcome.is_err();
        }
        blocks.unreadable = Some(bad);
        blocks
    }
}
