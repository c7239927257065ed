//! Writing: a block is dropped if it is zero, shared if it is there, else
//! sealed where it lies in the request's buffer and written.

use std::ops::Range;

use block_core::device::Durability;
use block_core::unit::{BLOCK_SIZE, MAX_REQUEST_BLOCKS};
use block_core::{BlockCount, BlockError, Buffer, Device, Extent, Lba, LbaRange, Pba};

use crate::core::{Core, Head, count};
use crate::hash;
use crate::layout::control::VolumeId;
use crate::layout::record::Hash;
use crate::layout::{Epoch, Kind, Pointer, Record, Seal};
use crate::read::block_at;
use crate::space::Purpose;

/// Blocks of a request, at most.
pub(crate) const MOST: usize = MAX_REQUEST_BLOCKS + 1;

/// Entries that a part of a trim takes out of the overlay at most: a bound on
/// how long a turn lasts.
const TRIM_ENTRIES: usize = 512;

/// Blocks of such a part when a snapshot has them: each may become an entry of
/// a dead list, for which there must be room.
const TRIM_BLOCKS: BlockCount = BlockCount(64 * 1024);

/// What becomes of a block of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It has to be stored.
    Store,
    /// It is the same as an earlier one of the request, which comes first.
    Same,
    /// The change is done.
    Done,
}

/// A request of at most `N` blocks on its way. Those of one block are so many
/// that what the others need would cost them time.
struct Batch<const N: usize> {
    head: Head,
    range: LbaRange,
    /// Where the range begins in the buffer, in blocks.
    place: usize,
    fates: [Fate; N],
    hashes: [Hash; N],
    /// Of those that were sealed.
    seals: [Seal; N],
}

impl<const N: usize> Batch<N> {
    fn new(head: Head, range: LbaRange, place: usize) -> Self {
        let (fates, hashes) = ([Fate::Done; N], [Hash::default(); N]);
        Self { head, range, place, fates, hashes, seals: [Seal::default(); N] }
    }

    fn blocks(&self) -> usize {
        self.range.count.0 as usize
    }

    fn lba(&self, at: usize) -> Lba {
        Lba(self.range.start.0 + at as u64)
    }

    /// The first run from `from` on that has to be stored.
    fn to_store(&self, from: usize) -> Option<Range<usize>> {
        let rest = self.fates.get(from..self.blocks())?;
        let start = from + rest.iter().position(|fate| *fate == Fate::Store)?;
        let run = self.fates[start..self.blocks()].iter();
        Some(start..start + run.take_while(|fate| **fate == Fate::Store).count())
    }
}

impl<D: Device> Core<D> {
    /// Writes at most `N` blocks, `place..` of the buffer, to a volume whose
    /// head is now `head`. What is in the buffer afterwards is of no use.
    ///
    /// After an error each block is old or new.
    /// The caller was admitted.
    pub(crate) async fn write<const N: usize>(
        &self,
        head: Head,
        range: LbaRange,
        mut buffer: Buffer,
        place: usize,
        durability: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        let _writing = self.writers.enter();
        let mut batch = Batch::<N>::new(head, range, place);
        if let Err(error) = self.examine(&mut batch, &buffer) {
            return (buffer, Err(error));
        }
        let mut fate = Fate::Store;
        loop {
            self.share_all(&mut batch, fate).await;
            let mut at = 0;
            while let Some(run) = batch.to_store(at) {
                let most = run.len() as u32;
                let taken = match self.space.try_take(Purpose::Data, most) {
                    Some(extent) => Ok(extent),
                    None => self.space.take(Purpose::Data, most).await,
                };
                let Ok(extent) = taken else { return (buffer, Err(BlockError::NoSpace)) };
                at = run.start + extent.count.0 as usize;
                let run = run.start..at;
                if let Err(error) = self.seal_run(&mut batch, &mut buffer, run.clone(), extent) {
                    return (buffer, Err(error));
                }
                let places = place + run.start..place + run.end;
                let write = self.device.write(extent.start, buffer, places, Durability::Cached);
                let outcome;
                (buffer, outcome) = write.await;
                if self.heed(outcome).is_err() {
                    self.space.set_aside(extent);
                    return (buffer, outcome);
                }
                self.settle_run(&mut batch, run, extent);
            }
            if !batch.fates.contains(&Fate::Same) {
                break;
            }
            fate = Fate::Same;
        }
        self.pace_now_and_then();
        let outcome = match durability {
            Durability::Through => self.flush().await,
            Durability::Cached => Ok(()),
        };
        (buffer, outcome)
    }

