//! What goes: requests, their segments, and the question how far they are.

use std::time::Duration;

use block_core::{Op, Time};

use super::{Phase, Session};
use crate::client::Volume;
use crate::client::greeting::Caller;
use crate::client::slot::{Due, NEVER, Slot, Use};
use crate::code;
use crate::frame::{Header, Kind};
use crate::wire::{Peer, Wire};

/// Frames that one session sends in a turn, so that a turn is bounded.
const BURST: usize = 256;

/// How often one request of a session asks for an answer, for the first seconds
/// of a silence: a server that was started anew is noticed that soon.
const ASK_OFTEN: Duration = Duration::from_millis(25);

/// So many times.
const ASK_OFTEN_TIMES: u8 = 200;

impl<P: Peer> Session<P> {
    /// Asks how far the requests are whose answers are late.
    pub(in crate::client) fn handle_timeout(&mut self, now: Time, volumes: &[Volume]) {
        if !self.is_live() || now < self.next_deadline {
            return;
        }
        let mine = volumes.iter().filter(|volume| volume.session == self.index);
        let retries = mine.flat_map(|volume| [volume.retry_at, volume.flush_at]);
        self.next_deadline = retries.flatten().filter(|at| *at > now).min().unwrap_or(NEVER);
        let mut asks_often = true;
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.deadline == NEVER {
                continue;
            }
            let asks_often = std::mem::take(&mut asks_often) && slot.doublings < ASK_OFTEN_TIMES;
            if now < slot.deadline {
                self.next_deadline = self.next_deadline.min(slot.deadline);
                continue;
            }
            slot.doublings = slot.doublings.saturating_add(1);
            slot.due = slot.due.max(Due::Probe);
            slot.timed_from = None;
            self.await_answer(now, index);
            if asks_often {
                let soon = now + ASK_OFTEN;
                let slot = &mut self.slots[index];
                slot.deadline = slot.deadline.min(soon);
                self.next_deadline = self.next_deadline.min(soon);
            }
            self.enqueue(index);
        }
    }

    pub(super) fn await_answer(&mut self, now: Time, index: usize) {
        let slot = &mut self.slots[index];
        slot.deadline = self.trip.deadline(now, slot.doublings);
        self.next_deadline = self.next_deadline.min(slot.deadline);
    }

    /// Sends what is due; whether anything was.
    pub(in crate::client) fn transmit<W: Wire<Peer = P>>(
        &mut self,
        now: Time,
        caller: Caller,
        volumes: &[Volume],
        wire: &mut W,
    ) -> bool {
        if let Phase::Greeting(greeting) = &mut self.phase {
            return greeting.transmit(now, caller, &mut self.voice, wire, self.peer);
        }
        let mut frames = 0;
        while frames < BURST {
            let Some(index) = self.queue.pop() else { break };
            frames += self.transmit_slot(now, index, volumes, wire);
        }
        if frames > 0 {
            self.unheard.get_or_insert(now);
        }
        frames > 0
    }

    /// Whether more is under way than waits to be sent: answers may come.
    pub(in crate::client) fn awaits_answers(&self) -> bool {
        let taken = self.slots.len().saturating_sub(1 + self.room.free_slots());
        !self.is_live() || taken > self.queue.len()
    }

    /// Whether frames wait to be sent.
    pub(in crate::client) fn has_frames(&self) -> bool {
        self.is_live() && !self.queue.is_empty()
    }

    #[inline]
    fn transmit_slot<W: Wire<Peer = P>>(
        &mut self,
        now: Time,
        index: u16,
        volumes: &[Volume],
        wire: &mut W,
    ) -> usize {
        let slot = &mut self.slots[usize::from(index)];
        slot.queued = false;
        if slot.number == 0 {
            return 0;
        }
        let due = std::mem::replace(&mut slot.due, Due::Nothing);
        if due == Due::Nothing {
            return 0;
        }
        let mut header = request_header(slot, volumes);
        header.session = self.id;
        header.slot = index;
        if due == Due::Probe {
            self.guard.send(wire, &self.peer, &header, Kind::Probe, &[]);
            return 1;
        }
        let mut frames = 1;
        if slot.carried().is_some() {
            frames = self.send_data(index, header, wire);
        } else {
            header.offset = slot.wanted(self.cut);
            self.guard.send(wire, &self.peer, &header, Kind::Request, &[]);
        }
        let slot = &mut self.slots[usize::from(index)];
        let first = slot.attempt == 0 && slot.deadline == NEVER;
        slot.timed_from = first.then_some(now);
        self.overtaken.sent(index, slot.number);
        slot.deadline = self.trip.deadline(now, slot.doublings);
        self.next_deadline = self.next_deadline.min(slot.deadline);
        frames
    }

    /// Sends the segments of a request that are to be sent; how many.
    #[inline(never)]
    fn send_data<W: Wire<Peer = P>>(
        &mut self,
        index: u16,
        mut header: Header,
        wire: &mut W,
    ) -> usize {
        let slot = &self.slots[usize::from(index)];
        let Some(data) = slot.carried() else { return 0 };
        let mut frames = 0;
        for segment in slot.unsent.iter() {
            let range = self.cut.range(segment, slot.bytes);
            header.offset = range.start as u32;
            self.guard.send(wire, &self.peer, &header, Kind::Request, &data[range]);
            frames += 1;
        }
        frames
    }
}

/// The fields that say what the slot asks for.
#[inline]
fn request_header(slot: &Slot, volumes: &[Volume]) -> Header {
    let Use::Part(part) = slot.purpose else { return own_request_header(slot, volumes) };
    let (word, count) = part.range.map_or((0, 0), |range| (range.start(), range.count()));
    Header {
        number: slot.number,
        attempt: slot.attempt,
        op: part.op.code(),
        volume: handle(usize::from(part.volume.0), volumes),
        word,
        count,
        ..Header::default()
    }
}

/// What the server calls a volume.
#[inline]
fn handle(volume: usize, volumes: &[Volume]) -> u16 {
    volumes[volume].known.map_or(0, |known| known.handle.0)
}

/// The fields of a request that no guest made.
#[cold]
fn own_request_header(slot: &Slot, volumes: &[Volume]) -> Header {
    let mut header = Header { number: slot.number, attempt: slot.attempt, ..Header::default() };
    match slot.purpose {
        Use::Free | Use::Part(_) => {}
        Use::Replay { volume, entry } => {
            header.volume = handle(volume, volumes);
            if let Some(kept) = volumes[volume].kept.get(entry) {
                header.op = kept.op.code();
                header.word = kept.range.start();
                header.count = kept.range.count();
            }
        }
        Use::Flush(volume) => {
            header.op = Op::Flush.code();
            header.volume = handle(volume, volumes);
        }
        Use::Attach(_) => {
            header.op = code::ATTACH;
            header.count = slot.bytes as u32;
        }
        Use::Detach(volume) => {
            header.op = code::DETACH;
            header.volume = handle(volume, volumes);
        }
    }
    header
}
