//! One command on its way: the steps that it takes, one after the other.

use std::ops::Range;

use super::sys::Part;

/// The command: its submission queue and identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Owner {
    pub(in super::super) queue: u16,
    pub(in super::super) id: u16,
}

/// What a command is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Kind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Write Zeroes.
    Zero,
    /// Dataset Management.
    Deallocate,
    /// Flush.
    Flush,
}

impl Kind {
    /// Whether what it does can be volatile.
    pub(super) fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Zero | Self::Deallocate)
    }
}

/// One operation of the kernel's, on these bytes of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Into the job's memory.
    Read(Range<u64>),
    /// From there.
    Write(Range<u64>),
    /// Writes zeroes.
    Clear(Range<u64>),
    /// Gives space back.
    Punch(Range<u64>),
    /// Leaves space to which nothing was written.
    Empty(Range<u64>),
    /// Makes durable what was done.
    Sync,
}

/// A command that the kernel has.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) kind: Kind,
    /// Who waits for it: nobody, once the controller was reset.
    pub(super) owner: Option<Owner>,
    /// What is to be done, the next one last.
    pub(super) steps: Vec<Step>,
    /// What the kernel does.
    pub(super) now: Step,
    /// The driver's memory.
    pub(super) parts: Vec<Part>,
    /// Memory that the bytes go through, because the driver's is not aligned.
    pub(super) bounce: Option<Part>,
    /// Bytes that it reads or writes.
    pub(super) bytes: u64,
    /// Its change is to be durable when it ends, whatever the cache does.
    pub(super) through: bool,
    /// It is.
    pub(super) is_durable: bool,
}

impl Job {
    /// One that does nothing, with room for the parts and steps of most; for more it is
    /// made once.
    pub(super) fn idle() -> Self {
        Self {
            kind: Kind::Flush,
            owner: None,
            steps: Vec::with_capacity(4),
            now: Step::Sync,
            parts: Vec::with_capacity(4),
            bounce: None,
            bytes: 0,
            through: false,
            is_durable: false,
        }
    }

    /// Becomes another command's.
    pub(super) fn start(&mut self, owner: Owner, kind: Kind) {
        self.steps.clear();
        self.parts.clear();
        (self.owner, self.kind, self.bounce) = (Some(owner), kind, None);
        (self.bytes, self.through, self.is_durable) = (0, false, false);
    }

    /// Gives up what it holds.
    pub(super) fn end(&mut self) {
        self.owner = None;
        self.steps.clear();
        self.parts.clear();
        self.bounce = None;
    }
}
