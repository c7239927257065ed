//! A block of the journal, to the byte.
//!
//! ```text
//! 0    tag, 16 bytes
//! 16   era u32
//! 20   seq u32
//! 24   journal u16 | count u16 | zero u32
//! 32   number u64
//! 40   mark u64
//! 48   the previous block's tag, 16 bytes
//! 64   the body, 4032 bytes, sealed: `count` records, then zeroes
//! ```
//!
//! The associated data is the block's [`Binding`] and the header from 24 on;
//! era and seq say which key and nonce open it, so no byte of a block can
//! change unseen.

use block_core::{BLOCK_SIZE, BlockCount, Extent, Pba};

use crate::layout::binding::BINDING_BYTES;
use crate::layout::control::Malformed;
use crate::layout::pointer::MAX_BLOCKS;
use crate::layout::record::MAX_RECORD_BYTES;
use crate::layout::{Binding, Class, DomainId, EraId, PoolId, Record, Seal};
use crate::vault::{Vault, VaultError};

/// Bytes of a block's header.
pub const HEADER_BYTES: usize = 64;

/// Bytes of a block's body.
pub const BODY_BYTES: usize = BLOCK_SIZE - HEADER_BYTES;

/// Where the part of the header begins that the seal is bound to.
const BOUND: usize = 24;

const AAD_BYTES: usize = BINDING_BYTES + HEADER_BYTES - BOUND;

const _: () = assert!(BODY_BYTES == 4032 && BODY_BYTES == MAX_RECORD_BYTES);
const _: () = assert!(HEADER_BYTES == 16 + 4 + 4 + 2 + 2 + 4 + 8 + 8 + 16);

/// No pool lives longer; numbers can be added to without care.
const MOST_NUMBER: u64 = 1 << 62;

/// A block's authentication tag: the next block repeats it.
pub type Tag = [u8; 16];

/// Where one of a pool's journals lies. Block `n` is at place `n % blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    journal: u16,
    extent: Extent,
}

/// The smallest ring; what waits for room in it comes to an end.
pub const LEAST_RING_BLOCKS: BlockCount = BlockCount(64);

impl Ring {
    /// The ring of a pool's journal number `journal`, or `None` when it is too
    /// small or larger than any pool.
    #[must_use]
    pub fn new(journal: u16, extent: Extent) -> Option<Self> {
        let sound = extent.count >= LEAST_RING_BLOCKS && extent.end().0 <= MAX_BLOCKS;
        sound.then_some(Self { journal, extent })
    }

    /// How many blocks there are.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.extent.count.0
    }

    /// Where a block lies.
    #[must_use]
    pub const fn place(&self, number: u64) -> Pba {
        Pba(self.extent.start.0 + number % self.blocks())
    }
}

/// What a block says about itself and about those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// How many records it has.
    pub count: u16,
    /// Its number: 1, 2, 3 and so on for as long as the pool lives.
    pub number: u64,
    /// The last number that was known to be durable, with all before it, when
    /// this block was sealed; 0 for none.
    pub mark: u64,
    /// The tag of the block before.
    pub previous: Tag,
}

impl Header {
    fn bound(&self, journal: u16) -> [u8; HEADER_BYTES - BOUND] {
        let mut bytes = [0; HEADER_BYTES - BOUND];
        bytes[..2].copy_from_slice(&journal.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.count.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.mark.to_le_bytes());
        bytes[24..].copy_from_slice(&self.previous);
        bytes
    }
}

/// A header that no seal vouches for yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unproven {
    header: Header,
    seal: Seal,
}

impl Unproven {
    /// The header that the block at `place` claims, or `None` if a journal's
    /// block at that place never says so.
    #[must_use]
    pub fn parse(ring: &Ring, place: Pba, block: &[u8]) -> Option<Self> {
        let (header, _) = block.split_first_chunk::<HEADER_BYTES>()?;
        let era = EraId(u32::from_le_bytes(*at(header, 16)));
        let seal = Seal { tag: *at(header, 0), seq: u32::from_le_bytes(*at(header, 20)), era };
        let claimed = Header {
            count: u16::from_le_bytes(*at(header, 26)),
            number: u64::from_le_bytes(*at(header, 32)),
            mark: u64::from_le_bytes(*at(header, 40)),
            previous: *at(header, 48),
        };
        let sound = era <= EraId::MAX
            && claimed.number <= MOST_NUMBER
            && claimed.mark < claimed.number
            && ring.place(claimed.number) == place
            && claimed.bound(ring.journal) == *at(header, BOUND);
        sound.then_some(Self { header: claimed, seal })
    }

    /// What the header claims.
    #[must_use]
    pub const fn claim(&self) -> &Header {
        &self.header
    }

    /// Opens the body of the block that the header came from, in place.
    /// `None` if it, or the header, is not what was sealed.
    pub fn open(self, vault: &Vault, ring: &Ring, block: &mut [u8]) -> Option<Opened> {
        let aad = associated(vault.pool_id(), ring, &self.header);
        let body = &mut block[HEADER_BYTES..BLOCK_SIZE];
        vault.open(DomainId::METADATA, &self.seal, &aad, body).ok()?;
        Some(Opened { header: self.header, tag: self.seal.tag })
    }
}

/// A header that belongs to an opened block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What it says.
    pub header: Header,
    /// The block's tag.
    pub tag: Tag,
}

/// Writes the header to a block whose body holds the records and zeroes, and
/// seals the body in place. Returns the block's tag.
pub(super) fn seal(
    vault: &Vault,
    ring: &Ring,
    header: &Header,
    block: &mut [u8],
) -> Result<Tag, VaultError> {
    let aad = associated(vault.pool_id(), ring, header);
    let (front, body) = block[..BLOCK_SIZE].split_at_mut(HEADER_BYTES);
    let seal = vault.seal(DomainId::METADATA, &aad, body)?;
    front[..16].copy_from_slice(&seal.tag);
    front[16..20].copy_from_slice(&seal.era.0.to_le_bytes());
    front[20..24].copy_from_slice(&seal.seq.to_le_bytes());
    front[BOUND..].copy_from_slice(&header.bound(ring.journal));
    Ok(seal.tag)
}

/// Takes the records of an opened block one by one.
///
/// # Errors
/// When the body is not exactly `count` records and zeroes, or `sink` says so.
pub(super) fn records(
    count: u16,
    block: &[u8],
    mut sink: impl FnMut(Record) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let mut rest = &block[HEADER_BYTES..BLOCK_SIZE];
    for _ in 0..count {
        let (record, after) = Record::decode(rest)?;
        sink(record)?;
        rest = after;
    }
    if rest.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(Malformed) }
}

fn associated(pool: PoolId, ring: &Ring, header: &Header) -> [u8; AAD_BYTES] {
    let mut aad = [0; AAD_BYTES];
    let binding = Binding::page(Class::Journal, 0, ring.place(header.number));
    aad[..BINDING_BYTES].copy_from_slice(&binding.encode(&pool));
    aad[BINDING_BYTES..].copy_from_slice(&header.bound(ring.journal));
    aad
}

/// `N` bytes of a header from `from` on.
fn at<const N: usize>(header: &[u8; HEADER_BYTES], from: usize) -> &[u8; N] {
    header[from..].first_chunk().expect("a field lies within the header")
}
