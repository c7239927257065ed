//! A disk in memory that completes in an order drawn from a seed and loses, at
//! a power cut, any part of what was not flushed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

use block_core::device::{Durability, Ended, Failure, Tag, Transfer};
use block_core::unit::{BLOCK_SIZE, BlockCount, Extent, Pba, SECTOR_SIZE};
use block_core::{BlockError, Buffer, Device};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

type Block = [u8; BLOCK_SIZE];
const ZERO: Block = [0; BLOCK_SIZE];

/// What the medium holds, without the machine around it.
#[derive(Clone, Debug, Default)]
pub(super) struct Medium {
    blocks: BTreeMap<u64, Rc<Block>>,
}

impl Medium {
    pub(super) fn block(&self, at: u64) -> Block {
        self.blocks.get(&at).map_or(ZERO, |block| **block)
    }

    pub(super) fn set(&mut self, at: u64, block: Block) {
        if block == ZERO {
            self.blocks.remove(&at);
        } else {
            self.blocks.insert(at, Rc::new(block));
        }
    }
}

enum Command {
    Read { at: Pba, buffer: Buffer, places: Range<usize> },
    Write { at: Pba, buffer: Buffer, places: Range<usize>, durability: Durability },
    Flush,
    Zero(Extent),
}

enum Entry {
    Queued(Command),
    /// Begun without a future.
    Begun(Command, Tag),
    Done(Option<Buffer>, Result<(), BlockError>),
}

struct State {
    blocks: u64,
    /// What a power cut leaves for certain.
    durable: Medium,
    /// Versions of blocks since then, oldest first.
    cached: BTreeMap<u64, Vec<Rc<Block>>>,
    entries: Vec<Option<(Entry, Option<Waker>)>>,
    random: StdRng,
}

/// The disk, shared by its driver and its users.
#[derive(Clone)]
pub(super) struct SimDisk {
    state: Rc<RefCell<State>>,
    executed: Rc<Cell<usize>>,
    /// Fails writes to this block, as rot under a head would.
    pub(super) broken: Rc<Cell<Option<u64>>>,
    /// Gives up what is begun without a future.
    pub(super) gives_up: Rc<Cell<bool>>,
    /// What was deallocated, command by command.
    pub(super) deallocated: Rc<RefCell<Vec<Extent>>>,
    ended: Rc<RefCell<Vec<Ended>>>,
}

impl SimDisk {
    pub(super) fn new(medium: Medium, blocks: u64, seed: u64) -> Self {
        let state = State {
            blocks,
            durable: medium,
            cached: BTreeMap::new(),
            entries: Vec::new(),
            random: StdRng::seed_from_u64(seed),
        };
        Self {
            state: Rc::new(RefCell::new(state)),
            executed: Rc::default(),
            broken: Rc::default(),
            gives_up: Rc::default(),
            deallocated: Rc::default(),
            ended: Rc::default(),
        }
    }

    /// Commands that were executed so far.
    pub(super) fn executed(&self) -> usize {
        self.executed.get()
    }

    /// Commands that wait to be executed.
    pub(super) fn waiting(&self) -> usize {
        let state = self.state.borrow();
        let waits = |entry: &Option<(Entry, _)>| {
            matches!(entry, Some((Entry::Queued(_) | Entry::Begun(..), _)))
        };
        state.entries.iter().filter(|entry| waits(entry)).count()
    }

    /// Executes one of the waiting commands; false if there is none.
    pub(super) fn step(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let queued: Vec<usize> = (0..state.entries.len())
            .filter(|&at| {
                matches!(state.entries[at], Some((Entry::Queued(_) | Entry::Begun(..), _)))
            })
            .collect();
        if queued.is_empty() {
            return false;
        }
        let at = queued[state.random.random_range(0..queued.len())];
        let broken = self.broken.get();
        self.executed.set(self.executed.get() + 1);
        match state.entries[at].take() {
            Some((Entry::Queued(command), waker)) => {
                let (buffer, outcome) = state.execute(command, broken);
                state.entries[at] = Some((Entry::Done(buffer, outcome), None));
                waker.into_iter().for_each(Waker::wake);
            }
            Some((Entry::Begun(command, tag), _)) => {
                let ended = state.end(command, tag, broken, self.gives_up.get());
                self.ended.borrow_mut().push(ended);
            }
            _ => return false,
        }
        true
    }

