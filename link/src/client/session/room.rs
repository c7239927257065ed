//! What may be under way at once in a session: as many requests as there are slots,
//! as many writes as the server has buffers for, and reads of as many bytes as the
//! wire takes between two turns.

use block_core::Op;
use block_core::unit::MAX_REQUEST_BYTES;

use crate::client::Volume;
use crate::client::slot::Slot;
use crate::code::UNSCHEDULED_BYTES;
use crate::segment::Segmentation;

#[derive(Debug)]
pub(in crate::client) struct Room {
    /// Free slots but the control slot, the last used on top.
    free: Vec<u16>,
    /// Requests that carry data and may be without a buffer at the server, and that
    /// are.
    credit: u16,
    unscheduled: u16,
    /// Bytes that may be asked for at once, and that have been.
    read_window: usize,
    reading: usize,
}

impl Room {
    /// For a wire that takes `window` bytes between two turns.
    pub(super) fn new(window: u32) -> Self {
        Self {
            free: Vec::new(),
            credit: 0,
            unscheduled: 0,
            read_window: (window as usize).max(MAX_REQUEST_BYTES),
            reading: 0,
        }
    }

    /// Makes room for the slots from 1 to `slots`.
    pub(super) fn add_slots(&mut self, slots: u16) {
        self.free = (1..slots).rev().collect();
    }

    pub(super) const fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Each volume can always get a slot: the last free ones are kept for
    /// those that have none.
    #[inline]
    pub(super) fn has_slot_for(&self, volume: usize, volumes: &[Volume]) -> bool {
        let kept = if self.free.len() > volumes.len() || volumes[volume].in_use == 0 {
            0
        } else {
            volumes.iter().filter(|other| other.in_use == 0).count()
        };
        self.free.len() > kept
    }

    /// Whether a request with so many bytes may be sent now.
    #[inline]
    pub(super) fn has_credit_for(&self, op: Op, bytes: usize) -> bool {
        if op == Op::Read {
            self.reading == 0 || self.reading + bytes <= self.read_window
        } else {
            !op.carries_data() || self.unscheduled < self.credit
        }
    }

    /// The server says how many requests may be without a buffer. One always may.
    #[inline]
    pub(super) fn grant(&mut self, credit: u16) {
        self.credit = credit.max(1);
    }

    /// Takes a slot, for a request that is set in it then.
    #[inline]
    pub(super) fn take_slot(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Counts the bytes of a read that goes under way.
    #[inline]
    pub(super) fn add_read(&mut self, slot: &Slot) {
        self.reading += slot.bytes;
    }

    /// A request begins to send data for which the server may have no buffer: the
    /// first of it.
    #[inline]
    pub(super) fn add_unscheduled(&mut self, slot: &mut Slot, cut: Segmentation) {
        slot.unsent = cut.within(slot.bytes, UNSCHEDULED_BYTES);
        slot.unscheduled = true;
        self.unscheduled += 1;
    }

    /// The server has a buffer for the data, or does not need it any more.
    #[inline]
    pub(super) fn scheduled(&mut self, slot: &mut Slot) {
        if slot.unscheduled {
            slot.unscheduled = false;
            self.unscheduled -= 1;
        }
    }

    /// Gives a volume's slot back. What it carried and what it had under way is the
    /// caller's.
    #[inline]
    pub(super) fn give_back(&mut self, index: usize, slot: &mut Slot, volume: &mut Volume) {
        if slot.is_read() {
            self.reading -= slot.bytes;
        } else {
            self.scheduled(slot);
        }
        volume.in_use -= 1;
        self.free.push(index as u16);
        slot.leave();
    }

    /// A new session: the server knows of nothing that is under way.
    pub(super) fn begin_anew(&mut self, credit: u16) {
        self.unscheduled = 0;
        self.grant(credit);
    }
}
