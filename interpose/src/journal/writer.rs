//! Appending: records go into the open block; a closed one waits to be written.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use block_core::device::Durability;
use block_core::{BLOCK_SIZE, Buffer, Pool};
use thiserror::Error;
use tokio::sync::Notify;

use super::admission::{Gate, MOST_EXEMPT, MOST_PAST_MARK, weight_of};
use super::flush::{LANES, Timers};
use super::{BODY_BYTES, HEADER_BYTES, Header, JournalError, Position, Ring, block};
use crate::layout::Record;
use crate::vault::Vault;

/// Blocks that one journal holds in memory at most: those that the admitted
/// records fill (63 in a block, or 62 after a smaller one), twice as many for
/// large controls, which leave a block half empty; and those that flushes, the
/// timer and checkpoints close early, of which few are under way at a time.
pub const BUFFERS: usize = 128;

const _: () = assert!(BUFFERS as u64 >= MOST_PAST_MARK.div_ceil(62) + MOST_EXEMPT * 2 / 63 + 16);

/// The smallest record: a block with less room is full.
const LEAST_RECORD_BYTES: usize = 16;

/// A journal was to begin without enough memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the journal needs {BUFFERS} buffers of {BLOCK_SIZE} bytes, and {0} are free")]
pub struct NoBuffers(pub usize);

/// How far the journal has come: a block's number, and how many records, by
/// weight, were appended up to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reached {
    pub(super) number: u64,
    pub(super) records: u64,
}

/// A sealed block that waits to be written.
pub(super) struct Closed {
    pub(super) number: u64,
    pub(super) buffer: Buffer,
    pub(super) durability: Durability,
    /// How far the journal had come before it.
    pub(super) before: Reached,
}

/// The end of the journal: what is not written yet.
pub(super) struct Tail {
    /// The open block; gone only when the journal has failed.
    open: Option<Buffer>,
    /// Bytes of its body that records fill.
    filled: usize,
    count: u16,
    position: Position,
    pub(super) closed: VecDeque<Closed>,
    /// How far the closed blocks go.
    pub(super) last: Reached,
    pub(super) free: Vec<Buffer>,
}

/// The journal of an open pool. One thread's; nothing moves unless
/// [`Journal::run`] is being run.
pub struct Journal<D> {
    pub(super) device: Rc<D>,
    vault: Rc<Vault>,
    pub(super) place: Ring,
    pub(super) tail: RefCell<Tail>,
    /// The oldest block that a recovery would need.
    oldest: Cell<u64>,
    /// The first block of the period that goes on.
    period: Cell<u64>,
    /// What was durable when a flush last ended.
    pub(super) durable: Cell<Reached>,
    /// The newest block that says something, a record: what a flush is for.
    pub(super) said: Cell<u64>,
    /// Records appended, by weight, in closed blocks and the open one.
    appended: Cell<u64>,
    /// The highest mark that a closed block carries.
    pub(super) carried: Cell<u64>,
    /// Flushes wait until the mark reaches this.
    pub(super) wanted: Cell<u64>,
    /// How far the journal had come before the block that each lane writes.
    pub(super) lanes: [Cell<Option<Reached>>; LANES],
    pub(super) timers: Timers,
    failure: Cell<Option<JournalError>>,
    pub(super) gate: Gate,
    /// There may be a block that a lane can write. Who takes one tells the next
    /// lane when there are more.
    pub(super) to_write: Notify,
    /// The flusher looks again.
    pub(super) to_flush: Notify,
    /// The mark has moved, or never will.
    pub(super) marked: Notify,
}

