//! A raw volume: a guest's sectors on the blocks of a few extents.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use block_core::device::Durability;
use block_core::unit::{
    BLOCK_SIZE, BlockCount, Extent, Lba, LbaRange, MAX_REQUEST_SECTORS, Pba, SECTOR_SIZE,
    SECTORS_PER_BLOCK, SectorRange,
};
use block_core::{BlockError, Buffer, Device, Op, Request};

use crate::range_lock::RangeLock;

/// Most blocks that one command makes zero: a bound on how long it keeps a
/// device from other work (16 MiB).
const ZERO_BLOCKS: u64 = 4 * 1024;

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

/// A volume that serves requests: a list of extents on a device, and nothing
/// between them and the guest.
#[derive(Debug)]
pub struct RawVolume<D> {
    device: Rc<D>,
    scratch: Rc<Scratch>,
    map: RefCell<ExtentMap>,
    changes: RangeLock,
    order: Cell<u64>,
    verifier: Cell<u64>,
}

impl<D: Device> RawVolume<D> {
    /// The volume of `blocks` that lie on `extents`, one after the other.
    #[must_use]
    pub fn new(
        device: Rc<D>,
        scratch: Rc<Scratch>,
        blocks: BlockCount,
        extents: &[Extent],
        verifier: u64,
    ) -> Self {
        Self {
            device,
            scratch,
            map: RefCell::new(ExtentMap::new(blocks, extents)),
            changes: RangeLock::new(0),
            order: Cell::new(0),
            verifier: Cell::new(verifier),
        }
    }

    /// The size.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        self.map.borrow().blocks
    }

    /// Changes when answered, unflushed writes may have been lost.
    #[must_use]
    pub fn verifier(&self) -> u64 {
        self.verifier.get()
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

    /// Gives the volume another size and place. Requests that are on their way
    /// go where they were going: before it shrinks, the caller waits for them.
    pub fn remap(&self, blocks: BlockCount, extents: &[Extent]) {
        *self.map.borrow_mut() = ExtentMap::new(blocks, extents);
    }

    /// Does what the request says.
    ///
    /// A read's or write's buffer has a block more than the request touches
    /// unless the request is made of whole blocks: there the old content of a
    /// block that changes in part is read, to be merged.
    pub async fn serve(&self, request: Request) -> Served {
        let Request { op, range, buffer } = request;
        if op == Op::Flush {
            let outcome = self.device.flush().await;
            return Served { outcome, word: self.verifier.get(), buffer };
        }
        let range = match self.check(op, range, buffer.as_ref()) {
            Ok(range) => range,
            Err(error) => return Served { outcome: Err(error), word: 0, buffer },
        };
        match (op, buffer) {
            (Op::Read, Some(buffer)) => self.read(range, buffer).await,
            (Op::Write, Some(buffer)) => self.write(range, buffer, Durability::Cached).await,
            (Op::WriteThrough, Some(buffer)) => {
                self.write(range, buffer, Durability::Through).await
            }
            (Op::Discard, buffer) => {
                // Nothing promises what discarded blocks read as. Zero, like
                // new ones: whatever the device does to its spare blocks,
                // nobody reads what another volume wrote there.
                let covered = range.blocks_covered();
                let (outcome, word) = self.change(covered, self.zero_blocks(covered, true)).await;
                Served { outcome, word, buffer }
            }
            (op, buffer) => {
                let unmap = op == Op::WriteZeroesUnmap;
                let through = op == Op::WriteZeroesThrough;
                let zero = async {
                    self.zero_range(range, unmap).await?;
                    if through { self.device.flush().await } else { Ok(()) }
                };
                let (outcome, word) = self.change(range.blocks_touched(), zero).await;
                Served { outcome, word, buffer }
            }
        }
    }

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

    async fn read(&self, range: SectorRange, buffer: Buffer) -> Served {
        let mut buffer = buffer;
        let mut outcome = Ok(());
        let mut left = range.blocks_touched();
        let mut at = 0;
        while let (Ok(()), Some(run)) = (outcome, self.next_run(&mut left)) {
            let places = at..at + run.count.0 as usize;
            at = places.end;
            (buffer, outcome) = self.device.read(run.start, buffer, places).await;
        }
        Served { outcome, word: 0, buffer: Some(buffer) }
    }

    async fn write(&self, range: SectorRange, buffer: Buffer, durability: Durability) -> Served {
        let touched = range.blocks_touched();
        let _turn = self.changes.enter(touched).await;
        let word = self.next_order();
        let (mut buffer, mut outcome) = if range.is_block_aligned() {
            (buffer, Ok(()))
        } else {
            self.complete_blocks(range, buffer).await
        };
        let mut left = touched;
        let mut at = 0;
        while let (Ok(()), Some(run)) = (outcome, self.next_run(&mut left)) {
            let places = at..at + run.count.0 as usize;
            at = places.end;
            (buffer, outcome) = self.device.write(run.start, buffer, places, durability).await;
        }
        Served { outcome, word, buffer: Some(buffer) }
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
            (buffer, outcome) = self.read_block(touched.start, buffer, blocks).await;
            buffer.copy_within(spare..spare + data.start, 0);
        }
        if tail && outcome.is_ok() {
            if !head || blocks > 1 {
                let last = Lba(touched.end().0 - 1);
                (buffer, outcome) = self.read_block(last, buffer, blocks).await;
            }
            let inside = data.end % BLOCK_SIZE;
            buffer.copy_within(spare + inside..spare + BLOCK_SIZE, data.end);
        }
        (buffer, outcome)
    }

    /// Reads one block of the volume into one block of the buffer.
    async fn read_block(
        &self,
        at: Lba,
        buffer: Buffer,
        place: usize,
    ) -> (Buffer, Result<(), BlockError>) {
        let pba = self.map.borrow().run(LbaRange { start: at, count: BlockCount(1) }).start;
        self.device.read(pba, buffer, place..place + 1).await
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

    /// Makes sectors zero: whole blocks by the device, the rest by merging.
    async fn zero_range(&self, range: SectorRange, unmap: bool) -> Result<(), BlockError> {
        let (touched, covered) = (range.blocks_touched(), range.blocks_covered());
        let first = touched.start;
        let last = Lba(touched.end().0 - 1);
        if !range.start().is_multiple_of(SECTORS_PER_BLOCK) {
            self.zero_part(first, range).await?;
        }
        self.zero_blocks(covered, unmap).await?;
        let tail = !range.end().is_multiple_of(SECTORS_PER_BLOCK);
        let tail_done = first == last && !range.start().is_multiple_of(SECTORS_PER_BLOCK);
        if tail && !tail_done {
            self.zero_part(last, range).await?;
        }
        Ok(())
    }

    async fn zero_blocks(&self, blocks: LbaRange, unmap: bool) -> Result<(), BlockError> {
        let mut left = blocks;
        while let Some(run) = self.next_run(&mut left) {
            zero_extent(&*self.device, run, unmap).await?;
        }
        Ok(())
    }

    /// Makes the sectors of `range` that lie in one block zero.
    async fn zero_part(&self, block: Lba, range: SectorRange) -> Result<(), BlockError> {
        let mut scratch = self.scratch.lock().await;
        let buffer = scratch.take().ok_or(BlockError::Medium)?;
        let (mut buffer, mut outcome) = self.read_block(block, buffer, 0).await;
        if outcome.is_ok() {
            buffer[part_of_block(block, range)].fill(0);
            let pba = self.map.borrow().run(LbaRange { start: block, count: BlockCount(1) }).start;
            (buffer, outcome) = self.device.write(pba, buffer, 0..1, Durability::Cached).await;
        }
        *scratch = Some(buffer);
        outcome
    }

    /// Where the first blocks of `left` lie next to each other on the device;
    /// they are taken off `left`.
    fn next_run(&self, left: &mut LbaRange) -> Option<Extent> {
        if left.is_empty() {
            return None;
        }
        let run = self.map.borrow().run(*left);
        left.start.0 += run.count.0;
        left.count.0 -= run.count.0;
        Some(run)
    }

    fn next_order(&self) -> u64 {
        let order = self.order.get();
        self.order.set(order + 1);
        order
    }
}

