//! What goes back: outcomes, the segments of reads, the segments that are
//! missing, and how far a request is.

use std::collections::VecDeque;

use super::Session;
use crate::code::{Progress, REORDER_FRAMES};
use crate::frame::{Frame, Header, Kind};
use crate::host::SlotRef;
use crate::server::slot::{Outcome, Phase, Slot};
use crate::wire::Wire;

impl<P: Copy + Eq> Session<P> {
    pub(in crate::server) fn handle_probe(
        &mut self,
        frame: Frame<'_>,
        send: &mut VecDeque<SlotRef>,
    ) {
        let header = frame.header();
        let index = usize::from(header.slot);
        let Some(slot) = self.slots.get_mut(index) else { return };
        let mut progress = None;
        if header.number > slot.number {
            progress = Some(Progress::Unknown);
        } else if header.number < slot.number {
            return;
        } else {
            match &slot.phase {
                Phase::Receiving { received, .. } => {
                    slot.due.missing = self.cut.all(slot.asked.bytes).without(*received);
                }
                Phase::Waiting | Phase::Running | Phase::Sending { .. } => {
                    progress = Some(Progress::Running);
                }
                Phase::Done if slot.is_read() && slot.outcome.code == 0 => {
                    progress = Some(Progress::Finished);
                }
                Phase::Done => slot.due.answer = true,
                Phase::Idle => progress = Some(Progress::Unknown),
            }
        }
        if progress.is_some() {
            slot.due.progress = progress;
            slot.due.progress_number = header.number;
        }
        self.enqueue(index, send);
    }

    /// Asks for what a gap shows to be lost: frames sent well after it have
    /// come.
    pub(super) fn ask_for_gaps(&mut self, counter: u64, send: &mut VecDeque<SlotRef>) {
        let mut receiving = self.receiving;
        while receiving != 0 {
            let index = receiving.trailing_zeros() as usize;
            receiving &= receiving - 1;
            let slot = &mut self.slots[index];
            let Phase::Receiving { received, .. } = &slot.phase else { continue };
            let gap = counter.saturating_sub(slot.last_counter) > REORDER_FRAMES;
            if !received.is_empty() && gap {
                slot.due.missing = self.cut.all(slot.asked.bytes).without(*received);
                slot.last_counter = counter;
                self.enqueue(index, send);
            }
        }
    }

    /// Says that the session runs.
    pub(in crate::server) fn say_opened<W: Wire<Peer = P>>(&mut self, wire: &mut W) {
        let count = self.cut.size() as u32;
        let header = Header { session: self.id, count, ..Header::default() };
        self.guard.send(wire, &self.peer, &header, Kind::Opened, &[]);
    }

    /// Sends what is due for a slot; how many frames.
    #[inline]
    pub(in crate::server) fn transmit<W: Wire<Peer = P>>(
        &mut self,
        slot: u16,
        wire: &mut W,
    ) -> usize {
        let index = usize::from(slot);
        let entry = &mut self.slots[index];
        entry.queued = false;
        if self.closing {
            return 0;
        }
        let mut frames = if entry.due.is_more() { self.transmit_more(slot, wire) } else { 0 };
        let base = self.header(slot);
        let entry = &mut self.slots[index];
        if !std::mem::take(&mut entry.due.answer) {
            return frames;
        }
        let Outcome { code: op, word, news, .. } = entry.outcome;
        let mut answer = Header { op, count: entry.held_micros, word, news, ..base };
        let mut send = |header: &Header, payload: &[u8]| {
            frames += 1;
            self.guard.send(wire, &self.peer, header, Kind::Answer, payload);
        };
        match &mut entry.phase {
            Phase::Sending { buffer, unsent } => {
                let data = &buffer[entry.asked.data_start()..];
                while let Some(segment) = unsent.pop() {
                    let range = self.cut.range(segment, entry.asked.bytes);
                    answer.offset = range.start as u32;
                    send(&answer, &data[range]);
                }
                entry.phase = Phase::Done;
            }
            Phase::Done => {
                let body = entry.outcome.body.as_deref();
                send(&answer, body.map_or(&[], |body| &body[..]));
            }
            _ => {}
        }
        frames
    }

    /// Sends what is due besides the answer: how far the request is, and what it
    /// lacks; how many frames.
    #[cold]
    fn transmit_more<W: Wire<Peer = P>>(&mut self, slot: u16, wire: &mut W) -> usize {
        let header = self.header(slot);
        let entry = &mut self.slots[usize::from(slot)];
        let mut frames = 0;
        let mut send = |header: &Header, kind, payload: &[u8]| {
            frames += 1;
            self.guard.send(wire, &self.peer, header, kind, payload);
        };
        if let Some(progress) = entry.due.progress.take() {
            let number = entry.due.progress_number;
            send(&Header { number, op: progress as u8, ..header }, Kind::State, &[]);
        }
        let missing = std::mem::take(&mut entry.due.missing);
        if !missing.is_empty() && matches!(entry.phase, Phase::Receiving { .. }) {
            send(&header, Kind::Missing, &missing.0.to_le_bytes());
        }
        frames
    }

    /// What all frames of a slot say.
    #[inline]
    fn header(&self, slot: u16) -> Header {
        let Slot { number, attempt, .. } = self.slots[usize::from(slot)];
        let (session, volume) = (self.id, self.credit);
        Header { session, number, slot, attempt, volume, ..Header::default() }
    }
}
