//! CRC32C, for what travels or lies in the clear.

#[cfg(target_arch = "x86_64")]
mod sys;

/// Castagnoli's polynomial, the lowest power in the highest bit.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The CRC32C (Castagnoli's polynomial; RFC 7143, section 13.1) of some parts
/// that follow each other.
#[must_use]
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    !parts.iter().fold(!0, |state, part| update(state, part))
}

#[inline]
fn update(state: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if let Some(state) = sys::update(state, bytes) {
        return state;
    }
    update_by_table(state, bytes)
}

/// For processors without an instruction.
#[cold]
fn update_by_table(state: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    bytes.iter().fold(state, |state, &byte| TABLE[(state as u8 ^ byte) as usize] ^ state >> 8)
}

/// What each value of the lowest byte of the state adds to the next one.
const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            let odd = table[byte] & 1 == 1;
            table[byte] = if odd { table[byte] >> 1 ^ POLYNOMIAL } else { table[byte] >> 1 };
            bit += 1;
        }
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7143, appendix A.4, and the check value of every list of CRCs. What
    /// lies on disks depends on these.
    #[test]
    fn it_is_castagnolis() {
        let ascending: [u8; 32] = std::array::from_fn(|at| at as u8);
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c(&[&[0xff; 32]]), 0x62a8_ab43);
        assert_eq!(crc32c(&[&ascending]), 0x46dd_794e);
        assert_eq!(crc32c(&[b"123456789"]), 0xe306_9283);
        assert_eq!(crc32c(&[]), 0);
    }

    /// There is other code for each length, and for each processor.
    #[test]
    fn parts_are_as_good_as_the_whole() {
        let bytes: Vec<u8> = (0..10_000u32).map(|at| (at * 7 % 251) as u8).collect();
        for length in (0..600).chain([959, 960, 1368, 4031, 4095, 4096, 4097, 8192, 10_000]) {
            let bit_by_bit = !bytes[..length].iter().fold(!0u32, |sum, byte| {
                (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                    if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 }
                })
            });
            let (first, second) = bytes[..length].split_at(length / 3);
            assert_eq!(crc32c(&[first, second]), bit_by_bit, "{length} bytes");
            assert_eq!(crc32c(&[&bytes[..length]]), bit_by_bit, "{length} bytes");
            assert_eq!(!update_by_table(!0, &bytes[..length]), bit_by_bit, "{length} bytes");
        }
    }
}
