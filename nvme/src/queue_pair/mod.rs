//! A queue pair: commands go in, completions come out, in any order.
//!
//! One thread owns it. Nothing here waits, allocates or calls the system: a
//! turn submits, rings once, reaps a bounded burst.

mod creation;
mod submission;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use block_core::device::{Ended, Tag};
use block_core::{Buffer, DmaMemory};

use crate::PAGE;
use crate::command::{COMMAND_BYTES, Order};
use crate::completion::{COMPLETION_BYTES, Completion};
use crate::controller::{Core, StartError};
use crate::ring::{CompletionRing, SubmissionRing};
use crate::table::{Data, Ending, Learner, MAX_DEPTH, NotUnderWay, Owner, Table};
use creation::{RingsPlace, create_queues, delete_queues};
pub(crate) use submission::{Ask, Submission};

/// Most completions that one call of [`QueuePair::reap`] takes.
const REAP_BURST: usize = 64;

/// What a queue pair has seen since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Commands given to the controller.
    pub submitted: u64,
    /// Commands that ended, well or not.
    pub ended: u64,
    /// Commands that ended with an error status or by a reset.
    pub failed: u64,
    /// Completions of commands that were not under way.
    pub unexpected: u64,
    /// Doorbell writes.
    pub doorbells: u64,
}

/// A submission queue and its completion queue. Dropping it first deletes both
/// in the controller; if that fails, its memory and buffers are leaked.
pub struct QueuePair {
    core: Arc<Core>,
    state: RefCell<State>,
}

struct State {
    id: u16,
    epoch: u32,
    memory: Rings,
    submission: SubmissionRing,
    completion: CompletionRing,
    table: Table,
    line: VecDeque<Waiter>,
    /// What a reset has ended and whoever reaps was not told yet.
    untold: Vec<Ended>,
    next_number: u64,
    /// The controller is being reset: it is told nothing.
    is_held: bool,
    counters: Counters,
}

struct Rings {
    submission: DmaMemory,
    completion: DmaMemory,
    entries: u16,
    ring_bells: bool,
}

/// A command that waits for a free place.
struct Waiter {
    number: u64,
    waker: Waker,
}

impl QueuePair {
    /// Most bytes that a controller and one queue pair of that depth take of a bus's
    /// memory, buffers apart.
    #[must_use]
    pub fn dma_bytes(depth: u16) -> usize {
        let entries = usize::from(depth.clamp(1, MAX_DEPTH)) + 1;
        let rings = entries * COMMAND_BYTES + entries * COMPLETION_BYTES + 2 * PAGE;
        // The admin queue has three pages, shadow doorbells two.
        rings + Table::dma_bytes(entries as u16) + 5 * PAGE
    }

    pub(crate) fn create(core: Arc<Core>, depth: u16, rings: bool) -> Result<Self, StartError> {
        // A queue of n entries holds n - 1 commands (Base 2.0, section 3.3.1.2).
        let longest = core.port.capabilities.max_queue_entries.min(u32::from(MAX_DEPTH) + 1) as u16;
        let entries = depth.clamp(1, MAX_DEPTH).saturating_add(1).min(longest);
        let allocate = |bytes| core.port.bus.allocate(bytes).map_err(StartError::Memory);
        let memory = Rings {
            submission: allocate(usize::from(entries) * COMMAND_BYTES)?,
            completion: allocate(usize::from(entries) * COMPLETION_BYTES)?,
            entries,
            ring_bells: rings && core.port.bus.has_interrupts(),
        };
        let depth = entries - 1;
        let table = Table::new(depth, allocate(Table::dma_bytes(depth))?);
        let (id, epoch) = core.port.complete(create_queues(&core, memory.place()))?;
        let state = State {
            id,
            epoch,
            submission: SubmissionRing::new(&memory.submission, entries),
            completion: CompletionRing::new(&memory.completion, entries),
            memory,
            table,
            line: VecDeque::with_capacity(usize::from(depth)),
            untold: Vec::new(),
            next_number: 0,
            is_held: false,
            counters: Counters::default(),
        };
        Ok(Self { core, state: RefCell::new(state) })
    }

