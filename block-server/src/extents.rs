//! A raw volume: its blocks lie on a few extents of a device, and nothing is
//! between.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::device::{Durability, Tag, Transfer};
use block_core::unit::{BlockCount, Extent, LbaRange, Pba};
use block_core::{BlockError, Blocks, Buffer, Completed, Device};

/// Most blocks that one command makes zero: a bound on how long it keeps a
/// device from other work (16 MiB).
const ZERO_BLOCKS: u64 = 4 * 1024;

/// The blocks of a list of extents, one after the other.
#[derive(Debug)]
pub struct RawVolume<D> {
    device: Rc<D>,
    /// The size, which is asked for more often than where the blocks are.
    blocks: Cell<BlockCount>,
    map: RefCell<ExtentMap>,
}

impl<D: Device> RawVolume<D> {
    /// The volume of `blocks` that lie on `extents`.
    #[must_use]
    pub fn new(device: Rc<D>, blocks: BlockCount, extents: &[Extent]) -> Self {
        let map = RefCell::new(ExtentMap::new(blocks, extents));
        Self { device, blocks: Cell::new(blocks), map }
    }

    /// Gives the volume another size and place. Requests that are on their way
    /// go where they were going: before it shrinks, the caller waits for them.
    pub fn remap(&self, blocks: BlockCount, extents: &[Extent]) {
        self.blocks.set(blocks);
        *self.map.borrow_mut() = ExtentMap::new(blocks, extents);
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
}

impl<D: Device> Blocks for RawVolume<D> {
    #[inline]
    fn blocks(&self) -> BlockCount {
        self.blocks.get()
    }

    async fn read(
        &self,
        range: LbaRange,
        mut buffer: Buffer,
        place: usize,
    ) -> (Buffer, Result<(), BlockError>) {
        let mut outcome = Ok(());
        let mut left = range;
        let mut at = place;
        while let (Ok(()), Some(run)) = (outcome, self.next_run(&mut left)) {
            let places = at..at + run.count.0 as usize;
            at = places.end;
            (buffer, outcome) = self.device.read(run.start, buffer, places).await;
        }
        (buffer, outcome)
    }

    async fn write(
        &self,
        range: LbaRange,
        mut buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        let mut outcome = Ok(());
        let mut left = range;
        let mut at = place;
        while let (Ok(()), Some(run)) = (outcome, self.next_run(&mut left)) {
            let places = at..at + run.count.0 as usize;
            at = places.end;
            (buffer, outcome) = self.device.write(run.start, buffer, places, durability).await;
        }
        (buffer, outcome)
    }

    #[inline]
    fn begin(
        &self,
        transfer: Transfer,
        range: LbaRange,
        buffer: Buffer,
        tag: Tag,
    ) -> Result<(), Buffer> {
        let run = self.map.borrow().run(range);
        if run.count != range.count {
            return Err(buffer);
        }
        self.device.begin(transfer, run.start, buffer, 0..run.count.0 as usize, tag)
    }

    fn version(&self) -> u64 {
        0
    }

    async fn write_completed(
        &self,
        _: u64,
        range: LbaRange,
        buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> (Buffer, Result<Completed, BlockError>) {
        let (buffer, outcome) = self.write(range, buffer, place, durability).await;
        (buffer, outcome.map(|()| Completed::Written))
    }

    async fn zero(&self, range: LbaRange, unmap: bool) -> Result<(), BlockError> {
        let mut left = range;
        while let Some(run) = self.next_run(&mut left) {
            zero_extent(&*self.device, run, unmap).await?;
        }
        Ok(())
    }

    /// Nothing promises what discarded blocks read as. Zero, like new ones:
    /// whatever the device does to its spare blocks, nobody reads what another
    /// volume wrote there.
    async fn discard(&self, range: LbaRange) -> Result<(), BlockError> {
        self.zero(range, true).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.device.flush().await
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

/// Where the blocks of a volume are.
#[derive(Debug)]
struct ExtentMap {
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
        Self { runs }
    }

    /// Where the blocks of `range` begin on the device, and how many of them
    /// follow each other there. The range is not empty and lies in the volume.
    #[inline]
    fn run(&self, range: LbaRange) -> Extent {
        let at = match *self.runs {
            // Most volumes were never grown.
            [_] => 0,
            _ => self.runs.partition_point(|&(end, _)| end <= range.start.0),
        };
        let (end, extent) = self.runs[at];
        let into = range.start.0 - (end - extent.count.0);
        let count = range.count.0.min(extent.count.0 - into);
        Extent { start: Pba(extent.start.0 + into), count: BlockCount(count) }
    }
}
