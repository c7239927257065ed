//! The time of the worker's turn, and who waits for a later one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use block_core::Time;
use tokio::sync::Notify;

/// What a worker's tasks look at to know the time. Whoever turns the worker
/// sets it, and sleeps no longer than until [`TurnClock::deadline`].
#[derive(Debug, Default)]
pub struct TurnClock {
    now: Cell<Time>,
    /// The earliest of `waiting`.
    earliest: Cell<Option<Time>>,
    waiting: RefCell<Vec<(Time, Rc<Notify>)>>,
}

impl TurnClock {
    /// The moment that was set last.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now.get()
    }

    /// When somebody wants to be woken, if anybody.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.earliest.get()
    }

    /// Sets the time and wakes whose moment has come.
    pub fn tick(&self, now: Time) {
        self.now.set(now);
        if self.earliest.get().is_none_or(|earliest| now < earliest) {
            return;
        }
        self.waiting.borrow_mut().retain(|(when, waiter)| {
            let due = *when <= now;
            if due {
                waiter.notify_one();
            }
            !due
        });
        self.find_earliest();
    }

    /// Lets `waiter` be notified when it is `when`; once, until the guard is
    /// dropped.
    pub(super) fn ring(&self, when: Time, waiter: &Rc<Notify>) -> Ringing<'_> {
        self.waiting.borrow_mut().push((when, Rc::clone(waiter)));
        self.find_earliest();
        Ringing { clock: self, waiter: Rc::clone(waiter) }
    }

    fn find_earliest(&self) {
        self.earliest.set(self.waiting.borrow().iter().map(|(when, _)| *when).min());
    }
}

/// A waiter that the clock knows.
pub(super) struct Ringing<'a> {
    clock: &'a TurnClock,
    waiter: Rc<Notify>,
}

impl Drop for Ringing<'_> {
    fn drop(&mut self) {
        self.clock.waiting.borrow_mut().retain(|(_, other)| !Rc::ptr_eq(other, &self.waiter));
        self.clock.find_earliest();
    }
}
