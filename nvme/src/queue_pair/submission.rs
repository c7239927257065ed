//! A command on its way: it waits for a place, then for its completion.

use std::cell::RefMut;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use block_core::{BlockError, Buffer};

use super::{QueuePair, State, Waiter};
use crate::command::{Command, Order};
use crate::table::{Data, Ending, Owner, Table};

/// What is asked of a controller. It becomes a command when there is a place for it.
pub(crate) trait Ask<'a> {
    /// Whom it is asked of.
    fn queue(&self) -> &'a QueuePair;

    /// Why the controller must not get it, if so.
    fn check(&self) -> Result<(), BlockError>;

    fn order(&self) -> (Order, Data);

    /// The buffer that the data is in. It is asked for when nobody waits for the command
    /// any more, and kept as long as the controller may use it.
    fn take_buffer(&mut self) -> Option<Buffer>;
}

/// A command that is made beforehand.
pub(crate) struct Made<'a> {
    queue: &'a QueuePair,
    order: Order,
    data: Data,
    buffer: Option<Buffer>,
}

impl<'a> Ask<'a> for Made<'a> {
    fn queue(&self) -> &'a QueuePair {
        self.queue
    }

    fn check(&self) -> Result<(), BlockError> {
        Ok(())
    }

    fn order(&self) -> (Order, Data) {
        (self.order, self.data)
    }

    fn take_buffer(&mut self) -> Option<Buffer> {
        self.buffer.take()
    }
}

/// See [`QueuePair::submit`]. Dropping it abandons the command: the buffer stays with the
/// queue pair until the controller has let go of it.
pub(crate) struct Submission<'a, A: Ask<'a>> {
    asked_of: PhantomData<&'a QueuePair>,
    /// With its buffer. That is not touched while the controller has the command.
    ask: A,
    /// How often it is tried yet.
    tries: u8,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    New,
    InLine { number: u64 },
    Issued { place: u16 },
    Over,
}

impl QueuePair {
    /// Runs a command to its end.
    pub(crate) fn submit(
        &self,
        command: Command,
        data: Data,
        buffer: Option<Buffer>,
        tries: u8,
    ) -> Submission<'_, Made<'_>> {
        Submission::new(Made { queue: self, order: Order::of(&command), data, buffer }, tries)
    }
}

// Nothing in it is told its own address.
impl<'a, A: Ask<'a>> Unpin for Submission<'a, A> {}

impl<'a, A: Ask<'a>> Future for Submission<'a, A> {
    type Output = Ending;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Ending> {
        let this = self.get_mut();
        let waker = context.waker();
        if let Stage::Issued { place } = this.stage {
            this.fetch(place, waker)
        } else if let Stage::New = this.stage {
            this.issue(waker)
        } else {
            this.stand_in_line(this.ask.queue().state.borrow_mut(), waker)
        }
    }
}

