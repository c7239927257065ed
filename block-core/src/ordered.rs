//! A guest's requests, in sectors, on a volume's whole blocks: parts of blocks
//! are merged, and changes that overlap run one after the other, by number.

use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;

use crate::blocks::{Blocks, Completed};
use crate::buffer::Buffer;
use crate::device::{Durability, Tag, Transfer};
use crate::error::BlockError;
use crate::range_lock::{Arrival, RangeLock};
use crate::request::{Op, Request};
use crate::unit::{
    BLOCK_SIZE, BlockCount, Lba, LbaRange, MAX_REQUEST_SECTORS, SECTOR_SIZE, SECTORS_PER_BLOCK,
    SectorRange,
};

/// One buffer for all the requests that bring none and yet change a part of a
/// block; they take turns.
pub type Scratch = tokio::sync::Mutex<Option<Buffer>>;

/// What became of a request.
#[derive(Debug)]
pub struct Served {
    /// Whether it worked.
    pub outcome: Result<(), BlockError>,
    /// The order number of a change, the verifier after a flush, else zero.
    pub word: u64,
    /// The request's buffer, with the data of a read at its place.
    pub buffer: Option<Buffer>,
}

/// A request that was begun without a future.
#[derive(Debug)]
pub struct Begun {
    /// What it does.
    pub op: Op,
    /// Where.
    pub range: SectorRange,
    change: Option<Change>,
}

/// The turn of a change, and its order number.
#[derive(Debug)]
struct Change {
    turn: Arrival,
    order: u64,
}

/// A volume that serves requests.
#[derive(Debug)]
pub struct Ordered<B> {
    blocks: B,
    scratch: Rc<Scratch>,
    changes: RangeLock,
    order: Cell<u64>,
    verifier: Cell<u64>,
}

impl<B> Ordered<B> {
    /// Requests on `blocks`, with order numbers from 0 on.
    #[must_use]
    pub fn new(blocks: B, scratch: Rc<Scratch>, verifier: u64) -> Self {
        Self {
            blocks,
            scratch,
            changes: RangeLock::new(0),
            order: Cell::new(0),
            verifier: Cell::new(verifier),
        }
    }

    /// What holds the blocks.
    #[must_use]
    pub const fn below(&self) -> &B {
        &self.blocks
    }

    /// Changes when answered, unflushed writes may have been lost.
    #[must_use]
    pub fn verifier(&self) -> u64 {
        self.verifier.get()
    }

    /// Answered, unflushed writes may have been lost. Zero is no verifier.
    pub fn renew(&self, verifier: u64) {
        self.verifier.set(verifier.max(1));
    }

    /// The next change gets this order number if that is higher than the last
    /// one.
    pub fn raise_order(&self, first: u64) {
        self.order.set(self.order.get().max(first));
    }

    /// Makes room for the changes of a writer with so many slots.
    pub fn reserve(&self, slots: usize) {
        self.changes.reserve(slots);
    }

    fn next_order(&self) -> u64 {
        let order = self.order.get();
        self.order.set(order + 1);
        order
    }
}

impl<B: Blocks> Ordered<B> {
    /// The size.
    #[must_use]
    #[inline]
    pub fn blocks(&self) -> BlockCount {
        self.blocks.blocks()
    }

    /// Does what the request says.
    ///
    /// A read's or write's buffer has a block more than the request touches
    /// unless the request is made of whole blocks: there the old content of a
    /// block that changes in part is read, to be merged.
    pub async fn serve(&self, request: Request) -> Served {
        let Request { op, range, buffer } = request;
        if op == Op::Flush {
            let outcome = self.blocks.flush().await;
            return Served { outcome, word: self.verifier.get(), buffer };
        }
        let range = match self.check(op, range, buffer.as_ref()) {
            Ok(range) => range,
            Err(error) => return Served { outcome: Err(error), word: 0, buffer },
        };
        match (op, buffer) {
            (Op::Read, Some(buffer)) => {
                let (buffer, outcome) = self.blocks.read(range.blocks_touched(), buffer, 0).await;
                Served { outcome, word: 0, buffer: Some(buffer) }
            }
            (Op::Write, Some(buffer)) => self.write(range, buffer, Durability::Cached).await,
            (Op::WriteThrough, Some(buffer)) => {
                self.write(range, buffer, Durability::Through).await
            }
            (Op::Discard, buffer) => {
                let covered = range.blocks_covered();
                let discard = async {
                    if covered.is_empty() { Ok(()) } else { self.blocks.discard(covered).await }
                };
                let (outcome, word) = self.change(covered, discard).await;
                Served { outcome, word, buffer }
            }
            (op, buffer) => {
                let unmap = op == Op::WriteZeroesUnmap;
                let through = op == Op::WriteZeroesThrough;
                let zero = async {
                    self.zero_range(range, unmap).await?;
                    if through { self.blocks.flush().await } else { Ok(()) }
                };
                let (outcome, word) = self.change(range.blocks_touched(), zero).await;
                Served { outcome, word, buffer }
            }
        }
    }

