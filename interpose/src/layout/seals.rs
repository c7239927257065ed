//! A page of the tree of seals: what opens each block of the device, by its
//! number.
//!
//! ```text
//! 102 entries of 40 bytes, for blocks page * 102 ..
//! 0    hash, 16 bytes
//! 16   tag, 16 bytes
//! 32   seq u32
//! 36   era u24
//! 39   flags u8 (1: there is a seal)
//! 4080 zero 16
//! ```

use block_core::Pba;
use block_core::unit::BLOCK_SIZE;

use super::identity::EraId;
use super::pointer::Seal;
use super::record::Hash;

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 40;

/// Blocks of the device that a page speaks of.
pub const ENTRIES: u64 = (BLOCK_SIZE / ENTRY_BYTES) as u64;

const _: () = assert!(ENTRIES == 102);
const THERE: u8 = 1;

/// The page that speaks of a block, and the place in it.
#[must_use]
pub const fn place_of(pba: Pba) -> (u64, usize) {
    (pba.0 / ENTRIES, (pba.0 % ENTRIES) as usize)
}

/// What a page says at a place.
#[must_use]
pub fn entry(page: &[u8], place: usize) -> Option<(Hash, Seal)> {
    let bytes = page.get(place * ENTRY_BYTES..(place + 1) * ENTRY_BYTES)?;
    if bytes[39] & THERE == 0 {
        return None;
    }
    let (mut hash, mut tag) = (Hash::default(), [0; 16]);
    hash.copy_from_slice(&bytes[..16]);
    tag.copy_from_slice(&bytes[16..32]);
    let seq = u32::from_le_bytes([bytes[32], bytes[33], bytes[34], bytes[35]]);
    let era = EraId(u32::from_le_bytes([bytes[36], bytes[37], bytes[38], 0]));
    Some((hash, Seal { tag, seq, era }))
}

/// Says it.
pub fn set_entry(page: &mut [u8], place: usize, hash: &Hash, seal: &Seal) {
    let bytes = &mut page[place * ENTRY_BYTES..(place + 1) * ENTRY_BYTES];
    bytes[..16].copy_from_slice(hash);
    bytes[16..32].copy_from_slice(&seal.tag);
    bytes[32..36].copy_from_slice(&seal.seq.to_le_bytes());
    bytes[36..39].copy_from_slice(&seal.era.0.to_le_bytes()[..3]);
    bytes[39] = THERE;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_these_bytes() {
        let mut page = vec![0; BLOCK_SIZE];
        let seal = Seal { tag: [2; 16], seq: 0x0403_0201, era: EraId(0x07_0605) };
        let (at, place) = place_of(Pba(102 * 7 + 101));
        assert_eq!((at, place), (7, 101));
        set_entry(&mut page, place, &[1; 16], &seal);
        let expected = [&[1; 16][..], &[2; 16], &[1, 2, 3, 4, 5, 6, 7, 1]].concat();
        assert_eq!(page[101 * 40..4080], expected);
        assert_eq!(page[4080..], [0; 16]);
        assert_eq!(entry(&page, 101), Some(([1; 16], seal)));
        assert_eq!(entry(&page, 100), None);
    }
}
