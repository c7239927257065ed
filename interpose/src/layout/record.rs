//! What the journal says: each record is one change, whole.
//!
//! ```text
//! every record   0 type u8 | line u24 | lba u40 | 7 bytes
//! 1 New          zero 7 | pointer 32 | hash 16 | zero 8              64 bytes
//! 2 Share        zero 7 | pointer 32                                 48 bytes
//! 3 Hole         count u40 | zero 2                                  16 bytes
//! 4 Control      lba: bytes that follow; zero 7 | the body, padded to 16
//! ```

use block_core::{BlockCount, Lba, LbaRange};

use super::control::{Control, Malformed};
use super::identity::LineId;
use super::pointer::{POINTER_BYTES, Pointer};

/// The first 128 bits of a block's keyed BLAKE3 hash.
pub type Hash = [u8; 16];

/// Blocks of a volume: a record says 40 bits.
pub const MAX_VOLUME_BLOCKS: u64 = 1 << 40;

const HEAD_BYTES: usize = 16;
const UNIT_BYTES: usize = 16;
const NEW: u8 = 1;
const SHARE: u8 = 2;
const HOLE: u8 = 3;
const CONTROL: u8 = 4;

/// Most bytes of a record: what a block of the journal holds.
pub const MAX_RECORD_BYTES: usize = 4032;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// A block was sealed and written.
    New {
        /// Whose.
        line: LineId,
        /// Which one.
        lba: Lba,
        /// Where it is now.
        pointer: Pointer,
        /// Its hash, for the tree of seals.
        hash: Hash,
    },
    /// A block has the content of one that was there.
    Share {
        /// Whose.
        line: LineId,
        /// Which one.
        lba: Lba,
        /// Where it is now.
        pointer: Pointer,
    },
    /// Blocks read as zero.
    Hole {
        /// Whose.
        line: LineId,
        /// Which ones.
        range: LbaRange,
    },
    /// Something other than a block changed.
    Control(Control),
}

impl Record {
    /// How many bytes it has, a multiple of 16.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::New { .. } => 64,
            Self::Share { .. } => 48,
            Self::Hole { .. } => HEAD_BYTES,
            Self::Control(control) => HEAD_BYTES + control.bytes().next_multiple_of(UNIT_BYTES),
        }
    }

    /// Writes the record to the front of `to`, which has room for
    /// [`Record::bytes`] of them.
    pub fn encode(&self, to: &mut [u8]) {
        let (start, body) = to[..self.bytes()].split_first_chunk_mut().expect("more than a head");
        match self {
            Self::New { line, lba, pointer, hash } => {
                *start = head(NEW, *line, lba.0, 0);
                body[..POINTER_BYTES].copy_from_slice(&pointer.encode());
                body[POINTER_BYTES..].copy_from_slice(&hash[..]);
            }
            Self::Share { line, lba, pointer } => {
                *start = head(SHARE, *line, lba.0, 0);
                body.copy_from_slice(&pointer.encode());
            }
            Self::Hole { line, range } => *start = head(HOLE, *line, range.start.0, range.count.0),
            Self::Control(control) => {
                let bytes = control.bytes();
                *start = head(CONTROL, LineId(0), bytes as u64, 0);
                control.encode(&mut body[..bytes]);
                body[bytes..].fill(0);
            }
        }
    }

    /// The record at the front of `from`, and what comes after it.
    ///
    /// # Errors
    /// When there is none.
    pub fn decode(from: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let (start, rest) = from.split_at_checked(HEAD_BYTES).ok_or(Malformed)?;
        let line = LineId(u32::from_le_bytes([start[1], start[2], start[3], 0]));
        let lba = Lba(u40(&start[4..9]));
        match start[0] {
            NEW => {
                let (body, rest) = rest.split_at_checked(48).ok_or(Malformed)?;
                let pointer = pointer(body)?;
                let mut hash = Hash::default();
                hash.copy_from_slice(&body[32..48]);
                Ok((Self::New { line, lba, pointer, hash }, rest))
            }
            SHARE => {
                let (body, rest) = rest.split_at_checked(32).ok_or(Malformed)?;
                Ok((Self::Share { line, lba, pointer: pointer(body)? }, rest))
            }
            HOLE => {
                let count = BlockCount(u40(&start[9..14]));
                let fits = count.0 > 0 && lba.0 + count.0 <= MAX_VOLUME_BLOCKS;
                let range = fits.then_some(LbaRange { start: lba, count }).ok_or(Malformed)?;
                Ok((Self::Hole { line, range }, rest))
            }
            CONTROL => {
                let bytes = usize::try_from(lba.0).map_err(|_| Malformed)?;
                let room = bytes.next_multiple_of(UNIT_BYTES);
                let (body, rest) = rest.split_at_checked(room).ok_or(Malformed)?;
                Ok((Self::Control(Control::decode(&body[..bytes])?), rest))
            }
            _ => Err(Malformed),
        }
    }
}

fn head(kind: u8, line: LineId, lba: u64, count: u64) -> [u8; HEAD_BYTES] {
    let head = u128::from(kind)
        | u128::from(line.0) << 8
        | u128::from(lba) << 32
        | u128::from(count) << 72;
    head.to_le_bytes()
}

fn u40(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    whole[..5].copy_from_slice(bytes);
    u64::from_le_bytes(whole)
}

fn pointer(body: &[u8]) -> Result<Pointer, Malformed> {
    let bytes: &[u8; POINTER_BYTES] = body[..POINTER_BYTES].try_into().map_err(|_| Malformed)?;
    Pointer::decode(bytes).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::{Epoch, EraId, Kind, Seal};
    use block_core::Pba;

    fn sample(number: u8) -> Pointer {
        let seal = Seal { tag: [number; 16], seq: number.into(), era: EraId(3) };
        Pointer { seal, pba: Pba(77), birth: Epoch(5), kind: Kind::Data }
    }

    #[test]
    fn records_follow_each_other_in_a_block() {
        let line = LineId(0x01_0203);
        let records = [
            Record::New { line, lba: Lba(9), pointer: sample(1), hash: [7; 16] },
            Record::Share { line, lba: Lba((1 << 40) - 1), pointer: sample(2) },
            Record::Hole { line, range: LbaRange { start: Lba(1), count: BlockCount(1 << 39) } },
        ];
        let mut block = vec![0; 4032];
        let mut at = 0;
        for record in &records {
            record.encode(&mut block[at..]);
            at += record.bytes();
        }
        assert_eq!(at, 64 + 48 + 16);
        assert_eq!(block[..9], [1, 3, 2, 1, 9, 0, 0, 0, 0]);
        let mut rest = &block[..at];
        for record in &records {
            let (decoded, after) = Record::decode(rest).expect("whole");
            assert_eq!(&decoded, record);
            rest = after;
        }
        assert!(rest.is_empty());
    }

    proptest! {
        /// What follows a valid tag is ours, and still nothing may panic.
        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::decode(&bytes);
        }
    }
}
