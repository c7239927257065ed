//! Making a pool on a device.

use std::rc::Rc;

use block_core::{BlockCount, BlockError, Chance, Device, Extent, Pba, Pool as Buffers};
use thiserror::Error;

use crate::checkpoint::format_superblocks;
use crate::journal::LEAST_RING_BLOCKS;
use crate::layout::fixed::{self, COPY_BLOCKS, COPY_DISTANCE, Copy, MIN_DEVICE_BLOCKS};
use crate::layout::pointer::MAX_BLOCKS;
use crate::layout::superblock::{Head, Superblock, Usage};
use crate::layout::{Epoch, LineId, PoolId};
use crate::pages::Pages;
use crate::radix::Tree;
use crate::space::{self, layout::Segment};
use crate::vault::{KeyError, NewWay, UnlockError, Vault};

/// Journals are between 8 and 128 MiB, if nothing else is said: the memory for
/// changes is full before two million records are.
const LEAST_DEFAULT: u64 = 2048;
const MOST_DEFAULT: u64 = 32 * 1024;

/// Blocks of a pool for each block of its journal, if nothing else is said: a
/// checkpoint merges at half of the journal, and then a fully mapped pool's
/// every page of maps has five changes or more.
const BLOCKS_PER_JOURNAL_BLOCK: u64 = 400;

/// What a pool is made with.
#[derive(Debug)]
pub struct CreateOptions {
    /// What unlocks it.
    pub first: NewWay,
    /// Blocks of the journal.
    pub journal: Option<BlockCount>,
}

/// Why a pool was not made.
#[derive(Debug, Error)]
pub enum CreateError {
    /// The device is too small.
    #[error("a pool needs a device of at least {} MiB; this one has {}", MIN_DEVICE_BLOCKS.bytes() >> 20, .0.bytes() >> 20)]
    TooSmall(BlockCount),
    /// The device is too large.
    #[error("a pool has at most 256 TiB; make it on a smaller device or namespace")]
    TooLarge,
    /// The journal does not fit.
    #[error("a journal of {blocks} does not fit: choose {least} to {most}")]
    Journal {
        /// What was asked for.
        blocks: BlockCount,
        /// The smallest one.
        least: BlockCount,
        /// The largest one.
        most: BlockCount,
    },
    /// There are no buffers.
    #[error("there are no buffers to make a pool with")]
    Buffers,
    /// The keys could not be written.
    #[error("the keys could not be written: {0}")]
    Keys(#[from] UnlockError),
    /// The first salt could not be written.
    #[error("the keys could not be written: {0}")]
    Era(#[from] KeyError),
    /// The device failed.
    #[error("the device could not be written: {0}")]
    Device(String),
}

/// What lies on a device, as far as can be said without a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A pool.
    Pool(PoolId),
    /// Something else, or nothing.
    Other,
}

/// Whether a pool lies on a device.
///
/// # Errors
/// The device's.
pub(crate) async fn probe<D: Device>(device: &D, buffers: &Buffers) -> Result<Probe, BlockError> {
    let mut buffer = buffers.take().ok_or(BlockError::Medium)?;
    for copy in Copy::BOTH {
        for parity in [0, 1] {
            let at = fixed::superblock(parity, copy);
            if at.0 >= device.blocks().0 {
                continue;
            }
            let outcome;
            (buffer, outcome) = device.read(at, buffer, 0..1).await;
            if outcome.is_ok()
                && let Some(head) = Head::decode(&buffer)
            {
                return Ok(Probe::Pool(head.pool));
            }
        }
    }
    Ok(Probe::Other)
}

/// Makes an empty pool on a device, over whatever is there.
///
/// # Errors
/// A sentence about what is in the way; then there is no pool.
pub(crate) async fn create<D: Device + 'static>(
    device: Rc<D>,
    buffers: Buffers,
    chance: Chance,
    options: CreateOptions,
) -> Result<PoolId, CreateError> {
    let blocks = device.blocks();
    let journal = check(blocks, options.journal)?;
    let pool = PoolId(chance.id());
    // Superblocks are written last: what is half made is no pool. The keys of
    // what was there are overwritten first.
    let vault =
        Vault::create(Rc::clone(&device), buffers.clone(), pool, options.first, chance).await?;
    vault.begin_era().await?;
    let vault = Rc::new(vault);
    let pages = Rc::new(Pages::new(Rc::clone(&device), Rc::clone(&vault), buffers.clone()));
    let (journal, after) = fixed::journal(journal);
    wipe(&*device, journal).await?;
    let extent = Extent { start: Pba(0), count: blocks };
    let segment = Segment::new(extent, after).ok_or(CreateError::TooSmall(blocks))?;
    let mut places = vec![
        Extent { start: Pba(0), count: BlockCount(COPY_BLOCKS) },
        Extent { start: Pba(COPY_DISTANCE), count: BlockCount(COPY_BLOCKS) },
    ];
    places.push(journal);
    let failed = |why: &dyn std::fmt::Display| CreateError::Device(why.to_string());
    let root = space::format(&pages, segment, &places).await.map_err(|why| failed(&why))?;
    let superblock = Superblock {
        blocks,
        journal,
        from: 1,
        previous: [0; 16],
        mark: 0,
        epoch: Epoch(1),
        next_line: LineId(1),
        volumes: Tree::EMPTY,
        nodes: Tree::EMPTY,
        seals: Tree::EMPTY,
        slots: (0, 0),
        usage: Usage::default(),
        segments: vec![root],
    };
    device.flush().await.map_err(|why| failed(&why))?;
    let formatted = format_superblocks(&*device, &vault, &pool, &buffers, &superblock).await;
    formatted.map_err(|why| failed(&why))?;
    Ok(pool)
}

/// Whether a pool can be made on a device of this size; how many blocks its
/// journal gets.
///
/// # Errors
/// A sentence about the sizes.
pub(crate) fn check(
    device: BlockCount,
    journal: Option<BlockCount>,
) -> Result<BlockCount, CreateError> {
    if device < MIN_DEVICE_BLOCKS {
        return Err(CreateError::TooSmall(device));
    }
    if device.0 > MAX_BLOCKS {
        return Err(CreateError::TooLarge);
    }
    journal_size(device, journal)
}

fn journal_size(device: BlockCount, asked: Option<BlockCount>) -> Result<BlockCount, CreateError> {
    let least = LEAST_RING_BLOCKS;
    let most = BlockCount((device.0 / 8).max(least.0));
    let usual = (device.0 / BLOCKS_PER_JOURNAL_BLOCK).clamp(LEAST_DEFAULT, MOST_DEFAULT);
    let blocks = asked.unwrap_or(BlockCount(usual.min(most.0)));
    if blocks < least || blocks > most {
        return Err(CreateError::Journal { blocks, least, most });
    }
    Ok(blocks)
}

/// What an earlier pool left in the journal's place would be read at each
/// opening, for nothing.
async fn wipe<D: Device>(device: &D, journal: Extent) -> Result<(), CreateError> {
    const PIECE: u64 = 4096;
    let mut at = journal.start.0;
    while at < journal.end().0 {
        let count = BlockCount(PIECE.min(journal.end().0 - at));
        let zeroed = device.write_zeroes(Extent { start: Pba(at), count }, true).await;
        zeroed.map_err(|why| CreateError::Device(why.to_string()))?;
        at += count.0;
    }
    Ok(())
}