    /// The queues' number in the controller.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.with(|state| state.id)
    }

    /// Most commands at a time.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.with(|state| usize::from(state.memory.entries) - 1)
    }

    /// Commands that the controller has, abandoned ones included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.with(|state| state.table.busy())
    }

    /// What has been seen since the queue pair was made.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.with(|state| {
            let (submitted, ended) = state.table.counts();
            Counters { submitted, ended, ..state.counters }
        })
    }

    /// Whether completions ring the bus's bells, so that a thread that has nothing
    /// else to do can sleep while commands are under way.
    #[must_use]
    pub fn rings_bells(&self) -> bool {
        self.with(|state| state.memory.ring_bells)
    }

    /// Whether [`QueuePair::reap`] would find anything. A thread looks once more after
    /// it has announced its sleep.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.with(|state| state.completion.has_news() || !state.untold.is_empty())
            || self.is_stale() && self.in_flight() > 0
    }

    /// Identifier of some command under way, for [`Controller::abort`].
    ///
    /// [`Controller::abort`]: crate::Controller::abort
    #[must_use]
    pub fn any_command(&self) -> Option<u16> {
        self.with(|state| state.table.any_busy())
    }

    /// Gives the controller a command for whoever reaps, unless others wait for a place
    /// or there is no queue: then the buffer comes back.
    #[inline]
    pub(crate) fn begin(
        &self,
        order: Order,
        data: Data,
        buffer: Buffer,
        tag: Tag,
    ) -> Result<(), Buffer> {
        let mut state = self.state.borrow_mut();
        if !state.line.is_empty() || state.epoch != self.core.epoch() {
            return Err(buffer);
        }
        let Some(id) = state.table.occupy(|| Owner::Reaper(tag)) else { return Err(buffer) };
        let place = Table::place_of(id);
        let pointers = state.table.point(place, data);
        state.table.keep(place, buffer);
        state.submission.push(&order.placed(id, pointers));
        Ok(())
    }

    /// [`QueuePair::reap_into`] where a future waits for each command.
    pub fn reap(&self) -> usize {
        self.reap_into(&mut Vec::new())
    }

    /// Takes a bounded burst of completions: wakes who waits, and adds what has come of
    /// commands that nobody waits for ([`Device::begin`]) to `ended`. Returns how many
    /// there were.
    ///
    /// [`Device::begin`]: block_core::Device::begin
    pub fn reap_into(&self, ended: &mut Vec<Ended>) -> usize {
        let mut count = 0;
        let is_stale = self.is_stale();
        if is_stale {
            count = self.fail_all();
        }
        self.with(|state| {
            count += state.untold.len();
            ended.append(&mut state.untold);
        });
        while !is_stale && count < REAP_BURST {
            let mut state = self.state.borrow_mut();
            let Some(last) = state.completion.pop_last() else { break };
            let (learner, next) = state.end_by(last);
            // Wakers are foreign code: nothing is borrowed when they run.
            drop(state);
            match learner {
                Learner::Reaper(done) => ended.push(done),
                Learner::Task(waker) => waker.wake(),
                Learner::Nobody => {}
            }
            next.into_iter().for_each(Waker::wake);
            count += 1;
        }
        count
    }

    /// Tells the controller what was submitted and reaped since the last call:
    /// at most one store to each doorbell.
    pub fn ring(&self) {
        if self.is_stale() || self.with(|state| state.is_held) {
            return;
        }
        let core = &self.core;
        let written = self.with(|state| {
            let (old_head, old_tail) = (state.completion.rung(), state.submission.rung());
            let capabilities = &core.port.capabilities;
            let mut written = 0;
            // The head first: it makes the room that new commands will need.
            if state.owes_head()
                && let Some(head) = state.completion.news()
            {
                written += core.ring(capabilities.completion_doorbell(state.id), old_head, head);
            }
            if let Some(tail) = state.submission.news() {
                written += core.ring(capabilities.submission_doorbell(state.id), old_tail, tail);
            }
            written
        });
        if written > 0 {
            self.with(|state| state.counters.doorbells += written);
        }
    }

    /// Whether the controller was stopped since the queues were created: every
    /// command fails until [`QueuePair::restart`].
    #[must_use]
    pub fn is_stale(&self) -> bool {
        self.core.epoch() != self.with(|state| state.epoch)
    }

    /// Creates the queues anew after the controller was reset. Does nothing
    /// when it was not.
    ///
    /// # Errors
    /// When the controller refuses; the queue pair stays as it was.
    pub fn restart(&self) -> Result<(), StartError> {
        self.core.port.complete(self.create_again())
    }

    /// [`QueuePair::restart`], one look at a time.
    pub(crate) async fn create_again(&self) -> Result<(), StartError> {
        if !self.is_stale() {
            return Ok(());
        }
        self.fail_all();
        let place = self.with(|state| {
            state.submission.restart();
            state.completion.restart();
            state.memory.place()
        });
        let (id, epoch) = create_queues(&self.core, place).await?;
        self.with(|state| (state.id, state.epoch, state.is_held) = (id, epoch, false));
        Ok(())
    }

    /// Rings no more until the queues have been created again: a doorbell that
    /// is rung while the controller stops could reach a queue made afterwards.
    pub(crate) fn hold(&self) {
        self.with(|state| state.is_held = true);
    }

    /// A round of the watch ends: commands that were issued at least so many
    /// rounds ago.
    pub(crate) fn end_round(&self, rounds: u32) -> Vec<u16> {
        self.with(|state| state.table.end_round(rounds))
    }

    /// Whether the controller has the command with this identifier.
    pub(crate) fn is_under_way(&self, id: u16) -> bool {
        self.with(|state| state.table.is_busy(id))
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// The controller has been stopped and touches nothing: ends everything.
    #[cold]
    fn fail_all(&self) -> usize {
        let (mut count, ending) = (0, self.core.ending());
        while let Some((learner, next)) = self.with(|state| {
            let id = state.table.any_busy()?;
            Some(state.end_unseen(id, ending))
        }) {
            match learner {
                // It may not be whoever reaps who has stopped the controller.
                Learner::Reaper(ended) => self.with(|state| state.untold.push(ended)),
                Learner::Task(waker) => waker.wake(),
                Learner::Nobody => {}
            }
            next.into_iter().for_each(Waker::wake);
            count += 1;
        }
        // Who waits for a place must learn that there is no queue.
        for index in 0..self.with(|state| state.line.len()) {
            let waker = self.with(|state| state.line.get(index).map(|next| next.waker.clone()));
            waker.into_iter().for_each(Waker::wake);
        }
        count
    }

    #[inline]
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.borrow_mut())
    }
}

