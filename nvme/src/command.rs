//! Submission queue entries (NVMe Base 2.0, section 3.3.3.1; NVM Command Set
//! 1.0, section 3.2).

/// Bytes in a submission queue entry.
pub const COMMAND_BYTES: usize = 64;
/// 64-bit words in a submission queue entry.
pub const COMMAND_WORDS: usize = COMMAND_BYTES / 8;

/// Opcodes of the admin command set (Base 2.0, figure 138).
pub mod admin {
    /// Delete I/O Submission Queue.
    pub const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFERS: u8 = 0x7c;
}

/// Opcodes of the NVM command set (NVM Command Set 1.0, figure 19).
pub mod io {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Feature identifiers (Base 2.0, figure 317).
pub mod feature {
    /// Temperature Threshold.
    pub const TEMPERATURE: u8 = 0x04;
    /// Volatile Write Cache.
    pub const WRITE_CACHE: u8 = 0x06;
    /// Interrupt Coalescing.
    pub const COALESCING: u8 = 0x08;
    /// Number of Queues.
    pub const QUEUES: u8 = 0x07;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENTS: u8 = 0x0b;
}

/// Log page identifiers (Base 2.0, figure 202).
pub mod log {
    /// Error Information.
    pub const ERRORS: u8 = 0x01;
    /// SMART / Health Information.
    pub const HEALTH: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE: u8 = 0x03;
}

/// What Identify returns (CNS; Base 2.0, figure 273).
pub mod cns {
    /// Namespace data structure.
    pub const NAMESPACE: u8 = 0x00;
    /// Controller data structure.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespace ID list.
    pub const ACTIVE_NAMESPACES: u8 = 0x02;
    /// Namespace identification descriptor list.
    pub const NAMESPACE_DESCRIPTORS: u8 = 0x03;
    /// Controller data structure of an I/O command set.
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
}

/// Dword 12 of a read or write: Force Unit Access.
pub const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Dword 12 of Write Zeroes: deallocate if you can.
pub const DEALLOCATE_ZEROES: u32 = 1 << 25;
/// Dword 11 of Dataset Management: deallocate.
pub const DATASET_DEALLOCATE: u32 = 1 << 2;
/// The namespace ID that means all of them.
pub const ALL_NAMESPACES: u32 = u32::MAX;

/// A command: 64 bytes as eight little-endian words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    words: [u64; COMMAND_WORDS],
}

const _: () = assert!(size_of::<Command>() == COMMAND_BYTES);

impl Command {
    /// A command with everything else zero.
    #[must_use]
    pub const fn new(opcode: u8, namespace: u32) -> Self {
        let mut words = [0; COMMAND_WORDS];
        words[0] = opcode as u64 | (namespace as u64) << 32;
        Self { words }
    }

    /// The command that these words of a ring are.
    #[must_use]
    pub const fn from_words(words: [u64; COMMAND_WORDS]) -> Self {
        Self { words }
    }

    /// The words as they go into a ring.
    #[must_use]
    pub const fn words(&self) -> &[u64; COMMAND_WORDS] {
        &self.words
    }

    /// The same command under this identifier.
    #[must_use]
    pub const fn with_id(mut self, id: u16) -> Self {
        self.words[0] = self.words[0] & !(0xffff << 16) | (id as u64) << 16;
        self
    }

    /// The same command with these data pointers (PRP1, PRP2).
    #[must_use]
    pub const fn with_data(mut self, prp1: u64, prp2: u64) -> Self {
        self.words[3] = prp1;
        self.words[4] = prp2;
        self
    }

    /// The same command with `value` in command dword `number`, 10 to 15.
    #[must_use]
    pub const fn with_dword(mut self, number: usize, value: u32) -> Self {
        assert!(number >= 10 && number < 16);
        let shift = number % 2 * 32;
        let word = number / 2;
        self.words[word] = self.words[word] & !(0xffff_ffff << shift) | (value as u64) << shift;
        self
    }

    /// The opcode.
    #[must_use]
    pub const fn opcode(&self) -> u8 {
        self.words[0] as u8
    }

    /// FUSE and PSDT with the reserved bits between them: all zero for a
    /// plain command with PRPs.
    #[must_use]
    pub const fn flags(&self) -> u8 {
        (self.words[0] >> 8) as u8
    }

    /// The command identifier.
    #[must_use]
    pub const fn id(&self) -> u16 {
        (self.words[0] >> 16) as u16
    }

    /// The namespace ID.
    #[must_use]
    pub const fn namespace(&self) -> u32 {
        (self.words[0] >> 32) as u32
    }

    /// PRP entry 1.
    #[must_use]
    pub const fn prp1(&self) -> u64 {
        self.words[3]
    }

    /// PRP entry 2.
    #[must_use]
    pub const fn prp2(&self) -> u64 {
        self.words[4]
    }

    /// Command dword `number`, 10 to 15.
    #[must_use]
    pub const fn dword(&self, number: usize) -> u32 {
        assert!(number >= 10 && number < 16);
        (self.words[number / 2] >> (number % 2 * 32)) as u32
    }

