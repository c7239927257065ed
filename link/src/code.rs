//! Codes and limits that both ends of a session agree on.

use block_core::Op;

/// The operation byte of an attach.
pub(crate) const ATTACH: u8 = 64;

/// The operation byte of a detach.
pub(crate) const DETACH: u8 = 65;

/// Data of a write that goes out before the server has granted it a buffer:
/// small writes take one way, not two.
pub(crate) const UNSCHEDULED_BYTES: usize = 8192;

/// How many later frames must have come before a gap counts as a loss. A
/// network that reorders by more costs needless repeats, not correctness.
pub(crate) const REORDER_FRAMES: u64 = 32;

/// What a request frame asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireOp {
    Block(Op),
    Attach,
    Detach,
}

impl WireOp {
    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            ATTACH => Some(Self::Attach),
            DETACH => Some(Self::Detach),
            _ => match Op::from_code(code) {
                Some(op) => Some(Self::Block(op)),
                None => None,
            },
        }
    }
}

/// How far a request is that has neither an outcome nor a gap to tell of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Progress {
    /// It never arrived.
    Unknown = 1,
    /// It waits for a buffer or runs.
    Running = 2,
    /// A read whose data has been sent: ask for it again, by a new attempt.
    Finished = 3,
}

impl Progress {
    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Unknown),
            2 => Some(Self::Running),
            3 => Some(Self::Finished),
            _ => None,
        }
    }
}