    /// What has ended of what was begun without a future.
    pub(super) fn take_ended(&self) -> Vec<Ended> {
        self.ended.take()
    }

    /// What the medium holds after a power cut now: of each sector any version
    /// since the last flush, also of commands that had not completed.
    pub(super) fn cut(&self) -> Medium {
        let mut state = self.state.borrow_mut();
        for at in 0..state.entries.len() {
            if let Some((Entry::Queued(Command::Flush | Command::Read { .. }), _)) =
                &state.entries[at]
            {
                continue;
            }
            if let Some((Entry::Queued(command), _)) = state.entries[at].take() {
                let cached = match command {
                    Command::Write { at, buffer, places, .. } => {
                        Command::Write { at, buffer, places, durability: Durability::Cached }
                    }
                    other => other,
                };
                let (_, _) = state.execute(cached, None);
            }
        }
        let State { durable, cached, random, .. } = &mut *state;
        let mut left = durable.clone();
        for (&at, versions) in cached.iter() {
            let mut block = durable.block(at);
            let whole = random.random_bool(0.5);
            let mut version = random.random_range(0..=versions.len());
            for sector in block.chunks_exact_mut(SECTOR_SIZE).enumerate() {
                if !whole {
                    version = random.random_range(0..=versions.len());
                }
                if let Some(newer) = version.checked_sub(1) {
                    let from = sector.0 * SECTOR_SIZE;
                    sector.1.copy_from_slice(&versions[newer][from..from + SECTOR_SIZE]);
                }
            }
            left.set(at, block);
        }
        left
    }

    /// What the medium holds after an orderly end.
    pub(super) fn shut_down(&self) -> Medium {
        let mut state = self.state.borrow_mut();
        state.flush();
        state.durable.clone()
    }

    /// What a read of the block would bring now.
    pub(super) fn peek(&self, at: u64) -> Block {
        self.state.borrow().block(at)
    }

