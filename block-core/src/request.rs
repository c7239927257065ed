//! What is asked of a volume.

use crate::buffer::Buffer;
use crate::unit::SectorRange;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Data from the volume.
    Read = 1,
    /// Data to the volume; may be lost by a power cut until a flush.
    Write = 2,
    /// Data to the volume, durable when answered (write-through).
    WriteThrough = 3,
    /// All writes answered before it was sent become durable.
    Flush = 4,
    /// The whole blocks of the range are not needed; the rest is untouched.
    Discard = 5,
    /// The range reads as zero; its space may be given back.
    WriteZeroesUnmap = 6,
    /// The range reads as zero; its space stays allocated.
    WriteZeroes = 7,
    /// As [`Op::WriteZeroes`], and durable when answered (write-through).
    WriteZeroesThrough = 8,
}

impl Op {
    /// The operation that a byte on the wire stands for.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Read,
            2 => Self::Write,
            3 => Self::WriteThrough,
            4 => Self::Flush,
            5 => Self::Discard,
            6 => Self::WriteZeroesUnmap,
            7 => Self::WriteZeroes,
            8 => Self::WriteZeroesThrough,
            _ => return None,
        })
    }

    /// The operation as its byte on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether the request brings data along.
    #[must_use]
    pub const fn carries_data(self) -> bool {
        matches!(self, Self::Write | Self::WriteThrough)
    }

    /// Whether the request changes what the volume holds.
    #[must_use]
    pub const fn changes(self) -> bool {
        !matches!(self, Self::Read | Self::Flush)
    }

    /// Whether what the request changes is durable when it is answered.
    #[must_use]
    pub const fn writes_through(self) -> bool {
        matches!(self, Self::WriteThrough | Self::WriteZeroesThrough)
    }
}

/// One request to a volume, by value: whoever holds it answers it, once.
///
/// The data of a read or write lies in `buffer` from
/// [`SectorRange::offset_in_block`] on.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub op: Op,
    /// Where; `None` only for a flush.
    pub range: Option<SectorRange>,
    /// The data of a write, room for the data of a read, else `None`.
    pub buffer: Option<Buffer>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_survives_the_wire() {
        for code in 0..=255 {
            if let Some(op) = Op::from_code(code) {
                assert_eq!(op.code(), code);
            }
        }
        assert_eq!((0..=255).filter_map(Op::from_code).count(), 8);
    }
}
