//! Requests that are asked for before their time-out, because others that were
//! sent later have been answered: a lost frame of a busy session costs about a
//! round trip more, and no timer that has to allow for the slowest.

use block_core::Time;

use super::{MAX_SLOTS, Ring, Session};
use crate::client::slot::Due;
use crate::wire::Peer;

/// How many later requests must have been answered. Devices answer out of order,
/// and a question that was not needed costs two short frames.
const OVERTAKERS: u32 = 8;

/// Sent requests that are remembered. Most are forgotten when they are answered, so
/// this many only are when requests are sent again and again; then the oldest are
/// left to their time-outs.
const ROOM: usize = 4 * MAX_SLOTS as usize;

/// The requests in the order in which they were sent.
#[derive(Debug)]
pub(super) struct Overtaken {
    /// Slots and numbers.
    sent: Ring<(u16, u64), ROOM>,
    /// Answers of others since the first of `sent` has been the first: all of
    /// them were sent later.
    overtakers: u32,
}

impl Overtaken {
    pub(super) fn new() -> Self {
        Self { sent: Ring::new(), overtakers: 0 }
    }

    pub(super) const fn clear(&mut self) {
        self.sent.clear();
        self.overtakers = 0;
    }

    /// Notes that a request was sent.
    #[inline]
    pub(super) fn sent(&mut self, slot: u16, number: u64) {
        if self.sent.is_full() {
            self.forget_first();
        }
        self.sent.push((slot, number));
    }

    #[inline]
    fn forget_first(&mut self) {
        self.sent.pop();
        self.overtakers = 0;
    }
}

impl<P: Peer> Session<P> {
    /// The request of that number was answered; if the oldest that was not has been
    /// overtaken by enough others, it is asked for, once after it was sent.
    #[inline]
    pub(super) fn ask_for_overtaken(&mut self, now: Time, number: u64) {
        match self.overtaken.sent.first() {
            Some((_, first)) if first == number => self.overtaken.forget_first(),
            _ => {
                self.overtaken.overtakers += 1;
                if self.overtaken.overtakers < OVERTAKERS {
                    return;
                }
            }
        }
        self.find_first(now);
    }

    /// Finds the oldest request that was not answered, and asks for it if it has been
    /// overtaken by enough others.
    #[inline(never)]
    fn find_first(&mut self, now: Time) {
        while let Some((index, number)) = self.overtaken.sent.first() {
            // A slot that is free has no request's number.
            if self.slots[usize::from(index)].number == number {
                if self.overtaken.overtakers < OVERTAKERS {
                    return;
                }
                self.ask_for(now, usize::from(index));
            }
            self.overtaken.forget_first();
        }
    }

    /// Asks for a request that others have overtaken: how far it is, or what is
    /// missing of a read, which is as short and saves a round trip. The next time
    /// the first question is asked: a read that takes long is not asked for again
    /// and again.
    #[cold]
    fn ask_for(&mut self, now: Time, index: usize) {
        let slot = &mut self.slots[index];
        if slot.is_read() && slot.attempt == 0 {
            self.read_again(now, index);
        } else {
            slot.due = slot.due.max(Due::Probe);
            slot.timed_from = None;
        }
        self.enqueue(index);
    }
}
