//! Completion queue entries and what their status means (NVMe Base 2.0,
//! section 3.3.3.2; NVM Command Set 1.0, section 3.2).

use std::fmt;

use block_core::BlockError;

/// Bytes in a completion queue entry.
pub const COMPLETION_BYTES: usize = 16;
/// 64-bit words in a completion queue entry.
pub const COMPLETION_WORDS: usize = COMPLETION_BYTES / 8;

/// The phase tag, in the entry's second word.
const PHASE: u64 = 1 << 48;

/// An entry that a controller has written. Nothing in it is believed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Command-specific result, dword 0.
    pub result: u32,
    /// How far the controller has fetched from the submission queue.
    pub submission_head: u16,
    /// The submission queue of the command.
    pub submission_queue: u16,
    /// The command's identifier.
    pub command_id: u16,
    /// How it ended.
    pub status: Status,
}

const _: () = assert!(COMPLETION_BYTES == COMPLETION_WORDS * size_of::<u64>());

impl Completion {
    /// The entry in these words of a ring.
    #[must_use]
    pub const fn from_words(words: [u64; COMPLETION_WORDS]) -> Self {
        Self {
            result: words[0] as u32,
            submission_head: words[1] as u16,
            submission_queue: (words[1] >> 16) as u16,
            command_id: (words[1] >> 32) as u16,
            status: Status((words[1] >> 49) as u16),
        }
    }

    /// The words of the entry under this phase.
    #[must_use]
    pub const fn to_words(&self, phase: bool) -> [u64; COMPLETION_WORDS] {
        let last = self.submission_head as u64
            | (self.submission_queue as u64) << 16
            | (self.command_id as u64) << 32
            | (self.status.0 as u64) << 49;
        [self.result as u64, if phase { last | PHASE } else { last }]
    }

    /// The phase in an entry's second word.
    #[must_use]
    pub const fn phase_of(word: u64) -> bool {
        word & PHASE != 0
    }
}

/// The layout against the specification's byte offsets (Base 2.0, figure 90).
const _: () = {
    let words = Completion {
        result: 0x0302_0100,
        submission_head: 0x0908,
        submission_queue: 0x0b0a,
        command_id: 0x0d0c,
        status: Status(0x0101),
    }
    .to_words(true);
    assert!(words[0] == 0x0302_0100);
    assert!(words[1] == 0x0203_0d0c_0b0a_0908);
};

/// The status field: 15 bits without the phase tag. Code, type, retry delay,
/// "more" and "do not retry".
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(u16);

/// Status code type (bits 10:8) and status code (bits 7:0).
const KIND: u16 = 0x7ff;
/// Do not retry.
const DO_NOT_RETRY: u16 = 1 << 14;

impl Status {
    /// Success.
    pub const SUCCESS: Self = Self::new(0, 0x00);
    /// Invalid Command Opcode.
    pub const INVALID_OPCODE: Self = Self::new(0, 0x01);
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Self = Self::new(0, 0x02);
    /// Data Transfer Error.
    pub const DATA_TRANSFER: Self = Self::new(0, 0x04);
    /// Internal Error.
    pub const INTERNAL: Self = Self::new(0, 0x06);
    /// Command Abort Requested.
    pub const ABORT_REQUESTED: Self = Self::new(0, 0x07);
    /// Command Aborted due to SQ Deletion.
    pub const QUEUE_DELETED: Self = Self::new(0, 0x08);
    /// Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: Self = Self::new(0, 0x0b);
    /// Command Sequence Error.
    pub const SEQUENCE: Self = Self::new(0, 0x0c);
    /// PRP Offset Invalid.
    pub const PRP_OFFSET: Self = Self::new(0, 0x13);
    /// Namespace is Write Protected.
    pub const WRITE_PROTECTED: Self = Self::new(0, 0x20);
    /// LBA Out of Range.
    pub const OUT_OF_RANGE: Self = Self::new(0, 0x80);
    /// Capacity Exceeded.
    pub const CAPACITY_EXCEEDED: Self = Self::new(0, 0x81);
    /// Completion Queue Invalid.
    pub const INVALID_COMPLETION_QUEUE: Self = Self::new(1, 0x00);
    /// Invalid Queue Identifier.
    pub const INVALID_QUEUE_ID: Self = Self::new(1, 0x01);
    /// Invalid Queue Size.
    pub const INVALID_QUEUE_SIZE: Self = Self::new(1, 0x02);
    /// Asynchronous Event Request Limit Exceeded.
    pub const ASYNC_EVENT_LIMIT: Self = Self::new(1, 0x05);
    /// Invalid Interrupt Vector.
    pub const INVALID_VECTOR: Self = Self::new(1, 0x08);
    /// Invalid Log Page.
    pub const INVALID_LOG_PAGE: Self = Self::new(1, 0x09);
    /// Invalid Queue Deletion.
    pub const INVALID_QUEUE_DELETION: Self = Self::new(1, 0x0c);
    /// Feature Identifier Not Saveable.
    pub const NOT_SAVEABLE: Self = Self::new(1, 0x0d);
    /// Write Fault.
    pub const WRITE_FAULT: Self = Self::new(2, 0x80);
    /// Unrecovered Read Error.
    pub const READ_ERROR: Self = Self::new(2, 0x81);

