//! The key area, to the byte.
//!
//! ```text
//! block 0          the header: ways to unlock the pool
//! block 1..=64     keys of domains
//! block 65..=650   eras
//! block 651..1022  not used
//!
//! every block  0    magic "vRIOkeys"
//!              8    version u16 | index u16
//!              12   crc32c u32: of the whole block, with zeros here
//!              16   pool id, 16 bytes
//!              32   sequence u64: which of two copies is newer
//!              40   zero u64
//!              48   mac, 16 bytes: of the whole block, with zeros here and in
//!                   place of the crc32c; keyed BLAKE3, a key of the pool key
//!              64   entries
//!
//! header       8 ways of 128 bytes
//! domain keys  31 entries of 128 bytes, zero u64 * 8
//! eras         112 entries of 36 bytes
//!
//! a way        0    kind u8: 0 none, 1 passphrase, 2 key file
//!              1    name length u8 | zero u16
//!              4    Argon2id: memory in KiB u32, passes u32, lanes u32
//!              16   name, 32 bytes
//!              48   the pool key, wrapped: salt 32, sealed 32, tag 16
//!
//! domain key   0    domain u32 | first era u32
//!              8    state u8: 0 free, 1 key, 2 erased
//!              9    name length u8 | zero, 6 bytes
//!              16   name, 32 bytes
//!              48   the key, wrapped: salt 32, sealed 32, tag 16
//!
//! an era       0    number u32: 0 free | salt, 32 bytes
//! ```
//!
//! A wrap's associated data is the pool id and the entry's first 48 bytes.
//! Era `n` has place `n % 65,536`. Magic, version and crc32c are where they
//! are and what they are in every later version.

use block_core::{BLOCK_SIZE, crc32c};

use super::key::{KEY_BYTES, Key, SALT_BYTES, Salt, Wrapped};
use super::secret::{Cost, MAX_NAME_BYTES, WayKind};
use crate::layout::control::Malformed;
use crate::layout::{DomainId, EraId, PoolId};

/// One block of the key area.
pub(crate) type Block = [u8; BLOCK_SIZE];

/// The version that this code writes, and the highest that it reads.
pub const VERSION: u16 = 1;

/// The block with the ways.
pub(crate) const HEADER: u16 = 0;

/// How many ways there can be.
pub const WAYS: usize = 8;

const FIRST_DOMAIN_BLOCK: u16 = 1;
const DOMAIN_BLOCKS: u16 = 64;
const DOMAIN_KEYS_PER_BLOCK: usize = 31;

/// How many keys of domains there can be, those of rotated and erased ones
/// among them.
pub const DOMAIN_KEYS: usize = DOMAIN_BLOCKS as usize * DOMAIN_KEYS_PER_BLOCK;

const FIRST_ERA_BLOCK: u16 = FIRST_DOMAIN_BLOCK + DOMAIN_BLOCKS;
const ERA_BLOCKS: u16 = 586;
const ERAS_PER_BLOCK: usize = 112;

/// How many eras there can be at a time.
pub const ERAS: usize = 65_536;

const MAGIC: [u8; 8] = *b"vRIOkeys";
const CRC_AT: usize = 12;
const MAC_AT: usize = 48;
const MAC_BYTES: usize = 16;
const HEAD_BYTES: usize = 64;
const WRAP_AT: usize = 48;
const ENTRY_BYTES: usize = 128;
const ERA_BYTES: usize = 4 + SALT_BYTES;

const _: () = {
    assert!(WRAP_AT + SALT_BYTES + KEY_BYTES + 16 == ENTRY_BYTES);
    assert!(HEAD_BYTES + WAYS * ENTRY_BYTES <= BLOCK_SIZE);
    assert!(HEAD_BYTES + DOMAIN_KEYS_PER_BLOCK * ENTRY_BYTES + 64 == BLOCK_SIZE);
    assert!(HEAD_BYTES + ERAS_PER_BLOCK * ERA_BYTES == BLOCK_SIZE);
    assert!(ERA_BLOCKS as usize * ERAS_PER_BLOCK >= ERAS);
    assert!((ERA_BLOCKS as usize - 1) * ERAS_PER_BLOCK < ERAS);
    let blocks = FIRST_ERA_BLOCK as u64 + ERA_BLOCKS as u64;
    assert!(blocks <= crate::layout::fixed::KEY_AREA_BLOCKS);
};

