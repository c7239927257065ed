//! One session as the server sees it: at most one request a slot, each run at
//! most once.

mod answers;

use std::collections::VecDeque;

use block_core::{BlockError, Buffer, Request, Time};

use crate::attach::AttachRequest;
use crate::code::{UNSCHEDULED_BYTES, WireOp};
use crate::frame::{Arrived, Frame, Header};
use crate::host::{Host, Reply, SessionIndex, SlotRef, Work};
use crate::seal::Guard;
use crate::security::Caller;
use crate::segment::{SegmentSet, Segmentation};
use crate::server::door::Offer;
use crate::server::slot::{Asked, Due, Phase, Slot};

#[derive(Debug)]
pub(in crate::server) struct Session<P> {
    index: SessionIndex,
    id: u32,
    peer: P,
    caller: Caller,
    guard: Guard,
    incarnation: u64,
    channel: u16,
    /// When the front was heard last.
    heard: Time,
    cut: Segmentation,
    slots: Vec<Slot>,
    credit: u16,
    /// Slots that the worker has.
    running: usize,
    /// Slots whose write is partly received.
    receiving: u128,
    /// Slots that wait for a buffer, first come, first served.
    waiting: VecDeque<u16>,
    /// Whether the server knows that some wait.
    listed: bool,
    closing: bool,
}

/// What came of asking for a buffer in a session's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Granted {
    Yes,
    No,
    NoneWaits,
}

/// The queues of the whole server: sessions that wait, slots that have
/// something to send.
pub(in crate::server) struct Queues<'a> {
    pub(in crate::server) waiting: &'a mut VecDeque<SessionIndex>,
    pub(in crate::server) send: &'a mut VecDeque<SlotRef>,
}

impl<P: Copy + Eq> Session<P> {
    pub(in crate::server) fn new(
        now: Time,
        index: SessionIndex,
        offer: Offer<P>,
        cut: Segmentation,
        slots: u16,
    ) -> Self {
        Self {
            index,
            id: offer.session,
            peer: offer.greeting.peer,
            caller: offer.caller,
            guard: offer.guard,
            incarnation: offer.incarnation,
            channel: offer.greeting.channel,
            heard: now,
            cut,
            slots: (0..slots).map(|_| Slot::idle()).collect(),
            credit: slots,
            running: 0,
            receiving: 0,
            waiting: VecDeque::with_capacity(usize::from(slots)),
            listed: false,
            closing: false,
        }
    }

    /// Buffers that the session has, or soon has had.
    const fn held(&self) -> usize {
        self.running + self.receiving.count_ones() as usize
    }

    pub(in crate::server) fn is(&self, id: u32, peer: P) -> bool {
        self.id == id && self.peer == peer
    }

    pub(in crate::server) const fn id(&self) -> u32 {
        self.id
    }

    pub(in crate::server) const fn peer(&self) -> P {
        self.peer
    }

    /// Whether the front has not used it: it may not know that it is open.
    pub(in crate::server) fn is_fresh(&self) -> bool {
        !self.closing && self.slots.iter().all(|slot| slot.number == 0)
    }

    pub(in crate::server) const fn caller(&self) -> Caller {
        self.caller
    }

    pub(in crate::server) const fn incarnation(&self) -> u64 {
        self.incarnation
    }

    pub(in crate::server) const fn channel(&self) -> u16 {
        self.channel
    }

