//! Keyed BLAKE3 of blocks, several at once.
//!
//! A hash names a block's content within its domain: whoever does not have the
//! key can neither recognise a block by its hash nor make two that collide.
//!
//! The batch goes below BLAKE3's public interface, which hashes one input at a
//! time and so fills four of the eight lanes of AVX2 with the four chunks of a
//! block. Eight blocks side by side fill all of them, in the leaves and above:
//!
//! ```text
//! block   chunk 0   chunk 1   chunk 2   chunk 3     1024 bytes each
//!             \       /           \       /
//!              parent              parent           64 bytes: two values
//!                      \        /
//!                         root
//! ```

use std::array;

use blake3::IncrementCounter;
use blake3::platform::Platform;
use block_core::BLOCK_SIZE;

use crate::layout::record::Hash;
use crate::vault::Key;

const CHUNK_BYTES: usize = 1024;
const CHUNKS: usize = BLOCK_SIZE / CHUNK_BYTES;
const VALUE_BYTES: usize = 32;
const PAIR_BYTES: usize = 2 * VALUE_BYTES;

const _: () = assert!(CHUNKS == 4, "the tree above is drawn for four chunks");

// The domain flags of BLAKE3's compression (section 2.1 of its paper).
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;
const KEYED: u8 = 16;

/// The key under which a domain's blocks are hashed.
#[derive(Debug)]
pub struct HashKey(Key);

impl HashKey {
    /// Hashes with `key`.
    #[must_use]
    pub const fn new(key: Key) -> Self {
        Self(key)
    }

    fn words(&self) -> [u32; 8] {
        let (words, _) = self.0.bytes().as_chunks();
        array::from_fn(|at| u32::from_le_bytes(words[at]))
    }
}

/// The hash of one block.
#[must_use]
pub fn hash(key: &HashKey, block: &[u8]) -> Hash {
    first_half(blake3::keyed_hash(key.0.bytes(), block).as_bytes())
}

/// The hashes of some blocks of [`BLOCK_SIZE`] bytes, each the same as [`hash`]
/// says. Eight at a time cost two thirds of one at a time; one call with as
/// many as are at hand is best.
///
/// # Panics
/// If there are not as many places for hashes as blocks, or a block has
/// another size: both are mistakes in the caller's code.
pub fn hash_many(key: &HashKey, blocks: &[&[u8]], hashes: &mut [Hash]) {
    assert_eq!(blocks.len(), hashes.len());
    if let ([block], [to]) = (blocks, &mut *hashes) {
        assert_eq!(block.len(), BLOCK_SIZE);
        *to = hash(key, block);
        return;
    }
    let (eights, rest) = blocks.as_chunks::<8>();
    let (eight_hashes, rest_hashes) = hashes.as_chunks_mut::<8>();
    for (blocks, hashes) in eights.iter().zip(eight_hashes) {
        side_by_side(key, blocks, hashes);
    }
    let (fours, rest) = rest.as_chunks::<4>();
    let (four_hashes, rest_hashes) = rest_hashes.as_chunks_mut::<4>();
    for (blocks, hashes) in fours.iter().zip(four_hashes) {
        side_by_side(key, blocks, hashes);
    }
    for (block, to) in rest.iter().zip(rest_hashes) {
        assert_eq!(block.len(), BLOCK_SIZE);
        *to = hash(key, block);
    }
}