    /// Begins a request without a future, if it is one of the usual ones: a read, or a
    /// write of whole blocks that overlaps no other change, of blocks that lie on their
    /// device as they are. Then the buffer is the device's, and whatever moves that hands
    /// it back. If not, nothing has been done, and the request is for [`Ordered::serve`].
    #[inline]
    pub fn begin(&self, request: &mut Request, tag: Tag) -> Option<Begun> {
        let Request { op, range: Some(range), .. } = *request else { return None };
        let transfer = Transfer::of(op).filter(|_| op == Op::Read || range.is_block_aligned())?;
        self.check(op, Some(range), request.buffer.as_ref()).ok()?;
        let blocks = range.blocks_touched();
        let turn = match transfer {
            Transfer::Read => None,
            Transfer::Write(_) => Some(self.changes.enter_now(blocks)?),
        };
        match self.blocks.begin(transfer, blocks, request.buffer.take()?, tag) {
            Ok(()) => {
                let change = turn.map(|turn| Change { turn, order: self.next_order() });
                Some(Begun { op, range, change })
            }
            Err(buffer) => {
                request.buffer = Some(buffer);
                turn.into_iter().for_each(|turn| self.changes.leave(&turn));
                None
            }
        }
    }

    /// What was begun has ended. The order number of a change, else zero.
    #[inline]
    pub fn end(&self, begun: &Begun) -> u64 {
        let Some(Change { turn, order }) = &begun.change else { return 0 };
        self.changes.leave(turn);
        *order
    }

    /// Asks once more for what was begun and the device gave up. It has not ended by that.
    pub async fn ask_again(
        &self,
        begun: &Begun,
        buffer: Buffer,
    ) -> (Buffer, Result<(), BlockError>) {
        let blocks = begun.range.blocks_touched();
        match Transfer::of(begun.op) {
            Some(Transfer::Write(how)) => self.blocks.write(blocks, buffer, 0, how).await,
            _ => self.blocks.read(blocks, buffer, 0).await,
        }
    }

    #[inline]
    fn check(
        &self,
        op: Op,
        range: Option<SectorRange>,
        buffer: Option<&Buffer>,
    ) -> Result<SectorRange, BlockError> {
        let range = range.ok_or(BlockError::Malformed)?;
        if range.end() > self.blocks().sectors() {
            return Err(BlockError::OutOfRange);
        }
        if op == Op::Read || op.carries_data() {
            let spare = usize::from(op.carries_data() && !range.is_block_aligned());
            let needed = range.blocks_touched().count.0 as usize + spare;
            let fits = buffer.is_some_and(|buffer| needed * BLOCK_SIZE <= buffer.len());
            if range.count() > MAX_REQUEST_SECTORS || !fits {
                return Err(BlockError::Malformed);
            }
        }
        Ok(range)
    }

    async fn write(&self, range: SectorRange, buffer: Buffer, durability: Durability) -> Served {
        let touched = range.blocks_touched();
        let _turn = self.changes.enter(touched).await;
        let word = self.next_order();
        let (buffer, outcome) = if range.is_block_aligned() {
            self.blocks.write(touched, buffer, 0, durability).await
        } else {
            self.merge(range, buffer, durability).await
        };
        Served { outcome, word, buffer: Some(buffer) }
    }

    /// Writes parts of blocks: what they had besides stays.
    async fn merge(
        &self,
        range: SectorRange,
        mut buffer: Buffer,
        durability: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        let touched = range.blocks_touched();
        loop {
            let version = self.blocks.version();
            let mut outcome;
            (buffer, outcome) = self.complete_blocks(range, buffer).await;
            if outcome.is_ok() {
                let write = self.blocks.write_completed(version, touched, buffer, 0, durability);
                let written;
                (buffer, written) = write.await;
                if written == Ok(Completed::Outdated) {
                    continue;
                }
                outcome = written.map(drop);
            }
            return (buffer, outcome);
        }
    }