    const fn new(kind: u16, code: u16) -> Self {
        Self(kind << 8 | code)
    }

    /// The status in these 15 bits of a completion.
    pub(crate) const fn of_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The 15 bits.
    pub(crate) const fn bits(self) -> u16 {
        self.0
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & KIND == 0
    }

    /// The same status with or without hints about retrying.
    #[must_use]
    pub const fn kind(self) -> Self {
        Self(self.0 & KIND)
    }

    /// The same status, saying that another attempt would fail alike.
    #[must_use]
    pub const fn final_answer(self) -> Self {
        Self(self.0 | DO_NOT_RETRY)
    }

    /// The outcome for whoever asked for blocks.
    ///
    /// # Errors
    /// The class of every status that is not success.
    pub const fn outcome(self) -> Result<(), BlockError> {
        match self.kind() {
            Self::SUCCESS => Ok(()),
            Self::OUT_OF_RANGE => Err(BlockError::OutOfRange),
            Self::CAPACITY_EXCEEDED => Err(BlockError::NoSpace),
            Self::INVALID_OPCODE => Err(BlockError::Unsupported),
            Self::WRITE_PROTECTED => Err(BlockError::ReadOnly),
            // A field that the driver filled in and the controller refuses is
            // no fault of the guest's request.
            _ => Err(BlockError::Medium),
        }
    }

    const fn name(self) -> Option<&'static str> {
        Some(match self.kind() {
            Self::SUCCESS => "success",
            Self::INVALID_OPCODE => "invalid command opcode",
            Self::INVALID_FIELD => "invalid field in command",
            Self::DATA_TRANSFER => "data transfer error",
            Self::INTERNAL => "internal error",
            Self::ABORT_REQUESTED => "command abort requested",
            Self::QUEUE_DELETED => "command aborted due to queue deletion",
            Self::INVALID_NAMESPACE => "invalid namespace or format",
            Self::SEQUENCE => "command sequence error",
            Self::PRP_OFFSET => "PRP offset invalid",
            Self::WRITE_PROTECTED => "namespace is write protected",
            Self::OUT_OF_RANGE => "LBA out of range",
            Self::CAPACITY_EXCEEDED => "capacity exceeded",
            Self::INVALID_COMPLETION_QUEUE => "completion queue invalid",
            Self::INVALID_QUEUE_ID => "invalid queue identifier",
            Self::INVALID_QUEUE_SIZE => "invalid queue size",
            Self::ASYNC_EVENT_LIMIT => "asynchronous event request limit exceeded",
            Self::INVALID_VECTOR => "invalid interrupt vector",
            Self::INVALID_LOG_PAGE => "invalid log page",
            Self::INVALID_QUEUE_DELETION => "invalid queue deletion",
            Self::NOT_SAVEABLE => "feature identifier not saveable",
            Self::WRITE_FAULT => "write fault",
            Self::READ_ERROR => "unrecovered read error",
            _ => return None,
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, code) = (self.0 >> 8 & 7, self.0 & 0xff);
        match self.name() {
            Some(name) => write!(f, "{name} (type {kind}, code {code:#04x})"),
            None => write!(f, "status type {kind}, code {code:#04x}"),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_survives_its_words_and_keeps_its_phase_apart() {
        let entry = Completion {
            result: 0xdead_beef,
            submission_head: 7,
            submission_queue: 3,
            command_id: 0xffff,
            status: Status::READ_ERROR.final_answer(),
        };
        for phase in [false, true] {
            let words = entry.to_words(phase);
            assert_eq!(Completion::from_words(words), entry);
            assert_eq!(Completion::phase_of(words[1]), phase);
        }
    }

    #[test]
    fn only_success_is_success_whatever_the_hints_say() {
        for bits in 0..1_u16 << 15 {
            let status = Status(bits);
            assert_eq!(status.outcome().is_ok(), bits & KIND == 0);
        }
        assert_eq!(Status::OUT_OF_RANGE.final_answer().outcome(), Err(BlockError::OutOfRange));
    }
}
