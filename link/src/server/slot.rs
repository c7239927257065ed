//! A slot at the server: the newest request that the front put there.

use block_core::unit::MAX_REQUEST_SECTORS;
use block_core::{BLOCK_SIZE, Buffer, Op, SectorRange, Time};

use crate::attach::BODY_BYTES;
use crate::code::{Progress, WireOp};
use crate::frame::Header;
use crate::path::VolumeHandle;
use crate::segment::SegmentSet;

/// How far the request is.
#[derive(Debug)]
pub(super) enum Phase {
    /// Nothing has run here yet.
    Idle,
    /// It waits for a buffer, in the server's queue.
    Waiting,
    /// It has a buffer and lacks data.
    Receiving { buffer: Buffer, received: SegmentSet },
    /// The worker has it.
    Running,
    /// A read has ended; its segments leave.
    Sending { buffer: Buffer, unsent: SegmentSet },
    /// It has ended; the outcome is kept, not the data.
    Done,
}

/// What the request asks for, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) op: WireOp,
    pub(super) volume: VolumeHandle,
    pub(super) range: Option<SectorRange>,
    /// Bytes that it carries or asks for.
    pub(super) bytes: usize,
}

/// What the request came to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) code: u8,
    pub(super) word: u64,
    /// Of an attach: what its answer carries.
    pub(super) body: Option<Box<[u8; BODY_BYTES]>>,
    pub(super) news: bool,
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) number: u64,
    pub(super) attempt: u16,
    pub(super) phase: Phase,
    pub(super) asked: Asked,
    /// Of a read: the blocks that the front wants of this attempt.
    pub(super) wanted: u32,
    /// Of what has ended; until then of something earlier.
    pub(super) outcome: Outcome,
    /// When it could run, then how long that took.
    pub(super) since: Time,
    pub(super) held_micros: u32,
    /// Of a write: the counter of the last frame that brought a segment.
    pub(super) last_counter: u64,
    pub(super) due: Due,
    pub(super) queued: bool,
}

/// Frames to send for a slot, apart from a read's segments.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Due {
    pub(super) answer: bool,
    pub(super) progress: Option<Progress>,
    /// The number that the progress is said of; it may not be the slot's.
    pub(super) progress_number: u64,
    /// The segments to ask for.
    pub(super) missing: SegmentSet,
}

impl Due {
    /// Whether there is more to say than the answer.
    #[inline]
    pub(super) const fn is_more(&self) -> bool {
        self.progress.is_some() || !self.missing.is_empty()
    }
}

impl Slot {
    pub(super) fn idle() -> Self {
        Self {
            number: 0,
            attempt: 0,
            phase: Phase::Idle,
            asked: Asked::NOTHING,
            wanted: 0,
            outcome: Outcome::NONE,
            since: Time::ZERO,
            held_micros: 0,
            last_counter: 0,
            due: Due::default(),
            queued: false,
        }
    }

    /// Forgets what was here, of which nothing is under way: from now on this is
    /// the slot's request.
    #[inline]
    pub(super) fn begin(&mut self, now: Time, header: &Header, asked: Asked) {
        self.number = header.number;
        self.attempt = header.attempt;
        self.asked = asked;
        self.since = now;
        self.wanted = header.offset;
        self.due = Due::default();
    }

    pub(super) fn is_read(&self) -> bool {
        self.asked.op == WireOp::Block(Op::Read)
    }
}

impl Outcome {
    pub(super) const NONE: Self = Self { code: 0, word: 0, body: None, news: false };
}

impl Asked {
    /// What a slot holds that was asked for nothing, or for nonsense.
    pub(super) const NOTHING: Self =
        Self { op: WireOp::Block(Op::Flush), volume: VolumeHandle(0), range: None, bytes: 0 };

    /// What a request's header asks for, or `None` when it contradicts itself.
    #[inline]
    pub(super) fn parse(header: &Header) -> Option<Self> {
        let op = WireOp::from_code(header.op)?;
        let range = SectorRange::new(header.word, header.count);
        let (range, bytes) = match op {
            WireOp::Attach => (None, (header.count as usize == BODY_BYTES).then_some(BODY_BYTES)?),
            WireOp::Detach | WireOp::Block(Op::Flush) => (None, 0),
            WireOp::Block(Op::Read | Op::Write | Op::WriteThrough) => {
                let range = range.filter(|range| range.count() <= MAX_REQUEST_SECTORS)?;
                (Some(range), range.bytes() as usize)
            }
            WireOp::Block(
                Op::Discard | Op::WriteZeroes | Op::WriteZeroesUnmap | Op::WriteZeroesThrough,
            ) => (Some(range?), 0),
        };
        Some(Self { op, volume: VolumeHandle(header.volume), range, bytes })
    }

    /// Whether the request carries data.
    pub(super) fn carries_data(&self) -> bool {
        match self.op {
            WireOp::Attach => true,
            WireOp::Detach => false,
            WireOp::Block(op) => op.carries_data(),
        }
    }

    /// Bytes of the buffer that the request takes, zero for none: all blocks
    /// that it touches.
    #[inline]
    pub(super) fn buffer_bytes(&self) -> usize {
        match (self.op, self.range) {
            (WireOp::Attach, _) => BLOCK_SIZE,
            (WireOp::Block(Op::Read | Op::Write | Op::WriteThrough), Some(range)) => {
                (range.offset_in_block() + self.bytes).next_multiple_of(BLOCK_SIZE)
            }
            _ => 0,
        }
    }

    /// Where the data begins in the buffer.
    pub(super) fn data_start(&self) -> usize {
        self.range.map_or(0, SectorRange::offset_in_block)
    }
}
