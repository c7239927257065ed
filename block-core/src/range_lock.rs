//! Changes to the same blocks run one after the other, in order of arrival.
//!
//! A change waits for every change that came before it and overlaps it, and
//! for nothing else; so nobody starves, and what does not overlap runs side by
//! side. Entering and leaving look at each change that is on its way, of which
//! there are at most as many as the writer has slots.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::unit::LbaRange;

/// The changes of one volume that have come and not ended.
#[derive(Debug)]
pub struct RangeLock {
    inner: RefCell<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// In no order: a change that leaves is replaced by the last one.
    changes: Vec<Change>,
    /// How many of them still wait.
    waiting: usize,
    arrived: u64,
}

#[derive(Debug)]
struct Change {
    range: LbaRange,
    /// Rises with each arrival; names the change.
    arrival: u64,
    /// Earlier, overlapping changes that have not ended.
    ahead: usize,
    waker: Option<Waker>,
}

/// A change's turn; dropping it lets the next one go.
#[derive(Debug)]
pub struct Turn<'a> {
    lock: &'a RangeLock,
    arrival: u64,
}

/// A change's turn that no lifetime ties to the lock.
#[derive(Debug)]
#[must_use = "a turn that is not left keeps others waiting"]
pub struct Arrival(u64);

impl RangeLock {
    /// A lock with room for `capacity` changes at once; more are fine, but
    /// the first time they allocate.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let changes = Vec::with_capacity(capacity);
        Self { inner: RefCell::new(Inner { changes, waiting: 0, arrived: 0 }) }
    }

    /// Makes room, so that `capacity` changes at once allocate nothing.
    pub fn reserve(&self, capacity: usize) {
        let changes = &mut self.inner.borrow_mut().changes;
        changes.reserve(capacity.saturating_sub(changes.len()));
    }

    /// Waits until no earlier change overlaps `range`. The place in the queue
    /// is taken when the future is first polled.
    pub async fn enter(&self, range: LbaRange) -> Turn<'_> {
        let (arrival, ahead) = self.inner.borrow_mut().arrive(range);
        // Made before the wait: a wait that is given up leaves the queue too.
        let turn = Turn { lock: self, arrival };
        if ahead == 0 {
            return turn;
        }
        poll_fn(|context| {
            let mut inner = self.inner.borrow_mut();
            let change = inner.find(arrival);
            if change.ahead == 0 {
                return Poll::Ready(());
            }
            match &mut change.waker {
                Some(waker) => waker.clone_from(context.waker()),
                None => change.waker = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await;
        turn
    }

    /// The turn of a change that need not wait. It is over when [`RangeLock::leave`] is
    /// told, not when this is dropped.
    pub fn enter_now(&self, range: LbaRange) -> Option<Arrival> {
        let mut inner = self.inner.borrow_mut();
        let is_free = inner.ahead_of(range) == 0;
        is_free.then(|| Arrival(inner.admit(range, 0)))
    }

    /// A turn is over: lets the next one go.
    pub fn leave(&self, turn: &Arrival) {
        self.inner.borrow_mut().leave(turn.0);
    }

    /// How many changes have come and not ended.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.inner.borrow().changes.len()
    }
}

impl Inner {
    /// The number of a change that has come, and how many it waits for.
    fn arrive(&mut self, range: LbaRange) -> (u64, usize) {
        let ahead = self.ahead_of(range);
        self.waiting += usize::from(ahead > 0);
        (self.admit(range, ahead), ahead)
    }

    /// How many changes that have come overlap `range`.
    fn ahead_of(&self, range: LbaRange) -> usize {
        self.changes.iter().filter(|change| change.range.overlaps(range)).count()
    }

    fn admit(&mut self, range: LbaRange, ahead: usize) -> u64 {
        let arrival = self.arrived;
        self.arrived += 1;
        self.changes.push(Change { range, arrival, ahead, waker: None });
        arrival
    }

    fn find(&mut self, arrival: u64) -> &mut Change {
        let found = self.changes.iter_mut().find(|change| change.arrival == arrival);
        found.expect("a change leaves only when its turn is dropped")
    }

