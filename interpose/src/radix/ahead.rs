//! Pages that are read before somebody asks for them.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::pages::{Damage, Page};

type Outcome = Result<Option<Page>, Damage>;

enum Reading {
    Running(Pin<Box<dyn Future<Output = Outcome>>>),
    Done(Outcome),
}

/// Reads on their way, by the first index of the page, ascending.
#[derive(Default)]
pub(super) struct Ahead {
    queue: VecDeque<(u64, Reading)>,
}

impl Ahead {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// The first index of the last page that was asked for.
    pub(super) fn last(&self) -> Option<u64> {
        self.queue.back().map(|(first, _)| *first)
    }

    /// A read, which begins when it is first polled.
    pub(super) fn push(&mut self, first: u64, read: impl Future<Output = Outcome> + 'static) {
        debug_assert!(self.last().is_none_or(|last| last < first));
        self.queue.push_back((first, Reading::Running(Box::pin(read))));
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>) {
        for (_, reading) in &mut self.queue {
            if let Reading::Running(future) = reading
                && let Poll::Ready(outcome) = future.as_mut().poll(context)
            {
                *reading = Reading::Done(outcome);
            }
        }
    }

    /// Whether the page at this index is on its way or there. Forgets those
    /// before it.
    pub(super) fn expects(&mut self, first: u64) -> bool {
        while self.queue.front().is_some_and(|(next, _)| *next < first) {
            self.queue.pop_front();
        }
        self.queue.front().is_some_and(|(next, _)| *next == first)
    }

    /// The first page, when it is there.
    pub(super) fn take(&mut self) -> Poll<Outcome> {
        match self.queue.pop_front() {
            Some((_, Reading::Done(outcome))) => Poll::Ready(outcome),
            Some(running) => {
                self.queue.push_front(running);
                Poll::Pending
            }
            None => Poll::Ready(Ok(None)),
        }
    }
}