/// `N` blocks, one in each lane; `N` is at most eight.
fn side_by_side<const N: usize>(key: &HashKey, blocks: &[&[u8]; N], hashes: &mut [Hash; N]) {
    let (platform, words) = (Platform::detect(), key.words());
    let blocks = blocks.map(|block| {
        let (chunks, _) = block.as_chunks::<CHUNK_BYTES>();
        <&[[u8; CHUNK_BYTES]; CHUNKS]>::try_from(chunks).expect("a block has four chunks")
    });
    // One above the other: the values of chunk 0 of every block, then of chunk
    // 1, and so on, because one call gives all its lanes the same counter.
    let mut leaves = [[[0; VALUE_BYTES]; N]; CHUNKS];
    for (chunk, values) in leaves.iter_mut().enumerate() {
        platform.hash_many(
            &blocks.map(|block| &block[chunk]),
            &words,
            chunk as u64,
            IncrementCounter::No,
            KEYED,
            CHUNK_START,
            CHUNK_END,
            values.as_flattened_mut(),
        );
    }
    let mut halves = [[[0; VALUE_BYTES]; N]; 2];
    for (half, values) in halves.iter_mut().enumerate() {
        parents(platform, &words, 0, &leaves[2 * half], &leaves[2 * half + 1], values);
    }
    let mut roots = [[0; VALUE_BYTES]; N];
    parents(platform, &words, ROOT, &halves[0], &halves[1], &mut roots);
    for (root, hash) in roots.iter().zip(hashes) {
        *hash = first_half(root);
    }
}

fn parents<const N: usize>(
    platform: Platform,
    words: &[u32; 8],
    flags: u8,
    left: &[[u8; VALUE_BYTES]; N],
    right: &[[u8; VALUE_BYTES]; N],
    values: &mut [[u8; VALUE_BYTES]; N],
) {
    let pairs: [[u8; PAIR_BYTES]; N] = array::from_fn(|lane| {
        let mut pair = [0; PAIR_BYTES];
        pair[..VALUE_BYTES].copy_from_slice(&left[lane]);
        pair[VALUE_BYTES..].copy_from_slice(&right[lane]);
        pair
    });
    platform.hash_many(
        &pairs.each_ref(),
        words,
        0,
        IncrementCounter::No,
        KEYED | PARENT | flags,
        0,
        0,
        values.as_flattened_mut(),
    );
}

fn first_half(value: &[u8; VALUE_BYTES]) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(&value[..size_of::<Hash>()]);
    hash
}

/// Whether every byte is zero.
#[must_use]
pub fn is_zero(block: &[u8]) -> bool {
    // Comparing is the C library's work, which takes the widest vectors that
    // the CPU has and stops at the first difference.
    static ZEROES: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];
    block.chunks(BLOCK_SIZE).all(|part| *part == ZEROES[..part.len()])
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngCore, SeedableRng};

    use super::*;

    fn key(byte: u8) -> HashKey {
        HashKey::new(Key::from_bytes(&[byte; 32]))
    }

    /// What is on disks was hashed with this function; it must stay the one.
    #[test]
    fn a_hash_is_half_of_keyed_blake3() {
        let block: Vec<u8> = (0..BLOCK_SIZE).map(|at| (at % 251) as u8).collect();
        let words = *b"whats the Elvish word for friend";
        let known = "befc660aea2f1718884cd8deb9902811";
        // BLAKE3's own test vector is for 4096 bytes of this pattern.
        let hash = hash(&HashKey::new(Key::from_bytes(&words)), &block);
        assert_eq!(hash.map(|byte| format!("{byte:02x}")).concat(), known);
    }

    /// The batch call is not a promise of the crate: a lane mixed up, or a
    /// later version that means something else, would show here.
    #[test]
    fn a_batch_of_any_size_hashes_as_the_public_function_does() {
        let mut random = StdRng::seed_from_u64(1);
        let mut blocks = vec![[0; BLOCK_SIZE]; 33];
        blocks.iter_mut().for_each(|block| random.fill_bytes(block));
        for size in 1..=blocks.len() {
            let batch: Vec<&[u8]> = blocks[..size].iter().map(<[u8; _]>::as_slice).collect();
            let key = key(size as u8);
            let mut hashes = vec![Hash::default(); size];
            hash_many(&key, &batch, &mut hashes);
            for (block, hash) in batch.iter().zip(&hashes) {
                assert_eq!(hash, &blake3::keyed_hash(&[size as u8; 32], block).as_bytes()[..16]);
            }
        }
    }

    #[test]
    fn one_byte_anywhere_is_not_zero() {
        let mut block = vec![0; BLOCK_SIZE + 5];
        assert!(is_zero(&block));
        assert!(is_zero(&[]));
        for at in 0..block.len() {
            block[at] = 1;
            assert!(!is_zero(&block), "byte {at}");
            block[at] = 0;
        }
    }
}
