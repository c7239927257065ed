//! What is measured: one kind of request after the other.

use std::rc::Rc;

use block_core::{BlockCount, Blocks, Lba, LbaRange};
use clap::ValueEnum;
use interpose::{Settings, Volume};

use crate::pool::device::Forgetful;
use crate::pool::machine::{Machine, make};

/// Blocks of the volume: 1 GiB.
const BLOCKS: u64 = 256 * 1024;

/// Most blocks of the volume that is read: its sealed blocks are kept.
const KEPT_BLOCKS: u64 = 16 * 1024;

/// Blocks that are written between two flushes.
const FLUSH_EVERY: u64 = 32;

/// Blocks of a large request: 128 KiB.
const LARGE: u64 = 32;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Row {
    /// Blocks that nobody has, written over such blocks.
    Unique,
    /// The same, 128 KiB a request.
    UniqueLarge,
    /// Blocks that are there already, written over such blocks.
    Duplicate,
    /// Zeroes, written over zeroes.
    Zero,
    /// Blocks that are read, without the read cache.
    Read,
}

impl Row {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Unique, Self::UniqueLarge, Self::Duplicate, Self::Zero, Self::Read];

    /// What the table calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unique => "unique write",
            Self::UniqueLarge => "unique write, 128 KiB a request",
            Self::Duplicate => "duplicate write",
            Self::Zero => "write of zeroes",
            Self::Read => "read",
        }
    }
}

/// A pool in which one kind of request is made.
pub struct Subject {
    row: Row,
    machine: Machine,
    volume: Rc<Volume<Forgetful>>,
    blocks: u64,
    next: u64,
}

impl Subject {
    /// Makes the pool, and the first `prepared` blocks of the volume what the requests
    /// expect. A volume that is read has no others.
    ///
    /// # Errors
    /// The pool's.
    pub fn new(row: Row, prepared: u64) -> anyhow::Result<Self> {
        let blocks = if row == Row::Read { prepared.min(KEPT_BLOCKS) } else { BLOCKS };
        let device = Forgetful::new(BlockCount(4 * BLOCKS));
        device.keep_blocks(row == Row::Read);
        make(&device, None)?;
        let settings = Settings { overlay: 32 << 20, read_cache: 0, ..Settings::default() };
        let mut machine = Machine::open(&device, settings, true)?;
        let (_, volume) = machine.volume("cost", blocks)?;
        let mut subject = Self { row, machine, volume, blocks, next: 0 };
        match row {
            Row::Read => {
                subject.write(Row::Unique, blocks)?;
                let pool = Rc::clone(&subject.machine.pool);
                subject.machine.run(pool.checkpoint())??;
            }
            _ => subject.write(row, prepared)?,
        }
        subject.next = 0;
        Ok(subject)
    }

    /// Makes requests of so many blocks in all. Never inlined: the count of
    /// instructions begins and ends with it.
    ///
    /// # Errors
    /// The pool's.
    #[inline(never)]
    pub fn measure(&mut self, blocks: u64) -> anyhow::Result<()> {
        match self.row {
            Row::Read => self.read(blocks),
            row => self.write(row, blocks),
        }
    }

    fn write(&mut self, row: Row, blocks: u64) -> anyhow::Result<()> {
        let size = if row == Row::UniqueLarge { LARGE } else { 1 };
        let mut buffer = self.machine.buffer()?;
        // What is not stored is not sealed in place: the buffer stays as it is,
        // or the block would be a unique one and its cost that of one.
        buffer.fill(u8::from(row != Row::Zero));
        for number in 0..blocks / size {
            if matches!(row, Row::Unique | Row::UniqueLarge) {
                self.machine.make_unique(&mut buffer, size as usize);
            }
            let at = self.advance(size);
            buffer = self.machine.write(&self.volume, at, size, buffer)?;
            if number * size % FLUSH_EVERY == 0 {
                self.machine.run(self.volume.flush())??;
            }
        }
        Ok(())
    }

    fn read(&mut self, blocks: u64) -> anyhow::Result<()> {
        let mut buffer = self.machine.buffer()?;
        for _ in 0..blocks {
            let range = LbaRange { start: Lba(self.advance(1)), count: BlockCount(1) };
            let outcome;
            (buffer, outcome) = self.machine.run(self.volume.read(range, buffer, 0))?;
            outcome?;
        }
        Ok(())
    }

    fn advance(&mut self, blocks: u64) -> u64 {
        let at = self.next;
        self.next = (at + blocks) % self.blocks;
        at
    }
}