/// Makes an extent zero, piece by piece.
///
/// # Errors
/// The device's; a part may be zero then.
pub async fn zero_extent(
    device: &impl Device,
    extent: Extent,
    unmap: bool,
) -> Result<(), BlockError> {
    let mut at = extent.start;
    while at.0 < extent.end().0 {
        let count = BlockCount(ZERO_BLOCKS.min(extent.end().0 - at.0));
        device.write_zeroes(Extent { start: at, count }, unmap).await?;
        at.0 += count.0;
    }
    Ok(())
}

/// The bytes of a block that a run of sectors covers.
fn part_of_block(block: Lba, range: SectorRange) -> Range<usize> {
    let first = block.0 * SECTORS_PER_BLOCK;
    let from = range.start().saturating_sub(first);
    let to = (range.end() - first).min(SECTORS_PER_BLOCK);
    from as usize * SECTOR_SIZE..to as usize * SECTOR_SIZE
}

/// Where the blocks of a volume are.
#[derive(Debug)]
struct ExtentMap {
    blocks: BlockCount,
    /// The volume's blocks before the end of each extent, and the extent.
    runs: Box<[(u64, Extent)]>,
}

impl ExtentMap {
    fn new(blocks: BlockCount, extents: &[Extent]) -> Self {
        let mut end = 0;
        let runs: Box<[(u64, Extent)]> = extents
            .iter()
            .map(|&extent| {
                end += extent.count.0;
                (end, extent)
            })
            .collect();
        assert!(blocks.0 <= end, "the extents hold the volume");
        Self { blocks, runs }
    }

    /// Where the blocks of `range` begin on the device, and how many of them
    /// follow each other there. The range is not empty and lies in the volume.
    fn run(&self, range: LbaRange) -> Extent {
        let (end, extent) = self.runs[self.runs.partition_point(|&(end, _)| end <= range.start.0)];
        let into = range.start.0 - (end - extent.count.0);
        let count = range.count.0.min(extent.count.0 - into);
        Extent { start: Pba(extent.start.0 + into), count: BlockCount(count) }
    }
}