    /// The first logical block of a read, write or Write Zeroes.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.words[5]
    }

    /// How many logical blocks a read, write or Write Zeroes has (the field
    /// is 0-based).
    #[must_use]
    pub const fn block_count(&self) -> u32 {
        (self.dword(12) & 0xffff) + 1
    }

    /// A command on `count` logical blocks, 1 to 65,536, from `start`.
    #[must_use]
    pub const fn blocks(opcode: u8, namespace: u32, start: u64, count: u32, flags: u32) -> Self {
        assert!(count >= 1 && count <= 65_536);
        let mut command = Self::new(opcode, namespace).with_dword(12, (count - 1) | flags);
        command.words[5] = start;
        command
    }

    /// Flush.
    #[must_use]
    pub const fn flush(namespace: u32) -> Self {
        Self::new(io::FLUSH, namespace)
    }

    /// Dataset Management, deallocate, with one range.
    #[must_use]
    pub const fn deallocate(namespace: u32) -> Self {
        Self::new(io::DATASET_MANAGEMENT, namespace).with_dword(11, DATASET_DEALLOCATE)
    }

    /// Identify.
    #[must_use]
    pub const fn identify(what: u8, namespace: u32) -> Self {
        Self::new(admin::IDENTIFY, namespace).with_dword(10, what as u32)
    }

    /// Get Log Page: the first `bytes` (a multiple of 4) of the controller's log.
    /// Reading it arms the event that pointed at it again.
    #[must_use]
    pub const fn get_log_page(log: u8, bytes: u32) -> Self {
        let dwords = bytes / 4 - 1;
        Self::new(admin::GET_LOG_PAGE, ALL_NAMESPACES)
            .with_dword(10, log as u32 | dwords << 16)
            .with_dword(11, dwords >> 16)
    }

    /// Set Features, not saved.
    #[must_use]
    pub const fn set_feature(feature: u8, value: u32) -> Self {
        Self::new(admin::SET_FEATURES, 0).with_dword(10, feature as u32).with_dword(11, value)
    }

    /// Get Features, the current value.
    #[must_use]
    pub const fn get_feature(feature: u8) -> Self {
        Self::new(admin::GET_FEATURES, 0).with_dword(10, feature as u32)
    }

    /// Create I/O Completion Queue: contiguous, without interrupts.
    #[must_use]
    pub const fn create_completion_queue(queue: u16, entries: u16, at: u64) -> Self {
        Self::new(admin::CREATE_COMPLETION_QUEUE, 0)
            .with_data(at, 0)
            .with_dword(10, queue as u32 | (entries as u32 - 1) << 16)
            .with_dword(11, 1)
    }

    /// Create I/O Completion Queue that interrupts, on vector 0.
    #[must_use]
    pub const fn with_interrupt(self) -> Self {
        self.with_dword(11, 0b11)
    }

    /// Create I/O Submission Queue: contiguous, completing to the completion
    /// queue of the same number.
    #[must_use]
    pub const fn create_submission_queue(queue: u16, entries: u16, at: u64) -> Self {
        Self::new(admin::CREATE_SUBMISSION_QUEUE, 0)
            .with_data(at, 0)
            .with_dword(10, queue as u32 | (entries as u32 - 1) << 16)
            .with_dword(11, 1 | (queue as u32) << 16)
    }

    /// Delete I/O Submission or Completion Queue.
    #[must_use]
    pub const fn delete_queue(opcode: u8, queue: u16) -> Self {
        Self::new(opcode, 0).with_dword(10, queue as u32)
    }

    /// Abort of the command `id` in a submission queue.
    #[must_use]
    pub const fn abort(queue: u16, id: u16) -> Self {
        Self::new(admin::ABORT, 0).with_dword(10, queue as u32 | (id as u32) << 16)
    }

    /// The 64 bytes.
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; COMMAND_BYTES] {
        let mut bytes = [0; COMMAND_BYTES];
        let mut at = 0;
        while at < COMMAND_BYTES {
            bytes[at] = (self.words[at / 8] >> (at % 8 * 8)) as u8;
            at += 1;
        }
        bytes
    }
}

/// What a command asks for, before it has a place: without identifier and data pointers.
#[derive(Clone, Copy)]
pub(crate) struct Order {
    head: u64,
    dwords: [u64; 3],
}

impl Order {
    /// Leaves identifier, data pointers and what is reserved out.
    #[inline]
    pub(crate) const fn of(command: &Command) -> Self {
        let [head, _, _, _, _, a, b, c] = command.words;
        Self { head: head & !(0xffff << 16), dwords: [a, b, c] }
    }

    /// The words of the whole command.
    #[inline]
    pub(crate) const fn placed(&self, id: u16, (prp1, prp2): (u64, u64)) -> [u64; COMMAND_WORDS] {
        let [a, b, c] = self.dwords;
        [self.head | (id as u64) << 16, 0, 0, prp1, prp2, a, b, c]
    }
}

/// The layout against the specification's byte offsets (Base 2.0, figure 87).
const _: () = {
    let bytes = Command::new(0x11, 0x2322_2120).with_id(0x1312).with_data(0x18, 0x20).to_bytes();
    assert!(bytes[0] == 0x11 && bytes[1] == 0);
    assert!(bytes[2] == 0x12 && bytes[3] == 0x13);
    assert!(bytes[4] == 0x20 && bytes[7] == 0x23);
    assert!(bytes[24] == 0x18 && bytes[32] == 0x20);
    let bytes = Command::blocks(io::WRITE, 1, 0x0807_0605_0403_0201, 0x0202, 1 << 30).to_bytes();
    assert!(bytes[40] == 1 && bytes[47] == 8);
    assert!(bytes[48] == 1 && bytes[49] == 2 && bytes[51] == 0x40);
    let bytes = Command::new(0, 0).with_dword(10, 10).with_dword(15, 15).to_bytes();
    assert!(bytes[40] == 10 && bytes[60] == 15);
};
