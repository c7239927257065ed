//! Who reads blocks that a checkpoint frees: they are handed out again only
//! when every read has ended that may still look at them.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

/// Counts reads, those of the last checkpoint apart from those before it.
#[derive(Debug, Default)]
pub struct Readers {
    turn: Cell<usize>,
    reading: [Cell<usize>; 2],
    ended: Notify,
}

/// A read; over when it is dropped.
#[derive(Debug)]
pub struct Reading {
    readers: Rc<Readers>,
    turn: usize,
}

impl Readers {
    /// A read begins. What it finds in the maps stays where it is until it is
    /// over.
    pub fn enter(self: &Rc<Self>) -> Reading {
        let turn = self.turn.get();
        self.reading[turn].set(self.reading[turn].get() + 1);
        Reading { readers: Rc::clone(self), turn }
    }

    /// Waits for the end of every read that has begun. One at a time may wait.
    pub async fn drain(&self) {
        let old = self.turn.get();
        self.turn.set(1 - old);
        while self.reading[old].get() > 0 {
            self.ended.notified().await;
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let reading = &self.readers.reading[self.turn];
        reading.set(reading.get() - 1);
        // Nobody waits for those of the turn that goes on.
        if reading.get() == 0 && self.turn != self.readers.turn.get() {
            self.readers.ended.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    /// The first read is waited for, the one that begins meanwhile is not, or
    /// a busy pool would never free a block.
    #[test]
    fn only_reads_that_had_begun_are_waited_for() {
        let readers = Rc::<Readers>::default();
        let first = readers.enter();
        let mut context = Context::from_waker(Waker::noop());
        let later = {
            let mut drain = pin!(readers.drain());
            assert!(drain.as_mut().poll(&mut context).is_pending());
            let later = readers.enter();
            drop(first);
            assert!(drain.as_mut().poll(&mut context).is_ready());
            later
        };
        let mut drain = pin!(readers.drain());
        assert!(drain.as_mut().poll(&mut context).is_pending());
        drop(later);
        assert!(drain.as_mut().poll(&mut context).is_ready());
    }
}
