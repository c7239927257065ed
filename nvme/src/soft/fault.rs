//! Switches: what can go wrong on request.

use crate::completion::Status;

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next `count` I/O commands are fetched and never completed, until
    /// they are aborted, their queue is deleted or the controller is reset.
    Stick {
        /// How many.
        count: u32,
    },
    /// The same, and an abort does not help.
    StickFast {
        /// How many.
        count: u32,
    },
    /// The next `count` I/O commands with this opcode end with this status
    /// and do nothing.
    Fail {
        /// The opcode.
        opcode: u8,
        /// The status.
        status: Status,
        /// How many.
        count: u32,
    },
    /// The controller reports a fatal status and does nothing until a reset.
    Fatal,
    /// The controller does nothing any more, not even stop: its status stays
    /// what it is.
    Hang,
    /// The controller is pulled out: registers read as all ones.
    Removal,
    /// A controller that was pulled out or hangs has its power back. What was
    /// not flushed is lost as in a power cut.
    Return {
        /// What is lost follows from it.
        seed: u64,
    },
    /// The first namespace has only so many logical blocks left when it is
    /// asked next.
    Shrink {
        /// How many.
        blocks: u64,
    },
    /// From now on a reset costs what was not flushed, as a power cut does.
    LossyReset {
        /// What is lost follows from it.
        seed: u64,
    },
}

/// The switches that are on.
#[derive(Debug, Default)]
pub(super) struct Switches {
    stick: u32,
    /// Of those that stick, an abort does not free any.
    fast: bool,
    fail: Option<(u8, Status, u32)>,
}

/// What a switch does to one command.
pub(super) enum Verdict {
    Serve,
    /// Until it is aborted, unless it sticks fast.
    Stick {
        fast: bool,
    },
    Fail(Status),
}

impl Switches {
    pub(super) fn stick(&mut self, count: u32, fast: bool) {
        (self.stick, self.fast) = (count, fast);
    }

    pub(super) fn fail(&mut self, opcode: u8, status: Status, count: u32) {
        self.fail = Some((opcode, status, count));
    }

    pub(super) fn judge(&mut self, opcode: u8) -> Verdict {
        if self.stick > 0 {
            self.stick -= 1;
            return Verdict::Stick { fast: self.fast };
        }
        match &mut self.fail {
            Some((wanted, status, count)) if *wanted == opcode && *count > 0 => {
                *count -= 1;
                Verdict::Fail(*status)
            }
            _ => Verdict::Serve,
        }
    }
}