    /// A frame of the front, if it is one: then the front was heard.
    pub(in crate::server) fn open<'a>(
        &mut self,
        now: Time,
        arrived: Arrived<'a>,
    ) -> Option<Frame<'a>> {
        let frame = self.guard.open(now, arrived)?;
        self.heard = now;
        Some(frame)
    }

    /// Whether nothing is under way and nothing was heard since `then`.
    pub(in crate::server) fn is_forsaken(&self, then: Time) -> bool {
        self.running == 0 && !self.closing && self.heard < then
    }

    /// Takes the buffers back from requests whose data has not come since
    /// `then`: a front that is alive sends it again when it asks. Whether there
    /// was one.
    pub(in crate::server) fn reclaim(&mut self, then: Time) -> bool {
        let mut any = false;
        let mut receiving = self.receiving;
        while receiving != 0 {
            let index = receiving.trailing_zeros() as usize;
            receiving &= receiving - 1;
            let slot = &mut self.slots[index];
            if slot.since < then {
                slot.phase = Phase::Idle;
                slot.due = Due::default();
                self.receiving &= !(1 << index);
                any = true;
            }
        }
        any
    }

    pub(in crate::server) const fn is_closing(&self) -> bool {
        self.closing
    }

    pub(in crate::server) const fn running(&self) -> usize {
        self.running
    }

    /// Drops everything but what the worker has.
    pub(in crate::server) fn close(&mut self) {
        self.closing = true;
        self.receiving = 0;
        self.waiting.clear();
        for slot in &mut self.slots {
            if !matches!(slot.phase, Phase::Running) {
                slot.phase = Phase::Idle;
            }
        }
    }

    fn at(&self, slot: usize) -> SlotRef {
        SlotRef { session: self.index, slot: slot as u16 }
    }

    fn enqueue(&mut self, index: usize, send: &mut VecDeque<SlotRef>) {
        let at = self.at(index);
        let slot = &mut self.slots[index];
        if !slot.queued {
            slot.queued = true;
            send.push_back(at);
        }
    }

    pub(in crate::server) fn handle_request(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        queues: &mut Queues<'_>,
        host: &mut impl Host,
    ) {
        let header = &frame.header;
        let index = usize::from(header.slot);
        let Some(slot) = self.slots.get_mut(index) else { return };
        if header.number > slot.number {
            // The front has given the old request up, but the worker still has
            // it: the new one waits at the front until that has ended.
            if matches!(slot.phase, Phase::Running) {
                return;
            }
            self.begin(now, index, header, queues, host);
        } else if header.number == slot.number && matches!(slot.phase, Phase::Idle) {
            // Its buffer was taken back: it begins anew.
            self.begin(now, index, header, queues, host);
        } else if header.number == slot.number {
            self.repeat(now, index, header, queues, host);
        } else {
            return;
        }
        if self.slots[index].number == header.number && !frame.payload.is_empty() {
            self.take_segment(now, index, frame, queues.send, host);
        }
        self.ask_for_gaps(header.counter, queues.send);
    }

    /// A new request in a slot: what was there is forgotten.
    fn begin(
        &mut self,
        now: Time,
        index: usize,
        header: &Header,
        queues: &mut Queues<'_>,
        host: &mut impl Host,
    ) {
        let asked = Asked::parse(header);
        let waited = matches!(self.slots[index].phase, Phase::Waiting);
        self.receiving &= !(1 << index);
        self.slots[index].begin(now, header, asked.unwrap_or(Asked::NOTHING));
        if waited {
            self.waiting.retain(|waiting| usize::from(*waiting) != index);
        }
        match asked {
            Some(_) => self.find_buffer(now, index, queues, host),
            None => self.end(now, index, Err(BlockError::Malformed), queues.send),
        }
    }

    /// The same request again: a read with a new attempt is read again,
    /// everything else has its outcome kept.
    fn repeat(
        &mut self,
        now: Time,
        index: usize,
        header: &Header,
        queues: &mut Queues<'_>,
        host: &mut impl Host,
    ) {
        let slot = &mut self.slots[index];
        let newer = header.attempt.wrapping_sub(slot.attempt) as i16 > 0;
        // What was to be said of an earlier attempt is out of date.
        slot.due.progress = None;
        match slot.phase {
            Phase::Done | Phase::Sending { .. }
                if slot.is_read() && slot.outcome.code == 0 && newer =>
            {
                slot.attempt = header.attempt;
                slot.wanted = header.offset;
                self.find_buffer(now, index, queues, host);
            }
            // A copy of a frame whose data has left already.
            Phase::Done if slot.is_read() && slot.outcome.code == 0 => {}
            Phase::Done => {
                slot.attempt = header.attempt;
                slot.due.answer = true;
                self.enqueue(index, queues.send);
            }
            Phase::Running | Phase::Waiting if slot.is_read() && newer => {
                slot.attempt = header.attempt;
                slot.wanted = header.offset;
            }
            _ => {}
        }
    }

    /// Gets the request the buffer that it takes, at once or in its turn.
    fn find_buffer(
        &mut self,
        now: Time,
        index: usize,
        queues: &mut Queues<'_>,
        host: &mut impl Host,
    ) {
        let bytes = self.slots[index].asked.buffer_bytes();
        if bytes == 0 {
            return self.start(now, index, None, queues.send, host);
        }
        let none_waits = self.waiting.is_empty();
        let buffer = if none_waits { host.buffer(bytes, self.held()) } else { None };
        match buffer {
            Some(buffer) => self.have_buffer(now, index, buffer, queues.send, host),
            None => {
                self.slots[index].phase = Phase::Waiting;
                self.waiting.push_back(index as u16);
                if !std::mem::replace(&mut self.listed, true) {
                    queues.waiting.push_back(self.index);
                }
            }
        }
    }

    /// A buffer may be free now, for the request that has waited longest.
    pub(in crate::server) fn grant(
        &mut self,
        now: Time,
        send: &mut VecDeque<SlotRef>,
        host: &mut impl Host,
    ) -> Granted {
        let Some(&first) = self.waiting.front() else {
            self.listed = false;
            return Granted::NoneWaits;
        };
        let index = usize::from(first);
        let Some(buffer) = host.buffer(self.slots[index].asked.buffer_bytes(), self.held()) else {
            return Granted::No;
        };
        self.waiting.pop_front();
        self.have_buffer(now, index, buffer, send, host);
        // What was sent while there was no buffer for it is gone.
        let slot = &mut self.slots[index];
        if matches!(slot.phase, Phase::Receiving { .. }) {
            slot.due.missing = Some(self.cut.all(slot.asked.bytes));
            self.enqueue(index, send);
        }
        Granted::Yes
    }

    fn have_buffer(
        &mut self,
        now: Time,
        index: usize,
        buffer: Buffer,
        send: &mut VecDeque<SlotRef>,
        host: &mut impl Host,
    ) {
        let slot = &mut self.slots[index];
        if !slot.asked.carries_data() {
            return self.start(now, index, Some(buffer), send, host);
        }
        slot.phase = Phase::Receiving { buffer, received: SegmentSet::EMPTY };
        slot.since = now;
        self.receiving |= 1 << index;
        let unscheduled = self.cut.within(slot.asked.bytes, UNSCHEDULED_BYTES);
        let granted = self.cut.all(slot.asked.bytes).without(unscheduled);
        if !granted.is_empty() {
            slot.due.missing = Some(granted);
            self.enqueue(index, send);
        }
    }

    fn take_segment(
        &mut self,
        now: Time,
        index: usize,
        frame: &Frame<'_>,
        send: &mut VecDeque<SlotRef>,
        host: &mut impl Host,
    ) {
        let slot = &mut self.slots[index];
        let asked = slot.asked;
        let Phase::Receiving { buffer, received } = &mut slot.phase else { return };
        let (offset, len) = (frame.header.offset as usize, frame.payload.len());
        let Some(segment) = self.cut.index(offset, len, asked.bytes) else { return };
        slot.last_counter = frame.header.counter;
        if received.contains(segment) {
            return;
        }
        // Only what is new is a sign that the rest will come.
        slot.since = now;
        let start = asked.data_start() + offset;
        buffer[start..start + len].copy_from_slice(frame.payload);
        received.insert(segment);
        if *received != self.cut.all(asked.bytes) {
            return;
        }
        self.receiving &= !(1 << index);
        slot.due.missing = None;
        if let Phase::Receiving { buffer, .. } = std::mem::replace(&mut slot.phase, Phase::Idle) {
            self.start(now, index, Some(buffer), send, host);
        }
    }

    /// Gives the request to the worker.
    fn start(
        &mut self,
        now: Time,
        index: usize,
        buffer: Option<Buffer>,
        send: &mut VecDeque<SlotRef>,
        host: &mut impl Host,
    ) {
        let at = self.at(index);
        let slot = &mut self.slots[index];
        slot.phase = Phase::Running;
        slot.since = now;
        let Asked { op, volume, range, .. } = slot.asked;
        let work = match op {
            WireOp::Block(op) => Work::Block { volume, request: Request { op, range, buffer } },
            WireOp::Detach => Work::Detach(volume),
            WireOp::Attach => match buffer.as_deref().and_then(AttachRequest::parse) {
                Some(request) => Work::Attach(request),
                None => return self.end(now, index, Err(BlockError::Malformed), send),
            },
        };
        self.running += 1;
        host.start(at, work);
    }

    pub(in crate::server) fn handle_reply(
        &mut self,
        now: Time,
        slot: u16,
        reply: Reply,
        send: &mut VecDeque<SlotRef>,
    ) {
        let index = usize::from(slot);
        self.running -= 1;
        if self.closing {
            self.slots[index].phase = Phase::Idle;
            return;
        }
        let Reply { outcome, word, buffer, attach, news } = reply;
        let slot = &mut self.slots[index];
        slot.outcome.word = word;
        slot.outcome.attach = attach;
        slot.outcome.news = news;
        slot.phase = match buffer {
            Some(buffer) if slot.is_read() && outcome.is_ok() => {
                let unsent = self.cut.of_blocks(slot.wanted, slot.asked.bytes);
                Phase::Sending { buffer, unsent }
            }
            _ => Phase::Done,
        };
        self.answer(now, index, outcome, send);
    }

    /// Ends what the worker was not given.
    fn end(
        &mut self,
        now: Time,
        index: usize,
        outcome: Result<(), BlockError>,
        send: &mut VecDeque<SlotRef>,
    ) {
        self.slots[index].phase = Phase::Done;
        self.answer(now, index, outcome, send);
    }

    /// Keeps the outcome and lets the answer go.
    fn answer(
        &mut self,
        now: Time,
        index: usize,
        outcome: Result<(), BlockError>,
        send: &mut VecDeque<SlotRef>,
    ) {
        let slot = &mut self.slots[index];
        slot.held_micros = u32::try_from((now - slot.since).as_micros()).unwrap_or(u32::MAX);
        slot.outcome.code = block_core::error::outcome_code(outcome);
        slot.due.answer = true;
        self.enqueue(index, send);
    }
}

/// The set of partly received writes is one word.
pub(in crate::server) const MAX_SLOTS: u16 = u128::BITS as u16;