impl<D> Journal<D> {
    /// A journal that goes on at `at`, with `oldest` still needed and all up
    /// to `mark` known to be durable. Takes [`BUFFERS`] buffers for itself.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn new(
        device: Rc<D>,
        vault: Rc<Vault>,
        buffers: &Pool,
        place: Ring,
        at: Position,
        oldest: u64,
        mark: u64,
    ) -> Result<Self, NoBuffers> {
        let mut free: Vec<Buffer> = std::iter::from_fn(|| buffers.take()).take(BUFFERS).collect();
        if free.len() < BUFFERS || buffers.buffer_bytes() < BLOCK_SIZE {
            return Err(NoBuffers(free.len()));
        }
        let open = free.pop();
        let before = at.next.saturating_sub(1);
        let tail = Tail {
            open,
            filled: 0,
            count: 0,
            position: at,
            closed: VecDeque::with_capacity(BUFFERS),
            last: Reached { number: before, records: 0 },
            free,
        };
        Ok(Self {
            device,
            vault,
            place,
            tail: RefCell::new(tail),
            oldest: Cell::new(oldest),
            period: Cell::new(oldest),
            durable: Cell::new(Reached { number: mark, records: 0 }),
            // What a recovery found may lie in the device's cache only.
            said: Cell::new(before),
            appended: Cell::new(0),
            carried: Cell::new(mark),
            wanted: Cell::new(mark),
            lanes: Default::default(),
            timers: Timers::default(),
            failure: Cell::new(None),
            gate: Gate::new(place.blocks()),
            to_write: Notify::new(),
            to_flush: Notify::new(),
            marked: Notify::new(),
        })
    }

    /// Appends a record, for which the caller was admitted. It is durable when
    /// a [`Journal::flush`] that begins afterwards has ended. A journal that
    /// has failed takes nothing.
    pub fn append(&self, record: &Record) {
        let bytes = record.bytes();
        if bytes > BODY_BYTES {
            return self.fail(JournalError::Room);
        }
        if self.tail.borrow().filled + bytes > BODY_BYTES {
            self.close(Durability::Cached);
        }
        if self.failed().is_some() {
            return;
        }
        let full = self.put(record, bytes);
        let weight = weight_of(bytes) as u64;
        self.appended.set(self.appended.get() + weight);
        self.timers.appended();
        if full {
            self.close(Durability::Cached);
        }
        let flush_at = self.gate.flush_at();
        if (flush_at..flush_at + weight).contains(&self.past_mark()) {
            self.to_flush.notify_waiters();
        }
    }

    /// Puts the record into the open block, which has room; says whether none
    /// is left.
    fn put(&self, record: &Record, bytes: usize) -> bool {
        let mut tail = self.tail.borrow_mut();
        let tail = &mut *tail;
        let Some(open) = &mut tail.open else { return false };
        let from = HEADER_BYTES + tail.filled;
        record.encode(&mut open[from..from + bytes]);
        tail.filled += bytes;
        tail.count += 1;
        self.said.set(tail.position.next);
        tail.filled + LEAST_RECORD_BYTES > BODY_BYTES
    }

    /// Seals the open block, which may be empty, and opens the next one.
    pub(super) fn close(&self, durability: Durability) {
        if self.failed().is_some() {
            return;
        }
        match self.seal_open_block(durability) {
            Ok(()) => self.to_write.notify_one(),
            Err(error) => self.fail(error),
        }
    }

    fn seal_open_block(&self, durability: Durability) -> Result<(), JournalError> {
        let mut tail = self.tail.borrow_mut();
        let tail = &mut *tail;
        let next = tail.free.pop().ok_or(JournalError::Room)?;
        let mut buffer = tail.open.take().ok_or(JournalError::Room)?;
        let Position { next: number, previous } = tail.position;
        let mark = self.mark();
        buffer[HEADER_BYTES + tail.filled..BLOCK_SIZE].fill(0);
        let header = Header { count: tail.count, number, mark, previous };
        let tag = block::seal(&self.vault, &self.place, &header, &mut buffer)
            .map_err(JournalError::Seal)?;
        tail.closed.push_back(Closed { number, buffer, durability, before: tail.last });
        tail.last = Reached { number, records: self.appended.get() };
        tail.position = Position { next: number + 1, previous: tag };
        tail.open = Some(next);
        (tail.filled, tail.count) = (0, 0);
        self.carried.set(mark);
        self.timers.mark_is_carried();
        Ok(())
    }

    /// Ends a period: what is appended from here on is in blocks from the
    /// returned position on, which a superblock names together with
    /// [`Journal::mark`]. Waits for nothing.
    pub fn freeze(&self) -> Position {
        if self.tail.borrow().count > 0 {
            self.close(Durability::Cached);
        }
        self.period.set(self.position().next);
        self.position()
    }

    /// A checkpoint that holds everything before block `upto` is durable:
    /// these blocks may be overwritten.
    pub fn release(&self, upto: u64) {
        self.oldest.set(upto.max(self.oldest.get()));
        self.to_write.notify_one();
        self.gate.tell();
    }

    /// Ends the journal for ever; what waits for it gets the error.
    pub fn fail(&self, error: JournalError) {
        if self.failure.get().is_none() {
            self.failure.set(Some(error));
        }
        self.to_write.notify_waiters();
        self.to_flush.notify_waiters();
        self.marked.notify_waiters();
        self.gate.tell();
    }

    /// Why the journal takes nothing any more, if so.
    pub fn failed(&self) -> Option<JournalError> {
        self.failure.get()
    }

    /// What the next closed block is chained to.
    pub fn position(&self) -> Position {
        self.tail.borrow().position
    }

    /// The last number that is known to be durable, with all before it.
    pub fn mark(&self) -> u64 {
        self.durable.get().number
    }

    /// The oldest block that is not released.
    pub fn oldest(&self) -> u64 {
        self.oldest.get()
    }

    /// How many blocks of the ring hold what is still needed, the open one
    /// among them.
    pub fn used(&self) -> u64 {
        let tail = self.tail.borrow();
        (tail.position.next + u64::from(tail.count > 0)).saturating_sub(self.oldest.get())
    }

    /// The same of the period that goes on: since the last [`Journal::freeze`].
    pub fn used_by_period(&self) -> u64 {
        self.used().saturating_sub(self.period.get().saturating_sub(self.oldest.get()))
    }

    /// How many blocks the ring has.
    pub fn ring(&self) -> u64 {
        self.place.blocks()
    }

    /// Records appended that are not known to be durable, by weight.
    pub fn past_mark(&self) -> u64 {
        self.appended.get() - self.durable.get().records
    }

    /// Whether the open block holds a record.
    pub(super) fn open_block_says_something(&self) -> bool {
        self.tail.borrow().count > 0
    }
}
