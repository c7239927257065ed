//! What requests bring: their data, nearly always in one frame, else segment by
//! segment, in any order.

use std::collections::VecDeque;

use block_core::{Buffer, Time};

use super::Session;
use crate::code::UNSCHEDULED_BYTES;
use crate::frame::Frame;
use crate::host::{Host, SlotRef};
use crate::segment::SegmentSet;
use crate::server::slot::{Due, Phase};

impl<P: Copy + Eq> Session<P> {
    /// The buffer of a request that has just begun, when all its data came with it.
    /// Otherwise it keeps the buffer until it has.
    #[inline]
    pub(super) fn receive(
        &mut self,
        now: Time,
        index: usize,
        mut buffer: Buffer,
        frame: Frame<'_>,
        send: &mut VecDeque<SlotRef>,
    ) -> Option<Buffer> {
        let asked = &self.slots[index].asked;
        let (offset, bytes) = (frame.header().offset as usize, asked.bytes);
        if frame.payload.len() == bytes && self.cut.index(offset, bytes, bytes).is_some() {
            buffer[asked.data_start()..][..bytes].copy_from_slice(frame.payload);
            return Some(buffer);
        }
        let unscheduled = self.cut.within(bytes, UNSCHEDULED_BYTES);
        self.await_segments(index, buffer, self.cut.all(bytes).without(unscheduled), send);
        self.put_segment(now, index, frame)
    }

    /// From now on the request's segments are taken, and these are asked for.
    pub(super) fn await_segments(
        &mut self,
        index: usize,
        buffer: Buffer,
        missing: SegmentSet,
        send: &mut VecDeque<SlotRef>,
    ) {
        let slot = &mut self.slots[index];
        slot.phase = Phase::Receiving { buffer, received: SegmentSet::EMPTY };
        self.receiving |= 1 << index;
        if !missing.is_empty() {
            slot.due.missing = missing;
            self.enqueue(index, send);
        }
    }

    /// One more frame of a request that has begun.
    pub(super) fn take_segment(
        &mut self,
        now: Time,
        index: usize,
        frame: Frame<'_>,
        send: &mut VecDeque<SlotRef>,
        host: &mut impl Host,
    ) {
        if let Some(buffer) = self.put_segment(now, index, frame) {
            self.start(now, index, Some(buffer), send, host);
        }
    }

    /// Copies a segment to its place; the buffer when it was the last one.
    fn put_segment(&mut self, now: Time, index: usize, frame: Frame<'_>) -> Option<Buffer> {
        let slot = &mut self.slots[index];
        let asked = slot.asked;
        let Phase::Receiving { buffer, received } = &mut slot.phase else { return None };
        let (offset, len) = (frame.header().offset as usize, frame.payload.len());
        let segment = self.cut.index(offset, len, asked.bytes)?;
        slot.last_counter = frame.header().counter;
        if received.contains(segment) {
            return None;
        }
        // Only what is new is a sign that the rest will come.
        slot.since = now;
        buffer[asked.data_start() + offset..][..len].copy_from_slice(frame.payload);
        received.insert(segment);
        if *received != self.cut.all(asked.bytes) {
            return None;
        }
        self.receiving &= !(1 << index);
        slot.due.missing = SegmentSet::EMPTY;
        match std::mem::replace(&mut slot.phase, Phase::Idle) {
            Phase::Receiving { buffer, .. } => Some(buffer),
            _ => None,
        }
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
}
