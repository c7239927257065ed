//! A pointer: where a block is, and what it takes to open it.
//!
//! ```text
//! 0    tag, 16 bytes
//! 16   seq u32
//! 20   era u24
//! 23   pba u40
//! 28   (birth << 2 | kind) u32
//! ```

use block_core::Pba;

use super::identity::{Epoch, EraId};

/// Bytes of a pointer.
pub const POINTER_BYTES: usize = 32;

/// Pointers in a page of a tree.
pub const POINTERS: usize = block_core::BLOCK_SIZE / POINTER_BYTES;

/// A pool has at most so many blocks: 256 TiB.
pub const MAX_BLOCKS: u64 = 1 << 36;

const _: () = assert!(POINTERS == 128);

const PBA_MASK: u64 = (1 << 40) - 1;

/// What opens a sealed block: AES-256-GCM's tag, and which key and nonce. No
/// two blocks that were ever sealed have the same era and seq.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seal {
    /// The authentication tag.
    pub tag: [u8; 16],
    /// The number of this seal in its era; the nonce.
    pub seq: u32,
    /// Which salt the key was made with.
    pub era: EraId,
}

impl Seal {
    /// Era and seq as one number: names the sealed block, once and for ever.
    #[must_use]
    pub const fn key(&self) -> u64 {
        (self.era.0 as u64) << 32 | self.seq as u64
    }
}

/// What a pointer points at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Nothing: reads as zero.
    #[default]
    Hole = 0,
    /// A guest's block.
    Data = 1,
    /// A page of the pool.
    Page = 2,
    /// What nobody knows any more: the page that said it was damaged when it
    /// had to be written anew. Cannot be read, and can be written over.
    Lost = 3,
}

/// Where a block is, what opens it, and since when this pointer stands here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Pointer {
    /// What opens the block.
    pub seal: Seal,
    /// Where it is.
    pub pba: Pba,
    /// In which epoch this pointer was written; a duplicate's is younger than
    /// its block.
    pub birth: Epoch,
    /// What it points at.
    pub kind: Kind,
}

impl Pointer {
    /// Nothing, since always: what a new tree is full of; 32 zero bytes.
    pub const HOLE: Self = Self {
        seal: Seal { tag: [0; 16], seq: 0, era: EraId(0) },
        pba: Pba(0),
        birth: Epoch(0),
        kind: Kind::Hole,
    };

    /// Whether it points at nothing.
    #[must_use]
    pub const fn is_hole(&self) -> bool {
        matches!(self.kind, Kind::Hole)
    }

    /// What was below the page at `pba`, which cannot be had.
    #[must_use]
    pub const fn lost(pba: Pba, birth: Epoch) -> Self {
        Self { pba, birth, kind: Kind::Lost, ..Self::HOLE }
    }

    /// Whether what it points at is not known any more.
    #[must_use]
    pub const fn is_lost(&self) -> bool {
        matches!(self.kind, Kind::Lost)
    }

    /// Whether it says all there is to say of everything below it, at any
    /// level: nothing is there, or it is lost.
    #[must_use]
    pub const fn is_an_end(&self) -> bool {
        matches!(self.kind, Kind::Hole | Kind::Lost)
    }

    /// The pointer as its bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; POINTER_BYTES] {
        let rest = u128::from(self.seal.seq)
            | u128::from(self.seal.era.0 & 0xff_ffff) << 32
            | u128::from(self.pba.0 & PBA_MASK) << 56
            | u128::from(self.birth.0 << 2 | self.kind as u32) << 96;
        let mut bytes = [0; POINTER_BYTES];
        bytes[..16].copy_from_slice(&self.seal.tag);
        bytes[16..].copy_from_slice(&rest.to_le_bytes());
        bytes
    }

    /// The pointer that these bytes are, or `None` for a block that no pool
    /// has.
    #[must_use]
    pub fn decode(bytes: &[u8; POINTER_BYTES]) -> Option<Self> {
        let (tag, rest) = bytes.split_first_chunk().expect("32 bytes have 16");
        let rest = u128::from_le_bytes(*rest.first_chunk().expect("and 16 more"));
        let word = (rest >> 96) as u32;
        let kind = match word & 3 {
            0 => Kind::Hole,
            1 => Kind::Data,
            2 => Kind::Page,
            _ => Kind::Lost,
        };
        let pba = Pba((rest >> 56) as u64 & PBA_MASK);
        if pba.0 >= MAX_BLOCKS {
            return None;
        }
        let era = EraId((rest >> 32) as u32 & 0xff_ffff);
        let seal = Seal { tag: *tag, seq: rest as u32, era };
        Some(Self { seal, pba, birth: Epoch(word >> 2), kind })
    }

    /// The pointer at a place of a page, or `None` when it is malformed.
    #[must_use]
    pub fn in_page(page: &[u8], place: usize) -> Option<Self> {
        let bytes = page.get(place * POINTER_BYTES..(place + 1) * POINTER_BYTES)?;
        Self::decode(bytes.try_into().ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The bytes of one pointer, written by hand: what is on disks must be
    /// read by every later version.
    #[test]
    fn a_pointer_has_these_bytes() {
        let pointer = Pointer {
            seal: Seal { tag: *b"0123456789abcdef", seq: 0x0403_0201, era: EraId(0x07_0605) },
            pba: Pba(0x08_0908_0706),
            birth: Epoch(0x0102_0304),
            kind: Kind::Page,
        };
        let mut expected = *b"0123456789abcdef\x01\x02\x03\x04\x05\x06\x07\x06\x07\x08\x09\x08....";
        expected[28..].copy_from_slice(&(0x0102_0304u32 << 2 | 2).to_le_bytes());
        assert_eq!(pointer.encode(), expected);
        assert_eq!(Pointer::decode(&expected), Some(pointer));
        assert_eq!(Pointer::HOLE.encode(), [0; POINTER_BYTES]);
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes: [u8; POINTER_BYTES]) {
            if let Some(pointer) = Pointer::decode(&bytes) {
                prop_assert_eq!(pointer.encode(), bytes);
                prop_assert!(pointer.pba.0 < MAX_BLOCKS);
            }
        }
    }
}
