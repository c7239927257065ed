//! Several reads or writes under way at once, whose outcomes come in the
//! order in which they were begun.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};

enum Slot<F: Future> {
    Running(Pin<Box<F>>),
    Done(F::Output),
}

/// Futures under way, all driven by whoever waits for the first one.
pub(crate) struct Window<F: Future> {
    slots: VecDeque<Slot<F>>,
    width: usize,
}

impl<F: Future> Window<F> {
    pub(crate) fn new(width: usize) -> Self {
        Self { slots: VecDeque::with_capacity(width), width }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.slots.len() < self.width
    }

    /// Adds one; it begins with the next [`Window::next`].
    pub(crate) fn push(&mut self, future: F) {
        self.slots.push_back(Slot::Running(Box::pin(future)));
    }

    /// The outcome of the one that was begun first; `None` when none is under
    /// way.
    pub(crate) async fn next(&mut self) -> Option<F::Output> {
        poll_fn(|context| self.poll_next(context)).await
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<F::Output>> {
        for slot in &mut self.slots {
            if let Slot::Running(future) = slot
                && let Poll::Ready(output) = future.as_mut().poll(context)
            {
                *slot = Slot::Done(output);
            }
        }
        match self.slots.pop_front() {
            Some(Slot::Done(output)) => Poll::Ready(Some(output)),
            Some(running) => {
                self.slots.push_front(running);
                Poll::Pending
            }
            None => Poll::Ready(None),
        }
    }
}