/// A list of entries: which blocks it has, and how many in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    pub(crate) first: u16,
    pub(crate) blocks: u16,
    pub(crate) per_block: usize,
}

impl Section {
    pub(crate) const DOMAINS: Self =
        Self { first: FIRST_DOMAIN_BLOCK, blocks: DOMAIN_BLOCKS, per_block: DOMAIN_KEYS_PER_BLOCK };

    pub(crate) const ERAS: Self =
        Self { first: FIRST_ERA_BLOCK, blocks: ERA_BLOCKS, per_block: ERAS_PER_BLOCK };

    /// The block of a place, and which places that block has.
    pub(crate) const fn block_of(self, place: usize) -> (u16, std::ops::Range<usize>) {
        let block = place / self.per_block;
        let start = block * self.per_block;
        (self.first + block as u16, start..start + self.per_block)
    }
}

/// What one copy of a block is, as far as its crc32c tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// Never written.
    Empty,
    /// Written by a version that this code does not know.
    Newer(u16),
    /// Not what was written there.
    Damaged,
    /// As it was written.
    Whole(Head),
}

/// What a whole block says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) pool: PoolId,
    pub(crate) sequence: u64,
}

/// What lies in the copy of block `index`.
pub(crate) fn read(block: &Block, index: u16) -> Reading {
    if crate::hash::is_zero(block) {
        return Reading::Empty;
    }
    let (version, crc) = (u16_at(block, 8), u32_at(block, CRC_AT));
    if block[..8] != MAGIC || crc != crc_of(block) {
        Reading::Damaged
    } else if version > VERSION {
        Reading::Newer(version)
    } else if version != VERSION || u16_at(block, 10) != index {
        Reading::Damaged
    } else {
        Reading::Whole(Head { pool: PoolId(array_at(block, 16)), sequence: u64_at(block, 32) })
    }
}

/// Whether a block was one of a key area, however damaged.
pub(crate) fn is_ours(block: &Block) -> bool {
    block[..8] == MAGIC
}

/// Whether a whole block was written by somebody who has the pool key.
pub(crate) fn is_authentic(block: &Block, mac_key: &Key) -> bool {
    // A guess at a time gains nothing here: whoever can write to the device
    // does not see how far a comparison came.
    mac_of(block, mac_key) == block[MAC_AT..MAC_AT + MAC_BYTES]
}

/// Writes a block's head around its entries.
pub(crate) fn close(block: &mut Block, index: u16, head: Head, mac_key: &Key) {
    block[..8].copy_from_slice(&MAGIC);
    block[8..10].copy_from_slice(&VERSION.to_le_bytes());
    block[10..12].copy_from_slice(&index.to_le_bytes());
    block[16..32].copy_from_slice(&head.pool.0);
    block[32..40].copy_from_slice(&head.sequence.to_le_bytes());
    let mac = mac_of(block, mac_key);
    block[MAC_AT..MAC_AT + MAC_BYTES].copy_from_slice(&mac);
    let crc = crc_of(block);
    block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
}

fn crc_of(block: &Block) -> u32 {
    crc32c(&[&block[..CRC_AT], &[0; 4], &block[CRC_AT + 4..]])
}

fn mac_of(block: &Block, key: &Key) -> [u8; MAC_BYTES] {
    let mut hash = blake3::Hasher::new_keyed(key.bytes());
    hash.update(&block[..CRC_AT]).update(&[0; 4]).update(&block[CRC_AT + 4..MAC_AT]);
    hash.update(&[0; MAC_BYTES]).update(&block[MAC_AT + MAC_BYTES..]);
    array_at(hash.finalize().as_bytes(), 0)
}

/// What can stand in a place of a section.
pub(crate) trait Entry: Sized {
    /// Bytes of a place.
    const BYTES: usize;

    /// Writes the entry to its place, which is zero.
    fn encode(&self, to: &mut [u8]);

    /// The entry of a place, or `None` when it is free.
    fn decode(from: &[u8]) -> Result<Option<Self>, Malformed>;
}

/// Writes entries to the places of a block.
pub(crate) fn encode<'a, E: Entry + 'a>(
    entries: impl Iterator<Item = Option<&'a E>>,
) -> Box<Block> {
    let mut block = Box::new([0; BLOCK_SIZE]);
    for (entry, place) in entries.zip(block[HEAD_BYTES..].chunks_exact_mut(E::BYTES)) {
        if let Some(entry) = entry {
            entry.encode(place);
        }
    }
    block
}