impl Rings {
    fn place(&self) -> RingsPlace {
        let (submission, completion) = (self.submission.iova(), self.completion.iova());
        let Self { entries, ring_bells, .. } = *self;
        RingsPlace { submission, completion, entries, ring_bells }
    }
}

impl State {
    /// Ends the command that the last word of a completion names: who learns of it, and who
    /// may go next. It is believed if it is one of ours.
    #[inline]
    fn end_by(&mut self, last: u64) -> (Learner, Option<Waker>) {
        let entry = Completion::from_words([0, last]);
        if entry.submission_queue == self.id
            && let Ok(news) = self.end(entry.command_id, Ending::completed(entry.status))
        {
            return news;
        }
        self.note_unexpected(last);
        (Learner::Nobody, None)
    }

    /// Ends a command. The next in line may go unless a task has to fetch the outcome first.
    #[inline(always)] // Called twice, which keeps it out of the place that matters.
    fn end(&mut self, id: u16, ending: Ending) -> Result<(Learner, Option<Waker>), NotUnderWay> {
        // Before it ends: a call between the waker's end and its owner costs every command.
        if !ending.is_success() && self.table.is_busy(id) {
            self.note_failure(ending);
        }
        let learner = self.table.end(id, ending)?;
        let next = if let Learner::Task(_) = learner { None } else { self.entitled() };
        Ok((learner, next))
    }

    #[cold]
    fn end_unseen(&mut self, id: u16, ending: Ending) -> (Learner, Option<Waker>) {
        self.end(id, ending).unwrap_or((Learner::Nobody, None))
    }

    #[cold]
    fn note_unexpected(&mut self, last: u64) {
        let entry = Completion::from_words([0, last]);
        self.counters.unexpected += 1;
        let count = self.counters.unexpected;
        if count.is_power_of_two() {
            tracing::warn!(queue = self.id, ?entry, count, "completion of no command under way");
        }
    }

    #[cold]
    fn note_failure(&mut self, ending: Ending) {
        self.counters.failed += 1;
        let count = self.counters.failed;
        if count.is_power_of_two() {
            tracing::warn!(queue = self.id, ?ending, count, "command failed");
        }
    }

    /// Whether the controller must learn of the entries that were taken. Not each time: a
    /// polled queue's head says only where there is room, and there must be some for every
    /// command that the controller has (a ring of n entries takes n - 1). Interrupts may
    /// wait for the head.
    fn owes_head(&self) -> bool {
        let taken = self.completion.untold() as usize + self.table.busy();
        self.memory.ring_bells || taken + 1 >= usize::from(self.memory.entries)
    }

    /// Who may go now that one more place is free.
    #[inline]
    fn entitled(&self) -> Option<Waker> {
        if self.line.is_empty() { None } else { self.first_entitled() }
    }

    #[cold]
    fn first_entitled(&self) -> Option<Waker> {
        let position = self.table.free().checked_sub(1)?;
        self.line.get(position).map(|waiter| waiter.waker.clone())
    }

    /// The controller may go on using what it was given: that stays mapped for ever.
    #[cold]
    fn leak(&mut self) {
        for rings in [&self.memory.submission, &self.memory.completion] {
            std::mem::forget(rings.clone());
        }
        self.table.leak();
    }

    /// Where in the line a waiter is. Numbers rise along the line, and whoever
    /// may go is near its front.
    fn position(&self, number: u64) -> usize {
        let position = self.line.iter().position(|waiter| waiter.number == number);
        position.expect("who waits is in line until it leaves")
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        let forgotten = self.is_stale() || self.core.is_stopped();
        if forgotten {
            return; // The controller forgot the queues when it was stopped.
        }
        let state = self.state.get_mut();
        if let Err(error) = delete_queues(&self.core, state.id) {
            tracing::error!(
                queue = state.id,
                "a queue was not deleted, its memory is lost: {error}"
            );
            state.leak();
        }
    }
}
