//! Block commands (virtio 1.2, section 5.2.6): a chain's header and shape
//! become a command whose numbers have been checked, or a status.

use block_core::{BlockError, Op, SECTOR_SIZE, SectorRange};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::chain::Walked;
use crate::config_space::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_WRITE_ZEROES_SECTORS};

/// Bytes of `struct virtio_blk_outhdr`: type, reserved, sector.
pub(crate) const HEADER_BYTES: usize = 16;

/// Bytes of `struct virtio_blk_discard_write_zeroes`: sector, count, flags.
pub(crate) const RANGE_BYTES: usize = 16;

/// Bytes that `GET_ID` answers at most; no NUL is needed.
pub(crate) const ID_BYTES: usize = 20;

/// The status of a command that was served, `VIRTIO_BLK_S_OK`.
pub(crate) const DONE: u8 = VIRTIO_BLK_S_OK as u8;

/// The status of a command that was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// `VIRTIO_BLK_S_IOERR`
    Failed = VIRTIO_BLK_S_IOERR as u8,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What a disk is, as far as a command depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Size in sectors.
    pub(crate) sectors: u64,
    /// Whether changes are refused.
    pub(crate) read_only: bool,
    /// Whether writes are durable when answered: `wce` is 0, or the driver
    /// has no `FLUSH`.
    pub(crate) write_through: bool,
}

impl Limits {
    fn range(&self, start: u64, count: u32) -> Result<SectorRange, Status> {
        match SectorRange::new(start, count) {
            Some(range) if range.end() <= self.sectors => Ok(range),
            _ => Err(Status::Failed),
        }
    }
}

/// A command whose header has been understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Data of `bytes` bytes moves. More than a [`SectorRange`] counts to is
    /// refused before.
    Transfer { op: Op, range: SectorRange },
    /// What was answered becomes durable.
    Flush,
    /// The disk's serial number is asked for.
    Identify,
    /// `count` ranges, in the data, are to be trimmed or zeroed.
    Ranges { what: Sweep, count: usize },
}

/// What happens to ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sweep {
    /// `VIRTIO_BLK_T_DISCARD`
    Discard,
    /// `VIRTIO_BLK_T_WRITE_ZEROES`
    WriteZeroes,
}

impl Command {
    /// Reads a copied header; `chain` says how much data there is.
    #[inline]
    pub(crate) fn parse(
        header: &[u8; HEADER_BYTES],
        chain: &Walked,
        limits: &Limits,
    ) -> Result<Self, Status> {
        let [kind, _, low, high] = quarters(header);
        let sector = u64::from(low) | u64::from(high) << 32;
        // The header and the status byte are there: the caller has seen to it.
        let outgoing = chain.readable_bytes - HEADER_BYTES as u64;
        let incoming = chain.writable_bytes - 1;
        let (op, bytes) = match kind {
            VIRTIO_BLK_T_IN => (Op::Read, incoming),
            VIRTIO_BLK_T_OUT if limits.read_only => return Err(Status::Failed),
            VIRTIO_BLK_T_OUT if limits.write_through => (Op::WriteThrough, outgoing),
            VIRTIO_BLK_T_OUT => (Op::Write, outgoing),
            _ => return Self::without_transfer(kind, outgoing, limits),
        };
        Ok(Self::Transfer { op, range: data(limits, sector, bytes)? })
    }

    #[cold]
    fn without_transfer(kind: u32, outgoing: u64, limits: &Limits) -> Result<Self, Status> {
        match kind {
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::Identify),
            VIRTIO_BLK_T_DISCARD => ranges(Sweep::Discard, limits, outgoing),
            VIRTIO_BLK_T_WRITE_ZEROES => ranges(Sweep::WriteZeroes, limits, outgoing),
            _ => Err(Status::Unsupported),
        }
    }
}

fn data(limits: &Limits, sector: u64, bytes: u64) -> Result<SectorRange, Status> {
    // A used entry counts the bytes, and the status, in 32 bits.
    let bytes = u32::try_from(bytes).map_err(|_| Status::Failed)?;
    if !bytes.is_multiple_of(SECTOR_SIZE as u32) {
        return Err(Status::Failed);
    }
    limits.range(sector, bytes / SECTOR_SIZE as u32)
}

fn ranges(what: Sweep, limits: &Limits, bytes: u64) -> Result<Command, Status> {
    let count = bytes / RANGE_BYTES as u64;
    let whole = bytes.is_multiple_of(RANGE_BYTES as u64);
    if limits.read_only || !whole || count == 0 || count > u64::from(MAX_RANGES) {
        return Err(Status::Failed);
    }
    Ok(Command::Ranges { what, count: count as usize })
}

impl Sweep {
    /// Reads one copied range; `None` when it is empty.
    pub(crate) fn parse(
        self,
        bytes: &[u8; RANGE_BYTES],
        limits: &Limits,
    ) -> Result<Option<(Op, SectorRange)>, Status> {
        let [low, high, count, flags] = quarters(bytes);
        let (op, most) = match (self, flags) {
            (Self::Discard, 0) => (Op::Discard, MAX_DISCARD_SECTORS),
            // To unmap is allowed, not asked: durable zeroes come first.
            (Self::WriteZeroes, 0 | VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) if limits.write_through => {
                (Op::WriteZeroesThrough, MAX_WRITE_ZEROES_SECTORS)
            }
            (Self::WriteZeroes, 0) => (Op::WriteZeroes, MAX_WRITE_ZEROES_SECTORS),
            (Self::WriteZeroes, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) => {
                (Op::WriteZeroesUnmap, MAX_WRITE_ZEROES_SECTORS)
            }
            _ => return Err(Status::Unsupported),
        };
        if count == 0 {
            return Ok(None);
        }
        if count > most {
            return Err(Status::Failed);
        }
        let range = limits.range(u64::from(low) | u64::from(high) << 32, count)?;
        Ok(Some((op, range)))
    }
}