/// The first `places` entries of a block.
pub(crate) fn decode<E: Entry>(block: &Block, places: usize) -> Result<Vec<Option<E>>, Malformed> {
    block[HEAD_BYTES..].chunks_exact(E::BYTES).take(places).map(E::decode).collect()
}

/// A way to unlock the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) name: String,
    pub(crate) kind: WayKind,
    /// What a guess costs; `None` for a key file.
    pub(crate) cost: Option<Cost>,
    pub(crate) wrapped: Wrapped,
}

impl Way {
    /// The associated data of its wrap.
    pub(crate) fn binding(&self, pool: &PoolId) -> [u8; 16 + WRAP_AT] {
        binding(self, pool)
    }
}

impl Entry for Way {
    const BYTES: usize = ENTRY_BYTES;

    fn encode(&self, to: &mut [u8]) {
        to[0] = match self.kind {
            WayKind::Passphrase => 1,
            WayKind::KeyFile => 2,
        };
        let cost = self.cost.map_or([0; 3], Cost::parts);
        for (value, to) in cost.iter().zip(to[4..16].chunks_exact_mut(4)) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        to[1] = self.name.len() as u8;
        encode_name(&self.name, to);
        encode_wrap(&self.wrapped, to);
    }

    fn decode(from: &[u8]) -> Result<Option<Self>, Malformed> {
        let kind = match from[0] {
            0 => return Ok(None),
            1 => WayKind::Passphrase,
            2 => WayKind::KeyFile,
            _ => return Err(Malformed),
        };
        let cost = match kind {
            WayKind::Passphrase => {
                let cost = Cost::new(u32_at(from, 4), u32_at(from, 8), u32_at(from, 12));
                Some(cost.ok_or(Malformed)?)
            }
            WayKind::KeyFile => None,
        };
        let (name, wrapped) = (decode_name(from, from[1])?, decode_wrap(from));
        Ok(Some(Self { name, kind, cost, wrapped }))
    }
}

/// A key of a domain, or what an erased one left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DomainKey {
    pub(crate) domain: DomainId,
    /// The first era whose blocks it seals.
    pub(crate) from: EraId,
    pub(crate) name: String,
    /// `None` when the domain was erased.
    pub(crate) wrapped: Option<Wrapped>,
}

impl DomainKey {
    /// The associated data of its wrap.
    pub(crate) fn binding(&self, pool: &PoolId) -> [u8; 16 + WRAP_AT] {
        binding(self, pool)
    }
}

impl Entry for DomainKey {
    const BYTES: usize = ENTRY_BYTES;

    fn encode(&self, to: &mut [u8]) {
        to[..4].copy_from_slice(&self.domain.0.to_le_bytes());
        to[4..8].copy_from_slice(&self.from.0.to_le_bytes());
        to[8] = if self.wrapped.is_some() { 1 } else { 2 };
        to[9] = self.name.len() as u8;
        encode_name(&self.name, to);
        encode_wrap(self.wrapped.as_ref().unwrap_or(&Wrapped::NOTHING), to);
    }

    fn decode(from: &[u8]) -> Result<Option<Self>, Malformed> {
        let wrapped = match from[8] {
            0 => return Ok(None),
            1 => Some(decode_wrap(from)),
            2 => None,
            _ => return Err(Malformed),
        };
        let domain = DomainId(u32_at(from, 0));
        if domain == DomainId::METADATA {
            return Err(Malformed);
        }
        let name = decode_name(from, from[9])?;
        Ok(Some(Self { domain, from: EraId(u32_at(from, 4)), name, wrapped }))
    }
}

/// An era.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Era {
    pub(crate) id: EraId,
    pub(crate) salt: Salt,
}

impl Entry for Era {
    const BYTES: usize = ERA_BYTES;

    fn encode(&self, to: &mut [u8]) {
        to[..4].copy_from_slice(&self.id.0.to_le_bytes());
        to[4..].copy_from_slice(&self.salt);
    }

    fn decode(from: &[u8]) -> Result<Option<Self>, Malformed> {
        match u32_at(from, 0) {
            0 => Ok(None),
            number if number > EraId::MAX.0 => Err(Malformed),
            number => Ok(Some(Self { id: EraId(number), salt: array_at(from, 4) })),
        }
    }
}

