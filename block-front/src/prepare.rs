//! From a chain to the work that it asks for; what needs no path is done here.

use block_core::{Op, SectorRange};

use crate::chain::{self, MAX_PIECES, Piece, Pieces, Walked};
use crate::command::{Command, DONE, HEADER_BYTES, ID_BYTES, Limits, RANGE_BYTES, Status, Sweep};
use crate::config_space::MAX_RANGES;
use crate::guest_memory::{GuestMemory, NotThere};
use crate::parts::parts_of;

/// What the parts of a request are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Stretches of one range, each with its data.
    Data { op: Op, range: SectorRange },
    /// One part without a range.
    Flush,
    /// The ranges that lie in the slot's pieces.
    Ranges { what: Sweep },
}

/// Where a request's data is among its pieces.
pub(crate) struct Data {
    pub(crate) first: u16,
    pub(crate) end: u16,
    /// Bytes before it in its stream.
    pub(crate) skip: u64,
}

/// What became of a chain.
pub(crate) enum Prepared {
    /// It has been served or refused on the spot, with this status.
    Ended(u8),
    /// It takes so many parts.
    Parts { work: Work, parts: u32, data: Data },
}

/// Reads the header and does what needs no path. The chain has a status byte.
#[inline]
pub(crate) fn prepare(
    memory: &GuestMemory,
    pieces: &mut Pieces,
    chain: &Walked,
    limits: &Limits,
    id: &[u8; ID_BYTES],
) -> Result<Prepared, NotThere> {
    if chain.lied || chain.readable_bytes < HEADER_BYTES as u64 {
        return Ok(Status::Failed.into());
    }
    let header = chain::read_array::<HEADER_BYTES>(memory, &pieces[..chain.readable], 0)?;
    let outgoing = Data { first: 0, end: chain.readable as u16, skip: HEADER_BYTES as u64 };
    let incoming = Data { first: chain.readable as u16, end: chain.pieces as u16, skip: 0 };
    let none = Data { first: 0, end: 0, skip: 0 };
    Ok(match Command::parse(&header, chain, limits) {
        Ok(Command::Transfer { op, range }) => Prepared::Parts {
            work: Work::Data { op, range },
            parts: parts_of(range),
            data: if op.carries_data() { outgoing } else { incoming },
        },
        Ok(Command::Flush) => Prepared::Parts { work: Work::Flush, parts: 1, data: none },
        Ok(Command::Identify) => {
            identify(memory, &pieces[chain.readable..chain.pieces], chain, id)?;
            Prepared::Ended(DONE)
        }
        Ok(Command::Ranges { what, count }) => {
            match read_ranges(memory, pieces, chain, what, count, limits)? {
                Ok(0) => Prepared::Ended(DONE),
                Ok(parts) => Prepared::Parts { work: Work::Ranges { what }, parts, data: none },
                Err(status) => status.into(),
            }
        }
        Err(status) => status.into(),
    })
}

impl From<Status> for Prepared {
    fn from(status: Status) -> Self {
        Self::Ended(status as u8)
    }
}

#[cold]
fn identify(
    memory: &GuestMemory,
    writable: &[Piece],
    chain: &Walked,
    id: &[u8; ID_BYTES],
) -> Result<(), NotThere> {
    let room = (chain.writable_bytes - 1).min(ID_BYTES as u64) as usize;
    chain::write(memory, writable, 0, &id[..room])
}

/// Copies `count` ranges out of guest memory. Returns how many are kept.
#[cold]
fn read_ranges(
    memory: &GuestMemory,
    pieces: &mut Pieces,
    chain: &Walked,
    what: Sweep,
    count: usize,
    limits: &Limits,
) -> Result<Result<u32, Status>, NotThere> {
    let mut bytes = [0; MAX_RANGES as usize * RANGE_BYTES];
    let bytes = &mut bytes[..count * RANGE_BYTES];
    chain::read(memory, &pieces[..chain.readable], HEADER_BYTES as u64, bytes)?;
    Ok(keep_ranges(what, bytes, limits, pieces))
}

/// Checks all ranges before any is swept, and keeps those that are not empty
/// in the place of the pieces, which nobody needs any more. Returns how many.
fn keep_ranges(
    what: Sweep,
    bytes: &[u8],
    limits: &Limits,
    pieces: &mut [Piece],
) -> Result<u32, Status> {
    let mut kept = 0;
    let (ranges, _) = bytes.as_chunks::<RANGE_BYTES>();
    for range in ranges {
        if what.parse(range, limits)?.is_none() {
            continue;
        }
        let ([low, high], _) = range.as_chunks::<8>() else { continue };
        pieces[kept] = [u64::from_le_bytes(*low), u64::from_le_bytes(*high)];
        kept += 1;
    }
    Ok(kept as u32)
}

const _: () = assert!(MAX_RANGES as usize <= MAX_PIECES);
