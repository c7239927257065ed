//! What comes: answers, gaps, and how far a request is.

use std::time::Duration;

use block_core::{BlockError, Op, Time};

use super::recovery::drain;
use super::{CONTROL, Session};
use crate::attach::{AttachReply, Refused};
use crate::client::slot::{Due, Slot, Use};
use crate::client::volume::{Recovery, judge};
use crate::client::{Volume, VolumeState};
use crate::code::{Progress, REORDER_FRAMES, UNSCHEDULED_BYTES};
use crate::frame::{Frame, Header};
use crate::path::{Guest, Part, Token};
use crate::segment::{SegmentSet, Segmentation};
use crate::wire::Peer;

/// How long a server that could not attach or detach is left alone.
pub(super) const RETRY_PAUSE: Duration = Duration::from_secs(1);

impl<P: Peer> Session<P> {
    /// The slot that a frame speaks of, if it speaks of what the slot does now.
    #[inline]
    pub(super) fn slot_of(&self, header: &Header) -> Option<usize> {
        let index = usize::from(header.slot);
        let slot = self.slots.get(index)?;
        (slot.number == header.number && header.number != 0).then_some(index)
    }

    #[inline]
    pub(super) fn handle_answer(
        &mut self,
        now: Time,
        frame: &Frame<'_>,
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        let header = &frame.header();
        self.room.grant(header.volume);
        let Some(index) = self.slot_of(header) else { return };
        let mut slot = &mut self.slots[index];
        let outcome = BlockError::from_code(header.op);
        let Use::Part(Part { token, op, volume: handle, .. }) = slot.purpose else {
            return self.own_answered(now, index, outcome, *frame, volumes, guest);
        };
        let brings_data = op == Op::Read && outcome.is_ok();
        // Data of an earlier attempt must not mix with this one's; all of it at
        // once does not, and an error ends the request whichever attempt met it.
        let is_all = header.offset == 0 && frame.payload.len() == slot.bytes;
        if brings_data && !is_all && slot.attempt != header.attempt {
            return;
        }
        let volume = &mut volumes[usize::from(handle.0)];
        if header.news {
            volume.has_news = true;
        }
        if let Some(sent) = slot.timed_from.take() {
            self.trip.sample(sent, now, header.count);
        }
        if brings_data && is_all {
            guest.place(token, 0, frame.payload);
        } else if brings_data {
            if !self.place(now, index, token, *frame, guest) {
                return;
            }
            slot = &mut self.slots[index];
        }
        let may_tell_of_loss = outcome == Err(BlockError::Lost)
            || op == Op::Flush
            || volume.recovery == Recovery::Draining;
        if may_tell_of_loss && !is_last_word(now, op, outcome, header.word, volume) {
            self.park_slot(index, volumes);
        } else {
            if op != Op::Read {
                end_change_or_flush(outcome, slot, volume);
            }
            self.room.give_back(index, slot, volume);
            guest.complete(token, outcome);
        }
        if self.partly_read != 0 {
            self.partly_read &= !(1 << index);
            if brings_data {
                self.read_gaps_again(now, header.counter);
            }
        }
        self.ask_for_overtaken(now, header.number);
    }

    /// Puts one verified segment of a read where it belongs; whether all of them have
    /// come.
    #[inline(never)]
    fn place(
        &mut self,
        now: Time,
        index: usize,
        token: Token,
        frame: Frame<'_>,
        guest: &mut impl Guest,
    ) -> bool {
        let slot = &mut self.slots[index];
        let (offset, counter) = (frame.header().offset as usize, frame.header().counter);
        let segment = self.cut.index(offset, frame.payload.len(), slot.bytes);
        if let Some(segment) = segment.filter(|segment| !slot.received.contains(*segment)) {
            guest.place(token, offset, frame.payload);
            slot.received.insert(segment);
            slot.last_counter = counter;
            slot.doublings = 0;
            if slot.received == self.cut.all(slot.bytes) {
                return true;
            }
            self.partly_read |= 1 << index;
        }
        self.read_gaps_again(now, counter);
        false
    }

    /// Reads again what a gap shows to be lost: frames sent well after it have
    /// come.
    #[inline(never)]
    pub(super) fn read_gaps_again(&mut self, now: Time, counter: u64) {
        let mut partly = self.partly_read;
        while partly != 0 {
            let index = partly.trailing_zeros() as usize;
            partly &= partly - 1;
            let slot = &mut self.slots[index];
            if counter.saturating_sub(slot.last_counter) > REORDER_FRAMES {
                slot.last_counter = counter;
                self.read_again(now, index);
                self.enqueue(index);
            }
        }
    }

