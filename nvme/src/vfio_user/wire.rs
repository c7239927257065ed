//! Messages: a header of 16 bytes, then what the command asks for. All numbers are
//! little-endian.

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 16;

/// The longest message that is taken: 1 MiB of data and what describes it.
pub(super) const MAX_MESSAGE: usize = (1 << 20) + 256;

/// The version that is spoken.
pub(super) const MAJOR: u16 = 0;
/// Of this major version, the newest that is spoken.
pub(super) const MINOR: u16 = 1;

/// What each side says it can do. Accesses of ours have 8 bytes at most, and one
/// descriptor.
pub(super) const CAPABILITIES: &[u8] =
    b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}\0";

/// Commands.
pub(super) mod command {
    pub(crate) const VERSION: u16 = 1;
    pub(crate) const DMA_MAP: u16 = 2;
    pub(crate) const DMA_UNMAP: u16 = 3;
    pub(crate) const DEVICE_INFO: u16 = 4;
    pub(crate) const REGION_INFO: u16 = 5;
    pub(crate) const INTERRUPT_INFO: u16 = 7;
    pub(crate) const SET_INTERRUPTS: u16 = 8;
    pub(crate) const REGION_READ: u16 = 9;
    pub(crate) const REGION_WRITE: u16 = 10;
    pub(crate) const RESET: u16 = 13;
}

/// Flags of a header: the kind of message, and what a reply is.
pub(super) const KIND: u32 = 0xf;
pub(super) const REPLY: u32 = 1;
pub(super) const NO_REPLY: u32 = 1 << 4;
pub(super) const ERROR: u32 = 1 << 5;

/// Flags of a region.
pub(super) const READABLE: u32 = 1;
pub(super) const WRITABLE: u32 = 1 << 1;
pub(super) const MAPPABLE: u32 = 1 << 2;
pub(super) const HAS_CAPABILITIES: u32 = 1 << 3;

/// The capability that lists what of a region can be mapped.
pub(super) const SPARSE_MAPPING: u16 = 1;

/// Flags of a device: it can be reset; it is PCI.
pub(super) const DEVICE_RESETS: u32 = 1;
pub(super) const DEVICE_IS_PCI: u32 = 1 << 1;

/// Flags of interrupts: an eventfd says that one came.
pub(super) const INTERRUPT_BY_EVENTFD: u32 = 1;

/// What is set about interrupts: nothing, or an eventfd for each; and that these are what
/// rings.
pub(super) const DATA_NONE: u32 = 1;
pub(super) const DATA_EVENTFD: u32 = 1 << 2;
pub(super) const ACTION_TRIGGER: u32 = 1 << 5;

/// Memory is taken away: all of it.
pub(super) const UNMAP_ALL: u32 = 1 << 1;

/// Errors of an answer.
pub(super) const EINVAL: u32 = 22;
pub(super) const ENOSPC: u32 = 28;
pub(super) const ENOTSUP: u32 = 95;

/// Flags of memory: the device may read it and write to it.
pub(super) const DMA_READ_WRITE: u32 = 0b11;

/// What every message begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) command: u16,
    /// Of the whole message.
    pub(super) bytes: u32,
    pub(super) flags: u32,
    /// In a reply with [`ERROR`]: an errno.
    pub(super) error: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        Some(Self {
            id: fields.u16()?,
            command: fields.u16()?,
            bytes: fields.u32()?,
            flags: fields.u32()?,
            error: fields.u32()?,
        })
    }

    /// The message with this payload.
    pub(super) fn with(self, payload: &[u8]) -> Vec<u8> {
        let bytes = (HEADER_BYTES + payload.len()) as u32;
        let mut message = Writer::default();
        message.u16(self.id).u16(self.command).u32(bytes).u32(self.flags).u32(self.error);
        message.0.extend_from_slice(payload);
        message.0
    }
}

/// What of a payload has not been read yet. Nothing is there once it is too short.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (now, later) = self.0.split_first_chunk()?;
        self.0 = later;
        Some(*now)
    }
}

/// A payload that is being written.
#[derive(Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }
}
