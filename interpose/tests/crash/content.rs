//! What the oracle writes: a number for each sector, so that whatever is read
//! says whose it is, and a sector that is torn or of another block is seen.

use block_core::unit::{BLOCK_SIZE, SECTOR_SIZE};

const WORDS: usize = SECTOR_SIZE / 8;
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The numbers of a block's sectors; 0 is zeroes.
pub type Content = [u64; BLOCK_SIZE / SECTOR_SIZE];

/// A block of zeroes.
pub const ZERO: Content = [0; BLOCK_SIZE / SECTOR_SIZE];

/// Fills a sector with what its number stands for.
pub fn fill(number: u64, sector: &mut [u8]) {
    let words = sector.as_chunks_mut::<8>().0.iter_mut().zip(0u64..);
    words.for_each(|(word, at)| *word = expand(number, at).to_le_bytes());
}

/// The numbers of a block, unless a sector is not as [`fill`] makes it.
pub fn parse(block: &[u8]) -> Option<Content> {
    let mut content = ZERO;
    for (number, sector) in content.iter_mut().zip(block.chunks_exact(SECTOR_SIZE)) {
        let words = sector.as_chunks::<8>().0;
        *number = u64::from_le_bytes(words[0]);
        let good = |at: usize| u64::from_le_bytes(words[at]) == expand(*number, at as u64);
        if !(0..WORDS).all(good) {
            return None;
        }
    }
    Some(content)
}

fn expand(number: u64, at: u64) -> u64 {
    if number == 0 { 0 } else { number ^ at.wrapping_mul(ODD) }
}
