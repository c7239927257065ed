//! Requests that are asked for before their time-out, because others that were
//! sent later have been answered: a lost frame of a busy session costs about a
//! round trip more, and no timer that has to allow for the slowest.

use std::collections::VecDeque;

use super::Session;
use crate::client::slot::Use;
use crate::wire::Peer;

/// How many later requests must have been answered. Devices answer out of order,
/// and a question that was not needed costs two short frames.
const OVERTAKERS: u64 = 8;

/// The requests in the order in which they were sent.
#[derive(Debug, Default)]
pub(super) struct Overtaken {
    answers: u64,
    sent: VecDeque<Sent>,
    room: usize,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    slot: u16,
    number: u64,
    /// When so many answers have come, enough were of later requests.
    until: u64,
}

impl Overtaken {
    /// For a session with so many slots. Entries leave after two answers for
    /// each slot at most, so more than that is only met when requests are sent
    /// again and again; then the oldest are left to their time-outs.
    pub(super) fn with_room_for(slots: u16) -> Self {
        let room = 4 * usize::from(slots);
        Self { answers: 0, sent: VecDeque::with_capacity(room), room }
    }

    /// Notes that a request was sent, as one of `under_way`: so many answers
    /// may be of earlier ones.
    pub(super) fn sent(&mut self, slot: u16, number: u64, under_way: usize) {
        if self.sent.len() == self.room {
            self.sent.pop_front();
        }
        let until = self.answers + under_way as u64 + OVERTAKERS;
        self.sent.push_back(Sent { slot, number, until });
    }
}

impl<P: Peer> Session<P> {
    /// A request was answered; those that it was the last to overtake are asked
    /// for, each once after it was sent.
    pub(super) fn ask_for_overtaken(&mut self) {
        self.overtaken.answers += 1;
        while let Some(&Sent { slot: index, number, until }) = self.overtaken.sent.front() {
            let slot = &mut self.slots[usize::from(index)];
            let is_open = slot.number == number && slot.purpose != Use::Free;
            if is_open && until > self.overtaken.answers {
                return;
            }
            self.overtaken.sent.pop_front();
            if is_open {
                slot.probe_due = true;
                slot.timed_from = None;
                self.enqueue(index);
            }
        }
    }
}
