//! What goes on beside a merge: writes behind it, reads ahead of it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use super::ahead::Ahead;
use crate::pages::{Damage, Page, PagesError};

/// Pages on their way to the device at most.
pub(super) const WRITES: usize = 16;

/// Pages of level 1 on their way from the device at most.
pub(super) const READS: usize = 16;

/// Goes on whenever the merge waits for something.
#[derive(Default)]
pub(super) struct Beside {
    writes: Vec<Write>,
    failed: Option<PagesError>,
    pub(super) ahead: Ahead,
}

type Write = Pin<Box<dyn Future<Output = Result<(), PagesError>>>>;

impl Beside {
    fn poll(&mut self, context: &mut Context<'_>) {
        self.ahead.poll(context);
        self.writes.retain_mut(|write| match write.as_mut().poll(context) {
            Poll::Pending => true,
            Poll::Ready(outcome) => {
                self.failed = self.failed.or(outcome.err());
                false
            }
        });
    }

    /// Waits for something, and goes on with the rest meanwhile: what is
    /// waited for may be a buffer that a write has.
    pub(super) async fn attend<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        poll_fn(|context| {
            self.poll(context);
            future.as_mut().poll(context)
        })
        .await
    }

    /// Waits until another write may start.
    pub(super) async fn room(&mut self) -> Result<(), PagesError> {
        self.wait_for(WRITES - 1).await
    }

    /// Waits until all writes have ended.
    pub(super) async fn end(&mut self) -> Result<(), PagesError> {
        self.wait_for(0).await
    }

    async fn wait_for(&mut self, writes: usize) -> Result<(), PagesError> {
        poll_fn(|context| {
            self.poll(context);
            if self.writes.len() <= writes { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        self.failed.map_or(Ok(()), Err)
    }

    pub(super) async fn start(
        &mut self,
        write: impl Future<Output = Result<(), PagesError>> + 'static,
    ) {
        self.writes.push(Box::pin(write));
        poll_fn(|context| {
            self.poll(context);
            Poll::Ready(())
        })
        .await;
    }

    /// The page that was expected first.
    pub(super) async fn expected(&mut self) -> Result<Option<Page>, Damage> {
        poll_fn(|context| {
            self.poll(context);
            self.ahead.take()
        })
        .await
    }
}
