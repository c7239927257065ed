//! The verification pattern: every sector says what it is.
//!
//! A sector of 512 bytes, all numbers little-endian:
//!
//! ```text
//!   0   8  16    24          28                         508     512
//!   | magic | seed | sector | generation | noise of these | CRC32C |
//! ```
//!
//! The noise depends on seed, sector and generation, so nothing compresses or
//! is stored once for two places. What is compared is the whole sector; the
//! numbers and the CRC serve to say what was found instead.

use std::fmt;

use serde::Serialize;

use super::random::{SplitMix, mix};

/// Bytes in a sector, the unit of the pattern and of virtio-blk.
pub(crate) const SECTOR: usize = 512;

const MAGIC: [u8; 8] = *b"vRIObnch";
const NOISE_AT: usize = 28;
const CRC_AT: usize = 508;

const _: () = assert!((CRC_AT - NOISE_AT).is_multiple_of(8));
const _: () = assert!(CRC_AT + 4 == SECTOR);

/// What a sector must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Expected {
    /// The pattern of this write.
    Generation(u32),
    /// The pattern of any write of a run with this seed.
    AnyGeneration,
    /// Nothing but zero bytes.
    Zeroes,
}

/// What a sector held instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Found {
    /// A whole sector of the pattern, from another place or time.
    Sector { sector: u64, generation: u32, seed: u64 },
    /// A sector that began as the pattern and was changed or torn.
    Damaged { sector: u64, generation: u32 },
    /// Nothing but zero bytes.
    Zeroes,
    /// Bytes that this pattern never wrote.
    Foreign,
}

/// A sector that does not hold what it must.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Mismatch {
    /// Which sector of the device.
    pub(crate) sector: u64,
    pub(crate) expected: Expected,
    pub(crate) found: Found,
}

/// Fills `buffer` with the pattern of one write that begins at `sector`.
pub(crate) fn stamp(buffer: &mut [u8], sector: u64, generation: u32, seed: u64) {
    let (sectors, rest) = buffer.as_chunks_mut::<SECTOR>();
    assert!(rest.is_empty(), "a pattern is made of whole sectors");
    for (bytes, sector) in sectors.iter_mut().zip(sector..) {
        stamp_sector(bytes, sector, generation, seed);
    }
}

/// Checks `buffer`, read from `sector` on; hands each bad sector to `report`.
pub(crate) fn check(
    buffer: &[u8],
    sector: u64,
    expected: Expected,
    seed: u64,
    mut report: impl FnMut(Mismatch),
) {
    let (sectors, rest) = buffer.as_chunks::<SECTOR>();
    assert!(rest.is_empty(), "a pattern is made of whole sectors");
    for (bytes, sector) in sectors.iter().zip(sector..) {
        if !holds(bytes, sector, expected, seed) {
            report(Mismatch { sector, expected, found: identify(bytes) });
        }
    }
}

fn stamp_sector(bytes: &mut [u8; SECTOR], sector: u64, generation: u32, seed: u64) {
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&seed.to_le_bytes());
    bytes[16..24].copy_from_slice(&sector.to_le_bytes());
    bytes[24..NOISE_AT].copy_from_slice(&generation.to_le_bytes());
    let mut noise = SplitMix::new(mix(seed ^ mix(sector)) ^ mix(u64::from(generation)));
    for word in bytes[NOISE_AT..CRC_AT].as_chunks_mut::<8>().0 {
        *word = noise.next().to_le_bytes();
    }
    let crc = block_core::crc32c(&[&bytes[..CRC_AT]]);
    bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

fn holds(bytes: &[u8; SECTOR], sector: u64, expected: Expected, seed: u64) -> bool {
    let generation = match expected {
        Expected::Generation(generation) => generation,
        Expected::AnyGeneration => u32::from_le_bytes(field(bytes, 24)),
        Expected::Zeroes => return is_zero(bytes),
    };
    let mut wanted = [0; SECTOR];
    stamp_sector(&mut wanted, sector, generation, seed);
    *bytes == wanted
}

fn identify(bytes: &[u8; SECTOR]) -> Found {
    if is_zero(bytes) {
        return Found::Zeroes;
    }
    if bytes[..8] != MAGIC {
        return Found::Foreign;
    }
    let seed = u64::from_le_bytes(field(bytes, 8));
    let sector = u64::from_le_bytes(field(bytes, 16));
    let generation = u32::from_le_bytes(field(bytes, 24));
    let mut whole = [0; SECTOR];
    stamp_sector(&mut whole, sector, generation, seed);
    if *bytes == whole {
        Found::Sector { sector, generation, seed }
    } else {
        Found::Damaged { sector, generation }
    }
}

