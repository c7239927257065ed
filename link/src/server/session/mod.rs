//! One session as the server sees it: at most one request a slot, each run at
//! most once.

mod answers;
mod data;

use std::collections::VecDeque;

use block_core::error::outcome_code;
use block_core::{BlockError, Buffer, Request, Time};

use crate::attach::AttachRequest;
use crate::code::WireOp;
use crate::frame::{Arrived, Frame, Header};
use crate::host::{Host, Reply, SessionIndex, SlotRef, Work};
use crate::seal::Guard;
use crate::security::Caller;
use crate::segment::Segmentation;
use crate::server::door::Offer;
use crate::server::slot::{Asked, Outcome, Phase, Slot};

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
        // Mostly nothing is partly received, and 128 bits take long to count.
        if self.receiving == 0 {
            return self.running;
        }
        self.running + self.receiving.count_ones() as usize
    }

    /// Whether frames that name this session, and come from there, are its.
    pub(in crate::server) fn is(&self, id: u32, peer: &P) -> bool {
        self.id == id && self.peer == *peer && !self.closing
    }

    pub(in crate::server) const fn index(&self) -> usize {
        self.index.0 as usize
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
    #[inline]
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

    pub(in crate::server) const fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether nothing is left of it but its place.
    pub(in crate::server) const fn has_ended(&self) -> bool {
        self.closing && self.running == 0
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

    #[inline]
    fn enqueue(&mut self, index: usize, send: &mut VecDeque<SlotRef>) {
        let at = self.at(index);
        let slot = &mut self.slots[index];
        if !slot.queued {
            slot.queued = true;
            send.push_back(at);
        }
    }

    #[inline]
    pub(in crate::server) fn handle_request(
        &mut self,
        now: Time,
        frame: Frame<'_>,
        queues: &mut Queues<'_>,
        host: &mut impl Host,
    ) {
        let header = frame.header();
        let index = usize::from(header.slot);
        let Some(slot) = self.slots.get(index) else { return };
        if header.number < slot.number {
            return;
        }
        // A request whose buffer was taken back begins anew.
        if header.number > slot.number || matches!(slot.phase, Phase::Idle) {
            // The front has given the old request up, but the worker still has
            // it: the new one waits at the front until that has ended.
            if matches!(slot.phase, Phase::Running) {
                return;
            }
            self.begin(now, index, frame, queues, host);
        } else {
            self.repeat(now, index, header, queues, host);
            self.take_segment(now, index, frame, queues.send, host);
        }
        if self.receiving != 0 {
            self.ask_for_gaps(header.counter, queues.send);
        }
    }

    /// A new request in a slot: what was there is forgotten. Nearly always it has
    /// brought its data, if it has any, and there is a buffer: then the worker has
    /// it at once.
    #[inline]
    fn begin(
        &mut self,
        now: Time,
        index: usize,
        frame: Frame<'_>,
        queues: &mut Queues<'_>,
        host: &mut impl Host,
    ) {
        if !matches!(self.slots[index].phase, Phase::Idle | Phase::Done) {
            self.give_up(index);
        }
        let slot = &mut self.slots[index];
        let Some(asked) = Asked::parse(&frame.header()) else {
            slot.begin(now, &frame.header(), Asked::NOTHING);
            return self.end(now, index, BlockError::Malformed, queues.send);
        };
        slot.begin(now, &frame.header(), asked);
        let bytes = asked.buffer_bytes();
        let buffer = match self.find_buffer(bytes, host) {
            None if bytes > 0 => return self.wait(index, queues.waiting),
            Some(buffer) if asked.carries_data() => {
                let Some(buffer) = self.receive(now, index, buffer, frame, queues.send) else {
                    return;
                };
                Some(buffer)
            }
            buffer => buffer,
        };
        self.start(now, index, buffer, queues.send, host);
    }

    /// What was under way in a slot, and the worker does not have, is dropped.
    #[cold]
    fn give_up(&mut self, index: usize) {
        self.receiving &= !(1 << index);
        self.waiting.retain(|waiting| usize::from(*waiting) != index);
        self.slots[index].phase = Phase::Idle;
    }

    /// The same request again: a read with a new attempt is read again,
    /// everything else has its outcome kept.
    fn repeat(
        &mut self,
        now: Time,
        index: usize,
        header: Header,
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
                let bytes = slot.asked.buffer_bytes();
                match self.find_buffer(bytes, host) {
                    None => self.wait(index, queues.waiting),
                    buffer => self.start(now, index, buffer, queues.send, host),
                }
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

    /// A buffer of so many bytes, if any are wanted, there is one, and nobody has
    /// waited for it before.
    #[inline]
    fn find_buffer(&mut self, bytes: usize, host: &mut impl Host) -> Option<Buffer> {
        if bytes > 0 && self.waiting.is_empty() { host.buffer(bytes, self.held()) } else { None }
    }

    /// A request gets its buffer in its turn.
    #[cold]
    fn wait(&mut self, index: usize, sessions: &mut VecDeque<SessionIndex>) {
        self.slots[index].phase = Phase::Waiting;
        self.waiting.push_back(index as u16);
        if !std::mem::replace(&mut self.listed, true) {
            sessions.push_back(self.index);
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
        let slot = &mut self.slots[index];
        if slot.asked.carries_data() {
            slot.since = now;
            // What was sent while there was no buffer for it is gone.
            let all = self.cut.all(slot.asked.bytes);
            self.await_segments(index, buffer, all, send);
        } else {
            self.start(now, index, Some(buffer), send, host);
        }
        Granted::Yes
    }

    /// Gives the request to the worker.
    #[inline(always)] // Also where a request begins, though rare places call it too.
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
        let Asked { op: WireOp::Block(op), volume, range, .. } = slot.asked else {
            return self.start_attach(now, index, buffer, send, host);
        };
        slot.phase = Phase::Running;
        slot.since = now;
        self.running += 1;
        host.start(at, Work::Block { volume, request: Request { op, range, buffer } });
    }

    /// Gives an attach or a detach to the worker.
    #[cold]
    fn start_attach(
        &mut self,
        now: Time,
        index: usize,
        body: Option<Buffer>,
        send: &mut VecDeque<SlotRef>,
        host: &mut impl Host,
    ) {
        let at = self.at(index);
        let slot = &mut self.slots[index];
        slot.since = now;
        let work = match body {
            None => Work::Detach(slot.asked.volume),
            Some(body) => match AttachRequest::parse(&body) {
                Some(request) => Work::Attach(request),
                None => return self.end(now, index, BlockError::Malformed, send),
            },
        };
        slot.phase = Phase::Running;
        self.running += 1;
        host.start(at, work);
    }

    /// Takes what the worker came to; whether the session is over, and this was
    /// the last that it waited for.
    #[inline]
    pub(in crate::server) fn handle_reply(
        &mut self,
        now: Time,
        slot: u16,
        reply: Reply,
        send: &mut VecDeque<SlotRef>,
    ) -> bool {
        let index = usize::from(slot);
        let slot = &mut self.slots[index];
        self.running -= 1;
        if self.closing {
            slot.phase = Phase::Idle;
            return self.running == 0;
        }
        let Reply { outcome, word, buffer, attach, news } = reply;
        let body = attach.map(|attach| Box::new(attach.encode()));
        slot.outcome = Outcome { code: outcome_code(outcome), word, body, news };
        match buffer {
            Some(buffer) if slot.is_read() && outcome.is_ok() => {
                let unsent = self.cut.of_blocks(slot.wanted, slot.asked.bytes);
                slot.phase = Phase::Sending { buffer, unsent };
            }
            _ => slot.phase = Phase::Done,
        }
        self.answer(now, index, send);
        false
    }

    /// Ends what the worker was not given.
    #[cold]
    fn end(&mut self, now: Time, index: usize, error: BlockError, send: &mut VecDeque<SlotRef>) {
        let slot = &mut self.slots[index];
        slot.outcome = Outcome { code: error.code(), ..Outcome::NONE };
        slot.phase = Phase::Done;
        self.answer(now, index, send);
    }

    /// Lets the answer go.
    #[inline]
    fn answer(&mut self, now: Time, index: usize, send: &mut VecDeque<SlotRef>) {
        let slot = &mut self.slots[index];
        let held_nanos = now.nanos().saturating_sub(slot.since.nanos());
        slot.held_micros = u32::try_from(held_nanos / 1000).unwrap_or(u32::MAX);
        slot.due.answer = true;
        self.enqueue(index, send);
    }
}

/// The set of partly received writes is one word.
pub(in crate::server) const MAX_SLOTS: u16 = u128::BITS as u16;
