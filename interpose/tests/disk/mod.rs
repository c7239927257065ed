//! A disk in memory that does whatever a disk may do, from a seed, and the
//! means to run a program on it step by step.
//!
//! - [`SimDisk`] is a [`Device`]. Its commands wait in a queue; [`SimDisk::step`]
//!   executes one that the seed chooses. What is written stays in a volatile
//!   cache, every version of it, until a flush that was *sent* after the write
//!   had completed.
//! - [`SimDisk::cut`] says what a power cut now would leave, and changes
//!   nothing, so that one run has as many crash points as steps: of each
//!   unflushed block, also of commands that still wait, any version, torn at
//!   512 bytes. [`SimDisk::stop_after`] instead lets the machine itself die.
//! - Faults: failing commands ([`SimDisk::fail_reads`], [`SimDisk::fail_writes`],
//!   [`SimDisk::fail_some`]), rot ([`SimDisk::flip`]), writes that land elsewhere
//!   or nowhere ([`SimDisk::divert`]), a cache that is lost while the machine
//!   lives ([`SimDisk::lose_cache`]).
//! - [`Medium`] is what a disk holds while it is off; a clone costs nothing.
//! - [`Driver`] polls tasks and lets the disk step, in the seed's order, under
//!   a clock of its own: [`Driver::run`], [`Driver::settle`].
//! - [`null::NullDisk`] completes at once, counts, and forgets guests' blocks.
//!
//! ```ignore
//! let disk = SimDisk::new(Medium::new(), Options::new(BlockCount(16_384)), seed);
//! let mut driver = Driver::new(&disk, seed);
//! driver.spawn(pool.run());
//! let answer = driver.run(pool.flush()).expect("nothing stops the disk");
//! let left = disk.cut();                    // a crash here; the run goes on
//! let again = SimDisk::new(left, options, seed + 1);
//! ```

// Each test uses a part of it.
#![allow(dead_code, unused_imports, unreachable_pub)]

mod driver;
mod medium;
pub mod null;
mod queue;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use block_core::device::Durability;
use block_core::unit::{BLOCK_SIZE, BlockCount, Extent, Pba, SECTOR_SIZE};
use block_core::{BlockError, Buffer, Device};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

pub use driver::{Driver, Halt, VirtualClock};
pub use medium::{Block, Medium};
use queue::{Command, Queue, Ticket};

/// Versions of one block that the cache remembers; of more, the oldest is
/// forgotten, which only makes a cut a little kinder.
const MOST_VERSIONS: usize = 8;

/// What kind of disk it is.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How large.
    pub blocks: BlockCount,
    /// Whether answered writes can be lost until a flush.
    pub volatile_cache: bool,
}

impl Options {
    /// A disk with a volatile cache.
    pub fn new(blocks: BlockCount) -> Self {
        Self { blocks, volatile_cache: true }
    }

    /// A disk whose writes are durable when they complete.
    pub fn without_cache(blocks: BlockCount) -> Self {
        Self { blocks, volatile_cache: false }
    }
}

/// How many of a million commands fail.
#[derive(Clone, Copy, Debug, Default)]
pub struct FailureRates {
    /// Of reads.
    pub reads: u32,
    /// Of writes; also of zeroing.
    pub writes: u32,
    /// Of flushes.
    pub flushes: u32,
}

/// Where a written block ends up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Where it should.
    Lands,
    /// Somewhere else, though the disk says it was well written.
    At(Pba),
    /// Nowhere, though the disk says it was well written.
    Lost,
}

/// What was executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Read commands.
    pub reads: u64,
    /// Blocks that they brought.
    pub blocks_read: u64,
    /// Write commands.
    pub writes: u64,
    /// Blocks that they carried.
    pub blocks_written: u64,
    /// Flushes.
    pub flushes: u64,
    /// Commands to zero.
    pub zeroings: u64,
    /// Commands to deallocate.
    pub deallocations: u64,
}

