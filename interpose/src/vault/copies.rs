//! A block of the key area in its two copies.
//!
//! An update writes copy A, flushes, writes copy B, flushes. So at any moment
//! one copy is whole, whatever part of a write a crash leaves behind, and a
//! reader takes the newer whole one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, BlockCount, BlockError, Buffer, Device, Extent, Pba, Pool};
use tracing::{info, warn};
use turn::yield_now;

use super::area::{self, Block, Head, Reading};
use super::key::Key;
use crate::layout::PoolId;
use crate::layout::fixed::{Copy, KEY_AREA_BLOCKS, key_area};

/// Which of two copies holds, and whether the other one has to be repaired.
#[derive(Debug)]
pub(super) enum Found {
    /// The block was never written, or its first write did not end.
    Nothing,
    /// A later version wrote it.
    Newer(u16),
    /// No copy is what was written.
    Damaged,
    /// The newer copy; the other one where it has to be repaired.
    Block(Box<Block>, Head, Option<Copy>),
}

/// The device's part of the vault. What it does is rare, so a future may be
/// boxed, and so the vault needs no type parameter.
pub(super) trait Copies {
    fn read(&self, index: u16, copy: Copy) -> Answer<'_, Box<Block>>;
    fn write<'a>(&'a self, index: u16, copy: Copy, block: &'a Block) -> Answer<'a, ()>;
    fn flush(&self) -> Answer<'_, ()>;
    fn clear(&self, copy: Copy) -> Answer<'_, ()>;
}

pub(super) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, BlockError>> + 'a>>;

/// A device and where its buffers come from.
pub(super) struct OnDevice<D> {
    device: Rc<D>,
    buffers: Pool,
}

impl<D: Device> OnDevice<D> {
    pub(super) fn new(device: Rc<D>, buffers: Pool) -> Self {
        assert!(buffers.buffer_bytes() >= BLOCK_SIZE && buffers.count() > 0);
        Self { device, buffers }
    }

    async fn buffer(&self) -> Buffer {
        loop {
            match self.buffers.take() {
                Some(buffer) => return buffer,
                None => yield_now().await,
            }
        }
    }
}

impl<D: Device> Copies for OnDevice<D> {
    fn read(&self, index: u16, copy: Copy) -> Answer<'_, Box<Block>> {
        Box::pin(async move {
            let at = key_area(index.into(), copy);
            let (buffer, outcome) = self.device.read(at, self.buffer().await, 0..1).await;
            outcome?;
            let mut block = Box::new([0; BLOCK_SIZE]);
            block.copy_from_slice(&buffer[..BLOCK_SIZE]);
            Ok(block)
        })
    }

    fn write<'a>(&'a self, index: u16, copy: Copy, block: &'a Block) -> Answer<'a, ()> {
        Box::pin(async move {
            let at = key_area(index.into(), copy);
            let mut buffer = self.buffer().await;
            buffer[..BLOCK_SIZE].copy_from_slice(block);
            self.device.write(at, buffer, 0..1, Durability::Cached).await.1
        })
    }

    fn flush(&self) -> Answer<'_, ()> {
        Box::pin(self.device.flush())
    }

    fn clear(&self, copy: Copy) -> Answer<'_, ()> {
        let start: Pba = key_area(0, copy);
        let extent = Extent { start, count: BlockCount(KEY_AREA_BLOCKS) };
        Box::pin(self.device.write_zeroes(extent, false))
    }
}

/// The key area of an unlocked pool.
pub(super) struct Area {
    copies: Box<dyn Copies>,
    pool: PoolId,
    mac_key: Key,
    /// The last sequence that a block was given.
    sequence: Cell<u64>,
    /// Copies whose last write failed. The other one of the same block is the
    /// only one that is sure to be whole, so it is written last.
    suspects: RefCell<BTreeMap<u16, Copy>>,
}

