//! Sizes as people write them: `512`, `4k`, `1M`, `2GiB`, and `4k-1m`.

use std::fmt;
use std::str::FromStr;

/// A size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) u64);

/// The sizes of requests, in bytes: each from `min` to `max`, in steps of `min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockSizes {
    /// The smallest request, and the step.
    pub(crate) min: u32,
    /// The largest request, a multiple of `min`.
    pub(crate) max: u32,
}

/// Largest request, 1 MiB: what a Linux guest sends at most by default.
const LARGEST_REQUEST: u64 = 1 << 20;

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let shift = match text[digits..].to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kib" => 10,
            "m" | "mib" => 20,
            "g" | "gib" => 30,
            "t" | "tib" => 40,
            _ => return Err(format!("'{text}' is not a size; write 512, 4k, 1M, 2G")),
        };
        let number: u64 = text[..digits]
            .parse()
            .map_err(|_| format!("'{text}' is not a size; write 512, 4k, 1M, 2G"))?;
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| format!("'{text}' is more bytes than 64 bits can count"))
    }
}

impl FromStr for BlockSizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once('-').unwrap_or((text, text));
        let (min, max) = (min.parse::<Bytes>()?.0, max.parse::<Bytes>()?.0);
        if min == 0 || !min.is_multiple_of(512) {
            return Err(format!("block size '{text}' is not a multiple of 512 bytes"));
        }
        if max > LARGEST_REQUEST {
            return Err(format!("block size '{text}' is above 1M, the largest request"));
        }
        if max < min || !max.is_multiple_of(min) {
            return Err(format!("in '{text}' the larger size is not a multiple of the smaller"));
        }
        let narrow = |size: u64| u32::try_from(size).map_err(|error| error.to_string());
        Ok(Self { min: narrow(min)?, max: narrow(max)? })
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] =
            [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let unit = UNITS.iter().find(|(size, _)| self.0 >= *size);
        match unit {
            Some((size, name)) if self.0.is_multiple_of(*size) => {
                write!(f, "{} {name}", self.0 / size)
            }
            Some((size, name)) => write!(f, "{:.1} {name}", self.0 as f64 / *size as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl fmt::Display for BlockSizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bytes(self.min.into()).fmt(f)?;
        if self.max != self.min {
            write!(f, " to {}", Bytes(self.max.into()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in
            [("512", 512), ("4k", 4096), ("1M", 1 << 20), ("2GiB", 2 << 30), ("3t", 3 << 40)]
        {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "k", "4kk", "-1", "1.5G", "16777216T", "4 k"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn block_sizes_are_sectors_and_steps() {
        assert_eq!("4k-1m".parse(), Ok(BlockSizes { min: 4096, max: 1 << 20 }));
        assert_eq!("512".parse(), Ok(BlockSizes { min: 512, max: 512 }));
        for text in ["0", "1000", "2M", "8k-4k", "4k-6k", "4k-"] {
            assert!(text.parse::<BlockSizes>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_is_printed_with_its_unit() {
        assert_eq!(Bytes(512).to_string(), "512 B");
        assert_eq!(Bytes(4096).to_string(), "4 KiB");
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(BlockSizes { min: 4096, max: 1 << 20 }.to_string(), "4 KiB to 1 MiB");
    }
}
