//! CRC32C by the processor's instruction.
//!
//! The instruction takes 8 bytes each cycle and its result comes three cycles
//! later, so three stretches of the bytes are summed side by side and put
//! together by a carry-less multiplication.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u64, _mm_cvtsi32_si128, _mm_cvtsi128_si64,
};

use super::POLYNOMIAL;

/// Words of 8 bytes in a stretch: three of the first kind are nearly a block,
/// three of the second nearly the smallest segment of a frame.
const LONG: usize = 168;
const SHORT: usize = 40;

/// Words in one round of a stretch's loop.
const ROUND: usize = 8;
const _: () = assert!(LONG.is_multiple_of(ROUND) && SHORT.is_multiple_of(ROUND));

/// Goes on from `state` over `bytes`, or `None` on a processor without the
/// instructions.
#[inline]
pub(super) fn update(state: u32, bytes: &[u8]) -> Option<u32> {
    let here = is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("pclmulqdq");
    // SAFETY: the processor has what the function is compiled for.
    here.then(|| unsafe { update_here(state, bytes) })
}

#[target_feature(enable = "sse4.2,pclmulqdq")]
fn update_here(state: u32, bytes: &[u8]) -> u32 {
    let (mut words, rest) = bytes.as_chunks::<8>();
    let mut state = state;
    while words.len() >= 3 * LONG {
        (state, words) = three_stretches::<LONG>(state, words);
    }
    while words.len() >= 3 * SHORT {
        (state, words) = three_stretches::<SHORT>(state, words);
    }
    let mut wide = u64::from(state);
    for word in words {
        wide = _mm_crc32_u64(wide, u64::from_le_bytes(*word));
    }
    rest.iter().fold(wide as u32, |state, &byte| _mm_crc32_u8(state, byte))
}

/// Goes on over the first `3 * WORDS` of `words`, of which there are so many;
/// returns the others, too.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
fn three_stretches<const WORDS: usize>(state: u32, words: &[[u8; 8]]) -> (u32, &[[u8; 8]]) {
    let (one, rest) = words.split_at(WORDS);
    let (two, rest) = rest.split_at(WORDS);
    let (three, rest) = rest.split_at(WORDS);
    let mut sums = [u64::from(state), 0, 0];
    let rounds = |stretch| <[[u8; 8]]>::as_chunks::<ROUND>(stretch).0;
    for ((one, two), three) in rounds(one).iter().zip(rounds(two)).zip(rounds(three)) {
        for at in 0..ROUND {
            sums[0] = _mm_crc32_u64(sums[0], u64::from_le_bytes(one[at]));
            sums[1] = _mm_crc32_u64(sums[1], u64::from_le_bytes(two[at]));
            sums[2] = _mm_crc32_u64(sums[2], u64::from_le_bytes(three[at]));
        }
    }
    let first = pass_zeroes(sums[0] as u32, const { power(2 * WORDS) });
    let second = pass_zeroes(sums[1] as u32, const { power(WORDS) });
    (first ^ second ^ sums[2] as u32, rest)
}

/// The state after `state` and as many words of zeroes as `power` is of.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
fn pass_zeroes(state: u32, power: u32) -> u32 {
    let (state, power) = (_mm_cvtsi32_si128(state as i32), _mm_cvtsi32_si128(power as i32));
    let product = _mm_clmulepi64_si128::<0>(state, power);
    _mm_crc32_u64(0, _mm_cvtsi128_si64(product) as u64) as u32
}

/// `x` to the bits in so many words, less 33, modulo the polynomial, the lowest
/// power in the highest bit: a product of two 32-bit polynomials in this order
/// has one bit less than 64, and the instruction multiplies by another 32.
const fn power(words: usize) -> u32 {
    let mut power = 1 << 31;
    let mut left = words * 64 - 33;
    while left > 0 {
        power = if power & 1 == 1 { power >> 1 ^ POLYNOMIAL } else { power >> 1 };
        left -= 1;
    }
    power
}
