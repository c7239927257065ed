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
    /// The controller is pulled out: registers read as all ones, for good.
    Removal,
}

/// The switches that are on.
#[derive(Debug, Default)]
pub(super) struct Switches {
    stick: u32,
    fail: Option<(u8, Status, u32)>,
}

/// What a switch does to one command.
pub(super) enum Verdict {
    Serve,
    Stick,
    Fail(Status),
}

impl Switches {
    pub(super) fn stick(&mut self, count: u32) {
        self.stick = count;
    }

    pub(super) fn fail(&mut self, opcode: u8, status: Status, count: u32) {
        self.fail = Some((opcode, status, count));
    }

    pub(super) fn judge(&mut self, opcode: u8) -> Verdict {
        if self.stick > 0 {
            self.stick -= 1;
            return Verdict::Stick;
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