    /// Makes holes of zeroes, and hashes the rest.
    fn examine<const N: usize>(
        &self,
        batch: &mut Batch<N>,
        buffer: &Buffer,
    ) -> Result<(), BlockError> {
        let bytes = batch.place * BLOCK_SIZE..(batch.place + batch.blocks()) * BLOCK_SIZE;
        let mut rest: [&[u8]; N] = [&[]; N];
        let mut places = [0; N];
        let (mut found, mut holes) = (0, 0..0);
        for (at, block) in buffer[bytes].chunks_exact(BLOCK_SIZE).enumerate() {
            if !hash::is_zero(block) {
                (rest[found], places[found]) = (block, at);
                found += 1;
                continue;
            }
            if holes.end != at {
                self.settle_holes(batch, holes);
                holes = at..at;
            }
            holes.end = at + 1;
        }
        self.settle_holes(batch, holes);
        count(&self.tally.zeroes, (batch.blocks() - found) as u64);
        count(&self.tally.written, found as u64);
        let mut out = [Hash::default(); N];
        self.hashes(batch.head.domain, &rest[..found], &mut out[..found])?;
        for (number, &at) in places[..found].iter().enumerate() {
            batch.hashes[at] = out[number];
            let is_twin = out[..number].contains(&out[number]);
            batch.fates[at] = if is_twin { Fate::Same } else { Fate::Store };
        }
        Ok(())
    }

    fn settle_holes<const N: usize>(&self, batch: &Batch<N>, holes: Range<usize>) {
        if !holes.is_empty() {
            let (start, count) = (batch.lba(holes.start), BlockCount(holes.len() as u64));
            let range = LbaRange { start, count };
            self.settle(&Record::Hole { line: batch.head.line, range });
        }
    }

    /// Shares those blocks of a fate that are there; the others have to be
    /// stored.
    async fn share_all<const N: usize>(&self, batch: &mut Batch<N>, fate: Fate) {
        for at in 0..batch.blocks() {
            if batch.fates[at] != fate {
                continue;
            }
            let (lba, hash) = (batch.lba(at), batch.hashes[at]);
            let candidates = self.index.candidates(&hash);
            let shared = !candidates.is_empty()
                && self.share(&batch.head, lba, &hash, candidates, || true).await;
            batch.fates[at] = if shared { Fate::Done } else { Fate::Store };
        }
    }

    /// Seals blocks that follow each other, in the buffer and on the device.
    fn seal_run<const N: usize>(
        &self,
        batch: &mut Batch<N>,
        buffer: &mut Buffer,
        run: Range<usize>,
        extent: Extent,
    ) -> Result<(), BlockError> {
        for (pba, at) in (extent.start.0..).map(Pba).zip(run) {
            let bytes = block_at(buffer, batch.place + at);
            match self.seal_block(batch.head.domain, pba, bytes) {
                Ok(seal) => batch.seals[at] = seal,
                Err(error) => {
                    self.space.give_back(extent);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Refers to blocks that were written.
    fn settle_run<const N: usize>(&self, batch: &mut Batch<N>, run: Range<usize>, extent: Extent) {
        // The epoch may have ended since the request came.
        let birth = self.state.borrow().catalog.epoch();
        for (pba, at) in (extent.start.0..).map(Pba).zip(run) {
            let pointer = Pointer { seal: batch.seals[at], pba, birth, kind: Kind::Data };
            let (line, lba, hash) = (batch.head.line, batch.lba(at), batch.hashes[at]);
            self.settle(&Record::New { line, lba, pointer, hash });
            batch.fates[at] = Fate::Done;
        }
    }

    /// Makes the front part of a range of a volume read as zero, and gives up
    /// what it had. Returns the rest. The caller was admitted.
    pub(crate) fn clear_some(&self, id: VolumeId, range: LbaRange) -> Result<LbaRange, BlockError> {
        let head = self.head(id).ok_or(BlockError::NotAttached)?;
        let most = if head.since > Epoch(0) { TRIM_BLOCKS } else { range.count };
        let part = LbaRange { count: range.count.min(most), ..range };
        let part = self.state.borrow().active.slice(head.line, part, TRIM_ENTRIES);
        if !self.settle(&Record::Hole { line: head.line, range: part }) {
            return Err(BlockError::Malformed);
        }
        self.pace();
        let left = BlockCount(range.count.0 - part.count.0);
        Ok(LbaRange { start: part.end(), count: left })
    }

    /// Makes everything that was answered durable.
    pub(crate) async fn flush(&self) -> Result<(), BlockError> {
        self.journal.flush().await.map_err(|_| {
            self.freeze_with_journal();
            BlockError::Medium
        })
    }
}