fn binding(entry: &impl Entry, pool: &PoolId) -> [u8; 16 + WRAP_AT] {
    let mut bytes = [0; ENTRY_BYTES];
    entry.encode(&mut bytes);
    let mut binding = [0; 16 + WRAP_AT];
    binding[..16].copy_from_slice(&pool.0);
    binding[16..].copy_from_slice(&bytes[..WRAP_AT]);
    binding
}

fn encode_name(name: &str, to: &mut [u8]) {
    to[16..16 + name.len()].copy_from_slice(name.as_bytes());
}

fn decode_name(from: &[u8], length: u8) -> Result<String, Malformed> {
    let bytes = from[16..16 + MAX_NAME_BYTES].get(..length.into()).ok_or(Malformed)?;
    let name = std::str::from_utf8(bytes).map_err(|_| Malformed)?;
    if name.is_empty() { Err(Malformed) } else { Ok(name.to_owned()) }
}

fn encode_wrap(wrapped: &Wrapped, to: &mut [u8]) {
    to[WRAP_AT..WRAP_AT + 32].copy_from_slice(&wrapped.salt);
    to[WRAP_AT + 32..WRAP_AT + 64].copy_from_slice(&wrapped.sealed);
    to[WRAP_AT + 64..].copy_from_slice(&wrapped.tag);
}

