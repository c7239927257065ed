//! A command on its way: it waits for a place, then for its completion.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use block_core::Buffer;

use super::{QueuePair, State, Waiter};
use crate::command::Command;
use crate::table::{Data, Ending, Table};

/// See [`QueuePair::submit`]. Dropping it abandons the command, not the buffer.
pub(crate) struct Submission<'a> {
    queue: &'a QueuePair,
    command: Command,
    data: Data,
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
    ///
    /// One that the controller gives up is tried so often in all: its own completion says
    /// that it is over, and whoever asked for it has not been answered, so nothing that
    /// came later can be undone by it.
    #[inline]
    pub(crate) fn submit(
        &self,
        command: Command,
        data: Data,
        buffer: Option<Buffer>,
        tries: u8,
    ) -> Submission<'_> {
        Submission { queue: self, command, data, buffer, tries, stage: Stage::New }
    }
}

impl Future for Submission<'_> {
    type Output = Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Output> {
        let this = self.get_mut();
        let waker = context.waker();
        if let Stage::Issued { place } = this.stage {
            let fetched = this.queue.with(|state| {
                let outcome = state.table.fetch(place, waker)?;
                Some((outcome, state.entitled()))
            });
            let Some(((buffer, ending), next)) = fetched else { return Poll::Pending };
            this.stage = Stage::Over;
            if let Some(next) = next {
                next.wake();
            }
            return if ending.is_abort() && this.tries > 1 {
                this.try_again(buffer, waker)
            } else {
                Poll::Ready((buffer, ending))
            };
        }
        this.enter(waker)
    }
}

impl Submission<'_> {
    /// Gives up a command that has not been polled, which gives back its buffer.
    #[cold]
    pub(crate) fn withdraw(&mut self) -> Option<Buffer> {
        assert!(matches!(self.stage, Stage::New), "polled, or withdrawn, before");
        self.stage = Stage::Over;
        self.buffer.take()
    }

    #[inline]
    fn enter(&mut self, waker: &Waker) -> Poll<Output> {
        let queue = self.queue;
        let epoch = queue.core.epoch();
        let is_issued = queue.with(|state| {
            let is_free = state.line.is_empty() && state.table.free() > 0;
            let goes = is_free && state.epoch == epoch && matches!(self.stage, Stage::New);
            if goes {
                self.issue(state, waker);
            }
            goes
        });
        if is_issued { Poll::Pending } else { self.stand_in_line(epoch, waker) }
    }

    /// The queue is full, others wait, or there is no queue.
    #[cold]
    fn stand_in_line(&mut self, epoch: u32, waker: &Waker) -> Poll<Output> {
        let queue = self.queue;
        let is_refused = queue.with(|state| {
            let is_stale = state.epoch != epoch;
            let position = match self.stage {
                Stage::New => state.line.len(),
                Stage::InLine { number } => state.position(number),
                Stage::Issued { .. } | Stage::Over => panic!("polled after it was ready"),
            };
            if is_stale || state.table.free() > position {
                state.line.remove(position);
                if !is_stale {
                    self.issue(state, waker);
                }
            } else if let Some(waiter) = state.line.get_mut(position) {
                waiter.waker.clone_from(waker);
            } else {
                let number = state.next_number;
                state.next_number += 1;
                state.line.push_back(Waiter { number, waker: waker.clone() });
                self.stage = Stage::InLine { number };
            }
            is_stale
        });
        if is_refused {
            self.stage = Stage::Over;
            return Poll::Ready((self.buffer.take(), queue.core.ending()));
        }
        Poll::Pending
    }

    #[cold]
    fn try_again(&mut self, buffer: Option<Buffer>, waker: &Waker) -> Poll<Output> {
        self.buffer = buffer;
        self.tries -= 1;
        self.stage = Stage::New;
        self.enter(waker)
    }

    #[inline]
    fn issue(&mut self, state: &mut State, waker: &Waker) {
        let buffer = self.buffer.take();
        let (id, (prp1, prp2)) = state.table.occupy(self.data, buffer, waker.clone(), state.round);
        state.submission.push(&self.command.with_id(id).with_data(prp1, prp2));
        state.counters.submitted += 1;
        self.stage = Stage::Issued { place: Table::place_of(id) };
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

impl Drop for Submission<'_> {
    #[inline]
    fn drop(&mut self) {
        if !matches!(self.stage, Stage::New | Stage::Over) {
            self.give_up();
        }
    }
}