    pub(super) fn read_again(&mut self, now: Time, index: usize) {
        let slot = &self.slots[index];
        self.note_lack(now, index, self.cut.all(slot.bytes).without(slot.received));
        self.slots[index].read_again(self.cut);
        self.partly_read &= !(1 << index);
    }

    /// Segments have to be sent again. If they never come, while the questions
    /// for them do, the path has become too narrow for them.
    fn note_lack(&mut self, now: Time, index: usize, missing: SegmentSet) {
        let slot = &mut self.slots[index];
        let smallest = Segmentation::SMALLEST.size();
        let is_large = |segment| self.cut.range(segment, slot.bytes).len() > smallest;
        self.too_wide |= slot.lack.note(now, missing) && missing.iter().any(is_large);
    }

    /// A request was answered that no guest made.
    #[cold]
    fn own_answered(
        &mut self,
        now: Time,
        index: usize,
        outcome: Result<(), BlockError>,
        frame: Frame<'_>,
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        let slot = &mut self.slots[index];
        if let Some(sent) = slot.timed_from.take() {
            self.trip.sample(sent, now, frame.header().count);
        }
        match slot.purpose {
            Use::Free | Use::Part(_) => {}
            Use::Replay { .. } => self.replayed(now, index, outcome, volumes, guest),
            Use::Flush(_) => {
                self.flush_answered(now, index, outcome, frame.header().word, volumes);
            }
            Use::Attach(volume) => {
                self.vacate_control();
                self.attached(now, volume, outcome, frame.payload, volumes, guest);
            }
            Use::Detach(volume) => {
                self.vacate_control();
                match outcome {
                    // Not attached any more is as good.
                    Ok(()) | Err(BlockError::NotAttached) => {
                        volumes[volume].state = VolumeState::Detached;
                    }
                    Err(BlockError::Lost) => {
                        drain(now, &mut volumes[volume], Some(BlockError::Lost));
                        self.note_retry(volumes[volume].retry_at);
                    }
                    Err(_) => self.retry_later(now, &mut volumes[volume]),
                }
            }
        }
        self.ask_for_overtaken(now, frame.header().number);
    }

    /// Asks for the volume again in a while.
    fn retry_later(&mut self, now: Time, volume: &mut Volume) {
        let at = now + RETRY_PAUSE;
        volume.retry_at = Some(at);
        self.next_deadline = self.next_deadline.min(at);
    }

    pub(super) fn attached(
        &mut self,
        now: Time,
        index: usize,
        outcome: Result<(), BlockError>,
        payload: &[u8],
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        let volume = &mut volumes[index];
        if !matches!(volume.state, VolumeState::Waiting | VolumeState::Attached(_)) {
            return;
        }
        // An answer that cannot be read, or a server that could not decide, is
        // asked again.
        let Some(reply) = outcome.ok().and_then(|()| AttachReply::parse(payload)) else {
            return self.retry_later(now, volume);
        };
        if let AttachReply::Refused(refused) = reply
            && volume.known.is_some()
            && refused.may_pass()
        {
            tracing::warn!(volume = %volume.name, "not attached now, asking again: {refused}");
            return self.retry_later(now, volume);
        }
        if volume.leaving && matches!(reply, AttachReply::Refused(Refused::NotYours)) {
            // Given back already; the answer to that was lost with the server.
            volume.state = VolumeState::Detached;
            return self.stop_volume(index, volumes, guest);
        }
        let before = std::mem::replace(&mut volume.state, judge(volume.known, &reply));
        match (volume.state, reply) {
            (VolumeState::Attached(attached), _) => {
                let known = volume.known.replace(attached);
                self.resized |= known.is_some_and(|known| known.sectors != attached.sectors);
                tracing::info!(volume = %volume.name, sectors = attached.sectors, "attached");
                match before {
                    VolumeState::Attached(then) if then.verifier == attached.verifier => {}
                    VolumeState::Attached(_) => drain(now, volume, None),
                    _ => volume.begin_recovery(&attached),
                }
            }
            (_, AttachReply::Elsewhere { port }) => self.redirect = Some((index, port)),
            (VolumeState::Changed, _) => {
                tracing::error!(
                    volume = %volume.name,
                    "the volume was restored, imported, detached by force, or given back by a \
                     later start of this front, while this one was away: its disk stops; start \
                     the guest anew to use it"
                );
                self.stop_volume(index, volumes, guest);
            }
            (VolumeState::Refused(refused), _) => {
                tracing::error!(volume = %volume.name, "not attached: {refused}");
                self.stop_volume(index, volumes, guest);
            }
            _ => {}
        }
    }

