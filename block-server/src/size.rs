//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// A number of bytes, written as `512M`, `10G`, `1.5TiB` or `4096`; units are
/// powers of 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{0}' is not a size; write 512M, 10G, 1.5T, or a number of bytes (units are powers of 1024)"
)]
pub struct BadSize(String);

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        parse(text.trim()).map(Self).ok_or_else(|| BadSize(text.escape_debug().to_string()))
    }
}

fn parse(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start().to_ascii_uppercase();
    let shift = match unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit) {
        "" => 0,
        one => UNITS.iter().find(|(letter, _)| one.chars().eq([*letter]))?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = u128::from(whole.parse::<u64>().ok()?) << shift;
    let fraction = match fraction {
        "" if number.ends_with('.') => return None,
        "" => 0,
        digits if digits.len() > 9 => return None,
        digits => {
            (u128::from(digits.parse::<u64>().ok()?) << shift) / 10u128.pow(digits.len() as u32)
        }
    };
    u64::try_from(whole + fraction).ok()
}

impl fmt::Display for Size {
    /// Exact when a unit divides it (`10G`), else with a digit after the
    /// point (`3.2G`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(&(letter, shift)) = UNITS.iter().rev().find(|(_, shift)| self.0 >> shift != 0)
        else {
            return write!(f, "{}", self.0);
        };
        if self.0.trailing_zeros() >= shift {
            write!(f, "{}{letter}", self.0 >> shift)
        } else {
            // Cut, not rounded: 1023.99M is not printed as 1024.0M.
            let tenths = (u128::from(self.0) * 10) >> shift;
            write!(f, "{}.{}{letter}", tenths / 10, tenths % 10)
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Size {
    /// From a number of bytes or a text.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"10G\" or a number of bytes")
            }

            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom("a size is not negative"))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512M", 512 << 20),
            ("10G", 10 << 30),
            ("10gib", 10 << 30),
            ("10 GiB", 10 << 30),
            ("1.5T", 3 << 39),
            ("16K", 16384),
            ("7B", 7),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for bad in ["", "G", "-1", "1.G", "1..2G", "1X", "10GG", "99999999P", "1e3", "0x10", "1,5G"]
        {
            assert!(bad.parse::<Size>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_exact_size_is_printed_exactly_and_reads_back() {
        for bytes in [0, 1, 1023, 1 << 10, 3 << 20, 10 << 30, 1 << 50, 1 << 60] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size((32 << 30) / 10).to_string(), "3.1G");
        assert_eq!(Size((1 << 30) - 1).to_string(), "1023.9M");
        assert_eq!(Size(u64::MAX).to_string(), "16383.9P");
    }
}
