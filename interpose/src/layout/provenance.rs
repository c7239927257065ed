//! Where what a volume holds was imported from: what the server keeps with the
//! volume while an import goes on, and after it.
//!
//! ```text
//! 0    held: origin, 40 bytes | the snapshot here: line u32 | epoch u32;
//!      zeroes if nothing has come as a whole
//! 48   coming: source, 40 bytes | base, 40 bytes, zeroes if there is none |
//!      position u64 | since, epoch u32 | zero 4; zeroes if nothing is under
//!      way
//! ```

use block_core::Lba;

use super::control::{Malformed, SnapshotKey};
use super::identity::{Epoch, LineId};
use super::stream::{ORIGIN_BYTES, Origin};

/// What was imported last, and what is being imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Provenance {
    /// The last snapshot that came as a whole, and what it became here: a
    /// stream of what changed since builds on it.
    pub held: Option<(Origin, SnapshotKey)>,
    /// What has come in part.
    pub coming: Option<Coming>,
}

/// An import under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coming {
    /// Of which snapshot. What lies where in a stream depends on this and the
    /// base alone, so that any stream of both can go on.
    pub source: Origin,
    /// What it builds on.
    pub base: Option<Origin>,
    /// Every block before is durable.
    pub position: Lba,
    /// A snapshot of this epoch or a later one was taken when all had come.
    pub since: Epoch,
}

impl Provenance {
    /// Bytes of it.
    pub const BYTES: usize = 3 * 8 + 3 * ORIGIN_BYTES;

    /// It as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut to = [0; Self::BYTES];
        if let Some((origin, SnapshotKey { line, epoch })) = &self.held {
            to[..40].copy_from_slice(&Origin::encode(Some(origin)));
            to[40..44].copy_from_slice(&line.0.to_le_bytes());
            to[44..48].copy_from_slice(&epoch.0.to_le_bytes());
        }
        if let Some(Coming { source, base, position, since }) = &self.coming {
            to[48..88].copy_from_slice(&Origin::encode(Some(source)));
            to[88..128].copy_from_slice(&Origin::encode(base.as_ref()));
            to[128..136].copy_from_slice(&position.0.to_le_bytes());
            to[136..140].copy_from_slice(&since.0.to_le_bytes());
        }
        to
    }

    /// What bytes say.
    ///
    /// # Errors
    /// When they are not as many as these are.
    pub fn decode(from: &[u8]) -> Result<Self, Malformed> {
        let from: &[u8; Self::BYTES] = from.try_into().map_err(|_| Malformed)?;
        let held = Origin::decode(&array(from, 0)).map(|origin| {
            let line = LineId(u32::from_le_bytes(array(from, 40)));
            let epoch = Epoch(u32::from_le_bytes(array(from, 44)));
            (origin, SnapshotKey { line, epoch })
        });
        let coming = Origin::decode(&array(from, 48)).map(|source| Coming {
            source,
            base: Origin::decode(&array(from, 88)),
            position: Lba(u64::from_le_bytes(array(from, 128))),
            since: Epoch(u32::from_le_bytes(array(from, 136))),
        });
        Ok(Self { held, coming })
    }
}

fn array<const N: usize>(from: &[u8; Provenance::BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&from[at..at + N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::PoolId;

    fn origin(number: u8) -> Origin {
        let snapshot = SnapshotKey { line: LineId(number.into()), epoch: Epoch(9) };
        Origin { pool: PoolId([number; 16]), snapshot, tag: [number; 16] }
    }

    /// It is stored with volumes, so its bytes stay where they are.
    #[test]
    fn what_is_known_of_an_import_comes_back_from_these_bytes() {
        let held = Some((origin(1), SnapshotKey { line: LineId(2), epoch: Epoch(3) }));
        let (source, base) = (origin(4), Some(origin(5)));
        let coming = Some(Coming { source, base, position: Lba(0x0102), since: Epoch(6) });
        let whole = Coming { source, base: None, position: Lba(0), since: Epoch(0) };
        for provenance in [
            Provenance { held, coming },
            Provenance { held, coming: None },
            Provenance { held: None, coming: Some(whole) },
            Provenance::default(),
        ] {
            assert_eq!(Provenance::decode(&provenance.encode()), Ok(provenance));
        }
        let bytes = Provenance { held, coming }.encode();
        assert_eq!((bytes[0], bytes[40], bytes[44]), (1, 2, 3));
        assert_eq!((bytes[48], bytes[88], bytes[128], bytes[129]), (4, 5, 2, 1));
        assert_eq!((bytes[136], Provenance::BYTES), (6, 144));
        assert_eq!(Provenance::decode(&bytes[1..]), Err(Malformed));
    }
}