    /// Ends all parts of a volume.
    pub(in crate::client) fn fail_parts(
        &mut self,
        volume: usize,
        error: BlockError,
        volumes: &mut [Volume],
        guest: &mut impl Guest,
    ) {
        for index in 0..self.slots.len() {
            if let Use::Part(_) = self.slots[index].purpose
                && self.slots[index].purpose.volume() == Some(volume)
            {
                self.park_slot(index, volumes);
            }
        }
        while let Some((part, data)) = volumes[volume].parked.pop() {
            if let Some(range) = part.range.filter(|_| part.op.changes()) {
                volumes[volume].end_change(part.op, range, data, Err(error));
            }
            guest.complete(part.token, Err(error));
        }
    }

    /// Frees the control slot.
    fn vacate_control(&mut self) {
        let slot = &mut self.slots[usize::from(CONTROL)];
        self.room.scheduled(slot);
        slot.leave();
    }

    #[inline(never)]
    pub(super) fn handle_missing(&mut self, now: Time, frame: Frame<'_>) {
        let Some(index) = self.slot_of(&frame.header()) else { return };
        let Some(set) = frame.payload.first_chunk() else { return };
        let slot = &mut self.slots[index];
        if slot.carried().is_none() {
            return;
        }
        self.room.scheduled(slot);
        slot.unsent = SegmentSet(u128::from_le_bytes(*set)).and(self.cut.all(slot.bytes));
        slot.due = if slot.unsent.is_empty() { Due::Nothing } else { Due::Request };
        slot.timed_from = None;
        slot.doublings = 0;
        let missing = slot.unsent;
        self.note_lack(now, index, missing);
        self.await_answer(now, index);
        self.enqueue(index);
    }

    pub(super) fn handle_state(&mut self, now: Time, frame: Frame<'_>) {
        let Some(index) = self.slot_of(&frame.header()) else { return };
        let slot = &mut self.slots[index];
        match Progress::from_code(frame.header().op) {
            Some(Progress::Unknown) => {
                slot.due = Due::Request;
                slot.timed_from = None;
                if slot.carried().is_some() {
                    let first = self.cut.within(slot.bytes, UNSCHEDULED_BYTES);
                    slot.unsent = first;
                    self.note_lack(now, index, first);
                }
            }
            Some(Progress::Finished) if slot.is_read() => {
                // Else our wish to have it read again was lost: repeat that.
                slot.due = Due::Request;
                if frame.header().attempt == slot.attempt {
                    self.read_again(now, index);
                }
            }
            _ => return,
        }
        // The server answers: what is lost now was not lost to congestion that
        // a longer silence would end.
        self.slots[index].doublings = 0;
        self.await_answer(now, index);
        self.enqueue(index);
    }
}

/// Whether an answer ends its request. One that shows that the server lost changes
/// does not: the request runs again when they are back.
#[inline(never)]
fn is_last_word(
    now: Time,
    op: Op,
    outcome: Result<(), BlockError>,
    word: u64,
    volume: &mut Volume,
) -> bool {
    let flushed = op == Op::Flush && outcome.is_ok();
    if outcome == Err(BlockError::Lost) || flushed && !volume.believes(word) {
        drain(now, volume, outcome.err());
    }
    let is_stale = volume.recovery == Recovery::Draining && !op.changes();
    outcome != Err(BlockError::Lost) && !(outcome.is_ok() && is_stale)
}

/// Takes what a change or a flush has done to its volume.
#[inline(never)]
fn end_change_or_flush(outcome: Result<(), BlockError>, slot: &mut Slot, volume: &mut Volume) {
    let Use::Part(Part { op, range, .. }) = slot.purpose else { return };
    if let Some(range) = range.filter(|_| op.changes()) {
        volume.end_change(op, range, slot.data.take(), outcome);
    } else if op == Op::Flush && outcome.is_ok() {
        volume.flushed(slot.covers);
    }
}
