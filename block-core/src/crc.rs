//! CRC32C, for what travels or lies in the clear.

use crc_fast::{CrcAlgorithm, Digest};

/// The CRC32C (Castagnoli's polynomial; RFC 7143, section 13.1) of some parts
/// that follow each other.
#[must_use]
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    let mut sum = Digest::new(CrcAlgorithm::Crc32Iscsi);
    parts.iter().for_each(|part| sum.update(part));
    sum.finalize() as u32
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

    /// The crate has other code for each length.
    #[test]
    fn parts_are_as_good_as_the_whole() {
        let bytes: Vec<u8> = (0..5000u32).map(|at| (at * 7 % 251) as u8).collect();
        for length in (0..600).chain([4095, 4096, 4097, 5000]) {
            let bit_by_bit = !bytes[..length].iter().fold(!0u32, |sum, byte| {
                (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                    if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 }
                })
            });
            let (first, second) = bytes[..length].split_at(length / 3);
            assert_eq!(crc32c(&[first, second]), bit_by_bit, "{length} bytes");
        }
    }
}
