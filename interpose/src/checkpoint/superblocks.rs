//! Writing and finding superblocks.

use std::rc::Rc;

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, BlockError, Buffer, Device, Pool};

use super::CheckpointError;
use crate::core::Core;
use crate::layout::fixed::{self, Copy};
use crate::layout::superblock::{HEAD_BYTES, Head, Superblock, VERSION};
use crate::layout::{DomainId, PoolId};
use crate::pages::What;
use crate::vault::Vault;

/// What tells an older state of a device from the newest: kept elsewhere by
/// whoever wants to notice that the device was rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Which pool.
    pub pool: PoolId,
    /// The newest checkpoint.
    pub generation: u64,
    /// The hash of what its superblock says.
    pub tag: [u8; 16],
}

impl Guard {
    fn of(pool: PoolId, generation: u64, superblock: &Superblock) -> Self {
        let mut bytes = [0; BLOCK_SIZE];
        superblock.encode(&mut bytes);
        let mut tag = [0; 16];
        tag.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
        Self { pool, generation, tag }
    }
}

/// Makes everything that was written durable, then the superblock: one copy
/// after the other.
pub(crate) async fn write_superblock<D: Device>(
    core: &Rc<Core<D>>,
    generation: u64,
    superblock: &Superblock,
) -> Result<(), CheckpointError> {
    core.device.flush().await?;
    let mut buffer = core.pages.lend().await;
    for copy in Copy::BOTH {
        encode(&core.vault, &core.id, generation, copy, superblock, &mut buffer)?;
        buffer = put(&*core.device, buffer, generation, copy).await?;
    }
    core.guard.set(Guard::of(core.id, generation, superblock));
    Ok(())
}

/// The same for a pool that is being made: all slots say something, so that a
/// bad one is always damage.
pub(crate) async fn format_superblocks<D: Device>(
    device: &D,
    vault: &Vault,
    pool: &PoolId,
    buffers: &Pool,
    superblock: &Superblock,
) -> Result<(), CheckpointError> {
    let mut buffer = buffers.take().ok_or(CheckpointError::Device(BlockError::Medium))?;
    // The device's first block comes last: until then it says what was there
    // before, so a pool is made as a whole or not at all.
    for copy in [Copy::B, Copy::A] {
        for generation in [1, 0] {
            encode(vault, pool, generation, copy, superblock, &mut buffer)?;
            buffer = put(device, buffer, generation, copy).await?;
        }
    }
    Ok(())
}

fn encode(
    vault: &Vault,
    pool: &PoolId,
    generation: u64,
    copy: Copy,
    superblock: &Superblock,
    block: &mut [u8],
) -> Result<(), CheckpointError> {
    superblock.encode(block);
    Head::encode(block, pool, generation);
    let at = fixed::superblock(generation, copy);
    let data = Head::associated_data(block, pool, at);
    let sealed = vault.seal(DomainId::METADATA, &data, &mut block[HEAD_BYTES..]);
    let seal = sealed.map_err(|_| CheckpointError::Unsealed)?;
    Head::encode_seal(block, &seal);
    Ok(())
}

async fn put<D: Device>(
    device: &D,
    buffer: Buffer,
    generation: u64,
    copy: Copy,
) -> Result<Buffer, CheckpointError> {
    let at = fixed::superblock(generation, copy);
    let (buffer, outcome) = device.write(at, buffer, 0..1, Durability::Cached).await;
    outcome?;
    device.flush().await?;
    Ok(buffer)
}

/// What a slot says.
#[derive(Debug)]
pub(crate) enum Slot {
    /// A superblock, and what tells it from others.
    Good(Box<Superblock>, Guard),
    /// Nothing that can be read: damaged, or never completely written.
    Bad,
}

/// Why there is no superblock to open a pool with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoSuperblock {
    Unreadable(BlockError),
    /// Both copies of a checkpoint that may have been completed are bad.
    BothBad,
}

/// The newest superblock, and whether a copy of it must be written anew.
pub(crate) async fn newest_superblock<D: Device>(
    device: &D,
    vault: &Vault,
    buffers: &Pool,
) -> Result<(Superblock, Guard, Vec<Copy>), NoSuperblock> {
    let mut buffer = buffers.take().ok_or(NoSuperblock::Unreadable(BlockError::Medium))?;
    let mut newest: Option<(Box<Superblock>, Guard)> = None;
    let mut good_copies = Vec::new();
    for parity in [0, 1] {
        let mut slots = Vec::with_capacity(2);
        for copy in Copy::BOTH {
            let at = fixed::superblock(parity, copy);
            let outcome;
            (buffer, outcome) = device.read(at, buffer, 0..1).await;
            let slot = match outcome {
                Ok(()) => decode(vault, parity, copy, &mut buffer),
                Err(_) => Slot::Bad,
            };
            slots.push((copy, slot));
        }
        if slots.iter().all(|(_, slot)| matches!(slot, Slot::Bad)) {
            return Err(NoSuperblock::BothBad);
        }
        for (copy, slot) in slots {
            let Slot::Good(superblock, guard) = slot else { continue };
            let best = newest.as_ref().map(|(_, guard)| guard.generation);
            if best.is_none_or(|best| guard.generation > best) {
                newest = Some((superblock, guard));
                good_copies = vec![copy];
            } else if best == Some(guard.generation) {
                good_copies.push(copy);
            }
        }
    }
    let (superblock, guard) = newest.ok_or(NoSuperblock::BothBad)?;
    let missing = Copy::BOTH.into_iter().filter(|copy| !good_copies.contains(copy)).collect();
    Ok((*superblock, guard, missing))
}

/// What is wrong with a copy of the superblock of a generation, if anything.
pub(crate) async fn verify_superblock<D: Device>(
    core: &Core<D>,
    generation: u64,
    copy: Copy,
) -> Option<What> {
    let buffer = core.pages.lend().await;
    let (mut buffer, outcome) =
        core.device.read(fixed::superblock(generation, copy), buffer, 0..1).await;
    if let Err(error) = outcome {
        return Some(What::Unreadable(error));
    }
    match decode(&core.vault, generation % 2, copy, &mut buffer) {
        Slot::Good(_, guard) if guard.generation == generation => None,
        Slot::Good(..) | Slot::Bad => Some(What::Unopened),
    }
}

fn decode(vault: &Vault, parity: u64, copy: Copy, block: &mut [u8]) -> Slot {
    let pool = vault.pool_id();
    let Some(head) = Head::decode(block) else { return Slot::Bad };
    if head.version != VERSION || head.pool != pool || head.generation % 2 != parity {
        return Slot::Bad;
    }
    let at = fixed::superblock(parity, copy);
    let data = Head::associated_data(block, &pool, at);
    let opened = vault.open(DomainId::METADATA, &head.seal, &data, &mut block[HEAD_BYTES..]);
    match opened.ok().and_then(|()| Superblock::decode(block).ok()) {
        None => Slot::Bad,
        Some(superblock) => {
            let guard = Guard::of(pool, head.generation, &superblock);
            Slot::Good(Box::new(superblock), guard)
        }
    }
}

/// Writes the copies of the newest superblock that are bad.
pub(crate) async fn repair_superblock<D: Device>(
    core: &Core<D>,
    guard: &Guard,
    superblock: &Superblock,
    missing: &[Copy],
) -> Result<(), CheckpointError> {
    for &copy in missing {
        let mut buffer = core.pages.lend().await;
        encode(&core.vault, &core.id, guard.generation, copy, superblock, &mut buffer)?;
        put(&*core.device, buffer, guard.generation, copy).await?;
    }
    Ok(())
}
