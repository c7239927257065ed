//! What the journal says after a crash: where its chain ends, whether that is
//! all that was durable, and its records again.

use block_core::{Device, Pool};
use thiserror::Error;
use turn::yield_now;

use super::Position;
use super::block::{self, Header, Opened, Ring, Unproven};
use super::read_ahead::{Blocks, ReadAhead};
use crate::layout::Record;
use crate::layout::control::Malformed;
use crate::vault::Vault;

/// Blocks that are opened before other tasks get their turn.
const BLOCKS_IN_A_TURN: usize = 32;

/// Where a recovery begins: what the superblock says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// The first block that the checkpoint does not hold.
    pub position: Position,
    /// The mark when the superblock was written.
    pub mark: u64,
}

/// Whether the journal holds all that it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing that was known to be durable is missing.
    Whole,
    /// This block was durable and is not there, or it cannot be read, or it
    /// says what no journal says. Those before it are good.
    Damaged {
        /// Its number.
        missing: u64,
    },
}

/// The journal that a device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its end: what would follow.
    pub end: Position,
    /// The last number that was known to be durable. What blocks after it name
    /// may not have reached the device.
    pub mark: u64,
    /// Whether this is all that it must be.
    pub verdict: Verdict,
}

/// Why records could not be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ReplayError {
    /// A block that was good a moment ago is not.
    #[error("block {0} of the journal does not read as it did a moment ago")]
    Changed(u64),
    /// A record that cannot be.
    #[error("block {0} of the journal says what cannot be")]
    Malformed(u64),
}

/// Follows the chain of tags from `start`, and looks at every other block of
/// the ring for a mark that says that more was durable.
///
/// Blocks of a history that a recovery has cut off do no harm: their marks are
/// below the cut, and the chain does not lead to them unless what replaced
/// them never reached the device.
///
/// Reads through `buffers`, of any size; 16 large ones are fast, one is
/// enough. Without a free one the chain is damaged at its start.
pub async fn scan<D: Device>(
    device: &D,
    vault: &Vault,
    buffers: &Pool,
    ring: &Ring,
    start: Start,
) -> Chain {
    let mut scan = Scan { ring, vault, end: start.position, mark: start.mark, ended: None };
    let first = start.position.next;
    let mut ahead = ReadAhead::new(device, buffers, ring, first, first + ring.blocks());
    let mut seen = 0;
    while let Some(mut blocks) = ahead.next().await {
        for index in 0..blocks.count {
            scan.look_at(blocks.first + index as u64, blocks.get(index));
            seen += 1;
            if seen % BLOCKS_IN_A_TURN == 0 {
                yield_now().await;
            }
        }
    }
    let missing = scan.end.next;
    let broken = seen == 0 || scan.ended == Some(End::Broken) || scan.mark >= missing;
    let verdict = if broken { Verdict::Damaged { missing } } else { Verdict::Whole };
    Chain { end: scan.end, mark: scan.mark, verdict }
}

/// How a chain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As a crash ends it: the next block is not there.
    Open,
    /// Where a block cannot be read, or says what no journal says.
    Broken,
}

struct Scan<'a> {
    ring: &'a Ring,
    vault: &'a Vault,
    end: Position,
    mark: u64,
    ended: Option<End>,
}

impl Scan<'_> {
    /// Looks at what lies at the place of block `number`.
    fn look_at(&mut self, number: u64, block: Option<&mut [u8]>) {
        let Some(block) = block else {
            self.ended.get_or_insert(End::Broken);
            return;
        };
        let claimed = Unproven::parse(self.ring, self.ring.place(number), block);
        match claimed.filter(|it| self.ended.is_none() && follows(it.claim(), self.end)) {
            Some(next) => self.follow(next, block),
            None => {
                self.ended.get_or_insert(End::Open);
                self.hear(claimed, block);
            }
        }
    }

    fn follow(&mut self, next: Unproven, block: &mut [u8]) {
        let Some(Opened { header, tag }) = next.open(self.vault, self.ring, block) else {
            self.ended = Some(End::Open);
            return;
        };
        if block::records(header.count, block, |_| Ok(())).is_err() {
            self.ended = Some(End::Broken);
            return;
        }
        self.end = Position { next: header.number + 1, previous: tag };
        self.mark = self.mark.max(header.mark);
    }

    /// A block outside of the chain counts for its mark only.
    fn hear(&mut self, claimed: Option<Unproven>, block: &mut [u8]) {
        let more = claimed.filter(|it| it.claim().mark > self.mark);
        if let Some(opened) = more.and_then(|it| it.open(self.vault, self.ring, block)) {
            self.mark = opened.header.mark;
        }
    }
}

fn follows(claim: &Header, end: Position) -> bool {
    claim.number == end.next && claim.previous == end.previous
}

/// Reads the blocks that [`scan`] found once more, for their records.
pub struct Reader<'a, D> {
    vault: &'a Vault,
    ring: &'a Ring,
    ahead: ReadAhead<'a, D>,
    read: Option<Blocks>,
    at: Position,
    end: u64,
}

impl<'a, D: Device> Reader<'a, D> {
    /// Reads the blocks from `from` up to, not including, number `end`,
    /// through `buffers`, as [`scan`] does.
    pub fn new(
        device: &'a D,
        vault: &'a Vault,
        buffers: &'a Pool,
        ring: &'a Ring,
        from: Position,
        end: u64,
    ) -> Self {
        let ahead = ReadAhead::new(device, buffers, ring, from.next, end);
        Self { vault, ring, ahead, read: None, at: from, end }
    }

    /// Before the next block: where a journal goes on if the rest is cut off.
    pub fn position(&self) -> Position {
        self.at
    }

    /// Hands the records of the next block to `sink`; false when there are no
    /// more blocks.
    ///
    /// # Errors
    /// When the block is not as [`scan`] found it, or `sink` says that a record
    /// cannot be.
    pub async fn next(
        &mut self,
        sink: impl FnMut(Record) -> Result<(), Malformed>,
    ) -> Result<bool, ReplayError> {
        let number = self.at.next;
        if number >= self.end {
            return Ok(false);
        }
        let changed = ReplayError::Changed(number);
        let is_read = |blocks: &Blocks| number < blocks.first + blocks.count as u64;
        if !self.read.as_ref().is_some_and(is_read) {
            // There may be one buffer.
            self.read = None;
            self.read = self.ahead.next().await;
        }
        let blocks = self.read.as_mut().ok_or(changed)?;
        let block = blocks.get((number - blocks.first) as usize).ok_or(changed)?;
        let claimed = Unproven::parse(self.ring, self.ring.place(number), block);
        let next = claimed.filter(|it| follows(it.claim(), self.at)).ok_or(changed)?;
        let Opened { header, tag } = next.open(self.vault, self.ring, block).ok_or(changed)?;
        block::records(header.count, block, sink)
            .map_err(|Malformed| ReplayError::Malformed(number))?;
        self.at = Position { next: number + 1, previous: tag };
        if (number as usize).is_multiple_of(BLOCKS_IN_A_TURN) {
            yield_now().await;
        }
        Ok(true)
    }
}
