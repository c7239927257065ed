//! CRC32C by the processor's own instruction.
//!
//! The instruction takes three cycles and one can begin in each, so long data is
//! cut into three lanes whose sums are joined at the end. A frame of a block takes
//! two fifths of the instructions of the crate `crc32c`, which stands in where the
//! instruction is missing.
#![allow(unsafe_code)] // whether the processor has it is only known when it runs

/// The CRC32C of what `crc` is that of, and then `bytes`.
#[must_use]
pub(crate) fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the one feature that the function needs.
        return unsafe { lanes::append(crc, bytes) };
    }
    crc32c::crc32c_append(crc, bytes)
}

#[cfg(target_arch = "x86_64")]
mod lanes {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};

    /// Words that a loop's pass takes of each lane.
    const PASS: usize = 4;

    /// Passes of a lane: three lanes are 4032 bytes, nearly a block.
    const PASSES: usize = 42;

    type Pass = [[u8; 8]; PASS];

    #[target_feature(enable = "sse4.2")]
    pub(super) fn append(crc: u32, bytes: &[u8]) -> u32 {
        let (words, rest) = bytes.as_chunks::<8>();
        let (passes, words) = words.as_chunks::<PASS>();
        let (triples, passes) = passes.as_chunks::<{ 3 * PASSES }>();
        let mut sum = u64::from(!crc);
        for triple in triples {
            sum = join(triple, sum);
        }
        for pass in passes {
            sum = add(sum, pass);
        }
        for word in words {
            sum = _mm_crc32_u64(sum, u64::from_le_bytes(*word));
        }
        let mut sum = sum as u32;
        for byte in rest {
            sum = _mm_crc32_u8(sum, *byte);
        }
        !sum
    }

    #[target_feature(enable = "sse4.2")]
    fn join(triple: &[Pass; 3 * PASSES], sum: u64) -> u64 {
        let (first, others) = triple.split_at(PASSES);
        let (second, third) = others.split_at(PASSES);
        let mut sums = [sum, 0, 0];
        for ((first, second), third) in first.iter().zip(second).zip(third) {
            sums = [add(sums[0], first), add(sums[1], second), add(sums[2], third)];
        }
        let two = u64::from(past_a_lane(sums[0] as u32)) ^ sums[1];
        u64::from(past_a_lane(two as u32)) ^ sums[2]
    }

    #[inline]
    #[target_feature(enable = "sse4.2")]
    fn add(mut sum: u64, pass: &Pass) -> u64 {
        for word in pass {
            sum = _mm_crc32_u64(sum, u64::from_le_bytes(*word));
        }
        sum
    }

    /// What a sum is after a lane of zeroes.
    fn past_a_lane(sum: u32) -> u32 {
        let bytes = sum.to_le_bytes().map(usize::from);
        let [a, b, c, d] = &PAST_A_LANE;
        a[bytes[0]] ^ b[bytes[1]] ^ c[bytes[2]] ^ d[bytes[3]]
    }

    /// That of each value of each byte of a sum: it is linear.
    static PAST_A_LANE: [[u32; 256]; 4] = {
        let factor = power(8 * 8 * PASS * PASSES);
        let mut tables = [[0; 256]; 4];
        let mut value = 0;
        while value < 256 {
            let mut byte = 0;
            while byte < 4 {
                tables[byte][value] = product(factor, (value as u32) << (8 * byte));
                byte += 1;
            }
            value += 1;
        }
        tables
    };

    /// Castagnoli's polynomial without its highest term; bit 31 is that of 1.
    const POLYNOMIAL: u32 = 0x82f6_3b78;

    const ONE: u32 = 1 << 31;

    const fn times_x(of: u32) -> u32 {
        if of & 1 == 1 { of >> 1 ^ POLYNOMIAL } else { of >> 1 }
    }

    const fn power(exponent: usize) -> u32 {
        let (mut result, mut step) = (ONE, 0);
        while step < exponent {
            result = times_x(result);
            step += 1;
        }
        result
    }

    const fn product(one: u32, mut other: u32) -> u32 {
        let (mut result, mut bit) = (0, ONE);
        while bit != 0 {
            if one & bit != 0 {
                result ^= other;
            }
            other = times_x(other);
            bit >>= 1;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Both ends may run on different processors.
    #[test]
    fn it_is_what_the_portable_code_says() {
        let bytes: Vec<u8> = (0..20_000_u32).map(|at| ((at * at) >> 7) as u8).collect();
        for len in [0, 1, 7, 8, 31, 32, 64, 1024, 4031, 4032, 4033, 4096, 8064, 8192, 20_000] {
            let bytes = &bytes[..len];
            assert_eq!(crc32c_append(0, bytes), crc32c::crc32c(bytes), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn in_pieces_it_is_the_same(bytes in prop::collection::vec(any::<u8>(), 0..9000),
                                    at in any::<prop::sample::Index>()) {
            let at = at.index(bytes.len() + 1);
            let sum = crc32c_append(crc32c_append(0, &bytes[..at]), &bytes[at..]);
            prop_assert_eq!(sum, crc32c::crc32c(&bytes));
        }
    }
}
