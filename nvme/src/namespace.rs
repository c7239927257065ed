//! A namespace as a device of blocks.

use std::future::Future;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::rc::Rc;

use block_core::device::{Device, Durability, Tag, Transfer};
use block_core::unit::BLOCK_SIZE;
use block_core::{BlockCount, BlockError, Buffer, Extent, Pba};

use crate::command::{Command, DEALLOCATE_ZEROES, io};
use crate::identify::NamespaceInfo;
use crate::queue_pair::QueuePair;
use crate::table::Data;
use crate::transfer::Kind;

/// Most logical blocks that a command's 16-bit count can name.
const MAX_COMMAND_LBAS: u64 = 1 << 16;

/// How often a command is tried that the controller gives up: Linux has 6
/// (`nvme_core.max_retries` is 5).
pub(crate) const TRIES: u8 = 6;

/// A namespace, reached through one queue pair. Requests are cut where the
/// controller's limits ask for it.
///
/// It is a device until the controller is reset. If that may have cost answered
/// writes, it changes nothing any more; another one, made afterwards, does.
pub struct Namespace {
    queue: Rc<QueuePair>,
    /// How often the controller had been stopped.
    epoch: u32,
    id: u32,
    pub(crate) lbas_per_block: u64,
    blocks: BlockCount,
    cached: bool,
    /// Most blocks of one read or write.
    pub(crate) transfer_blocks: NonZeroUsize,
    /// Most blocks of one Write Zeroes; `None` when there is no such command.
    zero_blocks: Option<u64>,
    /// Most blocks of one deallocation; `None` when there is no such command.
    discard_blocks: Option<u64>,
}

impl Namespace {
    /// The namespace that `info` describes.
    #[must_use]
    pub fn new(queue: Rc<QueuePair>, info: &NamespaceInfo) -> Self {
        let core = queue.core();
        let lbas_per_block = info.lba_size.per_block();
        let in_blocks = |lbas: u64| (lbas / lbas_per_block).max(1);
        let transfer = core.max_transfer() as u64 / BLOCK_SIZE as u64;
        let zeroes = core.limits().write_zeroes.unwrap_or(u64::MAX) / BLOCK_SIZE as u64;
        let zeroes = zeroes.max(1).min(in_blocks(MAX_COMMAND_LBAS));
        let discard = u64::from(core.limits().range_blocks) / lbas_per_block;
        let transfer = transfer.min(in_blocks(MAX_COMMAND_LBAS)) as usize;
        let transfer_blocks = NonZeroUsize::new(transfer).unwrap_or(NonZeroUsize::MIN);
        Self {
            id: info.id,
            epoch: core.epoch(),
            lbas_per_block,
            blocks: info.blocks(),
            cached: core.info().has_volatile_cache,
            transfer_blocks,
            zero_blocks: core.info().has_write_zeroes.then_some(zeroes),
            discard_blocks: (core.info().has_dataset_management && discard > 0).then_some(discard),
            queue,
        }
    }

    /// The namespace ID.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether a reset since this was made may have cost answered writes.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.unless_lost(Ok(())).is_err()
    }

    /// The queue pair that carries its commands.
    #[must_use]
    pub fn queue(&self) -> &Rc<QueuePair> {
        &self.queue
    }

    /// Runs a command that carries no buffer to its end.
    async fn run(&self, command: Command, data: Data) -> Result<(), BlockError> {
        self.queue.submit(command, data, None, TRIES).await.outcome()
    }

    fn write_kind(&self, durability: Durability) -> Kind {
        match durability {
            Durability::Through if self.cached => Kind::WRITE_THROUGH,
            Durability::Through | Durability::Cached => Kind::WRITE,
        }
    }

    #[inline]
    pub(crate) fn blocks_command(&self, opcode: u8, start: u64, count: u64, flags: u32) -> Command {
        let lbas = count * self.lbas_per_block;
        debug_assert!(lbas <= MAX_COMMAND_LBAS);
        Command::blocks(opcode, self.id, start * self.lbas_per_block, lbas as u32, flags)
    }

    /// What an outcome is worth: what the device had answered may be gone.
    #[inline]
    pub(crate) fn unless_lost(&self, outcome: Result<(), BlockError>) -> Result<(), BlockError> {
        let core = self.queue.core();
        let is_lost = self.cached && core.epoch() != self.epoch;
        if is_lost { core.ending().outcome().and(outcome) } else { outcome }
    }

    #[inline]
    pub(crate) fn check(&self, extent: Extent) -> Result<(), BlockError> {
        let end = extent.start.checked_add(extent.count).ok_or(BlockError::OutOfRange)?;
        if end.0 > self.blocks.0 { Err(BlockError::OutOfRange) } else { Ok(()) }
    }
}

impl Device for Namespace {
    fn blocks(&self) -> BlockCount {
        self.blocks
    }

    fn has_volatile_cache(&self) -> bool {
        self.cached
    }

    #[inline]
    fn read(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
    ) -> impl Future<Output = (Buffer, Result<(), BlockError>)> {
        self.transfer(Kind::READ, at, buffer, blocks)
    }

    #[inline]
    fn write(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
        durability: Durability,
    ) -> impl Future<Output = (Buffer, Result<(), BlockError>)> {
        self.transfer(self.write_kind(durability), at, buffer, blocks)
    }

    #[inline]
    fn begin(
        &self,
        transfer: Transfer,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
        tag: Tag,
    ) -> Result<(), Buffer> {
        let kind = match transfer {
            Transfer::Read => Kind::READ,
            Transfer::Write(durability) => self.write_kind(durability),
        };
        self.begin_transfer(kind, at, buffer, blocks, tag)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        if !self.cached {
            return Ok(());
        }
        let outcome = self.run(Command::flush(self.id), Data::Nothing).await;
        self.unless_lost(outcome)
    }

    async fn write_zeroes(&self, extent: Extent, unmap: bool) -> Result<(), BlockError> {
        self.check(extent)?;
        self.unless_lost(Ok(()))?;
        let flags = if unmap { DEALLOCATE_ZEROES } else { 0 };
        let (mut start, end) = (extent.start.0, extent.end().0);
        while start < end {
            let outcome = if let Some(limit) = self.zero_blocks {
                let part = limit.min(end - start);
                let command = self.blocks_command(io::WRITE_ZEROES, start, part, flags);
                start += part;
                self.run(command, Data::Nothing).await
            } else {
                let part = (self.transfer_blocks.get() as u64).min(end - start);
                let zeroes = Data::Zeroes { bytes: part as usize * BLOCK_SIZE };
                let command = self.blocks_command(io::WRITE, start, part, 0);
                start += part;
                self.run(command, zeroes).await
            };
            self.unless_lost(outcome)?;
        }
        Ok(())
    }

    async fn deallocate(&self, extent: Extent) -> Result<(), BlockError> {
        self.check(extent)?;
        self.unless_lost(Ok(()))?;
        let Some(limit) = self.discard_blocks else { return Ok(()) };
        let (mut start, end) = (extent.start.0, extent.end().0);
        while start < end {
            let part = limit.min(end - start);
            let count = (part * self.lbas_per_block) as u32;
            let range = Data::Range { start: start * self.lbas_per_block, count };
            self.run(Command::deallocate(self.id), range).await?;
            start += part;
        }
        Ok(())
    }
}