    async fn run(&self, command: Command) -> (Option<Buffer>, Result<(), BlockError>) {
        let at = self.state.borrow_mut().put_entry(Entry::Queued(command));
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            match state.entries[at].take() {
                Some((Entry::Done(buffer, outcome), _)) => Poll::Ready((buffer, outcome)),
                Some((entry, _)) => {
                    state.entries[at] = Some((entry, Some(context.waker().clone())));
                    Poll::Pending
                }
                // The power was cut under it.
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl State {
    fn put_entry(&mut self, entry: Entry) -> usize {
        let at = self.entries.iter().position(Option::is_none).unwrap_or(self.entries.len());
        if at == self.entries.len() {
            self.entries.push(None);
        }
        self.entries[at] = Some((entry, None));
        at
    }

    fn end(&mut self, command: Command, tag: Tag, broken: Option<u64>, gives_up: bool) -> Ended {
        let (buffer, outcome) = match command {
            Command::Read { buffer, .. } | Command::Write { buffer, .. } if gives_up => {
                (Some(buffer), Err(Failure::GivenUp))
            }
            command => {
                let (buffer, outcome) = self.execute(command, broken);
                (buffer, outcome.map_err(Failure::Error))
            }
        };
        Ended { tag, buffer: buffer.expect("it moves data"), outcome }
    }

    fn block(&self, at: u64) -> Block {
        let newest = self.cached.get(&at).and_then(|versions| versions.last());
        newest.map_or_else(|| self.durable.block(at), |block| **block)
    }

    fn execute(
        &mut self,
        command: Command,
        broken: Option<u64>,
    ) -> (Option<Buffer>, Result<(), BlockError>) {
        match command {
            Command::Read { at, mut buffer, places } => {
                assert!(at.0 + places.len() as u64 <= self.blocks && !places.is_empty());
                for (pba, place) in (at.0..).zip(places) {
                    let from = place * BLOCK_SIZE;
                    buffer[from..from + BLOCK_SIZE].copy_from_slice(&self.block(pba));
                }
                (Some(buffer), Ok(()))
            }
            Command::Write { at, buffer, places, durability } => {
                assert!(at.0 + places.len() as u64 <= self.blocks && !places.is_empty());
                if broken
                    .is_some_and(|block| (at.0..).zip(places.clone()).any(|(pba, _)| pba == block))
                {
                    return (Some(buffer), Err(BlockError::Medium));
                }
                for (pba, place) in (at.0..).zip(places) {
                    let mut block = ZERO;
                    block.copy_from_slice(&buffer[place * BLOCK_SIZE..(place + 1) * BLOCK_SIZE]);
                    self.put(pba, block, durability);
                }
                (Some(buffer), Ok(()))
            }
            Command::Flush => {
                self.flush();
                (None, Ok(()))
            }
            Command::Zero(extent) => {
                assert!(extent.end().0 <= self.blocks);
                (extent.start.0..extent.end().0)
                    .filter(|&at| self.block(at) != ZERO || self.cached.contains_key(&at))
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|at| self.put(at, ZERO, Durability::Cached));
                (None, Ok(()))
            }
        }
    }

    fn put(&mut self, at: u64, block: Block, durability: Durability) {
        match durability {
            Durability::Cached => self.cached.entry(at).or_default().push(Rc::new(block)),
            Durability::Through => {
                self.cached.remove(&at);
                self.durable.set(at, block);
            }
        }
    }

    fn flush(&mut self) {
        for (at, versions) in std::mem::take(&mut self.cached) {
            if let Some(newest) = versions.last() {
                self.durable.set(at, **newest);
            }
        }
    }
}

impl Device for SimDisk {
    fn blocks(&self) -> BlockCount {
        BlockCount(self.state.borrow().blocks)
    }

    fn has_volatile_cache(&self) -> bool {
        true
    }

    async fn read(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
    ) -> (Buffer, Result<(), BlockError>) {
        let (buffer, outcome) = self.run(Command::Read { at, buffer, places: blocks }).await;
        (buffer.expect("a read gives its buffer back"), outcome)
    }

    async fn write(
        &self,
        at: Pba,
        buffer: Buffer,
        blocks: Range<usize>,
        durability: Durability,
    ) -> (Buffer, Result<(), BlockError>) {
        let command = Command::Write { at, buffer, places: blocks, durability };
        let (buffer, outcome) = self.run(command).await;
        (buffer.expect("a write gives its buffer back"), outcome)
    }

    fn begin(
        &self,
        transfer: Transfer,
        at: Pba,
        buffer: Buffer,
        places: Range<usize>,
        tag: Tag,
    ) -> Result<(), Buffer> {
        let command = match transfer {
            Transfer::Read => Command::Read { at, buffer, places },
            Transfer::Write(durability) => Command::Write { at, buffer, places, durability },
        };
        let mut state = self.state.borrow_mut();
        state.put_entry(Entry::Begun(command, tag));
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.run(Command::Flush).await.1
    }

    async fn write_zeroes(&self, extent: Extent, _: bool) -> Result<(), BlockError> {
        self.run(Command::Zero(extent)).await.1
    }

    async fn deallocate(&self, extent: Extent) -> Result<(), BlockError> {
        // The worst that is allowed: the blocks then read as something else.
        let noise = 0xee;
        self.deallocated.borrow_mut().push(extent);
        let mut state = self.state.borrow_mut();
        for at in extent.start.0..extent.end().0 {
            if state.block(at) != ZERO {
                state.put(at, [noise; BLOCK_SIZE], Durability::Cached);
            }
        }
        Ok(())
    }
}