fn is_zero(bytes: &[u8; SECTOR]) -> bool {
    bytes.as_chunks::<8>().0.iter().all(|word| *word == [0; 8])
}

fn field<const N: usize>(bytes: &[u8; SECTOR], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generation(generation) => write!(f, "write {generation}"),
            Self::AnyGeneration => f.write_str("this sector's own pattern"),
            Self::Zeroes => f.write_str("zeroes"),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sector { sector, generation, seed } => {
                write!(f, "sector {sector} of write {generation}, seed {seed}")
            }
            Self::Damaged { sector, generation } => {
                write!(f, "a damaged sector, headed sector {sector} of write {generation}")
            }
            Self::Zeroes => f.write_str("zeroes"),
            Self::Foreign => f.write_str("bytes that no verified run wrote"),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {}: expected {}, found {}", self.sector, self.expected, self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mismatches(buffer: &[u8], sector: u64, expected: Expected, seed: u64) -> Vec<Mismatch> {
        let mut found = Vec::new();
        check(buffer, sector, expected, seed, |mismatch| found.push(mismatch));
        found
    }

    #[test]
    fn every_single_flipped_bit_is_seen() {
        let mut bytes = [0; SECTOR];
        stamp(&mut bytes, 77, 5, 3);
        for expected in [Expected::Generation(5), Expected::AnyGeneration] {
            assert_eq!(mismatches(&bytes, 77, expected, 3), []);
            for bit in 0..SECTOR * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(mismatches(&bytes, 77, expected, 3).len(), 1, "bit {bit}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn a_torn_write_is_called_damaged() {
        let (mut old, mut new) = ([0; SECTOR], [0; SECTOR]);
        stamp(&mut old, 4, 1, 0);
        stamp(&mut new, 4, 2, 0);
        new[256..].copy_from_slice(&old[256..]);
        let found = mismatches(&new, 4, Expected::Generation(2), 0);
        assert_eq!(found[0].found, Found::Damaged { sector: 4, generation: 2 });
    }

    #[test]
    fn zeroes_and_foreign_bytes_have_names() {
        let expected = Expected::Generation(1);
        assert_eq!(mismatches(&[0; SECTOR], 0, expected, 0)[0].found, Found::Zeroes);
        assert_eq!(mismatches(&[9; SECTOR], 0, expected, 0)[0].found, Found::Foreign);
        assert_eq!(mismatches(&[0; SECTOR], 0, Expected::Zeroes, 0), []);
        assert_eq!(mismatches(&[9; SECTOR], 0, Expected::Zeroes, 0)[0].found, Found::Foreign);
    }

    #[test]
    fn a_mismatch_reads_as_a_sentence() {
        let mut bytes = [0; SECTOR];
        stamp(&mut bytes, 8, 1, 6);
        assert_eq!(
            mismatches(&bytes, 16, Expected::Generation(4), 6)[0].to_string(),
            "sector 16: expected write 4, found sector 8 of write 1, seed 6",
        );
    }

    proptest! {
        /// The classic faults of a block path: right data in the wrong place,
        /// an older write, another run's data.
        #[test]
        fn misplaced_stale_and_strange_sectors_are_seen_and_named(
            sector in 0u64..1 << 40, other_sector in 0u64..1 << 40,
            generation: u32, other_generation: u32, seed: u64, other_seed: u64,
        ) {
            prop_assume!((sector, generation, seed) != (other_sector, other_generation, other_seed));
            let mut bytes = [0; SECTOR];
            stamp(&mut bytes, other_sector, other_generation, other_seed);
            let found = mismatches(&bytes, sector, Expected::Generation(generation), seed);
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].found, Found::Sector {
                sector: other_sector, generation: other_generation, seed: other_seed });
        }

        #[test]
        fn each_bad_sector_of_a_buffer_is_reported_by_number(bad in 0usize..16, byte in 0usize..SECTOR) {
            let mut bytes = [0; 16 * SECTOR];
            stamp(&mut bytes, 100, 1, 2);
            bytes[bad * SECTOR + byte] ^= 0x40;
            let found = mismatches(&bytes, 100, Expected::Generation(1), 2);
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].sector, 100 + bad as u64);
        }
    }
}
