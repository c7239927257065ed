//! Requests that are asked for before their time-out, because others that were
//! sent later have been answered: a lost frame of a busy session costs about a
//! round trip more, and no timer that has to allow for the slowest.

use std::collections::VecDeque;

use block_core::Time;

use super::Session;
use crate::client::slot::Use;
use crate::wire::Peer;

/// How many later requests must have been answered. Devices answer out of order,
/// and a question that was not needed costs two short frames.
const OVERTAKERS: u32 = 8;

/// The requests in the order in which they were sent.
#[derive(Debug, Default)]
pub(super) struct Overtaken {
    sent: VecDeque<(u16, u64)>,
    /// Answers of others since the first of `sent` has been the first: all of
    /// them were sent later.
    overtakers: u32,
    room: usize,
}

impl Overtaken {
    /// For a session with so many slots. Most entries leave when they are
    /// answered, so more than that is only met when requests are sent again and
    /// again; then the oldest are left to their time-outs.
    pub(super) fn with_room_for(slots: u16) -> Self {
        let room = 4 * usize::from(slots);
        Self { sent: VecDeque::with_capacity(room), overtakers: 0, room }
    }

    /// Notes that a request was sent.
    pub(super) fn sent(&mut self, slot: u16, number: u64) {
        if self.sent.len() == self.room {
            self.forget_first();
        }
        self.sent.push_back((slot, number));
    }

    fn forget_first(&mut self) {
        self.sent.pop_front();
        self.overtakers = 0;
    }
}

impl<P: Peer> Session<P> {
    /// A request was answered; if the oldest that was not has been overtaken by
    /// enough others, it is asked for, once after it was sent.
    pub(super) fn ask_for_overtaken(&mut self, now: Time) {
        self.overtaken.overtakers += 1;
        while let Some(&(index, number)) = self.overtaken.sent.front() {
            let slot = &self.slots[usize::from(index)];
            if slot.number == number && slot.purpose != Use::Free {
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
    fn ask_for(&mut self, now: Time, index: usize) {
        let slot = &mut self.slots[index];
        if slot.is_read() && slot.attempt == 0 {
            self.read_again(now, index);
        } else {
            slot.probe_due = true;
            slot.timed_from = None;
        }
        self.enqueue(index as u16);
    }
}