    /// Reads the first and last block where the range covers them in part, and
    /// puts what it does not cover around the data in the buffer.
    async fn complete_blocks(
        &self,
        range: SectorRange,
        mut buffer: Buffer,
    ) -> (Buffer, Result<(), BlockError>) {
        let touched = range.blocks_touched();
        let blocks = touched.count.0 as usize;
        let data = range.offset_in_block()..range.offset_in_block() + range.bytes() as usize;
        let spare = blocks * BLOCK_SIZE;
        let (head, tail) = (data.start != 0, !data.end.is_multiple_of(BLOCK_SIZE));
        let mut outcome = Ok(());
        if head {
            (buffer, outcome) = self.blocks.read(one(touched.start), buffer, blocks).await;
            buffer.copy_within(spare..spare + data.start, 0);
        }
        if tail && outcome.is_ok() {
            if !head || blocks > 1 {
                let last = Lba(touched.end().0 - 1);
                (buffer, outcome) = self.blocks.read(one(last), buffer, blocks).await;
            }
            let inside = data.end % BLOCK_SIZE;
            buffer.copy_within(spare + inside..spare + BLOCK_SIZE, data.end);
        }
        (buffer, outcome)
    }

    /// Runs a change without data when its turn has come.
    async fn change(
        &self,
        blocks: LbaRange,
        change: impl Future<Output = Result<(), BlockError>>,
    ) -> (Result<(), BlockError>, u64) {
        let _turn = self.changes.enter(blocks).await;
        let order = self.next_order();
        (change.await, order)
    }

    /// Makes sectors zero: whole blocks below, the rest by merging.
    async fn zero_range(&self, range: SectorRange, unmap: bool) -> Result<(), BlockError> {
        let (touched, covered) = (range.blocks_touched(), range.blocks_covered());
        let first = touched.start;
        let last = Lba(touched.end().0 - 1);
        if !range.start().is_multiple_of(SECTORS_PER_BLOCK) {
            self.zero_part(first, range).await?;
        }
        if !covered.is_empty() {
            self.blocks.zero(covered, unmap).await?;
        }
        let tail = !range.end().is_multiple_of(SECTORS_PER_BLOCK);
        let tail_done = first == last && !range.start().is_multiple_of(SECTORS_PER_BLOCK);
        if tail && !tail_done {
            self.zero_part(last, range).await?;
        }
        Ok(())
    }

    /// Makes the sectors of `range` that lie in one block zero.
    async fn zero_part(&self, block: Lba, range: SectorRange) -> Result<(), BlockError> {
        let mut scratch = self.scratch.lock().await;
        let buffer = scratch.take().ok_or(BlockError::Medium)?;
        let (buffer, outcome) = self.merge_zeroes(block, range, buffer).await;
        *scratch = Some(buffer);
        outcome
    }

    async fn merge_zeroes(
        &self,
        block: Lba,
        range: SectorRange,
        mut buffer: Buffer,
    ) -> (Buffer, Result<(), BlockError>) {
        loop {
            let version = self.blocks.version();
            let mut outcome;
            (buffer, outcome) = self.blocks.read(one(block), buffer, 0).await;
            if outcome.is_ok() {
                buffer[part_of_block(block, range)].fill(0);
                let (place, cached) = (0, Durability::Cached);
                let write = self.blocks.write_completed(version, one(block), buffer, place, cached);
                let written;
                (buffer, written) = write.await;
                if written == Ok(Completed::Outdated) {
                    continue;
                }
                outcome = written.map(drop);
            }
            return (buffer, outcome);
        }
    }
}

const fn one(block: Lba) -> LbaRange {
    LbaRange { start: block, count: BlockCount(1) }
}

/// The bytes of a block that a run of sectors covers.
fn part_of_block(block: Lba, range: SectorRange) -> Range<usize> {
    let first = block.0 * SECTORS_PER_BLOCK;
    let from = range.start().saturating_sub(first);
    let to = (range.end() - first).min(SECTORS_PER_BLOCK);
    from as usize * SECTOR_SIZE..to as usize * SECTOR_SIZE
}