/// Four little-endian numbers.
fn quarters(bytes: &[u8; 16]) -> [u32; 4] {
    std::array::from_fn(|i| {
        u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    })
}

impl From<BlockError> for Status {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Unsupported => Self::Unsupported,
            _ => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { sectors: 1000, read_only: false, write_through: false };

    fn header(kind: u32, sector: u64) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    fn parse(kind: u32, sector: u64, data: u64, limits: &Limits) -> Result<Command, Status> {
        let chain = Walked {
            readable_bytes: 16 + if kind == VIRTIO_BLK_T_IN { 0 } else { data },
            writable_bytes: 1 + if kind == VIRTIO_BLK_T_IN { data } else { 0 },
            ..Walked::default()
        };
        Command::parse(&header(kind, sector), &chain, limits)
    }

    #[test]
    fn data_off_the_sector_or_past_the_end_is_an_error() {
        for kind in [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT] {
            assert!(parse(kind, 992, 4096, &LIMITS).is_ok());
            for (sector, bytes) in [
                (992, 4608),
                (1000, 512),
                (0, 513),
                (0, 0),
                (u64::MAX, 512),
                (u64::MAX / 512, 512),
                (0, 1 << 32),
                (0, 1 << 42),
            ] {
                assert_eq!(parse(kind, sector, bytes, &LIMITS), Err(Status::Failed));
            }
        }
    }

    #[test]
    fn a_disk_that_is_read_only_refuses_every_change() {
        let limits = Limits { read_only: true, ..LIMITS };
        for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(parse(kind, 0, 512, &limits), Err(Status::Failed));
        }
        assert!(parse(VIRTIO_BLK_T_IN, 0, 512, &limits).is_ok());
    }

    #[test]
    fn without_a_write_cache_writes_go_through() {
        let limits = Limits { write_through: true, ..LIMITS };
        let op = |limits| match parse(VIRTIO_BLK_T_OUT, 0, 512, limits) {
            Ok(Command::Transfer { op, .. }) => op,
            other => panic!("{other:?}"),
        };
        assert_eq!(op(&limits), Op::WriteThrough);
        assert_eq!(op(&LIMITS), Op::Write);
        for flags in [0, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP] {
            let mut bytes = [0; RANGE_BYTES];
            bytes[8..12].copy_from_slice(&8u32.to_le_bytes());
            bytes[12..].copy_from_slice(&flags.to_le_bytes());
            let (op, _) = Sweep::WriteZeroes.parse(&bytes, &limits).expect("valid").expect("some");
            assert_eq!(op, Op::WriteZeroesThrough);
        }
    }

    #[test]
    fn an_unknown_command_is_unsupported() {
        for kind in [2, 3, 5, 9, 10, 12, 14, 15, u32::MAX] {
            assert_eq!(parse(kind, 0, 512, &LIMITS), Err(Status::Unsupported));
        }
    }

    fn range(sweep: Sweep, sector: u64, count: u32, flags: u32) -> Result<Option<Op>, Status> {
        let mut bytes = [0; RANGE_BYTES];
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&count.to_le_bytes());
        bytes[12..].copy_from_slice(&flags.to_le_bytes());
        Ok(sweep.parse(&bytes, &LIMITS)?.map(|(op, _)| op))
    }

    /// 5.2.6.2: unmap on a discard and unknown bits are unsupported, not an
    /// error.
    #[test]
    fn ranges_with_unknown_flags_are_unsupported() {
        assert_eq!(range(Sweep::Discard, 0, 8, 0), Ok(Some(Op::Discard)));
        assert_eq!(range(Sweep::Discard, 0, 8, 1), Err(Status::Unsupported));
        assert_eq!(range(Sweep::WriteZeroes, 0, 8, 1), Ok(Some(Op::WriteZeroesUnmap)));
        assert_eq!(range(Sweep::WriteZeroes, 0, 8, 0), Ok(Some(Op::WriteZeroes)));
        assert_eq!(range(Sweep::WriteZeroes, 0, 8, 2), Err(Status::Unsupported));
        assert_eq!(range(Sweep::Discard, 999, 2, 0), Err(Status::Failed));
        assert_eq!(range(Sweep::Discard, u64::MAX, 1, 0), Err(Status::Failed));
        assert_eq!(range(Sweep::Discard, 0, 0, 0), Ok(None));
    }

    #[test]
    fn ranges_come_whole_and_not_too_many() {
        for bytes in [0, 15, 17, (u64::from(MAX_RANGES) + 1) * 16] {
            assert_eq!(parse(VIRTIO_BLK_T_DISCARD, 0, bytes, &LIMITS), Err(Status::Failed));
        }
        let most = parse(VIRTIO_BLK_T_DISCARD, 0, u64::from(MAX_RANGES) * 16, &LIMITS);
        assert!(matches!(most, Ok(Command::Ranges { count: 32, .. })));
    }
}
