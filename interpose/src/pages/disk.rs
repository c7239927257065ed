//! A disk in memory for tests: blocks that come and go in their own time.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, BlockCount, BlockError, Buffer, Chance, Device, Extent, Pba, Pool};

use crate::layout::PoolId;
use crate::vault::{Cost, NewWay, Secret, Vault};

/// A disk whose operations take a few turns each, in no order.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) contents: RefCell<BTreeMap<u64, Box<[u8]>>>,
    /// Reads and writes of these blocks fail.
    pub(crate) broken: RefCell<Vec<u64>>,
    pub(crate) reads: Cell<usize>,
    pub(crate) writes: Cell<usize>,
    dice: Cell<u64>,
}

impl Disk {
    pub(crate) const BLOCKS: u64 = 1 << 20;

    /// Changes one bit.
    pub(crate) fn rot(&self, at: Pba) {
        if let Some(block) = self.contents.borrow_mut().get_mut(&at.0) {
            block[99] ^= 4;
        }
    }

    async fn take_a_while(&self) {
        let roll = self.dice.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.dice.set(roll);
        for _ in 0..roll >> 62 {
            turn::yield_now().await;
        }
    }

    fn check(&self, at: Pba) -> Result<(), BlockError> {
        if self.broken.borrow().contains(&at.0) { Err(BlockError::Medium) } else { Ok(()) }
    }
}

impl Device for Disk {
    fn blocks(&self) -> BlockCount {
        BlockCount(Self::BLOCKS)
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
        self.reads.set(self.reads.get() + 1);
        self.take_a_while().await;
        match self.contents.borrow().get(&at.0) {
            Some(block) => buffer[..BLOCK_SIZE].copy_from_slice(block),
            None => buffer[..BLOCK_SIZE].fill(0),
        }
        (buffer, self.check(at))
    }

    async fn write(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
        _: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        assert_eq!(blocks, 0..1);
        self.writes.set(self.writes.get() + 1);
        self.take_a_while().await;
        let outcome = self.check(at);
        if outcome.is_ok() {
            self.contents.borrow_mut().insert(at.0, buffer[..BLOCK_SIZE].into());
        }
        (buffer, outcome)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn write_zeroes(&self, _: Extent, _: bool) -> Result<(), BlockError> {
        Ok(())
    }

    async fn deallocate(&self, _: Extent) -> Result<(), BlockError> {
        Ok(())
    }
}

/// Keys, whose area lies on a disk of its own.
pub(crate) fn vault() -> Rc<Vault> {
    let numbers = Cell::new(7u64);
    let chance = Chance::new(move || {
        numbers.set(numbers.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        numbers.get()
    });
    let secret = Secret::key_file(vec![7; 32].into());
    let way = NewWay::new("only", &secret, Cost::LEAST, &chance).expect("valid");
    run(async move {
        let buffers = Pool::private(2, BLOCK_SIZE).expect("memory");
        let vault = Vault::create(Rc::new(Disk::default()), buffers, PoolId([9; 16]), way, chance);
        let vault = vault.await.expect("made");
        vault.begin_era().await.expect("begun");
        Rc::new(vault)
    })
}

/// Runs one future to its end.
///
/// # Panics
/// When it waits for what nobody will do.
pub(crate) fn run<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
    let outcome = Rc::new(RefCell::new(None));
    let place = Rc::clone(&outcome);
    let mut executor = turn::Executor::new(1);
    executor.spawn(async move {
        let value = future.await;
        *place.borrow_mut() = Some(value);
    });
    while executor.is_runnable() {
        executor.run(0);
    }
    outcome.take().expect("the future waits for ever")
}
