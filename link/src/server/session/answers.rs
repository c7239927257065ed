//! What goes back: outcomes, the segments of reads, the segments that are
//! missing, and how far a request is.

use std::collections::VecDeque;

use super::Session;
use crate::code::{Progress, REORDER_FRAMES};
use crate::frame::{Frame, Header, Kind};
use crate::host::SlotRef;
use crate::server::slot::{Phase, Slot};
use crate::wire::Wire;

impl<P: Copy + Eq> Session<P> {
    pub(in crate::server) fn handle_probe(
        &mut self,
        frame: &Frame<'_>,
        send: &mut VecDeque<SlotRef>,
    ) {
        let header = &frame.header;
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
        self.guard.send(wire, self.peer, &header, Kind::Opened, &[]);
    }

    /// Sends what is due for a slot; how many frames.
    #[inline]
    pub(in crate::server) fn transmit<W: Wire<Peer = P>>(
        &mut self,
        slot: u16,
        wire: &mut W,
    ) -> usize {
        let entry = &mut self.slots[usize::from(slot)];
        entry.queued = false;
        if self.closing {
            return 0;
        }
        let header = Header {
            session: self.id,
            number: entry.number,
            slot,
            attempt: entry.attempt,
            volume: self.credit,
            ..Header::default()
        };
        let mut frames = 0;
        let (guard, peer) = (&mut self.guard, self.peer);
        let mut send = |header: &Header, kind, payload: &[u8]| {
            frames += 1;
            guard.send(wire, peer, header, kind, payload);
        };
        if entry.due.is_more() {
            transmit_more(entry, &header, &mut send);
        }
        if !std::mem::take(&mut entry.due.answer) {
            return frames;
        }
        let mut answer = Header {
            op: entry.outcome.code,
            count: entry.held_micros,
            word: entry.outcome.word,
            news: entry.outcome.news,
            ..header
        };
        match &mut entry.phase {
            Phase::Sending { buffer, unsent } => {
                let data = &buffer[entry.asked.data_start()..];
                while let Some(segment) = unsent.pop() {
                    let range = self.cut.range(segment, entry.asked.bytes);
                    answer.offset = range.start as u32;
                    send(&answer, Kind::Answer, &data[range]);
                }
                entry.phase = Phase::Done;
            }
            Phase::Done => {
                let body = entry.outcome.body.as_deref();
                send(&answer, Kind::Answer, body.map_or(&[], |body| &body[..]));
            }
            _ => {}
        }
        frames
    }
}

/// What is due besides the answer: how far a request is, and what it lacks.
#[cold]
fn transmit_more(slot: &mut Slot, header: &Header, mut send: impl FnMut(&Header, Kind, &[u8])) {
    if let Some(progress) = slot.due.progress.take() {
        let number = slot.due.progress_number;
        send(&Header { number, op: progress as u8, ..*header }, Kind::State, &[]);
    }
    let missing = std::mem::take(&mut slot.due.missing);
    if !missing.is_empty() && matches!(slot.phase, Phase::Receiving { .. }) {
        send(header, Kind::Missing, &missing.0.to_le_bytes());
    }
}