impl<'a, A: Ask<'a>> Submission<'a, A> {
    /// Asks for that.
    ///
    /// One that the controller gives up is tried so often in all: its own completion says
    /// that it is over, and whoever asked for it has not been answered, so nothing that
    /// came later can be undone by it.
    #[inline]
    pub(crate) fn new(ask: A, tries: u8) -> Self {
        Self { asked_of: PhantomData, ask, tries, stage: Stage::New }
    }

    /// What was asked for.
    #[inline]
    pub(crate) fn asked(&self) -> &A {
        &self.ask
    }

    /// Whether the queue pair knows of it.
    #[inline]
    fn is_with_queue(&self) -> bool {
        matches!(self.stage, Stage::InLine { .. } | Stage::Issued { .. })
    }

    /// The buffer of a command that has ended.
    #[inline]
    pub(crate) fn take_buffer(&mut self) -> Option<Buffer> {
        debug_assert!(!self.is_with_queue(), "the controller has it");
        self.ask.take_buffer()
    }

    #[inline(never)] // It leaves the poll small enough for its caller.
    fn issue(&mut self, waker: &Waker) -> Poll<Ending> {
        let mut state = self.ask.queue().state.borrow_mut();
        if !state.line.is_empty() || !self.may_go(&state) {
            return self.stand_in_line(state, waker);
        }
        let Some(id) = state.table.occupy(|| Owner::Task(waker.clone())) else {
            return self.stand_in_line(state, waker);
        };
        self.hand_over(&mut state, id)
    }

    /// Whether the controller has the queue, and nothing speaks against the command.
    #[inline]
    fn may_go(&self, state: &State) -> bool {
        state.epoch == self.ask.queue().core.epoch() && self.ask.check().is_ok()
    }

    #[inline(always)] // Called twice, which keeps it out of the place that matters.
    fn hand_over(&mut self, state: &mut State, id: u16) -> Poll<Ending> {
        let place = Table::place_of(id);
        let (order, data) = self.ask.order();
        let pointers = state.table.point(place, data);
        state.submission.push(&order.placed(id, pointers));
        self.stage = Stage::Issued { place };
        Poll::Pending
    }

    /// Whether the command has ended as usual. If not, it is polled: there may be other
    /// news, or none.
    #[inline(always)] // As the poll that asks.
    pub(crate) fn is_done(&mut self) -> bool {
        let Stage::Issued { place } = self.stage else { return false };
        let mut state = self.ask.queue().state.borrow_mut();
        let is_done = state.line.is_empty() && state.table.fetch_done(place);
        if is_done {
            self.stage = Stage::Over;
        }
        is_done
    }

    fn fetch(&mut self, place: u16, waker: &Waker) -> Poll<Ending> {
        let mut state = self.ask.queue().state.borrow_mut();
        let Some(ending) = state.table.fetch(place) else {
            state.table.wait(place, waker);
            return Poll::Pending;
        };
        self.stage = Stage::Over;
        self.end_seldom(state, ending, waker)
    }

    /// Others wait for the place, or the command has failed: one that the controller gave
    /// up is new again, once its task has been polled.
    #[cold]
    fn end_seldom(
        &mut self,
        state: RefMut<'_, State>,
        ending: Ending,
        waker: &Waker,
    ) -> Poll<Ending> {
        let next = state.entitled();
        drop(state);
        next.into_iter().for_each(Waker::wake);
        if !ending.is_abort() || self.tries <= 1 {
            return Poll::Ready(ending);
        }
        self.tries -= 1;
        self.stage = Stage::New;
        waker.wake_by_ref();
        Poll::Pending
    }

    /// The queue is full, others wait, or there is no queue.
    #[cold]
    fn stand_in_line(&mut self, mut borrowed: RefMut<'_, State>, waker: &Waker) -> Poll<Ending> {
        let state = &mut *borrowed;
        let position = match self.stage {
            Stage::New => state.line.len(),
            Stage::InLine { number } => state.position(number),
            Stage::Issued { .. } | Stage::Over => panic!("polled after it was ready"),
        };
        if !self.may_go(state) {
            state.line.remove(position);
            self.stage = Stage::Over;
            // Whoever is next may have the place that this one was woken for.
            let next = state.entitled();
            drop(borrowed);
            next.into_iter().for_each(Waker::wake);
            let refused = self.ask.check().err().map(Ending::refused);
            return Poll::Ready(refused.unwrap_or_else(|| self.ask.queue().core.ending()));
        }
        if state.table.free() > position {
            state.line.remove(position);
            let id = state.table.occupy(|| Owner::Task(waker.clone())).expect("a place is free");
            return self.hand_over(state, id);
        }
        if let Some(waiter) = state.line.get_mut(position) {
            waiter.waker.clone_from(waker);
        } else {
            let number = state.next_number;
            state.next_number += 1;
            state.line.push_back(Waiter { number, waker: waker.clone() });
            self.stage = Stage::InLine { number };
        }
        Poll::Pending
    }

    #[cold]
    fn give_up(&mut self) {
        let buffer = self.ask.take_buffer();
        let next = self.ask.queue().with(|state| match self.stage {
            Stage::New | Stage::Over => None,
            Stage::InLine { number } => {
                let position = state.position(number);
                state.line.remove(position);
                state.entitled()
            }
            Stage::Issued { place } => {
                let is_free = state.table.abandon(place, buffer);
                if is_free { state.entitled() } else { None }
            }
        });
        next.into_iter().for_each(Waker::wake);
    }
}

impl<'a, A: Ask<'a>> Drop for Submission<'a, A> {
    #[inline]
    fn drop(&mut self) {
        if self.is_with_queue() {
            self.give_up();
        }
    }
}