/// The disk; its clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Rc<RefCell<State>>,
}

struct State {
    blocks: u64,
    volatile_cache: bool,
    /// Answered writes may be gone: nothing is changed any more.
    lost: bool,
    /// What a power cut leaves for certain.
    durable: Medium,
    /// What happened to blocks since then, oldest first.
    cached: BTreeMap<u64, Vec<Version>>,
    /// The number of the newest version.
    written: u64,
    queue: Queue,
    faults: Faults,
    counts: Counts,
    operations: u64,
    stops_after: u64,
    random: SmallRng,
    /// Apart, so that looking at crashes does not change the run.
    cuts: SmallRng,
}

#[derive(Clone)]
struct Version {
    number: u64,
    /// `None` is zeroes.
    block: Option<Rc<Block>>,
}

type Diversion = dyn FnMut(Pba, &Block) -> Fate;

#[derive(Default)]
struct Faults {
    reads: BTreeSet<u64>,
    writes: BTreeSet<u64>,
    rates: FailureRates,
    fate: Option<Box<Diversion>>,
}

impl SimDisk {
    /// A disk that holds `medium`. The same seed and the same commands make
    /// the same run.
    pub fn new(medium: Medium, options: Options, seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let state = State {
            blocks: options.blocks.0,
            volatile_cache: options.volatile_cache,
            lost: false,
            durable: medium,
            cached: BTreeMap::new(),
            written: 0,
            queue: Queue::new(&mut random),
            faults: Faults::default(),
            counts: Counts::default(),
            operations: 0,
            stops_after: u64::MAX,
            cuts: SmallRng::seed_from_u64(random.random()),
            random,
        };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// Executes one of the waiting commands; false if none waits or the disk
    /// has stopped.
    pub fn step(&self) -> bool {
        let mut state = self.state.borrow_mut();
        if state.operations >= state.stops_after {
            return false;
        }
        let State { queue, random, .. } = &mut *state;
        let Some((ticket, command)) = queue.choose(random) else { return false };
        let (buffer, outcome) = state.execute(command);
        state.operations += 1;
        let waker = state.queue.complete(ticket, buffer, outcome);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Commands that wait.
    pub fn waiting(&self) -> usize {
        self.state.borrow().queue.waiting()
    }

    /// Commands that were executed so far, of every kind.
    pub fn operations(&self) -> u64 {
        self.state.borrow().operations
    }

    /// What was executed so far.
    pub fn counts(&self) -> Counts {
        self.state.borrow().counts
    }

    /// Executes `operations` commands, counted from the disk's first, and then
    /// none any more: whoever waits, waits for ever.
    pub fn stop_after(&self, operations: u64) {
        self.state.borrow_mut().stops_after = operations;
    }

    /// Whether it has stopped.
    pub fn has_stopped(&self) -> bool {
        let state = self.state.borrow();
        state.operations >= state.stops_after
    }

    /// What is left after a power cut now. Changes nothing; each call draws
    /// anew.
    pub fn cut(&self) -> Medium {
        let mut state = self.state.borrow_mut();
        let State { durable, cached, written, queue, cuts, .. } = &mut *state;
        let mut versions = cached.clone();
        queue.each_waiting(|command| command.versions(*written + 1, cuts, &mut versions));
        survivors(durable, &versions, cuts)
    }

    /// What is left after an orderly end: everything that was executed.
    pub fn shut_down(&self) -> Medium {
        let state = self.state.borrow();
        let mut medium = state.durable.clone();
        for (&at, versions) in &state.cached {
            if let Some(newest) = versions.last() {
                medium.put(Pba(at), newest.block.clone());
            }
        }
        medium
    }

    /// The controller is reset and its cache is gone: of each unflushed block
    /// any version is left, though the writes were answered. Commands that
    /// wait fail; what they would have written may be there or not. From then
    /// on every write and flush fails with [`BlockError::Lost`].
    pub fn lose_cache(&self) {
        let left = self.cut();
        let mut state = self.state.borrow_mut();
        state.durable = left;
        state.cached.clear();
        state.lost = state.volatile_cache;
        let error = if state.lost { BlockError::Lost } else { BlockError::Medium };
        let wakers = state.queue.fail_all(error);
        drop(state);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    /// Reads of this block fail, until [`SimDisk::heal`].
    pub fn fail_reads(&self, at: Pba) {
        self.state.borrow_mut().faults.reads.insert(at.0);
    }

    /// Writes to this block fail, until [`SimDisk::heal`]; it stays old or
    /// becomes new.
    pub fn fail_writes(&self, at: Pba) {
        self.state.borrow_mut().faults.writes.insert(at.0);
    }

    /// So many commands fail, as the seed decides.
    pub fn fail_some(&self, rates: FailureRates) {
        self.state.borrow_mut().faults.rates = rates;
    }

    /// Decides for each block that is written from here on where it ends up.
    pub fn divert(&self, fate: impl FnMut(Pba, &Block) -> Fate + 'static) {
        self.state.borrow_mut().faults.fate = Some(Box::new(fate));
    }

    /// No command fails and no write is diverted any more. What went wrong
    /// stays wrong.
    pub fn heal(&self) {
        self.state.borrow_mut().faults = Faults::default();
    }

    /// Rot: turns one bit of a block, `bit` below 32,768, in the cache too.
    pub fn flip(&self, at: Pba, bit: usize) {
        let mut state = self.state.borrow_mut();
        state.durable.flip(at, bit);
        for version in state.cached.get_mut(&at.0).into_iter().flatten() {
            let mut block = version.block.as_deref().copied().unwrap_or([0; BLOCK_SIZE]);
            block[bit / 8] ^= 1 << (bit % 8);
            version.block = Some(Rc::new(block));
        }
    }

    /// What a read of the block would bring now.
    pub fn peek(&self, at: Pba) -> Block {
        *self.state.borrow().newest(at.0).as_deref().unwrap_or(&[0; BLOCK_SIZE])
    }

    /// Makes the disk larger.
    pub fn grow(&self, blocks: BlockCount) {
        let mut state = self.state.borrow_mut();
        state.blocks = state.blocks.max(blocks.0);
    }

    async fn submit(&self, command: Command) -> (Option<Buffer>, Result<(), BlockError>) {
        let number = self.state.borrow_mut().queue.push(command);
        Ticket::new(self, number).await
    }

    fn flush_command(&self) -> Command {
        Command::Flush { covers: self.state.borrow().written }
    }
}

impl State {
    fn execute(&mut self, command: Command) -> (Option<Buffer>, Result<(), BlockError>) {
        match command {
            Command::Read { at, buffer, places } => {
                let (buffer, outcome) = self.read(at, buffer, places);
                (Some(buffer), outcome)
            }
            Command::Write { buffer, .. } if self.lost => (Some(buffer), Err(BlockError::Lost)),
            Command::Flush { .. } | Command::Zero(_) | Command::Deallocate(_) if self.lost => {
                (None, Err(BlockError::Lost))
            }
            Command::Write { at, buffer, places, durability } => {
                let outcome = self.write(at, &buffer, places, durability);
                (Some(buffer), outcome)
            }
            Command::Flush { covers } => (None, self.flush(covers)),
            Command::Zero(extent) => (None, self.zero(extent)),
            Command::Deallocate(extent) => (None, self.deallocate(extent)),
        }
    }

    fn read(
        &mut self,
        at: Pba,
        mut buffer: Buffer,
        places: Range<usize>,
    ) -> (Buffer, Result<(), BlockError>) {
        self.counts.reads += 1;
        self.counts.blocks_read += places.len() as u64;
        let failing =
            (at.0..at.0 + places.len() as u64).any(|pba| self.faults.reads.contains(&pba));
        if failing || self.fails(self.faults.rates.reads) {
            return (buffer, Err(BlockError::Medium));
        }
        for (pba, place) in (at.0..).zip(places) {
            let room = &mut buffer[place * BLOCK_SIZE..(place + 1) * BLOCK_SIZE];
            match self.newest(pba) {
                Some(block) => room.copy_from_slice(&*block),
                None => room.fill(0),
            }
        }
        (buffer, Ok(()))
    }

    fn write(
        &mut self,
        at: Pba,
        buffer: &Buffer,
        places: Range<usize>,
        durability: Durability,
    ) -> Result<(), BlockError> {
        self.counts.writes += 1;
        self.counts.blocks_written += places.len() as u64;
        let mut failed = self.fails(self.faults.rates.writes);
        failed |= (at.0..at.0 + places.len() as u64).any(|pba| self.faults.writes.contains(&pba));
        for (pba, place) in (at.0..).zip(places) {
            if failed && self.random.random_bool(0.5) {
                continue;
            }
            let block = queue::block_at(buffer, place);
            let fate = self.faults.fate.as_mut().map_or(Fate::Lands, |fate| fate(Pba(pba), &block));
            let lands = match fate {
                Fate::Lands => pba,
                Fate::At(elsewhere) => elsewhere.0,
                Fate::Lost => continue,
            };
            self.put(lands, Some(block), durability);
        }
        if failed { Err(BlockError::Medium) } else { Ok(()) }
    }

    fn flush(&mut self, covers: u64) -> Result<(), BlockError> {
        self.counts.flushes += 1;
        if self.fails(self.faults.rates.flushes) {
            return Err(BlockError::Medium);
        }
        let durable = &mut self.durable;
        self.cached.retain(|&at, versions| {
            let covered = versions.iter().take_while(|version| version.number <= covers).count();
            if let Some(newest) = versions.drain(..covered).next_back() {
                durable.put(Pba(at), newest.block);
            }
            !versions.is_empty()
        });
        Ok(())
    }

    fn zero(&mut self, extent: Extent) -> Result<(), BlockError> {
        self.counts.zeroings += 1;
        let failed = self.fails(self.faults.rates.writes);
        for at in extent.start.0..extent.end().0 {
            if self.newest(at).is_some() && !(failed && self.random.random_bool(0.5)) {
                self.put(at, None, Durability::Cached);
            }
        }
        if failed { Err(BlockError::Medium) } else { Ok(()) }
    }

    /// The blocks become noise, zeroes, or stay.
    fn deallocate(&mut self, extent: Extent) -> Result<(), BlockError> {
        self.counts.deallocations += 1;
        for at in extent.start.0..extent.end().0 {
            match self.random.random_range(0..3) {
                0 => {
                    let noise = noise(&mut self.random);
                    self.put(at, Some(noise), Durability::Cached);
                }
                1 => self.put(at, None, Durability::Cached),
                _ => {}
            }
        }
        Ok(())
    }

    fn put(&mut self, at: u64, block: Option<Rc<Block>>, durability: Durability) {
        self.written += 1;
        if durability == Durability::Through || !self.volatile_cache {
            self.cached.remove(&at);
            self.durable.put(Pba(at), block);
            return;
        }
        let versions = self.cached.entry(at).or_default();
        if versions.len() == MOST_VERSIONS {
            versions.remove(0);
        }
        versions.push(Version { number: self.written, block });
    }

    fn newest(&self, at: u64) -> Option<Rc<Block>> {
        match self.cached.get(&at).and_then(|versions| versions.last()) {
            Some(version) => version.block.clone(),
            None => self.durable.shared(Pba(at)),
        }
    }

    fn fails(&mut self, rate: u32) -> bool {
        rate > 0 && self.random.random_range(0..1_000_000) < rate
    }
}

fn noise(random: &mut SmallRng) -> Rc<Block> {
    let mut block = [0; BLOCK_SIZE];
    random.fill(&mut block[..]);
    Rc::new(block)
}

/// How a power cut treats what was not flushed. Each block on its own would
/// hardly ever show the cut in which one single block is missing.
#[derive(Clone, Copy)]
enum Cut {
    Nothing,
    Everything,
    AllButOne(u64),
    OnlyOne(u64),
    /// Each block for itself; so many of 256 are torn, too.
    Each {
        torn: u8,
    },
}

fn survivors(
    durable: &Medium,
    versions: &BTreeMap<u64, Vec<Version>>,
    random: &mut SmallRng,
) -> Medium {
    let mut left = durable.clone();
    let Some((&first, _)) = versions.first_key_value() else { return left };
    let one = *versions.keys().collect::<Vec<_>>().choose(random).copied().unwrap_or(&first);
    let cut = match random.random_range(0..16) {
        0 => Cut::Nothing,
        1 => Cut::Everything,
        2..5 => Cut::AllButOne(one),
        5..8 => Cut::OnlyOne(one),
        8..12 => Cut::Each { torn: 0 },
        _ => Cut::Each { torn: 128 },
    };
    for (&at, versions) in versions {
        let newest = versions.len();
        let torn = match cut {
            Cut::Nothing => continue,
            Cut::AllButOne(out) if out == at => 64,
            Cut::OnlyOne(only) if only != at => continue,
            Cut::Everything | Cut::AllButOne(_) | Cut::OnlyOne(_) => {
                left.put(Pba(at), versions[newest - 1].block.clone());
                continue;
            }
            Cut::Each { torn } => torn,
        };
        if random.random::<u8>() < torn {
            let block = torn_block(durable.block(Pba(at)), versions, random);
            left.set(Pba(at), &block);
        } else if matches!(cut, Cut::Each { .. })
            && let Some(version) = random.random_range(0..=newest).checked_sub(1)
        {
            left.put(Pba(at), versions[version].block.clone());
        }
    }
    left
}

/// Of each sector any version.
fn torn_block(durable: &Block, versions: &[Version], random: &mut SmallRng) -> Block {
    let mut block = *durable;
    for (number, sector) in block.chunks_exact_mut(SECTOR_SIZE).enumerate() {
        let Some(version) = random.random_range(0..=versions.len()).checked_sub(1) else {
            continue;
        };
        match &versions[version].block {
            Some(from) => sector.copy_from_slice(&from[number * SECTOR_SIZE..][..SECTOR_SIZE]),
            None => sector.fill(0),
        }
    }
    block
}

impl Device for SimDisk {
    fn blocks(&self) -> BlockCount {
        BlockCount(self.state.borrow().blocks)
    }

    fn has_volatile_cache(&self) -> bool {
        self.state.borrow().volatile_cache
    }

    async fn read(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
    ) -> (Buffer, Result<(), BlockError>) {
        self.check(at, blocks.len());
        let (buffer, outcome) = self.submit(Command::Read { at, buffer, places: blocks }).await;
        (buffer.expect("a read gives its buffer back"), outcome)
    }

    async fn write(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
        durability: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        self.check(at, blocks.len());
        let command = Command::Write { at, buffer, places: blocks, durability };
        let (buffer, outcome) = self.submit(command).await;
        (buffer.expect("a write gives its buffer back"), outcome)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.submit(self.flush_command()).await.1
    }

    async fn write_zeroes(&self, extent: Extent, _: bool) -> Result<(), BlockError> {
        self.check(extent.start, extent.count.0 as usize);
        self.submit(Command::Zero(extent)).await.1
    }

    async fn deallocate(&self, extent: Extent) -> Result<(), BlockError> {
        self.check(extent.start, extent.count.0 as usize);
        self.submit(Command::Deallocate(extent)).await.1
    }
}

impl SimDisk {
    fn check(&self, at: Pba, count: usize) {
        let end = at.0.saturating_add(count as u64);
        let blocks = self.state.borrow().blocks;
        assert!(count > 0 && end <= blocks, "{count} blocks at {} of {blocks}", at.0);
    }
}
