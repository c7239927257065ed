//! A device in memory with a volatile cache. It can stop at any command, and
//! be found afterwards with any sectors of what was not flushed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, pending};
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, BlockCount, BlockError, Buffer, Device, Extent, Pba, SECTOR_SIZE};

use crate::vault::area::Block;

const BLOCKS: u64 = 16 * 1024;

/// Sectors of a block.
pub(super) const SECTORS: usize = BLOCK_SIZE / SECTOR_SIZE;

type Blocks = BTreeMap<u64, Box<Block>>;

/// What a change of the medium goes wrong with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The power goes: it and what comes after never end.
    Stop,
    /// An error, and only the first half of the block has changed.
    Fail,
}

#[derive(Default)]
pub(super) struct Disk {
    durable: RefCell<Blocks>,
    /// What is not flushed, in order.
    cached: RefCell<Vec<(u64, Box<Block>)>>,
    changes: Cell<usize>,
    fault: Cell<Option<(usize, Fault)>>,
    smaller: bool,
}

impl Disk {
    /// One block less than a pool needs.
    pub(super) fn too_small() -> Self {
        Self { smaller: true, ..Self::default() }
    }

    /// The number of writes, zeroings and flushes that were asked for.
    pub(super) fn changes(&self) -> usize {
        self.changes.get()
    }

    /// Lets the change of this number, counted from now, go wrong.
    pub(super) fn fault_at(&self, change: usize, fault: Fault) {
        self.fault.set(Some((self.changes() + change, fault)));
    }

    /// The device after a power cut: of the last write that was not flushed
    /// the sectors of a bit mask are there, of those before it others.
    pub(super) fn after_crash(&self, sectors: u8) -> Rc<Self> {
        let mut durable = self.durable.borrow().clone();
        for (age, (at, new)) in self.cached.borrow().iter().rev().enumerate().rev() {
            let block = durable.entry(*at).or_insert_with(|| Box::new([0; BLOCK_SIZE]));
            tear(block, new, sectors.rotate_left(age as u32));
        }
        Rc::new(Self { durable: RefCell::new(durable), ..Self::default() })
    }

    /// The same blocks on another device.
    pub(super) fn copied(&self) -> Rc<Self> {
        self.after_crash(u8::MAX)
    }

    /// The block that a read gives.
    pub(super) fn block(&self, at: Pba) -> Box<Block> {
        let cached = self.cached.borrow();
        let latest = cached.iter().rev().find(|(other, _)| *other == at.0).map(|(_, block)| block);
        let durable = self.durable.borrow();
        latest.or_else(|| durable.get(&at.0)).cloned().unwrap_or(Box::new([0; BLOCK_SIZE]))
    }

    /// Changes a durable block behind everybody's back.
    pub(super) fn rot(&self, at: Pba, change: impl FnOnce(&mut Block)) {
        let mut durable = self.durable.borrow_mut();
        change(durable.entry(at.0).or_insert_with(|| Box::new([0; BLOCK_SIZE])));
    }

    async fn change(&self) -> Result<(), BlockError> {
        self.changes.set(self.changes() + 1);
        match self.fault.get() {
            Some((at, Fault::Stop)) if self.changes() >= at => pending().await,
            Some((at, Fault::Fail)) if self.changes() == at => Err(BlockError::Medium),
            _ => Ok(()),
        }
    }

    fn store(&self, at: u64, block: Box<Block>) {
        self.cached.borrow_mut().push((at, block));
    }
}

fn tear(block: &mut Block, new: &Block, sectors: u8) {
    for sector in (0..SECTORS).filter(|sector| sectors >> sector & 1 == 1) {
        let bytes = sector * SECTOR_SIZE..(sector + 1) * SECTOR_SIZE;
        block[bytes.clone()].copy_from_slice(&new[bytes]);
    }
}

impl Device for Disk {
    fn blocks(&self) -> BlockCount {
        BlockCount(if self.smaller { BLOCKS - 1 } else { BLOCKS })
    }

    fn has_volatile_cache(&self) -> bool {
        true
    }

    async fn read(
        &self,
        at: Pba,
        mut buffer: Buffer,
        blocks: Range<usize>,
    ) -> (Buffer, Result<(), BlockError>) {
        assert_eq!(blocks, 0..1);
        buffer[..BLOCK_SIZE].copy_from_slice(&self.block(at)[..]);
        (buffer, Ok(()))
    }

    async fn write(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
        _: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        assert_eq!(blocks, 0..1);
        let mut block = self.block(at);
        let new: &Block = buffer[..BLOCK_SIZE].try_into().expect("a block");
        // A write that the power cut finds under way may be there in parts.
        let stops = matches!(self.fault.get(), Some((at, Fault::Stop)) if self.changes() + 1 >= at);
        if stops {
            self.store(at.0, Box::new(*new));
        }
        let outcome = self.change().await;
        tear(&mut block, new, if outcome.is_ok() { u8::MAX } else { 0x0f });
        self.store(at.0, block);
        (buffer, outcome)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.change().await?;
        self.durable.borrow_mut().extend(self.cached.take());
        Ok(())
    }

    async fn write_zeroes(&self, extent: Extent, _: bool) -> Result<(), BlockError> {
        self.change().await?;
        let cached = self.cached.borrow().iter().map(|(at, _)| *at).collect::<Vec<_>>();
        let known: BTreeSet<u64> = self.durable.borrow().keys().copied().chain(cached).collect();
        for at in known.range(extent.start.0..extent.start.0 + extent.count.0) {
            self.store(*at, Box::new([0; BLOCK_SIZE]));
        }
        Ok(())
    }

    async fn deallocate(&self, _: Extent) -> Result<(), BlockError> {
        Ok(())
    }
}

/// Runs something on such a device: `None` when the power went.
pub(super) fn run<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}