fn decode_wrap(from: &[u8]) -> Wrapped {
    Wrapped {
        salt: array_at(from, WRAP_AT),
        sealed: array_at(from, WRAP_AT + 32),
        tag: array_at(from, WRAP_AT + 64),
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: Head = Head { pool: PoolId(*b"the pool's id 16"), sequence: 0x0807_0605_0403_0201 };

    fn mac_key() -> Key {
        Key::from_bytes(&[9; KEY_BYTES])
    }

    fn wrapped() -> Wrapped {
        Wrapped { salt: [0xaa; 32], sealed: [0xbb; 32], tag: [0xcc; 16] }
    }

    fn closed<E: Entry>(index: u16, entries: &[Option<E>]) -> Box<Block> {
        let mut block = encode(entries.iter().map(Option::as_ref));
        close(&mut block, index, HEAD, &mac_key());
        block
    }

    fn crc_and_mac(block: &Block) -> String {
        let parts = [&block[CRC_AT..CRC_AT + 4], &block[MAC_AT..MAC_AT + MAC_BYTES]];
        parts.concat().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The head of every block, written by hand.
    #[test]
    fn a_block_has_this_head() {
        let block = closed::<Era>(0x0102, &[]);
        assert_eq!(block[..12], *b"vRIOkeys\x01\x00\x02\x01");
        assert_eq!(
            block[16..48],
            *b"the pool's id 16\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\0\0"
        );
        assert_eq!(block[64..], [0; BLOCK_SIZE - 64]);
        assert_eq!(read(&block, 0x0102), Reading::Whole(HEAD));
        assert!(is_authentic(&block, &mac_key()));
        assert!(!is_authentic(&block, &Key::blank()));
        assert_eq!(crc_and_mac(&block), "f64a3cd5bd7bae5a33dd0ab24e26c1fb941c7a18");
    }

    /// Ways, written by hand.
    #[test]
    fn a_way_has_these_bytes() {
        let cost = Cost::new(0x0001_0203, 4, 5);
        let ways = [
            None,
            Some(Way { name: "me".into(), kind: WayKind::Passphrase, cost, wrapped: wrapped() }),
            Some(Way {
                name: "0123456789abcdef0123456789abcdef".into(),
                kind: WayKind::KeyFile,
                cost: None,
                wrapped: wrapped(),
            }),
        ];
        let block = closed(HEADER, &ways);
        let mut expected = vec![0; 128];
        expected.extend(b"\x01\x02\0\0\x03\x02\x01\0\x04\0\0\0\x05\0\0\0me");
        expected.resize(128 + 48, 0);
        expected.extend([[0xaa; 32], [0xbb; 32]].concat());
        expected.extend([0xcc; 16]);
        expected.extend(b"\x02\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        expected.extend(b"0123456789abcdef0123456789abcdef");
        expected.extend_from_within(128 + 48..256);
        assert_eq!(block[64..64 + 384], expected);
        assert_eq!(decode::<Way>(&block, 3), Ok(ways.to_vec()));
        assert_eq!(crc_and_mac(&block), "5d0c03414d072951ddca016ab897d5fef72700dd");
    }

    /// Keys of domains, written by hand.
    #[test]
    fn a_domain_key_has_these_bytes() {
        let (domain, from) = (DomainId(0x0403_0201), EraId(0x07_0605));
        let key = DomainKey { domain, from, name: "tenant".into(), wrapped: Some(wrapped()) };
        let keys = [Some(key.clone()), Some(DomainKey { wrapped: None, ..key })];
        let block = closed(1, &keys);
        let mut expected = b"\x01\x02\x03\x04\x05\x06\x07\0\x01\x06\0\0\0\0\0\0tenant".to_vec();
        expected.resize(48, 0);
        expected.extend([[0xaa; 32], [0xbb; 32]].concat());
        expected.extend([0xcc; 16]);
        expected.extend_from_within(..48);
        expected[128 + 8] = 2;
        expected.resize(256, 0);
        assert_eq!(block[64..64 + 256], expected);
        assert_eq!(decode::<DomainKey>(&block, 2), Ok(keys.to_vec()));
        assert_eq!(crc_and_mac(&block), "77beaa404bc83ba1cee9fa0c8ab11f5494175716");
    }

    /// Eras, written by hand.
    #[test]
    fn an_era_has_these_bytes() {
        let eras = [None, Some(Era { id: EraId(0x03_0201), salt: [0xdd; 32] })];
        let block = closed(65, &eras);
        let mut expected = [0; 72];
        expected[36..40].copy_from_slice(&[1, 2, 3, 0]);
        expected[40..].fill(0xdd);
        assert_eq!(block[64..64 + 72], expected);
        assert_eq!(decode::<Era>(&block, 2), Ok(eras.to_vec()));
        assert_eq!(crc_and_mac(&block), "cfd9ce54aefdf2af9262e6fab8eafe3660dff1b8");
    }

    /// Rot of any bit is seen without a key.
    #[test]
    fn no_bit_can_change_unseen() {
        let block = closed(65, &[Some(Era { id: EraId(1), salt: [1; 32] })]);
        for bit in 0..BLOCK_SIZE * 8 {
            let mut block = block.clone();
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&block, 65), Reading::Damaged, "bit {bit}");
        }
        assert_eq!(read(&block, 66), Reading::Damaged);
        assert_eq!(read(&[0; BLOCK_SIZE], 65), Reading::Empty);
    }

    #[test]
    fn a_block_of_a_later_version_is_told_from_damage() {
        let mut block = closed::<Era>(0, &[]);
        block[8] = 2;
        assert_eq!(read(&block, 0), Reading::Damaged);
        let crc = crc_of(&block);
        block[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(read(&block, 0), Reading::Newer(2));
    }

    fn any_entry() -> impl Strategy<Value = Vec<u8>> {
        // Small numbers, so that kinds and lengths are valid now and then.
        prop::collection::vec(prop_oneof![0..4u8, 30..36u8, any::<u8>()], ENTRY_BYTES)
    }

    proptest! {
        /// A mac says who wrote a block, not that it was done well.
        #[test]
        fn entries_decode_to_what_encodes_to_the_same_or_not_at_all(bytes in any_entry()) {
            round(Way::decode(&bytes), |way: Way| way.name.len() <= MAX_NAME_BYTES)?;
            round(DomainKey::decode(&bytes), |key: DomainKey| key.domain != DomainId::METADATA)?;
            round(Era::decode(&bytes[..ERA_BYTES]), |era: Era| era.id <= EraId::MAX)?;
        }
    }

    fn round<E: Entry + PartialEq + std::fmt::Debug>(
        entry: Result<Option<E>, Malformed>,
        is_valid: impl Fn(E) -> bool,
    ) -> Result<(), TestCaseError> {
        if let Ok(Some(entry)) = entry {
            let mut bytes = vec![0; E::BYTES];
            entry.encode(&mut bytes);
            let again = E::decode(&bytes);
            prop_assert_eq!(again.as_ref(), Ok(&Some(entry)));
            prop_assert!(again.is_ok_and(|entry| entry.is_some_and(is_valid)));
        }
        Ok(())
    }
}
