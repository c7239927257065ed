//! A queue pair: commands go in, completions come out, in any order.
//!
//! One thread owns it. Nothing here waits, allocates or calls the system: a
//! turn submits, rings once, reaps a bounded burst.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use block_core::{Buffer, DmaMemory};

use crate::PAGE;
use crate::command::{COMMAND_BYTES, Command, admin};
use crate::completion::{COMPLETION_BYTES, Completion};
use crate::controller::{Core, StartError};
use crate::ring::{CompletionRing, SubmissionRing};
use crate::table::{Ending, MAX_DEPTH, NotUnderWay, Payload, Table};

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
    state: RefCell<Option<State>>,
}

struct State {
    id: u16,
    epoch: u32,
    memory: Rings,
    submission: SubmissionRing,
    completion: CompletionRing,
    table: Table,
    line: VecDeque<Waiter>,
    next_number: u64,
    /// Rises when the watch looks: the age of commands is counted in it.
    round: u32,
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
            next_number: 0,
            round: 0,
            is_held: false,
            counters: Counters::default(),
        };
        Ok(Self { core, state: RefCell::new(Some(state)) })
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
        self.with(|state| state.counters)
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
        self.with(|state| state.completion.has_news()) || self.is_stale() && self.in_flight() > 0
    }

    /// Identifier of some command under way, for [`Controller::abort`].
    ///
    /// [`Controller::abort`]: crate::Controller::abort
    #[must_use]
    pub fn any_command(&self) -> Option<u16> {
        self.with(|state| state.table.any_busy())
    }

    /// Takes a bounded burst of completions, frees or hands out what they end
    /// and wakes who waits. Returns how many there were.
    pub fn reap(&self) -> usize {
        if self.is_stale() {
            return self.fail_all();
        }
        for count in 0..REAP_BURST {
            let popped = self.with(|state| state.completion.pop().map(|entry| state.settle(entry)));
            // The wakers run after the borrow: they are foreign code.
            match popped {
                Some(wakers) => wakers.wake(),
                None => return count,
            }
        }
        REAP_BURST
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
        self.with(|state| {
            state.round = state.round.wrapping_add(1);
            state.table.late(state.round, rounds)
        })
    }

    /// Whether the controller has the command with this identifier.
    pub(crate) fn is_under_way(&self, id: u16) -> bool {
        self.with(|state| state.table.is_busy(id))
    }

    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// The future of a command: waits for a place, then for the completion.
    /// Dropping it abandons the command, not the buffer.
    pub(crate) fn submit(&self, command: Command, payload: Payload) -> Submission<'_> {
        Submission { queue: self, command, payload, stage: Stage::New }
    }

    /// The controller has been stopped and touches nothing: ends everything.
    fn fail_all(&self) -> usize {
        let (mut count, ending) = (0, self.core.ending());
        while let Some(wakers) = self.with(|state| {
            let id = state.table.any_busy()?;
            Some(state.end(id, ending).unwrap_or_default())
        }) {
            wakers.wake();
            count += 1;
        }
        // Who waits for a place must learn that there is no queue.
        for index in 0..self.with(|state| state.line.len()) {
            let waker = self.with(|state| state.line.get(index).map(|next| next.waker.clone()));
            waker.into_iter().for_each(Waker::wake);
        }
        count
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.borrow_mut();
        act(state.as_mut().expect("the state leaves only when the queue pair is dropped"))
    }
}

/// Where a queue pair's rings are, as the controller is told.
#[derive(Clone, Copy)]
struct RingsPlace {
    submission: u64,
    completion: u64,
    entries: u16,
    ring_bells: bool,
}

impl Rings {
    fn place(&self) -> RingsPlace {
        let (submission, completion) = (self.submission.iova(), self.completion.iova());
        let Self { entries, ring_bells, .. } = *self;
        RingsPlace { submission, completion, entries, ring_bells }
    }
}

/// Creates both queues in the controller under a free number.
#[expect(
    clippy::await_holding_lock,
    reason = "the admin lock keeps a reset from coming between; it is this thread's for a few looks"
)]
async fn create_queues(core: &Core, rings: RingsPlace) -> Result<(u16, u32), StartError> {
    let port = &core.port;
    let mut admin_queue = core.admin();
    let epoch = core.epoch();
    let Some(id) = admin_queue.take_queue() else {
        return Err(StartError::NoQueue { granted: core.granted() });
    };
    core.clear_shadow(id);
    let RingsPlace { submission, completion, entries, ring_bells } = rings;
    let completion = Command::create_completion_queue(id, entries, completion);
    let completion = if ring_bells { completion.with_interrupt() } else { completion };
    if let Err(error) = admin_queue.execute(port, "create a completion queue", completion).await {
        admin_queue.return_queue(id);
        return Err(error);
    }
    let submission = Command::create_submission_queue(id, entries, submission);
    if let Err(error) = admin_queue.execute(port, "create a submission queue", submission).await {
        let undo = Command::delete_queue(admin::DELETE_COMPLETION_QUEUE, id);
        if admin_queue.execute(port, "delete a completion queue", undo).await.is_ok() {
            admin_queue.return_queue(id);
        }
        return Err(error);
    }
    Ok((id, epoch))
}

impl State {
    /// Believes a completion if it is one of ours.
    fn settle(&mut self, entry: Completion) -> Wakers {
        if entry.submission_queue == self.id
            && let Ok(wakers) = self.end(entry.command_id, Ending::Completed(entry.status))
        {
            return wakers;
        }
        self.counters.unexpected += 1;
        if self.counters.unexpected.is_power_of_two() {
            let count = self.counters.unexpected;
            tracing::warn!(queue = self.id, ?entry, count, "completion of no command under way");
        }
        Wakers::default()
    }

