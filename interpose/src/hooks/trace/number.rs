//! Numbers as entries have them: seven bits a byte.

/// Most bytes of a number.
pub(super) const MAX_NUMBER: usize = 10;

/// A number that is cut off, or has more than 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadNumber;

/// Appends a number.
pub(super) fn put(to: &mut Vec<u8>, number: u64) {
    let mut left = number;
    while left >= 0x80 {
        to.push(left as u8 | 0x80);
        left >>= 7;
    }
    to.push(left as u8);
}

/// Appends how far it is from one number to another, modulo 2^64.
pub(super) fn put_step(to: &mut Vec<u8>, from: u64, number: u64) {
    let step = number.wrapping_sub(from) as i64;
    put(to, (step << 1 ^ step >> 63) as u64);
}

/// Takes a number off the front of `from`.
pub(super) fn take(from: &mut &[u8]) -> Result<u64, BadNumber> {
    let mut number = 0;
    for (at, &byte) in from.iter().take(MAX_NUMBER).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if at == MAX_NUMBER - 1 && bits > 1 {
            return Err(BadNumber);
        }
        number |= bits << (7 * at);
        if byte & 0x80 == 0 {
            *from = &from[at + 1..];
            return Ok(number);
        }
    }
    Err(BadNumber)
}

/// Takes a step off the front of `from`, and goes it.
pub(super) fn take_step(from: &mut &[u8], start: u64) -> Result<u64, BadNumber> {
    let folded = take(from)?;
    let step = (folded >> 1) as i64 ^ -((folded & 1) as i64);
    Ok(start.wrapping_add(step as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn near_numbers_are_short() {
        let mut bytes = Vec::new();
        put_step(&mut bytes, 1000, 1000);
        put_step(&mut bytes, 1000, 937);
        put_step(&mut bytes, 1000, 1063);
        assert_eq!(bytes.len(), 3);
        assert_eq!(take(&mut &[0xff; 10][..]), Err(BadNumber), "more than 64 bits");
        assert_eq!(take(&mut &[0x80; 3][..]), Err(BadNumber), "cut off");
    }

    proptest! {
        #[test]
        fn what_is_put_is_taken(start: u64, number: u64) {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            put_step(&mut bytes, start, number);
            prop_assert!(bytes.len() <= 2 * MAX_NUMBER);
            let mut rest = &bytes[..];
            prop_assert_eq!(take(&mut rest), Ok(number));
            prop_assert_eq!(take_step(&mut rest, start), Ok(number));
            prop_assert!(rest.is_empty());
        }
    }
}
