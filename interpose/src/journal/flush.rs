//! Writing and flushing: lanes write closed blocks side by side; the flusher
//! makes them durable, one device flush for all who wait.

use std::cell::Cell;
use std::time::Duration;

use block_core::device::Durability;
use block_core::{BlockError, Device, Time};
use turn::yield_now;

use super::writer::{Closed, Reached};
use super::{Journal, JournalError};

/// Blocks that are written at a time: each holds 63 records, so four are as many
/// changes as the deepest queues bring.
pub(super) const LANES: usize = 4;

/// Tasks that move a journal: the lanes, and who flushes.
pub const TASKS: usize = LANES + 1;

/// Records that nobody flushes are flushed after so long, at most.
const IDLE_AFTER: Duration = Duration::from_millis(100);

/// A mark that no block carries is written after so long: early enough that,
/// with the tick that is late, it is there within 100 ms after the flush.
const MARK_AFTER: Duration = Duration::from_millis(50);

/// What falls due when nobody asks.
#[derive(Debug, Default)]
pub(super) struct Timers {
    now: Cell<Time>,
    /// When records past the mark are flushed.
    idle: Cell<Option<Time>>,
    /// When the mark is written.
    mark: Cell<Option<Time>>,
}

impl Timers {
    /// A record is past the mark.
    pub(super) fn appended(&self) {
        arm(&self.idle, self.now.get() + IDLE_AFTER);
    }

    /// A closed block has the mark.
    pub(super) fn mark_is_carried(&self) {
        self.mark.set(None);
    }
}

fn failure(error: BlockError, of: fn(BlockError) -> JournalError) -> JournalError {
    if error == BlockError::Lost { JournalError::Lost } else { of(error) }
}

fn arm(timer: &Cell<Option<Time>>, at: Time) {
    if timer.get().is_none() {
        timer.set(Some(at));
    }
}

fn fires(timer: &Cell<Option<Time>>, now: Time) -> bool {
    let due = timer.get().is_some_and(|at| at <= now);
    if due {
        timer.set(None);
    }
    due
}

impl<D> Journal<D> {
    /// Makes everything that was appended before durable. Flushes that begin
    /// while the device is flushed share the next one; if there is nothing to
    /// make durable, the device is not asked.
    ///
    /// # Errors
    /// When the journal has failed, before or meanwhile.
    pub async fn flush(&self) -> Result<(), JournalError> {
        let target = self.said.get();
        loop {
            if let Some(error) = self.failed() {
                return Err(error);
            }
            if self.mark() >= target {
                return Ok(());
            }
            self.want(target);
            self.marked.notified().await;
        }
    }

    /// Tells the journal the time, first thing in a turn.
    pub fn tick(&self, now: Time) {
        self.timers.now.set(now);
        if fires(&self.timers.idle, now) {
            self.flush_soon();
        }
        if fires(&self.timers.mark, now) && self.carried.get() < self.mark() {
            self.write_mark();
        }
    }

    /// When [`Journal::tick`] has something to do; `None` if nothing is to
    /// come.
    pub fn deadline(&self) -> Option<Time> {
        if self.failed().is_some() {
            return None;
        }
        match (self.timers.idle.get(), self.timers.mark.get()) {
            (Some(idle), Some(mark)) => Some(idle.min(mark)),
            (idle, mark) => idle.or(mark),
        }
    }

    /// Whether the flusher has a reason to begin.
    pub(super) fn flush_is_due(&self) -> bool {
        self.wanted.get() > self.mark() || self.past_mark() >= self.gate.flush_at()
    }

    /// Has what was appended flushed though nobody waits for it.
    pub(super) fn flush_soon(&self) {
        self.want(self.said.get());
    }

    fn want(&self, target: u64) {
        if target > self.wanted.get() {
            self.wanted.set(target);
            self.to_flush.notify_waiters();
        }
    }

    /// Closes the open block, empty or not, to carry the mark. It goes through
    /// the device's cache by itself: a flush would have a mark of its own.
    fn write_mark(&self) {
        if self.used() < self.ring() {
            self.close(Durability::Through);
        }
    }

    /// How far all blocks are written.
    fn written(&self) -> Reached {
        let lanes = self.lanes.iter().filter_map(Cell::get).min();
        let tail = self.tail.borrow();
        let queued = || tail.closed.front().map(|block| block.before);
        lanes.or_else(queued).unwrap_or(tail.last)
    }

    fn advance(&self, reached: Reached) {
        self.durable.set(reached);
        self.timers.idle.set(None);
        if self.past_mark() > 0 {
            self.timers.appended();
        }
        arm(&self.timers.mark, self.timers.now.get() + MARK_AFTER);
        self.marked.notify_waiters();
        self.gate.tell();
    }

    /// The next block to write, if its place in the ring is free: neither
    /// needed by a recovery nor being written.
    fn next_to_write(&self) -> Option<Closed> {
        let mut tail = self.tail.borrow_mut();
        let number = tail.closed.front()?.number;
        let under_way = self.lanes.iter().filter_map(Cell::get).map(|before| before.number + 1);
        let needed = under_way.min().unwrap_or(number).min(self.oldest());
        if number >= needed + self.ring() {
            return None;
        }
        let block = tail.closed.pop_front();
        if !tail.closed.is_empty() {
            self.to_write.notify_one();
        }
        block
    }
}

impl<D: Device> Journal<D> {
    /// One of the [`TASKS`] that move the journal, side by side, until it fails.
    pub async fn run(&self, task: usize) {
        match self.lanes.get(task) {
            Some(lane) => self.write_closed(lane).await,
            None => self.flush_when_due().await,
        }
    }

    async fn write_closed(&self, lane: &Cell<Option<Reached>>) {
        while self.failed().is_none() {
            let Some(block) = self.next_to_write() else {
                self.to_write.notified().await;
                continue;
            };
            lane.set(Some(block.before));
            let place = self.place.place(block.number);
            let write = self.device.write(place, block.buffer, 0..1, block.durability);
            let (buffer, outcome) = write.await;
            if let Err(error) = outcome {
                // The lane stays taken: what is after this block is not written.
                return self.fail(failure(error, JournalError::Write));
            }
            lane.set(None);
            self.tail.borrow_mut().free.push(buffer);
            self.to_flush.notify_waiters();
        }
    }

    async fn flush_when_due(&self) {
        while self.failed().is_none() {
            if !self.flush_is_due() {
                self.to_flush.notified().await;
                continue;
            }
            // Whoever runs in this turn can still join.
            yield_now().await;
            if self.open_block_says_something() {
                self.close(Durability::Cached);
            }
            let target = self.said.get();
            while self.failed().is_none() && self.written().number < target {
                self.to_flush.notified().await;
            }
            if self.failed().is_some() {
                return;
            }
            let reached = self.written();
            match self.device.flush().await {
                Ok(()) => self.advance(reached),
                Err(error) => return self.fail(failure(error, JournalError::Flush)),
            }
        }
    }
}