    fn leave(&mut self, arrival: u64) {
        let Some(at) = self.changes.iter().position(|change| change.arrival == arrival) else {
            return;
        };
        let gone = self.changes.swap_remove(at);
        self.waiting -= usize::from(gone.ahead > 0);
        if self.waiting == 0 {
            return;
        }
        for change in &mut self.changes {
            if change.arrival < arrival || !change.range.overlaps(gone.range) {
                continue;
            }
            change.ahead -= 1;
            if change.ahead == 0 {
                self.waiting -= 1;
                if let Some(waker) = change.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.lock.inner.borrow_mut().leave(self.arrival);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::Context;

    use crate::unit::{BlockCount, Lba};
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, count: u64) -> LbaRange {
        LbaRange { start: Lba(start), count: BlockCount(count) }
    }

    /// The turn of one that waited if it had to, or of one that would not have.
    enum Held<'a> {
        Turn(#[expect(dead_code, reason = "it is held until it is dropped")] Turn<'a>),
        Now(Arrival),
    }

    type Waiting<'a> = Pin<Box<dyn Future<Output = Turn<'a>> + 'a>>;

    fn poll<'a>(waiting: &mut Waiting<'a>) -> Option<Turn<'a>> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    /// 1 holds block 0; 2 wants 0 and 1; 3 wants 1 only, which nobody holds.
    /// If 3 went first, a stream of such changes would keep 2 waiting for ever.
    #[test]
    fn nobody_is_overtaken_by_a_change_that_overlaps() {
        let lock = RangeLock::new(4);
        let mut first: Waiting<'_> = Box::pin(lock.enter(range(0, 1)));
        let mut second: Waiting<'_> = Box::pin(lock.enter(range(0, 2)));
        let mut third: Waiting<'_> = Box::pin(lock.enter(range(1, 1)));
        let mut apart: Waiting<'_> = Box::pin(lock.enter(range(2, 1)));
        let first = poll(&mut first).expect("nobody is ahead");
        assert!(poll(&mut second).is_none());
        assert!(poll(&mut third).is_none());
        assert!(poll(&mut apart).is_some());
        drop(first);
        assert!(poll(&mut third).is_none());
        drop(poll(&mut second).expect("its turn"));
        assert!(poll(&mut third).is_some());
        assert_eq!(lock.len(), 0);
    }

    #[test]
    fn a_wait_that_is_given_up_lets_the_next_one_go() {
        let lock = RangeLock::new(4);
        let mut first: Waiting<'_> = Box::pin(lock.enter(range(0, 1)));
        let mut second: Waiting<'_> = Box::pin(lock.enter(range(0, 1)));
        let mut third: Waiting<'_> = Box::pin(lock.enter(range(0, 1)));
        let first = poll(&mut first).expect("nobody is ahead");
        assert!(poll(&mut second).is_none());
        assert!(poll(&mut third).is_none());
        drop(second);
        assert!(poll(&mut third).is_none());
        drop(first);
        assert!(poll(&mut third).is_some());
    }

    proptest! {
        /// The model: a change may go if and only if no earlier one that
        /// overlaps it is still there, and one that does not wait enters if and only if
        /// none is.
        #[test]
        fn exactly_the_right_changes_go(
            steps in prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, 0..12u64, 1..5u64), 1..100)
        ) {
            let lock = RangeLock::new(0);
            let mut waiting: Vec<(u64, LbaRange, Waiting<'_>)> = Vec::new();
            let mut running: Vec<(u64, LbaRange, Held<'_>)> = Vec::new();
            for (number, (which, step, start, count)) in (0u64..).zip(steps) {
                match step {
                    0 if !running.is_empty() => {
                        if let (_, _, Held::Now(turn)) = running.swap_remove(which.index(running.len())) {
                            lock.leave(&turn);
                        }
                    }
                    1 if !waiting.is_empty() => drop(waiting.remove(which.index(waiting.len()))),
                    2 => {
                        let range = range(start, count);
                        let ranges = running.iter().map(|(_, range, _)| *range);
                        let others = ranges.chain(waiting.iter().map(|(_, range, _)| *range));
                        let is_free = !others.into_iter().any(|other| other.overlaps(range));
                        let turn = lock.enter_now(range);
                        prop_assert_eq!(turn.is_some(), is_free);
                        running.extend(turn.map(|turn| (number, range, Held::Now(turn))));
                    }
                    _ => {
                        let range = range(start, count);
                        let mut entering: Waiting<'_> = Box::pin(lock.enter(range));
                        match poll(&mut entering) {
                            Some(turn) => running.push((number, range, Held::Turn(turn))),
                            None => waiting.push((number, range, entering)),
                        }
                    }
                }
                let mut still = Vec::new();
                for (number, range, mut entering) in waiting {
                    match poll(&mut entering) {
                        Some(turn) => running.push((number, range, Held::Turn(turn))),
                        None => still.push((number, range, entering)),
                    }
                }
                waiting = still;
                let earlier = |number: u64, wanted: LbaRange| {
                    running.iter().map(|(other, range, _)| (*other, *range))
                        .chain(waiting.iter().map(|(other, range, _)| (*other, *range)))
                        .any(|(other, range)| other < number && range.overlaps(wanted))
                };
                for (number, range, _) in &running {
                    prop_assert!(!earlier(*number, *range));
                }
                for (number, range, _) in &waiting {
                    prop_assert!(earlier(*number, *range));
                }
            }
        }
    }
}
