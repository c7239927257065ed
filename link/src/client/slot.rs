//! A slot at the front: one outstanding request and what is known of it.

use std::time::Duration;

use block_core::{Buffer, Op, Time};

use super::kept::Mark;
use super::session::Ring;
use crate::attach::BODY_BYTES;
use crate::path::Part;
use crate::segment::{ALL_BLOCKS, SegmentSet, Segmentation};

/// How often the same segments may fail to come before they count as too large
/// for the path. Of a path that loses every second frame that is one request in
/// 65,536, and only a new handshake.
const VAIN_REPEATS: u8 = 16;

/// For how long they must have failed: a receiver that is short of memory for a
/// moment drops large frames before small ones.
const VAIN_SPAN: Duration = Duration::from_millis(100);

/// What a slot is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Free,
    /// A guest's request.
    Part(Part),
    /// A kept change of the volume with that index, sent again.
    Replay {
        volume: usize,
        entry: usize,
    },
    /// A flush of the client's own, for the volume with that index.
    Flush(usize),
    /// Attaching the volume with that index; only in slot 0.
    Attach(usize),
    /// Detaching the volume with that index; only in slot 0.
    Detach(usize),
}

impl Use {
    /// The volume whose request it is; none for attach and detach.
    pub(super) fn volume(self) -> Option<usize> {
        match self {
            Self::Part(part) => Some(usize::from(part.volume.0)),
            Self::Replay { volume, .. } | Self::Flush(volume) => Some(volume),
            Self::Free | Self::Attach(_) | Self::Detach(_) => None,
        }
    }
}

/// What a slot is to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Nothing,
    /// The question how far the request is.
    Probe,
    /// The request: of one that carries data, the segments that are unsent. Nothing
    /// is asked then.
    Request,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) purpose: Use,
    /// Zero while the slot is free: what speaks of no request finds no slot.
    pub(super) number: u64,
    pub(super) attempt: u16,
    /// The private copy of what the request carries. Frames are made from it,
    /// and made anew for a resend: what the guest does to its memory meanwhile
    /// changes nothing.
    pub(super) data: Option<Buffer>,
    /// What an attach carries. Not a private copy: those may all be held by
    /// writes that wait for this very attach.
    pub(super) body: Option<[u8; BODY_BYTES]>,
    /// Bytes of data carried or asked for.
    pub(super) bytes: usize,
    /// Of what carries data, while it is due: the segments to send.
    pub(super) unsent: SegmentSet,
    /// Of a read: what has come, in this attempt or in blocks that an earlier
    /// one completed.
    pub(super) received: SegmentSet,
    pub(super) due: Due,
    /// Whether the session's queue holds this slot.
    pub(super) queued: bool,
    /// When the request was sent, as long as it was sent once.
    pub(super) timed_from: Option<Time>,
    /// When to ask how far it is; [`NEVER`] before it is sent.
    pub(super) deadline: Time,
    pub(super) doublings: u8,
    /// Whether the server has not yet said that it has a buffer for the write.
    pub(super) unscheduled: bool,
    /// Of a flush: what was answered before it was sent.
    pub(super) covers: Mark,
    /// Of a read of which some segments have come: the counter of the last frame
    /// that brought one.
    pub(super) last_counter: u64,
    pub(super) lack: Lack,
}

/// After every other moment.
pub(super) const NEVER: Time = Time::from_nanos(u64::MAX);

/// What of a request did not come although it was sent, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lack {
    segments: SegmentSet,
    since: Time,
    /// The rest means something only when this is not zero.
    repeats: u8,
}

impl Lack {
    const NONE: Self = Self { segments: SegmentSet::EMPTY, since: Time::ZERO, repeats: 0 };

    /// Notes that `segments` have to be sent once more. Whether the same ones
    /// did not come so often and for so long that chance does not explain it.
    pub(super) fn note(&mut self, now: Time, segments: SegmentSet) -> bool {
        if self.repeats == 0 || self.segments != segments {
            *self = Self { segments, since: now, repeats: 0 };
        }
        self.repeats = self.repeats.saturating_add(1);
        self.repeats > VAIN_REPEATS && now - self.since > VAIN_SPAN
    }
}

impl Slot {
    pub(super) const fn free() -> Self {
        Self {
            purpose: Use::Free,
            number: 0,
            attempt: 0,
            data: None,
            body: None,
            bytes: 0,
            unsent: SegmentSet::EMPTY,
            received: SegmentSet::EMPTY,
            due: Due::Nothing,
            queued: false,
            timed_from: None,
            deadline: NEVER,
            doublings: 0,
            unscheduled: false,
            covers: Mark::START,
            last_counter: 0,
            lack: Lack::NONE,
        }
    }

    /// Starts what the slot is used for: its request is to be sent. What a request
    /// says and carries is set already, and what says that none is under way was
    /// set by [`Slot::leave`].
    #[inline]
    pub(super) fn begin(&mut self, number: u64) {
        self.number = number;
        self.attempt = 0;
        self.received = SegmentSet::EMPTY;
        self.due = Due::Request;
        self.timed_from = None;
        self.doublings = 0;
        self.unscheduled = false;
        self.lack.repeats = 0;
    }

    /// Ends what the slot is used for, after what it carried was taken: nothing of it
    /// is sent or waited for. The rest is forgotten when the slot is used again.
    #[inline]
    pub(super) fn leave(&mut self) {
        debug_assert!(self.data.is_none());
        self.purpose = Use::Free;
        self.number = 0;
        self.deadline = NEVER;
    }

    /// Puts the slot, whose number that is, into the queue of those that have frames
    /// to send, if it is not there.
    #[inline]
    pub(super) fn enter<const N: usize>(&mut self, index: u16, queue: &mut Ring<u16, N>) {
        if !self.queued {
            self.queued = true;
            queue.push(index);
        }
    }

    /// The bytes that the request carries.
    #[inline]
    pub(super) fn carried(&self) -> Option<&[u8]> {
        match (&self.data, &self.body) {
            (Some(data), _) => Some(data),
            (None, Some(body)) => Some(body),
            (None, None) => None,
        }
    }

    #[inline]
    pub(super) fn is_read(&self) -> bool {
        matches!(self.purpose, Use::Part(Part { op: Op::Read, .. }))
    }

    /// Asks for what is missing of a read once more. A block of which only
    /// part has come is asked for whole: two attempts may read different data,
    /// and a block must not mix them.
    pub(super) fn read_again(&mut self, cut: Segmentation) {
        let again = if self.is_block_aligned() { self.wanted(cut) } else { ALL_BLOCKS };
        self.received = self.received.without(cut.of_blocks(again, self.bytes));
        self.attempt = self.attempt.wrapping_add(1);
        self.due = Due::Request;
        self.timed_from = None;
    }

    /// The blocks of the data that a read still wants, as its request says it.
    #[inline]
    pub(super) fn wanted(&self, cut: Segmentation) -> u32 {
        if self.received.is_empty() {
            return ALL_BLOCKS;
        }
        cut.blocks(cut.all(self.bytes).without(self.received), self.bytes)
    }

    fn is_block_aligned(&self) -> bool {
        matches!(self.purpose, Use::Part(part)
            if part.range.is_some_and(|range| range.offset_in_block() == 0))
    }
}
