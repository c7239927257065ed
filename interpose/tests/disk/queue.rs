//! Commands that wait, the order in which they are executed, and who is told.

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use block_core::device::Durability;
use block_core::unit::{BLOCK_SIZE, Extent, Pba};
use block_core::{BlockError, Buffer};
use rand::Rng;
use rand::rngs::SmallRng;

use super::{Block, SimDisk, Version, noise};

pub(super) enum Command {
    Read {
        at: Pba,
        buffer: Buffer,
        places: Range<usize>,
    },
    Write {
        at: Pba,
        buffer: Buffer,
        places: Range<usize>,
        durability: Durability,
    },
    /// Makes durable what had completed when it was sent: versions up to this.
    Flush {
        covers: u64,
    },
    Zero(Extent),
    Deallocate(Extent),
}

impl Command {
    /// Adds what the command may have left though it never completed.
    pub(super) fn versions(
        &self,
        number: u64,
        random: &mut SmallRng,
        versions: &mut BTreeMap<u64, Vec<Version>>,
    ) {
        let mut add = |at: u64, block: Option<Rc<Block>>| {
            versions.entry(at).or_default().push(Version { number, block });
        };
        match self {
            Self::Read { .. } | Self::Flush { .. } => {}
            Self::Write { at, buffer, places, .. } => {
                for (pba, place) in (at.0..).zip(places.clone()) {
                    add(pba, Some(block_at(buffer, place)));
                }
            }
            Self::Zero(extent) => {
                (extent.start.0..extent.end().0).for_each(|pba| add(pba, None));
            }
            Self::Deallocate(extent) => {
                for pba in extent.start.0..extent.end().0 {
                    let noisy: bool = random.random();
                    add(pba, noisy.then(|| noise(random)));
                }
            }
        }
    }
}

pub(super) fn block_at(buffer: &Buffer, place: usize) -> Rc<Block> {
    let bytes = &buffer[place * BLOCK_SIZE..(place + 1) * BLOCK_SIZE];
    Rc::new(bytes.try_into().expect("a block's bytes"))
}

/// Which waiting command is next. A disk that is fair to all would hardly ever
/// keep one write back for long.
#[derive(Clone, Copy)]
enum Temper {
    Fair,
    OldestFirst,
    NewestFirst,
}

enum Entry {
    Waiting,
    Done(Option<Buffer>, Result<(), BlockError>),
    /// Nobody wants to hear of it any more.
    Forgotten,
}

pub(super) struct Queue {
    temper: Temper,
    /// In the order in which they came.
    waiting: Vec<(usize, Command)>,
    entries: Vec<Option<(Entry, Option<Waker>)>>,
    free: Vec<usize>,
}

impl Queue {
    pub(super) fn new(random: &mut SmallRng) -> Self {
        let temper = match random.random_range(0..4) {
            0 => Temper::OldestFirst,
            1 => Temper::NewestFirst,
            _ => Temper::Fair,
        };
        Self { temper, waiting: Vec::new(), entries: Vec::new(), free: Vec::new() }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn push(&mut self, command: Command) -> usize {
        let number = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() - 1
        });
        self.entries[number] = Some((Entry::Waiting, None));
        self.waiting.push((number, command));
        number
    }

    pub(super) fn choose(&mut self, random: &mut SmallRng) -> Option<(usize, Command)> {
        let last = self.waiting.len().checked_sub(1)?;
        let usual = random.random_range(0..8) != 0;
        let place = match self.temper {
            Temper::OldestFirst if usual => 0,
            Temper::NewestFirst if usual => last,
            _ => random.random_range(0..=last),
        };
        Some(self.waiting.remove(place))
    }

    pub(super) fn complete(
        &mut self,
        number: usize,
        buffer: Option<Buffer>,
        outcome: Result<(), BlockError>,
    ) -> Option<Waker> {
        let (entry, waker) = self.entries[number].take()?;
        if matches!(entry, Entry::Forgotten) {
            self.free.push(number);
            return None;
        }
        self.entries[number] = Some((Entry::Done(buffer, outcome), None));
        waker
    }

    pub(super) fn fail_all(&mut self, changes: BlockError) -> Vec<Waker> {
        let failed = std::mem::take(&mut self.waiting);
        let wakers = failed.into_iter().filter_map(|(number, command)| {
            let (buffer, error) = match command {
                Command::Read { buffer, .. } => (Some(buffer), BlockError::Medium),
                Command::Write { buffer, .. } => (Some(buffer), changes),
                Command::Flush { .. } | Command::Zero(_) | Command::Deallocate(_) => {
                    (None, changes)
                }
            };
            self.complete(number, buffer, Err(error))
        });
        wakers.collect()
    }

    pub(super) fn each_waiting(&self, mut see: impl FnMut(&Command)) {
        self.waiting.iter().for_each(|(_, command)| see(command));
    }

    fn poll(
        &mut self,
        number: usize,
        context: &Context<'_>,
    ) -> Poll<(Option<Buffer>, Result<(), BlockError>)> {
        match self.entries[number].take() {
            Some((Entry::Done(buffer, outcome), _)) => {
                self.free.push(number);
                Poll::Ready((buffer, outcome))
            }
            Some((entry, _)) => {
                self.entries[number] = Some((entry, Some(context.waker().clone())));
                Poll::Pending
            }
            None => Poll::Pending,
        }
    }

    fn forget(&mut self, number: usize) {
        match self.entries[number].take() {
            Some((Entry::Waiting, _)) => self.entries[number] = Some((Entry::Forgotten, None)),
            _ => self.free.push(number),
        }
    }
}

/// Waits for one command. Dropping it gives the command up, which is executed
/// nevertheless.
pub(super) struct Ticket<'a> {
    disk: &'a SimDisk,
    number: Option<usize>,
}

impl<'a> Ticket<'a> {
    pub(super) fn new(disk: &'a SimDisk, number: usize) -> Self {
        Self { disk, number: Some(number) }
    }
}

impl Future for Ticket<'_> {
    type Output = (Option<Buffer>, Result<(), BlockError>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(number) = self.number else { return Poll::Pending };
        let polled = self.disk.state.borrow_mut().queue.poll(number, context);
        if polled.is_ready() {
            self.number = None;
        }
        polled
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.disk.state.borrow_mut().queue.forget(number);
        }
    }
}
