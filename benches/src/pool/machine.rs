//! A pool on the forgetful device, and what turns it.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use anyhow::{Context, anyhow};
use block_core::device::Durability;
use block_core::{BLOCK_SIZE, BlockCount, Blocks, Buffer, Chance, Lba, LbaRange, Pool as Buffers};
use interpose::pool::VolumeId;
use interpose::vault::{Cost, NewWay, Secret};
use interpose::{CreateOptions, Means, Pool, Settings, Volume};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use turn::Executor;

use crate::pool::device::Forgetful;

/// Blocks of a request's buffer.
const REQUEST_BLOCKS: usize = 34;

/// A pool that is being measured.
pub struct Machine {
    executor: Executor,
    turns: usize,
    /// The pool.
    pub pool: Rc<Pool<Forgetful>>,
    requests: Buffers,
    /// What makes blocks unlike each other.
    pub random: SmallRng,
}

/// Makes a pool.
///
/// # Errors
/// The device is too small.
pub fn make(device: &Forgetful, journal: Option<BlockCount>) -> anyhow::Result<()> {
    let chance = chance(1);
    let first = NewWay::new("bench", &secret(), Cost::default(), &chance)?;
    let options = CreateOptions { first, journal };
    let buffers = Buffers::private(512, BLOCK_SIZE)?;
    let made = Pool::create(Rc::new(device.clone()), buffers, chance, options);
    turn_until(&mut Executor::new(1), &mut 0, made)??;
    Ok(())
}

fn chance(seed: u64) -> Chance {
    let random = RefCell::new(SmallRng::seed_from_u64(seed));
    Chance::new(move || random.borrow_mut().next_u64())
}

fn secret() -> Secret {
    Secret::key_file(vec![7; 32].into())
}

impl Machine {
    /// Opens the pool on a device. Without its `upkeep` it makes no
    /// checkpoints.
    ///
    /// # Errors
    /// There is no pool on it.
    pub fn open(device: &Forgetful, settings: Settings, upkeep: bool) -> anyhow::Result<Self> {
        let buffers = Buffers::private(settings.page_cache / BLOCK_SIZE, BLOCK_SIZE)?;
        let (device, chance) = (Rc::new(device.clone()), chance(2));
        let means = Means { device, buffers, chance, wall: Box::new(|| 0) };
        let (mut executor, mut turns) = (Executor::new(64), 0);
        let secret = secret();
        let opening = Pool::open(means, &secret, settings, None);
        let pool = turn_until(&mut executor, &mut turns, opening)??;
        if upkeep {
            for task in pool.tasks() {
                executor.spawn(task).context("no room for a task")?;
            }
        }
        let requests = Forgetful::request_buffers(64, REQUEST_BLOCKS * BLOCK_SIZE)?;
        Ok(Self { executor, turns, pool, requests, random: SmallRng::seed_from_u64(3) })
    }

    /// Turns the pool until something has ended.
    ///
    /// # Errors
    /// It never ends.
    pub fn run<T>(&mut self, future: impl Future<Output = T>) -> anyhow::Result<T> {
        turn_until(&mut self.executor, &mut self.turns, future)
    }

    /// Makes a volume of so many blocks.
    ///
    /// # Errors
    /// The pool's.
    pub fn volume(
        &mut self,
        name: &str,
        blocks: u64,
    ) -> anyhow::Result<(VolumeId, Rc<Volume<Forgetful>>)> {
        let pool = Rc::clone(&self.pool);
        let id = self.run(pool.create_volume(name, BlockCount(blocks), "bench", Vec::new()))??;
        Ok((id, pool.volume(name).context("the volume is there")?))
    }

    /// A request's buffer.
    ///
    /// # Errors
    /// All are in use.
    pub fn buffer(&self) -> anyhow::Result<Buffer> {
        self.requests.take().context("no buffer")
    }

    /// Makes blocks of a buffer what no other block is.
    pub fn make_unique(&mut self, buffer: &mut Buffer, blocks: usize) {
        for block in buffer.chunks_exact_mut(BLOCK_SIZE).take(blocks) {
            self.random.fill_bytes(&mut block[..16]);
        }
    }

    /// Writes so many blocks, the first ones of a buffer, which comes back.
    ///
    /// # Errors
    /// The pool's.
    pub fn write(
        &mut self,
        volume: &Volume<Forgetful>,
        at: u64,
        blocks: u64,
        buffer: Buffer,
    ) -> anyhow::Result<Buffer> {
        let range = LbaRange { start: Lba(at), count: BlockCount(blocks) };
        let (buffer, outcome) = self.run(volume.write(range, buffer, 0, Durability::Cached))?;
        outcome?;
        Ok(buffer)
    }
}

/// How often the pool may turn without an end in sight.
const PATIENCE: usize = 100_000_000;

fn turn_until<T>(
    executor: &mut Executor,
    turns: &mut usize,
    future: impl Future<Output = T>,
) -> anyhow::Result<T> {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..PATIENCE {
        if let std::task::Poll::Ready(out) = future.as_mut().poll(&mut context) {
            return Ok(out);
        }
        *turns = turns.wrapping_add(1);
        executor.run(*turns);
    }
    Err(anyhow!("nothing moves any more"))
}