    fn end(&mut self, id: u16, ending: Ending) -> Result<Wakers, NotUnderWay> {
        let waker = self.table.end(id, ending)?;
        self.counters.ended += 1;
        if !matches!(ending, Ending::Completed(status) if status.is_success()) {
            self.counters.failed += 1;
            if self.counters.failed.is_power_of_two() {
                tracing::warn!(
                    queue = self.id,
                    ?ending,
                    count = self.counters.failed,
                    "command failed"
                );
            }
        }
        let next = if waker.is_none() { self.entitled() } else { None };
        Ok(Wakers { waker, next })
    }

    /// Whether the controller must learn of the entries that were taken. Not each time:
    /// a polled queue's head says only where there is room, and half a ring of it is
    /// enough for all commands under way. Interrupts may wait for the head.
    fn owes_head(&self) -> bool {
        let wanted = self.completion.untold() as usize + self.table.busy();
        self.memory.ring_bells || wanted >= usize::from(self.memory.entries) / 2
    }

    /// Who may go now that one more place is free.
    fn entitled(&self) -> Option<Waker> {
        let position = self.table.free().checked_sub(1)?;
        self.line.get(position).map(|waiter| waiter.waker.clone())
    }

    /// Where in the line a waiter is. Numbers rise along the line, and whoever
    /// may go is near its front.
    fn position(&self, number: u64) -> usize {
        let position = self.line.iter().position(|waiter| waiter.number == number);
        position.expect("who waits is in line until it leaves")
    }

    fn issue(&mut self, command: &Command, payload: Payload, waker: &Waker) -> u16 {
        let (place, id, (prp1, prp2)) = self.table.occupy(payload, waker.clone(), self.round);
        self.submission.push(&command.with_id(id).with_data(prp1, prp2));
        self.counters.submitted += 1;
        place
    }
}

/// Who learns of a completion: the command's task, or, when it was abandoned,
/// the next in line.
#[derive(Default)]
struct Wakers {
    waker: Option<Waker>,
    next: Option<Waker>,
}

impl Wakers {
    fn wake(self) {
        self.waker.into_iter().chain(self.next).for_each(Waker::wake);
    }
}

/// A command on its way; see [`QueuePair::submit`].
pub(crate) struct Submission<'a> {
    queue: &'a QueuePair,
    command: Command,
    /// Leaves for the table when the command is issued.
    payload: Payload,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    New,
    InLine { number: u64 },
    Issued { place: u16 },
    Over,
}

impl Future for Submission<'_> {
    type Output = (Option<Buffer>, Ending);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let (queue, waker) = (this.queue, context.waker());
        if let Stage::Issued { place } = this.stage {
            let fetched = queue.with(|state| {
                let outcome = state.table.fetch(place, waker)?;
                Some((outcome, state.entitled()))
            });
            let Some(((buffer, ending), next)) = fetched else { return Poll::Pending };
            this.stage = Stage::Over;
            next.into_iter().for_each(Waker::wake);
            return Poll::Ready((buffer, ending));
        }
        let epoch = queue.core.epoch();
        let refused = queue.with(|state| {
            let stale = state.epoch != epoch;
            let position = match this.stage {
                Stage::New => state.line.len(),
                Stage::InLine { number } => state.position(number),
                Stage::Issued { .. } | Stage::Over => panic!("polled after it was ready"),
            };
            if stale || state.table.free() > position {
                state.line.remove(position);
                if stale {
                    return true;
                }
                let payload = std::mem::replace(&mut this.payload, Payload::Nothing);
                this.stage = Stage::Issued { place: state.issue(&this.command, payload, waker) };
            } else if let Some(waiter) = state.line.get_mut(position) {
                waiter.waker.clone_from(waker);
            } else {
                let number = state.next_number;
                state.next_number += 1;
                state.line.push_back(Waiter { number, waker: waker.clone() });
                this.stage = Stage::InLine { number };
            }
            false
        });
        if refused {
            this.stage = Stage::Over;
            let payload = std::mem::replace(&mut this.payload, Payload::Nothing);
            return Poll::Ready((payload.into_buffer(), queue.core.ending()));
        }
        Poll::Pending
    }
}

impl Drop for Submission<'_> {
    fn drop(&mut self) {
        let next = match self.stage {
            Stage::New | Stage::Over => None,
            Stage::InLine { number } => self.queue.with(|state| {
                let position = state.position(number);
                state.line.remove(position);
                state.entitled()
            }),
            Stage::Issued { place } => self
                .queue
                .with(|state| if state.table.abandon(place) { state.entitled() } else { None }),
        };
        next.into_iter().for_each(Waker::wake);
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        let forgotten = self.is_stale() || self.core.is_stopped();
        let Some(state) = self.state.borrow_mut().take() else { return };
        if forgotten {
            return; // The controller forgot the queues when it was stopped.
        }
        if let Err(error) = delete_queues(&self.core, state.id) {
            tracing::error!(
                queue = state.id,
                "a queue was not deleted, its memory is lost: {error}"
            );
            std::mem::forget(state);
        }
    }
}

/// Deletes both queues in the controller; the submission queue must go first
/// (Base 2.0, section 3.3.1.3).
fn delete_queues(core: &Core, id: u16) -> Result<(), StartError> {
    let mut admin_queue = core.admin();
    for (name, opcode) in [
        ("delete a submission queue", admin::DELETE_SUBMISSION_QUEUE),
        ("delete a completion queue", admin::DELETE_COMPLETION_QUEUE),
    ] {
        core.port.complete(admin_queue.execute(
            &core.port,
            name,
            Command::delete_queue(opcode, id),
        ))?;
    }
    admin_queue.return_queue(id);
    Ok(())
}
