//! A command on its way: it waits for a place, then for its completion.

use std::cell::RefMut;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use block_core::Buffer;

use super::{QueuePair, State, Waiter};
use crate::command::{Command, Order};
use crate::table::{Data, Ending, Table};

/// What is asked of a controller. It becomes a command when there is a place for it.
pub(crate) trait Ask {
    fn order(&self) -> (Order, Data);
}

/// A command that is made beforehand.
pub(crate) struct Made {
    order: Order,
    data: Data,
}

impl Ask for Made {
    fn order(&self) -> (Order, Data) {
        (self.order, self.data)
    }
}

/// See [`QueuePair::submit`]. Dropping it abandons the command, not the buffer.
pub(crate) struct Submission<'a, A: Ask> {
    queue: &'a QueuePair,
    ask: A,
    /// In the table while the controller has the command.
    buffer: Option<Buffer>,
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

type Output = (Option<Buffer>, Ending);

impl QueuePair {
    /// Runs a command to its end, and gives back its buffer.
    pub(crate) fn submit(
        &self,
        command: Command,
        data: Data,
        buffer: Option<Buffer>,
        tries: u8,
    ) -> Submission<'_, Made> {
        self.ask(Made { order: Order::of(&command), data }, buffer, tries)
    }

    /// The same, of a command that is not made yet.
    ///
    /// One that the controller gives up is tried so often in all: its own completion says
    /// that it is over, and whoever asked for it has not been answered, so nothing that
    /// came later can be undone by it.
    #[inline]
    pub(crate) fn ask<A: Ask>(
        &self,
        ask: A,
        buffer: Option<Buffer>,
        tries: u8,
    ) -> Submission<'_, A> {
        Submission { queue: self, ask, buffer, tries, stage: Stage::New }
    }
}

// Nothing in it is told its own address.
impl<A: Ask> Unpin for Submission<'_, A> {}

impl<A: Ask> Future for Submission<'_, A> {
    type Output = Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Output> {
        let this = self.get_mut();
        let waker = context.waker();
        if let Stage::Issued { place } = this.stage {
            this.fetch(place, waker)
        } else {
            this.issue(waker)
        }
    }
}

impl<A: Ask> Submission<'_, A> {
    /// What was asked for.
    pub(crate) fn asked(&self) -> &A {
        &self.ask
    }

    #[inline]
    fn issue(&mut self, waker: &Waker) -> Poll<Output> {
        let epoch = self.queue.core.epoch();
        let mut borrowed = self.queue.state.borrow_mut();
        let state = &mut *borrowed;
        let is_new = matches!(self.stage, Stage::New);
        let is_free = state.line.is_empty() && state.table.free() > 0;
        let goes = is_new && is_free && state.epoch == epoch;
        if !goes && !self.has_waited(state, epoch, waker) {
            drop(borrowed);
            return self.refuse();
        }
        let (order, data) = self.ask.order();
        let buffer = self.buffer.take();
        let (id, pointers) = state.table.occupy(data, buffer, waker.clone(), state.round);
        state.submission.push(&order.placed(id, pointers));
        state.counters.submitted += 1;
        self.stage = Stage::Issued { place: Table::place_of(id) };
        Poll::Pending
    }

    #[inline]
    fn fetch(&mut self, place: u16, waker: &Waker) -> Poll<Output> {
        let mut state = self.queue.state.borrow_mut();
        let fetched = state.table.fetch(place, waker);
        let Some((buffer, ending)) = fetched else { return Poll::Pending };
        if state.line.is_empty() {
            drop(state);
        } else {
            pass_on(state);
        }
        if ending != Ending::DONE && ending.is_abort() && self.tries > 1 {
            self.renew(buffer, waker);
            return Poll::Pending;
        }
        self.stage = Stage::Over;
        Poll::Ready((buffer, ending))
    }

    /// Gives up a command that has not been polled, which gives back its buffer.
    #[cold]
    pub(crate) fn withdraw(&mut self) -> Option<Buffer> {
        assert!(matches!(self.stage, Stage::New), "polled, or withdrawn, before");
        self.stage = Stage::Over;
        self.buffer.take()
    }

    /// The queue is full, others wait, or there is no queue: whether it may go at last.
    #[cold]
    fn has_waited(&mut self, state: &mut State, epoch: u32, waker: &Waker) -> bool {
        let position = match self.stage {
            Stage::New => state.line.len(),
            Stage::InLine { number } => state.position(number),
            Stage::Issued { .. } | Stage::Over => panic!("polled after it was ready"),
        };
        if state.epoch != epoch {
            state.line.remove(position);
            self.stage = Stage::Over;
            return false;
        }
        if state.table.free() > position {
            state.line.remove(position);
            return true;
        }
        if let Some(waiter) = state.line.get_mut(position) {
            waiter.waker.clone_from(waker);
        } else {
            let number = state.next_number;
            state.next_number += 1;
            state.line.push_back(Waiter { number, waker: waker.clone() });
            self.stage = Stage::InLine { number };
        }
        false
    }

    /// It waits, or there is no queue that would take it.
    #[cold]
    fn refuse(&mut self) -> Poll<Output> {
        match self.stage {
            Stage::Over => Poll::Ready((self.buffer.take(), self.queue.core.ending())),
            _ => Poll::Pending,
        }
    }

    /// The controller gave it up: it is new again, once its task has been polled.
    #[cold]
    fn renew(&mut self, buffer: Option<Buffer>, waker: &Waker) {
        self.buffer = buffer;
        self.tries -= 1;
        self.stage = Stage::New;
        waker.wake_by_ref();
    }

    #[cold]
    fn give_up(&self) {
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

/// A place is free, and somebody waits for one.
#[cold]
fn pass_on(state: RefMut<'_, State>) {
    let next = state.entitled();
    drop(state);
    next.into_iter().for_each(Waker::wake);
}

impl<A: Ask> Drop for Submission<'_, A> {
    #[inline]
    fn drop(&mut self) {
        if !matches!(self.stage, Stage::New | Stage::Over) {
            self.give_up();
        }
    }
}
