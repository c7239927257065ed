//! How a request can fail, small enough to travel as one byte.

use thiserror::Error;

/// Why a block request failed. It becomes a byte of an answer on the wire and
/// a status byte of virtio-blk in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[repr(u8)]
pub enum BlockError {
    /// The device could not read, write or flush.
    #[error("the device reported an error")]
    Medium = 1,
    /// A sector past the end of the volume.
    #[error("the request lies outside of the volume")]
    OutOfRange = 2,
    /// A change of a volume that is attached or marked read-only.
    #[error("the volume is read-only")]
    ReadOnly = 3,
    /// An operation that this volume or device does not know.
    #[error("the operation is not supported")]
    Unsupported = 4,
    /// No room, and the volume is set to fail rather than to wait.
    #[error("the pool is full")]
    NoSpace = 5,
    /// The session has no such volume attached (any more).
    #[error("the volume is not attached")]
    NotAttached = 6,
    /// The path to the server is gone and the front was told not to wait.
    #[error("the server cannot be reached")]
    Unreachable = 7,
    /// The request contradicts itself: lengths, ranges or data are wrong.
    #[error("the request is malformed")]
    Malformed = 8,
    /// A write or a flush of a device that may have lost writes that it had
    /// answered: whoever relies on them has to look at what is left.
    #[error("the device was reset and may have lost what it had not flushed")]
    Lost = 9,
}

/// The byte that stands for success on the wire.
pub const OK_CODE: u8 = 0;

impl BlockError {
    /// The error as its byte on the wire; never [`OK_CODE`].
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The outcome that a byte on the wire stands for. A byte that this
    /// version does not know is an error too: [`BlockError::Medium`].
    pub const fn from_code(code: u8) -> Result<(), Self> {
        match code {
            OK_CODE => Ok(()),
            2 => Err(Self::OutOfRange),
            3 => Err(Self::ReadOnly),
            4 => Err(Self::Unsupported),
            5 => Err(Self::NoSpace),
            6 => Err(Self::NotAttached),
            7 => Err(Self::Unreachable),
            8 => Err(Self::Malformed),
            9 => Err(Self::Lost),
            _ => Err(Self::Medium),
        }
    }
}

/// An outcome as its byte on the wire.
#[must_use]
pub const fn outcome_code(outcome: Result<(), BlockError>) -> u8 {
    match outcome {
        Ok(()) => OK_CODE,
        Err(error) => error.code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire_and_an_unknown_byte_is_no_success() {
        for code in 1..=9 {
            let error = BlockError::from_code(code).expect_err("not zero");
            assert_eq!(error.code(), code);
        }
        assert_eq!(BlockError::from_code(OK_CODE), Ok(()));
        for code in 10..=255 {
            assert!(BlockError::from_code(code).is_err());
        }
    }
}