impl Area {
    pub(super) fn new(copies: Box<dyn Copies>, pool: PoolId, mac_key: Key, sequence: u64) -> Self {
        let (sequence, suspects) = (Cell::new(sequence), RefCell::default());
        Self { copies, pool, mac_key, sequence, suspects }
    }

    pub(super) const fn pool(&self) -> PoolId {
        self.pool
    }

    /// What a block holds; a copy that does not is repaired.
    pub(super) async fn load(&self, index: u16) -> Found {
        let blocks = read_both(&*self.copies, index).await;
        let found = choose(index, blocks, Some(&self.mac_key));
        if let Found::Block(block, head, loser) = &found {
            self.sequence.set(self.sequence.get().max(head.sequence));
            if let Some(copy) = *loser {
                self.repair(index, copy, block).await;
            }
        }
        found
    }

    /// Makes a copy what the other one is. A failure is not the end: the pool
    /// has one good copy, and says so.
    pub(super) async fn repair(&self, index: u16, copy: Copy, block: &Block) {
        match self.replace(index, copy, block).await {
            Ok(()) => info!(index, ?copy, "a copy of a block of the key area was repaired"),
            Err(error) => {
                warn!(index, ?copy, %error, "a copy of a block of the key area is damaged");
            }
        }
    }

    /// Makes `block` what both copies hold, durably. After an error it is old
    /// or new.
    pub(super) async fn update(&self, index: u16, mut block: Box<Block>) -> Result<(), BlockError> {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        area::close(&mut block, index, Head { pool: self.pool, sequence }, &self.mac_key);
        let order = match self.suspects.borrow().get(&index) {
            Some(Copy::B) => [Copy::B, Copy::A],
            Some(Copy::A) | None => Copy::BOTH,
        };
        for copy in order {
            self.replace(index, copy, &block).await?;
        }
        Ok(())
    }

    async fn replace(&self, index: u16, copy: Copy, block: &Block) -> Result<(), BlockError> {
        self.suspects.borrow_mut().insert(index, copy);
        self.copies.write(index, copy, block).await?;
        self.copies.flush().await?;
        self.suspects.borrow_mut().remove(&index);
        Ok(())
    }
}

/// Both copies. One that cannot be read is a damaged one.
pub(super) async fn read_both(copies: &dyn Copies, index: u16) -> [Option<Box<Block>>; 2] {
    let (a, b) = tokio::join!(copies.read(index, Copy::A), copies.read(index, Copy::B));
    [a.ok(), b.ok()]
}

/// Which of the copies holds. With the pool's key a copy that somebody else
/// wrote is a damaged one.
pub(super) fn choose(index: u16, blocks: [Option<Box<Block>>; 2], mac_key: Option<&Key>) -> Found {
    let readings = [&blocks[0], &blocks[1]].map(|block| {
        block.as_ref().map_or(Reading::Damaged, |block| match area::read(block, index) {
            Reading::Whole(_) if mac_key.is_some_and(|key| !area::is_authentic(block, key)) => {
                Reading::Damaged
            }
            reading => reading,
        })
    });
    let [a, b] = blocks;
    let (winner, head, loser) = match readings {
        [Reading::Newer(version), _] | [_, Reading::Newer(version)] => {
            return Found::Newer(version);
        }
        [Reading::Whole(head), Reading::Whole(other)] if head.sequence == other.sequence => {
            (a, head, (head != other).then_some(Copy::B))
        }
        [Reading::Whole(head), Reading::Whole(other)] if head.sequence < other.sequence => {
            (b, other, Some(Copy::A))
        }
        [Reading::Whole(head), _] => (a, head, Some(Copy::B)),
        [_, Reading::Whole(head)] => (b, head, Some(Copy::A)),
        // Copy A is durable before copy B is begun: this is a first write
        // that was interrupted, and nothing relied on it.
        [Reading::Empty | Reading::Damaged, Reading::Empty] => return Found::Nothing,
        [_, Reading::Damaged] => return Found::Damaged,
    };
    winner.map_or(Found::Damaged, |block| Found::Block(block, head, loser))
}
